//! `gatepost bench engine`: what the policies alone take, in this process: no network, no token, no cache, no record.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::Output;
use super::histogram::Histogram;
use super::show::{grouped, short};
use crate::cli::check::{ReadingArgs, counted, show_problems};
use crate::cli::test::rows::{Row, RowFile, SHARED, read};
use crate::cli::{complain, exit};
use crate::clock::SystemClock;
use crate::model::decision::Decision;
use crate::model::entity::EntityUid;
use crate::policy::{Bundle, BundleOptions, CallerData, RequestError, STACK, SubjectData};

/// Measure what the policies alone take: no network, no token, no record
#[derive(Debug, Args)]
#[command(after_long_help = "\
Each question is checked against the schema (that is the request) and ruled on, its fields included, and nothing is cached. \
Questions are the rows of policy tests, as `gatepost test` reads them; what they expect is not looked at.

    gatepost bench engine --policies policies
    gatepost bench engine --policies policies --question policies/tests/order.yaml --count 100000

Exit codes: 0 measured, 64 the command line is wrong, or a file of questions, 65 the policies are wrong.")]
pub struct EngineArgs {
    /// The bundle's folder
    #[arg(long, value_name = "DIR", default_value = "policies")]
    pub policies: PathBuf,
    /// A file of rows; DIR/tests/*.yaml when unset. shared.yaml beside it is read too
    #[arg(long, value_name = "FILE")]
    pub question: Option<PathBuf>,
    /// How often each question is put, 1 to 100000000 in all
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub count: u64,
    /// How the outcome looks
    #[arg(long, value_enum, default_value_t = Output::Human)]
    pub output: Output,
    /// How the bundle is read
    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// Runs the command.
///
/// # Errors
/// The console's own, or no thread.
pub fn run(args: &EngineArgs, console: &mut impl Write, colours: bool) -> io::Result<u8> {
    let options = args.reading.options();
    // Evaluation needs more stack than the first thread has.
    let measured = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || measure(args, &options))?;
        thread.join().map_err(|_| io::Error::other("the measurement ended early"))
    })?;
    match measured {
        Ok(measured) => {
            match args.output {
                Output::Human => human(console, &measured)?,
                Output::Json => json(console, &measured)?,
            }
            Ok(0)
        }
        Err(Stopped::Policies(problems)) => {
            show_problems(&mut anstream::stderr(), &problems, colours)?;
            complain("nothing was measured: the bundle is broken");
            Ok(exit::DATA)
        }
        Err(Stopped::Questions(why)) => {
            complain(&why);
            Ok(exit::CONFIGURATION)
        }
    }
}

enum Stopped {
    Policies(Vec<crate::policy::Problem>),
    Questions(String),
}

/// What one question took.
struct Measured {
    name: String,
    /// How it was ruled, or why no policy was asked.
    ruling: String,
    /// For each time it was put.
    request: Duration,
    ruled: Duration,
    rulings: Histogram,
    count: u64,
}

fn measure(args: &EngineArgs, options: &BundleOptions) -> Result<Vec<Measured>, Stopped> {
    let bundle = Bundle::load(&args.policies, options).map_err(|report| Stopped::Policies(report.problems))?;
    let rows = questions(args, options).map_err(Stopped::Questions)?;
    let each = (args.count / rows.len() as u64).max(1);
    Ok(rows.iter().map(|row| put(&bundle, options, row, each)).collect())
}

fn questions(args: &EngineArgs, options: &BundleOptions) -> Result<Vec<Row>, String> {
    let folder = args.policies.join("tests");
    let mut paths = match &args.question {
        Some(file) => vec![file.clone()],
        None => listed(&folder)?,
    };
    if let Some(file) = &args.question {
        let shared = file.with_file_name(SHARED);
        if shared.is_file() && shared != *file {
            paths.push(shared);
        }
    }
    let mut files = Vec::new();
    for path in paths {
        files.push(text(&path, options.limits.policy_file_bytes)?);
    }
    let rows = read(&files).map_err(|problems| {
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        told.join("\n")
    })?;
    if rows.is_empty() {
        return Err("there is no row to put: --question FILE".to_owned());
    }
    Ok(rows)
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: io::Error| format!("{}: {error}; say what to ask: --question FILE", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn text(path: &Path, limit: usize) -> Result<RowFile, String> {
    use std::io::Read as _;
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let mut text = String::new();
    let opened = std::fs::File::open(path).map_err(|error| failed(&error))?;
    opened.take(limit as u64 + 1).read_to_string(&mut text).map_err(|error| failed(&error))?;
    if text.len() > limit {
        return Err(failed(&format!("is longer than {limit} bytes")));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(RowFile { name, text })
}

/// Puts one question again and again.
fn put(bundle: &Bundle, options: &BundleOptions, row: &Row, count: u64) -> Measured {
    let caller =
        row.caller.clone().map(|id| CallerData { uid: EntityUid { entity_type: options.caller_type.clone(), id } });
    let subject = SubjectData { principal: row.principal.clone().into(), token: row.token.clone(), caller };
    let clock = SystemClock::shared();
    let (mut asking, mut ruling, mut rulings) = (Duration::ZERO, Duration::ZERO, Histogram::default());
    let mut told = String::new();
    for _ in 0..count {
        let began = clock.monotonic();
        let request = std::hint::black_box(bundle.request(&subject, &row.question, row.now));
        let asked = clock.monotonic();
        asking += asked - began;
        let said = match request {
            Ok(request) => {
                let said = std::hint::black_box(bundle.rule(&request));
                let took = clock.monotonic() - asked;
                ruling += took;
                rulings.record(took);
                match said.decision {
                    Decision::Allow => "ALLOW",
                    Decision::Deny => "DENY",
                    Decision::Conditional => "CONDITIONAL",
                }
            }
            Err(RequestError::Denied(code)) => code.as_str(),
            Err(RequestError::Invalid(_)) => "INVALID",
        };
        if told.is_empty() {
            said.clone_into(&mut told);
        }
    }
    let name = format!("{}: {}", row.file, row.name);
    let mean =
        |sum: Duration, of: u64| Duration::from_nanos(u64::try_from(sum.as_nanos()).unwrap_or(u64::MAX) / of.max(1));
    let ruled = mean(ruling, rulings.count());
    Measured { name, ruling: told, request: mean(asking, count), ruled, rulings, count }
}

/// Means of all questions: of the requests, and of the rulings.
fn means(measured: &[Measured]) -> (f64, f64) {
    let weighted = |figure: fn(&Measured) -> (Duration, u64)| {
        let (sum, count) = measured
            .iter()
            .map(figure)
            .fold((0.0, 0_u64), |(sum, count), (mean, of)| (sum + mean.as_secs_f64() * 1e9 * as_float(of), count + of));
        sum / as_float(count.max(1))
    };
    (weighted(|one| (one.request, one.count)), weighted(|one| (one.ruled, one.rulings.count())))
}

#[expect(clippy::cast_precision_loss, reason = "a mean")]
fn as_float(count: u64) -> f64 {
    count as f64
}

fn human(console: &mut impl Write, measured: &[Measured]) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["question", "ruling", "request ns", "ruling ns", "p99"]);
    for one in measured {
        let (request, ruled) = (one.request.as_secs_f64() * 1e9, one.ruled.as_secs_f64() * 1e9);
        let p99 = if one.rulings.count() == 0 { "-".to_owned() } else { short(one.rulings.at(0.99)) };
        let name: String = one.name.chars().take(64).collect();
        table.add_row([name, one.ruling.clone(), grouped(request), grouped(ruled), p99]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(console, "{}", table.trim_fmt())?;
    let (request, ruling) = means(measured);
    let questions = counted(measured.len(), "question", "questions");
    let count: u64 = measured.iter().map(|one| one.count).sum();
    writeln!(
        console,
        "\n{questions}, put {count} times: a request takes {} ns and a ruling {} ns on average",
        grouped(request),
        grouped(ruling)
    )
}

fn json(console: &mut impl Write, measured: &[Measured]) -> io::Result<()> {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let questions: Vec<Value> = measured
        .iter()
        .map(|one| {
            json!({
                "name": one.name, "ruling": one.ruling, "count": one.count, "rulings": one.rulings.count(),
                "request_ns": nanos(one.request), "ruling_ns": nanos(one.ruled),
                "ruling_p50_ns": nanos(one.rulings.at(0.5)), "ruling_p99_ns": nanos(one.rulings.at(0.99)),
            })
        })
        .collect();
    let (request, ruling) = means(measured);
    let count: u64 = measured.iter().map(|one| one.count).sum();
    let object = json!({ "count": count, "request_ns": request, "ruling_ns": ruling, "questions": questions });
    serde_json::to_writer_pretty(&mut *console, &object)?;
    writeln!(console)
}
