//! `gatepost check`: reads a bundle as the service would, and reports like a compiler.

use std::io::{self, Write};
use std::path::PathBuf;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity, SourceCode};
use serde::Serialize;

use crate::model::entity::EntityType;
use crate::policy::{Bundle, BundleOptions, Problem};

/// Check a policy bundle: does it parse, does it fit its schema, would the service take it?
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
A bundle is a folder: *.cedarschema, *.cedar and, if policies need fixed entities, entities.json.
Everything is validated strictly, with the field actions that the schema's @fields, @read and @write
annotations stand for (`Account.read:email`, `Account.read#basic`). They are in no file, so other
Cedar tools do not know them; this command does.

Exit code: 0 the service would take the bundle, 1 it would not.

    gatepost check policies
    gatepost check policies --format json | jq '.problems[].message'")]
pub struct CheckArgs {
    /// The bundle's folder
    #[arg(value_name = "DIR", default_value = "policies")]
    pub directory: PathBuf,
    /// How the report looks
    #[arg(long, value_enum, default_value_t = CheckFormat::Human)]
    pub format: CheckFormat,
    /// Treat warnings as errors
    #[arg(long)]
    pub deny_warnings: bool,
    /// How the bundle is read
    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// The settings of the service that change how a bundle is read.
#[derive(Debug, clap::Args)]
pub struct ReadingArgs {
    /// How many steps of entity data a policy may take, as `policies.validation_level` in the configuration:
    /// 1 reads `resource.owner`, 2 also `resource.owner.tenant`
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
    pub validation_level: u32,
    /// The entity type of calling services, as `policies.caller_type` in the configuration
    #[arg(long, value_name = "TYPE", value_parser = EntityType::parse, default_value = "Service")]
    pub caller_type: EntityType,
}

impl ReadingArgs {
    /// As the loader takes them.
    #[must_use]
    pub fn options(&self) -> BundleOptions {
        BundleOptions {
            validation_level: self.validation_level,
            caller_type: self.caller_type.clone(),
            ..BundleOptions::default()
        }
    }
}

/// How the report of `gatepost check` looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CheckFormat {
    /// For people: a snippet, a line, a mend
    Human,
    /// For machines: one object
    Json,
}

/// Runs the command. The exit code: 0 the service would take the bundle, 1 it would not.
///
/// # Errors
/// The console's own.
pub fn run(args: &CheckArgs, console: &mut impl Write, colours: bool) -> io::Result<u8> {
    let (findings, summary) = match Bundle::load(&args.directory, &args.reading.options()) {
        Ok(bundle) => {
            let severity = if args.deny_warnings { Severity::Error } else { Severity::Warning };
            let warnings = bundle.warnings().iter().map(|problem| Finding::new(problem, severity)).collect();
            (warnings, Some(Summary::of(&bundle)))
        }
        Err(report) => (report.problems.iter().map(|problem| Finding::new(problem, Severity::Error)).collect(), None),
    };
    let findings: Vec<Finding> = findings;
    let taken = summary.is_some() && !findings.iter().any(|finding| finding.severity == Severity::Error);
    match args.format {
        CheckFormat::Human => human(console, &findings, summary.as_ref(), taken, colours)?,
        CheckFormat::Json => json(console, &findings, summary.as_ref(), taken)?,
    }
    Ok(u8::from(!taken))
}

/// What a sound bundle holds.
#[derive(Debug, Serialize)]
struct Summary {
    policies: usize,
    forbids: usize,
    entity_types: usize,
    actions: usize,
    field_actions: usize,
    revision: String,
}

impl Summary {
    fn of(bundle: &Bundle) -> Self {
        let counts = bundle.counts();
        Self {
            policies: counts.permits + counts.forbids,
            forbids: counts.forbids,
            entity_types: counts.types,
            actions: counts.actions,
            field_actions: counts.derived,
            revision: bundle.revision().as_str().to_owned(),
        }
    }
}

/// One problem, as miette shows it.
#[derive(Debug)]
struct Finding {
    problem: Problem,
    severity: Severity,
    source: Option<NamedSource<String>>,
}

impl Finding {
    fn new(problem: &Problem, severity: Severity) -> Self {
        let source = problem.source.clone().map(|text| NamedSource::new(&problem.file, text));
        Self { problem: problem.clone(), severity, source }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // With a snippet the place is in its frame; without one it belongs to the sentence.
        match (&self.source, self.problem.line) {
            (Some(_), _) => f.write_str(&self.problem.message),
            (None, 0) => write!(f, "{}: {}", self.problem.file, self.problem.message),
            (None, line) => write!(f, "{}:{line}:{}: {}", self.problem.file, self.problem.column, self.problem.message),
        }
    }
}

impl std::error::Error for Finding {}

impl Diagnostic for Finding {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        self.problem.help.as_ref().map(|help| Box::new(help) as Box<dyn std::fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.source.as_ref()?;
        let span = LabeledSpan::new(None, self.problem.offset, self.problem.length);
        Some(Box::new(std::iter::once(span)))
    }
}

/// Shows problems of a bundle to people, each with its snippet.
///
/// # Errors
/// The console's own.
pub fn show_problems(console: &mut impl Write, problems: &[Problem], colours: bool) -> io::Result<()> {
    let findings: Vec<Finding> = problems.iter().map(|problem| Finding::new(problem, Severity::Error)).collect();
    show(console, &findings, colours)
}

fn show(console: &mut impl Write, findings: &[Finding], colours: bool) -> io::Result<()> {
    let theme = if colours { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_links(false).with_width(100);
    for finding in findings {
        let mut text = String::new();
        if handler.render_report(&mut text, finding).is_err() {
            // A snippet that can't be drawn must not hide the problem.
            text = format!("{}\n", finding.problem);
        }
        writeln!(console, "{}", text.trim_end())?;
        writeln!(console)?;
    }
    Ok(())
}

fn human(
    console: &mut impl Write,
    findings: &[Finding],
    summary: Option<&Summary>,
    taken: bool,
    colours: bool,
) -> io::Result<()> {
    show(console, findings, colours)?;
    let verdict = if taken { "ok" } else { "not ok" };
    match summary {
        Some(s) => writeln!(
            console,
            "{verdict}: {}, {} of them forbid; {}, {}, {}; revision {}",
            counted(s.policies, "policy", "policies"),
            s.forbids,
            counted(s.entity_types, "entity type", "entity types"),
            counted(s.actions, "action", "actions"),
            counted(s.field_actions, "derived field action", "derived field actions"),
            s.revision.get(..12).unwrap_or(&s.revision),
        ),
        None => writeln!(console, "{verdict}: {}", counted(findings.len(), "problem", "problems")),
    }
}

/// `1 row`, `2 rows`.
#[must_use]
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn json(console: &mut impl Write, findings: &[Finding], summary: Option<&Summary>, taken: bool) -> io::Result<()> {
    #[derive(Serialize)]
    struct Line<'f> {
        severity: &'static str,
        file: &'f str,
        line: usize,
        column: usize,
        length: usize,
        message: &'f str,
        help: Option<&'f str>,
    }
    #[derive(Serialize)]
    struct Report<'f> {
        ok: bool,
        problems: Vec<Line<'f>>,
        bundle: Option<&'f Summary>,
    }
    let problems = findings
        .iter()
        .map(|Finding { problem, severity, .. }| Line {
            severity: if *severity == Severity::Error { "error" } else { "warning" },
            file: &problem.file,
            line: problem.line,
            column: problem.column,
            length: problem.length,
            message: &problem.message,
            help: problem.help.as_deref(),
        })
        .collect();
    serde_json::to_writer_pretty(&mut *console, &Report { ok: taken, problems, bundle: summary })?;
    writeln!(console)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)], format: CheckFormat, colours: bool) -> (u8, String) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let args = CheckArgs {
            directory: folder.path().to_owned(),
            format,
            deny_warnings: false,
            reading: ReadingArgs { validation_level: 1, caller_type: EntityType::parse("Service").unwrap() },
        };
        let mut console = Vec::new();
        let code = run(&args, &mut console, colours).unwrap();
        (code, String::from_utf8(console).unwrap())
    }

    const SCHEMA: (&str, &str) = (
        "s.cedarschema",
        "entity User;\nentity Note = { owner: User, @read(\"basic\") text?: String };\n\
         @fields(\"read\") action \"Note.read\" appliesTo { principal: User, resource: Note };\n",
    );

    #[test]
    fn a_sound_bundle_is_counted() {
        let policy = "@id(\"n\")\n@owner(\"o\")\n@reason(\"r\")\npermit (principal, action in [Action::\"Note.read\", Action::\"Note.read#basic\"], resource)\nwhen { resource.owner == principal };\n";
        let (code, text) = check(&[SCHEMA, ("n.cedar", policy)], CheckFormat::Human, false);
        assert_eq!(code, 0, "{text}");
        assert!(text.starts_with("ok: 1 policy, 0 of them forbid; 2 entity types, 1 action, "), "{text}");
        let (code, text) = check(&[SCHEMA, ("n.cedar", policy)], CheckFormat::Json, false);
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, report["ok"].as_bool(), report["bundle"]["policies"].as_u64()), (0, Some(true), Some(1)));
    }

    #[test]
    fn a_mistake_is_shown_where_it_stands_with_its_mend() {
        let policy = "@id(\"n\")\n@owner(\"o\")\n@reason(\"r\")\npermit (principal, action == Action::\"Note.read\", resource)\nwhen { resource.ownr == principal };\n";
        let (code, text) = check(&[SCHEMA, ("n.cedar", policy)], CheckFormat::Human, false);
        assert_eq!(code, 1);
        for expected in ["`ownr`", "n.cedar:5:", "did you mean `owner`", "not ok: 1 problem"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(!text.contains('\u{1b}'), "no colours unless asked for");
        let (_, text) = check(&[SCHEMA, ("n.cedar", policy)], CheckFormat::Json, true);
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let problem = &report["problems"][0];
        assert_eq!((problem["file"].as_str(), problem["line"].as_u64()), (Some("n.cedar"), Some(5)), "{text}");
        assert_eq!(problem["severity"], "error");
    }

    #[test]
    fn a_folder_without_a_schema_is_no_bundle() {
        let (code, text) = check(&[], CheckFormat::Human, false);
        assert_eq!(code, 1);
        assert!(text.contains("schema"), "{text}");
    }
}
