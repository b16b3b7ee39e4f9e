//! What several benches need: servers under load and the load, bundles of any size, and what the kernel counts.

use std::net::TcpListener;
use std::path::Path;

pub mod cerbos;
pub mod connection;
pub mod disk;
pub mod fixture;
pub mod generated;
pub mod load;
pub mod process;
pub mod questions;
pub mod server;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A port of this machine that nobody listened on a moment ago.
pub fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Reads a PEM file as rustls wants it.
pub fn pem(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()).into())
}
