//! The machine: ports, limits, the stack that evaluation needs, the collector beside us.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use rustix::process::{Resource, getrlimit};

use super::findings::{Findings, Group};
use super::{processes, reach};
use crate::app::listen_mend;
use crate::config::Config;
use crate::policy::Bundle;

/// Files that are open besides connections: records, certificates, sinks, issuers.
const OTHER_FILES: u64 = 256;

/// Listens for an instant where the server will. A port that a server of ours has is as it should be.
pub(super) fn ports(config: &Config, findings: &mut Findings) {
    if !findings.wants(Group::Machine) {
        return;
    }
    let ours = [("server.listen", config.server.listen), ("server.ops_listen", config.server.ops_listen)];
    let admin = config.admin.as_ref().map(|admin| ("admin.listen", admin.listen));
    for (key, address) in ours.into_iter().chain(admin) {
        match TcpListener::bind(address) {
            Ok(_) => findings.ok(Group::Machine, "port", key, format!("{address} can be listened on")),
            Err(error) if error.kind() == ErrorKind::AddrInUse => in_use(key, address, &error, findings),
            Err(error) => {
                let mend = listen_mend(&error).trim_start_matches("; ");
                let mend = if mend.is_empty() { "take another address or port" } else { mend };
                findings.fail(Group::Machine, "port", key, format!("can't listen on {address}: {error}"), mend);
            }
        }
    }
}

fn in_use(key: &str, address: SocketAddr, error: &std::io::Error, findings: &mut Findings) {
    let mend = listen_mend(error).trim_start_matches("; ");
    match processes::listening(address.port()) {
        Some(holder) if holder.is_gatepost() => {
            let says = format!("{address} is in use by {holder}: a server that runs");
            findings.note(Group::Machine, "port", key, says);
        }
        Some(holder) => {
            findings.fail(Group::Machine, "port", key, format!("{address} is in use by {holder}"), mend);
        }
        None => {
            let says =
                format!("{address} is in use, and by whom can't be seen: if that is Gatepost itself, all is well");
            findings.warn(Group::Machine, "port", key, says, mend);
        }
    }
}

/// Whether so many connections can be open at all.
pub(super) fn limits(config: &Config, findings: &mut Findings) {
    let (group, key) = (Group::Machine, "limits.connections");
    let connections = u64::try_from(config.limits.connections).unwrap_or(u64::MAX);
    let needed = connections.saturating_add(OTHER_FILES);
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => {
            let says = format!(
                "this user may have {limit} files open at once here, and {connections} connections need {needed}"
            );
            let mend =
                "raise the limit where the server runs (`LimitNOFILE=` of systemd, `ulimit -n`), or lower this setting";
            findings.warn(group, "open-files", key, says, mend);
        }
        Some(limit) => findings.ok(group, "open-files", key, format!("{limit} files may be open at once")),
        None => findings.ok(group, "open-files", key, "any number of files may be open at once"),
    }
}

/// The self-test of the start, on a thread like those that answer.
pub(super) async fn stack(bundle: Option<Bundle>, findings: &mut Findings) {
    let group = Group::Machine;
    let Some(bundle) = bundle else {
        findings.note(group, "self-test", "", "evaluation is not tried: there is no bundle");
        return;
    };
    let sound = tokio::spawn(async move { bundle.evaluation_is_sound_here() }).await;
    if sound.unwrap_or(false) {
        findings.ok(group, "self-test", "", "a policy as deep as they may be is evaluated to its end");
    } else {
        let says = "a deep policy is not evaluated to its end: this build can't be relied upon";
        findings.fail(group, "self-test", "", says, "use another build, and report this one");
    }
}

/// Decisions do without the collector.
pub(super) async fn telemetry(config: &Config, findings: &mut Findings, network: bool) {
    let (group, key) = (Group::Telemetry, "telemetry.otlp.endpoint");
    let Some(otlp) = config.telemetry.otlp.as_ref().filter(|_| network && findings.wants(group)) else { return };
    match reach::url(&otlp.endpoint, reach::Trust::default()).await {
        Ok(()) => findings.ok(group, "collector", key, format!("`{}` can be reached", otlp.endpoint)),
        Err(end) => findings.warn(group, "collector", key, end.says, end.mend),
    }
}
