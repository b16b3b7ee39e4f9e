//! `gatepost demo`, the first thing a newcomer runs: the story, its audit trail, and the server that stays.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use gatepost::client::Client;
use serde_json::{Value, json};

use crate::support::{PATIENCE, account};

fn demo(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    command.arg("demo").args(arguments).current_dir(folder).env_remove("RUST_LOG");
    command
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn lines_of(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect()
}

fn verdict(step: &Value) -> String {
    let word = |key: &str| step[key].as_str().unwrap_or_default().to_owned();
    let said = match step["status"].as_str() {
        Some("OK") => [word("decision"), word("denial")],
        _ => [word("status"), word("reason")],
    };
    said.join(" ").trim().to_owned()
}

#[test]
fn every_step_of_the_story_ends_as_it_must() {
    let output = demo(repository(), &["--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = lines_of(&output);
    let steps: Vec<&Value> = lines.iter().filter(|line| line.get("step").is_some()).collect();
    assert_eq!(steps.len(), 27);
    assert!(steps.iter().all(|step| step["ok"] == true), "{steps:#?}");
    let table = [
        (1, "ALLOW", "API1: her own order"),
        (2, "DENY NO_PERMIT", "API1: somebody else's order"),
        (3, "DENY FORBIDDEN", "API1: another tenant's, for an administrator"),
        (4, "DENY NO_PERMIT", "API5: an administrator's function, for a customer"),
        (5, "CONDITIONAL", "API5: the administrator has to name the user"),
        (6, "ALLOW", "API5: and may"),
        (8, "ALLOW", "API3: with a mask"),
        (13, "DENY FIELD_NOT_GRANTED", "API3: `role` sent along"),
        (14, "ALLOW", "API3: the same, filtered"),
        (16, "DENY TOKEN_EXPIRED", "an expired token"),
        (17, "DENY TOKEN_REJECTED", "a token with a claim of one's own"),
        (18, "PERMISSION_DENIED CALLER_NOT_ENTITLED", "a service beyond its work"),
        (19, "PERMISSION_DENIED CALLER_NOT_ENROLLED", "a service that nobody enrolled"),
        (20, "NO_CONNECTION UNKNOWN_ISSUER", "a forged certificate"),
        (21, "DENY TOKEN_NOT_FOR_CALLER", "a service with a token that another was given"),
        (25, "DENY NO_PERMIT", "bob's order in a list"),
    ];
    for (number, expected, why) in table {
        let step = steps.iter().find(|step| step["step"] == number).unwrap();
        assert_eq!(verdict(step), expected, "step {number}: {why}");
    }
    assert!(!steps[7]["fields"].as_array().unwrap().contains(&json!("last_login_ip")), "the mask hides it");
    assert_eq!(steps[12]["refused_fields"], json!(["role"]), "a strict write names what it was refused");
    assert_eq!([&steps[21]["cache"], &steps[22]["cache"]], ["miss", "hit"]);
}

#[test]
fn every_answer_has_exactly_one_record_and_every_record_an_answer() {
    // Where there are no policies, the program brings the worked example along.
    let elsewhere = tempfile::tempdir().unwrap();
    let output = demo(elsewhere.path(), &["--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0, "nothing is written outside its own folder");

    let lines = lines_of(&output);
    let mut records: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for record in lines.iter().filter_map(|line| line.get("record")).filter(|record| record["class_uid"] == 6003) {
        records.entry(record["metadata"]["original_event_uid"].as_str().unwrap().to_owned()).or_default().push(record);
    }
    let steps: Vec<&Value> = lines.iter().filter(|line| line.get("step").is_some()).collect();
    let mut strangers = 0;
    for step in &steps {
        let Some(id) = step["decision_id"].as_str() else {
            strangers += 1;
            continue;
        };
        let of_it = records.remove(id).unwrap_or_default();
        assert_eq!(of_it.len(), 1, "step {}", step["step"]);
        let said = of_it[0]["unmapped"]["gatepost"]["decision"].as_str().unwrap_or_default().to_uppercase();
        assert_eq!(said, step["decision"].as_str().unwrap_or_default(), "step {}", step["step"]);
    }
    assert!(records.is_empty(), "records that answer nobody: {records:#?}");
    let handshakes = lines.iter().filter(|line| line["record"]["class_uid"] == 3002).count();
    assert_eq!((strangers, handshakes), (1, 1), "a refused connection has no decision id, and a record all the same");
}

#[test]
fn the_table_is_for_people_without_colours_when_nobody_looks() {
    let output = demo(repository(), &[]).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for word in [
        "NO_PERMIT",
        "FORBIDDEN",
        "FIELD_NOT_GRANTED",
        "TOKEN_EXPIRED",
        "TOKEN_REJECTED",
        "CALLER_NOT_ENTITLED",
        "CALLER_NOT_ENROLLED",
        "UNKNOWN_ISSUER",
        "TOKEN_NOT_FOR_CALLER",
        "cache: hit",
        "not granted: role",
        "27 of 27 answers are as expected",
    ] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "no escape sequences");
    let (table, trail) = text.split_once("The audit trail").unwrap();
    let wide = |part: &str| part.lines().skip(2).map(|line| line.chars().count()).max().unwrap();
    assert!(wide(table) <= 100 && wide(trail) <= 100, "{} {}", wide(table), wide(trail));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_policy_that_decides_otherwise_is_told_and_fails_the_demo() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies");
    crate::support::copy_bundle(&repository().join("policies"), &policies);
    let orders = std::fs::read_to_string(policies.join("order.cedar")).unwrap();
    std::fs::write(policies.join("order.cedar"), orders.replace("resource.customer == principal", "true")).unwrap();
    let output = demo(folder.path(), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("NOT AS EXPECTED: step 2, alice Order.read ord-2"), "{text}");
    assert!(text.contains(r#"decision: expected "DENY", got "ALLOW""#), "{text}");

    std::fs::write(policies.join("order.cedar"), "permit (principal").unwrap();
    let output = demo(folder.path(), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(65), "policies that can't be used");
    assert!(String::from_utf8_lossy(&output.stderr).contains("order.cedar"));
}

/// The demo that goes on serving; killed if a test ends early.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kept_server_answers_with_what_it_printed_and_leaves_nothing_behind() {
    let mut kept = Kept(demo(repository(), &["--keep"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(kept.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let (folder, address) = lines
        .find_map(|line| {
            let (folder, address) = line.strip_prefix("DEMO=")?.split_once(" ADDRESS=")?;
            Some((PathBuf::from(folder), address.to_owned()))
        })
        .unwrap();
    assert!(lines.any(|line| line.starts_with("# Every new record")), "all is printed");

    let client = Client::builder(format!("https://{address}"))
        .ca(folder.join("ca.pem"))
        .identity(folder.join("storefront.pem"), folder.join("storefront.key"))
        .deadline(PATIENCE / 2)
        .build()
        .unwrap();
    let alice = std::fs::read_to_string(folder.join("alice.token")).unwrap();
    let answer = client.check(account("Account.read", "alice").fields_all().token(alice)).await.unwrap();
    assert!(answer.mask().is_some_and(|mask| mask.permits("email") && !mask.permits("last_login_ip")));
    let shown = lines.find(|line| !line.is_empty()).unwrap();
    assert!(shown.contains("storefront  alice Account.read   acc-alice allow"), "its record shows up: {shown}");

    assert!(Command::new("kill").args(["-TERM", &kept.0.id().to_string()]).status().unwrap().success());
    assert_eq!(lines.count(), 0);
    assert_eq!(kept.0.wait().unwrap().code(), Some(0));
    assert!(!folder.exists(), "the folder goes with it");
}
