//! One entry: what is revoked, as a hash, and until when. And the line that says so, in files and in Redis alike.
//!
//! Ids are never kept. What stands for one is `SHA-256(kind "\n" issuer "\n" hex(SHA-256(id)))`: kind and hex have no
//! line break, so no two different triples make the same text. A certificate's key is the SHA-256 of its DER.

use std::fmt;

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

/// What kind of thing is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One token, by `jti`.
    Token,
    /// Every token of a subject that was issued before an instant.
    Subject,
    /// Every token of a session, by `sid`.
    Session,
    /// A caller's certificate.
    Certificate,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Token, Self::Subject, Self::Session, Self::Certificate];

    /// When an entry of this kind may end, at the latest.
    #[must_use]
    pub fn latest_end(self, now: u64) -> u64 {
        match self {
            Self::Token | Self::Subject | Self::Session => now.saturating_add(LATEST_END),
            Self::Certificate => LAST_SECOND,
        }
    }

    /// The word in lines, records and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Subject => "subject",
            Self::Session => "session",
            Self::Certificate => "certificate",
        }
    }
}

/// Stands for an id without telling it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl Key {
    /// For a token, subject or session of `issuer`, by its id.
    #[must_use]
    pub fn of(kind: Kind, issuer: &str, id: &str) -> Self {
        Self::of_sha256(kind, issuer, &HEXLOWER.encode(&sha256(id.as_bytes())))
    }

    /// The same, where only the id's SHA-256 is known, in lower-case hex.
    #[must_use]
    pub fn of_sha256(kind: Kind, issuer: &str, id_sha256: &str) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [kind.as_str(), "\n", issuer, "\n", id_sha256] {
            context.update(part.as_bytes());
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.finish().as_ref());
        Self(key)
    }

    /// For a certificate, by the SHA-256 of its DER.
    #[must_use]
    pub fn of_certificate(sha256: &[u8; 32]) -> Self {
        Self(*sha256)
    }

    /// 64 lower-case hex digits, or nothing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return None;
        }
        let mut key = [0; 32];
        for (byte, [high, low]) in key.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(key))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One thing that is revoked. Times are whole seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation {
    /// What it is.
    pub kind: Kind,
    /// Which one.
    pub key: Key,
    /// What was issued before this counts no longer; [`EVERYTHING`] for all kinds but subjects.
    pub issued_before: u64,
    /// The entry may go after this.
    pub until: u64,
}

/// The cut-off of what is revoked whenever it was issued.
pub const EVERYTHING: u64 = u64::MAX;
/// How far ahead an entry may end, in seconds: ten years. One that ends later would take its place for good.
const LATEST_END: u64 = 10 * 366 * 24 * 3600;
/// 9999-12-31T23:59:59Z. Certificates live as long as their authority likes, and their entries as long as they.
const LAST_SECOND: u64 = 253_402_300_799;
/// How far ahead a cut-off may lie, in seconds: a cut-off never moves back, so one in the far future would lock its
/// subject out.
pub const LATEST_CUT_OFF: u64 = 120;
/// Clocks of replicas may differ by so much, in seconds: what one could say, another must be able to read.
pub const CLOCKS_DIFFER: u64 = 120;
/// A longer line is not one of ours. The longest that is has 164 bytes.
pub const LINE_BYTES: usize = 256;

/// Why a line is no entry. Never repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Flaw {
    /// Longer than [`LINE_BYTES`].
    #[error("is longer than 256 bytes")]
    TooLong,
    /// Not a JSON object of exactly the known members.
    #[error("is not a JSON object with `kind`, `key`, `until` and, for a subject, `issued_before`")]
    Shape,
    /// Not 64 lower-case hex digits.
    #[error("has a `key` that is not 64 lower-case hex digits")]
    Key,
    /// A subject without a cut-off, or something else with one.
    #[error("must have `issued_before` if it is a subject, and must not otherwise")]
    CutOff,
    /// The cut-off lies too far ahead.
    #[error("has an `issued_before` more than 240 s ahead: it would lock the subject out, unless our clock is wrong")]
    CutOffAhead,
    /// It ends too late.
    #[error("has an `until` more than ten years ahead, or after the year 9999 for a certificate")]
    EndsTooLate,
    /// The line was never finished.
    #[error("was not finished")]
    Torn,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    kind: Kind,
    #[serde(borrow)]
    key: std::borrow::Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issued_before: Option<u64>,
    until: u64,
}

impl Revocation {
    /// Everything with this key, whenever it was issued.
    #[must_use]
    pub fn whole(kind: Kind, key: Key, until: u64) -> Self {
        Self { kind, key, issued_before: EVERYTHING, until }
    }

    /// Reads one line, without its line break. `now` is in seconds; whoever wrote it may be [`CLOCKS_DIFFER`] ahead.
    ///
    /// # Errors
    /// [`Flaw`] names the first rule that is broken.
    pub fn read(line: &[u8], now: u64) -> Result<Self, Flaw> {
        if line.len() > LINE_BYTES {
            return Err(Flaw::TooLong);
        }
        let line: Line<'_> = serde_json::from_slice(line).map_err(|_| Flaw::Shape)?;
        let now = now.saturating_add(CLOCKS_DIFFER);
        let key = Key::parse(&line.key).ok_or(Flaw::Key)?;
        let issued_before = match (line.kind, line.issued_before) {
            (Kind::Subject, Some(cut_off)) if cut_off > now.saturating_add(LATEST_CUT_OFF) => {
                return Err(Flaw::CutOffAhead);
            }
            (Kind::Subject, Some(cut_off)) => cut_off,
            (Kind::Token | Kind::Session | Kind::Certificate, None) => EVERYTHING,
            (Kind::Subject, None) | (Kind::Token | Kind::Session | Kind::Certificate, Some(_)) => {
                return Err(Flaw::CutOff);
            }
        };
        if line.until > line.kind.latest_end(now) {
            return Err(Flaw::EndsTooLate);
        }
        Ok(Self { kind: line.kind, key, issued_before, until: line.until })
    }

    /// The line that [`read`](Self::read) takes; one entry has one line.
    ///
    /// # Errors
    /// Only if JSON can't hold it, which no entry brings about.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Line {
            kind: self.kind,
            key: self.key.to_string().into(),
            issued_before: self.cut_off(),
            until: self.until,
        })
    }

    /// The cut-off, where there is one.
    #[must_use]
    pub fn cut_off(&self) -> Option<u64> {
        (self.issued_before != EVERYTHING).then_some(self.issued_before)
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}
