//! The file of API keys: read strictly, changed under a lock, replaced whole.
//!
//! It holds no secret, only what a secret hashes to; still it says who has which rights, so it is for its owner alone.
//! `gatepost apikey` changes it, also beside a running server, which notices.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text::hex;
use crate::config::Limits;
use crate::model::entity::{EntityId, is_hidden};

/// The only version there is.
const VERSION: u32 = 1;
/// Scopes of one key.
const MAX_SCOPES: usize = 64;
/// Bytes of one scope.
const MAX_SCOPE_BYTES: usize = 256;
/// Networks of one key.
const MAX_NETWORKS: usize = 64;
/// Bytes of a note.
const MAX_NOTE_BYTES: usize = 1024;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyFile {
    /// 1.
    version: u32,
    /// Every key, in the order they were made.
    pub keys: Vec<ApiKeyEntry>,
}

/// One key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyEntry {
    /// The public part: 16 hex digits, unique.
    pub id: String,
    /// What its secret hashes to.
    pub secret_sha256: SecretHash,
    /// Whose it is: the id of the principal.
    pub owner: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends; there is no key without an end.
    pub expires: Timestamp,
    /// What policies see in `context.token.scopes`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub scopes: BTreeSet<String>,
    /// The networks it may be used from; empty: from anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "networks")]
    pub networks: Vec<IpNet>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
}

/// SHA-256 of a secret; 64 hex digits in the file.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretHash(pub [u8; 32]);

/// What is wrong with a file of API keys. Names the file and, where there is one, the key; never a value.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeyFileError {
    /// It can't be read, locked or written.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// It is longer than its limit.
    #[error("{}: is longer than `limits.api_key_file_bytes`", path.display())]
    Size {
        /// Which file.
        path: PathBuf,
    },
    /// It is not what `gatepost apikey` writes.
    #[error("{}:{line}: is not a file of API keys, as `gatepost apikey` writes it", path.display())]
    Shape {
        /// Which file.
        path: PathBuf,
        /// Where reading ended.
        line: usize,
    },
    /// It has more keys than the limit.
    #[error("{}: has more keys than `limits.api_keys`; strike the expired ones", path.display())]
    Count {
        /// Which file.
        path: PathBuf,
    },
    /// One key is wrong.
    #[error("{}: key {id}: {problem}", path.display())]
    Entry {
        /// Which file.
        path: PathBuf,
        /// Which key.
        id: String,
        /// What is wrong.
        problem: &'static str,
    },
}

impl ApiKeyFileError {
    pub(super) fn entry(path: &Path, id: &str, problem: &'static str) -> Self {
        // What stands in the id's place may be anything, a secret too, until it has the shape of an id.
        let id = if is_id(id) { id.to_owned() } else { "(without a proper id)".to_owned() };
        Self::Entry { path: path.to_owned(), id, problem }
    }

    fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source }
    }
}

impl ApiKeyFile {
    /// A file without keys.
    #[must_use]
    pub fn empty() -> Self {
        Self { version: VERSION, keys: Vec::new() }
    }

    /// Reads the file at `path`, whole and checked.
    ///
    /// # Errors
    /// [`ApiKeyFileError`] names the first thing that is wrong.
    pub fn read(path: &Path, limits: &Limits) -> Result<Self, ApiKeyFileError> {
        let file = File::open(path).map_err(ApiKeyFileError::io(path, "can't be read"))?;
        let most = u64::try_from(limits.api_key_file_bytes).unwrap_or(u64::MAX);
        let mut text = Vec::new();
        file.take(most.saturating_add(1)).read_to_end(&mut text).map_err(ApiKeyFileError::io(path, "can't be read"))?;
        if text.len() > limits.api_key_file_bytes {
            return Err(ApiKeyFileError::Size { path: path.to_owned() });
        }
        let read: Self = serde_json::from_slice(&text)
            .map_err(|error| ApiKeyFileError::Shape { path: path.to_owned(), line: error.line() })?;
        read.check(path, limits)?;
        Ok(read)
    }

    /// Changes the file at `path` and gives what `change` gave. Two that change it at once come one after the other, and
    /// whoever reads sees the old file or the new one. Where there is none, `change` starts with an empty one if `create`.
    ///
    /// # Errors
    /// [`ApiKeyFileError`], or what `change` refused with; then nothing has changed.
    pub fn change<T, E: From<ApiKeyFileError>>(
        path: &Path,
        limits: &Limits,
        create: bool,
        change: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        // Where a link leads, so that it stays a link.
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let path = real.as_path();
        // The file itself is replaced, so the lock is on one beside it that stays.
        let lock = beside(path, ".lock");
        let locked = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(ApiKeyFileError::io(&lock, "can't be opened"))?;
        locked.lock().map_err(ApiKeyFileError::io(&lock, "can't be locked"))?;
        let mut file = match Self::read(path, limits) {
            Err(ApiKeyFileError::Io { source, .. }) if create && source.kind() == io::ErrorKind::NotFound => {
                Self::empty()
            }
            read => read?,
        };
        let changed = change(&mut file)?;
        file.check(path, limits)?;
        file.write(path, limits)?;
        // Dropping `locked` gives the lock back.
        Ok(changed)
    }

    /// Writes a new file aside and puts it in the old one's place: no reader ever sees half of it, and after a crash it
    /// is the old one or the new one.
    fn write(&self, path: &Path, limits: &Limits) -> Result<(), ApiKeyFileError> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| ApiKeyFileError::io(path, "can't be written")(io::Error::other(error)))?;
        text.push(b'\n');
        if text.len() > limits.api_key_file_bytes {
            return Err(ApiKeyFileError::Size { path: path.to_owned() });
        }
        // A file that the server may read as another user or in a group stays so; where that can't be, nothing changes.
        let before = std::fs::metadata(path).ok();
        let mode = before.as_ref().map_or(0o600, |facts| facts.permissions().mode() & 0o777);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let written = tempfile::Builder::new()
            .prefix(".apikeys-")
            .permissions(std::fs::Permissions::from_mode(0o600))
            .tempfile_in(folder)
            .and_then(|mut aside| {
                aside.write_all(&text)?;
                let made = aside.as_file().metadata()?;
                if let Some(before) = before.filter(|before| (before.uid(), before.gid()) != (made.uid(), made.gid())) {
                    fchown(aside.as_file(), Some(before.uid()), Some(before.gid()))?;
                }
                aside.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
                aside.as_file().sync_all()?;
                aside.persist(path).map_err(|error| error.error)?;
                // The new name has to survive a crash too.
                File::open(folder)?.sync_all()
            });
        written.map_err(ApiKeyFileError::io(path, "can't be written"))
    }

    fn check(&self, path: &Path, limits: &Limits) -> Result<(), ApiKeyFileError> {
        if self.version != VERSION {
            return Err(ApiKeyFileError::Shape { path: path.to_owned(), line: 1 });
        }
        if self.keys.len() > limits.api_keys {
            return Err(ApiKeyFileError::Count { path: path.to_owned() });
        }
        let mut seen = BTreeSet::new();
        for key in &self.keys {
            let problem = if seen.insert(&key.id) { key.problem(limits) } else { Some("is listed twice") };
            if let Some(problem) = problem {
                return Err(ApiKeyFileError::entry(path, &key.id, problem));
            }
        }
        Ok(())
    }
}

impl ApiKeyEntry {
    fn problem(&self, limits: &Limits) -> Option<&'static str> {
        // RFC 6749 section 3.3: a scope is printable ASCII without space, quote and backslash.
        let is_scope = |scope: &String| {
            (1..=MAX_SCOPE_BYTES).contains(&scope.len())
                && scope.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
        };
        let checks = [
            (is_id(&self.id), "`id` must be 16 lower-case hex digits"),
            (EntityId::parse(&self.owner, limits.id_bytes).is_ok(), "`owner` is not fit to be an id"),
            (self.expires > self.created, "`expires` must be after `created`"),
            (self.scopes.len() <= MAX_SCOPES, "has more than 64 scopes"),
            (
                self.scopes.iter().all(is_scope),
                "a scope must be 1 to 256 printable characters without space, quote and backslash",
            ),
            (self.networks.len() <= MAX_NETWORKS, "has more than 64 networks"),
            (
                self.networks.iter().all(|network| network.trunc() == *network),
                "a network must have no bits set past its length: `10.0.0.0/8`",
            ),
            (
                self.note.as_ref().is_none_or(|note| note.len() <= MAX_NOTE_BYTES && !note.chars().any(is_hidden)),
                "`note` must be at most 1024 bytes without hidden characters",
            ),
        ];
        checks.into_iter().find(|(fits, _)| !fits).map(|(_, problem)| problem)
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A network as it is compared: IPv4 in an IPv6 coat (`::ffff:10.0.0.0/104`) is IPv4.
#[must_use]
pub fn canonical(network: IpNet) -> IpNet {
    match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => {
            let inner = v6.addr().to_ipv4_mapped().and_then(|addr| Ipv4Net::new(addr, v6.prefix_len() - 96).ok());
            inner.map_or(network, IpNet::V4)
        }
        IpNet::V4(_) | IpNet::V6(_) => network,
    }
}

fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    Ok(Vec::<IpNet>::deserialize(deserializer)?.into_iter().map(canonical).collect())
}

impl std::fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

impl Serialize for SecretHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for SecretHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> = text
            .bytes()
            .map(|byte| match byte {
                b'0'..=b'9' => Some(byte - b'0'),
                b'a'..=b'f' => Some(byte - b'a' + 10),
                _ => None,
            })
            .collect();
        let mut hash = [0; 32];
        match digits {
            Some(digits) if digits.len() == 64 => {
                for (to, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
                    *to = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
                }
                Ok(Self(hash))
            }
            // Says nothing of the value: somebody may have put the secret there.
            Some(_) | None => Err(serde::de::Error::custom("must be 64 lower-case hex digits")),
        }
    }
}

/// What changes when a file does: its identity, length and times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp([i64; 4], u64, u64);

impl Stamp {
    /// Nothing when the file is not there.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let facts = std::fs::metadata(path).ok()?;
        let times = [facts.mtime(), facts.mtime_nsec(), facts.ctime(), facts.ctime_nsec()];
        Some(Self(times, facts.ino(), facts.size()))
    }
}

/// Says so when everybody may read or change the file.
pub(super) fn warn_if_open(path: &Path) {
    if crate::trust::is_open_to_all(path) {
        tracing::warn!(file = %path.display(), "the API keys are open to every user: make the file's mode 0600 or 0640");
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}
