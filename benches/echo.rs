//! What a decision costs beside a call that decides nothing.
//!
//! ```text
//! cargo bench --bench echo -- --seconds 2 --connections 4 --in-flight 32
//! ```
//!
//! In one run, against child processes on loopback: a bare tonic server that sends back stored answers over the same
//! mutual TLS, and the real `gatepost serve` with the bundle in `policies/`. The same requests go to both, and the stored
//! answers are Gatepost's own, so that messages have the same size. Rounds are interleaved (echo, hit, miss, echo, ..),
//! so that a machine that gets slower harms all alike; medians over rounds are printed. CPU is what the kernel charged
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

/// One row: what is asked of whom.
struct Subject<'a> {
    name: &'static str,
    server: &'a ServerProcess,
    questions: Questions,
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
    let fixture = Fixture::make(free_port()?, free_port()?, "written")?;
    let mut gatepost = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    gatepost.arg("serve").arg("--config").arg(fixture.config());
    let gatepost = ServerProcess::start(gatepost.stdout(Stdio::null()), fixture.port()).await?;

    let (one, many) = load::first_answers(&fixture, &gatepost).await?;
    std::fs::write(fixture.path("check.answer"), one)?;
    std::fs::write(fixture.path("batch.answer"), many)?;
    let port = free_port()?;
    let mut echo = Command::new(std::env::current_exe()?);
    echo.arg("--serve-echo").arg(fixture.path("")).arg("--port").arg(port.to_string());
    let echo = ServerProcess::start(&mut echo, port).await?;

    let subjects = [
        Subject { name: "echo", server: &echo, questions: Questions::Same },
        Subject { name: "Check, cache hit", server: &gatepost, questions: Questions::Same },
        Subject { name: "Check, cache miss", server: &gatepost, questions: Questions::Fresh },
        Subject { name: "echo of 100", server: &echo, questions: Questions::SameBatch },
        Subject { name: "BatchCheck of 100, cache hits", server: &gatepost, questions: Questions::SameBatch },
        Subject { name: "BatchCheck of 100, cache misses", server: &gatepost, questions: Questions::FreshBatch },
    ];
    let clock = SystemClock::shared();
    let duration = Duration::try_from_secs_f64(options.seconds)?;
    let mut loads = Vec::new();
    for subject in &subjects {
        let load =
            Load::connect(&fixture, subject.server, subject.questions, options.connections, options.in_flight).await?;
        load.run(&clock, duration / 4).await?;
        loads.push((subject.name, load, Vec::new()));
    }
    for round in 1..=options.rounds.max(1) {
        writeln!(std::io::stderr(), "round {round} of {}", options.rounds.max(1))?;
        for (_, load, rounds) in &mut loads {
            rounds.push(load.run(&clock, duration).await?);
        }
    }
    Ok(loads.into_iter().map(|(name, _, rounds)| (name, Measured::median(&rounds))).collect())
}

fn print(options: &Options, rows: &[(&'static str, Measured)]) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let (_, one_echo) = rows.first().ok_or("nothing was measured")?;
    // Each row beside the echo of the same messages.
    let echo = |row: &Measured| {
        let same = |(name, echo): &&(&str, Measured)| name.starts_with("echo") && echo.per_call == row.per_call;
        rows.iter().find(same).map_or(*one_echo, |(_, echo)| *echo)
    };
    if options.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, row)| {
                json!({
                    "name": name, "calls_per_second": row.calls_per_second, "decisions_per_second": row.decisions_per_second(),
                    "p50_us": row.p50_us, "p99_us": row.p99_us, "server_cpu_us_per_decision": row.cpu_us(),
                    "cpu_ratio_to_one_echo": row.cpu_us() / one_echo.cpu_us(), "cpu_ratio_to_echo": row.cpu_us() / echo(row).cpu_us(),
                    "p50_ratio_to_echo": row.p50_us / echo(row).p50_us, "p99_ratio_to_echo": row.p99_us / echo(row).p99_us,
                })
            })
            .collect();
        let run = json!({
            "seconds": options.seconds, "rounds": options.rounds, "connections": options.connections,
            "in_flight": options.in_flight, "cores": std::thread::available_parallelism()?.get(), "rows": rows,
        });
        return Ok(writeln!(out, "{run:#}")?);
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "",
        "calls/s",
        "decisions/s",
        "p50 µs",
        "p99 µs",
        "server CPU µs/decision",
        "CPU : one echo",
        "CPU : echo",
        "p50 : echo",
        "p99 : echo",
    ]);
    for (name, row) in rows {
        table.add_row([
            (*name).to_owned(),
            format!("{:.0}", row.calls_per_second),
            format!("{:.0}", row.decisions_per_second()),
            format!("{:.0}", row.p50_us),
            format!("{:.0}", row.p99_us),
            format!("{:.1}", row.cpu_us()),
            format!("{:.2}", row.cpu_us() / one_echo.cpu_us()),
            format!("{:.2}", row.cpu_us() / echo(row).cpu_us()),
            format!("{:.2}", row.p50_us / echo(row).p50_us),
            format!("{:.2}", row.p99_us / echo(row).p99_us),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(out, "{table}")?;
    Ok(writeln!(
        out,
        "{} rounds of {} s each, {} connections, {} calls in flight, {} cores shared by server and load;\n\
         `echo` is the echo of the same messages, `one echo` that of a single question",
        options.rounds.max(1),
        options.seconds,
        options.connections,
        options.in_flight,
        std::thread::available_parallelism()?.get()
    )?)
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Reads a PEM file as rustls wants it.
fn pem(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()).into())
}
