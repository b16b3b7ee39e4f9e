//! Where a command finds the settings: the file, the environment, and `--set`.

use std::path::{Path, PathBuf};

use crate::config::load::Source;

/// The settings to use.
#[derive(Debug, clap::Args)]
pub struct SourceArgs {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", env = "GATEPOST_CONFIG")]
    pub config: PathBuf,
    /// One setting over the file and the environment; may be given many times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
}

impl SourceArgs {
    /// All three layers.
    #[must_use]
    pub fn source(&self) -> Source {
        source(&self.config, &self.set)
    }
}

/// The file, this process's environment over it, and the flags over both.
pub(super) fn source(file: &Path, set: &[(String, String)]) -> Source {
    let environment =
        std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    set.iter().fold(Source::file(file).environment(environment), |source, (key, value)| source.set(key, value))
}

/// `server.listen=127.0.0.1:8443`
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE, such as server.listen=127.0.0.1:8443".to_owned()),
    }
}
