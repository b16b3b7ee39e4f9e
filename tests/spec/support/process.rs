//! The real binary over a spool that outlives it: started, asked, killed, started again.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use gatepost::cli::demo::world::{ClientFiles, World, spiffe_id};
use gatepost::client::{Builder, Client};
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
        settings["limits"] = json!({ "default_deadline": "10s", "max_deadline": "10s", "overload_target": "10s" });
        settings["telemetry"]["logs"] = json!({ "format": "json", "filter": "info" });
        change(&mut settings);
        Self { world, files, folder, settings, clock: SystemClock::shared() }
    }

    /// With other settings from now on.
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.settings);
        self
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
        self.command_as("gatepost", None)
    }

    /// With its configuration in `name.yaml`, and its records where that says or in `spool`.
    fn command_as(&self, name: &str, spool: Option<&str>) -> Command {
        let mut settings = self.settings.clone();
        settings["server"]["ops_listen"] = json!(crate::replicas::free_port());
        if let Some(spool) = spool {
            settings["audit"]["spool"]["directory"] = json!(spool);
        }
        let file = format!("{name}.yaml");
        self.world.write(&file, &settings.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
        command.args(["serve", "--config"]).arg(self.path(&file));
        command.env_remove("GATEPOST_CONFIG").stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// A start that comes to nothing.
    pub fn refused(&self) -> Output {
        self.refused_as(None)
    }

    /// The same as somebody else.
    pub fn refused_as(&self, user: Option<u32>) -> Output {
        let mut command = self.command();
        if let Some(user) = user {
            chown(self.path("gatepost.yaml"), Some(user), Some(user)).unwrap();
            command.uid(user).gid(user);
        }
        command.output().unwrap()
    }

    /// `gatepost audit key`, to `out`.
    pub fn audit_key(out: &Path) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
        command.args(["audit", "key", "--out"]).arg(out).stdin(Stdio::null()).output().unwrap()
    }

    /// `gatepost doctor` over the settings of the last start.
    pub fn doctor(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
        command.args(["doctor", "--config"]).arg(self.path("gatepost.yaml")).args(arguments);
        command.env_remove("GATEPOST_CONFIG").stdin(Stdio::null()).output().unwrap()
    }

    /// `gatepost audit`
    pub fn audit(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
        command.arg("audit").args(arguments).env_remove("GATEPOST_CONFIG").stdin(Stdio::null()).output().unwrap()
    }

    /// A start that gets as far as an open door, and is ready.
    pub async fn start(&self) -> Process {
        let mut process = self.spawn();
        process.until_ready().await;
        process
    }

    /// A start, whatever it comes to.
    pub fn spawn(&self) -> Process {
        self.spawn_as("gatepost", None)
    }

    /// A start of one of several, ready; its records are in the folder `name`.
    pub async fn start_replica(&self, name: &str) -> Process {
        let mut process = self.spawn_as(name, Some(name));
        process.until_ready().await;
        process
    }

    fn spawn_as(&self, name: &str, spool: Option<&str>) -> Process {
        let began = self.clock.monotonic();
        let mut command = self.command_as(name, spool);
        let text = std::fs::read_to_string(self.path(&format!("{name}.yaml"))).unwrap();
        let settings: Value = serde_json::from_str(&text).unwrap();
        let ops: SocketAddr = settings["server"]["ops_listen"].as_str().unwrap().parse().unwrap();
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let told = Arc::clone(&log);
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| told.lock().push(line)));
        let clock = Arc::clone(&self.clock);
        Process { child, address: ops, ops, began, ready_after: Duration::ZERO, ready_for: Duration::ZERO, clock, log }
    }

    /// A token of alice.
    pub fn token(&self) -> String {
        self.token_for(minutes(5))
    }

    /// The same for longer; 15 minutes at most.
    pub fn token_for(&self, lifetime: Duration) -> String {
        self.world.token("alice", &json!({ "tenant": "acme" }), self.clock.now(), lifetime).unwrap()
    }

    /// The storefront, on a connection of its own.
    pub fn client(&self, process: &Process) -> Client {
        self.client_of(process.address).build().unwrap()
    }

    /// The same, wherever it calls and whatever else it does.
    pub fn client_of(&self, address: SocketAddr) -> Builder {
        Client::builder(format!("https://{address}"))
            .server_name("localhost")
            .ca(&self.files.ca)
            .identity(&self.files.certificate, &self.files.private_key)
            .deadline(Duration::from_secs(5))
    }

    /// The storefront's files.
    pub fn files(&self) -> &ClientFiles {
        &self.files
    }
}

/// One run of it.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    pub ops: SocketAddr,
    began: Duration,
    /// From its start until it was ready, by the clock.
    pub ready_after: Duration,
    /// What it took of the processors until then: how busy the machine is with other things has no part in it.
    pub ready_for: Duration,
    clock: SharedClock,
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
        self.signal("TERM");
        self.child.wait().unwrap().code()
    }

    pub fn signal(&self, name: &str) {
        let (signal, id) = (format!("-{name}"), self.child.id().to_string());
        assert!(Command::new("kill").args([signal, id]).status().unwrap().success());
    }

    /// Waits for its end; gives the exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("it does not end: {:#?}", self.log.lock()))
    }

    /// Waits until its door is open and it is ready; notes how long that took.
    pub async fn until_ready(&mut self) {
        let line = self.until_it_says("\"serving\"").await;
        let fields: Value = serde_json::from_str(&line).unwrap();
        let fields = if fields["fields"].is_object() { &fields["fields"] } else { &fields };
        self.address = fields["address"].as_str().unwrap().parse().unwrap();
        while self.ops("/readyz").await != Some(200) {
            assert!(self.clock.monotonic() - self.began < PATIENCE, "it is never ready: {:#?}", self.log.lock());
        }
        self.ready_after = self.clock.monotonic() - self.began;
        self.ready_for = self.processor_time();
    }

    /// All that its threads have run so far, those that have ended too, within 10 ms. Source: proc(5), `/proc/pid/stat`.
    fn processor_time(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name stands in brackets, and is the only field that may hold spaces; the third field follows it.
        let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Waits for a line of its log with these words.
    pub async fn until_it_says(&mut self, words: &str) -> String {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(line) = self.log.lock().iter().find(|line| line.contains(words)) {
                    return line.clone();
                }
                let ended = self.child.try_wait().unwrap();
                assert!(ended.is_none(), "it ended with {ended:?}: {:#?}", self.log.lock());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("it never says {words:?}: {:#?}", self.log.lock()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
