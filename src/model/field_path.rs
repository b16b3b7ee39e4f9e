//! Paths of fields relative to a resource, as in a field mask (AIP-161, `google.protobuf.FieldMask`).

use std::fmt;
use std::sync::Arc;

/// A path such as `email` or `address.city`: 1 to 16 segments, each an identifier
/// (`[A-Za-z_][A-Za-z0-9_]*`), 256 bytes in all. `*`, `a.*`, `a..b` and the empty path are not paths.
/// Cheap to clone: a mask is made of the paths that the schema has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FieldPath(Arc<str>);

/// Why a text is not a field path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldPathError {
    /// Empty, or longer than 256 bytes, or more than 16 segments.
    #[error("must have 1 to 16 segments and at most 256 bytes")]
    Length,
    /// A segment is not an identifier.
    #[error("each segment must be an identifier: letters, digits and `_`, not starting with a digit")]
    Segment,
}

impl FieldPath {
    /// Takes `text` whole or refuses it.
    ///
    /// # Errors
    /// [`FieldPathError`] says which rule of the type's description is broken.
    pub fn parse(text: &str) -> Result<Self, FieldPathError> {
        if text.is_empty() || text.len() > 256 || text.split('.').count() > 16 {
            return Err(FieldPathError::Length);
        }
        let identifier = |segment: &str| {
            let mut bytes = segment.bytes();
            bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
                && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        if !text.split('.').all(identifier) {
            return Err(FieldPathError::Segment);
        }
        Ok(Self(text.into()))
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments, outermost first.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AIP-161: traversal by `.`, no wildcard outside a repeated field; T25: nothing that reads as "everything".
    #[test]
    fn a_field_path_is_taken_whole_or_refused() {
        use FieldPathError::{Length, Segment};
        let deep = ["a"; 17].join(".");
        let table = [
            ("email", Ok(()), "a leaf"),
            ("address.city", Ok(()), "nested"),
            ("_x1", Ok(()), "identifier characters"),
            ("", Err(Length), "the empty mask reads as everything"),
            ("*", Err(Segment), "everything by name"),
            ("address.*", Err(Segment), "everything below"),
            ("a..b", Err(Segment), "empty segment"),
            (".a", Err(Segment), "starts with a dot"),
            ("a.", Err(Segment), "ends with a dot"),
            ("1a", Err(Segment), "starts with a digit"),
            ("a b", Err(Segment), "space"),
            ("ema\u{0456}l", Err(Segment), "Cyrillic look-alike"),
            (deep.as_str(), Err(Length), "17 segments"),
        ];
        for (text, expected, why) in table {
            assert_eq!(FieldPath::parse(text).map(|_| ()), expected, "{text}: {why}");
        }
    }
}
