//! Who gets the records: each sink follows the spool for itself, in its own form and at its own pace.
//!
//! All run on one thread of their own, so that none ever takes a decision's time. A sink reads what the disk has kept, hands
//! it over batch by batch, and remembers how far it is. What was not taken is handed over again until it is: so a record may
//! come twice, and none is left out. What a receiver will never have is put aside and counted.
//!
//! Knows the spool's reader and the targets; nothing of who writes records.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::files::{Cursor, Found};
use self::target::{Fault, Outgoing, Settled, Taken, Target};
use self::tls::TlsProblem;
use super::delivered::Delivered;
use super::encode::{encode, ending, kind};
use super::reader::Reader;
use super::{AuditError, Entry, Heard, LostEntry, News, Trail};
use crate::clock::{SharedClock, unix_millis};
use crate::config::{Encoding, SinkConfig, SinkFilter, SinkTarget};

mod elastic;
mod file;
mod files;
mod http;
mod kafka;
mod otlp;
mod splunk;
mod syslog;
mod target;
mod tls;

/// How often a cursor is written at most.
const SAVE: Duration = Duration::from_secs(1);
/// The shortest pause after a failure; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How soon a sink is asked again whether what it was sent is certain.
const UNCERTAIN: Duration = Duration::from_millis(50);
/// What becomes of a delivery that takes longer than `timeout`.
const LATE: &str = "no answer in time";
/// How long sinks have at the end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// No line is longer: twice the largest `limits.audit_record_bytes`.
const MAX_LINE: usize = 32 << 20;

/// Why the sinks can't be started.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Its certificates.
    #[error("audit sink `{sink}`: {source}")]
    Tls {
        /// Its name.
        sink: String,
        /// Which file.
        #[source]
        source: TlsProblem,
    },
    /// The file, the cursor, or the thread.
    #[error("audit sink `{sink}`: {source}")]
    Io {
        /// Its name.
        sink: String,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
}

/// How far one sink is; for whoever looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// Its name.
    pub name: String,
    /// Records that it has not got.
    pub lag: u64,
    /// The age of the oldest of them.
    pub delay: Duration,
    /// Whether the last delivery went well.
    pub healthy: bool,
}

#[derive(Debug)]
struct Status {
    name: String,
    /// The last record that is certain.
    settled: AtomicU64,
    /// When the oldest that it has not got happened, milliseconds since 1970; 0: it has all.
    waiting_since: AtomicI64,
    healthy: AtomicBool,
}

impl Status {
    /// Told once, until it goes well again.
    fn fails(&self, message: &str) {
        if self.healthy.swap(false, Ordering::Relaxed) {
            tracing::warn!(sink = self.name, fault = message, "the audit sink takes no records; it is tried again");
        }
    }
}

/// The sinks of a trail, at work.
#[derive(Debug)]
pub struct Sinks {
    statuses: Vec<Arc<Status>>,
    committed: watch::Receiver<u64>,
    clock: SharedClock,
    stop: CancellationToken,
    /// The thread has ended.
    ended: CancellationToken,
}

impl Sinks {
    /// Starts every sink of the configuration.
    ///
    /// # Errors
    /// [`SinkError`], naming the sink; then none runs.
    pub fn start(configs: &[SinkConfig], trail: &Trail, clock: SharedClock, heard: Heard) -> Result<Self, SinkError> {
        let ends = Ends::default();
        let mut workers = Vec::with_capacity(configs.len());
        for config in configs {
            workers.push(Worker::new(config, trail, Arc::clone(&clock), Arc::clone(&heard), ends.clone())?);
        }
        let statuses = workers.iter().map(|worker| Arc::clone(&worker.status)).collect();
        let committed = trail.committed();
        let (stop, ended) = (ends.stop.clone(), CancellationToken::new());
        run(workers, ends, ended.clone())?;
        Ok(Self { statuses, committed, clock, stop, ended })
    }

    /// Tells how far each is, whenever it is asked.
    pub fn reporter(&self) -> impl Fn() -> Vec<Level> + Send + Sync + 'static {
        let (statuses, committed, clock) = (self.statuses.clone(), self.committed.clone(), Arc::clone(&self.clock));
        move || levels(&statuses, *committed.borrow(), &clock)
    }

    /// Lets each deliver what there is, for five seconds at most, and ends them. To be called once the trail is closed.
    pub async fn close(self) {
        self.stop.cancel();
        // A disk that hangs may hold the thread; nobody waits for that, and least of all a thread of the caller's.
        if tokio::time::timeout(LAST_WORDS + Duration::from_secs(1), self.ended.cancelled()).await.is_err() {
            tracing::warn!("an audit sink hangs: what it has not got comes after the next start");
        }
    }
}

fn levels(statuses: &[Arc<Status>], committed: u64, clock: &SharedClock) -> Vec<Level> {
    let now = unix_millis(clock.now());
    let level = |status: &Arc<Status>| {
        let lag = committed.saturating_sub(status.settled.load(Ordering::Relaxed));
        let since = status.waiting_since.load(Ordering::Relaxed);
        let delay = if lag == 0 || since == 0 { 0 } else { now.saturating_sub(since) };
        Level {
            name: status.name.clone(),
            lag,
            delay: Duration::from_millis(u64::try_from(delay).unwrap_or(0)),
            healthy: status.healthy.load(Ordering::Relaxed),
        }
    };
    statuses.iter().map(level).collect()
}

/// When it is time to end.
#[derive(Debug, Clone, Default)]
struct Ends {
    /// There will be no more records.
    stop: CancellationToken,
    /// Nor any more time.
    over: CancellationToken,
}

fn run(workers: Vec<Worker>, ends: Ends, ended: CancellationToken) -> Result<(), SinkError> {
    let started = std::thread::Builder::new().name("audit-sinks".to_owned()).spawn(move || {
        let _ended = ended.drop_guard();
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "no audit sink can be started");
                return;
            }
        };
        runtime.block_on(async {
            tokio::spawn(async move {
                ends.stop.cancelled().await;
                tokio::time::sleep(LAST_WORDS).await;
                ends.over.cancel();
            });
            let mut tasks = tokio::task::JoinSet::new();
            for worker in workers {
                tasks.spawn(worker.run());
            }
            while let Some(ended) = tasks.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "an audit sink ended by a fault of ours");
                }
            }
        });
        // A pipe that nobody reads may hold a thread of it for ever.
        runtime.shutdown_background();
    });
    started.map(drop).map_err(|source| SinkError::Io { sink: "all".to_owned(), source })
}

/// Opens the target, and finds out what is wrong with its settings.
fn open(config: &SinkConfig, chain: &str) -> Result<Box<dyn Target>, SinkError> {
    let io = |source| SinkError::Io { sink: config.name.clone(), source };
    let tls = |source| SinkError::Tls { sink: config.name.clone(), source };
    Ok(match &config.target {
        SinkTarget::Stdout => Box::new(file::LineTarget::stdout().map_err(io)?),
        SinkTarget::File { path, max_bytes, max_files } => {
            Box::new(file::LineTarget::file(path, *max_bytes, *max_files).map_err(io)?)
        }
        SinkTarget::Syslog(settings) => Box::new(syslog::SyslogSink::new(settings, config.timeout).map_err(tls)?),
        SinkTarget::Splunk(settings) => {
            Box::new(splunk::SplunkSink::new(settings, config.encoding, config.timeout).map_err(tls)?)
        }
        SinkTarget::Elastic(settings) => Box::new(elastic::ElasticSink::new(settings, config.timeout).map_err(tls)?),
        SinkTarget::Otlp(settings) => Box::new(otlp::OtlpSink::new(settings, config.timeout).map_err(tls)?),
        SinkTarget::Kafka(settings) => Box::new(kafka::KafkaSink::new(settings, chain, config.timeout).map_err(tls)?),
    })
}

/// One sink.
struct Worker {
    config: SinkConfig,
    target: Box<dyn Target>,
    folder: PathBuf,
    chain: String,
    reader: Reader,
    committed: watch::Receiver<u64>,
    delivered: Arc<Delivered>,
    trail: Trail,
    clock: SharedClock,
    heard: Heard,
    ends: Ends,
    status: Arc<Status>,
    /// The last record that was handed over, or that is none of this sink's.
    sent: u64,
    /// The last record that is certain, and that the cursor's file says.
    settled: u64,
    saved: u64,
    saved_at: Duration,
    /// Numbers that were found missing or damaged since the last batch: the first, the last, and whether it is damage.
    missing: Vec<(u64, u64, bool)>,
    /// The last number that was counted as lost.
    lost_to: u64,
    /// Since it last got on.
    failures: u32,
}

impl Worker {
    fn new(
        config: &SinkConfig,
        trail: &Trail,
        clock: SharedClock,
        heard: Heard,
        ends: Ends,
    ) -> Result<Self, SinkError> {
        let target = open(config, trail.chain())?;
        let folder = trail.folder().to_owned();
        let io = |source| SinkError::Io { sink: config.name.clone(), source };
        let last = *trail.committed().borrow();
        let oldest = oldest(&folder).map_err(io)?;
        let from_the_oldest = oldest.saturating_sub(1);
        let at = match files::cursor(&folder, &config.name, trail.chain()).map_err(io)? {
            Found::At(sequence) if sequence <= last => sequence,
            Found::At(sequence) => {
                tracing::warn!(sink = config.name, sequence, last, "the trail ends before this sink's place in it");
                last
            }
            Found::New => from_the_oldest,
            Found::Unusable => {
                tracing::warn!(
                    sink = config.name,
                    "its cursor can't be used and is put aside: it gets every record that is there, some of them again"
                );
                from_the_oldest
            }
        };
        let delivered = Arc::clone(trail.delivered());
        delivered.expect(&config.name, at, config.when_full);
        let status = Arc::new(Status {
            name: config.name.clone(),
            settled: AtomicU64::new(at),
            waiting_since: AtomicI64::new(0),
            healthy: AtomicBool::new(true),
        });
        Ok(Self {
            config: config.clone(),
            target,
            reader: Reader::new(&folder, at + 1, MAX_LINE),
            folder,
            chain: trail.chain().to_owned(),
            committed: trail.committed(),
            delivered,
            trail: trail.clone(),
            saved_at: clock.monotonic(),
            clock,
            heard,
            ends,
            status,
            sent: at,
            settled: at,
            saved: at,
            missing: Vec::new(),
            lost_to: at,
            failures: 0,
        })
    }

    async fn run(mut self) {
        let Ends { stop, over } = self.ends.clone();
        while !over.is_cancelled() {
            let stopping = stop.is_cancelled();
            let step = tokio::select! {
                step = self.step() => step,
                () = over.cancelled() => break,
            };
            let pause = match step {
                Step::More => Duration::ZERO,
                Step::Closed => {
                    self.finish(&over).await;
                    break;
                }
                Step::Idle if stopping => {
                    self.finish(&over).await;
                    break;
                }
                // What is not certain yet is looked at again soon.
                Step::Idle if self.settled < self.sent => UNCERTAIN,
                Step::Idle => SAVE,
                Step::Failed(pause) => pause,
            };
            self.save(false);
            if pause.is_zero() {
                tokio::task::yield_now().await;
                continue;
            }
            let failed = self.failures > 0;
            tokio::select! {
                () = over.cancelled() => {}
                () = stop.cancelled(), if !stopping => {}
                // A receiver that is down is not asked more often because there is more for it.
                _ = self.committed.changed(), if !failed && !stopping => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.save(true);
    }

    /// All is handed over. What is not certain in the end comes again after the next start.
    async fn finish(&mut self, over: &CancellationToken) {
        if self.settled < self.sent {
            tokio::select! {
                () = self.target.finish() => {}
                () = over.cancelled() => {}
            }
            self.settle();
        }
    }

    /// One batch, if there is any.
    async fn step(&mut self) -> Step {
        self.settle();
        let upto = *self.committed.borrow_and_update();
        let batch = match self.batch(upto) {
            Ok(batch) => batch,
            Err(message) => return self.failed(&message, None),
        };
        if !self.tell_missing().await {
            return Step::Closed;
        }
        let last = self.reader.position() - 1;
        if batch.is_empty() {
            if self.settled == self.sent {
                self.status.waiting_since.store(0, Ordering::Relaxed);
            }
            let moved = last > self.sent;
            self.sent = self.sent.max(last);
            self.settle();
            return if moved { Step::More } else { Step::Idle };
        }
        self.status.waiting_since.store(batch.first().map_or(0, time_of), Ordering::Relaxed);
        match self.deliver(&batch).await {
            Ok(taken) => {
                if !self.bury(&batch, &taken.refused).await {
                    return Step::Closed;
                }
                let count = (batch.len() - taken.refused.len()) as u64;
                (self.heard)(News::Sent { sink: &self.config.name, result: "delivered", count });
                self.sent = last;
                self.well();
                self.settle();
                Step::More
            }
            Err(fault) => {
                let taken = fault.taken.min(batch.len());
                if let Some(last) = taken.checked_sub(1).and_then(|at| batch.get(at)) {
                    // It gets on, if slowly: the pauses start anew.
                    self.failures = 0;
                    if !self.bury(&batch, &fault.refused).await {
                        return Step::Closed;
                    }
                    let count = taken.saturating_sub(fault.refused.len()) as u64;
                    (self.heard)(News::Sent { sink: &self.config.name, result: "delivered", count });
                    self.sent = last.sequence;
                }
                // The rest is read again.
                self.reader = Reader::new(&self.folder, self.sent + 1, MAX_LINE);
                self.settle();
                self.failed(&fault.message, fault.retry_after)
            }
        }
    }

    /// Hands a batch over. A target that must not be called off is waited for; meanwhile it counts as failing.
    async fn deliver(&mut self, batch: &[Outgoing]) -> Result<Taken, Fault> {
        let patient = self.target.patient();
        let mut delivery = self.target.deliver(batch);
        match tokio::time::timeout(self.config.timeout, &mut delivery).await {
            Ok(outcome) => outcome,
            Err(_) if patient => {
                self.status.fails(LATE);
                delivery.await
            }
            Err(_) => Err(Fault::new(LATE)),
        }
    }

    /// The next records of this sink, filtered, masked and in their form.
    fn batch(&mut self, upto: u64) -> Result<Vec<Outgoing>, String> {
        let (mut batch, mut bytes, mut filtered) = (Vec::new(), 0, 0_u64);
        while batch.len() < self.config.batch_records && bytes < self.config.batch_bytes && filtered < 10_000 {
            let record = match self.reader.next(upto) {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(error) => return Err(error.to_string()),
            };
            self.note_missing();
            let sequence = record.sequence;
            match self.outgoing(sequence, record.line) {
                Ok(Some(outgoing)) => {
                    bytes += outgoing.encoded.len();
                    batch.push(outgoing);
                }
                Ok(None) => filtered += 1,
                // It has the look of a record from the outside alone: somebody, or the disk, has changed it.
                Err(_) => self.missing.push((sequence, sequence, true)),
            }
        }
        self.note_missing();
        if filtered > 0 {
            (self.heard)(News::Sent { sink: &self.config.name, result: "filtered", count: filtered });
        }
        Ok(batch)
    }

    /// A record as this sink gets it; `None` if it does not.
    fn outgoing(&self, sequence: u64, line: Vec<u8>) -> serde_json::Result<Option<Outgoing>> {
        let config = &self.config;
        // A line that goes out as it is need not be taken apart.
        let as_it_is = config.encoding == Encoding::Ocsf
            && config.mask.is_empty()
            && takes_all(&config.filter)
            && matches!(config.target, SinkTarget::Stdout | SinkTarget::File { .. });
        if as_it_is {
            return Ok(Some(Outgoing { sequence, encoded: line, ..Outgoing::default() }));
        }
        let mut record: Value = serde_json::from_slice(&line)?;
        if !takes(&config.filter, &record) {
            return Ok(None);
        }
        for path in &config.mask {
            remove(&mut record, path);
        }
        let encoded = encode(config.encoding, config.mask.is_empty().then_some(&line), &record);
        let uid = record.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned();
        let time_ms = record.get("time").and_then(Value::as_i64).unwrap_or(0);
        Ok(Some(Outgoing { sequence, uid, time_ms, record, encoded }))
    }

    /// What is certain by now; and what has to be sent again.
    fn settle(&mut self) {
        match self.target.settled() {
            Settled::All => self.settled = self.settled.max(self.sent),
            Settled::UpTo(upto) => self.settled = self.settled.max(upto.min(self.sent)),
            Settled::Broken(upto) => {
                self.settled = self.settled.max(upto.min(self.sent));
                self.sent = self.settled;
                self.reader = Reader::new(&self.folder, self.sent + 1, MAX_LINE);
            }
        }
        self.status.settled.store(self.settled, Ordering::Relaxed);
        self.delivered.reached(&self.config.name, self.settled);
    }

    fn well(&mut self) {
        self.failures = 0;
        if !self.status.healthy.swap(true, Ordering::Relaxed) {
            tracing::info!(sink = self.config.name, "the audit sink takes records again");
        }
    }

    fn failed(&mut self, message: &str, retry_after: Option<Duration>) -> Step {
        self.status.fails(message);
        let most = self.config.retry_max.min(FIRST_PAUSE.saturating_mul(1 << self.failures.min(20)));
        self.failures = self.failures.saturating_add(1);
        // Anywhere up to the pause, so that many do not come at once.
        let jitter = most.mul_f64(fastrand::f64());
        let asked = retry_after.unwrap_or(Duration::ZERO).min(self.config.retry_max);
        Step::Failed(jitter.max(asked))
    }

    /// What the receiver will never have is recorded, put aside and counted. `false`: the trail is closed.
    async fn bury(&mut self, batch: &[Outgoing], refused: &[(usize, String)]) -> bool {
        let count = refused.len() as u64;
        if refused.is_empty() {
            return true;
        }
        if !self.lose("refused", count).await {
            return false;
        }
        let sink = self.config.name.as_str();
        let dead = refused.iter().filter_map(|(at, reason)| Some((batch.get(*at)?, reason.as_str())));
        if let Err(error) = files::bury(&self.folder, sink, dead) {
            tracing::error!(sink, %error, "what an audit sink refused could not be put aside");
        }
        if let Some((_, reason)) = refused.first() {
            tracing::warn!(sink, count, reason, "the audit sink will not have some records");
        }
        (self.heard)(News::Sent { sink, result: "refused", count });
        true
    }

    fn note_missing(&mut self) {
        while let Some((first, last)) = self.reader.take_skipped() {
            self.missing.push((first, last, false));
        }
    }

    /// Numbers that the spool has no more are lost to this sink. `false`: the trail is closed.
    async fn tell_missing(&mut self) -> bool {
        for (first, last, damaged) in std::mem::take(&mut self.missing) {
            // What is read again is not lost again.
            let first = first.max(self.lost_to + 1);
            if first > last {
                continue;
            }
            // Segments go from the oldest on; what is missing further on was damaged.
            let gone = !damaged && oldest(&self.folder).is_ok_and(|oldest| oldest > last);
            let (reason, count) = (if gone { "skipped" } else { "quarantined" }, last - first + 1);
            if !self.lose(reason, count).await {
                return false;
            }
            self.lost_to = last;
            tracing::error!(sink = self.config.name, first, last, reason, "records are lost to an audit sink");
            (self.heard)(News::Sent { sink: &self.config.name, result: "skipped", count });
        }
        true
    }

    /// Records a loss, and counts it. `false`: the trail is closed, and the loss is left for the next start to find again.
    async fn lose(&mut self, reason: &'static str, count: u64) -> bool {
        let place = self.config.name.clone();
        let now = self.clock.now();
        let entry = Entry::Lost(LostEntry { time: now, place, reason, count, since: now });
        match self.trail.write(&entry).await {
            Ok(()) => {}
            Err(AuditError::Closed) => return false,
            Err(error) => tracing::warn!(%error, "what was lost to an audit sink could not be recorded"),
        }
        (self.heard)(News::Lost { place: &self.config.name, reason, count });
        true
    }

    fn save(&mut self, at_once: bool) {
        let monotonic = self.clock.monotonic();
        if self.settled == self.saved || (!at_once && monotonic.saturating_sub(self.saved_at) < SAVE) {
            return;
        }
        self.saved_at = monotonic;
        let cursor = Cursor { chain: self.chain.clone(), sequence: self.settled };
        match files::save(&self.folder, &self.config.name, &cursor) {
            Ok(()) => self.saved = self.settled,
            Err(error) => tracing::warn!(sink = self.config.name, %error, "its cursor could not be written"),
        }
    }
}

enum Step {
    /// There may be more.
    More,
    /// There is nothing to do.
    Idle,
    /// The trail is closed, so that a loss can't be recorded: it ends before the record that is lost.
    Closed,
    /// It went wrong; try again after so long.
    Failed(Duration),
}

/// When a record happened, milliseconds since 1970; also one that goes out without being looked at.
fn time_of(record: &Outgoing) -> i64 {
    if record.time_ms != 0 {
        return record.time_ms;
    }
    let record = serde_json::from_slice::<Value>(&record.encoded).unwrap_or_default();
    record.get("time").and_then(Value::as_i64).unwrap_or(0)
}

/// The oldest record of the spool; 1 when there is none.
fn oldest(folder: &Path) -> std::io::Result<u64> {
    let told = |error: super::reader::ReadError| std::io::Error::other(error.to_string());
    for (_, path) in super::reader::segments(folder).map_err(told)? {
        if let Some(header) = super::reader::header(&path).map_err(told)? {
            return Ok(header.first_sequence);
        }
    }
    Ok(1)
}

fn takes_all(filter: &SinkFilter) -> bool {
    let all = |actions: &[crate::config::ActionPattern]| {
        actions.is_empty() || actions.iter().any(|one| matches!(one, crate::config::ActionPattern::All))
    };
    filter.kinds.is_empty()
        && filter.decisions.is_empty()
        && filter.callers.is_empty()
        && filter.severity <= 1
        && all(&filter.actions)
}

/// Whether a sink gets this record.
fn takes(filter: &SinkFilter, record: &Value) -> bool {
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
    let kind_fits = filter.kinds.is_empty() || filter.kinds.iter().any(|wanted| wanted == kind(record));
    let decision_fits = filter.decisions.is_empty()
        || ending(record).is_none_or(|ending| filter.decisions.iter().any(|wanted| wanted == ending));
    let action_fits = filter.actions.is_empty()
        || text("/api/operation").is_none_or(|action| filter.actions.iter().any(|pattern| pattern.covers(action)));
    let caller_fits = filter.callers.is_empty()
        || text("/actor/app_name").is_none_or(|caller| filter.callers.iter().any(|wanted| wanted == caller));
    let severity = record.get("severity_id").and_then(Value::as_u64).unwrap_or(0);
    kind_fits && decision_fits && action_fits && caller_fits && severity >= u64::from(filter.severity)
}

/// Takes a path out of a record.
fn remove(record: &mut Value, path: &[String]) {
    match (record, path) {
        (Value::Object(members), [last]) => {
            members.remove(last);
        }
        (Value::Object(members), [first, rest @ ..]) => {
            if let Some(inner) = members.get_mut(first) {
                remove(inner, rest);
            }
        }
        // What is masked in a list is masked in each of its items.
        (Value::Array(items), path) => items.iter_mut().for_each(|item| remove(item, path)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
