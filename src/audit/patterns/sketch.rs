//! How many different things there were, in a kilobyte: exactly up to 128, then within some percent.
//!
//! Beyond what it holds exactly it is a HyperLogLog of 1024 registers (Flajolet et al., 2007) with a standard error of
//! 1.04 / sqrt(1024) = 3.25 %, and linear counting where most registers are empty. The estimate is kept up to date with
//! every change, so that asking for it costs nothing. Takes hashes, which must be spread evenly over 64 bits.

const EXACT: usize = 128;
const INDEX_BITS: u32 = 10;
const REGISTERS: usize = 1 << INDEX_BITS;

/// A set that knows its size and nothing else.
#[derive(Debug, Default)]
pub(super) struct Sketch {
    /// Sorted, until there are too many.
    few: Vec<u64>,
    /// Empty until then.
    registers: Vec<u8>,
    /// The sum of `2^-register`.
    sum: f64,
    zeros: u32,
}

impl Sketch {
    /// Adds one; whether it may be new (it surely is where the size is exact).
    pub(super) fn add(&mut self, hash: u64) -> bool {
        if !self.registers.is_empty() {
            return self.raise(hash);
        }
        let Err(at) = self.few.binary_search(&hash) else { return false };
        if self.few.len() < EXACT {
            self.few.insert(at, hash);
            return true;
        }
        self.registers = vec![0; REGISTERS];
        (self.sum, self.zeros) = (f64::from(1 << INDEX_BITS), 1 << INDEX_BITS);
        for hash in std::mem::take(&mut self.few) {
            self.raise(hash);
        }
        self.raise(hash);
        true
    }

    /// How many different ones were added.
    pub(super) fn size(&self) -> u64 {
        if self.registers.is_empty() {
            return self.few.len() as u64;
        }
        let m = f64::from(1 << INDEX_BITS);
        let raw = 0.7213 / (1.0 + 1.079 / m) * m * m / self.sum;
        let estimate = if raw <= 2.5 * m && self.zeros > 0 { m * (m / f64::from(self.zeros)).ln() } else { raw };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and below 2^64 by far")]
        let size = estimate.round() as u64;
        size
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.few.capacity() * 8 + self.registers.capacity()
    }

    fn raise(&mut self, hash: u64) -> bool {
        let index = (hash >> (64 - INDEX_BITS)) as usize;
        let rank = u8::try_from((hash << INDEX_BITS).leading_zeros().min(64 - INDEX_BITS) + 1).unwrap_or(u8::MAX);
        let Some(register) = self.registers.get_mut(index) else { return false };
        if rank <= *register {
            return false;
        }
        self.zeros -= u32::from(*register == 0);
        self.sum += power(rank) - power(*register);
        *register = rank;
        true
    }
}

/// `2^-rank`.
fn power(rank: u8) -> f64 {
    (-f64::from(rank)).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64: spreads numbers evenly (Steele et al., 2014).
    fn spread(n: u64) -> u64 {
        let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    }

    #[test]
    fn a_sketch_counts_exactly_up_to_128_and_within_13_percent_beyond() {
        let mut worst: f64 = 0.0;
        let mut compared = 0;
        for seed in 1..=20_u64 {
            let mut sketch = Sketch::default();
            for n in 1..=100_000_u64 {
                let hash = spread(seed << 32 | n);
                sketch.add(hash);
                sketch.add(hash);
                if n <= EXACT as u64 {
                    assert_eq!(sketch.size(), n);
                } else if n.is_multiple_of(97) {
                    compared += 1;
                    worst = worst.max((sketch.size() as f64 / n as f64 - 1.0).abs());
                }
            }
        }
        println!("{compared} sizes up to 100000 compared, the worst is {:.1} % off", worst * 100.0);
        assert!(worst < 0.13, "four standard errors: {worst}");
    }

    #[test]
    fn a_sketch_that_forgot_is_empty() {
        let mut sketch = Sketch::default();
        (0..1000).for_each(|n| {
            sketch.add(spread(n));
        });
        sketch.clear();
        assert_eq!(sketch.size(), 0);
    }
}
