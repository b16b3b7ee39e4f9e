//! A peer to compare with: Cerbos over TLS, with a token to verify and decisions and accesses audited to a file.
//!
//! Of its protocol stands here what one question takes. Source: `cerbos/svc/v1/svc.proto` and `cerbos/request/v1/request.proto`
//! of Cerbos 0.55.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use prost_types::{Value, value::Kind};
use serde_json::json;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::fixture::Fixture;
use super::server::ServerProcess;
use super::{Failure, free_port};

/// As `CheckResourcesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Question {
    #[prost(message, optional, tag = "3")]
    principal: Option<Principal>,
    #[prost(message, repeated, tag = "4")]
    resources: Vec<Entry>,
    #[prost(message, optional, tag = "5")]
    aux_data: Option<AuxData>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Principal {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, repeated, tag = "3")]
    roles: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Entry {
    #[prost(string, repeated, tag = "1")]
    actions: Vec<String>,
    #[prost(message, optional, tag = "2")]
    resource: Option<Resource>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(btree_map = "string, message", tag = "4")]
    attr: BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AuxData {
    #[prost(message, optional, tag = "1")]
    jwt: Option<Jwt>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Jwt {
    #[prost(string, tag = "1")]
    token: String,
}

/// As `CheckResourcesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    #[prost(message, repeated, tag = "2")]
    results: Vec<Decided>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Decided {
    /// 1 is `EFFECT_ALLOW`.
    #[prost(btree_map = "string, int32", tag = "2")]
    actions: BTreeMap<String, i32>,
}

/// May Alice read her order? As of Gatepost, but without the question which of its fields.
pub fn question(token: &str) -> Question {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let attr = [
        ("tenant".to_owned(), text("acme")),
        ("customer".to_owned(), text("alice")),
        ("status".to_owned(), text("paid")),
        ("total".to_owned(), Value { kind: Some(Kind::NumberValue(4_200.0)) }),
    ];
    let resource = Resource { kind: "order".to_owned(), id: format!("ord-{:016x}", 0), attr: attr.into() };
    Question {
        principal: Some(Principal { id: "alice".to_owned(), roles: vec!["user".to_owned()] }),
        resources: vec![Entry { actions: vec!["read".to_owned()], resource: Some(resource) }],
        aux_data: Some(AuxData { jwt: Some(Jwt { token: token.to_owned() }) }),
    }
}

/// Puts it, and looks at the answer.
pub async fn ask(channel: &mut tonic::client::Grpc<Channel>, question: Question) -> Result<(), Failure> {
    channel.ready().await?;
    let mut request = tonic::Request::new(question);
    request.set_timeout(Duration::from_secs(2));
    let path = PathAndQuery::from_static("/cerbos.svc.v1.CerbosService/CheckResources");
    let answer: Answer = channel.unary(request, path, ProstCodec::default()).await?.into_inner();
    let allowed = answer.results.first().and_then(|decided| decided.actions.get("read")) == Some(&1);
    if allowed { Ok(()) } else { Err(format!("Cerbos does not allow it: {answer:?}").into()) }
}

/// Starts the program over the certificates and keys of `fixture`.
pub async fn start(program: &Path, fixture: &Fixture) -> Result<ServerProcess, Failure> {
    let (port, unused) = (free_port()?, free_port()?);
    let policies = fixture.path("cerbos");
    std::fs::create_dir(&policies)?;
    std::fs::write(policies.join("order.yaml"), POLICY)?;
    let settings = json!({
        "server": {
            "grpcListenAddr": format!("127.0.0.1:{port}"), "httpListenAddr": format!("127.0.0.1:{unused}"),
            "tls": { "cert": fixture.path("server.pem"), "key": fixture.path("server.key") },
        },
        "storage": { "driver": "disk", "disk": { "directory": policies, "watchForChanges": false } },
        "auxData": { "jwt": { "keySets": [{ "id": "shop", "local": { "file": fixture.path("jwks.json") } }] } },
        "audit": {
            "enabled": true, "accessLogsEnabled": true, "decisionLogsEnabled": true,
            "backend": "file", "file": { "path": fixture.path("cerbos.log") },
        },
        "telemetry": { "disabled": true },
    });
    std::fs::write(fixture.path("cerbos.yaml"), settings.to_string())?;
    let mut command = Command::new(program);
    command.args(["server", "--log-level", "error", "--config"]).arg(fixture.path("cerbos.yaml"));
    ServerProcess::start(command.stdout(Stdio::null()), port).await
}

/// The rules of the shop that matter to the question, as Cerbos has them.
const POLICY: &str = r#"
apiVersion: api.cerbos.dev/v1
resourcePolicy:
  resource: order
  version: default
  rules:
    - actions: [read]
      effect: EFFECT_ALLOW
      roles: [user]
      condition:
        match:
          all:
            of:
              - expr: request.aux_data.jwt.tenant == R.attr.tenant
              - expr: R.attr.customer == P.id
    - actions: [read]
      effect: EFFECT_ALLOW
      roles: [support]
      condition:
        match:
          expr: request.aux_data.jwt.tenant == R.attr.tenant
    - actions: ["*"]
      effect: EFFECT_DENY
      roles: ["*"]
      condition:
        match:
          expr: request.aux_data.jwt.tenant != R.attr.tenant
"#;
