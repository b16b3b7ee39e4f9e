//! Operators' certificates while their connections live: on a revocation list, revoked by another operator, or of
//! nobody; and what operators of Gatepost see of it.

use std::time::{Duration, SystemTime};

use gatepost::clock::Clock as _;
use gatepost::proto::admin::v1::ListRevocationsRequest;
use gatepost::proto::admin::v1::revocation_service_client::RevocationServiceClient;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use crate::support::authority::Authority;
use crate::support::operators::{Operators, certificate_request, client, fingerprint, operator_id, token_request};
use crate::support::{Gatepost, channel_to, eventually, minutes};

/// The clock of a test begins at the real time.
fn real_now() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "certificates are made for the real time")]
    SystemTime::now()
}

async fn listed(client: &mut RevocationServiceClient<Channel>) -> Code {
    client.list_revocations(ListRevocationsRequest::default()).await.map_or_else(|status| status.code(), |_| Code::Ok)
}

fn last_record(gatepost: &Gatepost) -> Value {
    let mut records = gatepost.records();
    records.retain(|record| record["metadata"]["log_name"] == "gatepost.revocation");
    records.pop().unwrap()
}

/// THREATS T1 at the other door: the list is watched there too, and asked on every call.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_on_a_revocation_list_loses_the_next_call_and_every_new_connection() {
    let (corp, folder) = (Authority::new("operators"), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name);
    let now = real_now();
    std::fs::write(path("operators.pem"), corp.pem()).unwrap();
    std::fs::write(path("operators.crl"), corp.list(1, now - minutes(1), now + minutes(60), &[])).unwrap();
    let (gatepost, _) = Operators::start(|operators, settings| {
        settings["admin"] = operators.section(&[("deputy", &["ListRevocations"])]);
        settings["admin"]["client_ca"] = json!(path("operators.pem"));
        settings["admin"]["client_crls"] = json!([path("operators.crl")]);
    })
    .await;
    let door = gatepost.admin_address.unwrap();
    let files = |name: &str, serial| corp.client(&gatepost.world, name, serial, &operator_id(name));
    let (revoked, other) = (files("ops", 11), files("deputy", 12));
    let (mut ops, mut deputy) = (client(door, &revoked).await, client(door, &other).await);
    assert_eq!((listed(&mut ops).await, listed(&mut deputy).await), (Code::Ok, Code::Ok));
    let left: f64 = gatepost
        .metrics()
        .await
        .lines()
        .find_map(|line| line.strip_prefix("gatepost_tls_revocation_expiry_seconds ")?.parse().ok())
        .expect("the list that runs out first is one of the admin listener's");
    assert!(left > 0.0 && left <= 3600.0, "{left}");

    let aside = path(".new");
    std::fs::write(&aside, corp.list(2, now - minutes(1), now + minutes(60), &[11])).unwrap();
    std::fs::rename(aside, path("operators.crl")).unwrap();
    let refused = tokio::time::timeout(crate::support::PATIENCE, async {
        while listed(&mut ops).await != Code::Unauthenticated {
            // Ten calls a second are an operator's share.
            gatepost.clock.advance(Duration::from_millis(100));
        }
    });
    assert!(refused.await.is_ok(), "the connection that was there");
    let record = last_record(&gatepost);
    assert_eq!(record["status_detail"], "CALLER_NOT_IDENTIFIED");
    assert_eq!(record["unmapped"]["gatepost"]["caller_refusal"], "CERTIFICATE_REVOKED", "{record:#}");
    assert_eq!(listed(&mut deputy).await, Code::Ok, "the neighbour never noticed");

    let code = match channel_to(door, &revoked).await {
        // In TLS 1.3 the client learns of it with its first call.
        Ok(channel) => listed(&mut RevocationServiceClient::new(channel)).await,
        Err(_) => Code::Unavailable,
    };
    assert!(code != Code::Ok && code != Code::Unauthenticated, "no handshake: {code:?}");
    let port = u64::from(door.port());
    let told = || {
        let mut records = gatepost.records();
        records.retain(|record| record.to_string().contains("\"REVOKED\""));
        !records.is_empty() && records.iter().all(|one| one["dst_endpoint"]["port"] == port)
    };
    eventually("the refused handshake is on record, at this listener", told).await;
}

/// A leaver's certificate, taken back by a colleague: at this door as at the other, on the connection it has.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_whose_certificate_another_revokes_loses_the_next_call_and_it_is_on_record_why() {
    let (gatepost, operators) = Operators::start(|operators, settings| {
        settings["admin"] = operators.section(&[("leaver", &["RevokeToken", "RevokeCertificate"])]);
    })
    .await;
    let mut ops = operators.client(&gatepost, "ops").await;
    let files = operators.files(&gatepost.world, "leaver");
    let mut leaver = client(gatepost.admin_address.unwrap(), &files).await;
    leaver.revoke_token(token_request("t-1")).await.unwrap();
    let until = gatepost::clock::unix_seconds(gatepost.clock.now()) + 600;
    let before = gatepost.pdp.revocations.len();
    ops.revoke_certificate(certificate_request(&fingerprint(&files.certificate), until)).await.unwrap();
    let status = leaver.revoke_token(token_request("t-2")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let record = last_record(&gatepost);
    assert_eq!(record["unmapped"]["gatepost"]["caller_refusal"], "CERTIFICATE_REVOKED", "{record:#}");
    let again = client(gatepost.admin_address.unwrap(), &files).await.revoke_token(token_request("t-3")).await;
    assert_eq!(again.unwrap_err().code(), Code::Unauthenticated, "nor on another connection");
    assert_eq!(gatepost.pdp.revocations.len(), before + 1, "and nothing was revoked by it");
}
