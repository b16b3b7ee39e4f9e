//! Verdicts of corpora that nobody here made up, and of our own attack lists; one module each.
//!
//! `cargo test --release --test conformance [NAME]`. `GATEPOST_CONFORMANCE` names another folder of the same form.

mod jwt;
mod ocsf;
mod spiffe;
mod support;
