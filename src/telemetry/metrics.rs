//! The instruments of [`instruments`](super::instruments), ready to use.
//!
//! Each [`Metrics`] has a provider of its own; there are no globals, so many servers can live in one process.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Counter, Gauge, Histogram, Meter, MeterProvider as _, UpDownCounter};
use opentelemetry_otlp::{MetricExporter, WithExportConfig as _};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Stream};
use parking_lot::Mutex;

use self::bound::Bound;
pub use self::bound::Tally;
use super::instruments::*;
pub use super::instruments::{
    Extent, INSTRUMENTS, Instrument, Kind, LABELLED_ACTIONS, Per, prometheus_name, reference_markdown, series_at_most,
};
use super::process::Process;
use super::{EXPORT_TIMEOUT, TelemetryError, resource};
use crate::config::{OtlpConfig, Pattern};

mod bound;

/// Levels that are read when somebody looks rather than reported when they change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// [`Trail::depth`](crate::audit::Trail::depth).
    AuditQueue,
    /// [`Trail::healthy`](crate::audit::Trail::healthy), as 1 or 0.
    AuditHealthy,
    /// Bytes of all segments of the spool.
    AuditSpoolBytes,
    /// Entries of the decision cache.
    DecisionCache,
    /// Entries of the cache of verified tokens.
    TokenCache,
    /// Seconds since the policies in force were taken.
    PolicyAge,
    /// Seconds until the server certificate expires.
    CertificateExpiry,
    /// Seconds since it began to hold.
    CertificateAge,
    /// Whether the folder holds policies that can't be taken, as 1 or 0.
    PolicyRefused,
    /// Whether this process should be sent questions, as 1 or 0.
    Ready,
    /// Places for decisions, as they are set now.
    Places,
    /// The part of calls that is let in: 1 while there is no overload.
    Accepted,
    /// How late a runtime was when it was last looked at, seconds.
    RuntimeLag,
    /// Tasks of all runtimes.
    RuntimeTasks,
    /// Entries of the list of revocations.
    Revocations,
    /// Seconds for which a source of revocations has been out of reach.
    RevocationStaleness,
    /// Seconds until the first certificate revocation list runs out.
    RevocationExpiry,
}

/// How far a sink is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkLevel {
    /// Its name in the configuration.
    pub name: String,
    /// Records that it has not got.
    pub lag: u64,
    /// The age of the oldest of them.
    pub delay: Duration,
    /// Whether the last delivery went well.
    pub healthy: bool,
}

/// What is known at the start: limits, and what there is to be counted.
#[derive(Debug, Clone)]
pub struct Expected {
    /// When the process started, wall time.
    pub started: SystemTime,
    /// `limits.concurrent_decisions`.
    pub decisions: usize,
    /// `limits.connections`.
    pub connections: usize,
    /// `limits.revocations`.
    pub revocations: usize,
    /// `audit.queue`.
    pub queue: usize,
    /// `audit.spool.max_bytes`.
    pub spool_bytes: u64,
    /// The names of the sinks.
    pub sinks: Vec<String>,
}

/// Every instrument, ready to use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    provider: SdkMeterProvider,
    meter: Meter,
    bound: Bound,
    decisions: Counter<u64>,
    decision_duration: Histogram<f64>,
    refused: Counter<u64>,
    stage_duration: Histogram<f64>,
    inflight: UpDownCounter<i64>,
    policy_errors: Counter<u64>,
    policy_reloads: Counter<u64>,
    /// The first digits of the revision in force.
    policy_revision: ArcSwap<String>,
    /// The label values of the actions in force, by the actions' names.
    actions: ArcSwap<HashMap<String, Arc<str>>>,
    /// Every action that ever had a label value of its own: a series stays for as long as the process does.
    labelled: Mutex<BTreeMap<String, Arc<str>>>,
    /// Of every action that has none.
    other: Arc<str>,
    tls_reloads: Counter<u64>,
    connections: UpDownCounter<i64>,
    handshakes_refused: Counter<u64>,
    audit_records: Counter<u64>,
    audit_lost: Counter<u64>,
    audit_sync_duration: Histogram<f64>,
    audit_sink_records: Counter<u64>,
    audit_alerts: Counter<u64>,
    audit_unwatched: Counter<u64>,
    jwks_refreshes: Counter<u64>,
    introspections: Counter<u64>,
    status_list_refreshes: Counter<u64>,
    api_key_reloads: Counter<u64>,
    issuer_ready: Gauge<f64>,
    cache_lookups: Counter<u64>,
    revocation_entries: Counter<u64>,
    admin_calls: Counter<u64>,
}

/// The label value of an action; [`Metrics::action`] alone makes one, so that no text of a caller can be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionLabel(Arc<str>);

impl ActionLabel {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How a question was answered, in words of closed lists.
#[derive(Debug, Clone)]
pub struct Answered {
    /// `Check`, `BatchCheck`, `CheckStream` or `Explain`.
    pub operation: &'static str,
    /// What was asked for.
    pub action: ActionLabel,
    /// `function`, `object` or `field`.
    pub level: &'static str,
    /// `allow`, `deny` or `conditional`.
    pub outcome: &'static str,
    /// A denial code.
    pub denial: Option<&'static str>,
    /// `hit`, `miss` or `bypass`.
    pub cache: &'static str,
    /// From its arrival to its recorded answer.
    pub seconds: f64,
}

impl Answered {
    /// The labels of the count, those of the duration, and the duration in seconds.
    fn labels(self) -> ([KeyValue; 4], [KeyValue; 4], f64) {
        let Self { operation, action, level, outcome, denial, cache, seconds } = self;
        let (level, outcome) = (KeyValue::new("level", level), KeyValue::new("outcome", outcome));
        let denial = KeyValue::new("denial", denial.unwrap_or("none"));
        let counted = [KeyValue::new("action", action.0), level.clone(), outcome.clone(), denial];
        let timed = [KeyValue::new("operation", operation), level, outcome, KeyValue::new("cache", cache)];
        (counted, timed, seconds)
    }
}

/// Counts one thing as there until it is dropped.
#[must_use = "it counts only while it lives"]
#[derive(Debug)]
pub struct Present(UpDownCounter<i64>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.add(-1, &[]);
    }
}

impl Metrics {
    /// Instruments with a provider and a registry of their own. With `otlp` they are pushed too, and this has to be
    /// called inside a tokio runtime that outlives them.
    ///
    /// # Errors
    /// [`TelemetryError`] when an exporter can't be made.
    pub fn new(otlp: Option<&OtlpConfig>) -> Result<(Self, prometheus::Registry), TelemetryError> {
        let registry = prometheus::Registry::new();
        let pull = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(TelemetryError::Registry)?;
        let mut provider =
            SdkMeterProvider::builder().with_resource(resource()).with_reader(pull).with_view(kept_within_its_bound);
        if let Some(otlp) = otlp {
            let exporter = MetricExporter::builder()
                .with_tonic()
                .with_endpoint(otlp.endpoint.as_str())
                .with_timeout(EXPORT_TIMEOUT)
                .build()?;
            provider = provider.with_reader(PeriodicReader::builder(exporter).with_interval(otlp.interval).build());
        }
        Ok((Self::over(provider.build()), registry))
    }

    fn over(provider: SdkMeterProvider) -> Self {
        let meter = provider.meter("gatepost");
        let counter = |what: Instrument| {
            meter.u64_counter(what.name).with_unit(what.unit).with_description(what.description).build()
        };
        let histogram = |what: Instrument| {
            meter
                .f64_histogram(what.name)
                .with_unit(what.unit)
                .with_description(what.description)
                .with_boundaries(BUCKETS.to_vec())
                .build()
        };
        let level = |what: Instrument| {
            meter.i64_up_down_counter(what.name).with_unit(what.unit).with_description(what.description).build()
        };
        let gauge = |what: Instrument| {
            meter.f64_gauge(what.name).with_unit(what.unit).with_description(what.description).build()
        };
        // A build that knows its commit says so in its environment; one from a plain folder does not know it.
        let commit = option_env!("GATEPOST_BUILD_REVISION").unwrap_or("unknown");
        let build = [KeyValue::new("version", env!("CARGO_PKG_VERSION")), KeyValue::new("revision", commit)];
        gauge(BUILD_INFO).record(1.0, &build);
        let (stage_duration, audit_records) = (histogram(STAGE_DURATION), counter(AUDIT_RECORDS));
        let cache_lookups = counter(CACHE_LOOKUPS);
        let inner = Inner {
            bound: Bound::new(&stage_duration, &audit_records, &cache_lookups),
            decisions: counter(DECISIONS),
            decision_duration: histogram(DECISION_DURATION),
            refused: counter(REFUSED),
            stage_duration,
            inflight: level(INFLIGHT),
            policy_errors: counter(POLICY_ERRORS),
            policy_reloads: counter(POLICY_RELOADS),
            policy_revision: ArcSwap::default(),
            actions: ArcSwap::default(),
            labelled: Mutex::default(),
            other: Arc::from("other"),
            tls_reloads: counter(TLS_RELOADS),
            connections: level(CONNECTIONS),
            handshakes_refused: counter(HANDSHAKES_REFUSED),
            audit_records,
            audit_lost: counter(AUDIT_LOST),
            audit_sync_duration: histogram(AUDIT_SYNC_DURATION),
            audit_sink_records: counter(AUDIT_SINK_RECORDS),
            audit_alerts: counter(AUDIT_ALERTS),
            audit_unwatched: counter(AUDIT_UNWATCHED),
            jwks_refreshes: counter(JWKS_REFRESHES),
            introspections: counter(INTROSPECTIONS),
            status_list_refreshes: counter(STATUS_LIST_REFRESHES),
            api_key_reloads: counter(API_KEY_RELOADS),
            issuer_ready: gauge(ISSUER_READY),
            cache_lookups,
            revocation_entries: counter(REVOCATION_ENTRIES),
            admin_calls: counter(ADMIN_CALLS),
            provider,
            meter,
        };
        let metrics = Self { inner: Arc::new(inner) };
        // Read rather than reported: of what is not in force any more there is no series.
        let weak = Arc::downgrade(&metrics.inner);
        metrics.observe(POLICY_INFO, move |observer| {
            let revision = weak.upgrade().map(|inner| inner.policy_revision.load_full());
            if let Some(revision) = revision.filter(|revision| !revision.is_empty()) {
                observer.observe(1.0, &[KeyValue::new("revision", revision.as_str().to_owned())]);
            }
        });
        metrics
    }

    /// The limits that levels are held against, and a zero for everything that should never be counted: that something rose
    /// can only be told of what was there before.
    pub fn expect(&self, expected: &Expected) {
        let started = expected.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        let limits = [
            (INFLIGHT_LIMIT, expected.decisions as f64),
            (CONNECTIONS_LIMIT, expected.connections as f64),
            (AUDIT_QUEUE_LIMIT, expected.queue as f64),
            (AUDIT_SPOOL_LIMIT, expected.spool_bytes as f64),
            (REVOCATIONS_LIMIT, expected.revocations as f64),
            (PROCESS_START, started.as_secs_f64()),
        ];
        for (instrument, value) in limits {
            self.observe(instrument, move |observer| observer.observe(value, &[]));
        }
        for result in RECORD_RESULTS {
            self.inner.audit_records.add(0, &[KeyValue::new("result", result)]);
        }
        for reason in TRAIL_LOSSES {
            self.audit_lost("trail", reason, 0);
        }
        for (sink, reason) in expected.sinks.iter().flat_map(|sink| SINK_LOSSES.map(|reason| (sink, reason))) {
            self.audit_lost(sink, reason, 0);
        }
        for class in CLASSES {
            self.inner.policy_errors.add(0, &[KeyValue::new("class", class)]);
        }
        for pattern in Pattern::ALL {
            self.inner.audit_alerts.add(0, &[KeyValue::new("pattern", pattern.as_str())]);
        }
        self.audit_unwatched(0);
        for ok in [true, false] {
            self.inner.policy_reloads.add(0, &[result(ok)]);
            self.inner.tls_reloads.add(0, &[result(ok)]);
        }
        for (source, result) in ["admin", "file", "redis"]
            .into_iter()
            .flat_map(|source| ["taken", "malformed", "full"].map(|result| (source, result)))
        {
            self.revocation_entries(source, result, 0);
        }
    }

    /// Reads what the system says of this process from `read` whenever somebody looks. Call it once.
    pub fn watch_process(&self, read: impl Fn() -> Process + Send + Sync + 'static) {
        let read: Arc<dyn Fn() -> Process + Send + Sync> = Arc::new(read);
        type Value = fn(&Process) -> Option<u64>;
        let gauges: [(Instrument, Value); 4] = [
            (PROCESS_MEMORY, |process| process.memory),
            (PROCESS_MEMORY_LIMIT, |process| process.memory_limit),
            (PROCESS_DESCRIPTORS, |process| process.descriptors),
            (PROCESS_DESCRIPTORS_LIMIT, |process| process.descriptors_limit),
        ];
        for (instrument, value) in gauges {
            let read = Arc::clone(&read);
            #[expect(clippy::cast_precision_loss, reason = "a gauge")]
            self.observe(instrument, move |observer| {
                if let Some(value) = value(&read()) {
                    observer.observe(value as f64, &[]);
                }
            });
        }
    }

    /// A question was answered.
    pub fn decision(&self, answered: Answered) {
        let (counted, timed, seconds) = answered.labels();
        self.inner.decisions.add(1, &counted);
        self.inner.decision_duration.record(seconds, &timed);
    }

    /// These are the actions of the schema in force. They get label values in the order of their names, so that replicas
    /// agree, until [`LABELLED_ACTIONS`] have one.
    pub fn actions_in_force<'a>(&self, actions: impl Iterator<Item = &'a str>) {
        let mut names: Vec<&str> = actions.collect();
        names.sort_unstable();
        let mut labelled = self.inner.labelled.lock();
        let mut in_force = HashMap::with_capacity(names.len());
        for name in names {
            let label = match labelled.get(name) {
                Some(label) => Arc::clone(label),
                None if labelled.len() < LABELLED_ACTIONS => {
                    let label: Arc<str> = Arc::from(name);
                    labelled.insert(name.to_owned(), Arc::clone(&label));
                    label
                }
                None => Arc::clone(&self.inner.other),
            };
            in_force.insert(name.to_owned(), label);
        }
        self.inner.actions.store(Arc::new(in_force));
    }

    /// The label value of an action, whatever text it is: its own when the schema in force has it, else `other`.
    #[must_use]
    pub fn action(&self, asked: Option<&str>) -> ActionLabel {
        let in_force = self.inner.actions.load();
        let label = asked.and_then(|asked| in_force.get(asked));
        ActionLabel(Arc::clone(label.unwrap_or(&self.inner.other)))
    }

    /// A look into a cache: `decisions`, `tokens` or `introspections`; `hit`, `miss` or `bypass`.
    pub fn cache_lookup(&self, cache: &'static str, result: &'static str) {
        match self.inner.bound.lookup(cache, result) {
            Some(bound) => bound.add(1),
            None => {
                self.inner.cache_lookups.add(1, &[KeyValue::new("cache", cache), KeyValue::new("result", result)]);
            }
        }
    }

    /// A call ended without a decision. Both are of closed lists.
    pub fn refused(&self, status: &'static str, reason: &'static str) {
        self.inner.refused.add(1, &[KeyValue::new("status", status), KeyValue::new("reason", reason)]);
    }

    /// One stage took this long: `admit`, `token`, `request`, `ruling` or `record`.
    pub fn stage(&self, stage: &'static str, seconds: f64) {
        match self.inner.bound.stage(stage) {
            Some(bound) => bound.record(seconds),
            None => self.inner.stage_duration.record(seconds, &[KeyValue::new("stage", stage)]),
        }
    }

    /// A question is being worked on, until what this returns is dropped.
    pub fn inflight(&self) -> Present {
        self.inner.inflight.add(1, &[]);
        Present(self.inner.inflight.clone())
    }

    /// A policy could not be evaluated.
    pub fn policy_error(&self, class: &'static str) {
        self.inner.policy_errors.add(1, &[KeyValue::new("class", class)]);
    }

    /// A changed bundle was taken, or not.
    pub fn policy_reload(&self, ok: bool) {
        self.inner.policy_reloads.add(1, &[result(ok)]);
    }

    /// `revision` (its first twelve digits) is in force now.
    pub fn policy_revision(&self, revision: &str) {
        self.inner.policy_revision.store(Arc::new(revision.to_owned()));
    }

    /// Changed TLS files were taken, or not.
    pub fn tls_reload(&self, ok: bool) {
        self.inner.tls_reloads.add(1, &[result(ok)]);
    }

    /// A connection is open, until what this returns is dropped.
    pub fn connection(&self) -> Present {
        self.inner.connections.add(1, &[]);
        Present(self.inner.connections.clone())
    }

    /// A TLS handshake was refused, for a reason from a closed list.
    pub fn handshake_refused(&self, reason: &'static str) {
        self.inner.handshakes_refused.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// What became of a record: `written`, `queue_full`, `timed_out`, `too_large` or `failed`.
    pub fn audit_record(&self, result: &'static str) {
        match self.inner.bound.record(result) {
            Some(bound) => bound.add(1),
            None => self.inner.audit_records.add(1, &[KeyValue::new("result", result)]),
        }
    }

    /// So many records never arrived, at the trail or at a sink (one of the configuration), for a reason from a closed list.
    pub fn audit_lost(&self, place: &str, reason: &'static str, count: u64) {
        let labels = [KeyValue::new("where", place.to_owned()), KeyValue::new("reason", reason)];
        self.inner.audit_lost.add(count, &labels);
    }

    /// The disk kept what was written before, after so many seconds.
    pub fn audit_sync(&self, seconds: f64) {
        self.inner.audit_sync_duration.record(seconds, &[]);
    }

    /// What became of so many records at a sink (one of the configuration).
    pub fn audit_sink(&self, sink: &str, result: &'static str, count: u64) {
        let labels = [KeyValue::new("sink", sink.to_owned()), KeyValue::new("result", result)];
        self.inner.audit_sink_records.add(count, &labels);
    }

    /// An unusual pattern, of a closed list, was recorded.
    pub fn audit_alert(&self, pattern: &'static str) {
        self.inner.audit_alerts.add(1, &[KeyValue::new("pattern", pattern)]);
    }

    /// So many calls were not looked at for unusual patterns.
    pub fn audit_unwatched(&self, count: u64) {
        self.inner.audit_unwatched.add(count, &[]);
    }

    /// The keys of an issuer (one of the configuration) were fetched, or could not be.
    pub fn jwks_refresh(&self, issuer: &str, ok: bool) {
        let result = KeyValue::new("result", if ok { "ok" } else { "failed" });
        self.inner.jwks_refreshes.add(1, &[KeyValue::new("issuer", issuer.to_owned()), result]);
    }

    /// An introspection of a token of this issuer (one of the configuration) ended with a result from a closed list.
    pub fn introspection(&self, issuer: &str, result: &'static str) {
        let labels = [KeyValue::new("issuer", issuer.to_owned()), KeyValue::new("result", result)];
        self.inner.introspections.add(1, &labels);
    }

    /// A status list of an issuer (one of the configuration) was fetched, or could not be.
    pub fn status_list_refresh(&self, issuer: &str, ok: bool) {
        let result = KeyValue::new("result", if ok { "ok" } else { "failed" });
        self.inner.status_list_refreshes.add(1, &[KeyValue::new("issuer", issuer.to_owned()), result]);
    }

    /// A changed file of API keys was taken, or not.
    pub fn api_key_reload(&self, ok: bool) {
        self.inner.api_key_reloads.add(1, &[result(ok)]);
    }

    /// Whether the keys of an issuer (one of the configuration) are at hand.
    pub fn issuer_ready(&self, issuer: &str, ready: bool) {
        self.inner.issuer_ready.record(f64::from(u8::from(ready)), &[KeyValue::new("issuer", issuer.to_owned())]);
    }

    /// So many revocations came from `source`, and this became of them. Both are of closed lists.
    pub fn revocation_entries(&self, source: &'static str, result: &'static str, count: usize) {
        let labels = [KeyValue::new("source", source), KeyValue::new("result", result)];
        self.inner.revocation_entries.add(count.try_into().unwrap_or(u64::MAX), &labels);
    }

    /// An operator called. Both are of closed lists.
    pub fn admin_call(&self, method: &'static str, status: &'static str) {
        self.inner.admin_calls.add(1, &[KeyValue::new("method", method), KeyValue::new("status", status)]);
    }

    /// Reads `what` from `read` whenever somebody looks. Call it once for each; `read` must be quick.
    pub fn watch(&self, what: Watched, read: impl Fn() -> f64 + Send + Sync + 'static) {
        let (instrument, labels) = match what {
            Watched::AuditQueue => (AUDIT_QUEUE, vec![]),
            Watched::AuditHealthy => (AUDIT_HEALTHY, vec![]),
            Watched::AuditSpoolBytes => (AUDIT_SPOOL_BYTES, vec![]),
            Watched::DecisionCache => (CACHE_ENTRIES, vec![KeyValue::new("cache", "decisions")]),
            Watched::TokenCache => (CACHE_ENTRIES, vec![KeyValue::new("cache", "tokens")]),
            Watched::PolicyAge => (POLICY_AGE, vec![]),
            Watched::CertificateExpiry => (CERTIFICATE_EXPIRY, vec![]),
            Watched::CertificateAge => (CERTIFICATE_AGE, vec![]),
            Watched::PolicyRefused => (POLICY_REFUSED, vec![]),
            Watched::Ready => (READY, vec![]),
            Watched::Places => (PLACES, vec![]),
            Watched::Accepted => (ACCEPTED, vec![]),
            Watched::RuntimeLag => (RUNTIME_LAG, vec![]),
            Watched::RuntimeTasks => (RUNTIME_TASKS, vec![]),
            Watched::Revocations => (REVOCATIONS, vec![]),
            Watched::RevocationStaleness => (REVOCATION_STALENESS, vec![]),
            Watched::RevocationExpiry => (REVOCATION_EXPIRY, vec![]),
        };
        self.observe(instrument, move |observer| observer.observe(read(), &labels));
    }

    /// Has a gauge read by this whenever somebody looks.
    fn observe(&self, instrument: Instrument, callback: impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static) {
        // The provider keeps the callback; the handle is worth nothing.
        let _ = self
            .inner
            .meter
            .f64_observable_gauge(instrument.name)
            .with_unit(instrument.unit)
            .with_description(instrument.description)
            .with_callback(callback)
            .build();
    }

    /// Reads how far each sink is from `read` whenever somebody looks. Call it once; `read` must be quick.
    pub fn watch_sinks(&self, read: impl Fn() -> Vec<SinkLevel> + Send + Sync + 'static) {
        let read: Arc<dyn Fn() -> Vec<SinkLevel> + Send + Sync> = Arc::new(read);
        type Value = fn(&SinkLevel) -> f64;
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        let gauges: [(Instrument, Value); 3] = [
            (AUDIT_SINK_LAG, |level| level.lag as f64),
            (AUDIT_SINK_DELAY, |level| level.delay.as_secs_f64()),
            (AUDIT_SINK_HEALTHY, |level| f64::from(u8::from(level.healthy))),
        ];
        for (instrument, value) in gauges {
            let read = Arc::clone(&read);
            self.observe(instrument, move |observer| {
                for level in read() {
                    observer.observe(value(&level), &[KeyValue::new("sink", level.name)]);
                }
            });
        }
    }

    /// Reads the age of each issuer's keys, in seconds, from `read` whenever somebody looks. Call it once.
    pub fn watch_key_ages(&self, read: impl Fn() -> Vec<(String, f64)> + Send + Sync + 'static) {
        self.observe(ISSUER_KEYS_AGE, move |observer| {
            for (issuer, seconds) in read() {
                observer.observe(seconds, &[KeyValue::new("issuer", issuer)]);
            }
        });
    }

    /// Sends what is still waiting. Blocks for `within` at most.
    pub(super) fn shutdown(&self, within: Duration) {
        // Nobody is left to tell.
        let _ = self.inner.provider.shutdown_with_timeout(within);
    }
}

/// The closed lists keep series within their bound; should one of them leak, the library puts what is too much into one
/// series and goes on. What depends on the configuration keeps the library's own limit, 2000.
fn kept_within_its_bound(of: &opentelemetry_sdk::metrics::Instrument) -> Option<Stream> {
    /// The one from before is still remembered while the next is read.
    const SPARE: usize = 8;
    let instrument = INSTRUMENTS.iter().find(|instrument| instrument.name == of.name())?;
    let most = match instrument.per {
        Per::Process => instrument.most,
        Per::Action => instrument.most * (LABELLED_ACTIONS + 1),
        Per::Issuer | Per::Sink => return None,
    };
    Stream::builder().with_cardinality_limit(most + SPARE).build().ok()
}

fn result(ok: bool) -> KeyValue {
    KeyValue::new("result", if ok { "ok" } else { "refused" })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn answered(action: ActionLabel, denial: Option<&'static str>) -> Answered {
        Answered {
            operation: "Check",
            action,
            level: "object",
            outcome: "deny",
            denial,
            cache: "miss",
            seconds: 0.000_2,
        }
    }

    /// The label values of a family, sorted.
    fn values(registry: &prometheus::Registry, family: &str, label: &str) -> Vec<String> {
        let families = registry.gather();
        let family = families.iter().find(|one| one.name() == family);
        let labels = family.iter().flat_map(|family| family.get_metric()).flat_map(|metric| metric.get_label());
        let values: BTreeSet<_> = labels.filter(|one| one.name() == label).map(|one| one.value().to_owned()).collect();
        values.into_iter().collect()
    }

    fn exercised() -> prometheus::Registry {
        let (metrics, registry) = Metrics::new(None).unwrap();
        metrics.actions_in_force(["Order.read"].into_iter());
        metrics.decision(answered(metrics.action(Some("Order.read")), Some("NO_PERMIT")));
        metrics.decision(answered(metrics.action(Some("Order.raed")), None));
        metrics.cache_lookup("decisions", "hit");
        metrics.expect(&Expected {
            started: SystemTime::UNIX_EPOCH,
            decisions: 1,
            connections: 2,
            revocations: 3,
            queue: 4,
            spool_bytes: 5,
            sinks: vec!["siem".to_owned()],
        });
        metrics.watch_process(|| Process {
            memory: Some(1),
            memory_limit: Some(2),
            descriptors: Some(3),
            descriptors_limit: Some(4),
        });
        metrics.refused("PERMISSION_DENIED", "CALLER_NOT_ENROLLED");
        metrics.stage("admit", 0.000_1);
        metrics.policy_error("attribute_missing");
        metrics.policy_reload(true);
        metrics.policy_revision("bbbbbbbbbbbb");
        metrics.tls_reload(false);
        metrics.handshake_refused("NO_CERTIFICATE");
        metrics.audit_record("written");
        metrics.audit_lost("siem", "refused", 2);
        metrics.audit_sync(0.000_2);
        metrics.audit_sink("siem", "delivered", 2);
        metrics.audit_alert("ENUM_SEQUENTIAL");
        metrics.audit_unwatched(3);
        let level = SinkLevel { name: "siem".to_owned(), lag: 1, delay: Duration::from_secs(1), healthy: true };
        metrics.watch_sinks(move || vec![level.clone()]);
        metrics.jwks_refresh("https://issuer.test", true);
        metrics.introspection("https://issuer.test", "active");
        metrics.status_list_refresh("https://issuer.test", true);
        metrics.api_key_reload(true);
        metrics.issuer_ready("https://issuer.test", true);
        metrics.watch_key_ages(|| vec![("https://issuer.test".to_owned(), 1.0)]);
        metrics.revocation_entries("file", "malformed", 2);
        metrics.admin_call("RevokeToken", "OK");
        drop((metrics.inflight(), metrics.connection()));
        for what in [
            Watched::AuditQueue,
            Watched::AuditHealthy,
            Watched::AuditSpoolBytes,
            Watched::DecisionCache,
            Watched::TokenCache,
            Watched::PolicyAge,
            Watched::CertificateExpiry,
            Watched::Revocations,
            Watched::RevocationStaleness,
            Watched::RevocationExpiry,
            Watched::CertificateAge,
            Watched::PolicyRefused,
            Watched::Ready,
            Watched::Places,
            Watched::Accepted,
            Watched::RuntimeLag,
            Watched::RuntimeTasks,
        ] {
            metrics.watch(what, || 1.0);
        }
        // The registry holds the reader; the provider may go.
        std::mem::forget(metrics);
        registry
    }

    #[test]
    fn the_list_is_what_prometheus_shows_names_labels_and_help() {
        let shown: BTreeMap<String, (BTreeSet<String>, String)> = exercised()
            .gather()
            .iter()
            .map(|family| {
                let labels = family.get_metric().iter().flat_map(|metric| metric.get_label());
                let names = labels.map(|label| label.name().to_owned()).collect();
                (family.name().to_owned(), (names, family.help().to_owned()))
            })
            .collect();
        let listed: BTreeMap<String, (BTreeSet<String>, String)> = INSTRUMENTS
            .iter()
            .map(|instrument| {
                let labels = instrument.labels.iter().map(|(name, _)| (*name).to_owned()).collect();
                (prometheus_name(instrument), (labels, instrument.description.to_owned()))
            })
            .collect();
        assert_eq!(shown, listed);
    }

    #[test]
    fn only_actions_of_the_schema_are_labels_and_no_more_of_them_than_have_room() {
        let (metrics, registry) = Metrics::new(None).unwrap();
        let ask = |action: &str| metrics.decision(answered(metrics.action(Some(action)), None));
        ask("Order.read");
        assert_eq!(values(&registry, "gatepost_decisions_total", "action"), ["other"], "before there is a schema");
        metrics.actions_in_force(["Order.read", "Order.cancel"].into_iter());
        ask("Order.read");
        ask("Order.raed");
        metrics.decision(answered(metrics.action(None), None));
        assert_eq!(values(&registry, "gatepost_decisions_total", "action"), ["Order.read", "other"]);

        // As many reloads as somebody likes, each with actions of new names.
        for reload in 0..10 {
            let names: Vec<String> = (0..LABELLED_ACTIONS).map(|one| format!("R{reload}.a{one}")).collect();
            metrics.actions_in_force(names.iter().map(String::as_str));
            names.iter().for_each(|name| ask(name));
        }
        let labels = values(&registry, "gatepost_decisions_total", "action");
        // `Order.cancel` has its label and was never asked for.
        assert_eq!(labels.len(), LABELLED_ACTIONS, "and `other` among them");
        ask("Order.read");
        assert_eq!(metrics.action(Some("Order.read")).as_str(), "other", "it is not of the schema any more");
        assert!(values(&registry, "gatepost_decisions_total", "otel_metric_overflow").is_empty());
    }

    #[test]
    fn a_revision_that_is_not_in_force_any_more_has_no_series() {
        let (metrics, registry) = Metrics::new(None).unwrap();
        for revision in ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"] {
            metrics.policy_revision(revision);
            assert_eq!(values(&registry, "gatepost_policy_info", "revision"), [revision]);
        }
    }

    /// What leaks all the same ends in one series instead of in thousands.
    #[test]
    fn more_label_values_than_there_can_be_end_in_one_series() {
        let (metrics, registry) = Metrics::new(None).unwrap();
        for number in 0..1000 {
            metrics.inner.refused.add(1, &[KeyValue::new("reason", format!("r-{number}"))]);
        }
        let families = registry.gather();
        let refused = families.iter().find(|family| family.name() == "gatepost_refused_total").unwrap();
        assert!(refused.get_metric().len() < 30, "{}", refused.get_metric().len());
        let all: f64 = refused.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum();
        assert!((all - 1000.0).abs() < f64::EPSILON, "and none is lost: {all}");
    }

    #[test]
    fn two_servers_in_one_process_count_for_themselves() {
        let (one, ones) = Metrics::new(None).unwrap();
        let (_two, twos) = Metrics::new(None).unwrap();
        let open = one.connection();
        let connections = |registry: &prometheus::Registry| {
            let families = registry.gather();
            let family = families.into_iter().find(|family| family.name() == "gatepost_connections");
            family.map(|family| family.get_metric()[0].get_gauge().get_value())
        };
        assert_eq!(connections(&ones), Some(1.0));
        assert_eq!(connections(&twos), None);
        drop(open);
        assert_eq!(connections(&ones), Some(0.0));
    }

    #[test]
    fn the_reference_has_a_row_for_each_instrument() {
        let page = reference_markdown();
        assert_eq!(page.lines().count(), INSTRUMENTS.len() + 2);
        assert!(page.lines().all(|line| line.matches('|').count() == 8), "{page}");
    }
}
