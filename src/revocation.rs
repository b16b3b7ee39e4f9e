//! What no longer counts, though nothing is wrong with it: token ids, subjects, sessions, callers' certificates.
//!
//! [`Revocations`] is asked on every question, before any cache and whatever it says. The list only grows: two lists
//! are joined by taking the later end and the later cut-off of each entry, so that it does not matter in which order,
//! how often or over which way an entry comes. Nothing but time takes one away. Entries come from the admin listener,
//! from a [`file`] and from other replicas ([`replicas`]); each of the three may be gone and the list still holds.
//!
//! Imports `config`, `clock` and the facts of a verified token. Knows nothing of gRPC, operators or audit.

mod entry;
pub mod file;
mod list;
pub mod replicas;
#[cfg(test)]
mod tests;
mod touch;

pub use entry::{Flaw, Key, Kind, LATEST_CUT_OFF, Revocation};
pub use list::{Full, Hit, Place, Revocations, Room};
pub use touch::Touch;

/// Where entries come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The admin listener.
    Admin,
    /// The file.
    File,
    /// Redis or Valkey.
    Redis,
}

impl Source {
    /// The word for metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::File => "file",
            Self::Redis => "redis",
        }
    }
}

/// What became of entries that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// In force.
    Taken,
    /// Not an entry at all, or one that can't be meant.
    Malformed,
    /// There was no room.
    Full,
}

impl Fate {
    /// The word for metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Malformed => "malformed",
            Self::Full => "full",
        }
    }
}

/// Hears what became of entries: where they came from, what happened, and to how many.
pub type Told = std::sync::Arc<dyn Fn(Source, Fate, usize) + Send + Sync>;
