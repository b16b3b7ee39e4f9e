//! Every instrument Gatepost has, in one list: [`INSTRUMENTS`]. The reference page is written from it, and so is the bound on
//! how many series there can be.
//!
//! A label's value comes from a closed list in our code or from the configuration and the bundle, never from a caller: so each
//! instrument can say how many series it makes at most.

use std::borrow::Cow;

use crate::config::Pattern;
use crate::model::decision::DenialCode;

/// Actions of the schema that have a label value of their own; further ones count as `other`.
pub const LABELLED_ACTIONS: usize = 200;

/// Seconds: from a cache hit to a call that waited for a slow disk.
pub const BUCKETS: [f64; 19] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0,
];

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

/// What a number of label values is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// Once in all.
    Process,
    /// Each labelled action, and `other`.
    Action,
    /// Each issuer of the configuration.
    Issuer,
    /// Each sink of the configuration, and the trail itself.
    Sink,
}

/// What the number of series depends on: how much of each there is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extent {
    /// Actions of the bundles that have been in force.
    pub actions: usize,
    /// Issuers of the configuration.
    pub issuers: usize,
    /// Sinks of the configuration.
    pub sinks: usize,
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
    /// How many combinations of label values there are at most ..
    pub most: usize,
    /// .. for each of these.
    pub per: Per,
}

impl Instrument {
    /// How many lines of `/metrics` it takes at most.
    #[must_use]
    pub fn series(&self, extent: Extent) -> usize {
        let times = match self.per {
            Per::Process => 1,
            Per::Action => extent.actions.min(LABELLED_ACTIONS) + 1,
            Per::Issuer => extent.issuers,
            Per::Sink => extent.sinks + 1,
        };
        // A line for each bucket, and `+Inf`, `_sum` and `_count`.
        let lines = if self.kind == Kind::Histogram { BUCKETS.len() + 3 } else { 1 };
        self.most * times * lines
    }
}

/// How many lines `/metrics` has at most, whatever callers send.
#[must_use]
pub fn series_at_most(extent: Extent) -> usize {
    INSTRUMENTS.iter().map(|instrument| instrument.series(extent)).sum()
}

const OPERATIONS: usize = 4;
const LEVELS: usize = 3;
const OUTCOMES: usize = 3;
const USES: usize = 3;
/// What can become of a record.
/// Stages of the decision path.
pub(super) const STAGES: [&str; 5] = ["admit", "token", "request", "ruling", "record"];
/// Looks into caches that every call may make, with what may come of them.
pub(super) const CACHE_LOOKUPS_SEEN: [(&str, &str); 5] =
    [("decisions", "hit"), ("decisions", "miss"), ("decisions", "bypass"), ("tokens", "hit"), ("tokens", "miss")];
pub(super) const RECORD_RESULTS: [&str; 5] = ["written", "queue_full", "timed_out", "too_large", "failed"];
/// Why records of the trail, and those of a sink, may never arrive.
pub(super) const TRAIL_LOSSES: [&str; 3] = ["queue_full", "failed", "quarantined"];
pub(super) const SINK_LOSSES: [&str; 3] = ["refused", "skipped", "quarantined"];
/// Why a policy could not be evaluated.
pub(super) const CLASSES: [&str; 10] = [
    "overflow",
    "extension",
    "recursion",
    "entity_missing",
    "attribute_missing",
    "type",
    "arguments",
    "slot",
    "unknown_value",
    "partial",
];

const OPERATION: (&str, &str) = ("operation", "`Check`, `BatchCheck`, `CheckStream`, `Explain`");
const LEVEL: (&str, &str) = ("level", "`function`, `object`, `field`");
const OUTCOME: (&str, &str) = ("outcome", "`allow`, `deny`, `conditional`");
const SINK: (&str, &str) = ("sink", "a sink of the configuration");
const CACHE: (&str, &str) = ("cache", "`hit`, `miss`, `bypass`");

macro_rules! instruments {
    ($(
        $constant:ident = $name:literal, $kind:ident, $unit:literal, $most:expr, $per:ident,
        [$($label:expr),*], $description:literal;
    )*) => {
        $(pub(super) const $constant: Instrument = Instrument {
            name: $name,
            kind: Kind::$kind,
            unit: $unit,
            description: $description,
            labels: &[$($label),*],
            most: $most,
            per: Per::$per,
        };)*

        /// Every instrument, in the order of the reference page.
        pub const INSTRUMENTS: &[Instrument] = &[$($constant),*];
    };
}

instruments! {
    DECISIONS = "gatepost.decisions", Counter, "{decision}", LEVELS * (2 + DenialCode::ALL.len()), Action,
        [
            ("action", "an action of the schema, or `other`: 200 have a label of their own"), LEVEL, OUTCOME,
            ("denial", "a denial code, or `none`")
        ],
        "Questions that were answered with a decision.";
    DECISION_DURATION = "gatepost.decision.duration", Histogram, "s", OPERATIONS * LEVELS * OUTCOMES * USES, Process,
        [OPERATION, LEVEL, OUTCOME, CACHE],
        "From the arrival of a question to its recorded answer.";
    REFUSED = "gatepost.refused", Counter, "{call}", 11, Process,
        [("status", "a gRPC status"), ("reason", "a reason of the error reference")],
        "Calls that ended without a decision, by our choice or our fault.";
    STAGE_DURATION = "gatepost.stage.duration", Histogram, "s", 5, Process,
        [("stage", "`admit`, `token`, `request`, `ruling`, `record`")],
        "Time spent in one stage of the decision path.";
    INFLIGHT = "gatepost.decisions.inflight", Gauge, "{decision}", 1, Process, [], "Questions being worked on.";
    INFLIGHT_LIMIT = "gatepost.decisions.limit", Gauge, "{decision}", 1, Process, [],
        "`limits.concurrent_decisions`: past it calls are shed.";
    PLACES = "gatepost.decisions.places", Gauge, "{decision}", 1, Process, [],
        "Places for decisions now: `limits.concurrent_decisions`, and fewer while a runtime is later than \
        `limits.overload_target`.";
    ACCEPTED = "gatepost.decisions.accepted", Gauge, "", 1, Process, [],
        "The part of calls that is let in, from 0 to 1: less than 1 while there is an overload.";
    RUNTIME_LAG = "gatepost.runtime.lag", Gauge, "s", 1, Process, [],
        "How late a task of ours was last woken: about as long as a call waits before anybody looks at it.";
    RUNTIME_TASKS = "gatepost.runtime.tasks", Gauge, "{task}", 1, Process, [],
        "Tasks of all runtimes: some for the process itself, and some for each connection and stream that is open. When nobody \
        asks it goes back to what it was.";
    READY = "gatepost.ready", Gauge, "", 1, Process, [], "1 while `/readyz` says `ok`.";
    POLICY_ERRORS = "gatepost.policy.errors", Counter, "{error}", CLASSES.len(), Process,
        [("class", "a class of evaluation error")],
        "Policies that could not be evaluated. Each one is a policy or a schema to mend.";
    POLICY_RELOADS = "gatepost.policy.reloads", Counter, "{reload}", 2, Process, [("result", "`ok`, `refused`")],
        "Changed bundles that were looked at.";
    POLICY_REFUSED = "gatepost.policy.refused", Gauge, "", 1, Process, [],
        "1 while the folder holds policies that can't be taken, and those from before are in force.";
    POLICY_INFO = "gatepost.policy.info", Gauge, "", 1, Process,
        [("revision", "the first twelve digits of the revision in force")],
        "Always 1, for the revision in force and no other.";
    POLICY_AGE = "gatepost.policy.age", Gauge, "s", 1, Process, [], "How long the revision has been in force.";
    TLS_RELOADS = "gatepost.tls.reloads", Counter, "{reload}", 2, Process, [("result", "`ok`, `refused`")],
        "Changed certificates, keys and authorities that were looked at.";
    CERTIFICATE_EXPIRY = "gatepost.tls.certificate.expiry", Gauge, "s", 1, Process, [],
        "Seconds until the first of the listeners' certificates expires; negative once it has.";
    CERTIFICATE_AGE = "gatepost.tls.certificate.age", Gauge, "s", 1, Process, [],
        "Seconds since that certificate began to hold.";
    REVOCATION_EXPIRY = "gatepost.tls.revocation.expiry", Gauge, "s", 1, Process, [],
        "Seconds until the first certificate revocation list of a listener runs out; negative once it has, and its \
        issuer's clients are refused.";
    CONNECTIONS = "gatepost.connections", Gauge, "{connection}", 1, Process, [], "Connections that are open.";
    CONNECTIONS_LIMIT = "gatepost.connections.limit", Gauge, "{connection}", 1, Process, [],
        "`limits.connections`: past it new ones are closed at once.";
    HANDSHAKES_REFUSED = "gatepost.handshakes.refused", Counter, "{handshake}", 18, Process,
        [("reason", "a reason of the error reference")],
        "TLS handshakes that were refused.";
    AUDIT_RECORDS = "gatepost.audit.records", Counter, "{record}", RECORD_RESULTS.len(), Process,
        [("result", "`written`, `queue_full`, `timed_out`, `too_large`, `failed`")],
        "Audit records by what became of them. Anything but `written` is an answer that did not leave.";
    AUDIT_QUEUE = "gatepost.audit.queue", Gauge, "{record}", 1, Process, [], "Audit records waiting to be written.";
    AUDIT_QUEUE_LIMIT = "gatepost.audit.queue.limit", Gauge, "{record}", 1, Process, [],
        "`audit.queue`: past it calls are refused.";
    AUDIT_HEALTHY = "gatepost.audit.healthy", Gauge, "", 1, Process, [], "1 while audit records get out.";
    AUDIT_LOST = "gatepost.audit.lost", Counter, "{record}", 3, Sink,
        [
            ("where", "`trail`, or the name of a sink"),
            ("reason", "`queue_full`, `failed`, `quarantined` of the trail; `refused`, `skipped`, `quarantined` of a sink")
        ],
        "Records that never arrived, whatever the reason.";
    AUDIT_SYNC_DURATION = "gatepost.audit.sync.duration", Histogram, "s", 1, Process, [],
        "How long the disk takes to keep what was written.";
    AUDIT_SPOOL_BYTES = "gatepost.audit.spool.size", Gauge, "By", 1, Process, [], "All segments of the spool together.";
    AUDIT_SPOOL_LIMIT = "gatepost.audit.spool.limit", Gauge, "By", 1, Process, [],
        "`audit.spool.max_bytes`: the oldest segments go before it is passed, once every sink has them.";
    AUDIT_SINK_RECORDS = "gatepost.audit.sink.records", Counter, "{record}", 4, Sink,
        [SINK, ("result", "`delivered`, `filtered`, `refused`, `skipped`")],
        "Records by what became of them at a sink. `refused`: it would not have them, ever; `skipped`: the spool was full.";
    AUDIT_SINK_LAG = "gatepost.audit.sink.lag", Gauge, "{record}", 1, Sink, [SINK], "Records that a sink has not got yet.";
    AUDIT_SINK_DELAY = "gatepost.audit.sink.delay", Gauge, "s", 1, Sink, [SINK],
        "The age of the oldest record that a sink has not got yet; 0 when it has all.";
    AUDIT_SINK_HEALTHY = "gatepost.audit.sink.healthy", Gauge, "", 1, Sink, [SINK],
        "1 while the last delivery to a sink went well.";
    AUDIT_ALERTS = "gatepost.audit.alerts", Counter, "{alert}", Pattern::ALL.len(), Process,
        [("pattern", "a pattern of docs/audit.md")],
        "Unusual patterns that were recorded.";
    AUDIT_UNWATCHED = "gatepost.audit.unwatched", Counter, "{call}", 1, Process, [],
        "Calls that were not looked at for unusual patterns, because too many waited for it. They are recorded all the same.";
    JWKS_REFRESHES = "gatepost.jwks.refreshes", Counter, "{refresh}", 2, Issuer,
        [("issuer", "an issuer of the configuration"), ("result", "`ok`, `failed`")],
        "Attempts to fetch or read an issuer's keys.";
    INTROSPECTIONS = "gatepost.introspections", Counter, "{introspection}", 5, Issuer,
        [("issuer", "an issuer of the configuration"), ("result", "`active`, `inactive`, `rejected`, `failed`, `shed`")],
        "Questions to an authorization server about opaque tokens. `rejected`: active, but not for us; `shed`: not asked or not waited for, too many were.";
    STATUS_LIST_REFRESHES = "gatepost.status_list.refreshes", Counter, "{refresh}", 2, Issuer,
        [("issuer", "an issuer of the configuration"), ("result", "`ok`, `failed`")],
        "Attempts to fetch an issuer's token status lists.";
    API_KEY_RELOADS = "gatepost.api_keys.reloads", Counter, "{reload}", 2, Process, [("result", "`ok`, `refused`")],
        "Changed files of API keys that were looked at.";
    ISSUER_READY = "gatepost.issuer.ready", Gauge, "", 1, Issuer, [("issuer", "an issuer of the configuration")],
        "1 while the issuer's keys are at hand.";
    ISSUER_KEYS_AGE = "gatepost.issuer.keys.age", Gauge, "s", 1, Issuer, [("issuer", "an issuer of the configuration")],
        "How long ago the issuer's keys were last seen to be its own; nothing before they first were.";
    CACHE_ENTRIES = "gatepost.cache.entries", Gauge, "{entry}", 2, Process, [("cache", "`decisions`, `tokens`")],
        "Entries of a cache.";
    CACHE_LOOKUPS = "gatepost.cache.lookups", Counter, "{lookup}", 3 * USES, Process,
        [("cache", "`decisions`, `tokens`, `introspections`"), ("result", "`hit`, `miss`, `bypass`")],
        "Looks into a cache by what came of them. `bypass`: it was not asked, because it must not be.";
    REVOCATIONS = "gatepost.revocations", Gauge, "{revocation}", 1, Process, [], "Revocations in force.";
    REVOCATIONS_LIMIT = "gatepost.revocations.limit", Gauge, "{revocation}", 1, Process, [],
        "`limits.revocations`: past it new ones are refused.";
    REVOCATION_ENTRIES = "gatepost.revocation.entries", Counter, "{entry}", 9, Process,
        [("source", "`admin`, `file`, `redis`"), ("result", "`taken`, `malformed`, `full`")],
        "Revocations by where they came from and what became of them. `malformed` and `full` revoke nothing.";
    REVOCATION_STALENESS = "gatepost.revocation.staleness", Gauge, "s", 1, Process, [],
        "How long the file or the store of revocations has been out of reach; 0 while all is well.";
    ADMIN_CALLS = "gatepost.admin.calls", Counter, "{call}", 6 * 9, Process,
        [("method", "a method of the admin listener, or `unknown`"), ("status", "a gRPC status")],
        "Operators' calls.";
    BUILD_INFO = "gatepost.build.info", Gauge, "", 1, Process,
        [("version", "Gatepost's version"), ("revision", "the commit it was built from, where the build said so")],
        "Always 1.";
    PROCESS_START = "gatepost.process.start", Gauge, "s", 1, Process, [], "When this process started: seconds since 1970.";
    PROCESS_MEMORY = "gatepost.process.memory", Gauge, "By", 1, Process, [], "Memory that is resident.";
    PROCESS_MEMORY_LIMIT = "gatepost.process.memory.limit", Gauge, "By", 1, Process, [],
        "What the control group allows; nothing where it sets no limit.";
    PROCESS_DESCRIPTORS = "gatepost.process.descriptors", Gauge, "{descriptor}", 1, Process, [],
        "File descriptors that are open: connections, segments, sockets.";
    PROCESS_DESCRIPTORS_LIMIT = "gatepost.process.descriptors.limit", Gauge, "{descriptor}", 1, Process, [],
        "How many may be.";
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
    let mut page = String::from(
        "| name | in Prometheus | kind | unit | labels | series at most | what it tells |\n|---|---|---|---|---|---|---|\n",
    );
    for instrument in INSTRUMENTS {
        let kind = match instrument.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<Cow<'_, str>> =
            instrument.labels.iter().map(|(name, values)| Cow::Owned(format!("`{name}`: {values}"))).collect();
        let one = Instrument { per: Per::Process, ..*instrument }.series(Extent::default());
        let most = match instrument.per {
            Per::Process => one.to_string(),
            Per::Action => format!("{one} an action"),
            Per::Issuer => format!("{one} an issuer"),
            Per::Sink => format!("{one} a sink"),
        };
        page.push_str(&format!(
            "| `{}` | `{}` | {kind} | `{}` | {} | {most} | {} |\n",
            instrument.name,
            prometheus_name(instrument),
            instrument.unit,
            labels.join("; "),
            instrument.description,
        ));
    }
    page
}
