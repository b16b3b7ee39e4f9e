//! Our identity and the authorities of clients from the SPIFFE Workload API: a stream of sets over a Unix socket, each
//! whole, each replacing the one before.
//!
//! The first set has to come within a time; after that the last good one stays in force for as long as the agent is
//! away, and the stream is opened again and again, ever more slowly. The key is held by the TLS library alone and is
//! never written.
//!
//! Follows the SPIFFE Workload API, sections 4 and 5.2 (FetchX509SVID): the first SVID is the default identity; a set that
//! can't be used as a whole is not used at all. Of federated bundles those of configured trust domains are taken, each
//! for its own domain alone.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::{WorkloadApiClient, X509Context};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::error::TlsError;
use super::material::{Material, signing_key};
use crate::clock::{SharedClock, unix_seconds};
use crate::config::WorkloadApi;
use crate::model::spiffe_id::TrustDomain;
use crate::tls::authorities::Authorities;
use crate::tls::peer;

/// How long connecting to the agent, or a first answer from it, may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The pause before the stream is opened again: doubled each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The agent behind the socket, and the last good set it gave.
pub(super) struct Agent {
    socket: String,
    start_timeout: Duration,
    trust_domains: BTreeSet<TrustDomain>,
    clock: SharedClock,
    latest: Mutex<Option<Arc<Material>>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// What came over the stream.
pub(super) enum News {
    /// Another set, which is now the latest.
    Renewed,
    /// A set that can't be used; the one before stays the latest.
    Unusable(TlsError),
}

impl Agent {
    pub(super) fn new(config: &WorkloadApi, clock: SharedClock) -> Self {
        Self {
            socket: config.socket.clone(),
            start_timeout: config.start_timeout,
            trust_domains: config.trust_domains.clone(),
            clock,
            latest: Mutex::new(None),
        }
    }

    /// The last good set.
    pub(super) fn latest(&self) -> Option<Arc<Material>> {
        self.latest.lock().clone()
    }

    /// The first set, if it comes in time.
    pub(super) async fn first(&self) -> Result<Arc<Material>, TlsError> {
        let mut last = None;
        let trying = async {
            let mut pause = FIRST_PAUSE;
            loop {
                match self.attempt().await {
                    Ok(context) => match self.take(&context) {
                        Ok(material) => return material,
                        Err(error) => last = Some(error),
                    },
                    Err(why) => last = Some(self.silent(why)),
                }
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            }
        };
        let first = tokio::time::timeout(self.start_timeout, trying).await;
        first.map_err(|_| last.unwrap_or_else(|| self.silent("no answer".to_owned())))
    }

    fn silent(&self, why: String) -> TlsError {
        TlsError::Agent { socket: self.socket.clone(), why, waited: self.start_timeout }
    }

    async fn attempt(&self) -> Result<X509Context, String> {
        let asking = async { WorkloadApiClient::connect_to(&self.socket).await?.fetch_x509_context().await };
        match tokio::time::timeout(ATTEMPT, asking).await {
            Ok(context) => context.map_err(|error| plain(&error)),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Follows the stream until `cancel`, and opens it again whenever it ends.
    pub(super) async fn follow(&self, cancel: &CancellationToken, tell: &mpsc::Sender<News>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let ended = tokio::select! {
                () = cancel.cancelled() => return,
                ended = self.stream(tell, &mut pause) => ended,
            };
            tracing::warn!(
                socket = self.socket,
                why = ended,
                "the Workload API is away; what it gave last stays in force"
            );
            if cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }

    /// One stream to its end; says how it ended.
    async fn stream(&self, tell: &mpsc::Sender<News>, pause: &mut Duration) -> String {
        let opening = async { WorkloadApiClient::connect_to(&self.socket).await?.stream_x509_contexts().await };
        let mut contexts = match tokio::time::timeout(ATTEMPT, opening).await {
            Ok(Ok(contexts)) => contexts,
            Ok(Err(error)) => return plain(&error),
            Err(_) => return "no answer".to_owned(),
        };
        loop {
            match contexts.next().await {
                None => return "the stream ended".to_owned(),
                Some(Err(error)) if is_about_a_set(&error) => {
                    let unusable = TlsError::AgentIdentity { socket: self.socket.clone(), why: plain(&error) };
                    if tell.send(News::Unusable(unusable)).await.is_err() {
                        return "nobody listens any more".to_owned();
                    }
                }
                Some(Err(error)) => return plain(&error),
                Some(Ok(context)) => {
                    *pause = FIRST_PAUSE;
                    let taken = self.take(&context);
                    drop(context);
                    let news = taken.map_or_else(News::Unusable, |_| News::Renewed);
                    if tell.send(news).await.is_err() {
                        return "nobody listens any more".to_owned();
                    }
                }
            }
        }
    }

    /// Makes a set the latest, if it is good; the one there is when nothing changed.
    fn take(&self, context: &X509Context) -> Result<Arc<Material>, TlsError> {
        let material = self.check(context)?;
        let mut latest = self.latest.lock();
        match &*latest {
            Some(before) if before.content == material.content => Ok(Arc::clone(before)),
            _ => Ok(Arc::clone(latest.insert(Arc::new(material)))),
        }
    }

    fn check(&self, context: &X509Context) -> Result<Material, TlsError> {
        let bad = |why: &str| TlsError::AgentIdentity { socket: self.socket.clone(), why: why.to_owned() };
        let svid = context.default_svid().ok_or_else(|| bad("there is no identity in it"))?;
        let chain: Vec<_> =
            svid.cert_chain().iter().map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec())).collect();
        let (valid_from, expires_at) =
            chain.first().and_then(peer::validity).ok_or_else(|| bad("its certificate can't be read"))?;
        if unix_seconds(self.clock.now()) > unix_seconds(expires_at) {
            return Err(bad("its certificate has expired: check the clock of this machine and the agent's log"));
        }
        let mut hasher = blake3::Hasher::new();
        let mut add = |part: &[u8]| {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        };
        chain.iter().for_each(|certificate| add(certificate));
        // The chain's length ends it; the key is what follows, and is hashed like a file's.
        add(svid.private_key().as_bytes());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec()));
        let key = signing_key(key).ok_or_else(|| bad("its key can't be used"))?;
        let identity = CertifiedKey::new(chain, key);
        identity.keys_match().map_err(|_| bad("its key does not belong to its certificate"))?;

        let own: Option<TrustDomain> = svid.spiffe_id().trust_domain().as_str().parse().ok();
        let own = own.ok_or_else(|| bad("its trust domain is not one"))?;
        let bundle_of = |domain: &TrustDomain| -> Vec<CertificateDer<'static>> {
            let name = spiffe::TrustDomain::new(domain.as_str()).ok();
            let bundle = name.and_then(|name| context.bundle_set().get(&name));
            let authorities = bundle.iter().flat_map(|bundle| bundle.authorities());
            authorities.map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec())).collect()
        };
        let shared = bundle_of(&own);
        if shared.is_empty() {
            return Err(bad("there are no authorities of its own trust domain"));
        }
        shared.iter().for_each(|certificate| add(certificate));
        let not_one = |_| bad("a certificate among the authorities is not one of an authority");
        let mut authorities = Authorities::shared(shared).map_err(not_one)?;
        for domain in self.trust_domains.iter().filter(|domain| **domain != own) {
            // A domain that is not federated, or no longer, is vouched for by nobody: never by our own authorities.
            let federated = bundle_of(domain);
            add(domain.as_str().as_bytes());
            federated.iter().for_each(|certificate| add(certificate));
            authorities = authorities.with_own(domain.clone(), federated).map_err(not_one)?;
        }
        Ok(Material {
            identity: Arc::new(identity),
            valid_from,
            expires_at,
            authorities: Arc::new(authorities),
            content: hasher.finalize(),
            source: PathBuf::from(&self.socket),
        })
    }
}

/// Whether the agent is there and what it said is wrong, so that the next set may be good.
fn is_about_a_set(error: &spiffe::WorkloadApiError) -> bool {
    use spiffe::WorkloadApiError as E;
    matches!(
        error,
        E::MissingRequiredField { .. }
            | E::InvalidResponseField { .. }
            | E::X509Svid(_)
            | E::X509Bundle(_)
            | E::SpiffeId(_)
    )
}

/// The library's word and the cause under it. Neither holds anything of what the agent gave.
fn plain(error: &spiffe::WorkloadApiError) -> String {
    use std::error::Error as _;
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(under) = cause {
        text = format!("{text}: {under}");
        cause = under.source();
    }
    text
}
