//! What a caller said of its own accord, for the record: names of what was asserted, never the values.
//!
//! A name is one that the schema declares. Any other is text of the caller's making, and a record is no place for that.

use std::collections::BTreeSet;

use crate::model::entity::{RawEntity, RawRecord};
use crate::model::question::{Question, Subject};
use crate::policy::Bundle;

/// Names that one record lists at most; past it the last entry says how many more there are.
const NAMED: usize = 64;
/// Stands for every attribute that the schema does not declare. Such a question is refused.
const UNDECLARED: &str = "(undeclared)";

/// What the caller says of a subject that it vouches for.
pub(super) fn of_subject(subject: &Subject, bundle: &Bundle) -> Vec<String> {
    let Subject::Asserted(principal) = subject else { return Vec::new() };
    let kind = &principal.uid.entity_type;
    let mut said = vec!["subject".to_owned()];
    let names = declared(&principal.attributes, |name| bundle.declares(kind, name));
    said.extend(names.into_iter().map(|name| format!("subject.attributes.{name}")));
    said.extend((!principal.parents.is_empty()).then(|| "subject.parents".to_owned()));
    said
}

/// What is said of entities, by type: of many of one type, what is said of any.
pub(super) fn of_entities(entities: &[RawEntity], bundle: &Bundle) -> BTreeSet<String> {
    // Names are put together last: there are few, and entities many.
    let mut said = BTreeSet::new();
    for entity in entities {
        let kind = &entity.uid.entity_type;
        let names = declared(&entity.attributes, |name| bundle.declares(kind, name));
        said.extend(names.into_iter().map(|name| (kind, Some(name))));
        if !entity.parents.is_empty() {
            said.insert((kind, Some("parents")));
        }
        if entity.attributes.is_empty() && entity.parents.is_empty() {
            said.insert((kind, None));
        }
    }
    let named = said.into_iter().map(|(kind, name)| match name {
        Some(name) => format!("entities[{kind}].{name}"),
        None => format!("entities[{kind}]"),
    });
    named.collect()
}

/// All of it, sorted: what was said of the subject, of the resource, of other entities, of the circumstances. `before`:
/// what is named already.
pub(super) fn in_all(before: &[String], question: &Question, entities: &[RawEntity], bundle: &Bundle) -> Vec<String> {
    let resource = &question.resource;
    let mut said: BTreeSet<String> = before.iter().cloned().collect();
    let names = declared(&resource.attributes, |name| bundle.declares(&resource.entity_type, name));
    said.extend(names.into_iter().map(|name| format!("resource.{name}")));
    said.extend((!resource.parents.is_empty()).then(|| "resource.parents".to_owned()));
    let names = declared(&question.context, |name| bundle.declares_context(&question.action, name));
    said.extend(names.into_iter().map(|name| format!("context.{name}")));
    said.extend(of_entities(entities, bundle));
    bounded(said)
}

fn declared(values: &RawRecord, is_declared: impl Fn(&str) -> bool) -> BTreeSet<&str> {
    values.keys().map(|name| if is_declared(name) { name.as_str() } else { UNDECLARED }).collect()
}

fn bounded(said: BTreeSet<String>) -> Vec<String> {
    let more = said.len().saturating_sub(NAMED);
    let mut named: Vec<String> = said.into_iter().take(NAMED).collect();
    if more > 0 {
        named.push(format!("and {more} more"));
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_so_many_and_counts_the_rest() {
        let said = |count: usize| bounded((0..count).map(|at| format!("resource.a{at:03}")).collect());
        assert_eq!(said(64).len(), 64, "at the limit");
        assert_eq!(said(65).last().map(String::as_str), Some("and 1 more"), "one past it");
        assert_eq!(said(300).len(), 65);
        assert_eq!(said(300)[64], "and 236 more");
    }
}
