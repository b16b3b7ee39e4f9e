//! What a caller may say, of whom it may ask, how much it may take, and whether it may ask why: each right is granted or
//! lacking, and a lacking one has a word on record.

use std::path::{Path, PathBuf};

use gatepost::cli::demo::world::spiffe_id;
use gatepost::proto::v1;
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::failing_closed::wire;
use crate::support::{Gatepost, PATIENCE, eventually, minutes};
use crate::wire::{attributes, batch, channel, check, list, object, parent, record, reference, text, with_token};

/// A bundle of tenants, folders and documents.
pub fn belonging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spec/bundles/belonging")
}

/// Settings that fit it, with these callers.
pub fn belonging_settings(settings: &mut Value, callers: &[Value]) {
    settings["callers"] = callers
        .iter()
        .map(|more| {
            let mut caller = json!({ "resource_types": "*", "actions": "*", "presents_for": "*" });
            caller["spiffe_id"] = json!(spiffe_id(more["name"].as_str().unwrap()));
            caller.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            caller
        })
        .collect();
    settings["issuers"][0]["principal"] = json!({
        "type": "User", "attributes": { "tenant": { "claim": "tenant", "entity": "Tenant" }, "suspended": "suspended" },
        "parents": [{ "claim": "roles", "type": "Role" }],
    });
    settings["policies"]["tenant_type"] = json!("Tenant");
    settings["audit"]["attributes"] = json!({});
}

/// The right that the record says was lacking; `None`: it lacked none.
fn lacking(gatepost: &Gatepost, reply: &crate::wire::Reply) -> Option<String> {
    let record = gatepost.record_of(&reply.decision_id().unwrap());
    record["unmapped"]["gatepost"]["caller_refusal"].as_str().map(str::to_owned)
}

fn doc<N: Into<String>>(token: &str, members: impl IntoIterator<Item = (N, prost_types::Value)>) -> v1::CheckRequest {
    with_token(token, "read", object("Doc", "new", members))
}

fn entity(kind: &str, id: &str, members: Vec<(&str, prost_types::Value)>, parents: Vec<v1::EntityRef>) -> v1::Entity {
    let attributes = (!members.is_empty()).then(|| attributes(members));
    v1::Entity { r#type: kind.into(), id: id.into(), attributes, parents }
}

fn vouching(id: &str, members: Vec<(&str, prost_types::Value)>, parents: Vec<v1::EntityRef>) -> v1::CheckRequest {
    let subject =
        v1::AssertedSubject { r#type: "User".into(), id: id.into(), attributes: Some(attributes(members)), parents };
    v1::CheckRequest { subject: Some(v1::check_request::Subject::Asserted(subject)), ..doc("", [("title", text("t"))]) }
}

/// Makes a question that names the tenant of this id, in one place.
type Naming<'t> = Box<dyn Fn(&str) -> v1::CheckRequest + 't>;

/// THREATS T19: whatever refers to a tenant, wherever it stands, needs the grant; and so does asking for its people,
/// whoever says whose they are.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_of_a_tenant_or_asks_for_its_people_without_the_grant() {
    let everything = json!({ "assert_subjects": "*", "supply_attributes": "*", "supply_parents": "*" });
    let caller = |name: &str, tenants: Value| {
        let mut caller = everything.clone();
        caller["name"] = json!(name);
        caller["tenants"] = tenants;
        caller
    };
    let callers = [caller("of-acme", json!(["acme"])), caller("of-none", json!([])), caller("of-all", json!("*"))];
    let gatepost = Gatepost::start_over(&belonging(), |settings| belonging_settings(settings, &callers)).await;
    let (of_acme, of_none, of_all) =
        (channel(&gatepost, "of-acme").await, channel(&gatepost, "of-none").await, channel(&gatepost, "of-all").await);
    let token = |who: &str, claims: Value| gatepost.token_with(who, &claims, minutes(5));
    let alice = token("alice", json!({ "tenant": "acme" }));
    let nobodys = token("zoe", json!({}));
    let tenant = |id: &str| reference("Tenant", id);
    let with = |change: &dyn Fn(&mut v1::CheckRequest)| {
        let mut request = doc(&alice, [("title", text("t"))]);
        change(&mut request);
        request
    };
    // Each names one tenant, in one place.
    let said: Vec<(Naming<'_>, &str)> = vec![
        (Box::new(|id| doc(&alice, [("tenant", tenant(id))])), "an attribute"),
        (Box::new(|id| doc(&alice, [("shared", list(vec![tenant("acme"), tenant(id)]))])), "in a list"),
        (
            Box::new(|id| doc(&alice, [("deep", record([("below", record([("of", tenant(id))]))]))])),
            "in a record in a record",
        ),
        (
            Box::new(|id| with(&|request| request.resource.as_mut().unwrap().parents = vec![parent("Tenant", id)])),
            "a parent of the resource",
        ),
        (Box::new(|id| with(&|request| request.context = Some(attributes([("at", tenant(id))])))), "the circumstances"),
        (
            Box::new(|id| with(&|request| request.context = Some(attributes([("places", list(vec![tenant(id)]))])))),
            "a list of circumstances",
        ),
        (
            Box::new(|id| with(&|request| request.entities = vec![entity("Tenant", id, vec![], vec![])])),
            "the tenant itself, described",
        ),
        (
            Box::new(|id| {
                with(&|request| request.entities = vec![entity("User", "u", vec![("tenant", tenant(id))], vec![])])
            }),
            "an attribute of another entity",
        ),
        (
            Box::new(|id| {
                with(&|request| request.entities = vec![entity("User", "u", vec![], vec![parent("Tenant", id)])])
            }),
            "a parent of another entity",
        ),
        (
            Box::new(|id| with_token(&alice, "read", object("Tenant", id, Vec::<(&str, _)>::new()))),
            "the object asked about",
        ),
        (Box::new(|id| vouching("zoe", vec![("tenant", tenant(id))], vec![])), "an attribute of the subject"),
        (Box::new(|id| vouching("zoe", vec![], vec![parent("Tenant", id)])), "a parent of the subject"),
        (Box::new(|id| doc(&token("zoe", json!({ "tenant": id })), [("title", text("t"))])), "the token's claim"),
    ];
    let mut asked = 0;
    for (make, place) in &said {
        for (channel, id, granted, who) in [
            (&of_acme, "acme", true, "of acme, acme"),
            (&of_acme, "globex", false, "of acme, globex"),
            (&of_acme, "Acme", false, "of acme, another case"),
            (&of_acme, "acm", false, "of acme, a shorter name"),
            (&of_none, "acme", false, "of none, acme"),
            (&of_none, "globex", false, "of none, globex"),
            (&of_all, "globex", true, "of all, globex"),
        ] {
            asked += 1;
            let reply = check(channel, &make(id)).await;
            let refused = reply.reason().as_deref() == Some("CALLER_NOT_ENTITLED");
            assert_eq!(refused, !granted, "{place}, {who}: {}", reply.told());
            let word = lacking(&gatepost, &reply);
            assert_eq!(word.as_deref(), (!granted).then_some("TENANT"), "{place}, {who}");
        }
    }
    // What is stored counts like a claim, and so does what a group is in.
    let parents =
        |folder: &str| with(&|request| request.resource.as_mut().unwrap().parents = vec![parent("Folder", folder)]);
    let table = [
        (doc(&token("gil", json!({})), [("title", text("t"))]), false, "stored as one of globex"),
        (doc(&token("gus", json!({})), [("title", text("t"))]), false, "stored below globex"),
        (doc(&token("gil", json!({ "tenant": "acme" })), [("title", text("t"))]), true, "the token says otherwise"),
        (doc(&nobodys, [("title", text("t"))]), true, "of no tenant at all"),
        (parents("globex-only"), false, "a folder that is globex's"),
        (parents("public"), true, "a folder of nobody's"),
        (vouching("gil", vec![], vec![]), false, "vouched for, and stored as one of globex"),
        (with(&|request| request.context = Some(attributes([("note", text("Tenant globex"))]))), true, "text is text"),
    ];
    for (request, granted, why) in &table {
        asked += 2;
        let reply = check(&of_acme, request).await;
        assert_eq!(reply.reason().is_none(), *granted, "{why}: {}", reply.told());
        assert!(check(&of_all, request).await.reason().is_none(), "{why}");
    }
    println!("tenants: {asked} questions");
    let records = gatepost.call_records();
    assert_eq!(records.len(), asked, "one record each");
}

/// THREATS T19: 10 000 forged tenants, each near enough to the real one to be taken for it by anything but bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_tenant_is_refused_however_it_is_spelt() {
    let gatepost = Gatepost::start().await;
    let channel = channel(&gatepost, "fulfilment").await;
    let marks =
        ["", " ", "/", "\"", "'", "::", ".", "%00", "e\u{301}", "\u{430}", "\u{ff41}", "-", "A", "a", "c", "m", "e"];
    let mut random = 0x51ed_270b_0f4a_9d3d_u64;
    let mut draw = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % u64::try_from(below).unwrap()).unwrap()
    };
    let mut forge = || {
        let mut letters: Vec<char> = "acme".chars().collect();
        for _ in 0..=draw(3) {
            let at = draw(letters.len() + 1);
            match draw(3) {
                0 if at < letters.len() => letters[at] = letters[at].to_ascii_uppercase(),
                1 if at < letters.len() => drop(letters.remove(at)),
                _ => drop(letters.splice(at..at, marks[draw(marks.len())].chars())),
            }
        }
        letters.into_iter().collect::<String>()
    };
    let item = |tenant: &str| {
        let v1::CheckRequest { action, mut resource, .. } = wire("");
        let attributes = resource.as_mut().unwrap().attributes.as_mut().unwrap();
        attributes.fields.insert("tenant".to_owned(), reference("Tenant", tenant));
        v1::BatchCheckItem { action, resource, fields: None }
    };
    let ask = |items: Vec<v1::BatchCheckItem>| v1::BatchCheckRequest {
        subject: Some(v1::batch_check_request::Subject::Caller(())),
        items,
        ..v1::BatchCheckRequest::default()
    };
    let (mut forged, mut spellings) = (0, std::collections::BTreeSet::new());
    while forged < 10_000 {
        let tenants: Vec<String> =
            std::iter::repeat_with(&mut forge).filter(|name| !name.is_empty() && name != "acme").take(100).collect();
        let reply = batch(&channel, &ask(tenants.iter().map(|name| item(name)).collect())).await;
        for (name, result) in tenants.iter().zip(reply.batch().results) {
            let Some(v1::batch_check_result::Result::Error(error)) = result.result else {
                panic!("{name:?} was answered")
            };
            assert_eq!(error.reason, "CALLER_NOT_ENTITLED", "{name:?}");
        }
        forged += tenants.len();
        spellings.extend(tenants);
    }
    let records = gatepost.call_records();
    assert_eq!(records.len(), forged);
    assert!(records.iter().all(|record| record["unmapped"]["gatepost"]["caller_refusal"] == "TENANT"));
    let real = batch(&channel, &ask(vec![item("acme")])).await.batch();
    assert!(matches!(real.results[0].result, Some(v1::batch_check_result::Result::Response(_))), "its own is its own");
    println!("tenants: {forged} forged, {} spellings, all refused", spellings.len());
}

/// A tenant type that no schema declares would hold nobody to anything, so nothing starts with it.
#[test]
fn a_tenant_type_that_the_schema_does_not_know_is_refused() {
    use gatepost::model::entity::EntityType;
    use gatepost::policy::{Bundle, BundleOptions};
    let options = |name: &str| BundleOptions { tenant_type: EntityType::parse(name).ok(), ..BundleOptions::default() };
    assert!(Bundle::load(&belonging(), &options("Tenant")).is_ok());
    let report = Bundle::load(&belonging(), &options("Tennant")).unwrap_err();
    let told = format!("{report:?}");
    assert!(told.contains("declares no entity type `Tennant`") && told.contains("policies.tenant_type"), "{told}");
}

/// THREATS T9: attributes are granted by type or one by one; parents on their own; actions never.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_may_say_of_entities_is_granted_word_by_word() {
    let callers = [
        json!({ "name": "bare" }),
        json!({ "name": "titles", "supply_attributes": ["Doc.title", "User.suspended"] }),
        json!({ "name": "docs", "supply_attributes": ["Doc"], "supply_parents": ["Doc"], "tenants": ["acme"] }),
        json!({ "name": "all", "supply_attributes": "*", "supply_parents": "*", "assert_subjects": "*", "tenants": "*" }),
    ];
    let gatepost = Gatepost::start_over(&belonging(), |settings| belonging_settings(settings, &callers)).await;
    let alice = gatepost.token_with("alice", &json!({}), minutes(5));
    let title = || ("title", text("t"));
    let owner = || ("owner", reference("User", "alice"));
    let acme = || ("tenant", reference("Tenant", "acme"));
    let stored = || with_token(&alice, "read", object("Doc", "stored-alice", Vec::<(&str, _)>::new()));
    let user =
        |members, parents| v1::CheckRequest { entities: vec![entity("User", "u", members, parents)], ..stored() };
    let placed = || {
        let mut request = doc(&alice, [title()]);
        request.resource.as_mut().unwrap().parents = vec![parent("Folder", "public")];
        request
    };
    let truth = crate::wire::truth(true);
    let action = |kind: &str| v1::CheckRequest { entities: vec![entity(kind, "read", vec![], vec![])], ..stored() };
    let under = |kind: &str| {
        let mut request = doc(&alice, [title()]);
        request.resource.as_mut().unwrap().parents = vec![parent(kind, "read")];
        request
    };
    let table = [
        ("bare", stored(), "ALLOW", "a name alone"),
        ("bare", doc(&alice, [title()]), "SUPPLY_ATTRIBUTES", "an attribute"),
        ("bare", user(vec![], vec![]), "SUPPLY_ATTRIBUTES", "an entity without any"),
        ("titles", doc(&alice, [title()]), "DENY NO_PERMIT", "the granted one"),
        ("titles", doc(&alice, [title(), owner()]), "SUPPLY_ATTRIBUTES", "another beside it"),
        ("titles", doc(&alice, [owner()]), "SUPPLY_ATTRIBUTES", "another alone"),
        ("titles", doc(&alice, [("Title", text("t"))]), "SUPPLY_ATTRIBUTES", "another case"),
        ("titles", user(vec![("suspended", truth.clone())], vec![]), "ALLOW", "one of another type"),
        ("titles", user(vec![], vec![]), "ALLOW", "an entity of a type of which something is granted"),
        ("titles", user(vec![acme()], vec![]), "SUPPLY_ATTRIBUTES", "another of that type"),
        ("titles", user(vec![], vec![parent("Role", "admin")]), "SUPPLY_PARENTS", "a parent"),
        ("titles", placed(), "SUPPLY_PARENTS", "a parent of the resource"),
        ("docs", doc(&alice, [title(), owner()]), "ALLOW", "the whole type"),
        ("docs", doc(&alice, [acme(), owner()]), "ALLOW", "a tenant that is granted too"),
        ("docs", doc(&alice, [("tenant", reference("Tenant", "globex")), owner()]), "TENANT", "one that is not"),
        ("docs", placed(), "ALLOW", "a parent"),
        ("docs", user(vec![], vec![]), "SUPPLY_ATTRIBUTES", "another type"),
        ("all", vouching("alice", vec![], vec![parent("Role", "admin")]), "ALLOW", "vouching for an administrator"),
        ("docs", vouching("alice", vec![], vec![]), "ASSERT_SUBJECT", "vouching for anybody"),
        ("all", action("Action"), "InvalidArgument entities[0].type", "an action, though everything is granted"),
        ("all", action("Shop::Action"), "InvalidArgument entities[0].type", "one of a namespace"),
        ("all", under("Action"), "InvalidArgument resource.parents", "an action as a parent"),
    ];
    for (caller, request, expected, why) in table {
        let reply = check(&channel(&gatepost, caller).await, &request).await;
        match lacking(&gatepost, &reply) {
            None => assert_eq!(reply.told(), expected, "{caller}: {why}"),
            Some(word) => {
                assert_eq!((word.as_str(), reply.code()), (expected, Code::PermissionDenied), "{caller}: {why}");
            }
        }
    }
}

/// The record says attribute by attribute what was the caller's own word.
#[tokio::test(flavor = "multi_thread")]
async fn the_record_names_what_the_caller_asserted() {
    let caller = json!({
        "name": "all", "supply_attributes": "*", "supply_parents": "*", "assert_subjects": "*", "tenants": "*",
    });
    let gatepost = Gatepost::start_over(&belonging(), |settings| belonging_settings(settings, &[caller])).await;
    let channel = channel(&gatepost, "all").await;
    let mut request = vouching("zoe", vec![("suspended", crate::wire::truth(false))], vec![parent("Role", "staff")]);
    request.resource = Some(v1::Resource {
        parents: vec![parent("Folder", "public")],
        ..object("Doc", "new", [("owner", reference("User", "zoe")), ("tenant", reference("Tenant", "acme"))])
    });
    request.context = Some(attributes([("note", text("n"))]));
    request.entities = vec![
        entity("User", "u", vec![("suspended", crate::wire::truth(true))], vec![]),
        entity("User", "v", vec![("suspended", crate::wire::truth(true))], vec![parent("Role", "staff")]),
        entity("Tenant", "acme", vec![], vec![]),
    ];
    let expected = [
        "context.note",
        "entities[Tenant]",
        "entities[User].parents",
        "entities[User].suspended",
        "resource.owner",
        "resource.parents",
        "resource.tenant",
        "subject",
        "subject.attributes.suspended",
        "subject.parents",
    ];
    let reply = check(&channel, &request).await;
    let named = |id: &str| gatepost.record_of(id)["unmapped"]["gatepost"]["asserted_by_caller"].clone();
    assert_eq!(named(&reply.decision_id().unwrap()), json!(expected));

    // The same in a batch, for each item.
    use v1::batch_check_request::Subject as Wire;
    let Some(v1::check_request::Subject::Asserted(asserted)) = request.subject.clone() else { panic!("asserted") };
    let item =
        |resource: v1::Resource| v1::BatchCheckItem { action: "read".into(), resource: Some(resource), fields: None };
    let reply = batch(
        &channel,
        &v1::BatchCheckRequest {
            subject: Some(Wire::Asserted(asserted)),
            context: request.context.clone(),
            entities: request.entities.clone(),
            items: vec![item(request.resource.clone().unwrap()), item(object("Doc", "x", Vec::<(&str, _)>::new()))],
            ..v1::BatchCheckRequest::default()
        },
    )
    .await;
    let ids = reply.batch().results.into_iter().map(|result| match result.result.unwrap() {
        v1::batch_check_result::Result::Response(answer) => answer.decision_id,
        v1::batch_check_result::Result::Error(error) => error.decision_id,
    });
    let ids: Vec<String> = ids.collect();
    assert_eq!(named(&ids[0]), json!(expected));
    let without: Vec<&str> = expected.iter().filter(|name| !name.starts_with("resource.")).copied().collect();
    assert_eq!(named(&ids[1]), json!(without));

    // A name of the caller's own making is not repeated.
    let odd = v1::CheckRequest { resource: Some(object("Doc", "new", [("secret", text("x"))])), ..request };
    let reply = check(&channel, &odd).await;
    assert_eq!(reply.told(), "InvalidArgument resource.attributes");
    let named = named(&reply.decision_id().unwrap());
    assert!(named.as_array().unwrap().contains(&json!("resource.(undeclared)")), "{named}");
    assert!(!named.to_string().contains("secret"), "{named}");
}

/// The smaller of the caller's limit and everybody's counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_holds_as_many_items_as_its_caller_may_send() {
    let gatepost = Gatepost::start_with(|settings| {
        settings["callers"][0]["batch_items"] = json!(3);
        settings["callers"][1]["batch_items"] = json!(50);
        settings["limits"]["batch_items"] = json!(5);
    })
    .await;
    let token = gatepost.token("alice", &[]);
    let question = wire(&token);
    let items = |count: usize| v1::BatchCheckRequest {
        subject: Some(v1::batch_check_request::Subject::Token(token.clone())),
        items: vec![
            v1::BatchCheckItem {
                action: question.action.clone(),
                resource: question.resource.clone(),
                fields: None
            };
            count
        ],
        ..v1::BatchCheckRequest::default()
    };
    let table = [
        ("storefront", 3, None, "at its limit"),
        ("storefront", 4, Some("are more than `callers[].batch_items` of this caller"), "one past it"),
        ("back-office", 5, None, "at everybody's limit, which is smaller than its own"),
        ("back-office", 6, Some("are more than `limits.batch_items`"), "one past it"),
    ];
    for (caller, count, rule, why) in table {
        let reply = batch(&channel(&gatepost, caller).await, &items(count)).await;
        let expected = rule.map(|rule| ("items".to_owned(), rule.to_owned()));
        assert_eq!(reply.violation(), expected, "{caller}, {count}: {why}");
        assert_eq!(reply.code() == Code::Ok, rule.is_none(), "{caller}, {count}: {why}");
    }
}

/// THREATS T20: a caller past its share is shed while others go on, and its places come back however its calls end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_caller_past_its_share_is_shed_and_nobody_else() {
    let gatepost = Gatepost::start_with(|settings| {
        // 10 % of 10 is one decision at once.
        settings["callers"][0]["capacity"] = json!("10%");
        settings["limits"]["concurrent_decisions"] = json!(10);
        settings["limits"]["batch_items"] = json!(1000);
    })
    .await;
    let question = wire(&gatepost.token("alice", &[]));
    let Some(v1::check_request::Subject::Token(token)) = question.subject.clone() else { panic!("a token") };
    let item =
        v1::BatchCheckItem { action: question.action.clone(), resource: question.resource.clone(), fields: None };
    let many = v1::BatchCheckRequest {
        subject: Some(v1::batch_check_request::Subject::Token(token)),
        items: vec![item; 1000],
        ..v1::BatchCheckRequest::default()
    };
    let (noisy, quiet) = (channel(&gatepost, "storefront").await, channel(&gatepost, "back-office").await);

    // While a batch of its own is being worked on, its next call is shed; the other's is answered.
    let (mut shed, mut others) = (Vec::new(), 0);
    let waited = tokio::time::timeout(PATIENCE, async {
        while shed.is_empty() {
            let (sent, message) = (noisy.clone(), many.clone());
            let working = tokio::spawn(async move { batch(&sent, &message).await });
            while !working.is_finished() {
                let reply = check(&noisy, &question).await;
                match reply.reason().as_deref() {
                    Some("CALLER_OVER_SHARE") => shed.push(reply),
                    _ => assert_eq!(reply.told(), "ALLOW"),
                }
                assert_eq!(check(&quiet, &question).await.told(), "ALLOW", "the other caller goes on");
                others += 1;
            }
            // The batch itself may be the one that found the place taken.
            let reply = working.await.unwrap();
            assert!(matches!(reply.code(), Code::Ok | Code::ResourceExhausted), "{:?}", reply.status);
        }
    });
    waited.await.expect("it is shed");
    for reply in &shed {
        assert_eq!(reply.code(), Code::ResourceExhausted);
        assert!(reply.status.get_error_details().retry_info().is_some(), "it says when to come back");
    }
    let id = shed[0].decision_id().unwrap();
    eventually("it is on record", || gatepost.trail().contains(&id)).await;
    assert_eq!(gatepost.record_of(&id)["status_detail"], "CALLER_OVER_SHARE");

    // Calls that are late, malformed, refused or denied give their place back like any other.
    let bad = v1::CheckRequest { action: String::new(), ..question.clone() };
    let foreign = v1::CheckRequest { action: "User.delete".into(), ..question.clone() };
    let denied = wire("no token");
    for request in [&bad, &foreign, &denied].into_iter().cycle().take(30) {
        check(&noisy, request).await;
        let late = [("grpc-timeout", b"1n".as_slice())];
        let body = crate::wire::framed(0, &prost::Message::encode_to_vec(request));
        crate::wire::call(noisy.clone(), crate::wire::CHECK, &late, body).await;
    }
    // Who gives up after a nanosecond has left before its call has: the last one may still be in the house.
    let free = async { while check(&noisy, &question).await.told() != "ALLOW" {} };
    tokio::time::timeout(PATIENCE, free).await.expect("its one place is free");
    println!("share: {} calls were shed, {others} of the other caller's were answered", shed.len());
}

/// DESIGN section 3: asking why is a right of its own. The answer is Check's, decided anew; it names policies and never
/// shows them.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_ask_why_hears_what_decided_and_no_more() {
    let gatepost = Gatepost::start_with(|settings| settings["callers"][1]["sees_policies"] = json!(false)).await;
    let mut office = gatepost.raw("back-office").await;
    let ask = |token: &str| v1::ExplainRequest { check: Some(wire(token)) };
    let alice = gatepost.token("alice", &[]);
    let bob = gatepost.token("bob", &[]);
    let stolen = gatepost.token_with("alice", &json!({ "tenant": "acme", "client_id": "other-app" }), minutes(5));
    let cache_of = |id: &str| gatepost.record_of(id)["unmapped"]["gatepost"]["cache"].clone();

    let told = office.explain(ask(&alice)).await.unwrap().into_inner();
    let answer = told.response.clone().unwrap();
    assert_eq!((answer.decision(), answer.determining_policies.len()), (v1::Decision::Allow, 0), "as Check answers it");
    assert!(answer.cache.is_none(), "an explanation is not for reuse");
    let decided = v1::DeterminingPolicy { id: "order.customer-reads".into(), decision: v1::Decision::Allow.into() };
    assert_eq!(told.determining_policies, [decided]);
    assert_eq!((told.level.as_str(), told.token_refusal.as_str()), ("object", ""));
    assert_eq!(told.principal, Some(parent("User", "alice")));
    let asserted = ["resource.customer", "resource.status", "resource.tenant", "resource.total"];
    assert_eq!(told.asserted_by_caller, asserted);
    let shown = format!("{told:?}");
    assert!(
        !shown.contains("open") && !shown.contains("permit") && !shown.contains("acme"),
        "no value, no text: {shown}"
    );
    let record = gatepost.record_of(&answer.decision_id);
    assert_eq!(record["unmapped"]["gatepost"]["operation"], "Explain");

    // Neither into the cache nor from it.
    assert_eq!(cache_of(&answer.decision_id), "bypass");
    for expected in ["miss", "hit"] {
        let checked = office.check(wire(&alice)).await.unwrap().into_inner();
        assert_eq!(cache_of(&checked.decision_id), expected);
    }
    let again = office.explain(ask(&alice)).await.unwrap().into_inner().response.unwrap();
    assert_eq!(cache_of(&again.decision_id), "bypass");

    let denied = office.explain(ask(&bob)).await.unwrap().into_inner();
    assert_eq!(denied.response.unwrap().denial.unwrap().code(), v1::DenialCode::NoPermit);
    assert_eq!((denied.determining_policies.len(), denied.principal), (0, Some(parent("User", "bob"))));
    let refused = office.explain(ask(&stolen)).await.unwrap().into_inner();
    assert_eq!(refused.token_refusal, "CLIENT_NOT_CALLER");
    assert_eq!(refused.principal, None, "whose it is was not meant for this caller");
    assert_eq!(refused.response.unwrap().denial.unwrap().code(), v1::DenialCode::TokenNotForCaller);

    // Without the right nothing is told, nor is a malformed question.
    let status = gatepost.raw("storefront").await.explain(ask(&alice)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.reason, "CALLER_NOT_ENTITLED");
    assert_eq!(gatepost.record_of(&info.metadata["decision_id"])["unmapped"]["gatepost"]["operation"], "Explain");
    let status = gatepost.raw("warehouse").await.explain(ask(&alice)).await.unwrap_err();
    assert_eq!(status.get_details_error_info().unwrap().reason, "CALLER_NOT_ENROLLED");
    let status = office.explain(v1::ExplainRequest { check: None }).await.unwrap_err();
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "check");
}

/// A policy that errs is told by name and class, to whoever may ask why.
#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_names_the_policies_that_failed() {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spec/bundles/erring");
    let gatepost = Gatepost::start_over(&bundle, |settings| {
        settings["callers"] = json!([{
            "spiffe_id": spiffe_id("storefront"), "name": "storefront", "resource_types": "*", "actions": "*",
            "supply_attributes": "*", "presents_for": "*", "explain": true,
        }]);
        settings["issuers"][0]["principal"] = json!({ "type": "User" });
        settings["audit"]["attributes"] = json!({});
    })
    .await;
    let large = crate::wire::text(&(1_i64 << 50).to_string());
    let mut check = with_token(&gatepost.token("alice", &[]), "read", object("Doc", "d", [("size", large.clone())]));
    check.context = Some(attributes([("factor", large)]));
    let told = gatepost.raw("storefront").await.explain(v1::ExplainRequest { check: Some(check) }).await.unwrap();
    let told = told.into_inner();
    let failure = v1::PolicyFailure { id: "forbid-large".into(), class: "overflow".into() };
    assert_eq!(told.policy_failures, [failure]);
    assert_eq!(told.response.unwrap().denial.unwrap().code(), v1::DenialCode::PolicyError);
}
