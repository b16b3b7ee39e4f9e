//! What a record says, row by row. That every record is valid OCSF is checked in `tests/conformance/ocsf.rs`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::audit::format::Hash;
use crate::config::{AuditMode, OnAuditFailure};
use crate::model::decision::{CacheUse, Decision, Denial, DenialCode, PolicyError};
use crate::model::entity::{EntityId, EntityType, RawRecord, RawValue, is_hidden};
use crate::model::field_path::FieldPath;
use crate::model::ids::{DecisionId, RequestId};
use crate::model::question::{BatchPosition, Circumstances};
use crate::token::{Actor, Confirmation, TokenFacts};

pub(in crate::audit) fn frame() -> Frame {
    Frame {
        host: HostFacts { hostname: "gatepost-0".to_owned() },
        boot: "boot".to_owned(),
        keeping: Keeping { mode: AuditMode::Durable, on_failure: OnAuditFailure::Refuse },
        exceptions: 0,
    }
}

pub(in crate::audit) fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123)
}

fn question() -> QuestionFacts {
    QuestionFacts {
        action: "Account.read".to_owned(),
        resource_type: "Account".to_owned(),
        resource_id: Some("a-1".to_owned()),
        fields: None,
        context_sha256: None,
        kept: Vec::new(),
        asserted: Vec::new(),
    }
}

pub(in crate::audit) fn call(outcome: Outcome) -> CallEntry {
    CallEntry {
        decision_id: DecisionId::mint(noon()),
        time: noon(),
        duration: Duration::from_micros(84),
        operation: "Check",
        caller: CallerFacts {
            address: Some("[::ffff:10.1.2.3]:52114".parse().unwrap()),
            name: Some("spiffe://corp.test/ns/prod/sa/orders".to_owned()),
            label: Some("orders".to_owned()),
            certificate_sha256: Some("ab".repeat(32)),
            refusal: None,
        },
        listener: "127.0.0.1:8443".parse().unwrap(),
        circumstances: Circumstances::default(),
        question: Some(question()),
        subject: SubjectFacts::default(),
        outcome,
    }
}

pub(in crate::audit) fn decided(ruling: Ruling) -> Outcome {
    Outcome::Decided {
        ruling: Arc::new(ruling),
        revision: PolicyRevision::from_digest(&[0x9a; 32]),
        cache: CacheUse::Miss,
    }
}

pub(in crate::audit) fn allow() -> Ruling {
    Ruling {
        decision: Decision::Allow,
        denial: None,
        determining: vec!["account.owner-reads".to_owned()],
        ..Ruling::deny(DenialCode::NoPermit)
    }
}

fn token() -> TokenFacts {
    TokenFacts {
        issuer: "https://issuer.test".to_owned(),
        subject: "alice".to_owned(),
        issued_at: noon(),
        expires_at: noon() + Duration::from_secs(300),
        id_sha256: Some("ab12".to_owned()),
        scopes: ["secret-scope".to_owned()].into(),
        acr: Some("secret-acr".to_owned()),
        amr: ["mfa".to_owned()].into(),
        auth_time: None,
        client_id: Some("shop-app".to_owned()),
        actors: vec![
            Actor { subject: "spiffe://corp.test/ns/prod/sa/orders".to_owned(), issuer: None },
            Actor { subject: "gateway".to_owned(), issuer: Some("https://other.test".to_owned()) },
        ],
        confirmation: Some(Confirmation::CertificateSha256([7; 32])),
        session_sha256: None,
        algorithm: "ES256",
        key_id: Some("k1".to_owned()),
    }
}

fn written(entry: Entry) -> Value {
    let mut out = Vec::new();
    render(&entry, &frame()).unwrap().seal(4711, Hash::GENESIS, &mut out);
    assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
    serde_json::from_slice(&out).unwrap()
}

fn of(call: CallEntry) -> Value {
    written(Entry::Call(Box::new(call)))
}

#[test]
fn an_outcome_is_told_in_ocsfs_numbers() {
    let erring = Ruling {
        errors: vec![PolicyError { policy: "p".to_owned(), class: "overflow" }],
        ..Ruling::deny(DenialCode::PolicyError)
    };
    let conditional = Ruling { decision: Decision::Conditional, denial: None, ..allow() };
    let deny = |code| decided(Ruling::deny(code));
    // status_id, action_id, disposition_id, severity_id, status_code, status_detail
    let table = [
        (decided(allow()), (1, 1, 1, 1, "OK", None), "access"),
        (decided(conditional), (1, 99, 99, 1, "OK", None), "no access, and no refusal either"),
        (deny(DenialCode::NoPermit), (2, 2, 2, 1, "OK", Some("NO_PERMIT")), "a denial is data"),
        (deny(DenialCode::TokenExpired), (2, 2, 26, 1, "OK", Some("TOKEN_EXPIRED")), "about the token"),
        (decided(erring), (2, 2, 27, 4, "OK", Some("POLICY_ERROR")), "failing closed is an alert"),
        (
            Outcome::Refused { status: "PERMISSION_DENIED", reason: "CALLER_NOT_ENROLLED" },
            (2, 2, 26, 2, "PERMISSION_DENIED", Some("CALLER_NOT_ENROLLED")),
            "a stranger",
        ),
        (
            Outcome::Refused { status: "INVALID_ARGUMENT", reason: "MALFORMED" },
            (2, 2, 25, 2, "INVALID_ARGUMENT", Some("MALFORMED")),
            "malformed",
        ),
        (
            Outcome::Failed { status: "UNAVAILABLE", reason: "NO_POLICIES" },
            (2, 2, 27, 4, "UNAVAILABLE", Some("NO_POLICIES")),
            "our fault",
        ),
    ];
    for (outcome, expected, why) in table {
        let record = of(call(outcome));
        let number = |key: &str| record[key].as_i64().unwrap();
        let got = (
            number("status_id"),
            number("action_id"),
            number("disposition_id"),
            number("severity_id"),
            record["status_code"].as_str().unwrap(),
            record["status_detail"].as_str(),
        );
        assert_eq!(got, expected, "{why}");
    }
}

#[test]
fn an_activity_is_named_by_the_actions_verb() {
    let table = [
        ("Account.read", 2, "Read"),
        ("Shop::Account.read", 2, "Read"),
        ("Account.read:address.city", 2, "Read"),
        ("Account.read#basic", 2, "Read"),
        ("Order.list", 2, "Read"),
        ("get", 2, "Read"),
        ("view", 2, "Read"),
        ("Order.create", 1, "Create"),
        ("Order.update", 3, "Update"),
        ("Order.write", 3, "Update"),
        ("Order.delete", 4, "Delete"),
        ("Order.approve", 99, "approve"),
        ("Order.READ", 99, "READ"),
        ("Order.", 99, "Other"),
        ("", 99, "Other"),
    ];
    for (action, id, name) in table {
        assert_eq!(activity(action), (id, name), "{action}");
    }
    let record = of(CallEntry { question: None, ..call(Outcome::Refused { status: "INVALID_ARGUMENT", reason: "X" }) });
    assert_eq!((&record["activity_id"], &record["type_uid"]), (&0.into(), &600_300.into()), "nothing could be read");
}

#[test]
fn a_call_is_recorded_with_who_what_where_and_why() {
    let asked = QuestionFacts {
        fields: Some(vec!["email".to_owned(), "role".to_owned()]),
        context_sha256: Some("2c".repeat(32)),
        kept: vec![("context.channel".to_owned(), RawValue::Text("web".to_owned()))],
        asserted: vec!["resource.attributes".to_owned()],
        ..question()
    };
    let token = token();
    let alice =
        EntityUid { entity_type: EntityType::parse("User").unwrap(), id: EntityId::parse("ali\"ce", 1024).unwrap() };
    let refused = Ruling {
        denial: Some(Denial {
            code: DenialCode::FieldNotGranted,
            refused_fields: vec![FieldPath::parse("role").unwrap()],
        }),
        determining: vec!["guard".to_owned()],
        ..Ruling::deny(DenialCode::FieldNotGranted)
    };
    let record = of(CallEntry {
        question: Some(asked),
        subject: SubjectFacts {
            kind: Some("token"),
            principal: Some(alice),
            token: Some(Arc::new(token)),
            token_refusal: None,
            client_address: None,
        },
        circumstances: Circumstances {
            request_id: RequestId::parse("req-1"),
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()),
            span_id: Some("00f067aa0ba902b7".to_owned()),
            batch: Some(BatchPosition { index: 2, of: 3 }),
            batch_id: Some(DecisionId::mint(noon())),
        },
        ..call(decided(refused))
    });
    let table = [
        ("/metadata/sequence", Value::from(4711)),
        ("/metadata/correlation_uid", "req-1".into()),
        ("/time", 1_800_000_000_123_i64.into()),
        ("/time_dt", "2027-01-15T08:00:00.123Z".into()),
        ("/unmapped/gatepost/decision_us", 84.into()),
        ("/actor/user/uid", "https://issuer.test|alice".into()),
        ("/actor/session/uid", "sha256:ab12".into()),
        ("/actor/session/is_mfa", true.into()),
        ("/actor/app_uid", "spiffe://corp.test/ns/prod/sa/orders".into()),
        ("/actor/authorizations/0/policy/uid", "guard".into()),
        ("/src_endpoint/ip", "10.1.2.3".into()),
        ("/src_endpoint/port", 52114.into()),
        ("/dst_endpoint/port", 8443.into()),
        ("/resources/0/uid", "a-1".into()),
        ("/api/operation", "Account.read".into()),
        ("/api/response/code", 0.into()),
        ("/trace/span/uid", "00f067aa0ba902b7".into()),
        ("/policy/version", format!("sha256:{}", "9a".repeat(32)).into()),
        ("/unmapped/gatepost/principal", "User::\"ali\\\"ce\"".into()),
        ("/unmapped/gatepost/token_client", "shop-app".into()),
        ("/unmapped/gatepost/cnf", "x5t#S256".into()),
        ("/unmapped/gatepost/act/0/sub", "spiffe://corp.test/ns/prod/sa/orders".into()),
        ("/unmapped/gatepost/act/1/iss", "https://other.test".into()),
        ("/unmapped/gatepost/level", "field".into()),
        ("/unmapped/gatepost/field_mask/asked/0", "email".into()),
        ("/unmapped/gatepost/field_mask/denied/0", "role".into()),
        ("/unmapped/gatepost/batch/index", 2.into()),
        ("/unmapped/gatepost/kept/context.channel", "web".into()),
        ("/unmapped/gatepost/asserted_by_caller/0", "resource.attributes".into()),
    ];
    for (place, expected) in table {
        assert_eq!(record.pointer(place), Some(&expected), "{place}");
    }
    assert_eq!(record.pointer("/unmapped/gatepost/act/0/iss"), None, "the token's own issuer is said once");
    assert!(!record.to_string().contains("secret-"), "claims that no list names stay out");
}

/// THREATS T11: each dangerous character in each text that somebody else chose.
#[test]
fn no_text_can_break_a_line_or_hide_in_one() {
    let dangerous = (0..=255_u32).chain((0..=0x10_ffff).filter(|code| char::from_u32(*code).is_some_and(is_hidden)));
    let dangerous: Vec<char> = dangerous.chain([0xfffe, 0x1_ffff, 0xfdd0]).filter_map(char::from_u32).collect();
    for c in dangerous {
        let text = format!("a{c}b");
        let asked = QuestionFacts {
            action: format!("X.{text}"),
            resource_type: text.clone(),
            resource_id: Some(text.clone()),
            fields: Some(vec![text.clone()]),
            context_sha256: Some(text.clone()),
            kept: vec![(
                text.clone(),
                RawValue::Record(RawRecord::from_iter([(text.clone(), RawValue::Text(text.clone()))])),
            )],
            asserted: vec![text.clone()],
        };
        let ruling = Ruling {
            obligations: vec![text.clone()],
            determining: vec![text.clone()],
            errors: vec![PolicyError { policy: text.clone(), class: "overflow" }],
            ..allow()
        };
        let token = TokenFacts {
            issuer: text.clone(),
            subject: text.clone(),
            issued_at: noon(),
            expires_at: noon(),
            id_sha256: Some(text.clone()),
            scopes: Default::default(),
            acr: None,
            amr: Default::default(),
            auth_time: None,
            client_id: Some(text.clone()),
            actors: vec![Actor { subject: text.clone(), issuer: Some(text.clone()) }],
            confirmation: None,
            session_sha256: None,
            algorithm: "ES256",
            key_id: Some(text.clone()),
        };
        let entry = CallEntry {
            caller: CallerFacts {
                address: None,
                name: Some(text.clone()),
                label: Some(text.clone()),
                certificate_sha256: Some(text.clone()),
                refusal: None,
            },
            question: Some(asked),
            subject: SubjectFacts { token: Some(Arc::new(token)), ..SubjectFacts::default() },
            circumstances: Circumstances {
                trace_id: Some(text.clone()),
                span_id: Some(text.clone()),
                ..Circumstances::default()
            },
            ..call(decided(ruling))
        };
        let mut line = Vec::new();
        render(&Entry::Call(Box::new(entry)), &frame()).unwrap().seal(1, Hash::GENESIS, &mut line);
        let line = String::from_utf8(line).unwrap();
        let bare: Vec<char> = line.trim_end_matches('\n').chars().filter(|c| is_hidden(*c)).collect();
        assert!(bare.is_empty(), "U+{:04X} stands bare", u32::from(c));
        let record: Value = serde_json::from_str(&line).unwrap();
        for place in [
            "/activity_name",
            "/actor/user/name",
            "/actor/user/domain",
            "/actor/session/issuer",
            "/actor/app_name",
            "/actor/app_uid",
            "/actor/authorizations/0/policy/uid",
            "/src_endpoint/uid",
            "/resources/0/name",
            "/resources/0/type",
            "/trace/uid",
            "/trace/span/uid",
            "/unmapped/gatepost/token_kid",
            "/unmapped/gatepost/token_client",
            "/unmapped/gatepost/act/0/sub",
            "/unmapped/gatepost/act/0/iss",
            "/unmapped/gatepost/certificate_sha256",
            "/unmapped/gatepost/context_sha256",
            "/unmapped/gatepost/obligations/0",
            "/unmapped/gatepost/policy_errors/0/policy",
            "/unmapped/gatepost/field_mask/asked/0",
            "/unmapped/gatepost/asserted_by_caller/0",
        ] {
            // Characters that separate the parts of an action's name part this one too.
            let parts = place == "/activity_name" && matches!(c, ':' | '#' | '.');
            assert!(parts || record.pointer(place) == Some(&text.clone().into()), "U+{:04X} at {place}", u32::from(c));
        }
        let kept = &record["unmapped"]["gatepost"]["kept"];
        assert_eq!(kept[&text][&text], text.as_str(), "U+{:04X}, names included", u32::from(c));
    }
}

/// The text of the last second is kept, and must not be taken for another's.
#[test]
fn a_time_is_written_as_the_library_writes_it() {
    let mut dice = fastrand::Rng::with_seed(31);
    let mut millis = 1_795_000_000_000_u64;
    for case in 0..20_000 {
        // The next in a moment, or somewhere else, in either direction.
        millis = if case % 100 == 0 { dice.u64(..253_402_300_800_000) } else { millis + dice.u64(..700) };
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let library = jiff::Timestamp::from_millisecond(i64::try_from(millis).unwrap()).unwrap();
        assert_eq!(utc(time), format!("{library:.3}"));
    }
    let never = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
    assert_eq!(utc(never), "9999-12-31T23:59:59.999Z");
}

#[test]
fn the_longest_number_is_counted_in_a_lines_size() {
    let line = render(&Entry::Call(Box::new(call(decided(allow())))), &frame()).unwrap();
    let mut out = Vec::new();
    line.seal(u64::MAX, Hash::GENESIS, &mut out);
    assert_eq!(out.len(), line.bytes() + 1, "and the line break is not");
}

/// The templates of `recall` against the serializer itself.
#[test]
fn a_record_from_a_template_is_byte_for_byte_the_one_that_would_be_written() {
    use super::template::{Again, Template};

    let nasty = [
        "o-1",
        "",
        r#"","correlation_uid":"x","log_name":""#,
        r#"","request":{"uid":"x"},"response":"#,
        r#"","trace":{"uid":"0","span":{"uid":"1","start_time":1800000000123,"end_time":1800000000123}},"device":"#,
        r#""src_endpoint":{"ip":"10.1.2.3","port":52114,"svc_name":"#,
        r#""decision_us":84,"certificate_sha256":"abab""#,
        "a\\\"time\\\":\u{202e}\u{0}\n",
        "\\",
        "\u{e9}\u{1f600}\u{fdd0}",
    ];
    let times = [1_800_000_000_123, 1_800_000_000_000, 1, 1_893_456_000_999].map(Duration::from_millis);
    let (mut compared, mut seed) = (0, 7_u64);
    let mut draw = |among: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % among
    };
    for _ in 0..2000 {
        let word = |at: usize| nasty[at % nasty.len()].to_owned();
        let mut first = call(decided(allow()));
        first.question = Some(QuestionFacts {
            action: word(draw(10)),
            resource_type: word(draw(10)),
            resource_id: Some(word(draw(10))).filter(|id| !id.is_empty()),
            fields: [None, Some(Vec::new()), Some(vec![word(draw(10)), word(draw(10))])][draw(3)].clone(),
            context_sha256: Some(word(draw(10))),
            kept: vec![(format!("context.{}", word(draw(10))), RawValue::Text(word(draw(10))))],
            asserted: vec![word(draw(10))],
        });
        first.subject = SubjectFacts {
            kind: Some("token"),
            token: Some(Arc::new(TokenFacts { subject: word(draw(10)), issuer: word(draw(10)), ..token() })),
            ..SubjectFacts::default()
        };
        first.caller.label = Some(word(draw(10)));
        let template = Template::of(&first, &frame()).expect("every such record has one");
        for _ in 0..3 {
            let (request, trace, span) = (draw(3), draw(3), draw(2));
            let mut again = first.clone();
            again.time = SystemTime::UNIX_EPOCH + times[draw(4)];
            again.decision_id = DecisionId::mint(again.time);
            again.duration = Duration::from_micros([0, 84, 999_999, 7_200_000_001][draw(4)]);
            again.caller.address =
                Some(["127.0.0.1:1", "[2001:db8::1]:65535", "[::ffff:10.1.2.3]:80"][draw(3)].parse().unwrap());
            again.caller.certificate_sha256 = Some(["cd", "00"][draw(2)].repeat(32));
            again.circumstances = Circumstances {
                request_id: [None, RequestId::parse("x"), RequestId::parse("req/1:2-3._")][request].clone(),
                trace_id: [None, Some("0".repeat(31) + "1"), Some("f".repeat(32))][trace].clone(),
                span_id: (trace > 0 && span > 0).then(|| "e".repeat(16)),
                batch: (span > 0).then_some(BatchPosition { index: 99, of: 100 }),
                batch_id: (span > 0).then(|| DecisionId::mint(again.time)),
            };
            let again_so = Again {
                decision_id: again.decision_id,
                time: again.time,
                duration: again.duration,
                address: again.caller.address.unwrap(),
                certificate_sha256: again.caller.certificate_sha256.as_deref().unwrap(),
                circumstances: &again.circumstances,
                place: None,
            };
            let filled = template.fill(&again_so, Vec::new());
            let mut written = render(&Entry::Call(Box::new(again)), &frame()).unwrap().into_rest();
            let mut filled = filled.into_rest();
            assert!(filled.len() <= template.longest(), "{} of {}", filled.len(), template.longest());
            // Each has an id of its own, which stands after `,"version":"1.8.0","uid":"`.
            let at = br#","version":"1.8.0","uid":""#.len();
            assert_ne!(written[at..at + 36], filled[at..at + 36]);
            written.drain(at..at + 36);
            filled.drain(at..at + 36);
            assert_eq!(String::from_utf8(filled).unwrap(), String::from_utf8(written).unwrap());
            compared += 1;
        }
    }
    println!("{compared} records compared");
}

/// Of many questions in random order, some alike and most not in something: each record is what it would be without kin.
#[test]
fn a_record_from_one_like_it_is_byte_for_byte_what_it_would_be_alone() {
    let ids = [
        "o-1",
        "",
        "a\\\"b",
        "\u{202e}\n",
        "\",\"name\":\"x",
        "\u{1f600}",
        "eyJhbGciOiJIUzI1NiJ9.e30.c2ln",
        "context_sha256",
    ];
    let mut seed = 11_u64;
    let mut draw = |among: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % among
    };
    let rulings: Vec<Arc<Ruling>> =
        (0..3).map(|at| Arc::new(Ruling { determining: vec![format!("policy-{at}")], ..allow() })).collect();
    let tokens: Vec<Arc<TokenFacts>> =
        (0..2).map(|at| Arc::new(TokenFacts { subject: format!("user-{at}"), ..token() })).collect();
    let (kin, frame) = (kin::Kin::default(), frame());
    let (mut like, mut shed, mut keeping, all) = (0, 0, 0, 20_000);
    for _ in 0..all {
        let mut one = call(decided(allow()));
        if let Outcome::Decided { ruling, cache, .. } = &mut one.outcome {
            *ruling = Arc::clone(&rulings[draw(3)]);
            *cache = [CacheUse::Miss, CacheUse::Miss, CacheUse::Bypass][draw(3)];
        }
        one.time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_000 + draw(5_000) as u64);
        one.decision_id = DecisionId::mint(one.time);
        one.duration = Duration::from_micros(draw(100_000) as u64);
        one.operation = ["Check", "Check", "Check", "BatchCheck"][draw(4)];
        one.subject.token = [Some(Arc::clone(&tokens[0])), Some(Arc::clone(&tokens[1])), None][draw(3)].clone();
        let rare = |draw: &mut dyn FnMut(usize) -> usize| draw(30) == 0;
        one.question = (!rare(&mut draw)).then(|| QuestionFacts {
            action: ["Order.read", "Order.read", "Order.list"][draw(3)].to_owned(),
            resource_type: "Order".to_owned(),
            resource_id: match draw(12) {
                0 => None,
                1 => Some("x".repeat(draw(5_000))),
                at => Some(ids[at % ids.len()].to_owned()),
            },
            fields: [None, Some(Vec::new()), Some(vec!["a".to_owned()])][draw(3)].clone(),
            context_sha256: Some(["ab", "cd", "00"][draw(3)].repeat(32)).filter(|_| !rare(&mut draw)),
            kept: match draw(4) {
                0 => vec![("context.x".to_owned(), RawValue::Bool(true))],
                1 => vec![
                    ("principal.tenant".to_owned(), RawValue::Text(ids[draw(8)].to_owned())),
                    (ids[draw(8)].to_owned(), RawValue::List(vec![RawValue::Integer(-7), RawValue::Number(0.5)])),
                ],
                _ => Vec::new(),
            },
            asserted: if rare(&mut draw) { vec!["resource.owner".to_owned()] } else { Vec::new() },
        });
        if draw(3) == 0 {
            let reason = ["OVERLOADED", "CALLER_OVER_SHARE"][draw(2)];
            one.outcome = Outcome::Refused { status: "RESOURCE_EXHAUSTED", reason };
            // What is shed is shed before it is read.
            if !rare(&mut draw) {
                (one.question, one.subject) = (None, SubjectFacts::default());
            }
        }
        if rare(&mut draw) {
            one.caller.label = Some("another".to_owned());
        }
        if rare(&mut draw) {
            one.circumstances.request_id = RequestId::parse("r-1");
        }
        let found = kin.write(&one, &frame, Vec::with_capacity).map(Body::into_rest);
        let Some(mut found) = found else { continue };
        like += 1;
        shed += usize::from(one.outcome.is_shed());
        keeping += usize::from(one.question.as_ref().is_some_and(|asked| !asked.kept.is_empty()));
        let mut alone = render(&Entry::Call(Box::new(one)), &frame).unwrap().into_rest();
        // Each has an id of its own.
        let at = br#","version":"1.8.0","uid":""#.len();
        alone.drain(at..at + 36);
        found.drain(at..at + 36);
        assert_eq!(String::from_utf8(found).unwrap(), String::from_utf8(alone).unwrap());
    }
    println!("{like} of {all} records from one like it: {shed} of calls that were shed, {keeping} with values");
    assert!(like > all / 4 && shed > all / 10 && keeping > all / 20, "{like} {shed} {keeping}");
}
