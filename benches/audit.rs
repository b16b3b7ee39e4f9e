//! What it costs to keep a record before the answer leaves.
//!
//! ```text
//! cargo bench --bench audit --features bench-unaudited -- --seconds 2 --in-flight 256
//! ```
//!
//! In one run, against child processes on loopback: the real `gatepost serve` in each of its modes (`async`, `written`,
//! `durable`) and, in a build with the feature `bench-unaudited` alone, without records at all. The same questions go to
//! each; rounds are interleaved and medians over rounds are printed. Between rounds the disk itself is measured, by
//! appending 4 KiB and `fdatasync`, because a time of `durable` means something only beside it. Compare the ratios.

use std::io::Write as _;
use std::time::Duration;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use gatepost::clock::SystemClock;
use serde_json::json;

#[expect(dead_code, reason = "the other benches ask for more")]
mod support;

use support::fixture::Fixture;
use support::load::{Load, Measured, Questions};
use support::questions::Topic;
use support::server::{self, ServerProcess};
use support::{Failure, disk};

/// Compares the modes of the audit trail.
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
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

/// The disk by itself, in microseconds.
#[derive(Clone, Copy)]
struct Disk {
    p50: f64,
    p99: f64,
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let (rows, disk) = tokio::runtime::Runtime::new()?.block_on(measure(&options))?;
    print(&options, &rows, disk)
}

async fn measure(options: &Options) -> Result<(Vec<(&'static str, Measured)>, Disk), Failure> {
    let mut modes = vec!["async", "written", "durable"];
    if cfg!(feature = "bench-unaudited") {
        modes.insert(0, "none");
    }
    let clock = SystemClock::shared();
    let duration = Duration::try_from_secs_f64(options.seconds)?;
    let mut subjects = Vec::new();
    for mode in modes {
        let fixture = Fixture::make(Topic::Shop, if mode == "none" { "async" } else { mode })?;
        let mut gatepost = server::gatepost(&fixture);
        if mode == "none" {
            gatepost.env("GATEPOST_BENCH_UNAUDITED", "1");
        }
        let server = ServerProcess::start(&mut gatepost, fixture.port()).await?;
        let load = Load::connect(&fixture, &server, Questions::Same, options.connections, options.in_flight).await?;
        load.run(&clock, duration / 4).await?;
        // The server before its folder: they end in this order.
        subjects.push((mode, server, fixture, load, Vec::new()));
    }
    let folder = subjects.first().map(|(_, _, fixture, ..)| fixture.path("")).ok_or("nothing to measure")?;
    let mut syncs = Vec::new();
    for round in 1..=options.rounds.max(1) {
        writeln!(std::io::stderr(), "round {round} of {}", options.rounds.max(1))?;
        for (_, _, _, load, rounds) in &mut subjects {
            rounds.push(load.run(&clock, duration).await?);
        }
        syncs.extend(disk::sync_times(&folder, &clock)?);
    }
    let disk = Disk { p50: disk::percentile_us(&mut syncs, 0.5), p99: disk::percentile_us(&mut syncs, 0.99) };
    Ok((subjects.into_iter().map(|(mode, _, _, _, rounds)| (mode, Measured::median(&rounds))).collect(), disk))
}

fn print(options: &Options, rows: &[(&'static str, Measured)], disk: Disk) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let find = |mode: &str| rows.iter().find(|(name, _)| *name == mode).map(|(_, row)| *row);
    let queued = find("async").ok_or("nothing was measured")?;
    // What is not kept at all where that was measured, and what is only queued where it was not.
    let base = find("none").unwrap_or(queued);
    let ratio = |row: &Measured, to: &Measured| row.calls_per_second / to.calls_per_second;
    if options.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(mode, row)| {
                json!({
                    "mode": mode, "records_per_second": row.calls_per_second, "p50_us": row.p50_us, "p99_us": row.p99_us,
                    "added_p50_us": row.p50_us - base.p50_us, "added_p99_us": row.p99_us - base.p99_us,
                    "server_cpu_us": row.cpu_us(), "throughput_of_async": ratio(row, &queued),
                    "throughput_of_none": find("none").map(|none| ratio(row, &none)),
                })
            })
            .collect();
        let run = json!({
            "seconds": options.seconds, "rounds": options.rounds, "connections": options.connections,
            "in_flight": options.in_flight, "cores": std::thread::available_parallelism()?.get(),
            "fdatasync_4k_p50_us": disk.p50, "fdatasync_4k_p99_us": disk.p99, "rows": rows,
        });
        return Ok(writeln!(out, "{run:#}")?);
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "mode",
        "records/s",
        "p50 µs",
        "p99 µs",
        "added p50 µs",
        "added p99 µs",
        "server CPU µs",
        "throughput : async",
        "throughput : none",
    ]);
    for (mode, row) in rows {
        table.add_row([
            (*mode).to_owned(),
            if *mode == "none" { "0".to_owned() } else { format!("{:.0}", row.calls_per_second) },
            format!("{:.0}", row.p50_us),
            format!("{:.0}", row.p99_us),
            format!("{:.0}", row.p50_us - base.p50_us),
            format!("{:.0}", row.p99_us - base.p99_us),
            format!("{:.1}", row.cpu_us()),
            format!("{:.2}", ratio(row, &queued)),
            find("none").map_or_else(|| "not measured".to_owned(), |none| format!("{:.2}", ratio(row, &none))),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(out, "{table}")?;
    Ok(writeln!(
        out,
        "{} rounds of {} s each, {} connections, {} calls in flight, {} cores shared by server and load;\n\
         added: beside `{}`; the disk alone, 4 KiB and fdatasync, in the same run: p50 {:.0} µs, p99 {:.0} µs",
        options.rounds.max(1),
        options.seconds,
        options.connections,
        options.in_flight,
        std::thread::available_parallelism()?.get(),
        if find("none").is_some() { "none" } else { "async" },
        disk.p50,
        disk.p99,
    )?)
}
