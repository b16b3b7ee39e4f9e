//! Does a tree have the shape of the file: only known keys, each with a value of its kind?
//!
//! What the shape is comes from the schema of `raw`. Whatever does not fit is reported and taken out, so that the rest
//! can still be looked at and the operator hears everything at once.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::tree::{Node, Step, Value, key_text};
use super::values::Findings;

/// A schema, and the definitions it refers to.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a> {
    root: &'a Json,
    schema: &'a Json,
}

impl<'a> Shape<'a> {
    pub(super) fn of(root: &'a Json) -> Self {
        Self { root, schema: root }
    }

    fn keyword(self, name: &str) -> Option<&'a Json> {
        self.schema.get(name)
    }

    fn at(self, schema: &'a Json) -> Self {
        Self { schema, ..self }
    }

    /// Follows a reference, and sees through "this or nothing": a key without a value is a key that is not set.
    pub(super) fn resolved(self) -> Self {
        if let Some(pointer) = self.keyword("$ref").and_then(Json::as_str) {
            let target = pointer.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            return target.map_or(self, |schema| self.at(schema).resolved());
        }
        match self.branches().as_slice() {
            [only] => only.resolved(),
            _ => self,
        }
    }

    /// The alternatives, apart from nothing at all.
    fn branches(self) -> Vec<Self> {
        let branches = self.keyword("anyOf").and_then(Json::as_array).into_iter().flatten();
        branches
            .filter(|schema| schema.get("type") != Some(&Json::from("null")))
            .map(|schema| self.at(schema))
            .collect()
    }

    /// `string`, `integer` and so on; nothing when anything goes.
    fn kinds(self) -> Vec<&'a str> {
        match self.keyword("type") {
            Some(Json::String(kind)) => vec![kind],
            Some(Json::Array(kinds)) => kinds.iter().filter_map(Json::as_str).filter(|kind| *kind != "null").collect(),
            _ => Vec::new(),
        }
    }

    fn takes(self, value: &Value) -> bool {
        self.kinds().into_iter().any(|kind| match value {
            Value::Null => false,
            Value::Bool(_) => kind == "boolean",
            Value::Number(number) => kind == "number" || (kind == "integer" && number.is_u64()),
            Value::Text(_) => kind == "string",
            Value::List(_) => kind == "array",
            Value::Map(_) => kind == "object",
        })
    }

    pub(super) fn property(self, name: &str) -> Option<Self> {
        let known = self.keyword("properties").and_then(|known| known.get(name));
        known
            .or_else(|| self.keyword("additionalProperties").filter(|other| other.is_object()))
            .map(|schema| self.at(schema))
    }

    fn known_keys(self) -> impl Iterator<Item = &'a str> {
        self.keyword("properties")
            .and_then(Json::as_object)
            .into_iter()
            .flat_map(|known| known.keys())
            .map(String::as_str)
    }

    fn items(self) -> Option<Self> {
        self.keyword("items").map(|schema| self.at(schema))
    }

    /// Whether the value at `path` is text and nothing but text, so that a variable need not be quoted.
    pub(super) fn is_text_at(self, path: &[Step]) -> bool {
        let mut shape = self.resolved();
        for step in path {
            let next = match step {
                Step::Key(key) => shape.property(key),
                Step::Index(_) => shape.items(),
            };
            let Some(next) = next else { return false };
            shape = next.resolved();
        }
        shape.kinds() == ["string"]
    }

    /// What people call the kind of value.
    pub(super) fn expected(self) -> String {
        let shape = self.resolved();
        if let Some(choices) = shape.choices() {
            return choices;
        }
        if let Some(named) = shape.keyword("x-type").and_then(Json::as_str) {
            return match named {
                "duration" => "a time such as `30s`, `200ms`, `15m`, `24h`".to_owned(),
                "size" => "a size such as `256KiB`, `16MiB`, or a number of bytes".to_owned(),
                other => format!("a {other}"),
            };
        }
        let branches: Vec<String> = shape.branches().into_iter().map(Self::expected).collect();
        if !branches.is_empty() {
            return branches.join(" or ");
        }
        let kinds = shape.kinds().into_iter().map(|kind| match kind {
            "string" => "text",
            "boolean" => "`true` or `false`",
            "integer" => "a whole number from 0 up",
            "number" => "a number",
            "array" => "a list",
            _ => "a section of keys",
        });
        kinds.collect::<Vec<_>>().join(" or ")
    }

    fn choices(self) -> Option<String> {
        let choices = self.keyword("enum")?.as_array()?;
        let quoted: Vec<String> = choices.iter().filter_map(Json::as_str).map(|choice| format!("`{choice}`")).collect();
        Some(match quoted.as_slice() {
            [only] => only.clone(),
            many => format!("one of {}", many.join(", ")),
        })
    }
}

/// Reports whatever in `node` does not fit `shape`, and takes it out. Whether `node` itself may stay.
pub(super) fn prune(node: &mut Node, shape: Shape<'_>, path: &mut Vec<Step>, findings: &mut Findings) -> bool {
    let whole = shape.resolved();
    let branch = whole.branches().into_iter().map(Shape::resolved).find(|branch| branch.takes(&node.value));
    let shape = branch.unwrap_or(whole);
    if !shape.takes(&node.value) || !is_choice(&node.value, shape) {
        let help = match node.value {
            Value::Number(_) | Value::Bool(_) if shape.kinds().contains(&"string") => Some("put it in quotes"),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => None,
        };
        findings.misfit(path, node.at.clone(), format!("must be {}", whole.expected()), help.map(str::to_owned));
        return false;
    }
    match &mut node.value {
        Value::Map(entries) => entries.retain_mut(|(key, entry)| {
            path.push(Step::Key(key.clone()));
            let stays = keep_entry(key, entry, shape, path, findings);
            path.pop();
            stays
        }),
        Value::List(items) => {
            let before = items.len();
            let mut index = 0;
            items.retain_mut(|item| {
                path.push(Step::Index(index));
                index += 1;
                let stays = shape.items().is_none_or(|shape| prune(item, shape, path, findings));
                path.pop();
                stays
            });
            if items.len() < before {
                // The numbers of what is left have moved: nothing more can be said about this list.
                findings.spoil(path);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
    }
    true
}

fn keep_entry(key: &str, entry: &mut Node, shape: Shape<'_>, path: &mut Vec<Step>, findings: &mut Findings) -> bool {
    let Some(known) = shape.property(key) else {
        let nearest = nearest(key, shape.known_keys());
        let help = match nearest {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => format!(
                "known here: {}",
                shape.known_keys().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
            ),
        };
        findings.misfit(path, entry.at.clone(), "is not a known key".to_owned(), Some(help));
        if let (Some(nearest), Some((_, section))) = (nearest, path.split_last()) {
            // What was meant counts as given, or it would be called missing as well.
            let meant: Vec<Step> = section.iter().cloned().chain([Step::Key(nearest.to_owned())]).collect();
            findings.spoil(&meant);
        }
        return false;
    };
    // `key:` with nothing after it is a key that is not set.
    !matches!(entry.value, Value::Null) && prune(entry, known, path, findings)
}

fn is_choice(value: &Value, shape: Shape<'_>) -> bool {
    match (value, shape.keyword("enum").and_then(Json::as_array)) {
        (Value::Text(text), Some(choices)) => choices.iter().any(|choice| choice.as_str() == Some(text)),
        _ => true,
    }
}

/// The known key that `key` was most likely meant to be: at most a third of it is wrong.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let key: Vec<char> = key.chars().take(64).collect();
    let (distance, nearest) = known.map(|known| (distance(&key, known), known)).min()?;
    (distance <= key.len().div_ceil(3)).then_some(nearest)
}

/// How many characters must be added, dropped, changed or swapped with their neighbour (optimal string alignment).
fn distance(left: &[char], right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for (row, l) in left.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, r) in right.iter().enumerate() {
            let cell = |cells: &[usize], index: usize| cells.get(index).copied().unwrap_or(usize::MAX - 1);
            let mut cost = (cell(&above, column) + usize::from(l != r))
                .min(cell(&above, column + 1) + 1)
                .min(cell(&current, column) + 1);
            let swapped = row > 0 && column > 0 && left.get(row - 1) == Some(r) && right.get(column - 1) == Some(l);
            if swapped {
                cost = cost.min(cell(&before, column - 1) + 1);
            }
            current.push(cost);
        }
        before = std::mem::replace(&mut above, current);
    }
    above.last().copied().unwrap_or(left.len())
}

/// The key as shown, for tests and messages alike.
pub(super) fn shown(path: &[Step]) -> String {
    if path.is_empty() { "(the whole file)".to_owned() } else { key_text(path) }
}
