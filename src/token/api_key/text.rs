//! The text of an API key: `gpk_<id>_<secret><check>`, 93 characters.
//!
//! The id (64 bits) is public: records and lists name it. The secret has 256 random bits. The last eight digits are the
//! beginning of the SHA-256 of everything before them, so that a typo, or a secret scanner that found 93 characters, is
//! told without asking anybody. All of it is lower-case hex: one spelling, and a double click selects the whole.

use std::fmt;

use aws_lc_rs::rand;
use zeroize::{Zeroize as _, Zeroizing};

use crate::secret::{ExposeSecret as _, SecretString};
use crate::token::sha256;

const PREFIX: &str = "gpk_";
/// Hex digits of each part.
const ID: usize = 16;
const SECRET: usize = 64;
const CHECK: usize = 8;

/// A well-formed key. It proves nothing yet.
pub struct KeyText<'t> {
    whole: &'t str,
    id: &'t str,
    secret: &'t str,
}

/// No randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

impl<'t> KeyText<'t> {
    /// Takes a key apart; nothing when it is none, or its check digits are not right.
    #[must_use]
    pub fn parse(whole: &'t str) -> Option<Self> {
        if whole.len() != PREFIX.len() + ID + 1 + SECRET + CHECK {
            return None;
        }
        let (id, rest) = whole.strip_prefix(PREFIX)?.split_once('_')?;
        let (secret, check) = rest.split_at_checked(SECRET)?;
        let digits = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let fits = id.len() == ID && digits(id) && digits(secret) && digits(check);
        (fits && check == check_digits(whole.strip_suffix(check)?)).then_some(Self { whole, id, secret })
    }

    /// The public part.
    #[must_use]
    pub fn id(&self) -> &'t str {
        self.id
    }

    /// What is stored in the secret's place. A plain hash will do: nobody guesses 256 random bits, so there is nothing
    /// that salt or slowness could add, and a slow hash would be a gift to whoever floods us.
    #[must_use]
    pub fn secret_sha256(&self) -> [u8; 32] {
        sha256(self.secret.as_bytes())
    }

    /// SHA-256 of the whole key.
    pub(super) fn digest(&self) -> [u8; 32] {
        sha256(self.whole.as_bytes())
    }
}

impl fmt::Debug for KeyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyText").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A new key, to be shown once.
///
/// # Errors
/// When the system gives no random bytes.
pub fn new_key() -> Result<SecretString, NoRandomness> {
    let (mut id, mut secret) = ([0; ID / 2], Zeroizing::new([0; SECRET / 2]));
    rand::fill(&mut id).map_err(|_| NoRandomness)?;
    rand::fill(&mut secret[..]).map_err(|_| NoRandomness)?;
    let digits = Zeroizing::new(hex(&secret[..]));
    // Room for all of it at once: a text that grows leaves copies behind.
    let mut text = String::with_capacity(PREFIX.len() + ID + 1 + SECRET + CHECK);
    text.push_str(PREFIX);
    text.push_str(&hex(&id));
    text.push('_');
    text.push_str(&digits);
    let check = check_digits(&text);
    text.push_str(&check);
    let key = SecretString::from(text.as_str());
    text.zeroize();
    Ok(key)
}

fn check_digits(text: &str) -> String {
    hex(sha256(text.as_bytes()).get(..CHECK / 2).unwrap_or_default())
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0')));
    }
    text
}

/// The id of a key that was just made.
#[must_use]
pub fn id_of(key: &SecretString) -> Option<&str> {
    KeyText::parse(key.expose_secret()).map(|key| key.id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str, range: impl std::slice::SliceIndex<str, Output = str>) -> &str {
        text.get(range).unwrap()
    }

    #[test]
    fn a_key_has_one_spelling() {
        let key = new_key().unwrap();
        let good = key.expose_secret();
        let other = new_key().unwrap();
        let swapped = format!("{}{}", part(good, ..21), part(other.expose_secret(), 21..));
        let table = [
            (good.to_owned(), true, "the everyday shape"),
            (good.to_uppercase(), false, "upper case"),
            (format!("{good}0"), false, "longer"),
            (part(good, ..92).to_owned(), false, "shorter"),
            (format!(" {good}"), false, "white space"),
            (good.replace("gpk_", "gpx_"), false, "another kind of key"),
            (swapped, false, "the id of one, the secret of another"),
            (format!("{}_{}", part(good, ..19), part(good, 20..)), false, "a shorter id"),
            ("\u{e9}".repeat(46) + "x", false, "not ASCII"),
            (String::new(), false, "nothing"),
        ];
        for (text, expected, why) in table {
            assert_eq!(KeyText::parse(&text).is_some(), expected, "{why}");
        }
        assert_eq!(id_of(&key).map(str::len), Some(16));
    }

    /// Any single typo is told by the check digits: 93 places, three replacements each.
    #[test]
    fn a_typo_is_told_without_looking_anything_up() {
        let key = new_key().unwrap();
        let good = key.expose_secret();
        for at in 0..good.len() {
            for other in ["0", "a", "_"] {
                if part(good, at..=at) != other {
                    let changed = format!("{}{other}{}", part(good, ..at), part(good, at + 1..));
                    assert!(KeyText::parse(&changed).is_none(), "place {at}");
                }
            }
        }
    }

    #[test]
    fn keys_do_not_repeat_nor_print() {
        let (one, other) = (new_key().unwrap(), new_key().unwrap());
        assert_ne!(one.expose_secret(), other.expose_secret());
        let parsed = KeyText::parse(one.expose_secret()).unwrap();
        assert!(!format!("{one:?} {parsed:?}").contains(parsed.secret));
    }
}
