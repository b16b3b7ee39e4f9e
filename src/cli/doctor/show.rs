//! The report, for people and for machines.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::findings::{Check, Findings, Group, Verdict};
use crate::cli::check::counted;

/// A line a check, under the group's name; the mend under what needs one.
pub(super) fn text(findings: &Findings, console: &mut impl Write, colours: bool) -> io::Result<()> {
    let mut last: Option<Group> = None;
    for check in findings.checks() {
        if last != Some(check.group) {
            let blank = if last.is_some() { "\n" } else { "" };
            writeln!(console, "{blank}{}", check.group.word())?;
            last = Some(check.group);
        }
        let (word, style) = look(check.verdict, colours);
        let key = if check.key.is_empty() { String::new() } else { format!("{}: ", check.key) };
        writeln!(console, "  {style}{word}{style:#}  {key}{}", check.says)?;
        if let Some(mend) = &check.mend {
            writeln!(console, "        do: {mend}")?;
        }
    }
    let warnings = findings.count(Verdict::Warn);
    let well = findings.count(Verdict::Ok);
    let warnings = counted(warnings, "warning", "warnings");
    writeln!(console, "\n{well} ok, {warnings}, {} failed", findings.failed())
}

fn look(verdict: Verdict, colours: bool) -> (&'static str, Style) {
    let (word, colour) = match verdict {
        Verdict::Ok => ("ok  ", Some(AnsiColor::Green)),
        Verdict::Note => ("note", None),
        Verdict::Warn => ("warn", Some(AnsiColor::Yellow)),
        Verdict::Fail => ("FAIL", Some(AnsiColor::Red)),
    };
    let colour = colour.filter(|_| colours);
    (word, colour.map_or_else(Style::new, |colour| Style::new().fg_color(Some(colour.into()))))
}

/// One object.
pub(super) fn json(findings: &Findings, console: &mut impl Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Report<'f> {
        ok: bool,
        warnings: usize,
        failed: usize,
        checks: &'f [Check],
    }
    let report = Report {
        ok: findings.failed() == 0,
        warnings: findings.count(Verdict::Warn),
        failed: findings.failed(),
        checks: findings.checks(),
    };
    serde_json::to_writer_pretty(&mut *console, &report)?;
    writeln!(console)
}
