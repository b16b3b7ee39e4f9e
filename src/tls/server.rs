//! Our own identity on the listener, and the authorities whose clients we believe.
//!
//! [`ServerIdentity`] keeps one rustls configuration behind an atomic pointer: a certificate, a key, the authorities of
//! clients and the revocation lists. The first three come from files (`material`) or from the SPIFFE Workload API
//! (`agent`), the lists always from files. A connection takes what is current when it comes. A reload that fails leaves
//! the old configuration in force, and what is wrong with the one part does not keep the other from being renewed. How
//! changes are noticed is `watcher`'s business, what makes a client's chain good is [`verifier`]'s.
//!
//! An open connection is not shut by a reload, but its peer is verified anew: [`generation`](ServerIdentity::generation)
//! tells it that something changed, [`stands`](ServerIdentity::stands) whether its chain still holds.
//!
//! TLS 1.3 alone, client certificates required, no resumption, no tickets, no early data: a resumed session would not
//! show its certificate again (RFC 8446 sections 2.2 and 2.3).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use super::revocation::Lists;
use super::revocation::files::ListFiles;
use crate::clock::SharedClock;
use crate::config::{ListenerTls, Revocation, WorkloadApi};

mod agent;
pub(in crate::tls) mod error;
pub mod examine;
mod material;
pub mod verifier;
mod watcher;

use agent::Agent;
pub use error::TlsError;
use material::{Files, Material};
use verifier::{ClientChains, Rules};

/// Who we are on the listener, always the last good set.
#[derive(Debug)]
pub struct ServerIdentity {
    source: Source,
    lists: Option<ListFiles>,
    reload_interval: Duration,
    clock: SharedClock,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Loaded>,
    /// Counts what came into force.
    generation: AtomicU64,
    /// Counts the reloads that took an authority away.
    withdrawals: watch::Sender<u64>,
    /// One reload at a time, so that an older read can't overtake a newer one. Holds the hash of the lists' files as they
    /// were when they were last taken.
    reloading: Mutex<Option<blake3::Hash>>,
}

#[derive(Debug)]
enum Source {
    Files(Files),
    Agent(Arc<Agent>),
}

#[derive(Debug)]
struct Loaded {
    tls: Arc<rustls::ServerConfig>,
    clients: Arc<ClientChains>,
    material: Arc<Material>,
    lists: Arc<Lists>,
}

impl ServerIdentity {
    /// Reads the files that `config` names. `clock` gives the wall time at which clients' certificates are judged.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what to do about it.
    pub fn load(config: &ListenerTls, clock: SharedClock) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let files = Files::of(config);
        let material = files.material(None, &clock)?;
        Self::begin(Source::Files(files), material, &config.revocation, config.reload_interval, provider, clock)
    }

    /// Takes certificate, key and authorities from the SPIFFE Workload API. Waits for them, as long as `config` says.
    ///
    /// # Errors
    /// [`TlsError`] says what the agent lacks; or, of revocation lists, what a file does.
    pub async fn from_workload_api(config: &WorkloadApi, clock: SharedClock) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let agent = Arc::new(Agent::new(config, Arc::clone(&clock)));
        let material = agent.first().await?;
        Self::begin(Source::Agent(agent), material, &config.revocation, config.reload_interval, provider, clock)
    }

    fn begin(
        source: Source,
        material: Arc<Material>,
        revocation: &Revocation,
        reload_interval: Duration,
        provider: Arc<CryptoProvider>,
        clock: SharedClock,
    ) -> Result<Arc<Self>, TlsError> {
        let none = Arc::new(Lists::none(provider.signature_verification_algorithms));
        let files = ListFiles { paths: revocation.lists.clone(), limit: revocation.max_bytes };
        let files = (!files.paths.is_empty()).then_some(files);
        let (lists, read) = match &files {
            None => (none, None),
            Some(files) => {
                let texts = files.read()?;
                let read = texts.content();
                (Arc::new(taken(&none, texts.lists()?, &material, files)?), Some(read))
            }
        };
        let loaded = Loaded::build(material, lists, &provider, &clock)?;
        Ok(Arc::new(Self {
            source,
            lists: files,
            reload_interval,
            clock,
            provider,
            current: ArcSwap::from_pointee(loaded),
            generation: AtomicU64::new(1),
            withdrawals: watch::Sender::new(0),
            reloading: Mutex::new(read),
        }))
    }

    /// What a connection that comes now is to be served with.
    #[must_use]
    pub fn current(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.current.load().tls)
    }

    /// Reads everything again and, if it changed and belongs together, serves every later connection with it, and judges
    /// every open one by it. True when something changed. Blocks on the file system.
    ///
    /// # Errors
    /// [`TlsError`] says what is wrong with the new files; what they were to replace stays in force.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let mut read = self.reloading.lock();
        let before = self.current.load_full();
        let (material, trouble) = match self.material(&before.material) {
            Ok(material) => (material, None),
            Err(error) => (Arc::clone(&before.material), Some(error)),
        };
        let (lists, content, more_trouble) = match self.renewed_lists(&before, &material, *read) {
            Ok((lists, content)) => (lists, content, None),
            Err(error) => (Arc::clone(&before.lists), *read, Some(error)),
        };
        let changed = !Arc::ptr_eq(&material, &before.material) || !Arc::ptr_eq(&lists, &before.lists);
        if changed {
            let withdrawn = !before.material.authorities.fingerprints().is_subset(&material.authorities.fingerprints());
            self.current.store(Arc::new(Loaded::build(material, lists, &self.provider, &self.clock)?));
            self.generation.fetch_add(1, Ordering::Release);
            if withdrawn {
                self.withdrawals.send_modify(|count| *count += 1);
            }
        }
        *read = content;
        match trouble.or(more_trouble) {
            Some(error) => Err(error),
            None => Ok(changed),
        }
    }

    fn material(&self, before: &Arc<Material>) -> Result<Arc<Material>, TlsError> {
        match &self.source {
            Source::Files(files) => files.material(Some(before), &self.clock),
            Source::Agent(agent) => Ok(agent.latest().unwrap_or_else(|| Arc::clone(before))),
        }
    }

    /// The lists as they are to be now, and the hash of their files; those of `before` themselves when neither the files,
    /// whose hash was `read`, nor the authorities changed.
    fn renewed_lists(
        &self,
        before: &Loaded,
        material: &Arc<Material>,
        read: Option<blake3::Hash>,
    ) -> Result<(Arc<Lists>, Option<blake3::Hash>), TlsError> {
        let Some(files) = &self.lists else { return Ok((Arc::clone(&before.lists), None)) };
        let texts = files.read()?;
        let content = Some(texts.content());
        if content == read && Arc::ptr_eq(material, &before.material) {
            return Ok((Arc::clone(&before.lists), content));
        }
        let lists = taken(&before.lists, texts.lists()?, material, files)?;
        Ok((Arc::new(lists), content))
    }

    /// Changes whenever something else came into force: certificates of clients are then to be verified anew.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether a client's chain, the leaf first, holds by what is in force now.
    ///
    /// # Errors
    /// What is wrong with it, in webpki's words.
    pub fn stands(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), webpki::Error> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| webpki::Error::BadDerTime)?;
        let (leaf, between) = chain.split_first().ok_or(webpki::Error::UnknownIssuer)?;
        let clients = Arc::clone(&self.current.load().clients);
        clients.verify(leaf, between, UnixTime::since_unix_epoch(since), Rules::CLIENTS)
    }

    /// Changes whenever an authority is believed no longer: connections that came before must come again. To be taken
    /// before [`current`](Self::current), so that no change falls between.
    #[must_use]
    pub fn withdrawals(&self) -> watch::Receiver<u64> {
        self.withdrawals.subscribe()
    }

    /// Until when our own certificate holds.
    #[must_use]
    pub fn certificate_expires_at(&self) -> SystemTime {
        self.current.load().material.expires_at
    }

    /// Since when.
    #[must_use]
    pub fn certificate_valid_from(&self) -> SystemTime {
        self.current.load().material.valid_from
    }

    /// When the first revocation list that is asked runs out, or did; nothing when there are none.
    #[must_use]
    pub fn lists_expire_at(&self) -> Option<SystemTime> {
        self.current.load().lists.first_end()
    }

    /// The first instant after `now` at which a revocation list runs out.
    pub(super) fn next_list_end(&self, now: SystemTime) -> Option<SystemTime> {
        self.current.load().lists.next_end(now)
    }
}

/// `before` and what was read, within the limit.
fn taken(
    before: &Lists,
    read: Vec<super::revocation::list::RevocationList>,
    material: &Material,
    files: &ListFiles,
) -> Result<Lists, TlsError> {
    let (lists, gone_back) = before.renewed_within(files.limit, read, &material.authorities);
    if lists.bytes() > files.limit {
        return Err(TlsError::RevocationListsTooLarge { limit: files.limit });
    }
    for file in gone_back {
        tracing::warn!(
            file = %file.display(),
            "a revocation list is older than one that was in force: the newer one stays"
        );
    }
    Ok(lists)
}

impl Loaded {
    fn build(
        material: Arc<Material>,
        lists: Arc<Lists>,
        provider: &Arc<CryptoProvider>,
        clock: &SharedClock,
    ) -> Result<Self, TlsError> {
        let clients = Arc::new(ClientChains::new(Arc::clone(&material.authorities), Arc::clone(&lists), provider));
        let time = Arc::new(WallTime(Arc::clone(clock)));
        let verifier: Arc<ClientChains> = Arc::clone(&clients);
        let mut tls = rustls::ServerConfig::builder_with_details(Arc::clone(provider), time)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError::Setup { path: material.source.clone(), source: Box::new(error) })?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&material.identity))));
        tls.alpn_protocols = vec![b"h2".to_vec()];
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        tls.max_early_data_size = 0;
        Ok(Self { tls: Arc::new(tls), clients, material, lists })
    }
}

/// Our clock, for rustls.
#[derive(Debug)]
pub(super) struct WallTime(pub(super) SharedClock);

impl rustls::time_provider::TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

#[cfg(test)]
mod tests;
