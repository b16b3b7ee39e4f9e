//! API keys from `gatepost apikey new` to the record: who may present one, what it opens, and that it stops.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gatepost::client::{Answer, Ask, AskError};
use gatepost::clock::Clock as _;
use gatepost::model::decision::DenialCode;
use serde_json::{Value, json};
use tonic::Code;

use crate::opaque_tokens::{machine_settings, machines, thing};
use crate::support::{Gatepost, PATIENCE, eventually};

/// `gatepost apikey ..` in a process of its own.
fn apikey(arguments: &[&str], file: &Path) -> Output {
    let (command, rest) = arguments.split_first().unwrap();
    let binary = env!("CARGO_BIN_EXE_gatepost");
    Command::new(binary).arg("apikey").arg(command).arg("--file").arg(file).args(rest).output().unwrap()
}

/// Makes a key; gives the key and its id.
fn make(arguments: &[&str], file: &Path) -> (String, String) {
    let output = apikey(&[&["new"], arguments].concat(), file);
    assert!(output.status.success(), "{output:?}");
    let key = String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
    let said = String::from_utf8(output.stderr).unwrap();
    let id = key.split('_').nth(1).unwrap().to_owned();
    assert!(said.contains(&id) && !said.contains(&key), "{said}");
    (key, id)
}

async fn start(file: &Path) -> Gatepost {
    Gatepost::start_over(&machines(), |settings| {
        let issuers = settings["issuers"].clone();
        machine_settings(settings, issuers);
        settings["issuers"][0]["principal"] = json!({ "type": "User" });
        settings["api_keys"] = json!({ "file": file });
        settings["cache"] = json!({ "decision_ttl": "10m" });
    })
    .await
}

fn with_key(action: &str, key: &str, from: Option<&str>) -> Ask {
    thing(action).api_key(key, from.map(|address| address.parse().unwrap()))
}

fn denial(answer: Result<Answer, AskError>) -> Option<DenialCode> {
    answer.unwrap().denial()
}

fn last(gatepost: &Gatepost) -> Value {
    gatepost.call_records().pop().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_what_its_scopes_open_and_the_record_says_whose_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("apikeys.json");
    let (reader, id) = make(&["--owner", "nightly", "--expires", "90d", "--scope", "things:read"], &file);
    let office = ["--owner", "billing", "--expires", "12h", "--scope", "things:write", "--network", "10.20.0.0/16"];
    let (writer, _) = make(&office, &file);
    let stored = std::fs::read_to_string(&file).unwrap();
    assert!(!stored.contains(&reader[21..85]) && !stored.contains(&writer[21..85]), "only hashes are stored");
    let gatepost = start(&file).await;

    let answer = gatepost.ask(with_key("read", &reader, Some("203.0.113.9"))).await.unwrap();
    assert!(answer.allowed());
    let record = gatepost.record_of(answer.decision_id());
    let ours = &record["unmapped"]["gatepost"];
    let told = (&ours["subject"], &ours["principal"], &ours["token_alg"], &ours["token_kid"]);
    assert_eq!(told, (&json!("api_key"), &json!("ApiClient::\"nightly\""), &json!("api-key"), &json!(id)));
    assert_eq!(ours["client_address"], "203.0.113.9");
    assert_eq!(ours["asserted_by_caller"], json!(["api_key.client_address"]), "by the caller's word");
    assert_eq!(record["actor"]["user"]["uid"], "urn:gatepost:api-keys|nightly");

    let refused = Some(DenialCode::TokenRejected);
    // One key in sixteen ends with a zero.
    let other = if reader.ends_with('0') { '1' } else { '0' };
    let table = [
        ("read", reader.clone(), None, None, "where it came from need not be said where no network is named"),
        ("write", reader.clone(), None, Some(DenialCode::NoPermit), "another scope"),
        ("write", writer.clone(), Some("10.20.3.4"), None, "from its network"),
        ("write", writer.clone(), Some("::ffff:10.20.3.4"), None, "from its network, in an IPv6 coat"),
        ("write", writer.clone(), Some("10.21.3.4"), refused, "from another"),
        ("write", writer.clone(), Some("::ffff:10.21.3.4"), refused, "from another, in an IPv6 coat"),
        ("write", writer.clone(), None, refused, "from nobody knows where"),
        ("read", format!("{}{other}", &reader[..92]), None, refused, "a typo"),
        ("read", format!("{}{}", &reader[..21], &writer[21..]), None, refused, "an id and another's secret"),
        ("read", "x".repeat(200_000), None, refused, "endless"),
        ("read", gatepost.token("alice", &[]), None, refused, "a token is no key"),
    ];
    for (action, key, from, expected, why) in table {
        assert_eq!(denial(gatepost.ask(with_key(action, &key, from)).await), expected, "{why}");
    }
    assert_eq!(denial(gatepost.ask(thing("read").token(&reader)).await), refused, "a key is no token");

    // Without the grant nobody looks at the key, and nothing is learned of it.
    for key in [&reader, &"x".to_owned()] {
        let answer = gatepost.client("back-office").check(with_key("read", key, None)).await;
        let Err(AskError::Refused { code, reason, .. }) = answer else { panic!("{answer:?}") };
        assert_eq!((code, reason.as_deref()), (Code::PermissionDenied, Some("CALLER_NOT_ENTITLED")));
    }
    gatepost.clock.advance(Duration::from_secs(12 * 3600));
    let late = gatepost.ask(with_key("write", &writer, Some("10.20.3.4"))).await;
    assert_eq!(denial(late), Some(DenialCode::TokenExpired), "its last second has passed");
    assert_eq!(last(&gatepost)["unmapped"]["gatepost"]["token_refusal"], "EXPIRED");
}

/// The ruling is cached for ten minutes; the key is looked at on every question.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_stops_within_a_second_whatever_is_cached() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("apikeys.json");
    let arguments = ["--owner", "nightly", "--expires", "90d", "--scope", "things:read"];
    let ((key, id), (other, _)) = (make(&arguments, &file), make(&arguments, &file));
    let gatepost = start(&file).await;
    let client = gatepost.client("storefront");
    let (mut slowest, rounds) = (Duration::ZERO, 3);
    let mut revoked = (key, id);
    for round in 1..=rounds {
        assert!(client.check(with_key("read", &revoked.0, None)).await.unwrap().allowed());
        assert!(apikey(&["revoke", &revoked.1], &file).status.success());
        #[expect(clippy::disallowed_methods, reason = "how long it takes is what is measured")]
        let begun = Instant::now();
        loop {
            let answer = client.check(with_key("read", &revoked.0, None)).await;
            if denial(answer) == Some(DenialCode::TokenRevoked) {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "never");
            tokio::task::yield_now().await;
        }
        slowest = slowest.max(begun.elapsed());
        let ours = &last(&gatepost)["unmapped"]["gatepost"];
        assert_eq!((&ours["token_refusal"], &ours["token_kid"]), (&json!("API_KEY_REVOKED"), &json!(revoked.1)));
        assert!(
            client.check(with_key("read", &other, None)).await.unwrap().allowed(),
            "round {round}: the other's holds"
        );
        revoked = make(&arguments, &file);
        eventually("the new key is there", || gatepost.pdp.api_keys.count() == round + 2).await;
    }
    println!("revoked {rounds} times, the slowest took {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");

    // A broken file changes nothing and is told.
    std::fs::write(&file, "{").unwrap();
    let mut metrics = String::new();
    while !metrics.contains("gatepost_api_keys_reloads_total{result=\"refused\"} 1") {
        metrics = gatepost.metrics().await;
    }
    assert!(client.check(with_key("read", &other, None)).await.unwrap().allowed(), "the last good keys stay");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_settings_every_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("apikeys.json");
    let (key, _) = make(&["--owner", "nightly", "--expires", "90d", "--scope", "things:read"], &file);
    let gatepost = Gatepost::start_over(&machines(), |settings| machine_settings(settings, json!([]))).await;
    assert_eq!(denial(gatepost.ask(with_key("read", &key, None)).await), Some(DenialCode::TokenRejected));
    assert_eq!(last(&gatepost)["unmapped"]["gatepost"]["token_refusal"], "API_KEY");
}

#[test]
fn eight_that_make_keys_at_once_lose_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = Arc::new(folder.path().join("apikeys.json"));
    let making: Vec<_> = (0..8)
        .map(|number| {
            let file = Arc::clone(&file);
            std::thread::spawn(move || make(&["--owner", &format!("o{number}"), "--expires", "1d"], &file).1)
        })
        .collect();
    let mut made: Vec<String> = making.into_iter().map(|one| one.join().unwrap()).collect();
    let listed = apikey(&["list", "--format", "json"], &file);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let mut ids: Vec<String> =
        listed.as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect();
    made.sort();
    ids.sort();
    assert_eq!(made, ids);
    assert!(!listed.to_string().contains("sha256"), "what a secret hashes to is nobody's business");
}

#[test]
fn the_command_says_what_is_wrong_and_ends_with_its_code() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("apikeys.json");
    let owner = ["new", "--owner", "nightly", "--expires"];
    let (_, id) = make(&["--owner", "nightly", "--expires", "90d", "--note", "ticket 1"], &file);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let table: [(Vec<&str>, i32, &str, &str); 12] = [
        (vec!["list"], 0, "", "a list"),
        (vec!["revoke", &id], 0, "revoked key", "revoked"),
        (vec!["revoke", &id], 0, "was revoked before", "again"),
        (vec!["revoke", "0123456789abcdef"], 1, "no key with that id", "somebody else's"),
        ([&owner[..], &["0d"]].concat(), 65, "`--expires` must be in the future", "over already"),
        ([&owner[..], &["5000d"]].concat(), 65, "at most three years", "for ever"),
        ([&owner[..], &["soon"]].concat(), 64, "must be a time from now", "no time"),
        ([&owner[..], &["1d", "--network", "10.0.0.1/8"]].concat(), 64, "`10.0.0.0/8` is the network", "no network"),
        ([&owner[..], &["1d", "--scope", "a b"]].concat(), 65, "a scope must be", "two scopes in one"),
        (vec!["new", "--owner", "", "--expires", "1d"], 65, "`owner` is not fit", "nobody's"),
        (vec!["new", "--owner", "a"], 64, "--expires", "no end"),
        (vec!["list", "--config", "x"], 64, "cannot be used with", "two places"),
    ];
    for (arguments, code, expected, why) in table {
        let output = apikey(&arguments, &file);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.contains(expected)), (Some(code), true), "{why}: {said}");
        assert!(code == 0 || output.stdout.is_empty(), "{why}: no result");
    }
    let listed = String::from_utf8(apikey(&["list"], &file).stdout).unwrap();
    assert!(listed.contains("revoked") && listed.contains("ticket 1") && listed.contains(&id), "{listed}");
    std::fs::write(&file, "{\"version\":1,\"keys\":[],\"more\":1}").unwrap();
    for arguments in [&["list"][..], &["revoke", "0123456789abcdef"], &["new", "--owner", "a", "--expires", "1d"]] {
        let output = apikey(arguments, &file);
        assert_eq!(output.status.code(), Some(65), "a file that is not ours is not touched: {output:?}");
    }
    assert!(std::fs::read_to_string(&file).unwrap().contains("more"));
    let missing = folder.path().join("missing.json");
    assert_eq!(apikey(&["list"], &missing).status.code(), Some(65));
    assert_eq!(apikey(&["revoke", "0123456789abcdef"], &missing).status.code(), Some(65));
    assert!(!missing.exists(), "only `new` makes a file");
}

/// `--config` takes the file from the settings of the server.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_can_be_named_by_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("apikeys.json");
    make(&["--owner", "nightly", "--expires", "90d"], &file);
    let gatepost = start(&file).await;
    let new = |config: &Path| {
        let arguments = ["apikey", "new", "--owner", "second", "--expires", "1d", "--config"];
        Command::new(env!("CARGO_BIN_EXE_gatepost")).args(arguments).arg(config).output().unwrap()
    };
    let output = new(&gatepost.path("gatepost.yaml"));
    assert!(output.status.success(), "{output:?}");
    eventually("the server has it", || gatepost.pdp.api_keys.count() == 2).await;
    let output = new(&gatepost.path("audit/segment-000000000001.jsonl"));
    assert_eq!(output.status.code(), Some(64), "{output:?}");
}

/// A key is in no record, metric, log line or answer, and neither is its hash.
#[tokio::test]
async fn a_key_is_written_down_nowhere() {
    let log = crate::canaries::Log::default();
    let heard = crate::canaries::hear(&log);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("apikeys.json");
    let (key, id) = make(&["--owner", "nightly", "--expires", "90d", "--scope", "things:read"], &file);
    let hash = std::fs::read_to_string(&file).unwrap();
    let hash = hash.split("\"secret_sha256\": \"").nth(1).unwrap()[..64].to_owned();
    let gatepost = start(&file).await;
    let mut told = String::new();
    for ask in [
        with_key("read", &key, Some("10.0.0.1")),
        with_key("write", &key, None),
        with_key("read", &format!("{}0", &key[..92]), None),
        with_key("read", &format!("{key} "), None),
        thing("read").token(&key),
    ] {
        told += &format!("{:?}", gatepost.ask(ask).await);
    }
    told += &format!("{:?}", gatepost.client("back-office").check(with_key("read", &key, None)).await);
    assert!(apikey(&["revoke", &id], &file).status.success());
    let now = gatepost.clock.now();
    let client = gatepost.client("storefront");
    while denial(client.check(with_key("read", &key, None)).await).is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(now, gatepost.clock.now());
    let metrics = gatepost.metrics().await;
    drop(heard);
    let records = gatepost.trail();
    assert!(records.contains(&id), "the id is public");
    for (place, text) in [("log", &log.text()), ("metrics", &metrics), ("records", &records), ("answers", &told)] {
        assert!(!text.contains(&key[21..60]) && !text.contains(&hash), "in the {place}");
    }
}
