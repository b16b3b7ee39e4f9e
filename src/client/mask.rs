//! The fields that were granted, and how a service keeps to them.
//!
//! A mask is a set of paths, never empty and never "everything". Reading: [`Mask::apply`] leaves what is granted.
//! Writing: [`leaf_paths`] says what a patch would change, [`Mask::refused_by`] which of it is not granted.
//! Knows JSON and field paths; nothing of the wire.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::model::field_path::{FieldPath, FieldPathError};

/// The fields that an answer grants: at least one path, each a leaf (`email`, `address.city`) or, when a policy grants
/// a whole subtree by name, the path at its root (`address`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    paths: BTreeSet<FieldPath>,
    root: Node,
}

/// What is granted at one place of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// It and everything below it.
    Whole,
    /// Only these of its fields. Never empty.
    Parts(BTreeMap<String, Node>),
}

/// Why a list of paths is not a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// Much of the world reads an empty mask as "everything", so there is no such mask here.
    #[error("a mask must name at least one field")]
    Empty,
    /// Wildcards are among these.
    #[error("not a field path: {0}")]
    Path(#[from] FieldPathError),
}

impl Mask {
    /// A mask of these paths, in any order.
    ///
    /// # Errors
    /// [`MaskError`] when there is none, or when one is not a path: a mask is taken whole or not at all.
    pub fn of<I>(paths: I) -> Result<Self, MaskError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let paths: BTreeSet<FieldPath> =
            paths.into_iter().map(|path| FieldPath::parse(path.as_ref())).collect::<Result<_, _>>()?;
        if paths.is_empty() {
            return Err(MaskError::Empty);
        }
        let mut root = Node::Parts(BTreeMap::new());
        for path in &paths {
            root.grant(path.segments());
        }
        Ok(Self { paths, root })
    }

    /// The paths, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &FieldPath> {
        self.paths.iter()
    }

    /// Whether the field at `path`, whole, is granted: it is named, or lies below one that is.
    #[must_use]
    pub fn permits(&self, path: &str) -> bool {
        let Ok(path) = FieldPath::parse(path) else { return false };
        let mut here = &self.root;
        for segment in path.segments() {
            match here {
                Node::Whole => return true,
                Node::Parts(parts) => match parts.get(segment) {
                    Some(below) => here = below,
                    None => return false,
                },
            }
        }
        matches!(here, Node::Whole)
    }

    /// Removes from `document` everything that is not granted.
    ///
    /// Lists are gone through element by element. A granted field that the document lacks is not missed. What holds
    /// nothing granted goes too, an object whose fields were all removed and a `null` where an object might have been:
    /// that there is an address is told by nobody who may not see any of it. The document itself stays, as `{}` at least.
    pub fn apply(&self, document: &mut Value) {
        if !self.root.keep(document) {
            *document = if document.is_array() { Value::Array(Vec::new()) } else { Value::Object(Map::new()) };
        }
    }

    /// Which paths that `patch` (a JSON merge patch, RFC 7396) would change are not granted. Empty: it may be applied.
    ///
    /// A list is replaced as a whole, so it must be granted as a whole; so must an object that is set to `null` or to
    /// a plain value. A patch that is not an object would replace the resource: `*`.
    #[must_use]
    pub fn refused_by(&self, patch: &Value) -> Vec<String> {
        let mut refused = Vec::new();
        if let Value::Object(fields) = patch {
            walk(fields, Some(&self.root), "", &mut refused);
        } else {
            refused.push("*".to_owned());
        }
        refused
    }
}

/// The leaf paths that a merge patch (RFC 7396) would change: what to ask for before a write, with
/// [`Ask::strict`](super::Ask::strict). Names that are no identifiers are listed as they stand, and no question can be
/// asked about them.
#[must_use]
pub fn leaf_paths(patch: &Value) -> Vec<String> {
    let mut leaves = Vec::new();
    if let Value::Object(fields) = patch {
        walk(fields, None, "", &mut leaves);
    } else {
        leaves.push("*".to_owned());
    }
    leaves
}

impl Node {
    fn grant<'a>(&mut self, mut segments: impl Iterator<Item = &'a str>) {
        let Some(segment) = segments.next() else {
            *self = Self::Whole;
            return;
        };
        if let Self::Parts(parts) = self {
            parts.entry(segment.to_owned()).or_insert_with(|| Self::Parts(BTreeMap::new())).grant(segments);
        }
    }

    /// Removes what is not granted; says whether anything is left.
    fn keep(&self, value: &mut Value) -> bool {
        let Self::Parts(parts) = self else { return true };
        match value {
            Value::Object(fields) => {
                fields.retain(|name, below| parts.get(name).is_some_and(|part| part.keep(below)));
                !fields.is_empty()
            }
            Value::Array(elements) => {
                elements.retain_mut(|element| self.keep(element));
                !elements.is_empty()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }
}

/// Lists the leaves of `fields` that `granted` does not cover; all of them without it. A key is looked up as it is,
/// never split: `{"address.city": ..}` is not the city of an address.
fn walk(fields: &Map<String, Value>, granted: Option<&Node>, prefix: &str, found: &mut Vec<String>) {
    for (name, value) in fields {
        let below = match granted {
            Some(Node::Whole) => continue,
            Some(Node::Parts(parts)) => match parts.get(name) {
                Some(Node::Whole) => continue,
                below => below,
            },
            None => None,
        };
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if let Value::Object(inner) = value
            && !inner.is_empty()
        {
            walk(inner, below, &path, found);
        } else {
            found.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn mask(paths: &[&str]) -> Mask {
        Mask::of(paths).expect("a mask")
    }

    #[test]
    fn a_mask_is_taken_whole_or_refused() {
        assert_eq!(Mask::of::<[&str; 0]>([]), Err(MaskError::Empty), "an empty mask is not everything");
        for (path, why) in
            [("*", "everything"), ("address.*", "everything below"), ("", "the empty path"), ("a..b", "a hole")]
        {
            assert!(matches!(Mask::of(["email", path]), Err(MaskError::Path(_))), "{path}: {why}");
        }
        assert_eq!(mask(&["b", "a", "b"]).paths().map(FieldPath::as_str).collect::<Vec<_>>(), ["a", "b"]);
    }

    /// The same table is read by `examples/python`.
    #[test]
    fn applying_a_mask_leaves_exactly_what_is_granted() {
        let table: Value = serde_json::from_str(include_str!("../../examples/mask_cases.json")).expect("the table");
        let rows = table["apply"].as_array().expect("rows");
        assert!(rows.len() >= 12, "the table has been cut short");
        for row in rows {
            let paths: Vec<&str> = row["mask"].as_array().expect("paths").iter().filter_map(Value::as_str).collect();
            let mut document = row["document"].clone();
            mask(&paths).apply(&mut document);
            assert_eq!(document, row["left"], "{}", row["why"]);
        }
    }

    #[test]
    fn a_write_is_refused_by_the_paths_that_are_not_granted() {
        let table: Value = serde_json::from_str(include_str!("../../examples/mask_cases.json")).expect("the table");
        let rows = table["refused"].as_array().expect("rows");
        assert!(rows.len() >= 10, "the table has been cut short");
        for row in rows {
            let paths: Vec<&str> = row["mask"].as_array().expect("paths").iter().filter_map(Value::as_str).collect();
            assert_eq!(json!(mask(&paths).refused_by(&row["patch"])), row["refused"], "{}", row["why"]);
        }
    }

    #[test]
    fn a_path_is_permitted_when_it_or_its_parent_is_named() {
        let mask = mask(&["email", "address", "work.city"]);
        let table = [
            ("email", true, "named"),
            ("address", true, "named"),
            ("address.city", true, "below a named one"),
            ("address.geo.lat", true, "far below a named one"),
            ("work", false, "only a part of it is granted"),
            ("work.city", true, "named"),
            ("work.zip", false, "a sibling"),
            ("emailx", false, "a longer name"),
            ("em", false, "a shorter name"),
            ("", false, "the empty path"),
            ("*", false, "everything"),
            ("address.*", false, "not a path"),
        ];
        for (path, expected, why) in table {
            assert_eq!(mask.permits(path), expected, "{path}: {why}");
        }
    }

    #[test]
    fn the_leaves_of_a_patch_are_what_it_would_change() {
        let patch = json!({"name": "A", "address": {"city": "Bern", "geo": {}}, "tags": [1, {"a": 2}], "email": null});
        let mut leaves = leaf_paths(&patch);
        leaves.sort();
        assert_eq!(leaves, ["address.city", "address.geo", "email", "name", "tags"]);
        assert_eq!(leaf_paths(&json!([1])), ["*"]);
    }

    /// Documents of objects, lists and plain values whose names collide often with those of [`some_paths`].
    fn some_document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..9).prop_map(Value::from)];
        let value = leaf.prop_recursive(4, 48, 4, |inner| {
            prop_oneof![
                3 => prop::collection::btree_map("[a-d]", inner.clone(), 0..4).prop_map(|map| json!(map)),
                1 => prop::collection::vec(inner, 0..3).prop_map(Value::from),
            ]
        });
        prop::collection::btree_map("[a-d]", value, 0..5).prop_map(|map| json!(map))
    }

    fn some_paths() -> impl Strategy<Value = Vec<String>> {
        let path = prop::collection::vec("[a-d]", 1..4).prop_map(|segments| segments.join("."));
        prop::collection::vec(path, 1..6)
    }

    /// Every leaf of a document with its path, lists gone through, in order; the plain reading that `apply` must agree with.
    fn leaves(value: &Value, path: &str, out: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, below) in fields {
                    leaves(below, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, out);
                }
            }
            Value::Array(elements) if !elements.is_empty() => {
                for element in elements {
                    leaves(element, path, out);
                }
            }
            Value::Object(_) | Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                out.push((path.to_owned(), value.clone()));
            }
        }
    }

    fn covered(paths: &[String], leaf: &str) -> bool {
        paths.iter().any(|path| leaf == path || leaf.starts_with(&format!("{path}.")))
    }

    proptest! {
        #[test]
        fn exactly_the_granted_leaves_are_left(document in some_document(), paths in some_paths()) {
            let mut expected = Vec::new();
            leaves(&document, "", &mut expected);
            expected.retain(|(leaf, _)| covered(&paths, leaf));
            let mut masked = document;
            Mask::of(&paths).expect("a mask").apply(&mut masked);
            let mut left = Vec::new();
            if masked != json!({}) {
                leaves(&masked, "", &mut left);
            }
            prop_assert_eq!(left, expected);
        }

        #[test]
        fn applying_twice_is_applying_once_and_order_does_not_matter(document in some_document(), paths in some_paths()) {
            let mut once = document.clone();
            let mask = Mask::of(&paths).expect("a mask");
            mask.apply(&mut once);
            let mut twice = once.clone();
            mask.apply(&mut twice);
            prop_assert_eq!(&twice, &once);

            let turned = Mask::of(paths.iter().rev().chain(&paths)).expect("a mask");
            prop_assert_eq!(&turned, &mask);
            let mut other = document;
            turned.apply(&mut other);
            prop_assert_eq!(other, once);
        }

        #[test]
        fn a_patch_is_refused_by_exactly_its_leaves_that_are_not_permitted(patch in some_document(), paths in some_paths()) {
            let mask = Mask::of(&paths).expect("a mask");
            let mut expected = leaf_paths(&patch);
            expected.retain(|leaf| !mask.permits(leaf));
            prop_assert_eq!(mask.refused_by(&patch), expected);
        }
    }
}
