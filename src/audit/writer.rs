//! Keeping records: a bounded queue, and one thread that keeps them round by round and acknowledges each entry.
//!
//! The thread is our own, so that a slow disk never holds a runtime's worker. A round is what came while the disk was
//! busy with the last one. An entry that was taken into the queue is never dropped: whoever waits for it may give up
//! ([`AuditError::TimedOut`]), the record is still written when the disk lets us. So the trail may say more than what was
//! answered, and never less.
//!
//! Knows queues; what becomes of a round is `keeper`'s, what a record says is `record`'s.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use super::buffers::Buffers;
use super::checkpoint::{KeyError, SigningKey};
use super::delivered::Delivered;
use super::disk::{Disk, RealDisk};
use super::format::{Body, OVERHEAD};
use super::keeper::{Checkpoints, Keeper};
use super::patterns::watch::{Facts, Told, Watch};
use super::record::kin::Kin;
use super::record::template::{Again, Template};
use super::record::{self, Frame};
use super::spool::{Recovered, Spool, SpoolError, Writing};
use super::{AlertEntry, CallEntry, Entry, Heard, HostFacts, News};
use crate::clock::SharedClock;
use crate::config::{AuditConfig, AuditMode, Keeping, Limits, OnAuditFailure, Pattern};

mod company;

pub use company::Company;

/// Why an entry is not on record. No answer may leave then.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The spool could not be opened at the start.
    #[error("{0}")]
    Open(#[from] SpoolError),
    /// The key of checkpoints can't be used.
    #[error("{}: {source}", path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyError,
    },
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
    /// The disk would not keep it.
    #[error("the audit spool failed: {0}")]
    Disk(io::ErrorKind),
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
struct End {
    shared: Arc<Shared>,
    frame: Arc<Frame>,
    kin: Kin,
    config: AuditConfig,
    /// Bytes that make a round, unless a single record is longer.
    round_bytes: usize,
    record_bytes: usize,
    chain: String,
    delivered: Arc<Delivered>,
    committed: watch::Receiver<u64>,
    patterns: Option<Arc<Watch>>,
    heard: Heard,
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// What it takes to record that the same was asked again.
#[derive(Debug)]
pub struct Repeated {
    record: Template,
    keeping: Keeping,
    seen: Option<Arc<Facts>>,
}

impl AuditError {
    /// What each of several hears that failed together.
    #[must_use]
    pub fn for_each(&self) -> Self {
        match self {
            Self::QueueFull => Self::QueueFull,
            Self::TimedOut => Self::TimedOut,
            Self::Disk(kind) => Self::Disk(*kind),
            Self::TooLarge { bytes, limit } => Self::TooLarge { bytes: *bytes, limit: *limit },
            // The others are of the start.
            Self::Closed | Self::Open(_) | Self::Key { .. } | Self::Start(_) | Self::Unwritable(_) => Self::Closed,
        }
    }
}

impl Repeated {
    /// How many bytes it holds, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // What patterns look at repeats a few of the record's words.
        self.record.bytes() * 3 / 2
    }
}

/// What the writers and the thread share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// What records are written into before they are queued.
    buffers: Buffers,
    clock: SharedClock,
    /// Whether the last attempt got through.
    sound: AtomicBool,
    /// When the write that is under way began: monotonic milliseconds plus one; 0 when none is.
    busy_since: AtomicU64,
    /// All segments together.
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<Job>,
    /// Records of shed calls: they wait until those of answers are in their round.
    aside: VecDeque<Job>,
    /// Entries taken and not yet settled, those being written included.
    held: usize,
    held_bytes: usize,
    /// Somebody waits for one of `pending`.
    waited_for: bool,
    /// They are so many that nothing more is collected.
    many: bool,
    collecting: Collecting,
    /// Entries that were not taken since the thread last looked.
    turned_away: u64,
    closing: bool,
    /// Nothing will be written any more.
    closed: bool,
    /// Who waits for that.
    closers: Vec<oneshot::Sender<()>>,
}

/// What the thread collects, so that it need not be woken for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Collecting {
    #[default]
    Nothing,
    /// What nobody waits for.
    Queued,
    /// All there is, while calls are shed.
    All,
}

#[derive(Debug)]
struct Job {
    bodies: Bodies,
    mode: AuditMode,
    /// Of a shed call.
    aside: bool,
    /// Nobody waits for what is only queued.
    done: Option<oneshot::Sender<Result<(), io::ErrorKind>>>,
}

/// Records that are kept together or not at all.
#[derive(Debug)]
enum Bodies {
    One(Body),
    Several(Vec<Body>),
}

impl Bodies {
    fn all(&self) -> &[Body] {
        match self {
            Self::One(body) => std::slice::from_ref(body),
            Self::Several(bodies) => bodies,
        }
    }

    fn bytes(&self) -> usize {
        self.all().iter().map(Body::bytes).sum()
    }
}

/// Records of shed calls that go into one round, if there are not more of others in it.
const ASIDE: usize = 256;
/// Waiting records in bytes at most, whatever their number.
const QUEUE_BYTES: usize = 64 << 20;
/// What nobody waits for is collected for so long, or until it is so much: a round costs about as much for one record as for
/// a hundred. Whoever waits is never made to wait longer by it.
const GATHER: Duration = Duration::from_millis(2);
/// While calls are shed everything is collected for so long: each shed call has its record too, and rounds that follow each other
/// without a pause would take the time that answers need. An answer is in the house for much longer then.
const GATHER_SHED: Duration = Duration::from_millis(5);
const GATHER_BYTES: usize = 256 << 10;
/// Bytes that make a round at most.
const ROUND_BYTES: usize = 4 << 20;
/// Records of one batch that go together at most.
const TOGETHER: usize = 64;

impl Trail {
    /// Opens the spool, puts on record what was found there, and starts the writer.
    ///
    /// # Errors
    /// [`AuditError::Open`], [`AuditError::Key`], [`AuditError::Disk`] or [`AuditError::Start`].
    pub fn open(
        config: &AuditConfig,
        limits: &Limits,
        host: HostFacts,
        clock: SharedClock,
        heard: Heard,
    ) -> Result<Self, AuditError> {
        let disk = RealDisk::open(&config.spool.directory).map_err(SpoolError::from)?;
        Self::over(Box::new(disk), config, limits, host, clock, heard)
    }

    /// A trail on this disk.
    fn over(
        disk: Box<dyn Disk>,
        config: &AuditConfig,
        limits: &Limits,
        host: HostFacts,
        clock: SharedClock,
        heard: Heard,
    ) -> Result<Self, AuditError> {
        let boot = record::mint_boot(clock.now());
        let frame =
            Arc::new(Frame { host, boot: boot.clone(), keeping: config.keeping, exceptions: config.actions.len() });
        let checkpoints = match &config.checkpoints {
            None => None,
            Some(settings) => {
                let told = |source| AuditError::Key { path: settings.key_file.clone(), source };
                let key = SigningKey::load(&settings.key_file).map_err(told)?;
                Some(Checkpoints { key, every: settings.every, records: settings.records })
            }
        };
        let writing = Writing { boot, mode: config.keeping.mode.as_str() };
        let (spool, recovered) = Spool::open(disk, &config.spool, writing, record::mint_boot(clock.now()))?;
        tell(config, &recovered);
        // Before anything is removed: a sink that has not been started yet needs everything that is there.
        let delivered = Arc::new(Delivered::default());
        for sink in &config.sinks {
            delivered.expect(&sink.name, 0, sink.when_full);
        }
        let mut keeper = Keeper::new(
            spool,
            Arc::clone(&frame),
            Arc::clone(&clock),
            Arc::clone(&heard),
            Arc::clone(&delivered),
            checkpoints,
        );
        keeper.begin(&recovered).map_err(AuditError::Disk)?;
        let patterns = Watch::new(&config.patterns, Arc::clone(&clock));
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            buffers: Buffers::default(),
            clock,
            sound: AtomicBool::new(true),
            busy_since: AtomicU64::new(0),
            bytes: AtomicU64::new(keeper.bytes()),
        });
        let end = End {
            shared: Arc::clone(&shared),
            frame,
            kin: Kin::default(),
            config: config.clone(),
            round_bytes: usize::try_from(config.spool.segment_bytes).unwrap_or(ROUND_BYTES).min(ROUND_BYTES),
            record_bytes: limits.audit_record_bytes,
            chain: keeper.chain().to_owned(),
            delivered,
            committed: keeper.committed(),
            patterns,
            heard,
        };
        let writer = Writer { shared, keeper, round_bytes: end.round_bytes };
        thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run()).map_err(AuditError::Start)?;
        let end = Arc::new(end);
        if let Some(patterns) = &end.patterns {
            patterns.start(Arc::downgrade(&end)).map_err(AuditError::Start)?;
        }
        Ok(Self { end })
    }

    /// Puts `entry` on record. `Ok` means that it is kept as well as the configuration demands for it
    /// ([`AuditConfig::keeping_of`]): with the disk, with the system, or in the queue; or that it could not be, was
    /// counted, and the configuration lets such answers go.
    ///
    /// If the caller stops waiting (the future is dropped) the record is written all the same.
    ///
    /// # Errors
    /// [`AuditError::TooLarge`], [`AuditError::QueueFull`] and [`AuditError::Closed`] at once; the others within
    /// `audit.write_timeout`. After any of them no answer may leave.
    pub async fn write(&self, entry: &Entry) -> Result<(), AuditError> {
        self.write_in(None, entry).await
    }

    /// For records that follow each other and are best kept together.
    #[must_use]
    pub fn company(&self) -> Company {
        Company::of(Arc::clone(&self.end.shared))
    }

    /// As [`write`](Self::write), in this company: while it is open, the record waits for it.
    ///
    /// # Errors
    /// As there.
    pub async fn write_in(&self, company: Option<&Company>, entry: &Entry) -> Result<(), AuditError> {
        // For the bench of what a record costs, in a build that is made for it alone: see Cargo.toml.
        #[cfg(feature = "bench-unaudited")]
        if self.end.config.unaudited {
            return Ok(());
        }
        let config = &self.end.config;
        let keeping = match entry {
            Entry::Call(call) => config.keeping_of(call.question.as_ref().map(|asked| asked.action.as_str())),
            // Starts, operators, policies: they are few, and must not be lost in a queue.
            Entry::Handshake(_)
            | Entry::Policy(_)
            | Entry::Lifecycle(_)
            | Entry::Admin(_)
            | Entry::Lost(_)
            | Entry::Alert(_) => {
                Keeping { mode: config.keeping.mode.max(AuditMode::Written), on_failure: OnAuditFailure::Refuse }
            }
        };
        let shed = matches!(entry, Entry::Call(call) if call.outcome.is_shed());
        let written =
            if shed { self.put_aside(entry, keeping.mode) } else { self.put(entry, keeping.mode, company).await };
        self.kept(keeping, written)?;
        if let (Entry::Call(call), Some(patterns)) = (entry, &self.end.patterns) {
            patterns.tell(call);
        }
        Ok(())
    }

    /// What it takes to record one more call that asks what `call` asks. `None`: nothing that is kept would help.
    pub(crate) fn template(&self, call: &CallEntry) -> Option<Repeated> {
        // Longer ones are refused, and put on record in another way than the rest: not from here.
        let record = Template::of(call, &self.end.frame)
            .filter(|record| record.longest() + OVERHEAD <= self.end.record_bytes)?;
        let keeping = self.end.config.keeping_of(call.question.as_ref().map(|asked| asked.action.as_str()));
        let seen = self.end.patterns.as_ref().map(|patterns| Arc::new(patterns.facts(call)));
        Some(Repeated { record, keeping, seen })
    }

    /// Puts one more call on record that asks what was asked before.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_again(&self, repeated: &Repeated, again: &Again<'_>) -> Result<(), AuditError> {
        #[cfg(feature = "bench-unaudited")]
        if self.end.config.unaudited {
            return Ok(());
        }
        let body = Bodies::One(self.fill(repeated, again));
        let written = self.put_bodies(body, repeated.keeping.mode, None).await;
        self.kept(repeated.keeping, written)?;
        self.tell_patterns(&[(repeated, *again)]);
        Ok(())
    }

    /// As [`write_again`](Self::write_again), for several at once: what became of each, in their order. Some go together, so that
    /// they cost less and wait once; as many as the queue and a segment have room for, however long a batch is.
    pub async fn write_all_again(&self, all: &[(&Repeated, Again<'_>)]) -> Vec<Result<(), AuditError>> {
        let groups = self.groups(all).into_iter().map(|group| async move {
            let written = self.write_group(group).await;
            group.iter().map(move |_| written.as_ref().copied().map_err(AuditError::for_each)).collect::<Vec<_>>()
        });
        futures_util::future::join_all(groups).await.into_iter().flatten().collect()
    }

    /// All of them or none, kept as the first has to be.
    async fn write_group(&self, group: &[(&Repeated, Again<'_>)]) -> Result<(), AuditError> {
        #[cfg(feature = "bench-unaudited")]
        if self.end.config.unaudited {
            return Ok(());
        }
        let Some((first, _)) = group.first() else { return Ok(()) };
        let bodies = group.iter().map(|(repeated, again)| self.fill(repeated, again)).collect();
        let written = self.put_bodies(Bodies::Several(bodies), first.keeping.mode, None).await;
        self.kept(first.keeping, written)?;
        self.tell_patterns(group);
        Ok(())
    }

    fn fill(&self, repeated: &Repeated, again: &Again<'_>) -> Body {
        repeated.record.fill(again, self.end.shared.buffers.take(repeated.record.longest()))
    }

    /// Neighbours that are kept alike, not more than find room together.
    fn groups<'a, 'r>(&self, mut all: &'a [(&'r Repeated, Again<'r>)]) -> Vec<&'a [(&'r Repeated, Again<'r>)]> {
        let mut groups = Vec::new();
        while let Some((first, _)) = all.first() {
            let mut bytes = 0;
            let fits = |(repeated, _): &&(&Repeated, Again<'_>)| {
                bytes += repeated.record.longest() + OVERHEAD;
                repeated.keeping == first.keeping && bytes <= self.end.round_bytes
            };
            let count = all.iter().take(TOGETHER.min(self.end.config.queue)).take_while(fits).count().max(1);
            let (group, rest) = all.split_at(count);
            groups.push(group);
            all = rest;
        }
        groups
    }

    /// Whether what became of a record lets its answer go.
    fn kept(&self, keeping: Keeping, written: Result<(), AuditError>) -> Result<(), AuditError> {
        match (written, keeping.on_failure) {
            // Counted by whoever could not keep it.
            (Err(AuditError::QueueFull | AuditError::TimedOut | AuditError::Disk(_)), OnAuditFailure::Answer) => Ok(()),
            (written, _) => written,
        }
    }

    fn tell_patterns(&self, all: &[(&Repeated, Again<'_>)]) {
        let Some(patterns) = &self.end.patterns else { return };
        patterns.tell_of(
            all.iter().filter_map(|(repeated, again)| Some((again.decision_id, Arc::clone(repeated.seen.as_ref()?)))),
        );
    }

    async fn put(&self, entry: &Entry, mode: AuditMode, company: Option<&Company>) -> Result<(), AuditError> {
        let body = self.render(entry)?;
        self.put_bodies(Bodies::One(body), mode, company).await
    }

    fn render(&self, entry: &Entry) -> Result<Body, AuditError> {
        let frame = &self.end.frame;
        let like = if let Entry::Call(call) = entry {
            self.end.kin.write(call, frame, |room| self.end.shared.buffers.take(room))
        } else {
            None
        };
        like.map_or_else(|| record::render(entry, frame).map_err(AuditError::Unwritable), Ok)
    }

    async fn put_bodies(&self, bodies: Bodies, mode: AuditMode, company: Option<&Company>) -> Result<(), AuditError> {
        let (done, receipt) = match mode {
            AuditMode::Async => (None, None),
            AuditMode::Written | AuditMode::Durable => {
                let (done, receipt) = oneshot::channel();
                (Some(done), Some(receipt))
            }
        };
        self.end.queue(Job { bodies, mode, aside: false, done }, company)?;
        let Some(receipt) = receipt else { return Ok(()) };
        match tokio::time::timeout(self.end.config.write_timeout, receipt).await {
            Ok(Ok(written)) => written.map_err(AuditError::Disk),
            Ok(Err(_)) => Err(AuditError::Closed),
            Err(_) => Err(AuditError::TimedOut),
        }
    }

    /// Queues the record of a call that was shed. It is kept as well as any other, and nobody waits for it: what is refused
    /// because there is too much to do must not take part in the wait for the disk. Nor may it crowd out the records of
    /// answers, so it gets half of the queue, and does not go before them.
    fn put_aside(&self, entry: &Entry, mode: AuditMode) -> Result<(), AuditError> {
        let mut state = self.end.shared.state.lock();
        if state.held >= self.end.config.queue.div_ceil(2) {
            state.turned_away += 1;
            return if mode == AuditMode::Async { Ok(()) } else { Err(AuditError::QueueFull) };
        }
        drop(state);
        let body = self.render(entry)?;
        self.end.queue(Job { bodies: Bodies::One(body), mode, aside: true, done: None }, None)
    }

    /// Whether records are kept: the last attempt got through, and none has been stuck for longer than
    /// `audit.write_timeout`. A spool that failed is tried again every second, so this comes back by itself.
    #[must_use]
    pub fn healthy(&self) -> bool {
        let shared = &self.end.shared;
        let began = shared.busy_since.load(Ordering::Acquire);
        let limit = u64::try_from(self.end.config.write_timeout.as_millis()).unwrap_or(0);
        let stuck = began != 0 && shared.millis().saturating_sub(began) >= limit;
        shared.sound.load(Ordering::Acquire) && !stuck && !shared.state.lock().closed
    }

    /// Entries that are waiting to be written or being written.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.end.shared.state.lock().held
    }

    /// All segments of the spool together.
    #[must_use]
    pub fn spool_bytes(&self) -> u64 {
        self.end.shared.bytes.load(Ordering::Relaxed)
    }

    /// Where the spool is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.end.config.spool.directory
    }

    /// Names the spool for its whole life.
    pub(crate) fn chain(&self) -> &str {
        &self.end.chain
    }

    /// The last record that the disk has kept: sinks may have up to there.
    pub(crate) fn committed(&self) -> watch::Receiver<u64> {
        self.end.committed.clone()
    }

    /// Where sinks tell how far they are.
    pub(crate) fn delivered(&self) -> &Arc<Delivered> {
        &self.end.delivered
    }

    /// Writes what is queued, makes the disk keep it, and ends the trail. Waits no longer than `audit.write_timeout`; a
    /// disk that is stuck by then keeps its queue from getting out.
    pub async fn close(&self) {
        if let Some(patterns) = &self.end.patterns {
            patterns.look(self.end.as_ref());
        }
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
        if tokio::time::timeout(self.end.config.write_timeout, receipt).await.is_err() {
            tracing::error!(waiting = self.depth(), "the audit trail could not be flushed in time");
        }
    }
}

/// What an operator should see at the start.
fn tell(config: &AuditConfig, recovered: &Recovered) {
    if recovered.torn {
        tracing::info!("the last line of the audit spool was cut off in the middle: it was taken away");
    }
    for gap in &recovered.gaps {
        tracing::error!(first = gap.first, last = gap.last, reason = gap.reason, "audit records are missing");
    }
    for file in &recovered.quarantined {
        tracing::error!(%file, "a file of the audit spool is damaged: what was found is in its folder `quarantine`");
    }
    let answering = |keeping: Keeping| keeping.on_failure == OnAuditFailure::Answer;
    if answering(config.keeping) || config.actions.iter().any(|one| answering(one.keeping)) {
        tracing::warn!("audit.on_failure lets answers leave without a record when none can be kept");
    }
    if config.checkpoints.is_none() {
        tracing::info!("audit.checkpoints is not set: the chain of records is not signed");
    }
}

impl End {
    /// Takes records into the queue.
    fn queue(&self, job: Job, company: Option<&Company>) -> Result<(), AuditError> {
        let longest = job.bodies.all().iter().map(Body::bytes).max().unwrap_or(0);
        if longest > self.record_bytes {
            return Err(AuditError::TooLarge { bytes: longest, limit: self.record_bytes });
        }
        let (count, bytes) = (job.bodies.all().len(), job.bodies.bytes());
        let wake = {
            let mut state = self.shared.state.lock();
            if state.closing || state.closed {
                return Err(AuditError::Closed);
            }
            if state.held + count > self.config.queue || state.held_bytes.saturating_add(bytes) > QUEUE_BYTES {
                state.turned_away += count as u64;
                // What is only queued leaves all the same, and is counted.
                return if job.mode == AuditMode::Async { Ok(()) } else { Err(AuditError::QueueFull) };
            }
            state.held += count;
            state.held_bytes += bytes;
            state.waited_for |= job.done.is_some();
            state.many |= state.held_bytes > GATHER_BYTES;
            if job.aside {
                state.aside.push_back(job)
            } else {
                state.pending.push(job)
            }
            state.collecting == Collecting::Nothing || state.is_due()
        };
        if wake && company.is_none_or(Company::is_enough) {
            self.shared.wake.notify_one();
        }
        Ok(())
    }
}

impl Told for End {
    fn found(&self, pattern: Pattern, entry: AlertEntry) {
        let (key, count) = (entry.alert.key, entry.alert.count);
        let queued = record::render(&Entry::Alert(Box::new(entry)), &self.frame)
            .map_err(AuditError::Unwritable)
            .and_then(|body| {
                let mode = self.config.keeping.mode.max(AuditMode::Written);
                self.queue(Job { bodies: Bodies::One(body), mode, aside: false, done: None }, None)
            });
        match queued {
            Ok(()) => {
                tracing::warn!(pattern = pattern.as_str(), key, count, "an unusual pattern was found");
                (self.heard)(News::Alert { pattern: pattern.as_str() });
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, pattern = pattern.as_str(), "an unusual pattern could not be recorded");
            }
        }
    }

    fn missed(&self, count: u64) {
        tracing::warn!(count, "calls were not looked at for unusual patterns: too many came at once");
        (self.heard)(News::Unwatched { count });
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(patterns) = &self.patterns {
            patterns.close();
        }
        self.shared.state.lock().closing = true;
        self.shared.wake.notify_one();
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.aside.is_empty()
    }

    /// Whether it is time for a round.
    fn is_due(&self) -> bool {
        self.closing || self.many || (self.waited_for && self.collecting != Collecting::All)
    }
}

impl Shared {
    /// Monotonic milliseconds plus one: never 0.
    fn millis(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX - 1).saturating_add(1)
    }
}

/// The thread's own things.
struct Writer {
    shared: Arc<Shared>,
    keeper: Keeper,
    round_bytes: usize,
}

impl Writer {
    fn run(mut self) {
        let last_words = LastWords(Arc::clone(&self.shared));
        let mut pause = Duration::ZERO;
        loop {
            let (jobs, turned_away, closing) = self.next(pause);
            self.keeper.lost("queue_full", turned_away);
            let mut jobs = jobs.into_iter().peekable();
            while jobs.peek().is_some() {
                let mut bytes = 0;
                let round: Vec<Job> = std::iter::from_fn(|| {
                    let fits = |job: &Job| bytes == 0 || bytes + job.bodies.bytes() <= self.round_bytes;
                    let job = jobs.next_if(fits)?;
                    bytes += job.bodies.bytes();
                    Some(job)
                })
                .collect();
                self.put(round, bytes);
            }
            self.busy(true);
            pause = self.keeper.tick();
            if closing {
                self.keeper.close();
            }
            self.busy(false);
            if closing {
                break;
            }
        }
        drop(last_words);
    }

    /// Waits for work, for `pause` at most.
    fn next(&self, pause: Duration) -> (Vec<Job>, u64, bool) {
        let mut state = self.shared.state.lock();
        if state.is_empty() && state.turned_away == 0 && !state.closing {
            let _ = self.shared.wake.wait_for(&mut state, pause);
        }
        let (collecting, time) =
            if state.aside.is_empty() { (Collecting::Queued, GATHER) } else { (Collecting::All, GATHER_SHED) };
        if !state.is_empty() {
            state.collecting = collecting;
            let _ = self.shared.wake.wait_while_for(&mut state, |state| !state.is_due(), time);
            state.collecting = Collecting::Nothing;
        }
        (state.waited_for, state.many) = (false, false);
        let mut jobs = std::mem::take(&mut state.pending);
        // Whoever waits for an answer waits for one round of these at most, however many calls are shed.
        let most = if state.closing { usize::MAX } else { ASIDE.max(jobs.len()) };
        let some = state.aside.len().min(most);
        jobs.extend(state.aside.drain(..some));
        (jobs, std::mem::take(&mut state.turned_away), state.closing)
    }

    fn busy(&self, busy: bool) {
        let since = if busy { self.shared.millis() } else { 0 };
        self.shared.busy_since.store(since, Ordering::Release);
        self.shared.sound.store(self.keeper.sound(), Ordering::Release);
        self.shared.bytes.store(self.keeper.bytes(), Ordering::Relaxed);
    }

    /// Keeps a round, and tells each what became of it.
    fn put(&mut self, round: Vec<Job>, bytes: usize) {
        self.busy(true);
        let records: Vec<(&Body, AuditMode)> =
            round.iter().flat_map(|job| job.bodies.all().iter().map(|body| (body, job.mode))).collect();
        let kept = self.keeper.keep(&records);
        self.busy(false);
        {
            let mut state = self.shared.state.lock();
            state.held = state.held.saturating_sub(records.len());
            state.held_bytes = state.held_bytes.saturating_sub(bytes);
        }
        let mut emptied = Vec::with_capacity(records.len());
        for job in round {
            if let Some(done) = job.done {
                // Whoever waited may have given up.
                let _ = done.send(kept);
            }
            match job.bodies {
                Bodies::One(body) => emptied.push(body.into_rest()),
                Bodies::Several(bodies) => emptied.extend(bodies.into_iter().map(Body::into_rest)),
            }
        }
        self.shared.buffers.give(emptied.into_iter());
    }
}

/// Marks the trail as closed however the thread ends, so that nobody waits for a writer that is gone.
struct LastWords(Arc<Shared>);

impl Drop for LastWords {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        state.pending.clear();
        state.aside.clear();
        state.held = 0;
        state.held_bytes = 0;
        for closer in state.closers.drain(..) {
            let _ = closer.send(());
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
