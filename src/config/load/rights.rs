//! What a caller may present, supply, speak of and take: the grants that are more than a list of names.

use std::collections::{BTreeMap, BTreeSet};

use super::values::Checks;
use crate::config::raw::{RawClient, RawGrant, RawPresents, RawShare};
use crate::config::{AttributeGrant, ClientNames, PresentGrant, Share, TenantGrant};
use crate::model::entity::{EntityId, EntityType};

/// The OAuth clients that a service is. `issuers` are the configured ones, as their tokens write them.
pub(super) fn clients(key: &str, raw: &[RawClient], issuers: &[&str], checks: &mut Checks<'_>) -> Option<ClientNames> {
    let named = raw.iter().map(|client| (client.issuer.as_deref(), client.id.as_ref()));
    names(key, "id", named, issuers, checks)
}

/// Whose tokens a service may present besides its own.
pub(super) fn presents_for(
    key: &str,
    raw: &RawPresents,
    issuers: &[&str],
    checks: &mut Checks<'_>,
) -> Option<PresentGrant> {
    let RawPresents::Only(raw) = raw else { return Some(PresentGrant::All) };
    let named = raw.iter().map(|client| (client.issuer.as_deref(), client.client.as_ref()));
    names(key, "client", named, issuers, checks).map(PresentGrant::Only)
}

fn names<'r>(
    key: &str,
    member: &str,
    named: impl Iterator<Item = (Option<&'r str>, Option<&'r String>)>,
    issuers: &[&str],
    checks: &mut Checks<'_>,
) -> Option<ClientNames> {
    let (mut names, mut whole) = (ClientNames::default(), true);
    for (index, (issuer, id)) in named.enumerate() {
        let item = format!("{key}[{index}]");
        let issuer = issuer_of(&format!("{item}.issuer"), issuer, issuers, checks);
        let id_key = format!("{item}.{member}");
        let id = checks
            .required(&id_key, id, "the exact text of `client_id`: `shop-app`")
            .and_then(|text| checks.plain_text(&id_key, text, 1024));
        let Some((issuer, id)) = issuer.zip(id) else {
            whole = false;
            continue;
        };
        if !names.insert(issuer, id) {
            checks.refuse(&item, "is listed twice", "keep one of them");
            whole = false;
        }
    }
    whole.then_some(names)
}

/// A client id means nothing without its issuer, so it is never guessed where there are several.
fn issuer_of(key: &str, named: Option<&str>, issuers: &[&str], checks: &mut Checks<'_>) -> Option<String> {
    let (message, help) = match (named, issuers) {
        (Some(name), _) if issuers.contains(&name) => return Some(name.to_owned()),
        (None, [only]) => return Some((*only).to_owned()),
        (Some(_), _) => ("is none of the configured issuers", "write it as in `issuers[].issuer`, letter for letter"),
        (None, []) => ("is missing, and no issuer is configured", "add the issuer to `issuers`"),
        (None, _) => ("is missing, and several issuers are configured", "say which issuer gave the client its id"),
    };
    checks.refuse(key, message, help);
    None
}

/// Attributes: of a whole type, or one by one. Actions are the schema's own and are nobody's to describe.
pub(super) fn attributes(key: &str, raw: &RawGrant, checks: &mut Checks<'_>) -> Option<AttributeGrant> {
    let RawGrant::Only(names) = raw else { return Some(AttributeGrant::All) };
    let granted: Vec<(EntityType, Option<String>)> = checks.each(key, names, |checks, item, text| {
        if text == "*" {
            checks.refuse(item, "must be a type or an attribute", "for everything write `supply_attributes: \"*\"`");
            return None;
        }
        let (kind, attribute) = text.split_once('.').map_or((text, None), |(kind, name)| (kind, Some(name)));
        let entity_type = checks.entity_type(item, kind)?;
        if kind.rsplit("::").next() == Some("Action") {
            checks.refuse(item, "would grant actions, which can't be supplied", "take it out");
            return None;
        }
        let attribute = match attribute {
            None => None,
            Some(name) => Some(checks.plain_text(item, name, 256)?),
        };
        Some((entity_type, attribute))
    })?;
    let types: BTreeSet<EntityType> =
        granted.iter().filter(|(_, attribute)| attribute.is_none()).map(|(kind, _)| kind.clone()).collect();
    let (mut single, mut whole) = (BTreeMap::<EntityType, BTreeSet<String>>::new(), true);
    for (index, (entity_type, attribute)) in granted.into_iter().enumerate() {
        let Some(attribute) = attribute else { continue };
        if types.contains(&entity_type) {
            let message = format!("says less than `{entity_type}`, which is listed too");
            checks.refuse(&format!("{key}[{index}]"), message, "keep the type, or the single attributes");
            whole = false;
        }
        single.entry(entity_type).or_default().insert(attribute);
    }
    whole.then_some(AttributeGrant::Only { types, single })
}

/// Tenants, by id. `has_type`: whether it is said what a tenant is; or else a caller would be held to nothing.
pub(super) fn tenants(key: &str, raw: &RawGrant, has_type: bool, checks: &mut Checks<'_>) -> Option<TenantGrant> {
    let RawGrant::Only(names) = raw else { return Some(TenantGrant::All) };
    if !names.is_empty() && !has_type {
        checks.refuse(
            key,
            "would hold the caller to nothing",
            "name the tenants' entity type in `policies.tenant_type`",
        );
        return None;
    }
    let tenants = checks.each(key, names, |checks, item, text| {
        if text == "*" {
            checks.refuse(item, "must be a tenant's id", "for all tenants write `tenants: \"*\"`");
            return None;
        }
        let id = EntityId::parse(text, EntityId::DEFAULT_MAX_BYTES);
        if let Err(error) = &id {
            checks.refuse(item, error.to_string(), "the id of an entity of `policies.tenant_type`: `acme`");
        }
        id.ok()
    })?;
    Some(TenantGrant::Only(tenants.into_iter().collect()))
}

/// `25%`.
pub(super) fn share(key: &str, raw: &RawShare, checks: &mut Checks<'_>) -> Option<Share> {
    let digits = raw.0.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let share = digits.and_then(|digits| digits.parse().ok()).and_then(Share::new);
    if share.is_none() {
        checks.refuse(key, "must be a share from `1%` to `100%`", "`25%`: a quarter of `limits.concurrent_decisions`");
    }
    share
}
