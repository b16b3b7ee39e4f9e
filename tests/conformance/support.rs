//! Where the corpora are.
#![expect(clippy::print_stdout, reason = "a test says what it skips")]

use std::path::{Path, PathBuf};

/// A file of the corpora, or nothing (said so) where they are missing. In CI that is a failure.
pub fn corpus(relative: &str) -> Option<PathBuf> {
    let root = std::env::var_os("GATEPOST_CONFORMANCE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/conformance"), PathBuf::from);
    let path = root.join(relative);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is missing", path.display());
    println!("skipped: {} is missing", path.display());
    None
}
