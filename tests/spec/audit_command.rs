//! `gatepost audit` over the spool of a real server: what it shows, what it finds, how it ends.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{Gatepost, account, first_line, order};

fn audit(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    command.arg("audit").args(arguments).env_remove("GATEPOST_CONFIG");
    command.stdin(Stdio::null()).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A key, its public half, and a server that signs with it and has answered some questions.
async fn lively() -> (tempfile::TempDir, String, Gatepost) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (private, public) = (path("checkpoint.key"), path("checkpoint.pub"));
    let made = audit(&["key", "--out", &private, "--public-out", &public]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let mut gatepost = Gatepost::start_with(|settings| {
        settings["audit"]["checkpoints"] = json!({ "key_file": private, "every": "1h", "records": 5 });
        settings["audit"]["spool"]["segment_bytes"] = json!("64KiB");
    })
    .await;
    let alice = gatepost.token("alice", &[]);
    for _ in 0..20 {
        let _ = gatepost.ask(order("Order.read", "o-1", "alice").token(&alice)).await;
        let _ = gatepost.ask(order("Order.read", "o-2", "bob").token(&alice)).await;
        let _ = gatepost.ask(account("Account.update", "alice").fields(["role"]).token(&alice)).await;
    }
    let _ = gatepost.raw("warehouse").await.check(crate::failing_closed::wire(&alice)).await;
    gatepost.stop().await;
    (folder, public, gatepost)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_spool_verifies_and_an_edit_is_found_by_file_and_line() {
    let (folder, public, gatepost) = lively().await;
    let spool = gatepost.path("audit");
    let spool = spool.to_str().unwrap();
    let sound = audit(&["verify", spool, "--key", &public, "--json"]);
    let report: Value = serde_json::from_str(&told(&sound)).unwrap();
    assert_eq!((sound.status.code(), &report["sound"]), (Some(0), &json!(true)), "{report:#}");
    let count = gatepost.records().len() as u64;
    assert_eq!(report["records"], count);
    assert!(report["segments"].as_u64().unwrap() > 1 && report["checkpoints"].as_u64().unwrap() >= 10, "{report:#}");
    assert_eq!(report["covered_to"], count - 1, "the last word is a checkpoint");
    let unsigned = told(&audit(&["verify", spool]));
    assert!(
        unsigned.contains("signatures NOT checked") && unsigned.contains("sound        by its hashes alone"),
        "{unsigned}"
    );
    assert_eq!(report["not_covered"], json!([[count, count]]), "that checkpoint itself is signed by nothing");

    // The export says the same; a selection says that it can't.
    let export = folder.path().join("export.jsonl");
    let export = export.to_str().unwrap();
    let exported = audit(&["export", spool, "--output", export]);
    assert_eq!(exported.status.code(), Some(0), "{exported:?}");
    assert_eq!(std::fs::read_to_string(export).unwrap(), gatepost.trail(), "byte for byte");
    let checked = audit(&["verify", "--lines", export, "--key", &public, "--json"]);
    let again: Value = serde_json::from_str(&told(&checked)).unwrap();
    assert_eq!((&again["sound"], &again["last_hash"]), (&json!(true), &report["last_hash"]));
    assert_eq!(audit(&["export", spool, "--output", export]).status.code(), Some(69), "it is there already");
    let some = audit(&["export", spool, "--decision", "deny"]);
    assert!(String::from_utf8_lossy(&some.stderr).contains("can't be verified as one chain"), "{some:?}");

    let segment = Path::new(spool).join("segment-000000000001.jsonl");
    let text = std::fs::read_to_string(&segment).unwrap();
    let at = text.lines().position(|line| line.contains("NO_PERMIT")).unwrap();
    std::fs::write(&segment, text.replacen("NO_PERMIT", "OK_PERMIT", 1)).unwrap();
    let broken = audit(&["verify", spool, "--key", &public]);
    assert_eq!(broken.status.code(), Some(1));
    let place = format!("BROKEN       {}:{}: this record was changed", segment.display(), at + 1);
    assert!(told(&broken).contains(&place), "{place}\n{}", told(&broken));
    // The check of the test's own end would find it too.
    std::fs::write(&segment, text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_found_by_each_filter_and_counted() {
    let (_folder, _public, gatepost) = lively().await;
    let spool = gatepost.path("audit");
    let spool = spool.to_str().unwrap();
    let one = gatepost.call_records().into_iter().find(|record| record["status_detail"] == "NO_PERMIT").unwrap();
    let id = one["metadata"]["original_event_uid"].as_str().unwrap();
    let table: [(&[&str], usize); 14] = [
        (&["--decision", "deny"], 40),
        (&["--decision", "allow"], 20),
        (&["--decision", "allow", "--decision", "deny"], 60),
        (&["--decision", "refused"], 1),
        (&["--principal", "alice"], 60),
        (&["--principal", "User::\"alice\"", "--resource", "Order::\"o-2\""], 20),
        (&["--resource", "Account"], 20),
        (&["--caller", "storefront"], 60),
        (&["--caller", "spiffe://shop.example/ns/shop/sa/warehouse"], 1),
        (&["--action", "Order.*"], 40),
        (&["--policy", "order.customer-reads"], 20),
        (&["--kind", "lifecycle"], 2),
        (&["--decision-id", id], 1),
        (&["--since", "1h", "--kind", "decision", "--until", "2099-01-01T00:00:00Z"], 61),
    ];
    for (filter, expected) in table {
        let output = audit(&[&["grep", spool, "--count"], filter].concat());
        assert_eq!(told(&output).trim(), expected.to_string(), "{filter:?} {output:?}");
        assert_eq!(output.status.code(), Some(0));
    }
    let nothing = audit(&["grep", spool, "--principal", "nobody"]);
    assert_eq!((told(&nothing).as_str(), nothing.status.code()), ("", Some(1)), "as grep does");
    let lines = told(&audit(&["grep", spool, "--decision-id", id]));
    assert!(
        lines.contains(" DENY ") && lines.contains("storefront User::\"alice\" Order.read Order::\"o-2\" NO_PERMIT"),
        "{lines}"
    );
    assert!(!lines.contains('\u{1b}'), "no colours on a pipe");
    let json = told(&audit(&["grep", spool, "--decision-id", id, "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), one);

    let tail = told(&audit(&["tail", spool, "-n", "3"]));
    assert_eq!(tail.lines().count(), 3, "{tail}");
    let all = told(&audit(&["grep", spool]));
    let all: Vec<&str> = all.lines().collect();
    for count in [0, 1, 17, all.len() - 1, all.len() + 5] {
        let tail = told(&audit(&["tail", spool, "-n", &count.to_string()]));
        assert_eq!(tail.lines().collect::<Vec<_>>(), all[all.len().saturating_sub(count)..], "the last {count}");
    }
    let stats = told(&audit(&["stats", spool, "--by", "reason"]));
    assert!(stats.contains("NO_PERMIT") && stats.contains("##"), "{stats}");
    let stats: Value = serde_json::from_str(&told(&audit(&["stats", spool, "--by", "decision", "--json"]))).unwrap();
    assert_eq!(stats["rows"][0], json!({ "value": "deny", "records": 40 }));
    let csv = told(&audit(&["export", spool, "--format", "csv", "--decision", "allow"]));
    assert_eq!((csv.lines().count(), csv.lines().next().unwrap().split(',').count()), (21, 14), "{csv}");
    // The configuration knows where the spool is.
    let config = gatepost.path("gatepost.yaml");
    let by_config = audit(&["grep", "--count", "--decision", "deny", "--config", config.to_str().unwrap()]);
    assert_eq!(told(&by_config).trim(), "40");
}

#[test]
fn what_can_not_be_read_is_told_by_its_name_and_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("empty")).unwrap();
    std::fs::create_dir(path("garbage")).unwrap();
    std::fs::write(path("garbage/segment-000000000001.jsonl"), "{}\n").unwrap();
    std::fs::create_dir(path("future")).unwrap();
    std::fs::write(path("future/segment-000000000001.jsonl"), "{\"gatepost_spool\":2}\n").unwrap();
    std::fs::write(path("key"), "not a key").unwrap();
    let table: [(Vec<String>, i32, &str); 13] = [
        (vec!["tail".into(), path("none")], 69, "none: No such file"),
        (vec!["tail".into(), path("empty")], 65, "holds no segments"),
        (vec!["grep".into(), path("garbage")], 65, "first line is not that of a segment"),
        (vec!["grep".into(), path("future")], 65, "has version 2 of the format"),
        (vec!["verify".into(), path("garbage")], 1, ""),
        (vec!["verify".into(), path("empty")], 65, "there is no record to check"),
        (vec!["verify".into(), "--lines".into(), "-".into()], 65, "there is no record to check"),
        (vec!["verify".into(), path("none")], 69, "none: No such file"),
        (vec!["verify".into(), path("empty"), "--anchor".into(), "7".into()], 64, "must be a record's number, a colon"),
        (vec!["grep".into(), path("empty"), "--kind".into(), "descision".into()], 64, "possible values: decision"),
        (
            vec!["verify".into(), path("empty"), "--key".into(), path("key")],
            65,
            "not a PEM file with an Ed25519 public key",
        ),
        (vec!["tail".into()], 64, "name the spool's folder"),
        (vec!["grep".into(), path("empty"), "--since".into(), "yesterday".into()], 64, "must be RFC 3339"),
    ];
    for (arguments, code, message) in table {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = audit(&arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
    let key = path("new.key");
    assert_eq!(audit(&["key", "--out", &key]).status.code(), Some(0));
    assert_eq!(audit(&["key", "--out", &key]).status.code(), Some(69), "a key is never written over");
    let (other, public) = (path("other.key"), path("taken.pub"));
    std::fs::write(&public, "mine").unwrap();
    assert_eq!(audit(&["key", "--out", &other, "--public-out", &public]).status.code(), Some(69));
    assert!(!Path::new(&other).exists() && std::fs::read(&public).unwrap() == b"mine", "neither is touched");
}

/// A trail is followed live, from one segment into the next, and whoever stops listening ends it without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_trail_is_followed_over_its_segments_until_nobody_listens() {
    use std::io::BufRead as _;
    let gatepost = Gatepost::start_with(|settings| settings["audit"]["spool"]["segment_bytes"] = json!("64KiB")).await;
    let spool = gatepost.path("audit");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    // As many of what is there already as there will be: it may begin to look after some have been asked.
    command.args(["audit", "tail", "-f", "-n", "60", "--decision", "allow"]).arg(&spool).env_remove("GATEPOST_CONFIG");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let alice = gatepost.token("alice", &[]);
    let mut seen = 0;
    for n in 0..60 {
        let answer = gatepost.ask(order("Order.read", &format!("o-{n}"), "alice").token(&alice)).await.unwrap();
        assert!(answer.allowed());
        // One at a time: what is asked next, has to be shown next.
        if n % 10 == 9 {
            while seen <= n {
                let line = lines.next().unwrap().unwrap();
                assert!(line.contains(&format!("Order::\"o-{seen}\"")) && line.contains("ALLOW"), "{seen}: {line}");
                seen += 1;
            }
        }
    }
    let segments = std::fs::read_dir(&spool).unwrap();
    let segments = segments.filter(|entry| entry.as_ref().unwrap().path().to_str().unwrap().contains("/segment-"));
    let segments = segments.count();
    assert!(segments > 1, "{segments}");
    println!("{seen} records followed as they came, over {segments} segments");

    drop(lines);
    assert!(gatepost.ask(order("Order.read", "o-1", "alice").token(&alice)).await.unwrap().allowed());
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), ended).await.expect("it ends").unwrap();
    assert_eq!((ended.status.code(), ended.stderr), (Some(0), Vec::new()));
}

/// Whoever can write the files can put anything into a line and hash it; a terminal does nothing of it.
#[test]
fn a_forged_line_commands_no_terminal_and_no_spreadsheet() {
    let folder = tempfile::tempdir().unwrap();
    let header = first_line(&format!(
        "\"chain\":\"c\",\"segment\":1,\"first_sequence\":1,\"prev_hash\":\"{0}\",\"opened\":\"\",\"boot\":\"b\",\
         \"mode\":\"durable\",\"version\":\"0\"",
        "0".repeat(64)
    ));
    let who = "\u{9b}31m\u{202e}=cmd()";
    let hashed = format!(
        "{{\"metadata\":{{\"sequence\":1,\"log_name\":\"gatepost.decision\"}},\"time_dt\":\"\\u001b[2J\",\"actor\":{{\"app_name\":\"{who}\"}},\
         \"api\":{{\"operation\":\"=1+1\"}},\"unmapped\":{{\"gatepost\":{{\"principal\":\"{who}\",\"prev_hash\":\"{}\"",
        "0".repeat(64)
    );
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, hashed.as_bytes());
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("{hashed},\"hash\":\"{hash}\"}}}}}}\n");
    std::fs::write(folder.path().join("segment-000000000001.jsonl"), header + &line).unwrap();
    let spool = folder.path().to_str().unwrap();
    let ways: [&[&str]; 6] = [
        &["tail", spool],
        &["grep", spool],
        &["grep", spool, "--json"],
        &["stats", spool, "--by", "principal"],
        &["export", spool, "--format", "csv"],
        &["verify", spool],
    ];
    for arguments in ways {
        let output = audit(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?} {output:?}");
        let text = told(&output);
        let hidden: Vec<char> = text.chars().filter(|c| !matches!(c, ' '..='~' | '\n' | '\r')).collect();
        assert!(hidden.is_empty() && !text.is_empty(), "{arguments:?}: {hidden:?} {text}");
    }
    let csv = told(&audit(&["export", spool, "--format", "csv"]));
    assert!(csv.contains(",'=1+1,"), "{csv}");
    assert_eq!(told(&audit(&["export", spool])), line, "what can be verified is byte for byte what there was");
}
