//! Spools that somebody spoilt: what the real binary says of each, and that nothing whole is lost.
