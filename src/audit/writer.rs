//! Getting records out: a bounded queue, and one thread that writes it in batches and acknowledges each entry.
//!
//! The thread is our own, so that a blocked pipe or a slow disk never holds a runtime's worker. An entry that was
//! taken into the queue is never dropped: whoever waits for it may give up ([`AuditError::TimedOut`]), the record is
//! still written when the sink lets us. So the trail may say more than what was answered, and never less.
//!
//! Knows queues and sinks; what a record says is `record`'s.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::format::{Body, Hash, Header, VERSION};
use super::record::{self, Frame};
use super::sinks::{self, AuditSinkLike, Batch};
use super::{Entry, HostFacts};
use crate::clock::SharedClock;
use crate::config::{AuditConfig, Limits};

/// Why an entry is not on record. No answer may leave then.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The sink could not be opened at the start.
    #[error("the audit sink could not be opened")]
    Open(#[source] io::Error),
    /// The writer's thread could not be started.
    #[error("the audit writer could not be started")]
    Start(#[source] io::Error),
    /// The entry can't be written as JSON.
    #[error("the audit record could not be made")]
    Unwritable(#[source] serde_json::Error),
    /// The record is longer than `limits.audit_record_bytes`. What is recorded instead, that the call failed, has to do
    /// without the question.
    #[error("the audit record has up to {bytes} bytes, more than the {limit} allowed")]
    TooLarge {
        /// Its size, with the longest sequence number.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// `audit.queue` records (or 64 MiB of them) are waiting already.
    #[error("too many audit records are waiting to be written")]
    QueueFull,
    /// `audit.write_timeout` passed. The record may still be written later.
    #[error("the audit record was not written in time")]
    TimedOut,
    /// The sink would not take it.
    #[error("the audit sink failed: {0}")]
    Sink(io::ErrorKind),
    /// The trail has been closed, or its writer is gone.
    #[error("the audit trail is closed")]
    Closed,
}

/// The audit trail. Cheap to clone; every clone is the same trail. It ends when [`close`](Self::close) is called or
/// the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Trail {
    end: Arc<End>,
}

/// The writers' end of the queue: when the last one goes, the thread finishes what is queued and stops.
#[derive(Debug)]
struct End {
    shared: Arc<Shared>,
    frame: Arc<Frame>,
    queue: usize,
    record_bytes: usize,
    write_timeout: Duration,
}

/// What the writers and the thread share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    clock: SharedClock,
    /// Whether the last attempt got through.
    sound: AtomicBool,
    /// When the write that is under way began: monotonic milliseconds plus one; 0 when none is.
    busy_since: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<Job>,
    /// Entries taken and not yet settled, those being written included.
    held: usize,
    held_bytes: usize,
    closing: bool,
    /// Nothing will be written any more.
    closed: bool,
    /// Who waits for that.
    closers: Vec<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Job {
    line: Body,
    done: oneshot::Sender<Result<(), io::ErrorKind>>,
}

/// Waiting records in bytes at most, whatever their number.
const QUEUE_BYTES: usize = 64 << 20;
/// Bytes that go out in one write, unless a single record is longer.
const BATCH_BYTES: usize = 1 << 20;
/// How often a sink that failed is tried while nobody asks.
const RETRY: Duration = Duration::from_secs(1);

impl Trail {
    /// Opens the sink and starts the writer.
    ///
    /// # Errors
    /// [`AuditError::Open`] or [`AuditError::Start`], with the system's words.
    pub fn open(
        config: &AuditConfig,
        limits: &Limits,
        host: HostFacts,
        clock: SharedClock,
    ) -> Result<Self, AuditError> {
        let folder = &config.spool.directory;
        std::fs::create_dir_all(folder).map_err(AuditError::Open)?;
        let segment = folder.join(super::format::segment_name(1));
        if !segment.exists() {
            let header = Header {
                gatepost_spool: VERSION,
                chain: record::mint_boot(clock.now()),
                segment: 1,
                first_sequence: 1,
                prev_hash: Hash::GENESIS,
                opened: String::new(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            std::fs::write(&segment, header.line().map_err(AuditError::Unwritable)?).map_err(AuditError::Open)?;
        }
        let sink = sinks::file(&segment, 1 << 40, 1).map_err(AuditError::Open)?;
        Self::over(sink, config, limits, host, clock)
    }

    /// A trail that ends in `sink`.
    fn over(
        sink: Box<dyn AuditSinkLike>,
        config: &AuditConfig,
        limits: &Limits,
        host: HostFacts,
        clock: SharedClock,
    ) -> Result<Self, AuditError> {
        let frame = Arc::new(Frame { host, boot: record::mint_boot(clock.now()) });
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            clock,
            sound: AtomicBool::new(true),
            busy_since: AtomicU64::new(0),
        });
        let writer = Writer {
            shared: Arc::clone(&shared),
            frame: Arc::clone(&frame),
            sink,
            sequence: 1,
            prev: Hash::GENESIS,
            hashes: Vec::new(),
            gap: None,
            bytes: Vec::new(),
            ends: Vec::new(),
        };
        thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run()).map_err(AuditError::Start)?;
        let end = End {
            shared,
            frame,
            queue: config.queue,
            record_bytes: limits.audit_record_bytes,
            write_timeout: config.write_timeout,
        };
        Ok(Self { end: Arc::new(end) })
    }

    /// Puts `entry` on record: `Ok` means `write(2)` has returned for its line.
    ///
    /// If the caller stops waiting (the future is dropped) the record is written all the same.
    ///
    /// # Errors
    /// [`AuditError::TooLarge`], [`AuditError::QueueFull`] and [`AuditError::Closed`] at once; the others within
    /// `audit.write_timeout`. After any of them no answer may leave.
    pub async fn write(&self, entry: Entry) -> Result<(), AuditError> {
        let line = record::render(&entry, &self.end.frame).map_err(AuditError::Unwritable)?;
        let bytes = line.bytes();
        if bytes > self.end.record_bytes {
            return Err(AuditError::TooLarge { bytes, limit: self.end.record_bytes });
        }
        let (done, receipt) = oneshot::channel();
        {
            let mut state = self.end.shared.state.lock();
            if state.closing || state.closed {
                return Err(AuditError::Closed);
            }
            if state.held >= self.end.queue || state.held_bytes.saturating_add(bytes) > QUEUE_BYTES {
                return Err(AuditError::QueueFull);
            }
            state.held += 1;
            state.held_bytes += bytes;
            state.pending.push(Job { line, done });
        }
        self.end.shared.wake.notify_one();
        match tokio::time::timeout(self.end.write_timeout, receipt).await {
            Ok(Ok(written)) => written.map_err(AuditError::Sink),
            Ok(Err(_)) => Err(AuditError::Closed),
            Err(_) => Err(AuditError::TimedOut),
        }
    }

    /// Whether records get out: the last attempt did, and none has been stuck for longer than `audit.write_timeout`.
    /// A sink that failed is tried again every second, so this comes back by itself.
    #[must_use]
    pub fn healthy(&self) -> bool {
        let shared = &self.end.shared;
        let began = shared.busy_since.load(Ordering::Acquire);
        let stuck = began != 0
            && shared.millis().saturating_sub(began) >= u64::try_from(self.end.write_timeout.as_millis()).unwrap_or(0);
        shared.sound.load(Ordering::Acquire) && !stuck && !shared.state.lock().closed
    }

    /// Entries that are waiting to be written or being written.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.end.shared.state.lock().held
    }

    /// Writes what is queued, asks the system to keep it, and ends the trail. Waits no longer than
    /// `audit.write_timeout`; a sink that is stuck by then keeps its queue from getting out.
    pub async fn close(&self) {
        let (done, receipt) = oneshot::channel();
        {
            let mut state = self.end.shared.state.lock();
            if state.closed {
                return;
            }
            state.closing = true;
            state.closers.push(done);
        }
        self.end.shared.wake.notify_one();
        if tokio::time::timeout(self.end.write_timeout, receipt).await.is_err() {
            tracing::error!(waiting = self.depth(), "the audit trail could not be flushed in time");
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    /// Monotonic milliseconds plus one: never 0.
    fn millis(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX - 1).saturating_add(1)
    }
}

/// Entries that could not be written, until one can be.
struct Gap {
    since: SystemTime,
    missing: u64,
}

/// The thread's own things.
struct Writer {
    shared: Arc<Shared>,
    frame: Arc<Frame>,
    sink: Box<dyn AuditSinkLike>,
    sequence: u64,
    prev: Hash,
    hashes: Vec<Hash>,
    gap: Option<Gap>,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Writer {
    fn run(mut self) {
        let last_words = LastWords(Arc::clone(&self.shared));
        loop {
            let (mut jobs, closing) = self.next();
            if jobs.is_empty() && self.gap.is_some() {
                self.put(&mut jobs);
            }
            while !jobs.is_empty() {
                self.put(&mut jobs);
            }
            if closing {
                self.sink.sync();
                break;
            }
        }
        drop(last_words);
    }

    /// Waits for work. While there is a gap it comes back without any, to try the sink again.
    fn next(&self) -> (Vec<Job>, bool) {
        let mut state = self.shared.state.lock();
        while state.pending.is_empty() && !state.closing {
            if self.gap.is_none() {
                self.shared.wake.wait(&mut state);
            } else if self.shared.wake.wait_for(&mut state, RETRY).timed_out() {
                break;
            }
        }
        (std::mem::take(&mut state.pending), state.closing)
    }

    /// Writes as many of `jobs` as make a batch, and tells each what became of it.
    fn put(&mut self, jobs: &mut Vec<Job>) {
        self.bytes.clear();
        self.ends.clear();
        self.hashes.clear();
        let mut prev = self.prev;
        // The record of a gap goes first; it is also how a failed sink is tried without a record at stake.
        let told = self
            .gap
            .as_ref()
            .and_then(|gap| record::render_resumed(self.shared.clock.now(), gap.since, gap.missing, &self.frame).ok());
        let extra = usize::from(told.is_some());
        let lines = told.iter().chain(jobs.iter().map(|job| &job.line));
        for (number, line) in (self.sequence..).zip(lines) {
            // At least one entry, whatever its size.
            if self.ends.len() > extra && self.bytes.len() + line.bytes() > BATCH_BYTES {
                break;
            }
            prev = line.seal(number, prev, &mut self.bytes);
            self.hashes.push(prev);
            self.ends.push(self.bytes.len());
        }
        let batch: Vec<Job> = jobs.drain(..self.ends.len().saturating_sub(extra).min(jobs.len())).collect();
        self.shared.busy_since.store(self.shared.millis(), Ordering::Release);
        let appended = self.sink.append(Batch { bytes: &self.bytes, ends: &self.ends });
        self.shared.busy_since.store(0, Ordering::Release);

        if let Some(hash) = appended.lines.checked_sub(1).and_then(|last| self.hashes.get(last)) {
            self.prev = *hash;
        }
        // A number is spent when any part of its line got out.
        self.sequence += appended.lines as u64 + u64::from(appended.torn);
        if appended.lines > 0 && self.gap.take().is_some() {
            tracing::warn!("audit records are being written again");
        }
        if let Some(fault) = appended.fault {
            let missing = (batch.len() + extra).saturating_sub(appended.lines.max(extra)) as u64;
            self.missed(missing, fault);
        }
        self.shared.sound.store(appended.fault.is_none(), Ordering::Release);
        let fault = appended.fault.unwrap_or(io::ErrorKind::Other);
        let written = appended.lines.saturating_sub(extra);
        self.settle(batch, written, fault);
    }

    fn missed(&mut self, missing: u64, fault: io::ErrorKind) {
        match &mut self.gap {
            Some(gap) => gap.missing += missing,
            None => {
                tracing::error!(%fault, "audit records can't be written: no answer leaves until they can");
                self.gap = Some(Gap { since: self.shared.clock.now(), missing });
            }
        }
    }

    fn settle(&self, batch: Vec<Job>, written: usize, fault: io::ErrorKind) {
        {
            let mut state = self.shared.state.lock();
            state.held = state.held.saturating_sub(batch.len());
            let bytes: usize = batch.iter().map(|job| job.line.bytes()).sum();
            state.held_bytes = state.held_bytes.saturating_sub(bytes);
        }
        for (position, job) in batch.into_iter().enumerate() {
            // Whoever waited may have given up.
            let _ = job.done.send(if position < written { Ok(()) } else { Err(fault) });
        }
    }
}

/// Marks the trail as closed however the thread ends, so that nobody waits for a writer that is gone.
struct LastWords(Arc<Shared>);

impl Drop for LastWords {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        state.pending.clear();
        state.held = 0;
        state.held_bytes = 0;
        for closer in state.closers.drain(..) {
            let _ = closer.send(());
        }
    }
}

#[cfg(test)]
mod tests;
