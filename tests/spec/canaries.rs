//! Sixty secrets, each with a name of its own, put wherever a stranger or an operator could put one: none of them is in
//! an answer, a record, a metric or a log line, not even at the most talkative level.

use std::io::Write;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatepost::proto::v1;
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use crate::bad_input::{entity, plain, wide_bundle, wide_settings};
use crate::support::{Gatepost, minutes};
use crate::wire::{
    BATCH, CHECK, attributes, call, channel, fields, framed, list, object, parent, record, reference, text, truth,
    with_token,
};

mod credentials;

const COUNT: usize = 62;

fn canary(number: usize) -> String {
    assert!(number < COUNT, "{number}: raise the count");
    format!("zq{number:02}canary")
}

/// What was logged on this thread.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

/// Everything that this thread logs goes to `log`, until what this returns is dropped.
pub fn hear(log: &Log) -> (tracing::subscriber::DefaultGuard, tracing::Dispatch) {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .with_ansi(false)
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    // With a single subscriber, `tracing` asks the thread that comes to a log line first whether anybody listens, and
    // other tests' threads say for all: never. With two it asks them all.
    (guard, tracing::Dispatch::new(tracing_subscriber::registry()))
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn forged(header: &serde_json::Value, claims: &serde_json::Value) -> String {
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode([7; 64]))
}

/// A question with a secret in every value that a caller may send.
fn full(token: &str) -> v1::CheckRequest {
    let c = canary;
    let mut resource = object(
        "Thing",
        "t-1",
        [
            ("open", truth(true)),
            ("label", text(&c(29))),
            ("tags", list(vec![text(&c(30))])),
            ("lists", list(vec![list(vec![text(&c(31))])])),
            ("deep", record([("name", text(&c(32))), ("below", record([("name", text(&c(33)))]))])),
            ("owner", reference("User", &c(34))),
            ("owners", list(vec![reference("User", &c(35))])),
        ],
    );
    resource.parents = vec![parent("Group", &c(36))];
    v1::CheckRequest {
        context: Some(attributes([
            ("note", text(&c(24))),
            ("many", list(vec![text(&c(25))])),
            ("more", record([("name", text(&c(26))), ("below", record([("name", text(&c(27)))]))])),
            ("who", reference("User", &c(28))),
        ])),
        entities: vec![
            entity("User", &c(28), vec![]),
            v1::Entity {
                attributes: Some(attributes([("name", text(&c(38)))])),
                ..entity("User", &c(37), vec![parent("Group", &c(39))])
            },
        ],
        fields: Some(fields(["count"])),
        ..with_token(token, "read", resource)
    }
}

/// THREATS V-ADM-1, V-AUD-2, T11. One thread, so that everything that is logged is heard.
#[tokio::test]
async fn sixty_secrets_in_every_input_come_out_nowhere() {
    let log = Log::default();
    let heard = hear(&log);
    let c = canary;
    let gatepost = Gatepost::start_over(&wide_bundle(), wide_settings).await;
    let channel = channel(&gatepost, "storefront").await;

    let claims = json!({
        "email": c(0), "nonce": c(1), "sid": c(2), "nested": { "a": { "b": c(3) } }, "list": [c(4), { "x": c(5) }],
        c(6): 1, "phone": c(7), "at_hash": c(8), "session_state": c(9), "jti": c(10), "name": c(11),
    });
    let token = gatepost.token_with("alice", &claims, minutes(5));
    let expired = gatepost.token_with(&c(52), &json!({ "exp": 1_000_000, "iat": 999_999, "nbf": 1 }), minutes(5));
    let header = |kid: &str| json!({ "alg": "ES256", "kid": kid, "typ": "at+jwt" });
    let garbage = c(49);
    let strange_key = forged(&header(&c(50)), &json!({ "iss": "https://idp.shop.example", "sub": "x" }));
    let strange_issuer = forged(&header("demo-1"), &json!({ "iss": c(51), "sub": "x" }));
    let mut asserted = full(&token);
    asserted.subject = Some(v1::check_request::Subject::Asserted(v1::AssertedSubject {
        r#type: "User".into(),
        id: "alice".into(),
        attributes: Some(attributes([("name", text(&c(40)))])),
        parents: vec![parent("Group", &c(41))],
    }));
    let mut requests = vec![full(&token), asserted];
    requests.extend([&expired, &garbage, &strange_key, &strange_issuer].map(|token| full(token)));
    let mut spoil = |change: &dyn Fn(&mut v1::CheckRequest)| {
        let mut request = full(&token);
        change(&mut request);
        requests.push(request);
    };
    let thing = |request: &mut v1::CheckRequest, name: String| {
        let attributes = request.resource.as_mut().unwrap().attributes.as_mut().unwrap();
        attributes.fields.insert(name, text("x"));
    };
    spoil(&|request| thing(request, c(42)));
    spoil(&|request| request.context = Some(attributes([(c(43), text("x"))])));
    spoil(&|request| request.resource.as_mut().unwrap().id = Some(format!("{}\0", c(44))));
    spoil(&|request| request.resource.as_mut().unwrap().r#type = format!("{} ", c(45)));
    spoil(&|request| request.fields = Some(fields([format!("{} ", c(46)).as_str()])));
    spoil(&|request| request.action = format!("{}\0", c(47)));
    spoil(&|request| thing(request, format!("{}\0", c(48))));
    spoil(&|request| {
        request.subject = Some(v1::check_request::Subject::Asserted(v1::AssertedSubject {
            r#type: "User".into(),
            id: format!("{}\u{202e}", c(58)),
            ..v1::AssertedSubject::default()
        }));
    });

    let secrets: Vec<(&str, String)> = vec![
        ("authorization", c(12)),
        ("cookie", c(13)),
        ("x-request-id", format!("{} with spaces", c(14))),
        ("baggage", format!("k={}", c(15))),
        ("tracestate", format!("v={}", c(16))),
        ("x-forwarded-for", c(17)),
        ("x-forwarded-client-cert", c(18)),
        ("proxy-authorization", c(19)),
        ("x-api-key", c(20)),
        ("forwarded", format!("for={}", c(59))),
        ("x-real-ip", c(60)),
        ("secret-bin", c(21)),
        ("traceparent", c(22)),
        ("grpc-timeout", c(23)),
    ];
    let named = format!("x-{}", c(56));
    let mut headers: Vec<(&str, &[u8])> = secrets.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    headers.push((named.as_str(), b"1"));

    let mut answers = Vec::new();
    let mut told = Vec::new();
    for request in &requests {
        let reply = call(channel.clone(), CHECK, &headers, framed(0, &request.encode_to_vec())).await;
        told.push(reply.told());
        answers.extend(reply.whole);
    }
    let mut bad = plain(&token);
    bad.resource.as_mut().unwrap().id = Some(format!("{}\n", c(57)));
    let item = |request: v1::CheckRequest| v1::BatchCheckItem {
        action: request.action,
        resource: request.resource,
        fields: request.fields,
    };
    let batch = v1::BatchCheckRequest {
        subject: Some(v1::batch_check_request::Subject::Token(token.clone())),
        context: full(&token).context,
        entities: full(&token).entities,
        items: vec![item(full(&token)), item(bad)],
        ..v1::BatchCheckRequest::default()
    };
    let torn = [&plain(&token).encode_to_vec()[..], c(53).as_bytes()].concat();
    let unknown = format!("/gatepost.v1.DecisionService/{}", c(54));
    let (framed_batch, framed_plain) = (framed(0, &batch.encode_to_vec()), framed(0, &plain(&token).encode_to_vec()));
    for reply in [
        call(channel.clone(), BATCH, &headers, framed_batch).await,
        call(channel.clone(), CHECK, &headers, framed(0, &torn)).await,
        call(channel.clone(), &unknown, &headers, framed_plain.clone()).await,
        call(channel.clone(), &format!("{CHECK}?q={}", c(61)), &headers, framed_plain.clone()).await,
        call(channel.clone(), CHECK, &[("content-type", format!("text/{}", c(55)).as_bytes())], framed_plain).await,
    ] {
        answers.extend(reply.whole);
    }
    assert_eq!(told[..3], ["ALLOW", "ALLOW", "DENY TOKEN_EXPIRED"], "the secrets got as far as the policies");
    assert!(told[6..].iter().all(|told| told.starts_with("InvalidArgument")), "{told:?}");

    let records = gatepost.trail().into_bytes();
    let metrics = gatepost.metrics().await;
    drop(heard);
    // `tonic::transport` is the client of this test, which logs what it sends. Everything else counts, libraries too.
    let log = String::from_utf8(log.0.lock().clone()).unwrap();
    let ours: Vec<&str> = log.lines().filter(|line| !line.contains(" tonic::transport::")).collect();
    assert!(ours.iter().any(|line| line.contains("no decision")), "the log is heard");

    let mut secrets: Vec<String> = (0..COUNT).map(canary).collect();
    for token in [&token, &expired, &strange_key, &strange_issuer] {
        secrets.extend(token.split('.').skip(1).map(str::to_owned));
    }
    let key = std::fs::read_to_string(gatepost.path("server.key")).unwrap();
    secrets.extend(key.lines().nth(1).map(str::to_owned));
    let places = [
        ("an answer", String::from_utf8_lossy(&answers).into_owned()),
        ("a record", String::from_utf8_lossy(&records).into_owned()),
        ("a metric", metrics),
        ("a log line", ours.join("\n")),
    ];
    println!(
        "{} secrets of questions, searched for in {} answers, {} records, {} log lines",
        secrets.len(),
        requests.len() + 5,
        records.split(|byte| *byte == b'\n').count() - 1,
        ours.len()
    );
    let mut leaks = Vec::new();
    for (place, text) in &places {
        assert!(text.len() > 100, "{place}: there is something to search");
        for secret in secrets.iter().filter(|secret| text.contains(secret.as_str())) {
            leaks.push(format!("{secret} in {place}"));
        }
    }
    assert!(leaks.is_empty(), "{leaks:#?}");
}
