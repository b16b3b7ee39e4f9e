//! Who gets the records: can they be reached, with the certificates that the settings name?

use std::path::Path;

use futures_util::future::join_all;
use rustix::fs::{Access, access};

use super::findings::{Findings, Group};
use super::reach::{DeadEnd, Trust, reach, url};
use crate::config::{Config, SinkConfig, SinkTarget, SinkTls};
use crate::trust::client_tls;

pub(super) async fn examine(config: &Config, findings: &mut Findings, network: bool) {
    if !findings.wants(Group::Sinks) {
        return;
    }
    let sinks = &config.audit.sinks;
    let ways = join_all(sinks.iter().map(|sink| way(sink, network))).await;
    for ((index, sink), ends) in sinks.iter().enumerate().zip(ways) {
        let key = format!("audit.sinks[{index}].{}", sink.target.kind());
        match ends {
            Ok(says) => findings.ok(Group::Sinks, "way", &key, format!("`{}`: {says}", sink.name)),
            Err(end) => findings.fail(Group::Sinks, "way", &key, format!("`{}`: {}", sink.name, end.says), end.mend),
        }
    }
}

fn trust(tls: &SinkTls) -> Trust<'_> {
    let identity = tls.identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    Trust { ca: tls.ca.as_deref(), identity }
}

fn tls(target: &SinkTarget) -> Option<&SinkTls> {
    match target {
        SinkTarget::Stdout | SinkTarget::File { .. } => None,
        SinkTarget::Syslog(target) => target.tls.as_ref(),
        SinkTarget::Splunk(target) => Some(&target.tls),
        SinkTarget::Elastic(target) => Some(&target.tls),
        SinkTarget::Otlp(target) => Some(&target.tls),
        SinkTarget::Kafka(target) => target.tls.as_ref(),
    }
}

/// Goes as far as a handshake; sends nothing.
async fn way(sink: &SinkConfig, network: bool) -> Result<String, DeadEnd> {
    // The files count whether or not anybody is there.
    if let Some(Trust { ca, identity }) = tls(&sink.target).filter(|_| speaks_tls(&sink.target)).map(trust) {
        client_tls(ca, identity)?;
    }
    match &sink.target {
        SinkTarget::Stdout => return Ok("standard output".to_owned()),
        SinkTarget::File { path, .. } => return folder(path),
        _ if !network => return Ok("not tried (--offline)".to_owned()),
        SinkTarget::Syslog(target) => {
            reach(&target.host, target.port, target.tls.as_ref().map(trust)).await?;
        }
        SinkTarget::Splunk(target) => url(&target.url, trust(&target.tls)).await?,
        SinkTarget::Elastic(target) => url(&target.url, trust(&target.tls)).await?,
        SinkTarget::Otlp(target) => url(&target.endpoint, trust(&target.tls)).await?,
        SinkTarget::Kafka(target) => {
            for (host, port) in &target.brokers {
                reach(host, *port, target.tls.as_ref().map(trust)).await?;
            }
        }
    }
    Ok("it can be reached".to_owned())
}

fn speaks_tls(target: &SinkTarget) -> bool {
    match target {
        SinkTarget::Stdout | SinkTarget::File { .. } => false,
        SinkTarget::Syslog(target) => target.tls.is_some(),
        SinkTarget::Splunk(target) => target.url.scheme() == "https",
        SinkTarget::Elastic(target) => target.url.scheme() == "https",
        SinkTarget::Otlp(target) => target.endpoint.scheme() == "https",
        SinkTarget::Kafka(target) => target.tls.is_some(),
    }
}

fn folder(path: &Path) -> Result<String, DeadEnd> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = |at: &Path| access(at, Access::WRITE_OK);
    let done = written(above).and_then(|()| if path.exists() { written(path) } else { Ok(()) });
    let refused = |error: rustix::io::Errno| DeadEnd {
        says: format!("`{}` can't be written: {}", path.display(), std::io::Error::from(error)),
        mend: "it has to be in a folder that is there, and that this user may write: files are rotated".to_owned(),
    };
    done.map(|()| format!("`{}` can be written", path.display())).map_err(refused)
}
