//! Spools that somebody spoilt: what the real binary says of each, and that nothing whole is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::support::process::Place;
use crate::support::{first_line, ocsf, order, trail};

const UNAVAILABLE: i32 = 69;

fn told(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// With small segments.
fn place() -> Place {
    Place::new(|settings| settings["audit"]["spool"]["segment_bytes"] = json!("64KiB"))
}

/// A run that answers so many questions, and is killed.
async fn run(place: &Place, questions: usize) {
    let mut process = place.start().await;
    let (client, token) = (place.client(&process), place.token());
    for _ in 0..questions {
        assert!(client.check(order("Order.read", "o-1", "alice").token(&token)).await.unwrap().allowed());
    }
    process.kill();
}

fn number(record: &Value) -> u64 {
    record["metadata"]["sequence"].as_u64().unwrap()
}

fn ids(records: &[Value]) -> BTreeMap<u64, String> {
    records.iter().map(|record| (number(record), record["metadata"]["uid"].to_string())).collect()
}

/// The gaps that records tell of: first, last, why.
fn gaps(records: &[Value]) -> Vec<(u64, u64, String)> {
    let told = records.iter().filter(|record| record["activity_name"] == "Audit Gap");
    told.map(|record| {
        let gap = &record["unmapped"]["gatepost"]["gap"];
        let reason = record["status_detail"].as_str().unwrap().to_owned();
        (gap["first"].as_u64().unwrap(), gap["last"].as_u64().unwrap(), reason)
    })
    .collect()
}

fn named(records: &[Value], name: &str) -> usize {
    records.iter().filter(|record| record["activity_name"] == name).count()
}

/// Every file under a folder, with the hash of what it holds.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else {
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &fs::read(&path).unwrap());
            files.insert(path, format!("{hash:?}"));
        }
    }
    files
}

fn quarantine(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.spool("quarantine")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_folder_that_can_not_be_had_stops_the_start_and_is_named() {
    let missing = Place::new(|settings| settings["audit"]["spool"]["directory"] = json!("none/audit"));
    let (in_the_way, quarantine_in_the_way) = (place(), place());
    fs::write(in_the_way.path("audit"), "not a folder").unwrap();
    fs::create_dir(quarantine_in_the_way.path("audit")).unwrap();
    fs::write(quarantine_in_the_way.spool("quarantine"), "not a folder").unwrap();
    let exists = |path: PathBuf| format!("{}: File exists", path.display());
    let table = [
        (&missing, 64, "audit.spool.directory: does not exist".to_owned(), "the folder above it is missing"),
        (&in_the_way, 64, "audit.spool.directory: is not a folder".to_owned(), "a file is in its place"),
        (
            &quarantine_in_the_way,
            UNAVAILABLE,
            exists(quarantine_in_the_way.spool("quarantine")),
            "or in one's of its own",
        ),
    ];
    for (place, code, expected, why) in table {
        let output = place.refused();
        let got = (output.status.code(), told(&output).contains(&expected));
        assert_eq!(got, (Some(code), true), "{why}: {output:?}");
    }
    assert_eq!(fs::read(in_the_way.path("audit")).unwrap(), b"not a folder");
}

/// Root may write anywhere, so that root is somebody else here.
#[test]
fn a_folder_that_may_not_be_written_stops_the_start_with_exit_code_69() {
    const NOBODY: u32 = 65_534;
    let place = place();
    let spool = place.path("audit");
    fs::create_dir(&spool).unwrap();
    fs::set_permissions(&spool, fs::Permissions::from_mode(0o500)).unwrap();
    let root = fs::metadata(&spool).unwrap().uid() == 0;
    if root {
        for path in snapshot(&place.path("")).into_keys().chain([place.path("policies"), spool.clone(), place.path("")])
        {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    let output = place.refused_as(root.then_some(NOBODY));
    let expected = format!("{}: Permission denied", spool.join("lock").display());
    assert_eq!((output.status.code(), told(&output).contains(&expected)), (Some(UNAVAILABLE), true), "{output:?}");
    assert_eq!(snapshot(&spool).len(), 0, "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_folder_is_refused_and_the_first_goes_on() {
    let place = place();
    let first = place.start().await;
    let (client, token) = (place.client(&first), place.token());
    for _ in 0..3 {
        let output = place.refused();
        let expected = format!("{} is in use by another process", place.path("audit").display());
        assert_eq!((output.status.code(), told(&output).contains(&expected)), (Some(UNAVAILABLE), true), "{output:?}");
        assert!(client.check(order("Order.read", "o-1", "alice").token(&token)).await.unwrap().allowed());
    }
    let records = ocsf::check(&trail(&place.path("audit")));
    assert_eq!(records, 4, "a start and three answers, of one process");
}

/// Whatever else would be mended: a newer Gatepost's spool is not ours to touch.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_another_version_stops_the_start_and_nothing_is_touched() {
    let place = place();
    run(&place, 5).await;
    fs::write(place.spool("segment-000000000002.jsonl"), "garbage\n").unwrap();
    fs::write(place.spool("segment-000000000003.jsonl"), "{\"gatepost_spool\":1,\"chain\"").unwrap();
    fs::write(place.spool("segment-000000000004.jsonl.tmp"), "half of something").unwrap();
    let newer = place.spool("segment-000000000009.jsonl");
    fs::write(&newer, "{\"gatepost_spool\":2,\"anything\":1}\n").unwrap();
    let before = snapshot(&place.path("audit"));
    let output = place.refused();
    assert_eq!(output.status.code(), Some(UNAVAILABLE), "{output:?}");
    let expected = format!("{} has version 2 of the spool's format, and this Gatepost reads 1", newer.display());
    assert!(told(&output).contains(&expected), "{}", told(&output));
    assert_eq!(snapshot(&place.path("audit")), before);

    fs::remove_file(newer).unwrap();
    run(&place, 5).await;
    assert_eq!(named(&place.records(), "Read"), 10, "and without it, it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_two_spools_in_one_folder_stop_the_start_and_nothing_is_touched() {
    let (place, other) = (place(), self::place());
    run(&place, 5).await;
    run(&other, 5).await;
    let foreign = fs::read_to_string(&other.segments()[0]).unwrap();
    let (header, records) = foreign.split_once('\n').unwrap();
    let members = header.split_once(',').unwrap().1.split_once(",\"check\":").unwrap().0;
    let foreign = first_line(&members.replace("\"segment\":1,", "\"segment\":7,")) + records;
    fs::write(place.spool("segment-000000000007.jsonl"), foreign).unwrap();
    fs::write(place.spool("segment-000000000002.jsonl"), "garbage\n").unwrap();
    let before = snapshot(&place.path("audit"));
    let output = place.refused();
    assert_eq!(output.status.code(), Some(UNAVAILABLE), "{output:?}");
    assert!(told(&output).contains("segment-000000000007.jsonl belongs to another spool"), "{}", told(&output));
    assert_eq!(snapshot(&place.path("audit")), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_goes_to_quarantine_is_told_by_number_and_everything_whole_stays() {
    let place = place();
    run(&place, 120).await;
    let before = place.records();
    let segments = place.segments();
    assert!(segments.len() > 3);

    // Of the second segment the fourth line becomes garbage, another is changed by a bit, and rubbish stands between.
    let mut lines: Vec<Vec<u8>> =
        fs::read(&segments[1]).unwrap().split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let of = |line: &[u8]| number(&serde_json::from_slice::<Value>(line).unwrap());
    let spoilt = [of(&lines[3]), of(&lines[4]), of(&lines[8])];
    lines[3] = b"\0\xff\xfe not a line of ours\n".to_vec();
    let zeros = lines[4].len() - 1;
    lines[4][..zeros].fill(0);
    lines[8][700] ^= 1;
    lines.insert(12, b"{\"inserted\":true}\n".to_vec());
    let damaged = lines.concat();
    fs::write(&segments[1], &damaged).unwrap();
    // And things that are no segments at all, whatever they are called.
    let garbage: [(&str, Vec<u8>); 5] = [
        ("segment-000000000090.jsonl", b"\x1b[31mnot a segment\n".to_vec()),
        ("segment-000000000091.jsonl", vec![0; 70_000]),
        ("segment-000000000092.jsonl", vec![b'x'; 3 << 20]),
        ("segment-000000000093.jsonl", fs::read(&segments[0]).unwrap()),
        ("segment-000000000094.jsonl", b"{\"gatepost_spool\":1,\"first_sequence\":0}\n".to_vec()),
    ];
    for (name, bytes) in &garbage {
        fs::write(place.spool(name), bytes).unwrap();
    }
    fs::create_dir(place.spool("segment-000000000095.jsonl")).unwrap();
    fs::write(place.spool("notes.txt"), "somebody's").unwrap();

    run(&place, 5).await;
    let after = place.records();
    let (before, after_ids) = (ids(&before), ids(&after));
    let missing: Vec<u64> = before.keys().filter(|number| !after_ids.contains_key(number)).copied().collect();
    assert_eq!(missing, spoilt, "everything whole is there");
    let same = before.iter().filter(|(number, _)| !spoilt.contains(number));
    assert!(same.clone().all(|(number, uid)| after_ids[number] == *uid), "under its own number");
    let expected: Vec<(u64, u64, String)> =
        vec![(spoilt[0], spoilt[1], "damaged".to_owned()), (spoilt[2], spoilt[2], "damaged".to_owned())];
    assert_eq!(gaps(&after), expected);
    assert_eq!(named(&after, "Audit Quarantined"), 1);
    for (name, bytes) in &garbage {
        assert_eq!(&fs::read(place.spool("quarantine").join(name)).unwrap(), bytes, "{name}");
    }
    let aside = place.spool("quarantine").join(segments[1].file_name().unwrap());
    assert_eq!(fs::read(aside).unwrap(), damaged, "as it was found");
    assert!(place.spool("notes.txt").exists(), "what is not ours stays");
    assert!(place.spool("quarantine/segment-000000000095.jsonl").is_dir());

    // Told once, whatever is found again.
    run(&place, 5).await;
    assert_eq!(gaps(&place.records()), expected);
    assert_eq!(quarantine(&place).len(), 7);
    println!("{} records, {} spoilt and told, 7 files in quarantine", place.records().len(), spoilt.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_damaged_twice_is_in_quarantine_twice() {
    let place = place();
    run(&place, 60).await;
    let segment = place.segments()[0].clone();
    let mut found = Vec::new();
    for at in [3, 5] {
        let mut lines: Vec<Vec<u8>> =
            fs::read(&segment).unwrap().split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines[at][600] ^= 1;
        fs::write(&segment, lines.concat()).unwrap();
        found.push(lines.concat());
        run(&place, 1).await;
    }
    let kept: Vec<Vec<u8>> =
        quarantine(&place).iter().map(|name| fs::read(place.spool("quarantine").join(name)).unwrap()).collect();
    assert_eq!((kept.len(), found.iter().all(|one| kept.contains(one))), (2, true), "{:?}", quarantine(&place));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_was_taken_away_is_told_by_number() {
    let place = place();
    run(&place, 120).await;
    let before = ids(&place.records());
    let segments = place.segments();
    fs::remove_file(&segments[1]).unwrap();
    let missing: Vec<u64> = {
        let left = ids(&place.records());
        before.keys().filter(|number| !left.contains_key(number)).copied().collect()
    };
    for _ in 0..2 {
        run(&place, 5).await;
        let records = place.records();
        assert_eq!(gaps(&records), [(missing[0], *missing.last().unwrap(), "missing".to_owned())]);
        assert!(before.iter().all(|(number, uid)| missing.contains(number) || ids(&records)[number] == *uid));
    }
    println!("{} records were in it", missing.len());
}

/// Its header alone is spoilt: every record of it is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_whose_first_line_is_spoilt_loses_no_record() {
    for which in ["first", "middle", "last"] {
        let place = place();
        run(&place, 60).await;
        let before = ids(&place.records());
        let segments = place.segments();
        let at = match which {
            "first" => 0,
            "middle" => 1,
            _ => segments.len() - 1,
        };
        let mut bytes = fs::read(&segments[at]).unwrap();
        bytes[20] ^= 1;
        fs::write(&segments[at], &bytes).unwrap();
        run(&place, 5).await;
        let after = place.records();
        let after_ids = ids(&after);
        assert!(before.iter().all(|(number, uid)| after_ids.get(number) == Some(uid)), "{which}");
        assert_eq!((gaps(&after), named(&after, "Audit Quarantined")), (Vec::new(), 1), "{which}");
        ocsf::check(&trail(&place.path("audit")));
        assert_eq!(quarantine(&place).len(), 1);
    }
}

/// What was acknowledged and is gone leaves its numbers to nobody else: a sink that has had them would pass over whoever
/// took them.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_a_cursor_or_a_checkpoint_knows_are_not_given_twice() {
    for known_by in ["cursor", "checkpoint"] {
        let place = Place::new(|settings| {
            settings["audit"]["spool"]["segment_bytes"] = json!("64KiB");
            if known_by == "cursor" {
                settings["audit"]["sinks"] = json!([{ "name": "copy", "file": { "path": "copy.jsonl" } }]);
            } else {
                settings["audit"]["checkpoints"] = json!({ "key_file": "checkpoint.key", "records": 10 });
            }
        });
        let key = place.path("checkpoint.key");
        assert!(place.audit(&["key", "--out", key.to_str().unwrap()]).status.success());
        let mut process = place.start().await;
        let (client, token) = (place.client(&process), place.token());
        for _ in 0..60 {
            assert!(client.check(order("Order.read", "o-1", "alice").token(&token)).await.unwrap().allowed());
        }
        assert_eq!(process.stop(), Some(0));
        let before = ids(&place.records());
        let last = *before.keys().last().unwrap();
        fs::remove_file(place.segments().pop().unwrap()).unwrap();
        let left = *ids(&place.records()).keys().last().unwrap();
        run(&place, 5).await;
        let records = place.records();
        let gap = gaps(&records).pop().unwrap();
        assert_eq!((gap.0, gap.2.as_str()), (left + 1, "missing"), "{known_by}");
        assert!(gap.1 == last || (known_by == "checkpoint" && gap.1 == last - 1), "{known_by}: {gap:?}, {last}");
        let after = ids(&records);
        let twice: Vec<&u64> = before
            .iter()
            .filter(|(number, uid)| after.get(number).is_some_and(|other| other != *uid))
            .map(|(number, _)| number)
            .collect();
        // The checkpoint itself, the last record, is not covered by itself.
        assert!(twice.iter().all(|number| known_by == "checkpoint" && **number == last), "{known_by}: {twice:?}");
        println!("{known_by}: records {} to {} are gone and told", gap.0, gap.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_record_that_is_cut_anywhere_is_taken_away_and_told() {
    // After so many hundredths of it; all but its line break at last.
    let cuts = [1, 5, 50, 99, 100];
    for cut in cuts {
        let place = place();
        run(&place, 3).await;
        let segment = place.segments().pop().unwrap();
        let bytes = fs::read(&segment).unwrap();
        let end = bytes.len() - 1;
        let start = bytes[..end].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        fs::write(&segment, &bytes[..start + (end - start) * cut / 100]).unwrap();
        run(&place, 3).await;
        let records = place.records();
        assert_eq!((named(&records, "Audit Repaired"), named(&records, "Read")), (1, 5), "cut at {cut} %");
        ocsf::check(&trail(&place.path("audit")));
    }
    println!("{} cuts", cuts.len());
}

/// The lines lie in quarantine and the segment ends before them: where a start is that died in the middle of mending.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_died_between_cutting_and_telling_is_made_good_by_the_next() {
    let place = place();
    run(&place, 5).await;
    let segment = place.segments().pop().unwrap();
    let bytes = fs::read(&segment).unwrap();
    let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let mut torn = lines.split_off(lines.len() - 2);
    let of = |line: &[u8]| number(&serde_json::from_slice::<Value>(line).unwrap());
    let (first, last) = (of(&torn[0]), of(&torn[1]));
    for line in &mut torn {
        line[700] ^= 1;
    }
    fs::create_dir_all(place.spool("quarantine")).unwrap();
    let aside = format!("quarantine/{}.torn", segment.file_name().unwrap().to_str().unwrap());
    fs::write(place.spool(&aside), torn.concat()).unwrap();
    fs::write(&segment, lines.concat()).unwrap();
    for start in 1..=3 {
        run(&place, 2).await;
        let records = place.records();
        assert_eq!(gaps(&records), [(first, last, "damaged".to_owned())], "start {start}: told, and once");
        assert!(!ids(&records).contains_key(&last), "nobody else has its number");
        let verified = place.audit(&["verify", place.path("audit").to_str().unwrap()]);
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_in_a_segment_s_first_line_loses_no_record_and_stops_no_start() {
    // One in each of its members: the format's version, the chain, number, first record and link, and the check itself.
    let members =
        ["gatepost_spool\":", "chain\":\"", "segment\":", "first_sequence\":", "prev_hash\":\"", "check\":\""];
    for member in members {
        let place = place();
        run(&place, 120).await;
        let before = ids(&place.records());
        let segment = place.segments()[1].clone();
        let mut bytes = fs::read(&segment).unwrap();
        let at = bytes.windows(member.len()).position(|window| window == member.as_bytes()).unwrap() + member.len();
        bytes[at] ^= 2;
        fs::write(&segment, &bytes).unwrap();
        run(&place, 1).await;
        let records = place.records();
        let after = ids(&records);
        assert!(before.iter().all(|(number, uid)| after.get(number) == Some(uid)), "{member}");
        assert_eq!((gaps(&records).len(), named(&records, "Audit Quarantined")), (0, 1), "{member}");
    }
    println!("{} members", members.len());
}

/// `max_bytes` is kept, and whatever goes is told before it does.
#[tokio::test(flavor = "multi_thread")]
async fn old_segments_go_when_there_are_too_many_bytes_and_each_is_told() {
    let place = Place::new(|settings| {
        settings["audit"]["spool"]["segment_bytes"] = json!("64KiB");
        settings["audit"]["spool"]["max_bytes"] = json!("1MiB");
    });
    let mut process = place.start().await;
    let (token, mut asking) = (place.token(), tokio::task::JoinSet::new());
    for _ in 0..8 {
        let (client, token) = (place.client(&process), token.clone());
        asking.spawn(async move {
            for _ in 0..200 {
                assert!(client.check(order("Order.read", "o-1", "alice").token(&token)).await.unwrap().allowed());
            }
        });
    }
    asking.join_all().await;
    assert_eq!(process.stop(), Some(0));
    let bytes: u64 = place.segments().iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(bytes <= 1 << 20, "{bytes}");
    let records = place.records();
    ocsf::check(&trail(&place.path("audit")));
    let oldest = number(&records[0]);
    let removed: Vec<(u64, u64)> = records
        .iter()
        .filter(|record| record["activity_name"] == "Audit Segment Removed")
        .map(|record| {
            assert_eq!(record["status_detail"], "SIZE");
            let range = &record["unmapped"]["gatepost"]["removed"];
            (range["first"].as_u64().unwrap(), range["last"].as_u64().unwrap())
        })
        .collect();
    assert!(removed.windows(2).all(|pair| pair[1].0 == pair[0].1 + 1), "one after the other: {removed:?}");
    assert_eq!(removed.last().map(|(_, last)| last + 1), Some(oldest));
    let reads: BTreeSet<u64> = records.iter().filter(|record| record["activity_name"] == "Read").map(number).collect();
    println!("1600 answers, {} removals told here, {} records left in {bytes} bytes", removed.len(), reads.len());
}

/// The sink can only get what it waits for while the server is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_starts_again_serves_nobody_and_serves_when_its_sink_has_taken_it() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("audit");
    let port = crate::replicas::free_port();
    let place = Place::new(|settings| {
        settings["audit"]["spool"] =
            json!({ "directory": spool, "segment_bytes": "64KiB", "max_bytes": "1MiB", "reserve": "64KiB" });
        settings["audit"]["sinks"] = json!([{
            "name": "siem", "when_full": "wait", "retry_max": "100ms",
            "syslog": { "host": "127.0.0.1", "port": port.port(), "tls": false, "settle": "100ms" },
        }]);
    });
    let mut process = place.start().await;
    let (client, token) = (place.client(&process), place.token());
    let mut answered = 0;
    while client.check(order("Order.read", "o-1", "alice").token(&token)).await.is_ok() {
        answered += 1;
        assert!(answered < 1500, "the spool is never full");
    }
    process.kill();
    // Half a line, so that the start has something to put on record.
    let mut segments: Vec<PathBuf> = fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.to_str().unwrap().contains("/segment-"));
    segments.sort();
    let last = segments.last().unwrap();
    let mut torn = fs::read(last).unwrap();
    torn.extend_from_slice(b"{\"metadata\"");
    fs::write(last, torn).unwrap();

    let before = trail(&spool);
    let mut process = place.spawn();
    process.until_it_says("the audit spool is full").await;
    assert_eq!(process.ops("/readyz").await, Some(503));
    assert!(trail(&spool).starts_with(&before), "nothing went that the sink has still to get");

    let received = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let listener = tokio::net::TcpListener::bind(port).await.unwrap();
    let into = std::sync::Arc::clone(&received);
    let receiver = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut piece = vec![0; 64 << 10];
            while let Ok(count @ 1..) = tokio::io::AsyncReadExt::read(&mut socket, &mut piece).await {
                into.lock().extend_from_slice(&piece[..count]);
            }
        }
    });
    process.until_ready().await;
    let client = place.client(&process);
    assert!(client.check(order("Order.read", "o-1", "alice").token(&token)).await.unwrap().allowed());
    assert_eq!(process.stop(), Some(0));
    receiver.abort();
    let text = String::from_utf8(received.lock().clone()).unwrap();
    for line in before.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert!(text.contains(record["metadata"]["uid"].as_str().unwrap()), "{record:#}");
    }
    println!("{answered} answers until it was full; {} records were waited for and received", before.lines().count());
}
