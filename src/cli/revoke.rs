//! `gatepost revoke`: an operator's hand on the admin listener of a running server.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{exit, runtime};

mod office;
mod read;
mod show;

use office::{Failure, Office};

/// Revoke tokens, subjects, sessions and certificates, or see what is revoked.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Speaks to the admin listener (`admin` in the configuration) with the operator's own certificate. \
What is revoked is recorded first, in force when the command ends, and in every process that shares \
the revocation file or the store within a second. Nothing can be un-revoked: entries end by \
themselves. docs/revocation.md tells the rest.

    export GATEPOST_ADMIN_SERVER=https://gatepost.internal:9444 GATEPOST_ADMIN_CA=ca.pem
    export GATEPOST_ADMIN_CERTIFICATE=me.pem GATEPOST_ADMIN_KEY=me.key
    gatepost revoke subject alice --issuer https://idp.example.org \\
        --reason 'laptop stolen, case 4711'
    gatepost revoke token 7f3c --issuer https://idp.example.org --reason 'found in a log'
    gatepost revoke session - --issuer https://idp.example.org --reason 'logged out' < session-id
    gatepost revoke certificate orders.pem --reason 'key was in a backup'
    gatepost revoke list --format json

Exit codes: 0 done, 1 refused by the server, 64 the command line is wrong, or the certificate or \
key files are, 69 the server can't be reached, or could not record or store it.")]
pub struct RevokeArgs {
    /// What to revoke
    #[command(subcommand)]
    pub what: What,
    /// Where to
    #[command(flatten)]
    pub server: ServerArgs,
}

/// The admin listener, and who we are there.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// The admin listener: https://HOST:PORT
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "GATEPOST_ADMIN_SERVER",
        default_value = "https://localhost:9444"
    )]
    pub server: String,
    /// The name in its certificate, if it is not the host's
    #[arg(long, global = true, value_name = "NAME", env = "GATEPOST_ADMIN_SERVER_NAME")]
    pub server_name: Option<String>,
    /// PEM file: the authorities of the server
    #[arg(long, global = true, value_name = "FILE", env = "GATEPOST_ADMIN_CA", default_value = "ca.pem")]
    pub ca: PathBuf,
    /// PEM file: the operator's certificate chain
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "GATEPOST_ADMIN_CERTIFICATE",
        default_value = "operator.pem"
    )]
    pub certificate: PathBuf,
    /// PEM file: its private key
    #[arg(long, global = true, value_name = "FILE", env = "GATEPOST_ADMIN_KEY", default_value = "operator.key")]
    pub key: PathBuf,
    /// How the outcome looks
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    pub format: Format,
}

/// How the outcome looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Human,
    /// For machines: one object
    Json,
}

/// What to revoke.
#[derive(Debug, Subcommand)]
pub enum What {
    /// One token, by its id (`jti`)
    Token {
        /// The id; `-` reads it from standard input
        id: String,
        /// The id is its SHA-256 in hex, as audit records have it
        #[arg(long)]
        sha256: bool,
        /// The exact `iss`
        #[arg(long)]
        issuer: String,
        /// When the token expires: 2027-01-31T12:00:00Z, or from now 24h. As late as it can when unset
        #[arg(long, value_name = "TIME", value_parser = read::until)]
        until: Option<jiff::Timestamp>,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// Every token of a subject that was issued before an instant
    Subject {
        /// The exact `sub`; `-` reads it from standard input
        subject: String,
        /// The exact `iss`
        #[arg(long)]
        issuer: String,
        /// Tokens issued before this: 2027-01-31T12:00:00Z. Everything issued so far when unset
        #[arg(long, value_name = "TIME", value_parser = read::instant)]
        issued_before: Option<jiff::Timestamp>,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// Every token of a session, by its id (`sid`)
    Session {
        /// The id; `-` reads it from standard input
        id: String,
        /// The exact `iss`
        #[arg(long)]
        issuer: String,
        /// When the session ends at the issuer: 2027-01-31T12:00:00Z, or from now 24h
        #[arg(long, value_name = "TIME", value_parser = read::until)]
        until: Option<jiff::Timestamp>,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// A certificate of a calling service or an operator
    Certificate {
        /// A PEM file, whose first certificate is meant, or a SHA-256 fingerprint
        #[arg(value_name = "CERTIFICATE")]
        which: String,
        /// When it expires; read from the file when there is one
        #[arg(long, value_name = "TIME", value_parser = read::until)]
        until: Option<jiff::Timestamp>,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// See what is revoked
    List {
        /// So many entries at most
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = read::count)]
        limit: usize,
    },
}

/// Runs the command. The exit code is one of those that the help names.
///
/// # Errors
/// The console's own, or no runtime.
pub fn run(args: &RevokeArgs, console: &mut impl Write) -> io::Result<u8> {
    let done = runtime()?.block_on(carry_out(args));
    match done {
        Ok(shown) => {
            show::outcome(console, &shown, args.server.format)?;
            Ok(0)
        }
        Err(failure) => {
            super::complain(&failure.to_string());
            Ok(match failure {
                Failure::Usage(_) | Failure::Files(_) => exit::CONFIGURATION,
                Failure::Unreachable(_) => exit::UNAVAILABLE,
                Failure::Refused { .. } => 1,
            })
        }
    }
}

async fn carry_out(args: &RevokeArgs) -> Result<show::Shown, Failure> {
    let office = Office::open(&args.server)?;
    Ok(match &args.what {
        What::Token { id, sha256, issuer, until, reason } => {
            office.token(&read::given(id)?, *sha256, issuer, *until, reason).await?
        }
        What::Subject { subject, issuer, issued_before, reason } => {
            office.subject(&read::given(subject)?, issuer, *issued_before, reason).await?
        }
        What::Session { id, issuer, until, reason } => {
            office.session(&read::given(id)?, issuer, *until, reason).await?
        }
        What::Certificate { which, until, reason } => {
            let (sha256, until) = read::certificate(which, *until)?;
            office.certificate(&sha256, until, reason).await?
        }
        What::List { limit } => office.list(*limit).await?,
    })
}
