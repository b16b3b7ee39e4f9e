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

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use gatepost::clock::SystemClock;
use serde_json::json;

#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/load.rs"]
mod load;
#[path = "support/server.rs"]
mod server;

use fixture::Fixture;
use load::{Load, Measured, Questions};
use server::ServerProcess;

type Failure = Box<dyn std::error::Error + Send + Sync>;

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
    /// Calls under way at once, over all connections
    #[arg(long, default_value_t = 32)]
    in_flight: usize,
    /// Only the rows whose names hold this
    #[arg(long)]
    only: Option<String>,
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

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    if let (Some(folder), Some(port)) = (&options.serve_echo, options.port) {
        return runtime.block_on(server::echo(folder, port));
    }
    let rows = runtime.block_on(measure(&options))?;
    print(&options, &rows)
}

async fn measure(options: &Options) -> Result<Vec<(&'static str, Measured)>, Failure> {
    let queued = gatepost("async").await?;
    let durable = gatepost("durable").await?;
    let fixture = &queued.0;
    let (one, many) = load::first_answers(fixture, &queued.1).await?;
    std::fs::write(fixture.path("check.answer"), one)?;
    std::fs::write(fixture.path("batch.answer"), many)?;
    let port = free_port()?;
    let mut stock = Command::new(std::env::current_exe()?);
    stock.arg("--serve-echo").arg(fixture.path("")).arg("--port").arg(port.to_string());
    let stock = ServerProcess::start(&mut stock, port).await?;
    let port = free_port()?;
    let mut tuned = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    tuned.args(["bench", "echo", "--folder"]).arg(fixture.path("")).arg("--port").arg(port.to_string());
    let tuned = ServerProcess::start(&mut tuned, port).await?;

    let (queued, durable) = ((&queued.0, &queued.1), (&durable.0, &durable.1));
    let (stock, tuned) = ((queued.0, &stock), (queued.0, &tuned));
    let subjects: [(&'static str, (&Fixture, &ServerProcess), Questions); 12] = [
        ("tuned echo", tuned, Questions::Same),
        ("stock echo", stock, Questions::Same),
        ("Check, known, async", queued, Questions::Same),
        ("Check, known, durable", durable, Questions::Same),
        ("Check, new, async", queued, Questions::Fresh),
        ("Check, new, durable", durable, Questions::Fresh),
        ("tuned echo of 100", tuned, Questions::SameBatch),
        ("BatchCheck of 100, known, async", queued, Questions::SameBatch),
        ("BatchCheck of 100, new, async", queued, Questions::FreshBatch),
        ("tuned echo, streams", tuned, Questions::SameStream),
        ("CheckStream, known, async", queued, Questions::SameStream),
        ("CheckStream, known, durable", durable, Questions::SameStream),
    ];
    let clock = SystemClock::shared();
    let duration = Duration::try_from_secs_f64(options.seconds)?;
    let mut loads = Vec::new();
    for (name, (fixture, server), questions) in subjects {
        if options.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let load = Load::connect(fixture, server, questions, options.connections, options.in_flight).await?;
        load.run(&clock, duration / 4).await?;
        loads.push((name, load, Vec::new()));
    }
    for round in 1..=options.rounds.max(1) {
        writeln!(std::io::stderr(), "round {round} of {}", options.rounds.max(1))?;
        for (_, load, rounds) in &mut loads {
            rounds.push(load.run(&clock, duration).await?);
        }
    }
    Ok(loads.into_iter().map(|(name, _, rounds)| (name, Measured::median(&rounds))).collect())
}

/// The real server, keeping records in this mode.
async fn gatepost(mode: &str) -> Result<(Fixture, ServerProcess), Failure> {
    let fixture = Fixture::make(free_port()?, free_port()?, mode)?;
    let mut gatepost = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    gatepost.arg("serve").arg("--config").arg(fixture.config());
    let server = ServerProcess::start(gatepost.stdout(Stdio::null()).stderr(Stdio::null()), fixture.port()).await?;
    Ok((fixture, server))
}

fn print(options: &Options, rows: &[(&'static str, Measured)]) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let cpu_of = |name: &str| rows.iter().find(|(row, _)| *row == name).map_or(f64::NAN, |(_, echo)| echo.cpu_us());
    let (tuned, stock) = (cpu_of("tuned echo"), cpu_of("stock echo"));
    if options.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, row)| {
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
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(());
    }
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
    for (name, row) in rows {
        table.add_row([
            (*name).to_owned(),
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
        "{} rounds of {} s each, {} connections, {} calls in flight, {} cores shared by servers and load",
        options.rounds.max(1),
        options.seconds,
        options.connections,
        options.in_flight,
        std::thread::available_parallelism()?,
    )?;
    Ok(())
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Reads a PEM file as rustls wants it.
fn pem(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()).into())
}
