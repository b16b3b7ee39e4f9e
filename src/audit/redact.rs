//! Which values may stand in a record: the ones on the operator's list, and no other.
//!
//! It copies what is named and never looks at the rest, so a new attribute stays out until somebody lists it.

use std::collections::{BTreeMap, BTreeSet};

use super::text::cut;
use crate::config::{KeptValue, RedactRule};
use crate::model::entity::{EntityType, RawRecord, RawValue};

/// Where a record of values came from.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Attributes of the principal, which has this type.
    Principal(&'a EntityType),
    /// Attributes of the resource, which has this type.
    Resource(&'a EntityType),
    /// The context.
    Context,
}

/// The allow-list of values, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Redaction {
    attributes: BTreeMap<EntityType, BTreeSet<String>>,
    context: BTreeSet<String>,
}

/// Values copied out of one place at most, nested ones included; lists and records end there.
const MAX_VALUES: usize = 64;
/// How deep a copied value may nest.
const MAX_DEPTH: usize = 4;
/// Stands where something was left out.
const LEFT_OUT: &str = "..";

impl Redaction {
    /// Keeps what `audit.attributes` names.
    #[must_use]
    pub fn new(rules: &[(KeptValue, RedactRule)]) -> Self {
        let mut redaction = Self::default();
        for (kept, _rule) in rules {
            match kept {
                KeptValue::Attribute { entity_type, attribute } => {
                    redaction.attributes.entry(entity_type.clone()).or_default().insert(attribute.clone());
                }
                KeptValue::Context(name) => {
                    redaction.context.insert(name.clone());
                }
            }
        }
        redaction
    }

    /// The values of `record` that may be recorded, named `principal.x`, `resource.x` or `context.x` and sorted.
    ///
    /// Only top-level names are on the list; a listed record or list is copied whole, within 64 values and four
    /// levels. Long text is cut.
    #[must_use]
    pub fn kept(&self, place: Place<'_>, record: &RawRecord) -> Vec<(String, RawValue)> {
        let (prefix, names) = match place {
            Place::Principal(entity_type) => ("principal", self.attributes.get(entity_type)),
            Place::Resource(entity_type) => ("resource", self.attributes.get(entity_type)),
            Place::Context => ("context", Some(&self.context)),
        };
        let mut left = MAX_VALUES;
        let copies = names.into_iter().flatten().filter_map(|name| {
            let value = record.get(name)?;
            Some((format!("{prefix}.{name}"), copied(value, MAX_DEPTH, &mut left)))
        });
        copies.collect()
    }
}

/// A bounded copy of `value`; `left` counts down over everything copied together.
fn copied(value: &RawValue, depth: usize, left: &mut usize) -> RawValue {
    let (Some(remaining), Some(below)) = (left.checked_sub(1), depth.checked_sub(1)) else {
        return RawValue::Text(LEFT_OUT.to_owned());
    };
    *left = remaining;
    match value {
        RawValue::Bool(_) | RawValue::Number(_) | RawValue::Integer(_) => value.clone(),
        RawValue::Text(text) => RawValue::Text(cut(text).into_owned()),
        RawValue::List(items) => {
            let mut copy = Vec::new();
            for item in items {
                let full = *left == 0;
                copy.push(copied(item, below, left));
                if full {
                    break;
                }
            }
            RawValue::List(copy)
        }
        RawValue::Record(record) => {
            let mut copy = RawRecord::new();
            for (name, item) in record {
                if *left == 0 {
                    copy.insert(LEFT_OUT.to_owned(), RawValue::Text(LEFT_OUT.to_owned()));
                    break;
                }
                copy.insert(cut(name).into_owned(), copied(item, below, left));
            }
            RawValue::Record(copy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::text::MAX_TEXT;

    fn redaction() -> Redaction {
        let user = EntityType::parse("User").unwrap();
        Redaction::new(&[
            (KeptValue::Attribute { entity_type: user, attribute: "tenant".to_owned() }, RedactRule::Keep),
            (KeptValue::Context("channel".to_owned()), RedactRule::Keep),
        ])
    }

    fn text(value: &str) -> RawValue {
        RawValue::Text(value.to_owned())
    }

    #[test]
    fn only_what_is_listed_for_that_place_is_copied() {
        let record: RawRecord =
            ["tenant", "channel", "email"].into_iter().map(|name| (name.to_owned(), text(name))).collect();
        let user = EntityType::parse("User").unwrap();
        let account = EntityType::parse("Account").unwrap();
        let table = [
            (Place::Principal(&user), vec![("principal.tenant".to_owned(), text("tenant"))], "listed for the type"),
            (Place::Resource(&user), vec![("resource.tenant".to_owned(), text("tenant"))], "a type is a type"),
            (Place::Resource(&account), vec![], "not listed for this type"),
            (Place::Context, vec![("context.channel".to_owned(), text("channel"))], "its own list"),
        ];
        for (place, expected, why) in table {
            assert_eq!(redaction().kept(place, &record), expected, "{why}");
        }
        assert!(Redaction::default().kept(Place::Context, &record).is_empty(), "an empty list keeps nothing");
    }

    #[test]
    fn a_listed_value_is_copied_within_bounds() {
        let nested = |levels: usize| (0..levels).fold(text("core"), |inner, _| RawValue::List(vec![inner]));
        let count = |value: &RawValue| if let RawValue::List(items) = value { items.len() } else { 0 };
        let kept = |value: RawValue| {
            let record = RawRecord::from([("channel".to_owned(), value)]);
            redaction().kept(Place::Context, &record).remove(0).1
        };
        assert_eq!(kept(nested(3)), nested(3), "four levels");
        assert_ne!(kept(nested(4)), nested(4), "five levels");
        let fits = RawValue::List(vec![RawValue::Bool(true); MAX_VALUES - 1]);
        assert_eq!(kept(fits.clone()), fits, "64 values, the list itself included");
        let past = kept(RawValue::List(vec![RawValue::Bool(true); 1000]));
        assert_eq!(count(&past), MAX_VALUES, "63 and the mark");
        assert_eq!(kept(text(&"x".repeat(MAX_TEXT))), text(&"x".repeat(MAX_TEXT)));
        assert_ne!(kept(text(&"x".repeat(MAX_TEXT + 1))), text(&"x".repeat(MAX_TEXT + 1)));
    }
}
