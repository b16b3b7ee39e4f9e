//! `gatepost bench` against a real server: what it counts is what the server recorded, and what goes wrong is told. No
//! test says how fast anything is.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::process::{Place, Process};
use crate::support::{PATIENCE, eventually};

fn bench() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    command.arg("bench").stdin(Stdio::null()).env_remove("GATEPOST_CONFIG");
    command
}

fn asked(arguments: &[&str]) -> Output {
    bench().args(arguments).output().unwrap()
}

fn report(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"))
}

fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Files for a question about alice's order, and for whom it is asked.
fn question(place: &Place) -> (PathBuf, PathBuf) {
    let (question, token) = (place.path("question.yaml"), place.path("alice.token"));
    std::fs::write(&token, place.token()).unwrap();
    let text = "
- action: Order.read
  resource:
    type: Order
    id: ord-1
    attributes:
      tenant: { type: Tenant, id: acme }
      customer: { type: User, id: alice }
      status: paid
      total: 4200
  fields: { all: true }
- action: Order.read
  resource:
    type: Order
    id: ord-2
    attributes:
      tenant: { type: Tenant, id: acme }
      customer: { type: User, id: bob }
      status: paid
      total: 4200
";
    std::fs::write(&question, text).unwrap();
    (question, token)
}

/// Short, and for machines.
const BRIEFLY: [&str; 6] = ["--warmup", "50ms", "--duration", "300ms", "--output", "json"];

/// Against a server that is there already, as the storefront.
fn against(place: &Place, process: &Process, times: &[&str]) -> Command {
    let (question, token) = question(place);
    let mut command = bench();
    command.arg("--address").arg(format!("localhost:{}", process.address.port()));
    command.arg("--ca").arg(&place.files().ca).arg("--certificate").arg(&place.files().certificate);
    command.arg("--key").arg(&place.files().private_key);
    command.arg("--question").arg(question).arg("--token").arg(token);
    command.args(times);
    command
}

fn sum(report: &Value, pointer: &str) -> u64 {
    let rounds = report["rounds"].as_array().unwrap();
    rounds.iter().map(|round| round.pointer(pointer).unwrap().as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_that_it_counts_has_its_record_at_the_server() {
    let place = Place::new(|_| {});
    let mut process = place.start().await;
    let mut calls = 0;
    for (arguments, items) in [
        (vec!["--connections", "2", "--in-flight", "3"], 1),
        (vec!["--shape", "batch:5", "--fresh", "--rounds", "2"], 5),
        (vec!["--rate", "200", "--arrivals", "even", "--threads", "2"], 1),
        (vec!["--shape", "stream", "--connections", "2", "--in-flight", "40"], 1),
        (vec!["--shape", "stream", "--fresh", "--rate", "200"], 1),
    ] {
        let output = against(&place, &process, &BRIEFLY).args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?} {}", complaint(&output));
        let report = report(&output);
        calls += report["calls_in_all"].as_u64().unwrap() * items;
        let (answers, refusals) = (sum(&report, "/answers"), report["rounds"][0]["refusals"].as_array().unwrap().len());
        let (allowed, denied) = (sum(&report, "/decisions/allowed"), sum(&report, "/decisions/denied"));
        assert!(answers > 0 && refusals == 0, "{report:#}");
        assert_eq!(allowed + denied, answers * items, "{report:#}");
        assert!(allowed > 0 && denied > 0, "one question of the two is allowed: {report:#}");
        assert!(report["rounds"].as_array().unwrap().iter().all(|round| round["failures"] == json!({})), "{report:#}");
    }
    assert_eq!(process.stop(), Some(0));
    let records = place.records();
    let mut kinds = BTreeMap::new();
    for record in &records {
        let word = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind =
            [word("/metadata/log_name"), word("/api/operation"), word("/status_detail"), word("/resources/0/type")];
        *kinds.entry(kind).or_insert(0_u64) += 1;
    }
    let of_decisions: u64 =
        kinds.iter().filter(|([name, ..], _)| name.ends_with(".decision")).map(|(_, count)| count).sum();
    assert_eq!(of_decisions, calls, "as many records as questions: {kinds:#?}");
}

#[test]
fn a_server_of_its_own_needs_nothing_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let output = bench()
        .args([
            "--here",
            "--audit-mode",
            "written",
            "--warmup",
            "0s",
            "--duration",
            "300ms",
            "--output",
            "json",
            "--html",
        ])
        .arg(&page)
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
    let report = report(&output);
    for member in ["target", "audit_mode", "load", "rounds", "overload", "calls_in_all", "interrupted"] {
        assert!(report.get(member).is_some(), "{member}: {report:#}");
    }
    let round = &report["rounds"][0];
    for member in [
        "multiple",
        "peak_per_second",
        "stolen",
        "rate",
        "seconds",
        "answers",
        "answers_per_second",
        "decisions_per_second",
        "decisions",
        "latency_us",
        "refusals",
        "failures",
        "unsent",
        "late",
        "server_cpu_us",
        "load_cpu_us",
        "server_memory_bytes",
    ] {
        assert!(round.get(member).is_some(), "{member}: {report:#}");
    }
    let latency = |name: &str| round["latency_us"][name].as_f64().unwrap();
    assert!(["p50", "p90", "p99", "p99_9", "max"].map(latency).is_sorted(), "{report:#}");
    assert_eq!(round["decisions"]["allowed"], round["answers"], "the question of the worked example is allowed");
    assert!(round["server_memory_bytes"].as_u64().unwrap() > 1024 * 1024);

    let html = std::fs::read_to_string(page).unwrap();
    assert!(html.contains("<svg") && html.contains("<polyline"), "{html}");
    for word in ["<script", "http://", "https://", "src=", "@import", "url("] {
        assert!(!html.contains(word), "{word}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["report.html"], "the folder of the server is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_sheds_is_counted_by_reason_and_is_no_answer() {
    let place = Place::new(|settings| settings["limits"]["concurrent_decisions"] = json!(1));
    let process = place.start().await;
    let output =
        against(&place, &process, &BRIEFLY).args(["--connections", "4", "--in-flight", "32"]).output().unwrap();
    let report = report(&output);
    let round = &report["rounds"][0];
    let refusals = round["refusals"].as_array().unwrap();
    let shed =
        refusals.iter().find(|refusal| refusal["code"] == "RESOURCE_EXHAUSTED").unwrap_or_else(|| panic!("{report:#}"));
    assert_eq!((&shed["reason"], &shed["with_retry"]), (&json!("OVERLOADED"), &shed["count"]), "{report:#}");
    assert!(shed["latency_us"]["p99"].as_f64().unwrap() > 0.0);
    let decided = round["decisions"]["allowed"].as_u64().unwrap() + round["decisions"]["denied"].as_u64().unwrap();
    assert_eq!(round["answers"], decided, "a refusal is no answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_for_people_and_an_interrupt_shows_what_was_measured() {
    let place = Place::new(|_| {});
    let process = place.start().await;
    let mut command = against(&place, &process, &["--warmup", "0s", "--duration", "1h"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    being_asked(&place).await;
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = tokio::task::spawn_blocking(|| ended(child)).await.unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text} {}", complaint(&output));
    for word in ["answers/s", "p99.9", "closed loop", "ended before its time", "allowed"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!text.contains('\u{1b}') && output.stderr.is_empty(), "no colours and no progress where nobody looks");
}

/// The records of a few hundred questions are there.
async fn being_asked(place: &Place) {
    let bytes =
        || -> u64 { place.segments().iter().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum() };
    eventually("the server is asked", || bytes() > 256 * 1024).await;
}

/// Waits, but not for ever.
fn ended(mut child: Child) -> Output {
    let pause = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    while child.try_wait().unwrap().is_none() {
        assert!(waited < PATIENCE, "it hangs");
        std::thread::sleep(pause);
        waited += pause;
    }
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_ends_the_run_with_what_was_measured() {
    let place = Place::new(|_| {});
    let mut process = place.start().await;
    let mut command = against(&place, &process, &["--warmup", "0s", "--duration", "1h", "--output", "json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    being_asked(&place).await;
    process.kill();
    let output = tokio::task::spawn_blocking(|| ended(child)).await.unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", complaint(&output));
    let (report, told) = (report(&output), complaint(&output));
    assert!(report["interrupted"] == true && sum(&report, "/answers") > 0, "{report:#}");
    assert!(told.contains("went away") && told.lines().count() == 1, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_the_server_does_not_want_is_told_so_once() {
    let place = Place::new(|_| {});
    let process = place.start().await;
    let expired = place.path("expired.token");
    let now = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let old = place.world.token("alice", &json!({ "tenant": "acme" }), now, Duration::from_secs(60)).unwrap();
    std::fs::write(&expired, old).unwrap();
    let strangers = gatepost::cli::demo::world::Authority::new("nobody's").unwrap();
    let forged =
        place.world.client_of(&strangers, "forged", &gatepost::cli::demo::world::spiffe_id("storefront")).unwrap();
    let stranger = place.world.client("stranger", &gatepost::cli::demo::world::spiffe_id("stranger")).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let table = [
        (vec!["--token".into(), path(&expired)], 64, "the token: it has expired"),
        (
            vec!["--certificate".into(), path(&forged.certificate), "--key".into(), path(&forged.private_key)],
            64,
            "refuses the connection",
        ),
        (
            vec!["--certificate".into(), path(&stranger.certificate), "--key".into(), path(&stranger.private_key)],
            1,
            "PERMISSION_DENIED, CALLER_NOT_ENROLLED",
        ),
        (vec!["--server-name".into(), "elsewhere.example".into()], 69, "no answer from"),
    ];
    for (arguments, code, expected) in table {
        let mut command = bench();
        let (question, token) = question(&place);
        let mut given: Vec<String> = vec![
            "--address".into(),
            format!("localhost:{}", process.address.port()),
            "--ca".into(),
            path(&place.files().ca),
            "--question".into(),
            path(&question),
        ];
        let others = [
            ("--certificate", path(&place.files().certificate)),
            ("--key", path(&place.files().private_key)),
            ("--token", path(&token)),
        ];
        for (flag, value) in others {
            if !arguments.iter().any(|argument| argument == flag) {
                given.extend([flag.to_owned(), value]);
            }
        }
        let output = command.args(given).args(&arguments).output().unwrap();
        let told = complaint(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(expected) && told.lines().count() == 1, "{arguments:?}: {told}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn bad_input_is_refused_by_the_name_of_its_flag() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let (slip, empty) = (write("slip.yaml", "action: a\nresorce: {}\n"), write("empty.token", "\n"));
    let table: [(&[&str], u8, &str); 19] = [
        (&[], 64, "--address"),
        (&["--address", "localhost"], 64, "--address"),
        (&["--address", "http://localhost:1", "--question", &slip], 64, "--address"),
        (&["--address", "localhost:1", "--question", &slip], 64, "unknown field `resorce`"),
        (&["--address", "localhost:1"], 64, "--question"),
        (&["--address", "localhost:1", "--token", &empty, "--question", &slip], 64, "--token"),
        (&["--here", "--address", "localhost:1"], 64, "--address"),
        (&["--here", "--connections", "0"], 64, "--connections"),
        (&["--here", "--connections", "1025"], 64, "--connections"),
        (&["--here", "--connections", "1024", "--in-flight", "10000"], 64, "--in-flight"),
        (&["--here", "--rate", "0"], 64, "--rate"),
        (&["--here", "--rate", "NaN"], 64, "--rate"),
        (&["--here", "--duration", "2h"], 64, "--duration"),
        (&["--here", "--warmup=-1s"], 64, "--warmup"),
        (&["--here", "--shape", "batch:0"], 64, "--shape"),
        (&["--here", "--overload", "--steps", "1,1000"], 64, "--steps"),
        (&["--here", "--policies", "nowhere", "--question", &slip], 65, "--policies"),
        (&["engine", "--policies", "nowhere"], 65, "nothing was measured"),
        (&["engine", "--count", "0"], 64, "--count"),
    ];
    for (arguments, code, expected) in table {
        let output = asked(arguments);
        let told = complaint(&output);
        assert_eq!(output.status.code(), Some(i32::from(code)), "{arguments:?}: {told}");
        assert!(told.contains(expected), "{arguments:?}: {told}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_listens_there_is_one_message() {
    let place = Place::new(|_| {});
    let mut process = place.start().await;
    process.kill();
    let output = against(&place, &process, &BRIEFLY).output().unwrap();
    let told = complaint(&output);
    assert_eq!(output.status.code(), Some(69), "{told}");
    assert!(told.contains("no answer from localhost:") && told.lines().count() == 1, "{told}");
}

#[test]
fn an_overload_has_a_peak_its_steps_and_an_end() {
    let output = asked(&[
        "--here",
        "--overload",
        "--steps",
        "0.5,2",
        "--duration",
        "300ms",
        "--warmup",
        "100ms",
        "--connections",
        "2",
        "--output",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
    let report = report(&output);
    let multiples: Vec<&Value> = report["rounds"].as_array().unwrap().iter().map(|round| &round["multiple"]).collect();
    assert_eq!(multiples, [&Value::Null, &json!(0.5), &json!(2.0)], "{report:#}");
    assert!(report["overload"]["peak_per_second"].as_f64().unwrap() > 0.0, "{report:#}");
    for round in report["rounds"].as_array().unwrap() {
        assert!(round.get("recovered_after_ms").is_some(), "{report:#}");
        assert_eq!(
            round["multiple"].is_null(),
            round["peak_per_second"].is_null(),
            "each step has its own: {report:#}"
        );
        assert!(round["peak_per_second"].is_null() || round["peak_per_second"].as_f64() > Some(0.0), "{report:#}");
        for door in ["listener", "operators"] {
            assert!(round["health"][door]["well"].as_u64().unwrap() > 0, "{door}: {report:#}");
        }
    }
}

#[test]
fn a_world_is_made_by_whatever_name_and_a_server_runs_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str| bench().args(["world", "--folder", name]).current_dir(folder.path()).output().unwrap();
    fs::create_dir(folder.path().join("full")).unwrap();
    fs::write(folder.path().join("full/server.key"), "somebody's").unwrap();
    for name in ["full", "full/server.key"] {
        let refused = make(name);
        assert_eq!(refused.status.code(), Some(64));
        assert!(complaint(&refused).contains(&format!("--folder: {name}: ")), "{}", complaint(&refused));
    }
    assert_eq!(fs::read_to_string(folder.path().join("full/server.key")).unwrap(), "somebody's");
    let made = make("some/world");
    assert_eq!((made.status.code(), complaint(&made).as_str()), (Some(0), ""));
    let mut server = Command::new(env!("CARGO_BIN_EXE_gatepost"))
        .args(["serve", "--config", "some/world/gatepost.yaml"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(server.stderr.take().unwrap()).lines().map_while(Result::ok);
    let serving = log.by_ref().find_map(|line| {
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("it did not start: {line}"));
        (line["fields"]["message"] == "serving").then(|| line["fields"]["address"].as_str().unwrap().to_owned())
    });
    let reading = std::thread::spawn(move || log.for_each(drop));
    let port = serving.unwrap().rsplit_once(':').unwrap().1.to_owned();
    let asked = bench()
        .args(["--address", &format!("localhost:{port}"), "--ca", "ca.pem", "--certificate", "bench.pem"])
        .args(["--key", "bench.key", "--token", "alice.token", "--question", "question.yaml"])
        .args(BRIEFLY)
        .current_dir(folder.path().join("some/world"))
        .output()
        .unwrap();
    assert!(Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap().success());
    assert_eq!(server.wait().unwrap().code(), Some(0));
    reading.join().unwrap();
    assert_eq!(asked.status.code(), Some(0), "{}", complaint(&asked));
    let report = report(&asked);
    assert!(sum(&report, "/decisions/allowed") > 0 && sum(&report, "/decisions/token_denied") == 0, "{report:#}");
}

#[test]
fn the_engine_alone_is_measured_with_the_rows_of_the_bundle() {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let output = asked(&["engine", "--policies", policies.to_str().unwrap(), "--count", "500", "--output", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
    let report = report(&output);
    let questions = report["questions"].as_array().unwrap();
    let put: u64 = questions.iter().map(|question| question["count"].as_u64().unwrap()).sum();
    assert!(questions.len() > 20 && report["count"] == put, "{report:#}");
    let hers = questions.iter().find(|question| question["name"] == "order.yaml: alice reads her order").unwrap();
    assert_eq!((&hers["ruling"], &hers["rulings"]), (&json!("ALLOW"), &hers["count"]), "{hers:#}");
    let order = policies.join("tests/order.yaml");
    let output = asked(&[
        "engine",
        "--policies",
        policies.to_str().unwrap(),
        "--question",
        order.to_str().unwrap(),
        "--count",
        "50",
    ]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(text.contains("alice reads her order") && text.contains("ns on average"), "{text} {}", complaint(&output));
}
