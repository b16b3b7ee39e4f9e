//! Typed things: entity types, ids, references, and the raw values that callers send about them.
//!
//! A [`RawValue`] is what came over the wire or out of a token; it has no Cedar type yet. Only
//! `policy/` gives it one, by the schema.

use std::fmt;

use litemap::LiteMap;

/// The name of an entity type: `User`, `Shop::Order`. Identifiers joined by `::`, 256 bytes at most.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityType(String);

/// The id of an entity: 1 to `max` bytes of UTF-8, taken byte for byte (no folding, no normalisation),
/// without control, bidirectional or zero-width characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityId(String);

/// Why a text is not a type name or an id. Names the rule, never the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("must not be empty")]
    Empty,
    /// Longer than the limit.
    #[error("is longer than its limit")]
    TooLong,
    /// A character that hides or reorders text, or breaks lines.
    #[error("holds a control, bidirectional or zero-width character")]
    Unprintable,
    /// Not identifiers joined by `::`.
    #[error("must be identifiers joined by `::`")]
    Shape,
}

impl EntityType {
    /// Takes `text` whole or refuses it.
    ///
    /// # Errors
    /// [`NameError`] names the broken rule.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > 256 {
            return Err(NameError::TooLong);
        }
        let identifier = |segment: &str| {
            let mut bytes = segment.bytes();
            bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
                && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        if !text.split("::").all(identifier) {
            return Err(NameError::Shape);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl EntityId {
    /// The default limit of an id, in bytes.
    pub const DEFAULT_MAX_BYTES: usize = 1024;

    /// Takes `text` whole or refuses it. `max` is in bytes.
    ///
    /// # Errors
    /// [`NameError`] names the broken rule.
    pub fn parse(text: &str, max: usize) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > max {
            return Err(NameError::TooLong);
        }
        if text.chars().any(is_hidden) {
            return Err(NameError::Unprintable);
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `c` hides, reorders or breaks text: controls, line separators, bidi marks, zero-width characters, BOM, tags.
/// Source: Unicode UAX #9 table 4, UTS #39 section 5; RFC 9839 on problematic code points.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

impl fmt::Display for EntityType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which entity: a type and an id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityUid {
    /// Its type.
    pub entity_type: EntityType,
    /// Its id.
    pub id: EntityId,
}

impl fmt::Display for EntityUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{:?}", self.entity_type, self.id.as_str())
    }
}

/// A value that somebody sent, before the schema gave it a type. There is no null.
#[derive(Debug, Clone, PartialEq)]
pub enum RawValue {
    /// `true`, `false`.
    Bool(bool),
    /// A number. JSON and `google.protobuf.Struct` know doubles only; claims keep 64-bit integers.
    Number(f64),
    /// A whole number that was written as one.
    Integer(i64),
    /// Text; also how extension values (`ip`, `decimal`, `datetime`, `duration`) are sent.
    Text(String),
    /// A list; a Cedar set.
    List(Vec<RawValue>),
    /// A record; also how an entity reference is sent: `{"type": .., "id": ..}`.
    Record(RawRecord),
}

/// Attributes, or a record, by name.
pub type RawRecord = LiteMap<String, RawValue>;

/// An entity as somebody described it, before the schema had its say.
#[derive(Debug, Clone, PartialEq)]
pub struct RawEntity {
    /// Which one.
    pub uid: EntityUid,
    /// What is claimed about it.
    pub attributes: RawRecord,
    /// What it is claimed to belong to.
    pub parents: Vec<EntityUid>,
}

/// Tells `visit` the type and id of every entity that `values` refer to, at any depth. Whatever holds a type and an id
/// counts: no schema is needed to see it, and a record that only looks like a reference is told as well.
pub fn references(values: &RawRecord, visit: &mut dyn FnMut(&str, &str)) {
    if let (Some(RawValue::Text(kind)), Some(RawValue::Text(id))) = (values.get("type"), values.get("id")) {
        visit(kind, id);
    }
    values.values().for_each(|value| references_of(value, visit));
}

fn references_of(value: &RawValue, visit: &mut dyn FnMut(&str, &str)) {
    match value {
        RawValue::Bool(_) | RawValue::Number(_) | RawValue::Integer(_) | RawValue::Text(_) => {}
        RawValue::List(items) => items.iter().for_each(|item| references_of(item, visit)),
        RawValue::Record(record) => references(record, visit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_byte_for_byte_or_refused() {
        let at_limit = "x".repeat(1024);
        let past_limit = "x".repeat(1025);
        let table = [
            ("alice", Ok(()), "the everyday shape"),
            ("Älice", Ok(()), "text is text"),
            ("a/b#c:d,e'f\"", Ok(()), "punctuation is data"),
            (at_limit.as_str(), Ok(()), "1 024 bytes"),
            (past_limit.as_str(), Err(NameError::TooLong), "1 025 bytes"),
            ("", Err(NameError::Empty), "nothing"),
            ("a\0b", Err(NameError::Unprintable), "NUL"),
            ("a\nb", Err(NameError::Unprintable), "line break"),
            ("a\u{202e}b", Err(NameError::Unprintable), "bidi override"),
            ("a\u{200b}b", Err(NameError::Unprintable), "zero width"),
            ("\u{feff}a", Err(NameError::Unprintable), "byte order mark"),
        ];
        for (text, expected, why) in table {
            assert_eq!(EntityId::parse(text, 1024).map(|_| ()), expected, "{why}");
        }
        let composed = EntityId::parse("\u{e9}", 1024).unwrap();
        let decomposed = EntityId::parse("e\u{301}", 1024).unwrap();
        assert_ne!(composed, decomposed, "two normal forms are two principals");
    }
}
