//! What a ruling costs that is not cached, from a checked question to the mask, with few policies and with many.
//!
//! ```text
//! cargo bench --bench engine -- --policies 10 --policies 10000
//! ```
//!
//! Bundles are generated: of ten policies one forbids and one is a rule about attributes that no scope narrows down; the
//! others name a document, a user, a role or a folder. Each bundle is measured in a process of its own, so that memory is
//! its own too. Times are what the kernel charged to the thread, the median over batches; questions differ from each other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, SystemTime};

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use gatepost::model::entity::{EntityId, EntityType, EntityUid, RawEntity, RawValue};
use gatepost::model::question::{FieldMode, FieldQuery, FieldSelection, Question, Resource};
use gatepost::policy::{Bundle, BundleFiles, BundleOptions, SourceFile, SubjectData};

type Failure = Box<dyn std::error::Error + Send + Sync>;

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
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the process that measures one bundle
    #[arg(long, hide = true)]
    alone: bool,
}

/// The action and type of a document with so many fields.
const KINDS: [usize; 3] = [5, 20, 100];
const USERS: usize = 1000;

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    if options.alone {
        for policies in &options.policies {
            measure(*policies, &options)?;
        }
        return Ok(());
    }
    let sizes = if options.policies.is_empty() { vec![10, 100, 1000, 10_000, 100_000] } else { options.policies };
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(HEADINGS);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for size in sizes {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--alone", "--policies", &size.to_string(), "--batches", &options.batches.to_string()]);
        let found = command.args(["--questions", &options.questions.to_string()]).output()?;
        if !found.status.success() {
            return Err(String::from_utf8_lossy(&found.stderr).into_owned().into());
        }
        table.add_row(String::from_utf8(found.stdout)?.trim().split('|').map(str::to_owned).collect::<Vec<_>>());
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{table}")?;
    Ok(())
}

const HEADINGS: [&str; 11] = [
    "policies",
    "load",
    "memory",
    "check (20)",
    "rule (no mask)",
    "rule (5)",
    "rule (20)",
    "rule (100)",
    "both (20)",
    "determining",
    "allowed",
];

fn measure(policies: usize, options: &Options) -> Result<(), Failure> {
    let limits = BundleOptions::default();
    let mut raised = limits.clone();
    raised.limits.policies = raised.limits.policies.max(policies);
    let files = BundleFiles {
        schemas: vec![SourceFile { name: "bench.cedarschema".to_owned(), text: schema() }],
        policies: texts(policies),
        entities: None,
    };
    let before = charged()?;
    let bundle = Bundle::compile(files, &raised).map_err(|report| report.to_string())?;
    let load = charged()?.saturating_sub(before);

    let mut rule = Vec::new();
    let (mut check, mut determining, mut allowed) = (0, 0, 0);
    for (kind, masked) in [(20, false), (5, true), (20, true), (100, true)] {
        let asked: Vec<(SubjectData, Question)> =
            (0..options.questions).map(|number| question(number, kind, masked, policies)).collect::<Result<_, _>>()?;
        let (mut checks, mut rulings) = (Vec::new(), Vec::new());
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
            checks.push(between.saturating_sub(start).as_nanos() as usize / asked.len());
            rulings.push(end.saturating_sub(between).as_nanos() as usize / asked.len());
            if kind == 20 && masked {
                determining = found.iter().map(|ruling| ruling.determining.len()).sum();
                allowed = found.iter().filter(|ruling| ruling.fields.is_some()).count();
            }
        }
        rule.push(median(&mut rulings));
        if kind == 20 && masked {
            check = median(&mut checks);
        }
    }
    let share = |count: usize| count as f64 / options.questions as f64;
    let [plain, five, twenty, hundred] = rule.as_slice() else { return Err("four measurements".into()) };
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{policies}|{load:.2?}|{memory} MiB|{check} ns|{plain} ns|{five} ns|{twenty} ns|{hundred} ns|{both} ns|{determining:.1}|{allowed:.0} %",
        memory = resident()? / 1024 / 1024,
        both = check + twenty,
        determining = share(determining),
        allowed = share(allowed) * 100.0,
    )?;
    Ok(())
}

fn schema() -> String {
    let mut text = "entity Role; entity User in [Role] = { level: Long }; entity Folder;\n".to_owned();
    for fields in KINDS {
        let members: String = (0..fields)
            .map(|at| format!("@read(\"{}\") f{at:03}?: String, ", if at % 2 == 0 { "basic" } else { "pii" }))
            .collect();
        let _ = writeln!(
            text,
            "entity D{fields} in [Folder] = {{ owner: User, {members} }};
             @fields(\"read\") action \"D{fields}.read\" appliesTo {{ principal: User, resource: D{fields}, context: {{ mfa: Bool }} }};"
        );
    }
    text
}

/// Users and folders grow with the bundle: what a policy names is named by few others.
fn texts(policies: usize) -> Vec<SourceFile> {
    let mut files = Vec::new();
    let mut text = String::new();
    for number in 0..policies {
        let kind = KINDS.iter().cycle().nth((number / 10) % 3).copied().unwrap_or_default();
        let _ = writeln!(text, "@id(\"p{number}\") {}", policy(number, kind, policies));
        if number % 2000 == 1999 || number + 1 == policies {
            files.push(SourceFile { name: format!("p{number}.cedar"), text: std::mem::take(&mut text) });
        }
    }
    files
}

fn policy(number: usize, kind: usize, policies: usize) -> String {
    let actions = format!("action in [Action::\"D{kind}.read\", Action::\"D{kind}.read#basic\"]");
    let pii = format!("action in Action::\"D{kind}.read#pii\"");
    let (user, folder) = (number % USERS.min(policies), number / 10);
    match number % 10 {
        // The same dozen however large the bundle: rules that no scope narrows down cost every ruling something.
        0 if number < 30 => {
            format!("permit (principal, {actions}, resource is D{kind}) when {{ resource.owner == principal }};")
        }
        0 => format!(
            "permit (principal in Role::\"r{folder}\", {actions}, resource in Folder::\"f{folder}\") when {{ principal.level > 2 }};"
        ),
        1 if number < 30 => format!("forbid (principal, {pii}, resource is D{kind}) when {{ !context.mfa }};"),
        1 => format!("forbid (principal == User::\"u{user}\", {pii}, resource is D{kind});"),
        2 | 3 => format!("permit (principal, {actions}, resource == D{kind}::\"d{number}\");"),
        4 | 5 => format!("permit (principal == User::\"u{user}\", {actions}, resource in Folder::\"f{folder}\");"),
        6 => format!("permit (principal in Role::\"r{folder}\", {pii}, resource is D{kind});"),
        7 => format!(
            "permit (principal is User in Role::\"r{folder}\", {actions}, resource is D{kind}) when {{ principal.level > 1 }};"
        ),
        8 => format!("permit (principal, {pii}, resource in Folder::\"f{folder}\");"),
        _ => format!("permit (principal, {pii}, resource is D{kind} in Folder::\"f{folder}\") when {{ context.mfa }};"),
    }
}

fn question(number: usize, kind: usize, masked: bool, policies: usize) -> Result<(SubjectData, Question), Failure> {
    let group = (number * 7) % (policies / 10).max(1);
    let user = number % USERS.min(policies);
    let uid = |name: &str, id: String| -> Result<EntityUid, Failure> {
        Ok(EntityUid { entity_type: EntityType::parse(name)?, id: EntityId::parse(&id, 256)? })
    };
    let subject = SubjectData {
        principal: RawEntity {
            uid: uid("User", format!("u{user}"))?,
            attributes: BTreeMap::from([("level".to_owned(), RawValue::Integer((number % 5) as i64))]),
            parents: vec![uid("Role", format!("r{group}"))?, uid("Role", "staff".to_owned())?],
        },
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
            attributes: BTreeMap::from([("owner".to_owned(), RawValue::Record(owner))]),
            parents: vec![uid("Folder", format!("f{group}"))?],
        },
        fields: masked.then_some(fields),
        context: BTreeMap::from([("mfa".to_owned(), RawValue::Bool(!number.is_multiple_of(4)))]),
        entities: [].into(),
        bypass_cache: true,
    };
    Ok((subject, question))
}

fn median(values: &mut [usize]) -> usize {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// What the kernel has charged to this thread: nanoseconds on a processor (proc(5), `schedstat`).
fn charged() -> Result<Duration, Failure> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(text.split_whitespace().next().ok_or("empty schedstat")?.parse()?))
}

/// Resident memory now, in bytes.
fn resident() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
