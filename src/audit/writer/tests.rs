//! Records get out once each, or whoever waits learns that they did not.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::audit::record::tests::{allow, call, decided};
use crate::audit::sinks::{Appended, StreamSink};
use crate::audit::{LifecycleEntry, Outcome};
use crate::clock::SystemClock;
use crate::config::{AuditMode, Keeping, OnAuditFailure, SpoolConfig};

fn entry() -> Entry {
    Entry::Call(Box::new(call(decided(allow()))))
}

type Target<'a> = (&'a Path, u64, u32);

fn file(path: &Path, max_bytes: u64, max_files: u32) -> Target<'_> {
    (path, max_bytes, max_files)
}

fn config() -> AuditConfig {
    AuditConfig {
        keeping: Keeping { mode: AuditMode::Written, on_failure: OnAuditFailure::Refuse },
        actions: Vec::new(),
        write_timeout: Duration::from_secs(30),
        queue: 100_000,
        spool: SpoolConfig {
            directory: "unused".into(),
            segment_bytes: 1 << 20,
            max_bytes: 1 << 30,
            max_age: Duration::from_secs(3600),
            reserve_bytes: 1 << 20,
        },
        checkpoints: None,
        attributes: Vec::new(),
        sinks: Vec::new(),
    }
}

fn host() -> HostFacts {
    HostFacts { hostname: "gatepost-0".to_owned() }
}

fn open(target: &Target<'_>) -> Trail {
    let sink = sinks::file(target.0, target.1, target.2).unwrap();
    Trail::over(sink, &config(), &Limits::default(), host(), SystemClock::shared()).unwrap()
}

fn records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn classes(path: &Path) -> Vec<i64> {
    records(path).iter().map(|record| record["class_uid"].as_i64().unwrap()).collect()
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
    let path = folder.path().join("audit.jsonl");
    let trail = open(&file(&path, u64::MAX, 1));
    let tasks: Vec<_> = (0..10_000)
        .map(|_| {
            let trail = trail.clone();
            tokio::spawn(async move { trail.write(entry()).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    trail.close().await;
    let records = records(&path);
    let sequence: Vec<u64> = records.iter().map(|record| record["metadata"]["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequence, (1..=10_000).collect::<Vec<_>>(), "numbered without a gap");
    let ids: std::collections::BTreeSet<_> =
        records.iter().map(|record| record["metadata"]["original_event_uid"].to_string()).collect();
    assert_eq!(ids.len(), 10_000, "no decision twice");
    assert_eq!(trail.depth(), 0);
    assert!(matches!(trail.write(entry()).await, Err(AuditError::Closed)), "closed is closed");
}

#[tokio::test]
async fn an_acknowledged_record_can_be_read_at_once_by_the_owner_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    let trail = open(&file(&path, u64::MAX, 1));
    trail.write(entry()).await.unwrap();
    assert_eq!(classes(&path), [6003]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(trail.healthy());
}

#[tokio::test]
async fn a_file_is_rotated_one_byte_past_its_limit_and_the_oldest_goes() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    let start = || Entry::Lifecycle(LifecycleEntry { time: std::time::SystemTime::UNIX_EPOCH, started: true });
    let trail = open(&file(&path, u64::MAX, 1));
    trail.write(start()).await.unwrap();
    let line = fs::metadata(&path).unwrap().len();
    drop(trail);
    fs::remove_file(&path).unwrap();

    // Room for two lines exactly, and one byte less. All lines here are equally long.
    for (max_bytes, fits, why) in [(2 * line, 2, "two fit"), (2 * line - 1, 1, "the second is one byte too long")] {
        let trail = open(&file(&path, max_bytes, 2));
        for _ in 0..4 * fits {
            trail.write(start()).await.unwrap();
        }
        for name in ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"] {
            assert_eq!(classes(&folder.path().join(name)).len(), fits, "{why}: {name}");
        }
        assert!(!folder.path().join("audit.jsonl.3").exists(), "{why}: two older files are kept");
        trail.close().await;
        for name in ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"] {
            fs::remove_file(folder.path().join(name)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_that_was_renamed_or_removed_is_opened_anew() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    let trail = open(&file(&path, u64::MAX, 1));
    trail.write(entry()).await.unwrap();
    fs::rename(&path, folder.path().join("taken-away")).unwrap();
    trail.write(entry()).await.unwrap();
    assert_eq!(classes(&path), [6003]);
    fs::remove_file(&path).unwrap();
    trail.write(entry()).await.unwrap();
    assert_eq!(classes(&path), [6003]);
    assert_eq!(classes(&folder.path().join("taken-away")), [6003]);
}

#[tokio::test]
async fn a_torn_last_line_is_closed_before_the_next_record() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    fs::write(&path, b"{\"half\":").unwrap();
    open(&file(&path, u64::MAX, 1)).write(entry()).await.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("{\"half\":\n{\"metadata\""), "{text}");
}

#[tokio::test]
async fn a_full_disk_refuses_every_record_until_there_is_room_and_the_gap_is_on_record() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    symlink("/dev/full", &path).unwrap();
    let trail = open(&file(&path, u64::MAX, 1));
    for _ in 0..2 {
        assert!(matches!(trail.write(entry()).await, Err(AuditError::Sink(io::ErrorKind::StorageFull))));
        assert!(!trail.healthy());
    }
    fs::remove_file(&path).unwrap();
    trail.write(entry()).await.unwrap();
    assert!(trail.healthy());
    assert_eq!(classes(&path), [6002, 6003], "the gap first");
    assert_eq!(records(&path)[0]["unmapped"]["gatepost"]["not_recorded"], 2);
}

#[tokio::test]
async fn a_sink_that_failed_comes_back_by_itself_when_nobody_asks() {
    let folder = TempDir::new().unwrap();
    let home = folder.path().join("log");
    fs::create_dir(&home).unwrap();
    let path = home.join("audit.jsonl");
    let trail = open(&file(&path, u64::MAX, 1));
    fs::remove_dir_all(&home).unwrap();
    assert!(matches!(trail.write(entry()).await, Err(AuditError::Sink(io::ErrorKind::NotFound))));
    assert!(!trail.healthy());
    fs::create_dir(&home).unwrap();
    until(|| trail.healthy()).await;
    assert_eq!(classes(&path), [6002]);
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_told_at_the_start() {
    let folder = TempDir::new().unwrap();
    assert!(sinks::file(&folder.path().join("none/audit.jsonl"), 1, 1).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_blocked_pipe_costs_its_writers_the_timeout_and_nothing_when_it_flows_again() {
    let (mut reader, writer) = io::pipe().unwrap();
    let sink = Box::new(StreamSink::over(File::from(OwnedFd::from(writer))));
    let config = AuditConfig { write_timeout: Duration::from_millis(50), ..config() };
    let trail = Trail::over(sink, &config, &Limits::default(), host(), SystemClock::shared()).unwrap();
    let mut written = 0;
    while trail.write(entry()).await.is_ok() {
        written += 1;
        assert!(written < 10_000, "a pipe holds 64 KiB");
    }
    assert!(matches!(trail.write(entry()).await, Err(AuditError::TimedOut)));
    assert!(!trail.healthy(), "and it shows");

    let drained = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    until(|| trail.healthy() && trail.depth() == 0).await;
    trail.write(entry()).await.unwrap();
    trail.close().await;
    let text = drained.join().unwrap();
    let sequence: Vec<u64> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["metadata"]["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(sequence, (1..=written + 3).collect::<Vec<_>>(), "those that gave up are on record too");
}

/// Does what the test says, batch by batch.
struct Puppet {
    out: Arc<Mutex<Vec<u8>>>,
    gate: Arc<(Mutex<bool>, Condvar)>,
    /// Bytes of the next batch that get out before it fails.
    tear: Arc<Mutex<Option<usize>>>,
}

impl AuditSinkLike for Puppet {
    fn append(&mut self, batch: Batch<'_>) -> Appended {
        let mut open = self.gate.0.lock();
        while !*open {
            self.gate.1.wait(&mut open);
        }
        if let Some(bytes) = self.tear.lock().take() {
            self.out.lock().extend_from_slice(&batch.bytes[..bytes]);
            self.out.lock().push(b'\n');
            return Appended { lines: 0, torn: true, fault: Some(io::ErrorKind::Other) };
        }
        self.out.lock().extend_from_slice(batch.bytes);
        Appended { lines: batch.ends.len(), torn: false, fault: None }
    }

    fn sync(&mut self) {}
}

fn puppet(queue: usize, limits: &Limits, open: bool) -> (Trail, Puppet) {
    let strings =
        Puppet { out: Arc::default(), gate: Arc::new((Mutex::new(open), Condvar::new())), tear: Arc::default() };
    let sink = Puppet { out: strings.out.clone(), gate: strings.gate.clone(), tear: strings.tear.clone() };
    let config = AuditConfig { queue, ..config() };
    (Trail::over(Box::new(sink), &config, limits, host(), SystemClock::shared()).unwrap(), strings)
}

#[tokio::test]
async fn the_queue_takes_its_limit_and_refuses_one_more_at_once() {
    let (trail, strings) = puppet(8, &Limits::default(), false);
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let trail = trail.clone();
            tokio::spawn(async move { trail.write(entry()).await })
        })
        .collect();
    until(|| trail.depth() == 8).await;
    assert!(matches!(trail.write(entry()).await, Err(AuditError::QueueFull)));

    *strings.gate.0.lock() = true;
    strings.gate.1.notify_all();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    trail.write(entry()).await.unwrap();
    assert_eq!(strings.out.lock().iter().filter(|byte| **byte == b'\n').count(), 9);
}

#[tokio::test]
async fn a_record_at_its_limit_is_written_and_one_past_it_is_an_error() {
    let bytes = {
        let frame = Frame { host: host(), boot: record::mint_boot(std::time::SystemTime::UNIX_EPOCH) };
        record::render(&entry(), &frame).unwrap().bytes()
    };
    for (limit, fits) in [(bytes, true), (bytes - 1, false)] {
        let (trail, strings) = puppet(8, &Limits { audit_record_bytes: limit, ..Limits::default() }, true);
        let result = trail.write(entry()).await;
        assert_eq!(result.is_ok(), fits, "{limit}: {result:?}");
        assert_eq!(!strings.out.lock().is_empty(), fits);
    }
}

#[tokio::test]
async fn a_record_whose_waiter_is_gone_is_written_all_the_same() {
    let (trail, strings) = puppet(8, &Limits::default(), false);
    let task = tokio::spawn({
        let trail = trail.clone();
        async move { trail.write(entry()).await }
    });
    until(|| trail.depth() == 1).await;
    task.abort();
    *strings.gate.0.lock() = true;
    strings.gate.1.notify_all();
    trail.close().await;
    assert_eq!(strings.out.lock().iter().filter(|byte| **byte == b'\n').count(), 1);
}

#[tokio::test]
async fn a_number_that_went_out_with_half_a_line_is_not_used_again() {
    let (trail, strings) = puppet(8, &Limits::default(), true);
    *strings.tear.lock() = Some(40);
    assert!(matches!(trail.write(entry()).await, Err(AuditError::Sink(_))));
    trail.write(entry()).await.unwrap();
    let text = String::from_utf8(strings.out.lock().clone()).unwrap();
    let numbers: Vec<Option<u64>> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).ok()?["metadata"]["sequence"].as_u64()).collect();
    assert_eq!(numbers, [None, Some(2), Some(3)], "half a line, the gap, the record");
}

#[tokio::test]
async fn dropping_the_last_handle_writes_what_is_queued() {
    let (trail, strings) = puppet(8, &Limits::default(), false);
    let end = Arc::downgrade(&trail.end);
    let task = tokio::spawn(async move {
        let _ = trail.write(Entry::Call(Box::new(call(Outcome::Failed { status: "INTERNAL", reason: "PANIC" })))).await;
    });
    until(|| end.upgrade().is_some_and(|end| end.shared.state.lock().held == 1)).await;
    task.abort();
    let _ = task.await;
    assert_eq!(end.strong_count(), 0);
    *strings.gate.0.lock() = true;
    strings.gate.1.notify_all();
    until(|| !strings.out.lock().is_empty()).await;
}
