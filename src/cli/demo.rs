//! `gatepost demo`: the real server in a world of its own, and a short story played against it.
//!
//! Nothing is pretended: the certificates, the tokens, the connections, the decisions and the records are what `serve`
//! works with. Every step says what has to come of it, so the story is a test as well.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::stage::{PlayedAct, Stage, StageError};
use super::{complain, exit, runtime};
use crate::app::BuildError;
use crate::clock::{SharedClock, SystemClock};

pub(super) mod bundle;
mod paste;
mod show;
mod stage;
mod story;
pub mod world;

/// Play a short story against a real server in a temporary folder
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Makes a throw-away certificate authority, certificates for services and a key that signs tokens, starts the real \
server on free ports of this machine, and asks it over mutual TLS. Policies are those of ./policies, or, where there \
are none, the worked example that this program carries. Nothing outside the temporary folder is written, and the \
folder is removed at the end.

    gatepost demo                 the story, and the audit records of it
    gatepost demo --json          the same for machines
    gatepost demo --keep          goes on serving, and says how to ask

Exit codes: 0 as expected, 1 some answer was not, 65 the policies are wrong.")]
pub struct DemoArgs {
    /// One JSON object a step, then one a record; nothing else on standard output
    #[arg(long)]
    pub json: bool,
    /// Leave the server running, and print commands to ask it with
    #[arg(long)]
    pub keep: bool,
    /// Show the server's own log on standard error (RUST_LOG says which lines)
    #[arg(long, short)]
    pub verbose: bool,
}

/// Runs the command.
///
/// # Errors
/// The console's own, and the system's when nothing can be started.
pub fn run(args: &DemoArgs, console: &mut impl Write, colours: bool) -> io::Result<u8> {
    logs(args.verbose);
    runtime()?.block_on(demo(args, console, colours))
}

async fn demo(args: &DemoArgs, console: &mut impl Write, colours: bool) -> io::Result<u8> {
    let stop = stop_on_signal()?;
    if io::stderr().is_terminal() && !args.json {
        // Whether anybody sees it does not matter.
        let _ = writeln!(anstream::stderr(), "starting the server...");
    }
    let clock = SystemClock::shared();
    let stage = match Stage::set(&std::env::current_dir()?, Arc::clone(&clock)).await {
        Ok(stage) => stage,
        Err(error) => {
            complain(&error.to_string());
            return Ok(match error {
                StageError::Build(BuildError::Policies(_)) => exit::DATA,
                StageError::Build(_) | StageError::Setup(_) => exit::SOFTWARE,
            });
        }
    };
    // The folder goes whatever happens here, also when nobody reads our output any more.
    let told = tokio::select! {
        told = tell(&stage, args, console, colours, &clock) => told,
        () = stop.cancelled() => Ok(exit::FORCED),
    };
    let kept = match told {
        Ok(code) if args.keep && code != exit::FORCED => {
            keep(&stage, args, console, &clock, &stop).await.map(|()| code)
        }
        told => told,
    };
    let finished = stage.strike().await;
    let code = kept?;
    if !finished? {
        complain("some calls had not finished in time and were cut off");
        return Ok(1);
    }
    Ok(code)
}

/// Plays the story and shows it. The exit code.
async fn tell(
    stage: &Stage,
    args: &DemoArgs,
    console: &mut impl Write,
    colours: bool,
    clock: &SharedClock,
) -> io::Result<u8> {
    let acts = stage.play(story::story(&stage.world, clock.now())?).await?;
    let records = stage.records()?;
    if args.json {
        show::steps_as_json(console, &acts)?;
        show::records_as_json(console, &records)?;
    } else {
        let shown = stage.policies.display();
        writeln!(console, "Gatepost decides over mutual TLS at {}, with the policies in {shown}.\n", stage.address)?;
        show::table(console, &acts, colours)?;
        trail(console, &acts, &records)?;
    }
    let different = if args.json {
        show::differences(&mut anstream::stderr(), &acts, false)?
    } else {
        show::differences(console, &acts, colours)?
    };
    let steps: Vec<_> = acts.iter().flat_map(|act| &act.steps).collect();
    if !args.json {
        let good = steps.iter().filter(|played| played.ok()).count();
        writeln!(console, "\n{good} of {} answers are as expected.", steps.len())?;
        if different {
            writeln!(console, "The story knows the worked example; other policies may answer otherwise.")?;
        }
    }
    console.flush()?;
    Ok(u8::from(different))
}

/// The records, and one of them in full.
fn trail(console: &mut impl Write, acts: &[PlayedAct], records: &[Value]) -> io::Result<()> {
    writeln!(console, "\nThe audit trail: one record for every answer and every refusal, written before it left\n")?;
    writeln!(console, "{}", show::record_head())?;
    show::records(console, records)?;
    let with_fields = acts.iter().flat_map(|act| &act.steps).find(|played| played.got.fields.is_some());
    let id = with_fields.and_then(|played| played.decision_id.as_deref());
    let of_it = |record: &&Value| record.pointer("/metadata/original_event_uid").and_then(Value::as_str) == id;
    if let Some(record) = records.iter().find(of_it).filter(|_| id.is_some()) {
        writeln!(
            console,
            "\nOne of them in full (OCSF 1.8 API Activity; on disk it is one line): what alice may read\n"
        )?;
        writeln!(console, "{}", show::pretty(record))?;
    }
    Ok(())
}

/// Goes on serving until a signal: prints how to ask, then every new record.
async fn keep(
    stage: &Stage,
    args: &DemoArgs,
    console: &mut impl Write,
    clock: &SharedClock,
    stop: &CancellationToken,
) -> io::Result<()> {
    let mut trail = stage.trail();
    while trail.next()?.is_some() {}
    let commands = paste::commands(stage, clock.now())?;
    if args.json {
        anstream::stderr().write_all(commands.as_bytes())?;
    } else {
        console.write_all(commands.as_bytes())?;
        console.flush()?;
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
        let mut records = Vec::new();
        while let Some(record) = trail.next()? {
            records.push(record);
        }
        if args.json {
            show::records_as_json(console, &records)?;
        } else {
            show::records(console, &records)?;
        }
        console.flush()?;
    }
}

/// The server's log would clutter the table: it is shown to those who ask for it.
fn logs(verbose: bool) {
    let wanted = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let Some(filter) = wanted.or_else(|| verbose.then(|| "gatepost=info".to_owned())) else { return };
    // A second subscriber, or a filter that is none, is no reason not to play.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
}

/// Cancelled by the first SIGTERM or SIGINT; the drain has a limit of its own.
fn stop_on_signal() -> io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        asked.cancel();
    });
    Ok(stop)
}
