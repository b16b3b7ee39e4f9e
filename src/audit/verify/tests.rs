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
    match random.draw(12) {
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
    assert_eq!(found.len(), 12);
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
        verify_lines(&[path.clone()], &known, &mut |_| ()).unwrap()
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
