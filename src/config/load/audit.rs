//! The audit trail's settings: a slip here is a record that is missing, or one that says too much.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::check::{actions, at_least_one};
use super::patterns;
use super::values::Checks;
use crate::config::raw::audit::{
    RawAudit, RawAuditMode, RawCheckpoints, RawElasticSink, RawEncoding, RawFileSink, RawKafkaSink, RawOnAuditFailure,
    RawOtlpSink, RawPseudonyms, RawSeverity, RawSink, RawSinkFilter, RawSplunkSink, RawSpool, RawSyslogSink,
    RawWhenFull,
};
use crate::config::{
    ActionKeeping, AuditConfig, AuditMode, CheckpointConfig, ElasticTarget, Encoding, HttpCredential, KafkaTarget,
    Keeping, KeptValue, Limits, OnAuditFailure, OtlpTarget, PseudonymConfig, RedactRule, SinkConfig, SinkFilter,
    SinkTarget, SinkTls, SplunkTarget, SpoolConfig, SyslogTarget, WhenFull,
};
use crate::model::entity::is_hidden;
use crate::secret::SecretString;

const MAX_SINKS: usize = 16;
const MAX_SECRET_BYTES: u64 = 4096;
const KINDS: [&str; 7] = ["decision", "handshake", "policy", "revocation", "lifecycle", "checkpoint", "alert"];
const DECISIONS: [&str; 5] = ["allow", "deny", "conditional", "refused", "failed"];

/// `None` when `checks` noted a problem.
pub(super) fn audit(raw: &RawAudit, limits: Option<&Limits>, checks: &mut Checks<'_>) -> Option<AuditConfig> {
    let keeping = Keeping { mode: mode(raw.mode), on_failure: on_failure(raw.on_failure) };
    let mut exceptions = Vec::with_capacity(raw.actions.len());
    for (index, one) in raw.actions.iter().enumerate() {
        let key = format!("audit.actions[{index}].actions");
        let actions = at_least_one(&key, &one.actions, checks).and_then(|()| actions(&key, &one.actions, checks));
        let keeping = Keeping {
            mode: one.mode.map_or(keeping.mode, mode),
            on_failure: one.on_failure.map_or(keeping.on_failure, on_failure),
        };
        exceptions.push(actions.map(|actions| ActionKeeping { actions, keeping }));
    }
    let write_timeout = checks.duration("audit.write_timeout", &raw.write_timeout, "10ms", "1m");
    let queue = checks.count("audit.queue", &raw.queue, 1, 1_000_000);
    let spool = spool(&raw.spool, limits, checks);
    let checkpoints = match &raw.checkpoints {
        None => Some(None),
        Some(raw) => checkpoints(raw, checks).map(Some),
    };
    let pseudonyms = match &raw.pseudonyms {
        None => Some(None),
        Some(raw) => pseudonyms(raw, checks).map(Some),
    };
    let attributes = attributes(&raw.attributes, raw.pseudonyms.is_some(), checks);
    let patterns = patterns::patterns(&raw.patterns, raw.pseudonyms.as_ref(), checks);
    let sinks = sinks(&raw.sinks, limits, checks);
    Some(AuditConfig {
        keeping,
        actions: exceptions.into_iter().collect::<Option<_>>()?,
        write_timeout: write_timeout?,
        queue: queue?,
        spool: spool?,
        checkpoints: checkpoints?,
        attributes: attributes?,
        pseudonyms: pseudonyms?,
        #[cfg(feature = "bench-unaudited")]
        unaudited: false,
        patterns: patterns?,
        sinks: sinks?,
    })
}

fn mode(raw: RawAuditMode) -> AuditMode {
    match raw {
        RawAuditMode::Durable => AuditMode::Durable,
        RawAuditMode::Written => AuditMode::Written,
        RawAuditMode::Async => AuditMode::Async,
    }
}

fn on_failure(raw: RawOnAuditFailure) -> OnAuditFailure {
    match raw {
        RawOnAuditFailure::Refuse => OnAuditFailure::Refuse,
        RawOnAuditFailure::Answer => OnAuditFailure::Answer,
    }
}

fn spool(raw: &RawSpool, limits: Option<&Limits>, checks: &mut Checks<'_>) -> Option<SpoolConfig> {
    let key = "audit.spool.directory";
    let help = "name a folder that outlives this process and is its alone: `/var/lib/gatepost/audit`";
    let directory = checks.required(key, raw.directory.as_ref(), help).and_then(|text| {
        let path = checks.path(text);
        if path.exists() {
            return checks.readable_folder(key, &path, help);
        }
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        checks.readable_folder(key, above, "make the folder above it, or name another")?;
        Some(path)
    });
    let segment_bytes: Option<u64> = checks.size("audit.spool.segment_bytes", &raw.segment_bytes, "64KiB", "1GiB");
    let max_bytes: Option<u64> = checks.size("audit.spool.max_bytes", &raw.max_bytes, "1MiB", "1024GiB");
    let max_age = checks.duration("audit.spool.max_age", &raw.max_age, "1m", "87600h");
    let reserve_bytes = checks.size("audit.spool.reserve", &raw.reserve, "64KiB", "64MiB");
    if let (Some(segment), Some(limits)) = (segment_bytes, limits)
        && segment < limits.audit_record_bytes as u64
    {
        let help = "a segment must hold at least one record";
        checks.refuse("audit.spool.segment_bytes", "must not be less than `limits.audit_record_bytes`", help);
    }
    if let (Some(segment), Some(all)) = (segment_bytes, max_bytes)
        && all < segment.saturating_mul(2)
    {
        let help = "or nothing could be removed while it is written to";
        checks.refuse("audit.spool.max_bytes", "must be at least twice `audit.spool.segment_bytes`", help);
    }
    Some(SpoolConfig {
        directory: directory?,
        segment_bytes: segment_bytes?,
        max_bytes: max_bytes?,
        max_age: max_age?,
        reserve_bytes: reserve_bytes?,
    })
}

fn checkpoints(raw: &RawCheckpoints, checks: &mut Checks<'_>) -> Option<CheckpointConfig> {
    let key = "audit.checkpoints.key_file";
    let what = "a PEM file with an Ed25519 private key; `gatepost audit key` makes one";
    let key_file = checks.required(key, raw.key_file.as_ref(), &format!("name {what}"));
    let key_file = key_file.and_then(|text| checks.readable_file(key, text, what));
    let every = checks.duration("audit.checkpoints.every", &raw.every, "1s", "24h");
    let records = checks.count("audit.checkpoints.records", &raw.records, 1, 1_000_000);
    Some(CheckpointConfig { key_file: key_file?, every: every?, records: records? })
}

fn pseudonyms(raw: &RawPseudonyms, checks: &mut Checks<'_>) -> Option<PseudonymConfig> {
    let key = "audit.pseudonyms.key_file";
    let what = "a file with a secret of at least 32 bytes: `head -c 32 /dev/urandom > FILE` makes one";
    let bytes = checks.required(key, raw.key_file.as_ref(), &format!("name {what}"));
    let bytes = bytes.and_then(|text| checks.small_file(key, text, MAX_SECRET_BYTES, what)).map(Zeroizing::new);
    if bytes.as_ref().is_some_and(|bytes| bytes.len() < 32) {
        checks.refuse(key, "must have at least 32 bytes", format!("name {what}"));
        return None;
    }
    let rotate = checks.duration("audit.pseudonyms.rotate", &raw.rotate, "1h", "87600h");
    let ids = checks.each("audit.pseudonyms.ids", &raw.ids, Checks::entity_type);
    Some(PseudonymConfig { key: bytes?.to_vec().into(), rotate: rotate?, ids: ids? })
}

fn attributes(
    raw: &BTreeMap<String, String>,
    keyed: bool,
    checks: &mut Checks<'_>,
) -> Option<Vec<(KeptValue, RedactRule)>> {
    let mut rules = Vec::with_capacity(raw.len());
    for (name, rule) in raw {
        let key = format!("audit.attributes.{name}");
        let value = kept_value(checks, &key, name);
        let rule = redact_rule(checks, &key, rule);
        if rule == Some(RedactRule::Hash) && !keyed {
            checks.refuse(
                &key,
                "needs a key",
                "set `audit.pseudonyms.key_file`: without one, values could be tried out",
            );
        }
        rules.push(value.zip(rule));
    }
    rules.into_iter().collect()
}

fn kept_value(checks: &mut Checks<'_>, key: &str, text: &str) -> Option<KeptValue> {
    let help = "`Order.status` for an attribute, `context.channel` for a value of the context";
    let Some((owner, name)) = text.split_once('.') else {
        checks.refuse(key, "must be `Type.attribute` or `context.name`", help);
        return None;
    };
    if name.is_empty() || name.len() > 256 || name.chars().any(|c| c == '.' || c == '*' || is_hidden(c)) {
        checks.refuse(key, "must end in the name of one attribute", help);
        return None;
    }
    if owner == "context" {
        return Some(KeptValue::Context(name.to_owned()));
    }
    let entity_type = checks.entity_type(key, owner)?;
    Some(KeptValue::Attribute { entity_type, attribute: name.to_owned() })
}

fn redact_rule(checks: &mut Checks<'_>, key: &str, text: &str) -> Option<RedactRule> {
    let rule = match text {
        "keep" => Some(RedactRule::Keep),
        "drop" => Some(RedactRule::Drop),
        "hash" => Some(RedactRule::Hash),
        "last_four" => Some(RedactRule::LastFour),
        other => {
            let length = other.strip_prefix("truncate:").and_then(|length| length.parse().ok());
            length.filter(|length| (1..=1024).contains(length)).map(RedactRule::Truncate)
        }
    };
    if rule.is_none() {
        let help = "`keep`, `drop`, `hash`, `last_four` or `truncate:N`, with N 1 to 1024 characters";
        checks.refuse(key, "is not a rule", help);
    }
    rule
}

fn sinks(raw: &[RawSink], limits: Option<&Limits>, checks: &mut Checks<'_>) -> Option<Vec<SinkConfig>> {
    if raw.len() > MAX_SINKS {
        checks.refuse("audit.sinks", format!("must list at most {MAX_SINKS}"), "");
        return None;
    }
    let (mut names, mut stdout) = (BTreeMap::new(), None);
    let mut sinks = Vec::with_capacity(raw.len());
    for (index, raw) in raw.iter().enumerate() {
        let key = format!("audit.sinks[{index}]");
        let sink = sink(&key, raw, limits, checks);
        if let Some(first) = raw.name.clone().and_then(|name| names.insert(name, index)) {
            checks.refuse(&format!("{key}.name"), format!("is the same as in `audit.sinks[{first}]`"), "keep one");
        }
        if raw.stdout.is_some()
            && let Some(first) = stdout.replace(index)
        {
            let message = format!("is taken by `audit.sinks[{first}]` already");
            checks.refuse(&format!("{key}.stdout"), message, "two sinks would write into each other's lines");
        }
        sinks.push(sink);
    }
    sinks.into_iter().collect()
}

fn sink(key: &str, raw: &RawSink, limits: Option<&Limits>, checks: &mut Checks<'_>) -> Option<SinkConfig> {
    let name_key = format!("{key}.name");
    let name =
        checks.required(&name_key, raw.name.as_ref(), "what metrics and its own files call it").and_then(|name| {
            let fits = (1..=64).contains(&name.len())
                && !name.starts_with('.')
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte));
            if !fits {
                checks.refuse(&name_key, "must be 1 to 64 of `a-z 0-9 . _ -`, and not start with a dot", "`siem`");
            }
            fits.then(|| name.to_owned())
        });
    let target = target(key, raw, limits, checks);
    let encoding = match raw.encoding {
        RawEncoding::Ocsf => Encoding::Ocsf,
        RawEncoding::Ecs => Encoding::Ecs,
        RawEncoding::Cef => Encoding::Cef,
        RawEncoding::Rfc5424 => Encoding::Rfc5424,
    };
    let fits = match &target {
        Some(SinkTarget::Elastic(_)) => matches!(encoding, Encoding::Ocsf | Encoding::Ecs),
        Some(SinkTarget::Otlp(_)) => encoding == Encoding::Ocsf,
        Some(SinkTarget::Syslog(_) | SinkTarget::Splunk(_) | SinkTarget::Kafka(_)) => encoding != Encoding::Rfc5424,
        Some(SinkTarget::Stdout | SinkTarget::File { .. }) | None => true,
    };
    if !fits {
        let kind = target.as_ref().map_or("", SinkTarget::kind);
        let message = format!("does not go with `{kind}`");
        let help = "`elastic` takes `ocsf` and `ecs`; `otlp` takes `ocsf`; `syslog` puts RFC 5424 around by itself";
        checks.refuse(&format!("{key}.encoding"), message, help);
    }
    let filter = filter(&format!("{key}.filter"), &raw.filter, checks);
    let mask = checks.each(&format!("{key}.mask"), &raw.mask, |checks, item, text| {
        let path: Vec<String> = text.split('.').map(str::to_owned).collect();
        if text.len() > 256 || path.iter().any(|step| step.is_empty() || step.chars().any(is_hidden)) {
            checks.refuse(item, "must be a path of the record", "`actor.user`, `src_endpoint.ip`");
            return None;
        }
        let needed = ["metadata.uid", "metadata.sequence", "metadata.log_name", "metadata", "time", "class_uid"];
        if needed.contains(&text) {
            checks.refuse(item, "is what a receiver tells records apart by", "mask what is under it");
            return None;
        }
        Some(path)
    });
    let batch_records = checks.count(&format!("{key}.batch_records"), &raw.batch_records, 1, 10_000);
    let bytes_key = format!("{key}.batch_bytes");
    let batch_bytes: Option<usize> = checks.size(&bytes_key, &raw.batch_bytes, "1KiB", "64MiB");
    if let (Some(bytes), Some(limits)) = (batch_bytes, limits)
        && bytes < limits.audit_record_bytes
    {
        checks.refuse(&bytes_key, "must not be less than `limits.audit_record_bytes`", "a delivery holds a record");
    }
    let timeout = checks.duration(&format!("{key}.timeout"), &raw.timeout, "100ms", "5m");
    let retry_max = checks.duration(&format!("{key}.retry_max"), &raw.retry_max, "100ms", "1h");
    Some(SinkConfig {
        name: name?,
        target: target?,
        encoding,
        filter: filter?,
        mask: mask?,
        batch_records: batch_records?,
        batch_bytes: batch_bytes?,
        timeout: timeout?,
        retry_max: retry_max?,
        when_full: match raw.when_full {
            RawWhenFull::Wait => WhenFull::Wait,
            RawWhenFull::Skip => WhenFull::Skip,
        },
    })
}

fn filter(key: &str, raw: &RawSinkFilter, checks: &mut Checks<'_>) -> Option<SinkFilter> {
    let one_of = |list: &'static [&'static str]| {
        move |checks: &mut Checks<'_>, item: &str, text: &str| {
            let known = list.contains(&text);
            if !known {
                checks.refuse(item, "is not known", format!("one of {}", list.join(", ")));
            }
            known.then(|| text.to_owned())
        }
    };
    let kinds = checks.each(&format!("{key}.kinds"), &raw.kinds, one_of(&KINDS));
    let decisions = checks.each(&format!("{key}.decisions"), &raw.decisions, one_of(&DECISIONS));
    let actions = actions(&format!("{key}.actions"), &raw.actions, checks);
    let callers =
        checks.each(&format!("{key}.callers"), &raw.callers, |checks, item, text| checks.plain_text(item, text, 64));
    Some(SinkFilter {
        kinds: kinds?,
        decisions: decisions?,
        actions: actions?,
        callers: callers?,
        severity: match raw.severity {
            RawSeverity::Informational => 0,
            RawSeverity::Low => 2,
            RawSeverity::Medium => 3,
            RawSeverity::High => 4,
        },
    })
}

fn target(key: &str, raw: &RawSink, limits: Option<&Limits>, checks: &mut Checks<'_>) -> Option<SinkTarget> {
    let named = [
        raw.stdout.is_some(),
        raw.file.is_some(),
        raw.syslog.is_some(),
        raw.splunk.is_some(),
        raw.elastic.is_some(),
        raw.otlp.is_some(),
        raw.kafka.is_some(),
    ];
    if named.iter().filter(|named| **named).count() != 1 {
        let help = "one of `stdout: {}`, `file`, `syslog`, `splunk`, `elastic`, `otlp`, `kafka`";
        checks.refuse(key, "must name exactly one target", help);
        return None;
    }
    let under = |name: &str| format!("{key}.{name}");
    if let Some(raw) = &raw.file {
        return file(&under("file"), raw, limits, checks);
    }
    if let Some(raw) = &raw.syslog {
        return syslog(&under("syslog"), raw, checks).map(SinkTarget::Syslog);
    }
    if let Some(raw) = &raw.splunk {
        return splunk(&under("splunk"), raw, checks).map(SinkTarget::Splunk);
    }
    if let Some(raw) = &raw.elastic {
        return elastic(&under("elastic"), raw, checks).map(SinkTarget::Elastic);
    }
    if let Some(raw) = &raw.otlp {
        return otlp(&under("otlp"), raw, checks).map(SinkTarget::Otlp);
    }
    if let Some(raw) = &raw.kafka {
        return kafka(&under("kafka"), raw, checks).map(SinkTarget::Kafka);
    }
    Some(SinkTarget::Stdout)
}

fn file(key: &str, raw: &RawFileSink, limits: Option<&Limits>, checks: &mut Checks<'_>) -> Option<SinkTarget> {
    let path_key = format!("{key}.path");
    let path = checks.required(&path_key, raw.path.as_ref(), "name the file that records go to").and_then(|text| {
        let path = checks.path(text);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.is_dir() || path.file_name().is_none() {
            checks.refuse(&path_key, "is a folder", "name the file that records go to");
            return None;
        }
        checks.readable_folder(&path_key, folder, "make the file's folder, or name another")?;
        Some(path)
    });
    let bytes_key = format!("{key}.max_bytes");
    let max_bytes: Option<u64> = checks.size(&bytes_key, &raw.max_bytes, "1KiB", "64GiB");
    let record = limits.and_then(|limits| u64::try_from(limits.audit_record_bytes).ok());
    if let (Some(max_bytes), Some(record)) = (max_bytes, record)
        && max_bytes < record
    {
        let help = "a file must hold at least one record";
        checks.refuse(&bytes_key, "must not be less than `limits.audit_record_bytes`", help);
    }
    let max_files = checks.count(&format!("{key}.max_files"), &raw.max_files, 1, 1000);
    Some(SinkTarget::File { path: path?, max_bytes: max_bytes?, max_files: max_files? })
}

fn syslog(key: &str, raw: &RawSyslogSink, checks: &mut Checks<'_>) -> Option<SyslogTarget> {
    let host_key = format!("{key}.host");
    let host = checks.required(&host_key, raw.host.as_ref(), "name the receiver: `syslog.internal`");
    let host = host.and_then(|text| checks.plain_text(&host_key, text, 253));
    let tls = tls(key, raw.tls, [&raw.ca, &raw.certificate, &raw.private_key], checks);
    let facility = checks.count(&format!("{key}.facility"), &raw.facility, 0, 23);
    let fits = (1..=48).contains(&raw.app_name.len()) && raw.app_name.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits {
        let message = "must be 1 to 48 printable ASCII characters without a space";
        checks.refuse(&format!("{key}.app_name"), message, "`gatepost`");
    }
    let settle = checks.duration(&format!("{key}.settle"), &raw.settle, "100ms", "5m");
    let port = raw.port.unwrap_or(if raw.tls { 6514 } else { 601 });
    Some(SyslogTarget {
        host: host?,
        port,
        tls: tls?,
        facility: facility?,
        app_name: fits.then(|| raw.app_name.clone())?,
        settle: settle?,
    })
}

fn splunk(key: &str, raw: &RawSplunkSink, checks: &mut Checks<'_>) -> Option<SplunkTarget> {
    let url = web_address(&format!("{key}.url"), raw.url.as_ref(), "`https://splunk.internal:8088`", checks);
    let token = secret(&format!("{key}.token_file"), raw.token_file.as_ref(), "the collector's token", checks);
    let secure = url.as_ref().is_none_or(|url| url.scheme() == "https");
    let tls = tls(key, secure, [&raw.ca, &raw.certificate, &raw.private_key], checks);
    let source = checks.plain_text(&format!("{key}.source"), &raw.source, 256);
    let mut word = |name: &str, value: &Option<String>| match value {
        None => Some(None),
        Some(text) => checks.plain_text(&format!("{key}.{name}"), text, 256).map(Some),
    };
    let (sourcetype, index) = (word("sourcetype", &raw.sourcetype), word("index", &raw.index));
    Some(SplunkTarget {
        url: url?,
        token: token?,
        tls: tls?.unwrap_or_default(),
        source: source?,
        sourcetype: sourcetype?,
        index: index?,
        gzip: raw.gzip,
    })
}

fn elastic(key: &str, raw: &RawElasticSink, checks: &mut Checks<'_>) -> Option<ElasticTarget> {
    let url = web_address(&format!("{key}.url"), raw.url.as_ref(), "`https://elastic.internal:9200`", checks);
    let index_key = format!("{key}.index");
    let fits = (1..=255).contains(&raw.index.len())
        && !raw.index.starts_with(['-', '_', '+', '.'])
        && raw.index.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte));
    if !fits {
        checks.refuse(&index_key, "must be 1 to 255 of `a-z 0-9 . _ -`", "`logs-gatepost-default`");
    }
    let credential = match (&raw.api_key_file, &raw.username, &raw.password_file) {
        (None, None, None) => Some(None),
        (Some(file), None, None) => {
            let key = secret(&format!("{key}.api_key_file"), Some(file), "an API key", checks);
            key.map(|key| Some(HttpCredential::ApiKey(key)))
        }
        (None, Some(username), Some(file)) => {
            let username = checks.plain_text(&format!("{key}.username"), username, 256);
            let password = secret(&format!("{key}.password_file"), Some(file), "the user's password", checks);
            username.zip(password).map(|(username, password)| Some(HttpCredential::Basic { username, password }))
        }
        _ => {
            let help = "either `api_key_file`, or `username` and `password_file`, or none of them";
            checks.refuse(key, "mixes credentials", help);
            None
        }
    };
    let secure = url.as_ref().is_none_or(|url| url.scheme() == "https");
    let tls = tls(key, secure, [&raw.ca, &raw.certificate, &raw.private_key], checks);
    Some(ElasticTarget {
        url: url?,
        index: fits.then(|| raw.index.clone())?,
        credential: credential?,
        tls: tls?.unwrap_or_default(),
        gzip: raw.gzip,
    })
}

fn otlp(key: &str, raw: &RawOtlpSink, checks: &mut Checks<'_>) -> Option<OtlpTarget> {
    let help = "`https://collector.internal:4317`, or `http://127.0.0.1:4317` for one beside us";
    let endpoint = web_address(&format!("{key}.endpoint"), raw.endpoint.as_ref(), help, checks);
    let secure = endpoint.as_ref().is_none_or(|url| url.scheme() == "https");
    let tls = tls(key, secure, [&raw.ca, &raw.certificate, &raw.private_key], checks);
    Some(OtlpTarget { endpoint: endpoint?, tls: tls?.unwrap_or_default() })
}

fn kafka(key: &str, raw: &RawKafkaSink, checks: &mut Checks<'_>) -> Option<KafkaTarget> {
    let list_key = format!("{key}.brokers");
    let brokers = if (1..=32).contains(&raw.brokers.len()) {
        checks.each(&list_key, &raw.brokers, |checks, item, text| {
            let broker = text.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
            let broker = broker.filter(|(host, port)| !host.is_empty() && *port != 0_u16);
            if broker.is_none() {
                checks.refuse(item, "must be a host and a port", "`kafka-0.internal:9093`");
            }
            broker
        })
    } else {
        checks.refuse(&list_key, "must list 1 to 32", "one that is up is enough to find the others");
        None
    };
    let topic_key = format!("{key}.topic");
    let topic = checks.required(&topic_key, raw.topic.as_ref(), "name the topic").and_then(|topic| {
        let fits = topic.len() <= 249
            && topic != "."
            && topic != ".."
            && topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !fits {
            checks.refuse(&topic_key, "must be 1 to 249 of `A-Z a-z 0-9 . _ -`", "`gatepost-audit`");
        }
        fits.then(|| topic.to_owned())
    });
    let tls = tls(key, raw.tls, [&raw.ca, &raw.certificate, &raw.private_key], checks);
    let sasl = match (&raw.username, &raw.password_file) {
        (None, None) => Some(None),
        (Some(_), Some(_)) if !raw.tls => {
            checks.refuse(&format!("{key}.username"), "needs TLS", "a password must not cross the network in clear");
            None
        }
        (Some(username), Some(file)) => {
            let username = checks.plain_text(&format!("{key}.username"), username, 256);
            let password = secret(&format!("{key}.password_file"), Some(file), "the user's password", checks);
            username.zip(password).map(Some)
        }
        (Some(_), None) => {
            checks.refuse(&format!("{key}.password_file"), "is missing", "name the file of the user's password");
            None
        }
        (None, Some(_)) => {
            checks.refuse(&format!("{key}.username"), "is missing", "whose password is it?");
            None
        }
    };
    Some(KafkaTarget { brokers: brokers?, topic: topic?, tls: tls?, sasl: sasl? })
}

/// An `https` URL, or an `http` one to this machine; without credentials in it.
fn web_address(key: &str, text: Option<&String>, help: &str, checks: &mut Checks<'_>) -> Option<url::Url> {
    let text = checks.required(key, text, help)?;
    let Some(url) = url::Url::parse(text).ok().filter(url::Url::has_host) else {
        checks.refuse(key, "must be an `https` URL", help);
        return None;
    };
    let here = url.host().is_some_and(|host| match host {
        url::Host::Domain(name) => name == "localhost",
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
    });
    let message = if url.scheme() != "https" && !(url.scheme() == "http" && here) {
        "must be an `https` URL: records and credentials must not cross the network in clear"
    } else if !url.username().is_empty() || url.password().is_some() {
        "must not hold a user name or password"
    } else if url.fragment().is_some() || url.query().is_some() {
        "must not hold a query or a fragment"
    } else {
        return Some(url);
    };
    checks.refuse(key, message, help);
    None
}

/// `Some(None)`: without TLS.
fn tls(key: &str, on: bool, files: [&Option<String>; 3], checks: &mut Checks<'_>) -> Option<Option<SinkTls>> {
    let names = ["ca", "certificate", "private_key"];
    if !on {
        let stray = files.iter().zip(names).find(|(file, _)| file.is_some());
        if let Some((_, name)) = stray {
            checks.refuse(&format!("{key}.{name}"), "only goes with TLS", "take it out, or speak TLS");
            return None;
        }
        return Some(None);
    }
    let mut pem = |at: usize, what: &str| -> Option<Option<PathBuf>> {
        let (file, name) = (files.get(at).copied()?, names.get(at)?);
        let Some(text) = file else { return Some(None) };
        checks.readable_file(&format!("{key}.{name}"), text, what).map(Some)
    };
    let ca = pem(0, "a PEM file with the receiver's authorities");
    let certificate = pem(1, "a PEM file with our certificate chain");
    let private_key = pem(2, "a PEM file with the certificate's key");
    let identity = match (certificate?, private_key?) {
        (None, None) => None,
        (Some(certificate), Some(private_key)) => Some((certificate, private_key)),
        (Some(_), None) => {
            checks.refuse(&format!("{key}.private_key"), "is missing", "name the key of `certificate`");
            return None;
        }
        (None, Some(_)) => {
            checks.refuse(&format!("{key}.certificate"), "is missing", "name the certificate of `private_key`");
            return None;
        }
    };
    Some(Some(SinkTls { ca: ca?, identity }))
}

/// A secret from a small file of its own, without the line break at its end.
fn secret(key: &str, text: Option<&String>, what: &str, checks: &mut Checks<'_>) -> Option<SecretString> {
    let what = format!("a file that holds {what} and nothing else");
    let text = checks.required(key, text, &format!("name {what}"))?;
    let bytes = Zeroizing::new(checks.small_file(key, text, MAX_SECRET_BYTES, &what)?);
    let secret = std::str::from_utf8(&bytes).ok().map(|text| text.trim_end_matches(['\r', '\n']));
    match secret {
        Some(secret) if !secret.is_empty() && !secret.chars().any(char::is_control) => {
            Some(SecretString::from(secret.to_owned()))
        }
        Some(_) | None => {
            checks.refuse(key, "must hold one line of text", format!("name {what}"));
            None
        }
    }
}
