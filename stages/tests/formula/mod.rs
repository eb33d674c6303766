//! The values in the fixtures of PyTorch's networks, which are computed on both sides and stored on none.

/// Values from −0.5 to 0.5, as `uniform` in `fixtures/formula.py`: the finaliser of MurmurHash3 over a count that begins at FNV-1a of the name.
pub fn uniform(name: &str, count: usize) -> Vec<f32> {
    let start = name.bytes().fold(0x811c_9dc5u32, |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let value = |i: usize| {
        let mut z = start.wrapping_add((i as u32).wrapping_mul(0x9e37_79b9));
        z = (z ^ z >> 16).wrapping_mul(0x85eb_ca6b);
        z = (z ^ z >> 13).wrapping_mul(0xc2b2_ae35);
        (f64::from(z ^ z >> 16) / 4_294_967_296.0 - 0.5) as f32
    };
    (0..count).map(value).collect()
}
