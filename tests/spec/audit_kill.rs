//! Killed under load, again and again: what a client was answered is on record, and the chain goes on.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gatepost::client::Client;
use serde_json::{Value, json};

use crate::support::process::Place;
use crate::support::{PATIENCE, ocsf, order, trail};

const CLIENTS: usize = 8;
/// Of the processors, from the start of the process until it takes questions. By the clock it is measured in benches/footprint.rs.
const READY_FOR: Duration = Duration::from_secs(3);

struct Dice(u64);

impl Dice {
    fn draw(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Asks until nobody answers any more; gives the ids of the answers that came.
async fn ask_on(client: Client, token: String, answers: Arc<AtomicUsize>) -> Vec<String> {
    let mut ids = Vec::new();
    while let Ok(answer) = client.check(order("Order.read", "o-1", "alice").token(&token)).await {
        assert!(answer.allowed());
        ids.push(answer.decision_id().to_owned());
        answers.fetch_add(1, Ordering::Relaxed);
    }
    ids
}

/// THREATS F4. 200 times with `GATEPOST_LONG`.
#[tokio::test(flavor = "multi_thread")]
async fn every_answer_that_left_is_on_record_however_often_it_is_killed() {
    let kills = if std::env::var_os("GATEPOST_LONG").is_some() { 200 } else { 20 };
    let place = Place::new(|settings| {
        settings["audit"]["spool"]["segment_bytes"] = json!("64KiB");
        settings["audit"]["checkpoints"] = json!({ "key_file": "checkpoint.key", "every": "1h", "records": 20 });
    });
    let path = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let (private, public) = (path("checkpoint.key"), path("checkpoint.pub"));
    assert!(place.audit(&["key", "--out", &private, "--public-out", &public]).status.success());

    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut answered, mut cut, mut torn_by_kills) = (BTreeSet::new(), 0, 0);
    let (mut dearest, mut slowest) = (Duration::ZERO, Duration::ZERO);
    for round in 0..kills {
        let mut process = place.start().await;
        (dearest, slowest) = (dearest.max(process.ready_for), slowest.max(process.ready_after));
        let answers = Arc::new(AtomicUsize::new(0));
        let asking: Vec<_> = (0..CLIENTS)
            .map(|_| tokio::spawn(ask_on(place.client(&process), place.token(), Arc::clone(&answers))))
            .collect();
        // A random moment: after so many answers, and somewhere in the round of records that is under way then.
        let enough = 1 + dice.draw(150) as usize;
        let loaded = tokio::time::timeout(PATIENCE, async {
            while answers.load(Ordering::Relaxed) < enough {
                tokio::task::yield_now().await;
            }
        });
        assert!(loaded.await.is_ok(), "nobody answers: {:#?}", process.log.lock());
        tokio::time::sleep(Duration::from_micros(dice.draw(5000))).await;
        process.kill();
        let mut ids = BTreeSet::new();
        for one in asking {
            ids.extend(one.await.unwrap());
        }
        let text = trail(&place.path("audit"));
        let lost: Vec<&String> = ids.iter().filter(|id| !text.contains(id.as_str())).collect();
        assert!(lost.is_empty(), "kill {round}: {lost:?} were answered and are not on record");
        answered.extend(ids);
        let last = place.segments().pop().unwrap();
        // A write of several pages ends between two of them when its process is killed: that is seldom met.
        let bytes = std::fs::read(&last).unwrap();
        // One that a kill met before it had its first line is no segment: the next start takes it away without a word.
        let begun = bytes.contains(&b'\n');
        let torn = begun && !bytes.ends_with(b"\n");
        let spoilt = begun && round % 3 == 0;
        if spoilt {
            // What a machine that goes down leaves more often.
            let mut file = std::fs::OpenOptions::new().append(true).open(&last).unwrap();
            file.write_all(br#"{"metadata":{"sequence":9"#).unwrap();
        }
        cut += usize::from(torn || spoilt);
        torn_by_kills += usize::from(torn);
    }
    let mut process = place.start().await;
    (dearest, slowest) = (dearest.max(process.ready_for), slowest.max(process.ready_after));
    assert_eq!(process.stop(), Some(0));

    let text = trail(&place.path("audit"));
    let records = ocsf::check(&text);
    let found: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found[0]["metadata"]["sequence"], 1);
    let mut ids: Vec<&str> =
        found.iter().filter_map(|record| record["metadata"]["original_event_uid"].as_str()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "no decision twice");
    let lost = answered.iter().filter(|id| ids.binary_search(&id.as_str()).is_err()).count();
    let named = |name: &str| found.iter().filter(|record| record["activity_name"] == name).count();
    assert_eq!((lost, named("Audit Repaired"), named("Audit Gap")), (0, cut, 0));
    let verified = place.audit(&["verify", &path("audit"), "--key", &public, "--json"]);
    let report: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!((verified.status.code(), &report["sound"]), (Some(0), &json!(true)), "{report:#}");
    assert_eq!((&report["boots"], &report["records"]), (&json!(kills + 1), &json!(records)), "{report:#}");
    println!(
        "{kills} kills, {cut} torn tails, {torn_by_kills} of them by the kill itself: {} answers, 0 without a record, {records} records in {} segments, \
         {} checkpoints, ready after {slowest:?} and {dearest:?} of processor at worst",
        answered.len(),
        report["segments"],
        report["checkpoints"],
    );
    assert!(dearest < READY_FOR, "ready after {dearest:?} of processor");
}
