//! What the demo shows: a table for people, JSON lines for machines, and the audit trail for both.

use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde_json::{Value, json};

use super::stage::{NO_CONNECTION, Played, PlayedAct, text};
use super::story::{Verdict, stored_account};
use crate::client::{Answer, leaf_paths};

/// Columns of a terminal that everything fits into.
const WIDTH: u16 = 100;
/// Of the table: number, who, through, asks, answer, because, time.
const WIDTHS: [u16; 7] = [3, 8, 12, 26, 12, 31, 8];

/// Writes the story as a table, each act under its heading.
///
/// # Errors
/// The console's own.
pub fn table(console: &mut impl Write, acts: &[PlayedAct], colours: bool) -> io::Result<()> {
    let head = ["#", "who", "through", "asks", "answer", "because", "time"].map(str::to_owned);
    writeln!(console, "{}", rows([head]).trim_fmt())?;
    let mut numbers = 1..;
    for act in acts {
        writeln!(console, "\n{}", painted(Style::new().bold(), act.title, colours))?;
        let table = rows(act.steps.iter().zip(&mut numbers).map(|(played, number)| row(number, played)));
        for line in table.lines() {
            writeln!(console, "{}", coloured(line.trim_end(), colours))?;
        }
        if act.steps.iter().filter(|played| is_about_every_field(played)).count() > 1 {
            documents(console, &act.steps)?;
        }
    }
    writeln!(console, "\ntime: what the service waits, over the wire; + with its TLS handshake, the first time it asks")
}

fn rows(rows: impl IntoIterator<Item = [String; 7]>) -> Table {
    let mut table = plain(rows);
    table.set_constraints(WIDTHS.map(|width| ColumnConstraint::Absolute(Width::Fixed(width))));
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table
}

fn plain<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    table
}

fn row(number: usize, played: &Played) -> [String; 7] {
    let step = &played.step;
    let asks = format!("{} {}", step.action, step.resource);
    let asks = match step.note {
        "" => asks,
        short if asks.len() + short.len() + 3 < usize::from(WIDTHS[3]) => format!("{asks} ({short})"),
        long => format!("{asks}\n{long}"),
    };
    let time = played.waited.map(|waited| format!("{}{}", time(waited), if played.first { "+" } else { "" }));
    [
        number.to_string(),
        step.who.to_owned(),
        step.service.to_owned(),
        asks,
        answer(&played.got).to_owned(),
        because(played),
        time.unwrap_or_else(|| "-".to_owned()),
    ]
}

fn answer(got: &Verdict) -> &'static str {
    match (got.decision, got.status.as_str()) {
        (Some(decision), _) => decision,
        (None, NO_CONNECTION) => "NO ENTRY",
        (None, _) => "REFUSED",
    }
}

fn because(played: &Played) -> String {
    let got = &played.got;
    let mut lines: Vec<String> = Vec::new();
    if got.status == NO_CONNECTION {
        lines.push("TLS handshake refused".to_owned());
    } else if got.status != "OK" {
        lines.push(got.status.clone());
    }
    if got.status != "OK" {
        lines.extend(got.reason.clone());
    }
    lines.extend(got.denial.clone());
    if !got.policies.is_empty() {
        lines.push(got.policies.join(", "));
    }
    if got.decision == Some("ALLOW") && got.policies.is_empty() {
        lines.push("(policies not shown to it)".to_owned());
    }
    if got.decision == Some("CONDITIONAL") {
        lines.push("ask again, naming the object".to_owned());
    }
    if let Some(fields) = &got.fields {
        lines.push(format!("fields: {}", fields.join(", ")));
    }
    if !got.refused_fields.is_empty() {
        lines.push(format!("not granted: {}", got.refused_fields.join(", ")));
    }
    lines.extend(got.obligations.iter().map(|name| format!("must: {name}")));
    if played.step.cache.is_some() {
        let decided = played.decided.map(time).unwrap_or_default();
        lines.extend(played.cache.as_ref().map(|cache| format!("cache: {cache}, decided in {decided}")));
    }
    lines.join("\n")
}

fn time(waited: Duration) -> String {
    match waited.as_micros() {
        micros @ 0..1000 => format!("{micros} us"),
        micros @ 1000..10_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        micros @ 10_000..1_000_000 => format!("{} ms", micros / 1000),
        micros => format!("{} s", micros / 1_000_000),
    }
}

/// Green for access, red for none; the words alone when there are no colours.
fn coloured(line: &str, colours: bool) -> String {
    let words = [
        ("ALLOW", AnsiColor::Green),
        ("DENY", AnsiColor::Red),
        ("REFUSED", AnsiColor::Red),
        ("NO ENTRY", AnsiColor::Red),
        ("CONDITIONAL", AnsiColor::Yellow),
    ];
    let found = words.iter().find(|(word, _)| line.contains(&format!(" {word} ")));
    match found {
        Some((word, colour)) => line.replacen(word, &painted(colour.on_default(), word, colours), 1),
        None => line.to_owned(),
    }
}

fn painted(style: Style, text: &str, colours: bool) -> String {
    let style = if colours { style } else { Style::new() };
    format!("{style}{text}{style:#}")
}

fn is_about_every_field(played: &Played) -> bool {
    played.step.note.starts_with("all fields") && played.answer.is_some()
}

/// What the database holds, and what is left of it for everybody who asked for all fields.
fn documents(console: &mut impl Write, steps: &[Played]) -> io::Result<()> {
    let stored = stored_account();
    let asked: Vec<&Played> = steps.iter().filter(|played| is_about_every_field(played)).collect();
    let masked: Vec<Value> = asked.iter().map(|played| left_of(&stored, played)).collect();
    let mut paths = leaf_paths(&stored);
    // The fields that fewer see come later.
    paths.sort_by_key(|path| std::cmp::Reverse(masked.iter().filter(|document| at(document, path).is_some()).count()));
    let mut head = vec!["  the document".to_owned(), "as stored".to_owned()];
    head.extend(asked.iter().map(|played| match played.step.who {
        "itself" => format!("for {}", played.step.service),
        who => format!("for {who}"),
    }));
    let mut table = Table::new();
    table.load_style(presets::NOTHING).add_row(head);
    for path in &paths {
        let shown = |document: &Value| at(document, path).map_or_else(|| "-".to_owned(), plainly);
        let mut row = vec![format!("  {path}"), shown(&stored)];
        row.extend(masked.iter().map(shown));
        table.add_row(row);
    }
    writeln!(console)?;
    for line in table.lines() {
        writeln!(console, "{}", line.trim_end())?;
    }
    Ok(())
}

fn left_of(stored: &Value, played: &Played) -> Value {
    let mut document = stored.clone();
    match played.answer.as_ref().and_then(Answer::mask) {
        Some(mask) => mask.apply(&mut document),
        None => document = Value::Null,
    }
    document
}

fn at<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(document, |value, name| value.get(name))
}

fn plainly(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Writes what did not go as expected. Whether there is any.
///
/// # Errors
/// The console's own.
pub fn differences(console: &mut impl Write, acts: &[PlayedAct], colours: bool) -> io::Result<bool> {
    let mut any = false;
    for (number, played) in (1..).zip(acts.iter().flat_map(|act| &act.steps)).filter(|(_, played)| !played.ok()) {
        any = true;
        let bad = painted(AnsiColor::Red.on_default().bold(), "NOT AS EXPECTED", colours);
        let step = &played.step;
        writeln!(console, "\n{bad}: step {number}, {} {} {}", step.who, step.action, step.resource)?;
        let (expected, got) = (json!(step.expected), json!(played.got));
        for (key, wanted) in expected.as_object().into_iter().flatten() {
            let got = got.get(key).unwrap_or(&Value::Null);
            if got != wanted {
                writeln!(console, "  {key}: expected {wanted}, got {got}")?;
            }
        }
        if let Some(cache) = step.cache {
            writeln!(console, "  cache: expected {cache}, got {}", played.cache.as_deref().unwrap_or("nothing"))?;
        }
    }
    Ok(any)
}

/// Writes one JSON object a step.
///
/// # Errors
/// The console's own.
pub fn steps_as_json(console: &mut impl Write, acts: &[PlayedAct]) -> io::Result<()> {
    let steps = acts.iter().flat_map(|act| act.steps.iter().map(|played| (act.title, played)));
    for (number, (act, played)) in (1..).zip(steps) {
        let (step, got) = (&played.step, &played.got);
        let line = json!({
            "step": number, "act": act, "who": step.who, "service": step.service, "action": step.action,
            "resource": step.resource, "note": step.note, "status": got.status, "reason": got.reason,
            "decision": got.decision, "denial": got.denial, "fields": got.fields, "refused_fields": got.refused_fields,
            "obligations": got.obligations, "policies": got.policies, "cache": played.cache,
            "decision_id": played.decision_id, "micros": played.waited.map(|waited| waited.as_micros()),
            "expected": step.expected, "ok": played.ok(),
        });
        writeln!(console, "{line}")?;
    }
    Ok(())
}

/// Writes one JSON object a record.
///
/// # Errors
/// The console's own.
pub fn records_as_json(console: &mut impl Write, records: &[Value]) -> io::Result<()> {
    records.iter().try_for_each(|record| writeln!(console, "{}", json!({ "record": record })))
}

/// What the columns of [`records`] are.
#[must_use]
pub fn record_head() -> String {
    columns(["time", "caller", "who", "action", "resource", "decision", "reason, policies"])
}

/// Writes one line a record.
///
/// # Errors
/// The console's own.
pub fn records(console: &mut impl Write, records: &[Value]) -> io::Result<()> {
    records.iter().try_for_each(|record| writeln!(console, "{}", record_line(record)))
}

fn columns([time, caller, who, action, resource, decision, why]: [&str; 7]) -> String {
    let line = format!("{time:<12} {caller:<11} {who:<5} {action:<14} {resource:<9} {decision:<11} {why}");
    line.trim_end().to_owned()
}

fn record_line(record: &Value) -> String {
    let or_dash = |pointer: &str| text(record, pointer).unwrap_or_else(|| "-".to_owned());
    let time = or_dash("/time_dt");
    let time = time.split_once('T').map_or(time.as_str(), |(_, time)| time).trim_end_matches('Z');
    let reason = text(record, "/status_detail").unwrap_or_default();
    match record.get("class_uid").and_then(Value::as_u64) {
        Some(6003) => {}
        Some(3002) => return columns([time, "unknown", "-", "TLS handshake", "-", "refused", &reason]),
        Some(3004) if reason == "REFUSED" => {
            return columns([time, "gatepost", "-", "Update", "policies", "refused", "`gatepost check` says why"]);
        }
        Some(3004) => return columns([time, "gatepost", "-", &or_dash("/activity_name"), "policies", "-", &reason]),
        _ => return columns([time, "gatepost", "-", &or_dash("/activity_name"), "-", "-", &reason]),
    }
    let last = |name: String| name.rsplit('/').next().unwrap_or_default().to_owned();
    let policies = record.pointer("/unmapped/gatepost/determining_policies").and_then(Value::as_array);
    let policies: Vec<&str> = policies.into_iter().flatten().filter_map(Value::as_str).collect();
    columns([
        time,
        &last(or_dash("/src_endpoint/svc_name")),
        &last(or_dash("/actor/user/name")),
        &text(record, "/resources/0/type").map_or_else(|| "-".to_owned(), |_| or_dash("/api/operation")),
        &or_dash("/resources/0/name"),
        &text(record, "/unmapped/gatepost/decision").unwrap_or_else(|| "refused".to_owned()),
        format!("{reason} {}", policies.join(" ")).trim(),
    ])
}

/// A value over several lines; whatever fits into one stays in one.
#[must_use]
pub fn pretty(value: &Value) -> String {
    let mut out = String::new();
    put(&mut out, value, 0, 0);
    out
}

fn put(out: &mut String, value: &Value, indent: usize, before: usize) {
    let short = value.to_string();
    let many = match value {
        Value::Object(members) => members.iter().map(|(name, value)| (Some(name), value)).collect(),
        Value::Array(elements) => elements.iter().map(|value| (None, value)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    if many.is_empty() || (indent > 0 && indent + before + short.len() < usize::from(WIDTH)) {
        out.push_str(&short);
        return;
    }
    let (open, close) = if value.is_array() { ('[', ']') } else { ('{', '}') };
    out.push(open);
    for (position, (name, value)) in many.iter().enumerate() {
        out.push_str(if position == 0 { "\n" } else { ",\n" });
        out.push_str(&" ".repeat(indent + 2));
        let name = name.map(|name| format!("{}: ", Value::from(name.as_str()))).unwrap_or_default();
        out.push_str(&name);
        put(out, value, indent + 2, name.len() + 1);
    }
    out.push('\n');
    out.push_str(&" ".repeat(indent));
    out.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pretty_record_is_the_same_record() {
        let long = "x".repeat(90);
        let value = json!({ "a": [1, { "b": long, "c": [] }], "short": { "d": null }, "e": "\"quoted\"" });
        let shown = pretty(&value);
        assert_eq!(serde_json::from_str::<Value>(&shown).expect("json"), value);
        assert!(shown.lines().count() > 5 && shown.contains(r#"  "short": {"d":null}"#), "{shown}");
    }

    #[test]
    fn a_time_fits_into_its_column() {
        let table =
            [(7, "7 us"), (999, "999 us"), (1000, "1.0 ms"), (9999, "9.9 ms"), (12_900, "12 ms"), (3_000_001, "3 s")];
        for (micros, expected) in table {
            assert_eq!(time(Duration::from_micros(micros)), expected);
        }
    }

    #[test]
    fn only_the_answer_is_coloured_and_only_when_asked_to() {
        let line = " 1 alice storefront DENY because ALLOWED";
        assert_eq!(coloured(line, false), line);
        assert!(coloured(line, true).contains("\u{1b}[31mDENY\u{1b}[0m because ALLOWED"));
    }
}
