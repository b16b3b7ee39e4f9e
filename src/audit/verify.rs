//! Whether a trail is whole: nothing changed, removed, moved, inserted or cut off.
//!
//! Reads a spool's folder, or lines that were exported, once from start to end, with memory that does not grow. Stops at the
//! first break and says where it is. Gaps that the trail itself tells of, records that went by age or size, segments that
//! a later one took over and a last line that is under way are no breaks; they are told.
//!
//! Knows the form of lines and what the trail's own notes look like; nothing of what other records say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::checkpoint::{FILE, PublicKey, Signed};
use super::format::{Damage, Hash, Header, Sealed, unseal};
use super::reader::{ReadError, header, segments};

/// No line is longer.
const MAX_LINE: u64 = 32 << 20;
/// Statements of `checkpoints.jsonl` that are looked at; the newest count.
const MAX_CHECKPOINTS: usize = 10_000;

/// Where something is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Place {
    /// The file; `-` is standard input.
    pub(crate) file: PathBuf,
    /// From 1.
    pub(crate) line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Break {
    /// Its bytes are not those that were hashed.
    #[error("this record was changed: its bytes are not those that its hash was made of")]
    Changed,
    /// It is no record at all.
    #[error("this is no record: {0}")]
    NoRecord(Damage),
    /// Numbers are missing, and no record tells why.
    #[error("records {first} to {last} are missing before this one, and no record tells why")]
    Missing {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// The number was there already.
    #[error("record {0} comes again, or out of order")]
    OutOfOrder(u64),
    /// It follows another record than the one before it.
    #[error("this record does not follow the one before it: something was changed, inserted or removed between them")]
    NotNext,
    /// The segment's first line is not one, or tells of another place in the chain.
    #[error("this segment's first line does not fit: {0}")]
    Header(String),
    /// A signed statement says otherwise.
    #[error("a checkpoint over record {sequence} says otherwise: the records up to it are not those that were signed")]
    Contradicted {
        /// The record.
        sequence: u64,
    },
    /// The statement is not what was signed.
    #[error("the checkpoint over record {sequence} is not signed by this key")]
    BadSignature {
        /// The record.
        sequence: u64,
    },
    /// What a checkpoint covers is not there.
    #[error("the trail ends at record {last}, and a checkpoint covers records up to {sequence}: the end was cut off")]
    CutOff {
        /// The last record there is.
        last: u64,
        /// What was signed.
        sequence: u64,
    },
    /// A key was given, and nothing is signed.
    #[error("no checkpoint in this trail is signed by this key")]
    Unsigned,
    /// Older records are gone, and nothing says that they went by age or size.
    #[error("the trail begins at record {0}, and nothing tells that older ones went by age or size")]
    NoBeginning(u64),
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Records that were looked at, up to the break.
    pub(crate) records: u64,
    /// The first and the last number.
    pub(crate) numbers: Option<(u64, u64)>,
    /// `time_dt` of the first and the last.
    pub(crate) times: Option<(String, String)>,
    pub(crate) segments: u64,
    /// Runs of the process.
    pub(crate) boots: u64,
    /// Numbers that the trail itself says are missing.
    pub(crate) gaps: Vec<(u64, u64)>,
    /// Checkpoints that fit, and the last record that one of them covers.
    pub(crate) checkpoints: u64,
    pub(crate) covered: u64,
    /// Whether signatures were checked.
    pub(crate) signed: bool,
    /// A last line is not whole: it is under way, or the end came in the middle of it.
    pub(crate) torn: bool,
    /// Lines that a later segment took over.
    pub(crate) superseded: u64,
    /// The hash of the last record.
    pub(crate) last_hash: Option<Hash>,
    /// The first break.
    pub(crate) broken: Option<(Place, Break)>,
}

/// What is known beforehand.
#[derive(Debug, Default)]
pub(crate) struct Knowledge {
    /// Whose signatures count.
    pub(crate) key: Option<PublicKey>,
    /// A number and its hash, from elsewhere.
    pub(crate) anchor: Option<(u64, Hash)>,
    /// Statements from elsewhere.
    pub(crate) checkpoints: Vec<Signed>,
}

/// Is told how many bytes were read.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64);

/// Checks a spool's folder.
///
/// # Errors
/// When it can't be read; what is wrong with what was read is in the report.
pub(crate) fn verify_spool(folder: &Path, known: Knowledge, progress: Progress<'_>) -> Result<Report, ReadError> {
    let mut known = known;
    known.checkpoints.extend(kept_checkpoints(folder)?);
    let mut checker = Checker::new(known);
    let mut found = Vec::new();
    for (number, path) in segments(folder)? {
        match header(&path) {
            Ok(Some(header)) => found.push((number, path, header)),
            // It is being made, or its making came to nothing.
            Ok(None) => {}
            Err(ReadError::Header { path, source }) => {
                checker.report.broken = Some((Place { file: path, line: 1 }, Break::Header(source.to_string())));
                return Ok(checker.report);
            }
            Err(other) => return Err(other),
        }
    }
    let count = found.len();
    let firsts: Vec<u64> = found.iter().map(|(_, _, header)| header.first_sequence).collect();
    for (at, (number, path, header)) in found.into_iter().enumerate() {
        let until = firsts.get(at + 1).copied();
        checker.report.segments += 1;
        if let Err(what) = checker.segment(number, &header) {
            checker.broken(Place { file: path, line: 1 }, what);
            break;
        }
        let file = File::open(&path).map_err(|source| ReadError::Io { path: path.clone(), source })?;
        let last = at + 1 == count;
        let told = |source| ReadError::Io { path: path.clone(), source };
        if !checker.lines(&mut BufReader::new(file), &path, until, last, true, progress).map_err(told)? {
            break;
        }
    }
    Ok(checker.finish())
}

/// Checks lines that were exported: files in order, or standard input for `-`.
///
/// # Errors
/// When one can't be read.
pub(crate) fn verify_lines(files: &[PathBuf], known: Knowledge, progress: Progress<'_>) -> Result<Report, ReadError> {
    let mut checker = Checker::new(known);
    for (at, path) in files.iter().enumerate() {
        let told = |source| ReadError::Io { path: path.clone(), source };
        let mut input: Box<dyn BufRead> = if path.as_os_str() == "-" {
            Box::new(BufReader::new(io::stdin()))
        } else {
            Box::new(BufReader::new(File::open(path).map_err(told)?))
        };
        let last = at + 1 == files.len();
        if !checker.lines(&mut *input, path, None, last, false, progress).map_err(told)? {
            break;
        }
    }
    Ok(checker.finish())
}

/// The statements beside the segments. A line that is none is left out: what it covered is found by the others.
fn kept_checkpoints(folder: &Path) -> Result<Vec<Signed>, ReadError> {
    let path = folder.join(FILE);
    let mut text = String::new();
    match File::open(&path) {
        Ok(file) => {
            let read = file.take(1024 * MAX_CHECKPOINTS as u64).read_to_string(&mut text);
            read.map_err(|source| ReadError::Io { path, source })?;
        }
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(ReadError::Io { path, source }),
    }
    let mut statements: Vec<Signed> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    statements.drain(..statements.len().saturating_sub(MAX_CHECKPOINTS));
    Ok(statements)
}

/// What the trail's own notes hold.
#[derive(Deserialize)]
struct Range {
    first: u64,
    last: u64,
}

struct Checker {
    key: Option<PublicKey>,
    /// Hashes that certain records must have, and whose word that is.
    wanted: BTreeMap<u64, Hash>,
    /// The last record that a statement from beside or elsewhere covers.
    must_reach: u64,
    chain: Option<String>,
    /// The last record.
    before: Option<Sealed>,
    /// The first number of the segment that is being read.
    first_here: u64,
    /// Numbers that were missing, and where that was seen.
    missing: Vec<(u64, u64, Place)>,
    removed_to: u64,
    oldest_signed: u64,
    boot: String,
    boots: BTreeSet<String>,
    report: Report,
}

impl Checker {
    fn new(known: Knowledge) -> Self {
        let mut checker = Self {
            key: known.key,
            wanted: known.anchor.into_iter().collect(),
            must_reach: known.anchor.map_or(0, |(number, _)| number),
            chain: None,
            before: None,
            first_here: 0,
            missing: Vec::new(),
            removed_to: 0,
            oldest_signed: 0,
            boot: String::new(),
            boots: BTreeSet::new(),
            report: Report::default(),
        };
        checker.report.signed = checker.key.is_some();
        for signed in known.checkpoints {
            // With a key only its statements count; without one, whoever can write beside the trail is believed as much.
            if checker.key.as_ref().is_none_or(|key| key.verifies(&signed)) {
                let statement = &signed.statement;
                checker.wanted.insert(statement.sequence, statement.hash);
                checker.must_reach = checker.must_reach.max(statement.sequence);
                if checker.key.is_some() {
                    checker.oldest_signed = checker.oldest_signed.max(statement.oldest);
                }
            }
        }
        checker
    }

    fn broken(&mut self, place: Place, what: Break) {
        self.report.broken = Some((place, what));
    }

    fn segment(&mut self, number: u64, header: &Header) -> Result<(), Break> {
        let wrong = |what: &str| Err(Break::Header(what.to_owned()));
        self.first_here = header.first_sequence;
        if header.segment != number {
            return wrong("its number is not that of the file's name");
        }
        if self.chain.get_or_insert_with(|| header.chain.clone()) != &header.chain {
            return wrong("it belongs to another spool");
        }
        match &self.before {
            // Without a record before it, it is believed; the first record has to follow it.
            None => {
                self.before = Some(Sealed {
                    sequence: header.first_sequence.saturating_sub(1),
                    prev: Hash::GENESIS,
                    hash: header.prev_hash,
                })
            }
            Some(before) if header.first_sequence <= before.sequence => {
                return wrong("it takes over records that an earlier one had to keep");
            }
            Some(before) if header.first_sequence == before.sequence + 1 && header.prev_hash != before.hash => {
                return wrong("it does not follow the record before it");
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Checks the lines of one file. `false`: there is a break.
    fn lines(
        &mut self,
        input: &mut dyn BufRead,
        path: &Path,
        until: Option<u64>,
        last_file: bool,
        spool: bool,
        progress: Progress<'_>,
    ) -> io::Result<bool> {
        let mut bytes = Vec::new();
        let mut line = 0;
        let mut given_up: Option<Sealed> = None;
        loop {
            bytes.clear();
            let count = io::Read::take(&mut *input, MAX_LINE).read_until(b'\n', &mut bytes)?;
            if count == 0 {
                return Ok(true);
            }
            line += 1;
            progress(count as u64);
            let place = || Place { file: path.to_owned(), line };
            let whole = bytes.last() == Some(&b'\n');
            if whole {
                bytes.pop();
            }
            if bytes.starts_with(Header::START) && (line == 1 || !spool) {
                continue;
            }
            let sealed = unseal(&bytes);
            let reached = until.is_some_and(|until| self.before.is_some_and(|before| before.sequence + 1 >= until));
            if reached {
                // A later segment counts from here on. What was given up follows what was kept, or is no line at all.
                let last = given_up.or(self.before);
                match (sealed, last) {
                    (Ok(sealed), Some(last)) if sealed.sequence != last.sequence + 1 || sealed.prev != last.hash => {
                        self.broken(place(), Break::NotNext);
                        return Ok(false);
                    }
                    (Ok(sealed), _) => given_up = Some(sealed),
                    (Err(_), _) => {}
                }
                self.report.superseded += 1;
                continue;
            }
            match sealed {
                Ok(sealed) => {
                    if let Err(what) = self.record(&bytes, sealed, &place) {
                        self.broken(place(), what);
                        return Ok(false);
                    }
                }
                Err(_) if !whole && last_file => self.report.torn = true,
                Err(Damage::Hash) => {
                    self.broken(place(), Break::Changed);
                    return Ok(false);
                }
                Err(damage) => {
                    self.broken(place(), Break::NoRecord(damage));
                    return Ok(false);
                }
            }
        }
    }

    fn record(&mut self, line: &[u8], sealed: Sealed, place: &dyn Fn() -> Place) -> Result<(), Break> {
        if sealed.sequence < self.first_here {
            return Err(Break::OutOfOrder(sealed.sequence));
        }
        match &self.before {
            Some(before) if sealed.sequence <= before.sequence => return Err(Break::OutOfOrder(sealed.sequence)),
            Some(before) if sealed.sequence > before.sequence + 1 => {
                self.missing.push((before.sequence + 1, sealed.sequence - 1, place()));
            }
            Some(before) if sealed.prev != before.hash => return Err(Break::NotNext),
            Some(_) => {}
            None if sealed.sequence == 1 && sealed.prev != Hash::GENESIS => return Err(Break::NotNext),
            None => {}
        }
        if self.wanted.get(&sealed.sequence).is_some_and(|wanted| *wanted != sealed.hash) {
            return Err(Break::Contradicted { sequence: sealed.sequence });
        }
        self.notes(line, sealed)?;
        let report = &mut self.report;
        report.records += 1;
        report.numbers = Some((report.numbers.map_or(sealed.sequence, |(first, _)| first), sealed.sequence));
        report.last_hash = Some(sealed.hash);
        if let Some(time) = member(line, br#""time_dt":""#) {
            report.times = Some((report.times.take().map_or_else(|| time.clone(), |(first, _)| first), time));
        }
        if let Some(boot) = member(line, br#""boot":""#).filter(|boot| *boot != self.boot) {
            self.boots.insert(boot.clone());
            report.boots = self.boots.len() as u64;
            self.boot = boot;
        }
        self.before = Some(sealed);
        Ok(())
    }

    /// What the trail says of itself.
    fn notes(&mut self, line: &[u8], sealed: Sealed) -> Result<(), Break> {
        const LIFECYCLE: &[u8] = br#""class_uid":6002,"#;
        let head = line.get(..line.len().min(800)).unwrap_or_default();
        if !head.windows(LIFECYCLE.len()).any(|window| window == LIFECYCLE) {
            return Ok(());
        }
        let Ok(record) = serde_json::from_slice::<Value>(line) else { return Ok(()) };
        let ours = |name: &str| record.pointer("/unmapped/gatepost").and_then(|ours| ours.get(name)).cloned();
        let range = |name: &str| ours(name).and_then(|value| serde_json::from_value::<Range>(value).ok());
        if let Some(gap) = range("gap") {
            self.report.gaps.push((gap.first, gap.last));
        }
        if let Some(removed) = range("removed") {
            self.removed_to = self.removed_to.max(removed.last);
        }
        let Some(signed) = ours("checkpoint").and_then(|value| serde_json::from_value::<Signed>(value).ok()) else {
            return Ok(());
        };
        let sequence = signed.statement.sequence;
        let fits = sequence + 1 == sealed.sequence
            && signed.statement.hash == sealed.prev
            && self.chain.as_ref().is_none_or(|chain| *chain == signed.statement.chain);
        if !fits {
            return Err(Break::Contradicted { sequence });
        }
        if self.key.as_ref().is_some_and(|key| !key.verifies(&signed)) {
            return Err(Break::BadSignature { sequence });
        }
        self.chain.get_or_insert(signed.statement.chain);
        self.report.checkpoints += 1;
        self.report.covered = sequence;
        if self.key.is_some() {
            self.oldest_signed = self.oldest_signed.max(signed.statement.oldest);
        }
        Ok(())
    }

    fn finish(mut self) -> Report {
        let place = self.missing.first().map(|(_, _, place)| place.clone());
        // The first thing that is missing without a word comes before whatever ended the reading.
        let unexplained =
            self.missing.iter().find(|(first, last, _)| !covered(*first, *last, &self.report.gaps)).cloned();
        if let Some((first, last, place)) = unexplained {
            self.broken(place, Break::Missing { first, last });
            return self.report;
        }
        if self.report.broken.is_some() {
            return self.report;
        }
        let end = |report: &Report| Place {
            file: place.clone().map_or_else(PathBuf::new, |place| place.file),
            line: report.records,
        };
        if let Some((first, _)) = self.report.numbers
            && first > 1
            && self.removed_to < first - 1
            && self.oldest_signed < first
            && !covered(1, first - 1, &self.report.gaps)
        {
            let place = end(&self.report);
            self.broken(place, Break::NoBeginning(first));
            return self.report;
        }
        let last = self.report.numbers.map_or(0, |(_, last)| last);
        if last < self.must_reach {
            let place = end(&self.report);
            self.broken(place, Break::CutOff { last, sequence: self.must_reach });
        } else if self.key.is_some() && self.report.checkpoints == 0 && last > 0 && self.must_reach == 0 {
            let place = end(&self.report);
            self.broken(place, Break::Unsigned);
        }
        self.report.covered = self.report.covered.max(self.must_reach.min(last));
        self.report
    }
}

/// Whether these numbers are all in the ranges, which may touch.
fn covered(first: u64, last: u64, ranges: &[(u64, u64)]) -> bool {
    let mut next = first;
    while next <= last {
        match ranges.iter().filter(|(from, to)| *from <= next && *to >= next).map(|(_, to)| *to).max() {
            Some(to) => next = to + 1,
            None => return false,
        }
    }
    true
}

/// The text of a member whose name and opening quote are `start`, from a line that is whole; for looking at, not for
/// deciding.
fn member(line: &[u8], start: &[u8]) -> Option<String> {
    let at = line.windows(start.len()).position(|window| window == start)? + start.len();
    let rest = line.get(at..)?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    String::from_utf8(rest.get(..end)?.to_vec()).ok()
}

#[cfg(test)]
mod tests;
