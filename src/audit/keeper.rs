//! What the writer's thread does: keeps rounds of records in the spool, says of itself what has to be said, and comes back
//! by itself after a failure. It holds no lock and knows no thread, so that a test can drive it through any fault.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::checkpoint::{SigningKey, Statement};
use super::delivered::Delivered;
use super::format::Body;
use super::record::notes::{Note, render_note};
use super::record::{Frame, utc};
use super::spool::{Going, Recovered, Spool, reason};
use super::{Heard, News};
use crate::clock::SharedClock;
use crate::config::AuditMode;

/// What is only written is synced after this long, or this much.
const SYNC_EVERY: Duration = Duration::from_secs(1);
const SYNC_BYTES: usize = 8 << 20;
/// How often a spool that failed is tried again at most, however many ask.
const RETRY: Duration = Duration::from_millis(200);
/// How often the age of segments is looked at.
const TIDY: Duration = Duration::from_secs(30);
/// The wall clock may drift from time by so much before that is put on record.
const CLOCK_STEP_MS: i64 = 30_000;
/// Statements kept in `checkpoints.jsonl`, and up to as many more.
const CHECKPOINTS: usize = 1000;
/// What a note of our own takes at most, for counting room.
const NOTE_BYTES: usize = 4 << 10;
/// What comes with records and is not asked for room: the first line of a new segment, and a checkpoint at the end.
const AROUND_BYTES: usize = 3 << 9;

/// When and with what to sign.
#[derive(Debug)]
pub(super) struct Checkpoints {
    pub(super) key: SigningKey,
    pub(super) every: Duration,
    pub(super) records: u64,
}

/// Why no record can be kept at the moment.
#[derive(Debug, Clone, Copy)]
struct Failed {
    since: SystemTime,
    missing: u64,
    kind: ErrorKind,
    tried: Duration,
}

pub(super) struct Keeper {
    spool: Spool,
    frame: Arc<Frame>,
    clock: SharedClock,
    heard: Heard,
    delivered: Arc<Delivered>,
    committed: watch::Sender<u64>,
    checkpoints: Option<Checkpoints>,
    /// The record that the last checkpoint covers, and when it was made; `None`: this process has made none, and the first
    /// that it makes does not wait, so that a spool which has just begun can be verified with the key.
    signed: (u64, Option<Duration>),
    failed: Option<Failed>,
    /// Records that were never taken, by reason: how many since when.
    lost: BTreeMap<&'static str, (u64, SystemTime)>,
    /// When something was first written that is not synced yet.
    unsynced: Option<Duration>,
    tidied: Duration,
    /// The last record of which was told that it goes.
    told_removed: u64,
    /// Wall and monotonic clock when last looked at.
    clocks: (SystemTime, Duration),
}

impl Keeper {
    pub(super) fn new(
        spool: Spool,
        frame: Arc<Frame>,
        clock: SharedClock,
        heard: Heard,
        delivered: Arc<Delivered>,
        checkpoints: Option<Checkpoints>,
    ) -> Self {
        let (now, monotonic) = (clock.now(), clock.monotonic());
        let committed = watch::Sender::new(spool.kept());
        let signed = (spool.kept(), None);
        let clocks = (now, monotonic);
        Self {
            spool,
            frame,
            clock,
            heard,
            delivered,
            committed,
            checkpoints,
            signed,
            failed: None,
            lost: BTreeMap::new(),
            unsynced: None,
            tidied: monotonic,
            told_removed: 0,
            clocks,
        }
    }

    /// Puts on record what the start found.
    ///
    /// # Errors
    /// When that can't be kept: then nobody is to be served.
    pub(super) fn begin(&mut self, recovered: &Recovered) -> Result<(), ErrorKind> {
        let mut notes = Vec::new();
        if recovered.torn {
            notes.push(Note::Torn);
        }
        for gap in &recovered.gaps {
            (self.heard)(News::Lost { place: "trail", reason: "quarantined", count: gap.last - gap.first + 1 });
            notes.push(Note::Gap { first: gap.first, last: gap.last, reason: gap.reason });
        }
        if !recovered.quarantined.is_empty() {
            notes.push(Note::Quarantined);
        }
        if let Some(before) = recovered.last_mode.as_deref().filter(|mode| *mode != self.frame.keeping.mode.as_str()) {
            notes.push(Note::ModeChanged { before });
        }
        // Few and short, so there is room for them whatever `audit.spool.max_bytes` says: a spool that is full of what a
        // sink has still to get would otherwise never start again, and the sink never get it.
        self.commit_within(&notes, &[], true, None)?;
        if !recovered.gaps.is_empty() {
            self.sign(true);
        }
        Ok(())
    }

    /// What was committed: the last record that a sink may have. It is what the disk has kept.
    pub(super) fn committed(&self) -> watch::Receiver<u64> {
        self.committed.subscribe()
    }

    /// All segments together.
    pub(super) fn bytes(&self) -> u64 {
        self.spool.bytes()
    }

    /// Names the spool.
    pub(super) fn chain(&self) -> &str {
        self.spool.chain()
    }

    /// Whether the last attempt got through.
    pub(super) fn sound(&self) -> bool {
        self.failed.is_none()
    }

    /// Keeps a round of records, all or none.
    ///
    /// # Errors
    /// Why none of them is on record.
    pub(super) fn keep(&mut self, round: &[(&Body, AuditMode)]) -> Result<(), ErrorKind> {
        let count = round.len() as u64;
        if let Err(kind) = self.ready() {
            self.missed(count);
            return Err(kind);
        }
        let clocks = self.clocks;
        let mut notes = self.clock_note();
        if let Some(failed) = self.failed {
            notes.insert(0, Note::Resumed { since: failed.since, missing: failed.missing });
        }
        for (reason, (count, since)) in &self.lost {
            notes.push(Note::Lost { since: *since, count: *count, reason });
        }
        let bodies: Vec<&Body> = round.iter().map(|(body, _)| *body).collect();
        let sync = round.iter().any(|(_, mode)| *mode == AuditMode::Durable) || !notes.is_empty();
        match self.commit(&notes, &bodies, sync) {
            Ok(()) => {
                let resumed = self.failed.take().is_some();
                if resumed {
                    tracing::warn!("audit records are being kept again");
                }
                self.lost.clear();
                // While nothing could be kept, nothing was signed either.
                self.sign(resumed);
                Ok(())
            }
            Err(kind) => {
                // What was to be said of the clock is still to be said.
                self.clocks = clocks;
                self.fail(kind);
                self.missed(count);
                Err(kind)
            }
        }
    }

    /// Records that were not even taken, for a reason from a closed list.
    pub(super) fn lost(&mut self, reason: &'static str, count: u64) {
        if count > 0 {
            let now = self.clock.now();
            self.lost.entry(reason).or_insert((0, now)).0 += count;
            (self.heard)(News::Lost { place: "trail", reason, count });
        }
    }

    /// What has to be done when nobody asks. Says how soon again.
    pub(super) fn tick(&mut self) -> Duration {
        if self.failed.is_some() || !self.lost.is_empty() {
            // An empty round says what there is to say.
            let _ = self.keep(&[]);
        }
        let monotonic = self.clock.monotonic();
        if self.unsynced.is_some_and(|since| monotonic.saturating_sub(since) >= SYNC_EVERY)
            || self.spool.pending() > SYNC_BYTES
        {
            self.sync();
        }
        if monotonic.saturating_sub(self.tidied) >= TIDY {
            self.tidied = monotonic;
            self.tidy();
        }
        self.sign(false);
        if self.failed.is_some() || self.unsynced.is_some() { SYNC_EVERY } else { TIDY.min(self.until_signing()) }
    }

    /// The last words: a checkpoint, and everything kept.
    pub(super) fn close(&mut self) {
        if self.failed.is_some() || !self.lost.is_empty() {
            let _ = self.keep(&[]);
        }
        self.sign(true);
        self.sync();
    }

    fn sync(&mut self) {
        if let Err(kind) = self.commit(&[], &[], true) {
            self.fail(kind);
        }
    }

    /// Whether a round may be tried.
    fn ready(&mut self) -> Result<(), ErrorKind> {
        let Some(failed) = &mut self.failed else { return Ok(()) };
        let monotonic = self.clock.monotonic();
        if monotonic.saturating_sub(failed.tried) < RETRY && failed.tried != Duration::ZERO {
            return Err(failed.kind);
        }
        failed.tried = monotonic.max(Duration::from_nanos(1));
        // There is room again when the reserve finds its place.
        if let Err(fault) = self.spool.set_aside() {
            let kind = fault.kind();
            if let Some(failed) = &mut self.failed {
                failed.kind = kind;
            }
            return Err(kind);
        }
        Ok(())
    }

    fn commit(&mut self, notes: &[Note<'_>], bodies: &[&Body], sync: bool) -> Result<(), ErrorKind> {
        let bytes = bodies.iter().map(|body| body.bytes() + 1).sum::<usize>() + notes.len() * NOTE_BYTES;
        self.commit_within(notes, bodies, sync, Some(bytes))
    }

    /// Seals, writes and syncs; publishes what is kept. So many bytes have to find room, if any.
    fn commit_within(
        &mut self,
        notes: &[Note<'_>],
        bodies: &[&Body],
        sync: bool,
        room: Option<usize>,
    ) -> Result<(), ErrorKind> {
        let now = self.clock.now();
        let bytes = room.unwrap_or(0);
        if bytes > 0 {
            // What this closes may be what has to go.
            self.spool.begin(bytes);
            self.make_room(bytes)?;
        }
        self.spool.begin(bytes);
        for note in notes {
            if let Ok(body) = render_note(note, now, &self.frame) {
                self.spool.seal(&body);
            }
        }
        for body in bodies {
            self.spool.seal(body);
        }
        let began = self.clock.monotonic();
        let sync = sync || self.spool.pending() > SYNC_BYTES;
        let had = self.spool.pending() > 0;
        self.spool.commit(sync, now).map_err(|fault| fault.kind())?;
        if sync {
            if had {
                (self.heard)(News::Synced { took: self.clock.monotonic().saturating_sub(began) });
            }
            self.unsynced = None;
        } else if self.spool.pending() > 0 {
            self.unsynced.get_or_insert(began);
        }
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        let kept = self.spool.kept();
        self.committed.send_if_modified(|committed| std::mem::replace(committed, kept) != kept);
    }

    /// Removes the oldest segments, if so many bytes more would be too many.
    fn make_room(&mut self, bytes: usize) -> Result<(), ErrorKind> {
        let bytes = bytes.saturating_add(AROUND_BYTES);
        if !self.spool.is_full(bytes) {
            return Ok(());
        }
        for full in [false, true] {
            let delivered = self.delivered.by_all(full);
            while let Some(oldest) = self.spool.going_for(bytes, delivered) {
                let (first, last) = (oldest.first, oldest.last);
                self.remove(first, last, "SIZE")?;
            }
        }
        if self.spool.is_full(bytes) { Err(ErrorKind::QuotaExceeded) } else { Ok(()) }
    }

    /// Removes what is too old, and what is too much.
    fn tidy(&mut self) {
        let delivered = self.delivered.by_all(false);
        while let Some((oldest, going)) = self.spool.going(delivered, self.clock.now()) {
            let (first, last) = (oldest.first, oldest.last);
            let reason = match going {
                Going::Age => "AGE",
                Going::Size => "SIZE",
            };
            if self.remove(first, last, reason).is_err() {
                break;
            }
        }
    }

    /// Says that the oldest segment goes, signs it, then removes it: a missing beginning is believed for a signature alone.
    fn remove(&mut self, first: u64, last: u64, reason: &'static str) -> Result<(), ErrorKind> {
        // One that could not be removed the last time has been told already.
        if last >= first && last > self.told_removed {
            self.note(&Note::Removed { first, last, reason })?;
            self.told_removed = last;
            self.sign(true);
        }
        self.spool.remove_oldest().map_err(|fault| fault.kind())
    }

    /// Keeps a note of our own, whether or not there is room for it.
    fn note(&mut self, note: &Note<'_>) -> Result<(), ErrorKind> {
        let now = self.clock.now();
        if let Ok(body) = render_note(note, now, &self.frame) {
            self.spool.begin(body.bytes());
            self.spool.seal(&body);
            self.spool.commit(true, now).map_err(|fault| fault.kind())?;
            self.unsynced = None;
            self.publish();
        }
        Ok(())
    }

    /// Nothing can be kept from now on. The reserve makes room for the record that says so.
    fn fail(&mut self, kind: ErrorKind) {
        let monotonic = self.clock.monotonic();
        match &mut self.failed {
            Some(failed) => (failed.kind, failed.tried) = (kind, monotonic),
            None => {
                tracing::error!(fault = %kind, "audit records can't be kept: no answer leaves until they can");
                let now = self.clock.now();
                self.failed = Some(Failed { since: now, missing: 0, kind, tried: monotonic });
                let reserve = reason(kind) == "DISK_FULL" && self.spool.give_back();
                if reserve {
                    // What failed is told already; this is one attempt to have it on record too.
                    let _ = self.note(&Note::Failed { reason: reason(kind) });
                }
            }
        }
    }

    fn missed(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        if let Some(failed) = &mut self.failed {
            failed.missing += count;
        }
        (self.heard)(News::Lost { place: "trail", reason: "failed", count });
    }

    /// Whether the wall clock went elsewhere than time did.
    fn clock_note(&mut self) -> Vec<Note<'static>> {
        let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
        let (wall, since) = std::mem::replace(&mut self.clocks, (now, monotonic));
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let went = now.duration_since(wall).map_or_else(|back| -millis(back.duration()), millis);
        let milliseconds = went.saturating_sub(millis(monotonic.saturating_sub(since)));
        if milliseconds.abs() < CLOCK_STEP_MS {
            return Vec::new();
        }
        tracing::warn!(milliseconds, "the wall clock jumped");
        vec![Note::ClockJumped { milliseconds }]
    }

    fn until_signing(&self) -> Duration {
        let Some(checkpoints) = self.checkpoints.as_ref().filter(|_| self.spool.last().0 > self.signed.0) else {
            // Whatever comes wakes us.
            return TIDY;
        };
        let passed = self.signed.1.map(|since| self.clock.monotonic().saturating_sub(since));
        passed.map_or(Duration::ZERO, |passed| checkpoints.every.saturating_sub(passed)).max(Duration::from_millis(10))
    }

    /// Signs where the chain stands, when it is time and there is anything new.
    fn sign(&mut self, at_once: bool) {
        let Some(checkpoints) = &self.checkpoints else { return };
        if self.failed.is_some() {
            return;
        }
        let (last, hash) = self.spool.last();
        let (signed, since) = self.signed;
        let monotonic = self.clock.monotonic();
        let new = last.saturating_sub(signed);
        let aged = since.is_none_or(|since| monotonic.saturating_sub(since) >= checkpoints.every);
        let due = at_once || new >= checkpoints.records || aged;
        if new == 0 || !due {
            return;
        }
        let time = utc(self.clock.now());
        let (chain, oldest) = (self.spool.chain().to_owned(), self.spool.oldest());
        let statement = checkpoints.key.sign(Statement { chain, sequence: last, hash, oldest, time });
        // The record of it is the next one, and nothing new by itself.
        self.signed = (last + 1, Some(monotonic));
        // Not by way of making room: that signs too.
        if let Err(kind) = self.note(&Note::Checkpoint(&statement)) {
            self.fail(kind);
            return;
        }
        let kept = serde_json::to_vec(&statement).map_err(std::io::Error::other).and_then(|mut line| {
            line.push(b'\n');
            self.spool.keep_checkpoint(&line, CHECKPOINTS)
        });
        if let Err(fault) = kept {
            tracing::warn!(%fault, "a checkpoint could not be written beside the segments; it is on record all the same");
        }
    }
}

#[cfg(test)]
mod tests;
