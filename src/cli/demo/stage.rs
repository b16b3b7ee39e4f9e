//! The real server in a folder of its own, the services that ask it, and what came of every step.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::bundle::find_or_write;
use super::story::{Act, FORGED, Step, Subject, UNDERSTOOD, Verdict};
use super::world::{Authority, World, spiffe_id};
use crate::app::{self, BuildError, Stopped};
use crate::audit::AuditError;
use crate::audit::reader::Reader;
use crate::client::{Answer, AskError, Batch, Client};
use crate::clock::SharedClock;
use crate::config::load::{Source, load};
use crate::model::decision::{Decision, DenialCode};
use crate::telemetry::metrics::Metrics;

/// Every workload of the story; the last two are not enrolled.
const SERVICES: [&str; 6] = ["storefront", "back-office", "fulfilment", "fraud", "newsletter", FORGED];
/// Where the records go.
pub const AUDIT: &str = "audit";
/// Long enough for anything on a slow machine; a question takes about a millisecond.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no stage.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// Files, keys, clients.
    #[error("{0}")]
    Setup(String),
    /// The server itself.
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl From<io::Error> for StageError {
    fn from(error: io::Error) -> Self {
        Self::Setup(error.to_string())
    }
}

/// A running server, with the keys to its world. Its folder goes when it goes.
pub struct Stage {
    /// Certificates, tokens, keys.
    pub world: World,
    /// Where gRPC listens.
    pub address: SocketAddr,
    /// Where operators look.
    pub ops_address: SocketAddr,
    /// The bundle that decides.
    pub policies: PathBuf,
    clock: SharedClock,
    clients: BTreeMap<&'static str, Client>,
    drain: CancellationToken,
    running: JoinHandle<Result<Stopped, AuditError>>,
    folder: TempDir,
}

/// A step, and what came of it.
pub struct Played {
    /// What was asked.
    pub step: Step,
    /// What came of it.
    pub got: Verdict,
    /// Names it in the audit trail.
    pub decision_id: Option<String>,
    /// What the cache had to say, from the record.
    pub cache: Option<String>,
    /// How long deciding took, from the record.
    pub decided: Option<Duration>,
    /// How long the service waited, over the wire. `None` for the items of a batch but the first.
    pub waited: Option<Duration>,
    /// Whether that includes the TLS handshake.
    pub first: bool,
    /// The mask, to apply to a document.
    pub answer: Option<Answer>,
}

impl Played {
    /// Whether it went as the story says.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.got == self.step.expected && (self.step.cache.is_none() || self.step.cache == self.cache.as_deref())
    }
}

/// An act, and what came of it.
pub struct PlayedAct {
    /// Which.
    pub title: &'static str,
    /// Its steps.
    pub steps: Vec<Played>,
}

impl Stage {
    /// Makes the world, starts the server over `policies/` of `current`, or over the worked example.
    ///
    /// # Errors
    /// [`StageError`] says what is wrong.
    pub async fn set(current: &Path, clock: SharedClock) -> Result<Self, StageError> {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::Builder::new()
            .prefix("gatepost-demo-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()?;
        let world = World::create(folder.path())?;
        let policies = find_or_write(current, folder.path())?;
        let mut settings = world.configuration(&policies);
        if let Some(settings) = settings.as_object_mut() {
            // A busy machine must not turn an answer into a missed deadline.
            settings.insert("limits".to_owned(), json!({ "default_deadline": "10s", "max_deadline": "10s" }));
        }
        world.write("gatepost.yaml", &serde_json::to_string_pretty(&settings).map_err(io::Error::from)?)?;
        let config = load(&Source::file(folder.path().join("gatepost.yaml")))
            .map_err(|report| StageError::Setup(report.to_string()))?;
        let (metrics, registry) = Metrics::new(None).map_err(|error| StageError::Setup(error.to_string()))?;
        let server = app::build(config, Arc::clone(&clock), metrics, registry).await?;
        let (address, ops_address) = (server.address, server.ops_address);
        let drain = CancellationToken::new();
        let running = tokio::spawn(server.run(drain.clone()));
        let clients = clients(&world, address)?;
        Ok(Self { world, address, ops_address, policies, clock, clients, drain, running, folder })
    }

    /// The folder of everything.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Plays the story.
    ///
    /// # Errors
    /// When the records can't be read.
    pub async fn play(&self, story: Vec<Act>) -> io::Result<Vec<PlayedAct>> {
        let mut acquainted = Vec::new();
        let mut played = Vec::new();
        for act in story {
            let mut steps = Vec::new();
            if act.batch {
                steps = self.play_batch(act.steps).await;
            } else {
                for step in act.steps {
                    let first = !acquainted.contains(&step.service);
                    acquainted.push(step.service);
                    steps.push(Played { first, ..self.play_step(step).await });
                }
            }
            played.push(PlayedAct { title: act.title, steps });
        }
        self.read_up(&mut played).await?;
        Ok(played)
    }

    async fn play_step(&self, step: Step) -> Played {
        let ask = match &step.subject {
            Subject::Token(token) => step.ask.clone().token(token),
            Subject::Caller => step.ask.clone().caller(),
        };
        let started = self.clock.monotonic();
        let answer = match self.clients.get(step.service) {
            Some(client) => client.check(ask).await,
            None => Err(AskError::Question("no such service")),
        };
        told(step, answer, Some(self.clock.monotonic().saturating_sub(started)))
    }

    async fn play_batch(&self, steps: Vec<Step>) -> Vec<Played> {
        let mut batch = steps.iter().fold(Batch::new(), |batch, step| batch.ask(step.ask.clone()));
        if let Some(Step { subject: Subject::Token(token), .. }) = steps.first() {
            batch = batch.token(token);
        }
        let started = self.clock.monotonic();
        let answers = match steps.first().and_then(|step| self.clients.get(step.service)) {
            Some(client) => client.batch(batch).await,
            None => Err(AskError::Question("no such service")),
        };
        let waited = self.clock.monotonic().saturating_sub(started);
        let mut answers = answers.map(Vec::into_iter).map_err(|error| error.to_string());
        let mut played: Vec<Played> = Vec::new();
        for step in steps {
            let answer = match &mut answers {
                Ok(answers) => answers.next().unwrap_or(Err(AskError::Answer("not as many answers as questions"))),
                Err(_) => Err(AskError::Answer("the batch has no answer")),
            };
            played.push(told(step, answer, played.is_empty().then_some(waited)));
        }
        played
    }

    /// Adds what only the records know: the cache's part, and why a connection was refused.
    async fn read_up(&self, acts: &mut [PlayedAct]) -> io::Result<()> {
        let unconnected = |acts: &[PlayedAct]| {
            acts.iter().flat_map(|act| &act.steps).filter(|played| played.got.status == NO_CONNECTION).count()
        };
        // The record of a refused connection is written by the server on its own time.
        let until = self.clock.monotonic() + PATIENCE;
        let mut records = self.records()?;
        while records.iter().filter(|record| is_handshake(record)).count() < unconnected(acts) {
            if self.clock.monotonic() > until {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            records = self.records()?;
        }
        let mut handshakes = records.iter().filter(|record| is_handshake(record));
        for played in acts.iter_mut().flat_map(|act| &mut act.steps) {
            if played.got.status == NO_CONNECTION {
                played.got.reason = handshakes.next().and_then(|record| text(record, "/status_detail"));
            }
            let Some(id) = &played.decision_id else { continue };
            let of_it = |record: &&Value| text(record, "/metadata/original_event_uid").as_ref() == Some(id);
            let Some(record) = records.iter().find(of_it) else { continue };
            played.cache = text(record, "/unmapped/gatepost/cache");
            let micros = record.pointer("/unmapped/gatepost/decision_us").and_then(Value::as_u64);
            played.decided = micros.map(Duration::from_micros);
        }
        Ok(())
    }

    /// Every record so far, from the spool itself.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn records(&self) -> io::Result<Vec<Value>> {
        let mut trail = self.trail();
        let mut all = Vec::new();
        while let Some(record) = trail.next()? {
            all.push(record);
        }
        Ok(all)
    }

    /// What is recorded, from the first record on.
    pub fn trail(&self) -> Trailing {
        Trailing(Reader::new(&self.folder().join(AUDIT), 1, 1 << 20))
    }

    /// Drains the server, waits for its end, and removes the folder. Whether every call could finish.
    ///
    /// # Errors
    /// When the server failed, or the folder can't be removed.
    pub async fn strike(self) -> io::Result<bool> {
        drop(self.clients);
        self.drain.cancel();
        let stopped = self.running.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        self.folder.close()?;
        Ok(stopped.cut_off == 0 && !stopped.by_itself)
    }
}

/// Follows what is recorded.
pub struct Trailing(Reader);

impl Trailing {
    /// The next record, when there is one.
    ///
    /// # Errors
    /// When the spool can't be read.
    pub fn next(&mut self) -> io::Result<Option<Value>> {
        let record = self.0.next(u64::MAX).map_err(io::Error::other)?;
        Ok(record.map(|record| serde_json::from_slice(&record.line)).transpose()?)
    }
}

/// The status of whoever is not let in at all.
pub const NO_CONNECTION: &str = "NO_CONNECTION";

fn clients(world: &World, address: SocketAddr) -> Result<BTreeMap<&'static str, Client>, StageError> {
    let strangers = Authority::new("Somebody else's CA").map_err(io::Error::other)?;
    let mut clients = BTreeMap::new();
    for service in SERVICES {
        let files = match service {
            FORGED => world.client_of(&strangers, service, &spiffe_id("storefront"))?,
            enrolled => world.client(enrolled, &spiffe_id(enrolled))?,
        };
        let client = Client::builder(format!("https://{address}"))
            .server_name("localhost")
            .ca(files.ca)
            .identity(files.certificate, files.private_key)
            .deadline(PATIENCE)
            // Asked again, a refused handshake would be recorded twice.
            .retries(0)
            .understands(UNDERSTOOD)
            .build()
            .map_err(|error| StageError::Setup(error.to_string()))?;
        clients.insert(service, client);
    }
    Ok(clients)
}

fn told(step: Step, answer: Result<Answer, AskError>, waited: Option<Duration>) -> Played {
    let (got, decision_id, answer) = match answer {
        Ok(answer) => (verdict(&answer), Some(answer.decision_id().to_owned()), Some(answer)),
        Err(error) => {
            let (got, decision_id) = refusal(&error);
            (got, decision_id, None)
        }
    };
    Played { step, got, decision_id, cache: None, decided: None, waited, first: false, answer }
}

fn verdict(answer: &Answer) -> Verdict {
    Verdict {
        status: "OK".to_owned(),
        reason: None,
        decision: Some(match answer.decision() {
            Decision::Allow => "ALLOW",
            Decision::Deny => "DENY",
            Decision::Conditional => "CONDITIONAL",
        }),
        denial: answer.denial().map(DenialCode::as_str).map(str::to_owned),
        fields: answer.mask().map(|mask| mask.paths().map(ToString::to_string).collect()),
        refused_fields: answer.refused_fields().map(str::to_owned).collect(),
        obligations: answer.obligations().to_vec(),
        policies: answer.determining_policies().to_vec(),
    }
}

fn refusal(error: &AskError) -> (Verdict, Option<String>) {
    let (status, reason, decision_id) = match error {
        AskError::Refused { code, reason, decision_id } => (screaming(*code), reason.clone(), decision_id.clone()),
        AskError::Unavailable { reason: Some(reason), .. } => ("UNAVAILABLE".to_owned(), Some(reason.clone()), None),
        AskError::Unavailable { reason: None, .. } => (NO_CONNECTION.to_owned(), None, None),
        AskError::Deadline => ("DEADLINE_EXCEEDED".to_owned(), None, None),
        AskError::Question(why) | AskError::Answer(why) => ("UNKNOWN".to_owned(), Some((*why).to_owned()), None),
    };
    (Verdict { status, reason, ..Verdict::default() }, decision_id)
}

/// `PermissionDenied` as the wire's documents spell it.
fn screaming(code: tonic::Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

fn is_handshake(record: &Value) -> bool {
    record.get("class_uid").and_then(Value::as_u64) == Some(3002)
}

/// A string of a record.
pub(super) fn text(record: &Value, pointer: &str) -> Option<String> {
    record.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
}
