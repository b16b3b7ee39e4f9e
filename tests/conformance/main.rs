//! Verdicts of corpora that nobody here made up, and of our own attack lists.

mod jwt;
mod support;
