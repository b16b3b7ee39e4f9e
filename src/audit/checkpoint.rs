//! Signed statements of where the chain stands: up to there nobody can change, remove or cut anything without the key.
//!
//! A statement is signed with Ed25519 (RFC 8032) over the text
//!
//! ```text
//! gatepost-checkpoint-v1
//! <chain>
//! <sequence of the last record covered>
//! <its hash>
//! <sequence of the oldest record that is kept>
//! <time, RFC 3339>
//! ```
//!
//! with a line break after each line. It stands in the trail as a record of its own, and beside the segments in
//! `checkpoints.jsonl`, so that a trail that was cut short is shown by what lies beside it or at a sink.
//!
//! Knows keys and texts; nothing of files but the key's.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use data_encoding::HEXLOWER;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

use super::format::Hash;
use crate::trust::{is_encrypted_key, small_file};

/// Where checkpoints lie beside the segments.
pub(crate) const FILE: &str = "checkpoints.jsonl";

/// A key's file, bytes.
const KEY_BYTES: u64 = 64 * 1024;

/// What a SubjectPublicKeyInfo of an Ed25519 key starts with (RFC 8410 section 4); the 32 bytes of the key follow.
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file is not PEM, or not of this kind.
    #[error("not a PEM file with an Ed25519 {0} key")]
    Unreadable(&'static str),
    /// The key is behind a passphrase.
    #[error(
        "the key is encrypted: decrypt it with `openssl pkey -in .. -out ..`, or make another with `gatepost audit key`"
    )]
    Encrypted,
    /// No key could be made.
    #[error("no key could be made")]
    Random,
}

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Statement {
    /// The spool.
    pub(crate) chain: String,
    /// The last record that it covers.
    pub(crate) sequence: u64,
    /// That record's hash.
    pub(crate) hash: Hash,
    /// The oldest record that was kept then; what came before was removed by age or size.
    pub(crate) oldest: u64,
    /// RFC 3339, UTC.
    pub(crate) time: String,
}

/// A statement and who stands for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signed {
    #[serde(flatten)]
    pub(crate) statement: Statement,
    /// The first 16 hex digits of the SHA-256 of the public key's 32 bytes.
    pub(crate) key_id: String,
    /// Base64.
    pub(crate) signature: String,
}

impl Statement {
    fn text(&self) -> String {
        let Self { chain, sequence, hash, oldest, time } = self;
        format!("gatepost-checkpoint-v1\n{chain}\n{sequence}\n{hash}\n{oldest}\n{time}\n")
    }
}

/// The key that signs.
pub(crate) struct SigningKey(Ed25519KeyPair);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public().id()).finish()
    }
}

impl SigningKey {
    /// Reads a PKCS#8 PEM file.
    ///
    /// # Errors
    /// [`KeyError::Unreadable`], for whatever reason: a key's file is not quoted.
    pub(crate) fn load(path: &Path) -> Result<Self, KeyError> {
        let unreadable = KeyError::Unreadable("private");
        let Ok(pem) = small_file(path, KEY_BYTES) else { return Err(unreadable) };
        if is_encrypted_key(&pem) {
            return Err(KeyError::Encrypted);
        }
        let Ok(der) = PrivatePkcs8KeyDer::from_pem_slice(&pem) else { return Err(unreadable) };
        Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).map(Self).map_err(|_| unreadable)
    }

    /// A new key's PEM.
    ///
    /// # Errors
    /// [`KeyError::Random`]
    pub(crate) fn generate() -> Result<zeroize::Zeroizing<String>, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Random)?;
        let der = pair.to_pkcs8().map_err(|_| KeyError::Random)?;
        Ok(zeroize::Zeroizing::new(pem("PRIVATE KEY", der.as_ref())))
    }

    /// The key that verifies.
    pub(crate) fn public(&self) -> PublicKey {
        PublicKey(self.0.public_key().as_ref().to_vec())
    }

    /// Signs.
    pub(crate) fn sign(&self, statement: Statement) -> Signed {
        let signature = STANDARD.encode(self.0.sign(statement.text().as_bytes()).as_ref());
        Signed { statement, key_id: self.public().id(), signature }
    }
}

/// The key that verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Reads a PEM file with a SubjectPublicKeyInfo; or the private key's, which holds it too.
    ///
    /// # Errors
    /// [`KeyError::Unreadable`]
    pub(crate) fn load(path: &Path) -> Result<Self, KeyError> {
        let unreadable = || KeyError::Unreadable("public");
        if let Ok(key) = SigningKey::load(path) {
            return Ok(key.public());
        }
        let der = rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_file(path).map_err(|_| unreadable())?;
        let key = der.as_ref().strip_prefix(&SPKI).filter(|key| key.len() == 32).ok_or_else(unreadable)?;
        Ok(Self(key.to_vec()))
    }

    /// Its PEM.
    pub(crate) fn pem(&self) -> String {
        pem("PUBLIC KEY", &[&SPKI[..], &self.0].concat())
    }

    /// The first 16 hex digits of its SHA-256.
    pub(crate) fn id(&self) -> String {
        digest(&SHA256, &self.0).as_ref().first_chunk::<8>().map(|short| HEXLOWER.encode(short)).unwrap_or_default()
    }

    /// Whether this key signed this.
    pub(crate) fn verifies(&self, signed: &Signed) -> bool {
        STANDARD.decode(&signed.signature).is_ok_and(|signature| {
            UnparsedPublicKey::new(&ED25519, &self.0).verify(signed.statement.text().as_bytes(), &signature).is_ok()
        })
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_believed_from_its_own_key_alone_and_word_for_word() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["one", "two"] {
            std::fs::write(path(name), SigningKey::generate().unwrap().as_bytes()).unwrap();
        }
        let key = SigningKey::load(&path("one")).unwrap();
        std::fs::write(path("public"), key.public().pem()).unwrap();
        let public = PublicKey::load(&path("public")).unwrap();
        assert_eq!(public, PublicKey::load(&path("one")).unwrap());
        let statement = Statement {
            chain: "c".into(),
            sequence: 7,
            hash: Hash::GENESIS,
            oldest: 1,
            time: "2026-01-01T00:00:00Z".into(),
        };
        let signed = key.sign(statement.clone());
        assert!(public.verifies(&signed) && signed.key_id == public.id() && public.id().len() == 16);
        let read: Signed = serde_json::from_str(&serde_json::to_string(&signed).unwrap()).unwrap();
        assert_eq!(read, signed);
        let other = SigningKey::load(&path("two")).unwrap();
        assert!(!other.public().verifies(&signed), "somebody else's");
        let table = [
            Statement { chain: "d".into(), ..statement.clone() },
            Statement { sequence: 8, ..statement.clone() },
            Statement { hash: Hash::parse(&[b'1'; 64]).unwrap(), ..statement.clone() },
            Statement { oldest: 2, ..statement.clone() },
            Statement { time: "2026-01-01T00:00:01Z".into(), ..statement },
        ];
        for changed in table {
            assert!(!public.verifies(&Signed { statement: changed, ..signed.clone() }));
        }
        std::fs::write(path("junk"), "hunter2").unwrap();
        let error = SigningKey::load(&path("junk")).unwrap_err().to_string();
        assert_eq!(error, "not a PEM file with an Ed25519 private key");
        assert!(!format!("{key:?}").contains("PRIVATE"));
    }
}
