//! Ten thousand ways to tamper, and every one is found; and nothing is found where nobody tampered.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::audit::checkpoint::{SigningKey, Statement};
use crate::audit::format::{Body, VERSION, segment_name};

struct Random(u64);

impl Random {
    fn draw(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }
}

fn key() -> SigningKey {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("key");
    fs::write(&path, SigningKey::generate().unwrap().as_bytes()).unwrap();
    SigningKey::load(&path).unwrap()
}

/// A trail in memory: segments of lines, and what lies beside them.
#[derive(Clone)]
struct Spool {
    segments: Vec<Vec<Vec<u8>>>,
    checkpoints: Vec<Signed>,
}

fn plain(number: u64) -> Body {
    let json = format!(
        r#"{{"metadata":{{"sequence":0,"uid":"u{number}"}},"class_uid":6003,"time_dt":"2026-11-26T00:00:00Z","unmapped":{{"gatepost":{{"boot":"b","n":{number}}}}}}}"#
    );
    Body::of(json.into_bytes()).unwrap()
}

fn signed_note(signed: &Signed) -> Body {
    let json = format!(
        r#"{{"metadata":{{"sequence":0,"uid":"c"}},"class_uid":6002,"unmapped":{{"gatepost":{{"checkpoint":{}}}}}}}"#,
        serde_json::to_string(signed).unwrap()
    );
    Body::of(json.into_bytes()).unwrap()
}

fn header(segment: u64, first: u64, prev: Hash) -> Vec<u8> {
    let header = Header {
        gatepost_spool: VERSION,
        chain: "chain".into(),
        segment,
        first_sequence: first,
        prev_hash: prev,
        opened: "2026-11-26T00:00:00Z".into(),
        boot: "b".into(),
        mode: "durable".into(),
        version: "0.1.0".into(),
    };
    let mut line = header.line().unwrap();
    line.pop();
    line
}

/// So many records in so many segments, with a checkpoint every so often, one of them at the very end.
fn spool(key: &SigningKey, segments: u64, each: u64, every: u64) -> Spool {
    let mut spool = Spool { segments: Vec::new(), checkpoints: Vec::new() };
    let (mut next, mut prev) = (1, Hash::GENESIS);
    for segment in 1..=segments {
        let mut lines = vec![header(segment, next, prev)];
        let put = |lines: &mut Vec<Vec<u8>>, body: &Body, next: &mut u64, prev: &mut Hash| {
            let mut line = Vec::new();
            *prev = body.seal(*next, *prev, &mut line);
            line.pop();
            lines.push(line);
            *next += 1;
        };
        for _ in 0..each {
            put(&mut lines, &plain(next), &mut next, &mut prev);
            if next % every == 0 || (segment == segments && lines.len() as u64 > each) {
                let time = "2026-11-26T00:00:00Z".into();
                let signed =
                    key.sign(Statement { chain: "chain".into(), sequence: next - 1, hash: prev, oldest: 1, time });
                put(&mut lines, &signed_note(&signed), &mut next, &mut prev);
                spool.checkpoints.push(signed);
            }
        }
        spool.segments.push(lines);
    }
    spool
}

impl Spool {
    fn write(&self, folder: &Path) {
        for (at, lines) in self.segments.iter().enumerate() {
            let mut bytes = lines.join(&b"\n"[..]);
            bytes.push(b'\n');
            fs::write(folder.join(segment_name(at as u64 + 1)), bytes).unwrap();
        }
        let lines: Vec<String> =
            self.checkpoints.iter().map(|one| serde_json::to_string(one).unwrap() + "\n").collect();
        fs::write(folder.join(FILE), lines.concat()).unwrap();
    }

    /// Where the records are.
    fn places(&self) -> Vec<(usize, usize)> {
        let lines = self.segments.iter().enumerate();
        lines.flat_map(|(segment, lines)| (1..lines.len()).map(move |line| (segment, line))).collect()
    }

    fn line(&mut self, (segment, line): (usize, usize)) -> &mut Vec<u8> {
        &mut self.segments[segment][line]
    }

    /// Puts a note at the end, chained as it should be.
    fn excuse(&mut self, name: &str, first: u64, last: u64) {
        let end = unseal(self.segments.last().unwrap().last().unwrap()).unwrap();
        let json = format!(
            r#"{{"metadata":{{"sequence":0,"uid":"w"}},"class_uid":6002,"unmapped":{{"gatepost":{{"{name}":{{"first":{first},"last":{last}}}}}}}}}"#
        );
        let mut line = Vec::new();
        Body::of(json.into_bytes()).unwrap().seal(end.sequence + 1, end.hash, &mut line);
        line.pop();
        self.segments.last_mut().unwrap().push(line);
    }

    /// What somebody without the key can do: all numbers and hashes anew.
    fn rehash(&mut self) {
        let (mut next, mut prev) = (1, Hash::GENESIS);
        for (at, lines) in self.segments.iter_mut().enumerate() {
            lines[0] = header(at as u64 + 1, next, prev);
            for line in lines.iter_mut().skip(1) {
                let mut record: Value = match serde_json::from_slice(line) {
                    Ok(record) => record,
                    Err(_) => continue,
                };
                record["metadata"]["sequence"] = 0.into();
                let ours = record["unmapped"]["gatepost"].as_object_mut().unwrap();
                ours.remove("hash");
                ours.remove("prev_hash");
                let (metadata, ours) = (record["metadata"].take(), record["unmapped"]["gatepost"].take());
                let class = record["class_uid"].take();
                let json = format!(
                    r#"{{"metadata":{{"sequence":0,"uid":{}}},"class_uid":{class},"unmapped":{{"gatepost":{ours}}}}}"#,
                    metadata["uid"]
                );
                let body = Body::of(json.into_bytes()).unwrap();
                line.clear();
                prev = body.seal(next, prev, line);
                line.pop();
                next += 1;
            }
        }
    }
}

/// One act of tampering; its name, or nothing when the draw changed nothing.
fn tamper(spool: &mut Spool, random: &mut Random) -> Option<&'static str> {
    let places = spool.places();
    let place = places[random.draw(places.len())];
    let other = places[random.draw(places.len())];
    match random.draw(15) {
        0 => {
            let at = random.draw(spool.line(place).len());
            let bit = 1 << random.draw(8);
            spool.line(place)[at] ^= bit;
            Some("a bit")
        }
        1 => {
            let at = random.draw(spool.line(place).len());
            spool.line(place).remove(at);
            Some("a byte removed")
        }
        2 => {
            let at = random.draw(spool.line(place).len());
            let byte = b'0' + random.draw(10) as u8;
            spool.line(place).insert(at, byte);
            Some("a byte inserted")
        }
        3 => {
            // The last record is the note of the last checkpoint, which nothing covers yet.
            (place != *places.last().unwrap()).then(|| spool.segments[place.0].remove(place.1))?;
            Some("a record removed")
        }
        4 => {
            let (one, two) = (spool.line(place).clone(), spool.line(other).clone());
            (one != two).then_some(())?;
            *spool.line(place) = two;
            *spool.line(other) = one;
            Some("two swapped")
        }
        5 => {
            let line = spool.line(place).clone();
            spool.segments[other.0].insert(other.1, line);
            Some("one twice")
        }
        6 => {
            let mut line = Vec::new();
            plain(7).seal(random.draw(500) as u64 + 1, Hash::GENESIS, &mut line);
            line.pop();
            spool.segments[place.0].insert(place.1, line);
            Some("a forged one inserted")
        }
        7 => {
            // All from here on.
            (place != *places.last().unwrap()).then_some(())?;
            spool.segments.truncate(place.0 + 1);
            spool.segments[place.0].truncate(place.1);
            Some("the end cut off")
        }
        8 => {
            let segment = random.draw(spool.segments.len());
            // The last one holds what the last checkpoint covers too.
            let lines = spool.segments.remove(segment);
            drop(lines);
            Some("a segment removed")
        }
        9 => {
            let segment = random.draw(spool.segments.len());
            let mut head: Header = Header::parse(&spool.segments[segment][0]).unwrap();
            match random.draw(4) {
                0 => head.prev_hash = Hash::parse(&[b'a'; 64]).unwrap(),
                1 => head.first_sequence += 1 + random.draw(3) as u64,
                2 => head.chain = "another".into(),
                _ => head.segment += 1,
            }
            let mut line = head.line().unwrap();
            line.pop();
            spool.segments[segment][0] = line;
            Some("a segment's first line")
        }
        12 => {
            // Taken out, with an excuse where nobody has signed yet.
            let place = places[1 + random.draw(places.len() - 2)];
            let gone = unseal(&spool.segments[place.0].remove(place.1)).unwrap().sequence;
            spool.excuse("gap", gone, gone);
            Some("one removed and called a gap")
        }
        13 => {
            let first = 1 + random.draw(places.len() - 2);
            for place in places.iter().take(first).rev() {
                spool.segments[place.0].remove(place.1);
            }
            spool.excuse("removed", 1, first as u64);
            Some("the beginning cut off and called old")
        }
        14 => {
            // A later segment that takes over from the middle on.
            let last = spool.segments.len();
            let place = (last - 1, 1 + random.draw(spool.segments[last - 1].len() - 2));
            let at = unseal(spool.line(place)).unwrap();
            let mut forged = vec![header(last as u64 + 1, at.sequence, at.prev)];
            let mut line = Vec::new();
            plain(0).seal(at.sequence, at.prev, &mut line);
            line.pop();
            forged.push(line);
            spool.segments.push(forged);
            Some("a segment that takes over what was kept")
        }
        10 => {
            // Up to the last checkpoint: what comes after it nobody has signed.
            let covered = places.len() - 2;
            let place = places[random.draw(covered)];
            spool.segments[place.0].remove(place.1);
            spool.rehash();
            Some("one removed and all hashed anew")
        }
        _ => {
            let covered = places.len() - 2;
            let place = places[random.draw(covered)];
            let text = String::from_utf8(spool.line(place).clone()).unwrap();
            let forged = text.replacen("\"n\":", "\"n\":1", 1);
            (forged != text).then_some(())?;
            *spool.line(place) = forged.into_bytes();
            spool.rehash();
            Some("one changed and all hashed anew")
        }
    }
}

fn knows(key: &SigningKey) -> Knowledge {
    Knowledge { keys: vec![key.public()], anchor: None }
}

fn verdict(folder: &Path, key: &SigningKey) -> Report {
    verify_spool(folder, &knows(key), &mut |_| ()).unwrap()
}

#[test]
fn ten_thousand_ways_to_tamper_are_all_found_and_nothing_else_is() {
    let key = key();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let spools: Vec<Spool> = (1..=8).map(|at| spool(&key, 1 + at % 4, 10 + 3 * at, 7 + at)).collect();
    for spool in &spools {
        let folder = TempDir::new().unwrap();
        spool.write(folder.path());
        let report = verdict(folder.path(), &key);
        assert_eq!(report.broken, None, "nobody touched it");
        assert_eq!(report.covered + 1, report.records, "all is signed but the last signature itself");
    }
    let mut found: BTreeMap<&str, u64> = BTreeMap::new();
    let mut tried = 0;
    while tried < 10_000 {
        let mut tampered = spools[random.draw(spools.len())].clone();
        let Some(how) = tamper(&mut tampered, &mut random) else { continue };
        let folder = TempDir::new().unwrap();
        tampered.write(folder.path());
        let report = verdict(folder.path(), &key);
        assert!(report.broken.is_some(), "{how} was not found: {report:?}");
        *found.entry(how).or_default() += 1;
        tried += 1;
    }
    println!("{tried} found of {tried}: {found:?}");
    assert_eq!(found.len(), 15);
}

#[test]
fn a_break_is_told_by_file_line_and_kind() {
    let key = key();
    let whole = spool(&key, 3, 10, 1000);
    let check = |change: &dyn Fn(&mut Spool)| {
        let folder = TempDir::new().unwrap();
        let mut spool = whole.clone();
        change(&mut spool);
        spool.write(folder.path());
        let (place, what) = verdict(folder.path(), &key).broken.expect("broken");
        (place.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(), place.line, what)
    };
    let second = segment_name(2);
    assert_eq!(check(&|spool| spool.segments[1][4][60] ^= 1), (second.clone(), 5, Break::Changed));
    let missing = Break::Missing { first: 14, last: 14 };
    assert_eq!(check(&|spool| drop(spool.segments[1].remove(4))), (second.clone(), 5, missing));
    let again = check(&|spool| {
        let line = spool.segments[1][4].clone();
        spool.segments[1].insert(5, line);
    });
    assert_eq!(again, (second.clone(), 6, Break::OutOfOrder(14)));
    let garbage = check(&|spool| spool.segments[1][4] = b"{}".to_vec());
    assert_eq!(garbage, (second, 5, Break::NoRecord(Damage::Head)));
    let (_, _, cut) = check(&|spool| spool.segments.truncate(2));
    assert_eq!(cut, Break::CutOff { last: 20, sequence: 30 });
    let (_, _, forged) = check(&|spool| {
        // All anew, with a key of his own.
        let own = super::tests::key();
        *spool = super::tests::spool(&own, 3, 10, 1000);
    });
    assert_eq!(forged, Break::BadSignature { sequence: 30 });
}

#[test]
fn an_export_is_checked_as_its_spool_is_and_an_anchor_stands_for_a_checkpoint() {
    let key = key();
    let whole = spool(&key, 3, 10, 8);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("export.jsonl");
    let lines: Vec<Vec<u8>> = whole.segments.iter().flat_map(|lines| lines.iter().skip(1).cloned()).collect();
    let export = |lines: &[Vec<u8>]| {
        let mut bytes = lines.join(&b"\n"[..]);
        bytes.push(b'\n');
        fs::write(&path, bytes).unwrap();
    };
    let check = |anchor: Option<(u64, Hash)>| {
        let known = Knowledge { anchor, ..knows(&key) };
        verify_lines(std::slice::from_ref(&path), &known, &mut |_| ()).unwrap()
    };
    export(&lines);
    let report = check(None);
    assert_eq!((report.broken, report.records), (None, lines.len() as u64));
    let last = unseal(lines.last().unwrap()).unwrap();
    export(&lines[..lines.len() - 1]);
    assert_eq!(check(None).broken, None, "nobody can know");
    let (_, what) = check(Some((last.sequence, last.hash))).broken.expect("unless somebody remembers");
    assert_eq!(what, Break::CutOff { last: last.sequence - 1, sequence: last.sequence });
    export(&lines[5..]);
    assert_eq!(check(None).broken.expect("the beginning").1, Break::NoBeginning(6));
}

#[test]
fn a_hundred_thousand_mutilated_spools_are_a_verdict_each_and_never_a_panic() {
    let key = key();
    let whole = spool(&key, 1, 12, 5);
    let mut bytes = whole.segments[0].join(&b"\n"[..]);
    bytes.push(b'\n');
    let mut random = Random(7);
    let mut broken = 0;
    for _ in 0..100_000 {
        let mut changed = bytes.clone();
        for _ in 0..1 + random.draw(4) {
            match random.draw(3) {
                0 => {
                    let at = random.draw(changed.len());
                    changed[at] = random.draw(256) as u8;
                }
                1 => changed.truncate(random.draw(changed.len()) + 1),
                _ => {
                    let (from, to) = (random.draw(changed.len()), random.draw(changed.len()));
                    let piece = changed[from.min(to)..from.max(to)].to_vec();
                    let at = random.draw(changed.len());
                    changed.splice(at..at, piece);
                    changed.truncate(64 << 10);
                }
            }
        }
        let known = knows(&key);
        let mut checker = Checker::new(&known);
        let read = checker.lines(&mut &changed[..], Path::new("x"), None, true, false, &mut |_| ());
        broken += u64::from(!read.unwrap());
        let _ = checker.finish();
    }
    assert!(broken > 50_000, "{broken}");
    println!("100000 mutilated, {broken} broken in the middle");
}

/// What may stand in a trail that a test makes line by line.
enum Line {
    /// A decision.
    Plain,
    /// The number is spent, and the line is not there.
    Lost,
    /// The trail's word for what is missing.
    Word(&'static str, u64, u64),
    /// A checkpoint by this key over the record before.
    Signed,
}
use Line::{Lost, Plain, Signed as Checkpoint, Word};

fn trail(key: &SigningKey, lines: &[Line]) -> Spool {
    let mut spool = Spool { segments: vec![vec![header(1, 1, Hash::GENESIS)]], checkpoints: Vec::new() };
    let (mut next, mut prev) = (1, Hash::GENESIS);
    for line in lines {
        let body = match line {
            Plain | Lost => plain(next),
            Word(name, first, last) => {
                let json = format!(
                    r#"{{"metadata":{{"sequence":0,"uid":"w"}},"class_uid":6002,"unmapped":{{"gatepost":{{"{name}":{{"first":{first},"last":{last}}}}}}}}}"#
                );
                Body::of(json.into_bytes()).unwrap()
            }
            Checkpoint => {
                let time = "2026-11-26T00:00:00Z".into();
                let signed =
                    key.sign(Statement { chain: "chain".into(), sequence: next - 1, hash: prev, oldest: 1, time });
                signed_note(&signed)
            }
        };
        let mut sealed = Vec::new();
        prev = body.seal(next, prev, &mut sealed);
        sealed.pop();
        if !matches!(line, Lost) {
            spool.segments[0].push(sealed);
        }
        next += 1;
    }
    spool
}

fn verdict_of(spool: &Spool, known: &Knowledge) -> Report {
    let folder = TempDir::new().unwrap();
    spool.write(folder.path());
    verify_spool(folder.path(), known, &mut |_| ()).unwrap()
}

#[test]
fn a_word_for_what_is_missing_counts_where_it_is_signed() {
    let key = key();
    let unsigned = |first, last| Some(Break::UnsignedWord { first, last });
    let table: [(&[Line], Option<Break>, &str); 7] = [
        (&[Plain, Lost, Plain, Word("gap", 2, 2), Checkpoint], None, "told and signed"),
        (&[Plain, Lost, Plain, Checkpoint, Word("gap", 2, 2)], unsigned(2, 2), "put behind the last checkpoint"),
        (&[Plain, Lost, Plain, Checkpoint, Word("removed", 1, 2)], unsigned(2, 2), "the same, by age"),
        (&[Plain, Lost, Plain, Checkpoint], Some(Break::Missing { first: 2, last: 2 }), "not told"),
        (&[Lost, Lost, Plain, Word("removed", 1, 2), Checkpoint], None, "it went by age"),
        (&[Lost, Lost, Plain, Checkpoint, Word("removed", 1, 2)], unsigned(1, 2), "somebody says so"),
        (
            // Before a second gap nothing holds the word: the record that would have followed it is gone too.
            &[Plain, Lost, Plain, Checkpoint, Word("gap", 2, 2), Lost, Plain, Word("gap", 6, 6), Checkpoint],
            unsigned(2, 2),
            "between a checkpoint and a gap",
        ),
    ];
    for (lines, expected, why) in table {
        let spool = trail(&key, lines);
        let report = verdict_of(&spool, &knows(&key));
        assert_eq!(report.broken.clone().map(|(_, what)| what), expected, "{why}: {report:?}");
        // Without a key nobody can tell one word from another.
        let without = verdict_of(&spool, &Knowledge::default());
        assert_eq!(without.broken.is_some(), matches!(expected, Some(Break::Missing { .. })), "{why}");
    }
    let loose = trail(&key, &[Plain, Checkpoint, Plain, Lost, Plain, Word("gap", 4, 4), Checkpoint]);
    let report = verdict_of(&loose, &knows(&key));
    assert_eq!((report.broken, report.loose, report.covered), (None, vec![(2, 3)], 6));
}

/// 20 000 places where something is missing are too many to remember, and no reason to.
#[test]
fn what_is_remembered_is_bounded() {
    let key = key();
    let holes = |count: usize| {
        let lines: Vec<Line> = std::iter::repeat_with(|| [Lost, Plain]).take(count).flatten().collect();
        let (place, what) = verdict_of(&trail(&key, &lines), &Knowledge::default()).broken.unwrap();
        (place.line, what)
    };
    // The first of them is what is told.
    assert_eq!(holes(MAX_GAPS), (2, Break::Missing { first: 1, last: 1 }));
    assert_eq!(holes(2 * MAX_GAPS), (2, Break::Missing { first: 1, last: 1 }));
    let words = |count: u64| {
        let lines: Vec<Line> = (0..count).map(|_| Word("gap", 1, 1)).collect();
        verdict_of(&trail(&key, &lines), &Knowledge::default()).broken.map(|(_, what)| what)
    };
    assert_eq!(words(MAX_GAPS as u64), None);
    assert_eq!(words(MAX_GAPS as u64 + 1), Some(Break::TooManyGaps));
    // Of segments that went the last word is enough.
    let mut went: Vec<Line> = (0..3 * MAX_GAPS as u64).map(|at| Word("removed", 1, at + 1)).collect();
    went.push(Checkpoint);
    assert_eq!(verdict_of(&trail(&key, &went), &Knowledge::default()).broken, None);
}

#[test]
fn a_trail_whose_key_was_changed_is_checked_with_both_and_a_strangers_statement_is_found() {
    let (old, new) = (key(), key());
    let mut spool = trail(&old, &[Plain, Checkpoint, Plain]);
    // The same lines, and a checkpoint by the new one at their end.
    let last = unseal(spool.segments[0].last().unwrap()).unwrap();
    let statement = |chain: &str, sequence, hash| Statement {
        chain: chain.into(),
        sequence,
        hash,
        oldest: 1,
        time: "2026-11-26T00:00:00Z".into(),
    };
    let signed = new.sign(statement("chain", last.sequence, last.hash));
    let mut line = Vec::new();
    signed_note(&signed).seal(last.sequence + 1, last.hash, &mut line);
    line.pop();
    spool.segments[0].push(line);
    let both = Knowledge { keys: vec![old.public(), new.public()], anchor: None };
    assert_eq!(verdict_of(&spool, &both).broken, None);
    assert_eq!(verdict_of(&spool, &knows(&new)).broken.unwrap().1, Break::BadSignature { sequence: 1 });
    assert_eq!(verdict_of(&spool, &knows(&old)).broken.unwrap().1, Break::BadSignature { sequence: 3 });

    let beside = |signed: Signed| {
        let mut changed = spool.clone();
        changed.checkpoints = vec![signed];
        let (place, what) = verdict_of(&changed, &both).broken.unwrap();
        assert_eq!((place.file.file_name().unwrap().to_str(), place.line), (Some(FILE), 1));
        what
    };
    let stranger = key().sign(statement("chain", 2, last.hash));
    assert_eq!(beside(stranger), Break::BadSignature { sequence: 2 });
    let elsewhere = old.sign(statement("another", 2, last.hash));
    assert_eq!(beside(elsewhere), Break::Foreign { sequence: 2 });
    // Two that contradict each other, both signed: somebody else holds the key, or the spool was put back.
    let mut twice = spool.clone();
    twice.checkpoints = vec![old.sign(statement("chain", 3, last.hash)), old.sign(statement("chain", 3, last.prev))];
    assert_eq!(verdict_of(&twice, &both).broken.unwrap().1, Break::Contradicted { sequence: 3 });
}

#[test]
fn a_segments_first_line_is_held_to_the_byte_and_one_that_is_being_made_is_none() {
    let key = key();
    let whole = spool(&key, 3, 10, 8);
    let (mut tried, mut random) = (0, Random(99));
    let foreign = Break::Header(HeaderDamage::Foreign.to_string());
    for segment in 0..3 {
        let line = whole.segments[segment][0].clone();
        for at in 0..line.len() {
            let mut changed = whole.clone();
            changed.segments[segment][0][at] ^= 1 << random.draw(8);
            assert!(verdict_of(&changed, &knows(&key)).broken.is_some(), "byte {at} of segment {segment}");
            tried += 1;
        }
        let mut spaced = whole.clone();
        spaced.segments[segment][0].insert(1, b' ');
        let (place, what) = verdict_of(&spaced, &knows(&key)).broken.unwrap();
        assert_eq!((place.line, &what), (1, &foreign));
        // With a check that is right, too: there is one way to write it.
        let line = &mut spaced.segments[segment][0];
        line.truncate(line.windows(10).position(|window| window == b",\"check\":\"").unwrap());
        let check = crate::audit::text::sha256_hex(line);
        line.extend_from_slice(format!(",\"check\":\"{check}\"}}").as_bytes());
        let (place, what) = verdict_of(&spaced, &knows(&key)).broken.unwrap();
        assert_eq!((place.line, what), (1, Break::Header("it is not as it was written".to_owned())));
    }
    println!("{tried} first lines changed, {tried} found");
    let folder = TempDir::new().unwrap();
    whole.write(folder.path());
    let next = folder.path().join(segment_name(4));
    for unfinished in [&b""[..], b"{\"gatepost_spool\":1,\"cha", b"\0\0\0\0"] {
        fs::write(&next, unfinished).unwrap();
        assert_eq!(verdict(folder.path(), &key).broken, None);
    }
    for other in [&b"something else"[..], &[b'x'; 2000]] {
        fs::write(&next, other).unwrap();
        assert_eq!(verdict(folder.path(), &key).broken, Some((Place { file: next.clone(), line: 1 }, foreign.clone())));
    }
}

#[test]
fn a_line_under_way_ends_the_check_and_one_longer_than_any_is_a_break() {
    let key = key();
    let whole = spool(&key, 1, 10, 100);
    let check = |bytes: &[u8]| {
        let known = knows(&key);
        let mut checker = Checker::new(&known);
        checker.lines(&mut &bytes[..], Path::new("x"), None, true, false, &mut |_| ()).unwrap();
        checker.finish()
    };
    let mut bytes = whole.segments[0].join(&b"\n"[..]);
    for cut in 1..100 {
        let report = check(&bytes[..bytes.len() - cut]);
        assert_eq!((report.torn, report.records), (true, 10), "{cut}");
    }
    bytes.push(b'\n');
    assert_eq!(check(&bytes).broken, None);
    // Junk, exactly so long that what follows looks like a line of its own.
    let (head, rest) = bytes.split_at(whole.segments[0][..5].join(&b"\n"[..]).len() + 1);
    let junk = vec![b'x'; usize::try_from(MAX_LINE).unwrap()];
    let report = check(&[head, &junk, rest].concat());
    assert_eq!(report.broken, Some((Place { file: "x".into(), line: 6 }, Break::TooLong)));
}

/// Somebody who checked up to a number goes on from there.
#[test]
fn an_anchor_stands_for_what_came_before_an_export() {
    let key = key();
    let whole = spool(&key, 1, 20, 7);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("export.jsonl");
    let later: Vec<Vec<u8>> = whole.segments[0].iter().skip(11).cloned().collect();
    fs::write(&path, later.join(&b"\n"[..])).unwrap();
    let before = unseal(&whole.segments[0][10]).unwrap();
    let check = |anchor| {
        let known = Knowledge { anchor: Some(anchor), ..knows(&key) };
        verify_lines(std::slice::from_ref(&path), &known, &mut |_| ()).unwrap().broken.map(|(_, what)| what)
    };
    assert_eq!(check((before.sequence, before.hash)), None);
    assert_eq!(check((before.sequence, before.prev)), Some(Break::Contradicted { sequence: 10 }));
    assert_eq!(check((before.sequence - 1, before.prev)), Some(Break::NoBeginning(11)));
}
