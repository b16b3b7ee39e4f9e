//! The wire, generated from `proto/`.

pub mod codec;
mod debug;

/// `gatepost.v1`.
#[expect(clippy::allow_attributes_without_reason, clippy::allow_attributes, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("gatepost.v1");
}

/// `gatepost.admin`.
pub mod admin {
    /// `gatepost.admin.v1`.
    #[expect(clippy::allow_attributes_without_reason, clippy::allow_attributes, reason = "generated code")]
    pub mod v1 {
        tonic::include_proto!("gatepost.admin.v1");
    }
}

/// The descriptor set of `gatepost.admin.v1`. Nothing serves it by reflection; tests know by it which methods there are.
pub const ADMIN_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gatepost_admin_descriptor.bin"));

/// The descriptor set of `gatepost.v1`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gatepost_descriptor.bin"));
