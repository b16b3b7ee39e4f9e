//! Compiles `proto/` without protoc (protox) and keeps the descriptor sets: for reflection, and to know every method.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

/// Each package and where its descriptors go. They are kept apart: reflection on one listener must not tell of the
/// other's services.
const SERVICES: [(&str, &str); 2] = [
    ("gatepost/v1/decision_service.proto", "gatepost_descriptor.bin"),
    ("gatepost/admin/v1/revocation_service.proto", "gatepost_admin_descriptor.bin"),
];

/// What holds a credential, or names one, does not print by itself: `src/proto/debug.rs` says what is shown of it.
const UNPRINTED: [&str; 7] = [
    ".gatepost.v1.ApiKeyCredential",
    ".gatepost.v1.CheckRequest",
    ".gatepost.v1.BatchCheckRequest",
    ".gatepost.v1.StreamOpening",
    ".gatepost.v1.StreamRenewal",
    ".gatepost.admin.v1.RevokeTokenRequest",
    ".gatepost.admin.v1.RevokeSessionRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for (file, descriptors) in SERVICES {
        let files = protox::compile([file], ["proto"])?;
        std::fs::write(out.join(descriptors), files.encode_to_vec())?;
        let generator = tonic_prost_build::configure()
            .build_client(true)
            .build_server(true)
            .codec_path("crate::proto::codec::SliceCodec");
        generator.skip_debug(UNPRINTED).compile_fds(files)?;
    }
    Ok(())
}
