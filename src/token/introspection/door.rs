//! The way to one authorization server: the endpoint, and the proof of who we are.
//!
//! The secret or the key lives in files that are renewed; a [`Door`] is made from one state of them and replaced whole.

use std::io::Read as _;
use std::path::Path;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::super::error::SetupProblem;
use super::super::fetch::{ClientFiles, FetchError, Fetcher};
use crate::config::{ClientAuthentication, IntrospectionConfig, Limits};
use crate::secret::{ExposeSecret as _, SecretString};

/// A secret, a certificate chain or a key, bytes; more is none of them.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// One endpoint with one state of our credentials.
#[derive(Debug)]
pub(in crate::token) struct Door {
    fetcher: Fetcher,
    /// `Basic ..`; none when the certificate speaks for us.
    authorization: Option<SecretString>,
    /// Sent along where there is no `Authorization`: with mutual TLS the server has to be told whose certificate it
    /// should see (RFC 8705 section 2).
    client_id: Option<String>,
    /// SHA-256 of the credential files.
    fingerprint: Vec<u8>,
}

impl Door {
    pub(in crate::token) fn open(config: &IntrospectionConfig, limits: &Limits) -> Result<Self, SetupProblem> {
        let fingerprint = fingerprint(&config.authentication)?;
        let showing = |identity| {
            Fetcher::showing(
                identity,
                &config.url,
                config.ca.as_deref(),
                config.allow_private_addresses,
                limits.introspection_bytes,
                limits.introspection_timeout,
            )
        };
        match &config.authentication {
            ClientAuthentication::SecretFile(path) => Ok(Self {
                fetcher: showing(None)?,
                authorization: Some(basic(&config.client_id, &secret(path)?)),
                client_id: None,
                fingerprint,
            }),
            ClientAuthentication::Certificate { certificate, private_key } => Ok(Self {
                fetcher: showing(Some(ClientFiles { certificate, private_key }))?,
                authorization: None,
                client_id: Some(config.client_id.clone()),
                fingerprint,
            }),
        }
    }

    /// The same endpoint with the credentials that the files hold now; nothing when they are the same.
    pub(super) fn renewed(&self, config: &IntrospectionConfig, limits: &Limits) -> Result<Option<Self>, SetupProblem> {
        if fingerprint(&config.authentication)? == self.fingerprint {
            return Ok(None);
        }
        Self::open(config, limits).map(Some)
    }

    /// Asks about `token` (RFC 7662 section 2.1).
    pub(in crate::token) async fn ask(&self, token: &str) -> Result<Vec<u8>, FetchError> {
        let authorization = match &self.authorization {
            None => None,
            Some(text) => {
                // Made of base64 alone, so it always fits a header.
                let mut value =
                    http::HeaderValue::from_str(text.expose_secret()).map_err(|_| FetchError::Connection)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        self.fetcher.ask(self.form(token), authorization).await
    }

    fn form(&self, token: &str) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("token", token).append_pair("token_type_hint", "access_token");
        if let Some(client_id) = &self.client_id {
            form.append_pair("client_id", client_id);
        }
        form.finish()
    }
}

/// RFC 6749 section 2.3.1: both are form-urlencoded before they are joined, which many forget; without it a secret with
/// a colon or a percent sign is another secret.
fn basic(client_id: &str, secret: &str) -> SecretString {
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let joined = Zeroizing::new(format!("{}:{}", encoded(client_id), encoded(secret)));
    SecretString::from(format!("Basic {}", STANDARD.encode(joined.as_bytes())))
}

/// The secret, without one line end.
fn secret(path: &Path) -> Result<Zeroizing<String>, SetupProblem> {
    let bytes = read(path).map_err(|()| SetupProblem::ClientSecret)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| SetupProblem::ClientSecret)?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(SetupProblem::ClientSecret);
    }
    Ok(Zeroizing::new(line.to_owned()))
}

fn fingerprint(authentication: &ClientAuthentication) -> Result<Vec<u8>, SetupProblem> {
    let (paths, problem) = match authentication {
        ClientAuthentication::SecretFile(path) => (vec![path], SetupProblem::ClientSecret),
        ClientAuthentication::Certificate { certificate, private_key } => {
            (vec![certificate, private_key], SetupProblem::ClientCertificate)
        }
    };
    let mut context = digest::Context::new(&digest::SHA256);
    for path in paths {
        let bytes = read(path).map_err(|()| problem)?;
        context.update(&bytes.len().to_le_bytes());
        context.update(&bytes);
    }
    Ok(context.finish().as_ref().to_vec())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, ()> {
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_FILE_BYTES).unwrap_or(0) + 1));
    let file = std::fs::File::open(path).map_err(|_| ())?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|_| ())?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= MAX_FILE_BYTES) { Ok(bytes) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6749 section 2.3.1 and appendix B.
    #[test]
    fn a_client_secret_is_form_encoded_before_it_is_joined() {
        let table = [
            ("orders", "s3cret", "orders:s3cret", "the everyday shape"),
            ("a:b", "c:d", "a%3Ab:c%3Ad", "a colon parts the two and nothing else"),
            ("https://a.test/x", "p ss+%", "https%3A%2F%2Fa.test%2Fx:p+ss%2B%25", "spaces, plus and percent"),
            ("a", "\u{20ac}", "a:%E2%82%AC", "UTF-8"),
        ];
        for (id, secret, expected, why) in table {
            let made = basic(id, secret);
            assert_eq!(made.expose_secret(), format!("Basic {}", STANDARD.encode(expected)), "{why}");
        }
    }

    #[test]
    fn a_secret_is_a_file_without_its_line_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let table = [
            ("s3cret", Some("s3cret"), "the everyday shape"),
            ("s3cret\n", Some("s3cret"), "a line end"),
            ("s3cret\r\n", Some("s3cret"), "from Windows"),
            ("s3cret\n\n", Some("s3cret\n"), "one line end is not part of it, a second is"),
            ("\n", None, "nothing else"),
            ("", None, "nothing"),
        ];
        for (content, expected, why) in table {
            std::fs::write(file.path(), content).unwrap();
            assert_eq!(secret(file.path()).ok().as_deref().map(String::as_str), expected, "{why}");
        }
        std::fs::write(file.path(), vec![b'x'; 64 * 1024 + 1]).unwrap();
        assert!(secret(file.path()).is_err(), "endless");
    }
    /// Secrets and certificates are renewed beside a running server; a broken one changes nothing.
    #[test]
    fn a_renewed_secret_is_taken_and_a_broken_one_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first\n").unwrap();
        let config = IntrospectionConfig {
            url: "https://as.test/introspect".parse().unwrap(),
            client_id: "us".to_owned(),
            authentication: ClientAuthentication::SecretFile(file.path().to_owned()),
            ca: None,
            allow_private_addresses: false,
            token_prefix: String::new(),
            max_cache: std::time::Duration::from_secs(30),
            require_audience: true,
        };
        let limits = Limits::default();
        let said = |door: &Door| door.authorization.as_ref().map(|text| text.expose_secret().to_owned());
        let door = Door::open(&config, &limits).unwrap();
        assert_eq!(said(&door), Some(basic("us", "first").expose_secret().to_owned()));
        assert!(door.renewed(&config, &limits).unwrap().is_none(), "nothing is new");

        std::fs::write(file.path(), "second\n").unwrap();
        let door = door.renewed(&config, &limits).unwrap().unwrap();
        assert_eq!(said(&door), Some(basic("us", "second").expose_secret().to_owned()));
        assert!(!format!("{door:?}").contains("c2Vjb25k"), "it does not print");

        std::fs::write(file.path(), "\n").unwrap();
        assert_eq!(door.renewed(&config, &limits).err(), Some(SetupProblem::ClientSecret), "empty");
        std::fs::remove_file(file.path()).unwrap();
        assert_eq!(door.renewed(&config, &limits).err(), Some(SetupProblem::ClientSecret), "gone");
    }
}
