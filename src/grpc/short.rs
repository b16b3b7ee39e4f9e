//! The generated service, but for `Check`: its message is handed on unread, so that a question which was answered before
//! is known by its bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tonic::server::{Grpc, NamedService, UnaryService};

use super::service::Service;
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
        if request.uri().path() != CHECK {
            return self.generated.call(request);
        }
        let check = Check(self.service.clone());
        let mut grpc = Grpc::new(UnreadCodec::default()).apply_max_message_size_config(Some(self.message_bytes), None);
        Box::pin(async move { Ok(grpc.unary(check, request).await) })
    }
}

/// The method that most calls are of.
const CHECK: &str = "/gatepost.v1.DecisionService/Check";

struct Check(Service);

impl UnaryService<Bytes> for Check {
    type Response = v1::CheckResponse;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<v1::CheckResponse>, tonic::Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.check_unread(request).await })
    }
}
