//! The verdicts of corpora that nobody here made up, one module each.

mod spiffe;
mod support;
