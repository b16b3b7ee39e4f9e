//! The listener's identity and its peers.
pub mod peer;
pub mod server;
