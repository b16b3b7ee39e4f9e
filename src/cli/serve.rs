//! `gatepost serve`: settings in, a server until a signal.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{complain, exit, runtime};
use crate::app::{BuildError, build};
use crate::clock::SystemClock;
use crate::config::load::{Source, load};
use crate::config::{Config, RevocationConfig};
use crate::telemetry::Telemetry;

mod notify;

/// Serve decisions.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Settings are read from the file, then from the environment (GATEPOST_SERVER__LISTEN=0.0.0.0:8443), then from \
--set (--set server.listen=0.0.0.0:8443); later ones win. Every mistake is told at once, by file, line and key. \
docs/reference/configuration.md lists every key.

SIGTERM or SIGINT drains: readiness goes false, calls under way finish, the last record is written, exit 0. \
A second signal ends at once; SIGHUP does nothing. Certificates, keys, authorities and policies are read again \
when they change.

    gatepost serve --config gatepost.yaml
    gatepost serve --config gatepost.yaml --check      read everything, serve nothing, change nothing")]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", env = "GATEPOST_CONFIG")]
    pub config: PathBuf,
    /// One setting over the file and the environment; may be given many times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Read and check everything, then stop
    #[arg(long)]
    pub check: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE, such as server.listen=127.0.0.1:8443".to_owned()),
    }
}

/// Runs the command. The exit code is one of [`exit`]'s.
///
/// # Errors
/// When no runtime can be started.
pub fn run(args: &ServeArgs) -> io::Result<u8> {
    let environment =
        std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    let source = args
        .set
        .iter()
        .fold(Source::file(&args.config).environment(environment), |source, (key, value)| source.set(key, value));
    let config = match load(&source) {
        Ok(config) => config,
        Err(report) => {
            complain(&format!("the configuration can't be used:\n{report}"));
            return Ok(exit::CONFIGURATION);
        }
    };
    runtime()?.block_on(serve(config, args.check))
}

/// Settings to check with, beside a server that may be running: its ports stay its own, and no file for records is made
/// or rotated, least of all one that only whoever checks could write.
fn harmless(mut config: Config, scratch: &Path) -> Config {
    config.server.listen.set_port(0);
    config.server.ops_listen.set_port(0);
    config.audit.spool.directory = scratch.join("audit");
    config.audit.sinks.clear();
    config.revocation = RevocationConfig::default();
    if let Some(admin) = &mut config.admin {
        admin.listen.set_port(0);
    }
    config
}

async fn serve(config: Config, only_check: bool) -> io::Result<u8> {
    let telemetry = match Telemetry::start(&config.telemetry) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            complain(&format!("telemetry can't be started: {error}"));
            return Ok(exit::CONFIGURATION);
        }
    };
    #[cfg(feature = "bench-unaudited")]
    let config = {
        let mut config = config;
        config.audit.unaudited = std::env::var_os("GATEPOST_BENCH_UNAUDITED").is_some();
        complain("this build is for a benchmark alone: it can be told to keep no records");
        config
    };
    // Only to check: whoever serves may have no folder for temporary files, as in a container with a read-only root.
    let scratch = if only_check { Some(tempfile::tempdir()?) } else { None };
    let config = match &scratch {
        Some(scratch) => harmless(config, scratch.path()),
        None => config,
    };
    let patience = config.server.drain_delay + config.server.drain_timeout;
    let clock = SystemClock::shared();
    let gatepost = match build(config, clock, telemetry.metrics.clone(), telemetry.registry.clone()).await {
        Ok(gatepost) => gatepost,
        Err(error) => {
            complain(&error.to_string());
            return Ok(match error {
                BuildError::Policies(_)
                | BuildError::Tls(_)
                | BuildError::AdminTls(_)
                | BuildError::Tokens(_)
                | BuildError::ApiKeys(_) => exit::DATA,
                BuildError::Audit(_)
                | BuildError::Sinks(_)
                | BuildError::Listen { .. }
                | BuildError::Revocations(_) => exit::UNAVAILABLE,
                BuildError::SelfTest | BuildError::Random => exit::SOFTWARE,
            });
        }
    };
    if only_check {
        complain(&format!("all is well: revision {}", gatepost.pdp.store.current().revision().short()));
        return Ok(0);
    }
    let drain = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let asked = drain.clone();
    tokio::spawn(async move {
        let mut heard = 0;
        loop {
            tokio::select! {
                _ = terminate.recv() => heard += 1,
                _ = interrupt.recv() => heard += 1,
                // Elsewhere it means "read your files again". Unheard it would end us without a drain.
                _ = hangup.recv() => {
                    tracing::info!("SIGHUP changes nothing: files are read again when they change, settings at start");
                    continue;
                }
            }
            if heard == 1 {
                asked.cancel();
            } else {
                complain("a second signal: ending at once");
                std::process::exit(exit::FORCED.into());
            }
        }
    });
    notify::follow(Arc::clone(&gatepost.readiness), gatepost.address, patience);
    let code = match gatepost.run(drain).await {
        Ok(stopped) if stopped.by_itself => {
            complain("the listener ended by itself; the log says what happened before");
            exit::SOFTWARE
        }
        Ok(stopped) if stopped.cut_off == 0 => 0,
        Ok(stopped) => {
            complain(&format!("{} calls had not finished in time and were cut off", stopped.cut_off));
            1
        }
        Err(error) => {
            complain(&format!("records can't be written: {error}"));
            exit::UNAVAILABLE
        }
    };
    telemetry.shutdown(Duration::from_secs(2)).await;
    Ok(code)
}
