//! A row for every way to have no decision: the answer is then never "allow", and the record of it is there.

use std::path::Path;
use std::time::Duration;

use gatepost::cli::demo::world::{Authority, World, spiffe_id};
use gatepost::client::{Ask, EntityData};
use gatepost::model::decision::{Decision, DenialCode};
use gatepost::proto::v1;
use serde_json::{Value, json};
use tonic_types::StatusExt as _;

use crate::support::{Gatepost, eventually, minutes, order};

fn bundle(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spec/bundles").join(name)
}

/// Lets the storefront ask everything, and vouch for users.
fn wide_open(settings: &mut Value) {
    settings["callers"] = json!([{
        "spiffe_id": spiffe_id("storefront"), "name": "storefront", "resource_types": "*", "actions": "*",
        "assert_subjects": "*", "supply_attributes": "*", "supply_parents": "*", "sees_policies": true,
    }]);
    settings["issuers"] = json!([]);
    settings["audit"]["attributes"] = json!({});
}

fn doc(size: i64, factor: i64) -> Ask {
    Ask::new("read")
        .resource("Doc", "d")
        .attribute("size", size)
        .context("factor", factor)
        .asserted(EntityData::new("User", "ann"))
}

/// A plain wire request: may alice read her order?
pub fn wire(token: &str) -> v1::CheckRequest {
    let text = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
    let number = |number: f64| prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(number)) };
    let reference = |kind: &str, id: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StructValue(prost_types::Struct {
            fields: [("type".to_owned(), text(kind)), ("id".to_owned(), text(id))].into(),
        })),
    };
    v1::CheckRequest {
        subject: Some(v1::check_request::Subject::Token(token.to_owned())),
        action: "Order.read".into(),
        resource: Some(v1::Resource {
            r#type: "Order".into(),
            id: Some("o-1".into()),
            attributes: Some(prost_types::Struct {
                fields: [
                    ("tenant".to_owned(), reference("Tenant", "acme")),
                    ("customer".to_owned(), reference("User", "alice")),
                    ("status".to_owned(), text("open")),
                    ("total".to_owned(), number(5.0)),
                ]
                .into(),
            }),
            parents: Vec::new(),
        }),
        ..v1::CheckRequest::default()
    }
}

/// THREATS T8: Cedar skips an erring forbid.
#[tokio::test(flavor = "multi_thread")]
async fn a_forbid_that_can_not_be_evaluated_denies_and_is_never_cached() {
    let gatepost = Gatepost::start_over(&bundle("erring"), wide_open).await;
    let client = gatepost.client("storefront");
    assert!(client.check(doc(10, 10)).await.unwrap().allowed());
    assert_eq!(client.check(doc(2000, 1)).await.unwrap().denial(), Some(DenialCode::Forbidden));
    for _ in 0..2 {
        let answer = client.check(doc(1 << 50, 1 << 50)).await;
        let answer = answer.unwrap();
        assert_eq!(answer.denial(), Some(DenialCode::PolicyError));
        let record = gatepost.record_of(answer.decision_id());
        assert_eq!(record["unmapped"]["gatepost"]["cache"], "miss", "never from the cache");
        assert_eq!(record["unmapped"]["gatepost"]["policy_errors"][0]["policy"], "forbid-large");
        assert_eq!(record["unmapped"]["gatepost"]["policy_errors"][0]["class"], "overflow");
    }
    assert!(gatepost.metrics().await.contains("gatepost_policy_errors_total{class=\"overflow\"} 2"), "and counted");
}

/// A user's bad token is a denial with a code, not a failed call.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_is_denied_by_code() {
    let gatepost = Gatepost::start().await;
    let claims = json!({ "tenant": "acme" });
    let stranger = World::create(tempfile::tempdir().unwrap().path()).unwrap();
    let good = gatepost.token("alice", &[]);
    let with = |claims: Value| gatepost.token_with("alice", &claims, minutes(5));
    let expired = {
        use gatepost::clock::Clock as _;
        gatepost.world.token("alice", &claims, gatepost.clock.now() - minutes(20), minutes(10)).unwrap()
    };
    let foreign = {
        use gatepost::clock::Clock as _;
        stranger.token("alice", &claims, gatepost.clock.now(), minutes(5)).unwrap()
    };
    let payload = good.split('.').nth(1).unwrap();
    let promoted = {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
        URL_SAFE_NO_PAD.encode(claims.replace("\"roles\":[]", "\"roles\":[\"admin\"]"))
    };
    assert_ne!(promoted, payload);
    let table = [
        (expired, DenialCode::TokenExpired, "expired"),
        (foreign, DenialCode::TokenRejected, "signed by another key with our key id"),
        (with(json!({ "tenant": "acme", "aud": "elsewhere" })), DenialCode::TokenRejected, "for somebody else"),
        (
            with(json!({ "tenant": "acme", "iss": "https://evil.example" })),
            DenialCode::TokenRejected,
            "from somebody else",
        ),
        (gatepost.token_with("alice", &claims, minutes(60)), DenialCode::TokenRejected, "lives too long"),
        (good.replace(payload, &promoted), DenialCode::TokenRejected, "changed after signing"),
        (format!("eyJhbGciOiJub25lIn0.{payload}."), DenialCode::TokenRejected, "alg none"),
        ("not a token".to_owned(), DenialCode::TokenRejected, "no token at all"),
        ("..".to_owned(), DenialCode::TokenRejected, "a token of nothing"),
        (with(json!({})), DenialCode::PrincipalIncomplete, "no tenant, which the schema requires of a User"),
    ];
    for (token, expected, why) in table {
        let answer = gatepost.ask(order("Order.read", "o-1", "alice").token(&token)).await.unwrap();
        assert_eq!((answer.decision(), answer.denial()), (Decision::Deny, Some(expected)), "{why}");
        let record = gatepost.record_of(answer.decision_id());
        assert_eq!(record["action_id"], 2, "{why}");
        assert!(
            token.len() < 20 || !record.to_string().contains(&token[token.len() - 20..]),
            "{why}: no token on record"
        );
    }
}

/// gRPC statuses speak of the calling service; each carries its reason and the id of its record, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_the_right_gets_a_status_and_a_record() {
    let gatepost = Gatepost::start().await;
    let token = gatepost.token("alice", &[]);
    let account = |token: &str| v1::CheckRequest {
        action: "Account.read".into(),
        resource: Some(v1::Resource { r#type: "Account".into(), id: Some("a".into()), ..Default::default() }),
        ..wire(token)
    };
    let asserted = v1::AssertedSubject { r#type: "User".into(), id: "alice".into(), ..Default::default() };
    let vouching = v1::CheckRequest { subject: Some(v1::check_request::Subject::Asserted(asserted)), ..wire(&token) };
    let table = [
        ("warehouse", wire(&token), "CALLER_NOT_ENROLLED", "not in the configuration"),
        ("fulfilment", account(&token), "CALLER_NOT_ENTITLED", "asks about another type"),
        (
            "fulfilment",
            v1::CheckRequest { action: "Order.cancel".into(), ..wire(&token) },
            "CALLER_NOT_ENTITLED",
            "another action",
        ),
        ("storefront", vouching, "CALLER_NOT_ENTITLED", "vouches for a user"),
    ];
    for (service, request, reason, why) in table {
        let before = gatepost.call_records().len();
        let status = gatepost.raw(service).await.check(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{why}");
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "gatepost.dev"), "{why}");
        let record = gatepost.record_of(&info.metadata["decision_id"]);
        assert_eq!(record["status_detail"], reason, "{why}");
        assert_eq!(gatepost.call_records().len(), before + 1, "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_certificate_gets_no_further_than_the_handshake() {
    let gatepost = Gatepost::start().await;
    let forger = Authority::new("Gatepost demo CA").unwrap();
    let files = gatepost.world.client_of(&forger, "forged", &spiffe_id("storefront")).unwrap();
    let token = gatepost.token("alice", &[]);
    let refused = match gatepost.channel(&files).await {
        // TLS 1.3: the client learns of it with its first call.
        Ok(channel) => {
            v1::decision_service_client::DecisionServiceClient::new(channel).check(wire(&token)).await.is_err()
        }
        Err(_) => true,
    };
    assert!(refused);
    eventually("the refused handshake is on record", || {
        gatepost
            .records()
            .iter()
            .any(|record| record["class_uid"] == 3002 && record["status_detail"] == "BAD_CERTIFICATE")
    })
    .await;
    assert!(gatepost.call_records().is_empty());
}

/// I1: no record, no answer. And when records can be written again, answers come again, without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_record_there_is_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let trail = folder.path().join("audit");
    let gatepost = Gatepost::start_with(|settings| {
        settings["audit"] = json!({ "spool": { "directory": trail }, "write_timeout": "2s" });
    })
    .await;
    let token = gatepost.token("alice", &[]);
    let mut raw = gatepost.raw("storefront").await;
    assert!(raw.check(wire(&token)).await.is_ok());

    // Somebody takes the folder away and leaves a file in its place.
    let place = folder.path().to_owned();
    std::fs::rename(&place, place.with_extension("away")).unwrap();
    std::fs::write(&place, "in the way").unwrap();
    let status = raw.check(wire(&token)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "AUDIT_UNAVAILABLE");
    let (code, body) = gatepost.ops("/readyz").await;
    assert_eq!((code, body.contains("audit")), (503, true), "{body}");
    assert_eq!(gatepost.ops("/livez").await.0, 200, "a restart would not help");

    std::fs::remove_file(&place).unwrap();
    std::fs::rename(place.with_extension("away"), &place).unwrap();
    let recovered = tokio::time::timeout(Duration::from_secs(20), async {
        while raw.check(wire(&token)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(recovered.await.is_ok(), "it recovers by itself");
    assert_eq!(gatepost.ops("/readyz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_too_many_is_shed_and_says_when_to_come_back() {
    let gatepost = Gatepost::start_with(|settings| settings["limits"]["concurrent_decisions"] = json!(4)).await;
    let token = gatepost.token("alice", &[]);
    let mut raw = gatepost.raw("storefront").await;
    let taken = gatepost.pdp.admission.withhold(4).unwrap();
    let status = raw.check(wire(&token)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    let details = status.get_error_details();
    assert!(details.retry_info().is_some());
    let id = details.error_info().unwrap().metadata["decision_id"].clone();
    // Nobody waits for the record of what was shed.
    eventually("it is on record", || gatepost.trail().contains(&id)).await;
    gatepost.record_of(&id);
    drop(taken);
    assert!(raw.check(wire(&token)).await.is_ok());
}

/// DESIGN: missing entity data fails the question rather than weakening a forbid.
#[tokio::test(flavor = "multi_thread")]
async fn missing_data_is_an_error_and_never_a_quiet_absence() {
    let gatepost = Gatepost::start().await;
    let token = gatepost.token("alice", &[]);
    let mut request = wire(&token);
    request.resource.as_mut().unwrap().attributes.as_mut().unwrap().fields.remove("tenant");
    let status = gatepost.raw("storefront").await.check(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let violations = status.get_error_details().bad_request().unwrap().field_violations.clone();
    assert_eq!(violations[0].field, "resource.attributes.tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_no_method_of_ours_is_refused_and_recorded() {
    let gatepost = Gatepost::start().await;
    let channel = gatepost.channel(&gatepost.client_files("storefront")).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec: tonic_prost::ProstCodec<v1::CheckRequest, v1::CheckResponse> = tonic_prost::ProstCodec::default();
    let path = http::uri::PathAndQuery::from_static("/gatepost.v1.DecisionService/Chek");
    let status = grpc.unary(tonic::Request::new(wire("x")), path, codec).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    let details = status.get_error_details();
    let record = gatepost.record_of(&details.error_info().unwrap().metadata["decision_id"]);
    assert_eq!(record["status_detail"], "NO_SUCH_METHOD");
}
