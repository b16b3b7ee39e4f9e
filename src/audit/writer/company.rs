//! Records that are best kept in one round.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Shared, TOGETHER};

/// Records that are queued one after the other: whoever keeps them is not woken for the first of them alone. The last
/// one that is dropped closes it.
#[derive(Debug, Clone)]
pub struct Company(Arc<Gathered>);

#[derive(Debug)]
struct Gathered {
    shared: Arc<Shared>,
    open: AtomicBool,
    queued: AtomicUsize,
}

impl Company {
    pub(super) fn of(shared: Arc<Shared>) -> Self {
        Self(Arc::new(Gathered { shared, open: AtomicBool::new(true), queued: AtomicUsize::new(0) }))
    }

    /// All are here.
    pub fn close(&self) {
        self.0.close();
    }

    /// Whether there are enough for a round with the one that was queued now.
    pub(super) fn is_enough(&self) -> bool {
        let queued = self.0.queued.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        !self.0.open.load(Ordering::Relaxed) || queued.is_multiple_of(TOGETHER)
    }
}

impl Gathered {
    fn close(&self) {
        if self.open.swap(false, Ordering::Relaxed) {
            self.shared.wake.notify_one();
        }
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.close();
    }
}
