//! Issuers and API keys: are they to be had, and can anything be verified with them?

use std::path::Path;

use futures_util::future::join_all;
use url::Url;

use super::findings::{Findings, Group};
use super::reach::{self, Trust};
use crate::clock::{SharedClock, timestamp, unix_seconds};
use crate::config::{ClientAuthentication, Config, IntrospectionConfig, KeySource, StatusLists, TrustedIssuer};
use crate::token::api_key::ApiKeys;
use crate::token::api_key::file::ApiKeyFile;
use crate::token::examine::{Ailment, AilmentKind, KeysFound, examine as examine_issuer};

/// What time somebody says it is: whose server, and its words.
pub(super) type Date = (String, String);

/// Looks at all of them at once; gives what time their servers say it is.
pub(super) async fn examine(config: &Config, clock: &SharedClock, findings: &mut Findings, network: bool) -> Vec<Date> {
    let mut dates = Vec::new();
    // Asked even if nobody wants to hear of them: their clocks may be wanted.
    if findings.wants(Group::Issuers) || findings.wants(Group::Clock) {
        let all = config.issuers.iter().map(|issuer| examine_issuer(issuer, &config.limits, clock, network));
        for ((index, issuer), found) in config.issuers.iter().enumerate().zip(join_all(all).await) {
            let key = format!("issuers[{index}]");
            match found.keys {
                Ok(Some(keys)) => {
                    dates.extend(keys.date.clone().map(|date| (issuer.issuer.clone(), date)));
                    self::keys(&key, issuer, &keys, findings);
                }
                Ok(None) => no_keys(&key, issuer, findings),
                Err(ailment) => {
                    let (name, way) = source(issuer);
                    told("keys", &format!("{key}{name}"), &ailment, way, findings).await;
                }
            }
            if let (Some(found), Some(config)) = (found.introspection, &issuer.introspection) {
                introspection(&key, config, found, network, findings).await;
            }
            for (url, found) in found.status_lists {
                status_list(&key, issuer, &url, found, findings).await;
            }
        }
    }
    api_keys(config, clock, findings);
    dates
}

fn keys(key: &str, issuer: &TrustedIssuer, found: &KeysFound, findings: &mut Findings) {
    let (name, _) = source(issuer);
    let key = format!("{key}{name}");
    let fit: Vec<String> = found
        .usable
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(algorithm, count)| format!("{count} for {}", algorithm.as_str()))
        .collect();
    let left_out = match found.left_out {
        0 => String::new(),
        some => format!("; {some} more can't be used"),
    };
    if fit.is_empty() {
        let wanted: Vec<&str> = found.usable.iter().map(|(algorithm, _)| algorithm.as_str()).collect();
        let says =
            format!("the keys of `{}` are there, and none is for {}{left_out}", issuer.issuer, wanted.join(", "));
        let mend =
            "name the algorithms that its keys are for in `algorithms`; a key needs a `kid`, and `use` must be `sig`";
        findings.fail(Group::Issuers, "keys", &key, says, mend);
    } else {
        let says = format!("the keys of `{}` are there: {}{left_out}", issuer.issuer, fit.join(", "));
        findings.ok(Group::Issuers, "keys", &key, says);
    }
}

fn no_keys(key: &str, issuer: &TrustedIssuer, findings: &mut Findings) {
    let (name, _) = source(issuer);
    let says = match &issuer.keys {
        KeySource::Nowhere => format!("`{}` has no keys: its tokens are opaque", issuer.issuer),
        KeySource::Shared { .. } => format!("`{}` shares one key with us, which is long enough", issuer.issuer),
        KeySource::File(_) | KeySource::Url { .. } | KeySource::Discovery { .. } => {
            format!("the keys of `{}` are not fetched (--offline)", issuer.issuer)
        }
    };
    findings.note(Group::Issuers, "keys", &format!("{key}{name}"), says);
}

/// The key of its keys, and the way there.
fn source(issuer: &TrustedIssuer) -> (&'static str, Option<(&Url, Trust<'_>)>) {
    match &issuer.keys {
        KeySource::Nowhere => ("", None),
        KeySource::Shared { .. } => (".shared_key_file", None),
        KeySource::File(_) => (".jwks_file", None),
        KeySource::Url { url, ca, .. } => (".jwks_url", Some((url, Trust { ca: ca.as_deref(), identity: None }))),
        KeySource::Discovery { url, ca, .. } => {
            (".discovery_url", Some((url, Trust { ca: ca.as_deref(), identity: None })))
        }
    }
}

/// What is wrong; where it is on the way, at which step.
async fn told(
    check: &'static str,
    key: &str,
    ailment: &Ailment,
    way: Option<(&Url, Trust<'_>)>,
    findings: &mut Findings,
) {
    let place = way.map_or_else(String::new, |(url, _)| format!("`{}`: ", url.as_str()));
    let mend = match ailment.kind {
        AilmentKind::Way => {
            if let Some((url, trust)) = way
                && let Err(end) = reach::url(url, trust).await
            {
                findings.fail(Group::Issuers, check, key, end.says, end.mend);
                return;
            }
            "it can be reached and does not answer as it should in time: ask whoever runs it"
        }
        AilmentKind::Address => "if it is meant to be inside your network, set `allow_private_addresses: true`",
        AilmentKind::Settings => "look at this key, and at the file that it names",
        AilmentKind::Answer => "look at what is there (`curl`), and at the address",
    };
    findings.fail(Group::Issuers, check, key, format!("{place}{}", ailment.why), mend);
}

async fn introspection(
    key: &str,
    config: &IntrospectionConfig,
    found: Result<(), Ailment>,
    network: bool,
    findings: &mut Findings,
) {
    let key = format!("{key}.introspection");
    match found {
        Ok(()) if network => {
            let says = format!("`{}` knows us, and calls a token inactive that nobody has", config.url);
            findings.ok(Group::Issuers, "introspection", &key, says);
        }
        Ok(()) => findings.note(Group::Issuers, "introspection", &key, "it is not asked (--offline)"),
        Err(ailment) if ailment.kind == AilmentKind::Answer => findings.fail(
            Group::Issuers,
            "introspection",
            &key,
            format!("`{}`: {}", config.url, ailment.why),
            "check `client_id` and the secret or certificate there, and that `url` is its introspection endpoint",
        ),
        Err(ailment) => {
            let identity = match &config.authentication {
                ClientAuthentication::SecretFile(_) => None,
                ClientAuthentication::Certificate { certificate, private_key } => {
                    Some((certificate.as_path(), private_key.as_path()))
                }
            };
            let way = Some((&config.url, Trust { ca: config.ca.as_deref(), identity }));
            told("introspection", &key, &ailment, way, findings).await;
        }
    }
}

async fn status_list(
    key: &str,
    issuer: &TrustedIssuer,
    url: &str,
    found: Result<(), Ailment>,
    findings: &mut Findings,
) {
    let key = format!("{key}.status_lists");
    match found {
        Ok(()) => findings.ok(Group::Issuers, "status-list", &key, format!("`{url}` is there and signed")),
        Err(ailment) => {
            let StatusLists::Only { lists, ca, .. } = &issuer.status_lists else { return };
            let trust = Trust { ca: ca.as_deref(), identity: None };
            let way = lists.iter().find(|list| list.text == url).map(|list| (&list.url, trust));
            told("status-list", &key, &ailment, way, findings).await;
        }
    }
}

fn api_keys(config: &Config, clock: &SharedClock, findings: &mut Findings) {
    let Some(settings) = &config.api_keys else { return };
    let (group, key) = (Group::ApiKeys, "api_keys.file");
    if let Err(error) = ApiKeys::open(Some(settings), &config.limits) {
        let mend = "put a file there that `gatepost apikey` wrote, or the last good one from your backup";
        findings.fail(group, "file", key, error.to_string(), mend);
        return;
    }
    count_keys(&settings.file, config, clock, findings);
}

fn count_keys(file: &Path, config: &Config, clock: &SharedClock, findings: &mut Findings) {
    let (group, key) = (Group::ApiKeys, "api_keys.file");
    // It was read a moment ago; somebody may have changed it since, and then it is told next time.
    let Ok(read) = ApiKeyFile::read(file, &config.limits) else { return };
    let now = timestamp(clock.now());
    let good = read.keys.iter().filter(|one| one.revoked.is_none() && one.expires > now).count();
    let soon = read.keys.iter().filter(|one| one.revoked.is_none() && one.expires > now);
    let soon = soon.map(|one| one.expires).min().map_or_else(String::new, |end| format!(", the first ends {end}"));
    let says = format!("`{}` has {} keys, {good} of them good{soon}", file.display(), read.keys.len());
    findings.ok(group, "file", key, says);
}

/// Seconds by which `date`, as HTTP writes it, is ahead of `now`; nothing where it is none.
pub(super) fn ahead(date: &str, now: std::time::SystemTime) -> Option<i64> {
    let theirs = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    Some(theirs.as_second().saturating_sub(i64::try_from(unix_seconds(now)).ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_date_of_http_is_compared_in_seconds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let table = [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0), "RFC 9110's own example"),
            ("Sun, 06 Nov 1994 09:49:37 GMT", Some(3600), "an hour ahead"),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(-60), "a minute behind"),
            ("yesterday", None, "no date"),
        ];
        for (date, expected, why) in table {
            assert_eq!(ahead(date, now), expected, "{why}");
        }
    }
}
