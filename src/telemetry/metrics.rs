//! Every instrument Gatepost has, in one list: [`INSTRUMENTS`]. The reference page is written from it.
//!
//! A label's value comes from a closed list in our code or from the configuration, never from a caller. Each
//! [`Metrics`] has a provider of its own; there are no globals, so many servers can live in one process.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Counter, Gauge, Histogram, Meter, MeterProvider as _, UpDownCounter};
use opentelemetry_otlp::{MetricExporter, WithExportConfig as _};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};

use super::{EXPORT_TIMEOUT, TelemetryError, resource};
use crate::config::OtlpConfig;

/// How an instrument counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One instrument: everything that is to be known about it.
#[derive(Debug, Clone, Copy)]
pub struct Instrument {
    /// The OpenTelemetry name.
    pub name: &'static str,
    /// How it counts.
    pub kind: Kind,
    /// UCUM: `s`, `{decision}`.
    pub unit: &'static str,
    /// What it tells.
    pub description: &'static str,
    /// Labels, each with where its values come from.
    pub labels: &'static [(&'static str, &'static str)],
}

const OPERATION: (&str, &str) = ("operation", "`Check`, `BatchCheck`");
const LEVEL: (&str, &str) = ("level", "`function`, `object`, `field`");
const OUTCOME: (&str, &str) = ("outcome", "`allow`, `deny`, `conditional`");
const SINK: (&str, &str) = ("sink", "a sink of the configuration");
const CACHE: (&str, &str) = ("cache", "`hit`, `miss`, `bypass`");

macro_rules! instruments {
    ($($constant:ident = $name:literal, $kind:ident, $unit:literal, [$($label:expr),*], $description:literal;)*) => {
        $(const $constant: Instrument = Instrument {
            name: $name,
            kind: Kind::$kind,
            unit: $unit,
            description: $description,
            labels: &[$($label),*],
        };)*

        /// Every instrument, in the order of the reference page.
        pub const INSTRUMENTS: &[Instrument] = &[$($constant),*];
    };
}

instruments! {
    DECISIONS = "gatepost.decisions", Counter, "{decision}",
        [OPERATION, LEVEL, OUTCOME, ("denial", "a denial code, or `none`"), CACHE],
        "Questions that were answered with a decision.";
    DECISION_DURATION = "gatepost.decision.duration", Histogram, "s", [OPERATION, LEVEL, OUTCOME, CACHE],
        "From the arrival of a question to its recorded answer.";
    REFUSED = "gatepost.refused", Counter, "{call}",
        [("status", "a gRPC status"), ("reason", "a reason of the error reference")],
        "Calls that ended without a decision, by our choice or our fault.";
    STAGE_DURATION = "gatepost.stage.duration", Histogram, "s",
        [("stage", "`admit`, `token`, `request`, `ruling`, `record`")],
        "Time spent in one stage of the decision path.";
    INFLIGHT = "gatepost.decisions.inflight", Gauge, "{decision}", [], "Questions being worked on.";
    POLICY_ERRORS = "gatepost.policy.errors", Counter, "{error}", [("class", "a class of evaluation error")],
        "Policies that could not be evaluated. Each one is a policy or a schema to mend.";
    POLICY_RELOADS = "gatepost.policy.reloads", Counter, "{reload}", [("result", "`ok`, `refused`")],
        "Changed bundles that were looked at.";
    POLICY_INFO = "gatepost.policy.info", Gauge, "", [("revision", "the first twelve digits of a policy revision")],
        "1 for the revision in force, 0 for the ones before it.";
    POLICY_AGE = "gatepost.policy.age", Gauge, "s", [], "How long the revision has been in force.";
    TLS_RELOADS = "gatepost.tls.reloads", Counter, "{reload}", [("result", "`ok`, `refused`")],
        "Changed certificates, keys and authorities that were looked at.";
    CERTIFICATE_EXPIRY = "gatepost.tls.certificate.expiry", Gauge, "s", [],
        "Seconds until the first of the listeners' certificates expires; negative once it has.";
    REVOCATION_EXPIRY = "gatepost.tls.revocation.expiry", Gauge, "s", [],
        "Seconds until the first certificate revocation list of a listener runs out; negative once it has, and its \
        issuer's clients are refused.";
    CONNECTIONS = "gatepost.connections", Gauge, "{connection}", [], "Connections that are open.";
    HANDSHAKES_REFUSED = "gatepost.handshakes.refused", Counter, "{handshake}",
        [("reason", "a reason of the error reference")],
        "TLS handshakes that were refused.";
    AUDIT_RECORDS = "gatepost.audit.records", Counter, "{record}",
        [("result", "`written`, `queue_full`, `timed_out`, `too_large`, `failed`")],
        "Audit records by what became of them. Anything but `written` is an answer that did not leave.";
    AUDIT_QUEUE = "gatepost.audit.queue", Gauge, "{record}", [], "Audit records waiting to be written.";
    AUDIT_HEALTHY = "gatepost.audit.healthy", Gauge, "", [], "1 while audit records get out.";
    AUDIT_LOST = "gatepost.audit.lost", Counter, "{record}",
        [
            ("where", "`trail`, or the name of a sink"),
            ("reason", "`queue_full`, `failed`, `quarantined` of the trail; `refused`, `skipped`, `quarantined` of a sink")
        ],
        "Records that never arrived, whatever the reason.";
    AUDIT_SYNC_DURATION = "gatepost.audit.sync.duration", Histogram, "s", [],
        "How long the disk takes to keep what was written.";
    AUDIT_SPOOL_BYTES = "gatepost.audit.spool.size", Gauge, "By", [], "All segments of the spool together.";
    AUDIT_SINK_RECORDS = "gatepost.audit.sink.records", Counter, "{record}",
        [SINK, ("result", "`delivered`, `filtered`, `refused`, `skipped`")],
        "Records by what became of them at a sink. `refused`: it would not have them, ever; `skipped`: the spool was full.";
    AUDIT_SINK_LAG = "gatepost.audit.sink.lag", Gauge, "{record}", [SINK], "Records that a sink has not got yet.";
    AUDIT_SINK_DELAY = "gatepost.audit.sink.delay", Gauge, "s", [SINK],
        "The age of the oldest record that a sink has not got yet; 0 when it has all.";
    AUDIT_SINK_HEALTHY = "gatepost.audit.sink.healthy", Gauge, "", [SINK], "1 while the last delivery to a sink went well.";
    AUDIT_ALERTS = "gatepost.audit.alerts", Counter, "{alert}", [("pattern", "a pattern of docs/audit.md")],
        "Unusual patterns that were recorded.";
    AUDIT_UNWATCHED = "gatepost.audit.unwatched", Counter, "{call}", [],
        "Calls that were not looked at for unusual patterns, because too many waited for it. They are recorded all the same.";
    JWKS_REFRESHES = "gatepost.jwks.refreshes", Counter, "{refresh}",
        [("issuer", "an issuer of the configuration"), ("result", "`ok`, `failed`")],
        "Attempts to fetch or read an issuer's keys.";
    INTROSPECTIONS = "gatepost.introspections", Counter, "{introspection}",
        [("issuer", "an issuer of the configuration"), ("result", "`active`, `inactive`, `rejected`, `failed`, `shed`")],
        "Questions to an authorization server about opaque tokens. `rejected`: active, but not for us; `shed`: not asked or not waited for, too many were.";
    STATUS_LIST_REFRESHES = "gatepost.status_list.refreshes", Counter, "{refresh}",
        [("issuer", "an issuer of the configuration"), ("result", "`ok`, `failed`")],
        "Attempts to fetch an issuer's token status lists.";
    API_KEY_RELOADS = "gatepost.api_keys.reloads", Counter, "{reload}", [("result", "`ok`, `refused`")],
        "Changed files of API keys that were looked at.";
    ISSUER_READY = "gatepost.issuer.ready", Gauge, "", [("issuer", "an issuer of the configuration")],
        "1 while the issuer's keys are at hand.";
    ISSUER_KEYS_AGE = "gatepost.issuer.keys.age", Gauge, "s", [("issuer", "an issuer of the configuration")],
        "How long ago the issuer's keys were last seen to be its own; nothing before they first were.";
    CACHE_ENTRIES = "gatepost.cache.entries", Gauge, "{entry}", [("cache", "`decisions`, `tokens`")],
        "Entries of a cache.";
    REVOCATIONS = "gatepost.revocations", Gauge, "{revocation}", [], "Revocations in force.";
    REVOCATION_ENTRIES = "gatepost.revocation.entries", Counter, "{entry}",
        [("source", "`admin`, `file`, `redis`"), ("result", "`taken`, `malformed`, `full`")],
        "Revocations by where they came from and what became of them. `malformed` and `full` revoke nothing.";
    REVOCATION_STALENESS = "gatepost.revocation.staleness", Gauge, "s", [],
        "How long the file or the store of revocations has been out of reach; 0 while all is well.";
    ADMIN_CALLS = "gatepost.admin.calls", Counter, "{call}",
        [("method", "a method of the admin listener, or `unknown`"), ("status", "a gRPC status")],
        "Operators' calls.";
    BUILD_INFO = "gatepost.build.info", Gauge, "", [("version", "Gatepost's version")], "Always 1.";
}

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

/// Every instrument, ready to use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    provider: SdkMeterProvider,
    meter: Meter,
    decisions: Counter<u64>,
    decision_duration: Histogram<f64>,
    refused: Counter<u64>,
    stage_duration: Histogram<f64>,
    inflight: UpDownCounter<i64>,
    policy_errors: Counter<u64>,
    policy_reloads: Counter<u64>,
    policy_info: Gauge<f64>,
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
    revocation_entries: Counter<u64>,
    admin_calls: Counter<u64>,
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

/// Seconds: from a cache hit to a call that hit its deadline.
const BUCKETS: [f64; 16] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0,
];

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
        let mut provider = SdkMeterProvider::builder().with_resource(resource()).with_reader(pull);
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
        gauge(BUILD_INFO).record(1.0, &[KeyValue::new("version", env!("CARGO_PKG_VERSION"))]);
        let inner = Inner {
            decisions: counter(DECISIONS),
            decision_duration: histogram(DECISION_DURATION),
            refused: counter(REFUSED),
            stage_duration: histogram(STAGE_DURATION),
            inflight: level(INFLIGHT),
            policy_errors: counter(POLICY_ERRORS),
            policy_reloads: counter(POLICY_RELOADS),
            policy_info: gauge(POLICY_INFO),
            tls_reloads: counter(TLS_RELOADS),
            connections: level(CONNECTIONS),
            handshakes_refused: counter(HANDSHAKES_REFUSED),
            audit_records: counter(AUDIT_RECORDS),
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
            revocation_entries: counter(REVOCATION_ENTRIES),
            admin_calls: counter(ADMIN_CALLS),
            provider,
            meter,
        };
        Self { inner: Arc::new(inner) }
    }

    /// A question was answered. `level` is `function`, `object` or `field`; `outcome` is `allow`, `deny` or
    /// `conditional`; `denial` is a denial code; `cache` is `hit`, `miss` or `bypass`.
    pub fn decision(
        &self,
        operation: &'static str,
        level: &'static str,
        outcome: &'static str,
        denial: Option<&'static str>,
        cache: &'static str,
        seconds: f64,
    ) {
        let [operation, level, outcome, cache] = [
            KeyValue::new("operation", operation),
            KeyValue::new("level", level),
            KeyValue::new("outcome", outcome),
            KeyValue::new("cache", cache),
        ];
        let labels = [operation, level, outcome, cache, KeyValue::new("denial", denial.unwrap_or("none"))];
        self.inner.decisions.add(1, &labels);
        if let Some(without_denial) = labels.get(..4) {
            self.inner.decision_duration.record(seconds, without_denial);
        }
    }

    /// A call ended without a decision. Both are of closed lists.
    pub fn refused(&self, status: &'static str, reason: &'static str) {
        self.inner.refused.add(1, &[KeyValue::new("status", status), KeyValue::new("reason", reason)]);
    }

    /// One stage took this long: `admit`, `token`, `request`, `ruling` or `record`.
    pub fn stage(&self, stage: &'static str, seconds: f64) {
        self.inner.stage_duration.record(seconds, &[KeyValue::new("stage", stage)]);
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

    /// `revision` (its first twelve digits) is in force now, and `before` is not any more.
    pub fn policy_revision(&self, before: Option<&str>, revision: &str) {
        if let Some(before) = before.filter(|before| *before != revision) {
            self.inner.policy_info.record(0.0, &[KeyValue::new("revision", before.to_owned())]);
        }
        self.inner.policy_info.record(1.0, &[KeyValue::new("revision", revision.to_owned())]);
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
        self.inner.audit_records.add(1, &[KeyValue::new("result", result)]);
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

fn result(ok: bool) -> KeyValue {
    KeyValue::new("result", if ok { "ok" } else { "refused" })
}

/// The name that Prometheus shows: dots become underscores, then the unit and `_total`.
#[must_use]
pub fn prometheus_name(instrument: &Instrument) -> String {
    let unit = match (instrument.unit, instrument.kind) {
        ("s", _) => "_seconds",
        ("By", _) => "_bytes",
        ("1", Kind::Gauge) => "_ratio",
        _ => "",
    };
    let suffix = if instrument.kind == Kind::Counter { "_total" } else { "" };
    format!("{}{unit}{suffix}", instrument.name.replace('.', "_"))
}

/// The reference page's table, in Markdown.
#[must_use]
pub fn reference_markdown() -> String {
    let mut page =
        String::from("| name | in Prometheus | kind | unit | labels | what it tells |\n|---|---|---|---|---|---|\n");
    for instrument in INSTRUMENTS {
        let kind = match instrument.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<Cow<'_, str>> =
            instrument.labels.iter().map(|(name, values)| Cow::Owned(format!("`{name}`: {values}"))).collect();
        page.push_str(&format!(
            "| `{}` | `{}` | {kind} | `{}` | {} | {} |\n",
            instrument.name,
            prometheus_name(instrument),
            instrument.unit,
            labels.join("; "),
            instrument.description,
        ));
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn exercised() -> prometheus::Registry {
        let (metrics, registry) = Metrics::new(None).unwrap();
        metrics.decision("Check", "object", "deny", Some("NO_PERMIT"), "miss", 0.000_2);
        metrics.decision("Check", "field", "allow", None, "hit", 0.000_02);
        metrics.refused("PERMISSION_DENIED", "CALLER_NOT_ENROLLED");
        metrics.stage("admit", 0.000_1);
        metrics.policy_error("attribute_missing");
        metrics.policy_reload(true);
        metrics.policy_revision(Some("aaaaaaaaaaaa"), "bbbbbbbbbbbb");
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
        assert!(page.lines().all(|line| line.matches('|').count() == 7), "{page}");
    }
}
