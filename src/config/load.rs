//! From a file, the environment and flags to a [`Config`] that can be run, or to a report of everything that is wrong.
//!
//! The way of a setting: read with its place (`tree`), laid over what stood there before, compared with the shape of
//! the file (`shape`), then checked for sense (`check`, with `values`). No step stops at its first problem.
//! `reference` writes the same shape down for people.

mod admin;
mod audit;
mod check;
mod credentials;
mod effective;
mod issuers;
mod listener;
mod patterns;
mod reference;
mod rights;
mod shape;
#[cfg(test)]
mod tests;
mod tree;
pub(in crate::config) mod values;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::shape::Shape;
use self::tree::{Node, Step, Value};
use self::values::{Checks, Findings};
use super::Config;
use super::raw::RawConfig;

pub use self::effective::{Setting, SettingValue};
pub use self::reference::{json_schema, reference_markdown};

/// Larger files are refused unread.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Where settings come from. Each layer goes over the one before it: file, environment, flags.
#[derive(Clone)]
pub struct Source {
    file: PathBuf,
    variables: Vec<(String, String)>,
    flags: Vec<(String, String)>,
}

impl Source {
    /// The YAML file alone.
    #[must_use]
    pub fn file(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), variables: Vec::new(), flags: Vec::new() }
    }

    /// Adds environment variables. Settings are those that start with `GATEPOST_` and hold `__`, which separates keys:
    /// `GATEPOST_SERVER__LISTEN`. Others are passed over; Kubernetes sets `GATEPOST_PORT` and its like for a Service
    /// of that name.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.variables.extend(variables.into_iter().filter(|(name, _)| variable_key(name).is_some()));
        self
    }

    /// Adds one flag: a key (`server.listen`, `issuers[0].audiences`) and its value, any YAML.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.flags.push((key.into(), value.into()));
        self
    }
}

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In the file.
    File {
        /// Its path, as it was given.
        path: Arc<PathBuf>,
        /// The line, from 1.
        line: u64,
    },
    /// In an environment variable of this name.
    Variable(String),
    /// In the flag for this key.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(key) => write!(f, "--set {key}"),
        }
    }
}

/// One thing that is wrong, and the mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Which setting: `issuers[0].audiences`. Empty when the file could not be read at all.
    pub key: String,
    /// Where it is written; for a missing one, what it would stand in.
    pub at: Option<Origin>,
    /// What is wrong. Repeats no value.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = &self.at {
            write!(f, "{at}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with the settings; never nothing. One line for each when displayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigReport {
    /// In the order of the file, then the environment, then the flags.
    pub problems: Vec<ConfigProblem>,
}

impl ConfigReport {
    fn of(mut problems: Vec<ConfigProblem>) -> Self {
        problems.sort_by(|left, right| left.at.cmp(&right.at));
        Self { problems }
    }
}

impl fmt::Display for ConfigReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let line_end = if index == 0 { "" } else { "\n" };
            write!(f, "{line_end}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigReport {}

/// Reads and checks all settings.
///
/// Opens the files that they name, to see that they are there; reads none but shared keys and
/// client secrets.
///
/// # Errors
/// [`ConfigReport`] names every problem by key and place.
pub fn load(source: &Source) -> Result<Config, ConfigReport> {
    read(source).map(|(config, _, _)| config)
}

/// Every setting as it counts, and where it comes from, of settings that [`load`].
///
/// # Errors
/// As [`load`].
pub fn effective(source: &Source) -> Result<Setting, ConfigReport> {
    let (_, raw, tree) = read(source)?;
    // Made of texts, numbers and lists alone, so it can always be written.
    let counts = serde_json::to_value(&raw).map_err(|_| {
        let message = "can't be shown".to_owned();
        ConfigReport::of(vec![ConfigProblem { key: String::new(), at: None, message, help: None }])
    })?;
    Ok(Setting::of(counts, Some(&tree)))
}

/// Whether `text`, where a value stands in YAML, is read as this very text.
#[must_use]
pub fn is_plain_text(text: &str) -> bool {
    let read = tree::read_value(text, &Origin::Flag(String::new()));
    matches!(read, Some(Node { value: Value::Text(read), .. }) if read == text)
}

fn read(source: &Source) -> Result<(Config, RawConfig, Node), ConfigReport> {
    let mut findings = Findings::default();
    let Some(mut tree) = read_file(&source.file, &mut findings) else {
        // Without a file everything else would be called missing.
        return Err(ConfigReport::of(findings.problems));
    };
    let schema = json_schema();
    let shape = Shape::of(&schema);
    lay_over(&mut tree, source, shape, &mut findings);
    let raw = read_tree(&mut tree, shape, &mut findings);
    let config =
        raw.as_ref().and_then(|raw| check::check(raw, &mut Checks::new(&mut findings, &tree, folder_of(&source.file))));
    match (config, raw) {
        (Some(config), Some(raw)) if findings.problems.is_empty() => Ok((config, raw, tree)),
        _ => Err(ConfigReport::of(findings.problems)),
    }
}

fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

fn read_file(path: &Path, findings: &mut Findings) -> Option<Node> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
    let name = Arc::new(path.to_owned());
    let message = match read {
        Ok(_) if u64::try_from(text.len()).is_ok_and(|length| length <= MAX_FILE_BYTES) => {
            return tree::read_yaml(&text, &name, &mut findings.problems);
        }
        Ok(_) => "is longer than 1 MiB",
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => "is not UTF-8 text",
        Err(error) => values::io_message(error.kind()),
    };
    let at = Some(Origin::File { path: name, line: 1 });
    let help = Some("name the configuration file with `--config`".to_owned());
    findings.problems.push(ConfigProblem { key: String::new(), at, message: message.to_owned(), help });
    None
}

/// The key that a variable sets, if it is a setting at all.
fn variable_key(name: &str) -> Option<String> {
    let key = name.strip_prefix("GATEPOST_").filter(|key| key.contains("__"))?;
    Some(key.to_ascii_lowercase().replace("__", "."))
}

/// Puts the environment and then the flags over the file.
fn lay_over(tree: &mut Node, source: &Source, shape: Shape<'_>, findings: &mut Findings) {
    let variables = source
        .variables
        .iter()
        .filter_map(|(name, value)| variable_key(name).map(|key| (key, Origin::Variable(name.clone()), value)));
    let flags = source.flags.iter().map(|(key, value)| (key.clone(), Origin::Flag(key.clone()), value));
    let (mut layers, mut last): (Vec<_>, Vec<_>) = (variables.collect(), flags.collect());
    // Items of a list are added in the order of their numbers; flags keep the order in which they were given.
    layers.sort_by_key(|(key, _, _)| tree::steps(key));
    layers.append(&mut last);
    for (key, origin, value) in layers {
        let mut refuse = |message: &str, help: Option<&str>| {
            findings.problems.push(ConfigProblem {
                key: key.clone(),
                at: Some(origin.clone()),
                message: message.to_owned(),
                help: help.map(str::to_owned),
            });
        };
        let Some(path) = tree::steps(&key) else {
            refuse("is not a key", Some("keys look like `server.listen` or `issuers[0].audiences`"));
            continue;
        };
        let node = if shape.is_text_at(&path) {
            Some(Node { at: Some(origin.clone()), value: Value::Text(value.clone()) })
        } else {
            tree::read_value(value, &origin)
        };
        let Some(node) = node else {
            refuse("is not a YAML value", Some("lists are written `[a, b]`, text with special characters in quotes"));
            continue;
        };
        if let Err(message) = tree.put(&path, node) {
            refuse(message, None);
        }
    }
}

/// The tree as the file's structs, after whatever does not fit has been reported and taken out.
fn read_tree(tree: &mut Node, shape: Shape<'_>, findings: &mut Findings) -> Option<RawConfig> {
    if !shape::prune(tree, shape, &mut Vec::<Step>::new(), findings) {
        return None;
    }
    let read = serde_path_to_error::deserialize(tree.clone().into_json());
    read.map_err(|error| {
        // The shape is made from these very structs, so this can't happen; if it does, it must not pass.
        let key = error.path().to_string();
        let at = tree.origin_of(&key);
        findings.problems.push(ConfigProblem { key, at, message: "can't be read".to_owned(), help: None });
    })
    .ok()
}
