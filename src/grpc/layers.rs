//! What holds for every call, whatever the method: a panic becomes INTERNAL, and a call that never reached the service
//! (no such method, a message that can't be read or is too long) is put on record like any other refusal.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use tonic::Code;
use tower::Service;

use super::service::call;
use super::status;
use crate::pdp::{DecideError, Pdp};
use crate::tls::peer::Peer;

/// Makes sure that no call ends without a record.
#[derive(Clone)]
pub struct Recorded<S> {
    inner: S,
    pdp: Arc<Pdp>,
}

impl<S> Recorded<S> {
    /// Around `inner`.
    pub fn new(inner: S, pdp: Arc<Pdp>) -> Self {
        Self { inner, pdp }
    }
}

/// Services that answer no question: nothing to record when they do their work.
const NO_QUESTIONS: [&str; 3] = ["/grpc.health.v1.Health/", "/grpc.reflection.v1.", "/grpc.reflection.v1alpha."];

impl<S> Service<Request<Body>> for Recorded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let pdp = Arc::clone(&self.pdp);
        Box::pin(async move {
            let exempt = NO_QUESTIONS.iter().any(|prefix| request.uri().path().starts_with(prefix));
            let headers = request.headers().clone();
            let peer = request.extensions().get::<Arc<Peer>>().cloned();
            let response = inner.call(request).await?;
            let Some(error) = unrecorded(&response).filter(|_| !exempt) else { return Ok(response) };
            let call = call("unknown", &headers, peer, &tracing::Span::none(), &pdp.limits);
            let refusal = pdp.record_refused(&call, error).await;
            Ok(status::to_status(&refusal).into_http())
        })
    }
}

/// Why a call ended that our service never saw. Ours carry error details; those that tonic and the router make do not.
fn unrecorded(response: &Response<Body>) -> Option<DecideError> {
    if response.extensions().get::<Panicked>().is_some() {
        return Some(DecideError::Panicked);
    }
    if response.status() != StatusCode::OK {
        return Some(DecideError::NoSuchMethod);
    }
    let headers = response.headers();
    let code = headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))?;
    if code == Code::Ok || headers.contains_key("grpc-status-details-bin") {
        return None;
    }
    Some(match code {
        Code::Unimplemented => DecideError::NoSuchMethod,
        Code::Internal | Code::OutOfRange | Code::InvalidArgument | Code::ResourceExhausted => DecideError::Unreadable,
        Code::DeadlineExceeded | Code::Cancelled => DecideError::Deadline,
        Code::Ok
        | Code::Unknown
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => DecideError::Panicked,
    })
}

/// Marks the answer to a call that panicked: by its code alone it would look like a message that can't be read.
#[derive(Debug, Clone, Copy)]
struct Panicked;

/// A panic is one call's end, not everybody's: INTERNAL, without a word of what it said.
#[derive(Debug, Clone, Copy)]
pub struct PanicToInternal;

impl tower_http::catch_panic::ResponseForPanic for PanicToInternal {
    type ResponseBody = Body;

    fn response_for_panic(&mut self, _: Box<dyn std::any::Any + Send + 'static>) -> Response<Body> {
        tracing::error!("a call panicked");
        let mut response = tonic::Status::internal("no decision could be made").into_http();
        response.extensions_mut().insert(Panicked);
        response
    }
}

#[cfg(test)]
mod tests {
    use tower_http::catch_panic::ResponseForPanic as _;

    use super::*;

    #[test]
    fn a_call_that_our_service_never_ended_is_told_apart_by_whose_fault_it_was() {
        let table = [
            (PanicToInternal.response_for_panic(Box::new("")), Some("INTERNAL"), "a panic is our fault"),
            (tonic::Status::internal("").into_http(), Some("UNREADABLE_MESSAGE"), "a message that tonic can't read"),
            (tonic::Status::unimplemented("").into_http(), Some("NO_SUCH_METHOD"), "no such method"),
            (tonic::Status::new(Code::Ok, "").into_http(), None, "an answer, recorded already"),
        ];
        for (response, expected, why) in table {
            assert_eq!(unrecorded(&response).map(|error| error.reason()), expected, "{why}");
        }
    }
}
