//! Where the corpora are, and how a test tells what it ran.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Tells how many cases ran. Written past the test harness, which would swallow it when all is well.
macro_rules! say {
    ($($text:tt)*) => { $crate::support::tell(&format!($($text)*)) };
}
pub(crate) use say;

/// One line to standard output.
pub fn tell(line: &str) {
    // If standard output is closed nobody reads on.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

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
        say!("SKIPPED: no corpus `{relative}` in the folder of corpora");
        assert!(
            named.is_some() || std::env::var("CI").as_deref() != Ok("true"),
            "the corpus `{relative}` is missing, and CI may skip none"
        );
    }
    found
}
