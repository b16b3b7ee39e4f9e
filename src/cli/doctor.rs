//! `gatepost doctor`: looks at a configuration and everything that it needs, from the outside in, and says what to do.
//!
//! Every part is read by the code that the server reads it with; what stops a start there is one line of many here. Takes
//! no lock, writes no file, and leaves a server that runs alone.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use self::findings::{Findings, Group};
use super::check::counted;
use super::source::SourceArgs;
use super::{complain, exit, runtime};
use crate::clock::{SharedClock, SystemClock};
use crate::config::load::{ConfigReport, load};
use crate::config::{Config, ListenerIdentity};

mod clock;
mod findings;
mod issuers;
mod listener;
mod machine;
mod modes;
mod policies;
mod processes;
mod reach;
mod records;
mod revocations;
mod show;
mod sinks;

/// Check a configuration and everything that it needs, and say what to do.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Looks at files and their modes, certificates, names and days left, the clock, issuers and their keys, policies, the \
folder and the disk for records, sinks, ports and limits. Changes nothing, and leaves a server that runs alone. \
Introspection endpoints are asked about a token that nobody has.

    gatepost doctor --config gatepost.yaml
    gatepost doctor --config gatepost.yaml --name gatepost.shop.svc --ca callers-trust.pem
    gatepost doctor --config gatepost.yaml --format json | jq '.checks[] | select(.verdict == \"fail\")'

Exit codes: 0 nothing fails (warnings may stand), 1 something fails, 64 the configuration can't be read at all.")]
pub struct DoctorArgs {
    /// The settings
    #[command(flatten)]
    pub source: SourceArgs,
    /// A name or address by which callers reach the server; may be given many times
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,
    /// PEM file of the authorities that callers believe: does the server's certificate lead there?
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Connect nowhere
    #[arg(long)]
    pub offline: bool,
    /// Leave a group of checks out; may be given many times
    #[arg(long, value_name = "GROUP", value_enum)]
    pub skip: Vec<Group>,
    /// How the report looks
    #[arg(long, value_enum, default_value_t = DoctorFormat::Text)]
    pub format: DoctorFormat,
}

/// How the report looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DoctorFormat {
    /// For people: a line for each check, and what to do
    Text,
    /// For machines: one object
    Json,
}

/// Runs the command. The exit code: 0 nothing fails, 1 something does, 64 the configuration can't be read at all.
///
/// # Errors
/// The console's own, and when no runtime can be started.
pub fn run(args: &DoctorArgs, console: &mut impl Write, colours: bool) -> io::Result<u8> {
    let mut findings = Findings::without(args.skip.iter().copied().collect::<BTreeSet<_>>());
    match load(&args.source.source()) {
        Ok(config) => runtime()?.block_on(examine(&config, args, &mut findings)),
        Err(report) if report.problems.iter().all(|problem| problem.key.is_empty()) => {
            complain(&format!("the configuration can't be read:\n{report}"));
            return Ok(exit::CONFIGURATION);
        }
        Err(report) => misconfigured(&report, &mut findings),
    }
    match args.format {
        DoctorFormat::Text => show::text(&findings, console, colours)?,
        DoctorFormat::Json => show::json(&findings, console)?,
    }
    Ok(u8::from(findings.failed() > 0))
}

/// Settings that can't be used: each mistake is a check that failed. What they would lead to can't be looked at.
fn misconfigured(report: &ConfigReport, findings: &mut Findings) {
    for problem in &report.problems {
        let place = problem.at.as_ref().map(|at| format!("{at}: ")).unwrap_or_default();
        // Some messages say what to do themselves.
        let (message, mend) = match (&problem.help, problem.message.split_once("; ")) {
            (Some(help), _) => (problem.message.as_str(), help.as_str()),
            (None, Some(parted)) => parted,
            (None, None) => (problem.message.as_str(), "correct it; the configuration reference says what fits"),
        };
        let says = format!("{place}`{}` {message}", problem.key);
        findings.fail(Group::Configuration, "settings", &problem.key, says, mend);
    }
    let says = "nothing else is looked at until the settings can be used";
    findings.note(Group::Configuration, "settings", "", says);
}

async fn examine(config: &Config, args: &DoctorArgs, findings: &mut Findings) {
    let clock = SystemClock::shared();
    let says = format!(
        "the settings can be used: {}, {}, {}",
        counted(config.callers.len(), "caller", "callers"),
        counted(config.issuers.len(), "issuer", "issuers"),
        counted(config.audit.sinks.len(), "sink", "sinks")
    );
    findings.ok(Group::Configuration, "settings", "", says);
    modes::examine(&args.source, findings);
    let network = !args.offline;

    server(config, args, &clock, findings, network).await;
    if let Some(admin) = &config.admin {
        listener::files(Group::Admin, "admin", &admin.tls, &clock, findings);
    }
    let dates = issuers::examine(config, &clock, findings, network).await;
    clock::examine(config, &args.source.config, &clock, &dates, findings);
    let bundle = policies::examine(config, findings).await;
    records::examine(config, findings);
    sinks::examine(config, findings, network).await;
    revocations::examine(config, &clock, findings, network).await;
    machine::ports(config, findings);
    machine::limits(config, findings);
    machine::stack(bundle, findings).await;
    machine::telemetry(config, findings, network).await;
}

async fn server(config: &Config, args: &DoctorArgs, clock: &SharedClock, findings: &mut Findings, network: bool) {
    match &config.server.tls {
        ListenerIdentity::Files(files) => {
            let own = listener::files(Group::Server, "server", files, clock, findings);
            if let Some(own) = own {
                listener::expected(&own, args, clock, findings);
            }
        }
        ListenerIdentity::WorkloadApi(agent) => {
            listener::workload_api(agent, Arc::clone(clock), findings, network).await;
        }
    }
}
