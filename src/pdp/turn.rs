//! Whose batch a thread works on.
//!
//! One at a time, in the order in which they came. Where all of them are worked on by turns, each ends as late as the last,
//! and what one of them touches is in no cache when its turn comes again. Whoever has a thread for [`LONG`] lets the others
//! have it first, so that the largest batch doesn't keep the small ones. After each [`SHORT`] everything else on the
//! thread goes on: connections are read, calls are refused, single questions are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::SharedClock;

/// How long a batch works before everything else on its thread goes on.
const SHORT: Duration = Duration::from_millis(1);
/// How long it has its thread before the other batches have it.
const LONG: Duration = Duration::from_millis(10);

thread_local! {
    static LINE: Arc<Line> = Arc::new(Line { first: Arc::new(Semaphore::new(1)), waiting: AtomicUsize::new(0) });
}

/// The batches of one thread.
struct Line {
    first: Arc<Semaphore>,
    /// Those that are not the first.
    waiting: AtomicUsize,
}

/// The thread is this batch's, until it is dropped.
pub(super) struct Turn {
    line: Arc<Line>,
    /// `None` before and between its turns, and once its time is over: what is left to do then is to say so.
    held: Option<OwnedSemaphorePermit>,
    clock: SharedClock,
    /// When its caller waits no longer, as everything here by the monotonic clock.
    due: Duration,
    began: Duration,
    paused: Duration,
}

/// One that waits, however its waiting ends.
struct Waiting<'a>(&'a AtomicUsize);

/// How long the batches that wait on this thread would keep it if each worked for [`SHORT`]: added to how late the thread
/// is, it tells what stands in line. What they hold is not looked into, so large ones count for less than they will take.
#[must_use]
pub fn standing() -> Duration {
    let waiting = LINE.with(|line| line.waiting.load(Ordering::Relaxed));
    SHORT.saturating_mul(u32::try_from(waiting).unwrap_or(u32::MAX))
}

impl Turn {
    /// Waits until this thread has no batch before this one, or until it is `due`.
    pub async fn take(clock: &SharedClock, due: Duration) -> Self {
        let now = clock.monotonic();
        let line = LINE.with(Arc::clone);
        let mut turn = Self { line, held: None, clock: Arc::clone(clock), due, began: now, paused: now };
        turn.come_back().await;
        turn.paused = turn.began;
        turn
    }

    /// To be asked after each piece of work: gives way when it is time to.
    pub async fn go_on(&mut self) {
        let now = self.clock.monotonic();
        if now.saturating_sub(self.paused) < SHORT {
            return;
        }
        if now.saturating_sub(self.began) >= LONG {
            self.leave();
            self.come_back().await;
        }
        tokio::task::yield_now().await;
        self.paused = self.clock.monotonic();
    }

    /// Lets the others go on, as there is nothing to do for now but to wait.
    pub fn leave(&mut self) {
        self.held = None;
    }

    /// Waits for the next turn after [`leave`](Self::leave), or until it is due.
    pub async fn come_back(&mut self) {
        if self.held.is_none() {
            let left = self.due.saturating_sub(self.clock.monotonic());
            self.held = self.line.wait(left).await;
            self.began = self.clock.monotonic();
        }
    }
}

impl Line {
    async fn wait(&self, most: Duration) -> Option<OwnedSemaphorePermit> {
        if let Ok(first) = Arc::clone(&self.first).try_acquire_owned() {
            return Some(first);
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        // Nobody closes the line: without a turn the time is over.
        tokio::time::timeout(most, Arc::clone(&self.first).acquire_owned()).await.ok()?.ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::{Context, Poll, Waker};
    use std::time::UNIX_EPOCH;

    use futures_util::future::join_all;

    use super::*;
    use crate::clock::ManualClock;

    const LATE: Duration = Duration::from_secs(3600);

    /// Works through `items` of so many microseconds each, and notes whose each was.
    async fn work(manual: Arc<ManualClock>, name: u32, items: u32, micros: u64, done: Rc<RefCell<Vec<u32>>>) {
        let clock: SharedClock = manual.clone();
        let mut turn = Turn::take(&clock, LATE).await;
        for _ in 0..items {
            done.borrow_mut().push(name);
            manual.advance(Duration::from_micros(micros));
            turn.go_on().await;
        }
    }

    /// Where a runtime is late, each time costs as long as it is late: a batch of twenty would wait twenty times.
    #[test]
    fn a_batch_gives_way_after_a_millisecond_and_not_after_every_item() {
        let table = [
            (0, 0, "no time at all"),
            (100, 2, "a tenth of a turn each"),
            (1_000, 20, "a turn each"),
            (5_000, 20, "more"),
        ];
        for (micros, expected, why) in table {
            let (manual, done) = (ManualClock::at(UNIX_EPOCH), Rc::default());
            let mut working = pin!(work(manual, 0, 20, micros, Rc::clone(&done)));
            let (mut gave_way, mut context) = (0, Context::from_waker(Waker::noop()));
            while working.as_mut().poll(&mut context) == Poll::Pending {
                gave_way += 1;
            }
            assert_eq!((gave_way, done.borrow().len()), (expected, 20), "{why}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn batches_of_a_thread_are_worked_on_one_by_one_in_the_order_in_which_they_came() {
        let (manual, done) = (ManualClock::at(UNIX_EPOCH), Rc::default());
        join_all((0..8).map(|name| work(manual.clone(), name, 5, 900, Rc::clone(&done)))).await;
        let in_order: Vec<u32> = (0..8).flat_map(|name| [name; 5]).collect();
        assert_eq!(*done.borrow(), in_order);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_long_batch_lets_those_behind_it_have_the_thread_after_ten_milliseconds() {
        let (manual, done) = (ManualClock::at(UNIX_EPOCH), Rc::default());
        let all =
            [(0, 25), (1, 2), (2, 12)].map(|(name, items)| work(manual.clone(), name, items, 1_000, Rc::clone(&done)));
        join_all(all).await;
        let mut runs: Vec<(u32, usize)> = Vec::new();
        for name in done.borrow().iter().copied() {
            match runs.last_mut() {
                Some((last, items)) if *last == name => *items += 1,
                _ => runs.push((name, 1)),
            }
        }
        assert_eq!(runs, [(0, 10), (1, 2), (2, 10), (0, 10), (2, 2), (0, 5)]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn those_that_wait_are_counted_until_they_have_their_turn_or_go() {
        let clock: SharedClock = ManualClock::at(UNIX_EPOCH);
        let first = Turn::take(&clock, LATE).await;
        assert_eq!(standing(), Duration::ZERO, "who works does not wait");
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(Turn::take(&clock, LATE))).collect();
        for turn in &mut waiting {
            assert!(futures_util::poll!(turn.as_mut()).is_pending());
        }
        assert_eq!(standing(), 3 * SHORT);
        drop(waiting.pop());
        assert_eq!(standing(), 2 * SHORT, "one has gone");
        drop(first);
        let mut next = waiting.remove(0);
        assert!(futures_util::poll!(next.as_mut()).is_ready());
        assert_eq!(standing(), SHORT);
        drop((next, waiting));
        assert_eq!(standing(), Duration::ZERO);
        assert!(futures_util::poll!(pin!(Turn::take(&clock, LATE))).is_ready(), "nobody keeps the thread");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn nobody_waits_in_line_past_its_time() {
        let clock: SharedClock = ManualClock::at(UNIX_EPOCH);
        let first = Turn::take(&clock, LATE).await;
        for due in [0, 20] {
            let late = Turn::take(&clock, Duration::from_millis(due)).await;
            assert!(late.held.is_none() && first.held.is_some());
            assert_eq!(standing(), Duration::ZERO, "it has left the line");
        }
        drop(first);
        assert!(futures_util::poll!(pin!(Turn::take(&clock, LATE))).is_ready());
    }
}
