//! Records, counted.

use std::collections::HashMap;
use std::io::{self, Write};

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::filter::{Filter, shown, text};
use super::look::{each, open};
use super::{SpoolArgs, unreadable};
use crate::audit::encode::{ending, kind};

/// Rows that are shown; the rest is one row.
const ROWS: usize = 20;
/// Different values that are counted one by one.
const MOST: usize = 100_000;
/// Columns of the longest bar.
const BAR: u64 = 30;

#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    #[command(flatten)]
    spool: SpoolArgs,
    /// By what
    #[arg(long, value_enum, default_value_t = By::Decision)]
    by: By,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Decision,
    Caller,
    Principal,
    Action,
    ResourceType,
    Reason,
    Policy,
    Kind,
    Minute,
    Hour,
    Day,
}

impl By {
    fn values(self, record: &Value) -> Vec<String> {
        let one = |found: Option<&str>| found.map(|found| vec![found.to_owned()]).unwrap_or_default();
        // 2026-11-26T10:00:00.000Z
        let time = |length: usize| one(text(record, "/time_dt").and_then(|time| time.get(..length)));
        match self {
            Self::Decision => one(ending(record)),
            Self::Caller => one(text(record, "/actor/app_name")),
            Self::Principal => {
                one(text(record, "/unmapped/gatepost/principal").or_else(|| text(record, "/actor/user/uid")))
            }
            Self::Action => one(text(record, "/api/operation")),
            Self::ResourceType => one(text(record, "/resources/0/type")),
            Self::Reason => one(text(record, "/status_detail")),
            Self::Policy => {
                let policies = record.pointer("/unmapped/gatepost/determining_policies").and_then(Value::as_array);
                policies.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
            }
            Self::Kind => vec![kind(record).to_owned()],
            Self::Minute => time(16),
            Self::Hour => time(13),
            Self::Day => time(10),
        }
    }

    fn is_time(self) -> bool {
        matches!(self, Self::Minute | Self::Hour | Self::Day)
    }
}

pub(super) fn stats(args: &StatsArgs, console: &mut impl Write) -> io::Result<u8> {
    let mut reader = match open(&args.spool, None) {
        Ok(reader) => reader,
        Err(code) => return Ok(code),
    };
    let mut counts: HashMap<String, u64> = HashMap::new();
    let (mut records, mut without, mut beyond) = (0_u64, 0_u64, 0_u64);
    let read = each(&mut reader, &args.filter, |_, record| {
        records += 1;
        let values = args.by.values(record);
        without += u64::from(values.is_empty());
        for value in values {
            if counts.len() < MOST || counts.contains_key(&value) {
                *counts.entry(value).or_default() += 1;
            } else {
                beyond += 1;
            }
        }
        Ok(())
    })?;
    let mut rows: Vec<(String, u64)> = counts.into_iter().collect();
    if args.by.is_time() {
        rows.sort();
        // The newest are what is asked for.
        let old = rows.len().saturating_sub(ROWS * 3);
        beyond += rows.drain(..old).map(|(_, count)| count).sum::<u64>();
    } else {
        rows.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        beyond += rows.iter().skip(ROWS).map(|(_, count)| count).sum::<u64>();
        rows.truncate(ROWS);
    }
    if args.json {
        let rows: Vec<Value> = rows.iter().map(|(value, count)| json!({ "value": value, "records": count })).collect();
        writeln!(console, "{}", json!({ "records": records, "rows": rows, "others": beyond, "without": without }))?;
    } else {
        show(console, &rows, records, beyond, without)?;
    }
    match read {
        Ok(()) => Ok(0),
        Err(error) => Ok(unreadable(&error)),
    }
}

fn show(console: &mut impl Write, rows: &[(String, u64)], records: u64, beyond: u64, without: u64) -> io::Result<()> {
    let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    #[expect(clippy::cast_precision_loss, reason = "a share, to a tenth of a percent")]
    let share = |count: u64| format!("{:.1} %", 100.0 * count as f64 / records.max(1) as f64);
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (value, count) in rows {
        // Whoever has any has at least one mark.
        let bar = "#".repeat(usize::try_from((count * BAR).div_ceil(most)).unwrap_or(0));
        table.add_row([shown(value), count.to_string(), share(*count), bar]);
    }
    for (name, count) in [("(others)", beyond), ("(none)", without)] {
        if count > 0 {
            table.add_row([name.to_owned(), count.to_string(), share(count), String::new()]);
        }
    }
    for column in table.column_iter_mut().skip(1).take(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(console, "{}", table.trim_fmt())?;
    writeln!(console, "\n{records} records")
}
