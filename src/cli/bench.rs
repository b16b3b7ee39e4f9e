//! `gatepost bench`: how much a Gatepost takes, and how long its answers take, with one's own policies and questions.
//!
//! [`crew`] asks over [`line`]s, [`tally`] counts, [`show`] and [`page`] tell; [`here`] is a server to ask, and
//! [`overload`] the question what happens when there is too much to do, while [`pulse`] asks whether all is well.
//! [`engine`] asks the policies alone.

use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use http::Uri;
use rustls_pki_types::ServerName;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::crew::{Crew, Pace};
use self::here::{AuditMode, Here};
use self::line::{Line, Route};
use self::pulse::{Health, Pulse};
use self::question::{Questions, Shape};
use self::schedule::Arrivals;
use self::tally::{Outcome, Tally};
use super::{complain, exit};
use crate::client::connection::{Connection, Files, Target};
use crate::clock::{SharedClock, SystemClock};

mod crew;
mod echo;
mod engine;
mod here;
mod histogram;
mod line;
mod overload;
mod page;
mod process;
mod pulse;
mod question;
mod schedule;
mod show;
mod talk;
mod tally;

/// Calls under way at once, on all connections together.
const MOST_IN_FLIGHT: usize = 100_000;
/// A token file, bytes.
const TOKEN_BYTES: u64 = 64 * 1024;
/// How often it is looked at how things go.
const GLANCE: Duration = Duration::from_millis(100);

/// Measure how many questions a server answers, and how fast.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "\
Without a server at hand, --here starts one in a process of its own, in a temporary folder, with certificates and a token \
made for the run:

    gatepost bench --here                                 closed loop: how much does it take?
    gatepost bench --here --rate 5000                     open loop: how fast is it at 5000 a second?
    gatepost bench --here --fresh --shape batch:100       no question comes twice; 100 in a call
    gatepost bench --here --policies policies --question questions.yaml --html report.html
    gatepost bench --here --overload --duration 30s       what happens at 2, 5, 10, 20 times too much?

A server that is there already, asked as a service that is enrolled there:

    gatepost bench --address gatepost.internal:8443 --ca ca.pem --certificate me.pem --key me.key \\
        --token alice.token --question questions.yaml

A file of questions holds one `CheckRequest` or a list, as grpcurl takes them, in JSON or YAML:

    - action: Order.read
      resource: { type: Order, id: ord-1, attributes: { status: paid, total: 4200, .. } }
      fields: { all: true }

In an open loop, latency counts from the instant at which a question was to be asked. Ctrl-C ends early and shows what was \
measured. The load takes processor time too: on one machine, server and load share it. docs/benchmarking.md tells how to \
read the figures.

Exit codes: 0 measured, 1 the server refuses the questions, 64 the command line is wrong, or a file that it names, or the \
server refuses the certificate or the token, 65 the policies are wrong, 69 there is no server, or it went away, 70 a fault \
of ours."
)]
pub struct BenchArgs {
    /// Something else than a server
    #[command(subcommand)]
    pub what: Option<What>,
    /// What to do
    #[command(flatten)]
    pub load: LoadArgs,
}

/// What else can be measured.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Measure what the policies alone take: no network, no token, no record
    Engine(engine::EngineArgs),
    /// Serve stored answers and decide nothing
    #[command(hide = true)]
    Echo(echo::EchoArgs),
    /// Make what a server for a load needs, and whoever asks it
    World(here::WorldArgs),
}

/// A load, and on what.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Start a server for the run, in a process of its own
    #[arg(long, conflicts_with_all = ["address", "pid"])]
    pub here: bool,
    /// With --here: a bundle's folder; the worked example when unset. Needs --question
    #[arg(long, value_name = "DIR", requires = "here", requires = "question")]
    pub policies: Option<PathBuf>,
    /// With --here: when a record counts as kept
    #[arg(long, value_enum, default_value_t = AuditMode::Durable, requires = "here")]
    pub audit_mode: AuditMode,
    /// The server: HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
    /// The name in its certificate, if it is not the host's
    #[arg(long, value_name = "NAME", requires = "address")]
    pub server_name: Option<String>,
    /// PEM file: the authorities of the server
    #[arg(long, value_name = "FILE", default_value = "ca.pem")]
    pub ca: PathBuf,
    /// PEM file: the certificate chain of the service that asks
    #[arg(long, value_name = "FILE", default_value = "client.pem")]
    pub certificate: PathBuf,
    /// PEM file: its private key
    #[arg(long, value_name = "FILE", default_value = "client.key")]
    pub key: PathBuf,
    /// A file with a token, for questions that have no subject
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,
    /// A file of questions, JSON or YAML; several are sent in turn. With --here, one of the worked example when unset
    #[arg(long, value_name = "FILE")]
    pub question: Option<PathBuf>,
    /// The server's process on this machine, to tell what it takes of the processors and of memory
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,
    /// What a call carries: `check`, or `batch:N`; or `stream`: one question after the other over a stream on each connection
    #[arg(long, value_name = "SHAPE", value_parser = Shape::parse, default_value = "check")]
    pub shape: Shape,
    /// Another resource id in every question, so that no ruling is in the cache
    #[arg(long)]
    pub fresh: bool,
    /// Connections, 1 to 1024; 4 when unset, and 16 with --overload
    #[arg(long, value_name = "C", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub connections: Option<u32>,
    /// Calls at once on each connection, 1 to 10000; 16 when unset, and 100 with --rate or --overload: more are not sent
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub in_flight: Option<u32>,
    /// Open loop: so many calls a second, whatever becomes of them. 0.1 to 1000000
    #[arg(long, value_name = "R", value_parser = rate, conflicts_with = "overload")]
    pub rate: Option<f64>,
    /// Open loop: how calls follow each other
    #[arg(long, value_enum, default_value_t = Arrivals::Poisson)]
    pub arrivals: Arrivals,
    /// Before anything counts; 0s to 10m
    #[arg(long, value_name = "TIME", value_parser = warmup, default_value = "1s")]
    pub warmup: Duration,
    /// Of each round, or step; 10ms to 1h
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s")]
    pub duration: Duration,
    /// Rounds, 1 to 100
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100), conflicts_with = "overload")]
    pub rounds: u32,
    /// The deadline of every call; 1ms to 1m
    #[arg(long, value_name = "TIME", value_parser = deadline, default_value = "2s")]
    pub deadline: Duration,
    /// Threads of the load, 1 to 64; half the cores when unset
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: Option<u32>,
    /// Find the most that the server takes, then ask multiples of it
    #[arg(long)]
    pub overload: bool,
    /// With --overload: the multiples, 0.1 to 100, ten at most
    #[arg(long, value_name = "LIST", value_delimiter = ',', num_args = 1, value_parser = step, default_value = "1,2,5,10,20", requires = "overload")]
    pub steps: Vec<f64>,
    /// How the outcome looks
    #[arg(long, value_enum, default_value_t = Output::Human)]
    pub output: Output,
    /// Write a page with the figures drawn, too
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// How the outcome looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Human,
    /// For machines: one object
    Json,
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, 0.1, 1_000_000.0)
}

fn step(text: &str) -> Result<f64, String> {
    number(text, 0.1, 100.0)
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let read = text.parse().ok().filter(|number| (least..=most).contains(number));
    read.ok_or_else(|| format!("must be a number from {least} to {most}"))
}

fn warmup(text: &str) -> Result<Duration, String> {
    time(text, Duration::ZERO, Duration::from_secs(600)).ok_or_else(|| "must be a time from 0s to 10m".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let read = time(text, Duration::from_millis(10), Duration::from_secs(3600));
    read.ok_or_else(|| "must be a time from 10ms to 1h".to_owned())
}

fn deadline(text: &str) -> Result<Duration, String> {
    let read = time(text, Duration::from_millis(1), Duration::from_secs(60));
    read.ok_or_else(|| "must be a time from 1ms to 1m".to_owned())
}

fn time(text: &str, least: Duration, most: Duration) -> Option<Duration> {
    let read: jiff::SignedDuration = text.parse().ok()?;
    Duration::try_from(read).ok().filter(|read| (least..=most).contains(read))
}

/// Why nothing, or no more, was measured.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// The command line, or a file that it names.
    #[error("{0}")]
    Usage(String),
    /// Policies.
    #[error("{0}")]
    Policies(String),
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// The server says no to everything.
    #[error("{0}")]
    Refused(String),
    /// Ours.
    #[error("{0}")]
    Fault(String),
}

impl Trouble {
    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::CONFIGURATION,
            Self::Policies(_) => exit::DATA,
            Self::Unreachable(_) => exit::UNAVAILABLE,
            Self::Refused(_) => 1,
            Self::Fault(_) => exit::SOFTWARE,
        }
    }
}

/// Runs the command. The exit code is one of those that the help names.
///
/// # Errors
/// The console's own, or no runtime.
pub fn run(args: &BenchArgs, console: &mut impl Write, colours: bool) -> io::Result<u8> {
    match &args.what {
        Some(What::Engine(args)) => return engine::run(args, console, colours),
        Some(What::Echo(args)) => return echo::run(args),
        Some(What::World(args)) => return Ok(here::world(args)),
        None => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (report, trouble) = match runtime.block_on(measure(&args.load)) {
        Ok(done) => done,
        Err(trouble) => {
            complain(&trouble.to_string());
            return Ok(trouble.code());
        }
    };
    match args.load.output {
        Output::Human => show::human(console, &report, colours)?,
        Output::Json => show::json(console, &report)?,
    }
    if let Some(file) = &args.load.html
        && let Err(error) = std::fs::write(file, page::page(&report))
    {
        complain(&format!("--html {}: {error}", file.display()));
        return Ok(exit::CONFIGURATION);
    }
    if let Some(trouble) = trouble {
        complain(&trouble.to_string());
        return Ok(trouble.code());
    }
    Ok(0)
}

/// What was measured, and how.
pub(crate) struct Report {
    /// Where.
    target: String,
    /// `--here`: the mode of its records.
    audit_mode: Option<AuditMode>,
    /// What was asked.
    shape: Shape,
    fresh: bool,
    /// Different calls before they come round again.
    different: usize,
    connections: usize,
    threads: usize,
    pace: Pace,
    deadline: Duration,
    warmup: Duration,
    /// Each round by itself; with --overload the first is the search for the peak, and then come the steps.
    rounds: Vec<Round>,
    overload: Option<overload::Overload>,
    /// Every call that was made, those that don't count in a round included.
    calls: u64,
    /// Whether it ended before its time.
    interrupted: bool,
}

/// One measurement.
pub(crate) struct Round {
    tally: Tally,
    /// With --overload: how much was asked, in multiples of the peak.
    multiple: Option<f64>,
    /// And how much that was right before: answered calls a second.
    peak: Option<f64>,
    /// How much was asked a second, in an open loop.
    rate: Option<f64>,
    /// CPU time of the server, nanoseconds.
    server_cpu: Option<u64>,
    /// CPU time of this process, nanoseconds.
    own_cpu: Option<u64>,
    /// The most memory that the server was seen to hold, bytes.
    resident: Option<u64>,
    /// Time of all processors that the host of this virtual machine gave to others, as a share of one processor's.
    stolen: Option<f64>,
    /// With --overload: whether it said all the while that it is well.
    health: Option<Health>,
    /// After a step of --overload: how long until a gentle load was answered as before, in steps of 200 ms; `None`: not in
    /// 30 s, or it was not looked.
    recovered: Option<Duration>,
}

impl Report {
    /// All rounds together.
    fn total(&self) -> Tally {
        let mut rounds = self.rounds.iter();
        let mut total = rounds.next().map_or_else(|| Tally::over(Duration::ZERO), |round| round.tally.clone());
        rounds.for_each(|round| total.append(&round.tally));
        total
    }
}

/// Everything that a measurement needs while it is under way.
struct Site {
    crew: Crew,
    clock: SharedClock,
    stop: CancellationToken,
    /// The server, if it is on this machine and we know which it is.
    server: Option<u32>,
    /// With --overload.
    pulse: Option<Pulse>,
    progress: bool,
}

impl Site {
    /// Whether there is no use in going on.
    fn is_over(&self) -> bool {
        self.stop.is_cancelled() || self.crew.is_lost()
    }

    /// One measurement.
    async fn round(&self, pace: Pace, length: Duration, label: &str) -> Round {
        let own = std::process::id();
        let cpu = |id: Option<u32>| id.and_then(process::cpu_time);
        let (server_before, own_before) = (cpu(self.server), cpu(Some(own)));
        let stolen_before = process::stolen();
        let mut resident = None;
        let heard = || self.pulse.as_ref().map(Pulse::heard);
        // What was heard before is no business of this round.
        drop(heard());
        let running = self.crew.begin(pace, length);
        let watch = running.watch();
        let began = self.clock.monotonic();
        let finishing = running.finish(&self.clock);
        tokio::pin!(finishing);
        let mut glance = tokio::time::interval(GLANCE);
        let tally = loop {
            tokio::select! {
                tally = &mut finishing => break tally,
                _ = glance.tick() => {
                    resident = resident.max(self.server.and_then(process::resident));
                    if self.progress {
                        let spent = self.clock.monotonic().saturating_sub(began);
                        let (answers, others) = watch.so_far();
                        show::progress(label, spent, length, answers, others);
                    }
                }
            }
        };
        let spent =
            |before: Option<u64>, id: Option<u32>| cpu(id).zip(before).map(|(now, then)| now.saturating_sub(then));
        let took = self.clock.monotonic().saturating_sub(began).as_secs_f64();
        let stolen = process::stolen().zip(stolen_before).map(|(now, then)| now.saturating_sub(then));
        let rate = match pace {
            Pace::Closed { .. } => None,
            Pace::Open { rate, .. } => Some(rate),
        };
        Round {
            tally,
            multiple: None,
            peak: None,
            rate,
            server_cpu: spent(server_before, self.server),
            own_cpu: spent(own_before, Some(own)),
            resident: resident.max(self.server.and_then(process::resident)),
            stolen: stolen.map(|stolen| stolen.as_secs_f64() / took.max(1e-3)),
            health: heard(),
            recovered: None,
        }
    }
}

/// Connects, looks whether there are answers at all, and measures.
async fn measure(args: &LoadArgs) -> Result<(Report, Option<Trouble>), Trouble> {
    let clock = SystemClock::shared();
    let stop = stop_on_signal().map_err(|error| Trouble::Fault(error.to_string()))?;
    let connections = args.connections.unwrap_or(if args.overload { 16 } else { 4 }) as usize;
    let open = args.rate.is_some() || args.overload;
    let in_flight = args.in_flight.unwrap_or(if open { 100 } else { 16 }) as usize;
    if connections * in_flight > MOST_IN_FLIGHT {
        return Err(Trouble::Usage(format!("--connections times --in-flight may be {MOST_IN_FLIGHT} at most")));
    }
    if args.steps.len() > 10 {
        return Err(Trouble::Usage("--steps may name ten at most".to_owned()));
    }
    let here = if args.here { Some(Here::start(args.policies.as_deref(), args.audit_mode, &clock)?) } else { None };
    let (target, files) = whereto(args, here.as_ref())?;
    let address = target.endpoint.authority().map(ToString::to_string).unwrap_or_default();

    let questions = Arc::new(questions(args, here.as_ref())?);
    let uri: Uri = format!("https://{address}{}", questions.path())
        .parse()
        .map_err(|_| Trouble::Usage("--address must be HOST:PORT".to_owned()))?;
    let connection = Connection::prepare(target, files, Arc::clone(&clock), Duration::from_secs(3600))
        .map_err(|error| Trouble::Usage(error.to_string()))?;
    let route = Route { connection: Arc::new(connection), uri, deadline: args.deadline, clock: Arc::clone(&clock) };
    first_answers(&route, &questions, &address).await?;

    let half = std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1));
    let threads = args.threads.map_or(half, |threads| threads as usize).clamp(1, connections);
    let crew = Crew::assemble(&route, &questions, threads, connections, &stop)
        .await
        .map_err(|why| Trouble::Unreachable(format!("no answer from {address}: {why}")))?;
    let pulse = if args.overload {
        let operators = here.as_ref().map(|here| here.operators);
        let begun = Pulse::begin(&route, operators).await;
        Some(begun.map_err(|why| Trouble::Unreachable(format!("no answer from {address}: {why}")))?)
    } else {
        None
    };
    let pace = match args.rate {
        Some(rate) => Pace::Open { rate, arrivals: args.arrivals, in_flight },
        // No more at once than gives the most answers: the steps alone are to be too much.
        None if args.overload => Pace::Closed { in_flight: in_flight.min(16) },
        None => Pace::Closed { in_flight },
    };
    let progress = io::stderr().is_terminal();
    let site = Site { crew, clock, stop, server: args.pid.or(here.as_ref().map(Here::id)), pulse, progress };
    let mut report = Report {
        target: address.clone(),
        audit_mode: here.as_ref().map(|_| args.audit_mode),
        shape: args.shape,
        fresh: args.fresh,
        different: questions.different(),
        connections,
        threads,
        pace,
        deadline: args.deadline,
        warmup: args.warmup,
        rounds: Vec::new(),
        overload: None,
        calls: 0,
        interrupted: false,
    };
    if !args.warmup.is_zero() {
        site.round(pace, args.warmup, "warm-up").await;
    }
    if args.overload {
        overload::measure(&site, args, in_flight, &mut report).await;
    } else {
        for number in 1..=args.rounds {
            if site.is_over() {
                break;
            }
            let label = format!("round {number} of {}", args.rounds);
            report.rounds.push(site.round(pace, args.duration, &label).await);
        }
    }
    if progress {
        show::progress_ends();
    }
    report.calls = questions.asked();
    report.interrupted = site.is_over();
    let trouble = site.crew.is_lost().then(|| {
        let why = site.crew.last_words().map(|why| format!(": {why}")).unwrap_or_default();
        Trouble::Unreachable(format!("{address} went away{why}"))
    });
    Ok((report, trouble))
}

/// The server, and who we are there.
fn whereto(args: &LoadArgs, here: Option<&Here>) -> Result<(Target, Files), Trouble> {
    let (address, files) = match (here, &args.address) {
        (Some(here), _) => {
            let files = &here.files;
            let (ca, certificate, key) = (files.ca.clone(), files.certificate.clone(), files.private_key.clone());
            (here.address.to_string(), Files { ca, certificate, key })
        }
        (None, Some(address)) => {
            let (ca, certificate, key) = (args.ca.clone(), args.certificate.clone(), args.key.clone());
            (address.clone(), Files { ca, certificate, key })
        }
        (None, None) => return Err(Trouble::Usage("say which server: --address HOST:PORT, or --here".to_owned())),
    };
    let usage = |what: &str| Trouble::Usage(format!("--address {what}"));
    let bare = address.strip_prefix("https://").unwrap_or(&address).trim_end_matches('/');
    let endpoint: Uri = format!("https://{bare}").parse().map_err(|_| usage("must be HOST:PORT"))?;
    if endpoint.port_u16().is_none() || endpoint.authority().is_none_or(|authority| authority.as_str() != bare) {
        return Err(usage("must be HOST:PORT"));
    }
    let host = endpoint.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let name = args.server_name.clone().unwrap_or(host);
    let server_name = ServerName::try_from(name).map_err(|_| usage("or --server-name is no name of a host"))?;
    Ok((Target { endpoint, server_name }, files))
}

fn questions(args: &LoadArgs, here: Option<&Here>) -> Result<Questions, Trouble> {
    let given = args.token.as_deref().map(read_token).transpose()?;
    let token = given.as_deref().or(here.map(|here| here.token.as_str()));
    let questions = match (&args.question, here, token) {
        (Some(file), _, token) => question::read(file, token).map_err(Trouble::Usage)?,
        (None, Some(_), Some(token)) => question::usual(token).map_err(Trouble::Fault)?,
        (None, _, _) => {
            return Err(Trouble::Usage("say what to ask: --question FILE".to_owned()));
        }
    };
    Questions::prepare(&questions, args.shape, args.fresh, args.deadline).map_err(Trouble::Usage)
}

fn read_token(file: &std::path::Path) -> Result<String, Trouble> {
    use std::io::Read as _;
    let failed = |why: &dyn std::fmt::Display| Trouble::Usage(format!("--token {}: {why}", file.display()));
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|error| failed(&error))?;
    opened.take(TOKEN_BYTES).read_to_string(&mut text).map_err(|error| failed(&error))?;
    let token = text.trim();
    if token.is_empty() { Err(failed(&"is empty")) } else { Ok(token.to_owned()) }
}

/// Asks every call once, up to a hundred: a server that refuses everything would be fast, and nobody wants to know how.
async fn first_answers(route: &Route, questions: &Questions, address: &str) -> Result<(), Trouble> {
    let unreachable = |why: String| {
        // TLS 1.3 lets a client find out with its first call that its certificate is not wanted (RFC 8446 section 4.4.2.4).
        if why.contains("received fatal alert") {
            Trouble::Usage(format!("{address} refuses the connection: {why}; is --certificate one that it trusts?"))
        } else {
            Trouble::Unreachable(format!("no answer from {address}: {why}"))
        }
    };
    let line = Line::open(route.clone()).await.map_err(unreachable)?;
    for _ in 0..questions.different().min(100) {
        match line.ask(questions).await {
            Outcome::Answered(decisions) if decisions.token_denied > 0 => {
                let why = if decisions.token_expired > 0 { "it has expired" } else { "it is not accepted there" };
                return Err(Trouble::Usage(format!("{address} denies everything because of the token: {why}")));
            }
            Outcome::Answered(decisions) if decisions.all() == 0 => {
                return Err(Trouble::Refused(format!("{address} refuses every item of the batch")));
            }
            Outcome::Answered(_) => {}
            Outcome::Refused { why, .. } => {
                let reason = if why.reason.is_empty() { String::new() } else { format!(", {}", why.reason) };
                return Err(Trouble::Refused(format!("{address} refuses the questions: {}{reason}", why.code)));
            }
            Outcome::Failed(failure) => {
                let why = match line::unasked(route).await {
                    Some(why) => why,
                    None => line.last_words().unwrap_or_else(|| failure.as_str().to_owned()),
                };
                return Err(unreachable(why));
            }
        }
    }
    Ok(())
}

/// Cancelled by the first SIGTERM or SIGINT: what was measured is shown.
fn stop_on_signal() -> io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        asked.cancel();
    });
    Ok(stop)
}
