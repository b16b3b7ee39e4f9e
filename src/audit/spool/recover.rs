//! What a start finds: torn tails are cut, damaged lines are taken out of the way and kept aside, numbers that are missing
//! are told. Nothing whole is thrown away.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::Value;

use super::super::checkpoint::FILE;
use super::super::disk::{Disk, write_all};
use super::super::format::{Hash, Header, HeaderDamage, LAST, VERSION, segment_number, sequence, unseal};
use super::{Closed, SpoolError};
use crate::config::SpoolConfig;

/// The newest segments are looked at line by line, up to so many bytes in all; older ones by whoever reads them.
const CHECKED_BYTES: u64 = 256 << 20;
/// No line is longer: twice the largest `limits.audit_record_bytes`.
const MAX_LINE: u64 = 32 << 20;

/// Records that are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// `damaged`: their lines are kept in quarantine; `missing`: their segment is not there.
    pub(crate) reason: &'static str,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// The spool's name; `None`: there was none.
    pub(crate) chain: Option<String>,
    pub(super) segments: Vec<Closed>,
    pub(super) next_segment: u64,
    /// The number of the next record, and the hash of the last one.
    pub(super) end: (u64, Hash),
    /// The mode of the last start.
    pub(crate) last_mode: Option<String>,
    /// A last line was cut off in the middle.
    pub(crate) torn: bool,
    /// Records that are missing and of which no record tells yet.
    pub(crate) gaps: Vec<Gap>,
    /// Files that were moved or copied to `quarantine`.
    pub(crate) quarantined: Vec<String>,
    /// Whole lines that follow the end of the last segment, and stand in an earlier one: it was given up, and the end came
    /// before they had been written anew. They belong into the next segment.
    pub(super) carried: Vec<u8>,
    /// The number after the last of them, and its hash.
    pub(super) carried_to: (u64, Hash),
}

struct Found {
    number: u64,
    name: String,
    bytes: u64,
    header: Header,
}

/// A file that is called like a segment.
struct Called {
    number: u64,
    name: String,
    bytes: u64,
    first: First,
}

pub(super) fn recover(disk: &mut dyn Disk, config: &SpoolConfig, fresh_chain: &str) -> Result<Recovered, SpoolError> {
    let path = |name: &str| config.directory.join(name);
    let told = |name: &str| {
        let path = path(name);
        move |source| SpoolError::Io { path, source }
    };
    let start = (1, Hash::GENESIS);
    let mut recovered = Recovered { end: start, carried_to: start, next_segment: 1, ..Recovered::default() };
    let mut names = disk.list("").map_err(told(""))?;
    names.sort_by(|one, other| one.name.cmp(&other.name));
    let mut called = Vec::new();
    for file in &names {
        let Some(number) = segment_number(&file.name) else { continue };
        let first = if file.is_file { header(disk, &file.name).map_err(told(&file.name))? } else { First::NoFile };
        if let First::Version(version) = first {
            return Err(SpoolError::Version { path: path(&file.name), version });
        }
        called.push(Called { number, name: file.name.clone(), bytes: file.bytes, first });
    }
    let own = |one: &Called| {
        let First::Header(header) = &one.first else { return None };
        (header.segment == one.number).then(|| header.clone())
    };
    let chain = called.iter().find_map(|one| own(one).map(|header| header.chain));
    let stranger = |one: &&Called| own(one).is_some_and(|header| Some(&header.chain) != chain.as_ref());
    if let Some(other) = called.iter().find(stranger) {
        return Err(SpoolError::TwoChains { path: path(&other.name) });
    }
    // Up to here nothing was touched: what another Gatepost should have stays as it is.
    let mut changed = false;
    for file in names.iter().filter(|file| file.is_file && file.name.ends_with(".tmp")) {
        disk.remove(&file.name).map_err(told(&file.name))?;
        changed = true;
    }
    recovered.next_segment = called.iter().map(|one| one.number + 1).max().unwrap_or(1);
    let mut found: Vec<Found> = Vec::new();
    let mut headless = Vec::new();
    for one in called {
        let header = own(&one);
        let Called { number, name, bytes, first } = one;
        match (header, first) {
            (Some(header), _) => found.push(Found { number, name, bytes, header }),
            // It was being made when the end came, and holds no record.
            (None, First::Unfinished) => {
                disk.remove(&name).map_err(told(&name))?;
                changed = true;
            }
            (None, First::Foreign) => headless.push((number, name, bytes)),
            (None, First::Header(_) | First::NoFile | First::Version(_)) => {
                quarantine(disk, &name).map_err(told(&name))?;
                recovered.quarantined.push(name);
                changed = true;
            }
        }
    }
    // The newest first: what comes after one shows best whether it belongs there.
    for (number, name, bytes) in headless.into_iter().rev() {
        let at = found.partition_point(|one| one.number < number);
        let (before, after) = (at.checked_sub(1).and_then(|before| found.get(before)), found.get(at));
        let chain = chain.as_deref().unwrap_or(fresh_chain);
        match belongs(disk, &name, number, before, after, chain).map_err(told(&name))? {
            Some(header) => {
                let line = header.line().map_err(|fault| told(&name)(io::Error::other(fault)))?;
                salvage(disk, &name, &header, &line).map_err(told(&name))?;
                found.insert(at, Found { number, name: name.clone(), bytes, header });
            }
            None => quarantine(disk, &name).map_err(told(&name))?,
        }
        recovered.quarantined.push(name);
        changed = true;
    }
    recovered.chain = found.first().map(|first| first.header.chain.clone());
    recovered.last_mode = found.last().map(|last| last.header.mode.clone());
    changed |= walk(disk, &found, &mut recovered, &path)?;
    if let Some(chain) = recovered.chain.clone() {
        let known = known_to_others(disk, &chain).map_err(told(""))?;
        if known >= recovered.carried_to.0 {
            let gap = Gap { first: recovered.carried_to.0, last: known, reason: "missing" };
            recovered.gaps.push(gap);
            recovered.carried_to.0 = known + 1;
            if recovered.carried.is_empty() {
                recovered.end = recovered.carried_to;
            }
        }
    }
    if changed {
        disk.sync_folder().map_err(told(""))?;
    }
    Ok(recovered)
}

/// The header that a segment had, if its records show that its place is here: the chain leads into them from the segment
/// before, or out of them into the one after.
fn belongs(
    disk: &mut dyn Disk,
    name: &str,
    number: u64,
    before: Option<&Found>,
    after: Option<&Found>,
    chain: &str,
) -> io::Result<Option<Header>> {
    let (mut first, mut linked) = (None, false);
    let mut lines = Lines::over(disk.read(name)?);
    while let Some(line) = lines.next()? {
        let Some(sealed) = line.and_then(|line| unseal(line).ok()) else { continue };
        first.get_or_insert(sealed);
        linked |= after.is_some_and(|after| {
            (sealed.sequence + 1, sealed.hash) == (after.header.first_sequence, after.header.prev_hash)
        });
    }
    drop(lines);
    let Some(first) = first else { return Ok(None) };
    linked |= match before {
        Some(before) => {
            let look = look(disk, before, None)?;
            (look.next, look.hash) == (first.sequence, first.prev)
        }
        None => (first.sequence, first.prev) == (1, Hash::GENESIS),
    };
    let neighbour = after.or(before).map(|one| &one.header);
    let of = |part: fn(&Header) -> &String| neighbour.map(part).cloned().unwrap_or_default();
    Ok(linked.then(|| Header {
        gatepost_spool: VERSION,
        chain: chain.to_owned(),
        segment: number,
        first_sequence: first.sequence,
        prev_hash: first.prev,
        opened: of(|header| &header.opened),
        boot: of(|header| &header.boot),
        mode: of(|header| &header.mode),
        version: of(|header| &header.version),
    }))
}

/// The last record that a sink or a checkpoint knows: its number was given away, whatever became of the record.
fn known_to_others(disk: &mut dyn Disk, chain: &str) -> io::Result<u64> {
    #[derive(Deserialize)]
    struct Known {
        chain: String,
        sequence: u64,
    }
    let cursors = disk.list("cursors")?.into_iter().filter(|file| file.is_file && file.name.ends_with(".json"));
    let mut names: Vec<String> = cursors.map(|file| format!("cursors/{}", file.name)).collect();
    names.extend(disk.list("")?.into_iter().filter(|file| file.is_file && file.name == FILE).map(|file| file.name));
    let mut last = 0;
    for name in names {
        let mut lines = Lines::over(disk.read(&name)?);
        // A cursor is a line without a line break.
        while lines.next()?.is_some() {
            let known = serde_json::from_slice::<Known>(&lines.line).ok();
            let ours = known.filter(|known| known.chain == chain && known.sequence <= LAST);
            last = last.max(ours.map_or(0, |known| known.sequence));
        }
    }
    Ok(last)
}

/// Moves something to quarantine, under a name that nothing there has.
fn quarantine(disk: &mut dyn Disk, name: &str) -> io::Result<()> {
    let aside = free_name(disk, name)?;
    disk.rename(name, &aside)
}

/// A name in quarantine: what was found earlier stays.
fn free_name(disk: &mut dyn Disk, name: &str) -> io::Result<String> {
    let taken: BTreeSet<String> = disk.list("quarantine")?.into_iter().map(|file| file.name).collect();
    let names = std::iter::once(name.to_owned()).chain((1_u64..).map(|number| format!("{name}.{number}")));
    let free = names.into_iter().find(|name| !taken.contains(name)).unwrap_or_default();
    Ok(format!("quarantine/{free}"))
}

/// Looks at the segments, the newest line by line.
fn walk(
    disk: &mut dyn Disk,
    found: &[Found],
    recovered: &mut Recovered,
    path: &dyn Fn(&str) -> PathBuf,
) -> Result<bool, SpoolError> {
    let mut changed = false;
    let mut budget = CHECKED_BYTES;
    let mut looks: Vec<Option<Look>> = found.iter().map(|_| None).collect();
    for (at, segment) in found.iter().enumerate().rev() {
        if at + 1 < found.len() && segment.bytes > budget {
            break;
        }
        budget = budget.saturating_sub(segment.bytes);
        let until = found.get(at + 1).map(|next| next.header.first_sequence);
        let told = |source| SpoolError::Io { path: path(&segment.name), source };
        let mut look = look(disk, segment, until).map_err(told)?;
        if until.is_none() && look.damaged && !look.whole_after {
            // Nothing whole comes after it: the end of the process, or of the machine, cut it.
            let lines = keep_torn(disk, segment, look.good_bytes).map_err(told)?;
            if lines {
                recovered.quarantined.push(segment.name.clone());
            }
            disk.truncate(&segment.name, look.good_bytes).map_err(told)?;
            recovered.torn = true;
            if look.claimed >= look.next {
                // They were whole lines once, and may have been acknowledged: nobody else gets their numbers.
                look.missing.push(Gap { first: look.next, last: look.claimed, reason: "damaged" });
                look.next = look.claimed + 1;
            }
        } else if look.damaged && until.is_none_or(|until| look.next < until || look.whole_after) {
            let header = segment.header.line().map_err(|fault| told(io::Error::other(fault)))?;
            salvage(disk, &segment.name, &segment.header, &header).map_err(told)?;
            recovered.quarantined.push(segment.name.clone());
            changed = true;
        }
        if until.is_none() {
            // A start that cut such lines may have ended before it could tell of them. Once it is told, a segment follows.
            let claimed = claimed_aside(disk, &segment.name, look.next).map_err(told)?;
            if claimed >= look.next {
                look.missing.push(Gap { first: look.next, last: claimed, reason: "damaged" });
                look.next = claimed + 1;
                recovered.torn = true;
            }
        }
        if let Some(slot) = looks.get_mut(at) {
            *slot = Some(look);
        }
    }
    // What is missing between them, and of which no record tells.
    let known: BTreeSet<(u64, u64)> = looks.iter().flatten().flat_map(|look| look.told.iter().copied()).collect();
    let mut expected: Option<u64> = None;
    for (segment, look) in found.iter().zip(&looks) {
        let first = segment.header.first_sequence;
        if let Some(expected) = expected.filter(|expected| *expected < first) {
            recovered.gaps.push(Gap { first: expected, last: first - 1, reason: "missing" });
        }
        if let Some(look) = look {
            recovered.gaps.extend(look.missing.iter().cloned());
            expected = Some(look.next);
        } else {
            expected = None;
        }
    }
    recovered.gaps.retain(|gap| !known.contains(&(gap.first, gap.last)));
    recovered.segments = segments(found, &looks);
    if let (Some(last), Some(Some(look))) = (found.last(), looks.last()) {
        recovered.end = (look.next, look.hash);
        // One without a record would be left by each start that comes to nothing.
        if look.next == last.header.first_sequence {
            disk.remove(&last.name).map_err(|source| SpoolError::Io { path: path(&last.name), source })?;
            recovered.segments.pop();
            changed = true;
        } else {
            // Of what is there nobody knows whether the disk has kept it; what comes next must not outlive it.
            let synced = disk.append(&last.name).and_then(|mut file| file.sync());
            synced.map_err(|source| SpoolError::Io { path: path(&last.name), source })?;
        }
        recovered.carried_to = recovered.end;
        let given_up: Vec<&Found> = found
            .iter()
            .zip(&looks)
            .filter(|(_, look)| look.as_ref().is_some_and(|look| look.beyond))
            .map(|(one, _)| one)
            .collect();
        carry(disk, &given_up, recovered).map_err(|source| SpoolError::Io { path: path(""), source })?;
    }
    Ok(changed)
}

/// Looks for the lines that follow the last one, in the segments that were given up.
fn carry(disk: &mut dyn Disk, given_up: &[&Found], recovered: &mut Recovered) -> io::Result<()> {
    loop {
        let before = recovered.carried_to.0;
        for segment in given_up.iter().rev() {
            let mut lines = Lines::over(disk.read(&segment.name)?);
            while let Some(line) = lines.next()? {
                let Some((line, sealed)) = line.and_then(|line| unseal(line).ok().map(|sealed| (line, sealed))) else {
                    continue;
                };
                if (sealed.sequence, sealed.prev) == recovered.carried_to {
                    recovered.carried.extend_from_slice(line);
                    recovered.carried.push(b'\n');
                    recovered.carried_to = (sealed.sequence + 1, sealed.hash);
                }
            }
        }
        if recovered.carried_to.0 == before {
            return Ok(());
        }
    }
}

fn segments(found: &[Found], looks: &[Option<Look>]) -> Vec<Closed> {
    let mut closed = Vec::with_capacity(found.len());
    for (at, (segment, look)) in found.iter().zip(looks).enumerate() {
        let next = found.get(at + 1).map(|next| next.header.first_sequence);
        let last = look.as_ref().map(|look| look.next).or(next).unwrap_or(segment.header.first_sequence) - 1;
        let millis = segment.header.opened.parse::<jiff::Timestamp>().map_or(0, |opened| opened.as_millisecond());
        let opened = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0));
        let (number, first, bytes) = (segment.number, segment.header.first_sequence, segment.bytes);
        closed.push(Closed { number, first, last, bytes, opened });
    }
    closed
}

/// What a segment holds, line by line.
struct Look {
    /// The number after the last record that counts here, and that record's hash.
    next: u64,
    hash: Hash,
    /// A line was not whole.
    damaged: bool,
    /// A whole record came after that.
    whole_after: bool,
    /// Bytes up to the first line that was not whole.
    good_bytes: u64,
    /// Numbers that are not there.
    missing: Vec<Gap>,
    /// The largest number of a damaged line after the last whole one, as far as there are lines for it; 0: none.
    claimed: u64,
    /// Gaps that records here tell of.
    told: Vec<(u64, u64)>,
    /// Whole lines follow that a later segment took over.
    beyond: bool,
}

fn look(disk: &mut dyn Disk, segment: &Found, until: Option<u64>) -> io::Result<Look> {
    let header = &segment.header;
    let mut look = Look {
        next: header.first_sequence,
        hash: header.prev_hash,
        damaged: false,
        whole_after: false,
        good_bytes: 0,
        missing: Vec::new(),
        claimed: 0,
        told: Vec::new(),
        beyond: false,
    };
    let mut damaged_lines = 0;
    let mut lines = Lines::over(disk.read(&segment.name)?);
    lines.next()?;
    look.good_bytes = lines.read;
    while let Some(line) = lines.next()? {
        match line.and_then(|line| unseal(line).ok().map(|sealed| (line, sealed))) {
            Some((_, sealed)) if until.is_some_and(|until| sealed.sequence >= until) => {
                look.beyond = true;
                break;
            }
            Some((line, sealed)) if sealed.sequence >= look.next => {
                if sealed.sequence > look.next {
                    look.missing.push(Gap { first: look.next, last: sealed.sequence - 1, reason: "damaged" });
                }
                look.told.extend(told_gap(line));
                look.whole_after |= look.damaged;
                (look.next, look.hash) = (sealed.sequence + 1, sealed.hash);
                (look.claimed, damaged_lines) = (0, 0);
            }
            // A number that was there already is no record of ours.
            Some(_) | None => {
                look.damaged = true;
                damaged_lines += 1;
                // Without its line break, it was never all written.
                let claimed = lines.is_whole().then(|| sequence(&lines.line)).flatten();
                let fits = |number: &u64| *number >= look.next && *number - look.next < damaged_lines;
                look.claimed = look.claimed.max(claimed.filter(fits).unwrap_or(0));
            }
        }
        if !look.damaged {
            look.good_bytes = lines.read;
        }
    }
    Ok(look)
}

/// The gap that a line tells of, if that is what it does.
fn told_gap(line: &[u8]) -> Option<(u64, u64)> {
    const LIFECYCLE: &[u8] = br#""class_uid":6002,"#;
    let head = line.get(..line.len().min(800))?;
    head.windows(LIFECYCLE.len()).any(|window| window == LIFECYCLE).then_some(())?;
    let record: Value = serde_json::from_slice(line).ok()?;
    let gap = record.pointer("/unmapped/gatepost/gap")?;
    Some((gap.get("first")?.as_u64()?, gap.get("last")?.as_u64()?))
}

/// Keeps what follows the last whole line, when it is more than a part of a line.
fn keep_torn(disk: &mut dyn Disk, segment: &Found, from: u64) -> io::Result<bool> {
    let mut after = Lines::over(disk.read(&segment.name)?);
    let lines = loop {
        let read = after.read;
        if after.next()?.is_none() {
            break false;
        }
        if read >= from && after.is_whole() {
            break true;
        }
    };
    drop(after);
    if lines {
        let aside = free_name(disk, &format!("{}.torn", segment.name))?;
        copy(disk, &segment.name, from, &aside)?;
    }
    Ok(lines)
}

/// The largest number that lines from this segment's end claim which lie in quarantine, as far as they can have had it when
/// `next` was the next one; 0: none.
fn claimed_aside(disk: &mut dyn Disk, name: &str, next: u64) -> io::Result<u64> {
    let torn = format!("{name}.torn");
    let ours = |file: &str| file.strip_prefix(&torn).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let files: Vec<String> =
        disk.list("quarantine")?.into_iter().filter(|file| file.is_file).map(|file| file.name).collect();
    let mut claimed = 0;
    for file in files.iter().filter(|file| ours(file)) {
        let mut lines = Lines::over(disk.read(&format!("quarantine/{file}"))?);
        let mut seen = 0;
        while lines.next()?.is_some() {
            seen += 1;
            let number = lines.is_whole().then(|| sequence(&lines.line)).flatten();
            let fits = |number: &u64| *number >= next && *number - next < seen;
            claimed = claimed.max(number.filter(fits).unwrap_or(0));
        }
    }
    Ok(claimed)
}

/// Copies a file from a place in it on, and makes the disk keep the copy. It has its name when it is whole.
fn copy(disk: &mut dyn Disk, name: &str, from: u64, to: &str) -> io::Result<()> {
    let unfinished = format!("{name}.copy.tmp");
    disk.remove(&unfinished)?;
    let mut out = disk.create(&unfinished)?;
    let mut source = disk.read(name)?;
    io::copy(&mut source.by_ref().take(from), &mut io::sink())?;
    let mut piece = vec![0_u8; 256 << 10];
    loop {
        match source.read(&mut piece)? {
            0 => break,
            some => write_all(&mut *out, piece.get(..some).unwrap_or_default())?,
        }
    }
    drop(source);
    out.sync()?;
    disk.rename(&unfinished, to)
}

/// Copies the segment to quarantine as it is, and puts one with its whole lines alone in its place. Those that a later
/// segment took over stay too: it may not have come to write them.
fn salvage(disk: &mut dyn Disk, name: &str, header: &Header, first_line: &[u8]) -> io::Result<()> {
    let aside = free_name(disk, name)?;
    copy(disk, name, 0, &aside)?;
    // In quarantine before it is gone from here.
    disk.sync_folder()?;

    let whole = format!("{name}.tmp");
    disk.remove(&whole)?;
    let mut out = disk.create(&whole)?;
    write_all(&mut *out, first_line)?;
    let mut source = Lines::over(disk.read(name)?);
    source.next()?;
    let mut next = header.first_sequence;
    while let Some(line) = source.next()? {
        let sealed = line.and_then(|line| unseal(line).ok()).filter(|sealed| sealed.sequence >= next);
        if let (Some(line), Some(sealed)) = (line, sealed) {
            write_all(&mut *out, line)?;
            write_all(&mut *out, b"\n")?;
            next = sealed.sequence + 1;
        }
    }
    drop(source);
    out.sync()?;
    disk.rename(&whole, name)
}

enum First {
    Header(Header),
    Version(u32),
    Unfinished,
    /// No header. There may be whole lines behind it.
    Foreign,
    /// A folder, a link, a pipe.
    NoFile,
}

fn header(disk: &mut dyn Disk, name: &str) -> io::Result<First> {
    let mut line = Vec::new();
    let limit = Header::MAX_BYTES as u64;
    BufReader::new(disk.read(name)?).take(limit).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        let ours = line.len() < Header::MAX_BYTES
            && (line.starts_with(Header::START)
                || Header::START.starts_with(&line)
                || line.iter().all(|byte| *byte == 0));
        return Ok(if ours { First::Unfinished } else { First::Foreign });
    }
    line.pop();
    Ok(match Header::parse(&line) {
        Ok(header) => First::Header(header),
        Err(HeaderDamage::Version(version)) => First::Version(version),
        Err(HeaderDamage::Foreign) => First::Foreign,
    })
}

/// Lines, each bounded.
struct Lines<R> {
    file: BufReader<R>,
    line: Vec<u8>,
    /// Bytes read so far, whole lines.
    read: u64,
    whole: bool,
}

impl<R: Read> Lines<R> {
    fn over(file: R) -> Self {
        Self { file: BufReader::with_capacity(256 << 10, file), line: Vec::new(), read: 0, whole: false }
    }

    /// Whether the last one had its line break.
    fn is_whole(&self) -> bool {
        self.whole
    }

    /// The next line without its line break; `Some(None)`: bytes that are no whole line; `None`: the end.
    fn next(&mut self) -> io::Result<Option<Option<&[u8]>>> {
        self.line.clear();
        let count = (&mut self.file).take(MAX_LINE).read_until(b'\n', &mut self.line)?;
        if count == 0 {
            return Ok(None);
        }
        self.read += count as u64;
        self.whole = self.line.last() == Some(&b'\n');
        if !self.whole {
            return Ok(Some(None));
        }
        self.line.pop();
        Ok(Some(Some(&self.line)))
    }
}
