//! A SPIFFE Workload API agent: the real protocol over a real Unix socket, saying what the test tells it to. Messages and
//! numbers are those of workload.proto in the SPIFFE standards.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::server::{NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};

use super::authority::Issued;

#[derive(Clone, PartialEq, prost::Message)]
pub struct X509SvidRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<X509Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "3")]
    pub federated_bundles: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct X509Svid {
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    pub hint: String,
}

/// One identity with the authorities of its trust domain, and federated ones by trust domain.
pub fn set(id: &str, issued: &Issued, bundle: Vec<u8>, federated: &[(&str, Vec<u8>)]) -> X509SvidResponse {
    let svid = X509Svid {
        spiffe_id: id.to_owned(),
        x509_svid: issued.der.clone(),
        x509_svid_key: issued.key_der.clone(),
        bundle,
        hint: String::new(),
    };
    let federated_bundles = federated.iter().map(|(domain, bundle)| ((*domain).to_owned(), bundle.clone())).collect();
    X509SvidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles }
}

/// An agent that runs. Its end is sudden: every stream breaks.
pub struct Agent {
    says: watch::Sender<X509SvidResponse>,
    runtime: Option<Runtime>,
}

impl Agent {
    pub fn start(socket: &Path, says: X509SvidResponse) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let says = watch::Sender::new(says);
        let door = Door(says.clone());
        let socket: PathBuf = socket.to_owned();
        // Bound when this returns.
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(socket).unwrap()
        };
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(door)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { says, runtime: Some(runtime) }
    }

    pub fn say(&self, says: X509SvidResponse) {
        self.says.send_replace(says);
    }

    pub fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct Door(watch::Sender<X509SvidResponse>);

impl NamedService for Door {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tower::Service<http::Request<Body>> for Door {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let door = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/SpiffeWorkloadAPI/FetchX509SVID" {
                return Ok(Status::unimplemented("").into_http());
            }
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::default());
            Ok(grpc.server_streaming(door, request).await)
        })
    }
}

impl ServerStreamingService<X509SvidRequest> for Door {
    type Response = X509SvidResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<X509SvidResponse, Status>> + Send>>;
    type Future = Answer<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<X509SvidRequest>) -> Self::Future {
        // Workload Endpoint section 3: what does not carry it was sent here by somebody else's doing.
        let meant = request.metadata().get("workload.spiffe.io").is_some_and(|value| value == "true");
        let says = self.0.subscribe();
        Box::pin(async move {
            if !meant {
                return Err(Status::invalid_argument("security header missing"));
            }
            let stream: Self::ResponseStream = Box::pin(WatchStream::new(says).map(Ok));
            Ok(Response::new(stream))
        })
    }
}
