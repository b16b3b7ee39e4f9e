//! `gatepost bench echo`: a server that decides nothing, to compare with.
//!
//! It is what the transport alone takes: the same binary, threads, allocator, TLS and HTTP/2, and the same messages back
//! and forth. What Gatepost takes beyond that, it takes for deciding. `benches/echo.rs` starts it.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use clap::Args;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prost::Message;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt as _;

use crate::cli::{complain, exit, runtime};
use crate::grpc::server::Shards;
use crate::proto::v1;
use crate::proto::v1::decision_service_server::{DecisionService, DecisionServiceServer};

/// Serve stored answers and decide nothing
#[derive(Debug, Args)]
#[command(after_long_help = "\
The folder holds ca.pem (the authority of clients), server.pem, server.key, and the answers to send: check.answer and \
batch.answer, a CheckResponse and a BatchCheckResponse as protobuf encodes them.")]
pub struct EchoArgs {
    /// The folder with certificates and answers
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
    /// The port, on 127.0.0.1
    #[arg(long, value_name = "PORT")]
    pub port: u16,
}

/// Runs the command: until it is killed.
///
/// # Errors
/// When no runtime can be started.
pub fn run(args: &EchoArgs) -> io::Result<u8> {
    match runtime()?.block_on(serve(&args.folder, args.port)) {
        Ok(()) => Ok(0),
        Err(error) => {
            complain(&format!("{}: {error}", args.folder.display()));
            Ok(exit::CONFIGURATION)
        }
    }
}

async fn serve(folder: &Path, port: u16) -> Result<(), Box<dyn std::error::Error>> {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(identity(folder)?));
    let echo = Echo {
        one: v1::CheckResponse::decode(std::fs::read(folder.join("check.answer"))?.as_slice())?,
        many: v1::BatchCheckResponse::decode(std::fs::read(folder.join("batch.answer"))?.as_slice())?,
    };
    let service = DecisionServiceServer::new(echo);
    let shards = Shards::one_per_core()?;
    let dealer = shards.dealer();
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    for number in 0_u64.. {
        let stream = listener.accept().await?.0.into_std()?;
        let (acceptor, service) = (acceptor.clone(), service.clone());
        dealer.next(number).spawn(async move {
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            let _ = stream.set_nodelay(true);
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service
                .map_request(|request: http::Request<hyper::body::Incoming>| request.map(tonic::body::Body::new));
            // However it ends, there is nobody to tell.
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                .await;
        });
    }
    Ok(())
}

fn identity(folder: &Path) -> Result<rustls::ServerConfig, Box<dyn std::error::Error>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem"))?)?;
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build()?;
    let chain = vec![CertificateDer::from_pem_file(folder.join("server.pem"))?];
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key"))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

/// Says the same to everybody.
struct Echo {
    one: v1::CheckResponse,
    many: v1::BatchCheckResponse,
}

#[tonic::async_trait]
impl DecisionService for Echo {
    async fn check(&self, _: Request<v1::CheckRequest>) -> Result<Response<v1::CheckResponse>, Status> {
        Ok(Response::new(self.one.clone()))
    }

    async fn batch_check(&self, _: Request<v1::BatchCheckRequest>) -> Result<Response<v1::BatchCheckResponse>, Status> {
        Ok(Response::new(self.many.clone()))
    }

    type CheckStreamStream = Pin<Box<dyn Stream<Item = Result<v1::CheckStreamResponse, Status>> + Send>>;

    async fn check_stream(
        &self,
        request: Request<Streaming<v1::CheckStreamRequest>>,
    ) -> Result<Response<Self::CheckStreamStream>, Status> {
        use v1::check_stream_request::Message as Sent;
        use v1::check_stream_response::Result as Said;
        let one = self.one.clone();
        let answers = request.into_inner().filter_map(move |sent| match sent {
            Ok(v1::CheckStreamRequest { message: Some(Sent::Ask(ask)) }) => {
                let result = Some(Said::Response(one.clone()));
                Some(Ok(v1::CheckStreamResponse { id: ask.id, result }))
            }
            Ok(_) => None,
            Err(status) => Some(Err(status)),
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        Ok(Response::new(v1::ExplainResponse { response: Some(self.one.clone()), ..v1::ExplainResponse::default() }))
    }
}
