//! Services that ask without a pause, in Rust and in Python, and all that they were told. Every turn is one question and
//! then all of them as a batch: whether alice may read an order of hers that is open, paid, shipped or cancelled.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gatepost::cli::demo::world::ClientFiles;
use gatepost::client::{Answer, Ask, Batch, Client};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::{PATIENCE, eventually};

/// The questions, by the order's status.
pub const STATUSES: [&str; 4] = ["open", "paid", "shipped", "cancelled"];
/// There are few processors here, for both sides.
const PAUSE: Duration = Duration::from_millis(2);

/// One answer that came.
#[derive(Debug, Clone)]
pub struct Told {
    /// Which of [`STATUSES`].
    pub question: usize,
    pub allowed: bool,
    pub id: String,
    pub revision: String,
}

/// Everybody who asks, and what came of it.
#[derive(Default)]
pub struct Load {
    calls: Mutex<Vec<Vec<Told>>>,
    failed: Mutex<Vec<String>>,
    /// Calls that were answered.
    answered: AtomicUsize,
    over: AtomicBool,
    asking: Mutex<Vec<JoinHandle<()>>>,
    in_python: Mutex<Vec<Python>>,
}

struct Python {
    child: Child,
    token: Option<ChildStdin>,
    reader: Option<std::thread::JoinHandle<()>>,
}

/// How clients in Python are started.
pub struct InPython {
    pub address: SocketAddr,
    pub ca: PathBuf,
    /// `{n}` in them stands for the client's number.
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    pub clients: usize,
    /// How often each looks at its files.
    pub reload_interval: Duration,
}

impl InPython {
    pub fn new(address: SocketAddr, files: &ClientFiles, clients: usize) -> Self {
        Self {
            address,
            ca: files.ca.clone(),
            certificate: files.certificate.clone(),
            private_key: files.private_key.clone(),
            clients,
            reload_interval: Duration::from_secs(10),
        }
    }
}

impl Load {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A service in Rust begins to ask.
    pub fn ask(self: &Arc<Self>, name: &str, client: Client, token: String) {
        let (load, name) = (Arc::clone(self), name.to_owned());
        let asking = tokio::spawn(async move {
            let mut turn = 0;
            while !load.over.load(Ordering::Relaxed) {
                let which = turn % STATUSES.len();
                turn += 1;
                let told = client.check(question(&name, which).token(&token)).await;
                load.heard(told.map(|answer| vec![Told::of(which, &answer)]).map_err(|error| format!("{error:?}")));
                let all = (0..STATUSES.len()).map(|which| question(&name, which));
                let batch = all.fold(Batch::new().token(&token), Batch::ask);
                load.heard(match client.batch(batch).await {
                    Ok(answers) => (0..)
                        .zip(answers)
                        .map(|(which, answer)| answer.map(|answer| Told::of(which, &answer)))
                        .collect::<Result<_, _>>()
                        .map_err(|error| format!("an item: {error:?}")),
                    Err(error) => Err(format!("{error:?}")),
                });
                tokio::time::sleep(PAUSE).await;
            }
        });
        self.asking.lock().push(asking);
    }

    /// Services in Python, over grpcio, begin to ask.
    pub fn ask_in_python(self: &Arc<Self>, how: &InPython, token: &str) {
        let mut child = Command::new(crate::examples::python())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/asking.py"))
            .args(["--address", &how.address.to_string(), "--clients", &how.clients.to_string()])
            .args(["--reload-interval", &how.reload_interval.as_secs_f64().to_string()])
            .args([Path::new("--ca"), &how.ca, Path::new("--cert"), &how.certificate, Path::new("--key")])
            .arg(&how.private_key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{token}").unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let load = Arc::clone(self);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let line: Value = serde_json::from_str(&line).unwrap();
                load.heard(match line["answers"].as_array() {
                    Some(answers) => Ok(answers.iter().map(Told::of_line).collect()),
                    None => Err(format!("grpcio: {line}")),
                });
            }
        });
        self.in_python.lock().push(Python { child, token: Some(stdin), reader: Some(reader) });
    }

    fn heard(&self, call: Result<Vec<Told>, String>) {
        match call {
            Ok(told) => {
                self.calls.lock().push(told);
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.failed.lock().push(error),
        }
    }

    /// Calls that were answered.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Calls that were not.
    pub fn failed(&self) -> Vec<String> {
        self.failed.lock().clone()
    }

    /// Waits for so many more answered calls, or for a failed one.
    pub async fn more(&self, calls: usize) {
        let (answered, failed) = (self.answered(), self.failed.lock().len());
        eventually("calls go on", || self.answered() >= answered + calls || self.failed.lock().len() > failed).await;
    }

    /// Everybody finishes the call under way and asks no more; gives the answers, a list for each call.
    pub async fn stop(&self) -> Vec<Vec<Told>> {
        self.over.store(true, Ordering::Relaxed);
        let asking = std::mem::take(&mut *self.asking.lock());
        for one in asking {
            tokio::time::timeout(PATIENCE, one).await.expect("the last call ends").unwrap();
        }
        let in_python = std::mem::take(&mut *self.in_python.lock());
        for mut python in in_python {
            drop(python.token.take());
            let ended = tokio::task::spawn_blocking(move || {
                let reader = python.reader.take().unwrap();
                reader.join().unwrap();
                python.child.wait().unwrap()
            });
            let status = tokio::time::timeout(PATIENCE, ended).await.expect("the last call ends").unwrap();
            assert!(status.success(), "{status}");
        }
        std::mem::take(&mut *self.calls.lock())
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // Over already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Told {
    fn of(question: usize, answer: &Answer) -> Self {
        Self {
            question,
            allowed: answer.allowed(),
            id: answer.decision_id().to_owned(),
            revision: answer.policy_revision().to_owned(),
        }
    }

    fn of_line(line: &Value) -> Self {
        Self {
            question: usize::try_from(line[0].as_u64().unwrap()).unwrap(),
            allowed: line[1].as_bool().unwrap(),
            id: line[2].as_str().unwrap().to_owned(),
            revision: line[3].as_str().unwrap().to_owned(),
        }
    }
}

fn question(name: &str, which: usize) -> Ask {
    Ask::new("Order.read")
        .resource("Order", format!("o-{name}"))
        .reference("tenant", "Tenant", "acme")
        .reference("customer", "User", "alice")
        .attribute("status", STATUSES[which])
        .attribute("total", 1250)
}

/// The ids of these answers; no id names two of them.
pub fn ids(calls: &[Vec<Told>]) -> BTreeSet<String> {
    let all: Vec<&String> = calls.iter().flatten().map(|told| &told.id).collect();
    let ids: BTreeSet<String> = all.iter().map(|id| (*id).clone()).collect();
    assert_eq!(ids.len(), all.len(), "an id names one answer");
    ids
}

/// The ids of the calls that are on record in a trail; each has one record.
pub fn recorded(trail: &str) -> BTreeSet<String> {
    let id = |line: &str| Some(line.split("\"original_event_uid\":\"").nth(1)?.split('"').next()?.to_owned());
    let all: Vec<String> = trail.lines().filter(|line| line.contains("\"class_uid\":6003,")).filter_map(id).collect();
    let ids: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(ids.len(), all.len(), "a call has one record");
    ids
}
