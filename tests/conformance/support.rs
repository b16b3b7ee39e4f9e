//! Where the corpora are.

use std::path::{Path, PathBuf};

/// The folder or file `relative`, if there is one: in the shared folder, else among our own data.
pub fn corpus(relative: &str) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared =
        std::env::var_os("GATEPOST_CONFORMANCE").map_or_else(|| here.join("../shared/conformance"), PathBuf::from);
    [shared.join(relative), here.join("tests/conformance/data").join(relative)].into_iter().find(|path| path.exists())
}
