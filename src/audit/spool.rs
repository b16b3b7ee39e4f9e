//! The segment files that every record goes to first.
//!
//! A round of records is sealed, written to the open segment, and, when one of them asks for it, kept by the disk before
//! anybody is told. What the disk has not kept yet stays in memory: a segment whose write or sync failed is never touched
//! again, and all that it may have lost is written anew, byte for byte, to another, whose first line says from which
//! number on it counts. A round is kept whole or not at all.
//!
//! Knows files and lines; nothing of what a record says, of threads, or of who waits.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::disk::{Disk, DiskFile, FolderError, write_all};
use super::format::{Body, Hash, Header, VERSION, segment_name, segment_number};
use crate::config::SpoolConfig;

mod recover;

pub(crate) use recover::Recovered;

/// A file that is set aside, so that a full disk can still be recorded.
const RESERVE: &str = "reserve";

/// Why a spool can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder is missing, not ours, or in use.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A segment of another version of the format.
    #[error(
        "{} has version {version} of the spool's format, and this Gatepost reads {VERSION}: let the Gatepost that wrote it \
         deliver and verify it, or move the folder away and start with an empty one",
        path.display()
    )]
    Version {
        /// The segment.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Segments of two spools in one folder.
    #[error("{} belongs to another spool than the segments before it: take one of the two out of the folder", path.display())]
    TwoChains {
        /// The first that does not belong.
        path: PathBuf,
    },
    /// The system's words.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Who writes, for the first line of segments.
#[derive(Debug, Clone)]
pub(crate) struct Writing {
    pub(crate) boot: String,
    pub(crate) mode: &'static str,
}

/// A segment that is written to no more.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    pub(crate) number: u64,
    /// The first record that counts here.
    pub(crate) first: u64,
    /// The last one; less than `first` when none does.
    pub(crate) last: u64,
    pub(crate) bytes: u64,
    pub(crate) opened: SystemTime,
}

struct Open {
    closed: Closed,
    file: Box<dyn DiskFile>,
}

/// Why the oldest segment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Going {
    /// `audit.spool.max_age`
    Age,
    /// `audit.spool.max_bytes`
    Size,
}

/// The spool of one process.
pub(crate) struct Spool {
    disk: Box<dyn Disk>,
    config: SpoolConfig,
    chain: String,
    writing: Writing,
    closed: VecDeque<Closed>,
    open: Option<Open>,
    next_segment: u64,
    /// The number of the next record.
    next: u64,
    /// The hash of the last one.
    prev: Hash,
    /// Lines that the disk has not certainly kept.
    pending: Vec<u8>,
    /// The number of the first of them, and the hash of the record before it.
    pending_from: (u64, Hash),
    /// How much of `pending` is in the open segment.
    written: usize,
    /// Where the round began: bytes of `pending`, number, hash.
    round: (usize, u64, Hash),
    /// Whether the reserve is in its place.
    reserve: bool,
}

impl Spool {
    /// Opens what is there, mends what can be mended, and says what was found.
    ///
    /// # Errors
    /// [`SpoolError`]; then nothing was changed but what had been mended before.
    pub(crate) fn open(
        mut disk: Box<dyn Disk>,
        config: &SpoolConfig,
        writing: Writing,
        fresh_chain: String,
    ) -> Result<(Self, Recovered), SpoolError> {
        let mut recovered = recover::recover(&mut *disk, config, &fresh_chain)?;
        let (next, prev) = recovered.carried_to;
        let mut spool = Self {
            disk,
            config: config.clone(),
            chain: recovered.chain.clone().unwrap_or(fresh_chain),
            writing,
            closed: std::mem::take(&mut recovered.segments).into(),
            open: None,
            next_segment: recovered.next_segment,
            next,
            prev,
            round: (recovered.carried.len(), next, prev),
            pending: std::mem::take(&mut recovered.carried),
            pending_from: recovered.end,
            written: 0,
            reserve: false,
        };
        spool.set_aside().map_err(|source| SpoolError::Io { path: config.directory.join(RESERVE), source })?;
        Ok((spool, recovered))
    }

    /// Names the spool for its whole life.
    pub(crate) fn chain(&self) -> &str {
        &self.chain
    }

    /// The number of the last record, and its hash.
    pub(crate) fn last(&self) -> (u64, Hash) {
        (self.next - 1, self.prev)
    }

    /// The last record that the disk has certainly kept.
    pub(crate) fn kept(&self) -> u64 {
        self.pending_from.0 - 1
    }

    /// The oldest record that is there.
    pub(crate) fn oldest(&self) -> u64 {
        let open = self.open.as_ref().map(|open| open.closed.first);
        self.closed.iter().find(|one| one.last >= one.first).map(|one| one.first).or(open).unwrap_or(self.next)
    }

    /// All segments together.
    pub(crate) fn bytes(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |open| open.closed.bytes);
        self.closed.iter().map(|one| one.bytes).sum::<u64>() + open
    }

    /// Lines that the disk has not certainly kept, in bytes.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether so many bytes more would be past `audit.spool.max_bytes`.
    pub(crate) fn is_full(&self, more: usize) -> bool {
        self.bytes().saturating_add(more as u64) > self.config.max_bytes
    }

    /// Begins a round of about so many bytes: the segment is closed when they would not fit.
    pub(crate) fn begin(&mut self, bytes: usize) {
        let full = self.open.as_ref().is_some_and(|open| {
            open.closed.bytes + bytes as u64 > self.config.segment_bytes && self.next > open.closed.first
        });
        if full {
            self.close_segment();
        }
        self.round = (self.pending.len(), self.next, self.prev);
    }

    /// Puts a record into the round.
    pub(crate) fn seal(&mut self, body: &Body) {
        self.prev = body.seal(self.next, self.prev, &mut self.pending);
        self.next += 1;
    }

    /// Writes the round, and with `sync` makes the disk keep it. When that fails it is tried once more in a new segment.
    ///
    /// # Errors
    /// The second failure; then the round is as if it had never been.
    pub(crate) fn commit(&mut self, sync: bool, now: SystemTime) -> io::Result<()> {
        let first = match self.attempt(sync, now) {
            Ok(()) => return Ok(()),
            Err(fault) => fault,
        };
        tracing::warn!(fault = %first, "a segment of the audit spool failed: its records go to a new one");
        self.abandon();
        self.attempt(sync, now).inspect_err(|_| {
            self.abandon();
            let (bytes, next, prev) = self.round;
            self.pending.truncate(bytes);
            (self.next, self.prev) = (next, prev);
        })
    }

    fn attempt(&mut self, sync: bool, now: SystemTime) -> io::Result<()> {
        let fresh = self.open.is_none() && !self.pending.is_empty();
        if fresh {
            self.open = Some(self.new_segment(now)?);
        }
        self.write_down(sync).inspect_err(|_| {
            if fresh {
                self.take_back();
            }
        })
    }

    /// Removes a segment that failed before anything in it was told to anybody, so that a disk which fails for an hour
    /// does not leave a file for each time it was tried.
    fn take_back(&mut self) {
        let name = self.open.as_ref().map(|open| segment_name(open.closed.number));
        if name.is_some_and(|name| self.disk.remove(&name).is_ok()) {
            self.open = None;
            self.written = 0;
        }
    }

    fn write_down(&mut self, sync: bool) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let rest = self.pending.get(self.written..).unwrap_or_default();
        if !rest.is_empty() && !open.file.is_there() {
            // Somebody took it away: what goes into it now, nobody would find.
            return Err(ErrorKind::NotFound.into());
        }
        write_all(&mut *open.file, rest)?;
        open.closed.bytes += rest.len() as u64;
        self.written = self.pending.len();
        if sync && !self.pending.is_empty() {
            open.file.sync()?;
            self.settled();
        }
        Ok(())
    }

    /// Everything pending is certainly kept.
    fn settled(&mut self) {
        self.pending.clear();
        self.written = 0;
        self.pending_from = (self.next, self.prev);
        self.round = (0, self.next, self.prev);
    }

    /// Closes the open segment once the disk has kept it; one that it would not keep is abandoned.
    fn close_segment(&mut self) {
        let Some(open) = &mut self.open else { return };
        // Whatever is pending is written already: this is called between rounds.
        if self.pending.is_empty() || open.file.sync().is_ok() {
            open.closed.last = self.next - 1;
            self.settled();
            if let Some(open) = self.open.take() {
                self.closed.push_back(open.closed);
            }
        } else {
            self.abandon();
        }
    }

    /// Never touches the open segment again. What it may have lost is written anew with the next round.
    fn abandon(&mut self) {
        self.written = 0;
        if let Some(mut open) = self.open.take() {
            open.closed.last = self.pending_from.0 - 1;
            self.closed.push_back(open.closed);
        }
    }

    /// A new segment, for what is pending. Its number is spent whatever happens, so that no name comes twice.
    fn new_segment(&mut self, now: SystemTime) -> io::Result<Open> {
        let number = self.next_segment;
        self.next_segment += 1;
        let (first_sequence, prev_hash) = self.pending_from;
        let header = Header {
            gatepost_spool: VERSION,
            chain: self.chain.clone(),
            segment: number,
            first_sequence,
            prev_hash,
            opened: super::record::utc(now),
            boot: self.writing.boot.clone(),
            mode: self.writing.mode.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let line = header.line().map_err(io::Error::other)?;
        let name = segment_name(number);
        if segment_number(&name).is_none() {
            // Nobody would find it again.
            return Err(ErrorKind::InvalidInput.into());
        }
        let made = self.disk.create(&name).and_then(|mut file| {
            write_all(&mut *file, &line)?;
            file.sync()?;
            self.disk.sync_folder()?;
            Ok(file)
        });
        let file = made.inspect_err(|_| {
            // It holds nothing, and a start would take it away as well.
            let _ = self.disk.remove(&name);
        })?;
        let closed =
            Closed { number, first: first_sequence, last: first_sequence - 1, bytes: line.len() as u64, opened: now };
        Ok(Open { closed, file })
    }

    /// The oldest segment, if it may go: everybody has it (`delivered` is the last record that nobody needs), and it is
    /// too old, or there are too many bytes.
    pub(crate) fn going(&self, delivered: u64, now: SystemTime) -> Option<(&Closed, Going)> {
        let oldest = self.closed.front().filter(|oldest| oldest.last <= delivered)?;
        let age = now.duration_since(oldest.opened).unwrap_or(Duration::ZERO);
        if self.bytes() > self.config.max_bytes {
            Some((oldest, Going::Size))
        } else if age > self.config.max_age {
            Some((oldest, Going::Age))
        } else {
            None
        }
    }

    /// As [`going`](Self::going), to make room for so many bytes more.
    pub(crate) fn going_for(&self, more: usize, delivered: u64) -> Option<&Closed> {
        self.closed.front().filter(|oldest| self.is_full(more) && oldest.last <= delivered)
    }

    /// Removes the oldest segment. What says so is on record already.
    ///
    /// # Errors
    /// The system's words; then it is still there.
    pub(crate) fn remove_oldest(&mut self) -> io::Result<()> {
        if let Some(oldest) = self.closed.front() {
            self.disk.remove(&segment_name(oldest.number))?;
            self.closed.pop_front();
            self.disk.sync_folder()?;
        }
        Ok(())
    }

    /// Gives back what was set aside.
    pub(crate) fn give_back(&mut self) -> bool {
        if !self.reserve {
            return false;
        }
        self.reserve = false;
        self.disk.remove(RESERVE).and_then(|()| self.disk.sync_folder()).is_ok()
    }

    /// Sets bytes aside, where they are not yet.
    ///
    /// # Errors
    /// The system's words: there is no room.
    pub(crate) fn set_aside(&mut self) -> io::Result<()> {
        if self.reserve {
            return Ok(());
        }
        let there = self.disk.list("")?.into_iter().find(|file| file.name == RESERVE).map_or(0, |file| file.bytes);
        if there != self.config.reserve_bytes {
            self.disk.remove(RESERVE)?;
            let filled = self.disk.create(RESERVE).and_then(|mut file| {
                let zeros = [0_u8; 64 << 10];
                let mut left = self.config.reserve_bytes;
                while left > 0 {
                    let piece = usize::try_from(left).unwrap_or(zeros.len()).min(zeros.len());
                    write_all(&mut *file, zeros.get(..piece).unwrap_or_default())?;
                    left -= piece as u64;
                }
                file.sync()
            });
            filled.inspect_err(|_| {
                // Half a reserve is none, and its bytes are wanted.
                let _ = self.disk.remove(RESERVE);
            })?;
            self.disk.sync_folder()?;
        }
        self.reserve = true;
        Ok(())
    }

    /// Adds a line to `checkpoints.jsonl`, and keeps the last `most` of them.
    ///
    /// # Errors
    /// The system's words.
    pub(crate) fn keep_checkpoint(&mut self, line: &[u8], most: usize) -> io::Result<()> {
        use super::checkpoint::FILE;
        let mut text = Vec::new();
        if self.disk.list("")?.iter().any(|file| file.name == FILE) {
            // Twice as many as are kept, with room: past that it is not ours to read.
            let limit = 1024 * 2 * most as u64;
            self.disk.read(FILE)?.take(limit).read_to_end(&mut text)?;
        }
        let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        let torn = lines.last().is_some_and(|last| !last.ends_with(b"\n"));
        if !torn && lines.len() < 2 * most {
            let mut file = self.disk.append(FILE)?;
            write_all(&mut *file, line)?;
            file.sync()?;
        } else {
            // The end came in the middle of a line, or there are too many.
            let whole = lines.len() - usize::from(torn);
            let kept = lines.get(whole.saturating_sub(most)..whole).unwrap_or_default().concat();
            let name = format!("{FILE}.tmp");
            self.disk.remove(&name)?;
            let mut file = self.disk.create(&name)?;
            write_all(&mut *file, &kept)?;
            write_all(&mut *file, line)?;
            file.sync()?;
            self.disk.rename(&name, FILE)?;
        }
        self.disk.sync_folder()
    }
}

/// What a failure is called, in records and by whoever waits.
#[expect(clippy::wildcard_enum_match_arm, reason = "the system's list is long, and grows")]
pub(crate) fn reason(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => "DISK_FULL",
        ErrorKind::ReadOnlyFilesystem => "READ_ONLY",
        ErrorKind::PermissionDenied => "NOT_PERMITTED",
        ErrorKind::NotFound => "FOLDER_GONE",
        _ => "DISK_FAILED",
    }
}

#[cfg(test)]
pub(crate) mod sim;
#[cfg(test)]
mod tests;
