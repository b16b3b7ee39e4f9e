//! Settings of the audit trail: how well a record must be kept before its answer leaves, where the spool is, what may
//! stand in a record, and who gets it.

use std::path::PathBuf;
use std::time::Duration;

use super::{ActionPattern, PatternsConfig};
use crate::model::entity::EntityType;
use crate::secret::{SecretSlice, SecretString};

/// How records are kept, what may be in them, and where they go.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// What holds for every record that no exception is about.
    pub keeping: Keeping,
    /// Exceptions by action; the first that covers it counts.
    pub actions: Vec<ActionKeeping>,
    /// How long an answer waits for its record before it is refused. 2 s when unset.
    pub write_timeout: Duration,
    /// Records waiting to be written at most. 10 000 when unset.
    pub queue: usize,
    /// The segment files that every record goes to first.
    pub spool: SpoolConfig,
    /// Signed checkpoints; `None`: the chain is not signed.
    pub checkpoints: Option<CheckpointConfig>,
    /// The allow-list: values that may be recorded, and what is done to each. Nothing else is.
    pub attributes: Vec<(KeptValue, RedactRule)>,
    /// Keyed hashes; `None`: there are none, and no rule may ask for one.
    pub pseudonyms: Option<PseudonymConfig>,
    /// What is looked for in what happens, and told by records of its own.
    pub patterns: PatternsConfig,
    /// No records at all: for the bench of what one costs, in a build that is made for it alone.
    #[cfg(feature = "bench-unaudited")]
    pub unaudited: bool,
    /// Who gets the records. Each follows the spool for itself.
    pub sinks: Vec<SinkConfig>,
}

impl AuditConfig {
    /// What holds for a record about `action`.
    #[must_use]
    pub fn keeping_of(&self, action: Option<&str>) -> Keeping {
        let exception = action.and_then(|action| {
            self.actions.iter().find(|one| one.actions.iter().any(|pattern| pattern.covers(action)))
        });
        exception.map_or(self.keeping, |one| one.keeping)
    }
}

/// How well a record must be kept before its answer may leave, and what happens when it can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// How well.
    pub mode: AuditMode,
    /// What then.
    pub on_failure: OnAuditFailure,
}

/// How well a record is kept before its answer leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuditMode {
    /// It is queued; losses are counted and recorded.
    Async,
    /// `write(2)` has returned: it survives the end of this process, and no power cut.
    Written,
    /// `fdatasync(2)` has returned: it survives a power cut.
    Durable,
}

impl AuditMode {
    /// The word in the configuration and in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Written => "written",
            Self::Durable => "durable",
        }
    }
}

/// What becomes of an answer whose record can't be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAuditFailure {
    /// It does not leave.
    Refuse,
    /// It leaves without a record; each is counted, and how many is recorded as soon as that is possible.
    Answer,
}

impl OnAuditFailure {
    /// The word in the configuration and in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Answer => "answer",
        }
    }
}

/// An exception for some actions.
#[derive(Debug, Clone)]
pub struct ActionKeeping {
    /// The actions; at least one.
    pub actions: Vec<ActionPattern>,
    /// What holds for them.
    pub keeping: Keeping,
}

/// The segment files that every record goes to first.
#[derive(Debug, Clone)]
pub struct SpoolConfig {
    /// The folder, of this process alone. Made when it is missing; the one above it must be there.
    pub directory: PathBuf,
    /// A segment is closed before it would grow past this. 64 MiB when unset.
    pub segment_bytes: u64,
    /// All segments together. Past it the oldest go, once every sink has them. 4 GiB when unset.
    pub max_bytes: u64,
    /// Closed segments older than this go, once every sink has them. 30 days when unset.
    pub max_age: Duration,
    /// Set aside, so that a full disk can still be recorded. 4 MiB when unset.
    pub reserve_bytes: u64,
}

/// Signed statements of where the chain stands.
#[derive(Debug, Clone)]
pub struct CheckpointConfig {
    /// An Ed25519 private key, PKCS#8 in PEM.
    pub key_file: PathBuf,
    /// How long after the last one, when there is anything new. 1 m when unset.
    pub every: Duration,
    /// After how many records at the latest. 10 000 when unset.
    pub records: u64,
}

/// Keyed hashes that stand for ids and values.
#[derive(Debug, Clone)]
pub struct PseudonymConfig {
    /// At least 32 bytes.
    pub key: SecretSlice<u8>,
    /// How long the same stands for the same. 30 days when unset.
    pub rotate: Duration,
    /// The entity types whose ids stand as pseudonyms.
    pub ids: Vec<EntityType>,
}

/// One value that may stand in a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeptValue {
    /// An attribute of an entity of this type.
    Attribute {
        /// The type.
        entity_type: EntityType,
        /// The attribute.
        attribute: String,
    },
    /// An attribute of the context.
    Context(String),
}

/// What is done to a listed value before it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedactRule {
    /// It stands as it is.
    Keep,
    /// It is left out, as if it were not listed; for a list that says so of every attribute.
    Drop,
    /// A keyed hash stands for it.
    Hash,
    /// Its last four characters.
    LastFour,
    /// So many characters of its beginning.
    Truncate(usize),
}

/// Somebody who gets the records.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// Names it in metrics, records and its files: 1 to 64 of `a-z 0-9 . _ -`. Unique.
    pub name: String,
    /// Where to.
    pub target: SinkTarget,
    /// In what form.
    pub encoding: Encoding,
    /// Which records.
    pub filter: SinkFilter,
    /// Paths of the record that it does not get: `actor.user`, `src_endpoint.ip`.
    pub mask: Vec<Vec<String>>,
    /// Records of one delivery at most. 500 when unset.
    pub batch_records: usize,
    /// Bytes of one delivery at most, before compression. 1 MiB when unset.
    pub batch_bytes: usize,
    /// How long one delivery may take. 10 s when unset.
    pub timeout: Duration,
    /// The longest pause after a failure. 1 m when unset.
    pub retry_max: Duration,
    /// What happens when the spool is full of records that it has not got.
    pub when_full: WhenFull,
}

/// Where records go.
#[derive(Debug, Clone)]
pub enum SinkTarget {
    /// Standard output, one line a record.
    Stdout,
    /// A file that is rotated by size.
    File {
        /// The current file; older ones get `.1`, `.2`, ..
        path: PathBuf,
        /// Rotated before it would grow past this.
        max_bytes: u64,
        /// Older files kept.
        max_files: u32,
    },
    /// RFC 5424 over TCP or TLS.
    Syslog(SyslogTarget),
    /// Splunk's HTTP Event Collector.
    Splunk(SplunkTarget),
    /// Elasticsearch's bulk API.
    Elastic(ElasticTarget),
    /// OTLP logs over gRPC.
    Otlp(OtlpTarget),
    /// A Kafka topic.
    Kafka(KafkaTarget),
}

impl SinkTarget {
    /// The key that opens it in the configuration.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::File { .. } => "file",
            Self::Syslog(_) => "syslog",
            Self::Splunk(_) => "splunk",
            Self::Elastic(_) => "elastic",
            Self::Otlp(_) => "otlp",
            Self::Kafka(_) => "kafka",
        }
    }
}

/// Whom a sink believes, and who it says it is.
#[derive(Debug, Clone, Default)]
pub struct SinkTls {
    /// PEM file of authorities; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// PEM files of a client certificate's chain and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A syslog receiver.
#[derive(Debug, Clone)]
pub struct SyslogTarget {
    /// Host name or address.
    pub host: String,
    /// 6514 for TLS, 601 for TCP when unset.
    pub port: u16,
    /// RFC 5425; `None`: plain TCP (RFC 6587, octet counting).
    pub tls: Option<SinkTls>,
    /// 0 to 23; 10 (authpriv) when unset.
    pub facility: u8,
    /// `APP-NAME`; `gatepost` when unset.
    pub app_name: String,
    /// Syslog acknowledges nothing: a record counts as delivered once its connection has lived so much longer. What is
    /// younger when it breaks is sent again. 5 s when unset.
    pub settle: Duration,
}

/// A Splunk HTTP Event Collector.
#[derive(Debug, Clone)]
pub struct SplunkTarget {
    /// The server, or the whole URL of the collector.
    pub url: url::Url,
    /// The collector's token.
    pub token: SecretString,
    /// Trust and identity.
    pub tls: SinkTls,
    /// `source`; `gatepost` when unset.
    pub source: String,
    /// `sourcetype`; `gatepost:<encoding>` when unset.
    pub sourcetype: Option<String>,
    /// `index`; the token's own when unset.
    pub index: Option<String>,
    /// Whether bodies are compressed.
    pub gzip: bool,
}

/// An Elasticsearch (or compatible) bulk API.
#[derive(Debug, Clone)]
pub struct ElasticTarget {
    /// The server.
    pub url: url::Url,
    /// The index or data stream.
    pub index: String,
    /// Who we are.
    pub credential: Option<HttpCredential>,
    /// Trust and identity.
    pub tls: SinkTls,
    /// Whether bodies are compressed.
    pub gzip: bool,
}

/// What an HTTP sink presents.
#[derive(Debug, Clone)]
pub enum HttpCredential {
    /// `Authorization: ApiKey ..`.
    ApiKey(SecretString),
    /// `Authorization: Basic ..`.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: SecretString,
    },
}

/// An OTLP receiver.
#[derive(Debug, Clone)]
pub struct OtlpTarget {
    /// `http://` or `https://`, host and port.
    pub endpoint: url::Url,
    /// Trust and identity, for `https`.
    pub tls: SinkTls,
}

/// A Kafka topic.
#[derive(Debug, Clone)]
pub struct KafkaTarget {
    /// `host:port` of at least one broker.
    pub brokers: Vec<(String, u16)>,
    /// The topic.
    pub topic: String,
    /// `None`: without TLS.
    pub tls: Option<SinkTls>,
    /// SASL PLAIN; over TLS alone.
    pub sasl: Option<(String, SecretString)>,
}

/// The form of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// OCSF 1.8.0, as it is in the spool.
    Ocsf,
    /// Elastic Common Schema.
    Ecs,
    /// ArcSight Common Event Format.
    Cef,
    /// A syslog line (RFC 5424) around OCSF.
    Rfc5424,
}

impl Encoding {
    /// The word in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ocsf => "ocsf",
            Self::Ecs => "ecs",
            Self::Cef => "cef",
            Self::Rfc5424 => "rfc5424",
        }
    }
}

/// Which records a sink gets: those for which everything that is set holds.
#[derive(Debug, Clone, Default)]
pub struct SinkFilter {
    /// What they are about, by the end of `metadata.log_name`: `decision`, `handshake`, `policy`, ..; empty: anything.
    pub kinds: Vec<String>,
    /// How it ended: `allow`, `deny`, `conditional`, `refused`, `failed`; empty: any way. Other kinds have no such end
    /// and pass.
    pub decisions: Vec<String>,
    /// Which actions; empty: all. Records without one pass.
    pub actions: Vec<ActionPattern>,
    /// Which callers, by the name that the configuration gives them; empty: all. Records without one pass.
    pub callers: Vec<String>,
    /// The least `severity_id`: 1 informational, 2 low, 3 medium, 4 high; 0: any.
    pub severity: u32,
}

/// What happens when the spool is full of records that a sink has not got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Nothing is thrown away: records can't be kept, and answers are refused.
    Wait,
    /// The oldest are thrown away; each is counted as never arrived, and how many is recorded.
    Skip,
}
