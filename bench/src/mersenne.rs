//! Python's `random.Random`, as far as the graphs need it, so that they are the graphs of earlier measurements by Python scripts.
//!
//! The generator is MT19937: Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8(1), 1998, with `init_by_array` of its 2002 version.

const LENGTH: usize = 624;
const SHIFT: usize = 397;

/// A stream of random numbers.
pub struct Random {
    state: [u32; LENGTH],
    next: usize,
}

impl Random {
    /// `random.Random(seed)`.
    pub fn new(seed: u32) -> Self {
        let mut state = [0u32; LENGTH];
        state[0] = 19_650_218;
        for i in 1..LENGTH {
            state[i] = mixed(state[i - 1], 1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        for _ in 0..LENGTH {
            state[i] = (state[i] ^ mixed(state[i - 1], 1_664_525)).wrapping_add(seed);
            i = following(&mut state, i);
        }
        for _ in 1..LENGTH {
            state[i] = (state[i] ^ mixed(state[i - 1], 1_566_083_941)).wrapping_sub(i as u32);
            i = following(&mut state, i);
        }
        state[0] = 0x8000_0000;
        Self { state, next: LENGTH }
    }

    /// `sample(range(among), 2)`.
    ///
    /// # Panics
    /// With `among` below 2.
    pub fn pair(&mut self, among: usize) -> [usize; 2] {
        assert!(among >= 2, "two of {among}");
        let first = self.below(among);
        // Python draws from a shrinking list where that is smaller than a set of the drawn: up to 21.
        if among <= 21 {
            let second = self.below(among - 1);
            return [first, if second == first { among - 1 } else { second }];
        }
        loop {
            let second = self.below(among);
            if second != first {
                return [first, second];
            }
        }
    }

    /// `randrange(bound)`.
    fn below(&mut self, bound: usize) -> usize {
        let bits = usize::BITS - bound.leading_zeros();
        loop {
            let drawn = (self.word() >> (32 - bits)) as usize;
            if drawn < bound {
                return drawn;
            }
        }
    }

    fn word(&mut self) -> u32 {
        if self.next == LENGTH {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..LENGTH {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % LENGTH] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % LENGTH] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

fn mixed(word: u32, factor: u32) -> u32 {
    (word ^ (word >> 30)).wrapping_mul(factor)
}

fn following(state: &mut [u32; LENGTH], i: usize) -> usize {
    if i + 1 == LENGTH {
        state[0] = state[LENGTH - 1];
        return 1;
    }
    i + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_what_python_draws() {
        // [random.Random(7).getrandbits(32) for …] and .sample(range(n), 2) of CPython 3.12.
        let mut random = Random::new(7);
        assert_eq!([random.word(), random.word(), random.word()], WORDS);
        let mut random = Random::new(7);
        assert_eq!([random.pair(10), random.pair(10), random.pair(10)], SMALL);
        let mut random = Random::new(7);
        assert_eq!([random.pair(1000), random.pair(1000), random.pair(1000)], LARGE);
    }

    const WORDS: [u32; 3] = [1390851128, 4071050724, 647892279];
    const SMALL: [[usize; 2]; 3] = [[5, 2], [6, 0], [1, 8]];
    const LARGE: [[usize; 2]; 3] = [[331, 970], [154, 404], [666, 49]];
}
