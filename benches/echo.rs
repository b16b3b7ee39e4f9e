//! What a decision costs beside a call that decides nothing.
//!
//! ```text
//! cargo bench --bench echo -- --seconds 2 --connections 4 --in-flight 32
//! ```
//!
//! In one run, against child processes on loopback: two servers that send back stored answers over the same mutual TLS, and
//! the real `gatepost serve` with the bundle in `policies/`. The *stock echo* is tonic as its examples set it up; the *tuned
//! echo* (`gatepost bench echo`) has Gatepost's own threads, allocator, codec and build. The same requests go to all, and
//! the stored answers are Gatepost's own, so that messages have the same size. Rounds are interleaved, so that a machine
//! that gets slower harms all alike; medians over rounds are printed. CPU is what the kernel charged
//! to the threads of the server, not to the load generator beside it. The figures to compare are the ratios.
//!
//! `--policies N` asks a server with a generated bundle as well, about another document each time; its own tuned echo gets
//! the same questions. `--cerbos PATH` asks a peer.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use gatepost::clock::SystemClock;
use serde_json::{Value, json};

#[expect(dead_code, reason = "the other benches ask for more")]
mod support;

use support::fixture::Fixture;
use support::load::{Load, Measured, Questions};
use support::questions::Topic;
use support::server::{self, ServerProcess};
use support::{Failure, cerbos, connection, disk, free_port};

/// Compares Gatepost with a bare echo server.
#[derive(Parser)]
struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Rounds of measurements; the medians are printed
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Connections to each server
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Calls under way at once, over all connections; on each stream there are always 64
    #[arg(long, default_value_t = 32)]
    in_flight: usize,
    /// Ask a server with so many generated policies as well; may be repeated
    #[arg(long, value_name = "COUNT")]
    policies: Vec<usize>,
    /// Ask this program of Cerbos as well, with TLS, a token and an audit file
    #[arg(long, value_name = "PATH")]
    cerbos: Option<PathBuf>,
    /// Only the row of this name; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the echo server, with the files in this folder
    #[arg(long, hide = true, requires = "port")]
    serve_echo: Option<PathBuf>,
    #[arg(long, hide = true)]
    port: Option<u16>,
}

/// Who is asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    /// Gatepost, over a bundle about this, that keeps records in this mode.
    Gatepost(Topic, &'static str),
    /// The tuned echo, with answers about this.
    Tuned(Topic),
    /// The stock echo.
    Stock,
    /// Cerbos, in this world.
    Cerbos,
}

/// One row of the table, before it is measured.
struct Subject {
    name: String,
    who: Who,
    questions: Questions,
}

/// What came of it all.
struct Found {
    rows: Vec<(String, Measured)>,
    /// The disk alone, in microseconds.
    fdatasync_us: f64,
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    if let (Some(folder), Some(port)) = (&options.serve_echo, options.port) {
        return runtime.block_on(server::echo(folder, port));
    }
    let subjects = chosen(&options)?;
    let found = runtime.block_on(measure(&options, subjects))?;
    if options.json { print_json(&options, &found) } else { print(&options, &found) }
}

/// The rows that are asked for.
fn chosen(options: &Options) -> Result<Vec<Subject>, Failure> {
    let all = subjects(options);
    if let Some(unknown) = options.only.iter().find(|only| all.iter().all(|subject| subject.name != **only)) {
        let names: Vec<_> = all.iter().map(|subject| subject.name.as_str()).collect();
        return Err(format!("no row is called `{unknown}`; there are: {}", names.join("; ")).into());
    }
    let wanted = |subject: &Subject| options.only.is_empty() || options.only.contains(&subject.name);
    Ok(all.into_iter().filter(wanted).collect())
}

fn subjects(options: &Options) -> Vec<Subject> {
    let (tuned, stock) = (Who::Tuned(Topic::Shop), Who::Stock);
    let (queued, durable) = (Who::Gatepost(Topic::Shop, "async"), Who::Gatepost(Topic::Shop, "durable"));
    let row = |name: &str, who, questions| Subject { name: name.to_owned(), who, questions };
    let mut rows = vec![
        row("tuned echo", tuned, Questions::Same),
        row("stock echo", stock, Questions::Same),
        row("Check, known, async", queued, Questions::Same),
        row("Check, known, durable", durable, Questions::Same),
        row("Check, new, async", queued, Questions::Fresh),
        row("Check, new, durable", durable, Questions::Fresh),
        row("tuned echo of 100", tuned, Questions::SameBatch),
        row("BatchCheck of 100, known, async", queued, Questions::SameBatch),
        row("BatchCheck of 100, new, async", queued, Questions::FreshBatch),
        row("tuned echo, streams", tuned, Questions::SameStream),
        row("CheckStream, known, async", queued, Questions::SameStream),
        row("CheckStream, known, durable", durable, Questions::SameStream),
    ];
    for count in &options.policies {
        let topic = Topic::Documents(*count);
        rows.push(row(&format!("tuned echo, {count} policies"), Who::Tuned(topic), Questions::Fresh));
        rows.push(row(&format!("Check, new, {count} policies"), Who::Gatepost(topic, "async"), Questions::Fresh));
    }
    if options.cerbos.is_some() {
        rows.push(row("Cerbos", Who::Cerbos, Questions::Cerbos));
    }
    rows
}

async fn measure(options: &Options, subjects: Vec<Subject>) -> Result<Found, Failure> {
    let clock = SystemClock::shared();
    let duration = Duration::try_from_secs_f64(options.seconds)?;
    let mut servers = Servers { running: HashMap::new(), cerbos: options.cerbos.clone() };
    let mut loads = Vec::new();
    for Subject { name, who, questions } in subjects {
        let running = servers.find_or_start(who).await?;
        let (fixture, server) = (&running.fixture, &running.process);
        let load = Load::connect(fixture, server, questions, options.connections, options.in_flight).await?;
        load.run(&clock, duration / 4).await?;
        loads.push((name, load, Vec::new()));
    }
    let folder = tempfile::tempdir()?;
    let mut syncs = Vec::new();
    for round in 1..=options.rounds.max(1) {
        writeln!(std::io::stderr(), "round {round} of {}", options.rounds.max(1))?;
        for (_, load, rounds) in &mut loads {
            rounds.push(load.run(&clock, duration).await?);
        }
        // In the folder for temporary files, where the servers keep their records too.
        syncs.extend(disk::sync_times(folder.path(), &clock)?);
    }
    let rows = loads.into_iter().map(|(name, _, rounds)| (name, Measured::median(&rounds))).collect();
    Ok(Found { rows, fdatasync_us: disk::percentile_us(&mut syncs, 0.5) })
}

/// The servers that run so far; none is started that no row needs.
struct Servers {
    running: HashMap<Who, Arc<Running>>,
    cerbos: Option<PathBuf>,
}

/// The process stands first, so that it ends before its folder goes.
struct Running {
    process: ServerProcess,
    fixture: Arc<Fixture>,
}

impl Servers {
    async fn find_or_start(&mut self, who: Who) -> Result<Arc<Running>, Failure> {
        match who {
            Who::Gatepost(topic, mode) => self.gatepost(topic, mode).await,
            Who::Tuned(topic) => self.echo(who, topic).await,
            Who::Stock => self.echo(who, Topic::Shop).await,
            Who::Cerbos => self.cerbos().await,
        }
    }

    async fn gatepost(&mut self, topic: Topic, mode: &'static str) -> Result<Arc<Running>, Failure> {
        let who = Who::Gatepost(topic, mode);
        if let Some(running) = self.running.get(&who) {
            return Ok(Arc::clone(running));
        }
        let fixture = Arc::new(Fixture::make(topic, mode)?);
        let process = ServerProcess::gatepost(&fixture).await?;
        Ok(self.keep(who, fixture, process))
    }

    /// An echo sends back what Gatepost has answered, so there has to be one to ask first.
    async fn echo(&mut self, who: Who, topic: Topic) -> Result<Arc<Running>, Failure> {
        if let Some(running) = self.running.get(&who) {
            return Ok(Arc::clone(running));
        }
        let fixture = Arc::clone(&self.gatepost(topic, "async").await?.fixture);
        let (one, many) = connection::first_answers(&fixture).await?;
        std::fs::write(fixture.path("check.answer"), one)?;
        std::fs::write(fixture.path("batch.answer"), many)?;
        let port = free_port()?;
        let mut command = if who == Who::Stock {
            let mut stock = Command::new(std::env::current_exe()?);
            stock.arg("--serve-echo");
            stock
        } else {
            let mut tuned = Command::new(env!("CARGO_BIN_EXE_gatepost"));
            tuned.args(["bench", "echo", "--folder"]);
            tuned
        };
        command.arg(fixture.path("")).arg("--port").arg(port.to_string());
        let process = ServerProcess::start(&mut command, port).await?;
        Ok(self.keep(who, fixture, process))
    }

    async fn cerbos(&mut self) -> Result<Arc<Running>, Failure> {
        let program = self.cerbos.as_ref().ok_or("no program of Cerbos is given")?;
        let fixture = Arc::new(Fixture::make(Topic::Shop, "async")?);
        let process = cerbos::start(program, &fixture).await?;
        Ok(self.keep(Who::Cerbos, fixture, process))
    }

    fn keep(&mut self, who: Who, fixture: Arc<Fixture>, process: ServerProcess) -> Arc<Running> {
        let running = Arc::new(Running { fixture, process });
        self.running.insert(who, Arc::clone(&running));
        running
    }
}

fn cpu_of(found: &Found, name: &str) -> f64 {
    found.rows.iter().find(|(row, _)| row == name).map_or(f64::NAN, |(_, row)| row.cpu_us())
}

fn print_json(options: &Options, found: &Found) -> Result<(), Failure> {
    let (tuned, stock) = (cpu_of(found, "tuned echo"), cpu_of(found, "stock echo"));
    let row = |(name, row): &(String, Measured)| {
        json!({
            "name": name,
            "calls_per_second": row.calls_per_second,
            "decisions_per_second": row.decisions_per_second(),
            "p50_us": row.p50_us,
            "p99_us": row.p99_us,
            "server_cpu_us_per_decision": row.cpu_us(),
            "cpu_to_tuned_echo": row.cpu_us() / tuned,
            "cpu_to_stock_echo": row.cpu_us() / stock,
        })
    };
    let run = json!({
        "seconds": options.seconds, "rounds": options.rounds.max(1), "connections": options.connections,
        "in_flight": options.in_flight, "cores": std::thread::available_parallelism()?.get(),
        "fdatasync_4k_p50_us": found.fdatasync_us, "rows": found.rows.iter().map(row).collect::<Vec<Value>>(),
    });
    Ok(writeln!(std::io::stdout(), "{run:#}")?)
}

fn print(options: &Options, found: &Found) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let (tuned, stock) = (cpu_of(found, "tuned echo"), cpu_of(found, "stock echo"));
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "",
        "calls/s",
        "decisions/s",
        "p50 µs",
        "p99 µs",
        "server CPU µs/decision",
        "CPU : tuned echo",
        "CPU : stock echo",
    ]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for (name, row) in &found.rows {
        table.add_row([
            name.clone(),
            format!("{:.0}", row.calls_per_second),
            format!("{:.0}", row.decisions_per_second()),
            format!("{:.0}", row.p50_us),
            format!("{:.0}", row.p99_us),
            format!("{:.1}", row.cpu_us()),
            format!("{:.2}", row.cpu_us() / tuned),
            format!("{:.2}", row.cpu_us() / stock),
        ]);
    }
    writeln!(out, "{table}")?;
    writeln!(
        out,
        "{} rounds of {} s each, {} connections, {} calls in flight, {} cores shared by servers and load;\n\
         the disk alone, 4 KiB and fdatasync, in the same run: {:.0} µs",
        options.rounds.max(1),
        options.seconds,
        options.connections,
        options.in_flight,
        std::thread::available_parallelism()?,
        found.fdatasync_us,
    )?;
    Ok(())
}
