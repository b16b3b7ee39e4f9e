//! Where the corpora are.
#![expect(clippy::print_stdout, reason = "a test says what it skips")]

use std::path::{Path, PathBuf};

/// The file or folder `relative` of the corpora: in the folder that `GATEPOST_CONFORMANCE` names (`../shared/conformance`
/// when unset), else among our own copies. Nothing, said aloud, where it is in neither; in CI, unless a folder was named
/// on purpose, that is a failure.
pub fn corpus(relative: &str) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os("GATEPOST_CONFORMANCE").map(PathBuf::from);
    let root = named.clone().unwrap_or_else(|| here.join("../shared/conformance"));
    let found = [root.join(relative), here.join("tests/conformance/data").join(relative)]
        .into_iter()
        .find(|path| path.exists());
    if found.is_none() {
        println!("SKIPPED: no corpus `{relative}` in {}", root.display());
        assert!(
            named.is_some() || std::env::var("CI").as_deref() != Ok("true"),
            "the corpus `{relative}` is missing, and CI may skip none"
        );
    }
    found
}
