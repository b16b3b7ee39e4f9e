//! What a service manager is told by the real binary: a socket of ours stands for systemd's.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gatepost::cli::demo::world::World;
use serde_json::{Value, json};

use crate::support::{PATIENCE, copy_bundle};

/// The manager's end, and the folder of what it manages.
struct Manager {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::create(folder.path()).unwrap();
        copy_bundle(&root().join("policies"), &folder.path().join("policies"));
        let mut settings: Value = world.configuration(Path::new("policies"));
        settings["server"]["drain_delay"] = json!("300ms");
        settings["server"]["drain_timeout"] = json!("40s");
        settings["telemetry"]["logs"] = json!({ "format": "human", "filter": "info" });
        world.write("gatepost.yaml", &settings.to_string()).unwrap();
        let socket = UnixDatagram::bind(folder.path().join("manager")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { folder, socket, heard: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
        command.args(["serve", "--config"]).arg(self.path("gatepost.yaml"));
        command.env_remove("GATEPOST_CONFIG").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        command.env("NOTIFY_SOCKET", self.path("manager")).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Waits for a line that begins with `word`; gives the rest of it.
    fn hears(&mut self, word: &str) -> String {
        loop {
            let mut datagram = [0; 4096];
            let length = self.socket.recv(&mut datagram).unwrap_or_else(|error| {
                panic!("no {word}: {error}; heard {:?}", self.heard);
            });
            let news: Vec<_> = str::from_utf8(&datagram[..length]).unwrap().lines().map(str::to_owned).collect();
            self.heard.extend(news.iter().cloned());
            if let Some(line) = news.iter().find_map(|line| line.strip_prefix(word)) {
                return line.to_owned();
            }
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

struct Running(Child);

impl Running {
    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_service_manager_hears_when_it_serves_and_when_it_stops() {
    let mut manager = Manager::new();
    let mut gatepost = Running(manager.command().stderr(Stdio::null()).spawn().unwrap());
    manager.hears("READY=1");
    let address = manager.heard.iter().find_map(|line| line.strip_prefix("STATUS=serving on ")).unwrap().to_owned();
    std::net::TcpStream::connect(&address).expect("it listens where it says, when it says so");
    assert!(!manager.heard.iter().any(|line| line == "STOPPING=1" || line == "WATCHDOG=1"), "{:?}", manager.heard);

    gatepost.signal("-TERM");
    let patience = manager.hears("EXTEND_TIMEOUT_USEC=");
    assert!(manager.heard.iter().any(|line| line == "STOPPING=1"), "{:?}", manager.heard);
    let patience = Duration::from_micros(patience.parse().unwrap());
    assert!(patience > Duration::from_millis(40_300), "more than the settings let a drain take: {patience:?}");
    assert_eq!(gatepost.0.wait().unwrap().code(), Some(0));
}

#[test]
fn a_watchdog_is_fed_while_it_serves_and_while_it_drains() {
    let mut manager = Manager::new();
    let mut command = manager.command();
    command.env("WATCHDOG_USEC", "50000").stderr(Stdio::null());
    let mut gatepost = Running(command.spawn().unwrap());
    manager.hears("READY=1");
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    gatepost.signal("-TERM");
    manager.hears("STOPPING=1");
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    assert_eq!(gatepost.0.wait().unwrap().code(), Some(0));
}

/// It would be killed for its silence, so the log has to say what is wrong; the drain is as it ever was.
#[test]
fn a_manager_that_does_not_listen_is_told_of_in_the_log_and_stops_nothing() {
    let manager = Manager::new();
    std::fs::remove_file(manager.path("manager")).unwrap();
    let log = manager.path("log");
    let mut command = manager.command();
    command.stderr(std::fs::File::create(&log).unwrap());
    let mut gatepost = Running(command.spawn().unwrap());
    let told = || std::fs::read_to_string(&log).unwrap();
    let mut waited = Duration::ZERO;
    while !told().contains("the service manager can't be told") {
        assert!(waited < PATIENCE && gatepost.0.try_wait().unwrap().is_none(), "{}", told());
        std::thread::sleep(Duration::from_millis(10));
        waited += Duration::from_millis(10);
    }
    gatepost.signal("-TERM");
    assert_eq!(gatepost.0.wait().unwrap().code(), Some(0), "{}", told());
}

/// A container with a read-only root has nowhere to put temporary files.
#[test]
fn it_serves_without_a_folder_for_temporary_files() {
    let mut manager = Manager::new();
    let mut command = manager.command();
    command.env("TMPDIR", manager.path("no-such-folder")).stderr(Stdio::null());
    let mut gatepost = Running(command.spawn().unwrap());
    manager.hears("READY=1");
    gatepost.signal("-TERM");
    assert_eq!(gatepost.0.wait().unwrap().code(), Some(0));
}

/// The example that the package installs is right but for what only its reader can know.
#[test]
fn the_packaged_configuration_is_read_to_its_end() {
    let manager = Manager::new();
    let packaged = root().join("packaging/gatepost.yaml");
    let check = |extra: &[(&str, PathBuf)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
        command.args(["serve", "--check", "--config"]).arg(&packaged).env_remove("GATEPOST_CONFIG");
        for (key, value) in extra {
            command.arg("--set").arg(format!("{key}={}", value.display()));
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let files = [
        ("policies.directory", "policies"),
        ("server.certificate", "server.pem"),
        ("server.private_key", "server.key"),
        ("server.client_ca", "ca.pem"),
        ("audit.spool.directory", "audit"),
    ];
    let (code, told) = check(&[]);
    assert_eq!(code, Some(64), "{told}");
    let complaints: Vec<_> = told.lines().filter(|line| line.contains("gatepost.yaml:")).collect();
    assert_eq!(complaints.len(), files.len(), "nothing is wrong but what only its reader can know:\n{told}");
    for (key, _) in files {
        let missing = format!("{key}: does not exist");
        assert!(complaints.iter().any(|line| line.contains(&missing)), "{key} in:\n{told}");
    }
    let (code, told) = check(&files.map(|(key, file)| (key, manager.path(file))));
    assert_eq!(code, Some(0), "with those it starts: {told}");
}
