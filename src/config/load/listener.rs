//! Who a listener is and whose clients it believes: from files or from the Workload API, never half of each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rustls_pki_types::ServerName;

use super::values::Checks;
use crate::config::raw::{RawIdentity, RawOwnTrustDomain, RawServer, RawTrustDomain};
use crate::config::{Limits, ListenerIdentity, ListenerTls, Revocation, WorkloadApi};
use crate::model::spiffe_id::TrustDomain;

pub(super) fn identity(
    raw: &RawServer,
    identity: &RawIdentity,
    limits: Option<&Limits>,
    checks: &mut Checks<'_>,
) -> Option<ListenerIdentity> {
    let reload_interval = checks.duration("server.reload_interval", &raw.reload_interval, "1s", "1h");
    let revocation = revocation("server.client_crls", &raw.client_crls, limits, checks);
    if let Some(socket) = &raw.workload_api {
        return workload_api(socket, raw, identity, revocation, reload_interval, checks);
    }
    let mut pem = |key: &str, value: &Option<String>, what: &str| {
        let path = checks.required(key, value.as_ref(), &format!("name {what}, or name a `workload_api`"))?;
        checks.readable_file(key, path, what)
    };
    let certificate = pem("server.certificate", &raw.certificate, "a PEM file with the server's certificate chain");
    let private_key = pem("server.private_key", &raw.private_key, "a PEM file with the certificate's private key");
    let client_ca = pem("server.client_ca", &raw.client_ca, "a PEM file with the authorities of client certificates");
    let names = checks.each("server.names", &raw.names, |checks, key, text| {
        let fits = ServerName::try_from(text).is_ok();
        if !fits {
            checks.refuse(key, "must be a DNS name or an address", "`gatepost.shop.svc`, `10.0.0.7`; no URL, no port");
        }
        fits.then(|| text.to_owned())
    });
    let domain_ca = domain_ca(identity, checks);
    Some(ListenerIdentity::Files(ListenerTls {
        certificate: certificate?,
        private_key: private_key?,
        client_ca: client_ca?,
        domain_ca: domain_ca?,
        names: names?,
        revocation: revocation?,
        reload_interval: reload_interval?,
    }))
}

/// Which revocation lists a listener holds its clients against.
pub(super) fn revocation(
    key: &str,
    texts: &[String],
    limits: Option<&Limits>,
    checks: &mut Checks<'_>,
) -> Option<Revocation> {
    let lists = checks.each(key, texts, |checks, key, text| {
        let help = "a PEM or DER file of revocation lists, or a folder of such files";
        let path = checks.path(text);
        if path.is_dir() { checks.readable_folder(key, &path, help) } else { checks.readable_file(key, text, help) }
    });
    lists.zip(limits).map(|(lists, limits)| Revocation { lists, max_bytes: limits.crl_bytes })
}

fn workload_api(
    socket: &str,
    raw: &RawServer,
    identity: &RawIdentity,
    revocation: Option<Revocation>,
    reload_interval: Option<std::time::Duration>,
    checks: &mut Checks<'_>,
) -> Option<ListenerIdentity> {
    let help = "take the file out, or take `workload_api` out";
    for (key, file) in
        [("certificate", &raw.certificate), ("private_key", &raw.private_key), ("client_ca", &raw.client_ca)]
    {
        if file.is_some() {
            checks.refuse(&format!("server.{key}"), "must not stand beside `workload_api`", help);
        }
    }
    if !raw.names.is_empty() {
        let help = "the agent's certificates are for a SPIFFE ID; take one of the two out";
        checks.refuse("server.names", "must not stand beside `workload_api`", help);
    }
    for (index, domain) in identity.trust_domains.iter().enumerate() {
        if matches!(domain, RawTrustDomain::Own(RawOwnTrustDomain { ca: Some(_), .. })) {
            let key = format!("identity.trust_domains[{index}].ca");
            checks.refuse(&key, "must not stand beside `server.workload_api`", "federate the trust domain in SPIRE");
        }
    }
    // The private key comes over it: nothing but a socket of this machine.
    let is_socket = socket.strip_prefix("unix://").is_some_and(|path| path.starts_with('/') && path.len() > 1);
    if !is_socket || socket.chars().any(char::is_control) {
        let help = "`unix:///run/spire/agent.sock`";
        checks.refuse("server.workload_api", "must be `unix://` and the absolute path of a socket", help);
    }
    let start_timeout = checks.duration("server.workload_api_timeout", &raw.workload_api_timeout, "1s", "10m");
    // What is wrong with them is told where they are checked.
    let trust_domains = identity.trust_domains.iter().filter_map(|domain| name(domain)?.parse().ok()).collect();
    is_socket.then_some(())?;
    Some(ListenerIdentity::WorkloadApi(WorkloadApi {
        socket: socket.to_owned(),
        start_timeout: start_timeout?,
        trust_domains,
        revocation: revocation?,
        reload_interval: reload_interval?,
    }))
}

fn name(domain: &RawTrustDomain) -> Option<&String> {
    match domain {
        RawTrustDomain::Name(name) => Some(name),
        RawTrustDomain::Own(own) => own.name.as_ref(),
    }
}

/// The names of the trust domains, each once.
pub(super) fn trust_domains(raw: &RawIdentity, checks: &mut Checks<'_>) -> Option<Vec<TrustDomain>> {
    let (mut domains, mut whole) = (Vec::with_capacity(raw.trust_domains.len()), true);
    for (index, domain) in raw.trust_domains.iter().enumerate() {
        let item = format!("identity.trust_domains[{index}]");
        let (key, name) = match domain {
            RawTrustDomain::Name(name) => (item, Some(name.as_str())),
            RawTrustDomain::Own(own) => {
                let key = format!("{item}.name");
                let name = checks.required(&key, own.name.as_ref(), "the part after `spiffe://`");
                (key, name)
            }
        };
        let parsed = name.map(str::parse::<TrustDomain>);
        match parsed {
            Some(Ok(domain)) if domains.contains(&domain) => {
                checks.refuse(&key, "is listed twice", "keep one of them");
                whole = false;
            }
            Some(Ok(domain)) => domains.push(domain),
            Some(Err(_)) => {
                checks.refuse(&key, "must be 1 to 255 characters of `a-z 0-9 . - _`", "the part after `spiffe://`");
                whole = false;
            }
            None => whole = false,
        }
    }
    whole.then_some(domains)
}

/// The files of the trust domains that have authorities of their own.
fn domain_ca(raw: &RawIdentity, checks: &mut Checks<'_>) -> Option<BTreeMap<TrustDomain, PathBuf>> {
    let (mut files, mut whole) = (BTreeMap::new(), true);
    for (index, domain) in raw.trust_domains.iter().enumerate() {
        let RawTrustDomain::Own(RawOwnTrustDomain { name, ca: Some(ca) }) = domain else { continue };
        let key = format!("identity.trust_domains[{index}].ca");
        match checks.readable_file(&key, ca, "a PEM file with the authorities of this trust domain") {
            Some(path) => {
                // A name that is none is told where names are checked.
                files.extend(name.as_ref().and_then(|name| name.parse().ok()).map(|domain| (domain, path)));
            }
            None => whole = false,
        }
    }
    whole.then_some(files)
}
