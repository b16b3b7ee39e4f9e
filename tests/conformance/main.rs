//! The verdicts of corpora that nobody here made up.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test binary: it stops at a fault and reports counts")]

mod ocsf;
mod support;
