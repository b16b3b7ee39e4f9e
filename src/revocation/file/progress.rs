//! How far the file was read, and what its lines said.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;

use super::RevocationFile;
use crate::revocation::Source;
use crate::revocation::entry::{Flaw, Revocation};
use crate::revocation::list::{Joined, is_over};

/// So many bytes before the place that was read up to are looked at again, to see whether it is still the same file.
pub(super) const MARK_BYTES: usize = 200;

/// How far it was read.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// What the file looked like then. `None`: it has to be read whole.
    pub(super) seen: Option<Seen>,
    /// Whole lines end here.
    pub(super) offset: u64,
    /// And everything that was seen here.
    pub(super) end: u64,
    pub(super) lines: u64,
    /// The last bytes before `offset`.
    pub(super) mark: Vec<u8>,
    /// What stands after `offset`, when it did not change from one look to the next: a line that nobody finishes.
    pub(super) unfinished: Option<Vec<u8>>,
    /// What its lines say.
    pub(super) said: Joined,
    /// Lines that were told of, by their hash, so that each is told once.
    pub(super) told: BTreeSet<[u8; 32]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    file: (u64, u64),
    pub(super) length: u64,
    modified: (i64, i64),
}

impl Seen {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl RevocationFile {
    /// Whether the file is the one that was read, with perhaps more at its end.
    pub(super) fn goes_on(&self, read: &Progress, file: &mut File, seen: Seen) -> io::Result<bool> {
        let Some(before) = read.seen else { return Ok(false) };
        if before.file != seen.file || seen.length < read.offset {
            return Ok(false);
        }
        // As long as before and written since: who knows where.
        if before.length == seen.length && before.modified != seen.modified {
            return Ok(false);
        }
        let length = u64::try_from(read.mark.len()).unwrap_or(0);
        file.seek(SeekFrom::Start(read.offset.saturating_sub(length)))?;
        let mut mark = vec![0; read.mark.len()];
        match file.read_exact(&mut mark) {
            Ok(()) => Ok(mark == read.mark),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the whole lines at the start of `bytes`. What is left is taken too if it is an entry already, and told of
    /// when it was there at the last look and still isn't.
    pub(super) fn take_lines(&self, read: &mut Progress, bytes: &[u8]) {
        let now = self.list.now();
        let (mut entries, mut flaws) = (Vec::new(), Vec::new());
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (lines, rest) = bytes.split_at(whole);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            read.lines += 1;
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            match Revocation::read(line, now) {
                Ok(one) => entries.push(one),
                Err(flaw) => flaws.push((read.lines, line, flaw)),
            }
        }
        read.end = read.offset + u64::try_from(bytes.len()).unwrap_or(0);
        read.offset += u64::try_from(whole).unwrap_or(0);
        if let Some(mark) = lines.get(lines.len().saturating_sub(MARK_BYTES)..).filter(|mark| !mark.is_empty()) {
            read.mark = mark.to_vec();
        }
        if rest.is_empty() {
            read.unfinished = None;
        } else if let Ok(one) = Revocation::read(rest, now) {
            // No entry is the beginning of another, so this one is whole: somebody's editor ends files without a line
            // break.
            entries.push(one);
            read.unfinished = None;
        } else {
            if read.unfinished.as_deref() == Some(rest) {
                flaws.push((read.lines + 1, rest, Flaw::Torn));
            }
            read.unfinished = Some(rest.to_vec());
        }
        for one in entries.iter().filter(|one| !is_over(one.until, now)) {
            read.said.join(one);
        }
        self.list.take(Source::File, &entries);
        self.tell(read, &flaws);
    }

    /// Each line that is no entry, once.
    pub(super) fn tell(&self, read: &mut Progress, flaws: &[(u64, &[u8], Flaw)]) {
        /// More in one look are counted and not told one by one.
        const LINES: usize = 20;
        // Bounded: a file has so many lines and no more, and what is forgotten is told again.
        if read.told.len() > self.list.limit() {
            read.told.clear();
        }
        let fresh: Vec<_> =
            flaws.iter().filter(|(_, line, _)| read.told.insert(*blake3::hash(line).as_bytes())).collect();
        for (line, _, flaw) in fresh.iter().take(LINES) {
            tracing::error!(file = %self.path.display(), line, "a line of the revocation file revokes nothing: it {flaw}");
        }
        if fresh.len() > LINES {
            let more = fresh.len() - LINES;
            tracing::error!(file = %self.path.display(), more, "and more lines of the revocation file are no entries");
        }
        if !fresh.is_empty() {
            self.list.tell_malformed(Source::File, fresh.len());
        }
    }
}
