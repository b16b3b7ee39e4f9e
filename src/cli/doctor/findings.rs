//! What was found: one line a check, each well or with its mend.

use std::collections::BTreeSet;

use serde::Serialize;

/// What a check is about; a whole group can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// The settings themselves
    Configuration,
    /// The listener's certificate, key, authorities and lists
    Server,
    /// The admin listener's
    Admin,
    /// What time it is here
    Clock,
    /// Issuers, their keys, introspection and status lists
    Issuers,
    /// The file of API keys
    ApiKeys,
    /// The bundle
    Policies,
    /// The folder for records, and the key that signs them
    Records,
    /// Who gets the records
    Sinks,
    /// The file and the store of revocations
    Revocations,
    /// Ports, limits of the system, the self-test of evaluation
    Machine,
    /// The collector of traces and metrics
    Telemetry,
}

impl Group {
    /// The word for it, on the command line too.
    pub(super) fn word(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Well.
    Ok,
    /// Neither well nor ill; good to know.
    Note,
    /// It starts, but somebody should look.
    Warn,
    /// It does not start, or not everything works.
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) group: Group,
    /// Names the check, for machines.
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    /// The key of the configuration that it is about; empty: none.
    pub(super) key: String,
    /// What was found. Never a secret.
    pub(super) says: String,
    /// What to do.
    #[serde(rename = "do")]
    pub(super) mend: Option<String>,
}

/// Everything that was found, in order.
#[derive(Debug, Default)]
pub(super) struct Findings {
    checks: Vec<Check>,
    left_out: BTreeSet<Group>,
}

impl Findings {
    /// Nothing yet, and never anything of these groups.
    pub(super) fn without(left_out: BTreeSet<Group>) -> Self {
        Self { checks: Vec::new(), left_out }
    }

    /// Whether anybody wants to know about `group`.
    pub(super) fn wants(&self, group: Group) -> bool {
        !self.left_out.contains(&group)
    }

    pub(super) fn ok(&mut self, group: Group, check: &'static str, key: &str, says: impl Into<String>) {
        self.put(group, check, Verdict::Ok, key, says.into(), None);
    }

    pub(super) fn note(&mut self, group: Group, check: &'static str, key: &str, says: impl Into<String>) {
        self.put(group, check, Verdict::Note, key, says.into(), None);
    }

    pub(super) fn warn(
        &mut self,
        group: Group,
        check: &'static str,
        key: &str,
        says: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.put(group, check, Verdict::Warn, key, says.into(), Some(mend.into()));
    }

    pub(super) fn fail(
        &mut self,
        group: Group,
        check: &'static str,
        key: &str,
        says: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.put(group, check, Verdict::Fail, key, says.into(), Some(mend.into()));
    }

    /// An error of ours that says what is wrong and, after it, what to do.
    pub(super) fn failed_by(&mut self, group: Group, check: &'static str, key: &str, error: &dyn std::error::Error) {
        let text = error.to_string();
        let (says, mend) = parted(&text);
        self.fail(group, check, key, says, mend);
    }

    fn put(
        &mut self,
        group: Group,
        check: &'static str,
        verdict: Verdict,
        key: &str,
        says: String,
        mend: Option<String>,
    ) {
        if self.wants(group) {
            self.checks.push(Check { group, check, verdict, key: key.to_owned(), says, mend });
        }
    }

    pub(super) fn checks(&self) -> &[Check] {
        &self.checks
    }

    pub(super) fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.verdict == verdict).count()
    }

    pub(super) fn failed(&self) -> usize {
        self.count(Verdict::Fail)
    }
}

/// Our errors say what is wrong and then, after a semicolon or a colon, what to do.
fn parted(text: &str) -> (&str, &str) {
    text.split_once("; ").or_else(|| text.rsplit_once(": ")).unwrap_or((text, "look there, and correct it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_parted_where_its_mend_begins() {
        let table = [
            ("`a` can't be read: check that it exists", "`a` can't be read", "check that it exists"),
            ("`a` has expired: it was good; renew it", "`a` has expired: it was good", "renew it"),
            ("2027-01-01T00:00:00Z is late", "2027-01-01T00:00:00Z is late", "look there, and correct it"),
        ];
        for (text, says, mend) in table {
            assert_eq!(parted(text), (says, mend), "{text}");
        }
    }

    #[test]
    fn a_group_that_is_left_out_has_no_checks() {
        let mut findings = Findings::without([Group::ApiKeys].into());
        findings.fail(Group::ApiKeys, "file", "api_keys.file", "is broken", "mend it");
        findings.ok(Group::Machine, "port", "server.listen", "is free");
        assert_eq!((findings.failed(), findings.checks().len()), (0, 1));
        assert_eq!(Group::ApiKeys.word(), "api-keys");
    }
}
