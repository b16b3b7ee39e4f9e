//! Many questions over one call: each is decided and recorded as if it were asked alone, and nothing that a stream holds
//! grows without a bound.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use gatepost::client::{Answer, Ask, AskError, EntityData, Mask, Opening};
use gatepost::model::decision::DenialCode;
use gatepost::proto::v1;
use gatepost::proto::v1::check_stream_request::Message;
use gatepost::proto::v1::decision_service_client::DecisionServiceClient;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::support::operators::{Operators, subject_request};
use crate::support::{Gatepost, PATIENCE, account, channel_of, eventually, minutes, order};
use crate::wire::{attributes, call_with, channel, framed, number, reference, text, told};

const STREAM: &str = "/gatepost.v1.DecisionService/CheckStream";

/// A stream message by message.
struct Talk {
    to: mpsc::Sender<v1::CheckStreamRequest>,
    from: Streaming<v1::CheckStreamResponse>,
}

impl Talk {
    async fn begin(gatepost: &Gatepost, service: &str) -> Result<Self, Status> {
        let (to, messages) = mpsc::channel(32);
        let from = gatepost.raw(service).await.check_stream(ReceiverStream::new(messages)).await?;
        Ok(Self { to, from: from.into_inner() })
    }

    /// As the storefront, for whoever has this token.
    async fn open(gatepost: &Gatepost, token: &str) -> Self {
        let mut talk = Self::begin(gatepost, "storefront").await.unwrap();
        talk.say(opening(token)).await;
        talk
    }

    async fn say(&mut self, message: Message) {
        let _ = self.to.send(v1::CheckStreamRequest { message: Some(message) }).await;
    }

    async fn hear(&mut self) -> Result<v1::CheckStreamResponse, Status> {
        let heard = tokio::time::timeout(PATIENCE, self.from.message()).await.expect("an answer in time");
        heard.map(|heard| heard.expect("the stream goes on"))
    }

    /// Asks and waits for the answer, in words.
    async fn ask(&mut self, question: v1::StreamQuestion) -> String {
        let id = question.id;
        self.say(Message::Ask(question)).await;
        let answer = self.hear().await.unwrap();
        assert_eq!(answer.id, id);
        in_words(&answer)
    }

    /// How the stream ended, after whatever else was said.
    async fn end(mut self) -> Status {
        loop {
            match tokio::time::timeout(PATIENCE, self.from.message()).await.expect("an end in time") {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

fn opening(token: &str) -> Message {
    let subject = Some(v1::stream_opening::Subject::Token(token.to_owned()));
    Message::Open(v1::StreamOpening { subject, ..v1::StreamOpening::default() })
}

fn in_words(answer: &v1::CheckStreamResponse) -> String {
    use v1::check_stream_response::Result::{Error, Response};
    match answer.result.as_ref().unwrap() {
        Response(response) => told(response),
        Error(error) => format!("{} {}", error.reason, error.field).trim_end().to_owned(),
    }
}

fn id_of(answer: &v1::CheckStreamResponse) -> String {
    use v1::check_stream_response::Result::{Error, Response};
    match answer.result.as_ref().unwrap() {
        Response(response) => response.decision_id.clone(),
        Error(error) => error.decision_id.clone(),
    }
}

fn an_order(id: &str, customer: &str) -> v1::Entity {
    let members = [
        ("tenant", reference("Tenant", "acme")),
        ("customer", reference("User", customer)),
        ("status", text("open")),
        ("total", number(1250.0)),
    ];
    v1::Entity { r#type: "Order".into(), id: id.into(), attributes: Some(attributes(members)), parents: vec![] }
}

fn question(id: u64, customer: &str) -> v1::StreamQuestion {
    let order = an_order(&format!("o-{id}"), customer);
    let resource =
        v1::Resource { r#type: order.r#type, id: Some(order.id), attributes: order.attributes, parents: vec![] };
    v1::StreamQuestion { id, action: "Order.read".into(), resource: Some(resource), ..v1::StreamQuestion::default() }
}

fn remember(entities: impl IntoIterator<Item = v1::Entity>) -> Message {
    Message::Remember(v1::RememberedEntities { entities: entities.into_iter().collect() })
}

fn of_remembered(id: u64, order: &str) -> v1::StreamQuestion {
    let resource = v1::Resource { r#type: "Order".into(), id: Some(order.into()), ..v1::Resource::default() };
    v1::StreamQuestion { resource: Some(resource), resource_remembered: true, ..question(id, "alice") }
}

/// Everything that a service can see of an answer but its id.
fn seen(answer: &Result<Answer, AskError>) -> String {
    match answer {
        Ok(answer) => {
            let mask = answer.mask().map(|mask: &Mask| mask.paths().map(ToString::to_string).collect::<Vec<_>>());
            let refused: Vec<&str> = answer.refused_fields().collect();
            let (decision, denial) = (answer.decision(), answer.denial());
            format!("{decision:?} {denial:?} {mask:?} {refused:?} {:?}", answer.determining_policies())
        }
        Err(AskError::Refused { code, reason, .. }) => format!("{code:?} {reason:?}"),
        Err(error) => format!("{error:?}"),
    }
}

/// Some question, good or bad.
fn any(dice: &mut fastrand::Rng, n: usize) -> Ask {
    let customer = ["alice", "bob", "carol"][dice.usize(..3)];
    let ask = match dice.usize(..8) {
        0 => account("Account.read", customer),
        1 => account("Account.update", customer),
        2 => order("Order.cancel", &format!("o-{n}"), customer),
        3 => Ask::new("Product.read").any_resource("Product"),
        4 => Ask::new("Order.burn").resource("Order", "o-1"),
        5 => order("Order.read", "o-1", customer).attribute("no_such", 1),
        _ => order("Order.read", &format!("o-{}", dice.usize(..20)), customer),
    };
    match dice.usize(..5) {
        0 => ask.fields_all(),
        1 => ask.fields(["status", "email"]),
        2 => ask.fields(["email"]).strict(),
        3 => ask.fields(["status", "role"]).filter(),
        _ => ask,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_over_a_stream_are_those_of_check() {
    let gatepost = Gatepost::start().await;
    let (client, token) = (gatepost.client("storefront"), gatepost.token("alice", &[]));
    let stream = client.stream(Opening::new().token(&token)).await.unwrap();
    let mut dice = fastrand::Rng::with_seed(6);
    let asks: Vec<Ask> = (0..300).map(|n| any(&mut dice, n)).collect();
    let streamed = join_all(asks.iter().map(|ask| stream.check(ask.clone()))).await;
    let mut kinds = BTreeMap::new();
    for (ask, streamed) in asks.into_iter().zip(streamed) {
        let alone = client.check(ask.clone().token(&token)).await;
        assert_eq!(seen(&streamed), seen(&alone), "{ask:?}");
        if let Ok(answer) = &streamed {
            let record = gatepost.record_of(answer.decision_id());
            assert_eq!(record["unmapped"]["gatepost"]["operation"], "CheckStream");
        }
        *kinds.entry(seen(&alone).split(' ').take(2).collect::<Vec<_>>().join(" ")).or_insert(0) += 1;
    }
    println!("300 questions: {kinds:?}");
    assert!(kinds.len() >= 5, "all sorts");
    assert_eq!(gatepost.call_records().len(), 600, "one record of each answer, over the stream and alone");
    let records = gatepost.call_records();
    let names: BTreeSet<_> = records
        .iter()
        .filter(|record| record["unmapped"]["gatepost"]["operation"] == "CheckStream")
        .map(|record| record["metadata"]["correlation_uid"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 1, "records of one stream are found by its name");
    assert!(gatepost.metrics().await.contains("operation=\"CheckStream\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_is_sent_once_and_referred_to() {
    let gatepost = Gatepost::start().await;
    let token = gatepost.token("alice", &[]);
    let mut talk = Talk::open(&gatepost, &token).await;
    assert_eq!(talk.ask(of_remembered(1, "o-7")).await, "INVALID_QUESTION resource", "before it is told");
    talk.say(remember([an_order("o-7", "alice"), an_order("o-8", "bob")])).await;
    assert_eq!(talk.ask(of_remembered(2, "o-7")).await, "ALLOW");
    assert_eq!(talk.ask(of_remembered(3, "o-8")).await, "DENY NO_PERMIT");
    talk.say(remember([an_order("o-8", "alice")])).await;
    assert_eq!(talk.ask(of_remembered(4, "o-8")).await, "ALLOW", "the newer one counts");
    let beside = v1::EntityRef { r#type: "Order".into(), id: "o-7".into() };
    let with = v1::StreamQuestion { entities: vec![beside.clone()], ..question(5, "alice") };
    assert_eq!(talk.ask(with).await, "ALLOW");
    let unknown = v1::EntityRef { id: "o-9".into(), ..beside.clone() };
    let with = v1::StreamQuestion { entities: vec![beside.clone(), unknown], ..question(6, "alice") };
    assert_eq!(talk.ask(with).await, "INVALID_QUESTION entities[1]");
    let mut described = of_remembered(7, "o-7");
    described.resource.as_mut().unwrap().attributes = Some(attributes([("status", text("paid"))]));
    assert_eq!(talk.ask(described).await, "INVALID_QUESTION resource", "remembered, or described: not both");
    talk.say(Message::Forget(v1::ForgottenEntities { entities: vec![beside] })).await;
    assert_eq!(talk.ask(of_remembered(8, "o-7")).await, "INVALID_QUESTION resource", "forgotten");
    drop(talk.to);
    assert_eq!(talk.from.message().await.unwrap(), None, "it ends when nothing more is asked");

    let stream = gatepost.client("storefront").stream(Opening::new().token(&token)).await.unwrap();
    let whole = EntityData::new("Order", "o-7")
        .reference("tenant", "Tenant", "acme")
        .reference("customer", "User", "alice")
        .attribute("status", "open")
        .attribute("total", 1250);
    stream.remember(whole).await.unwrap();
    let ask = || Ask::new("Order.read").remembered_resource("Order", "o-7");
    assert!(stream.check(ask().fields_all()).await.unwrap().mask().is_some());
    assert!(matches!(gatepost.ask(ask().token(&token)).await, Err(AskError::Question(_))), "only a stream remembers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_question_spoils_only_itself() {
    let gatepost = Gatepost::start().await;
    let mut talk = Talk::begin(&gatepost, "storefront").await.unwrap();
    let Message::Open(mut open) = opening(&gatepost.token("alice", &[])) else { unreachable!() };
    open.context = Some(attributes([("channel", text("web"))]));
    talk.say(Message::Open(open)).await;
    let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let table = [
        (v1::StreamQuestion { action: String::new(), ..question(1, "alice") }, "action", "no action"),
        (v1::StreamQuestion { resource: None, ..question(1, "alice") }, "resource", "no resource"),
        (v1::StreamQuestion { deadline: time(0, 0), ..question(1, "alice") }, "deadline", "no time"),
        (v1::StreamQuestion { deadline: time(-1, 0), ..question(1, "alice") }, "deadline", "less than none"),
        (v1::StreamQuestion { deadline: time(i64::MIN, i32::MIN), ..question(1, "alice") }, "deadline", "far less"),
        (
            v1::StreamQuestion { context: Some(attributes([("channel", text("app"))])), ..question(1, "alice") },
            "context",
            "it would say two things of one",
        ),
        (
            v1::StreamQuestion {
                context: Some(attributes([("x", text(&"x".repeat(70_000)))])),
                ..question(1, "alice")
            },
            "context",
            "too long",
        ),
    ];
    for (question, part, why) in table {
        let before = gatepost.call_records().len();
        assert_eq!(talk.ask(question).await, format!("INVALID_QUESTION {part}"), "{why}");
        assert_eq!(gatepost.call_records().len(), before + 1, "{why}: one record");
    }
    // Held up by nothing but its own id.
    talk.say(Message::Ask(question(7, "bob"))).await;
    talk.say(Message::Ask(question(7, "bob"))).await;
    let both = [talk.hear().await.unwrap(), talk.hear().await.unwrap()];
    assert!(both.iter().all(|answer| answer.id == 7));
    assert!(both.iter().any(|answer| in_words(answer) != "INVALID_QUESTION id"), "the first is answered");
    for answer in &both {
        gatepost.record_of(&id_of(answer));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_the_rules_ends_and_that_is_on_record() {
    let gatepost = Gatepost::start_with(|settings| {
        settings["limits"]["stream_entities"] = json!(3);
        settings["limits"]["stream_entity_bytes"] = json!("400B");
    })
    .await;
    let token = gatepost.token("alice", &[]);
    let renew = |token: String| Message::Renew(v1::StreamRenewal { token });
    let orders =
        |count: usize| remember((0..count).map(|n| v1::Entity { attributes: None, ..an_order(&n.to_string(), "a") }));
    let nobody = Message::Open(v1::StreamOpening::default());
    let long = |bytes: usize| {
        remember([v1::Entity { attributes: Some(attributes([("x", text(&"x".repeat(bytes)))])), ..an_order("o", "a") }])
    };
    let nameless = remember([v1::Entity { id: String::new(), ..an_order("o", "a") }]);
    let table: Vec<(Vec<Message>, &str, &str)> = vec![
        (vec![Message::Ask(question(1, "alice"))], "open", "a question before it is open"),
        (vec![opening(&token), opening(&token)], "open", "opened twice"),
        (vec![nobody], "subject", "on nobody's behalf"),
        (vec![opening(&token), orders(4)], "remember.entities", "one too many to remember"),
        (
            vec![opening(&token), orders(3), orders(3), long(500)],
            "remember.entities",
            "three twice are three; too long",
        ),
        (vec![opening(&token), nameless], "remember.entities[0].id", "no id"),
        (vec![opening(&token), renew(gatepost.token("bob", &[]))], "renew.token", "somebody else's token"),
        (vec![opening(&token), renew("no.to.ken".into())], "renew.token", "no token"),
        (vec![opening("no.to.ken"), renew(token.clone())], "renew.token", "there is nobody to be the same as"),
    ];
    for (messages, part, why) in table {
        let before = gatepost.call_records().len();
        let mut talk = Talk::begin(&gatepost, "storefront").await.unwrap();
        for message in messages {
            talk.say(message).await;
        }
        let status = talk.end().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{why}: {status:?}");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, part, "{why}");
        let record = gatepost.record_of(&details.error_info().unwrap().metadata["decision_id"]);
        assert_eq!(record["unmapped"]["gatepost"]["operation"], "CheckStream", "{why}");
        assert_eq!(gatepost.call_records().len(), before + 1, "{why}: one record");
    }
    let talk = Talk::open(&gatepost, &token).await;
    let _ = talk.to.send(v1::CheckStreamRequest { message: None }).await;
    assert_eq!(talk.end().await.code(), Code::InvalidArgument, "a message of no kind");
    let quiet = Talk::begin(&gatepost, "storefront").await.unwrap();
    let before = gatepost.call_records().len();
    drop(quiet.to);
    let mut from = quiet.from;
    assert_eq!(from.next().await.map(|heard| heard.is_ok()), None, "who says nothing is told nothing");
    assert_eq!(gatepost.call_records().len(), before);
}

/// Nothing is read for which there is no place.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_read_answers_is_not_read_from() {
    const ASKED: u64 = 10_000;
    /// What this client lets itself be sent unread; the server's own buffer holds 256 KiB more.
    const WINDOW: u32 = 65_535;
    let gatepost = Gatepost::start_with(|settings| settings["limits"]["stream_window"] = json!(16)).await;
    let endpoint = Endpoint::from_static("https://localhost").initial_stream_window_size(WINDOW);
    let channel = channel_of(endpoint, gatepost.address, &gatepost.client_files("storefront")).await.unwrap();
    let (to, messages) = mpsc::channel(32);
    let from = DecisionServiceClient::new(channel).check_stream(ReceiverStream::new(messages)).await.unwrap();
    let mut talk = Talk { to, from: from.into_inner() };
    talk.say(opening(&gatepost.token("alice", &[]))).await;
    let to = talk.to.clone();
    let asking = tokio::spawn(async move {
        for id in 0..ASKED {
            let asked = v1::StreamQuestion { id, ..question(id % 100, "alice") };
            to.send(v1::CheckStreamRequest { message: Some(Message::Ask(asked)) }).await.unwrap();
        }
    });
    // It goes on until the network's own buffers are full, and then stands still.
    let (mut before, mut still) = (0, 0);
    while still < 4 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = gatepost.count(6003);
        still = if now == before && now > 0 { still + 1 } else { 0 };
        before = now;
    }
    println!("{before} of {ASKED} questions were answered while nobody read");
    assert!(before < ASKED as usize, "it reads on: {before}");
    assert!(!asking.is_finished());
    let mut ids = BTreeSet::new();
    for _ in 0..ASKED {
        let answer = talk.hear().await.unwrap();
        assert_eq!(in_words(&answer), "ALLOW");
        ids.insert(answer.id);
    }
    asking.await.unwrap();
    assert_eq!(ids.len(), ASKED as usize);
    assert_eq!(gatepost.count(6003), ASKED as usize, "one record each");
}

/// A cached allow must not outlive the token that earned it, and a stream that lasts may be given the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_under_way_denies_until_it_is_renewed() {
    let gatepost = Gatepost::start().await;
    let mut talk = Talk::open(&gatepost, &gatepost.token("alice", &[])).await;
    assert_eq!(talk.ask(question(1, "alice")).await, "ALLOW");
    gatepost.clock.advance(minutes(7));
    assert_eq!(talk.ask(question(2, "alice")).await, "DENY TOKEN_EXPIRED");
    talk.say(Message::Renew(v1::StreamRenewal { token: gatepost.token("alice", &[]) })).await;
    assert_eq!(talk.ask(question(3, "alice")).await, "ALLOW");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_under_way_counts_no_longer() {
    let (gatepost, operators) = Operators::start(|_, _| ()).await;
    let mut ops = operators.client(&gatepost, "ops").await;
    let mut talk = Talk::open(&gatepost, &gatepost.token("alice", &[])).await;
    for id in 0..2 {
        assert_eq!(talk.ask(question(id, "alice")).await, "ALLOW");
    }
    ops.revoke_subject(subject_request("alice")).await.unwrap();
    assert_eq!(talk.ask(question(2, "alice")).await, "DENY TOKEN_REVOKED");
}

/// THREATS T7: a question that is known by its bytes is answered as before only while everything else is as it was.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_before_is_answered_anew_once_anything_behind_it_has_changed() {
    let (gatepost, operators) = Operators::start(|_, _| ()).await;
    let mut ops = operators.client(&gatepost, "ops").await;
    let mut talk = Talk::open(&gatepost, &gatepost.token("alice", &[])).await;
    let mut id = 0;
    // The same bytes but for the number, often enough to be known by them.
    let mut again = async |talk: &mut Talk, of: &dyn Fn(u64) -> v1::StreamQuestion, expected: &str| {
        for _ in 0..4 {
            id += 1;
            assert_eq!(talk.ask(v1::StreamQuestion { id, ..of(id) }).await, expected, "question {id}");
        }
    };
    let described = |_| question(7, "alice");
    let remembered = |_| of_remembered(0, "o-9");
    again(&mut talk, &described, "ALLOW").await;

    // What the stream remembers is part of the question.
    talk.say(remember([an_order("o-9", "alice")])).await;
    again(&mut talk, &remembered, "ALLOW").await;
    talk.say(remember([an_order("o-9", "bob")])).await;
    again(&mut talk, &remembered, "DENY NO_PERMIT").await;
    let forgotten = v1::EntityRef { r#type: "Order".into(), id: "o-9".into() };
    talk.say(Message::Forget(v1::ForgottenEntities { entities: vec![forgotten] })).await;
    again(&mut talk, &remembered, "INVALID_QUESTION resource").await;
    talk.say(remember([an_order("o-9", "alice")])).await;
    again(&mut talk, &remembered, "ALLOW").await;

    // So is whose stream it is.
    let mut others = Talk::open(&gatepost, &gatepost.token("bob", &[])).await;
    again(&mut others, &described, "DENY NO_PERMIT").await;

    // The token has its time.
    gatepost.clock.advance(minutes(7));
    again(&mut talk, &described, "DENY TOKEN_EXPIRED").await;
    talk.say(Message::Renew(v1::StreamRenewal { token: gatepost.token("alice", &[]) })).await;
    again(&mut talk, &described, "ALLOW").await;

    // The policies are those in force.
    let revision = gatepost.pdp.store.current().revision().clone();
    let forbid =
        "@id(\"closed\") @owner(\"t\") @reason(\"t\") forbid (principal, action == Action::\"Order.read\", resource);";
    gatepost.world.write("policies/zz.cedar", forbid).unwrap();
    eventually("the change is in force", || *gatepost.pdp.store.current().revision() != revision).await;
    again(&mut talk, &described, "DENY FORBIDDEN").await;
    std::fs::remove_file(gatepost.path("policies/zz.cedar")).unwrap();
    eventually("and again", || *gatepost.pdp.store.current().revision() == revision).await;
    again(&mut talk, &described, "ALLOW").await;

    // And what is revoked counts no longer.
    ops.revoke_subject(subject_request("alice")).await.unwrap();
    again(&mut talk, &described, "DENY TOKEN_REVOKED").await;
    let records = gatepost.call_records();
    let operations =
        records.iter().filter(|record| record["unmapped"]["gatepost"]["operation"] == "CheckStream").count();
    assert_eq!(operations as u64, id, "a record each");
}

/// THREATS T7: a ruling of one revision is never an answer of the next.
#[tokio::test(flavor = "multi_thread")]
async fn new_policies_are_obeyed_by_streams_that_were_open_before() {
    let gatepost = Gatepost::start().await;
    let stream =
        gatepost.client("storefront").stream(Opening::new().token(gatepost.token("alice", &[]))).await.unwrap();
    let before = stream.check(order("Order.read", "o-1", "alice")).await.unwrap();
    assert!(before.allowed());
    let forbid =
        "@id(\"closed\") @owner(\"t\") @reason(\"t\") forbid (principal, action == Action::\"Order.read\", resource);";
    gatepost.world.write("policies/zz.cedar", forbid).unwrap();
    let revision = before.policy_revision().to_owned();
    eventually("the change is in force", || gatepost.pdp.store.current().revision().as_str() != revision).await;
    let after = stream.check(order("Order.read", "o-1", "alice")).await.unwrap();
    assert_eq!(after.denial(), Some(DenialCode::Forbidden));
    assert_ne!(after.policy_revision(), before.policy_revision());
}

/// THREATS F17: a stop in the middle loses no answer, and looks at nothing that it does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_what_it_has_read_and_nothing_else_and_every_answer_has_its_record() {
    let mut gatepost = Gatepost::start().await;
    let token = gatepost.token("alice", &[]);
    let mut talking = Vec::new();
    for _ in 0..3 {
        let Talk { to, mut from } = Talk::open(&gatepost, &token).await;
        tokio::spawn(async move {
            for id in 0.. {
                let ask = Some(Message::Ask(question(id, "alice")));
                if to.send(v1::CheckStreamRequest { message: ask }).await.is_err() {
                    return;
                }
            }
        });
        talking.push(tokio::spawn(async move {
            let mut ids = Vec::new();
            loop {
                match from.message().await {
                    Ok(Some(answer)) => ids.push(id_of(&answer)),
                    Ok(None) => return (ids, Status::ok("")),
                    Err(status) => return (ids, status),
                }
            }
        }));
    }
    eventually("it is in full swing", || gatepost.count(6003) > 300).await;
    let stopped = gatepost.stop().await;
    let mut answered = BTreeSet::new();
    for talk in talking {
        let (ids, status) = tokio::time::timeout(PATIENCE, talk).await.unwrap().unwrap();
        assert_eq!(status.code(), Code::Unavailable, "told to go elsewhere: {status:?}");
        answered.extend(ids);
    }
    let recorded: BTreeSet<String> = gatepost
        .call_records()
        .iter()
        .map(|record| record["metadata"]["original_event_uid"].as_str().unwrap().to_owned())
        .collect();
    println!("{} answers, {} records, {} cut off", answered.len(), recorded.len(), stopped.cut_off);
    assert_eq!(answered.difference(&recorded).count(), 0, "no answer without a record");
    assert_eq!(recorded.difference(&answered).count(), 0, "nor the other way round");
    assert_eq!(stopped.cut_off, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_so_many_streams_and_each_caller_has_its_share() {
    let gatepost = Gatepost::start_with(|settings| {
        settings["limits"]["open_streams"] = json!(4);
        settings["callers"][0]["capacity"] = json!("50%");
    })
    .await;
    let mut open = Vec::new();
    for service in ["storefront", "storefront", "back-office", "back-office"] {
        if open.len() == 2 {
            let status = Talk::begin(&gatepost, "storefront").await.err().unwrap();
            let info = status.get_error_details().error_info().cloned().unwrap();
            assert_eq!((status.code(), info.reason.as_str()), (Code::ResourceExhausted, "CALLER_OVER_SHARE"));
            // Nobody waits for the record of a call that was turned away.
            let id = info.metadata["decision_id"].clone();
            let recorded = |record: &Value| record["metadata"]["original_event_uid"] == id.as_str();
            eventually("it is on record", || gatepost.call_records().iter().any(recorded)).await;
            gatepost.record_of(&id);
        }
        open.push(Talk::begin(&gatepost, service).await.unwrap());
    }
    let status = Talk::begin(&gatepost, "back-office").await.err().unwrap();
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "OVERLOADED");
    open.pop();
    let again = tokio::time::timeout(PATIENCE, async {
        loop {
            match Talk::begin(&gatepost, "back-office").await {
                Ok(talk) => return talk,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    drop(again.await.expect("who leaves makes room"));
    let stranger = Talk::begin(&gatepost, "stranger").await.err().unwrap();
    assert_eq!(stranger.code(), Code::PermissionDenied, "before a word of it is read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_on_which_nothing_is_asked_is_ended() {
    let gatepost = Gatepost::start_with(|settings| settings["limits"]["stream_idle_timeout"] = json!("1s")).await;
    let mut talk = Talk::open(&gatepost, &gatepost.token("alice", &[])).await;
    for id in 0..6 {
        assert_eq!(talk.ask(question(id, "alice")).await, "ALLOW", "asked now and then, it stays");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let status = talk.end().await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("another stream"), "{status:?}");
}

/// Between messages there may be silence; within one there may not.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_never_comes_whole_ends_the_stream() {
    let gatepost = Gatepost::start_with(|settings| {
        settings["limits"]["max_deadline"] = json!("1s");
        settings["limits"]["default_deadline"] = json!("1s");
    })
    .await;
    let token = gatepost.token("alice", &[]);
    let frame = |message| framed(0, &v1::CheckStreamRequest { message: Some(message) }.encode_to_vec());
    let (whole, ask) = (frame(opening(&token)), frame(Message::Ask(question(1, "alice"))));
    let half = ask.slice(..ask.len() / 2);
    let pieces = futures_util::stream::iter([(0, whole), (1500, ask), (0, half)]).then(|(wait, piece)| async move {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        Ok::<_, Status>(http_body::Frame::data(piece))
    });
    let body = tonic::body::Body::new(http_body_util::StreamBody::new(pieces.chain(futures_util::stream::pending())));
    let reply = tokio::time::timeout(PATIENCE, call_with(channel(&gatepost, "storefront").await, STREAM, &[], body));
    let reply = reply.await.expect("it ends");
    assert_eq!(reply.code(), Code::DeadlineExceeded, "{:?}", reply.status);
    let answer = v1::CheckStreamResponse::decode(&reply.message.as_ref().unwrap()[..]).unwrap();
    assert_eq!(in_words(&answer), "ALLOW", "silence before the question was no harm");
    let garbage = framed(0, b"\xff\xff\xff");
    let body = tonic::body::Body::new(http_body_util::Full::new(garbage));
    let reply = call_with(channel(&gatepost, "storefront").await, STREAM, &[], body).await;
    assert_eq!((reply.code(), reply.reason().as_deref()), (Code::InvalidArgument, Some("UNREADABLE_MESSAGE")));
    gatepost.record_of(&reply.decision_id().unwrap());
}

/// Of a batch that is shared out to several threads.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_batch_is_answered_in_order_with_a_record_for_each() {
    let gatepost = Gatepost::start_with(|settings| settings["cache"] = json!({ "decisions": 0 })).await;
    let token = gatepost.token("alice", &[]);
    let items = (0..100).map(|n| {
        let asked = question(n, if n % 3 == 0 { "alice" } else { "bob" });
        let resource = asked.resource.filter(|_| n != 50);
        v1::BatchCheckItem { action: asked.action, resource, fields: None }
    });
    let batch = v1::BatchCheckRequest {
        subject: Some(v1::batch_check_request::Subject::Token(token)),
        items: items.collect(),
        ..v1::BatchCheckRequest::default()
    };
    let results = gatepost.raw("storefront").await.batch_check(batch).await.unwrap().into_inner().results;
    assert_eq!(results.len(), 100);
    let mut batches = BTreeSet::new();
    for (n, result) in results.into_iter().enumerate() {
        use v1::batch_check_result::Result::{Error, Response};
        let (words, id) = match result.result.unwrap() {
            Response(response) => (told(&response), response.decision_id),
            Error(error) => (format!("{} {}", error.reason, error.field), error.decision_id),
        };
        let expected = match n {
            50 => "INVALID_QUESTION resource",
            _ if n % 3 == 0 => "ALLOW",
            _ => "DENY NO_PERMIT",
        };
        assert_eq!(words, expected, "{n}");
        let record = gatepost.record_of(&id);
        let place = &record["unmapped"]["gatepost"]["batch"];
        assert_eq!((place["index"].as_u64(), place["of"].as_u64()), (Some(n as u64), Some(100)));
        batches.insert(place["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(batches.len(), 1);
    assert_eq!(gatepost.call_records().len(), 100);
}
