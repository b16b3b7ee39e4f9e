//! Reading a spool from the outside: the records from a number on, in order, each once, as they were written.
//!
//! For sinks and for people; it never writes, and takes no lock. A line without its line break may be under way, and ends
//! what can be read for now. One that is not whole otherwise is passed over; which numbers that leaves out can be asked.
//!
//! Knows files and the form of lines; nothing of what a record says.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use super::format::{Header, HeaderDamage, segment_number, unseal};

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
}

/// Follows a spool.
#[derive(Debug)]
pub(crate) struct Reader {
    folder: PathBuf,
    /// The next record to give.
    next: u64,
    open: Option<Open>,
    /// Numbers that were passed over and that nobody has asked for: the first and the last of each gap.
    skipped: VecDeque<(u64, u64)>,
    /// No line is longer.
    max_line: usize,
}

#[derive(Debug)]
struct Open {
    segment: u64,
    path: PathBuf,
    file: BufReader<File>,
    /// From here on a later segment counts. Known once there is a later one.
    until: Option<u64>,
    /// The part of a line that was under way.
    partial: Vec<u8>,
    /// That line is longer than any record: the rest of it is read and not kept.
    too_long: bool,
}

impl Reader {
    /// Reads `folder` from record `from` on. Where older ones are gone already, from the oldest that is there.
    pub(crate) fn new(folder: &Path, from: u64, max_line: usize) -> Self {
        Self { folder: folder.to_owned(), next: from.max(1), open: None, skipped: VecDeque::new(), max_line }
    }

    /// The number of the record that comes next, as far as is known.
    pub(crate) fn position(&self) -> u64 {
        self.next
    }

    /// The next gap in the numbers, from its first to its last: gone by age or size, or damaged. Each is told once, and
    /// [`Self::next`] finds one at most.
    pub(crate) fn take_skipped(&mut self) -> Option<(u64, u64)> {
        self.skipped.pop_front()
    }

    /// The next record up to number `last`; `None` when there is none yet.
    ///
    /// # Errors
    /// [`ReadError`]; the same again when asked again, until somebody mends or removes the segment.
    pub(crate) fn next(&mut self, last: u64) -> Result<Option<Record>, ReadError> {
        // Read to its end once more before it is left: a segment may have grown before the next was made.
        let mut again = false;
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
                let number = open.segment;
                match self.successor(number)? {
                    Some(first) if first <= self.next => self.open = None,
                    Some(first) if again => {
                        self.skip_to(first);
                        self.open = None;
                    }
                    Some(first) => {
                        again = true;
                        if let Some(open) = &mut self.open {
                            open.until = Some(first);
                        }
                    }
                    None => return Ok(None),
                }
                continue;
            };
            let Ok(sealed) = unseal(&line) else { continue };
            if sealed.sequence < self.next || open.until.is_some_and(|until| sealed.sequence >= until) {
                continue;
            }
            if sealed.sequence > last {
                self.open = None;
                return Ok(None);
            }
            self.skip_to(sealed.sequence);
            self.next = sealed.sequence + 1;
            return Ok(Some(Record { sequence: sealed.sequence, line }));
        }
    }

    fn skip_to(&mut self, number: u64) {
        if number > self.next {
            match self.skipped.back_mut() {
                Some((_, last)) if *last + 1 == self.next => *last = number - 1,
                Some(_) | None => self.skipped.push_back((self.next, number - 1)),
            }
            self.next = number;
        }
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
                self.skip_to(first);
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
        let (file, partial) = (BufReader::new(file), Vec::new());
        let mut open = Open { segment: number, path, file, until, partial, too_long: false };
        // The header, which `header` has looked at.
        let _ = open.line(self.max_line)?;
        self.open = Some(open);
        Ok(true)
    }

    /// Where the segment after `number` starts.
    fn successor(&self, number: u64) -> Result<Option<u64>, ReadError> {
        for (_, path) in segments(&self.folder)?.into_iter().filter(|(later, _)| *later > number) {
            if let Some(header) = header(&path)? {
                return Ok(Some(header.first_sequence));
            }
        }
        Ok(None)
    }
}

impl Open {
    /// The next whole line, without its line break. One that is longer than any record comes empty: it is none.
    fn line(&mut self, max: usize) -> Result<Option<Vec<u8>>, ReadError> {
        loop {
            let buffered = self.file.fill_buf().map_err(|source| ReadError::Io { path: self.path.clone(), source })?;
            if buffered.is_empty() {
                return Ok(None);
            }
            let end = buffered.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(buffered.len());
            if !self.too_long {
                self.partial.extend_from_slice(buffered.get(..taken).unwrap_or_default());
            }
            self.file.consume(taken + usize::from(end.is_some()));
            if self.partial.len() > max.max(Header::MAX_BYTES) {
                self.partial = Vec::new();
                self.too_long = true;
            }
            if end.is_some() {
                self.too_long = false;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::format::{Body, Hash, VERSION, segment_name};

    fn segment(folder: &Path, number: u64, first: u64, numbers: &[u64]) {
        let header = Header {
            gatepost_spool: VERSION,
            chain: "c".into(),
            segment: number,
            first_sequence: first,
            prev_hash: Hash::GENESIS,
            opened: String::new(),
            boot: "b".into(),
            mode: "durable".into(),
            version: String::new(),
        };
        let mut bytes = header.line().unwrap();
        for number in numbers {
            if *number == 0 {
                bytes.extend_from_slice(b"{\"broken\":\n");
                continue;
            }
            let json = format!(r#"{{"metadata":{{"sequence":0}},"unmapped":{{"gatepost":{{"n":{number}}}}}}}"#);
            Body::of(json.into_bytes()).unwrap().seal(*number, Hash::GENESIS, &mut bytes);
        }
        fs::write(folder.join(segment_name(number)), bytes).unwrap();
    }

    fn read(reader: &mut Reader, last: u64) -> Vec<u64> {
        std::iter::from_fn(|| reader.next(last).unwrap()).map(|record| record.sequence).collect()
    }

    #[test]
    fn records_come_in_order_each_once_whatever_was_given_up_or_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        segment(path, 1, 1, &[1, 2, 3, 4, 5]);
        // It took over from 4 on; and 7 is damaged.
        segment(path, 2, 4, &[4, 5, 6, 0, 8]);
        segment(path, 4, 12, &[12, 13]);
        let mut reader = Reader::new(path, 1, 1 << 20);
        assert_eq!(read(&mut reader, 3), [1, 2, 3], "no further than it may");
        assert_eq!(read(&mut reader, u64::MAX), [4, 5, 6, 8, 12, 13]);
        assert_eq!(reader.take_skipped(), Some((7, 7)), "8 came, so it is in no gap");
        assert_eq!(reader.take_skipped(), Some((9, 11)));
        assert_eq!((reader.take_skipped(), reader.position()), (None, 14));

        // It grows, and goes on in another segment.
        segment(path, 4, 12, &[12, 13, 14]);
        assert_eq!(read(&mut Reader::new(path, 14, 1 << 20), u64::MAX), [14]);
        segment(path, 5, 15, &[15]);
        assert_eq!(read(&mut reader, u64::MAX).last(), Some(&15));

        fs::remove_file(path.join(segment_name(1))).unwrap();
        let mut late = Reader::new(path, 2, 1 << 20);
        assert_eq!(late.next(u64::MAX).unwrap().unwrap().sequence, 4, "the oldest there is");
        assert_eq!(late.take_skipped(), Some((2, 3)));
        assert!(matches!(Reader::new(&path.join("none"), 1, 10).next(1), Err(ReadError::Io { .. })));
    }

    #[test]
    fn a_line_longer_than_any_record_is_passed_over_and_no_room_is_made_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        segment(path, 1, 1, &[1, 0, 3]);
        let file = path.join(segment_name(1));
        let whole = fs::read_to_string(&file).unwrap();
        let longest = whole.lines().map(str::len).max().unwrap().max(Header::MAX_BYTES);
        for (length, why) in
            [(longest, "at the limit, and damaged"), (longest + 1, "past it"), (9 << 20, "far past it")]
        {
            fs::write(&file, whole.replace("{\"broken\":", &"x".repeat(length))).unwrap();
            let mut reader = Reader::new(path, 1, longest);
            assert_eq!(read(&mut reader, u64::MAX), [1, 3], "{why}");
            assert_eq!(reader.take_skipped(), Some((2, 2)), "{why}");
            let room = reader.open.as_ref().unwrap().partial.capacity();
            assert!(room <= 2 * (longest + 8192), "{why}: {room}");
        }
    }

    #[test]
    fn a_line_under_way_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        segment(path, 1, 1, &[1, 2]);
        let file = path.join(segment_name(1));
        let whole = fs::read(&file).unwrap();
        for cut in whole.len() - 20..whole.len() {
            fs::write(&file, &whole[..cut]).unwrap();
            let mut reader = Reader::new(path, 1, 1 << 20);
            assert_eq!(read(&mut reader, u64::MAX), [1]);
            fs::write(&file, &whole).unwrap();
            assert_eq!(read(&mut reader, u64::MAX), [2], "cut at {cut}");
        }
    }
}
