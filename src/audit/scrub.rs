//! A net behind the allow-list: what looks like a secret is not recorded, whoever put it where.
//!
//! By rule, not by place: the names of members that hold secrets, in whatever style they are written; and the shapes of
//! tokens, keys, credentials in addresses, and card numbers, wherever they stand. A net has holes; the list of what may be
//! recorded at all is what counts.
//!
//! Knows text; nothing of records.

use std::borrow::Cow;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use data_encoding::HEXLOWER;

/// Stands where something was.
pub(crate) const SCRUBBED: &str = "[scrubbed]";

/// Words that make a name one of a secret, wherever they stand in it.
const WORDS: [&str; 30] = [
    "password",
    "passwd",
    "passwort",
    "pwd",
    "passphrase",
    "passcode",
    "secret",
    "secrets",
    "token",
    "authorization",
    "authentication",
    "cookie",
    "cookies",
    "credential",
    "credentials",
    "jwt",
    "apikey",
    "otp",
    "cvv",
    "cvc",
    "cvv2",
    "ssn",
    "bsn",
    "sid",
    "jsessionid",
    "phpsessid",
    "sessionid",
    "privatekey",
    "pin",
    "signature",
];
/// Words that do so side by side.
const PAIRS: [(&str, &str); 18] = [
    ("api", "key"),
    ("private", "key"),
    ("access", "key"),
    ("secret", "key"),
    ("signing", "key"),
    ("encryption", "key"),
    ("session", "id"),
    ("session", "key"),
    ("national", "id"),
    ("national", "number"),
    ("social", "security"),
    ("tax", "id"),
    ("passport", "number"),
    ("card", "number"),
    ("set", "cookie"),
    ("x", "auth"),
    ("one", "time"),
    ("pass", "word"),
];
/// Last words that say a name is only about a secret.
const ABOUT: [&str; 14] = [
    "type",
    "count",
    "kind",
    "ttl",
    "length",
    "expires",
    "expiry",
    "expiration",
    "policy",
    "required",
    "changed",
    "issuer",
    "algorithm",
    "format",
];
/// Members that tell which field something is about.
const POINTING: [&str; 10] =
    ["path", "field", "name", "key", "param", "parameter", "loc", "property", "attribute", "header"];
/// What keys of well-known makers, and ours, start with; a word of at least 12 more characters follows.
const MAKERS: [&str; 14] = [
    "gpk_",
    "AKIA",
    "ASIA",
    "ghp_",
    "gho_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "sk_live_",
    "rk_live_",
    "sk-",
    "AIza",
];
/// Shorter text of letters and digits alone is no secret by its shape: a card has 13 digits, a maker's key more.
const SHORTEST: usize = 13;
/// Schemes of the `Authorization` header.
const SCHEMES: [&str; 5] = ["bearer ", "basic ", "dpop ", "digest ", "splunk "];

/// Whether a member of this name holds a secret.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let words = words(name);
    let about = words.last().is_some_and(|last| ABOUT.contains(&last.as_str())) && words.len() > 1;
    if about {
        return false;
    }
    words.iter().any(|word| WORDS.contains(&word.as_str()))
        || words.iter().zip(words.iter().skip(1)).any(|(one, two)| PAIRS.contains(&(one, two)))
        || PAIRS.iter().any(|(one, two)| words.iter().any(|word| word.strip_prefix(one) == Some(two)))
}

/// Whether the text of a member of this name tells which field its neighbours are about.
pub(crate) fn points(name: &str, text: &str) -> bool {
    POINTING.contains(&name.to_lowercase().as_str())
        && text.rsplit(['.', '/', '[', ']']).find(|part| !part.is_empty()).is_some_and(is_secret_name)
}

/// `sessionId`, `session_id`, `SESSION-ID`: `session`, `id`.
fn words(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut before = None::<char>;
    for c in name.chars().take(256) {
        let starts = c.is_uppercase() && before.is_some_and(|before| before.is_lowercase() || before.is_ascii_digit());
        if (!c.is_alphanumeric() || starts) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
        before = Some(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// The text of an id: tokens and keys are taken out, nothing else is looked at.
pub(crate) fn scrub_id(text: &str) -> Cow<'_, str> {
    // Every text of every record comes by here: one look at its bytes, before any search.
    let suspicious = text.as_bytes().windows(3).any(|three| matches!(three, b"eyJ" | b"---" | b"gpk"));
    if !suspicious {
        return Cow::Borrowed(text);
    }
    let text = pem(Cow::Borrowed(text));
    let text = jwts(text);
    makers(text, &["gpk_"])
}

/// Text that people or programs wrote: everything that looks like a secret is taken out.
pub(crate) fn scrub_text(text: &str) -> Cow<'_, str> {
    // Every rule looks for a sign or for more letters and digits than this.
    if text.len() < SHORTEST && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Cow::Borrowed(text);
    }
    by_every_rule(text)
}

fn by_every_rule(text: &str) -> Cow<'_, str> {
    let text = pem(Cow::Borrowed(text));
    let text = jwts(text);
    let text = schemes(text);
    let text = makers(text, &MAKERS);
    let text = addresses(text);
    let text = parameters(text);
    cards(text)
}

/// Whether a whole number could be a card's.
pub(crate) fn is_card(number: i64) -> bool {
    number > 0 && is_card_number(&number.to_string())
}

fn mark(secret: &str) -> String {
    let hash = digest(&SHA256, secret.as_bytes());
    let short = hash.as_ref().first_chunk::<8>().map(|short| HEXLOWER.encode(short)).unwrap_or_default();
    format!("[scrubbed:sha256:{short}]")
}

/// Replaces parts of a text: `find` gives the next one at or after a position, and what stands for it.
fn replaced<'a>(text: Cow<'a, str>, find: impl Fn(&str, usize) -> Option<(usize, usize, String)>) -> Cow<'a, str> {
    let mut out = String::new();
    let mut done = 0;
    while let Some((start, end, instead)) = find(&text, done) {
        out.push_str(text.get(done..start).unwrap_or_default());
        out.push_str(&instead);
        done = end.max(start + 1);
    }
    if done == 0 {
        return text;
    }
    out.push_str(text.get(done..).unwrap_or_default());
    Cow::Owned(out)
}

/// Private keys.
fn pem(text: Cow<'_, str>) -> Cow<'_, str> {
    replaced(text, |text, from| {
        let start = from + text.get(from..)?.find("-----BEGIN ")?;
        let rest = text.get(start..)?;
        let head = rest.find("PRIVATE KEY")?;
        let end = rest.get(head..)?.find("-----END").map_or(rest.len(), |at| {
            let after = head + at + "-----END".len();
            rest.get(after..).and_then(|tail| tail.find("-----")).map_or(rest.len(), |tail| after + tail + 5)
        });
        Some((start, start + end, SCRUBBED.to_owned()))
    })
}

/// JSON Web Tokens, signed or encrypted, whole or cut.
fn jwts(text: Cow<'_, str>) -> Cow<'_, str> {
    replaced(text, |text, mut from| {
        loop {
            let start = from + text.get(from..)?.find("eyJ")?;
            let rest = text.get(start..)?;
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.=".contains(c))).unwrap_or(rest.len());
            let token = rest.get(..end)?;
            let parts: Vec<&str> = token.split('.').collect();
            if parts.len() >= 2 && parts.iter().take(2).all(|part| part.len() >= 6) {
                return Some((start, start + end, mark(token)));
            }
            from = start + 3;
        }
    })
}

/// What follows `Bearer` and its like.
fn schemes(text: Cow<'_, str>) -> Cow<'_, str> {
    replaced(text, |text, from| {
        let lower = text.to_ascii_lowercase();
        SCHEMES
            .iter()
            .filter_map(|scheme| {
                let mut from = from;
                loop {
                    let at = from + lower.get(from..)?.find(scheme)?;
                    let start = at + scheme.len();
                    let rest = text.get(start..)?;
                    let end = rest.find(|c: char| c.is_whitespace() || "\"',;".contains(c)).unwrap_or(rest.len());
                    let secret = rest.get(..end)?;
                    let whole_word = at == 0 || text.get(..at)?.ends_with(|c: char| !c.is_alphanumeric());
                    if whole_word && is_credential(scheme, secret) {
                        return Some((start, start + end, mark(secret)));
                    }
                    from = start;
                }
            })
            .min()
    })
}

/// Words of prose follow such words too.
fn is_credential(scheme: &str, text: &str) -> bool {
    if text.starts_with("[scrubbed") {
        return false;
    }
    if scheme == "basic " {
        return base64::engine::general_purpose::STANDARD.decode(text).is_ok_and(|bytes| bytes.contains(&b':'));
    }
    let strange = text.chars().any(|c| c.is_ascii_digit() || "-_.=/+".contains(c));
    text.len() >= 20 || (text.len() >= 8 && strange)
}

/// Keys that say by their first letters what they are.
fn makers<'a>(text: Cow<'a, str>, makers: &[&str]) -> Cow<'a, str> {
    replaced(text, |text, from| {
        makers
            .iter()
            .filter_map(|maker| {
                let mut from = from;
                loop {
                    let start = from + text.get(from..)?.find(maker)?;
                    let rest = text.get(start..)?;
                    let end =
                        rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c))).unwrap_or(rest.len());
                    let alone = start == 0 || text.get(..start)?.ends_with(|c: char| !c.is_alphanumeric());
                    if alone && end >= maker.len() + 12 {
                        return Some((start, start + end, mark(rest.get(..end)?)));
                    }
                    from = start + maker.len();
                }
            })
            .min()
    })
}

/// The user and password of an address.
fn addresses(text: Cow<'_, str>) -> Cow<'_, str> {
    replaced(text, |text, mut from| {
        loop {
            let start = from + text.get(from..)?.find("://")? + 3;
            let rest = text.get(start..)?;
            let end = rest.find(|c: char| "/?#\"'<>".contains(c) || c.is_whitespace()).unwrap_or(rest.len());
            if let Some(at) = rest.get(..end)?.rfind('@') {
                return Some((start, start + at, SCRUBBED.to_owned()));
            }
            from = start;
        }
    })
}

/// The values of parameters with the name of a secret: `?token=..`, `&password=..`, `; sid=..`.
fn parameters(text: Cow<'_, str>) -> Cow<'_, str> {
    replaced(text, |text, mut from| {
        loop {
            let sign = from + text.get(from..)?.find('=')?;
            let before = text.get(..sign)?;
            let name = before.rsplit(|c: char| "?&;, \t\r\n\"'(){}".contains(c)).next().unwrap_or_default();
            let start = sign + 1;
            let rest = text.get(start..)?;
            let end = rest.find(|c: char| "&#;\"' \t\r\n,".contains(c)).unwrap_or(rest.len());
            let value = rest.get(..end)?;
            if end > 0 && value != SCRUBBED && !value.starts_with("[scrubbed") && is_secret_name(&unescaped(name)) {
                return Some((start, start + end, SCRUBBED.to_owned()));
            }
            from = start;
        }
    })
}

/// `%70assword` is a password too.
fn unescaped(name: &str) -> String {
    url::form_urlencoded::parse(name.as_bytes()).next().map_or_else(|| name.to_owned(), |(name, _)| name.into_owned())
}

/// Numbers of payment cards: 13 to 19 digits, with spaces or dashes between or without, whose check digit is right.
fn cards(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.bytes().filter(u8::is_ascii_digit).count() < 13 {
        return text;
    }
    replaced(text, |text, mut from| {
        loop {
            let start = from + text.get(from..)?.find(|c: char| c.is_ascii_digit())?;
            let rest = text.get(start..)?;
            let stop = rest.find(|c: char| !(c.is_ascii_digit() || c == ' ' || c == '-')).unwrap_or(rest.len());
            let run = rest.get(..stop)?.trim_end_matches([' ', '-']);
            let joined = start > 0 && text.get(..start)?.ends_with(|c: char| c.is_alphanumeric() || c == '.');
            if !joined && is_card_number(run) {
                return Some((start, start + run.len(), SCRUBBED.to_owned()));
            }
            from = start + run.len().max(1);
        }
    })
}

/// ISO/IEC 7812-1, annex B.
fn is_card_number(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    if !(13..=19).contains(&digits.len())
        || text.len() > 23
        || digits.iter().all(|digit| digit == digits.first().unwrap_or(&0))
    {
        return false;
    }
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, digit)| match (at % 2, digit * 2) {
            (0, _) => *digit,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl";

    #[test]
    fn a_name_is_a_secrets_in_whatever_style_and_not_by_its_letters_alone() {
        for name in [
            "password",
            "PASSWORD",
            "userPassword",
            "user_password",
            "X-Api-Key",
            "apiKey",
            "apikey",
            "api_key",
            "sessionId",
            "session-id",
            "SESSION_ID",
            "Set-Cookie",
            "national_id",
            "clientSecret",
            "access_token",
            "id_token",
            "BSN",
            "ssn",
            "private.key",
            "otp",
            "Authorization",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in [
            "passport_country",
            "compass",
            "tokenizer",
            "token_type",
            "tokens_used",
            "secretary",
            "pinned",
            "username",
            "id",
            "keyboard",
            "session",
            "cookie_policy",
            "",
            "order",
            "path",
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn what_looks_like_a_secret_is_taken_out_and_the_rest_stands() {
        let table: [(String, &str, &str); 15] = [
            (format!("could not verify {JWT} for alice"), "eyJ", "could not verify [scrubbed:sha256:"),
            (format!("Bearer {JWT}"), "c2lnb", "Bearer [scrubbed"),
            ("authorization: bearer abcdef12345".to_owned(), "abcdef12345", "authorization: bearer [scrubbed"),
            ("Basic Ym9iOmh1bnRlcjIh".to_owned(), "Ym9i", "Basic [scrubbed"),
            ("/reset?token=abc123secret&lang=en".to_owned(), "abc123secret", "/reset?token=[scrubbed]&lang=en"),
            ("https://bob:hunter2!@a.example/x".to_owned(), "hunter2", "https://[scrubbed]@a.example/x"),
            ("redis://:p@ss@h/0".to_owned(), "p@ss", "redis://[scrubbed]@h/0"),
            ("card 4111 1111 1111 1111 was used".to_owned(), "4111", "card [scrubbed] was used"),
            ("4111111111111111".to_owned(), "4111", "[scrubbed]"),
            ("sid=s3cr3t; HttpOnly".to_owned(), "s3cr3t", "sid=[scrubbed]; HttpOnly"),
            ("key AKIAIOSFODNN7EXAMPLE here".to_owned(), "IOSFODNN", "key [scrubbed:sha256:"),
            (
                "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY----- then".to_owned(),
                "MHcC",
                "[scrubbed] then",
            ),
            ("a=1&pass%77ord=x1&b=2".to_owned(), "x1", "a=1&pass%77ord=[scrubbed]&b=2"),
            (format!("{JWT}.{JWT}"), "eyJ", "[scrubbed"),
            ("-----BEGIN PRIVATE KEY----- cut off".to_owned(), "cut off", "[scrubbed]"),
        ];
        for (text, gone, shown) in &table {
            let scrubbed = scrub_text(text);
            assert!(!scrubbed.contains(gone) && scrubbed.starts_with(shown), "{text}: {scrubbed}");
            assert_eq!(scrub_text(&scrubbed), scrubbed, "once is enough");
        }
        for text in [
            "GET /api/orders/10",
            "4111111111111112",
            "basic information",
            "bearer of news",
            "https://a.example/x@y",
            "a=b&c=d",
            "order 1234567890123456 of 2026",
            "eyJust a word.",
            "0000000000000",
            "-----BEGIN CERTIFICATE-----",
        ] {
            assert_eq!(scrub_text(text), text);
        }
    }

    #[test]
    fn what_is_short_and_plain_is_what_every_rule_leaves_alone() {
        let mut dice = fastrand::Rng::with_seed(61);
        let parts =
            ["eyJ", "AKIA", "ASIA", "AIza", "basic", "bearer", "password", "token", "4111", "1111", "a", "Z", "0"];
        let (mut plain, cases) = (0, 100_000);
        for _ in 0..cases {
            let text: String = (0..dice.usize(..6)).map(|_| parts[dice.usize(..parts.len())]).collect();
            assert_eq!(scrub_text(&text), by_every_rule(&text), "{text}");
            plain += usize::from(text.len() < SHORTEST);
        }
        assert!(plain > cases / 4, "{plain}");
    }

    #[test]
    fn an_id_is_left_alone_unless_it_is_a_token_or_a_key() {
        for text in ["alice", "a=b&password=c", "https://u:p@h/", "4111111111111111", "Bearer x", "\u{202e}", ""] {
            assert_eq!(scrub_id(text), text);
        }
        for text in [JWT.to_owned(), format!("x/{JWT}"), "gpk_0123456789abcdef_0123456789".to_owned()] {
            assert!(scrub_id(&text).contains("[scrubbed:sha256:"), "{text}");
        }
    }
}
