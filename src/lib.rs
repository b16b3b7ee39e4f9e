//! Gatepost, a policy decision point: may this principal, through this service, do this to that object, and to which
//! of its fields?
//!
//! The floors, from the ground up; a file imports only from floors below its own, and organs do not call each other:
//!
//! | floor | files |
//! |---|---|
//! | 0 ground | [`clock`], [`secret`], [`trust`] |
//! | 1 words | [`model`]: pure data |
//! | 2 settings | [`config`] |
//! | 3 organs | [`telemetry`], [`tls`], [`caller`], [`admission`], [`token`], [`policy`], [`cache`], [`revocation`], [`audit`] |
//! | 4 decision | [`pdp`]: read this first; [`admin`]: what operators do |
//! | 5 doors | [`grpc`], [`ops`] |
//! | 6 house | [`app`], [`cli`] |
//!
//! [`client`] is for the services that ask: it knows the wire and the words, and nothing of the house.

pub mod admin;
pub mod admission;
pub mod app;
pub mod audit;
pub mod cache;
pub mod caller;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod grpc;
pub mod model;
pub mod ops;
pub mod pdp;
pub mod policy;
pub mod proto;
pub mod revocation;
pub mod secret;
pub mod telemetry;
pub mod tls;
pub mod token;
pub mod trust;
