//! Single values: times, sizes, counts, names, files; each checked by one rule, each refusal noted by its key.
//!
//! A refusal never repeats the value where that could be a secret put in the wrong place.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::shape::shown;
use super::tree::{Node, Step};
use super::{ConfigProblem, Origin};
use crate::config::raw::{RawDuration, RawSize};
use crate::model::entity::{EntityType, is_hidden};

/// What was found so far.
#[derive(Default)]
pub(super) struct Findings {
    pub problems: Vec<ConfigProblem>,
    /// Keys about which enough was said.
    spoilt: Vec<String>,
}

impl Findings {
    /// A value that does not fit its key at all.
    pub(super) fn misfit(&mut self, path: &[Step], at: Option<Origin>, message: String, help: Option<String>) {
        self.problems.push(ConfigProblem { key: shown(path), at, message, help });
        self.spoil(path);
    }

    /// Nothing more shall be said about `path` and what is under it.
    pub(super) fn spoil(&mut self, path: &[Step]) {
        self.spoilt.push(shown(path));
    }

    fn is_spoilt(&self, key: &str) -> bool {
        self.spoilt.iter().any(|spoilt| {
            key.strip_prefix(spoilt.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }
}

/// Checks values one by one and notes what is wrong. Each check gives `None` when it noted something.
pub(in crate::config) struct Checks<'a> {
    findings: &'a mut Findings,
    tree: &'a Node,
    folder: &'a Path,
}

impl<'a> Checks<'a> {
    /// `tree` tells where a key is written; relative paths start at `folder`.
    pub(super) fn new(findings: &'a mut Findings, tree: &'a Node, folder: &'a Path) -> Self {
        Self { findings, tree, folder }
    }

    /// Notes a problem.
    pub(super) fn refuse(&mut self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        if self.findings.is_spoilt(key) {
            return;
        }
        let (message, help): (String, String) = (message.into(), help.into());
        let at = self.tree.origin_of(key);
        self.findings.problems.push(ConfigProblem {
            key: key.to_owned(),
            at,
            message,
            help: (!help.is_empty()).then_some(help),
        });
    }

    /// The value, or a problem when there is none.
    pub(super) fn required<'v>(&mut self, key: &str, value: Option<&'v String>, help: &str) -> Option<&'v str> {
        match value.map(String::as_str) {
            Some(text) if !text.is_empty() => Some(text),
            Some(_) => {
                self.refuse(key, "must not be empty", help);
                None
            }
            None => {
                self.refuse(key, "is missing", help);
                None
            }
        }
    }

    pub(super) fn address(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            let help = "for this machine alone `127.0.0.1:8443`, for everyone `0.0.0.0:8443` or `[::]:8443`";
            self.refuse(key, "must be an IP address and a port", help);
        }
        address
    }

    pub(in crate::config) fn duration(
        &mut self,
        key: &str,
        raw: &RawDuration,
        least: &str,
        most: &str,
    ) -> Option<Duration> {
        let Some(value) = parse_duration(&raw.0) else {
            self.refuse(key, "must be a time", "write a whole number and a unit: `200ms`, `30s`, `15m`, `24h`");
            return None;
        };
        let bounds = parse_duration(least).zip(parse_duration(most));
        self.within(key, value, bounds, &format!("{least} to {most}"))
    }

    pub(in crate::config) fn size<T: TryFrom<u64>>(
        &mut self,
        key: &str,
        raw: &RawSize,
        least: &str,
        most: &str,
    ) -> Option<T> {
        let value = match raw {
            RawSize::Bytes(bytes) => Some(*bytes),
            RawSize::Text(text) => parse_size(text),
        };
        let Some(value) = value else {
            self.refuse(key, "must be a size", "write a whole number and a unit: `4096B`, `256KiB`, `16MiB`, `1GiB`");
            return None;
        };
        let bounds = parse_size(least).zip(parse_size(most));
        self.within(key, value, bounds, &format!("{least} to {most}")).and_then(|value| T::try_from(value).ok())
    }

    pub(in crate::config) fn count<T: TryFrom<u64>>(
        &mut self,
        key: &str,
        value: &u64,
        least: u64,
        most: u64,
    ) -> Option<T> {
        let bounds = Some((least, most));
        self.within(key, *value, bounds, &format!("{least} to {most}")).and_then(|value| T::try_from(value).ok())
    }

    fn within<T: PartialOrd + Copy>(&mut self, key: &str, value: T, bounds: Option<(T, T)>, range: &str) -> Option<T> {
        if bounds.is_some_and(|(least, most)| (least..=most).contains(&value)) {
            return Some(value);
        }
        self.refuse(key, format!("must be {range}"), "");
        None
    }

    /// `left` must not be more than `right`.
    pub(super) fn ordered<T: PartialOrd>(&mut self, left: (&str, T), right: (&str, T)) {
        if left.1 > right.1 {
            self.refuse(left.0, format!("must not be more than `{}`", right.0), "lower the one or raise the other");
        }
    }

    pub(super) fn entity_type(&mut self, key: &str, text: &str) -> Option<EntityType> {
        match EntityType::parse(text) {
            Ok(entity_type) => Some(entity_type),
            Err(error) => {
                self.refuse(key, error.to_string(), "name an entity type of the schema: `Order`, `Shop::Order`");
                None
            }
        }
    }

    /// Text of 1 to `most` bytes that shows what it is.
    pub(super) fn plain_text(&mut self, key: &str, text: &str, most: usize) -> Option<String> {
        let message = if text.is_empty() {
            "must not be empty".to_owned()
        } else if text.len() > most {
            format!("must have at most {most} bytes")
        } else if text.chars().any(is_hidden) || text.trim() != text {
            "must not hold hidden characters, nor start or end with a space".to_owned()
        } else {
            return Some(text.to_owned());
        };
        self.refuse(key, message, "");
        None
    }

    /// A claim's name, with dots into objects.
    pub(super) fn claim(&mut self, key: &str, text: &str) -> Option<String> {
        let claim = self.plain_text(key, text, 256)?;
        if claim.split('.').any(str::is_empty) {
            self.refuse(key, "must be a claim's name, with single dots into objects", "`sub`, `realm_access.roles`");
            return None;
        }
        Some(claim)
    }

    /// Each of `texts` once, through `check`, which gets its key.
    pub(super) fn each<T: PartialEq>(
        &mut self,
        key: &str,
        texts: &[String],
        mut check: impl FnMut(&mut Self, &str, &str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut values = Vec::with_capacity(texts.len());
        let mut whole = true;
        for (index, text) in texts.iter().enumerate() {
            let item = format!("{key}[{index}]");
            match check(self, &item, text) {
                Some(value) if values.contains(&value) => {
                    self.refuse(&item, "is listed twice", "keep one of them");
                    whole = false;
                }
                Some(value) => values.push(value),
                None => whole = false,
            }
        }
        whole.then_some(values)
    }

    /// A path from the file: relative ones start at the file's own folder.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        self.folder.join(text)
    }

    /// A file that is there and can be read. Its content is somebody else's to judge.
    pub(super) fn readable_file(&mut self, key: &str, text: &str, what: &str) -> Option<PathBuf> {
        let path = self.path(text);
        // Asked before it is opened: opening a pipe would wait for somebody to write.
        let regular = fs::metadata(&path).map(|metadata| metadata.is_file());
        match regular.and_then(|regular| if regular { File::open(&path).map(|_| true) } else { Ok(false) }) {
            Ok(true) => Some(path),
            Ok(false) => {
                self.refuse(key, "is not a file", format!("name {what}"));
                None
            }
            Err(error) => {
                self.refuse(key, io_message(error.kind()), io_help(error.kind(), &format!("name {what}")));
                None
            }
        }
    }

    /// A folder that is there and can be listed.
    pub(super) fn readable_folder(&mut self, key: &str, path: &Path, help: &str) -> Option<PathBuf> {
        match fs::read_dir(path) {
            Ok(_) => Some(path.to_owned()),
            Err(error) => {
                self.refuse(key, io_message(error.kind()), io_help(error.kind(), help));
                None
            }
        }
    }

    /// The whole text of a small file.
    pub(super) fn small_file(&mut self, key: &str, text: &str, most: u64, what: &str) -> Option<Vec<u8>> {
        let path = self.readable_file(key, text, what)?;
        let mut bytes = Vec::new();
        match File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)) {
            Ok(_) if u64::try_from(bytes.len()).is_ok_and(|length| length <= most) => Some(bytes),
            Ok(_) => {
                self.refuse(key, format!("must have at most {most} bytes"), "");
                None
            }
            Err(error) => {
                self.refuse(key, io_message(error.kind()), format!("name {what}"));
                None
            }
        }
    }
}

/// What to do when `wanted` is not to be had.
fn io_help(kind: ErrorKind, wanted: &str) -> String {
    if kind == ErrorKind::PermissionDenied {
        return "let this user read it and enter the folders above it (`chown`, `chmod`)".to_owned();
    }
    format!("{wanted}; {RELATIVE}")
}

const RELATIVE: &str = "a relative path starts at the folder of the configuration file";

/// Fixed words, so that a key pasted where its path belongs is not repeated.
pub(super) fn io_message(kind: ErrorKind) -> &'static str {
    let table = [
        (ErrorKind::NotFound, "does not exist"),
        (ErrorKind::PermissionDenied, "may not be read by this user"),
        (ErrorKind::NotADirectory, "is not a folder"),
        (ErrorKind::IsADirectory, "is a folder"),
    ];
    table.into_iter().find(|(known, _)| *known == kind).map_or("can't be read", |(_, message)| message)
}

/// `200ms`, `30s`, `15m`, `24h`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// The shortest text that reads as `duration`, to the millisecond.
pub(in crate::config) fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [(3600 * 1000, "h"), (60 * 1000, "m"), (1000, "s")];
    let unit = units.into_iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{millis}ms"), |(unit, name)| format!("{}{name}", millis / unit))
}

/// `4096`, `4096B`, `256KiB`, `16MiB`, `1GiB`.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let bytes = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(bytes)
}

/// The shortest text that reads as `bytes`.
pub(in crate::config) fn size_text(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let (number, unit) = text.split_at_checked(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))?;
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_whole_number_and_one_unit() {
        let table = [
            ("200ms", Some(200), "milliseconds"),
            ("30s", Some(30_000), "seconds"),
            ("15m", Some(900_000), "minutes, not months"),
            ("24h", Some(86_400_000), "hours"),
            ("0s", Some(0), "nothing, with a unit"),
            ("0", None, "no unit"),
            ("30", None, "seconds or milliseconds?"),
            ("1.5s", None, "not whole"),
            ("1m30s", None, "two units"),
            ("30 s", None, "space"),
            ("-1s", None, "backwards"),
            ("+1s", None, "sign"),
            ("1d", None, "days have no fixed length"),
            ("", None, "nothing"),
            ("s", None, "no number"),
            ("18446744073709551615h", None, "past what fits"),
            ("٣s", None, "digits that are not 0 to 9"),
        ];
        for (text, millis, why) in table {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text}: {why}");
        }
    }

    #[test]
    fn a_size_is_a_whole_number_of_bytes_or_of_a_binary_unit() {
        let table = [
            ("4096", Some(4096), "bytes"),
            ("1B", Some(1), "bytes, said so"),
            ("256KiB", Some(262_144), "kibibytes"),
            ("16MiB", Some(16_777_216), "mebibytes"),
            ("1GiB", Some(1_073_741_824), "gibibytes"),
            ("1KB", None, "1000 or 1024?"),
            ("1k", None, "of what?"),
            ("1.5MiB", None, "not whole"),
            ("18446744073709551615GiB", None, "past what fits"),
            ("", None, "nothing"),
        ];
        for (text, bytes, why) in table {
            assert_eq!(parse_size(text), bytes, "{text}: {why}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for millis in [0, 1, 200, 1000, 1500, 60_000, 90_000, 3_600_000, 86_400_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(&duration_text(duration)), Some(duration));
        }
        for bytes in [0, 1, 1023, 1024, 1536, 1 << 20, 1 << 30] {
            assert_eq!(parse_size(&size_text(bytes)), Some(bytes));
        }
    }
}
