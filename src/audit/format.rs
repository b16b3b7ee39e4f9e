//! How records stand in the spool: JSON lines in segment files, each line with its number and its link in the chain.
//!
//! ```text
//! {"gatepost_spool":1,"chain":"..","segment":7,"first_sequence":123,"prev_hash":"..","opened":"..","boot":"..","mode":"..","version":".."}
//! {"metadata":{"sequence":123, .. ,"unmapped":{"gatepost":{ .. ,"prev_hash":"..","hash":".."}}}
//! ```
//!
//! A line is its own frame: it starts with its number, ends with its hash, and is at most so long. `hash` is the SHA-256
//! of the line's bytes before `,"hash":`; `prev_hash`, among them, is the hash of the record before. So lines can be
//! copied, shipped and checked anywhere, byte for byte, with nothing but SHA-256; and nobody who changes, removes, moves
//! or inserts one can do so without changing all that follow, which a signed checkpoint then shows.
//!
//! Numbers count from 1 over the life of a spool, across restarts, without a gap.
//!
//! Knows bytes; nothing of files, and nothing of what a record says.

use std::fmt;

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

/// What a line starts with, before its number.
pub(crate) const HEAD: &[u8] = br#"{"metadata":{"sequence":"#;
/// What follows the record's own members and precedes the chain's.
const PREV: &[u8] = br#","prev_hash":""#;
const HASH: &[u8] = br#"","hash":""#;
/// What a line ends with, after its hash.
const END: &[u8] = br#""}}}"#;
/// What the record's own members end with: the ends of `gatepost`, `unmapped` and the record.
const CLOSING: &[u8] = b"}}}";
/// Digits of the largest number.
const NUMBER: usize = 20;
const HEX: usize = 64;
/// What numbering and chaining adds to a record at most.
pub(crate) const OVERHEAD: usize = HEAD.len() + NUMBER + PREV.len() + HEX + HASH.len() + HEX + END.len();

/// The version of this format, in the first line of every segment.
pub(crate) const VERSION: u32 = 1;

/// No record has a larger number, and no segment: at a million records a second it lasts for 290 000 years.
pub(crate) const LAST: u64 = i64::MAX as u64;

/// A SHA-256 in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What the first record of a spool follows.
    pub const GENESIS: Self = Self([0; 32]);

    fn of(bytes: &[u8]) -> Self {
        let mut hash = Self::GENESIS;
        for (to, from) in hash.0.iter_mut().zip(digest::digest(&digest::SHA256, bytes).as_ref()) {
            *to = *from;
        }
        hash
    }

    /// Reads 64 lower-case hex digits.
    #[must_use]
    pub fn parse(hex: &[u8]) -> Option<Self> {
        let nibble = |digit: &u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        if hex.len() != HEX {
            return None;
        }
        let mut hash = Self::GENESIS;
        for (to, pair) in hash.0.iter_mut().zip(hex.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *to = (nibble(high)? << 4) | nibble(low)?;
        }
        Some(hash)
    }

    fn put(self, out: &mut Vec<u8>) {
        let mut hex = [0; HEX];
        HEXLOWER.encode_mut(&self.0, &mut hex);
        out.extend_from_slice(&hex);
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(text.as_bytes()).ok_or_else(|| serde::de::Error::custom("must be 64 hex digits"))
    }
}

/// A record without its number, its link and its line break.
#[derive(Debug)]
pub(crate) struct Body {
    /// What follows [`HEAD`] and the number, without [`CLOSING`].
    rest: Vec<u8>,
}

impl Body {
    /// From a whole JSON object, whose number is the single digit `0`.
    ///
    /// `None` when it has not the form that every record has.
    pub(crate) fn of(mut json: Vec<u8>) -> Option<Self> {
        if !json.starts_with(HEAD) || !json.ends_with(CLOSING) {
            return None;
        }
        json.truncate(json.len() - CLOSING.len());
        json.drain(..=HEAD.len());
        Some(Self { rest: json })
    }

    /// What it is without its number and closing: all that [`from_rest`](Self::from_rest) needs.
    pub(crate) fn into_rest(self) -> Vec<u8> {
        self.rest
    }

    /// From what [`into_rest`](Self::into_rest) gave, with members changed and none lost.
    pub(crate) fn from_rest(rest: Vec<u8>) -> Self {
        Self { rest }
    }

    /// The longest that the line can get, without the line break.
    pub(crate) fn bytes(&self) -> usize {
        self.rest.len() + OVERHEAD
    }

    /// Puts the line, with its line break, at the end of `out`, and gives its hash.
    pub(crate) fn seal(&self, sequence: u64, prev: Hash, out: &mut Vec<u8>) -> Hash {
        let start = out.len();
        out.extend_from_slice(HEAD);
        out.extend_from_slice(sequence.to_string().as_bytes());
        out.extend_from_slice(&self.rest);
        out.extend_from_slice(PREV);
        prev.put(out);
        // The quote that ends `prev_hash` is hashed with it.
        out.push(b'"');
        let hash = Hash::of(out.get(start..).unwrap_or_default());
        out.extend_from_slice(HASH.get(1..).unwrap_or_default());
        hash.put(out);
        out.extend_from_slice(END);
        out.push(b'\n');
        hash
    }
}

/// A line that is whole: its hash is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) sequence: u64,
    pub(crate) prev: Hash,
    pub(crate) hash: Hash,
}

/// What is wrong with a line by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    /// It does not start as a record does.
    #[error("it does not start with `{{\"metadata\":{{\"sequence\":` and a number")]
    Head,
    /// It does not end as a record does.
    #[error("it does not end with `prev_hash` and `hash`")]
    Tail,
    /// Its bytes are not those that were hashed.
    #[error("its bytes are not those that `hash` was made of")]
    Hash,
}

/// Reads a line, without its line break, and checks its hash.
///
/// # Errors
/// [`Damage`]
pub(crate) fn unseal(line: &[u8]) -> Result<Sealed, Damage> {
    let sequence = sequence(line).ok_or(Damage::Head)?;
    let before_end = line.strip_suffix(END).ok_or(Damage::Tail)?;
    let (rest, hash) = last(before_end, HEX)?;
    let rest = rest.strip_suffix(HASH.get(1..).unwrap_or_default()).ok_or(Damage::Tail)?;
    let (before, prev) = last(rest.strip_suffix(b"\"").ok_or(Damage::Tail)?, HEX)?;
    if !before.ends_with(PREV) {
        return Err(Damage::Tail);
    }
    let (prev, hash) = (Hash::parse(prev).ok_or(Damage::Tail)?, Hash::parse(hash).ok_or(Damage::Tail)?);
    if Hash::of(rest) != hash {
        return Err(Damage::Hash);
    }
    Ok(Sealed { sequence, prev, hash })
}

/// The number of a line, whatever the rest of it is.
pub(crate) fn sequence(line: &[u8]) -> Option<u64> {
    let after = line.strip_prefix(HEAD)?;
    let digits = after.iter().take(NUMBER + 1).take_while(|byte| byte.is_ascii_digit()).count();
    let text = std::str::from_utf8(after.get(..digits)?).ok()?;
    // One way to write each number: no sign, no leading zero.
    text.parse().ok().filter(|number: &u64| (1..=LAST).contains(number) && number.to_string() == text)
}

fn last(bytes: &[u8], count: usize) -> Result<(&[u8], &[u8]), Damage> {
    bytes.len().checked_sub(count).and_then(|at| bytes.split_at_checked(at)).ok_or(Damage::Tail)
}

/// The first line of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// [`VERSION`]
    pub(crate) gatepost_spool: u32,
    /// Names the spool for its whole life.
    pub(crate) chain: String,
    /// The segment's number, as in its name; counts from 1.
    pub(crate) segment: u64,
    /// The number of the record that comes first here. What an earlier segment has from there on was never acknowledged
    /// there, and does not count.
    pub(crate) first_sequence: u64,
    /// The hash of the record before it.
    pub(crate) prev_hash: Hash,
    /// RFC 3339, UTC.
    pub(crate) opened: String,
    /// Names the run of the process that wrote it.
    pub(crate) boot: String,
    /// How well records were kept: the deployment's `audit.mode`.
    pub(crate) mode: String,
    /// Of the Gatepost that wrote it.
    pub(crate) version: String,
}

/// What is wrong with the first line of a segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderDamage {
    /// It is none.
    #[error("its first line is not that of a segment")]
    Foreign,
    /// Another version wrote it.
    #[error("it has version {0} of the format, and this Gatepost reads {VERSION}")]
    Version(u32),
}

/// What precedes the check of a header, and what follows it.
const CHECK: &[u8] = br#","check":""#;
const CHECK_END: &[u8] = br#""}"#;

impl Header {
    /// What every header starts with.
    pub(crate) const START: &'static [u8] = br#"{"gatepost_spool":"#;
    /// More than any header has.
    pub(crate) const MAX_BYTES: usize = 1024;

    /// The line, with its line break. It ends with `check`, the SHA-256 of everything before that member: a place where
    /// counting starts must not be misread. Every version of the format has it.
    ///
    /// # Errors
    /// None that this struct brings about.
    pub(crate) fn line(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = serde_json::to_vec(self)?;
        line.pop();
        let check = Hash::of(&line);
        line.extend_from_slice(CHECK);
        check.put(&mut line);
        line.extend_from_slice(CHECK_END);
        line.push(b'\n');
        Ok(line)
    }

    /// Whether the line is as it was written; `None`: it has no check.
    fn is_whole(line: &[u8]) -> Option<bool> {
        let (before, check) = last(line.strip_suffix(CHECK_END)?, HEX).ok()?;
        Some(Hash::parse(check) == Some(Hash::of(before.strip_suffix(CHECK)?)))
    }

    /// Reads it from a line without its line break.
    ///
    /// # Errors
    /// [`HeaderDamage`]
    pub(crate) fn parse(line: &[u8]) -> Result<Self, HeaderDamage> {
        #[derive(Deserialize)]
        struct Versioned {
            gatepost_spool: u32,
        }
        if line.len() > Self::MAX_BYTES {
            return Err(HeaderDamage::Foreign);
        }
        let whole = Self::is_whole(line);
        let versioned: Versioned = serde_json::from_slice(line).map_err(|_| HeaderDamage::Foreign)?;
        // A number that a damaged line happens to have is no version.
        if versioned.gatepost_spool != VERSION && whole != Some(false) {
            return Err(HeaderDamage::Version(versioned.gatepost_spool));
        }
        if whole != Some(true) {
            return Err(HeaderDamage::Foreign);
        }
        let header: Self = serde_json::from_slice(line).map_err(|_| HeaderDamage::Foreign)?;
        // Anything else was not written by us, and would be counted on from.
        let counts = (1..=LAST).contains(&header.first_sequence) && (1..=LAST).contains(&header.segment);
        if counts { Ok(header) } else { Err(HeaderDamage::Foreign) }
    }
}

/// `segment-000000000007.jsonl`
pub(crate) fn segment_name(segment: u64) -> String {
    format!("segment-{segment:012}.jsonl")
}

/// The number in a segment's name; `None` for any other name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix("segment-")?.strip_suffix(".jsonl")?.parse().ok()?;
    (number <= LAST && segment_name(number) == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Body {
        let json =
            format!(r#"{{"metadata":{{"sequence":0,"uid":"u"}},"unmapped":{{"gatepost":{{"text":{text:?}}}}}}}"#);
        Body::of(json.into_bytes()).unwrap()
    }

    #[test]
    fn a_sealed_line_is_json_that_reads_back_and_follows_the_one_before() {
        let mut out = Vec::new();
        let first = body("one").seal(1, Hash::GENESIS, &mut out);
        let second = body("two").seal(2, first, &mut out);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let json: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(json["metadata"]["sequence"], 2);
        assert_eq!(json["unmapped"]["gatepost"]["prev_hash"], first.to_string());
        assert_eq!(json["unmapped"]["gatepost"]["hash"], second.to_string());
        assert_eq!(unseal(lines[0].as_bytes()), Ok(Sealed { sequence: 1, prev: Hash::GENESIS, hash: first }));
        assert_eq!(unseal(lines[1].as_bytes()), Ok(Sealed { sequence: 2, prev: first, hash: second }));
        assert!(lines[1].len() <= body("two").bytes());
    }

    #[test]
    fn no_byte_of_a_line_can_be_changed_removed_or_added() {
        let mut line = Vec::new();
        let hash = body("one").seal(41, Hash::GENESIS, &mut line);
        line.pop();
        let whole = unseal(&line);
        assert_eq!(whole.map(|sealed| sealed.hash), Ok(hash));
        let mut tried = 0;
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.clone();
                changed[at] ^= 1 << bit;
                assert_ne!(unseal(&changed), whole, "bit {bit} of byte {at}");
                tried += 1;
            }
            let mut shorter = line.clone();
            shorter.remove(at);
            assert!(unseal(&shorter).is_err(), "byte {at} removed");
            let mut longer = line.clone();
            longer.insert(at, b'0');
            assert!(unseal(&longer).is_err(), "a byte before {at}");
        }
        assert_eq!(tried, 8 * line.len());
    }

    #[test]
    fn a_number_is_written_in_one_way() {
        let table = [
            (r#"{"metadata":{"sequence":7,"#, Some(7), "plain"),
            (r#"{"metadata":{"sequence":9223372036854775807}"#, Some(LAST), "the largest"),
            (r#"{"metadata":{"sequence":9223372036854775808}"#, None, "one more"),
            (r#"{"metadata":{"sequence":07,"#, None, "a leading zero"),
            (r#"{"metadata":{"sequence":0,"#, None, "nothing has number 0"),
            (r#"{"metadata":{"sequence":-1,"#, None, "a sign"),
            (r#"{"metadata": {"sequence":7,"#, None, "a space"),
            ("", None, "nothing"),
        ];
        for (line, expected, why) in table {
            assert_eq!(sequence(line.as_bytes()), expected, "{why}");
        }
    }

    #[test]
    fn a_segment_tells_its_version_before_anything_else() {
        let header = Header {
            gatepost_spool: VERSION,
            chain: "c".into(),
            segment: 7,
            first_sequence: 123,
            prev_hash: Hash::of(b"x"),
            opened: "2026-01-01T00:00:00Z".into(),
            boot: "b".into(),
            mode: "durable".into(),
            version: "0.1.0".into(),
        };
        let mut line = header.line().unwrap();
        assert!(line.starts_with(Header::START) && line.pop() == Some(b'\n'));
        assert_eq!(Header::parse(&line), Ok(header.clone()));
        assert_eq!(Header::parse(br#"{"gatepost_spool":2,"anything":1}"#), Err(HeaderDamage::Version(2)));
        // No bit can be changed without being noticed, and none makes it another version's.
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.clone();
                changed[at] ^= 1 << bit;
                assert_eq!(Header::parse(&changed), Err(HeaderDamage::Foreign), "bit {bit} of byte {at}");
            }
        }
        let start = |first_sequence: u64, segment: u64| {
            let mut line = Header { first_sequence, segment, ..header.clone() }.line().unwrap();
            line.pop();
            Header::parse(&line)
        };
        assert!(start(LAST, LAST).is_ok());
        for (first, segment) in [(0, 1), (1, 0), (LAST + 1, 1), (1, LAST + 1)] {
            assert_eq!(start(first, segment), Err(HeaderDamage::Foreign), "{first}, {segment}");
        }
        for garbage in [&b""[..], b"{}", b"\0\0\0\0", br#"{"gatepost_spool":1}"#, br#"{"metadata":{"sequence":1"#] {
            assert_eq!(Header::parse(garbage), Err(HeaderDamage::Foreign));
        }
    }

    #[test]
    fn a_segment_has_one_name() {
        assert_eq!(segment_name(7), "segment-000000000007.jsonl");
        let table = [
            ("segment-000000000007.jsonl", Some(7)),
            ("segment-1000000000000.jsonl", Some(1_000_000_000_000)),
            ("segment-9223372036854775807.jsonl", Some(LAST)),
            ("segment-9223372036854775808.jsonl", None),
            ("segment-18446744073709551615.jsonl", None),
            ("segment-7.jsonl", None),
            ("segment-000000000007.jsonl.bak", None),
            ("segment-+00000000007.jsonl", None),
            ("cursor.json", None),
        ];
        for (name, expected) in table {
            assert_eq!(segment_number(name), expected, "{name}");
        }
    }
}
