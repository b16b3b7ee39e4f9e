//! From verified claims to the principal entity, by the issuer's mapping.
//!
//! Names and ids are data: they become ids and values, never text that is parsed again.

use super::claims::Claims;
use super::error::TokenError;
use super::json::Json;
use crate::config::{AttributeMapping, ClaimMapping, Limits, ParentMapping};
use crate::model::entity::{EntityId, EntityType, EntityUid, RawEntity, RawRecord, RawValue};

/// The principal that `claims` describe.
pub(super) fn principal(claims: &Claims, mapping: &ClaimMapping, limits: &Limits) -> Result<RawEntity, TokenError> {
    let id = claims.at(&mapping.id_claim).and_then(Json::as_text).ok_or(TokenError::Mapping)?;
    let mut attributes = RawRecord::with_capacity(mapping.attributes.len());
    for mapped in &mapping.attributes {
        if let Some(value) = attribute(claims, mapped, limits)? {
            attributes.insert(mapped.attribute.clone(), value);
        }
    }
    let mut parents = Vec::new();
    for mapped in &mapping.parents {
        parents.extend(parents_from(claims, mapped, limits)?);
    }
    parents.sort_unstable();
    parents.dedup();
    if parents.len() > limits.ancestors {
        return Err(TokenError::Mapping);
    }
    Ok(RawEntity { uid: uid(&mapping.principal_type, id, limits)?, attributes, parents })
}

/// An absent claim is an absent attribute: the schema says whether that will do.
fn attribute(claims: &Claims, mapped: &AttributeMapping, limits: &Limits) -> Result<Option<RawValue>, TokenError> {
    let Some(claim) = claims.at(&mapped.claim) else { return Ok(None) };
    match (&mapped.entity_type, claim) {
        (None, claim) => value(claim, limits, limits.value_depth).map(Some),
        (Some(entity_type), Json::Text(id)) => reference(entity_type, id, limits).map(Some),
        (Some(entity_type), Json::List(ids)) if ids.len() <= limits.set_elements => {
            let references = ids.iter().map(|id| match id {
                Json::Text(id) => reference(entity_type, id, limits),
                Json::Null | Json::Bool(_) | Json::Integer(_) | Json::Number(_) | Json::List(_) | Json::Object(_) => {
                    Err(TokenError::Mapping)
                }
            });
            references.collect::<Result<_, _>>().map(|list| Some(RawValue::List(list)))
        }
        (Some(_), _) => Err(TokenError::Mapping),
    }
}

fn parents_from(claims: &Claims, mapped: &ParentMapping, limits: &Limits) -> Result<Vec<EntityUid>, TokenError> {
    let named = match claims.at(&mapped.claim) {
        None => Vec::new(),
        Some(Json::Text(one)) => vec![one.as_str()],
        Some(Json::List(list)) => list.iter().map(Json::as_text).collect::<Option<_>>().ok_or(TokenError::Mapping)?,
        Some(_) => return Err(TokenError::Mapping),
    };
    named.into_iter().map(|id| uid(&mapped.entity_type, id, limits)).collect()
}

fn uid(entity_type: &EntityType, id: &str, limits: &Limits) -> Result<EntityUid, TokenError> {
    let id = EntityId::parse(id, limits.id_bytes).map_err(|_| TokenError::Mapping)?;
    Ok(EntityUid { entity_type: entity_type.clone(), id })
}

/// How an entity reference is written among raw values.
fn reference(entity_type: &EntityType, id: &str, limits: &Limits) -> Result<RawValue, TokenError> {
    let uid = uid(entity_type, id, limits)?;
    Ok(RawValue::Record(RawRecord::from_iter([
        ("type".to_owned(), RawValue::Text(uid.entity_type.as_str().to_owned())),
        ("id".to_owned(), RawValue::Text(uid.id.as_str().to_owned())),
    ])))
}

fn value(claim: &Json, limits: &Limits, depth_left: usize) -> Result<RawValue, TokenError> {
    let deeper = || depth_left.checked_sub(1).ok_or(TokenError::Mapping);
    match claim {
        // In a list a null would be an element that is not there.
        Json::Null => Err(TokenError::Mapping),
        Json::Bool(value) => Ok(RawValue::Bool(*value)),
        Json::Integer(value) => Ok(RawValue::Integer(*value)),
        Json::Number(value) => Ok(RawValue::Number(*value)),
        Json::Text(text) if text.len() > limits.string_bytes => Err(TokenError::Mapping),
        Json::Text(text) => Ok(RawValue::Text(text.clone())),
        Json::List(list) if list.len() > limits.set_elements => Err(TokenError::Mapping),
        Json::List(list) => {
            let depth = deeper()?;
            list.iter().map(|item| value(item, limits, depth)).collect::<Result<_, _>>().map(RawValue::List)
        }
        Json::Object(members) => {
            let depth = deeper()?;
            members
                .iter()
                .filter(|(_, member)| **member != Json::Null)
                .map(|(name, member)| Ok((name.clone(), value(member, limits, depth)?)))
                .collect::<Result<_, _>>()
                .map(RawValue::Record)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> EntityType {
        EntityType::parse(name).unwrap()
    }

    fn text(text: &str) -> RawValue {
        RawValue::Text(text.to_owned())
    }

    fn mapping() -> ClaimMapping {
        let attribute = |attribute: &str, claim: &str, entity_type: Option<&str>| AttributeMapping {
            attribute: attribute.to_owned(),
            claim: claim.to_owned(),
            entity_type: entity_type.map(kind),
        };
        ClaimMapping {
            principal_type: kind("User"),
            id_claim: "sub".to_owned(),
            attributes: vec![
                attribute("level", "level", None),
                attribute("profile", "profile", None),
                attribute("tenant", "org.tenant", Some("Tenant")),
            ],
            parents: vec![ParentMapping { claim: "realm.roles".to_owned(), entity_type: kind("Role") }],
        }
    }

    fn mapped(claims: &str) -> Result<RawEntity, TokenError> {
        principal(&Claims::read(claims.as_bytes(), &Limits::default()).unwrap(), &mapping(), &Limits::default())
    }

    #[test]
    fn claims_become_a_principal_as_the_mapping_says() {
        let alice = mapped(
            r#"{"sub":"alice","level":3,"profile":{"name":"A","nick":null,"height":1.5},"org":{"tenant":"acme"},
                "realm":{"roles":["staff","admin","staff"]},"unmapped":"x"}"#,
        )
        .unwrap();
        assert_eq!(alice.uid.to_string(), r#"User::"alice""#);
        let parents: Vec<_> = alice.parents.iter().map(ToString::to_string).collect();
        assert_eq!(parents, [r#"Role::"admin""#, r#"Role::"staff""#], "sorted, once each");
        let reference = RawRecord::from_iter([("type".into(), text("Tenant")), ("id".into(), text("acme"))]);
        let profile = RawRecord::from_iter([("name".into(), text("A")), ("height".into(), RawValue::Number(1.5))]);
        let expected = RawRecord::from_iter([
            ("level".into(), RawValue::Integer(3)),
            ("profile".into(), RawValue::Record(profile)),
            ("tenant".into(), RawValue::Record(reference)),
        ]);
        assert_eq!(alice.attributes, expected, "a null is absent, an unmapped claim stays out");
    }

    #[test]
    fn claims_that_do_not_fit_the_mapping_are_refused() {
        let long = "x".repeat(4097);
        let table = [
            (r#"{"sub":"alice"}"#.to_owned(), true, "only the id is needed"),
            (r#"{"sub":"alice","realm":{"roles":"staff"}}"#.to_owned(), true, "one role as text"),
            (r#"{"sub":"alice","level":null}"#.to_owned(), true, "null is absent"),
            (r#"{"level":1}"#.to_owned(), false, "no id"),
            (r#"{"sub":1}"#.to_owned(), false, "an id is text"),
            (r#"{"sub":"a\u0000b"}"#.to_owned(), false, "hidden characters"),
            (r#"{"sub":"alice","realm":{"roles":["a",1]}}"#.to_owned(), false, "a role is text"),
            (r#"{"sub":"alice","realm":{"roles":[""]}}"#.to_owned(), false, "a role has a name"),
            (r#"{"sub":"alice","org":{"tenant":1}}"#.to_owned(), false, "a reference is text"),
            (r#"{"sub":"alice","level":[null]}"#.to_owned(), false, "null among elements"),
            (format!(r#"{{"sub":"alice","level":"{long}"}}"#), false, "longer than text may be"),
        ];
        for (claims, expected, why) in table {
            assert_eq!(mapped(&claims).is_ok(), expected, "{why}");
        }
    }
}
