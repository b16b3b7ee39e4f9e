//! Where the corpora are.

use std::path::PathBuf;

/// The corpus at `relative`, or nothing (said aloud) when the folder is not there. In CI it has to be there.
pub fn corpus(relative: &str) -> Option<PathBuf> {
    let root = std::env::var_os("GATEPOST_CONFORMANCE")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/conformance"), PathBuf::from);
    let path = root.join(relative);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "the corpus {relative} is missing");
    println!("skipped: no corpus {relative}");
    None
}
