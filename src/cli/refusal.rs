//! Why there is no server, for whoever has to mend it: the sentence and the exit code. `doctor` says the same of the same.

use std::io;

use super::exit;
use crate::app::BuildError;
use crate::audit::{AuditError, FolderError, SinkError, SpoolError};
use crate::tls::server::TlsError;

/// The error, and what to do about it where it does not say so itself.
pub(super) fn told(error: &BuildError) -> String {
    if let BuildError::Audit(AuditError::Open(SpoolError::Folder(folder))) = error {
        return format!("{error}; {}", folder_mend(folder));
    }
    if let BuildError::Audit(AuditError::Key { .. }) = error {
        return format!("{error}; {KEY_MEND}");
    }
    error.to_string()
}

/// What to do about a key of checkpoints that can't be used.
pub(super) const KEY_MEND: &str = "`gatepost audit key` makes one for `audit.checkpoints.key_file`";

/// One of [`exit`]'s: what the settings say, or name, is for whoever wrote them; what is away may come by itself.
pub(super) fn exit_code(error: &BuildError) -> u8 {
    match error {
        BuildError::Policies(_) => exit::DATA,
        BuildError::Tls(TlsError::Agent { .. } | TlsError::AgentIdentity { .. })
        | BuildError::AdminTls(TlsError::Agent { .. } | TlsError::AgentIdentity { .. }) => exit::UNAVAILABLE,
        BuildError::Tls(_)
        | BuildError::AdminTls(_)
        | BuildError::Tokens(_)
        | BuildError::ApiKeys(_)
        | BuildError::Audit(AuditError::Key { .. })
        | BuildError::Sinks(SinkError::Tls { .. }) => exit::CONFIGURATION,
        BuildError::Audit(_)
        | BuildError::Sinks(SinkError::Io { .. })
        | BuildError::Listen { .. }
        | BuildError::Revocations(_) => exit::UNAVAILABLE,
        BuildError::SelfTest | BuildError::Random | BuildError::Threads(_) => exit::SOFTWARE,
    }
}

/// What to do about a spool's folder that can't be had.
pub(super) fn folder_mend(error: &FolderError) -> String {
    match error {
        FolderError::InUse(_) => {
            "end the other process, or give this one an `audit.spool.directory` of its own".to_owned()
        }
        FolderError::Io { source, .. } => {
            let table = [
                (
                    io::ErrorKind::PermissionDenied,
                    "`audit.spool.directory` has to be a folder that this user may write: `chown` it to the user",
                ),
                (
                    io::ErrorKind::ReadOnlyFilesystem,
                    "`audit.spool.directory` has to be on a file system that can be written: mount a volume there",
                ),
                (
                    io::ErrorKind::NotFound,
                    "the folder above `audit.spool.directory` has to be there: make it, or mount the volume",
                ),
                (
                    io::ErrorKind::StorageFull,
                    "make room on the file system of `audit.spool.directory`, or name a folder on another",
                ),
            ];
            let mend = table.into_iter().find(|(kind, _)| *kind == source.kind()).map(|(_, mend)| mend);
            mend.unwrap_or("`audit.spool.directory` has to be a folder that can be written").to_owned()
        }
    }
}
