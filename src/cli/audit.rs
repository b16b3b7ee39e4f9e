//! `gatepost audit`: looking at a trail, and checking that nobody touched it.
//!
//! Reads files alone: it takes no lock, writes nothing into a spool, and may run beside the server.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{complain, exit};
use crate::audit::Pseudonyms;
use crate::audit::checkpoint::{PublicKey, SigningKey};
use crate::audit::format::Hash;
use crate::audit::reader::ReadError;
use crate::audit::verify::{Knowledge, Report, verify_lines, verify_spool};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::config::load::{Source, load};
use crate::model::entity::{EntityId, EntityType, EntityUid};

mod filter;
mod look;
mod stats;

pub(crate) use filter::shown;

/// Look at the audit trail, and check that it is whole.
#[derive(Debug, Args)]
#[command(after_long_help = "\
SPOOL is the folder that `audit.spool.directory` names; with --config (or GATEPOST_CONFIG) it is \
taken from there. Reading disturbs no server.

    gatepost audit tail -f /var/lib/gatepost/audit
    gatepost audit grep /var/lib/gatepost/audit --decision deny --caller storefront --since 1h
    gatepost audit grep /var/lib/gatepost/audit --decision-id 019c9d3e-5a64-7c11-8f0b-0c5be0a1f6d2 --json
    gatepost audit stats /var/lib/gatepost/audit --by reason --since 24h
    gatepost audit export /var/lib/gatepost/audit --format csv --output denials.csv --decision deny
    gatepost audit key --out checkpoint.key --public-out checkpoint.pub
    gatepost audit verify /var/lib/gatepost/audit --key checkpoint.pub
    gatepost audit verify --lines export.jsonl --key checkpoint.pub

Exit codes: 0 well, 1 the trail is broken (verify) or nothing matched (grep), 64 the command line or the \
configuration is wrong, 65 a key or a spool can't be read as one, 69 files can't be read.")]
pub struct AuditArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Check that nothing was changed, removed, moved, inserted or cut off
    Verify(VerifyArgs),
    /// Show the last records, and with -f each new one
    Tail(look::TailArgs),
    /// Show the records that match
    Grep(look::GrepArgs),
    /// Count records, as a table
    Stats(stats::StatsArgs),
    /// Write records out, as they are or as CSV
    Export(look::ExportArgs),
    /// Make the key that signs checkpoints
    Key(KeyArgs),
    /// Print what stands for somebody's id
    Pseudonym(PseudonymArgs),
}

/// Which spool.
#[derive(Debug, Args)]
pub(super) struct SpoolArgs {
    /// The spool's folder
    #[arg(value_name = "SPOOL")]
    spool: Option<PathBuf>,
    /// The configuration that names it
    #[arg(long, value_name = "FILE", env = "GATEPOST_CONFIG")]
    config: Option<PathBuf>,
}

impl SpoolArgs {
    /// The folder, or the exit code.
    fn folder(&self) -> Result<PathBuf, u8> {
        if let Some(folder) = &self.spool {
            return Ok(folder.clone());
        }
        let Some(config) = &self.config else {
            complain("name the spool's folder, or the configuration that does: --config gatepost.yaml");
            return Err(exit::CONFIGURATION);
        };
        Ok(read_config(config)?.audit.spool.directory)
    }
}

fn read_config(file: &std::path::Path) -> Result<Config, u8> {
    let environment =
        std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    load(&Source::file(file).environment(environment)).map_err(|report| {
        complain(&format!("the configuration can't be used:\n{report}"));
        exit::CONFIGURATION
    })
}

#[derive(Debug, Args)]
struct VerifyArgs {
    #[command(flatten)]
    spool: SpoolArgs,
    /// Exported lines instead of a spool: files in order, `-` for standard input
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "spool")]
    lines: Vec<PathBuf>,
    /// PEM file: the public key of checkpoints; without it signatures are not checked. May be given many times, where the
    /// key was changed
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// A record's number and hash, remembered from elsewhere
    #[arg(long, value_name = "NUMBER:HASH", value_parser = anchor)]
    anchor: Option<(u64, Hash)>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

fn anchor(text: &str) -> Result<(u64, Hash), String> {
    let parsed =
        text.split_once(':').and_then(|(number, hash)| Some((number.parse().ok()?, Hash::parse(hash.as_bytes())?)));
    parsed.ok_or_else(|| "must be a record's number, a colon and the 64 hex digits of its hash".to_owned())
}

#[derive(Debug, Args)]
struct KeyArgs {
    /// Where the private key goes; it must not be there yet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where the public key goes; it must not be there yet
    #[arg(long, value_name = "FILE")]
    public_out: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct PseudonymArgs {
    /// The configuration with `audit.pseudonyms`
    #[arg(long, value_name = "FILE", env = "GATEPOST_CONFIG")]
    config: PathBuf,
    /// The entity's type
    #[arg(value_name = "TYPE")]
    entity_type: String,
    /// Its id
    id: String,
    /// When, RFC 3339; now when unset
    #[arg(long, value_name = "TIME")]
    at: Option<jiff::Timestamp>,
}

/// Runs the command. The exit code is one of the help text's.
///
/// # Errors
/// When the console can't be written.
pub fn run(args: &AuditArgs, console: &mut impl Write, colours: bool) -> io::Result<u8> {
    match &args.what {
        What::Verify(args) => verify(args, console),
        What::Tail(args) => look::tail(args, console, colours),
        What::Grep(args) => look::grep(args, console, colours),
        What::Stats(args) => stats::stats(args, console),
        What::Export(args) => look::export(args, console),
        What::Key(args) => key(args, console),
        What::Pseudonym(args) => pseudonym(args, console),
    }
}

/// What a reader's failure means, told; the exit code.
pub(super) fn unreadable(error: &ReadError) -> u8 {
    complain(&error.to_string());
    match error {
        ReadError::Io { .. } => exit::UNAVAILABLE,
        ReadError::Header { .. } => exit::DATA,
    }
}

fn verify(args: &VerifyArgs, console: &mut impl Write) -> io::Result<u8> {
    let mut known = Knowledge { keys: Vec::new(), anchor: args.anchor };
    for path in &args.key {
        match PublicKey::load(path) {
            Ok(key) => known.keys.push(key),
            Err(error) => {
                complain(&format!("{}: {error}", path.display()));
                return Ok(exit::DATA);
            }
        }
    }
    // Only where somebody watches, and for trails that take a while.
    let watched = io::stderr().is_terminal();
    let (mut read, mut told) = (0_u64, 0_u64);
    let mut progress = |bytes: u64| {
        read += bytes;
        if watched && read - told > 64 << 20 {
            told = read;
            // Progress is for whoever watches; if he can't, that is all right.
            let _ = write!(anstream::stderr(), "\r{} MiB", read >> 20);
        }
    };
    let found = if args.lines.is_empty() {
        let folder = match args.spool.folder() {
            Ok(folder) => folder,
            Err(code) => return Ok(code),
        };
        verify_spool(&folder, &known, &mut progress)
    } else {
        verify_lines(&args.lines, &known, &mut progress)
    };
    if told > 0 {
        let _ = writeln!(anstream::stderr());
    }
    let report = match found {
        Ok(report) => report,
        Err(error) => return Ok(unreadable(&error)),
    };
    if report.records == 0 && report.broken.is_none() {
        // That would be too good a verdict on the wrong folder.
        complain("there is no record to check: is it the folder of `audit.spool.directory`?");
        return Ok(exit::DATA);
    }
    if args.json {
        writeln!(console, "{}", as_json(&report))?;
    } else {
        tell(&report, console)?;
    }
    Ok(u8::from(report.broken.is_some()))
}

fn as_json(report: &Report) -> serde_json::Value {
    json!({
        "sound": report.broken.is_none(),
        "records": report.records,
        "chain": report.chain,
        "first": report.numbers.map(|(first, _)| first),
        "last": report.numbers.map(|(_, last)| last),
        "last_hash": report.last_hash,
        "from": report.times.as_ref().map(|(from, _)| from),
        "to": report.times.as_ref().map(|(_, to)| to),
        "segments": report.segments,
        "boots": report.boots,
        "gaps": report.gaps,
        "checkpoints": report.checkpoints,
        "signatures_checked": report.signed,
        "covered_to": report.covered,
        "not_covered": not_covered(report),
        "torn": report.torn,
        "superseded_lines": report.superseded,
        "break": report.broken.as_ref().map(|(place, what)| json!({
            "file": place.file, "line": place.line, "what": what.to_string(),
        })),
    })
}

fn tell(report: &Report, console: &mut impl Write) -> io::Result<()> {
    let (first, last) = report.numbers.unwrap_or((0, 0));
    let (from, to) = report.times.clone().unwrap_or_default();
    writeln!(console, "records      {} (number {first} to {last})", report.records)?;
    writeln!(console, "time         {} to {}", shown(&from), shown(&to))?;
    if let Some(chain) = &report.chain {
        writeln!(console, "spool        {}", shown(chain))?;
    }
    if report.segments > 0 {
        writeln!(console, "segments     {}", report.segments)?;
    }
    writeln!(console, "starts       {}", report.boots)?;
    if let Some(hash) = report.last_hash {
        writeln!(console, "last hash    {hash}")?;
    }
    for (first, last) in &report.gaps {
        writeln!(console, "gap          {first} to {last}, as the trail itself tells")?;
    }
    if report.torn {
        writeln!(console, "under way    the last line is not whole: it is being written, or was when the end came")?;
    }
    let signatures = if report.signed { "signatures checked" } else { "signatures NOT checked: give --key" };
    writeln!(console, "checkpoints  {} ({signatures})", report.checkpoints)?;
    let not_covered = not_covered(report);
    let list: Vec<String> = not_covered.iter().map(|(first, last)| format!("{first} to {last}")).collect();
    match (&report.broken, report.covered) {
        (None, 0) => {
            writeln!(
                console,
                "covered      nothing is signed: whoever can write the files could have made all hashes anew"
            )?;
        }
        (None, covered) => {
            let by = if report.signed { "signed" } else { "checkpoints that anybody could have written" };
            writeln!(console, "covered      up to number {covered}: {by}")?;
            if !list.is_empty() {
                writeln!(console, "NOT covered  {}: chained, and not signed", list.join(", "))?;
            }
        }
        (Some(_), _) => {}
    }
    match &report.broken {
        None if report.signed => writeln!(console, "sound        nothing was changed, removed, moved or inserted"),
        None => writeln!(console, "sound        by its hashes alone"),
        Some((place, what)) => writeln!(console, "BROKEN       {place}: {what}"),
    }
}

/// Records that no checkpoint covers: before gaps, and those after the last checkpoint.
fn not_covered(report: &Report) -> Vec<(u64, u64)> {
    let (first, last) = report.numbers.unwrap_or((1, 0));
    let end = (report.covered.saturating_add(1).max(first), last);
    let end = (end.0 <= end.1).then_some(end);
    report.loose.iter().copied().chain(end).collect()
}

fn key(args: &KeyArgs, console: &mut impl Write) -> io::Result<u8> {
    let pem = match SigningKey::generate() {
        Ok(pem) => pem,
        Err(error) => {
            complain(&error.to_string());
            return Ok(exit::SOFTWARE);
        }
    };
    let put = |path: &std::path::Path, text: &str, mode: u32| {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all())).map_err(|error| {
            complain(&format!("{}: {error}", path.display()));
            exit::UNAVAILABLE
        })
    };
    // A private key without its public half would be in the way of the next try.
    if let Some(taken) = args.public_out.as_ref().filter(|path| path.symlink_metadata().is_ok()) {
        complain(&format!("{}: it is there already, and a key is never written over", taken.display()));
        return Ok(exit::UNAVAILABLE);
    }
    if let Err(code) = put(&args.out, &pem, 0o600) {
        return Ok(code);
    }
    let public = match PublicKey::load(&args.out) {
        Ok(public) => public,
        Err(error) => {
            complain(&format!("{}: {error}", args.out.display()));
            return Ok(exit::DATA);
        }
    };
    if let Some(path) = &args.public_out
        && let Err(code) = put(path, &public.pem(), 0o644)
    {
        return Ok(code);
    }
    writeln!(console, "key id  {}", public.id())?;
    writeln!(console, "private {}  for `audit.checkpoints.key_file`", args.out.display())?;
    if let Some(path) = &args.public_out {
        writeln!(console, "public  {}  for `gatepost audit verify --key`; keep a copy elsewhere", path.display())?;
    }
    Ok(0)
}

fn pseudonym(args: &PseudonymArgs, console: &mut impl Write) -> io::Result<u8> {
    let config = match read_config(&args.config) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let Some(pseudonyms) = Pseudonyms::new(&config.audit) else {
        complain("`audit.pseudonyms` is not set there: ids stand as they are");
        return Ok(exit::CONFIGURATION);
    };
    let uid = EntityType::parse(&args.entity_type)
        .and_then(|entity_type| Ok(EntityUid { entity_type, id: EntityId::parse(&args.id, 1 << 20)? }));
    let uid = match uid {
        Ok(uid) => uid,
        Err(error) => {
            complain(&error.to_string());
            return Ok(exit::CONFIGURATION);
        }
    };
    let now = match args.at {
        Some(at) => {
            std::time::SystemTime::UNIX_EPOCH
                + std::time::Duration::from_millis(u64::try_from(at.as_millisecond()).unwrap_or(0))
        }
        None => SystemClock::shared().now(),
    };
    match pseudonyms.id(&uid, now) {
        Some(name) => writeln!(console, "{name}").map(|()| 0),
        None => {
            complain(&format!("`{}` is not among `audit.pseudonyms.ids`: its ids stand as they are", args.entity_type));
            Ok(1)
        }
    }
}
