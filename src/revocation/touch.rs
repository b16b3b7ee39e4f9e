//! Whether a source of revocations is within reach, and for how long it has not been.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::SharedClock;

/// One source's state. Out of touch from the beginning, until it was reached.
#[derive(Debug)]
pub struct Touch {
    clock: SharedClock,
    /// Since when it can't be reached; `None`: it can.
    lost: Mutex<Option<Duration>>,
}

impl Touch {
    /// Not in touch yet.
    #[must_use]
    pub fn new(clock: SharedClock) -> Self {
        let lost = Mutex::new(Some(clock.monotonic()));
        Self { clock, lost }
    }

    /// How long what it knows has been unknown to us; nothing while it is within reach.
    #[must_use]
    pub fn staleness(&self) -> Duration {
        let since = *self.lost.lock();
        since.map_or(Duration::ZERO, |since| self.clock.monotonic().saturating_sub(since))
    }

    /// It was reached. True when it had not been before.
    pub(super) fn reached(&self) -> bool {
        self.lost.lock().take().is_some()
    }

    /// It could not be reached. True when it could before.
    pub(super) fn lost(&self) -> bool {
        let mut lost = self.lost.lock();
        let fresh = lost.is_none();
        lost.get_or_insert_with(|| self.clock.monotonic());
        fresh
    }
}
