//! The generated service, but for `Check`, `BatchCheck` and `CheckStream`: their messages are handed on unread, so that a question
//! which was answered before is known by its bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tonic::Streaming;
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};

use super::service::Service;
use super::stream;
use crate::proto::codec::UnreadCodec;
use crate::proto::v1;
use crate::proto::v1::decision_service_server::DecisionServiceServer;

/// The decision service.
#[derive(Clone)]
pub struct Decisions {
    service: Service,
    generated: DecisionServiceServer<Service>,
    message_bytes: usize,
}

impl Decisions {
    /// Over `service`; no message may be longer than so many bytes.
    #[must_use]
    pub fn new(service: Service, message_bytes: usize) -> Self {
        let generated = DecisionServiceServer::new(service.clone()).max_decoding_message_size(message_bytes);
        Self { service, generated, message_bytes }
    }
}

impl NamedService for Decisions {
    const NAME: &'static str = <DecisionServiceServer<Service> as NamedService>::NAME;
}

impl tower::Service<Request<tonic::body::Body>> for Decisions {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        <DecisionServiceServer<Service> as tower::Service<Request<tonic::body::Body>>>::poll_ready(
            &mut self.generated,
            context,
        )
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let most = Some(self.message_bytes);
        match request.uri().path() {
            CHECK => {
                let check = Check(self.service.clone());
                let mut grpc = Grpc::new(UnreadCodec::default()).apply_max_message_size_config(most, None);
                Box::pin(async move { Ok(grpc.unary(check, request).await) })
            }
            BATCH_CHECK => {
                let batch = BatchCheck(self.service.clone());
                let mut grpc = Grpc::new(UnreadCodec::default()).apply_max_message_size_config(most, None);
                Box::pin(async move { Ok(grpc.unary(batch, request).await) })
            }
            stream::PATH => {
                let stream = CheckStream(self.service.clone());
                let mut grpc = Grpc::new(UnreadCodec::default()).apply_max_message_size_config(most, None);
                Box::pin(async move { Ok(grpc.streaming(stream, request).await) })
            }
            _ => self.generated.call(request),
        }
    }
}

const CHECK: &str = "/gatepost.v1.DecisionService/Check";
const BATCH_CHECK: &str = "/gatepost.v1.DecisionService/BatchCheck";

struct Check(Service);

impl UnaryService<Bytes> for Check {
    type Response = v1::CheckResponse;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<v1::CheckResponse>, tonic::Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.check_unread(request).await })
    }
}

struct BatchCheck(Service);

impl UnaryService<Bytes> for BatchCheck {
    type Response = v1::BatchCheckResponse;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<v1::BatchCheckResponse>, tonic::Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.batch_unread(request).await })
    }
}

struct CheckStream(Service);

impl StreamingService<Bytes> for CheckStream {
    type Response = v1::CheckStreamResponse;
    type ResponseStream = stream::Answers;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<stream::Answers>, tonic::Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.stream_unread(request).await })
    }
}
