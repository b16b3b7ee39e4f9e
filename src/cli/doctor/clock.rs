//! What time it is here: whether anybody keeps this clock, and what others say.

use std::path::Path;
use std::time::Duration;

use super::findings::{Findings, Group};
use super::issuers::{Date, ahead};
use crate::clock::{SharedClock, timestamp};
use crate::config::{Config, ListenerIdentity};

/// Seconds that nobody minds.
const A_LITTLE: u64 = 10;
/// Seconds past which tokens and certificates are refused, or taken too long.
const TOO_MUCH: u64 = 60;
/// Here systemd says whether it keeps the time, and whether it has it.
const TIMESYNC: &str = "/run/systemd/timesync";

pub(super) fn examine(config: &Config, file: &Path, clock: &SharedClock, dates: &[Date], findings: &mut Findings) {
    synchronised(Path::new(TIMESYNC), findings);
    for (issuer, date) in dates {
        against(issuer, date, clock, findings);
    }
    times_of_files(config, file, clock, findings);
}

fn synchronised(folder: &Path, findings: &mut Findings) {
    let (group, check) = (Group::Clock, "synchronised");
    if folder.join("synchronized").exists() {
        findings.ok(group, check, "", "systemd-timesyncd keeps this clock");
    } else if folder.exists() {
        let says = "systemd-timesyncd runs and has not synchronised this clock yet";
        findings.warn(group, check, "", says, "see `timedatectl timesync-status`: can its time servers be reached?");
    } else {
        findings.note(group, check, "", "nothing here says whether this clock is kept by anybody");
    }
}

fn against(issuer: &str, date: &str, clock: &SharedClock, findings: &mut Findings) {
    let (group, check) = (Group::Clock, "against-issuers");
    let now = clock.now();
    let Some(ahead) = ahead(date, now) else { return };
    let apart = ahead.unsigned_abs();
    let side = if ahead > 0 { "behind" } else { "ahead of" };
    let says = format!("here it is {}, {apart} s {side} the server of `{issuer}`", timestamp(now));
    let mend = "set this machine's clock by NTP (chrony, systemd-timesyncd); if others agree with it, theirs is wrong";
    if apart <= A_LITTLE {
        findings.ok(group, check, "", says);
    } else if apart <= TOO_MUCH {
        findings.warn(group, check, "", says, mend);
    } else {
        findings.fail(group, check, "", says, mend);
    }
}

/// A file from the future was written under another clock, or this one was set back.
fn times_of_files(config: &Config, file: &Path, clock: &SharedClock, findings: &mut Findings) {
    let mut files = vec![("", file), ("policies.directory", config.policies.directory.as_path())];
    if let ListenerIdentity::Files(tls) = &config.server.tls {
        files.push(("server.certificate", &tls.certificate));
        files.push(("server.private_key", &tls.private_key));
    }
    let latest = clock.now() + Duration::from_secs(TOO_MUCH);
    for (key, file) in files {
        let written = std::fs::metadata(file).and_then(|facts| facts.modified());
        if let Some(written) = written.ok().filter(|written| *written > latest) {
            let says = format!("`{}` was written at {}, which is to come", file.display(), timestamp(written));
            let mend = "this clock was set back, or is behind: set it by NTP (chrony, systemd-timesyncd)";
            findings.warn(Group::Clock, "file-times", key, says, mend);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::findings::Verdict;

    #[test]
    fn what_systemd_says_of_the_clock_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let verdict = |path: &Path| {
            let mut findings = Findings::default();
            synchronised(path, &mut findings);
            findings.checks().first().unwrap().verdict
        };
        assert_eq!(verdict(&folder.path().join("gone")), Verdict::Note);
        assert_eq!(verdict(folder.path()), Verdict::Warn);
        std::fs::write(folder.path().join("synchronized"), "").unwrap();
        assert_eq!(verdict(folder.path()), Verdict::Ok);
    }
}
