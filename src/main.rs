//! The `gatepost` binary. Everything is in the library, so that tests start the same thing.

use std::process::ExitCode;

/// Records and answers are made by one thread and let go by another, which the system's own allocator does badly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Its memory is small things for the most part, and pages of 2 MiB hold several times as much as it needs (ADR 31). Where
    // the system can't be asked this costs memory and nothing else.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // One provider for all of TLS; an error means that one is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    gatepost::cli::run(std::env::args_os())
}
