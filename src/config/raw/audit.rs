//! `audit`, as it is written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::patterns::RawPatterns;
use super::{RawDuration, RawGrant, RawSize};

/// `audit`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawAudit {
    /// How well a record is kept before its answer leaves. `durable`: on the disk (`fdatasync`); `written`: with the
    /// system (`write`), which outlives this process and no power cut; `async`: in a queue, losses counted and recorded.
    pub mode: RawAuditMode,
    /// What becomes of an answer whose record can't be kept. `refuse`: it does not leave; `answer`: it leaves, is counted,
    /// and how many did is recorded when that is possible again.
    pub on_failure: RawOnAuditFailure,
    /// Exceptions by action; the first that covers it counts.
    pub actions: Vec<RawActionKeeping>,
    /// How long an answer waits for its record before it is refused; 10ms to 1m.
    pub write_timeout: RawDuration,
    /// Records waiting to be written at most; 1 to 1000000.
    pub queue: u64,
    /// The segment files that every record goes to first.
    #[schemars(extend("x-required" = true))]
    pub spool: RawSpool,
    /// Signed statements of where the chain of records stands. Without it the chain is not signed.
    pub checkpoints: Option<RawCheckpoints>,
    /// The values that may stand in a record, `Type.attribute` (of a resource or principal) or `context.name`, and what
    /// is done to each: `keep`, `drop`, `hash`, `last_four`, `truncate:32` (characters). What is not listed is left out.
    pub attributes: BTreeMap<String, String>,
    /// Keyed hashes, for values with the rule `hash` and for ids.
    pub pseudonyms: Option<RawPseudonyms>,
    /// Unusual patterns in what is asked: what is looked for, and told by records of its own.
    pub patterns: RawPatterns,
    /// Who gets the records. Each follows the spool for itself, so that one that is down delays nobody.
    pub sinks: Vec<RawSink>,
}

impl Default for RawAudit {
    fn default() -> Self {
        Self {
            mode: RawAuditMode::Durable,
            on_failure: RawOnAuditFailure::Refuse,
            actions: Vec::new(),
            write_timeout: "2s".into(),
            queue: 10_000,
            spool: RawSpool::default(),
            checkpoints: None,
            attributes: BTreeMap::new(),
            pseudonyms: None,
            patterns: RawPatterns::default(),
            sinks: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(in crate::config) enum RawAuditMode {
    Durable,
    Written,
    Async,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(in crate::config) enum RawOnAuditFailure {
    Refuse,
    Answer,
}

/// One of `audit.actions`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawActionKeeping {
    /// The actions it is about: whole ids (`Order.read`) or everything before a dot (`Order.*`); at least one.
    #[schemars(extend("x-required" = true))]
    pub actions: RawGrant,
    /// As `audit.mode`, which holds when this is unset.
    pub mode: Option<RawAuditMode>,
    /// As `audit.on_failure`, which holds when this is unset.
    pub on_failure: Option<RawOnAuditFailure>,
}

impl Default for RawActionKeeping {
    fn default() -> Self {
        Self { actions: RawGrant::Only(Vec::new()), mode: None, on_failure: None }
    }
}

/// `audit.spool`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawSpool {
    /// The folder, of this process alone. Made when it is missing; the one above it must be there.
    #[schemars(extend("x-required" = true))]
    pub directory: Option<String>,
    /// A segment is closed before it would grow past this; 64KiB to 1GiB, at least `limits.audit_record_bytes`.
    pub segment_bytes: RawSize,
    /// All segments together; past it the oldest go, once every sink has them. 1MiB to 1024GiB, at least two segments.
    pub max_bytes: RawSize,
    /// Closed segments older than this go, once every sink has them; 1m to 87600h.
    pub max_age: RawDuration,
    /// Set aside, so that a full disk can still be recorded; 64KiB to 64MiB.
    pub reserve: RawSize,
}

impl Default for RawSpool {
    fn default() -> Self {
        Self {
            directory: None,
            segment_bytes: RawSize::Text("64MiB".to_owned()),
            max_bytes: RawSize::Text("4GiB".to_owned()),
            max_age: "720h".into(),
            reserve: RawSize::Text("4MiB".to_owned()),
        }
    }
}

/// `audit.checkpoints`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawCheckpoints {
    /// PEM file: an Ed25519 private key (PKCS#8). `gatepost audit key` makes one.
    #[schemars(extend("x-required" = true))]
    pub key_file: Option<String>,
    /// How long after the last one, when there is anything new; 1s to 24h.
    pub every: RawDuration,
    /// After how many records at the latest; 1 to 1000000.
    pub records: u64,
}

impl Default for RawCheckpoints {
    fn default() -> Self {
        Self { key_file: None, every: "1m".into(), records: 10_000 }
    }
}

/// `audit.pseudonyms`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawPseudonyms {
    /// File: the secret, 32 bytes to 4KiB. Whoever has it can try values out.
    #[schemars(extend("x-required" = true))]
    pub key_file: Option<String>,
    /// How long the same hash stands for the same value; 1h to 87600h.
    pub rotate: RawDuration,
    /// The entity types whose ids stand as hashes, wherever they would stand in a record.
    pub ids: Vec<String>,
}

impl Default for RawPseudonyms {
    fn default() -> Self {
        Self { key_file: None, rotate: "720h".into(), ids: Vec::new() }
    }
}

/// One of `audit.sinks`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawSink {
    /// Names it in metrics, records and its own files: 1 to 64 of `a-z 0-9 . _ -`, unique.
    #[schemars(extend("x-required" = true))]
    pub name: Option<String>,
    /// To standard output, one line a record: `stdout: {}`. Exactly one of the seven targets.
    pub stdout: Option<RawStdoutSink>,
    /// To a file that is rotated by size.
    pub file: Option<RawFileSink>,
    /// To a syslog receiver: RFC 5424 over TLS (RFC 5425) or TCP.
    pub syslog: Option<RawSyslogSink>,
    /// To Splunk's HTTP Event Collector.
    pub splunk: Option<RawSplunkSink>,
    /// To Elasticsearch's bulk API, or a compatible one.
    pub elastic: Option<RawElasticSink>,
    /// To an OTLP receiver of logs, over gRPC.
    pub otlp: Option<RawOtlpSink>,
    /// To a Kafka topic.
    pub kafka: Option<RawKafkaSink>,
    /// The form: `ocsf`, `ecs`, `cef`, `rfc5424` (which `syslog` puts around any other by itself).
    pub encoding: RawEncoding,
    /// Which records it gets; all when unset.
    pub filter: RawSinkFilter,
    /// Paths of the record that it does not get: `actor.user`, `src_endpoint.ip`. Such a record can't be verified there.
    pub mask: Vec<String>,
    /// Records of one delivery at most; 1 to 10000.
    pub batch_records: u64,
    /// Bytes of one delivery at most, before compression; at least `limits.audit_record_bytes`, at most 64MiB.
    pub batch_bytes: RawSize,
    /// How long one delivery may take; 100ms to 5m.
    pub timeout: RawDuration,
    /// The longest pause after a failure; 100ms to 1h.
    pub retry_max: RawDuration,
    /// When the spool is full of records that it has not got. `wait`: answers are refused rather than records lost;
    /// `skip`: the oldest are lost to it, counted and recorded.
    pub when_full: RawWhenFull,
}

impl Default for RawSink {
    fn default() -> Self {
        Self {
            name: None,
            stdout: None,
            file: None,
            syslog: None,
            splunk: None,
            elastic: None,
            otlp: None,
            kafka: None,
            encoding: RawEncoding::Ocsf,
            filter: RawSinkFilter::default(),
            mask: Vec::new(),
            batch_records: 500,
            batch_bytes: RawSize::Text("1MiB".to_owned()),
            timeout: "10s".into(),
            retry_max: "1m".into(),
            when_full: RawWhenFull::Wait,
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(in crate::config) enum RawEncoding {
    Ocsf,
    Ecs,
    Cef,
    Rfc5424,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(in crate::config) enum RawWhenFull {
    Wait,
    Skip,
}

/// `audit.sinks[].filter`: everything that is set must hold.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawSinkFilter {
    /// What records are about, the end of their `metadata.log_name`: `decision`, `handshake`, `policy`, `revocation`,
    /// `lifecycle`, `checkpoint`, `alert`.
    pub kinds: Vec<String>,
    /// How a call ended: `allow`, `deny`, `conditional`, `refused`, `failed`. Other records pass.
    pub decisions: Vec<String>,
    /// The actions: whole ids (`Order.read`) or everything before a dot (`Order.*`). Records without one pass.
    pub actions: RawGrant,
    /// The callers, by `callers[].name`. Records without one pass.
    pub callers: Vec<String>,
    /// The least severity: `informational`, `low`, `medium`, `high`.
    pub severity: RawSeverity,
}

impl Default for RawSinkFilter {
    fn default() -> Self {
        Self {
            kinds: Vec::new(),
            decisions: Vec::new(),
            actions: RawGrant::All("*".to_owned()),
            callers: Vec::new(),
            severity: RawSeverity::Informational,
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(in crate::config) enum RawSeverity {
    Informational,
    Low,
    Medium,
    High,
}

/// `audit.sinks[].stdout`: it needs no settings.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawStdoutSink {}

/// `audit.sinks[].file`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawFileSink {
    /// The current file; older ones get `.1`, `.2` and so on. Its folder must exist.
    #[schemars(extend("x-required" = true))]
    pub path: Option<String>,
    /// It is rotated before it would grow past this; at least `limits.audit_record_bytes`, at most 64GiB.
    pub max_bytes: RawSize,
    /// Older files kept; 1 to 1000.
    pub max_files: u64,
}

impl Default for RawFileSink {
    fn default() -> Self {
        Self { path: None, max_bytes: RawSize::Text("100MiB".to_owned()), max_files: 10 }
    }
}

/// `audit.sinks[].syslog`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawSyslogSink {
    /// Host name or address.
    #[schemars(extend("x-required" = true))]
    pub host: Option<String>,
    /// The port; 6514 with TLS and 601 without when unset.
    pub port: Option<u16>,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// PEM file: the receiver's authorities; those of the system when unset.
    pub ca: Option<String>,
    /// PEM file: our certificate chain, when the receiver asks for one.
    pub certificate: Option<String>,
    /// PEM file: the certificate's key.
    pub private_key: Option<String>,
    /// Its facility; 0 to 23, 10 is `authpriv`.
    pub facility: u64,
    /// What we call ourselves there: 1 to 48 printable ASCII characters.
    pub app_name: String,
    /// Syslog acknowledges nothing: a record counts as delivered once its connection has lived so much longer, and what is
    /// younger when it breaks is sent again. 100ms to 5m.
    pub settle: RawDuration,
}

impl Default for RawSyslogSink {
    fn default() -> Self {
        Self {
            host: None,
            port: None,
            tls: true,
            ca: None,
            certificate: None,
            private_key: None,
            facility: 10,
            app_name: "gatepost".to_owned(),
            settle: "5s".into(),
        }
    }
}

/// `audit.sinks[].splunk`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawSplunkSink {
    /// The server (`https://splunk.internal:8088`); `/services/collector/event` is added where no path is given.
    #[schemars(extend("x-required" = true))]
    pub url: Option<String>,
    /// File: the collector's token.
    #[schemars(extend("x-required" = true))]
    pub token_file: Option<String>,
    /// PEM file: the server's authorities; those of the system when unset.
    pub ca: Option<String>,
    /// PEM file: our certificate chain, when the server asks for one.
    pub certificate: Option<String>,
    /// PEM file: the certificate's key.
    pub private_key: Option<String>,
    /// `source`.
    pub source: String,
    /// `sourcetype`; `gatepost:` and the encoding when unset.
    pub sourcetype: Option<String>,
    /// `index`; the token's own when unset.
    pub index: Option<String>,
    /// Whether bodies are compressed.
    pub gzip: bool,
}

impl Default for RawSplunkSink {
    fn default() -> Self {
        Self {
            url: None,
            token_file: None,
            ca: None,
            certificate: None,
            private_key: None,
            source: "gatepost".to_owned(),
            sourcetype: None,
            index: None,
            gzip: true,
        }
    }
}

/// `audit.sinks[].elastic`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawElasticSink {
    /// The server: `https://elastic.internal:9200`.
    #[schemars(extend("x-required" = true))]
    pub url: Option<String>,
    /// The index or data stream.
    pub index: String,
    /// File: an API key, encoded as Elasticsearch gives it.
    pub api_key_file: Option<String>,
    /// A user, together with `password_file`.
    pub username: Option<String>,
    /// File: the user's password.
    pub password_file: Option<String>,
    /// PEM file: the server's authorities; those of the system when unset.
    pub ca: Option<String>,
    /// PEM file: our certificate chain, when the server asks for one.
    pub certificate: Option<String>,
    /// PEM file: the certificate's key.
    pub private_key: Option<String>,
    /// Whether bodies are compressed.
    pub gzip: bool,
}

impl Default for RawElasticSink {
    fn default() -> Self {
        Self {
            url: None,
            index: "logs-gatepost-default".to_owned(),
            api_key_file: None,
            username: None,
            password_file: None,
            ca: None,
            certificate: None,
            private_key: None,
            gzip: true,
        }
    }
}

/// `audit.sinks[].otlp`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawOtlpSink {
    /// The receiver: `https://collector.internal:4317`, or `http://` for one beside us.
    #[schemars(extend("x-required" = true))]
    pub endpoint: Option<String>,
    /// PEM file: the receiver's authorities; those of the system when unset.
    pub ca: Option<String>,
    /// PEM file: our certificate chain, when the receiver asks for one.
    pub certificate: Option<String>,
    /// PEM file: the certificate's key.
    pub private_key: Option<String>,
}

/// `audit.sinks[].kafka`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawKafkaSink {
    /// `host:port` of one to 32 brokers; the others are found through them.
    #[schemars(extend("x-required" = true))]
    pub brokers: Vec<String>,
    /// The topic.
    #[schemars(extend("x-required" = true))]
    pub topic: Option<String>,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// PEM file: the brokers' authorities; those of the system when unset.
    pub ca: Option<String>,
    /// PEM file: our certificate chain, when the brokers ask for one.
    pub certificate: Option<String>,
    /// PEM file: the certificate's key.
    pub private_key: Option<String>,
    /// A user (SASL PLAIN), together with `password_file` and over TLS alone.
    pub username: Option<String>,
    /// File: the user's password.
    pub password_file: Option<String>,
}

impl Default for RawKafkaSink {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            topic: None,
            tls: true,
            ca: None,
            certificate: None,
            private_key: None,
            username: None,
            password_file: None,
        }
    }
}
