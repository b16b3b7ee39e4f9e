//! The files of a bundle: found in its folder, read within their limits, hashed into the revision.

use std::path::Path;

use super::engine::BundleOptions;
use super::report::{BundleReport, Problem, SourceFile};
use crate::config::Limits;
use crate::model::ids::PolicyRevision;

/// The files of a bundle, in order of name.
#[derive(Debug, Clone, Default)]
pub struct BundleFiles {
    /// `*.cedarschema`.
    pub schemas: Vec<SourceFile>,
    /// `*.cedar`.
    pub policies: Vec<SourceFile>,
    /// `entities.json`.
    pub entities: Option<SourceFile>,
}

impl BundleFiles {
    /// Reads a folder; names that start with a dot, and sub-folders, are left alone.
    ///
    /// # Errors
    /// What can't be read, is too large, or is not UTF-8, by file.
    pub fn read(directory: &Path, limits: &Limits) -> Result<Self, BundleReport> {
        let shown = directory.display().to_string();
        // Kubernetes swaps `..data` for a new folder in one step; reading through it, no two revisions are mixed.
        let swapped = directory.join("..data");
        let settled = std::fs::canonicalize(if swapped.exists() { &swapped } else { directory });
        let entries = match settled.and_then(std::fs::read_dir) {
            Ok(entries) => entries,
            Err(error) => return Err(vec![Problem::bare(&shown, &format!("can't be read: {}", error.kind()))].into()),
        };
        let (mut files, mut problems, mut total) = (Self::default(), Vec::new(), 0usize);
        // A file that is passed over might be the one that forbids.
        let listed: std::io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut paths = match listed {
            Ok(paths) => paths,
            Err(error) => return Err(vec![Problem::bare(&shown, &format!("can't be listed: {}", error.kind()))].into()),
        };
        paths.sort();
        for path in paths {
            let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                problems
                    .push(Problem::bare(&shown, "holds a file whose name is not UTF-8").help("rename or remove it"));
                continue;
            };
            if !is_bundle_file(name.as_bytes()) {
                continue;
            }
            match read_bounded(&path, limits.policy_file_bytes) {
                Ok(text) => {
                    total += text.len();
                    let file = SourceFile { name: name.clone(), text };
                    if name.ends_with(".cedarschema") {
                        files.schemas.push(file);
                    } else if name.ends_with(".cedar") {
                        files.policies.push(file);
                    } else {
                        files.entities = Some(file);
                    }
                }
                Err(message) => problems.push(Problem::bare(&name, &message)),
            }
        }
        if total > limits.bundle_bytes {
            problems.push(
                Problem::bare(&shown, &format!("the bundle has {total} bytes, more than {}", limits.bundle_bytes))
                    .help("split it, or raise `limits.bundle_bytes`"),
            );
        }
        if problems.is_empty() { Ok(files) } else { Err(problems.into()) }
    }

    /// The revision: SHA-256 over every file's name and text, framed by length.
    #[must_use]
    pub fn revision(&self, options: &BundleOptions) -> PolicyRevision {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let mut part = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        };
        part(b"gatepost bundle 1");
        part(&options.validation_level.to_be_bytes());
        for file in self.schemas.iter().chain(&self.policies).chain(&self.entities) {
            part(file.name.as_bytes());
            part(file.text.as_bytes());
        }
        PolicyRevision::from_digest(context.finish().as_ref())
    }
}

/// Whether a file of this name belongs to a bundle. What starts with a dot is an editor's or a kubelet's.
pub(super) fn is_bundle_file(name: &[u8]) -> bool {
    !name.starts_with(b".")
        && (name.ends_with(b".cedarschema") || name.ends_with(b".cedar") || name == b"entities.json")
}

fn read_bounded(path: &Path, limit: usize) -> Result<String, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|error| format!("can't be read: {}", error.kind()))?;
    if !file.metadata().is_ok_and(|found| found.is_file()) {
        return Err("is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|error| format!("can't be read: {}", error.kind()))?;
    if bytes.len() > limit {
        return Err(format!("has more than {limit} bytes; split it, or raise `limits.policy_file_bytes`"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}
