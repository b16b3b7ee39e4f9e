//! Calls below the client library and below Protobuf: any path, any headers, any bytes; and what came back, all of it.

use std::future::poll_fn;

use bytes::Bytes;
use gatepost::proto::v1;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::Service as _;

use crate::support::Gatepost;

pub const CHECK: &str = "/gatepost.v1.DecisionService/Check";
pub const BATCH: &str = "/gatepost.v1.DecisionService/BatchCheck";

/// Everything that a client can see of an answer.
pub struct Reply {
    pub http: u16,
    pub status: Status,
    pub message: Option<Bytes>,
    /// Headers, body and trailers as they came, for searches.
    pub whole: Vec<u8>,
}

impl Reply {
    pub fn code(&self) -> Code {
        self.status.code()
    }

    /// The reason of `ErrorInfo`.
    pub fn reason(&self) -> Option<String> {
        self.status.get_details_error_info().map(|info| info.reason)
    }

    /// The id that every answer and every error must carry.
    pub fn decision_id(&self) -> Option<String> {
        match self.code() {
            Code::Ok => Some(self.check().decision_id),
            _ => self.status.get_details_error_info()?.metadata.get("decision_id").cloned(),
        }
    }

    /// The part of the question that `BadRequest` names, and the rule.
    pub fn violation(&self) -> Option<(String, String)> {
        let violation = self.status.get_details_bad_request()?.field_violations.into_iter().next()?;
        Some((violation.field, violation.description))
    }

    pub fn check(&self) -> v1::CheckResponse {
        v1::CheckResponse::decode(self.message.clone().unwrap_or_default()).unwrap()
    }

    pub fn batch(&self) -> v1::BatchCheckResponse {
        v1::BatchCheckResponse::decode(self.message.clone().unwrap_or_default()).unwrap()
    }

    /// `ALLOW`, `DENY NO_PERMIT`, `INVALID_ARGUMENT resource.id`: what a table wants to compare.
    pub fn told(&self) -> String {
        match self.code() {
            Code::Ok => told(&self.check()),
            code => {
                let field = self.violation().map(|(field, _)| format!(" {field}")).unwrap_or_default();
                format!("{code:?}{field}")
            }
        }
    }
}

/// A decision in words.
pub fn told(answer: &v1::CheckResponse) -> String {
    let decision = answer.decision().as_str_name().trim_start_matches("DECISION_").to_owned();
    match &answer.denial {
        Some(denial) => format!("{decision} {}", denial.code().as_str_name().trim_start_matches("DENIAL_CODE_")),
        None => decision,
    }
}

/// A gRPC frame around `message`.
pub fn framed(flag: u8, message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap();
    [&[flag], &length.to_be_bytes()[..], message].concat().into()
}

/// A call with exactly this path, these headers and this body. The usual headers stand unless given.
pub async fn call(channel: Channel, path: &str, headers: &[(&str, &[u8])], body: Bytes) -> Reply {
    call_with(channel, path, headers, Body::new(Full::new(body))).await
}

/// The same with a body that comes bit by bit, or never.
pub async fn call_with(mut channel: Channel, path: &str, headers: &[(&str, &[u8])], body: Body) -> Reply {
    let mut request = http::Request::post(path).body(body).unwrap();
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, http::HeaderValue::from_bytes(value).unwrap());
    }
    poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    let response = match channel.call(request).await {
        Ok(response) => response,
        Err(error) => {
            let whole = format!("{error:?}").into_bytes();
            return Reply { http: 0, status: Status::from_error(Box::new(error)), message: None, whole };
        }
    };
    let http = response.status().as_u16();
    let (parts, body) = response.into_parts();
    let mut whole = format!("{:?}", parts.headers).into_bytes();
    let collected = match body.collect().await {
        Ok(collected) => collected,
        Err(status) => return Reply { http, status, message: None, whole },
    };
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let body = collected.to_bytes();
    whole.extend_from_slice(format!("{trailers:?}").as_bytes());
    whole.extend_from_slice(&body);
    let status = Status::from_header_map(&parts.headers).or_else(|| Status::from_header_map(&trailers));
    let status = status.unwrap_or_else(|| Status::unknown(format!("no grpc-status; HTTP {http}")));
    whole.extend_from_slice(status.details());
    let message = (body.len() >= 5).then(|| body.slice(5..));
    Reply { http, status, message, whole }
}

/// A well-framed CheckRequest.
pub async fn check(channel: &Channel, request: &v1::CheckRequest) -> Reply {
    call(channel.clone(), CHECK, &[], framed(0, &request.encode_to_vec())).await
}

/// A well-framed BatchCheckRequest.
pub async fn batch(channel: &Channel, request: &v1::BatchCheckRequest) -> Reply {
    call(channel.clone(), BATCH, &[], framed(0, &request.encode_to_vec())).await
}

/// A connection of one of the enrolled services.
pub async fn channel(gatepost: &Gatepost, service: &str) -> Channel {
    gatepost.channel(&gatepost.client_files(service)).await.unwrap()
}

pub fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

pub fn number(number: f64) -> Value {
    Value { kind: Some(Kind::NumberValue(number)) }
}

pub fn truth(truth: bool) -> Value {
    Value { kind: Some(Kind::BoolValue(truth)) }
}

pub fn null() -> Value {
    Value { kind: Some(Kind::NullValue(0)) }
}

pub fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

pub fn record<N: Into<String>>(members: impl IntoIterator<Item = (N, Value)>) -> Value {
    Value { kind: Some(Kind::StructValue(attributes(members))) }
}

pub fn attributes<N: Into<String>>(members: impl IntoIterator<Item = (N, Value)>) -> Struct {
    Struct { fields: members.into_iter().map(|(name, value)| (name.into(), value)).collect() }
}

pub fn reference(kind: &str, id: &str) -> Value {
    record([("type", text(kind)), ("id", text(id))])
}

pub fn parent(kind: &str, id: &str) -> v1::EntityRef {
    v1::EntityRef { r#type: kind.to_owned(), id: id.to_owned() }
}

/// Everything on a token's behalf.
pub fn with_token(token: &str, action: &str, resource: v1::Resource) -> v1::CheckRequest {
    v1::CheckRequest {
        subject: Some(v1::check_request::Subject::Token(token.to_owned())),
        action: action.to_owned(),
        resource: Some(resource),
        ..v1::CheckRequest::default()
    }
}

/// An object with attributes.
pub fn object<N: Into<String>>(kind: &str, id: &str, members: impl IntoIterator<Item = (N, Value)>) -> v1::Resource {
    v1::Resource {
        r#type: kind.to_owned(),
        id: Some(id.to_owned()),
        attributes: Some(attributes(members)),
        parents: Vec::new(),
    }
}

/// Fields by name; `None`: the action's own mode.
pub fn fields<'p>(paths: impl IntoIterator<Item = &'p str>) -> v1::FieldQuery {
    let paths = paths.into_iter().map(str::to_owned).collect();
    v1::FieldQuery { paths: Some(prost_types::FieldMask { paths }), ..v1::FieldQuery::default() }
}
