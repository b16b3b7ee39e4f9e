//! Records are kept once each, or whoever waits learns that they are not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::audit::record::tests::{allow, call, decided, noon};
use crate::audit::spool::sim::{Faults, SimDisk};
use crate::audit::{CallEntry, LifecycleEntry, Outcome, QuestionFacts};
use crate::clock::{Clock as _, ManualClock, SystemClock};
use crate::config::{
    ActionKeeping, ActionPattern, Encoding, SinkConfig, SinkFilter, SinkTarget, SpoolConfig, WhenFull,
};
use crate::model::ids::DecisionId;
use crate::model::question::{BatchPosition, Circumstances};

fn entry() -> Entry {
    Entry::Call(Box::new(call(decided(allow()))))
}

/// About this action.
fn about(action: &str) -> Entry {
    let call = call(decided(allow()));
    let question = call.question.clone().map(|asked| QuestionFacts { action: action.to_owned(), ..asked });
    Entry::Call(Box::new(CallEntry { question, ..call }))
}

pub(in crate::audit) fn config(folder: &Path) -> AuditConfig {
    AuditConfig {
        keeping: Keeping { mode: AuditMode::Durable, on_failure: OnAuditFailure::Refuse },
        actions: Vec::new(),
        write_timeout: Duration::from_secs(30),
        queue: 100_000,
        spool: SpoolConfig {
            directory: folder.to_owned(),
            segment_bytes: 1 << 20,
            max_bytes: 1 << 30,
            max_age: Duration::from_secs(3600),
            reserve_bytes: 64 << 10,
        },
        checkpoints: None,
        attributes: Vec::new(),
        pseudonyms: None,
        patterns: crate::config::PatternsConfig::default(),
        sinks: Vec::new(),
    }
}

fn host() -> HostFacts {
    HostFacts { hostname: "gatepost-0".to_owned() }
}

fn deaf() -> Heard {
    Arc::new(|_| ())
}

fn open(config: &AuditConfig) -> Trail {
    Trail::open(config, &Limits::default(), host(), SystemClock::shared(), deaf()).unwrap()
}

/// What the trail told of lost records.
#[derive(Clone, Default)]
struct Losses(Arc<Mutex<Vec<Loss>>>);

/// Where, why and how many.
type Loss = (String, &'static str, u64);

impl Losses {
    fn heard(&self) -> Heard {
        let losses = self.clone();
        Arc::new(move |news| {
            if let crate::audit::News::Lost { place, reason, count } = news {
                losses.0.lock().push((place.to_owned(), reason, count));
            }
        })
    }

    fn count(&self, reason: &str) -> u64 {
        self.0.lock().iter().filter(|(_, why, _)| *why == reason).map(|(_, _, count)| count).sum()
    }
}

fn over(disk: &SimDisk, config: &AuditConfig, limits: &Limits, losses: &Losses) -> Trail {
    Trail::over(Box::new(disk.clone()), config, limits, host(), SystemClock::shared(), losses.heard()).unwrap()
}

/// All records of a disk, in order: what a later segment has counts.
fn on(disk: &SimDisk) -> Vec<Value> {
    let mut records = std::collections::BTreeMap::new();
    for name in disk.names().iter().filter(|name| name.starts_with("segment-")) {
        let bytes = disk.bytes_of(name).unwrap();
        for line in bytes.split(|byte| *byte == b'\n') {
            if let Ok(sealed) = crate::audit::format::unseal(line) {
                records.insert(sealed.sequence, serde_json::from_slice(line).unwrap());
            }
        }
    }
    records.into_values().collect()
}

fn text_records(text: &str) -> Vec<Value> {
    text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn records(folder: &Path) -> Vec<Value> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    paths.iter().flat_map(|path| text_records(&fs::read_to_string(path).unwrap())).collect()
}

fn names(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["activity_name"].as_str().unwrap()).collect()
}

/// Waits for something that another thread brings about; the test's own time limit is the bound.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_writers_at_once_leave_ten_thousand_lines_each_once() {
    let folder = TempDir::new().unwrap();
    let trail = open(&config(folder.path()));
    let tasks: Vec<_> = (0..10_000)
        .map(|_| {
            let trail = trail.clone();
            tokio::spawn(async move { trail.write(&entry()).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    trail.close().await;
    let records = records(folder.path());
    let sequence: Vec<u64> = records.iter().map(|record| record["metadata"]["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequence, (1..=10_000).collect::<Vec<_>>(), "numbered without a gap");
    let ids: BTreeSet<_> = records.iter().map(|record| record["metadata"]["original_event_uid"].to_string()).collect();
    assert_eq!(ids.len(), 10_000, "no decision twice");
    let segments = fs::read_dir(folder.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("segment-"));
    assert!(segments.count() > 5, "a segment is closed at its size");
    assert_eq!(trail.depth(), 0);
    assert!(matches!(trail.write(&entry()).await, Err(AuditError::Closed)), "closed is closed");
}

#[tokio::test]
async fn an_acknowledged_record_can_be_read_at_once_by_the_owner_alone() {
    let folder = TempDir::new().unwrap();
    let spool = folder.path().join("audit");
    let trail = open(&config(&spool));
    trail.write(&entry()).await.unwrap();
    assert_eq!(records(&spool).len(), 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&spool), mode(&spool.join("segment-000000000001.jsonl"))), (0o700, 0o600));
    assert_eq!(fs::metadata(spool.join("reserve")).unwrap().len(), 64 << 10);
    assert!(trail.healthy());
}

#[tokio::test]
async fn numbers_and_chain_go_on_over_restarts() {
    let folder = TempDir::new().unwrap();
    let mut boots = BTreeSet::new();
    for start in 1..=50 {
        let trail = open(&config(folder.path()));
        trail.write(&entry()).await.unwrap();
        trail.close().await;
        let records = records(folder.path());
        assert_eq!(records.len(), start);
        boots.insert(records.last().unwrap()["unmapped"]["gatepost"]["boot"].to_string());
        for (at, pair) in records.windows(2).enumerate() {
            assert_eq!(pair[1]["unmapped"]["gatepost"]["prev_hash"], pair[0]["unmapped"]["gatepost"]["hash"], "{at}");
            assert_eq!(pair[1]["metadata"]["sequence"], at + 2);
        }
    }
    assert_eq!(boots.len(), 50);
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_folder() {
    let folder = TempDir::new().unwrap();
    let _first = open(&config(folder.path()));
    let second = Trail::open(&config(folder.path()), &Limits::default(), host(), SystemClock::shared(), deaf());
    let told = second.unwrap_err().to_string();
    assert_eq!(told, format!("{} is in use by another process", folder.path().display()));
}

#[tokio::test]
async fn a_folder_that_can_not_be_had_is_told_at_the_start() {
    let folder = TempDir::new().unwrap();
    let refusal = |path: &Path| {
        Trail::open(&config(path), &Limits::default(), host(), SystemClock::shared(), deaf()).unwrap_err().to_string()
    };
    let missing = folder.path().join("none/audit");
    assert!(refusal(&missing).starts_with(&format!("{}: No such file", missing.display())));
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(refusal(&file).starts_with(&file.display().to_string()));
}

#[tokio::test]
async fn a_full_disk_is_recorded_from_the_reserve_and_refuses_every_record_until_there_is_room() {
    let disk = SimDisk::new(1);
    let losses = Losses::default();
    let trail = over(&disk, &config(Path::new("audit")), &Limits::default(), &losses);
    trail.write(&entry()).await.unwrap();
    let full = Faults { room: Some(70_000), ..Faults::default() };
    disk.set(full);
    let mut kept = 1;
    while trail.write(&entry()).await.is_ok() {
        kept += 1;
        assert!(kept < 100, "there is no room");
    }
    assert!(!trail.healthy());
    for _ in 0..2 {
        assert!(matches!(trail.write(&entry()).await, Err(AuditError::Disk(io::ErrorKind::StorageFull))));
    }
    until(|| on(&disk).last().is_some_and(|record| record["activity_name"] == "Audit Failed")).await;
    assert_eq!(on(&disk).last().unwrap()["status_detail"], "DISK_FULL");
    assert!(!disk.names().contains(&"reserve".to_owned()), "given back");

    disk.set(Faults::default());
    until(|| trail.healthy()).await;
    trail.write(&entry()).await.unwrap();
    assert_eq!(disk.bytes_of("reserve").map(|bytes| bytes.len()), Some(64 << 10), "set aside anew");
    let records = on(&disk);
    assert_eq!(names(&records)[records.len() - 3..], ["Audit Failed", "Audit Resumed", "Read"]);
    assert_eq!(records[records.len() - 2]["unmapped"]["gatepost"]["not_recorded"], 3);
    assert_eq!(losses.count("failed"), 3);
}

#[tokio::test]
async fn a_disk_that_fails_for_good_refuses_everything_and_comes_back_by_itself() {
    let disk = SimDisk::new(2);
    let losses = Losses::default();
    let trail = over(&disk, &config(Path::new("audit")), &Limits::default(), &losses);
    disk.set(Faults { sync_errors: 1000, ..Faults::default() });
    for _ in 0..3 {
        assert!(matches!(trail.write(&entry()).await, Err(AuditError::Disk(_))));
        assert!(!trail.healthy());
    }
    disk.set(Faults::default());
    until(|| trail.healthy()).await;
    let records = on(&disk);
    assert_eq!(names(&records).last(), Some(&"Audit Resumed"), "nobody had to ask");
    assert_eq!(records.last().unwrap()["unmapped"]["gatepost"]["not_recorded"], 3);
}

#[tokio::test]
async fn a_failed_sync_is_never_tried_again_on_the_same_segment() {
    let disk = SimDisk::new(3);
    let trail = over(&disk, &config(Path::new("audit")), &Limits::default(), &Losses::default());
    trail.write(&entry()).await.unwrap();
    // One failure: the round goes to another segment, and nobody notices.
    let before: Vec<String> = disk.names();
    disk.set(Faults { sync_errors: 500, ..Faults::default() });
    for _ in 0..20 {
        let _ = trail.write(&entry()).await;
    }
    disk.set(Faults::default());
    until(|| trail.healthy()).await;
    trail.write(&entry()).await.unwrap();
    let failed = disk.happened()["sync errors"];
    let new = disk.names().len() - before.len();
    assert!(failed > 0 && new > 0, "{failed} failures, {new} new segments");
    // What the trail says it has is what a power cut leaves.
    disk.power_cut();
    let kept: Vec<u64> = on(&disk).iter().map(|record| record["metadata"]["sequence"].as_u64().unwrap()).collect();
    assert_eq!(kept, (1..=*kept.last().unwrap()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_disk_that_hangs_costs_its_writers_the_timeout_and_nothing_when_it_goes_on() {
    let disk = SimDisk::new(4);
    let config = AuditConfig { write_timeout: Duration::from_millis(50), ..config(Path::new("audit")) };
    let trail = over(&disk, &config, &Limits::default(), &Losses::default());
    trail.write(&entry()).await.unwrap();
    disk.hang(true);
    for _ in 0..3 {
        assert!(matches!(trail.write(&entry()).await, Err(AuditError::TimedOut)));
    }
    assert!(!trail.healthy(), "and it shows");
    disk.hang(false);
    until(|| trail.healthy() && trail.depth() == 0).await;
    trail.write(&entry()).await.unwrap();
    assert_eq!(on(&disk).len(), 5, "those that gave up are on record too");
}

#[tokio::test]
async fn the_queue_takes_its_limit_and_refuses_one_more_at_once() {
    let disk = SimDisk::new(5);
    let losses = Losses::default();
    let config = AuditConfig { queue: 8, ..config(Path::new("audit")) };
    let trail = over(&disk, &config, &Limits::default(), &losses);
    disk.hang(true);
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let trail = trail.clone();
            tokio::spawn(async move { trail.write(&entry()).await })
        })
        .collect();
    until(|| trail.depth() == 8).await;
    assert!(matches!(trail.write(&entry()).await, Err(AuditError::QueueFull)));
    disk.hang(false);
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    trail.write(&entry()).await.unwrap();
    until(|| losses.count("queue_full") == 1).await;
    trail.close().await;
    let lost: Vec<Value> = on(&disk).into_iter().filter(|record| record["activity_name"] == "Records Lost").collect();
    assert_eq!((lost.len(), &lost[0]["count"], &lost[0]["status_detail"]), (1, &1.into(), &"queue_full".into()));
    assert_eq!(on(&disk).len(), 10);
}

/// An overload must not become one of the disk: THREATS F13.
#[tokio::test]
async fn nobody_waits_for_the_record_of_a_shed_call_and_such_records_leave_room_for_answers() {
    let disk = SimDisk::new(5);
    let losses = Losses::default();
    let config = AuditConfig { queue: 8, ..config(Path::new("audit")) };
    let trail = over(&disk, &config, &Limits::default(), &losses);
    disk.hang(true);
    for _ in 0..4 {
        trail.write(&shed()).await.unwrap();
    }
    assert!(matches!(trail.write(&shed()).await, Err(AuditError::QueueFull)), "half of the queue is theirs");
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let trail = trail.clone();
            tokio::spawn(async move { trail.write(&entry()).await })
        })
        .collect();
    until(|| trail.depth() == 8).await;
    disk.hang(false);
    for answer in waiting {
        answer.await.unwrap().unwrap();
    }
    trail.close().await;
    assert_eq!(losses.count("queue_full"), 1, "counted");
    disk.power_cut();
    let kept = on(&disk);
    let kept = kept.iter().filter(|record| record["status_detail"] == "OVERLOADED").count();
    assert_eq!(kept, 4, "and those that were taken are with the disk like any other");
}

/// However many calls are shed, an answer waits for the disk to keep a few of their records and not for all of them.
#[tokio::test]
async fn the_record_of_an_answer_goes_before_those_of_shed_calls() {
    let disk = SimDisk::new(7);
    let config = AuditConfig { queue: 4000, ..config(Path::new("audit")) };
    let trail = over(&disk, &config, &Limits::default(), &Losses::default());
    disk.hang(true);
    for _ in 0..1500 {
        trail.write(&shed()).await.unwrap();
    }
    let answer = tokio::spawn({
        let trail = trail.clone();
        async move { trail.write(&entry()).await }
    });
    until(|| trail.depth() == 1501).await;
    disk.hang(false);
    answer.await.unwrap().unwrap();
    trail.close().await;
    let kept = on(&disk);
    let of_calls: Vec<bool> = kept
        .iter()
        .filter(|record| record["activity_name"] != "Start")
        .map(|record| record["status_detail"] == "OVERLOADED")
        .collect();
    let place = of_calls.iter().position(|is_shed| !is_shed).unwrap();
    assert!(place <= 2 * super::ASIDE, "after {place} of {}", of_calls.len());
    assert_eq!(of_calls.iter().filter(|is_shed| **is_shed).count(), 1500, "and none of them is lost");
}

#[test]
fn a_round_begins_when_it_is_due() {
    type Row = (Collecting, bool, bool, bool, bool, &'static str);
    let table: [Row; 8] = [
        (Collecting::Queued, false, false, false, false, "nobody waits"),
        (Collecting::Queued, true, false, false, true, "somebody waits"),
        (Collecting::Queued, false, true, false, true, "they are many"),
        (Collecting::Queued, false, false, true, true, "the end"),
        (Collecting::All, true, false, false, false, "calls are shed: whoever waits does so for company"),
        (Collecting::All, true, true, false, true, "which there is"),
        (Collecting::All, true, false, true, true, "or never will be"),
        (Collecting::Nothing, true, false, false, true, "the thread is not collecting"),
    ];
    for (collecting, waited_for, many, closing, expected, why) in table {
        let state = State { collecting, waited_for, many, closing, ..State::default() };
        assert_eq!(state.is_due(), expected, "{why}");
    }
}

/// A batch waits for the disk once: its first record does not go without the others.
#[tokio::test]
async fn records_that_come_in_company_are_kept_in_one_round() {
    let disk = SimDisk::new(9);
    let trail = over(&disk, &config(Path::new("audit")), &Limits::default(), &Losses::default());
    let (before, entry) = (disk.syncs(), entry());
    for _ in 0..100 {
        let company = trail.company();
        let mut writing: Vec<_> = (0..20).map(|_| Box::pin(trail.write_in(Some(&company), &entry))).collect();
        for write in &mut writing {
            assert!(futures_util::poll!(write.as_mut()).is_pending(), "each waits");
        }
        company.close();
        for write in writing {
            write.await.unwrap();
        }
    }
    let rounds = disk.syncs() - before;
    // The thread wakes by itself now and then, and takes what is there.
    assert!((100..120).contains(&rounds), "{rounds} rounds for a hundred batches");
    trail.close().await;
    assert_eq!(on(&disk).len(), 2_000);
}

#[tokio::test]
async fn a_company_that_is_never_closed_is_kept_when_it_is_gone() {
    let disk = SimDisk::new(10);
    let trail = over(&disk, &config(Path::new("audit")), &Limits::default(), &Losses::default());
    let entry = entry();
    let company = trail.company();
    let mut left = Box::pin(trail.write_in(Some(&company), &entry));
    assert!(futures_util::poll!(left.as_mut()).is_pending());
    drop(left);
    drop(company);
    // By itself the thread would look half a minute later.
    let kept = tokio::time::timeout(Duration::from_secs(10), until(|| on(&disk).len() == 1)).await;
    assert!(kept.is_ok(), "whoever keeps it was woken");
    trail.close().await;
}

fn shed() -> Entry {
    let outcome = Outcome::Refused { status: "RESOURCE_EXHAUSTED", reason: "OVERLOADED" };
    Entry::Call(Box::new(CallEntry { outcome, ..call(decided(allow())) }))
}

#[tokio::test]
async fn what_is_only_queued_leaves_at_once_and_what_does_not_fit_is_counted_exactly() {
    let disk = SimDisk::new(6);
    let losses = Losses::default();
    let keeping = Keeping { mode: AuditMode::Async, on_failure: OnAuditFailure::Refuse };
    let config = AuditConfig { queue: 100, keeping, ..config(Path::new("audit")) };
    let trail = over(&disk, &config, &Limits::default(), &losses);
    disk.hang(true);
    for _ in 0..1000 {
        trail.write(&entry()).await.unwrap();
    }
    disk.hang(false);
    trail.close().await;
    let records = on(&disk);
    let kept = records.iter().filter(|record| record["class_uid"] == 6003).count() as u64;
    let told: u64 = records.iter().filter_map(|record| record["count"].as_u64()).sum();
    assert_eq!((kept + told, losses.count("queue_full")), (1000, told), "{kept} kept, {told} told");
    println!("1000 records: {kept} kept, {told} counted and recorded");
}

#[tokio::test]
async fn an_exception_by_action_has_its_own_mode_and_its_own_end() {
    let disk = SimDisk::new(7);
    let losses = Losses::default();
    let exception = |action: &str, mode, on_failure| ActionKeeping {
        actions: vec![ActionPattern::Exact(action.to_owned())],
        keeping: Keeping { mode, on_failure },
    };
    let actions = vec![
        exception("Catalog.read", AuditMode::Async, OnAuditFailure::Refuse),
        exception("Menu.read", AuditMode::Durable, OnAuditFailure::Answer),
    ];
    let config = AuditConfig { actions, write_timeout: Duration::from_millis(50), ..config(Path::new("audit")) };
    let trail = over(&disk, &config, &Limits::default(), &losses);
    disk.hang(true);
    assert!(matches!(trail.write(&about("Order.read")).await, Err(AuditError::TimedOut)), "the deployment's own");
    trail.write(&about("Catalog.read")).await.unwrap();
    disk.hang(false);
    until(|| trail.depth() == 0).await;
    disk.set(Faults { write_errors: 1000, ..Faults::default() });
    assert!(matches!(trail.write(&about("Order.read")).await, Err(AuditError::Disk(_))));
    trail.write(&about("Menu.read")).await.expect("it leaves without a record");
    let stop = Entry::Lifecycle(LifecycleEntry { time: std::time::SystemTime::UNIX_EPOCH, started: false });
    assert!(trail.write(&stop).await.is_err(), "no exception is about that");
    disk.set(Faults::default());
    until(|| trail.healthy()).await;
    assert_eq!(losses.count("failed"), 3, "and is counted");
    assert_eq!(on(&disk).last().unwrap()["unmapped"]["gatepost"]["not_recorded"], 3, "and told");
}

#[tokio::test]
async fn a_record_at_its_limit_is_written_and_one_past_it_is_an_error() {
    let bytes = {
        let frame = Frame {
            host: host(),
            boot: record::mint_boot(std::time::SystemTime::UNIX_EPOCH),
            keeping: Keeping { mode: AuditMode::Durable, on_failure: OnAuditFailure::Refuse },
            exceptions: 0,
        };
        record::render(&entry(), &frame).unwrap().bytes()
    };
    for (limit, fits) in [(bytes, true), (bytes - 1, false)] {
        let disk = SimDisk::new(8);
        let limits = Limits { audit_record_bytes: limit, ..Limits::default() };
        let trail = over(&disk, &config(Path::new("audit")), &limits, &Losses::default());
        let result = trail.write(&entry()).await;
        assert_eq!(result.is_ok(), fits, "{limit}: {result:?}");
        assert_eq!(!on(&disk).is_empty(), fits);
    }
}

#[tokio::test]
async fn a_record_whose_waiter_is_gone_is_written_all_the_same() {
    let disk = SimDisk::new(9);
    let trail = over(&disk, &config(Path::new("audit")), &Limits::default(), &Losses::default());
    disk.hang(true);
    let task = tokio::spawn({
        let trail = trail.clone();
        async move { trail.write(&entry()).await }
    });
    until(|| trail.depth() == 1).await;
    task.abort();
    disk.hang(false);
    trail.close().await;
    assert_eq!(on(&disk).len(), 1);
}

#[tokio::test]
async fn dropping_the_last_handle_writes_what_is_queued() {
    let disk = SimDisk::new(10);
    let trail = over(&disk, &config(Path::new("audit")), &Limits::default(), &Losses::default());
    disk.hang(true);
    let task = tokio::spawn(async move { trail.write(&entry()).await });
    until(|| disk.names().iter().any(|name| name.starts_with("segment-"))).await;
    task.abort();
    disk.hang(false);
    until(|| on(&disk).len() == 1).await;
}

#[tokio::test]
async fn a_clock_that_jumps_is_on_record_and_numbers_go_on() {
    let disk = SimDisk::new(11);
    let clock = ManualClock::at(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let shared: SharedClock = clock.clone();
    let config = config(Path::new("audit"));
    let trail = Trail::over(Box::new(disk.clone()), &config, &Limits::default(), host(), shared, deaf()).unwrap();
    trail.write(&entry()).await.unwrap();
    for (seconds, jumps) in [(3600_i64, true), (-3600, true), (29, false), (-29, false)] {
        let before = on(&disk).len();
        let wall = clock.now();
        let step = Duration::from_secs(seconds.unsigned_abs());
        clock.jump_to(if seconds > 0 { wall + step } else { wall - step });
        trail.write(&entry()).await.unwrap();
        let new = on(&disk).split_off(before);
        let expected: &[&str] = if jumps { &["Clock Jumped", "Read"] } else { &["Read"] };
        assert_eq!(names(&new), expected, "{seconds}");
        if jumps {
            assert_eq!(new[0]["unmapped"]["gatepost"]["clock_jumped_ms"], seconds * 1000);
        }
    }
    let numbers: Vec<u64> = on(&disk).iter().map(|record| record["metadata"]["sequence"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=7).collect::<Vec<_>>());
}

#[tokio::test]
async fn another_mode_than_last_time_is_on_record() {
    let folder = TempDir::new().unwrap();
    let durable = config(folder.path());
    let keeping = Keeping { mode: AuditMode::Written, on_failure: OnAuditFailure::Refuse };
    let written = AuditConfig { keeping, ..config(folder.path()) };
    for config in [&durable, &durable, &written] {
        let trail = open(config);
        trail.write(&entry()).await.unwrap();
        trail.close().await;
    }
    let records = records(folder.path());
    assert_eq!(names(&records), ["Read", "Read", "Audit Mode Changed", "Read"]);
    let ours = &records[2]["unmapped"]["gatepost"];
    assert_eq!((&ours["before"], &ours["after"]), (&"durable".into(), &"written".into()));
}

/// A signature covers the word for what is missing before anybody can miss it.
#[tokio::test]
async fn a_trail_verifies_at_every_moment_while_its_oldest_segments_go_and_after_damage_is_mended() {
    use crate::audit::checkpoint::SigningKey;
    use crate::audit::verify::{Knowledge, verify_spool};
    let folder = TempDir::new().unwrap();
    let key_file = folder.path().join("key");
    fs::write(&key_file, SigningKey::generate().unwrap().as_bytes()).unwrap();
    let known = Knowledge { keys: vec![SigningKey::load(&key_file).unwrap().public()], anchor: None };
    let spool = folder.path().join("audit");
    let mut config = config(&spool);
    (config.spool.segment_bytes, config.spool.max_bytes, config.spool.reserve_bytes) = (8 << 10, 40 << 10, 4 << 10);
    // None is due by itself but the last.
    config.checkpoints =
        Some(crate::config::CheckpointConfig { key_file, every: Duration::from_secs(3600), records: 1_000_000 });
    let trail = open(&config);
    let (mut checked, mut oldest) = (0, 1);
    for _ in 0..150 {
        trail.write(&entry()).await.unwrap();
        let report = verify_spool(&spool, &known, &mut |_| ()).unwrap();
        let (first, _) = report.numbers.unwrap();
        if first > 1 {
            assert_eq!(report.broken, None, "from {first} on");
            checked += 1;
            oldest = first;
        }
    }
    trail.close().await;
    assert!(checked > 50 && oldest > 50, "{checked} {oldest}");

    // A line in the middle is damaged while nobody runs: a break. The next start says and signs what is missing.
    let mut segments: Vec<_> = fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("segment-"));
    segments.sort();
    let text = fs::read_to_string(&segments[1]).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[2] = "garbage";
    fs::write(&segments[1], lines.join("\n") + "\n").unwrap();
    let broken = verify_spool(&spool, &known, &mut |_| ()).unwrap().broken.expect("damage");
    assert_eq!((&broken.0.file, broken.0.line), (&segments[1], 3));
    let trail = open(&config);
    let report = verify_spool(&spool, &known, &mut |_| ()).unwrap();
    assert_eq!((report.broken, report.gaps.len()), (None, 1));
    trail.close().await;
    println!("sound at each of {checked} looks while segments went, up to number {oldest}");
}

/// A long stop must not cost a sink what it has not got: the spool tidies up before the sinks are there.
#[test]
fn a_sink_that_is_not_started_yet_needs_everything() {
    for (when_full, full) in [(WhenFull::Wait, 0), (WhenFull::Skip, u64::MAX)] {
        let folder = TempDir::new().unwrap();
        let sink = SinkConfig {
            name: "siem".to_owned(),
            target: SinkTarget::Stdout,
            encoding: Encoding::Ocsf,
            filter: SinkFilter::default(),
            mask: Vec::new(),
            batch_records: 1,
            batch_bytes: 1,
            timeout: Duration::from_secs(1),
            retry_max: Duration::from_secs(1),
            when_full,
        };
        let trail = open(&AuditConfig { sinks: vec![sink], ..config(folder.path()) });
        assert_eq!((trail.delivered().by_all(false), trail.delivered().by_all(true)), (0, full));
    }
}

/// As often as `count` says, the same call once more.
async fn again(trail: &Trail, repeated: &[Repeated], count: usize) -> Vec<Result<(), AuditError>> {
    let circumstances = Circumstances::default();
    let one = |index: usize| Again {
        decision_id: DecisionId::mint(noon()),
        time: noon(),
        duration: Duration::from_micros(90),
        address: "10.0.0.7:50000".parse().unwrap(),
        certificate_sha256: "00",
        circumstances: &circumstances,
        place: Some((DecisionId::mint(noon()), BatchPosition { index, of: count })),
    };
    let all: Vec<_> = (0..count).map(|index| (&repeated[index % repeated.len()], one(index))).collect();
    trail.write_all_again(&all).await
}

fn repeated(trail: &Trail, entry: &Entry) -> Repeated {
    let Entry::Call(call) = entry else { panic!("a call") };
    trail.template(call).unwrap()
}

/// Records that go together must not be more than the queue, or a segment, has room for: the batch would be refused each time.
#[tokio::test]
async fn records_of_a_batch_go_in_parts_that_find_room() {
    let folder = tempfile::tempdir().unwrap();
    let small = config(folder.path());
    let spool = SpoolConfig { segment_bytes: 64 << 10, ..small.spool.clone() };
    let trail = open(&AuditConfig { spool, ..small });
    let written = again(&trail, &[repeated(&trail, &entry())], 1000).await;
    assert_eq!(written.iter().filter(|written| written.is_ok()).count(), 1000);
    trail.close().await;
    let (mut bytes, mut lines) = (Vec::new(), 0);
    for file in std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "jsonl") {
            let text = std::fs::read(&file).unwrap();
            bytes.push(text.len());
            lines += text.iter().filter(|byte| **byte == b'\n').count();
        }
    }
    assert!(bytes.len() > 10 && bytes.iter().all(|bytes| *bytes <= 64 << 10), "{bytes:?}");
    assert!(lines >= 1000, "{lines}");

    let folder = tempfile::tempdir().unwrap();
    let trail = open(&AuditConfig { queue: 4, ..config(folder.path()) });
    let written = again(&trail, &[repeated(&trail, &entry())], 20).await;
    assert!(written.iter().take(4).all(Result::is_ok), "as many as there is room for: {written:?}");
    assert!(written.iter().skip(4).all(|written| matches!(written, Ok(()) | Err(AuditError::QueueFull))));
}

/// Each is kept as its action has to be, also in one batch.
#[tokio::test]
async fn records_of_a_batch_that_are_kept_in_different_ways_do_not_share_a_fate() {
    let disk = SimDisk::new(9);
    let queued = Keeping { mode: AuditMode::Async, on_failure: OnAuditFailure::Refuse };
    let strict = config(Path::new("audit"));
    let actions = vec![ActionKeeping { actions: vec![ActionPattern::Exact("Order.list".to_owned())], keeping: queued }];
    let timeout = Duration::from_millis(50);
    let trail =
        over(&disk, &AuditConfig { actions, write_timeout: timeout, ..strict }, &Limits::default(), &Losses::default());
    let both = [repeated(&trail, &about("Order.read")), repeated(&trail, &about("Order.list"))];
    disk.hang(true);
    let written = again(&trail, &both, 10).await;
    for (index, written) in written.iter().enumerate() {
        match index % 2 {
            0 => assert!(matches!(written, Err(AuditError::TimedOut)), "{index}: {written:?}"),
            _ => assert!(written.is_ok(), "{index}: {written:?}"),
        }
    }
    disk.hang(false);
}
