//! A look at the files of a listener, part by part, for whoever asks what is wrong before the start. Each part is read
//! and judged by the very code that reads it at the start; what stops a start there is only noted here.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::error::TlsError;
use super::material::{self, Files, read};
use crate::clock::unix_seconds;
use crate::config::{ListenerTls, Revocation};
use crate::tls::peer;
use crate::tls::revocation::files::ListFiles;

/// What one look found.
#[derive(Debug)]
pub struct Examined {
    /// Our certificate, or why there is none.
    pub certificate: Result<OwnCertificate, TlsError>,
    /// Whether its life has begun and not ended; nothing where it can't be read.
    pub in_force: Option<Result<(), TlsError>>,
    /// Whether it is for every name that the settings demand; nothing where it can't be read.
    pub named: Option<Result<(), TlsError>>,
    /// Whether there is a key that can be used.
    pub private_key: Result<(), TlsError>,
    /// Whether the two belong together; nothing where one of them can't be read.
    pub pair: Option<Result<(), TlsError>>,
    /// Each file of authorities, and when the lives of those in it begin and end.
    pub authorities: Vec<(PathBuf, Result<Vec<Life>, TlsError>)>,
    /// Each file or folder of revocation lists, and when the first of its lists runs out.
    pub lists: Vec<(PathBuf, Result<SystemTime, TlsError>)>,
}

/// When a certificate's life begins and ends.
pub type Life = (SystemTime, SystemTime);

/// Our certificate and what it came with.
#[derive(Debug)]
pub struct OwnCertificate {
    chain: Vec<CertificateDer<'static>>,
    /// When it begins and ends.
    pub life: Life,
    /// What it is for.
    pub names: Vec<String>,
    /// Whether it may be shown by a server: it names no purposes, or this one.
    pub for_servers: bool,
    /// Who issued the last certificate of the chain.
    pub authority: String,
}

/// Looks at everything that `config` names, at `now`.
#[must_use]
pub fn examine(config: &ListenerTls, now: SystemTime) -> Examined {
    let files = Files::of(config);
    let chain = read(&files.certificate).and_then(|text| files.chain(&text));
    let key = read(&files.private_key).and_then(|text| files.key(&zeroize::Zeroizing::new(text)));
    let in_force = chain.as_ref().ok().map(|chain| files.check_life(chain, now));
    let named = chain.as_ref().ok().map(|chain| files.check_names(chain));
    let (certificate, private_key, pair) = match (chain, key) {
        (Ok(chain), Ok(key)) => {
            let own = OwnCertificate::of(chain.clone(), &files.certificate);
            (own, Ok(()), Some(files.pair(chain, key).map(drop)))
        }
        (chain, key) => (chain.and_then(|chain| OwnCertificate::of(chain, &files.certificate)), key.map(drop), None),
    };
    let own = files.domain_ca.iter().map(|(_, path)| path);
    let authorities = std::iter::once(&files.client_ca).chain(own).map(|path| {
        let lives = read(path).and_then(|text| material::authorities(path, &text));
        (path.clone(), lives.map(|found| found.iter().filter_map(peer::validity).collect()))
    });
    let authorities = authorities.collect();
    Examined { certificate, in_force, named, private_key, pair, authorities, lists: lists(&config.revocation) }
}

/// Each file or folder of revocation lists, and when the first of its lists runs out.
#[must_use]
pub fn lists(config: &Revocation) -> Vec<(PathBuf, Result<SystemTime, TlsError>)> {
    let first_end = |path: &PathBuf| {
        let lists = ListFiles { paths: vec![path.clone()], limit: config.max_bytes }.read()?.lists()?;
        let none = || TlsError::NoRevocationList { path: path.clone() };
        lists.iter().map(|list| list.next_update).min().ok_or_else(none)
    };
    config.lists.iter().map(|path| (path.clone(), first_end(path))).collect()
}

/// The authorities of a PEM file, for [`OwnCertificate::leads_to`].
///
/// # Errors
/// [`TlsError`] names the file.
pub fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    read(path).and_then(|text| material::authorities(path, &text))
}

impl OwnCertificate {
    fn of(chain: Vec<CertificateDer<'static>>, path: &Path) -> Result<Self, TlsError> {
        let unreadable = || TlsError::Certificate { path: path.to_owned() };
        let leaf = chain.first().ok_or_else(unreadable)?;
        let life = peer::validity(leaf).ok_or_else(unreadable)?;
        let names = peer::names(leaf);
        let purposes = peer::parse(leaf).ok_or_else(unreadable)?;
        let purposes = purposes.extended_key_usage().map_err(|_| unreadable())?;
        let for_servers = purposes.is_none_or(|purposes| purposes.value.any || purposes.value.server_auth);
        let authority =
            chain.last().and_then(peer::parse).map(|last| last.issuer().to_string()).ok_or_else(unreadable)?;
        Ok(Self { life, names, for_servers, authority, chain })
    }

    /// Whether a client that looks for `name` would take it.
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        self.chain.first().is_some_and(|leaf| material::is_for(leaf, name))
    }

    /// How many certificates came with it.
    #[must_use]
    pub fn intermediates(&self) -> usize {
        self.chain.len().saturating_sub(1)
    }

    /// Whether each certificate of the chain is signed by the next, at `now`.
    ///
    /// # Errors
    /// What a client would say of it.
    pub fn holds(&self, now: SystemTime) -> Result<(), webpki::Error> {
        match self.chain.split_last() {
            Some((last, before)) if !before.is_empty() => self.path(std::slice::from_ref(last), before, now),
            _ => Ok(()),
        }
    }

    /// Whether the chain leads to one of `authorities`, at `now`.
    ///
    /// # Errors
    /// What a client would say of it.
    pub fn leads_to(&self, authorities: &[CertificateDer<'_>], now: SystemTime) -> Result<(), webpki::Error> {
        self.path(authorities, &self.chain, now)
    }

    fn path(
        &self,
        authorities: &[CertificateDer<'_>],
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<(), webpki::Error> {
        let anchors: Vec<TrustAnchor<'_>> =
            authorities.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<_, _>>()?;
        let (leaf, between) = chain.split_first().ok_or(webpki::Error::UnknownIssuer)?;
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(unix_seconds(now)));
        let algorithms = default_provider().signature_verification_algorithms;
        let leaf = EndEntityCert::try_from(leaf)?;
        // What it may be used for is told apart from where it leads.
        let usage = if self.for_servers { KeyUsage::server_auth() } else { KeyUsage::client_auth() };
        leaf.verify_for_usage(algorithms.all, &anchors, between, now, usage, None, None).map(drop)
    }
}
