//! What Gatepost takes of a machine: how long until it serves, and how much memory it holds.
//!
//! ```text
//! cargo bench --bench footprint
//! ```
//!
//! The real `gatepost serve` over generated bundles. It is ready when the health service says `SERVING` to a client with a
//! certificate; the time counts from before its process is made. It is killed under load, too, and started over as many records
//! as a start looks at (THREATS F1). Memory is what is resident (`VmRSS`): of a server that
//! nobody has asked, and of one that keeps as many rulings as questions were put to it. That it keeps them is not taken for
//! granted: after the memory is read the same questions are put again, and its metrics have to count as many hits.

use std::io::Write as _;
use std::time::Duration;

use clap::Parser;
use gatepost::clock::{SharedClock, SystemClock};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[expect(dead_code, reason = "the other benches ask for more")]
mod support;

use support::fixture::Fixture;
use support::load::{Load, Questions};
use support::questions::Topic;
use support::server::{self, ServerProcess};
use support::{Failure, connection, process};

const MIB: u64 = 1024 * 1024;

/// Measures start and memory.
#[derive(Parser)]
struct Options {
    /// Policies of the small bundle
    #[arg(long, default_value_t = 100)]
    few: usize,
    /// Policies of the large one
    #[arg(long, default_value_t = 10_000)]
    many: usize,
    /// Rulings that the server with the large one is to keep
    #[arg(long, default_value_t = 100_000)]
    rulings: u64,
    /// MiB of records that the one that is killed leaves to its next start
    #[arg(long, default_value_t = 256)]
    records: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

/// What was measured.
struct Found {
    start_few: Duration,
    start_many: Duration,
    start_killed: Duration,
    idle: u64,
    full: u64,
    /// Questions that were in the cache when they were put again.
    hits: u64,
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let found = tokio::runtime::Runtime::new()?.block_on(measure(&options))?;
    print(&options, &found)
}

async fn measure(options: &Options) -> Result<Found, Failure> {
    let clock = SystemClock::shared();
    let fixture = Fixture::make(Topic::Documents(options.few), "async")?;
    let (small, start_few) = start(&fixture, &clock).await?;
    let idle = settled(&small).await?;
    drop(small);
    let start_killed = start_killed(&fixture, &clock, options.records * MIB).await?;

    // Nothing may end while the rest is being asked, and there has to be room: 64 MiB, as it comes, hold about half of these.
    let (entries, room) = (options.rulings + options.rulings / 10, format!("{}KiB", options.rulings * 4));
    let cache = json!({ "decisions": entries, "decision_bytes": room, "decision_ttl": "10m" });
    let settings = [("/cache", cache)];
    let fixture = Fixture::with(Topic::Documents(options.many), "async", &settings)?;
    let (large, start_many) = start(&fixture, &clock).await?;
    let load = Load::connect(&fixture, &large, Questions::FreshBatch, 4, 4).await?;
    load.ask_about(0..options.rulings).await?;
    let full = settled(&large).await?;
    let before = hits(&fixture).await?;
    load.ask_about(0..options.rulings).await?;
    let hits = hits(&fixture).await? - before;
    if hits < options.rulings {
        return Err(format!("of {} rulings only {hits} were kept", options.rulings).into());
    }
    Ok(Found { start_few, start_many, start_killed, idle, full, hits })
}

/// The server, and how long it took until it served.
async fn start(fixture: &Fixture, clock: &SharedClock) -> Result<(ServerProcess, Duration), Failure> {
    let begun = clock.monotonic();
    let mut server = ServerProcess::spawn(&mut server::gatepost(fixture), fixture.port())?;
    while !connection::serves(fixture).await {
        server.must_run()?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok((server, clock.monotonic() - begun))
}

/// Kills a server that is asked as fast as it answers once its spool holds so many bytes, and starts it again over them.
async fn start_killed(fixture: &Fixture, clock: &SharedClock, bytes: u64) -> Result<Duration, Failure> {
    let (server, _) = start(fixture, clock).await?;
    let load = Load::connect(fixture, &server, Questions::FreshBatch, 4, 4).await?;
    let killed = async {
        while spool(fixture)? < bytes {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(server);
        Ok::<_, Failure>(())
    };
    tokio::select! {
        biased;
        killed = killed => killed?,
        ended = load.ask_about(0..u64::MAX / 2) => return Err(format!("the load ended before the kill: {ended:?}").into()),
    }
    let (_server, after) = start(fixture, clock).await?;
    Ok(after)
}

/// Bytes of its segments.
fn spool(fixture: &Fixture) -> Result<u64, Failure> {
    std::fs::read_dir(fixture.path("audit"))?.try_fold(0, |bytes, file| {
        let file = file?;
        // The reserve, the lock and cursors are no records.
        let is_segment = file.file_name().to_string_lossy().starts_with("segment-");
        Ok(bytes + if is_segment { file.metadata()?.len() } else { 0 })
    })
}

/// Its memory, once records that were under way are on the disk and what a start leaves is given back.
async fn settled(server: &ServerProcess) -> Result<u64, Failure> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    process::resident(&server.id().to_string())
}

/// How many questions found their ruling in the cache so far, by the server's own count.
async fn hits(fixture: &Fixture) -> Result<u64, Failure> {
    let mut operators = tokio::net::TcpStream::connect(("127.0.0.1", fixture.ops_port())).await?;
    operators.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    operators.read_to_string(&mut text).await?;
    let counted = |line: &&str| {
        let of = |label| line.contains(label);
        line.starts_with("gatepost_cache_lookups_total{") && of("cache=\"decisions\"") && of("result=\"hit\"")
    };
    let Some(line) = text.lines().find(counted) else { return Ok(0) };
    Ok(line.rsplit(' ').next().ok_or("a metric without a value")?.parse::<f64>()? as u64)
}

fn print(options: &Options, found: &Found) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    if options.json {
        let run = json!({
            "policies_few": options.few, "policies_many": options.many, "rulings": options.rulings,
            "start_few_s": found.start_few.as_secs_f64(), "start_many_s": found.start_many.as_secs_f64(),
            "records_mib": options.records, "start_killed_s": found.start_killed.as_secs_f64(),
            "idle_bytes": found.idle, "full_bytes": found.full, "hits": found.hits,
        });
        return Ok(writeln!(out, "{run:#}")?);
    }
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    Ok(writeln!(
        out,
        "ready with {} policies after {:.3} s, with {} after {:.3} s, killed under load and over {} MiB of records after {:.3} s\n\
         resident: {:.1} MiB idle with {0} policies; {:.1} MiB with {2} policies and {} rulings, of which {} were found again",
        options.few,
        found.start_few.as_secs_f64(),
        options.many,
        found.start_many.as_secs_f64(),
        options.records,
        found.start_killed.as_secs_f64(),
        mib(found.idle),
        mib(found.full),
        options.rulings,
        found.hits,
    )?)
}
