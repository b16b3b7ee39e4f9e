//! Time, handed to whoever needs it, so that a test can hold it still.
//!
//! Knows nothing else of Gatepost. Every other file is kept from `SystemTime::now` and
//! `Instant::now` by `clippy.toml`.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

/// What time it is. Wall time is for what others wrote down (`exp`, certificates, records);
/// monotonic time is for lifetimes and limits of our own, which a clock jump must not bend.
pub trait Clock: Send + Sync + Debug {
    /// Wall time.
    fn now(&self) -> SystemTime;
    /// Time since some fixed instant of this process; never goes back.
    fn monotonic(&self) -> Duration;
}

/// A clock that many parts share.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    #[must_use]
    pub fn shared() -> SharedClock {
        Arc::new(Self { started: Instant::now() })
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A clock that moves only when told to. Made for tests, and for replaying what happened.
#[derive(Debug)]
pub struct ManualClock {
    state: Mutex<(SystemTime, Duration)>,
}

impl ManualClock {
    /// A clock that stands at `now`.
    #[must_use]
    pub fn at(now: SystemTime) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new((now, Duration::ZERO)) })
    }

    /// Moves both clocks on by `step`.
    pub fn advance(&self, step: Duration) {
        let mut state = self.state.lock();
        state.0 += step;
        state.1 += step;
    }

    /// Sets wall time alone, as an administrator or NTP would; monotonic time does not move.
    pub fn jump_to(&self, now: SystemTime) {
        self.state.lock().0 = now;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        self.state.lock().0
    }

    fn monotonic(&self) -> Duration {
        self.state.lock().1
    }
}

/// Whole seconds since 1970; 0 for anything earlier.
#[must_use]
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `2027-01-31T12:00:00Z`, for people. What no calendar holds is shown as 1970.
#[must_use]
pub fn timestamp(time: SystemTime) -> jiff::Timestamp {
    let seconds = i64::try_from(unix_seconds(time)).unwrap_or(0);
    jiff::Timestamp::from_second(seconds).unwrap_or_default()
}

/// Milliseconds since 1970; 0 for anything earlier, the largest `i64` for anything past it.
#[must_use]
pub fn unix_millis(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
