//! The TLS handshake of one connection: in time, a few at once, and with a word for how it failed.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::{CertificateError, Error, PeerIncompatible};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::tls::server::ServerIdentity;

/// How long a handshake keeps its place among those at once. The cost is at its beginning; later it mostly waits for
/// the client, and clients that never answer must not keep everybody else out.
const PLACE_KEPT: Duration = Duration::from_secs(1);

/// Shakes hands over `stream` within `limit`, waiting for a place included. The client's greeting is read before a
/// place is taken: whoever sends nothing takes none.
pub(super) async fn shake<IO>(
    stream: IO,
    identity: &Arc<ServerIdentity>,
    places: &Semaphore,
    limit: Duration,
) -> Result<TlsStream<IO>, &'static str>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let shaking = async {
        let greeting = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let place = places.acquire().await.map_err(io::Error::other)?;
        let mut rest = pin!(greeting.into_stream(identity.current()));
        match timeout(PLACE_KEPT, rest.as_mut()).await {
            Ok(shaken) => shaken,
            Err(_) => {
                drop(place);
                rest.await
            }
        }
    };
    match timeout(limit, shaking).await {
        Ok(shaken) => shaken.map_err(|error| reason(&error)),
        Err(_) => Err("TIMEOUT"),
    }
}

fn reason(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => tls_reason(error),
        None => "CLOSED",
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library's enums are open; what is new to us has a general word"
)]
fn tls_reason(error: &Error) -> &'static str {
    use CertificateError as C;
    use PeerIncompatible as P;
    match error {
        Error::NoCertificatesPresented => "NO_CERTIFICATE",
        Error::InvalidCertificate(certificate) => match certificate {
            C::UnknownIssuer => "UNKNOWN_ISSUER",
            C::Expired | C::ExpiredContext { .. } => "EXPIRED",
            C::NotValidYet | C::NotValidYetContext { .. } => "NOT_YET_VALID",
            C::InvalidPurpose | C::InvalidPurposeContext { .. } => "WRONG_PURPOSE",
            C::Revoked => "REVOKED",
            C::UnknownRevocationStatus | C::ExpiredRevocationList | C::ExpiredRevocationListContext { .. } => {
                "REVOCATION_UNKNOWN"
            }
            _ => "BAD_CERTIFICATE",
        },
        Error::InvalidCertRevocationList(_) => "REVOCATION_UNKNOWN",
        Error::PeerIncompatible(
            P::ServerTlsVersionIsDisabledByOurConfig
            | P::SupportedVersionsExtensionRequired
            | P::Tls12NotOffered
            | P::Tls12NotOfferedOrEnabled
            | P::ServerDoesNotSupportTls12Or13,
        ) => "VERSION",
        Error::PeerIncompatible(_) => "INCOMPATIBLE",
        Error::NoApplicationProtocol => "ALPN",
        Error::AlertReceived(_) => "CLIENT_ALERT",
        Error::FailedToGetCurrentTime | Error::FailedToGetRandomBytes | Error::General(_) => "INTERNAL",
        _ => "PROTOCOL",
    }
}
