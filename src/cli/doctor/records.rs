//! The folder for records: may we write there, is there room, and does anybody else have it? And the key that signs them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, StatVfs, access, statvfs};

use super::findings::{Findings, Group};
use super::processes;
use crate::audit::FolderError;
use crate::audit::checkpoint::SigningKey;
use crate::audit::format::segment_number;
use crate::cli::refusal::{KEY_MEND, folder_mend};
use crate::config::{Config, SpoolConfig};

/// Files that can still be made; fewer, and soon none can.
const FEW_FILES: u64 = 1000;
const DIRECTORY: &str = "audit.spool.directory";

pub(super) fn examine(config: &Config, findings: &mut Findings) {
    let spool = &config.audit.spool;
    if let Some(there) = folder(spool, findings) {
        room(spool, &there, findings);
    }
    if let Some(checkpoints) = &config.audit.checkpoints {
        let (group, key, path) = (Group::Records, "audit.checkpoints.key_file", &checkpoints.key_file);
        match SigningKey::load(path) {
            Ok(signing) => {
                let says = format!(
                    "`{}` signs checkpoints; its public key has the id {}",
                    path.display(),
                    signing.public().id()
                );
                findings.ok(group, "checkpoint-key", key, says);
            }
            Err(error) => {
                findings.fail(group, "checkpoint-key", key, format!("`{}`: {error}", path.display()), KEY_MEND);
            }
        }
    }
}

/// The folder, or the one in which it will be made.
fn folder(spool: &SpoolConfig, findings: &mut Findings) -> Option<PathBuf> {
    let (group, check) = (Group::Records, "folder");
    let path = &spool.directory;
    let refused = |source: io::Error, at: &Path, findings: &mut Findings| {
        let says = format!("records can't be written to `{}`: {source}", at.display());
        let error = FolderError::Io { path: at.to_owned(), source };
        findings.fail(group, check, DIRECTORY, says, folder_mend(&error));
    };
    let there = match fs::metadata(path) {
        Ok(facts) if facts.is_dir() => path.clone(),
        Ok(_) => {
            refused(io::ErrorKind::NotADirectory.into(), path, findings);
            return None;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if !above.is_dir() {
                refused(error, path, findings);
                return None;
            }
            above.to_owned()
        }
        Err(error) => {
            refused(error, path, findings);
            return None;
        }
    };
    let lock = path.join("lock");
    let writable = access(&there, Access::WRITE_OK | Access::EXEC_OK);
    let lockable = if lock.exists() { access(&lock, Access::READ_OK | Access::WRITE_OK) } else { Ok(()) };
    if let Err(error) = writable {
        refused(error.into(), &there, findings);
        return None;
    }
    if let Err(error) = lockable {
        refused(error.into(), &lock, findings);
        return None;
    }
    match processes::holding(&lock) {
        Some(holder) if holder.is_gatepost() => {
            let says = format!("`{}` is in use by {holder}: a server that runs", path.display());
            findings.note(group, "lock", DIRECTORY, says);
        }
        Some(holder) => {
            let says = format!("`{}` is in use by {holder}", path.display());
            findings.fail(group, "lock", DIRECTORY, says, folder_mend(&FolderError::InUse(path.clone())));
        }
        None if there == *path => {
            findings.ok(group, check, DIRECTORY, format!("`{}` can be written", path.display()));
        }
        None => findings.ok(group, check, DIRECTORY, format!("`{}` can be made", path.display())),
    }
    Some(there)
}

fn room(spool: &SpoolConfig, there: &Path, findings: &mut Findings) {
    let group = Group::Records;
    let Ok(disk) = statvfs(there) else {
        findings.note(group, "room", DIRECTORY, "the system does not say how much room there is");
        return;
    };
    let StatVfs { f_bavail, f_frsize, f_favail, f_files, .. } = disk;
    let free = f_bavail.saturating_mul(f_frsize);
    let may_grow = spool.max_bytes.saturating_sub(segments(&spool.directory));
    let kind = kind_of(there).map_or_else(String::new, |kind| format!(" ({kind})"));
    let says = format!(
        "{} are free on its file system{kind}; the records may take {} more",
        readable(free),
        readable(may_grow)
    );
    if free < spool.segment_bytes.saturating_add(spool.reserve_bytes) {
        let mend = "make room, or name a folder on a larger disk: when it is full, no question is answered";
        findings.fail(group, "room", DIRECTORY, says, mend);
    } else if free < may_grow {
        let mend = "lower `audit.spool.max_bytes` below what is free, or take a larger disk";
        findings.warn(group, "room", "audit.spool.max_bytes", says, mend);
    } else {
        findings.ok(group, "room", DIRECTORY, says);
    }
    if kind_of(there).is_some_and(|kind| kind == "tmpfs" || kind == "ramfs") {
        let says = "its file system is in memory: records end with the machine, or with the pod";
        findings.warn(group, "kept", DIRECTORY, says, "name a folder on a disk, unless a sink keeps the records");
    }
    // Some file systems make what they need, and say that they have none.
    if f_files > 0 && f_favail < FEW_FILES {
        let says = format!("only {f_favail} more files can be made on its file system");
        findings.warn(group, "inodes", DIRECTORY, says, "remove small files there, or take another file system");
    }
}

/// What the segments take up now.
fn segments(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| segment_number(name).is_some()));
    ours.filter_map(|entry| entry.metadata().ok()).map(|facts| facts.len()).fold(0, u64::saturating_add)
}

/// `ext4`, `tmpfs`: of the innermost mount that holds `path`.
fn kind_of(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let holding = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (Path::new(fields.next()?), fields.next()?);
        path.starts_with(place).then(|| (place.components().count(), kind.to_owned()))
    });
    // Of several on one place the last lies on top.
    holding.enumerate().max_by_key(|(order, (depth, _))| (*depth, *order)).map(|(_, (_, kind))| kind)
}

/// `78.2 GiB`
pub(super) fn readable(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit);
    unit.map_or_else(
        || format!("{bytes} bytes"),
        |(unit, name)| format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_units_that_fit() {
        let table =
            [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (4 << 30, "4.0 GiB"), (3 << 41, "6.0 TiB")];
        for (bytes, expected) in table {
            assert_eq!(readable(bytes), expected);
        }
    }
}
