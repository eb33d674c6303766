//! Changes of colours, each with Pillow's arithmetic: what torchvision does with images of bytes.

use super::picture::Picture;

/// Pillow's blend of two bytes: `a` at 0, `b` at 1, and beyond; cut off, not rounded.
fn blend(a: u8, b: u8, share: f32) -> u8 {
    (f32::from(a) + share * (f32::from(b) - f32::from(a))).clamp(0.0, 255.0) as u8
}

/// Pillow's luma of a pixel.
fn luma(pixel: &[u8]) -> u8 {
    match pixel {
        [r, g, b] => ((u32::from(*r) * 19595 + u32::from(*g) * 38470 + u32::from(*b) * 7471 + 0x8000) >> 16) as u8,
        _ => pixel[0],
    }
}

impl Picture {
    fn each(&mut self, f: impl Fn(u8) -> u8) {
        self.bytes.iter_mut().for_each(|byte| *byte = f(*byte));
    }

    /// Each channel by its own table.
    fn by_channel(&mut self, table: impl Fn(&[u32; 256]) -> Option<[u8; 256]>) {
        for k in 0..self.c {
            let mut counts = [0; 256];
            self.bytes.iter().skip(k).step_by(self.c).for_each(|byte| counts[usize::from(*byte)] += 1);
            if let Some(table) = table(&counts) {
                self.bytes.iter_mut().skip(k).step_by(self.c).for_each(|byte| *byte = table[usize::from(*byte)]);
            }
        }
    }

    /// 0 is black, 1 the image.
    pub fn brightness(&mut self, factor: f64) {
        self.each(|byte| blend(0, byte, factor as f32));
    }

    /// 0 is all grey of the mean luma, 1 the image.
    pub fn contrast(&mut self, factor: f64) {
        let sum: u64 = self.bytes.chunks_exact(self.c).map(|pixel| u64::from(luma(pixel))).sum();
        let mean = (sum as f64 / (self.h * self.w) as f64 + 0.5) as u8;
        self.each(|byte| blend(mean, byte, factor as f32));
    }

    /// 0 is grey, 1 the image.
    pub fn saturation(&mut self, factor: f64) {
        for pixel in self.bytes.chunks_exact_mut(self.c) {
            let grey = luma(pixel);
            pixel.iter_mut().for_each(|byte| *byte = blend(grey, *byte, factor as f32));
        }
    }

    /// 0 is the image smoothed over 3×3 pixels, 1 the image, 2 sharper.
    pub fn sharpness(&mut self, factor: f64) {
        let old = self.clone();
        let row = self.w * self.c;
        for y in 1..self.h.saturating_sub(1) {
            for i in self.c..row - self.c {
                let at = |dy: usize, dx: usize| f32::from(old.bytes[(y + dy - 1) * row + i + dx * self.c - self.c]);
                let around: f32 = (0..9).filter(|j| *j != 4).map(|j| at(j / 3, j % 3)).sum();
                let smooth = ((around + 5.0 * at(1, 1)) / 13.0 + 0.5).clamp(0.0, 255.0) as u8;
                let byte = &mut self.bytes[y * row + i];
                *byte = blend(smooth, *byte, factor as f32);
            }
        }
    }

    /// Turns the hue by a share of the whole circle; grey stays.
    pub fn hue(&mut self, turn: f64) {
        if self.c != 3 {
            return;
        }
        let shift = (turn * 255.0) as i32 as u8;
        for pixel in self.bytes.chunks_exact_mut(3) {
            let [h, s, v] = to_hsv([pixel[0], pixel[1], pixel[2]]);
            pixel.copy_from_slice(&to_rgb([h.wrapping_add(shift), s, v]));
        }
    }

    /// So many bits are kept, the lower ones are 0.
    pub fn posterize(&mut self, bits: u32) {
        let mask = (0xff00u32 >> bits.min(8)) as u8;
        self.each(|byte| byte & mask);
    }

    /// Values from `threshold` on are turned over.
    pub fn solarize(&mut self, threshold: f64) {
        self.each(|byte| if f64::from(byte) < threshold { byte } else { 255 - byte });
    }

    /// Every channel's darkest value becomes 0, its brightest 255.
    pub fn autocontrast(&mut self) {
        self.by_channel(|counts| {
            let (low, high) = (counts.iter().position(|n| *n > 0)?, counts.iter().rposition(|n| *n > 0)?);
            let scale = 255.0 / (high.checked_sub(low).filter(|width| *width > 0)? as f64);
            Some(std::array::from_fn(|i| (i as f64 * scale - low as f64 * scale).clamp(0.0, 255.0) as u8))
        });
    }

    /// Every channel's values are spread so that all are about equally frequent.
    pub fn equalize(&mut self) {
        self.by_channel(|counts| {
            let last = counts.iter().rposition(|n| *n > 0)?;
            let step = (counts.iter().sum::<u32>() - counts[last]) / 255;
            if step == 0 {
                return None;
            }
            let mut n = step / 2;
            Some(std::array::from_fn(|i| {
                let value = (n / step).min(255) as u8;
                n += counts[i];
                value
            }))
        });
    }
}

fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most) - f32::from(least);
    // Singles and doubles in turn, as in Pillow's C.
    let [rc, gc, bc] = [r, g, b].map(|v| f64::from(f32::from(most - v) / range));
    let h = if r == most {
        bc - gc
    } else if g == most {
        2.0 + rc - bc
    } else {
        4.0 + gc - rc
    };
    let turn = (f64::from(h as f32) / 6.0 + 1.0) % 1.0;
    let byte = |v: f64| v.clamp(0.0, 255.0) as u8;
    [byte(turn as f32 as f64 * 255.0), byte(f64::from(range / f32::from(most)) * 255.0), most]
}

fn to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let sixth = f64::from(h) * 6.0 / 255.0;
    let (part, share) = (sixth.floor(), f64::from((sixth - sixth.floor()) as f32));
    let (s, bright) = (f64::from((f64::from(s) / 255.0) as f32), f64::from(v));
    let byte = |v: f64| v.round().clamp(0.0, 255.0) as u8;
    let (p, q, t) = (byte(bright * (1.0 - s)), byte(bright * (1.0 - s * share)), byte(bright * (1.0 - s * (1.0 - share))));
    match part as u32 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}
