//! What Gatepost does, one sentence a test, over real TLS, tokens and gRPC, on a clock that the test holds.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::wildcard_enum_match_arm,
    reason = "tests"
)]

mod support;
mod wire;

mod admin;
mod admin_certificates;
mod alerts;
mod api_keys;
mod architecture;
mod audit_command;
mod audit_kill;
mod audit_spool;
mod audit_trail;
mod authorization_server;
mod bad_input;
mod bad_start;
mod bench_command;
mod bond;
mod bundles;
mod caching;
mod canaries;
mod certificates;
mod chart;
mod collectors;
mod configuration;
mod connections;
mod demo;
mod doctor;
mod examples;
mod failing_closed;
mod hearsay;
mod hostile_keys;
mod keys_over_time;
mod limits;
mod mutations;
mod opaque_tokens;
mod openid_provider;
mod operations;
mod overload;
mod patterns;
mod properties;
mod reference;
mod reloads;
mod replicas;
mod review;
mod review_identity;
mod revocation;
mod rights;
mod rotation;
mod series;
mod service_manager;
mod shutdown;
mod sinks;
mod status_lists;
mod streams;
mod telemetry;
mod three_levels;
mod token_mutations;
mod whose_word;
mod workload_api;
