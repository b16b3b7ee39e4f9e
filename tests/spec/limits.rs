//! Every limit: at it things work, one past it they are refused or denied in plain words, on record, and nobody else
//! notices.

use std::collections::BTreeSet;
use std::path::Path;

use gatepost::cli::demo::world::{AUDIENCE, World};
use gatepost::clock::Clock as _;
use gatepost::config::Limits;
use gatepost::policy::{Bundle, BundleFiles, BundleOptions, SourceFile};
use gatepost::proto::v1;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use crate::bad_input::{entity, plain, wide_bundle, wide_settings};
use crate::support::{Gatepost, minutes};
use crate::wire::{
    Reply, attributes, batch, channel, check, fields, list, object, parent, record, reference, text, truth, with_token,
};

const HERE: &str = "tests/spec/limits.rs";
const DOOR: &str = "src/grpc/server/tests.rs";
const TOKENS: &str = "src/token/tests.rs";
const OPAQUE: &str = "tests/spec/opaque_tokens.rs";
const API_KEYS: &str = "src/token/api_key/tests.rs";
const STREAMS: &str = "tests/spec/streams.rs";
const STATUSES: &str = "tests/spec/status_lists.rs";

/// Which test holds which limit. A new limit without a row fails the test below.
const HELD: [(&str, &str, &str); 63] = [
    ("token_bytes", HERE, "a_token_past_a_limit_is_denied"),
    ("token_json_depth", HERE, "a_token_past_a_limit_is_denied"),
    ("token_claims", HERE, "a_token_past_a_limit_is_denied"),
    ("token_audiences", HERE, "a_token_past_a_limit_is_denied"),
    ("token_actor_depth", HERE, "a_token_past_a_limit_is_denied"),
    ("request_bytes", HERE, "a_message_past_its_size_is_refused"),
    ("batch_bytes", HERE, "a_message_past_its_size_is_refused"),
    ("context_bytes", HERE, "a_message_past_its_size_is_refused"),
    ("batch_items", HERE, "a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name"),
    ("stream_window", STREAMS, "whoever_does_not_read_answers_is_not_read_from"),
    ("stream_entities", STREAMS, "a_stream_that_breaks_the_rules_ends_and_that_is_on_record"),
    ("stream_entity_bytes", STREAMS, "a_stream_that_breaks_the_rules_ends_and_that_is_on_record"),
    ("stream_idle_timeout", STREAMS, "a_stream_on_which_nothing_is_asked_is_ended"),
    ("open_streams", STREAMS, "there_are_so_many_streams_and_each_caller_has_its_share"),
    ("context_keys", HERE, "a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name"),
    ("id_bytes", HERE, "a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name"),
    ("string_bytes", HERE, "a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name"),
    ("set_elements", HERE, "a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name"),
    ("value_depth", HERE, "a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name"),
    ("entity_attributes", HERE, "a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name"),
    ("entities", HERE, "a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name"),
    ("ancestors", HERE, "a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name"),
    ("ancestor_depth", HERE, "a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name"),
    ("field_paths", HERE, "a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name"),
    ("header_bytes", DOOR, "headers_past_their_limit_are_refused_and_the_connection_lives_on"),
    ("streams_per_connection", DOOR, "a_connection_has_so_many_calls_at_once"),
    ("connections", DOOR, "there_are_so_many_connections_and_no_more"),
    ("connections_per_caller", DOOR, "one_caller_has_so_many_connections_and_others_have_theirs"),
    ("handshake_timeout", DOOR, "silent_connections_are_let_go_and_keep_nobody_out"),
    ("handshakes", DOOR, "silent_connections_are_let_go_and_keep_nobody_out"),
    ("default_deadline", "src/grpc/service.rs", "a_call_waits_as_long_as_it_says_and_no_longer_than_it_may"),
    ("max_deadline", "src/grpc/service.rs", "a_call_waits_as_long_as_it_says_and_no_longer_than_it_may"),
    ("idle_timeout", DOOR, "an_idle_connection_is_asked_to_go"),
    ("connection_age", DOOR, "an_old_connection_is_asked_to_go_and_its_calls_finish"),
    ("connection_age_jitter", DOOR, "connections_of_one_age_leave_at_different_times"),
    ("connection_age_grace", DOOR, "an_old_connection_whose_calls_do_not_end_is_cut_off_after_the_grace"),
    ("concurrent_decisions", "tests/spec/failing_closed.rs", "a_call_too_many_is_shed_and_says_when_to_come_back"),
    ("overload_target", "src/admission/tests.rs", "one_hiccup_is_no_overload_and_every_runtime_counts"),
    ("policies", HERE, "a_bundle_past_a_limit_is_refused_with_the_limit_s_name"),
    ("policy_file_bytes", HERE, "a_bundle_past_a_limit_is_refused_with_the_limit_s_name"),
    ("bundle_bytes", HERE, "a_bundle_past_a_limit_is_refused_with_the_limit_s_name"),
    ("policy_depth", HERE, "a_bundle_past_a_limit_is_refused_with_the_limit_s_name"),
    ("jwks_bytes", HERE, "a_key_set_past_a_limit_is_no_key_set"),
    ("jwks_keys", HERE, "a_key_set_past_a_limit_is_no_key_set"),
    ("jwks_timeout", TOKENS, "a_key_server_is_believed_only_when_it_answers_plainly"),
    ("jwks_refresh_floor", TOKENS, "a_flood_of_unknown_keys_makes_one_fetch_a_floor"),
    ("jwks_refresh_interval", "tests/spec/keys_over_time.rs", "keys_are_fetched_again_though_nobody_asks"),
    ("jwks_max_stale", TOKENS, "the_last_good_keys_serve_through_an_outage_until_they_are_too_old"),
    ("introspection_bytes", OPAQUE, "an_answer_that_is_not_plain_lets_nobody_in_and_is_not_kept"),
    ("introspection_timeout", OPAQUE, "an_answer_that_is_not_plain_lets_nobody_in_and_is_not_kept"),
    ("introspection_flights", OPAQUE, "a_flood_of_opaque_tokens_is_bounded_and_others_do_not_notice"),
    ("api_key_file_bytes", API_KEYS, "a_file_is_strict_and_its_mistakes_are_told_by_key_without_values"),
    ("api_keys", API_KEYS, "a_file_is_strict_and_its_mistakes_are_told_by_key_without_values"),
    ("status_list_bytes", STATUSES, "a_list_that_is_not_the_issuer_s_own_changes_nothing"),
    ("status_list_inflated_bytes", STATUSES, "a_list_that_is_not_the_issuer_s_own_changes_nothing"),
    ("status_list_timeout", STATUSES, "a_list_that_is_not_the_issuer_s_own_changes_nothing"),
    ("status_list_refresh_floor", STATUSES, "a_status_that_nobody_can_tell_is_no_status"),
    ("status_list_refresh_interval", STATUSES, "a_status_that_nobody_can_tell_is_no_status"),
    ("status_list_max_age", STATUSES, "a_status_that_nobody_can_tell_is_no_status"),
    ("revocations", "src/revocation/tests.rs", "past_the_limit_new_ones_are_refused_told_and_none_is_dropped"),
    ("audit_record_bytes", HERE, "an_answer_whose_record_is_too_long_is_withheld_on_record"),
    ("crl_bytes", "src/tls/server/tests.rs", "revocation_lists_past_their_limit_are_not_read"),
    ("audit_record_bytes", "src/audit/writer/tests.rs", "a_record_at_its_limit_is_written_and_one_past_it_is_an_error"),
];

#[test]
fn every_limit_has_a_test() {
    let schema = gatepost::config::load::json_schema();
    let limits = schema.pointer("/$defs/RawLimits/properties").and_then(Value::as_object).unwrap();
    let known: BTreeSet<&str> = limits.keys().map(String::as_str).collect();
    let held: BTreeSet<&str> = HELD.iter().map(|(limit, ..)| *limit).collect();
    assert_eq!(known, held, "the settings, and the table in this file");
    for (limit, file, test) in HELD {
        let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        assert!(source.contains(&format!("fn {test}()")), "{limit}: {file} has no {test}");
    }
}

/// THREATS section 6.
#[test]
fn the_defaults_are_those_of_the_reference() {
    let limits = Limits::default();
    let table = [
        ("token", limits.token_bytes, 16 << 10),
        ("request", limits.request_bytes, 256 << 10),
        ("batch", limits.batch_bytes, 1 << 20),
        ("items", limits.batch_items, 100),
        ("context", limits.context_bytes, 64 << 10),
        ("context keys", limits.context_keys, 256),
        ("id", limits.id_bytes, 1024),
        ("string", limits.string_bytes, 4 << 10),
        ("set", limits.set_elements, 1000),
        ("entities", limits.entities, 500),
        ("ancestors", limits.ancestors, 256),
        ("ancestor depth", limits.ancestor_depth, 32),
        ("claims", limits.token_claims, 256),
        ("audiences", limits.token_audiences, 16),
        ("actors", limits.token_actor_depth, 8),
        ("policies", limits.policies, 10_000),
        ("policy depth", limits.policy_depth, 64),
        ("audit record", limits.audit_record_bytes, 64 << 10),
        ("revocation lists", limits.crl_bytes, 8 << 20),
    ];
    for (what, limit, expected) in table {
        assert_eq!(limit, expected, "{what}");
    }
    assert!(limits.batch_bytes < 4 << 20, "below the library's own");
}

/// One record of this answer, and the next plain question is answered.
async fn settle(gatepost: &Gatepost, channel: &Channel, reply: &Reply, before: usize, why: &str) {
    let records = gatepost.call_records();
    assert_eq!(records.len(), before + 1, "{why}: one record");
    let id = reply.decision_id().unwrap_or_else(|| panic!("{why}: no decision id in {:?}", reply.status));
    assert_eq!(records[before]["metadata"]["original_event_uid"], id, "{why}");
    assert!(reply.whole.len() < 2048, "{why}: bounded");
    assert_eq!(check(channel, &plain(&gatepost.token("alice", &[]))).await.told(), "ALLOW", "{why}: the next question");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_past_a_limit_is_refused_by_its_part_and_the_limit_s_name() {
    let gatepost = Gatepost::start_over(&wide_bundle(), |settings| {
        wide_settings(settings);
        for (limit, value) in [
            ("id_bytes", 12),
            ("string_bytes", 16),
            ("set_elements", 4),
            ("value_depth", 4),
            ("entity_attributes", 6),
            ("entities", 3),
            ("ancestors", 4),
            ("ancestor_depth", 3),
            ("field_paths", 3),
            ("context_keys", 4),
            ("batch_items", 3),
        ] {
            settings["limits"][limit] = json!(value);
        }
    })
    .await;
    let channel = channel(&gatepost, "storefront").await;
    let token = gatepost.token("alice", &[]);
    let thing = |change: &dyn Fn(&mut v1::Resource)| {
        let mut request = plain(&token);
        change(request.resource.as_mut().unwrap());
        request
    };
    let with = |name: &str, value: prost_types::Value| {
        thing(&|resource| {
            resource.attributes.as_mut().unwrap().fields.insert(name.to_owned(), value.clone());
        })
    };
    let context = |members: &[(&str, prost_types::Value)]| v1::CheckRequest {
        context: Some(attributes(members.iter().cloned())),
        ..plain(&token)
    };
    let many = |count: usize| list((0..count).map(|at| text(&at.to_string())).collect());
    let below = |inner: prost_types::Value| record([("below", inner)]);
    let name = || record([("name", text("x"))]);
    let attributed = |count: usize| {
        let all = [("open", truth(true)), ("yes", truth(true)), ("label", text("x")), ("tags", many(1))];
        let deep = if count == 6 { name() } else { record([("name", text("x")), ("below", name())]) };
        with_token(&token, "read", object("Thing", "t", all.into_iter().chain([("deep", deep)])))
    };
    let groups = |count: usize| (0..count).map(|at| parent("Group", &format!("g{at}"))).collect::<Vec<_>>();
    let under = |entities: Vec<v1::Entity>| {
        let mut request = thing(&|resource| resource.parents = groups(1));
        request.entities = entities;
        request
    };
    let chain = |steps: usize| {
        under(
            (0..steps - 1)
                .map(|at| entity("Group", &format!("g{at}"), vec![parent("Group", &format!("g{}", at + 1))]))
                .collect(),
        )
    };
    let wide = |count: usize| {
        let above = (1..count).map(|at| parent("Group", &format!("g{at}"))).collect();
        under(vec![entity("Group", "g0", above)])
    };
    let beside = |count: usize| v1::CheckRequest {
        entities: (0..count).map(|at| entity("User", &format!("u{at}"), vec![])).collect(),
        ..plain(&token)
    };
    let asking = |count: usize| v1::CheckRequest {
        fields: Some(fields(["count", "label", "tags", "lists"].into_iter().take(count))),
        ..plain(&token)
    };
    let deep = |name: prost_types::Value| context(&[("more", below(name))]);
    let crowded = || vec![("more", record([("name", text("x")), ("below", name())]))];
    let mut overcrowded = crowded();
    overcrowded.push(("note", text("x")));
    let table = [
        (
            "id_bytes",
            thing(&|it| it.id = Some("x".repeat(12))),
            thing(&|it| it.id = Some("x".repeat(13))),
            "resource.id",
        ),
        (
            "id_bytes",
            with("owner", reference("User", &"x".repeat(12))),
            with("owner", reference("User", &"x".repeat(13))),
            "resource.attributes.owner",
        ),
        (
            "string_bytes",
            with("label", text(&"x".repeat(16))),
            with("label", text(&"x".repeat(17))),
            "resource.attributes",
        ),
        ("set_elements", with("tags", many(4)), with("tags", many(5)), "resource.attributes"),
        ("value_depth", deep(name()), deep(below(name())), "context"),
        ("entity_attributes", attributed(6), attributed(7), "resource.attributes"),
        ("entities", beside(3), beside(4), "entities"),
        ("ancestors", thing(&|it| it.parents = groups(4)), thing(&|it| it.parents = groups(5)), "resource.parents"),
        ("ancestors", wide(4), wide(5), "entities"),
        ("ancestor_depth", chain(3), chain(4), "entities"),
        ("field_paths", asking(3), asking(4), "fields.paths"),
        ("context_keys", context(&crowded()), context(&overcrowded), "context"),
    ];
    for (limit, at, past, part) in table {
        let before = gatepost.call_records().len();
        let reply = check(&channel, &at).await;
        assert_eq!(reply.told(), "ALLOW", "at `{limit}`: {:?}", reply.violation());
        settle(&gatepost, &channel, &reply, before, limit).await;
        let before = gatepost.call_records().len();
        let reply = check(&channel, &past).await;
        assert_eq!(reply.told(), format!("InvalidArgument {part}"), "past `{limit}`: {:?}", reply.violation());
        let (_, rule) = reply.violation().unwrap();
        assert!(rule.contains(&format!("limits.{limit}")), "past `{limit}`: {rule}");
        settle(&gatepost, &channel, &reply, before, limit).await;
    }
    let batch_of = |count: usize| v1::BatchCheckRequest {
        subject: Some(v1::batch_check_request::Subject::Token(token.clone())),
        items: vec![
            v1::BatchCheckItem { action: "read".into(), resource: plain(&token).resource, fields: None };
            count
        ],
        ..v1::BatchCheckRequest::default()
    };
    assert_eq!(batch(&channel, &batch_of(3)).await.batch().results.len(), 3);
    let before = gatepost.call_records().len();
    let reply = batch(&channel, &batch_of(4)).await;
    assert_eq!(reply.violation(), Some(("items".into(), "are more than `limits.batch_items`".into())));
    settle(&gatepost, &channel, &reply, before, "batch_items").await;
}

/// Makes `request` exactly `wanted` bytes long by the text that `set` puts into it.
fn padded<R: prost::Message + Clone>(request: &R, wanted: usize, set: impl Fn(&mut R, String)) -> R {
    (0..wanted)
        .map(|length| {
            let mut padded = request.clone();
            set(&mut padded, "x".repeat(length));
            padded
        })
        .find(|padded| padded.encoded_len() == wanted)
        .expect("some length fits")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_past_its_size_is_refused() {
    let gatepost = Gatepost::start_over(&wide_bundle(), |settings| {
        wide_settings(settings);
        for (limit, value) in
            [("token_bytes", "2KiB"), ("context_bytes", "2KiB"), ("request_bytes", "4KiB"), ("batch_bytes", "5KiB")]
        {
            settings["limits"][limit] = json!(value);
        }
    })
    .await;
    let channel = channel(&gatepost, "storefront").await;
    let token = gatepost.token("alice", &[]);
    let label = |request: &mut v1::CheckRequest, value: String| {
        request.resource.as_mut().unwrap().attributes.as_mut().unwrap().fields.insert("label".into(), text(&value));
    };
    let note =
        |context: &mut prost_types::Struct, value: String| drop(context.fields.insert("note".into(), text(&value)));
    let with_context = |size: usize| v1::CheckRequest {
        context: Some(padded(&prost_types::Struct::default(), size, note)),
        ..plain(&token)
    };
    let table = [
        ("request_bytes", padded(&plain(&token), 4096, label), padded(&plain(&token), 4097, label), "request"),
        ("context_bytes", with_context(2048), with_context(2049), "context"),
    ];
    for (limit, at, past, part) in table {
        assert_eq!(check(&channel, &at).await.told(), "ALLOW", "at `{limit}`");
        let before = gatepost.call_records().len();
        let reply = check(&channel, &past).await;
        let expected = (part.to_owned(), format!("is longer than `limits.{limit}`"));
        assert_eq!(reply.violation(), Some(expected), "past `{limit}`");
        settle(&gatepost, &channel, &reply, before, limit).await;
    }
    let mut labelled = plain(&token);
    label(&mut labelled, "x".repeat(3800));
    let questions = v1::BatchCheckRequest {
        subject: Some(v1::batch_check_request::Subject::Token(token.clone())),
        items: vec![v1::BatchCheckItem { action: "read".into(), resource: labelled.resource, fields: None }],
        context: Some(attributes([("note", text(""))])),
        ..v1::BatchCheckRequest::default()
    };
    let noted = |request: &mut v1::BatchCheckRequest, value: String| note(request.context.as_mut().unwrap(), value);
    assert_eq!(batch(&channel, &padded(&questions, 5120, noted)).await.batch().results.len(), 1, "at `batch_bytes`");
    // Longer than anything may be: it is not even read, so nobody can say what it would have been.
    for size in [5121, 100_000, 5 << 20] {
        let before = gatepost.call_records().len();
        let mut past = padded(&questions, 5121, noted);
        past.context.as_mut().unwrap().fields.insert("more".into(), text(&"x".repeat(size - 5121)));
        let reply = batch(&channel, &past).await;
        assert_eq!(reply.code(), Code::InvalidArgument, "{size}: {:?}", reply.status);
        assert_eq!(reply.reason().as_deref(), Some("UNREADABLE_MESSAGE"));
        assert!(reply.status.message().contains("longer than its limit"), "{:?}", reply.status);
        settle(&gatepost, &channel, &reply, before, "batch_bytes").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_past_a_limit_is_denied() {
    let claims = |pad: usize| json!({ "pad": "x".repeat(pad) });
    // How long a token gets depends on its claims alone.
    let folder = tempfile::tempdir().unwrap();
    let sample = |world: &World, now| world.token("alice", &claims(300), now, minutes(5)).unwrap().len();
    #[expect(clippy::disallowed_methods, reason = "ten digits, whatever the time")]
    let longest = sample(&World::create(folder.path()).unwrap(), std::time::SystemTime::now());
    let gatepost = Gatepost::start_over(&wide_bundle(), |settings| {
        wide_settings(settings);
        for (limit, value) in [
            ("token_bytes", longest),
            ("token_json_depth", 4),
            ("token_claims", 12),
            ("token_audiences", 3),
            ("token_actor_depth", 2),
            ("id_bytes", 40),
            ("string_bytes", 16),
            ("ancestors", 4),
        ] {
            settings["limits"][limit] = json!(value);
        }
    })
    .await;
    let channel = channel(&gatepost, "storefront").await;
    let token = |subject: &str, claims: &Value| {
        gatepost.world.token(subject, claims, gatepost.clock.now(), minutes(5)).unwrap()
    };
    assert_eq!(token("alice", &claims(300)).len(), longest);
    let more =
        |count: usize| (0..count).map(|at| (format!("c{at}"), json!(0))).collect::<serde_json::Map<_, _>>().into();
    let audiences = |count: usize| {
        let others = (1..count).map(|at| format!("other-{at}"));
        json!({ "aud": std::iter::once(AUDIENCE.to_owned()).chain(others).collect::<Vec<_>>() })
    };
    let nested = |depth: usize| (1..depth).fold(json!(0), |inner, _| json!({ "x": inner }));
    let actors = |depth: usize| {
        (0..depth).fold(Value::Null, |inner, _| match inner {
            Value::Null => json!({ "sub": "a" }),
            inner => json!({ "sub": "a", "act": inner }),
        })
    };
    let roles = |count: usize| json!({ "roles": (0..count).map(|at| format!("g{at}")).collect::<Vec<_>>() });
    let table = [
        ("token_bytes", token("alice", &claims(300)), token("alice", &claims(301)), "SIZE"),
        ("token_claims", token("alice", &more(5)), token("alice", &more(6)), "CLAIM_LIMIT"),
        ("token_audiences", token("alice", &audiences(3)), token("alice", &audiences(4)), "CLAIM_LIMIT"),
        (
            "token_json_depth",
            token("alice", &json!({ "x": nested(4) })),
            token("alice", &json!({ "x": nested(5) })),
            "SHAPE",
        ),
        (
            "token_actor_depth",
            token("alice", &json!({ "act": actors(2) })),
            token("alice", &json!({ "act": actors(3) })),
            "CLAIM_LIMIT",
        ),
        ("id_bytes", token(&"x".repeat(40), &json!({})), token(&"x".repeat(41), &json!({})), "SUBJECT"),
        (
            "string_bytes",
            token("alice", &json!({ "name": "x".repeat(16) })),
            token("alice", &json!({ "name": "x".repeat(17) })),
            "MAPPING",
        ),
        ("ancestors", token("alice", &roles(4)), token("alice", &roles(5)), "MAPPING"),
    ];
    for (limit, at, past, reason) in table {
        let reply = check(&channel, &plain(&at)).await;
        assert_eq!(reply.told(), "ALLOW", "at `{limit}`: {:?}", gatepost.call_records().last());
        let before = gatepost.call_records().len();
        let reply = check(&channel, &plain(&past)).await;
        assert_eq!(reply.told(), "DENY TOKEN_REJECTED", "past `{limit}`: a denial like any other");
        let recorded = gatepost.call_records()[before].to_string();
        assert!(recorded.contains(&format!("\"{reason}\"")), "past `{limit}`: the record says why: {recorded}");
        settle(&gatepost, &channel, &reply, before, limit).await;
    }
}

#[test]
fn a_bundle_past_a_limit_is_refused_with_the_limit_s_name() {
    let schema = "entity P = { n: Long };\nentity R;\naction go appliesTo { principal: P, resource: R };\n";
    let compiled = |policies: String, change: &dyn Fn(&mut Limits)| {
        let mut options = BundleOptions::default();
        change(&mut options.limits);
        let file = |name: &str, text: String| SourceFile { name: name.into(), text };
        let files = BundleFiles {
            schemas: vec![file("s.cedarschema", schema.to_owned())],
            policies: vec![file("p.cedar", policies)],
            entities: None,
        };
        Bundle::compile(files, &options).map(|_| ()).map_err(|report| format!("{:?}", report.problems))
    };
    let many = |count: usize| -> String {
        (0..count)
            .map(|at| format!("@id(\"p{at}\") permit (principal, action == Action::\"go\", resource) when {{ principal.n > {at} }};\n"))
            .collect()
    };
    assert_eq!(compiled(many(7), &|limits| limits.policies = 7), Ok(()), "at `policies`");
    let report = compiled(many(8), &|limits| limits.policies = 7).unwrap_err();
    assert!(report.contains("limits.policies"), "{report}");

    let deep = |depth: usize| {
        format!(
            "@id(\"p\") permit (principal, action == Action::\"go\", resource) when {{ principal.n{} > 0 }};",
            " + 1".repeat(depth)
        )
    };
    let deepest = |limit: usize| {
        (1..).find(|depth| compiled(deep(*depth), &|limits| limits.policy_depth = limit).is_err()).unwrap()
    };
    assert_eq!(deepest(11), deepest(10) + 1, "one more for one more");
    let report = compiled(deep(deepest(10)), &|limits| limits.policy_depth = 10).unwrap_err();
    assert!(report.contains("limits.policy_depth"), "{report}");

    let folder = tempfile::tempdir().unwrap();
    let text = many(3);
    std::fs::write(folder.path().join("s.cedarschema"), schema).unwrap();
    std::fs::write(folder.path().join("p.cedar"), &text).unwrap();
    let read = |change: &dyn Fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        BundleFiles::read(folder.path(), &limits).map(|_| ()).map_err(|report| format!("{:?}", report.problems))
    };
    let (file, whole) = (text.len(), text.len() + schema.len());
    assert_eq!(read(&|limits| limits.policy_file_bytes = file), Ok(()), "at `policy_file_bytes`");
    let report = read(&|limits| limits.policy_file_bytes = file - 1).unwrap_err();
    assert!(report.contains("limits.policy_file_bytes"), "{report}");
    assert_eq!(read(&|limits| limits.bundle_bytes = whole), Ok(()), "at `bundle_bytes`");
    let report = read(&|limits| limits.bundle_bytes = whole - 1).unwrap_err();
    assert!(report.contains("limits.bundle_bytes"), "{report}");
}

#[test]
fn a_key_set_past_a_limit_is_no_key_set() {
    use gatepost::token::KeySet;
    let folder = tempfile::tempdir().unwrap();
    drop(World::create(folder.path()).unwrap());
    let text = std::fs::read_to_string(folder.path().join("jwks.json")).unwrap();
    let one: Value = serde_json::from_str(&text).unwrap();
    let keys = |count: usize| {
        let keys: Vec<Value> = (0..count)
            .map(|at| {
                let mut key = one["keys"][0].clone();
                key["kid"] = json!(format!("k{at}"));
                key
            })
            .collect();
        json!({ "keys": keys }).to_string()
    };
    let read = |text: &str, change: &dyn Fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        KeySet::read(text.as_bytes(), &limits).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(read(&keys(3), &|limits| limits.jwks_keys = 3), Ok(()), "at `jwks_keys`");
    assert!(read(&keys(4), &|limits| limits.jwks_keys = 3).is_err(), "one past it");
    let text = keys(2);
    assert_eq!(read(&text, &|limits| limits.jwks_bytes = text.len()), Ok(()), "at `jwks_bytes`");
    assert!(read(&text, &|limits| limits.jwks_bytes = text.len() - 1).is_err(), "one past it");
}

/// THREATS V-AUD-1: what is too long to record is an error, never a silent drop.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_record_is_too_long_is_withheld_on_record() {
    let gatepost = Gatepost::start_over(&wide_bundle(), |settings| {
        wide_settings(settings);
        settings["limits"]["audit_record_bytes"] = json!("4KiB");
    })
    .await;
    let channel = channel(&gatepost, "storefront").await;
    let token = gatepost.token("alice", &[]);
    let paths: Vec<String> = (0..100).map(|at| format!("field_{at:060}")).collect();
    let asking = |count: usize| v1::CheckRequest {
        fields: Some(fields(std::iter::once("count").chain(paths.iter().take(count).map(String::as_str)))),
        ..plain(&token)
    };
    assert_eq!(check(&channel, &asking(5)).await.told(), "ALLOW");
    let before = gatepost.call_records().len();
    let reply = check(&channel, &asking(100)).await;
    assert_eq!((reply.code(), reply.reason().as_deref()), (Code::Unavailable, Some("AUDIT_UNAVAILABLE")));
    settle(&gatepost, &channel, &reply, before, "audit_record_bytes").await;
}
