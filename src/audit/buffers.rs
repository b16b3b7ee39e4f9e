//! Buffers for records, used again and again: one thread fills them and another one empties them, which costs an allocator
//! more than it costs us to hand them back.

use std::cell::RefCell;

use parking_lot::Mutex;

/// Buffers that are handed back and wait to be taken, at most.
const KEPT: usize = 512;
/// Taken at once by a thread that has none.
const TAKEN: usize = 32;
/// Larger ones are seldom needed, and are let go.
const LARGEST: usize = 8 * 1024;

thread_local! {
    static OWN: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Empty buffers.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// An empty buffer, with room for so many bytes.
    pub(super) fn take(&self, room: usize) -> Vec<u8> {
        let kept = OWN.with_borrow_mut(|own| {
            if own.is_empty() {
                let mut kept = self.0.lock();
                let left = kept.len().saturating_sub(TAKEN);
                own.extend(kept.drain(left..));
            }
            own.pop()
        });
        let mut buffer = kept.unwrap_or_default();
        buffer.reserve(room);
        buffer
    }

    /// Hands buffers back.
    pub(super) fn give(&self, buffers: impl Iterator<Item = Vec<u8>>) {
        let mut fitting = buffers.filter(|buffer| buffer.capacity() <= LARGEST);
        let mut kept = self.0.lock();
        let room = KEPT.saturating_sub(kept.len());
        kept.extend(fitting.by_ref().take(room).map(|mut buffer| {
            buffer.clear();
            buffer
        }));
        // Nobody who wants one waits until the others are let go.
        drop(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_and_no_more_are_kept_than_may_be() {
        let buffers = Buffers::default();
        let full = |bytes: usize| vec![7_u8; bytes];
        buffers.give((0..KEPT + 100).map(|_| full(100)));
        assert_eq!(buffers.0.lock().len(), KEPT);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..KEPT + 1 {
                    let buffer = buffers.take(300);
                    assert!(buffer.is_empty() && buffer.capacity() >= 300);
                }
            });
        });
        assert!(buffers.0.lock().is_empty(), "all were taken");
        buffers.give([full(LARGEST + 1), full(1)].into_iter());
        assert_eq!(buffers.0.lock().len(), 1, "a large one is let go");
    }
}
