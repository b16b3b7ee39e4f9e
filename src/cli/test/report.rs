//! What a run of rows showed: for people, for machines, for build servers.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::compare::{Difference, Outcome, told};
use crate::cli::check::counted;
use crate::policy::Bundle;

/// One row, and what came of it.
#[derive(Debug)]
pub struct RowResult {
    /// The file it stands in.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// The row's name.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// All that is not as expected.
    pub differences: Vec<Difference>,
}

impl RowResult {
    /// The policies that decided.
    pub fn determining(&self) -> impl Iterator<Item = &str> {
        let ruling = match &self.outcome {
            Outcome::Ruled(ruling) => Some(ruling),
            Outcome::Invalid(_) => None,
        };
        ruling.into_iter().flat_map(|ruling| &ruling.determining).map(String::as_str)
    }
}

/// A policy that the rows say too little about.
#[derive(Debug, Serialize)]
struct Lacking {
    policy: String,
    file: String,
    line: usize,
}

/// A whole run.
#[derive(Debug)]
pub struct Report {
    directory: String,
    revision: String,
    policies: usize,
    rows: Vec<RowResult>,
    /// `None`: nobody looked.
    uncovered: Option<Vec<Lacking>>,
    /// `None`: nobody looked.
    unmissed: Option<Vec<Lacking>>,
}

impl Report {
    /// Gathers a run.
    #[must_use]
    pub fn new(
        bundle: &Bundle,
        directory: &Path,
        rows: Vec<RowResult>,
        uncovered: Option<&BTreeSet<String>>,
        unmissed: Option<&BTreeSet<String>>,
    ) -> Self {
        let lacking = |ids: &BTreeSet<String>| -> Vec<Lacking> {
            let named = bundle.policies().iter().filter(|policy| ids.contains(&policy.id));
            named.map(|p| Lacking { policy: p.id.clone(), file: p.file.to_string(), line: p.line }).collect()
        };
        Self {
            directory: directory.display().to_string(),
            revision: bundle.revision().as_str().to_owned(),
            policies: bundle.policies().len(),
            uncovered: uncovered.map(lacking),
            unmissed: unmissed.map(lacking),
            rows,
        }
    }

    /// How many rows did not go as expected.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.rows.iter().filter(|row| !row.differences.is_empty()).count()
    }

    fn files(&self) -> Vec<(&str, Vec<&RowResult>)> {
        let mut files: Vec<(&str, Vec<&RowResult>)> = Vec::new();
        for row in &self.rows {
            match files.last_mut().filter(|(file, _)| *file == row.file) {
                Some((_, rows)) => rows.push(row),
                None => files.push((&row.file, vec![row])),
            }
        }
        files
    }

    /// For people: every row by file, differences under it, then what no row needs.
    ///
    /// # Errors
    /// The console's own.
    pub fn human(&self, console: &mut impl Write, colours: bool) -> io::Result<()> {
        let paint = |colour: AnsiColor, text: &str| {
            let style = if colours { colour.on_default() } else { Style::new() };
            format!("{style}{text}{style:#}")
        };
        for (file, rows) in self.files() {
            writeln!(console, "{}/tests/{file}", self.directory)?;
            for row in rows {
                if row.differences.is_empty() {
                    writeln!(console, "  {}    {}", paint(AnsiColor::Green, "ok"), row.name)?;
                    continue;
                }
                writeln!(console, "  {}  {} (line {})", paint(AnsiColor::Red, "FAIL"), row.name, row.line)?;
                for Difference { what, expected, got } in &row.differences {
                    writeln!(console, "          {what:<12} expected {expected}")?;
                    writeln!(console, "          {:<12} got      {got}", "")?;
                }
                writeln!(console, "          {:<12} {}", "decided by", decided_by(row))?;
            }
        }
        writeln!(console)?;
        let warn = |console: &mut dyn Write, what: &str, lacking: &[Lacking]| -> io::Result<()> {
            for Lacking { policy, file, line } in lacking {
                writeln!(console, "{}: {what}: {policy} ({file}:{line})", paint(AnsiColor::Yellow, "warning"))?;
            }
            Ok(())
        };
        warn(console, "no row is decided by", self.uncovered.as_deref().unwrap_or_default())?;
        warn(console, "no row fails without", self.unmissed.as_deref().unwrap_or_default())?;
        let failed = self.failed();
        let rows = counted(self.rows.len(), "row", "rows");
        write!(console, "{rows}: {} passed, {failed} failed; ", self.rows.len() - failed)?;
        write!(console, "{}", counted(self.policies, "policy", "policies"))?;
        if let Some(uncovered) = &self.uncovered {
            write!(console, ", {} without a row", uncovered.len())?;
        }
        if let Some(unmissed) = &self.unmissed {
            write!(console, ", {} that no row would miss", unmissed.len())?;
        }
        writeln!(console)
    }

    /// For machines: one object.
    ///
    /// # Errors
    /// The console's own.
    pub fn json(&self, console: &mut impl Write) -> io::Result<()> {
        #[derive(Serialize)]
        struct RowLine<'r> {
            file: &'r str,
            line: u64,
            name: &'r str,
            passed: bool,
            outcome: String,
            determining: Vec<&'r str>,
            differences: &'r [Difference],
        }
        #[derive(Serialize)]
        struct Whole<'r> {
            revision: &'r str,
            passed: usize,
            failed: usize,
            rows: Vec<RowLine<'r>>,
            policies: usize,
            #[serde(skip_serializing_if = "Option::is_none")]
            uncovered: Option<&'r [Lacking]>,
            #[serde(skip_serializing_if = "Option::is_none")]
            unmissed: Option<&'r [Lacking]>,
        }
        let rows = self.rows.iter().map(|row| RowLine {
            file: &row.file,
            line: row.line,
            name: &row.name,
            passed: row.differences.is_empty(),
            outcome: told(&row.outcome),
            determining: row.determining().collect(),
            differences: &row.differences,
        });
        let whole = Whole {
            revision: &self.revision,
            passed: self.rows.len() - self.failed(),
            failed: self.failed(),
            rows: rows.collect(),
            policies: self.policies,
            uncovered: self.uncovered.as_deref(),
            unmissed: self.unmissed.as_deref(),
        };
        serde_json::to_writer_pretty(&mut *console, &whole)?;
        writeln!(console)
    }

    /// For build servers: a suite a file, a case a row, and (when coverage is required) a case a policy.
    ///
    /// # Errors
    /// The console's own.
    pub fn junit(&self, console: &mut impl Write, require_coverage: bool) -> io::Result<()> {
        let mut lacking: Vec<(&str, &Lacking)> =
            self.uncovered.iter().flatten().map(|l| ("no row is decided by it", l)).collect();
        lacking.extend(self.unmissed.iter().flatten().map(|l| ("no row fails without it", l)));
        if !require_coverage {
            lacking.clear();
        }
        let (tests, failures) = (self.rows.len() + lacking.len(), self.failed() + lacking.len());
        writeln!(console, r#"<?xml version="1.0" encoding="UTF-8"?>"#)?;
        writeln!(console, r#"<testsuites name="gatepost test" tests="{tests}" failures="{failures}">"#)?;
        for (file, rows) in self.files() {
            let failed = rows.iter().filter(|row| !row.differences.is_empty()).count();
            let (suite, count) = (xml(file), rows.len());
            writeln!(console, r#"  <testsuite name="{suite}" tests="{count}" failures="{failed}">"#)?;
            for row in rows {
                let (name, line) = (xml(&row.name), row.line);
                write!(
                    console,
                    r#"    <testcase classname="{suite}" name="{name}" file="tests/{suite}" line="{line}""#
                )?;
                if row.differences.is_empty() {
                    writeln!(console, "/>")?;
                    continue;
                }
                let differences =
                    row.differences.iter().map(|d| format!("{}: expected {}, got {}", d.what, d.expected, d.got));
                let text =
                    xml(&differences.chain([format!("decided by {}", decided_by(row))]).collect::<Vec<_>>().join("\n"));
                writeln!(console, r#"><failure message="not as expected">{text}</failure></testcase>"#)?;
            }
            writeln!(console, "  </testsuite>")?;
        }
        if !lacking.is_empty() {
            let count = lacking.len();
            writeln!(console, r#"  <testsuite name="coverage" tests="{count}" failures="{count}">"#)?;
            for (why, Lacking { policy, file, line }) in lacking {
                let (name, file) = (xml(policy), xml(file));
                writeln!(
                    console,
                    r#"    <testcase classname="coverage" name="{name}" file="{file}" line="{line}"><failure message="{why}"/></testcase>"#
                )?;
            }
            writeln!(console, "  </testsuite>")?;
        }
        writeln!(console, "</testsuites>")
    }
}

fn decided_by(row: &RowResult) -> String {
    let names: Vec<&str> = row.determining().collect();
    if names.is_empty() { "no policy".to_owned() } else { names.join(", ") }
}

/// Text for an attribute or element. XML 1.0 has no way to write most control characters (section 2.2).
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::xml;

    #[test]
    fn a_name_can_not_break_out_of_the_xml() {
        assert_eq!(xml("a \"b\" <c> & d"), "a &quot;b&quot; &lt;c&gt; &amp; d");
        assert_eq!(xml("a\u{0}\u{1b}b\u{ffff}"), "a\u{fffd}\u{fffd}b\u{fffd}");
    }
}
