//! What an operator's machine does to it: a log that nobody reads, a signal meant for others, a look at the settings
//! beside a server that runs.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use gatepost::cli::demo::world::{World, spiffe_id};
use gatepost::client::{AskError, Client};
use serde_json::{Value, json};

use crate::support::{copy_bundle, order};

/// The binary over the worked example.
struct Served {
    folder: tempfile::TempDir,
    world: World,
    child: Child,
    address: String,
    log: BufReader<ChildStderr>,
}

fn gatepost(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    command.args(["serve", "--config"]).arg(folder.join("gatepost.yaml")).args(more);
    command.env_remove("GATEPOST_CONFIG").stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn settings() -> (tempfile::TempDir, World) {
    let folder = tempfile::tempdir().unwrap();
    let world = World::create(folder.path()).unwrap();
    copy_bundle(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"), &folder.path().join("policies"));
    let mut settings = world.configuration(Path::new("policies"));
    settings["limits"] = json!({ "default_deadline": "10s", "max_deadline": "10s" });
    settings["telemetry"] = json!({ "logs": { "format": "json", "filter": "info" } });
    world.write("gatepost.yaml", &settings.to_string()).unwrap();
    (folder, world)
}

impl Served {
    fn start() -> Self {
        let (folder, world) = settings();
        let mut child = gatepost(folder.path(), &[]).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("\"serving\"") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it serves");
        }
        let said: Value = serde_json::from_str(&line).unwrap();
        let address = said["fields"]["address"].as_str().or(said["address"].as_str()).unwrap().to_owned();
        Self { folder, world, child, address, log }
    }

    fn client(&self, service: &str) -> Client {
        let files = self.world.client(service, &spiffe_id(service)).unwrap();
        Client::builder(format!("https://{}", self.address))
            .server_name("localhost")
            .ca(&files.ca)
            .identity(&files.certificate, &files.private_key)
            .deadline(Duration::from_secs(5))
            .build()
            .unwrap()
    }

    async fn answers(&self) -> bool {
        #[expect(clippy::disallowed_methods, reason = "the real binary keeps real time")]
        let now = std::time::SystemTime::now();
        let token = self.world.token("alice", &json!({ "tenant": "acme" }), now, Duration::from_secs(300)).unwrap();
        self.client("storefront").check(order("Order.read", "1", "alice").token(token)).await.is_ok()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Refused calls are logged, so whoever is refused chooses how much is: a pipe holds 64 KiB, some 300 of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_stops_no_decision() {
    let served = Served::start();
    assert!(served.answers().await, "before");
    let stranger = served.client("stranger");
    for attempt in 0..600 {
        let refused = stranger.check(order("Order.read", "1", "alice").anonymous()).await;
        assert!(matches!(refused, Err(AskError::Refused { .. })), "attempt {attempt}: {refused:?}");
    }
    assert!(served.answers().await, "with the log's pipe full");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_is_no_reason_to_end() {
    let mut served = Served::start();
    for _ in 0..3 {
        assert!(Command::new("kill").args(["-HUP", &served.child.id().to_string()]).status().unwrap().success());
    }
    let mut line = String::new();
    while !line.contains("SIGHUP") {
        line.clear();
        assert_ne!(served.log.read_line(&mut line).unwrap(), 0, "it ended");
    }
    assert!(served.answers().await);
    assert!(served.child.try_wait().unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_the_settings_beside_a_running_server_takes_and_changes_nothing() {
    let served = Served::start();
    let look = |folder: &Path, more: &[&str]| {
        let output = gatepost(folder, more).arg("--check").stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    };
    look(served.folder.path(), &["--set", &format!("server.listen={}", served.address)]);
    let (folder, _world) = settings();
    look(folder.path(), &[]);
    assert!(!folder.path().join("audit").exists(), "a folder of whoever looked is not the server's to write");
}
