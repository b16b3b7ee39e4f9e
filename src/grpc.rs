//! The gRPC door: the wire in, words to `pdp.rs`, the wire out.
//!
//! No door evaluates a policy.

pub mod admin;
pub mod convert;
pub mod front;
pub mod layers;
pub mod server;
pub mod service;
pub mod short;
pub mod status;
mod stream;
pub mod written;
