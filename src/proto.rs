//! The wire, generated from `proto/`.

/// `gatepost.v1`.
#[allow(
    clippy::allow_attributes,
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "generated code, which may or may not need each of these"
)]
pub mod v1 {
    tonic::include_proto!("gatepost.v1");
}

/// The descriptor set of `proto/`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gatepost_descriptor.bin"));
