//! What nobody should send: each is refused or denied, clearly and briefly, names the part and never its content, leaves
//! one record, and disturbs nobody else.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use gatepost::cli::demo::world::spiffe_id;
use gatepost::proto::v1;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::Channel;

use crate::support::{Gatepost, PATIENCE, tls};
use crate::wire::{
    BATCH, CHECK, Reply, attributes, batch, call, call_with, channel, check, fields, framed, list, null, number,
    object, parent, record, reference, text, told, truth, with_token,
};

/// Stands in every value that is out of place: it must come back nowhere.
const CANARY: &str = "canary";

/// The bundle with an attribute of every type.
pub fn wide_bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spec/bundles/wide")
}

/// Settings that fit it; the storefront may ask and assert everything.
pub fn wide_settings(settings: &mut Value) {
    settings["callers"] = json!([{
        "spiffe_id": spiffe_id("storefront"), "name": "storefront", "resource_types": "*", "actions": "*",
        "assert_subjects": "*", "supply_attributes": "*", "supply_parents": "*", "sees_policies": true,
        "presents_for": "*",
    }]);
    settings["issuers"][0]["principal"] =
        json!({ "type": "User", "attributes": { "name": "name" }, "parents": [{ "claim": "roles", "type": "Group" }] });
    settings["audit"]["attributes"] = json!({});
}

/// May `token` read a thing that is open to all? Yes.
pub fn plain(token: &str) -> v1::CheckRequest {
    with_token(token, "read", object("Thing", "t-1", [("open", truth(true))]))
}

pub fn entity(kind: &str, id: &str, parents: Vec<v1::EntityRef>) -> v1::Entity {
    v1::Entity { r#type: kind.into(), id: id.into(), attributes: None, parents }
}

/// Exactly one record, of this very answer, without a trace of the canary; and the next plain question is answered.
async fn settle(gatepost: &Gatepost, channel: &Channel, reply: &Reply, before: usize, why: &str) {
    assert!(!find(&reply.whole, CANARY), "{why}: the answer repeats what was sent");
    let records = gatepost.call_records();
    assert_eq!(records.len(), before + 1, "{why}: one record");
    let id = reply.decision_id().unwrap_or_else(|| panic!("{why}: no decision id in {:?}", reply.status));
    assert_eq!(records[before]["metadata"]["original_event_uid"], id, "{why}");
    assert!(!records[before].to_string().contains(CANARY), "{why}: the record repeats what was sent");
    let token = gatepost.token("alice", &[]);
    assert_eq!(check(channel, &plain(&token)).await.told(), "ALLOW", "{why}: the next question");
}

fn find(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

type Change = Box<dyn Fn(&mut v1::CheckRequest)>;

fn resource(change: impl Fn(&mut v1::Resource) + 'static) -> Change {
    Box::new(move |request| change(request.resource.get_or_insert_default()))
}

fn attribute(name: &'static str, value: prost_types::Value) -> Change {
    resource(move |resource| {
        resource.attributes.get_or_insert_default().fields.insert(name.to_owned(), value.clone());
    })
}

fn context(name: &'static str, value: prost_types::Value) -> Change {
    Box::new(move |request| request.context = Some(attributes([(name, value.clone())])))
}

fn entities(entities: Vec<v1::Entity>) -> Change {
    Box::new(move |request| request.entities.clone_from(&entities))
}

fn action(action: &'static str) -> Change {
    Box::new(move |request| request.action = action.to_owned())
}

fn id(id: &str) -> Change {
    let id = id.to_owned();
    resource(move |resource| resource.id = Some(id.clone()))
}

fn query(query: v1::FieldQuery) -> Change {
    Box::new(move |request| request.fields = Some(query.clone()))
}

fn asserted(asserted: v1::AssertedSubject) -> Change {
    Box::new(move |request| request.subject = Some(v1::check_request::Subject::Asserted(asserted.clone())))
}

async fn judge(gatepost: &Gatepost, channel: &Channel, table: Vec<(Change, &str, &str)>) {
    let token = gatepost.token("alice", &[]);
    for (change, expected, why) in table {
        let mut request = plain(&token);
        change(&mut request);
        let before = gatepost.call_records().len();
        let reply = check(channel, &request).await;
        assert_eq!(reply.told(), expected, "{why}: {:?}", reply.violation());
        if reply.code() != tonic::Code::Ok {
            assert_eq!(reply.reason().as_deref(), Some("INVALID_QUESTION"), "{why}");
            let (_, rule) = reply.violation().unwrap();
            assert!(!rule.is_empty() && rule.len() < 160, "{why}: {rule}");
        }
        settle(gatepost, channel, &reply, before, why).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_whose_words_do_not_fit_is_refused_by_its_part() {
    let gatepost = Gatepost::start_over(&wide_bundle(), wide_settings).await;
    let channel = channel(&gatepost, "storefront").await;
    let long = "x".repeat(1025);
    let all_and_named = v1::FieldQuery { all: true, ..fields(["count"]) };
    let table: Vec<(Change, &str, &str)> = vec![
        (Box::new(|request| request.subject = None), "InvalidArgument subject", "nobody asks"),
        (action(""), "InvalidArgument action", "no action"),
        (action("read\0canary"), "InvalidArgument action", "NUL"),
        (Box::new(|request| request.action = "x".repeat(257)), "InvalidArgument action", "257 bytes"),
        (Box::new(|request| request.action = "x".repeat(256)), "DENY UNKNOWN_ACTION", "256 bytes"),
        (action("erase"), "DENY UNKNOWN_ACTION", "no such action"),
        (action("Read"), "DENY UNKNOWN_ACTION", "case matters"),
        (action("Action::\"read\""), "DENY UNKNOWN_ACTION", "Cedar's own spelling"),
        (action("read:count"), "InvalidArgument action", "a field action is asked through `fields`"),
        (action("read#all"), "InvalidArgument action", "and so is a group of them"),
        (action("read:nothing"), "InvalidArgument action", "also one that there is not"),
        (action("touch"), "DENY NO_PERMIT", "an action that no policy names"),
        (Box::new(|request| request.resource = None), "InvalidArgument resource", "no resource"),
        (resource(|resource| resource.r#type.clear()), "InvalidArgument resource.type", "no type"),
        (resource(|resource| resource.r#type = "canary thing".into()), "InvalidArgument resource.type", "a space"),
        (resource(|resource| resource.r#type = "Thing\0".into()), "InvalidArgument resource.type", "NUL"),
        (resource(|resource| resource.r#type = "Nothing".into()), "DENY NOT_APPLICABLE", "no such type"),
        (resource(|resource| resource.r#type = "User".into()), "DENY NOT_APPLICABLE", "a type the action is not for"),
        (
            resource(|resource| resource.r#type = "__cedar::Thing".into()),
            "DENY NOT_APPLICABLE",
            "Cedar's own namespace",
        ),
        (id(""), "InvalidArgument resource.id", "an empty id is not the function level"),
        (id("can\0canary"), "InvalidArgument resource.id", "NUL"),
        (id("canary\u{202e}"), "InvalidArgument resource.id", "bidi override"),
        (id("\u{200b}canary"), "InvalidArgument resource.id", "zero width"),
        (id("canary\r\nx: y"), "InvalidArgument resource.id", "line breaks"),
        (id(&long), "InvalidArgument resource.id", "1 025 bytes"),
        (id(&"x".repeat(1024)), "ALLOW", "1 024 bytes"),
        (resource(|resource| resource.id = None), "InvalidArgument resource", "attributes of every object"),
        (
            Box::new(|request| {
                *request.resource.get_or_insert_default() =
                    v1::Resource { r#type: "Thing".into(), ..Default::default() };
                request.fields = Some(fields(["count"]));
            }),
            "InvalidArgument fields",
            "fields of every object",
        ),
        (query(all_and_named), "InvalidArgument fields", "all, and some"),
        (query(v1::FieldQuery::default()), "InvalidArgument fields", "none"),
        (query(fields(["*"])), "InvalidArgument fields.paths", "everything"),
        (query(fields(["deep.*"])), "InvalidArgument fields.paths", "everything below"),
        (query(fields(["deep..name"])), "InvalidArgument fields.paths", "an empty segment"),
        (query(fields(["count", ""])), "InvalidArgument fields.paths", "the empty path"),
        (query(fields(["canary count"])), "InvalidArgument fields.paths", "a space"),
        (query(fields(["c\u{43e}unt"])), "InvalidArgument fields.paths", "a Cyrillic letter"),
        (query(v1::FieldQuery { mode: 3, ..fields(["count"]) }), "InvalidArgument fields.mode", "no such mode"),
        (query(fields(["no_such_field"])), "DENY NO_FIELD_GRANTED", "a field that there is not"),
        (query(fields(["password"])), "DENY NO_FIELD_GRANTED", "nor that"),
        (query(fields(["count", "no_such_field"])), "ALLOW", "reading filters"),
        (
            Box::new(|request| {
                request.action = "touch".into();
                request.fields = Some(fields(["count"]));
            }),
            "InvalidArgument fields",
            "an action without fields",
        ),
    ];
    judge(&gatepost, &channel, table).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_the_schema_does_not_want_is_refused_by_its_name() {
    let gatepost = Gatepost::start_over(&wide_bundle(), wide_settings).await;
    let channel = channel(&gatepost, "storefront").await;
    let entity_escape = record([("__entity", reference("User", "canary"))]);
    let call_escape = record([("__extn", record([("fn", text("unknown")), ("arg", text("canary"))]))]);
    let at = |name: &'static str| -> &'static str {
        Box::leak(format!("InvalidArgument resource.attributes.{name}").into())
    };
    let table: Vec<(Change, &str, &str)> = vec![
        (attribute("canary", truth(true)), "InvalidArgument resource.attributes", "not declared"),
        (attribute("a\0canary", truth(true)), "InvalidArgument resource.attributes", "NUL in a name"),
        (attribute("", truth(true)), "InvalidArgument resource.attributes", "no name"),
        (
            resource(|resource| resource.attributes = Some(attributes([("count", number(1.0))]))),
            at("open"),
            "a required one is missing",
        ),
        (resource(|resource| resource.attributes = None), at("open"), "all are missing"),
        (attribute("open", text("true")), at("open"), "\"true\" is not true"),
        (attribute("open", number(1.0)), at("open"), "1 is not true"),
        (attribute("open", null()), "InvalidArgument resource.attributes", "null"),
        (attribute("yes", null()), "InvalidArgument resource.attributes", "null, though it is optional"),
        (attribute("yes", prost_types::Value { kind: None }), "InvalidArgument resource.attributes", "no value"),
        (attribute("count", text("9223372036854775807")), "ALLOW", "a 64-bit number as text"),
        (attribute("count", text("9223372036854775808")), at("count"), "one too many"),
        (attribute("count", text("01")), at("count"), "another spelling of 1"),
        (attribute("count", text("+1")), at("count"), "and another"),
        (attribute("count", text(" 1canary")), at("count"), "white space"),
        (attribute("count", number(1.5)), at("count"), "half"),
        (attribute("count", number(f64::NAN)), at("count"), "no number"),
        (attribute("count", number(f64::INFINITY)), at("count"), "no end"),
        (attribute("count", number(9_007_199_254_740_992.0)), "ALLOW", "2^53"),
        (attribute("count", number(9_007_199_254_740_994.0)), at("count"), "past what a double can tell apart"),
        (attribute("count", truth(true)), at("count"), "true is not 1"),
        (attribute("label", number(1.0)), at("label"), "1 is not \"1\""),
        (attribute("label", truth(true)), at("label"), "true is not \"true\""),
        (attribute("label", list(vec![text("canary")])), at("label"), "a list is no text"),
        (attribute("tags", text("canary")), at("tags"), "text is no list"),
        (attribute("tags", list(vec![number(1.0)])), at("tags"), "numbers among texts"),
        (attribute("tags", list(vec![list(vec![text("canary")])])), at("tags"), "a list too many"),
        (attribute("tags", list(vec![null()])), "InvalidArgument resource.attributes", "null in a list"),
        (attribute("lists", list(vec![list(vec![text("a")]), text("canary")])), at("lists"), "[[\"a\"], \"b\"]"),
        (attribute("lists", list(vec![text("canary"), list(vec![text("b")])])), at("lists"), "[\"a\", [\"b\"]]"),
        (attribute("deep", text("canary")), at("deep"), "text is no record"),
        (attribute("deep", record([("canary", text("x"))])), at("deep"), "not declared inside"),
        (attribute("deep", record([("name", number(1.0))])), at("deep.name"), "the path leads inside"),
        (attribute("owner", text("User::\"canary\"")), at("owner"), "an entity in Cedar's spelling"),
        (attribute("owner", reference("Group", "canary")), at("owner"), "of another type"),
        (attribute("owner", reference("User", "canary\u{202e}")), at("owner"), "bidi in its id"),
        (attribute("owner", reference("User", "")), at("owner"), "without an id"),
        (attribute("owner", record([("type", text("User"))])), at("owner"), "half of one"),
        (
            attribute("owner", record([("type", text("User")), ("id", text("canary")), ("x", truth(true))])),
            at("owner"),
            "more than one",
        ),
        (attribute("owner", entity_escape), at("owner"), "Cedar's JSON escape for entities"),
        (
            attribute("address", call_escape.clone()),
            at("address"),
            "and for calls: `unknown()` would switch a forbid off",
        ),
        (attribute("label", call_escape), at("label"), "in any place"),
        (attribute("address", text("canary")), at("address"), "no address"),
        (attribute("address", text("10.0.0.256")), at("address"), "nearly one"),
        (attribute("address", text("::ffff:10.0.0.1")), "ALLOW", "a mapped address"),
        (attribute("price", text("1.23456")), at("price"), "a digit too many"),
        (attribute("price", number(1.5)), at("price"), "a double is no decimal"),
        (attribute("price", text("1.5")), "ALLOW", "a decimal"),
        (attribute("since", text("2025-02-30")), at("since"), "no such day"),
        (attribute("lasts", text("canary")), at("lasts"), "no duration"),
        (
            resource(|resource| resource.parents = vec![parent("User", "u")]),
            "InvalidArgument resource.parents",
            "not above",
        ),
        (
            resource(|resource| resource.parents = vec![parent("Canary", "u")]),
            "InvalidArgument resource.parents",
            "no type",
        ),
        (
            resource(|resource| resource.parents = vec![parent("Group", "canary\0")]),
            "InvalidArgument resource.parents.id",
            "NUL",
        ),
        (context("canary", text("x")), "InvalidArgument context", "not declared"),
        (context("note", number(1.0)), "InvalidArgument context.note", "1 is not \"1\""),
        (context("note", null()), "InvalidArgument context", "null"),
        (context("now", text("2020-01-01")), "InvalidArgument context", "Gatepost alone tells the time"),
        (context("caller", reference("Service", "canary")), "InvalidArgument context", "and who calls"),
        (context("token", record([("issuer", text("canary"))])), "InvalidArgument context", "and what the token said"),
        (context("who", reference("User", "canary")), "InvalidArgument context", "an entity that nobody described"),
        (
            Box::new(|request| request.action = "write".into()),
            "InvalidArgument context.code",
            "the context lacks what it requires",
        ),
    ];
    judge(&gatepost, &channel, table).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_talks_over_the_token_the_bundle_or_gatepost_itself() {
    let gatepost = Gatepost::start_over(&wide_bundle(), wide_settings).await;
    let channel = channel(&gatepost, "storefront").await;
    let me = |change: fn(&mut v1::AssertedSubject)| {
        let mut subject = v1::AssertedSubject { r#type: "User".into(), id: "alice".into(), ..Default::default() };
        change(&mut subject);
        asserted(subject)
    };
    let ranked =
        |id: &str| v1::Entity { attributes: Some(attributes([("rank", number(1.0))])), ..entity("Group", id, vec![]) };
    let table: Vec<(Change, &str, &str)> = vec![
        (
            entities(vec![entity("User", "alice", vec![parent("Group", "top")])]),
            "InvalidArgument entities[0]",
            "the principal",
        ),
        (entities(vec![entity("User", "bob", vec![])]), "ALLOW", "somebody else"),
        (entities(vec![ranked("top")]), "InvalidArgument entities[0]", "stored data stands"),
        (
            entities(vec![entity("User", "bob", vec![]), entity("Group", "mid", vec![parent("Group", "x")])]),
            "InvalidArgument entities[1]",
            "and stored parents",
        ),
        (entities(vec![entity("Group", "top", vec![])]), "ALLOW", "a stored one is named, nothing is said of it"),
        (entities(vec![ranked("x"), ranked("x")]), "InvalidArgument entities[1]", "twice"),
        (
            entities(vec![v1::Entity {
                attributes: Some(attributes([("open", truth(false))])),
                ..entity("Thing", "t-1", vec![])
            }]),
            "InvalidArgument resource",
            "the resource, in two places",
        ),
        (entities(vec![entity("Canary", "x", vec![])]), "InvalidArgument entities[0].type", "no such type"),
        (entities(vec![entity("can ary", "x", vec![])]), "InvalidArgument entities[0].type", "no type at all"),
        (entities(vec![entity("Group", "canary\0", vec![])]), "InvalidArgument entities[0].id", "NUL"),
        (
            entities(vec![v1::Entity {
                attributes: Some(attributes([("rank", text("canary"))])),
                ..entity("Group", "x", vec![])
            }]),
            "InvalidArgument entities[0].attributes.rank",
            "the wrong type",
        ),
        (
            entities(vec![entity("Service", &spiffe_id("storefront"), vec![])]),
            "InvalidArgument entities",
            "the calling workload",
        ),
        (
            entities(vec![entity("Group", "a", vec![parent("Group", "a")])]),
            "InvalidArgument entities",
            "its own parent",
        ),
        (
            entities(vec![
                entity("Group", "a", vec![parent("Group", "b")]),
                entity("Group", "b", vec![parent("Group", "c")]),
                entity("Group", "c", vec![parent("Group", "a")]),
            ]),
            "InvalidArgument entities",
            "a circle",
        ),
        (me(|_| ()), "ALLOW", "an asserted subject"),
        (me(|subject| subject.id = "canary\u{202e}".into()), "InvalidArgument asserted.id", "bidi"),
        (me(|subject| subject.r#type = String::new()), "InvalidArgument asserted.type", "no type"),
        (me(|subject| subject.r#type = "Group".into()), "DENY NOT_APPLICABLE", "a type that does nothing here"),
        (
            me(|subject| subject.attributes = Some(attributes([("canary", truth(true))]))),
            "InvalidArgument subject.attributes",
            "not declared",
        ),
        (
            me(|subject| subject.attributes = Some(attributes([("name", number(1.0))]))),
            "InvalidArgument subject.attributes.name",
            "the wrong type",
        ),
        (me(|subject| subject.parents = vec![parent("Thing", "x")]), "InvalidArgument subject.parents", "not above"),
    ];
    judge(&gatepost, &channel, table).await;
}

/// THREATS V-DOS-1: graphs that multiply or never end.
#[tokio::test(flavor = "multi_thread")]
async fn entity_graphs_are_answered_or_refused_in_time() {
    let gatepost = Gatepost::start_over(&wide_bundle(), |settings| {
        wide_settings(settings);
        settings["limits"]["entities"] = json!(10_000);
        settings["limits"]["request_bytes"] = json!("1MiB");
    })
    .await;
    let channel = channel(&gatepost, "storefront").await;
    let token = gatepost.token("alice", &[]);
    let name = |layer: usize, place: usize| format!("g-{layer}-{place}");
    let layers = |count: usize, width: usize| -> Vec<v1::Entity> {
        let above = |layer: usize| (0..width).map(|place| parent("Group", &name(layer + 1, place))).collect::<Vec<_>>();
        (0..count - 1)
            .flat_map(|layer| (0..width).map(move |place| (layer, place)))
            .map(|(layer, place)| entity("Group", &name(layer, place), above(layer)))
            .collect()
    };
    let chain = |length: usize, round: bool| -> Vec<v1::Entity> {
        let next = |at: usize| if round { (at + 1) % length } else { at + 1 };
        (0..length).map(|at| entity("Group", &name(at, 0), vec![parent("Group", &name(next(at), 0))])).collect()
    };
    let table = [
        (layers(31, 8), "ALLOW", "8 to the 30th ways up"),
        (layers(3, 80), "ALLOW", "few steps, many ways"),
        (layers(40, 6), "InvalidArgument entities", "too high"),
        (chain(10_000, false), "InvalidArgument entities", "10 000 deep"),
        (chain(10_000, true), "InvalidArgument entities", "10 000 round"),
        (chain(16, true), "InvalidArgument entities", "a small circle"),
    ];
    for (graph, expected, why) in table {
        let mut request = plain(&token);
        request.resource.as_mut().unwrap().parents = vec![parent("Group", &name(0, 0))];
        request.entities = graph;
        let before = gatepost.call_records().len();
        #[expect(clippy::disallowed_methods, reason = "it is about real time")]
        let begun = Instant::now();
        let reply = tokio::time::timeout(PATIENCE, check(&channel, &request)).await.expect(why);
        let took = begun.elapsed();
        assert_eq!(reply.told(), expected, "{why}");
        println!("{why}: {took:?}");
        assert!(took < Duration::from_secs(2), "{why}: {took:?}");
        settle(&gatepost, &channel, &reply, before, why).await;
    }
}

/// A message of nested values, written by hand: Protobuf libraries would not.
fn nested(depth: usize) -> Vec<u8> {
    let mut value = vec![0x1a, 0x06, b'c', b'a', b'n', b'a', b'r', b'y'];
    for step in 0..depth {
        // Value { struct_value: Struct { fields: { "below": value } } }
        let name: &[u8] = if step == 0 { b"name" } else { b"below" };
        let entry = field(2, &value, &field(1, name, &[]));
        value = field(5, &field(1, &entry, &[]), &[]);
    }
    let entry = field(2, &value, &field(1, b"more", &[]));
    field(8, &field(1, &entry, &[]), &[])
}

/// One length-delimited field after `head`.
fn field(number: u8, payload: &[u8], head: &[u8]) -> Vec<u8> {
    let mut out = head.to_vec();
    out.push(number << 3 | 2);
    prost::encode_length_delimiter(payload.len(), &mut out).unwrap();
    out.extend_from_slice(payload);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_message_are_refused_and_recorded() {
    let gatepost = Gatepost::start_over(&wide_bundle(), wide_settings).await;
    let channel = channel(&gatepost, "storefront").await;
    let token = gatepost.token("alice", &[]);
    let good = plain(&token).encode_to_vec();
    let with = |extra: &[u8]| [&good[..], extra].concat();
    let short_frame = framed(0, &good).slice(..40);
    let mut long_frame = framed(0, &good).to_vec();
    long_frame[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
    let two = [framed(0, &good), framed(0, &good)].concat();
    let unreadable = "InvalidArgument";
    let table: Vec<(Bytes, &str, &str)> = vec![
        (framed(0, &good), "ALLOW", "the everyday shape"),
        (framed(0, &with(&field(15, b"canary", &[]))), "ALLOW", "an unknown field of a later version"),
        (Bytes::new(), unreadable, "nothing at all"),
        (framed(0, &[]), "InvalidArgument subject", "an empty message"),
        (short_frame, unreadable, "a frame that ends early"),
        (long_frame.into(), unreadable, "a frame of 4 GiB"),
        (framed(0, &good[..good.len() - 3]), unreadable, "a message that ends early"),
        (framed(0, b"canary canary canary"), unreadable, "no message"),
        (framed(0, &with(&[0x2a, 0x02, 0xff, 0xfe])), unreadable, "an action that is not UTF-8"),
        (framed(0, &with(&[0x28, 0x01])), unreadable, "an action that is a number"),
        (
            framed(0, &with(&[0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01])),
            unreadable,
            "an endless length",
        ),
        (framed(0, &with(&[0x2a, 0xff, 0xff, 0xff, 0xff, 0x0f])), unreadable, "a length past the end"),
        (framed(0, &with(&[0x80; 11])), unreadable, "a key without an end"),
        (framed(0, &with(&[0x03])), unreadable, "field number 0"),
        (framed(0, &with(&[0x2b])), unreadable, "a group that nobody closes"),
        (framed(0, &with(&[0x2b; 50_000])), unreadable, "50 000 groups that nobody closes"),
        (framed(1, &good), unreadable, "said to be compressed"),
        (framed(2, &good), unreadable, "a flag that there is not"),
        (framed(0, &with(&nested(2))), "ALLOW", "nested as deep as the schema goes"),
        (framed(0, &with(&nested(6))), "InvalidArgument context.more.below.below.below", "deeper than the schema"),
        (framed(0, &with(&nested(100))), unreadable, "100 deep"),
        (framed(0, &with(&nested(5000))), unreadable, "5 000 deep"),
        (two.into(), "ALLOW", "a second message: the first counts, nobody looks at the other"),
    ];
    for (body, expected, why) in table {
        let before = gatepost.call_records().len();
        let reply = tokio::time::timeout(PATIENCE, call(channel.clone(), CHECK, &[], body)).await.expect(why);
        assert_eq!(reply.told(), expected, "{why}: {:?}", reply.status);
        if expected == unreadable {
            assert_eq!(reply.reason().as_deref(), Some("UNREADABLE_MESSAGE"), "{why}");
        }
        settle(&gatepost, &channel, &reply, before, why).await;
    }
}

/// THREATS F14: a client that begins a message and then says no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_does_not_come_in_whole_in_time_is_refused() {
    let gatepost = Gatepost::start_over(&wide_bundle(), |settings| {
        wide_settings(settings);
        settings["limits"] = json!({ "default_deadline": "250ms", "max_deadline": "250ms" });
    })
    .await;
    let channel = channel(&gatepost, "storefront").await;
    let whole = framed(0, &plain(&gatepost.token("alice", &[])).encode_to_vec());
    let parts =
        [(0, "nothing"), (3, "half a head"), (50, "half a message"), (whole.len(), "a message, and no end of it")];
    for (length, why) in parts {
        let before = gatepost.call_records().len();
        let sent = futures_util::stream::iter([Ok::<_, tonic::Status>(http_body::Frame::data(whole.slice(..length)))]);
        let body = http_body_util::StreamBody::new(sent.chain(futures_util::stream::pending()));
        let stalled = call_with(channel.clone(), CHECK, &[], tonic::body::Body::new(body));
        let reply = tokio::time::timeout(PATIENCE, stalled).await.expect(why);
        assert_eq!(reply.told(), "DeadlineExceeded", "{why}: {:?}", reply.status);
        settle(&gatepost, &channel, &reply, before, why).await;
    }
}

/// THREATS V-PATH-2, V-DOS-2.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_not_quite_ours_is_never_executed() {
    let gatepost = Gatepost::start_over(&wide_bundle(), wide_settings).await;
    let channel = channel(&gatepost, "storefront").await;
    let body = framed(0, &plain(&gatepost.token("alice", &[])).encode_to_vec());
    let paths = [
        "/gatepost.v1.DecisionService/check",
        "/gatepost.v1.decisionservice/Check",
        "/GATEPOST.V1.DECISIONSERVICE/CHECK",
        "//gatepost.v1.DecisionService/Check",
        "/gatepost.v1.DecisionService//Check",
        "/gatepost.v1.DecisionService/Check/",
        "/gatepost.v1.DecisionService/Check/canary",
        "/gatepost.v1.DecisionService/./Check",
        "/gatepost.v1.DecisionService/%43heck",
        "/gatepost.v1.DecisionService%2fCheck",
        "/gatepost.v1.DecisionService/Check%00",
        "/gatepost.v1.DecisionService/Check;x=canary",
        "/gatepost.v1.DecisionService/Check?x=canary",
        "/gatepost.v1.DecisionService/Check?",
        "/x/../gatepost.v1.DecisionService/Check",
        "/gatepost.v1.DecisionService/Canary",
        "/gatepost.v1.DecisionService/",
        "/gatepost.v1.DecisionService",
        "/gatepost.v2.DecisionService/Check",
        "/DecisionService/Check",
        "/canary",
        "/",
    ];
    for path in paths {
        let before = gatepost.call_records().len();
        let reply = call(channel.clone(), path, &[], body.clone()).await;
        assert_eq!(reply.told(), "Unimplemented", "{path}: {:?}", reply.status);
        assert_eq!(reply.reason().as_deref(), Some("NO_SUCH_METHOD"), "{path}");
        settle(&gatepost, &channel, &reply, before, path).await;
    }
    let headers: Vec<(&str, &[u8], &str, &str)> = vec![
        ("x-request-id", b"two words canary", "ALLOW", "a request id that is none is left out"),
        ("traceparent", b"00-canary", "ALLOW", "so is a broken trace context"),
        ("grpc-timeout", b"canary", "ALLOW", "and a time-out that is none"),
        ("authorization", b"Bearer canary", "ALLOW", "a header says nothing of who asks"),
        ("x-forwarded-client-cert", b"URI=spiffe://shop.example/canary", "ALLOW", "nor who calls"),
        ("canary-bin", b"\xff\xfe", "ALLOW", "bytes"),
        ("grpc-encoding", b"gzip", "Unimplemented", "compression is not spoken"),
        ("content-type", b"text/canary", "InvalidArgument", "no gRPC"),
        ("content-type", b"application/json", "InvalidArgument", "no gRPC either"),
        ("content-type", b"application/grpc-web", "InvalidArgument", "nor this"),
        ("content-type", b"application/grpc+proto", "ALLOW", "gRPC by its full name"),
    ];
    for (name, value, expected, why) in headers {
        let before = gatepost.call_records().len();
        let body = if name == "grpc-encoding" { framed(1, &body[5..]) } else { body.clone() };
        let reply = call(channel.clone(), CHECK, &[(name, value)], body).await;
        assert_eq!(reply.told(), expected, "{why}: {:?} {}", reply.status, reply.http);
        settle(&gatepost, &channel, &reply, before, why).await;
    }
}

/// A HEADERS frame in HPACK literals, so that the path may be anything.
fn headers_frame(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    // HEADERS with END_HEADERS on stream 1 (RFC 9113 section 6.2).
    [&length[1..], &[1, 4, 0, 0, 0, 1], &block].concat()
}

/// CVE-2026-33186 of grpc-go: a path without its slash reached the method, and not the rule that guards it.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_no_library_would_send_reaches_nothing() {
    let gatepost = Gatepost::start_over(&wide_bundle(), wide_settings).await;
    let watching = channel(&gatepost, "storefront").await;
    let token = gatepost.token("alice", &[]);
    let message = framed(0, &plain(&token).encode_to_vec());
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let data = [&length[1..], &[0, 1, 0, 0, 0, 1], &message].concat();
    let files = gatepost.client_files("storefront");
    let table = [
        ("/gatepost.v1.DecisionService/Check", true, "the everyday shape"),
        ("gatepost.v1.DecisionService/Check", false, "no slash"),
        ("", false, "no path"),
        ("*", false, "the server as a whole"),
        ("https://localhost/gatepost.v1.DecisionService/Check", false, "a whole URL"),
        ("/gatepost.v1.DecisionService/Che ck", false, "a space"),
        ("\\gatepost.v1.DecisionService\\Check", false, "the other slash"),
        // The HTTP library cuts a fragment off before anybody looks: there is no second reading of it.
        ("/gatepost.v1.DecisionService/Check#x", true, "a fragment"),
        ("/gatepost.v1.DecisionService/#/Check", false, "a fragment in the middle"),
    ];
    for (path, executed, why) in table {
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls(&files)));
        let socket = tokio::net::TcpStream::connect(gatepost.address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, socket).await.unwrap();
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let all = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..], &headers_frame(path), &data].concat();
        let before = gatepost.call_records().len();
        stream.write_all(&all).await.unwrap();
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        // Until the stream is answered or reset: frames HEADERS, RST_STREAM or GOAWAY.
        let answered = tokio::time::timeout(PATIENCE, async {
            while !ends(&answer) {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => answer.extend_from_slice(&buffer[..read]),
                }
            }
        });
        assert!(answered.await.is_ok(), "{why}: no answer");
        let decided = gatepost.call_records().into_iter().skip(before).any(|record| record["status_code"] == "OK");
        assert_eq!(decided, executed, "{why}: whether it was executed");
        assert_eq!(check(&watching, &plain(&token)).await.told(), "ALLOW", "{why}: the next question");
    }
}

/// Whether these frames hold the end of stream 1.
fn ends(mut frames: &[u8]) -> bool {
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = frames {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        if matches!(kind, 3 | 7) || (*kind == 1 && flags & 1 == 1) {
            return true;
        }
        frames = rest.get(length..).unwrap_or_default();
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_is_not_spoken() {
    let gatepost = Gatepost::start_over(&wide_bundle(), wide_settings).await;
    let files = gatepost.client_files("storefront");
    for protocols in [vec![b"http/1.1".to_vec()], Vec::new()] {
        let mut config = tls(&files);
        config.alpn_protocols = protocols;
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let socket = tokio::net::TcpStream::connect(gatepost.address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let said = tokio::time::timeout(PATIENCE, async {
            let mut stream = connector.connect(name, socket).await?;
            stream.write_all(b"POST /gatepost.v1.DecisionService/Check HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await?;
            Ok::<_, std::io::Error>(said)
        });
        let said = said.await.expect("the connection ends");
        assert!(!said.is_ok_and(|said| find(&said, "HTTP/1.1 200")), "no answer over HTTP/1.1");
    }
    let token = gatepost.token("alice", &[]);
    assert_eq!(check(&channel(&gatepost, "storefront").await, &plain(&token)).await.told(), "ALLOW");
}

fn item(request: v1::CheckRequest) -> v1::BatchCheckItem {
    v1::BatchCheckItem { action: request.action, resource: request.resource, fields: request.fields }
}

fn batch_of(token: &str, items: Vec<v1::BatchCheckItem>) -> v1::BatchCheckRequest {
    let subject = Some(v1::batch_check_request::Subject::Token(token.to_owned()));
    v1::BatchCheckRequest { subject, items, ..v1::BatchCheckRequest::default() }
}

/// THREATS V-BATCH-1.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_as_many_answers_and_records_as_questions_or_is_refused() {
    let gatepost = Gatepost::start_over(&wide_bundle(), wide_settings).await;
    let channel = channel(&gatepost, "storefront").await;
    let token = gatepost.token("alice", &[]);
    for count in [1, 99, 100] {
        let before = gatepost.call_records().len();
        let reply = batch(&channel, &batch_of(&token, vec![item(plain(&token)); count])).await;
        let results = reply.batch().results;
        assert_eq!(results.len(), count);
        for result in results {
            match result.result.unwrap() {
                v1::batch_check_result::Result::Response(answer) => assert_eq!(told(&answer), "ALLOW"),
                v1::batch_check_result::Result::Error(error) => panic!("{error:?}"),
            }
        }
        assert_eq!(gatepost.call_records().len(), before + count, "{count}: a record each");
    }
    for count in [0, 101, 65_535, 65_536] {
        let before = gatepost.call_records().len();
        let mut request = batch_of(&token, vec![v1::BatchCheckItem::default(); count]);
        if count == 101 {
            request.items = vec![item(plain(&token)); count];
        }
        let reply = batch(&channel, &request).await;
        let (at, rule) = reply.violation().unwrap();
        assert_eq!(at, "items", "{count}");
        assert!(count == 0 || rule.contains("limits.batch_items"), "{count}: {rule}");
        settle(&gatepost, &channel, &reply, before, &count.to_string()).await;
    }
    // One bad item among good ones: every kind of bad, in the middle.
    let mut bad = item(plain(&token));
    bad.resource.as_mut().unwrap().id = Some("canary\0".into());
    let mut unknown = item(plain(&token));
    unknown.action = "erase".into();
    let mut undeclared = item(plain(&token));
    let named = attributes([("open", truth(true)), ("canary", truth(true))]);
    undeclared.resource.as_mut().unwrap().attributes = Some(named);
    let good = item(plain(&token));
    let items = vec![good.clone(), bad, good.clone(), unknown, undeclared, v1::BatchCheckItem::default(), good];
    let before = gatepost.call_records().len();
    let reply = batch(&channel, &batch_of(&token, items)).await;
    let said: Vec<String> = reply
        .batch()
        .results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            v1::batch_check_result::Result::Response(answer) => told(&answer),
            v1::batch_check_result::Result::Error(error) => {
                assert!(!error.decision_id.is_empty() && error.reason == "INVALID_QUESTION", "{error:?}");
                format!("{:?} {}", tonic::Code::from_i32(error.code), error.field)
            }
        })
        .collect();
    let expected = [
        "ALLOW",
        "InvalidArgument resource.id",
        "ALLOW",
        "DENY UNKNOWN_ACTION",
        "InvalidArgument resource.attributes",
        "InvalidArgument action",
        "ALLOW",
    ];
    assert_eq!(said, expected);
    assert!(!find(&reply.whole, CANARY), "{:?}", reply.status);
    let records = gatepost.call_records();
    assert_eq!(records.len(), before + expected.len());
    assert!(!records.iter().any(|record| record.to_string().contains(CANARY)));
    // What the items share must be right, or there is no batch.
    let before = gatepost.call_records().len();
    let mut request = batch_of(&token, vec![item(plain(&token)); 2]);
    request.context = Some(attributes([("note", null())]));
    let reply = batch(&channel, &request).await;
    assert_eq!(reply.violation().unwrap().0, "context");
    settle(&gatepost, &channel, &reply, before, "a shared part").await;
    let reply = call(channel.clone(), BATCH, &[], framed(0, b"\xff")).await;
    assert_eq!(reply.reason().as_deref(), Some("UNREADABLE_MESSAGE"));
}

/// THREATS V-ID-1: ids are bytes. What looks alike is not the same.
#[tokio::test(flavor = "multi_thread")]
async fn principals_that_look_alike_are_different_principals() {
    let gatepost = Gatepost::start_over(&wide_bundle(), wide_settings).await;
    let channel = channel(&gatepost, "storefront").await;
    let alike = ["al\u{e9}", "ale\u{301}", "Al\u{e9}", "AL\u{c9}", "\u{ff41}l\u{e9}", "al\u{e9} ", "\u{430}l\u{e9}"];
    for owner in alike {
        for subject in alike {
            let thing = [("open", truth(false)), ("owner", reference("User", owner))];
            let mut request = with_token(&gatepost.token(subject, &[]), "write", object("Thing", "t-1", thing));
            request.context = Some(attributes([("code", text("x"))]));
            let expected = if owner == subject { "ALLOW" } else { "DENY NO_PERMIT" };
            for _ in 0..2 {
                assert_eq!(check(&channel, &request).await.told(), expected, "{subject:?} and {owner:?}'s thing");
            }
        }
    }
}

/// THREATS V-KEY-3: no two questions are taken for one another, whatever they have in common.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_near_duplicates_is_a_hundred_single_questions() {
    let gatepost = Gatepost::start_over(&wide_bundle(), wide_settings).await;
    let channel = channel(&gatepost, "storefront").await;
    let token = gatepost.token("alice", &[]);
    let texts = |texts: &[&str]| list(texts.iter().map(|one| text(one)).collect());
    let tags = [
        None,
        Some(texts(&[])),
        Some(texts(&["a", "b"])),
        Some(texts(&["b", "a"])),
        Some(texts(&["ab"])),
        Some(texts(&["a", ""])),
        Some(texts(&["a", "a"])),
        Some(texts(&["a,b"])),
    ];
    let lists = [
        None,
        Some(list(vec![texts(&["a"]), texts(&["b"])])),
        Some(list(vec![texts(&["a", "b"])])),
        Some(list(vec![texts(&["b", "a"]), texts(&[])])),
        Some(list(vec![])),
    ];
    let labels = [None, Some(text("1")), Some(text("01"))];
    let mut requests = Vec::new();
    for tags in &tags {
        for lists in &lists {
            for label in &labels {
                let mut request = plain(&token);
                let thing = request.resource.as_mut().unwrap().attributes.as_mut().unwrap();
                for (name, value) in [("tags", tags), ("lists", lists), ("label", label)] {
                    if let Some(value) = value {
                        thing.fields.insert(name.to_owned(), value.clone());
                    }
                }
                requests.push(request);
            }
        }
    }
    requests.truncate(100);
    assert_eq!(requests.len(), 100);
    let mut alone = Vec::new();
    for request in &requests {
        let mut request = request.clone();
        request.options = Some(v1::CheckOptions { bypass_cache: true });
        alone.push(check(&channel, &request).await.told());
    }
    for round in ["first", "from the cache"] {
        let reply = batch(&channel, &batch_of(&token, requests.iter().cloned().map(item).collect())).await;
        let together: Vec<String> = reply
            .batch()
            .results
            .into_iter()
            .map(|result| match result.result.unwrap() {
                v1::batch_check_result::Result::Response(answer) => told(&answer),
                v1::batch_check_result::Result::Error(error) => format!("{error:?}"),
            })
            .collect();
        assert_eq!(together, alone, "{round}");
    }
    let allowed = alone.iter().filter(|told| *told == "ALLOW").count();
    assert!((10..90).contains(&allowed), "{allowed}: both answers occur");
}
