//! Servers under load: child processes, what the kernel charges them, and the bare one that sends stored answers back.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use gatepost::proto::v1;
use gatepost::proto::v1::decision_service_server::{DecisionService, DecisionServiceServer};
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use super::fixture::Fixture;
use super::{Failure, pem};

/// How long a server may take until it listens.
const PATIENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(50);

/// A server in a process of its own; ends when this is dropped.
pub struct ServerProcess {
    child: Child,
    port: u16,
}

impl ServerProcess {
    /// The real server over `fixture`, listening.
    pub async fn gatepost(fixture: &Fixture) -> Result<Self, Failure> {
        Self::start(&mut gatepost(fixture), fixture.port()).await
    }

    /// Starts `command` and waits until it takes connections on `port`.
    pub async fn start(command: &mut Command, port: u16) -> Result<Self, Failure> {
        let mut server = Self::spawn(command, port)?;
        // A large bundle is compiled first.
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            server.must_run()?;
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Ok(server);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err("the server does not listen".into())
    }

    /// Starts `command`, which is to listen on `port`.
    pub fn spawn(command: &mut Command, port: u16) -> Result<Self, Failure> {
        Ok(Self { child: command.spawn()?, port })
    }

    /// An error if it has ended.
    pub fn must_run(&mut self) -> Result<(), Failure> {
        self.child
            .try_wait()?
            .map_or(Ok(()), |status| Err(format!("the server ended before it served: {status}").into()))
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

/// The command that starts the real server over `fixture`.
pub fn gatepost(fixture: &Fixture) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    command.arg("serve").arg("--config").arg(fixture.config()).stdout(Stdio::null());
    command
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time that the kernel has charged to every thread of process `id`, in nanoseconds.
pub fn cpu_time(id: u32) -> Result<u64, Failure> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{id}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split_whitespace().next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(sum)
}

/// The bare server: tonic as it comes, on a multi-threaded runtime, mutual TLS 1.3, answers from the files in `folder`.
pub async fn echo(folder: &Path, port: u16) -> Result<(), Failure> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem(&folder.join("ca.pem"))?)?)?;
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build()?;
    let chain = vec![CertificateDer::from_pem_slice(&pem(&folder.join("server.pem"))?)?];
    let key = PrivateKeyDer::from_pem_slice(&pem(&folder.join("server.key"))?)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener)
        .then(move |tcp| {
            let acceptor = acceptor.clone();
            async move {
                let tcp = tcp?;
                tcp.set_nodelay(true)?;
                acceptor.accept(tcp).await
            }
        })
        .filter(Result::is_ok);
    let echo = Echo {
        one: v1::CheckResponse::decode(pem(&folder.join("check.answer"))?.as_slice())?,
        many: v1::BatchCheckResponse::decode(pem(&folder.join("batch.answer"))?.as_slice())?,
    };
    let service = DecisionServiceServer::new(echo);
    Ok(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await?)
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

    type CheckStreamStream = tokio_stream::Empty<Result<v1::CheckStreamResponse, Status>>;

    async fn check_stream(
        &self,
        _: Request<tonic::Streaming<v1::CheckStreamRequest>>,
    ) -> Result<Response<Self::CheckStreamStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        Ok(Response::new(v1::ExplainResponse { response: Some(self.one.clone()), ..v1::ExplainResponse::default() }))
    }
}
