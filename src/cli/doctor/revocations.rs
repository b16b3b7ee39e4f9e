//! Where revocations are kept beside memory: the file, and the store that replicas share. Both are looked at alone.

use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Access, access};

use super::findings::{Findings, Group};
use crate::clock::SharedClock;
use crate::config::Config;
use crate::revocation::Revocations;
use crate::revocation::file::RevocationFile;
use crate::revocation::replicas::{self, StoreError};

pub(super) async fn examine(config: &Config, clock: &SharedClock, findings: &mut Findings, network: bool) {
    if !findings.wants(Group::Revocations) {
        return;
    }
    if let Some(path) = &config.revocation.file {
        file(path, config, clock, findings);
    }
    let Some(redis) = &config.revocation.redis else { return };
    let (group, key, place) = (Group::Revocations, "revocation.redis", format!("{}:{}", redis.host, redis.port));
    if !network {
        findings.note(group, "store", key, format!("`{place}` is not asked (--offline)"));
        return;
    }
    match replicas::examine(redis).await {
        Ok(()) => findings.ok(group, "store", key, format!("`{place}` answers")),
        Err(StoreError::Connect { host, port, source }) => {
            let mend = "start it, correct `revocation.redis.url`, or look at its `ca`; meanwhile replicas do not hear of each other";
            findings.fail(group, "store", key, format!("no connection to `{host}:{port}`: {source}"), mend);
        }
        Err(error @ StoreError::Store { .. }) => {
            let mend = "check the user, `password_file` and what that user may do there";
            findings.fail(group, "store", key, format!("`{place}`: {error}"), mend);
        }
        Err(error @ (StoreError::File { .. } | StoreError::TooMany { .. })) => {
            findings.failed_by(group, "store", key, &error);
        }
    }
}

fn file(path: &Path, config: &Config, clock: &SharedClock, findings: &mut Findings) {
    let (group, key) = (Group::Revocations, "revocation.file");
    let list = Revocations::new(config.limits.revocations, Arc::clone(clock), Arc::new(|_, _, _| ()));
    if let Err(error) = RevocationFile::examine(path, &list) {
        findings.failed_by(group, "file", key, &error);
        return;
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // It is locked, and replaced, by files beside it.
    let written = access(above, Access::WRITE_OK | Access::EXEC_OK);
    let written = written.and_then(|()| if path.exists() { access(path, Access::WRITE_OK) } else { Ok(()) });
    let shown = path.display();
    if let Err(error) = written {
        let says = format!("`{shown}` can't be written: {}", std::io::Error::from(error));
        let mend = "it and its folder have to be there and be writable for this user: it is locked and replaced there";
        findings.fail(group, "file", key, says, mend);
        return;
    }
    findings.ok(group, "file", key, format!("`{shown}` can be read and written: {} revocations in force", list.len()));
}
