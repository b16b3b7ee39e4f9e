//! What a ruling costs that is not cached, from a checked question to the mask, with few policies and with many.
//!
//! ```text
//! cargo bench --bench engine -- --policies 10 --policies 10000
//! ```
//!
//! Bundles are generated (`support/generated.rs`). Each is measured in a process of its own, so that memory is its own too.
//! Times are what the kernel charged to the thread, the median over batches; questions differ from each other.

use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, SystemTime};

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use gatepost::model::decision::Decision;
use gatepost::model::entity::{EntityId, EntityType, EntityUid, RawEntity, RawRecord, RawValue};
use gatepost::model::question::{FieldMode, FieldQuery, FieldSelection, Question, Resource};
use gatepost::policy::{Bundle, BundleFiles, BundleOptions, SubjectData};
use serde::{Deserialize, Serialize};

#[expect(dead_code, reason = "the other benches ask for more")]
mod support;

use support::process::{charged, resident};
use support::{Failure, generated};

/// The same as in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures rulings over generated bundles.
#[derive(Parser)]
struct Options {
    /// How many policies; may be repeated
    #[arg(long)]
    policies: Vec<usize>,
    /// Batches of each measurement; the median is printed
    #[arg(long, default_value_t = 9)]
    batches: usize,
    /// Questions in a batch
    #[arg(long, default_value_t = 2000)]
    questions: usize,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the process that measures one bundle
    #[arg(long, hide = true)]
    alone: bool,
}

/// What was measured over one bundle. Times are CPU, in nanoseconds.
#[derive(Serialize, Deserialize)]
struct Found {
    policies: usize,
    load_ns: u64,
    memory_bytes: u64,
    /// What holds a question against the schema and gathers its entities, with a mask of 20 fields.
    check_ns: u64,
    /// A ruling without a mask, about a document of 20 fields.
    plain_ns: u64,
    /// The same of 100 fields.
    plain_of_100_ns: u64,
    /// A ruling with the mask of all of so many fields.
    mask_5_ns: u64,
    mask_20_ns: u64,
    mask_100_ns: u64,
    /// Policies that determined a ruling, on average.
    determining: f64,
    /// The share of questions that were allowed.
    allowed: f64,
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let mut out = std::io::stdout().lock();
    if options.alone {
        for policies in &options.policies {
            writeln!(out, "{}", serde_json::to_string(&measure(*policies, &options)?)?)?;
        }
        return Ok(());
    }
    let sizes: &[usize] =
        if options.policies.is_empty() { &[10, 100, 1000, 10_000, 100_000] } else { &options.policies };
    let mut all = Vec::new();
    for size in sizes {
        writeln!(std::io::stderr(), "{size} policies")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--alone", "--policies", &size.to_string(), "--batches", &options.batches.to_string()]);
        let found = command.args(["--questions", &options.questions.to_string()]).output()?;
        if !found.status.success() {
            return Err(String::from_utf8_lossy(&found.stderr).into_owned().into());
        }
        all.push(serde_json::from_slice::<Found>(&found.stdout)?);
    }
    if options.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
    } else {
        writeln!(out, "{}", table(&all))?;
    }
    Ok(())
}

const HEADINGS: [&str; 12] = [
    "policies",
    "load",
    "memory",
    "check (20)",
    "rule (no mask)",
    "rule (no mask of 100)",
    "rule (5)",
    "rule (20)",
    "rule (100)",
    "both (20)",
    "determining",
    "allowed",
];

fn table(all: &[Found]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(HEADINGS);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for found in all {
        table.add_row([
            found.policies.to_string(),
            format!("{:.2?}", Duration::from_nanos(found.load_ns)),
            format!("{} MiB", found.memory_bytes / 1024 / 1024),
            format!("{} ns", found.check_ns),
            format!("{} ns", found.plain_ns),
            format!("{} ns", found.plain_of_100_ns),
            format!("{} ns", found.mask_5_ns),
            format!("{} ns", found.mask_20_ns),
            format!("{} ns", found.mask_100_ns),
            format!("{} ns", found.check_ns + found.mask_20_ns),
            format!("{:.1}", found.determining),
            format!("{:.0} %", found.allowed * 100.0),
        ]);
    }
    table
}

fn measure(policies: usize, options: &Options) -> Result<Found, Failure> {
    let mut raised = BundleOptions::default();
    raised.limits.policies = raised.limits.policies.max(policies);
    let files =
        BundleFiles { schemas: vec![generated::schema()], policies: generated::policies(policies), entities: None };
    let before = charged()?;
    let bundle = Bundle::compile(files, &raised).map_err(|report| report.to_string())?;
    let load = charged()?.saturating_sub(before);

    let ask = |kind, masked| rulings(&bundle, policies, kind, masked, options);
    let (plain, plain_of_100) = (ask(20, false)?, ask(100, false)?);
    let (five, twenty, hundred) = (ask(5, true)?, ask(20, true)?, ask(100, true)?);
    Ok(Found {
        policies,
        load_ns: u64::try_from(load.as_nanos())?,
        memory_bytes: resident("self")?,
        check_ns: twenty.check_ns,
        plain_ns: plain.rule_ns,
        plain_of_100_ns: plain_of_100.rule_ns,
        mask_5_ns: five.rule_ns,
        mask_20_ns: twenty.rule_ns,
        mask_100_ns: hundred.rule_ns,
        determining: twenty.determining,
        allowed: twenty.allowed,
    })
}

/// What one kind of question took.
struct Rulings {
    check_ns: u64,
    rule_ns: u64,
    determining: f64,
    allowed: f64,
}

fn rulings(bundle: &Bundle, policies: usize, kind: usize, masked: bool, options: &Options) -> Result<Rulings, Failure> {
    let asked: Vec<(SubjectData, Question)> =
        (0..options.questions).map(|number| question(number, kind, masked, policies)).collect::<Result<_, _>>()?;
    let (mut checks, mut rules) = (Vec::new(), Vec::new());
    let (mut determining, mut allowed) = (0, 0);
    let each = |took: Duration| u64::try_from(took.as_nanos() / asked.len().max(1) as u128);
    for _ in 0..options.batches {
        let start = charged()?;
        let requests: Vec<_> = asked
            .iter()
            .map(|(subject, question)| bundle.request(subject, question, SystemTime::UNIX_EPOCH))
            .collect::<Result<_, _>>()
            .map_err(|error| format!("{error:?}"))?;
        let between = charged()?;
        let found: Vec<_> = requests.iter().map(|request| bundle.rule(request)).collect();
        let end = charged()?;
        checks.push(each(between.saturating_sub(start))?);
        rules.push(each(end.saturating_sub(between))?);
        determining = found.iter().map(|ruling| ruling.determining.len()).sum();
        allowed = found.iter().filter(|ruling| ruling.decision == Decision::Allow).count();
    }
    let share = |count: usize| count as f64 / options.questions as f64;
    Ok(Rulings {
        check_ns: median(&mut checks),
        rule_ns: median(&mut rules),
        determining: share(determining),
        allowed: share(allowed),
    })
}

fn question(number: usize, kind: usize, masked: bool, policies: usize) -> Result<(SubjectData, Question), Failure> {
    let group = (number * 7) % generated::folders(policies);
    let user = number % generated::USERS.min(policies);
    let uid = |name: &str, id: String| -> Result<EntityUid, Failure> {
        Ok(EntityUid { entity_type: EntityType::parse(name)?, id: EntityId::parse(&id, 256)? })
    };
    let subject = SubjectData {
        principal: RawEntity {
            uid: uid("User", format!("u{user}"))?,
            attributes: RawRecord::from_iter([("level".to_owned(), RawValue::Integer((number % 5) as i64))]),
            parents: vec![uid("Role", format!("r{group}"))?, uid("Role", "staff".to_owned())?],
        }
        .into(),
        token: None,
        caller: None,
    };
    let owner = [("type", "User".to_owned()), ("id", format!("u{user}"))];
    let owner = owner.into_iter().map(|(name, value)| (name.to_owned(), RawValue::Text(value))).collect();
    let name = format!("D{kind}");
    let document = uid(&name, format!("d{}", group * 10 + 2))?;
    let fields = FieldQuery { selection: FieldSelection::All, mode: Some(FieldMode::Filter) };
    let question = Question {
        action: format!("{name}.read"),
        resource: Resource {
            entity_type: document.entity_type,
            id: Some(document.id),
            attributes: RawRecord::from_iter([("owner".to_owned(), RawValue::Record(owner))]),
            parents: vec![uid("Folder", format!("f{group}"))?],
        },
        fields: masked.then_some(fields),
        context: RawRecord::from_iter([("mfa".to_owned(), RawValue::Bool(!number.is_multiple_of(4)))]),
        entities: [].into(),
        bypass_cache: true,
    };
    Ok((subject, question))
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
