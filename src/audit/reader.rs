//! Reading a spool from the outside: the records from a number on, in order, each once, as they were written.
//!
//! For sinks and for people; it never writes, and takes no lock. A line that is not whole ends what can be read for now:
//! at the end of the last segment it may be under way; anywhere else it is damage, and told.
//!
//! Knows files and the form of lines; nothing of what a record says.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use super::format::{Damage, Header, HeaderDamage, segment_number, unseal};

/// A line of the spool, whole and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its number.
    pub(crate) sequence: u64,
    /// Its bytes, without the line break.
    pub(crate) line: Vec<u8>,
}

/// Why a spool can't be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The system's words.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A segment's first line is not one.
    #[error("{path}: {source}")]
    Header {
        /// The segment.
        path: PathBuf,
        /// Why.
        #[source]
        source: HeaderDamage,
    },
    /// A line in the middle is not whole.
    #[error("{path}: line {line}: {source}")]
    Line {
        /// The segment.
        path: PathBuf,
        /// Counts from 1; the header is line 1.
        line: u64,
        /// Why.
        #[source]
        source: Damage,
    },
    /// A line in the middle is longer than any record.
    #[error("{path}: line {line} is longer than any record")]
    TooLong {
        /// The segment.
        path: PathBuf,
        /// Counts from 1; the header is line 1.
        line: u64,
    },
}

/// Follows a spool.
#[derive(Debug)]
pub(crate) struct Reader {
    folder: PathBuf,
    /// The next record to give.
    next: u64,
    open: Option<Open>,
    /// No line is longer.
    max_line: usize,
}

#[derive(Debug)]
struct Open {
    segment: u64,
    path: PathBuf,
    file: BufReader<File>,
    line: u64,
    /// From here on a later segment counts. Known once there is a later one.
    until: Option<u64>,
    /// The part of a line that was under way.
    partial: Vec<u8>,
}

impl Reader {
    /// Reads `folder` from record `from` on. Where older ones are gone already, from the oldest that is there.
    pub(crate) fn new(folder: &Path, from: u64, max_line: usize) -> Self {
        Self { folder: folder.to_owned(), next: from.max(1), open: None, max_line }
    }

    /// The number of the record that comes next, as far as is known.
    pub(crate) fn position(&self) -> u64 {
        self.next
    }

    /// The next record up to number `last`; `None` when there is none yet.
    ///
    /// # Errors
    /// [`ReadError`]; the same again when asked again, until somebody mends or removes the segment.
    pub(crate) fn next(&mut self, last: u64) -> Result<Option<Record>, ReadError> {
        loop {
            if self.next > last {
                return Ok(None);
            }
            if self.open.is_none() && !self.seek()? {
                return Ok(None);
            }
            let Some(open) = &mut self.open else { return Ok(None) };
            if open.until.is_some_and(|until| self.next >= until) {
                self.open = None;
                continue;
            }
            let Some(line) = open.line(self.max_line)? else {
                // The end, for now. Is there a later segment?
                if self.advance()? {
                    continue;
                }
                return Ok(None);
            };
            let sealed = match unseal(&line) {
                Ok(sealed) => sealed,
                // Past what was acknowledged anything may stand, if a later segment takes over from here.
                Err(_) if self.advance()? => continue,
                Err(source) => return Err(self.damaged(source)),
            };
            if sealed.sequence < self.next {
                continue;
            }
            if sealed.sequence > last {
                self.open = None;
                return Ok(None);
            }
            self.next = sealed.sequence + 1;
            return Ok(Some(Record { sequence: sealed.sequence, line }));
        }
    }

    fn damaged(&mut self, source: Damage) -> ReadError {
        let (path, line) = self.open.take().map_or_else(|| (self.folder.clone(), 0), |open| (open.path, open.line));
        ReadError::Line { path, line, source }
    }

    /// Opens the segment that holds the next record. `false`: there is none yet.
    fn seek(&mut self) -> Result<bool, ReadError> {
        let segments = segments(&self.folder)?;
        let mut chosen = None;
        let mut oldest = None;
        for (number, path) in segments {
            // One that goes while we look, or that is being made, is not there.
            let Some(header) = header(&path)? else { continue };
            if oldest.is_none() {
                oldest = Some((number, path.clone(), header.first_sequence));
            }
            if header.first_sequence <= self.next {
                chosen = Some((number, path));
            }
        }
        let (number, path) = match (chosen, oldest) {
            (Some(chosen), _) => chosen,
            (None, Some((number, path, first))) => {
                self.next = first;
                (number, path)
            }
            (None, None) => return Ok(false),
        };
        let until = self.successor(number)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(ReadError::Io { path, source }),
        };
        let mut open = Open { segment: number, path, file: BufReader::new(file), line: 0, until, partial: Vec::new() };
        // The header, which `header` has looked at.
        let _ = open.line(self.max_line)?;
        self.open = Some(open);
        Ok(true)
    }

    /// Where the segment after `number` starts.
    fn successor(&self, number: u64) -> Result<Option<u64>, ReadError> {
        for (later, path) in segments(&self.folder)?.into_iter().filter(|(later, _)| *later > number) {
            let _ = later;
            if let Some(header) = header(&path)? {
                return Ok(Some(header.first_sequence));
            }
        }
        Ok(None)
    }

    /// Whether a later segment holds the next record; then the open one is left.
    fn advance(&mut self) -> Result<bool, ReadError> {
        let Some(open) = &self.open else { return Ok(false) };
        let number = open.segment;
        match self.successor(number)? {
            Some(first) if first <= self.next => {
                self.open = None;
                Ok(true)
            }
            later => {
                if let Some(open) = &mut self.open {
                    open.until = later;
                }
                Ok(false)
            }
        }
    }
}

impl Open {
    /// The next whole line, without its line break.
    fn line(&mut self, max: usize) -> Result<Option<Vec<u8>>, ReadError> {
        loop {
            let buffered = self.file.fill_buf().map_err(|source| ReadError::Io { path: self.path.clone(), source })?;
            if buffered.is_empty() {
                return Ok(None);
            }
            let end = buffered.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(buffered.len());
            self.partial.extend_from_slice(buffered.get(..taken).unwrap_or_default());
            self.file.consume(taken + usize::from(end.is_some()));
            if self.partial.len() > max.max(Header::MAX_BYTES) {
                return Err(ReadError::TooLong { path: self.path.clone(), line: self.line + 1 });
            }
            if end.is_some() {
                self.line += 1;
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
        }
    }
}

/// The segments of a folder, by number.
pub(crate) fn segments(folder: &Path) -> Result<Vec<(u64, PathBuf)>, ReadError> {
    let told = |source| ReadError::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(told)? {
        let entry = entry.map_err(told)?;
        if let Some(number) = entry.file_name().to_str().and_then(segment_number) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The first line of a segment; `None` while it is not whole, or when the file is gone.
pub(crate) fn header(path: &Path) -> Result<Option<Header>, ReadError> {
    let told = |source| ReadError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(told(source)),
    };
    let mut line = Vec::new();
    let limit = u64::try_from(Header::MAX_BYTES).unwrap_or(u64::MAX);
    io::Read::take(BufReader::new(file), limit).read_until(b'\n', &mut line).map_err(told)?;
    if line.pop() != Some(b'\n') {
        return Ok(None);
    }
    Header::parse(&line).map(Some).map_err(|source| ReadError::Header { path: path.to_owned(), source })
}
