//! What operators do to it: start it wrongly, change its files under load, look at it, stop it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gatepost::cli::demo::world::World;
use gatepost::client::Client;
use serde_json::{Value, json};

use crate::failing_closed::wire;
use crate::support::{Gatepost, PATIENCE, copy_bundle, eventually, order};

fn binary(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    command.args(arguments).env_remove("GATEPOST_CONFIG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    binary(arguments).output().unwrap()
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")
}

/// A folder with everything that `gatepost serve` needs.
fn folder(change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, World, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let world = World::create(folder.path()).unwrap();
    copy_bundle(&examples(), &folder.path().join("policies"));
    let mut settings = world.configuration(Path::new("policies"));
    settings["limits"] = json!({ "default_deadline": "10s", "max_deadline": "10s", "overload_target": "10s" });
    change(&mut settings);
    world.write("gatepost.yaml", &settings.to_string()).unwrap();
    let path = folder.path().join("gatepost.yaml");
    (folder, world, path)
}

/// It starts, for the next bundle may have the type. Until then every such token is denied, and somebody asks why.
#[test]
fn a_principal_s_type_that_the_schema_lacks_is_told_by_its_key() {
    let (folder, _world, path) = folder(|settings| {
        settings["issuers"][0]["principal"]["type"] = json!("Usre");
        settings["api_keys"] = json!({ "file": "apikeys.json", "principal_type": "Machine" });
        settings["telemetry"]["logs"] = json!({ "format": "human", "filter": "warn" });
    });
    std::fs::write(folder.path().join("apikeys.json"), r#"{"version":1,"keys":[]}"#).unwrap();
    let output = run(&["serve", "--check", "--config", path.to_str().unwrap()]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    for (key, entity_type) in [("issuers[0].principal.type", "Usre"), ("api_keys.principal_type", "Machine")] {
        let line = told.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("{key} in:\n{told}"));
        assert!(line.contains("declares no such entity type") && line.contains(entity_type), "{line}");
    }
}

/// What went wrong is told once, and in words of ours.
#[test]
fn revoke_says_what_is_wrong_once() {
    let (folder, world, _) = folder(|_| ());
    world.client("operator", "spiffe://shop.example/ops/on-call").unwrap();
    let closed = crate::replicas::free_port();
    let server = format!("https://{closed}");
    let issuer = ["--issuer", "https://idp.shop.example", "--reason", "x"];
    let table: [(&[&str], i32, &str, &str); 4] = [
        (&["subject", "a", "--issued-before", "yesterday"], 64, "must be an instant (2027-01-31T12:00:00Z)", "no time"),
        (&["list", "--limit", "0"], 64, "must be a whole number from 1", "nothing at most"),
        (&["list"], 69, "can't be reached: Connection refused (os error 111)\n", "nobody listens"),
        (&["certificate", &"ab".repeat(32)], 64, "add --until", "a fingerprint has no end"),
    ];
    for (arguments, code, expected, why) in table {
        let mut command = binary(&["revoke", "--server", &server]);
        command.args(arguments).current_dir(folder.path());
        match arguments[0] {
            "subject" => command.args(issuer),
            "certificate" => command.args(["--reason", "x"]),
            _ => &mut command,
        };
        let output = command.output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), told.contains(expected)), (Some(code), true), "{why}: {told}");
    }
}

#[test]
fn every_mistake_in_the_configuration_is_told_at_once_with_exit_code_64() {
    let (_folder, _world, path) = folder(|settings| {
        settings["issuers"][0]["audiences"] = json!([]);
        settings["issuers"][0]["algorithms"] = json!(["none"]);
        settings["servr"] = json!({});
        settings["limits"]["batch_items"] = json!(0);
    });
    let output = run(&["serve", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8(output.stderr).unwrap();
    for key in ["issuers[0].audiences", "issuers[0].algorithms", "servr", "limits.batch_items"] {
        assert!(told.contains(key), "{key} in:\n{told}");
    }
    assert_eq!(run(&["serve", "--config", "/no/such/file.yaml"]).status.code(), Some(64));
}

#[test]
fn broken_policies_stop_the_start_with_exit_code_65_and_say_where_and_broken_keys_with_64() {
    let (folder, world, path) = folder(|_| ());
    world
        .write("policies/order.cedar", "@id(\"x\") permit (principal, action == Action::\"Order.raed\", resource);")
        .unwrap();
    let output = run(&["serve", "--config", path.to_str().unwrap(), "--check"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{told}");
    assert!(told.contains("order.cedar:1:") && told.contains("Order.read"), "file, line and a suggestion:\n{told}");
    copy_bundle(&examples(), &folder.path().join("policies"));
    assert_eq!(run(&["serve", "--config", path.to_str().unwrap(), "--check"]).status.code(), Some(0));
    std::fs::write(folder.path().join("server.key"), "rubbish").unwrap();
    let output = run(&["serve", "--config", path.to_str().unwrap(), "--check"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(!String::from_utf8(output.stderr).unwrap().contains("rubbish"), "never the content of a key file");
}

#[test]
fn help_teaches_and_completions_complete() {
    for command in [
        &["--help"][..],
        &["serve", "--help"],
        &["config", "--help"],
        &["doctor", "--help"],
        &["demo", "--help"],
        &["check", "--help"],
        &["test", "--help"],
        &["revoke", "--help"],
    ] {
        let output = run(command);
        assert!(output.status.success() && output.stdout.len() > 300, "{command:?}");
    }
    assert_eq!(run(&["no-such-command"]).status.code(), Some(64));
    let completions = run(&["completions", "bash"]);
    assert!(String::from_utf8(completions.stdout).unwrap().contains("gatepost"));
}

/// Asks without a pause until told to stop; gives how many answers came and what failed.
async fn load(client: Client, token: String, stop: Arc<AtomicBool>, answered: Arc<AtomicUsize>) -> Vec<String> {
    let mut failed = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match client.check(order("Order.read", "o-1", "alice").token(&token)).await {
            Ok(answer) if answer.allowed() => drop(answered.fetch_add(1, Ordering::Relaxed)),
            Ok(answer) => failed.push(format!("{:?}", answer.denial())),
            Err(error) => failed.push(format!("{error:?}")),
        }
    }
    failed
}

/// THREATS F11, F12: policies and certificates change while everybody asks; nobody notices.
#[tokio::test(flavor = "multi_thread")]
async fn policies_and_certificates_are_renewed_under_load_without_a_failed_call() {
    let gatepost = Gatepost::start().await;
    let token = gatepost.token("alice", &[]);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let asking: Vec<_> = ["storefront", "back-office"]
        .into_iter()
        .map(|service| {
            tokio::spawn(load(gatepost.client(service), token.clone(), Arc::clone(&stop), Arc::clone(&answered)))
        })
        .collect();
    let revision = || gatepost.pdp.store.current().revision().as_str().to_owned();
    for round in 0..20 {
        let (before, changes) = (revision(), gatepost.count(3004));
        let comment =
            format!("// round {round}\n@id(\"zz\") forbid (principal, action == Action::\"User.delete\", resource);");
        gatepost.world.write("policies/zz.cedar", &comment).unwrap();
        eventually("good policies are taken", || revision() != before).await;
        let good = revision();
        let refused = || gatepost.count(3004);
        // The good one's record comes after the swap; it must not be taken for the other's.
        eventually("the change is on record", || refused() > changes).await;
        let told = refused();
        gatepost
            .world
            .write("policies/zz.cedar", &format!("// round {round}\npermit (principal, action, resour"))
            .unwrap();
        eventually("half-written ones are told of", || refused() > told).await;
        assert_eq!(revision(), good, "and the old ones serve");
        gatepost.world.renew_server().unwrap();
        let seen = answered.load(Ordering::Relaxed);
        eventually("calls go on", || answered.load(Ordering::Relaxed) > seen + 20).await;
    }
    stop.store(true, Ordering::Relaxed);
    for asking in asking {
        let failed = asking.await.unwrap();
        assert!(failed.is_empty(), "{} failed, first: {:?}", failed.len(), failed.first());
    }
    let calls = answered.load(Ordering::Relaxed);
    println!("{calls} calls over 40 changes of policies and 20 of certificates, 0 failed");
    assert_eq!(gatepost.count(6003), calls);
}

/// THREATS section 7, 18: the way a ConfigMap changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_s_symlink_swap_is_one_change_of_policies() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = folder.path().join("mounted");
    let revision = |name: &str, extra: &str| {
        let data = mounted.join(name);
        copy_bundle(&examples(), &data);
        std::fs::write(data.join("zz.cedar"), extra).unwrap();
    };
    let forbid = |id: &str| format!("@id(\"{id}\") forbid (principal, action == Action::\"User.delete\", resource);");
    revision("..2026_1", &forbid("first"));
    std::os::unix::fs::symlink("..2026_1", mounted.join("..data")).unwrap();
    for entry in std::fs::read_dir(mounted.join("..2026_1")).unwrap() {
        let name = entry.unwrap().file_name();
        std::os::unix::fs::symlink(Path::new("..data").join(&name), mounted.join(&name)).unwrap();
    }
    let directory = mounted.clone();
    let gatepost = Gatepost::start_with(move |settings| settings["policies"]["directory"] = json!(directory)).await;
    let has = |id: &str| gatepost.pdp.store.current().policies().iter().any(|policy| policy.id == id);
    assert!(has("first"));
    revision("..2026_2", &forbid("second"));
    std::os::unix::fs::symlink("..2026_2", mounted.join("..data_tmp")).unwrap();
    std::fs::rename(mounted.join("..data_tmp"), mounted.join("..data")).unwrap();
    eventually("the second revision is in force", || has("second") && !has("first")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_whether_it_is_ready_and_what_it_does() {
    let mut gatepost = Gatepost::start().await;
    let token = gatepost.token("alice", &[]);
    assert!(gatepost.ask(order("Order.read", "o-1", "alice").token(&token)).await.unwrap().allowed());
    assert_eq!(gatepost.ops("/livez").await.0, 200);
    assert_eq!(gatepost.ops("/readyz").await.0, 200);
    assert_eq!(gatepost.ops("/secrets").await.0, 404);
    let metrics = gatepost.metrics().await;
    for name in ["gatepost_decisions", "gatepost_stage_duration", "gatepost_build_info", "gatepost_tls_certificate"] {
        assert!(metrics.contains(name), "{name} in:\n{metrics}");
    }
    for text in ["alice", "o-1", "acme", &token[..20]] {
        assert!(!metrics.contains(text), "no label holds what a caller sent: {text}");
    }
    let readiness = gatepost.ops_address;
    let stopped = gatepost.stop().await;
    assert_eq!((stopped.cut_off, stopped.by_itself), (0, false));
    assert!(tokio::net::TcpStream::connect(readiness).await.is_err(), "the operators' door closes last");
}

/// Health answers to anybody with a certificate, and reflection lists the service when it is switched on.
#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer_over_the_same_door() {
    let gatepost = Gatepost::start().await;
    let channel = gatepost.channel(&gatepost.client_files("storefront")).await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let request = tonic_health::pb::HealthCheckRequest { service: "gatepost.v1.DecisionService".into() };
    let status = health.check(request).await.unwrap().into_inner();
    assert_eq!(status.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);

    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    let mut reflection = tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(channel);
    let ask = |message| tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message),
    };
    let details = MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".to_owned());
    let asked = tokio_stream::iter([ask(MessageRequest::ListServices(String::new())), ask(details)]);
    let mut answers = reflection.server_reflection_info(asked).await.unwrap().into_inner();
    let listed = format!("{:?}", answers.message().await.unwrap().unwrap());
    assert!(listed.contains("gatepost.v1.DecisionService") && listed.contains("grpc.health.v1.Health"), "{listed}");
    let details = format!("{:?}", answers.message().await.unwrap().unwrap());
    assert!(details.contains("FileDescriptorResponse"), "the details of errors can be read: {details}");
    assert!(gatepost.call_records().is_empty(), "neither asks a question");
}

/// THREATS F17: readiness goes first, calls under way finish, exit 0.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_the_real_binary_without_a_failed_call() {
    let (folder, world, path) = folder(|settings| {
        settings["telemetry"]["logs"] = json!({ "format": "json", "filter": "info" });
        settings["server"]["drain_delay"] = json!("1s");
    });
    let mut child = binary(&["serve", "--config", path.to_str().unwrap()]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let serving = lines.find(|line| line.as_ref().unwrap().contains("\"serving\"")).unwrap().unwrap();
    let serving: Value = serde_json::from_str(&serving).unwrap();
    let address = serving["fields"]["address"].as_str().or(serving["address"].as_str()).unwrap().to_owned();
    let log = std::thread::spawn(move || lines.map(Result::unwrap).collect::<Vec<_>>());

    let files = world.client("storefront", &gatepost::cli::demo::world::spiffe_id("storefront")).unwrap();
    let client = || {
        Client::builder(format!("https://{address}"))
            .server_name("localhost")
            .ca(&files.ca)
            .identity(&files.certificate, &files.private_key)
            .deadline(Duration::from_secs(5))
            .build()
            .unwrap()
    };
    #[expect(clippy::disallowed_methods, reason = "the real binary keeps real time")]
    let now = std::time::SystemTime::now();
    let token = world.token("alice", &json!({ "tenant": "acme" }), now, Duration::from_secs(300)).unwrap();
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let asking: Vec<_> =
        (0..4).map(|_| tokio::spawn(load(client(), token.clone(), Arc::clone(&stop), Arc::clone(&answered)))).collect();
    eventually("it answers", || answered.load(Ordering::Relaxed) > 50).await;
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    // A load balancer that sees readiness go stops sending; calls under way at that moment finish.
    let after = answered.load(Ordering::Relaxed);
    eventually("calls go on while it drains", || answered.load(Ordering::Relaxed) > after + 10).await;
    stop.store(true, Ordering::Relaxed);
    for asking in asking {
        let failed = asking.await.unwrap();
        assert!(failed.is_empty(), "{} failed, first: {:?}", failed.len(), failed.first());
    }
    let ended = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(move || child.wait().unwrap()));
    assert_eq!(ended.await.expect("it ends").unwrap().code(), Some(0));
    let log = log.join().unwrap();
    assert!(log.iter().any(|line| line.contains("stopped")), "{log:?}");
    assert!(!log.iter().any(|line| line.contains(&token[token.len() - 30..])), "no token in the log");
    let records = crate::support::trail(&folder.path().join("audit"));
    let calls = records.lines().filter(|line| line.contains("\"class_uid\":6003")).count();
    assert_eq!(calls, answered.load(Ordering::Relaxed), "one record an answer, the last ones included");
}

/// Nobody is served by a server that could not put its start on record.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_after_the_drain_finds_nobody() {
    let mut gatepost = Gatepost::start().await;
    let mut raw = gatepost.raw("storefront").await;
    let token = gatepost.token("alice", &[]);
    assert!(raw.check(wire(&token)).await.is_ok());
    gatepost.stop().await;
    assert!(raw.check(wire(&token)).await.is_err());
    let last = gatepost.records().pop().unwrap();
    assert_eq!(last["class_uid"], 6002, "the last record is the stop");
}
