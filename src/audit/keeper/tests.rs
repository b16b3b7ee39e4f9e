//! A disk that fails in every way, ten thousand times: nothing that was acknowledged is lost.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::audit::HostFacts;
use crate::audit::format::{Header, segment_number, unseal};
use crate::audit::spool::Writing;
use crate::audit::spool::sim::{Faults, SimDisk};
use crate::clock::ManualClock;
use crate::config::{Keeping, OnAuditFailure, SpoolConfig};

const SEGMENT: u64 = 6 << 10;
const RESERVE: u64 = 4 << 10;

fn config() -> SpoolConfig {
    SpoolConfig {
        directory: "audit".into(),
        segment_bytes: SEGMENT,
        max_bytes: 1 << 30,
        max_age: Duration::from_secs(86_400 * 365),
        reserve_bytes: RESERVE,
    }
}

fn body(id: u64) -> Body {
    let json = format!(
        r#"{{"metadata":{{"sequence":0,"uid":"{id}"}},"unmapped":{{"gatepost":{{"fill":"{}"}}}}}}"#,
        "x".repeat((id % 300) as usize)
    );
    Body::of(json.into_bytes()).unwrap()
}

fn open(disk: &SimDisk, config: &SpoolConfig, clock: &Arc<ManualClock>) -> Result<Keeper, String> {
    let keeping = Keeping { mode: AuditMode::Durable, on_failure: OnAuditFailure::Refuse };
    let boot = format!("boot-{}", disk.draw(u64::MAX));
    let host = HostFacts { hostname: "gatepost-0".to_owned() };
    let frame = Arc::new(Frame { host, boot: boot.clone(), keeping, exceptions: 0 });
    let writing = Writing { boot, mode: "durable" };
    let (spool, recovered) =
        Spool::open(Box::new(disk.clone()), config, writing, "chain".to_owned()).map_err(|error| error.to_string())?;
    let heard: Heard = Arc::new(|_| ());
    let shared: SharedClock = clock.clone();
    let mut keeper = Keeper::new(spool, frame, shared, heard, Arc::new(Delivered::default()), None);
    keeper.begin(&recovered).map_err(|kind| kind.to_string())?;
    Ok(keeper)
}

fn clock() -> Arc<ManualClock> {
    ManualClock::at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
}

/// Everything that counts in the spool: `uid` by number; and the gaps that are told. Panics where the chain is broken.
fn trail(disk: &SimDisk) -> (BTreeMap<u64, String>, BTreeSet<(u64, u64)>) {
    let mut segments: Vec<(u64, Vec<u8>)> = disk
        .names()
        .iter()
        .filter_map(|name| Some((segment_number(name)?, disk.bytes_of(name).unwrap())))
        .filter(|(_, bytes)| bytes.contains(&b'\n'))
        .collect();
    segments.sort();
    let headers: Vec<Header> = segments
        .iter()
        .map(|(_, bytes)| Header::parse(bytes.split(|byte| *byte == b'\n').next().unwrap()).unwrap())
        .collect();
    let (mut found, mut gaps) = (BTreeMap::new(), BTreeSet::new());
    let mut before = None;
    for (at, (_, bytes)) in segments.iter().enumerate() {
        let until = headers.get(at + 1).map_or(u64::MAX, |next| next.first_sequence);
        let mut next = headers[at].first_sequence;
        for line in bytes.split(|byte| *byte == b'\n').skip(1) {
            let Ok(sealed) = unseal(line) else { continue };
            if sealed.sequence >= until || sealed.sequence < next {
                continue;
            }
            if let Some((number, hash)) = before
                && sealed.sequence == number + 1
            {
                assert_eq!(sealed.prev, hash, "record {} follows another", sealed.sequence);
            }
            before = Some((sealed.sequence, sealed.hash));
            next = sealed.sequence + 1;
            let record: serde_json::Value = serde_json::from_slice(line).unwrap();
            if let Some(gap) = record.pointer("/unmapped/gatepost/gap") {
                gaps.insert((gap["first"].as_u64().unwrap(), gap["last"].as_u64().unwrap()));
            }
            let uid = record["metadata"]["uid"].as_str().unwrap().to_owned();
            assert!(found.insert(sealed.sequence, uid).is_none());
        }
    }
    (found, gaps)
}

#[derive(Debug, Default)]
struct Totals {
    schedules: u64,
    durable: u64,
    written: u64,
    refused: u64,
    kills: u64,
    gaps: usize,
    faults: BTreeMap<&'static str, u64>,
}

/// One seed: records in mixed modes, faults that come and go, kills and power cuts; then the disk is well, and everything
/// that was acknowledged must be there.
fn schedule(seed: u64, totals: &mut Totals) {
    let disk = SimDisk::new(seed);
    let clock = clock();
    let config = config();
    let (mut durable, mut written, mut next_id) = (BTreeSet::new(), BTreeSet::new(), 0);
    for _ in 0..1 + disk.draw(4) {
        let Ok(mut keeper) = open(&disk, &config, &clock) else {
            // It would not start on such a disk; nothing was acknowledged.
            disk.set(Faults::default());
            continue;
        };
        for _ in 0..disk.draw(24) {
            clock.advance(Duration::from_millis(disk.draw(700)));
            if disk.draw(4) == 0 {
                let rare = |disk: &SimDisk| if disk.draw(2) == 0 { 0 } else { disk.draw(400) as u32 };
                let room = (disk.draw(3) == 0).then(|| 2000 + disk.draw(40_000));
                disk.set(Faults {
                    short_writes: rare(&disk),
                    write_errors: rare(&disk),
                    sync_errors: rare(&disk),
                    create_errors: rare(&disk),
                    rename_errors: rare(&disk),
                    remove_errors: rare(&disk),
                    folder_errors: rare(&disk),
                    room,
                    read_only: disk.draw(20) == 0,
                });
            } else if disk.draw(3) == 0 {
                disk.set(Faults::default());
            }
            if disk.draw(3) == 0 {
                let _ = keeper.tick();
            }
            let round: Vec<(u64, Body, AuditMode)> = (0..1 + disk.draw(6))
                .map(|_| {
                    next_id += 1;
                    let modes = [AuditMode::Durable, AuditMode::Written, AuditMode::Async];
                    (next_id, body(next_id), modes[disk.draw(3) as usize])
                })
                .collect();
            let records: Vec<(&Body, AuditMode)> = round.iter().map(|(_, body, mode)| (body, *mode)).collect();
            let sync = round.iter().any(|(_, _, mode)| *mode == AuditMode::Durable);
            match keeper.keep(&records) {
                Ok(()) => {
                    // A sync keeps all of the round, whatever each of them asked for.
                    let kept = if sync { &mut durable } else { &mut written };
                    kept.extend(round.iter().map(|(id, _, _)| id.to_string()));
                }
                Err(_) => totals.refused += records.len() as u64,
            }
        }
        drop(keeper);
        if disk.draw(2) == 0 {
            disk.power_cut();
            // What was only written may be gone with the power.
            written.clear();
        } else {
            totals.kills += 1;
        }
    }
    disk.set(Faults::default());
    let mut keeper = open(&disk, &config, &clock).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    keeper.close();
    let (found, gaps) = trail(&disk);
    let there: BTreeSet<&String> = found.values().collect();
    let lost: Vec<&String> = durable.iter().chain(&written).filter(|id| !there.contains(id)).collect();
    assert!(lost.is_empty(), "GATEPOST_SEED={seed}: {lost:?} were acknowledged and are gone");
    assert_eq!(there.len(), found.len(), "GATEPOST_SEED={seed}: a record twice");
    let mut expected = 1;
    for number in found.keys() {
        // Gaps that touch are told one by one.
        while *number > expected {
            let told = gaps.iter().find(|(first, _)| *first == expected);
            let (_, last) = told.unwrap_or_else(|| panic!("GATEPOST_SEED={seed}: {expected} to {number} is not told"));
            expected = last + 1;
        }
        expected = number + 1;
    }
    totals.schedules += 1;
    totals.durable += durable.len() as u64;
    totals.written += written.len() as u64;
    totals.gaps += gaps.len();
    for (fault, count) in disk.happened() {
        *totals.faults.entry(fault).or_default() += count;
    }
}

/// THREATS F1 to F4. `GATEPOST_SEED=n` replays one schedule, `GATEPOST_LONG` tries 200 000.
#[test]
fn ten_thousand_schedules_of_a_failing_disk_lose_nothing_that_was_acknowledged() {
    let mut totals = Totals::default();
    if let Ok(seed) = std::env::var("GATEPOST_SEED") {
        schedule(seed.parse().unwrap(), &mut totals);
    } else {
        let seeds = if std::env::var_os("GATEPOST_LONG").is_some() { 200_000 } else { 10_000 };
        for seed in 0..seeds {
            schedule(seed, &mut totals);
        }
        assert!(totals.durable > seeds && totals.refused > seeds, "{totals:?}");
        // Files are renamed by a mending start alone, and few of those fail at it.
        let often = totals.faults.iter().filter(|(fault, _)| **fault != "rename errors");
        assert!(often.clone().count() >= 8 && often.clone().all(|(_, count)| *count > 500), "{totals:?}");
    }
    println!("{totals:#?}, 0 acknowledged records lost");
}

/// A keeper that signs, for whoever is so far.
fn signing(disk: &SimDisk, config: &SpoolConfig, clock: &Arc<ManualClock>, delivered: Arc<Delivered>) -> Keeper {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, SigningKey::generate().unwrap().as_bytes()).unwrap();
    let key = SigningKey::load(&path).unwrap();
    let mut keeper = open(disk, config, clock).unwrap();
    keeper.checkpoints = Some(Checkpoints { key, every: Duration::from_secs(1), records: 1000 });
    keeper.delivered = delivered;
    keeper
}

fn durable(keeper: &mut Keeper, bodies: &[Body]) -> Result<(), ErrorKind> {
    let round: Vec<(&Body, AuditMode)> = bodies.iter().map(|body| (body, AuditMode::Durable)).collect();
    keeper.keep(&round)
}

fn segments_of(disk: &SimDisk) -> usize {
    disk.names().iter().filter(|name| segment_number(name).is_some()).count()
}

/// The open segment may be what is in the way.
#[test]
fn a_round_of_a_whole_segment_finds_room_behind_an_open_one_that_is_full() {
    let (disk, clock) = (SimDisk::new(1), clock());
    let config = SpoolConfig { max_bytes: 2 * SEGMENT, ..config() };
    let mut keeper = open(&disk, &config, &clock).unwrap();
    while keeper.bytes() < SEGMENT - 1000 {
        durable(&mut keeper, &[body(299)]).unwrap();
    }
    assert_eq!(segments_of(&disk), 1);
    let rest = (2 * SEGMENT - keeper.bytes()) as usize;
    let big: Vec<Body> = (0..1 + rest / body(299).bytes()).map(|_| body(299)).collect();
    assert_eq!(durable(&mut keeper, &big), Ok(()));
    assert_eq!(trail(&disk).0.len(), big.len() + 1, "the full one went, and that is told");
}

/// However much was kept when the process stops, and whatever it still has to say then.
#[test]
fn a_spool_is_never_larger_than_it_may_be() {
    let config = SpoolConfig { max_bytes: 4 * SEGMENT, ..config() };
    let mut nearest = u64::MAX;
    for records in 0..400 {
        let (disk, clock) = (SimDisk::new(records), clock());
        let mut keeper = signing(&disk, &config, &clock, Arc::default());
        for record in 0..records {
            durable(&mut keeper, &[body(record * 7)]).unwrap();
        }
        keeper.close();
        assert!(keeper.bytes() <= config.max_bytes, "{} bytes after {records} records", keeper.bytes());
        nearest = nearest.min(config.max_bytes - keeper.bytes());
    }
    println!("400 stops, the nearest {nearest} bytes below the limit");
}

/// THREATS F2. A sink that must have everything holds the spool up; the others do not.
#[test]
fn a_spool_that_is_full_refuses_until_the_sink_that_waits_has_it() {
    let (disk, clock) = (SimDisk::new(2), clock());
    let config = SpoolConfig { max_bytes: 4 * SEGMENT, ..config() };
    let delivered = Arc::new(Delivered::default());
    delivered.expect("siem", 0, crate::config::WhenFull::Wait);
    delivered.expect("copy", 0, crate::config::WhenFull::Skip);
    let mut keeper = signing(&disk, &config, &clock, Arc::clone(&delivered));
    let mut kept = 0;
    while durable(&mut keeper, &[body(299)]).is_ok() {
        kept += 1;
    }
    // What says so comes from the reserve.
    let most = 4 * SEGMENT + NOTE_BYTES as u64;
    assert!(kept > 20 && keeper.bytes() <= most && !keeper.sound(), "{kept}, {}", keeper.bytes());
    clock.advance(RETRY);
    assert_eq!(durable(&mut keeper, &[body(1)]), Err(ErrorKind::QuotaExceeded));
    assert!((1..=kept).all(|number| trail(&disk).0.contains_key(&number)), "nothing went");
    delivered.reached("siem", kept / 2);
    clock.advance(RETRY);
    assert_eq!(durable(&mut keeper, &[body(1)]), Ok(()));
    let oldest = *trail(&disk).0.keys().next().unwrap();
    assert!(oldest > 1 && oldest <= kept / 2 + 1, "of what it has, some went; {oldest}");
    println!("{kept} records until it was full");
}

/// An hour of retries is no million files.
#[test]
fn a_disk_that_will_not_be_written_is_not_littered_with_segments() {
    let (disk, clock) = (SimDisk::new(3), clock());
    let mut keeper = open(&disk, &config(), &clock).unwrap();
    durable(&mut keeper, &[body(1)]).unwrap();
    for faults in [
        Faults { write_errors: 700, ..Faults::default() },
        Faults { sync_errors: 700, ..Faults::default() },
        Faults { folder_errors: 1000, ..Faults::default() },
    ] {
        disk.set(faults);
        let mut refused = 0;
        for _ in 0..1000 {
            clock.advance(RETRY);
            refused += u32::from(durable(&mut keeper, &[body(2)]).is_err());
        }
        disk.set(Faults::default());
        clock.advance(RETRY);
        durable(&mut keeper, &[body(3)]).unwrap();
        // One that held records is left when it fails; those that never did are not.
        let (found, _) = trail(&disk);
        let names = disk.names();
        let held = names.iter().filter(|name| segment_number(name).is_some()).filter(|name| {
            let bytes = disk.bytes_of(name).unwrap();
            bytes.split(|byte| *byte == b'\n').any(|line| unseal(line).is_ok())
        });
        assert_eq!(held.count(), segments_of(&disk), "{faults:?}: {refused} refused, {} records", found.len());
        assert!(refused > 300, "{refused}");
    }
}

#[test]
fn a_segment_that_will_not_go_is_told_once() {
    let (disk, clock) = (SimDisk::new(4), clock());
    let config = SpoolConfig { max_bytes: 2 * SEGMENT, ..config() };
    let mut keeper = open(&disk, &config, &clock).unwrap();
    disk.set(Faults { remove_errors: 1000, ..Faults::default() });
    while durable(&mut keeper, &[body(299)]).is_ok() {}
    let before = keeper.spool.last().0;
    for _ in 0..50 {
        clock.advance(RETRY);
        assert!(durable(&mut keeper, &[body(299)]).is_err());
    }
    assert_eq!(keeper.spool.last().0, before, "nothing new to say");
    disk.set(Faults::default());
    clock.advance(RETRY);
    durable(&mut keeper, &[body(299)]).unwrap();
}

#[test]
fn nobody_is_woken_for_a_checkpoint_over_nothing() {
    let (disk, clock) = (SimDisk::new(5), clock());
    let mut keeper = signing(&disk, &config(), &clock, Arc::default());
    durable(&mut keeper, &[body(1)]).unwrap();
    assert_eq!(keeper.spool.last().0, 2, "the first of a process does not wait");
    durable(&mut keeper, &[body(3)]).unwrap();
    assert!(keeper.tick() <= Duration::from_secs(1));
    assert_eq!(keeper.spool.last().0, 3, "the second does");
    clock.advance(Duration::from_secs(2));
    keeper.tick();
    assert_eq!(keeper.spool.last().0, 4, "a checkpoint");
    clock.advance(Duration::from_secs(2));
    assert_eq!((keeper.tick(), keeper.spool.last().0), (TIDY, 4));
}

/// The end came in the middle of a line: the next one does not join it.
#[test]
fn a_checkpoint_after_a_torn_one_stands_on_a_line_of_its_own() {
    let (disk, clock) = (SimDisk::new(6), clock());
    let mut keeper = signing(&disk, &config(), &clock, Arc::default());
    let mut whole = 0;
    for torn in [&b""[..], br#"{"chain":"cha"#, b"{", b"\0\0\0"] {
        let before = disk.bytes_of(crate::audit::checkpoint::FILE).unwrap_or_default();
        disk.put(crate::audit::checkpoint::FILE, [&before[..], torn].concat());
        durable(&mut keeper, &[body(1)]).unwrap();
        keeper.sign(true);
        whole += 1;
        let text = disk.bytes_of(crate::audit::checkpoint::FILE).unwrap();
        let lines: Vec<&[u8]> = text.strip_suffix(b"\n").unwrap().split(|byte| *byte == b'\n').collect();
        let read = lines.iter().filter(|line| serde_json::from_slice::<crate::audit::checkpoint::Signed>(line).is_ok());
        assert_eq!((read.count(), lines.len()), (whole, whole));
    }
}

/// At the limit they are kept, and past it the oldest go.
#[test]
fn the_last_checkpoints_are_kept() {
    let (disk, clock) = (SimDisk::new(7), clock());
    let mut keeper = open(&disk, &config(), &clock).unwrap();
    let lines = || disk.bytes_of("checkpoints.jsonl").unwrap().split(|byte| *byte == b'\n').count() - 1;
    for number in 1..=6 {
        keeper.spool.keep_checkpoint(format!("{{\"n\":{number}}}\n").as_bytes(), 3).unwrap();
        assert_eq!(lines(), number);
    }
    keeper.spool.keep_checkpoint(b"{\"n\":7}\n", 3).unwrap();
    assert_eq!(disk.bytes_of("checkpoints.jsonl").unwrap(), b"{\"n\":4}\n{\"n\":5}\n{\"n\":6}\n{\"n\":7}\n");
}

/// Whole lines with a hash that is wrong: they may have been acknowledged.
#[test]
fn the_numbers_of_damaged_last_lines_are_told_and_not_given_again() {
    for (spoilt, gap) in [(1, Some((5, 5))), (3, Some((3, 5)))] {
        let (disk, clock) = (SimDisk::new(8), clock());
        let mut keeper = open(&disk, &config(), &clock).unwrap();
        let bodies: Vec<Body> = (1..=5).map(body).collect();
        durable(&mut keeper, &bodies).unwrap();
        drop(keeper);
        let name = disk.names().into_iter().find(|name| segment_number(name).is_some()).unwrap();
        let bytes = disk.bytes_of(&name).unwrap();
        let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        for line in lines.iter_mut().rev().take(spoilt) {
            line[60] ^= 1;
        }
        disk.put(&name, lines.concat());
        for _ in 0..2 {
            let mut keeper = open(&disk, &config(), &clock).unwrap();
            durable(&mut keeper, &[body(1)]).unwrap();
        }
        let (found, gaps) = trail(&disk);
        assert_eq!(gaps.iter().next().copied(), gap);
        assert_eq!(gaps.len(), 1, "told once");
        let missing = gap.unwrap().0..=5;
        assert!(missing.clone().all(|number| !found.contains_key(&number)), "{found:?}");
        assert!(found.contains_key(&6));
    }
}
