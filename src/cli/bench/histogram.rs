//! Latencies, counted in buckets whose width grows with them: bounded memory, and an error that is known.
//!
//! The bounds follow the idea of HdrHistogram: each power of two is cut into 128 equal buckets, so a figure that is read
//! from the middle of a bucket is off by less than 0.4 %.

use std::time::Duration;

/// Each power of two is cut into two to the power of this.
const FINE: u32 = 7;
/// Nanoseconds below this have a bucket each.
const EXACT: u64 = 2 << FINE;
/// The longest latency with a bucket of its own: 2^40 ns, 18 minutes. What is longer counts in the last one.
const LONGEST: u64 = (1 << 40) - 1;
/// Buckets: 35 KiB of them.
const BUCKETS: usize = ((40 - FINE as usize) << FINE) + (1 << FINE);

/// How long things took.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    longest: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, longest: 0 }
    }
}

impl Histogram {
    /// One more.
    pub fn record(&mut self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(nanoseconds)) {
            *count += 1;
        }
        self.total += 1;
        self.longest = self.longest.max(nanoseconds);
    }

    /// All of another's.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest, exactly.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest)
    }

    /// The latency that this share of them did not exceed, 0.99 for p99; zero when there are none.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among at most 2^53, never below zero"
    )]
    pub fn at(&self, share: f64) -> Duration {
        let rank = ((self.total as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(middle(index).min(self.longest));
            }
        }
        self.longest()
    }
}

fn bucket(nanoseconds: u64) -> usize {
    let nanoseconds = nanoseconds.min(LONGEST);
    let at = if nanoseconds < EXACT {
        nanoseconds
    } else {
        let shift = nanoseconds.ilog2() - FINE;
        (u64::from(shift) << FINE) + (nanoseconds >> shift)
    };
    usize::try_from(at).unwrap_or(usize::MAX)
}

fn middle(bucket: usize) -> u64 {
    let bucket = u64::try_from(bucket).unwrap_or(u64::MAX);
    if bucket < EXACT {
        return bucket;
    }
    let shift = (bucket >> FINE) - 1;
    let first = ((bucket & ((1 << FINE) - 1)) + (1 << FINE)) << shift;
    first + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_off_by_less_than_half_a_percent_over_the_whole_range() {
        let mut nanoseconds = 1_u64;
        while nanoseconds < LONGEST {
            for near in [nanoseconds.saturating_sub(1), nanoseconds, nanoseconds + 1] {
                let read = middle(bucket(near));
                let off = read.abs_diff(near) as f64 / near.max(1) as f64;
                assert!(off < 0.004, "{near} ns is read as {read} ns");
            }
            nanoseconds += nanoseconds / 50 + 1;
        }
    }

    #[test]
    fn every_latency_has_a_bucket_and_buckets_stand_in_order() {
        let edges = [0, 1, EXACT - 1, EXACT, EXACT + 1, 1 << 20, LONGEST, LONGEST + 1, u64::MAX];
        let found: Vec<usize> = edges.iter().map(|edge| bucket(*edge)).collect();
        assert!(found.is_sorted() && found.iter().all(|bucket| *bucket < BUCKETS), "{found:?}");
        assert!((1..BUCKETS).all(|bucket| middle(bucket) > middle(bucket - 1)));
        assert!((0..BUCKETS).all(|at| bucket(middle(at)) == at), "a bucket's middle lies in it");
    }

    #[test]
    fn shares_are_those_of_the_sorted_list() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut all: Vec<u64> = (0..10_000).map(|_| random.u64(1_000..50_000_000)).collect();
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        for (index, took) in all.iter().enumerate() {
            let half = if index % 2 == 0 { &mut one } else { &mut other };
            half.record(Duration::from_nanos(*took));
        }
        one.merge(&other);
        all.sort_unstable();
        assert_eq!((one.count(), one.longest()), (10_000, Duration::from_nanos(all[9_999])));
        for (share, rank) in [(0.5, 4_999), (0.9, 8_999), (0.99, 9_899), (0.999, 9_989), (1.0, 9_999)] {
            let (read, exact) = (one.at(share).as_nanos() as f64, all[rank] as f64);
            assert!((read - exact).abs() / exact < 0.004, "{share}: {read} for {exact}");
        }
    }

    #[test]
    fn of_nothing_every_share_is_zero() {
        let nothing = Histogram::default();
        assert_eq!((nothing.at(0.5), nothing.longest(), nothing.count()), (Duration::ZERO, Duration::ZERO, 0));
    }
}
