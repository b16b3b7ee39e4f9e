//! The decision service over HTTP/2: what code made from the `.proto` would do, but messages are handed on unread, so that a
//! question which was answered before is known by its bytes.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Code, Status, Streaming};
use tower::service_fn;

use super::service::Service;
use super::stream;
use crate::proto::codec::{SliceCodec, UnreadCodec};
use crate::proto::v1::decision_service_server::SERVICE_NAME;

/// The decision service.
#[derive(Clone)]
pub struct Decisions {
    service: Service,
    message_bytes: usize,
}

impl Decisions {
    /// Over `service`; no message may be longer than so many bytes.
    #[must_use]
    pub fn new(service: Service, message_bytes: usize) -> Self {
        Self { service, message_bytes }
    }
}

impl NamedService for Decisions {
    const NAME: &'static str = SERVICE_NAME;
}

const CHECK: &str = "/gatepost.v1.DecisionService/Check";
const BATCH_CHECK: &str = "/gatepost.v1.DecisionService/BatchCheck";
const EXPLAIN: &str = "/gatepost.v1.DecisionService/Explain";

/// The name of the method at `path`, if it is one whose whole message is one question, or one batch of them.
pub(super) fn operation(path: &str) -> Option<&'static str> {
    match path {
        CHECK => Some("Check"),
        BATCH_CHECK => Some("BatchCheck"),
        EXPLAIN => Some("Explain"),
        _ => None,
    }
}

impl Decisions {
    /// Answers a call of one of its methods.
    pub(super) fn answer(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        let (service, most) = (&self.service, Some(self.message_bytes));
        match request.uri().path() {
            CHECK => Box::pin(async move {
                let check = service_fn(|request| service.check(request));
                let mut grpc = Grpc::new(UnreadCodec::default()).apply_max_message_size_config(most, None);
                grpc.unary(check, request).await
            }),
            BATCH_CHECK => Box::pin(async move {
                let batch = service_fn(|request| service.batch_check(request));
                let mut grpc = Grpc::new(UnreadCodec::default()).apply_max_message_size_config(most, None);
                grpc.unary(batch, request).await
            }),
            stream::PATH => Box::pin(async move {
                let mut grpc = Grpc::new(UnreadCodec::default()).apply_max_message_size_config(most, None);
                grpc.streaming(CheckStream(service.clone()), request).await
            }),
            EXPLAIN => Box::pin(async move {
                let explain = service_fn(|request| service.explain(request));
                let mut grpc = Grpc::new(SliceCodec::default()).apply_max_message_size_config(most, None);
                grpc.unary(explain, request).await
            }),
            _ => Box::pin(std::future::ready(no_such_method())),
        }
    }
}

/// As generated services say it.
fn no_such_method() -> Response<Body> {
    let mut response = Response::new(Body::default());
    let headers = response.headers_mut();
    headers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::Unimplemented as i32));
    headers.insert(header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    response
}

struct CheckStream(Service);

impl StreamingService<Bytes> for CheckStream {
    type Response = super::written::StreamWritten;
    type ResponseStream = stream::Answers;
    type Future = BoxFuture<'static, Result<tonic::Response<stream::Answers>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.check_stream(request).await })
    }
}
