//! How fast one operator may go: ten calls a second, and ten at once after a rest.

use std::time::Duration;

/// Time that one call takes up.
const STEP: Duration = Duration::from_millis(100);
/// How far calls may run ahead of it.
const AHEAD: Duration = Duration::from_millis(900);

/// One operator's pace: the instant at which all his calls so far have taken up their time (the generic cell rate
/// algorithm, ATM Forum TM 4.0).
#[derive(Debug, Default)]
pub(super) struct Pace {
    taken_up: Duration,
}

impl Pace {
    /// One call more.
    ///
    /// # Errors
    /// The time to wait, when he is too fast.
    pub(super) fn step(&mut self, now: Duration) -> Result<(), Duration> {
        let taken_up = self.taken_up.max(now);
        let ahead = taken_up - now;
        if ahead > AHEAD {
            return Err(ahead - AHEAD);
        }
        self.taken_up = taken_up + STEP;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_at_once_and_ten_a_second_from_then_on() {
        let mut pace = Pace::default();
        let start = Duration::from_secs(7);
        let steps = |pace: &mut Pace, now: Duration| (0..100).take_while(|_| pace.step(now).is_ok()).count();
        assert_eq!(steps(&mut pace, start), 10, "after a rest");
        assert_eq!(pace.step(start), Err(STEP), "the eleventh waits");
        assert_eq!(steps(&mut pace, start + Duration::from_millis(99)), 0);
        assert_eq!(steps(&mut pace, start + STEP), 1);
        assert_eq!(steps(&mut pace, start + Duration::from_secs(60)), 10, "what was not used is not saved up");
    }
}
