//! What a sink keeps in the spool's folder: how far it is, and what its receiver would not have.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::target::Outgoing;

/// Dead letters of one sink in one file; there are two of them, and then they are only counted.
const DEAD_BYTES: u64 = 32 << 20;
/// More than any cursor has.
const CURSOR_BYTES: u64 = 4096;

/// How far a sink is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// The spool.
    pub(super) chain: String,
    /// The last record that it has.
    pub(super) sequence: u64,
}

/// Where a cursor was found, or why there is none to go by.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Go on after this record.
    At(u64),
    /// It was never here.
    New,
    /// Its cursor can't be read, or is of another spool: it is put aside.
    Unusable,
}

/// Reads a sink's cursor.
///
/// # Errors
/// When the file is there and can't be read or put aside.
pub(super) fn cursor(folder: &Path, sink: &str, chain: &str) -> io::Result<Found> {
    let path = path(folder, "cursors", sink, "json");
    let bytes = match File::open(&path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, CURSOR_BYTES), &mut bytes)?;
            bytes
        }
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Found::New),
        Err(fault) => return Err(fault),
    };
    match serde_json::from_slice::<Cursor>(&bytes) {
        Ok(cursor) if cursor.chain == chain => Ok(Found::At(cursor.sequence)),
        Ok(_) | Err(_) => {
            fs::rename(&path, path.with_extension("json.unusable"))?;
            Ok(Found::Unusable)
        }
    }
}

/// Writes a sink's cursor, and makes the disk keep it.
///
/// # Errors
/// The system's words; then the old one is still there.
pub(super) fn save(folder: &Path, sink: &str, cursor: &Cursor) -> io::Result<()> {
    let path = path(folder, "cursors", sink, "json");
    let new = path.with_extension("json.tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(cursor).map_err(io::Error::other)?)?;
    file.sync_data()?;
    fs::rename(new, path)
}

/// Puts what a receiver would not have aside, with its reason. Says how many there was room for.
///
/// # Errors
/// The system's words; some of them may be written.
pub(super) fn bury<'a>(
    folder: &Path,
    sink: &str,
    dead: impl Iterator<Item = (&'a Outgoing, &'a str)>,
) -> io::Result<()> {
    let path = path(folder, "dead-letter", sink, "jsonl");
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
    if file.metadata()?.len() > DEAD_BYTES {
        let older = path.with_extension("jsonl.1");
        if older.exists() {
            return Ok(());
        }
        fs::rename(&path, older)?;
        file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
    }
    for (record, reason) in dead {
        let form = String::from_utf8_lossy(&record.encoded);
        let line = json!({ "sequence": record.sequence, "uid": record.uid, "reason": reason, "record": form });
        file.write_all(&crate::audit::encode::json(&line))?;
        file.write_all(b"\n")?;
    }
    file.sync_data()
}

fn path(folder: &Path, kind: &str, sink: &str, extension: &str) -> PathBuf {
    folder.join(kind).join(format!("{sink}.{extension}"))
}
