//! What every target can do: take a batch of records, or say how many it took and why no more.

use std::pin::Pin;
use std::time::Duration;

use serde_json::Value;

use crate::audit::scrub::scrub_text;

/// A record on its way to one sink: filtered, masked and in its form.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outgoing {
    /// Its number.
    pub(crate) sequence: u64,
    /// `metadata.uid`: what a receiver tells copies apart by.
    pub(crate) uid: String,
    /// When it happened, milliseconds since 1970.
    pub(crate) time_ms: i64,
    /// The record, as far as this sink may see it; nothing where the target only needs its form.
    pub(crate) record: Value,
    /// Its form.
    pub(crate) encoded: Vec<u8>,
}

/// A batch was taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Those that it will never have, by position, each with the receiver's reason. Bounded, and without a secret.
    pub(crate) refused: Vec<(usize, String)>,
}

impl Taken {
    /// Every one of them.
    pub(crate) fn all() -> Self {
        Self::default()
    }
}

/// A batch was not taken, or not all of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fault {
    /// For the log. Bounded, and without a secret.
    pub(crate) message: String,
    /// So many of the first are taken all the same.
    pub(crate) taken: usize,
    /// Of those, the ones that it will never have.
    pub(crate) refused: Vec<(usize, String)>,
    /// When the receiver wants to be asked again.
    pub(crate) retry_after: Option<Duration>,
}

impl Fault {
    /// Nothing was taken.
    pub(crate) fn new(message: &str) -> Self {
        Self { message: bounded(message), ..Self::default() }
    }
}

/// What others say, cut to what a log line bears. A receiver may repeat what it was sent: the net is there for that too.
pub(crate) fn bounded(text: &str) -> String {
    let beginning: String = text.chars().filter(|c| !c.is_control()).take(1000).collect();
    scrub_text(&beginning).chars().take(200).collect()
}

/// How far what was taken is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// Everything that was taken.
    All,
    /// Up to this record.
    UpTo(u64),
    /// Up to this record, and the rest is to be sent again.
    Broken(u64),
}

pub(crate) type Delivery<'a> = Pin<Box<dyn Future<Output = Result<Taken, Fault>> + Send + 'a>>;

/// Somebody who takes records.
pub(crate) trait Target: Send {
    /// Hands over a batch, which is never empty. May be dropped half-way when it takes too long; then nothing of it counts
    /// as taken.
    fn deliver<'a>(&'a mut self, batch: &'a [Outgoing]) -> Delivery<'a>;

    /// How far what was taken is certain, for those who are not told at once. Asked after each batch and now and then.
    fn settled(&mut self) -> Settled {
        Settled::All
    }

    /// Whether a delivery must not be called off.
    fn patient(&self) -> bool {
        false
    }

    /// Nothing more will come: finds out what it can about what is not certain yet. Asked once, at the end.
    fn finish(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}
