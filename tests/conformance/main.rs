//! The verdicts of corpora that nobody here made up.

mod ocsf;
mod support;
