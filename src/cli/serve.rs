//! `gatepost serve`: settings in, a server until a signal.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::source::SourceArgs;
use super::{complain, exit, refusal, runtime};
use crate::app::build;
use crate::clock::SystemClock;
use crate::config::load::load;
use crate::config::{Config, RevocationConfig};
use crate::telemetry::Telemetry;

mod notify;

/// How long the end waits for whoever reads standard error.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Serve decisions.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Settings are read from the file, then from the environment (GATEPOST_SERVER__LISTEN=0.0.0.0:8443), then from \
--set (--set server.listen=0.0.0.0:8443); later ones win. Every mistake is told at once, by file, line and key. \
docs/reference/configuration.md lists every key.

SIGTERM or SIGINT drains: readiness goes false, calls under way finish, the last record is written, exit 0. \
A second signal ends at once, exit 130; SIGHUP does nothing. Certificates, keys, authorities and policies are read again \
when they change.

    gatepost serve --config gatepost.yaml
    gatepost serve --config gatepost.yaml --check      read everything, serve nothing, change nothing

Exit codes: 0 stopped in order, 1 calls had to be cut off, 64 the configuration is wrong, or a certificate, key or other \
file that it names, 65 the policies are wrong, 69 something that is needed is not there (a port, the folder for records, \
the SPIRE agent), 70 a fault of ours, 130 ended by a second signal. `gatepost doctor` says more about each.")]
pub struct ServeArgs {
    /// The settings
    #[command(flatten)]
    pub source: SourceArgs,
    /// Read and check everything, then stop
    #[arg(long)]
    pub check: bool,
}

/// Runs the command. The exit code is one of [`exit`]'s.
///
/// # Errors
/// When no runtime can be started.
pub fn run(args: &ServeArgs) -> io::Result<u8> {
    let config = match load(&args.source.source()) {
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
    // Before the start and not after it: process 1 of a container does not hear what it has not asked for, and a start
    // may wait for others.
    let drain = hear_signals()?;
    let built = tokio::select! {
        built = build(config, clock, telemetry.metrics.clone(), telemetry.registry.clone()) => built,
        () = drain.cancelled() => {
            complain("told to stop before anybody was served");
            telemetry.shutdown(Duration::from_secs(2)).await;
            return Ok(if only_check { exit::FORCED } else { 0 });
        }
    };
    let gatepost = match built {
        Ok(gatepost) => gatepost,
        Err(error) => {
            complain(&refusal::told(&error));
            return Ok(refusal::exit_code(&error));
        }
    };
    if only_check {
        complain(&format!("all is well: revision {}", gatepost.pdp.store.current().revision().short()));
        return Ok(0);
    }
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

/// From now on the first SIGTERM or SIGINT cancels what is returned; a second one ends the process.
fn hear_signals() -> io::Result<CancellationToken> {
    let drain = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let asked = drain.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                // Elsewhere it means "read your files again". Unheard it would end us without a drain.
                _ = hangup.recv() => {
                    tracing::info!("SIGHUP changes nothing: files are read again when they change, settings at start");
                    continue;
                }
            }
            if !asked.is_cancelled() {
                asked.cancel();
                continue;
            }
            // Every answer that left is on record already, as it would be had we been killed. Nor is whoever reads our
            // words waited for: perhaps nobody does.
            let told = tokio::task::spawn_blocking(|| complain("a second signal: ending at once"));
            let _ = tokio::time::timeout(LAST_WORDS, told).await;
            std::process::exit(exit::FORCED.into());
        }
    });
    Ok(drain)
}
