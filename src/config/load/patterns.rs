//! Settings of unusual patterns: a slip here is an alert that never comes, or that nobody reads any more.

use super::check::{actions, at_least_one};
use super::values::Checks;
use crate::config::raw::audit::RawPseudonyms;
use crate::config::raw::patterns::{RawExemption, RawPatternRule, RawPatterns};
use crate::config::{EnrolledCaller, Exemption, Pattern, PatternException, PatternRule, PatternsConfig, PresentGrant};
use crate::model::entity::{EntityId, EntityUid};

const MAX_EXEMPTIONS: usize = 64;

/// `None` when `checks` noted a problem.
pub(super) fn patterns(
    raw: &RawPatterns,
    pseudonyms: Option<&RawPseudonyms>,
    checks: &mut Checks<'_>,
) -> Option<PatternsConfig> {
    let mut rules = Vec::with_capacity(raw.rules.len());
    for (name, raw) in &raw.rules {
        let key = format!("audit.patterns.rules.{name}");
        let pattern = pattern(checks, &key, name);
        rules.push(pattern.and_then(|pattern| Some((pattern, rule(&key, pattern, raw, checks)?))));
    }
    if raw.exempt.len() > MAX_EXEMPTIONS {
        checks.refuse("audit.patterns.exempt", format!("must list at most {MAX_EXEMPTIONS}"), "name callers");
        return None;
    }
    let mut exempt = Vec::with_capacity(raw.exempt.len());
    for (index, raw) in raw.exempt.iter().enumerate() {
        exempt.push(exemption(&format!("audit.patterns.exempt[{index}]"), raw, pseudonyms, checks));
    }
    let admin_actions = actions("audit.patterns.admin_actions", &raw.admin_actions, checks);
    let keys = checks.count("audit.patterns.keys", &raw.keys, 100, 1_000_000);
    let mut config = PatternsConfig {
        off: raw.off,
        exempt: exempt.into_iter().collect::<Option<_>>()?,
        admin_actions: admin_actions?,
        keys: keys?,
        ..PatternsConfig::default()
    };
    for (pattern, rule) in rules.into_iter().collect::<Option<Vec<_>>>()? {
        config.set(pattern, rule);
    }
    Some(config)
}

/// The callers that may present what was issued to somebody else.
pub(super) fn presenters(callers: &[EnrolledCaller]) -> Vec<(String, PresentGrant)> {
    let presents = |caller: &&EnrolledCaller| match &caller.presents_for {
        PresentGrant::All => true,
        PresentGrant::Only(clients) => clients.iter().next().is_some(),
    };
    callers.iter().filter(presents).map(|caller| (caller.label.clone(), caller.presents_for.clone())).collect()
}

fn pattern(checks: &mut Checks<'_>, key: &str, name: &str) -> Option<Pattern> {
    let pattern = Pattern::named(name);
    if pattern.is_none() {
        checks.refuse(key, "is not a pattern", format!("one of {}", Pattern::ALL.map(Pattern::as_str).join(", ")));
    }
    pattern
}

fn rule(key: &str, pattern: Pattern, raw: &RawPatternRule, checks: &mut Checks<'_>) -> Option<PatternRule> {
    let standard = PatternRule::standard(pattern);
    let (least, most) = pattern.bounds();
    let threshold = match &raw.threshold {
        None => Some(standard.threshold),
        Some(threshold) => checks.count(&format!("{key}.threshold"), threshold, least, most),
    };
    let window = match &raw.window {
        None => Some(standard.window),
        Some(window) => checks.duration(&format!("{key}.window"), window, "1s", "720h"),
    };
    let mut exceptions = Vec::with_capacity(raw.actions.len());
    for (index, one) in raw.actions.iter().enumerate() {
        let key = format!("{key}.actions[{index}]");
        let list_key = format!("{key}.actions");
        let actions =
            at_least_one(&list_key, &one.actions, checks).and_then(|()| actions(&list_key, &one.actions, checks));
        let threshold = match (&one.threshold, one.off) {
            (Some(threshold), false) => checks.count(&format!("{key}.threshold"), threshold, least, most).map(Some),
            (None, true) => Some(None),
            (Some(_), true) | (None, false) => {
                checks.refuse(&key, "must have either `threshold` or `off: true`", "what holds for these actions?");
                None
            }
        };
        exceptions.push(actions.zip(threshold).map(|(actions, threshold)| PatternException { actions, threshold }));
    }
    Some(PatternRule {
        threshold: threshold?,
        window: window?,
        off: raw.off,
        actions: exceptions.into_iter().collect::<Option<_>>()?,
    })
}

fn exemption(
    key: &str,
    raw: &RawExemption,
    pseudonyms: Option<&RawPseudonyms>,
    checks: &mut Checks<'_>,
) -> Option<Exemption> {
    let whole = (!raw.principals.is_empty() || !raw.callers.is_empty()) && !raw.patterns.is_empty();
    if !whole {
        let help = "`{ callers: [reports], patterns: [BULK_READ] }`";
        checks.refuse(key, "must name at least one principal or caller, and at least one pattern", help);
    }
    let principals = checks.each(&format!("{key}.principals"), &raw.principals, |checks, item, text| {
        let uid = principal(checks, item, text)?;
        // It is looked for in what is recorded, where such a principal has another name.
        if pseudonyms.is_some_and(|pseudonyms| pseudonyms.ids.iter().any(|name| name == uid.entity_type.as_str())) {
            checks.refuse(
                item,
                "has a pseudonym (`audit.pseudonyms.ids`) and is not known by its id",
                "exempt a caller",
            );
            return None;
        }
        Some(uid)
    });
    let callers =
        checks.each(&format!("{key}.callers"), &raw.callers, |checks, item, text| checks.plain_text(item, text, 64));
    let patterns = checks.each(&format!("{key}.patterns"), &raw.patterns, pattern);
    Some(Exemption { principals: principals?, callers: callers?, patterns: patterns? }).filter(|_| whole)
}

fn principal(checks: &mut Checks<'_>, key: &str, text: &str) -> Option<EntityUid> {
    let parts = text.strip_suffix('"').and_then(|text| text.split_once("::\""));
    let Some((entity_type, id)) = parts.filter(|(_, id)| !id.contains(['"', '\\'])) else {
        checks.refuse(key, "must be an entity as Cedar writes it", "`Service::\"nightly\"`");
        return None;
    };
    let entity_type = checks.entity_type(key, entity_type)?;
    match EntityId::parse(id, 256) {
        Ok(id) => Some(EntityUid { entity_type, id }),
        Err(error) => {
            checks.refuse(key, error.to_string(), "`Service::\"nightly\"`");
            None
        }
    }
}
