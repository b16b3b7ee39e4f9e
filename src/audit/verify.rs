//! Whether a trail is whole: nothing changed, removed, moved, inserted or cut off.
//!
//! Reads a spool's folder, or lines that were exported, once from start to end, with memory that does not grow. Stops at the
//! first break and says where it is. Gaps that the trail itself tells of, records that went by age or size, segments that
//! a later one took over and a last line that is under way are no breaks; they are told.
//!
//! With keys, the trail's word for what is missing counts where a signature covers it: else whoever can write the files could
//! take records out and put an excuse behind the last checkpoint.
//!
//! Knows the form of lines and what the trail's own notes look like; nothing of what other records say.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::checkpoint::{FILE, PublicKey, Signed};
use super::format::{Damage, Hash, Header, HeaderDamage, Sealed, unseal};
use super::reader::{ReadError, header, segments};

/// No line is longer.
const MAX_LINE: u64 = 32 << 20;
/// Statements of `checkpoints.jsonl` that are looked at: more than a spool keeps.
const MAX_CHECKPOINTS: usize = 10_000;
/// Places where numbers are missing, and words about it, that are remembered until the end. A trail with more is broken
/// by any measure.
const MAX_GAPS: usize = 10_000;
/// How often a check begins anew because a segment went by age or size while it was on its way.
const TRIES: usize = 5;

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
    /// It has the form of a record, and says nothing.
    #[error("this record is not JSON")]
    NoJson,
    /// Numbers are missing, and no record tells why.
    #[error("records {first} to {last} are missing before this one, and no record tells why")]
    Missing {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// They are missing, and what tells why could have been put there by anybody.
    #[error("records {first} to {last} are missing, and no signature covers the record that tells why")]
    UnsignedWord {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// Numbers are missing in so many places that nobody remembers them all.
    #[error("records are missing in more than {MAX_GAPS} places")]
    TooManyGaps,
    /// No record is so long.
    #[error("this line is longer than any record")]
    TooLong,
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
    /// The statement is about another spool.
    #[error("the checkpoint over record {sequence} is about another spool")]
    Foreign {
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
    /// Names the spool, as far as that is known.
    pub(crate) chain: Option<String>,
    /// Numbers that the trail itself says are missing.
    pub(crate) gaps: Vec<(u64, u64)>,
    /// Records before a gap that no checkpoint covers: what would have followed them is missing.
    pub(crate) loose: Vec<(u64, u64)>,
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
#[derive(Debug, Default, Clone)]
pub(crate) struct Knowledge {
    /// Whose signatures count; several where the key was changed.
    pub(crate) keys: Vec<PublicKey>,
    /// A number and its hash, from elsewhere.
    pub(crate) anchor: Option<(u64, Hash)>,
}

impl Knowledge {
    fn believes(&self, signed: &Signed) -> bool {
        self.keys.is_empty() || self.keys.iter().any(|key| key.verifies(signed))
    }
}

/// Is told how many bytes were read.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64);

/// Checks a spool's folder.
///
/// # Errors
/// When it can't be read; what is wrong with what was read is in the report.
pub(crate) fn verify_spool(folder: &Path, known: &Knowledge, progress: Progress<'_>) -> Result<Report, ReadError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match spool(folder, known, progress) {
            // It went by age or size. What says so may stand in a segment that was not there yet when we looked.
            Err(ReadError::Io { path, source })
                if source.kind() == io::ErrorKind::NotFound && path != folder && tries < TRIES => {}
            done => return done,
        }
    }
}

fn spool(folder: &Path, known: &Knowledge, progress: Progress<'_>) -> Result<Report, ReadError> {
    // The statements first: what they cover was kept before they were.
    let statements = kept_checkpoints(folder)?;
    let mut checker = Checker::new(known);
    let mut found = Vec::new();
    for (number, path) in segments(folder)? {
        let what = match header(&path) {
            Ok(Some(header)) => {
                found.push((number, path, header));
                continue;
            }
            Ok(None) if unfinished(&path)? => continue,
            Ok(None) => HeaderDamage::Foreign,
            Err(ReadError::Header { source, .. }) => source,
            Err(other) => return Err(other),
        };
        checker.report.broken = Some((Place { file: path, line: 1 }, Break::Header(what.to_string())));
        return Ok(checker.report);
    }
    let chain = found.first().map(|(_, _, header)| header.chain.clone());
    for (line, signed) in statements {
        if let Err(what) = checker.remember(&signed, chain.as_deref()) {
            checker.report.broken = Some((Place { file: folder.join(FILE), line }, what));
            return Ok(checker.report);
        }
    }
    let count = found.len();
    let firsts: Vec<u64> = found.iter().map(|(_, _, header)| header.first_sequence).collect();
    for (at, (number, path, header)) in found.into_iter().enumerate() {
        let until = firsts.get(at + 1).copied();
        checker.report.segments += 1;
        let told = |source| ReadError::Io { path: path.clone(), source };
        let mut file = BufReader::new(File::open(&path).map_err(told)?);
        if let Err(what) = checker.segment(Some(number), &header) {
            checker.broken(Place { file: path, line: 1 }, what);
            break;
        }
        let last = at + 1 == count;
        if !checker.lines(&mut file, &path, until, last, true, progress).map_err(told)? {
            break;
        }
    }
    Ok(checker.finish())
}

/// Whether a segment without a whole first line is one that is being made, or whose making came to nothing.
fn unfinished(path: &Path) -> Result<bool, ReadError> {
    let told = |source| ReadError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let limit = u64::try_from(Header::MAX_BYTES).unwrap_or(u64::MAX);
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(told)?;
    let part = bytes.starts_with(Header::START) || Header::START.starts_with(&bytes);
    Ok(bytes.len() < Header::MAX_BYTES && (part || bytes.iter().all(|byte| *byte == 0)))
}

/// Checks lines that were exported: files in order, or standard input for `-`.
///
/// # Errors
/// When one can't be read.
pub(crate) fn verify_lines(files: &[PathBuf], known: &Knowledge, progress: Progress<'_>) -> Result<Report, ReadError> {
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

/// The statements beside the segments, each with its line. One that is none is left out: what it covered, others cover.
fn kept_checkpoints(folder: &Path) -> Result<Vec<(u64, Signed)>, ReadError> {
    let path = folder.join(FILE);
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(file) => {
            let read = file.take(1024 * MAX_CHECKPOINTS as u64).read_to_end(&mut bytes);
            read.map_err(|source| ReadError::Io { path, source })?;
        }
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(ReadError::Io { path, source }),
    }
    let lines = (1..).zip(bytes.split(|byte| *byte == b'\n')).take(MAX_CHECKPOINTS);
    Ok(lines.filter_map(|(number, line)| Some((number, serde_json::from_slice(line).ok()?))).collect())
}

/// What the trail's own notes hold.
#[derive(Deserialize)]
struct Range {
    first: u64,
    last: u64,
}

/// A record that tells why numbers are missing.
struct Word {
    /// Its own number.
    number: u64,
    range: (u64, u64),
    /// By age or size; else it was a fault.
    removed: bool,
}

struct Checker<'k> {
    known: &'k Knowledge,
    /// Hashes that certain records must have, because somebody said so who is believed.
    wanted: BTreeMap<u64, Hash>,
    chain: Option<String>,
    /// The last record.
    before: Option<Sealed>,
    /// The first number of the segment that is being read, and the hash of the record before it.
    here: (u64, Option<Hash>),
    /// Numbers that were missing, and where that was seen.
    missing: Vec<(u64, u64, Place)>,
    words: Vec<Word>,
    oldest_signed: u64,
    boot: String,
    /// The first record, and the line that was read last.
    first: Option<Place>,
    at: Place,
    report: Report,
}

impl<'k> Checker<'k> {
    fn new(known: &'k Knowledge) -> Self {
        let report = Report { signed: !known.keys.is_empty(), ..Report::default() };
        Self {
            known,
            wanted: known.anchor.into_iter().collect(),
            chain: None,
            before: None,
            here: (0, None),
            missing: Vec::new(),
            words: Vec::new(),
            oldest_signed: 0,
            boot: String::new(),
            first: None,
            at: Place { file: PathBuf::new(), line: 0 },
            report,
        }
    }

    /// Takes a statement from beside the trail. With keys only theirs count; without, whoever could write it is believed as
    /// much as whoever could write the trail.
    fn remember(&mut self, signed: &Signed, chain: Option<&str>) -> Result<(), Break> {
        let statement = &signed.statement;
        let sequence = statement.sequence;
        if !self.known.believes(signed) {
            return Err(Break::BadSignature { sequence });
        }
        if chain.is_some_and(|chain| chain != statement.chain) {
            return Err(Break::Foreign { sequence });
        }
        if self.wanted.insert(sequence, statement.hash).is_some_and(|before| before != statement.hash) {
            return Err(Break::Contradicted { sequence });
        }
        if self.report.signed {
            self.oldest_signed = self.oldest_signed.max(statement.oldest);
        }
        Ok(())
    }

    fn broken(&mut self, place: Place, what: Break) {
        self.report.broken = Some((place, what));
    }

    /// The first line of a segment; its number is that of the file's name, where it has one.
    fn segment(&mut self, number: Option<u64>, header: &Header) -> Result<(), Break> {
        let wrong = |what: &str| Err(Break::Header(what.to_owned()));
        self.here = (header.first_sequence, Some(header.prev_hash));
        if number.is_some_and(|number| header.segment != number) {
            return wrong("its number is not that of the file's name");
        }
        if header.first_sequence == 0 || (header.first_sequence == 1 && header.prev_hash != Hash::GENESIS) {
            return wrong("nothing comes before the first record");
        }
        if self.chain.get_or_insert_with(|| header.chain.clone()) != &header.chain {
            return wrong("it belongs to another spool");
        }
        match &self.before {
            // Without a record before it, it is believed; the first record has to follow it.
            None => {
                self.before =
                    Some(Sealed { sequence: header.first_sequence - 1, prev: Hash::GENESIS, hash: header.prev_hash });
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
        self.at.file = path.to_owned();
        let mut given_up: Option<Sealed> = None;
        loop {
            bytes.clear();
            let count = io::Read::take(&mut *input, MAX_LINE).read_until(b'\n', &mut bytes)?;
            if count == 0 {
                return Ok(true);
            }
            line += 1;
            self.at.line = line;
            progress(count as u64);
            let place = || Place { file: path.to_owned(), line };
            let whole = bytes.last() == Some(&b'\n');
            if whole {
                bytes.pop();
            } else if count as u64 >= MAX_LINE {
                self.broken(place(), Break::TooLong);
                return Ok(false);
            }
            if line == 1 && spool || bytes.starts_with(Header::START) && !spool {
                if let Err(what) = self.first_line(&bytes, spool) {
                    self.broken(place(), what);
                    return Ok(false);
                }
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
                // Whatever comes after this look is not part of it.
                Err(_) if !whole && last_file => {
                    self.report.torn = true;
                    return Ok(true);
                }
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

    /// A segment's first line, byte for byte as it is written.
    fn first_line(&mut self, line: &[u8], spool: bool) -> Result<(), Break> {
        let header = Header::parse(line).map_err(|damage| Break::Header(damage.to_string()))?;
        let written = header.line().is_ok_and(|written| written.strip_suffix(b"\n") == Some(line));
        if !written {
            return Err(Break::Header("it is not as it was written".to_owned()));
        }
        // A spool's segments were looked at before, in their order.
        if spool { Ok(()) } else { self.segment(None, &header) }
    }

    fn record(&mut self, line: &[u8], sealed: Sealed, place: &dyn Fn() -> Place) -> Result<(), Break> {
        let (first_here, prev_here) = self.here;
        if sealed.sequence < first_here {
            return Err(Break::OutOfOrder(sealed.sequence));
        }
        if sealed.sequence == first_here && prev_here.is_some_and(|prev| prev != sealed.prev) {
            return Err(Break::NotNext);
        }
        match &self.before {
            Some(before) if sealed.sequence <= before.sequence => return Err(Break::OutOfOrder(sealed.sequence)),
            Some(before) if sealed.sequence > before.sequence + 1 => {
                let (first, last) = (before.sequence + 1, sealed.sequence - 1);
                self.gap(first, last, place())?;
            }
            Some(before) if sealed.prev != before.hash => return Err(Break::NotNext),
            Some(_) => {}
            None if sealed.sequence == 1 && sealed.prev != Hash::GENESIS => return Err(Break::NotNext),
            None => {}
        }
        for (sequence, hash) in [(sealed.sequence - 1, sealed.prev), (sealed.sequence, sealed.hash)] {
            if self.wanted.get(&sequence).is_some_and(|wanted| *wanted != hash) {
                return Err(Break::Contradicted { sequence });
            }
        }
        self.notes(line, sealed)?;
        if self.first.is_none() {
            self.first = Some(place());
        }
        let report = &mut self.report;
        report.records += 1;
        report.numbers = Some((report.numbers.map_or(sealed.sequence, |(first, _)| first), sealed.sequence));
        report.last_hash = Some(sealed.hash);
        if let Some(time) = member(line, br#""time_dt":""#) {
            report.times = Some((report.times.take().map_or_else(|| time.clone(), |(first, _)| first), time));
        }
        if let Some(boot) = member(line, br#""boot":""#).filter(|boot| *boot != self.boot) {
            report.boots += 1;
            self.boot = boot;
        }
        self.before = Some(sealed);
        Ok(())
    }

    /// Numbers that are missing. What stands before them is held by checkpoints before them alone.
    fn gap(&mut self, first: u64, last: u64, place: Place) -> Result<(), Break> {
        if self.missing.len() >= MAX_GAPS {
            return Err(Break::TooManyGaps);
        }
        let held = self.wanted.range(..first).next_back().map_or(0, |(number, _)| *number).max(self.report.covered);
        if held + 1 < first && self.report.records > 0 {
            let oldest = self.report.numbers.map_or(first, |(oldest, _)| oldest);
            let after_gap = self.missing.last().map_or(0, |(_, last, _)| last + 1);
            self.report.loose.push((oldest.max(held + 1).max(after_gap), first - 1));
        }
        self.missing.push((first, last, place));
        Ok(())
    }

    /// What the trail says of itself.
    fn notes(&mut self, line: &[u8], sealed: Sealed) -> Result<(), Break> {
        const LIFECYCLE: &[u8] = br#""class_uid":6002,"#;
        let head = line.get(..line.len().min(800)).unwrap_or_default();
        if !head.windows(LIFECYCLE.len()).any(|window| window == LIFECYCLE) {
            return Ok(());
        }
        let Ok(record) = serde_json::from_slice::<Value>(line) else { return Err(Break::NoJson) };
        let ours = |name: &str| record.pointer("/unmapped/gatepost").and_then(|ours| ours.get(name)).cloned();
        let range = |name: &str| ours(name).and_then(|value| serde_json::from_value::<Range>(value).ok());
        for (name, removed) in [("gap", false), ("removed", true)] {
            if let Some(Range { first, last }) = range(name) {
                if removed {
                    self.forget_older();
                }
                if self.words.len() >= MAX_GAPS {
                    return Err(Break::TooManyGaps);
                }
                self.words.push(Word { number: sealed.sequence, range: (first, last), removed });
            }
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
        if !self.known.believes(&signed) {
            return Err(Break::BadSignature { sequence });
        }
        self.chain.get_or_insert(signed.statement.chain);
        self.report.checkpoints += 1;
        self.report.covered = sequence;
        if self.report.signed {
            self.oldest_signed = self.oldest_signed.max(signed.statement.oldest);
        }
        Ok(())
    }

    /// Each segment that went has a word, and the last that is believed says all that those before it did.
    fn forget_older(&mut self) {
        let settled = |word: &Word| word.removed && (!self.report.signed || self.is_signed(word.number));
        let newest = self.words.iter().filter(|word| settled(word)).map(|word| word.range.1).max();
        let kept: Vec<bool> = self.words.iter().map(|word| !settled(word) || Some(word.range.1) == newest).collect();
        let mut kept = kept.into_iter();
        self.words.retain(|_| kept.next().unwrap_or(true));
    }

    fn finish(mut self) -> Report {
        self.report.chain = self.chain.take();
        let (oldest, last) = self.report.numbers.unwrap_or((0, 0));
        let remembered = self.wanted.range(..=last).next_back().map_or(0, |(number, _)| *number);
        self.report.covered = self.report.covered.max(remembered);
        let ranges = |signed: bool| -> Vec<(u64, u64)> {
            let words = self.words.iter().filter(|word| !signed || self.is_signed(word.number));
            words.map(|word| if word.removed { (1, word.range.1) } else { word.range }).collect()
        };
        let (told, mut believed) = (ranges(false), ranges(self.report.signed));
        self.report.gaps = self.words.iter().filter(|word| !word.removed).map(|word| word.range).collect();
        if self.oldest_signed > 1 {
            believed.push((1, self.oldest_signed - 1));
        }
        // The first thing that is missing without a word comes before whatever ended the reading.
        let unexplained = self.missing.iter().find(|(first, last, _)| !covered(*first, *last, &believed)).cloned();
        if let Some((first, last, place)) = unexplained {
            let word = covered(first, last, &told);
            let what = if word { Break::UnsignedWord { first, last } } else { Break::Missing { first, last } };
            self.broken(place, what);
            return self.report;
        }
        if self.report.broken.is_some() {
            return self.report;
        }
        // Whoever remembers the record before the first has seen what is missing.
        let known = self.known.anchor.is_some_and(|(number, _)| number + 1 == oldest);
        if oldest > 1 && !known && !covered(1, oldest - 1, &believed) {
            let word = covered(1, oldest - 1, &told);
            let what =
                if word { Break::UnsignedWord { first: 1, last: oldest - 1 } } else { Break::NoBeginning(oldest) };
            let place = self.first.take().unwrap_or_else(|| self.at.clone());
            self.broken(place, what);
            return self.report;
        }
        let must_reach = self.wanted.keys().next_back().copied().unwrap_or(0);
        if last < must_reach {
            self.broken(self.at.clone(), Break::CutOff { last, sequence: must_reach });
        } else if self.report.signed && self.report.covered == 0 && last > 0 {
            self.broken(self.at.clone(), Break::Unsigned);
        }
        self.report
    }

    /// Whether somebody who is believed stands for what this record says.
    fn is_signed(&self, number: u64) -> bool {
        number <= self.report.covered
            && !self.report.loose.iter().any(|(first, last)| (*first..=*last).contains(&number))
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
