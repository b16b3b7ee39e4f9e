//! `gatepost.v1.DecisionService` over [`Pdp`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::HeaderName;
use prost::Message as _;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::written::{Answered, BatchWritten, CheckWritten};
use super::{convert, status, stream};
use crate::config::Limits;
use crate::model::decision::Answer;
use crate::model::ids::RequestId;
use crate::model::question::Circumstances;
use crate::pdp::{Call, DecideError, Pdp, Refusal};
use crate::proto::v1;
use crate::telemetry::traces;
use crate::tls::peer::Peer;

/// The service, over one decision path.
#[derive(Clone)]
pub struct Service {
    pdp: Arc<Pdp>,
}

impl Service {
    /// A door to `pdp`.
    #[must_use]
    pub fn new(pdp: Arc<Pdp>) -> Self {
        Self { pdp }
    }

    /// Answers a CheckRequest that nobody has read yet: what was asked before, byte for byte, need not be.
    pub(super) async fn check(&self, request: Request<Bytes>) -> Result<Response<CheckWritten>, Status> {
        let (call, span, message) = self.called("Check", request);
        let asked = || {
            let message = v1::CheckRequest::decode(message.as_ref()).map_err(|_| DecideError::Unreadable)?;
            convert::check(message, &self.pdp.limits).map_err(DecideError::Invalid)
        };
        match self.pdp.check(&call, &message, asked).instrument(span).await {
            Ok(answer) => Ok(Response::new(CheckWritten::of(&answer))),
            Err(refusal) => Err(status::to_status(&refusal)),
        }
    }

    /// Answers a BatchCheckRequest that nobody has read yet.
    pub(super) async fn batch_check(&self, request: Request<Bytes>) -> Result<Response<BatchWritten>, Status> {
        let (call, span, message) = self.called("BatchCheck", request);
        let asked = || convert::batch(message, &self.pdp.limits);
        let answered = self.pdp.check_batch(&call, asked).instrument(span).await;
        let answers = answered.map_err(|refusal| status::to_status(&refusal))?;
        let answered = |answer: &Result<Answer, Refusal>| {
            Answered(answer.as_ref().map(CheckWritten::of).map_err(status::to_item_error))
        };
        Ok(Response::new(BatchWritten(answers.iter().map(answered).collect())))
    }

    /// Says why.
    pub(super) async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let (call, span, message) = self.called("Explain", request);
        let asked = || convert::explained(message, &self.pdp.limits).map_err(DecideError::Invalid);
        match self.pdp.explain(&call, asked).instrument(span).await {
            Ok(explained) => Ok(Response::new(convert::explanation(&explained))),
            Err(refusal) => Err(status::to_status(&refusal)),
        }
    }

    /// Begins a stream of CheckStreamRequests that nobody has read yet.
    pub(super) async fn check_stream<S>(&self, request: Request<S>) -> Result<Response<stream::Answers>, Status>
    where
        S: Stream<Item = Result<Bytes, Status>> + Unpin + Send + 'static,
    {
        let patience = named_deadline(request.metadata().as_ref());
        let leaving = request.extensions().get::<stream::Leaving>().cloned().unwrap_or_default();
        let (call, span, asked) = self.called("CheckStream", request);
        let call = Call { due: None, ..call };
        let opened = stream::open(&self.pdp, call, patience, leaving, asked).instrument(span).await;
        opened.map(Response::new)
    }

    /// A request as a call, with its span, and what it says.
    fn called<M>(&self, operation: &'static str, request: Request<M>) -> (Call, tracing::Span, M) {
        let (metadata, extensions, message) = request.into_parts();
        let headers = metadata.into_headers();
        let span = traces::call_span(operation, &headers);
        let call = call(operation, &headers, extensions.get::<Arc<Peer>>().cloned(), &span, &self.pdp.limits);
        let knocked = extensions.get().copied();
        (Call { knocked, ..come_in(call, &extensions) }, span, message)
    }
}

/// How long its caller waits. Source: gRPC over HTTP/2, "Timeout".
pub(super) static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// What its caller calls the request that a call serves.
pub(super) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What its caller calls the request, if that can be put on record.
pub(super) fn request_id(headers: &http::HeaderMap) -> Option<RequestId> {
    headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok()).and_then(RequestId::parse)
}

/// When a call's headers came in, by our monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived(pub Duration);

/// With the time at which it came, where its connection says so.
pub(super) fn come_in(call: Call, extensions: &http::Extensions) -> Call {
    match extensions.get::<Arrived>() {
        Some(Arrived(arrived)) => call.come_in_at(*arrived),
        None => call,
    }
}

/// When whoever calls will wait no longer, if it said so, by the headers alone.
pub(super) fn due(headers: &http::HeaderMap, extensions: &http::Extensions, limits: &Limits) -> Option<Duration> {
    let Arrived(arrived) = extensions.get::<Arrived>()?;
    Some(arrived.saturating_add(named_deadline(headers)?.min(limits.max_deadline)))
}

fn named_deadline(headers: &http::HeaderMap) -> Option<Duration> {
    headers.get(&GRPC_TIMEOUT).and_then(|value| grpc_timeout(value.to_str().ok()?))
}

/// A call as its headers and connection tell it.
pub(super) fn call(
    operation: &'static str,
    headers: &http::HeaderMap,
    peer: Option<Arc<Peer>>,
    span: &tracing::Span,
    limits: &Limits,
) -> Call {
    let ids = traces::ids_of(span, headers);
    let named = named_deadline(headers);
    Call {
        operation,
        peer,
        circumstances: Circumstances {
            request_id: request_id(headers),
            trace_id: ids.trace_id,
            span_id: ids.span_id,
            ..Circumstances::default()
        },
        deadline: named.map_or(limits.default_deadline, |wanted| wanted.min(limits.max_deadline)),
        deadline_named: named.is_some(),
        due: None,
        knocked: None,
    }
}

/// The time-out that a client names: up to eight digits and a unit. Source: gRPC over HTTP/2, "Timeout".
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_waits_as_long_as_it_says_and_no_longer_than_it_may() {
        let limits = Limits {
            default_deadline: Duration::from_millis(200),
            max_deadline: Duration::from_secs(2),
            ..Limits::default()
        };
        let table = [
            (None, 200, "none is named"),
            (Some("soon"), 200, "none that can be read"),
            (Some("1999m"), 1999, "shorter than the longest"),
            (Some("2S"), 2000, "the longest"),
            (Some("2001m"), 2000, "longer than that"),
            (Some("99999999H"), 2000, "for ever"),
        ];
        for (named, expected, why) in table {
            let mut headers = http::HeaderMap::new();
            if let Some(named) = named {
                headers.insert("grpc-timeout", named.parse().unwrap());
            }
            let call = call("Check", &headers, None, &tracing::Span::none(), &limits);
            assert_eq!(call.deadline, Duration::from_millis(expected), "{why}");
        }
    }

    #[test]
    fn a_grpc_timeout_is_read_as_the_protocol_says() {
        let table = [
            ("1S", Some(Duration::from_secs(1)), "seconds"),
            ("250m", Some(Duration::from_millis(250)), "milliseconds"),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600)), "the longest"),
            ("100000000S", None, "nine digits"),
            ("S", None, "no number"),
            ("-1S", None, "no sign"),
            ("1s", None, "units are case-sensitive"),
            ("", None, "nothing"),
            ("1\u{e9}", None, "not ASCII"),
        ];
        for (text, expected, why) in table {
            assert_eq!(grpc_timeout(text), expected, "{text}: {why}");
        }
    }
}
