//! A connection to one broker: TCP or TLS, SASL PLAIN where asked for, then one question after the other.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::{Encodable, HeaderVersion, StrBytes};
use rustls_pki_types::ServerName;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::name_of;
use super::wire::{Fields, Malformed, produce_versions, request, sasl_authenticate, sasl_handshake};
use crate::audit::sinks::syslog::Duplex;
use crate::audit::sinks::tls::client;
use crate::config::KafkaTarget;

/// An answer is read no further. Room is made as it comes.
const ANSWER_BYTES: u64 = 4 << 20;
/// The versions of Produce whose answers we read.
const PRODUCE: (i16, i16) = (3, 7);

/// Why a broker is no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the connection to a broker: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("the broker's answer is longer than any")]
    TooLong,
    #[error("a request could not be put together")]
    Unwritable,
    #[error("the broker speaks no version of Produce from 3 to 7")]
    Version,
    #[error("the broker answers {}", name_of(*.0))]
    Refused(i16),
    #[error("no partition of the topic has a leader that can be reached")]
    Leaderless,
}

pub(super) struct Connection {
    stream: Box<dyn Duplex>,
    correlation: i32,
    /// What this broker and we both speak.
    pub(super) produce_version: i16,
}

impl Connection {
    /// Connects, agrees on versions, and says who we are.
    pub(super) async fn open(settings: &KafkaTarget, host: &str, port: u16) -> Result<Self, Broken> {
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Duplex> = match &settings.tls {
            None => Box::new(tcp),
            Some(tls) => {
                let config = client(tls).map_err(io::Error::other)?;
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                Box::new(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?)
            }
        };
        let mut connection = Self { stream, correlation: 0, produce_version: PRODUCE.1 };
        let versions = produce_versions(connection.ask(ApiKey::ApiVersions, 0, &ApiVersionsRequest::default()).await?)?;
        let (lowest, highest) = versions.ok_or(Broken::Version)?;
        connection.produce_version = highest.min(PRODUCE.1);
        if connection.produce_version < lowest.max(PRODUCE.0) {
            return Err(Broken::Version);
        }
        if let Some((user, password)) = &settings.sasl {
            connection.authenticate(user, password).await?;
        }
        Ok(connection)
    }

    /// RFC 4616: nobody to act for, the user, the password.
    async fn authenticate(&mut self, user: &str, password: &SecretString) -> Result<(), Broken> {
        let plain = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str("PLAIN"));
        accepted(sasl_handshake(self.ask(ApiKey::SaslHandshake, 1, &plain).await?)?)?;
        let words = Zeroizing::new(format!("\0{user}\0{}", password.expose_secret()));
        let proof = SaslAuthenticateRequest::default().with_auth_bytes(Bytes::copy_from_slice(words.as_bytes()));
        accepted(sasl_authenticate(self.ask(ApiKey::SaslAuthenticate, 0, &proof).await?)?)
    }

    /// Asks, and waits for the answer to that.
    pub(super) async fn ask<R: Encodable + HeaderVersion>(
        &mut self,
        key: ApiKey,
        version: i16,
        body: &R,
    ) -> Result<Fields, Broken> {
        self.correlation = self.correlation.wrapping_add(1);
        let question = request(key, self.correlation, version, body).ok_or(Broken::Unwritable)?;
        self.stream.write_all(&question).await?;
        self.stream.flush().await?;
        let length = self.stream.read_i32().await?;
        let length = u64::try_from(length).map_err(|_| Malformed)?;
        if length > ANSWER_BYTES {
            return Err(Broken::TooLong);
        }
        let mut answer = Vec::new();
        if (&mut self.stream).take(length).read_to_end(&mut answer).await? as u64 != length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(Fields::of(answer.into(), self.correlation)?)
    }
}

pub(super) fn accepted(error: i16) -> Result<(), Broken> {
    if error == 0 { Ok(()) } else { Err(Broken::Refused(error)) }
}
