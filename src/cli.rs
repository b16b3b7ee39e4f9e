//! The command line: `gatepost serve`, `config`, `doctor`, `demo`, `check`, `test`, `bench`, `audit`, `apikey`,
//! `revoke`, `completions`.
//!
//! Results go to standard output, logs and complaints to standard error; colours only to a terminal.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

pub mod apikey;
pub mod audit;
pub mod bench;
pub mod check;
pub mod config;
pub mod demo;
pub mod doctor;
mod refusal;
pub mod revoke;
pub mod serve;
pub mod source;
pub mod test;

/// Exit codes beyond 0 and 1, after sysexits(3).
pub mod exit {
    /// The command line or the configuration is wrong, or a certificate, a key or another file that they name.
    pub const CONFIGURATION: u8 = 64;
    /// Policies are wrong, or other data that a command was given: a spool, a file of API keys.
    pub const DATA: u8 = 65;
    /// Something that is needed is not there: a port is taken, records can't be written, an agent is away.
    pub const UNAVAILABLE: u8 = 69;
    /// The self-test failed, or a fault of ours.
    pub const SOFTWARE: u8 = 70;
    /// Ended by a second signal before the drain was over.
    pub const FORCED: u8 = 130;
}

/// A policy decision point: may this principal, through this service, do this to that object, and to which of its fields?
#[derive(Debug, Parser)]
#[command(
    name = "gatepost",
    version,
    propagate_version = true,
    after_long_help = "\
Start here:
    gatepost demo                         a short story over real mTLS, tokens and policies
    gatepost check policies               is the bundle right?
    gatepost test policies                does it decide what it should?
    gatepost doctor --config gatepost.yaml    is everything there that it needs?
    gatepost serve --config gatepost.yaml

Exit codes: 0 well, 1 no (a check or test failed), 64 the command line or the configuration is wrong, or a \
certificate or key that they name, 65 policies are wrong, 69 something that is needed is not there (a port is taken, \
records can't be written), 70 a fault of ours."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve decisions
    Serve(serve::ServeArgs),
    /// Print the settings that count, each with where it comes from
    Config(config::ConfigArgs),
    /// Check a configuration and everything that it needs, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Play a short story against a real server in a temporary folder
    Demo(demo::DemoArgs),
    /// Check a policy bundle, with reports like a compiler's
    Check(check::CheckArgs),
    /// Run a bundle's policy tests
    Test(test::TestArgs),
    /// Measure how many questions a server answers, and how fast
    Bench(bench::BenchArgs),
    /// Look at the audit trail, and check that it is whole
    Audit(audit::AuditArgs),
    /// Make, list and revoke API keys
    Apikey(apikey::ApiKeyArgs),
    /// Revoke tokens, subjects, sessions and certificates, or see what is revoked
    Revoke(revoke::RevokeArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command line and gives the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; a closed pipe is nothing to complain of.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::CONFIGURATION) } else { ExitCode::SUCCESS };
        }
    };
    let mut out = anstream::stdout();
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let done = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Config(args) => config::run(&args, &mut out, colours),
        Command::Doctor(args) => doctor::run(&args, &mut out, colours),
        Command::Demo(args) => demo::run(&args, &mut out, colours),
        Command::Check(args) => check::run(&args, &mut out, colours),
        Command::Test(args) => test::run(&args, &mut out, colours),
        Command::Bench(args) => bench::run(&args, &mut out, colours),
        Command::Audit(args) => audit::run(&args, &mut out, colours),
        Command::Apikey(args) => apikey::run(&args, &mut out),
        Command::Revoke(args) => revoke::run(&args, &mut out),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "gatepost", &mut out);
            Ok(0)
        }
    };
    match done.and_then(|code| out.flush().map(|()| code)) {
        Ok(code) => ExitCode::from(code),
        // Whoever read our output has gone: `gatepost check | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("can't write: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// One line to standard error.
pub(crate) fn complain(message: &str) {
    // If even standard error is closed there is nobody to tell.
    let _ = writeln!(anstream::stderr(), "gatepost: {message}");
}

/// A runtime whose threads have the stack that evaluation needs.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("gatepost")
        .thread_stack_size(crate::policy::STACK)
        .build()
}
