//! Settings as a tree in which every value remembers where it was written.
//!
//! Reads YAML, lays one value over another, finds a value by its key. Knows nothing of which keys exist.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Location, Spanned};

use super::{ConfigProblem, Origin};
use crate::model::entity::is_hidden;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub at: Option<Origin>,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; a key may still be there twice.
    Map(Vec<(String, Node)>),
}

/// One step down a tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl Node {
    pub(super) fn child(&self, step: &Step) -> Option<&Self> {
        match (&self.value, step) {
            (Value::Map(entries), Step::Key(key)) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            (Value::List(items), Step::Index(index)) => items.get(*index),
            _ => None,
        }
    }

    /// Where `key` is written or, when it is not, what it would stand in.
    pub(super) fn origin_of(&self, key: &str) -> Option<Origin> {
        let mut node = self;
        let mut at = self.at.as_ref();
        for step in steps(key).unwrap_or_default() {
            let Some(child) = node.child(&step) else { break };
            node = child;
            at = node.at.as_ref().or(at);
        }
        at.cloned()
    }

    /// Puts `value` at `path`, making the sections on the way.
    ///
    /// # Errors
    /// Says what stands in the way.
    pub(super) fn put(&mut self, path: &[Step], value: Self) -> Result<(), &'static str> {
        let Some((step, rest)) = path.split_first() else {
            *self = value;
            return Ok(());
        };
        if matches!(self.value, Value::Null) {
            self.value = if matches!(step, Step::Key(_)) { Value::Map(Vec::new()) } else { Value::List(Vec::new()) };
            self.at.clone_from(&value.at);
        }
        let hole = || Self { at: value.at.clone(), value: Value::Null };
        match (&mut self.value, step) {
            (Value::Map(entries), Step::Key(key)) => {
                if !entries.iter().any(|(name, _)| name == key) {
                    entries.push((key.clone(), hole()));
                }
                match entries.iter_mut().find(|(name, _)| name == key) {
                    Some((_, node)) => node.put(rest, value),
                    None => Ok(()),
                }
            }
            (Value::List(items), Step::Index(index)) => {
                if *index == items.len() {
                    items.push(hole());
                }
                let missing = "there is no such item; the next free number adds one";
                items.get_mut(*index).ok_or(missing)?.put(rest, value)
            }
            (Value::List(_), Step::Key(_)) => Err("is in a list; name the item by its number, from 0"),
            _ => Err("is set inside something that is neither a section nor a list"),
        }
    }

    /// The tree as JSON, without the places.
    pub(super) fn into_json(self) -> serde_json::Value {
        match self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => value.into(),
            Value::Number(value) => value.into(),
            Value::Text(value) => value.into(),
            Value::List(items) => items.into_iter().map(Self::into_json).collect(),
            Value::Map(entries) => {
                serde_json::Value::Object(entries.into_iter().map(|(key, node)| (key, node.into_json())).collect())
            }
        }
    }
}

/// `issuers[0].audiences` or `issuers.0.audiences`, step by step; `None` when it is neither.
pub(super) fn steps(key: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for part in key.split('.') {
        let (name, indexes) = part.split_once('[').map_or((part, None), |(name, rest)| (name, Some(rest)));
        steps.push(match name.parse() {
            Ok(index) => Step::Index(index),
            Err(_) if name.is_empty() => return None,
            Err(_) => Step::Key(name.to_owned()),
        });
        if let Some(indexes) = indexes {
            for index in indexes.strip_suffix(']')?.split("][") {
                steps.push(Step::Index(index.parse().ok()?));
            }
        }
    }
    Some(steps)
}

/// How `steps` are shown to people: `issuers[0].audiences`. Keys are cut to 64 characters, and what would hide or break
/// text in them is not repeated.
pub(super) fn key_text(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.extend(key.chars().take(64).map(|c| if is_hidden(c) { '?' } else { c }));
            }
            Step::Index(index) => text.extend(["[", &index.to_string(), "]"]),
        }
    }
    text
}

/// Reads the one YAML document in `text`; keys that are there twice are refused, every one of them.
pub(super) fn read_yaml(text: &str, file: &Arc<PathBuf>, problems: &mut Vec<ConfigProblem>) -> Option<Node> {
    let at = |location: Location| Some(Origin::File { path: Arc::clone(file), line: location.line().max(1) });
    match serde_saphyr::from_str_with_options::<Option<Spanned<Content>>>(text, options()) {
        Ok(Some(content)) => Some(place(content, &at, &mut Vec::new(), problems)),
        Ok(None) => Some(Node { at: at(Location::UNKNOWN), value: Value::Map(Vec::new()) }),
        Err(error) => {
            problems.push(ConfigProblem {
                key: String::new(),
                at: at(error.location().unwrap_or(Location::UNKNOWN)),
                message: format!("is not YAML: {}", first_line(&error.without_snippet().to_string())),
                help: None,
            });
            None
        }
    }
}

/// Reads what a variable or a flag says: any YAML value. `None` when it is none.
pub(super) fn read_value(text: &str, origin: &Origin) -> Option<Node> {
    let content = serde_saphyr::from_str_with_options::<Option<Spanned<Content>>>(text, options()).ok()?;
    let mut problems = Vec::new();
    let node = content.map_or(Node { at: Some(origin.clone()), value: Value::Null }, |content| {
        place(content, &|_| Some(origin.clone()), &mut Vec::new(), &mut problems)
    });
    problems.is_empty().then_some(node)
}

/// No snippets, so that no value gets into a message; no guessing at `yes`, `012` and `1_000`; no merge keys; no
/// document that grows when read.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
        merge_keys: MergeKeyPolicy::Error,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        budget: serde_saphyr::budget! {
            max_depth: 32,
            max_nodes: 100_000,
            max_aliases: 100,
            max_documents: 1,
        },
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

/// What serde hands us, before places are settled: an entry stands where its key does.
enum Content {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Spanned<Content>>),
    Map(Vec<(Spanned<String>, Spanned<Content>)>),
}

fn place(
    content: Spanned<Content>,
    at: &dyn Fn(Location) -> Option<Origin>,
    path: &mut Vec<Step>,
    problems: &mut Vec<ConfigProblem>,
) -> Node {
    let value = match content.value {
        Content::Null => Value::Null,
        Content::Bool(value) => Value::Bool(value),
        Content::Number(value) => Value::Number(value),
        Content::Text(value) => Value::Text(value),
        Content::List(items) => {
            let mut nodes = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                path.push(Step::Index(index));
                nodes.push(place(item, at, path, problems));
                path.pop();
            }
            Value::List(nodes)
        }
        Content::Map(entries) => {
            let mut nodes: Vec<(String, Node)> = Vec::with_capacity(entries.len());
            for (key, entry) in entries {
                let origin = at(key.referenced);
                path.push(Step::Key(key.value.clone()));
                if nodes.iter().any(|(name, _)| *name == key.value) {
                    problems.push(ConfigProblem {
                        key: key_text(path),
                        at: origin.clone(),
                        message: "is there twice".to_owned(),
                        help: Some("keep one of them".to_owned()),
                    });
                }
                let mut node = place(entry, at, path, problems);
                path.pop();
                node.at = origin;
                nodes.push((key.value, node));
            }
            Value::Map(nodes)
        }
    };
    Node { at: at(content.referenced), value }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Content, E> {
        Number::from_f64(value).map(Content::Number).ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Content, E> {
        Ok(Content::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Content::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Content, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Content::Map(map))
    }
}
