//! Log lines on their way out, which nobody waits for.
//!
//! Standard error is a pipe more often than not, and a pipe whose reader has stalled blocks whoever writes. A thread of
//! our own does the writing, from a bounded queue; what finds it full is left out and counted. A decision never waits
//! for its log line.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait.
const WAITING: usize = 1024;
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// Everything before this is out.
    Mark(SyncSender<()>),
}

/// Takes lines and never blocks. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    queue: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Lines that end in `out`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, waiting) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let missed = Arc::clone(&lost);
        thread::Builder::new().name("logs".to_owned()).spawn(move || write(out, &waiting, &missed))?;
        Ok(Self { queue, lost })
    }

    /// Waits until everything so far is out, for `within` at most.
    pub(super) fn flush(&self, within: Duration) {
        let (done, out) = sync_channel(1);
        if self.queue.try_send(Item::Mark(done)).is_ok() {
            // Whether it came in time changes nothing any more.
            let _ = out.recv_timeout(within);
        }
    }
}

fn write(mut out: impl Write, waiting: &Receiver<Item>, lost: &AtomicU64) {
    while let Ok(item) = waiting.recv() {
        match item {
            // A log that can't be written has nobody to be told to.
            Item::Line(line) => drop(out.write_all(&line)),
            Item::Mark(done) => drop(done.send(())),
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "log lines were lost: whoever reads standard error is too slow");
        }
    }
}

/// One line.
pub(super) struct Line<'a>(&'a Lines);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.0.queue.try_send(Item::Line(line.to_vec())) {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// Sends the last lines on their way when it goes.
#[derive(Debug)]
pub(super) struct LastLines(pub(super) Lines);

impl Drop for LastLines {
    fn drop(&mut self) {
        self.0.flush(LAST_LINES);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Takes nothing until it is told to, as a pipe that nobody reads.
    struct Stalled {
        open: Receiver<()>,
        out: Sender<Vec<u8>>,
    }

    impl Write for Stalled {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // Once whoever holds the other end has let go, everything passes.
            let _ = self.open.recv();
            let _ = self.out.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stalls_holds_nobody_up_and_what_is_lost_is_counted() {
        let ((open, stalled), (out, written)) = (channel(), channel());
        let lines = Lines::to(Stalled { open: stalled, out }).unwrap();
        let many = WAITING * 3;
        for number in 0..many {
            lines.make_writer().write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        let lost = lines.lost.load(Ordering::Relaxed) as usize;
        assert!((many - WAITING - 1..=many - WAITING).contains(&lost), "{lost} of {many}");
        lines.flush(Duration::from_millis(1));

        drop(open);
        let out: Vec<_> = written.iter().take(many - lost).collect();
        assert_eq!(out.first().unwrap(), b"0\n", "in order, from the first");
        lines.flush(Duration::from_secs(20));
        assert_eq!(lines.lost.load(Ordering::Relaxed), 0, "told once there is room");
    }
}
