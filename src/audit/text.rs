//! Text in a record: bounded in length, and without a single character that could hide, reorder or break a line.
//!
//! Knows JSON, and nothing of what the text means.

use std::borrow::Cow;
use std::io;

use data_encoding::HEXLOWER;
use serde::{Serialize, Serializer};

use super::scrub::scrub_id;
use crate::model::entity::is_hidden;

/// The longest text that stands whole in a record, in bytes.
pub(super) const MAX_TEXT: usize = 1024;

/// Text that somebody else chose. Past [`MAX_TEXT`] the rest is replaced by its SHA-256, so that two long texts can
/// still be told apart.
#[derive(Debug, Clone)]
pub(super) struct Text<'a>(Cow<'a, str>);

impl<'a> Text<'a> {
    /// `text`, cut if need be.
    pub(super) fn new(text: &'a str) -> Self {
        Self(cut(text))
    }

    /// Text that we put together ourselves, from parts that are bounded already.
    pub(super) fn composed(text: String) -> Self {
        Self(Cow::Owned(text))
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// `text` if it is short enough; else its beginning, a mark, and the SHA-256 of the rest. A token or key in it is taken
/// out, wherever somebody put one.
pub(super) fn cut(text: &str) -> Cow<'_, str> {
    match scrub_id(text) {
        Cow::Borrowed(text) => shortened(text),
        Cow::Owned(text) => Cow::Owned(shortened(&text).into_owned()),
    }
}

fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_TEXT {
        return Cow::Borrowed(text);
    }
    let (head, rest) = text.split_at(text.floor_char_boundary(MAX_TEXT));
    Cow::Owned(format!("{head}..sha256:{}", sha256_hex(rest.as_bytes())))
}

/// SHA-256 in lower-case hex.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Writes JSON on one line, with every hidden character and every noncharacter as `\uXXXX`. `serde_json` escapes what
/// JSON demands (below U+0020, quote, backslash); the rest of the danger is ours.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct OneLine;

impl serde_json::ser::Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        // Without an early end, so that it goes by many bytes at once.
        if fragment.bytes().fold(true, |plain, byte| plain & (0x20..0x7f).contains(&byte)) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0_u16; 2];
        let mut bytes = [0_u8; 4];
        for c in fragment.chars() {
            if is_unsafe(c) {
                for unit in c.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            } else {
                writer.write_all(c.encode_utf8(&mut bytes).as_bytes())?;
            }
        }
        Ok(())
    }
}

/// Whether a character could hide, reorder or break what it stands in.
pub(super) fn is_unsafe(c: char) -> bool {
    is_hidden(c) || is_noncharacter(c)
}

/// The 66 code points that are never characters. Source: Unicode 16, section 23.7.
fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{fdd0}'..='\u{fdef}') || (u32::from(c) & 0xfffe) == 0xfffe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> String {
        let mut out = Vec::new();
        text.serialize(&mut serde_json::Serializer::with_formatter(&mut out, OneLine)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_character_parses_back_and_the_dangerous_ones_are_escaped() {
        for code in 0..=0x10_ffff {
            let Some(c) = char::from_u32(code) else { continue };
            let text = format!("a{c}b");
            let json = written(&text);
            if is_hidden(c) || is_noncharacter(c) {
                assert!(json.is_ascii() && json.contains('\\'), "U+{code:04X} stands bare in {json:?}");
                assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text, "U+{code:04X}");
            } else if code % 97 == 0 || code < 0x3000 {
                assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text, "U+{code:04X}");
            }
        }
    }

    #[test]
    fn text_is_cut_one_byte_past_its_limit_and_never_inside_a_character() {
        let at_limit = "x".repeat(MAX_TEXT);
        assert_eq!(cut(&at_limit), at_limit);
        let past = format!("{at_limit}y");
        assert_eq!(cut(&past), format!("{at_limit}..sha256:{}", sha256_hex(b"y")));
        let wide = format!("{}\u{20ac}", "x".repeat(MAX_TEXT - 1));
        assert!(cut(&wide).starts_with(&format!("{}..sha256:", "x".repeat(MAX_TEXT - 1))));
        assert_ne!(cut(&format!("{past}1")), cut(&format!("{past}2")), "told apart by the hash");
    }
}
