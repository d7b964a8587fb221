//! Random numbers that are the same on every machine and in every version (SplitMix64).

/// A sequence of random numbers from a seed.
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of a seed and of what it is for, so that sequences do not depend on each other's length.
    pub(crate) fn new(seed: u64, purpose: &[u64]) -> Self {
        let mut random = Self(seed);
        for value in purpose {
            random.0 = random.next() ^ value.wrapping_mul(0xA24B_AED4_963E_E407);
        }
        random.next();
        random
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Evenly from `from` to `to`.
    pub(crate) fn between(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of `count` things.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    /// Two numbers that are nearly normal, of standard deviation 1: each a sum of four bytes.
    pub(crate) fn two_normal(&mut self) -> [f32; 2] {
        let bits = self.next();
        let sum = |half: u32| {
            half.to_le_bytes()
                .iter()
                .map(|byte| u32::from(*byte))
                .sum::<u32>()
        };
        [bits as u32, (bits >> 32) as u32].map(|half| (sum(half) as f32 - 510.0) / 147.8)
    }
}
