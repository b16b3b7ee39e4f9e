//! The files of a listener, or its agent: can we be served with them, by whom, and for how long?

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::DoctorArgs;
use super::findings::{Findings, Group};
use crate::clock::{SharedClock, timestamp, unix_seconds};
use crate::config::{ListenerTls, WorkloadApi};
use crate::tls::server::examine::{self, Examined, OwnCertificate};
use crate::tls::server::{ServerIdentity, TlsError};

/// Whoever renews certificates does so with more than a third of their life left.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// How long the agent is waited for here.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at the files under `section`; gives the certificate if there is one.
pub(super) fn files(
    group: Group,
    section: &str,
    files: &ListenerTls,
    clock: &SharedClock,
    findings: &mut Findings,
) -> Option<OwnCertificate> {
    let now = clock.now();
    let key = |name: &str| format!("{section}.{name}");
    let Examined { certificate, in_force, named, private_key, pair, authorities, lists } = examine::examine(files, now);
    let certificate_key = key("certificate");
    let own = match certificate {
        Ok(own) => {
            self::certificate(group, &certificate_key, &files.certificate, &own, findings);
            match in_force {
                Some(Err(ref error)) => findings.failed_by(group, "life", &certificate_key, error),
                _ => life(group, &certificate_key, &files.certificate, own.life, now, findings),
            }
            if matches!(in_force, Some(Ok(()))) {
                chain(group, &certificate_key, &files.certificate, &own, now, findings);
            }
            if let Some(Err(error)) = named {
                findings.failed_by(group, "names", &key("names"), &error);
            }
            Some(own)
        }
        Err(error) => {
            findings.failed_by(group, "certificate", &certificate_key, &error);
            None
        }
    };
    self::private_key(group, &key("private_key"), &files.private_key, private_key, pair, findings);
    for (index, (path, found)) in authorities.into_iter().enumerate() {
        // Those of all, and then those of single trust domains.
        let key = if index == 0 { key("client_ca") } else { "identity.trust_domains".to_owned() };
        self::authorities(group, &key, &path, found, now, findings);
    }
    revocation_lists(group, &key("client_crls"), lists, now, findings);
    own
}

fn certificate(group: Group, key: &str, path: &Path, own: &OwnCertificate, findings: &mut Findings) {
    if own.for_servers {
        let names = if own.names.is_empty() { "nobody".to_owned() } else { own.names.join(", ") };
        findings.ok(group, "certificate", key, format!("`{}` is for {names}", path.display()));
    } else {
        findings.fail(
            group,
            "purpose",
            key,
            format!("`{}` may not be shown by a server: its extended key usage lacks serverAuth", path.display()),
            "get a certificate with the extended key usage serverAuth (cert-manager: `usages: [server auth]`)",
        );
    }
}

fn life(group: Group, key: &str, path: &Path, (from, until): examine::Life, now: SystemTime, findings: &mut Findings) {
    let left = until.duration_since(now).unwrap_or_default();
    let whole = until.duration_since(from).unwrap_or_default();
    let says = format!("`{}` is good until {}, {} days more", path.display(), timestamp(until), days(left));
    if left < SOON && left < whole / 3 {
        let mend = "renew it now, and find out why that did not happen by itself; a running server takes the new files";
        findings.warn(group, "life", key, says, mend);
    } else {
        findings.ok(group, "life", key, says);
    }
}

fn days(time: Duration) -> u64 {
    time.as_secs() / (24 * 3600)
}

fn chain(group: Group, key: &str, path: &Path, own: &OwnCertificate, now: SystemTime, findings: &mut Findings) {
    match own.holds(now) {
        Ok(()) => {
            let between = own.intermediates();
            let says = format!("the chain has {between} more certificates and leads to `{}`", own.authority);
            findings.ok(group, "chain", key, says);
        }
        Err(why) => findings.fail(
            group,
            "chain",
            key,
            format!("the certificates in `{}` are no chain ({why})", path.display()),
            "put the server's own certificate first, then the one that signed it, and so on; leave out all others",
        ),
    }
}

fn private_key(
    group: Group,
    key: &str,
    path: &Path,
    found: Result<(), TlsError>,
    pair: Option<Result<(), TlsError>>,
    findings: &mut Findings,
) {
    if let Err(error) = found {
        findings.failed_by(group, "private-key", key, &error);
        return;
    }
    match pair {
        Some(Err(error)) => findings.failed_by(group, "pair", key, &error),
        Some(Ok(())) => findings.ok(group, "pair", key, format!("`{}` is the certificate's", path.display())),
        None => findings.note(group, "private-key", key, format!("`{}` can be used", path.display())),
    }
}

fn authorities(
    group: Group,
    key: &str,
    path: &Path,
    found: Result<Vec<examine::Life>, TlsError>,
    now: SystemTime,
    findings: &mut Findings,
) {
    let lives = match found {
        Ok(lives) => lives,
        Err(error) => {
            findings.failed_by(group, "client-authorities", key, &error);
            return;
        }
    };
    let seconds = unix_seconds(now);
    let alive = |(from, until): &examine::Life| (unix_seconds(*from)..=unix_seconds(*until)).contains(&seconds);
    let living = lives.iter().filter(|life| alive(life)).count();
    let first_end = lives.iter().filter(|life| alive(life)).map(|(_, until)| *until).min();
    let shown = path.display();
    match first_end {
        None => findings.fail(
            group,
            "client-authorities",
            key,
            format!("every authority in `{shown}` has expired or is not in force yet: no client is believed"),
            "put the authorities that issue to callers today into the file; check this machine's clock too",
        ),
        Some(end) if living < lives.len() => findings.warn(
            group,
            "client-authorities",
            key,
            format!("{} of the {} authorities in `{shown}` are not in force", lives.len() - living, lives.len()),
            format!("take out those that have expired; the next ends {}", timestamp(end)),
        ),
        Some(end) => {
            let says = format!("`{shown}` holds {living} authorities, the first ends {}", timestamp(end));
            findings.ok(group, "client-authorities", key, says);
        }
    }
}

fn revocation_lists(
    group: Group,
    key: &str,
    lists: Vec<(std::path::PathBuf, Result<SystemTime, TlsError>)>,
    now: SystemTime,
    findings: &mut Findings,
) {
    for (path, found) in lists {
        let shown = path.display();
        match found {
            Err(error) => findings.failed_by(group, "revocation-lists", key, &error),
            Ok(end) if end <= now => findings.fail(
                group,
                "revocation-lists",
                key,
                format!("a list in `{shown}` ran out at {}: the clients that it speaks of are refused", timestamp(end)),
                "fetch the authority's newest list, and see that it is fetched regularly",
            ),
            Ok(end) => {
                let says = format!("`{shown}` can be read, its first list runs out at {}", timestamp(end));
                findings.ok(group, "revocation-lists", key, says);
            }
        }
    }
}

/// What callers expect of the certificate, as far as we were told.
pub(super) fn expected(own: &OwnCertificate, args: &DoctorArgs, clock: &SharedClock, findings: &mut Findings) {
    let (group, key) = (Group::Server, "server.certificate");
    for name in &args.names {
        if own.is_for(name) {
            findings.ok(group, "names", key, format!("a caller that looks for `{name}` takes it"));
        } else {
            let says = format!("a caller that looks for `{name}` refuses it: it is for {}", own.names.join(", "));
            findings.fail(group, "names", key, says, format!("get a certificate with `{name}` among its names"));
        }
    }
    let Some(path) = &args.ca else { return };
    let led = examine::authorities(path).map(|authorities| own.leads_to(&authorities, clock.now()));
    match led {
        Err(error) => findings.failed_by(group, "chain", "--ca", &error),
        Ok(Ok(())) => findings.ok(group, "chain", key, format!("it leads to an authority in `{}`", path.display())),
        Ok(Err(why)) => findings.fail(
            group,
            "chain",
            key,
            format!("it leads to no authority in `{}` ({why})", path.display()),
            "add the certificates between it and that authority to the file, or have it issued by that authority",
        ),
    }
}

/// Asks the agent for an identity, as the start does, and forgets it.
pub(super) async fn workload_api(agent: &WorkloadApi, clock: SharedClock, findings: &mut Findings, network: bool) {
    let (group, key) = (Group::Server, "server.workload_api");
    if !network {
        findings.note(group, "workload-api", key, format!("`{}` is not asked (--offline)", agent.socket));
        return;
    }
    if !findings.wants(group) {
        return;
    }
    let now = clock.now();
    let hurried = WorkloadApi { start_timeout: agent.start_timeout.min(PATIENCE), ..agent.clone() };
    match ServerIdentity::from_workload_api(&hurried, clock).await {
        Err(TlsError::AgentIdentity { socket, why }) => findings.fail(
            group,
            "workload-api",
            key,
            format!("what `{socket}` gave can't be used: {why}"),
            "look into the agent's log, and at the registration of this workload",
        ),
        Err(error) => findings.failed_by(group, "workload-api", key, &error),
        Ok(identity) => {
            let end = timestamp(identity.certificate_expires_at());
            findings.ok(group, "workload-api", key, format!("`{}` gave an identity, good until {end}", agent.socket));
        }
    }
    revocation_lists(group, "server.client_crls", examine::lists(&agent.revocation), now, findings);
}
