//! Whether a source of revocations is within reach, and for how long it has not been.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::SharedClock;

/// Sources are looked at twice a second or more often. One that was not reached for so long is overdue, though no look
/// has failed yet: it may be one that never answers.
const OVERDUE: Duration = Duration::from_millis(1500);

/// One source's state. Out of touch from the beginning, until it was reached.
#[derive(Debug)]
pub struct Touch {
    clock: SharedClock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When it was reached last; at first, when we began.
    reached: Duration,
    lost: bool,
}

impl Touch {
    /// Not in touch yet.
    #[must_use]
    pub fn new(clock: SharedClock) -> Self {
        let state = Mutex::new(State { reached: clock.monotonic(), lost: true });
        Self { clock, state }
    }

    /// For how long what it knows could have been missed; nothing while it is within reach.
    #[must_use]
    pub fn staleness(&self) -> Duration {
        let state = self.state.lock();
        let since = self.clock.monotonic().saturating_sub(state.reached);
        if state.lost || since > OVERDUE { since } else { Duration::ZERO }
    }

    /// It was reached. True when it had been lost.
    pub(super) fn reached(&self) -> bool {
        let mut state = self.state.lock();
        state.reached = self.clock.monotonic();
        std::mem::replace(&mut state.lost, false)
    }

    /// It could not be reached. True when it had not been lost yet.
    pub(super) fn lost(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().lost, true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn staleness_counts_from_the_last_time_it_was_reached() {
        let clock = ManualClock::at(SystemTime::UNIX_EPOCH);
        let touch = Touch::new(Arc::clone(&clock) as SharedClock);
        let second = Duration::from_secs(1);
        clock.advance(second);
        assert_eq!(touch.staleness(), second, "from the beginning");
        assert!(!touch.lost() && touch.reached() && !touch.reached());
        assert_eq!(touch.staleness(), Duration::ZERO);
        clock.advance(second);
        assert_eq!(touch.staleness(), Duration::ZERO, "the next look is under way");
        clock.advance(second);
        assert_eq!(touch.staleness(), 2 * second, "and does not end");
        assert!(touch.lost() && !touch.lost(), "told once");
        clock.advance(second);
        assert_eq!(touch.staleness(), 3 * second);
        assert!(touch.reached());
        assert_eq!(touch.staleness(), Duration::ZERO);
    }
}
