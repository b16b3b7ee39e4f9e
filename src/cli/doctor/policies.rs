//! The bundle, read as the server reads it.

use super::findings::{Findings, Group};
use crate::app::{serving_options, undeclared_principals};
use crate::config::Config;
use crate::policy::Bundle;

/// Problems that are told; `gatepost check` tells all of them.
const TOLD: usize = 3;

/// Gives the bundle, if there is one.
pub(super) async fn examine(config: &Config, findings: &mut Findings) -> Option<Bundle> {
    let (group, key) = (Group::Policies, "policies.directory");
    let (directory, options) = (config.policies.directory.clone(), serving_options(config));
    let shown = directory.display().to_string();
    let load = tokio::task::spawn_blocking(move || Bundle::load(&directory, &options));
    let mend = format!("`gatepost check {shown}` shows each of them in its place");
    match load.await {
        Err(_) => {
            findings.fail(group, "bundle", key, "reading the bundle broke off: a fault of ours", mend);
            None
        }
        Ok(Err(report)) => {
            let rest = report.problems.len().saturating_sub(TOLD);
            let told: Vec<String> = report.problems.iter().take(TOLD).map(ToString::to_string).collect();
            let rest = if rest == 0 { String::new() } else { format!(" (and {rest} more)") };
            findings.fail(group, "bundle", key, format!("{}{rest}", told.join("; ")), mend);
            None
        }
        Ok(Ok(bundle)) => {
            let counts = bundle.counts();
            let policies = counts.permits + counts.forbids;
            let says = format!("`{shown}` has {policies} policies, revision {}", bundle.revision().short());
            findings.ok(group, "bundle", key, says);
            if let Some(first) = bundle.warnings().first() {
                let says = format!("{} things look wrong in it; the first: {first}", bundle.warnings().len());
                findings.warn(group, "bundle", key, says, mend);
            }
            for (key, entity_type) in undeclared_principals(config, &bundle) {
                let says = format!("the schema declares no entity type `{entity_type}`: such principals get nothing");
                let mend = "correct the type, or declare it in the schema";
                findings.warn(group, "principal-types", &key, says, mend);
            }
            Some(bundle)
        }
    }
}
