//! Ten thousand requests that somebody tampered with, through the gRPC door: nothing panics, nothing is allowed that
//! Cedar itself would not allow over the whole set with deny-on-error, and each question has its one record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use gatepost::grpc::convert;
use gatepost::model::entity::{EntityId, EntityType, EntityUid, RawEntity, RawRecord};
use gatepost::model::question::{FieldMode, FieldSelection, Question, Subject};
use gatepost::policy::{AuthorizationRequest, CallerData, SubjectData, dangerous};
use gatepost::proto::v1;
use gatepost::token::UnverifiedToken;
use prost::Message as _;
use serde_json::json;
use tonic::Code;

use crate::properties::Dice;
use crate::support::{Gatepost, minutes};
use crate::wire::{
    BATCH, CHECK, Reply, attributes, call, channel, fields, framed, list, null, number, object, parent, record,
    reference, told, truth, with_token,
};
use crate::{support, wire};

const CASES: usize = 10_000;
const SEED: u64 = 0x6761_7465_706f_7374;
const SERVICES: [&str; 4] = ["storefront", "back-office", "fulfilment", "fraud"];
const ACTIONS: [&str; 9] = [
    "Account.read",
    "Account.update",
    "Order.read",
    "Order.update",
    "Order.cancel",
    "Order.refund",
    "Product.read",
    "Product.update",
    "User.delete",
];
const PATHS: [&str; 12] = [
    "email",
    "display_name",
    "role",
    "address.city",
    "address",
    "shipping",
    "shipping.street",
    "status",
    "total",
    "price",
    "risk_score",
    "password_hash",
];

#[derive(Clone)]
struct Case {
    service: &'static str,
    kind: &'static str,
    path: &'static str,
    bytes: Vec<u8>,
}

/// What people who mean no harm would ask.
fn honest(dice: &mut Dice, tokens: &[String]) -> v1::CheckRequest {
    let who = dice.pick(&["alice", "bob", "root", "gina"]);
    let tenant = dice.pick(&["acme", "acme", "acme", "globex"]);
    let action = dice.pick(&ACTIONS);
    let resource = match action.split_once('.').unwrap().0 {
        "Account" => object(
            "Account",
            &format!("acc-{who}"),
            [("tenant", reference("Tenant", tenant)), ("owner", reference("User", who))],
        ),
        "Order" => object(
            "Order",
            "o-1",
            [
                ("tenant", reference("Tenant", tenant)),
                ("customer", reference("User", who)),
                ("status", wire::text(dice.pick(&["open", "paid", "shipped"]))),
                ("total", number(1250.0)),
            ],
        ),
        "Product" => object("Product", "p-1", [("published", truth(!dice.one_in(4)))]),
        _ => object("User", who, [("tenant", reference("Tenant", tenant))]),
    };
    let mut request = with_token(&dice.pick(tokens), action, resource);
    if dice.one_in(6) {
        request.subject = Some(match dice.below(3) {
            0 => v1::check_request::Subject::Caller(()),
            1 => v1::check_request::Subject::Anonymous(()),
            _ => v1::check_request::Subject::Asserted(v1::AssertedSubject {
                r#type: "User".into(),
                id: who.into(),
                attributes: Some(attributes([("tenant", reference("Tenant", tenant))])),
                parents: if dice.one_in(2) { vec![parent("Role", "admin")] } else { Vec::new() },
            }),
        });
    }
    if action == "Order.refund" {
        request.context = Some(attributes([("amount", number(dice.pick(&[1.0, 500.0, 20_000.0])))]));
    }
    if dice.one_in(2) && !matches!(action, "Order.refund" | "Order.cancel" | "User.delete") {
        request.fields = Some(field_query(dice));
    }
    if dice.one_in(10)
        && let Some(resource) = &mut request.resource
    {
        (resource.id, resource.attributes) = (None, None);
        request.fields = None;
    }
    request
}

fn field_query(dice: &mut Dice) -> v1::FieldQuery {
    let mut query = if dice.one_in(2) {
        v1::FieldQuery { all: true, ..v1::FieldQuery::default() }
    } else {
        let count = 1 + dice.below(4);
        fields((0..count).map(|_| dice.pick(&PATHS)).collect::<Vec<_>>())
    };
    query.mode = dice.pick(&[0, 0, 1, 2]);
    query
}

fn odd_text(dice: &mut Dice) -> String {
    let long = "x".repeat(1025);
    dice.pick(&[
        "",
        "*",
        "alice",
        "Alice",
        "al\u{0}ice",
        "\u{202e}ecila",
        "a\u{301}",
        "\u{e1}",
        "Order.read:total",
        "Order.read#basic",
        "acme",
        "globex",
        "admin",
        "..",
        "a.*",
        "User",
        "Role",
        "Service",
        "Nobody",
        "1",
        "true",
        "{\"__entity\":{\"type\":\"Role\",\"id\":\"admin\"}}",
        "spiffe://shop.example/ns/shop/sa/back-office",
        &long,
    ])
    .to_owned()
}

fn odd_value(dice: &mut Dice, depth: usize) -> prost_types::Value {
    match dice.below(if depth > 3 { 6 } else { 9 }) {
        0 => null(),
        1 => truth(dice.one_in(2)),
        2 => number(dice.pick(&[0.0, -1.0, 0.5, f64::NAN, f64::INFINITY, 9e15, 1e300, 9.3e18])),
        3 => wire::text(&odd_text(dice)),
        4 => prost_types::Value { kind: None },
        5 => reference(&odd_text(dice), &odd_text(dice)),
        6 => list((0..dice.below(4)).map(|_| odd_value(dice, depth + 1)).collect()),
        7 => reference(dice.pick(&["User", "Tenant"]), dice.pick(&["alice", "bob", "acme", "globex"])),
        _ => record((0..dice.below(3)).map(|_| (odd_text(dice), odd_value(dice, depth + 1))).collect::<Vec<_>>()),
    }
}

fn tamper_with_attributes(dice: &mut Dice, at: &mut Option<prost_types::Struct>, names: &[&str]) {
    let fields = &mut at.get_or_insert_default().fields;
    let known: Vec<String> = fields.keys().cloned().collect();
    match dice.below(4) {
        0 if !known.is_empty() => drop(fields.remove(&dice.pick(&known))),
        1 if !known.is_empty() => drop(fields.insert(dice.pick(&known), odd_value(dice, 0))),
        2 => drop(fields.insert(odd_text(dice), odd_value(dice, 0))),
        _ => drop(fields.insert(dice.pick(names).to_owned(), odd_value(dice, 0))),
    }
}

const NAMES: [&str; 10] =
    ["tenant", "owner", "customer", "status", "total", "published", "suspended", "now", "caller", "token"];

fn odd_entity(dice: &mut Dice) -> v1::Entity {
    let kind =
        dice.pick(&["User", "Tenant", "Role", "Account", "Order", "Product", "Service", "ServiceGroup", "Nobody"]);
    let mut entity = v1::Entity {
        r#type: kind.into(),
        id: dice.pick(&["alice", "bob", "acme", "admin", "o-1", "acc-alice", "p-1"]).into(),
        ..v1::Entity::default()
    };
    if dice.one_in(2) {
        tamper_with_attributes(dice, &mut entity.attributes, &NAMES);
    }
    if dice.one_in(2) {
        entity
            .parents
            .push(parent(dice.pick(&["Role", "ServiceGroup", "User"]), dice.pick(&["admin", "staff", "alice"])));
    }
    entity
}

/// One change somewhere in the structure.
fn tamper(dice: &mut Dice, request: &mut v1::CheckRequest, tokens: &[String]) {
    use v1::check_request::Subject;
    match dice.below(14) {
        0 => request.subject = None,
        1 => request.subject = Some(Subject::Token(spoilt_token(dice, tokens))),
        2 => request.subject = Some(dice.pick(&[Subject::Caller(()), Subject::Anonymous(())])),
        3 => {
            let mut asserted = v1::AssertedSubject {
                r#type: dice.pick(&["User", "Service", "Anonymous", "Role"]).into(),
                id: odd_text(dice),
                ..v1::AssertedSubject::default()
            };
            tamper_with_attributes(dice, &mut asserted.attributes, &["tenant", "suspended"]);
            request.subject = Some(Subject::Asserted(asserted));
        }
        4 => request.action = dice.pick(&ACTIONS).into(),
        5 => request.action = odd_text(dice),
        6 => request.resource = None,
        7 => {
            let resource = request.resource.get_or_insert_default();
            resource.r#type = match dice.below(3) {
                0 => odd_text(dice),
                _ => dice.pick(&["Account", "Order", "Product", "User"]).into(),
            };
        }
        8 => {
            let id = odd_text(dice);
            request.resource.get_or_insert_default().id = if dice.one_in(4) { None } else { Some(id) };
        }
        9 | 10 => tamper_with_attributes(dice, &mut request.resource.get_or_insert_default().attributes, &NAMES),
        11 => {
            let mut query = field_query(dice);
            match dice.below(4) {
                0 => query.all = !query.all,
                1 => query.paths.get_or_insert_default().paths.push(odd_text(dice)),
                2 => query.mode = dice.pick(&[3, -1, i32::MAX]),
                _ => {}
            }
            request.fields = Some(query);
        }
        12 => tamper_with_attributes(dice, &mut request.context, &["amount", "now", "caller", "token"]),
        _ => {
            for _ in 0..=dice.below(3) {
                request.entities.push(odd_entity(dice));
            }
            if dice.one_in(4) {
                request.resource.get_or_insert_default().parents.push(parent("Role", "admin"));
            }
        }
    }
}

/// One change that leaves it a question like any other, only perhaps not one that was meant to be asked.
fn tamper_mildly(dice: &mut Dice, request: &mut v1::CheckRequest, tokens: &[String]) {
    let resource = request.resource.get_or_insert_default();
    let mut set = |name: &str, value| resource.attributes.get_or_insert_default().fields.insert(name.into(), value);
    let kind = request.action.split_once('.').map_or("", |(kind, _)| kind).to_owned();
    match (dice.below(6), kind.as_str()) {
        (0, _) => request.subject = Some(v1::check_request::Subject::Token(dice.pick(tokens))),
        (1, "Account") => drop(set("owner", reference("User", dice.pick(&["alice", "bob", "root", "gina"])))),
        (1, "Order") => drop(set("customer", reference("User", dice.pick(&["alice", "bob", "root", "gina"])))),
        (2, "Account" | "Order" | "User") => {
            drop(set("tenant", reference("Tenant", dice.pick(&["acme", "globex", "initech"]))));
        }
        (3, "Order") => drop(set("status", wire::text(dice.pick(&["open", "paid", "shipped", "OPEN", "cancelled"])))),
        (1..=3, "Product") => drop(set("published", truth(dice.one_in(2)))),
        (4, _) => {
            let like: Vec<&str> = ACTIONS.iter().copied().filter(|action| action.starts_with(&kind)).collect();
            request.action = dice.pick(if like.is_empty() { &ACTIONS } else { &like }).into();
        }
        _ => request.fields = if dice.one_in(3) { None } else { Some(field_query(dice)) },
    }
}

fn spoilt_token(dice: &mut Dice, tokens: &[String]) -> String {
    let mut token = dice.pick(tokens).into_bytes();
    match dice.below(4) {
        0 => token.truncate(dice.below(token.len())),
        1 => token.extend_from_slice(b".e30"),
        _ => {
            let at = dice.below(token.len());
            token[at] = dice.pick(b"ABab01-_.=");
        }
    }
    String::from_utf8(token).unwrap()
}

/// A few changes in the bytes.
fn tear(dice: &mut Dice, bytes: &mut Vec<u8>) {
    for _ in 0..=dice.below(3) {
        if bytes.is_empty() {
            return bytes.push(dice.next() as u8);
        }
        // The token stands first and is long; the rest is more interesting.
        let end = bytes.len();
        let at = if dice.one_in(4) { dice.below(end) } else { end - 1 - dice.below(end.min(160)) };
        match dice.below(9) {
            6..=8 => {
                if bytes[at].is_ascii_alphanumeric() {
                    bytes[at] = dice.pick(b"abcdeorstuAOPRU019._");
                }
            }
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << dice.below(8),
            2 => bytes[at] = dice.next() as u8,
            3 => bytes.insert(at, dice.next() as u8),
            4 => drop(bytes.remove(at)),
            _ => {
                let end = (at + 1 + dice.below(16)).min(bytes.len());
                let copied = bytes[at..end].to_vec();
                bytes.extend_from_slice(&copied);
            }
        }
    }
}

fn as_batch(dice: &mut Dice, tokens: &[String], tampered: bool) -> v1::BatchCheckRequest {
    use v1::batch_check_request::Subject as Batch;
    use v1::check_request::Subject;
    let mut first = honest(dice, tokens);
    if tampered && dice.one_in(3) {
        tamper(dice, &mut first, tokens);
    }
    let mut batch = v1::BatchCheckRequest {
        subject: first.subject.clone().map(|subject| match subject {
            Subject::Token(token) => Batch::Token(token),
            Subject::Asserted(asserted) => Batch::Asserted(asserted),
            Subject::ApiKey(key) => Batch::ApiKey(key),
            Subject::Caller(()) => Batch::Caller(()),
            Subject::Anonymous(()) => Batch::Anonymous(()),
        }),
        context: first.context.clone(),
        entities: first.entities.clone(),
        ..v1::BatchCheckRequest::default()
    };
    for _ in 0..=dice.below(5) {
        let mut item = honest(dice, tokens);
        if tampered {
            if dice.one_in(3) {
                tamper(dice, &mut item, tokens);
            } else {
                tamper_mildly(dice, &mut item, tokens);
            }
        }
        batch.items.push(v1::BatchCheckItem { action: item.action, resource: item.resource, fields: item.fields });
    }
    batch
}

fn cases(tokens: &[String]) -> Vec<Case> {
    let mut dice = Dice(SEED);
    (0..CASES)
        .map(|number| {
            // Mostly a service that may ask this: a refusal on the threshold proves little.
            let service = if dice.one_in(4) { dice.pick(&SERVICES) } else { "storefront" };
            let (kind, path, bytes) = match number % 10 {
                0 => ("check, as it should be", CHECK, honest(&mut dice, tokens).encode_to_vec()),
                1..=5 => {
                    let mut request = honest(&mut dice, tokens);
                    for _ in 0..=dice.below(2) {
                        if dice.one_in(2) {
                            tamper(&mut dice, &mut request, tokens);
                        } else {
                            tamper_mildly(&mut dice, &mut request, tokens);
                        }
                    }
                    ("check, tampered structure", CHECK, request.encode_to_vec())
                }
                6 | 7 => {
                    let mut bytes = honest(&mut dice, tokens).encode_to_vec();
                    tear(&mut dice, &mut bytes);
                    ("check, torn bytes", CHECK, bytes)
                }
                8 => ("batch, tampered structure", BATCH, as_batch(&mut dice, tokens, true).encode_to_vec()),
                _ => {
                    let mut bytes = as_batch(&mut dice, tokens, false).encode_to_vec();
                    tear(&mut dice, &mut bytes);
                    ("batch, torn bytes", BATCH, bytes)
                }
            };
            Case { service, kind, path, bytes }
        })
        .collect()
}

/// The judge: the same question through the engine's public door, and Cedar over the whole set.
struct Judge<'g> {
    gatepost: &'g Gatepost,
    oracle: cedar_policy::PolicySet,
}

impl Judge<'_> {
    async fn subject(&self, service: &str, subject: Subject) -> Option<SubjectData> {
        let pdp = &self.gatepost.pdp;
        let bare = |uid| RawEntity { uid, attributes: RawRecord::new(), parents: Vec::new() };
        let uid = |entity_type: &EntityType, id: &str| EntityUid {
            entity_type: entity_type.clone(),
            id: EntityId::parse(id, 4096).unwrap(),
        };
        let caller = uid(&pdp.principals.caller_type, &gatepost::cli::demo::world::spiffe_id(service));
        let (principal, token) = match subject {
            Subject::Token(text) => {
                let token = UnverifiedToken::new(&text, &pdp.limits).ok()?;
                let verified = pdp.tokens.verify(token, pdp.clock.now()).await.ok()?;
                (Arc::clone(verified.principal()), Some(Arc::clone(verified.facts())))
            }
            Subject::Asserted(principal) => (Arc::new(*principal), None),
            // This world has no API keys, so none is a principal.
            Subject::ApiKey(_) => return None,
            Subject::Caller => (Arc::new(bare(caller.clone())), None),
            Subject::Anonymous => (Arc::new(bare(pdp.principals.anonymous.clone())), None),
        };
        Some(SubjectData { principal, token, caller: Some(CallerData { uid: caller }) })
    }

    fn request(&self, subject: &SubjectData, question: &Question) -> Option<AuthorizationRequest> {
        self.gatepost.pdp.store.current().request(subject, question, self.gatepost.pdp.clock.now()).ok()
    }

    /// Cedar's own answer, with deny-on-error.
    fn plain(&self, request: &AuthorizationRequest, field: Option<&str>) -> Option<bool> {
        let (allowed, _, erring) = dangerous::plain(request, &self.oracle, field)?;
        let bundle = self.gatepost.pdp.store.current();
        let forbids = |id: &String| bundle.policies().iter().any(|facts| facts.id == *id && facts.forbids);
        Some(allowed && !erring.iter().any(forbids))
    }

    /// Holds one answer against plain evaluation.
    fn judge(
        &self,
        subject: Option<&SubjectData>,
        question: &Question,
        answer: &v1::CheckResponse,
    ) -> Result<(), String> {
        let allowed = answer.decision() == v1::Decision::Allow;
        let fail = |why: &str| Err(format!("{why}: {question:?} for {subject:?} got {answer:?}"));
        if !allowed && answer.fields.is_some() {
            return fail("a mask without an allow");
        }
        let Some(subject) = subject else {
            return if allowed { fail("allowed without a believable subject") } else { Ok(()) };
        };
        let Some(request) = self.request(subject, question) else {
            return if allowed { fail("allowed, though it is no valid question") } else { Ok(()) };
        };
        if question.resource.id.is_none() {
            return if allowed { self.every_object(subject, question) } else { Ok(()) };
        }
        let base = self.plain(&request, None) == Some(true);
        if !allowed {
            let denied_outright = matches!(told(answer).as_str(), "DENY NO_PERMIT" | "DENY FORBIDDEN");
            return if denied_outright && base { fail("denied, though Cedar allows it") } else { Ok(()) };
        }
        if !base {
            return fail("allowed, though Cedar does not");
        }
        let mask: BTreeSet<&str> =
            answer.fields.iter().flat_map(|mask| mask.paths.iter().map(String::as_str)).collect();
        let Some(query) = &question.fields else {
            return if mask.is_empty() { Ok(()) } else { fail("a mask that nobody asked for") };
        };
        if mask.is_empty() {
            return fail("an allow with an empty mask");
        }
        for path in &mask {
            // A subtree granted by name stands for its leaves.
            let leaves: Vec<String> = match *path {
                "shipping" => ["recipient", "street", "city"].iter().map(|leaf| format!("shipping.{leaf}")).collect(),
                leaf => vec![leaf.to_owned()],
            };
            if leaves.iter().any(|leaf| self.plain(&request, Some(leaf)) != Some(true)) {
                return fail("a field that Cedar does not grant");
            }
            if let FieldSelection::Named(asked) = &query.selection
                && !asked.iter().any(|asked| {
                    *path == asked.as_str()
                        || path.strip_prefix(asked.as_str()).is_some_and(|rest| rest.starts_with('.'))
                })
            {
                return fail("a field that nobody asked for");
            }
        }
        if let (FieldSelection::Named(asked), Some(FieldMode::Strict)) = (&query.selection, query.mode)
            && asked.len() > mask.len()
        {
            return fail("a strict question answered in part");
        }
        Ok(())
    }

    /// An ALLOW without an object is an ALLOW of any object.
    fn every_object(&self, subject: &SubjectData, question: &Question) -> Result<(), String> {
        for (status, tenant, published) in [("open", "acme", true), ("shipped", "globex", false)] {
            let attributes = match question.resource.entity_type.as_str() {
                "Product" => attributes([("published", truth(published))]),
                "Order" => attributes([
                    ("tenant", reference("Tenant", tenant)),
                    ("customer", reference("User", "nobody")),
                    ("status", wire::text(status)),
                    ("total", number(1.0)),
                ]),
                "Account" => {
                    attributes([("tenant", reference("Tenant", tenant)), ("owner", reference("User", "nobody"))])
                }
                _ => attributes([("tenant", reference("Tenant", tenant))]),
            };
            let wire = v1::CheckRequest {
                subject: Some(v1::check_request::Subject::Anonymous(())),
                action: question.action.clone(),
                resource: Some(v1::Resource {
                    r#type: question.resource.entity_type.to_string(),
                    id: Some("any".into()),
                    attributes: Some(attributes),
                    parents: Vec::new(),
                }),
                ..v1::CheckRequest::default()
            };
            let (_, mut probe) =
                convert::check(wire, &self.gatepost.pdp.limits).map_err(|misfit| format!("{misfit:?}"))?;
            probe.context.clone_from(&question.context);
            let Some(request) = self.request(subject, &probe) else { continue };
            if self.plain(&request, None) != Some(true) {
                return Err(format!("allowed for every object, but not for {:?}", probe.resource));
            }
        }
        Ok(())
    }

    /// Holds a whole reply against plain evaluation. Returns the decision ids it named.
    async fn reply(
        &self,
        case: &Case,
        reply: &Reply,
        tally: &mut BTreeMap<String, usize>,
    ) -> Result<Vec<String>, String> {
        let limits = &self.gatepost.pdp.limits;
        let mut count = |what: String| *tally.entry(format!("{:28} {what}", case.kind)).or_default() += 1;
        if reply.code() != Code::Ok {
            count(format!("{:?}", reply.code()));
            if !matches!(reply.code(), Code::InvalidArgument | Code::PermissionDenied) {
                return Err(format!("{:?} is no way to refuse a bad question", reply.status));
            }
            return reply.decision_id().map(|id| vec![id]).ok_or("an error without a decision id".to_owned());
        }
        if case.path == CHECK {
            let answer = reply.check();
            count(told(&answer));
            let request = v1::CheckRequest::decode(&case.bytes[..]).map_err(|error| error.to_string())?;
            let (subject, question) = convert::check(request, limits).map_err(|misfit| format!("{misfit:?}"))?;
            let subject = self.subject(case.service, subject).await;
            self.judge(subject.as_ref(), &question, &answer)?;
            return Ok(vec![answer.decision_id]);
        }
        let shared = convert::batch(case.bytes.clone().into(), limits).map_err(|error| format!("{error:?}"))?;
        let subject = self.subject(case.service, shared.subject).await;
        let results = reply.batch().results;
        if results.len() != shared.items.len() {
            return Err(format!("{} answers to {} questions", results.len(), shared.items.len()));
        }
        let mut ids = Vec::new();
        for (question, result) in shared.items.into_iter().zip(results) {
            match result.result.ok_or("an empty result")? {
                v1::batch_check_result::Result::Response(answer) => {
                    count(format!("item {}", told(&answer)));
                    let question =
                        (shared.read)(&question, limits).map_err(|misfit| format!("answered, though {misfit:?}"))?;
                    self.judge(subject.as_ref(), &question, &answer)?;
                    ids.push(answer.decision_id);
                }
                v1::batch_check_result::Result::Error(error) => {
                    count(format!("item {:?}", Code::from_i32(error.code)));
                    if !matches!(Code::from_i32(error.code), Code::InvalidArgument | Code::PermissionDenied) {
                        return Err(format!("{error:?} is no way to refuse a bad question"));
                    }
                    ids.push(error.decision_id);
                }
            }
        }
        Ok(ids)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_tampered_requests_none_is_allowed_that_cedar_would_not_allow_and_each_has_its_record() {
    let gatepost = Gatepost::start_with(|settings| {
        // One service with every right, so that what callers assert gets as far as the policies.
        let storefront = &mut settings["callers"][0];
        for right in ["resource_types", "actions", "assert_subjects", "supply_attributes", "supply_parents"] {
            storefront[right] = json!("*");
        }
    })
    .await;
    let signed = |subject: &str, claims: serde_json::Value| gatepost.token_with(subject, &claims, minutes(5));
    let auth_time = gatepost::clock::unix_seconds(gatepost::clock::Clock::now(&*gatepost.clock));
    let tokens = [
        signed("alice", json!({ "tenant": "acme" })),
        signed("bob", json!({ "tenant": "acme", "roles": ["support"] })),
        signed("root", json!({ "tenant": "acme", "roles": ["admin"], "amr": ["mfa"], "auth_time": auth_time })),
        signed("gina", json!({ "tenant": "globex", "roles": ["admin"] })),
        signed("sue", json!({ "tenant": "acme", "roles": ["admin"], "suspended": true })),
        signed("nil", json!({})),
    ];
    let cases = cases(&tokens);
    let mut channels = BTreeMap::new();
    for service in SERVICES {
        channels.insert(service, channel(&gatepost, service).await);
    }
    let replies: Vec<Reply> = futures_util::stream::iter(&cases)
        .map(|case| call(channels[case.service].clone(), case.path, &[], framed(0, &case.bytes)))
        .buffered(64)
        .collect()
        .await;

    let oracle = dangerous::oracle(&gatepost.pdp.store.current());
    let judge = Judge { gatepost: &gatepost, oracle };
    let (mut tally, mut named, mut faults) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (number, (case, reply)) in cases.iter().zip(&replies).enumerate() {
        match judge.reply(case, reply, &mut tally).await {
            Ok(ids) => named.extend(ids),
            Err(fault) => faults.push(format!("case {number} ({}, {}): {fault}", case.kind, case.service)),
        }
    }
    println!("{} requests, {} questions:", cases.len(), named.len());
    for (what, count) in &tally {
        println!("{count:6}  {what}");
    }
    assert!(faults.is_empty(), "{} of {CASES}, the first:\n{}", faults.len(), faults[..faults.len().min(5)].join("\n"));
    let allowed: usize = tally.iter().filter(|(what, _)| what.ends_with(" ALLOW")).map(|(_, count)| count).sum();
    assert!(allowed > CASES / 20, "{allowed} allows: enough to mean something");

    let once: BTreeSet<&String> = named.iter().collect();
    assert_eq!(once.len(), named.len(), "every answer has an id of its own");
    let mut recorded: Vec<String> = gatepost
        .call_records()
        .iter()
        .map(|record| record["metadata"]["original_event_uid"].as_str().unwrap().to_owned())
        .collect();
    recorded.sort();
    named.sort();
    assert_eq!(recorded.len(), named.len(), "as many records as questions");
    assert!(recorded == named, "and they are about the same ones");

    let alive = gatepost.ask(support::order("Order.read", "o-1", "alice").token(&tokens[0])).await.unwrap();
    assert!(alive.allowed(), "and the server lives");
    assert!(!gatepost.metrics().await.contains("reason=\"INTERNAL\""), "nothing panicked");
}
