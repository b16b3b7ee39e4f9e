//! The gRPC door.

pub mod server;
