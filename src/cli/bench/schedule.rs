//! When the questions of an open loop are to be asked, whatever becomes of the earlier ones.

use std::time::Duration;

/// How questions follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrivals {
    /// At random, independently of each other, as those of many users do
    Poisson,
    /// At equal distances
    Even,
}

/// The instants, counted from the beginning, in order, until the end.
#[derive(Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    rate: f64,
    end: Duration,
    /// For even arrivals: how many there were, so that no error adds up.
    index: u32,
    /// For even arrivals: where the first stands between two, 0 to 1.
    offset: f64,
    /// For random ones: the last.
    last: f64,
    random: fastrand::Rng,
}

impl Schedule {
    /// So many a second until `end`. It is the `which`th of `of` schedules that run beside each other: together they
    /// have the rate of all.
    #[must_use]
    pub fn new(arrivals: Arrivals, rate_of_all: f64, end: Duration, (which, of): (u32, u32)) -> Self {
        let of = of.max(1);
        Self {
            arrivals,
            rate: rate_of_all / f64::from(of),
            end,
            index: 0,
            offset: f64::from(which) / f64::from(of),
            last: 0.0,
            // Always the same numbers: a run that is repeated is the same run.
            random: fastrand::Rng::with_seed(u64::from(which) + 1),
        }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let seconds = match self.arrivals {
            Arrivals::Even => {
                let at = (f64::from(self.index) + self.offset) / self.rate;
                self.index = self.index.checked_add(1)?;
                at
            }
            Arrivals::Poisson => {
                // The distance between arrivals is exponential; 1 - u is never zero.
                self.last -= (1.0 - self.random.f64()).ln() / self.rate;
                self.last
            }
        };
        Duration::try_from_secs_f64(seconds).ok().filter(|at| *at < self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: Duration = Duration::from_secs(10);

    #[test]
    fn even_arrivals_stand_at_equal_distances_and_threads_interleave() {
        let alone: Vec<Duration> = Schedule::new(Arrivals::Even, 1_000.0, END, (0, 1)).collect();
        assert_eq!(alone.len(), 10_000);
        assert!(alone.iter().zip(0_u64..).all(|(at, index)| at.abs_diff(Duration::from_millis(index)).as_nanos() < 10));
        let mut together: Vec<Duration> =
            (0..4).flat_map(|which| Schedule::new(Arrivals::Even, 1_000.0, END, (which, 4))).collect();
        together.sort();
        assert_eq!(together.len(), alone.len());
        assert!(together.iter().zip(&alone).all(|(one, other)| one.abs_diff(*other).as_nanos() < 10));
    }

    #[test]
    fn random_arrivals_have_the_rate_and_the_spread_of_independent_ones() {
        let all: Vec<Duration> = Schedule::new(Arrivals::Poisson, 1_000.0, END, (0, 1)).collect();
        assert!(all.is_sorted() && all.iter().all(|at| *at < END));
        // 10 000 are expected; their standard deviation is 100.
        assert!(all.len().abs_diff(10_000) < 500, "{}", all.len());
        let mut each_tenth = [0_f64; 100];
        for at in &all {
            each_tenth[(at.as_millis() / 100) as usize] += 1.0;
        }
        let mean = each_tenth.iter().sum::<f64>() / 100.0;
        let variance = each_tenth.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 100.0;
        assert!((0.6..1.6).contains(&(variance / mean)), "as many as they vary: {mean} {variance}");
        let again: Vec<Duration> = Schedule::new(Arrivals::Poisson, 1_000.0, END, (0, 1)).collect();
        assert_eq!(all, again, "the same run twice");
    }
}
