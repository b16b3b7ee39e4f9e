//! `gatepost demo`: the real server in a world of its own, and a short story played against it.

use std::io::{self, Write};

pub mod world;

/// Play a short story against a real server in a temporary folder
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// One JSON object a step
    #[arg(long)]
    pub json: bool,
    /// Leave the server running, and print commands to ask it with
    #[arg(long)]
    pub keep: bool,
}

/// Runs the command.
///
/// # Errors
/// The console's own.
pub fn run(_args: &DemoArgs, _console: &mut impl Write, _colours: bool) -> io::Result<u8> {
    Ok(0)
}
