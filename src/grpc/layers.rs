//! What holds for every call, whatever the method: a panic becomes INTERNAL, and a call that never reached the service
//! (no such method, a message that can't be read or is too long) is put on record like any other refusal.

use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::BoxError;
use tracing::Instrument as _;

use self::paced::paced;
use super::front::Front;
use super::server::App;
use super::service::{GRPC_TIMEOUT, REQUEST_ID, call, come_in, due};
use super::{short, status, stream};
use crate::pdp::{DecideError, Pdp, Refusal};
use crate::telemetry::traces;
use crate::tls::peer::Peer;

mod paced;

/// Makes sure that no call ends without a record.
#[derive(Clone)]
pub struct Recorded {
    front: Front,
    pdp: Arc<Pdp>,
}

impl Recorded {
    /// Around `front`.
    #[must_use]
    pub fn new(front: Front, pdp: Arc<Pdp>) -> Self {
        Self { front, pdp }
    }
}

/// Services that answer no question: nothing to record when they do their work.
const NO_QUESTIONS: [&str; 3] = ["/grpc.health.v1.Health/", "/grpc.reflection.v1.", "/grpc.reflection.v1alpha."];

impl App for Recorded {
    fn answer(self: Arc<Self>, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            let pdp = &self.pdp;
            let exempt = NO_QUESTIONS.iter().any(|prefix| request.uri().path().starts_with(prefix));
            let told = Told::by(request.headers());
            let peer = request.extensions().get::<Arc<Peer>>().cloned();
            if let Some((error, http)) = misaddressed(&request) {
                let refusal = Box::pin(refused(pdp, told, peer, error)).await;
                let mut response = status::to_status(&refusal).into_http();
                *response.status_mut() = http;
                return response;
            }
            let (mut request, mut away) = (request, None);
            if pdp.admission.is_pressed()
                && let (Some(operation), Some(peer)) = (short::operation(request.uri().path()), &peer)
            {
                match pdp.knock(peer, due(request.headers(), request.extensions(), &pdp.limits)) {
                    None => {}
                    Some(Ok(knocked)) => drop(request.extensions_mut().insert(knocked)),
                    Some(Err(error)) => away = Some((operation, error)),
                }
            }
            let called = if let Some((operation, error)) = away {
                AssertUnwindSafe(Box::pin(turned_away(pdp, operation, request, error))).catch_unwind().await
            } else {
                let request = match request.uri().path() {
                    _ if exempt => request.map(Body::new),
                    stream::PATH => paced(request, pdp.limits.max_deadline).map(Body::new),
                    _ => timely(request, pdp.limits.max_deadline).map(Body::new),
                };
                AssertUnwindSafe(self.front.answer(request)).catch_unwind().await
            };
            let error = match called {
                Ok(response) => match unrecorded(&response).filter(|_| !exempt) {
                    Some(error) => error,
                    None => return response,
                },
                // One call's end, not everybody's: INTERNAL, without a word of what it said.
                Err(_) => {
                    tracing::error!("a call panicked");
                    if exempt {
                        return Status::internal("no answer could be made").into_http();
                    }
                    DecideError::Panicked
                }
            };
            let refusal = Box::pin(refused(pdp, told, peer, error)).await;
            status::to_status(&refusal).into_http()
        })
    }
}

/// Refuses a call whose message nobody has read, for want of room. It is let come in all the same, and is looked at no further:
/// what came for a call that is over would count as a fault of its connection, which is closed when that happens often.
async fn turned_away(
    pdp: &Pdp,
    operation: &'static str,
    request: Request<Incoming>,
    error: DecideError,
) -> Response<Body> {
    let (head, body) = timely(request, pdp.limits.max_deadline).into_parts();
    let mut body = pin!(body);
    let mut come = 0;
    while come <= pdp.limits.batch_bytes.max(pdp.limits.request_bytes) && !body.is_end_stream() {
        // That it breaks off changes nothing.
        let Some(Ok(frame)) = body.frame().await else { break };
        come += frame.data_ref().map_or(0, Bytes::len);
    }
    let span = traces::call_span(operation, &head.headers);
    let peer = head.extensions.get::<Arc<Peer>>().cloned();
    let call = come_in(call(operation, &head.headers, peer, &span, &pdp.limits), &head.extensions);
    let refusal = pdp.record_refused(&call, error).instrument(span).await;
    status::to_status(&refusal).into_http()
}

/// What a record tells of a call's headers: these few, and of most calls none.
struct Told([Option<HeaderValue>; 3]);

impl Told {
    fn names() -> [&'static HeaderName; 3] {
        [&traces::TRACEPARENT, &REQUEST_ID, &GRPC_TIMEOUT]
    }

    fn by(headers: &HeaderMap) -> Self {
        Self(Self::names().map(|name| headers.get(name).cloned()))
    }

    fn headers(self) -> HeaderMap {
        let told = Self::names().into_iter().zip(self.0);
        told.filter_map(|(name, value)| Some((name.clone(), value?))).collect()
    }
}

/// Puts a call on record that the service never saw.
async fn refused(pdp: &Pdp, told: Told, peer: Option<Arc<Peer>>, error: DecideError) -> Refusal {
    let headers = told.headers();
    let span = traces::call_span("unknown", &headers);
    let call = call("unknown", &headers, peer, &span, &pdp.limits);
    pdp.record_refused(&call, error).instrument(span).await
}

/// What no gRPC client sends, and the library would let pass: another method than POST, another content type, a query
/// after the method's name. Source: gRPC over HTTP/2, "Requests" (415 for a foreign content type).
pub(super) fn misaddressed<B>(request: &Request<B>) -> Option<(DecideError, StatusCode)> {
    if request.method() != http::Method::POST || request.uri().query().is_some() {
        return Some((DecideError::NoSuchMethod, StatusCode::OK));
    }
    let content_type = request.headers().get(http::header::CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    let ours = content_type
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+proto") || rest.starts_with(b";"));
    (!ours).then_some((DecideError::Unreadable, StatusCode::UNSUPPORTED_MEDIA_TYPE))
}

/// A message has to come in whole within `time`. A decision's own deadline begins only when there is a question, and a
/// client that sends half of one must not hold its place for as long as the connection lives.
pub(super) fn timely<B>(request: Request<B>, time: Duration) -> Request<Timely<B>> {
    request.map(|body| Timely { body, time, alarm: None })
}

/// A body that has its time.
pub(super) struct Timely<B> {
    body: B,
    time: Duration,
    /// Set once the message has to be waited for, which is at once or never: most are there with their headers.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<B> http_body::Body for Timely<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let come = Pin::new(&mut self.body).poll_frame(context);
        if come.is_pending() {
            let time = self.time;
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
            if alarm.as_mut().poll(context).is_ready() {
                let late = Status::deadline_exceeded("the message took too long to come in");
                return Poll::Ready(Some(Err(late.into())));
            }
        }
        come.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why a call ended that our service never saw. Ours carry error details; those that tonic and the router make do not.
pub(super) fn unrecorded<B>(response: &Response<B>) -> Option<DecideError> {
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

/// Marks the response of a call that panicked: by its status it could be one that tonic could not read.
#[derive(Debug, Clone, Copy)]
struct Panicked;

/// A panic is one call's end, not everybody's: INTERNAL, without a word of what it said.
#[derive(Debug, Clone, Copy)]
pub struct PanicToInternal;

impl tower_http::catch_panic::ResponseForPanic for PanicToInternal {
    type ResponseBody = axum::body::Body;

    fn response_for_panic(&mut self, _: Box<dyn std::any::Any + Send + 'static>) -> Response<axum::body::Body> {
        tracing::error!("a call panicked");
        let mut response = Status::internal("no decision could be made").into_http();
        // tonic says INTERNAL of a message that it can't decode, too; this one is our fault, not the caller's.
        response.extensions_mut().insert(Panicked);
        response
    }
}

#[cfg(test)]
mod tests {
    use tower_http::catch_panic::ResponseForPanic as _;

    use super::*;

    #[test]
    fn how_a_call_ended_that_the_service_never_saw_is_told_by_its_response() {
        let panicked = PanicToInternal.response_for_panic(Box::new("what it said"));
        let bare = |status: Status| status.into_http::<axum::body::Body>();
        let detailed = Status::with_details(Code::PermissionDenied, "no", "details".into());
        let table = [
            (panicked, Some("INTERNAL"), "our fault, and not the message's"),
            (bare(Status::internal("failed to decode")), Some("UNREADABLE_MESSAGE"), "tonic could not read it"),
            (bare(Status::out_of_range("too large")), Some("UNREADABLE_MESSAGE"), "longer than its limit"),
            (bare(Status::unimplemented("")), Some("NO_SUCH_METHOD"), "tonic knows the service and not the method"),
            (bare(detailed), None, "ours: it has its record"),
            (bare(Status::ok("")), None, "answered"),
        ];
        for (response, expected, why) in table {
            assert_eq!(unrecorded(&response).map(|error| error.reason()), expected, "{why}");
        }
    }
}
