//! The words of Gatepost: pure data, no I/O, no async, no tonic, no Cedar.
//!
//! Everything here is parsed once at the edge and can't be wrong afterwards.

pub mod decision;
pub mod entity;
pub mod field_path;
pub mod ids;
pub mod question;
pub mod spiffe_id;
