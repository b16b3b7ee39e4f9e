//! Connections to a server under load, over mutual TLS, as the storefront.

use std::sync::Arc;

use gatepost::proto::v1::decision_service_client::DecisionServiceClient;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::fixture::Fixture;
use super::{Failure, load, pem};

/// A new connection to whoever listens on this port.
pub async fn channel(fixture: &Fixture, port: u16) -> Result<Channel, Failure> {
    let tls = client_tls(fixture)?;
    let connector = tower::service_fn(move |_: Uri| {
        let tls = tokio_rustls::TlsConnector::from(Arc::clone(&tls));
        async move {
            let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
        }
    });
    Ok(Endpoint::from_shared(format!("https://localhost:{port}"))?.connect_with_connector(connector).await?)
}

/// What Gatepost answers, encoded, for the echo server to send back: one answer, and 100.
pub async fn first_answers(fixture: &Fixture) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let mut service = DecisionServiceClient::new(channel(fixture, fixture.port()).await?);
    let (topic, token) = (fixture.topic(), fixture.token());
    let one = service.check(topic.check(token, 0)).await?.into_inner();
    let many = service.batch_check(topic.batch(token, 0)).await?.into_inner();
    load::allowed(&one)?;
    Ok((one.encode_to_vec(), many.encode_to_vec()))
}

/// Whether the server is there and says that it serves.
pub async fn serves(fixture: &Fixture) -> bool {
    let Ok(channel) = channel(fixture, fixture.port()).await else { return false };
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    answer.is_ok_and(|answer| {
        let HealthCheckResponse { status } = answer.into_inner();
        status == i32::from(ServingStatus::Serving)
    })
}

fn client_tls(fixture: &Fixture) -> Result<Arc<rustls::ClientConfig>, Failure> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem(&fixture.client().ca)?)?)?;
    let chain = vec![CertificateDer::from_pem_slice(&pem(&fixture.client().certificate)?)?];
    let key = PrivateKeyDer::from_pem_slice(&pem(&fixture.client().private_key)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(tls))
}
