//! The wire, generated from `proto/`.

/// `gatepost.v1`.
#[expect(clippy::allow_attributes_without_reason, clippy::allow_attributes, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("gatepost.v1");
}

/// The descriptor set of `proto/`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gatepost_descriptor.bin"));
