//! The way to somebody else: name, connection, TLS. Says at which step it ends, which those who use the way keep short.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use url::{Host, Url};

use crate::trust::{TrustProblem, client_tls};

/// For each step.
const STEP: Duration = Duration::from_secs(5);

/// Whom to believe on the way, and who we say we are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Trust<'a> {
    pub(super) ca: Option<&'a Path>,
    pub(super) identity: Option<(&'a Path, &'a Path)>,
}

/// Where the way ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeadEnd {
    pub(super) says: String,
    pub(super) mend: String,
}

impl DeadEnd {
    fn new(says: String, mend: &str) -> Self {
        Self { says, mend: mend.to_owned() }
    }
}

impl From<TrustProblem> for DeadEnd {
    fn from(problem: TrustProblem) -> Self {
        let (file, mend) = match problem {
            TrustProblem::Authorities => ("ca", "it has to be PEM with at least one authority that this user may read"),
            TrustProblem::Certificate => ("certificate", "it has to be PEM with our certificate first"),
            TrustProblem::PrivateKey => ("private_key", "it has to be the unencrypted PEM key of the certificate"),
            TrustProblem::EncryptedKey => ("private_key", "decrypt it: `openssl pkey -in .. -out ..`"),
        };
        Self::new(problem.to_string(), &format!("look at the file that `{file}` names: {mend}"))
    }
}

/// Host and port of a URL; `https` speaks TLS.
pub(super) async fn url(url: &Url, trust: Trust<'_>) -> Result<(), DeadEnd> {
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Err(DeadEnd::new("the URL names no host and port".to_owned(), "name both"));
    };
    let host = match host {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    reach(&host, port, (url.scheme() == "https").then_some(trust)).await
}

/// Goes to `host` and `port`, and if `tls` says how, shakes hands there.
pub(super) async fn reach(host: &str, port: u16, tls: Option<Trust<'_>>) -> Result<(), DeadEnd> {
    let tls = tls.map(|trust| client_tls(trust.ca, trust.identity)).transpose()?;
    let place = format!("{host}:{port}");
    let found = tokio::time::timeout(STEP, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<_> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            let mend = "check the name, and this machine's DNS (`/etc/resolv.conf`)";
            return Err(DeadEnd::new(format!("the name `{host}` leads nowhere: {error}"), mend));
        }
        Err(_) => {
            let mend = "check this machine's DNS (`/etc/resolv.conf`)";
            return Err(DeadEnd::new(format!("nobody says where `{host}` is"), mend));
        }
    };
    let connected = tokio::time::timeout(STEP, TcpStream::connect(addresses.as_slice())).await;
    let stream = connected
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| no_connection(&place, &error))?;
    let Some(tls) = tls else { return Ok(()) };
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| DeadEnd::new(format!("`{host}` is no name that TLS knows"), "name the host by its DNS name"))?;
    let shaken = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream);
    match tokio::time::timeout(STEP, shaken).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(no_handshake(&place, &error)),
        Err(_) => Err(DeadEnd::new(format!("`{place}` does not speak TLS in time"), "is it the right port?")),
    }
}

fn no_connection(place: &str, error: &io::Error) -> DeadEnd {
    let mend = if error.kind() == io::ErrorKind::ConnectionRefused {
        "nobody listens there: start it, or correct the address"
    } else {
        "check routes, firewalls and network policies between here and there"
    };
    DeadEnd::new(format!("no connection to `{place}`: {error}"), mend)
}

fn no_handshake(place: &str, error: &io::Error) -> DeadEnd {
    let ours = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let mend = match ours {
        Some(rustls::Error::InvalidCertificate(error)) => mend_of(error),
        Some(rustls::Error::AlertReceived(_)) => "it refuses us: does it want a client certificate, or another?",
        _ => "is it the right port, and does TLS 1.2 or 1.3 end there?",
    };
    DeadEnd::new(format!("`{place}` is not believed, or does not believe us: {error}"), mend)
}

fn mend_of(error: &CertificateError) -> &'static str {
    let expired = matches!(error, CertificateError::Expired | CertificateError::ExpiredContext { .. });
    let future = matches!(error, CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. });
    let name = matches!(error, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. });
    if expired || future {
        "its certificate has to be renewed, or this machine's clock is wrong"
    } else if name {
        "use the name that its certificate is for, or have it issued for this one"
    } else if matches!(error, CertificateError::UnknownIssuer) {
        "name the authority that issued its certificate in `ca` (`jwks_ca` of an issuer)"
    } else {
        "its certificate has to be issued anew"
    }
}
