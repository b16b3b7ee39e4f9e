//! Verdicts of corpora that nobody here made up, and of our own attack lists; one module each.
//!
//! `cargo test --release --test conformance [NAME]`. `GATEPOST_CONFORMANCE` names another folder of the same form.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod advisories;
mod cedar;
mod fieldguide;
mod fieldguide_jwt;
mod fieldguide_logging;
mod fieldguide_patterns;
mod jose;
mod json;
mod jwt;
mod ocsf;
mod spiffe;
mod support;
mod x509;
