//! What stands on the command line, or where it points to.

use std::io::Read as _;
use std::path::Path;

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::office::Failure;
use crate::clock::{SystemClock, unix_seconds};

/// An id from standard input, bytes.
const ID_BYTES: u64 = 4096;
/// A PEM file, bytes.
const PEM_BYTES: u64 = 1024 * 1024;

/// An instant, or a time from now.
pub(super) fn until(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(instant) = text.parse() {
        return Ok(instant);
    }
    let from_now: Option<jiff::SignedDuration> = text.parse().ok().filter(jiff::SignedDuration::is_positive);
    let now = i64::try_from(unix_seconds(SystemClock::shared().now())).ok();
    let instant = from_now
        .zip(now)
        .and_then(|(from_now, now)| jiff::Timestamp::from_second(now).ok()?.checked_add(from_now).ok());
    instant.ok_or_else(|| "must be an instant (2027-01-31T12:00:00Z) or a time from now (24h)".to_owned())
}

/// An instant.
pub(super) fn instant(text: &str) -> Result<jiff::Timestamp, String> {
    text.parse().map_err(|_| "must be an instant (2027-01-31T12:00:00Z)".to_owned())
}

/// So many, and at least one: the listener takes 0 for "as many as you like".
pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "must be a whole number from 1".to_owned())
}

/// The text itself, or what comes from standard input: ids need not show in the list of processes.
pub(super) fn given(text: &str) -> Result<String, Failure> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut read = String::new();
    let input = std::io::stdin().take(ID_BYTES).read_to_string(&mut read);
    input.map_err(|_| Failure::Usage("standard input is no text".to_owned()))?;
    Ok(read.trim_end_matches(['\r', '\n']).to_owned())
}

/// The fingerprint of a certificate, and when it expires.
pub(super) fn certificate(text: &str, until: Option<jiff::Timestamp>) -> Result<(String, jiff::Timestamp), Failure> {
    if let Some(sha256) = fingerprint(text) {
        let until = until.ok_or_else(|| {
            Failure::Usage("a fingerprint does not say when its certificate expires: add --until".to_owned())
        })?;
        return Ok((sha256, until));
    }
    let unusable = || Failure::Files(format!("`{text}` is neither a fingerprint nor a PEM file with a certificate"));
    let mut pem = Vec::new();
    let file = std::fs::File::open(Path::new(text)).map_err(|_| unusable())?;
    file.take(PEM_BYTES).read_to_end(&mut pem).map_err(|_| unusable())?;
    let der = CertificateDer::from_pem_slice(&pem).map_err(|_| unusable())?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| unusable())?;
    let expires = jiff::Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|_| unusable())?;
    let sha256 = HEXLOWER.encode(digest::digest(&digest::SHA256, &der).as_ref());
    Ok((sha256, until.unwrap_or(expires)))
}

/// 64 hex digits, as `openssl x509 -fingerprint -sha256` or our records write them.
fn fingerprint(text: &str) -> Option<String> {
    let bare = text.strip_prefix("sha256:").unwrap_or(text).replace(':', "").to_ascii_lowercase();
    (bare.len() == 64 && bare.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_however_it_is_written() {
        let plain = "ab".repeat(32);
        let coloned = ["AB"; 32].join(":");
        let table = [
            (plain.clone(), true, "as records have it"),
            (coloned, true, "as openssl has it"),
            (format!("sha256:{plain}"), true, "named"),
            (format!("{plain}0"), false, "too long"),
            ("orders.pem".to_owned(), false, "a file"),
        ];
        for (text, expected, why) in table {
            assert_eq!(fingerprint(&text), expected.then(|| plain.clone()), "{why}");
        }
    }

    #[test]
    fn an_end_is_an_instant_or_a_time_from_now() {
        assert!(until("2027-01-31T12:00:00Z").is_ok() && until("24h").is_ok());
        for text in ["", "tomorrow", "-24h", "0s", "2027-01-31"] {
            assert!(until(text).is_err(), "{text}");
        }
    }
}
