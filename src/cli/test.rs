//! `gatepost test`: puts the rows of `DIR/tests/*.yaml` to a bundle and says which policies no row needs.
//!
//! [`rows`] reads them, [`compare`] judges, [`report`] shows. The policies are asked through the same door as in the
//! service, but without connections, tokens, cache or audit.

pub mod compare;
pub mod report;
pub mod rows;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use compare::{Outcome, compare};
use report::{Report, RowResult};
use rows::{Row, RowError, RowFile};

use super::check::{self, ReadingArgs};
use crate::model::decision::Ruling;
use crate::model::entity::EntityUid;
use crate::policy::{Bundle, BundleOptions, CallerData, RequestError, SubjectData};

/// Run the tests that stand beside a policy bundle.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
A test is a row of DIR/tests/*.yaml:

    tests:
      - name: a customer does not read somebody else's order
        principal: { type: User, id: bob, attributes: { tenant: { type: Tenant, id: acme } } }
        action: Order.read
        resource: { type: Order, id: o-1, attributes: { tenant: .., customer: { type: User, id: alice } } }
        fields: all                      # or a list of paths; leave out when no fields are asked for
        expect: { decision: DENY, denial: NO_PERMIT }

`expect` may also name: mask, refused, determining (policy ids), obligations. `tests/shared.yaml` holds
principals and resources that rows of every file may use by name.

A policy that is determining in no row is not covered. --mutate removes each policy in turn and names
those without which every row still passes: such a policy could be lost and nobody would know.

Exit code: 0 all rows pass, 1 some do not, 2 the bundle or a test file is broken.")]
pub struct TestArgs {
    /// The bundle's folder; its tests are DIR/tests/*.yaml
    #[arg(value_name = "DIR", default_value = "policies")]
    pub directory: PathBuf,
    /// Only rows whose `file: name` contains this
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// How the report looks
    #[arg(long, value_enum, default_value_t = TestFormat::Human)]
    pub format: TestFormat,
    /// Fail when a policy is determining in no row, or (with --mutate) can be removed unnoticed
    #[arg(long, conflicts_with = "filter")]
    pub require_coverage: bool,
    /// Remove each policy in turn and name those that no row misses
    #[arg(long, conflicts_with = "filter")]
    pub mutate: bool,
    /// How the bundle is read
    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// How the report of `gatepost test` looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TestFormat {
    /// For people
    Human,
    /// For machines: one object
    Json,
    /// For build servers: JUnit XML
    Junit,
}

/// The bundle or a test file is broken, so nothing could be tested.
const BROKEN: u8 = 2;

/// Runs the command. The exit code: 0 all rows pass, 1 some do not, 2 the bundle or a test file is broken.
///
/// # Errors
/// The console's own.
pub fn run(args: &TestArgs, console: &mut impl Write, colours: bool) -> io::Result<u8> {
    let options = args.reading.options();
    let bundle = match Bundle::load(&args.directory, &options) {
        Ok(bundle) => bundle,
        Err(report) => {
            check::show_problems(console, &report.problems, colours)?;
            writeln!(console, "nothing was tested: the bundle is broken")?;
            return Ok(BROKEN);
        }
    };
    let rows = match read_rows(&args.directory.join("tests"), options.limits.policy_file_bytes) {
        Ok(rows) => rows,
        Err(problems) => {
            for problem in problems {
                writeln!(console, "tests/{problem}")?;
            }
            writeln!(console, "nothing was tested: a test file is broken")?;
            return Ok(BROKEN);
        }
    };
    let wanted: Vec<Row> = match &args.filter {
        Some(text) => rows.into_iter().filter(|row| format!("{}: {}", row.file, row.name).contains(text)).collect(),
        None => rows,
    };
    if wanted.is_empty() {
        writeln!(console, "nothing was tested: no row in {}/tests/*.yaml", args.directory.display())?;
        return Ok(BROKEN);
    }

    let results: Vec<RowResult> = wanted.iter().map(|row| put(&bundle, &options, row)).collect();
    // A few rows say nothing about what the others cover.
    let uncovered = args.filter.is_none().then(|| uncovered(&bundle, &results));
    let unmissed = args.mutate.then(|| unmissed(&bundle, &options, &wanted, &results));
    let report = Report::new(&bundle, &args.directory, results, uncovered.as_ref(), unmissed.as_ref());
    match args.format {
        TestFormat::Human => report.human(console, colours)?,
        TestFormat::Json => report.json(console)?,
        TestFormat::Junit => report.junit(console, args.require_coverage)?,
    }
    let lacking = args.require_coverage && [uncovered, unmissed].iter().flatten().any(|policies| !policies.is_empty());
    Ok(u8::from(report.failed() > 0 || lacking))
}

fn read_rows(folder: &Path, limit: usize) -> Result<Vec<Row>, Vec<RowError>> {
    let broken = |file: &str, message: String| vec![RowError { file: file.to_owned(), line: 0, message }];
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(broken("", error.to_string())),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| broken("", error.to_string()))?.path();
        if !path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).map_err(|error| broken(&name, error.to_string()))?;
        if text.len() > limit {
            return Err(broken(&name, format!("is longer than {limit} bytes")));
        }
        files.push(RowFile { name, text });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    rows::read(&files)
}

/// Puts one row to the policies.
fn put(bundle: &Bundle, options: &BundleOptions, row: &Row) -> RowResult {
    let caller =
        row.caller.clone().map(|id| CallerData { uid: EntityUid { entity_type: options.caller_type.clone(), id } });
    let subject = SubjectData { principal: row.principal.clone().into(), token: row.token.clone(), caller };
    let outcome = match bundle.request(&subject, &row.question, row.now) {
        Ok(request) => Outcome::Ruled(Ruling::clone(&bundle.rule(&request))),
        Err(RequestError::Denied(code)) => Outcome::Ruled(Ruling::deny(code)),
        Err(RequestError::Invalid(misfit)) => Outcome::Invalid(format!("{} {}", misfit.at, misfit.rule)),
    };
    let differences = compare(&row.expect, &outcome);
    RowResult { file: row.file.clone(), line: row.line, name: row.name.clone(), outcome, differences }
}

/// The policies that are determining in no row.
fn uncovered(bundle: &Bundle, results: &[RowResult]) -> BTreeSet<String> {
    let determining: BTreeSet<&str> = results.iter().flat_map(RowResult::determining).collect();
    let ids = bundle.policies().iter().map(|policy| &policy.id);
    ids.filter(|id| !determining.contains(id.as_str())).cloned().collect()
}

/// The policies without which every row that passes still passes.
fn unmissed(bundle: &Bundle, options: &BundleOptions, rows: &[Row], results: &[RowResult]) -> BTreeSet<String> {
    let passing: Vec<&Row> =
        rows.iter().zip(results).filter(|(_, result)| result.differences.is_empty()).map(|(row, _)| row).collect();
    let ids = bundle.policies().iter().map(|policy| &policy.id);
    ids.filter(|id| {
        // What is left is a part of what was valid, so it loads; were it not to, the loss would not go unnoticed.
        bundle.without(id).is_ok_and(|less| passing.iter().all(|row| put(&less, options, row).differences.is_empty()))
    })
    .cloned()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entity::EntityType;

    const SCHEMA: &str = "entity User;\nentity Note = { owner: User, @read(\"basic\") text?: String, secret?: String };\n\
        @fields(\"read\") action \"Note.read\" appliesTo { principal: User, resource: Note };\n";
    const POLICIES: &str = "@id(\"owner\")\n@owner(\"o\")\n@reason(\"r\")\n\
        permit (principal, action in [Action::\"Note.read\", Action::\"Note.read#basic\"], resource)\nwhen { resource.owner == principal };\n\
        @id(\"eve\")\n@owner(\"o\")\n@reason(\"r\")\nforbid (principal == User::\"eve\", action, resource);\n";
    const HERS: &str = "
tests:
  - name: hers
    principal: { type: User, id: ann }
    action: Note.read
    resource: { type: Note, id: n, attributes: { owner: { type: User, id: ann } } }
    fields: all
    expect: { decision: ALLOW, mask: [text], determining: [owner] }
";

    fn test(tests: &str, change: impl FnOnce(&mut TestArgs)) -> (u8, String) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("tests")).unwrap();
        for (name, text) in [("s.cedarschema", SCHEMA), ("p.cedar", POLICIES), ("tests/notes.yaml", tests)] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut args = TestArgs {
            directory: folder.path().to_owned(),
            filter: None,
            format: TestFormat::Human,
            require_coverage: false,
            mutate: false,
            reading: ReadingArgs { validation_level: 1, caller_type: EntityType::parse("Service").unwrap() },
        };
        change(&mut args);
        let mut console = Vec::new();
        let code = run(&args, &mut console, false).unwrap();
        (code, String::from_utf8(console).unwrap())
    }

    #[test]
    fn a_policy_that_no_row_needs_is_named() {
        let (code, text) = test(HERS, |_| ());
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("1 row: 1 passed"), "{text}");
        assert!(text.contains("eve"), "no row is about eve: {text}");
        assert_eq!(test(HERS, |args| args.require_coverage = true).0, 1);

        let eves = format!(
            "{HERS}  - name: eve's own\n    principal: {{ type: User, id: eve }}\n    action: Note.read\n    \
             resource: {{ type: Note, id: n, attributes: {{ owner: {{ type: User, id: eve }} }} }}\n    \
             expect: {{ decision: DENY, denial: FORBIDDEN }}\n"
        );
        let (code, text) = test(&eves, |args| (args.require_coverage, args.mutate) = (true, true));
        assert_eq!(code, 0, "{text}");
    }

    #[test]
    fn a_row_that_holds_without_its_policy_proves_nothing() {
        let strangers = format!(
            "{HERS}  - name: eve at somebody else's\n    principal: {{ type: User, id: eve }}\n    action: Note.read\n    \
             resource: {{ type: Note, id: n, attributes: {{ owner: {{ type: User, id: ann }} }} }}\n    \
             expect: {{ decision: DENY }}\n"
        );
        let (code, text) = test(&strangers, |args| (args.require_coverage, args.mutate) = (true, true));
        assert_eq!(code, 1, "the forbid decided, but nothing would have permitted it either: {text}");
        assert!(text.contains("eve"), "{text}");
    }

    #[test]
    fn a_difference_is_shown_in_every_format() {
        let wrong = HERS.replace("mask: [text]", "mask: [text, secret]");
        for format in [TestFormat::Human, TestFormat::Json, TestFormat::Junit] {
            let (code, text) = test(&wrong, |args| args.format = format);
            assert_eq!(code, 1, "{text}");
            for expected in ["hers", "mask", "secret, text", "owner"] {
                assert!(text.contains(expected), "{format:?} {expected}: {text}");
            }
        }
    }

    #[test]
    fn what_is_broken_is_no_failure_of_a_row() {
        let (code, text) = test(&HERS.replace("expect", "expects"), |_| ());
        assert_eq!(code, BROKEN);
        assert!(text.contains("tests/notes.yaml:8: unknown field `expects`"), "{text}");
        let (code, text) = test(HERS, |args| args.filter = Some("nothing like it".into()));
        assert_eq!(code, BROKEN, "a filter that matches nothing must not pass: {text}");
    }

    /// The worked example is what newcomers copy: every row holds, and no policy of it could be lost unnoticed.
    #[test]
    fn the_worked_example_needs_each_of_its_policies() {
        let args = TestArgs {
            directory: Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"),
            filter: None,
            format: TestFormat::Human,
            require_coverage: true,
            mutate: true,
            reading: ReadingArgs { validation_level: 1, caller_type: EntityType::parse("Service").unwrap() },
        };
        let mut console = Vec::new();
        let code = run(&args, &mut console, false).unwrap();
        assert_eq!(code, 0, "{}", String::from_utf8_lossy(&console));
    }
}
