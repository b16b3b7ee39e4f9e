//! What came of the questions, counted.

use std::collections::BTreeMap;
use std::time::Duration;

use super::histogram::Histogram;

/// Different refusals that are told apart; the reasons are Gatepost's, so there are fewer.
const MOST_REFUSALS: usize = 64;

/// What came of one call.
#[derive(Debug)]
pub enum Outcome {
    /// An answer.
    Answered(Decisions),
    /// A status instead of an answer.
    Refused {
        /// Which.
        why: Refusal,
        /// Whether it says when to try again.
        retry: bool,
    },
    /// Neither.
    Failed(Failure),
}

/// The decisions of one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Decisions {
    /// ALLOW.
    pub allowed: u64,
    /// DENY.
    pub denied: u64,
    /// CONDITIONAL.
    pub conditional: u64,
    /// Items of a batch that got an error instead.
    pub refused: u64,
    /// Among the denied: because of the token, whatever the policies say.
    pub token_denied: u64,
    /// Among those: because it has expired.
    pub token_expired: u64,
}

impl Decisions {
    /// How many decisions.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.allowed + self.denied + self.conditional
    }

    /// All of another's too.
    pub fn add(&mut self, other: &Self) {
        self.allowed += other.allowed;
        self.denied += other.denied;
        self.conditional += other.conditional;
        self.refused += other.refused;
        self.token_denied += other.token_denied;
        self.token_expired += other.token_expired;
    }
}

/// Which status, and Gatepost's reason.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// `RESOURCE_EXHAUSTED`
    pub code: String,
    /// `OVERLOADED`, or nothing.
    pub reason: String,
}

/// Why nothing came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No connection, or it broke.
    Connection,
    /// Nothing came in time.
    Silence,
    /// What came is no answer.
    Contract,
}

impl Failure {
    /// For tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Silence => "no answer in time",
            Self::Contract => "not an answer",
        }
    }
}

/// Refusals of one kind.
#[derive(Debug, Clone, Default)]
pub struct Refused {
    /// How long they took.
    pub latencies: Histogram,
    /// How many said when to try again.
    pub with_retry: u64,
}

/// Answers and refusals of one part of the time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Slot {
    /// Answers that came in it.
    pub answers: u64,
    /// Refusals and failures that came in it.
    pub others: u64,
}

/// Everything that was counted in one measurement.
#[derive(Debug, Clone)]
pub struct Tally {
    /// How long answers took.
    pub answers: Histogram,
    /// What they said.
    pub decisions: Decisions,
    /// What was refused.
    pub refusals: BTreeMap<Refusal, Refused>,
    /// What failed.
    pub failures: BTreeMap<Failure, u64>,
    /// Questions that an open loop could not ask: too many were under way.
    pub unsent: u64,
    /// Questions that an open loop asked more than [`LATE`] after their time.
    pub late: u64,
    /// Answers that came within the time.
    pub answers_in_time: u64,
    /// Their decisions.
    pub decisions_in_time: u64,
    /// The time, cut into equal parts.
    pub slots: Vec<Slot>,
    window: Duration,
}

/// Later than this is late.
pub const LATE: Duration = Duration::from_millis(1);
/// Into so many parts the time of one measurement is cut.
pub const SLOTS: u32 = 60;

impl Tally {
    /// Of a measurement that takes `window`.
    #[must_use]
    pub fn over(window: Duration) -> Self {
        Self {
            answers: Histogram::default(),
            decisions: Decisions::default(),
            refusals: BTreeMap::new(),
            failures: BTreeMap::new(),
            unsent: 0,
            late: 0,
            answers_in_time: 0,
            decisions_in_time: 0,
            slots: vec![Slot::default(); SLOTS as usize],
            window,
        }
    }

    /// Counts what came of a question that was to be asked at `asked`; both times are counted from the beginning.
    pub fn note(&mut self, outcome: Outcome, asked: Duration, done: Duration) {
        let took = done.saturating_sub(asked);
        let slot = usize::try_from(done.as_nanos() * u128::from(SLOTS) / self.window.as_nanos().max(1))
            .ok()
            .and_then(|index| self.slots.get_mut(index));
        match outcome {
            Outcome::Answered(decisions) => {
                self.answers.record(took);
                self.decisions.add(&decisions);
                if let Some(slot) = slot {
                    slot.answers += 1;
                    self.answers_in_time += 1;
                    self.decisions_in_time += decisions.all();
                }
            }
            Outcome::Refused { why, retry } => {
                let known = self.refusals.len() < MOST_REFUSALS || self.refusals.contains_key(&why);
                let why = if known { why } else { Refusal { code: "(others)".to_owned(), reason: String::new() } };
                let refused = self.refusals.entry(why).or_default();
                refused.latencies.record(took);
                refused.with_retry += u64::from(retry);
                if let Some(slot) = slot {
                    slot.others += 1;
                }
            }
            Outcome::Failed(why) => {
                *self.failures.entry(why).or_default() += 1;
                if let Some(slot) = slot {
                    slot.others += 1;
                }
            }
        }
    }

    /// Everything that another thread counted in the same time.
    pub fn merge(&mut self, other: &Self) {
        self.add(other);
        for (slot, more) in self.slots.iter_mut().zip(&other.slots) {
            slot.answers += more.answers;
            slot.others += more.others;
        }
    }

    /// Everything of another round: its time comes after this one's.
    pub fn append(&mut self, other: &Self) {
        self.add(other);
        self.slots.extend(&other.slots);
        self.window += other.window;
    }

    fn add(&mut self, other: &Self) {
        self.answers.merge(&other.answers);
        self.decisions.add(&other.decisions);
        for (why, more) in &other.refusals {
            let refused = self.refusals.entry(why.clone()).or_default();
            refused.latencies.merge(&more.latencies);
            refused.with_retry += more.with_retry;
        }
        for (why, more) in &other.failures {
            *self.failures.entry(*why).or_default() += more;
        }
        self.unsent += other.unsent;
        self.late += other.late;
        self.answers_in_time += other.answers_in_time;
        self.decisions_in_time += other.decisions_in_time;
    }

    /// How long it was counted, all rounds together.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// It ended before its time: so long it was counted.
    pub fn cut(&mut self, window: Duration) {
        if window < self.window {
            let whole = self.window.as_nanos().max(1);
            let kept = (window.as_nanos() * self.slots.len() as u128).div_ceil(whole);
            self.slots.truncate(usize::try_from(kept).unwrap_or(usize::MAX).max(1));
            self.window = window.max(Duration::from_millis(1));
        }
    }

    /// Refusals of every kind.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refusals.values().map(|refused| refused.latencies.count()).sum()
    }

    /// Failures of every kind.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Calls that ended, one way or another.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.answers.count() + self.refused() + self.failed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn refused(reason: &str, retry: bool) -> Outcome {
        Outcome::Refused { why: Refusal { code: "RESOURCE_EXHAUSTED".into(), reason: reason.into() }, retry }
    }

    #[test]
    fn every_outcome_is_counted_once_and_refusals_are_no_answers() {
        let mut tally = Tally::over(SECOND);
        let decisions = Decisions { allowed: 2, denied: 1, conditional: 0, refused: 1, ..Decisions::default() };
        tally.note(Outcome::Answered(decisions), Duration::ZERO, SECOND / 10);
        tally.note(Outcome::Answered(decisions), SECOND / 2, SECOND * 2);
        tally.note(refused("OVERLOADED", true), Duration::ZERO, SECOND / 2);
        tally.note(refused("OVERLOADED", false), Duration::ZERO, SECOND / 2);
        tally.note(Outcome::Failed(Failure::Silence), Duration::ZERO, SECOND / 2);
        assert_eq!((tally.calls(), tally.answers.count(), tally.refused(), tally.failed()), (5, 2, 2, 1));
        assert_eq!(tally.decisions.all(), 6);
        assert_eq!((tally.answers_in_time, tally.decisions_in_time), (1, 3), "the second came after the end");
        assert_eq!(tally.refusals.values().map(|refused| refused.with_retry).sum::<u64>(), 1);
        let slots = tally.slots.iter().fold((0, 0), |(a, o), slot| (a + slot.answers, o + slot.others));
        assert_eq!(slots, (1, 3));
    }

    #[test]
    fn reasons_beyond_the_bound_count_as_others() {
        let mut tally = Tally::over(SECOND);
        for index in 0..1_000 {
            tally.note(refused(&format!("R{index}"), false), Duration::ZERO, SECOND / 2);
        }
        assert_eq!((tally.refusals.len(), tally.refused()), (MOST_REFUSALS + 1, 1_000));
    }

    #[test]
    fn what_ended_early_is_counted_over_the_time_it_took() {
        let mut tally = Tally::over(SECOND);
        tally.cut(SECOND / 4);
        assert_eq!((tally.window(), tally.slots.len()), (SECOND / 4, 15));
        tally.append(&Tally::over(SECOND));
        assert_eq!((tally.window(), tally.slots.len()), (SECOND / 4 + SECOND, 75));
    }
}
