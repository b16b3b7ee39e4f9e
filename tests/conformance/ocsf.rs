//! Our audit records against the OCSF 1.8.0 schemas.
//!
//! First the corpus's own samples come out as it says, which proves that the check can fail; then every kind of record
//! that the trail can write is written by the real trail to a real file and checked.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::support::say;
use gatepost::audit::patterns::Alert;
use gatepost::audit::{
    AdminEntry, AdminFailure, AlertEntry, CallEntry, CallerFacts, ChangeFacts, Entry, HandshakeEntry, HostFacts,
    LifecycleEntry, Outcome, PolicyEntry, QuestionFacts, SubjectFacts, Trail,
};
use gatepost::clock::SystemClock;
use gatepost::config::{AuditConfig, AuditMode, Keeping, Limits, OnAuditFailure, Pattern, PatternsConfig, SpoolConfig};
use gatepost::model::decision::{CacheUse, Decision, Denial, DenialCode, PolicyError, Ruling};
use gatepost::model::entity::{EntityId, EntityType, EntityUid, RawRecord, RawValue};
use gatepost::model::field_path::FieldPath;
use gatepost::model::ids::{DecisionId, PolicyRevision, RequestId};
use gatepost::model::question::{BatchPosition, Circumstances};
use gatepost::token::{Actor, Confirmation, TokenFacts};
use jsonschema::Validator;
use serde_json::Value;

/// The schemas by `class_uid`.
fn schemas(folder: &Path) -> BTreeMap<u64, Validator> {
    let files = [
        (6003, "api_activity"),
        (3002, "authentication"),
        (3004, "entity_management"),
        (6002, "application_lifecycle"),
    ];
    let read = |name: &str| -> Value {
        let text = fs::read_to_string(folder.join(format!("{name}-1.8.0.schema.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    files.into_iter().map(|(class, name)| (class, jsonschema::draft202012::new(&read(name)).unwrap())).collect()
}

fn problems(schema: &Validator, record: &Value) -> Vec<String> {
    schema.iter_errors(record).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn the_corpus_own_samples_come_out_as_it_says() {
    let Some(folder) = crate::support::corpus("ocsf") else { return };
    let schemas = schemas(&folder);
    let text = fs::read_to_string(folder.join("sample-records.json")).unwrap();
    let samples: Value = serde_json::from_str(&text).unwrap();
    let (mut right, mut wrong) = (0, Vec::new());
    for (list, expected) in [("valid", true), ("invalid", false)] {
        for (name, record) in samples[list].as_object().unwrap() {
            let found = problems(&schemas[&6003], record);
            if found.is_empty() == expected {
                right += 1;
            } else {
                wrong.push(format!("{list} {name}: {found:?}"));
            }
        }
    }
    say!("ocsf samples: {right} as expected, {} not", wrong.len());
    assert!(wrong.is_empty() && right > 0, "{wrong:#?}");
}

#[tokio::test]
async fn every_record_we_can_write_is_valid_ocsf() {
    let Some(folder) = crate::support::corpus("ocsf") else { return };
    let schemas = schemas(&folder);
    let home = tempfile::tempdir().unwrap();
    let config = AuditConfig {
        keeping: Keeping { mode: AuditMode::Durable, on_failure: OnAuditFailure::Refuse },
        actions: Vec::new(),
        write_timeout: Duration::from_secs(30),
        queue: 1000,
        spool: SpoolConfig {
            directory: home.path().join("audit"),
            segment_bytes: 64 << 20,
            max_bytes: 1 << 30,
            max_age: Duration::from_secs(86_400),
            reserve_bytes: 1 << 20,
        },
        checkpoints: None,
        attributes: Vec::new(),
        pseudonyms: None,
        patterns: PatternsConfig::default(),
        sinks: Vec::new(),
    };
    let host = HostFacts { hostname: "gatepost-0".to_owned() };
    let trail = Trail::open(&config, &Limits::default(), host, SystemClock::shared(), Arc::new(|_| ())).unwrap();
    let entries = entries();
    let names: Vec<String> = entries.iter().map(|(name, _)| name.clone()).collect();
    for (name, entry) in entries {
        trail.write(&entry).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    trail.close().await;

    let text = fs::read_to_string(home.path().join("audit/segment-000000000001.jsonl")).unwrap();
    let text = text.split_once('\n').unwrap().1;
    assert_eq!(text.lines().count(), names.len());
    let (mut classes, mut wrong) = (BTreeMap::<u64, usize>::new(), Vec::new());
    for (line, name) in text.lines().zip(&names) {
        let record: Value = serde_json::from_str(line).unwrap();
        let class = record["class_uid"].as_u64().unwrap();
        *classes.entry(class).or_default() += 1;
        let found = problems(&schemas[&class], &record);
        if !found.is_empty() {
            wrong.push(format!("{name}: {found:?}"));
        }
        // OCSF's schemas let our own part be anything; what is not known is left out there too.
        if line.contains("\":null") {
            wrong.push(format!("{name}: a null"));
        }
    }
    say!("ocsf records: {} checked, {} wrong; by class {classes:?}", names.len(), wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(classes.keys().copied().collect::<Vec<_>>(), [3002, 3004, 6002, 6003], "every class was there");
}

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn revision(byte: u8) -> PolicyRevision {
    PolicyRevision::from_digest(&[byte; 32])
}

fn entries() -> Vec<(String, Entry)> {
    let mut all: Vec<(String, Entry)> = Vec::new();
    let mut add = |name: String, call: CallEntry| all.push((name, Entry::Call(Box::new(call))));

    for code in DenialCode::ALL {
        add(format!("deny {}", code.as_str()), call(decided(Ruling::deny(code))));
    }
    for (status, reason) in [
        ("PERMISSION_DENIED", "CALLER_NOT_ENROLLED"),
        ("UNAUTHENTICATED", "CERTIFICATE_EXPIRED"),
        ("INVALID_ARGUMENT", "MALFORMED"),
        ("RESOURCE_EXHAUSTED", "OVERLOADED"),
        ("RESOURCE_EXHAUSTED", "CALLER_OVER_SHARE"),
        ("DEADLINE_EXCEEDED", "DEADLINE"),
    ] {
        add(format!("refused {status}"), call(Outcome::Refused { status, reason }));
        let unread =
            CallEntry { question: None, caller: CallerFacts::default(), ..call(Outcome::Refused { status, reason }) };
        add(format!("refused {status}, nothing known"), unread);
    }
    for (status, reason) in
        [("UNAVAILABLE", "NO_POLICIES"), ("INTERNAL", "PANIC"), ("UNAVAILABLE", "AUDIT_UNAVAILABLE")]
    {
        add(format!("failed {status} {reason}"), call(Outcome::Failed { status, reason }));
    }
    for action in ["Order.create", "Order.read", "Shop::Order.update", "Order.delete", "Order.approve", "odd", ""] {
        let asked = QuestionFacts { action: action.to_owned(), ..question() };
        add(format!("action {action:?}"), CallEntry { question: Some(asked), ..call(decided(allow())) });
    }
    for cache in [CacheUse::Hit, CacheUse::Miss, CacheUse::Bypass] {
        let outcome = Outcome::Decided { ruling: Arc::new(allow()), revision: revision(1), cache };
        add(format!("cache {}", cache.as_str()), call(outcome));
    }
    for (kind, token) in [("token", true), ("asserted", false), ("caller", false), ("anonymous", false)] {
        let subject = SubjectFacts {
            kind: Some(kind),
            principal: Some(user("alice")),
            token: token.then(|| Arc::new(facts())),
            token_refusal: None,
            client_address: None,
        };
        add(format!("subject {kind}"), CallEntry { subject, ..call(decided(allow())) });
    }
    let client_address = Some([0, 0, 0, 0, 0, 0xffff, 0x0a00, 1].into());
    let key = SubjectFacts {
        kind: Some("api_key"),
        client_address,
        token: Some(Arc::new(facts())),
        ..SubjectFacts::default()
    };
    add("subject api_key".to_owned(), CallEntry { subject: key, ..call(decided(allow())) });
    let bare = TokenFacts { id_sha256: None, key_id: None, amr: Default::default(), ..facts() };
    let subject = SubjectFacts { kind: Some("token"), token: Some(Arc::new(bare)), ..SubjectFacts::default() };
    add("a token without an id".to_owned(), CallEntry { subject, ..call(decided(allow())) });
    let refused = SubjectFacts { kind: Some("token"), token_refusal: Some("signature"), ..SubjectFacts::default() };
    let denied = decided(Ruling::deny(DenialCode::TokenRejected));
    add("a refused token".to_owned(), CallEntry { subject: refused, ..call(denied) });

    let conditional = Ruling { decision: Decision::Conditional, ..allow() };
    let function = QuestionFacts { resource_id: None, ..question() };
    add("function level".to_owned(), CallEntry { question: Some(function), ..call(decided(conditional)) });
    let masked = Ruling { fields: Some(vec![path("email"), path("address.city")]), ..allow() };
    let every = QuestionFacts { fields: Some(Vec::new()), ..question() };
    add("a read mask of all".to_owned(), CallEntry { question: Some(every), ..call(decided(masked.clone())) });
    let named = QuestionFacts { fields: Some(vec!["email".to_owned(), "role".to_owned()]), ..question() };
    add("a read mask of some".to_owned(), CallEntry { question: Some(named.clone()), ..call(decided(masked)) });
    let strict = Ruling {
        denial: Some(Denial { code: DenialCode::FieldNotGranted, refused_fields: vec![path("role")] }),
        ..Ruling::deny(DenialCode::FieldNotGranted)
    };
    add("a strict write".to_owned(), CallEntry { question: Some(named), ..call(decided(strict)) });
    let erring = Ruling {
        errors: vec![PolicyError { policy: "guard".to_owned(), class: "attribute_missing" }],
        ..Ruling::deny(DenialCode::PolicyError)
    };
    add("a policy that erred".to_owned(), call(decided(erring)));
    let obliged = Ruling { obligations: vec!["step-up".to_owned()], ..allow() };
    add("obligations".to_owned(), call(decided(obliged)));

    for index in 0..3 {
        let circumstances = Circumstances {
            request_id: RequestId::parse("req-7f3a").filter(|_| index > 0),
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()),
            span_id: Some("00f067aa0ba902b7".to_owned()).filter(|_| index > 1),
            batch: Some(BatchPosition { index, of: 3 }),
            batch_id: Some(DecisionId::mint(noon())),
        };
        let item = CallEntry { operation: "BatchCheck", circumstances, ..call(decided(allow())) };
        add(format!("batch item {index}"), item);
    }
    let kept = [
        RawValue::Bool(true),
        RawValue::Number(0.5),
        RawValue::Number(f64::NAN),
        RawValue::Integer(i64::MIN),
        RawValue::Text("x".repeat(5000)),
        RawValue::List(vec![RawValue::Text("a\u{202e}b".to_owned())]),
        RawValue::Record(RawRecord::from_iter([("n".to_owned(), RawValue::Bool(false))])),
    ];
    let kept = kept.into_iter().enumerate().map(|(at, value)| (format!("context.v{at}"), value)).collect();
    let asked = QuestionFacts {
        kept,
        context_sha256: Some("2c".repeat(32)),
        asserted: vec!["resource.owner".to_owned(), "subject".to_owned()],
        ..question()
    };
    add("kept values".to_owned(), CallEntry { question: Some(asked), ..call(decided(allow())) });
    let odd = "\0\u{1b}[31m\u{202e}\u{2028}\"\\\u{fffe}\u{10ffff}".to_owned();
    let asked = QuestionFacts {
        action: odd.clone(),
        resource_type: odd.clone(),
        resource_id: Some(odd.repeat(200)),
        ..question()
    };
    add("hostile text".to_owned(), CallEntry { question: Some(asked), ..call(decided(allow())) });
    for place in
        ["127.0.0.1:1", "[::1]:65535", "[2001:db8::ffff:1]:0", "[::ffff:10.0.0.1]:9", "[fe80::1]:80", "0.0.0.0:0"]
    {
        let caller = CallerFacts { address: Some(address(place)), ..CallerFacts::default() };
        let listener = address(place);
        add(format!("address {place}"), CallEntry { caller, listener, ..call(decided(allow())) });
    }
    add(
        "before 1970".to_owned(),
        CallEntry { time: SystemTime::UNIX_EPOCH - Duration::from_secs(1), ..call(decided(allow())) },
    );

    for (reason, suppressed) in [("NO_CERTIFICATE", 0), ("UNKNOWN_ISSUER", 7), ("TIMEOUT", u64::from(u32::MAX))] {
        let entry = HandshakeEntry {
            time: noon(),
            address: address("[2001:db8::1]:50000"),
            listener: address("0.0.0.0:8443"),
            reason,
            suppressed,
        };
        all.push((format!("handshake {reason}"), Entry::Handshake(entry)));
    }
    for (before, after, problems) in [
        (None, Some(revision(1)), 0),
        (Some(revision(1)), Some(revision(2)), 0),
        (Some(revision(2)), None, 3),
        (None, None, 1),
    ] {
        all.push((format!("policy {problems}"), Entry::Policy(PolicyEntry { time: noon(), before, after, problems })));
    }
    for (operation, change) in [("RevokeSubject", true), ("ListRevocations", false), ("unknown", false)] {
        for failure in [
            None,
            failed("PERMISSION_DENIED", "OPERATOR_NOT_ENTITLED", None, false),
            failed("UNAUTHENTICATED", "CALLER_NOT_IDENTIFIED", Some("CERTIFICATE_REVOKED"), false),
            failed("UNAVAILABLE", "REVOCATION_NOT_STORED", None, true),
        ] {
            let change = change.then(|| ChangeFacts {
                kind: "subject",
                key: "ab".repeat(32),
                issuer: Some("https://issuer.test".to_owned()),
                subject: Some("alice\u{202e}".to_owned()),
                issued_before: Some(1_800_000_000),
                until: 1_800_000_600,
                reason: "laptop stolen".to_owned(),
            });
            let entry = AdminEntry {
                call_id: DecisionId::mint(noon()),
                time: noon(),
                operation,
                operator: CallerFacts { address: Some(address("[2001:db8::1]:50000")), ..CallerFacts::default() },
                request_id: RequestId::parse("case-4711"),
                change,
                failure,
            };
            all.push((format!("{operation} {failure:?}"), Entry::Admin(Box::new(entry))));
        }
    }
    for started in [true, false] {
        all.push((format!("started {started}"), Entry::Lifecycle(LifecycleEntry { time: noon(), started })));
    }
    for pattern in Pattern::ALL {
        let alert = Alert {
            pattern,
            key: "principal",
            subject: Some("User::\"alice\"".to_owned()),
            caller: Some("orders".to_owned()),
            address: Some("192.0.2.7".parse().unwrap()),
            action: Some("Order.read".to_owned()),
            resource_type: Some("Order".to_owned()),
            window: Duration::from_secs(60),
            count: 5,
            first_id: Some("o-1".to_owned()),
            last_id: Some("o-5".to_owned()),
            samples: vec![DecisionId::mint(noon()); 10],
        };
        let bare = Alert {
            subject: None,
            caller: None,
            address: None,
            action: None,
            resource_type: None,
            first_id: None,
            last_id: None,
            samples: Vec::new(),
            key: "account",
            ..alert.clone()
        };
        for (how, alert) in [("whole", alert), ("bare", bare)] {
            let entry = AlertEntry { time: noon(), alert };
            all.push((format!("{how} {}", pattern.as_str()), Entry::Alert(Box::new(entry))));
        }
    }
    all
}

fn failed(
    status: &'static str,
    reason: &'static str,
    caller_refusal: Option<&'static str>,
    ours: bool,
) -> Option<AdminFailure> {
    Some(AdminFailure { status, reason, caller_refusal, ours })
}

pub fn call(outcome: Outcome) -> CallEntry {
    CallEntry {
        decision_id: DecisionId::mint(noon()),
        time: noon(),
        duration: Duration::from_micros(84),
        operation: "Check",
        caller: CallerFacts {
            address: Some(address("10.1.2.3:52114")),
            name: Some("spiffe://corp.test/ns/prod/sa/orders".to_owned()),
            label: Some("orders".to_owned()),
            certificate_sha256: Some("ab".repeat(32)),
            refusal: None,
        },
        listener: address("127.0.0.1:8443"),
        circumstances: Circumstances::default(),
        question: Some(question()),
        subject: SubjectFacts::default(),
        outcome,
    }
}

fn question() -> QuestionFacts {
    QuestionFacts {
        action: "Order.read".to_owned(),
        resource_type: "Order".to_owned(),
        resource_id: Some("o-1001".to_owned()),
        fields: None,
        context_sha256: None,
        kept: Vec::new(),
        asserted: Vec::new(),
    }
}

fn decided(ruling: Ruling) -> Outcome {
    Outcome::Decided { ruling: Arc::new(ruling), revision: revision(0x9a), cache: CacheUse::Miss }
}

fn allow() -> Ruling {
    Ruling {
        decision: Decision::Allow,
        denial: None,
        determining: vec!["orders.read.own".to_owned()],
        ..Ruling::deny(DenialCode::NoPermit)
    }
}

fn path(text: &str) -> FieldPath {
    FieldPath::parse(text).unwrap()
}

fn user(id: &str) -> EntityUid {
    EntityUid { entity_type: EntityType::parse("User").unwrap(), id: EntityId::parse(id, 1024).unwrap() }
}

fn facts() -> TokenFacts {
    TokenFacts {
        issuer: "https://issuer.test".to_owned(),
        subject: "alice".to_owned(),
        issued_at: noon(),
        expires_at: noon() + Duration::from_secs(300),
        id_sha256: Some("5c1f".to_owned()),
        scopes: ["orders".to_owned()].into(),
        acr: None,
        amr: ["mfa".to_owned()].into(),
        auth_time: None,
        client_id: Some("shop-app".to_owned()),
        actors: vec![
            Actor { subject: "spiffe://corp.test/orders".to_owned(), issuer: None },
            Actor { subject: "gateway".to_owned(), issuer: Some("https://other.test".to_owned()) },
        ],
        confirmation: Some(Confirmation::CertificateSha256([7; 32])),
        session_sha256: None,
        algorithm: "ES256",
        key_id: Some("k1".to_owned()),
    }
}
