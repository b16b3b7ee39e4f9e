//! Records as they are: the last ones, those that match, or all of them in a file.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::super::{complain, exit};
use super::filter::{Filter, line, resource, shown, shown_json, text};
use super::{SpoolArgs, unreadable};
use crate::audit::encode::{ending, kind};
use crate::audit::reader::{ReadError, Reader, header, segments};

/// No line is longer.
const MAX_LINE: usize = 32 << 20;
/// How often a live trail is looked at.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct TailArgs {
    #[command(flatten)]
    spool: SpoolArgs,
    /// Go on with each new record
    #[arg(long, short)]
    follow: bool,
    /// So many of the last records
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 10)]
    lines: usize,
    /// The records themselves, one line of JSON each
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Args)]
pub(super) struct GrepArgs {
    #[command(flatten)]
    spool: SpoolArgs,
    /// The records themselves, one line of JSON each
    #[arg(long)]
    json: bool,
    /// How many there are, and no more
    #[arg(long, conflicts_with = "json")]
    count: bool,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    spool: SpoolArgs,
    /// Lines as they are (which can be verified), or a table for a spreadsheet
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// The file; it must not be there yet. Standard output when unset
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Byte for byte
    Jsonl,
    /// Fixed columns
    Csv,
}

/// Every record that matches, through `take`, which says whether to go on.
pub(super) fn each(
    reader: &mut Reader,
    filter: &Filter,
    mut take: impl FnMut(&[u8], &Value) -> io::Result<()>,
) -> io::Result<Result<(), ReadError>> {
    loop {
        match reader.next(u64::MAX) {
            Ok(Some(record)) => {
                // One that only looks like a record is shown as one that says nothing.
                let value = serde_json::from_slice::<Value>(&record.line).unwrap_or(Value::Null);
                if filter.takes(&value) {
                    take(&record.line, &value)?;
                }
            }
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        }
        if let Some((first, last)) = reader.take_skipped() {
            complain(&format!("records {first} to {last} are not here; `gatepost audit verify` says more"));
        }
    }
}

/// A reader from the oldest record on; or, where the last so many are all that is wanted, from not long before them.
pub(super) fn open(spool: &SpoolArgs, last: Option<usize>) -> Result<Reader, u8> {
    let folder = &spool.folder()?;
    match begin(folder, last) {
        Ok(Some(first)) => Ok(Reader::new(folder, first, MAX_LINE)),
        Ok(None) => {
            complain(&format!("{} holds no segments: is it the folder of `audit.spool.directory`?", folder.display()));
            Err(exit::DATA)
        }
        Err(error) => Err(unreadable(&error)),
    }
}

/// The number to begin with.
fn begin(folder: &Path, last: Option<usize>) -> Result<Option<u64>, ReadError> {
    let mut firsts = Vec::new();
    for (_, path) in segments(folder)? {
        firsts.extend(header(&path)?.map(|header| header.first_sequence));
    }
    // All but the segment that is being written certainly have their records: so many before it are enough.
    let late = last.zip(firsts.last()).map(|(last, newest)| newest.saturating_sub(last as u64));
    Ok(firsts.first().map(|oldest| late.map_or(*oldest, |late| late.max(*oldest))))
}

fn put(console: &mut impl Write, json: bool, colours: bool, bytes: &[u8], record: &Value) -> io::Result<()> {
    if json {
        return writeln!(console, "{}", shown_json(bytes));
    }
    writeln!(console, "{}", line(record, colours))
}

pub(super) fn tail(args: &TailArgs, console: &mut impl Write, colours: bool) -> io::Result<u8> {
    // What a filter leaves out may be all of them.
    let enough = args.filter.takes_all().then_some(args.lines);
    let mut reader = match open(&args.spool, enough) {
        Ok(reader) => reader,
        Err(code) => return Ok(code),
    };
    let mut last = VecDeque::new();
    let read = each(&mut reader, &args.filter, |bytes, record| {
        if args.lines > 0 {
            if last.len() == args.lines.min(100_000) {
                last.pop_front();
            }
            let mut text = Vec::new();
            put(&mut text, args.json, colours, bytes, record)?;
            last.push_back(text);
        }
        Ok(())
    })?;
    for text in last {
        console.write_all(&text)?;
    }
    if let Err(error) = read {
        return Ok(unreadable(&error));
    }
    console.flush()?;
    if !args.follow {
        return Ok(0);
    }
    loop {
        std::thread::sleep(LOOK);
        let read = each(&mut reader, &args.filter, |bytes, record| put(console, args.json, colours, bytes, record))?;
        if let Err(error) = read {
            return Ok(unreadable(&error));
        }
        console.flush()?;
    }
}

pub(super) fn grep(args: &GrepArgs, console: &mut impl Write, colours: bool) -> io::Result<u8> {
    let mut reader = match open(&args.spool, None) {
        Ok(reader) => reader,
        Err(code) => return Ok(code),
    };
    let mut found = 0_u64;
    let read = each(&mut reader, &args.filter, |bytes, record| {
        found += 1;
        if args.count { Ok(()) } else { put(console, args.json, colours, bytes, record) }
    })?;
    if args.count {
        writeln!(console, "{found}")?;
    }
    match read {
        Ok(()) => Ok(u8::from(found == 0)),
        Err(error) => Ok(unreadable(&error)),
    }
}

/// Column names and where each value stands.
const COLUMNS: [(&str, &str); 14] = [
    ("number", "/metadata/sequence"),
    ("time", "/time_dt"),
    ("kind", ""),
    ("ending", ""),
    ("reason", "/status_detail"),
    ("caller", "/actor/app_name"),
    ("caller_id", "/actor/app_uid"),
    ("principal", "/unmapped/gatepost/principal"),
    ("subject", "/actor/user/uid"),
    ("action", "/api/operation"),
    ("resource", ""),
    ("policies", ""),
    ("policy_version", "/policy/version"),
    ("decision_id", "/metadata/original_event_uid"),
];

pub(super) fn export(args: &ExportArgs, console: &mut impl Write) -> io::Result<u8> {
    let mut reader = match open(&args.spool, None) {
        Ok(reader) => reader,
        Err(code) => return Ok(code),
    };
    let mut file = match &args.output {
        None => None,
        Some(path) => match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => Some(io::BufWriter::new(file)),
            Err(error) => {
                complain(&format!("{}: {error}", path.display()));
                return Ok(exit::UNAVAILABLE);
            }
        },
    };
    let out: &mut dyn Write = match &mut file {
        Some(file) => file,
        None => console,
    };
    if args.format == Format::Csv {
        let names: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
        writeln!(out, "{}\r", names.join(","))?;
    }
    let mut count = 0_u64;
    let read = each(&mut reader, &args.filter, |bytes, record| {
        count += 1;
        match args.format {
            Format::Jsonl => {
                out.write_all(bytes)?;
                out.write_all(b"\n")
            }
            Format::Csv => {
                let cells: Vec<String> =
                    COLUMNS.iter().map(|(name, pointer)| cell(&value(record, name, pointer))).collect();
                writeln!(out, "{}\r", cells.join(","))
            }
        }
    })?;
    out.flush()?;
    if let Some(Err(error)) =
        file.map(|file| file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all()))
    {
        complain(&format!("{}: {error}", args.output.as_deref().unwrap_or(Path::new("-")).display()));
        return Ok(exit::UNAVAILABLE);
    }
    let verifiable = match (args.format, args.filter.takes_all()) {
        (Format::Jsonl, true) => "`gatepost audit verify --lines` checks them as it checks the spool",
        (Format::Jsonl, false) => "each has its own hash; as a selection they can't be verified as one chain",
        (Format::Csv, _) => "a table can't be verified",
    };
    complain(&format!("{count} records; {verifiable}"));
    match read {
        Ok(()) => Ok(0),
        Err(error) => Ok(unreadable(&error)),
    }
}

fn value(record: &Value, name: &str, pointer: &str) -> String {
    match name {
        "kind" => kind(record).to_owned(),
        "ending" => ending(record).unwrap_or_default().to_owned(),
        "resource" => resource(record).unwrap_or_default(),
        "policies" => {
            let policies = record.pointer("/unmapped/gatepost/determining_policies").and_then(Value::as_array);
            policies.into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
        }
        "number" => record.pointer(pointer).map(ToString::to_string).unwrap_or_default(),
        _ => text(record, pointer).unwrap_or_default().to_owned(),
    }
}

/// RFC 4180. What a spreadsheet would take for a formula gets a quote before it, what hides is escaped.
fn cell(text: &str) -> String {
    let text = shown(text);
    let formula = text.trim_start().starts_with(['=', '+', '-', '@', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}']);
    let guarded = if formula { format!("'{text}") } else { text };
    if guarded.contains([',', '"']) { format!("\"{}\"", guarded.replace('"', "\"\"")) } else { guarded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_quoted_where_it_must_be_and_never_a_formula() {
        let table = [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("=cmd()", "'=cmd()"),
            ("@sum,1", "\"'@sum,1\""),
            ("a\nb", "a\\u{000a}b"),
            ("\t=1", "\\u{0009}=1"),
            (" =1", "' =1"),
            ("\u{ff1d}1", "'\u{ff1d}1"),
            ("\u{1b}[2J\u{202e}", "\\u{001b}[2J\\u{202e}"),
            ("", ""),
        ];
        for (text, expected) in table {
            assert_eq!(cell(text), expected);
        }
    }
}
