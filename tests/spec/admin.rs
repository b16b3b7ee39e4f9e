//! The admin listener: who may call what, what it refuses, and that each call is recorded once, before it takes effect.

use std::collections::BTreeSet;
use std::time::Duration;

use gatepost::admin::AdminError;
use gatepost::cli::demo::world::{Authority, spiffe_id};
use gatepost::clock::{Clock as _, unix_seconds};
use gatepost::proto::admin::v1;
use gatepost::proto::admin::v1::revocation_service_client::RevocationServiceClient;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use crate::support::operators::{
    METHODS, Operators, at, certificate_request, client, fingerprint, hex, operator_id, session_request,
    subject_request, token_request, told,
};
use crate::support::{Gatepost, channel_to, eventually, order};
use crate::wire;

const PACKAGE: &str = "gatepost.admin.v1";

/// Every method that the descriptors know: `Service/Method`.
fn methods() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(gatepost::proto::ADMIN_DESCRIPTORS).unwrap();
    let ours = files.file.into_iter().filter(|file| file.package() == PACKAGE);
    let services = ours.flat_map(|file| file.service).flat_map(|service| {
        let name = service.name().to_owned();
        service.method.into_iter().map(move |method| format!("{name}/{}", method.name()))
    });
    services.collect()
}

/// A good request for each method. A new one fails here until somebody has thought about it.
async fn call(client: &mut RevocationServiceClient<Channel>, method: &str, now: u64) -> Result<(), tonic::Status> {
    match method {
        "RevocationService/RevokeToken" => client.revoke_token(token_request("t-1")).await.map(drop),
        "RevocationService/RevokeSubject" => client.revoke_subject(subject_request("alice")).await.map(drop),
        "RevocationService/RevokeSession" => client.revoke_session(session_request("s-1")).await.map(drop),
        "RevocationService/RevokeCertificate" => {
            client.revoke_certificate(certificate_request(&"ab".repeat(32), now + 600)).await.map(drop)
        }
        "RevocationService/ListRevocations" => {
            client.list_revocations(v1::ListRevocationsRequest::default()).await.map(drop)
        }
        other => panic!("{other} is new: list it here, in METHODS, and in `AdminMethod`"),
    }
}

fn admin_records(gatepost: &Gatepost) -> Vec<Value> {
    let mut records = gatepost.records();
    records.retain(|record| record["metadata"]["log_name"] == "gatepost.revocation");
    records
}

/// docs/revocation.md: whoever switches the listener on and nothing else would learn it at the next restart.
#[tokio::test]
async fn that_a_restart_would_forget_what_is_revoked_is_told_at_the_start() {
    for (file, told) in [(None, true), (Some("revocations.jsonl"), false)] {
        let log = crate::canaries::Log::default();
        let heard = crate::canaries::hear(&log);
        let _running = Operators::start(|_, settings| settings["revocation"] = json!({ "file": file })).await;
        drop(heard);
        assert!(log.text().contains("operators may revoke"), "the log is heard");
        assert_eq!(log.text().contains("a restart forgets it"), told, "{file:?}");
    }
}

/// THREATS V-ADM-2: every RPC and every way not to be entitled to it.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_calls_a_method_that_was_not_granted_to_him_by_name() {
    let methods = methods();
    assert_eq!(methods.len(), METHODS.len());
    let mut refused = 0;
    for method in &methods {
        let right = method.rsplit('/').next().unwrap();
        let others: Vec<&str> = METHODS.into_iter().filter(|name| *name != right).collect();
        let (gatepost, operators) = Operators::start(|operators, settings| {
            settings["admin"] = operators.section(&[("almost", &others), ("only", &[right])]);
        })
        .await;
        let (address, now) = (gatepost.admin_address.unwrap(), unix_seconds(gatepost.clock.now()));

        // Who does not get as far as a call.
        let strange = gatepost.world.client_of(&Authority::new("x").unwrap(), "strange", &operator_id("ops"));
        let data = gatepost.client_files("storefront");
        for (files, why) in [(strange.unwrap(), "another authority"), (data, "the data listener's authority")] {
            let outcome = match channel_to(address, &files).await {
                Ok(channel) => call(&mut RevocationServiceClient::new(channel), method, now).await.is_err(),
                Err(_) => true,
            };
            assert!(outcome, "{method}: {why}");
            refused += 1;
        }
        assert!(no_certificate_is_refused(&gatepost).await, "{method}: no certificate");
        refused += 1;
        let handshakes = || gatepost.records().iter().filter(|record| record["class_uid"] == 3002).count();
        eventually("the strangers are on record", || handshakes() >= 3).await;
        assert!(admin_records(&gatepost).is_empty(), "none of them called");

        // Who does, and may not.
        let table = [("stranger", "OPERATOR_NOT_ENROLLED"), ("almost", "OPERATOR_NOT_ENTITLED")];
        for (at, (name, reason)) in table.into_iter().enumerate() {
            let mut client = operators.client(&gatepost, name).await;
            let status = call(&mut client, method, now).await.unwrap_err();
            assert_eq!((status.code(), told(&status).0.as_str()), (Code::PermissionDenied, reason), "{method}: {name}");
            let records = admin_records(&gatepost);
            assert_eq!(records.len(), at + 1, "{method}: {name}: one record");
            let record = records.last().unwrap();
            assert_eq!((&record["status_detail"], &record["status_id"]), (&json!(reason), &json!(2)));
            assert_eq!(record["unmapped"]["gatepost"]["operation"], json!(right));
            assert!(record["entity_result"].is_null() && record["unmapped"]["gatepost"]["revocation"].is_null());
            refused += 1;
        }
        assert!(gatepost.pdp.revocations.is_empty(), "{method}: nothing was revoked");

        let mut client = operators.client(&gatepost, "only").await;
        call(&mut client, method, now).await.unwrap();
        let record = admin_records(&gatepost).pop().unwrap();
        assert_eq!((&record["status_id"], &record["actor"]["app_name"]), (&json!(1), &json!("only")), "{method}");
    }
    println!("{} methods, {refused} refusals", methods.len());
}

/// A client that shows no certificate at all.
async fn no_certificate_is_refused(gatepost: &Gatepost) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let files = gatepost.client_files("storefront");
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(&files.ca).unwrap();
    use rustls_pki_types::pem::PemObject as _;
    for authority in rustls_pki_types::CertificateDer::pem_slice_iter(&pem) {
        roots.add(authority.unwrap()).unwrap();
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = tokio::net::TcpStream::connect(gatepost.admin_address.unwrap()).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let Ok(mut stream) = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, socket).await
    else {
        return true;
    };
    // In TLS 1.3 the client hears of the refusal only when it reads.
    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    stream.read_to_end(&mut Vec::new()).await.is_err()
}

/// THREATS T17: where both listeners believe the same authority the names still tell them apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_one_listener_gains_nothing_at_the_other() {
    let (gatepost, operators) = Operators::start(|_, _| ()).await;
    let mine = operators.files(&gatepost.world, "ops");
    let outcome = match gatepost.channel(&mine).await {
        Ok(channel) => wire::check(&channel, &crate::failing_closed::wire(&gatepost.token("alice", &[]))).await.code(),
        Err(_) => Code::Unavailable,
    };
    assert_ne!(outcome, Code::Ok, "an operator's certificate at the data listener");

    let (gatepost, _) = Operators::start(|_, settings| settings["admin"]["client_ca"] = json!("ca.pem")).await;
    let files = |name: &str, id: &str| gatepost.world.client(name, id).unwrap();
    let service = files("storefront", &spiffe_id("storefront"));
    let status = client(gatepost.admin_address.unwrap(), &service).await.revoke_token(token_request("t")).await;
    assert_eq!(told(&status.unwrap_err()).0, "OPERATOR_NOT_ENROLLED");
    let operator = files("ops", &operator_id("ops"));
    let channel = gatepost.channel(&operator).await.unwrap();
    let reply = wire::check(&channel, &crate::failing_closed::wire(&gatepost.token("alice", &[]))).await;
    assert_eq!(reply.reason().as_deref(), Some("CALLER_NOT_ENROLLED"));
    client(gatepost.admin_address.unwrap(), &operator).await.revoke_token(token_request("t")).await.unwrap();
}

/// No reflection, no health, no data methods: what is not a method is refused and recorded once.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_answers_at_the_admin_listener() {
    let (gatepost, operators) = Operators::start(|_, _| ()).await;
    let channel = channel_to(gatepost.admin_address.unwrap(), &operators.files(&gatepost.world, "ops")).await.unwrap();
    let empty = wire::framed(0, &[]);
    let known = format!("/{PACKAGE}.RevocationService/RevokeToken");
    let table = [
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", empty.clone(), Code::Unimplemented, "unknown"),
        ("/grpc.health.v1.Health/Check", empty.clone(), Code::Unimplemented, "unknown"),
        ("/gatepost.v1.DecisionService/Check", empty.clone(), Code::Unimplemented, "unknown"),
        ("/gatepost.admin.v1.RevocationService/RevokeEverything", empty.clone(), Code::Unimplemented, "unknown"),
        (&known, wire::framed(0, &[0xff; 10]), Code::InvalidArgument, "RevokeToken"),
        (&known, wire::framed(0, &vec![0; 16 * 1024 + 1]), Code::InvalidArgument, "RevokeToken"),
    ];
    for (index, (path, body, code, operation)) in table.into_iter().enumerate() {
        let reply = wire::call(channel.clone(), path, &[], body).await;
        assert_eq!(reply.code(), code, "{path}");
        let records = admin_records(&gatepost);
        assert_eq!(records.len(), index + 1, "{path}: one record");
        assert_eq!(records[index]["unmapped"]["gatepost"]["operation"], operation, "{path}");
        let id = records[index]["metadata"]["original_event_uid"].as_str().unwrap().to_owned();
        let details = tonic_types::StatusExt::get_error_details(&reply.status);
        let named = details.error_info().and_then(|info| info.metadata.get("call_id").cloned());
        assert_eq!(named, Some(id), "{path}: the error names its record");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_wrong_names_its_field_and_changes_nothing() {
    let (gatepost, operators) = Operators::start(|_, _| ()).await;
    let mut client = operators.client(&gatepost, "ops").await;
    let now = unix_seconds(gatepost.clock.now());
    let token = |change: &dyn Fn(&mut v1::RevokeTokenRequest)| {
        let mut request = token_request("t-1");
        change(&mut request);
        request
    };
    use v1::revoke_token_request::Token;
    let id = |id: &str| token(&|request| request.token = Some(Token::TokenId(id.to_owned())));
    let hash = |id: &str| token(&|request| request.token = Some(Token::TokenIdSha256(id.to_owned())));
    let tokens = [
        (id(""), "token_id", "empty"),
        (id("a\0b"), "token_id", "NUL"),
        (id("a\u{202e}b"), "token_id", "bidi"),
        (id("a\u{200b}b"), "token_id", "zero width"),
        (id(&"x".repeat(1025)), "token_id", "one past its limit"),
        (token(&|request| request.token = None), "token_id", "neither"),
        (hash("abc"), "token_id_sha256", "too short"),
        (hash(&"AB".repeat(32)), "token_id_sha256", "upper case"),
        (token(&|request| request.issuer.clear()), "issuer", "empty"),
        (token(&|request| request.issuer += "/"), "issuer", "one that is not ours"),
        (token(&|request| request.reason.clear()), "reason", "empty"),
        (token(&|request| request.reason = " \t ".to_owned()), "reason", "blank"),
        (token(&|request| request.reason = "x".repeat(513)), "reason", "one past its limit"),
        (token(&|request| request.reason = "a\nb".to_owned()), "reason", "two lines"),
        (token(&|request| request.expire_time = Some(at(now - 1))), "expire_time", "past"),
        (token(&|request| request.expire_time = Some(at(now + 11 * 366 * 86_400))), "expire_time", "too far"),
        (
            token(&|request| request.expire_time = Some(prost_types::Timestamp { seconds: 1, nanos: -1 })),
            "expire_time",
            "no time",
        ),
    ];
    let mut tried = 0;
    for (request, field, why) in tokens {
        gatepost.clock.advance(Duration::from_secs(1));
        let status = client.revoke_token(request).await.unwrap_err();
        tried += 1;
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {why}");
        assert_eq!(told(&status), ("INVALID_REQUEST".to_owned(), field.to_owned()), "{why}");
        assert_eq!(admin_records(&gatepost).len(), tried, "{why}: one record");
    }
    let subject = |change: &dyn Fn(&mut v1::RevokeSubjectRequest)| {
        let mut request = subject_request("alice");
        change(&mut request);
        request
    };
    let subjects = [
        (subject(&|request| request.subject.clear()), "subject", "empty"),
        (subject(&|request| request.subject = "a\0".to_owned()), "subject", "NUL"),
        (subject(&|request| request.subject = "x".repeat(1025)), "subject", "past limits.id_bytes"),
        (subject(&|request| request.issued_before = Some(at(now + 1000))), "issued_before", "would lock her out"),
        (
            subject(&|request| request.issued_before = Some(at(u64::try_from(i64::MAX).unwrap()))),
            "issued_before",
            "absurd",
        ),
    ];
    for (request, field, why) in subjects {
        gatepost.clock.advance(Duration::from_secs(1));
        assert_eq!(told(&client.revoke_subject(request).await.unwrap_err()).1, field, "{why}");
        tried += 1;
    }
    let certificates = [
        (certificate_request("ab", now + 600), "certificate_sha256", "too short"),
        (
            v1::RevokeCertificateRequest { expire_time: None, ..certificate_request(&"ab".repeat(32), 0) },
            "expire_time",
            "missing",
        ),
    ];
    for (request, field, why) in certificates {
        gatepost.clock.advance(Duration::from_secs(1));
        assert_eq!(told(&client.revoke_certificate(request).await.unwrap_err()).1, field, "{why}");
        tried += 1;
    }
    for (size, page_token, field) in
        [(-1, "", "page_size"), (0, "v1.token.x", "page_token"), (0, "' OR 1=1", "page_token")]
    {
        gatepost.clock.advance(Duration::from_secs(1));
        let request = v1::ListRevocationsRequest { page_size: size, page_token: page_token.to_owned() };
        assert_eq!(told(&client.list_revocations(request).await.unwrap_err()).1, field);
        tried += 1;
    }
    assert!(gatepost.pdp.revocations.is_empty(), "nothing half done");
    assert_eq!(admin_records(&gatepost).len(), tried);
    println!("{tried} wrong requests, {tried} records, 0 revocations");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_again_is_answered_the_same_and_moves_nothing() {
    let (gatepost, operators) = Operators::start(|_, _| ()).await;
    let mut client = operators.client(&gatepost, "ops").await;
    let now = unix_seconds(gatepost.clock.now());
    let request = v1::RevokeSubjectRequest { issued_before: Some(at(now - 10)), ..subject_request("alice") };
    let first = client.revoke_subject(request.clone()).await.unwrap().into_inner();
    gatepost.clock.advance(Duration::from_secs(5));
    let earlier = v1::RevokeSubjectRequest { issued_before: Some(at(now - 500)), ..subject_request("alice") };
    let again = client.revoke_subject(request).await.unwrap().into_inner();
    let back = client.revoke_subject(earlier).await.unwrap().into_inner();
    let cut_off = |answer: &v1::RevokeSubjectResponse| answer.revocation.clone().unwrap().issued_before;
    assert_eq!(cut_off(&first), Some(at(now - 10)));
    assert_eq!((cut_off(&again), cut_off(&back)), (cut_off(&first), cut_off(&first)), "a cut-off never moves back");
    assert_eq!(gatepost.pdp.revocations.len(), 1);
    let ids: BTreeSet<_> = [first.call_id, again.call_id, back.call_id].into();
    assert_eq!((ids.len(), admin_records(&gatepost).len()), (3, 3), "each is a call, and on record");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_makes_ten_calls_a_second_and_another_has_his_own() {
    let (gatepost, operators) = Operators::start(|operators, settings| {
        settings["admin"] = operators.section(&[("deputy", &["ListRevocations"])]);
    })
    .await;
    let mut ops = operators.client(&gatepost, "ops").await;
    let list = v1::ListRevocationsRequest::default;
    for _ in 0..10 {
        ops.list_revocations(list()).await.unwrap();
    }
    let status = ops.list_revocations(list()).await.unwrap_err();
    assert_eq!((status.code(), told(&status).0.as_str()), (Code::ResourceExhausted, "TOO_MANY_CALLS"));
    let retry = tonic_types::StatusExt::get_error_details(&status).retry_info().unwrap().retry_delay.unwrap();
    assert_eq!(retry, Duration::from_millis(100));
    assert_eq!(told(&ops.revoke_token(token_request("t")).await.unwrap_err()).0, "TOO_MANY_CALLS", "whatever he calls");
    operators.client(&gatepost, "deputy").await.list_revocations(list()).await.unwrap();
    gatepost.clock.advance(retry);
    ops.list_revocations(list()).await.unwrap();
    assert_eq!(admin_records(&gatepost).len(), 14, "refused ones too, once each");
}

/// THREATS T17: recorded before it takes effect, or it does not.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_recorded_is_not_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let trail = folder.path().join("audit");
    let (gatepost, operators) = Operators::start(|_, settings| {
        settings["audit"] = json!({ "spool": { "directory": trail }, "write_timeout": "2s" });
        settings["revocation"] = json!({ "file": "revocations.jsonl" });
    })
    .await;
    let mut client = operators.client(&gatepost, "ops").await;
    client.revoke_token(token_request("t-1")).await.unwrap();
    let place = folder.path().to_owned();
    std::fs::rename(&place, place.with_extension("away")).unwrap();
    std::fs::write(&place, "in the way").unwrap();
    let status = client.revoke_token(token_request("t-2")).await.unwrap_err();
    assert_eq!((status.code(), told(&status).0.as_str()), (Code::Unavailable, "AUDIT_UNAVAILABLE"));
    assert_eq!(gatepost.pdp.revocations.len(), 1);
    let text = std::fs::read_to_string(gatepost.path("revocations.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 1, "nor is it in the file");
    std::fs::remove_file(&place).unwrap();
    std::fs::rename(place.with_extension("away"), &place).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_stored_or_has_no_room_is_not_revoked_and_that_is_on_record() {
    let (gatepost, operators) = Operators::start(|_, settings| {
        settings["revocation"] = json!({ "file": "revocations.jsonl" });
        settings["limits"]["revocations"] = json!(2);
    })
    .await;
    let mut client = operators.client(&gatepost, "ops").await;
    client.revoke_token(token_request("t-1")).await.unwrap();
    let path = gatepost.path("revocations.jsonl");
    std::fs::rename(&path, gatepost.path("aside.jsonl")).unwrap();
    std::fs::create_dir(&path).unwrap();
    let status = client.revoke_token(token_request("t-2")).await.unwrap_err();
    assert_eq!((status.code(), told(&status).0.as_str()), (Code::Unavailable, "REVOCATION_NOT_STORED"));
    assert_eq!(gatepost.pdp.revocations.len(), 1);
    let records = admin_records(&gatepost);
    let failed = records.last().unwrap();
    assert_eq!((&failed["status_detail"], &failed["severity"]), (&json!("REVOCATION_NOT_STORED"), &json!("High")));
    assert_eq!(failed["metadata"]["original_event_uid"], records[1]["metadata"]["original_event_uid"], "the same call");

    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(gatepost.path("aside.jsonl"), &path).unwrap();
    client.revoke_token(token_request("t-2")).await.unwrap();
    let status = client.revoke_token(token_request("t-3")).await.unwrap_err();
    assert_eq!((status.code(), told(&status).0.as_str()), (Code::ResourceExhausted, "REVOCATIONS_FULL"));
    client.revoke_token(token_request("t-1")).await.unwrap();
    assert_eq!(gatepost.pdp.revocations.len(), 2, "none was dropped for another");
    let metrics = gatepost.metrics().await;
    let full = "gatepost_revocation_entries_total{result=\"full\",source=\"admin\"} 1";
    assert!(metrics.contains(full) && metrics.contains("gatepost_revocations 2"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_comes_page_by_page_and_tells_no_id() {
    let (gatepost, operators) = Operators::start(|_, settings| {
        settings["revocation"] = json!({ "file": "revocations.jsonl" });
    })
    .await;
    let mut client = operators.client(&gatepost, "ops").await;
    let mut keys = BTreeSet::new();
    for number in 0..25 {
        gatepost.clock.advance(Duration::from_secs(1));
        let id = format!("secret-session-{number}");
        let answer = client.revoke_session(session_request(&id)).await.unwrap().into_inner();
        let expected =
            hex(format!("session\n{}\n{}", crate::support::operators::ISSUER, hex(id.as_bytes())).as_bytes());
        assert_eq!(answer.revocation.unwrap().key, expected);
        keys.insert(expected);
    }
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        gatepost.clock.advance(Duration::from_secs(1));
        let request = v1::ListRevocationsRequest { page_size: 10, page_token: page_token.clone() };
        let page = client.list_revocations(request).await.unwrap().into_inner();
        assert_eq!(page.total_size, 25);
        seen.extend(page.revocations.into_iter().map(|one| one.key));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((seen.len(), seen.into_iter().collect::<BTreeSet<_>>()), (25, keys));
    let revocations = std::fs::read_to_string(gatepost.path("revocations.jsonl")).unwrap();
    for (name, text) in [("the file", revocations), ("the trail", gatepost.trail())] {
        assert!(text.len() > 1000 && !text.contains("secret-session"), "{name} tells an id");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_s_record_says_who_what_until_when_and_why() {
    let (gatepost, operators) = Operators::start(|_, _| ()).await;
    let mut client = operators.client(&gatepost, "ops").await;
    let mut request = tonic::Request::new(subject_request("alice"));
    request.metadata_mut().insert("x-request-id", "case-4711".parse().unwrap());
    let answer = client.revoke_subject(request).await.unwrap().into_inner();
    let record = admin_records(&gatepost).pop().unwrap();
    let one = answer.revocation.unwrap();
    let files = operators.files(&gatepost.world, "other");
    assert_ne!(record["unmapped"]["gatepost"]["certificate_sha256"], json!(fingerprint(&files.certificate)));
    let expected = [
        ("/class_uid", json!(3004)),
        ("/activity_name", json!("Create")),
        ("/status_code", json!("OK")),
        ("/comment", json!("laptop stolen")),
        ("/actor/app_name", json!("ops")),
        ("/actor/app_uid", json!(operator_id("ops"))),
        ("/metadata/original_event_uid", json!(answer.call_id)),
        ("/metadata/correlation_uid", json!("case-4711")),
        ("/entity_result/uid", json!(format!("subject:{}", one.key))),
        ("/unmapped/gatepost/revocation/subject", json!("alice")),
        ("/unmapped/gatepost/revocation/issuer", json!(crate::support::operators::ISSUER)),
        ("/unmapped/gatepost/revocation/issued_before", json!(one.issued_before.unwrap().seconds)),
        ("/unmapped/gatepost/revocation/until", json!(one.expire_time.unwrap().seconds)),
    ];
    for (pointer, value) in expected {
        assert_eq!(record.pointer(pointer), Some(&value), "{pointer}");
    }
}

/// Nothing listens that was not asked for.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_section_there_is_no_admin_listener() {
    let gatepost = Gatepost::start().await;
    assert_eq!(gatepost.admin_address, None);
    assert!(
        gatepost.ask(order("Order.read", "o-1", "alice").token(gatepost.token("alice", &[]))).await.unwrap().allowed()
    );
}

/// The page has every status of the admin listener, and no other.
#[test]
fn the_error_page_lists_every_status_of_the_admin_listener() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/errors.md")).unwrap();
    let part = page.split("\n## Statuses of the admin listener\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = part.lines().filter(|line| line.starts_with("| `"));
    let listed: BTreeSet<(String, String)> = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            (cells[0].to_owned(), cells[1].to_owned())
        })
        .collect();
    let known = AdminError::ALL.iter().map(|(status, reason)| ((*status).to_owned(), (*reason).to_owned())).collect();
    assert_eq!(listed, known);
    for word in ["REVOKED_TOKEN", "REVOKED_SUBJECT", "REVOKED_SESSION", "CERTIFICATE_REVOKED"] {
        assert!(page.contains(&format!("| `{word}` |")), "{word}");
    }
}
