//! JSON from strangers, read strictly: UTF-8 without a byte order mark, one document, no member named twice at any
//! level, nesting limited while reading.
//!
//! Most readers let the last of two equal members win and some the first, which is how one text comes to mean two
//! things to two readers (RFC 8259 section 4, RFC 8725 section 2.4). Knows nothing of tokens.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A JSON value. A whole number that fits is an integer, whatever its spelling was not: `1e3` is a number.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(JsonObject),
}

/// The members of an object, each name once.
pub(super) type JsonObject = BTreeMap<String, Json>;

/// The text is not one strict JSON object within the depth. Says no more: the text is a stranger's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotStrictJson;

/// Reads `bytes` as one object whose nesting, itself included, is at most `max_depth`.
pub(super) fn read_object(bytes: &[u8], max_depth: usize) -> Result<JsonObject, NotStrictJson> {
    // The library's own recursion limit (128) stays on beneath ours.
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Node { depth_left: max_depth }.deserialize(&mut reader).map_err(|_| NotStrictJson)?;
    reader.end().map_err(|_| NotStrictJson)?;
    match value {
        Json::Object(members) => Ok(members),
        Json::Null | Json::Bool(_) | Json::Integer(_) | Json::Number(_) | Json::Text(_) | Json::List(_) => {
            Err(NotStrictJson)
        }
    }
}

impl Json {
    /// The text, if it is one.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::Bool(_) | Self::Integer(_) | Self::Number(_) | Self::List(_) | Self::Object(_) => None,
        }
    }
}

#[derive(Clone, Copy)]
struct Node {
    depth_left: usize,
}

impl Node {
    fn child<E: Error>(self) -> Result<Self, E> {
        let depth_left = self.depth_left.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Self { depth_left })
    }
}

impl<'de> DeserializeSeed<'de> for Node {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
        // Past i64 a double would be a different number: refused rather than rounded.
        i64::try_from(value).map(Json::Integer).map_err(|_| E::custom("integer out of range"))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let child = self.child()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(child)? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let child = self.child()?;
        let mut object = JsonObject::new();
        // Names arrive unescaped, so `s\u0075b` beside `sub` is seen for what it is.
        while let Some(name) = members.next_key::<String>()? {
            match object.entry(name) {
                Entry::Occupied(_) => return Err(A::Error::custom("a member is named twice")),
                Entry::Vacant(slot) => {
                    slot.insert(members.next_value_seed(child)?);
                }
            }
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_strictly_or_not_at_all() {
        let table: [(&[u8], bool, &str); 17] = [
            (br#"{"a":1}"#, true, "the everyday shape"),
            (b" {\"a\":\t1}\n", true, "white space between tokens is JSON"),
            (br#"{"a":{"b":1},"c":{"b":1}}"#, true, "the same name in two objects"),
            (br#"{"a":{"b":{"c":[]}}}"#, true, "four levels deep"),
            (br#"{"a":{"b":{"c":[[]]}}}"#, false, "five levels deep"),
            (br#"{"a":1,"a":1}"#, false, "a member twice"),
            (br#"{"a":1,"\u0061":1}"#, false, "a member twice, once escaped"),
            (br#"{"x":[{"a":1,"a":2}]}"#, false, "a member twice, inside"),
            (b"\xef\xbb\xbf{}", false, "byte order mark"),
            (b"{\"a\":\"\xff\"}", false, "not UTF-8"),
            (br#"{"a":"\udc00"}"#, false, "half a surrogate pair"),
            (b"{}{}", false, "two documents"),
            (b"{}//x", false, "something after it"),
            (b"[]", false, "no object"),
            (b"", false, "nothing"),
            (br#"{"a":18446744073709551615}"#, false, "would be rounded"),
            (br#"{"a":1e400}"#, false, "no such double"),
        ];
        for (text, expected, why) in table {
            assert_eq!(read_object(text, 4).is_ok(), expected, "{why}");
        }
        let deep = [b"{\"a\":".as_slice(), &b"[".repeat(100_000)].concat();
        assert_eq!(read_object(&deep, 1_000_000), Err(NotStrictJson), "the library's own limit holds too");
    }
}
