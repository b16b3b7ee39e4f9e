//! The real binary over a spool that outlives it: started, asked, killed, started again.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use gatepost::cli::demo::world::{ClientFiles, World, spiffe_id};
use gatepost::client::Client;
use gatepost::clock::{SharedClock, SystemClock};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{PATIENCE, copy_bundle, minutes, trail};

/// Everything that `gatepost serve` needs, in a folder; its spool is the folder `audit` in it.
pub struct Place {
    pub world: World,
    files: ClientFiles,
    folder: tempfile::TempDir,
    settings: Value,
    clock: SharedClock,
}

impl Place {
    pub fn new(change: impl FnOnce(&mut Value)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::create(folder.path()).unwrap();
        copy_bundle(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"), &folder.path().join("policies"));
        let files = world.client("storefront", &spiffe_id("storefront")).unwrap();
        let mut settings = world.configuration(Path::new("policies"));
        settings["limits"] = json!({ "default_deadline": "10s", "max_deadline": "10s" });
        settings["telemetry"]["logs"] = json!({ "format": "json", "filter": "info" });
        change(&mut settings);
        Self { world, files, folder, settings, clock: SystemClock::shared() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the spool.
    pub fn spool(&self, name: &str) -> PathBuf {
        self.path("audit").join(name)
    }

    /// The segments, oldest first.
    pub fn segments(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path("audit")).unwrap().map(|entry| entry.unwrap().path());
        let mut segments: Vec<PathBuf> = entries.filter(|path| path.to_str().unwrap().contains("/segment-")).collect();
        segments.sort();
        segments
    }

    /// Every whole line that is there.
    pub fn records(&self) -> Vec<Value> {
        trail(&self.path("audit")).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn command(&self) -> Command {
        let mut settings = self.settings.clone();
        settings["server"]["ops_listen"] = json!(crate::replicas::free_port());
        self.world.write("gatepost.yaml", &settings.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
        command.args(["serve", "--config"]).arg(self.path("gatepost.yaml"));
        command.env_remove("GATEPOST_CONFIG").stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// A start that comes to nothing.
    pub fn refused(&self) -> Output {
        self.command().output().unwrap()
    }

    /// A start that gets as far as an open door, and is ready.
    pub async fn start(&self) -> Process {
        let began = self.clock.monotonic();
        let mut command = self.command();
        let text = std::fs::read_to_string(self.path("gatepost.yaml")).unwrap();
        let settings: Value = serde_json::from_str(&text).unwrap();
        let ops: SocketAddr = settings["server"]["ops_listen"].as_str().unwrap().parse().unwrap();
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (send, serving) = tokio::sync::oneshot::channel();
        let told = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut send = Some(send);
            while let Some(Ok(line)) = lines.next() {
                let fields: Value = serde_json::from_str(&line).unwrap_or_default();
                let fields = if fields["fields"].is_object() { &fields["fields"] } else { &fields };
                if fields["message"] == "serving"
                    && let Some(send) = send.take()
                {
                    let _ = send.send(fields["address"].as_str().unwrap().parse::<SocketAddr>().unwrap());
                }
                told.lock().push(line);
            }
        });
        let mut process = Process { child, address: ops, ops, ready_after: Duration::ZERO, log };
        process.address = match tokio::time::timeout(PATIENCE, serving).await {
            Ok(Ok(address)) => address,
            _ => panic!("it does not serve: {:#?}", process.log.lock()),
        };
        while process.ops("/readyz").await != Some(200) {
            assert!(self.clock.monotonic() - began < PATIENCE, "it is never ready: {:#?}", process.log.lock());
        }
        process.ready_after = self.clock.monotonic() - began;
        process
    }

    /// A token of alice.
    pub fn token(&self) -> String {
        self.world.token("alice", &json!({ "tenant": "acme" }), self.clock.now(), minutes(60)).unwrap()
    }

    /// The storefront, on a connection of its own.
    pub fn client(&self, process: &Process) -> Client {
        Client::builder(format!("https://{}", process.address))
            .server_name("localhost")
            .ca(&self.files.ca)
            .identity(&self.files.certificate, &self.files.private_key)
            .deadline(Duration::from_secs(5))
            .build()
            .unwrap()
    }
}

/// One run of it.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    ops: SocketAddr,
    /// From its start until it was ready.
    pub ready_after: Duration,
    pub log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// The status of a path at the operators' door, if it is open.
    pub async fn ops(&self, path: &str) -> Option<u16> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        client.get(format!("http://{}{path}", self.ops)).send().await.ok().map(|answer| answer.status().as_u16())
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; gives the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }

    pub fn says(&self, text: &str) -> bool {
        self.log.lock().iter().any(|line| line.contains(text))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
