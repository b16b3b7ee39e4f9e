//! What callers say of roles, tenants, owners and parents changes nothing unless they were granted to say it.

use std::collections::{BTreeMap, BTreeSet};

use gatepost::proto::v1;
use serde_json::{Value, json};
use tonic::Code;

use crate::rights::{belonging, belonging_settings};
use crate::support::{Gatepost, minutes};
use crate::wire::{Reply, attributes, channel, check, object, parent, reference, truth, with_token};

/// Questions when nothing else is said; `GATEPOST_LONG=1` asks ten times as many.
const QUESTIONS: usize = 10_000;
const PEOPLE: [&str; 3] = ["alice", "bob", "carl"];
const DOCUMENTS: [&str; 3] = ["stored-alice", "stored-bob", "unknown"];

/// One grant, as the settings write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Grant {
    Attribute(&'static str),
    Parents(&'static str),
    Assert,
    Acme,
    Globex,
}

/// Every grant that a question of this test may need.
const GRANTS: [Grant; 10] = [
    Grant::Attribute("Doc.owner"),
    Grant::Attribute("Doc.tenant"),
    Grant::Attribute("User.tenant"),
    Grant::Attribute("User.suspended"),
    Grant::Attribute("Role"),
    Grant::Parents("Doc"),
    Grant::Parents("User"),
    Grant::Assert,
    Grant::Acme,
    Grant::Globex,
];

fn settings_of(name: &str, grants: &BTreeSet<Grant>) -> Value {
    let texts = |pick: &dyn Fn(&Grant) -> Option<&'static str>| grants.iter().filter_map(pick).collect::<Vec<_>>();
    json!({
        "name": name,
        "supply_attributes": texts(&|grant| match grant { Grant::Attribute(name) => Some(name), _ => None }),
        "supply_parents": texts(&|grant| match grant { Grant::Parents(kind) => Some(kind), _ => None }),
        "assert_subjects": texts(&|grant| (*grant == Grant::Assert).then_some("User")),
        "tenants": texts(&|grant| match grant { Grant::Acme => Some("acme"), Grant::Globex => Some("globex"), _ => None }),
    })
}

/// A generator that gives the same questions every time (xorshift64).
struct Dice(u64);

impl Dice {
    fn draw(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(below).unwrap()).unwrap()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.draw(from.len())]
    }
}

/// A question, what it asserts, and what that takes.
struct Said {
    request: v1::CheckRequest,
    needs: BTreeSet<Grant>,
    names: BTreeSet<&'static str>,
    who: &'static str,
    document: &'static str,
}

fn tenant_grant(tenant: &str) -> Grant {
    if tenant == "acme" { Grant::Acme } else { Grant::Globex }
}

/// A bare question with one to three assertions laid over it.
fn generate(dice: &mut Dice, tokens: &BTreeMap<&'static str, String>) -> Said {
    let (who, document) = (dice.pick(&PEOPLE), dice.pick(&DOCUMENTS));
    let mut said =
        Said { request: bare(&tokens[who], document), needs: BTreeSet::new(), names: BTreeSet::new(), who, document };
    let Said { request, needs, names, .. } = &mut said;
    for _ in 0..=dice.draw(3) {
        let resource = request.resource.as_mut().unwrap();
        let mut set = |name: &str, value: prost_types::Value| {
            resource.attributes.get_or_insert_default().fields.insert(name.to_owned(), value);
        };
        let tenant = dice.pick(&["acme", "globex"]);
        match dice.draw(7) {
            0 => {
                set("owner", reference("User", dice.pick(&PEOPLE)));
                needs.insert(Grant::Attribute("Doc.owner"));
                names.insert("resource.owner");
            }
            // Said once: a second tenant would take the first one's place, and with it the need for its grant.
            1 if !names.contains("resource.tenant") => {
                set("tenant", reference("Tenant", tenant));
                needs.extend([Grant::Attribute("Doc.tenant"), tenant_grant(tenant)]);
                names.insert("resource.tenant");
            }
            2 => {
                resource.parents = vec![parent("Folder", "public")];
                needs.insert(Grant::Parents("Doc"));
                names.insert("resource.parents");
            }
            3 if request.entities.is_empty() => {
                let described = attributes([("suspended", truth(false)), ("tenant", reference("Tenant", tenant))]);
                request.entities.push(v1::Entity {
                    r#type: "User".into(),
                    id: "dora".into(),
                    attributes: Some(described),
                    parents: Vec::new(),
                });
                needs.extend([
                    Grant::Attribute("User.suspended"),
                    Grant::Attribute("User.tenant"),
                    tenant_grant(tenant),
                ]);
                names.extend(["entities[User].suspended", "entities[User].tenant"]);
            }
            4 if request.entities.is_empty() => {
                let promoted = vec![parent("Role", "admin")];
                request.entities.push(v1::Entity {
                    r#type: "User".into(),
                    id: "dora".into(),
                    attributes: None,
                    parents: promoted,
                });
                needs.insert(Grant::Parents("User"));
                names.insert("entities[User].parents");
            }
            5 if !names.contains("subject") => {
                // Instead of the token: the same person, with the administrators' role.
                request.subject = Some(v1::check_request::Subject::Asserted(v1::AssertedSubject {
                    r#type: "User".into(),
                    id: who.into(),
                    attributes: None,
                    parents: vec![parent("Role", "admin")],
                }));
                needs.extend([Grant::Assert, Grant::Parents("User")]);
                names.extend(["subject", "subject.parents"]);
            }
            6 if !names.contains("subject") => {
                request.subject = Some(v1::check_request::Subject::Asserted(v1::AssertedSubject {
                    r#type: "User".into(),
                    id: who.into(),
                    attributes: Some(attributes([("tenant", reference("Tenant", tenant))])),
                    parents: Vec::new(),
                }));
                needs.extend([Grant::Assert, Grant::Attribute("User.tenant"), tenant_grant(tenant)]);
                names.extend(["subject", "subject.attributes.tenant"]);
            }
            _ => {}
        }
    }
    said
}

/// To describe an entity without attributes takes a right to some attribute of its type.
fn granted(said: &Said, grants: &BTreeSet<Grant>) -> bool {
    let of_users = [Grant::Attribute("User.tenant"), Grant::Attribute("User.suspended")];
    let names_user = !said.request.entities.is_empty();
    said.needs.is_subset(grants) && (!names_user || of_users.iter().any(|grant| grants.contains(grant)))
}

fn bare(token: &str, document: &str) -> v1::CheckRequest {
    with_token(token, "read", object("Doc", document, Vec::<(&str, _)>::new()))
}

/// THREATS T9: 10 000 requests with asserted roles, tenants, owners and parents, from callers with every kind of grant.
/// A question with an assertion that was not granted is refused whole; the same question without it gets what it always
/// got. With the grants the answer may be another, and that is what they are for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_without_a_grant_changes_nothing() {
    let count = if std::env::var_os("GATEPOST_LONG").is_some() { QUESTIONS * 10 } else { QUESTIONS };
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    // One caller without any grant, one with all, and six with about two in three.
    let mut callers: Vec<(String, BTreeSet<Grant>)> =
        (0..6).map(|at| (format!("some-{at}"), GRANTS.into_iter().filter(|_| dice.draw(3) > 0).collect())).collect();
    callers.push(("none".to_owned(), BTreeSet::new()));
    callers.push(("all".to_owned(), GRANTS.into()));
    let settings: Vec<Value> = callers.iter().map(|(name, grants)| settings_of(name, grants)).collect();
    let gatepost = Gatepost::start_over(&belonging(), |all| {
        belonging_settings(all, &settings);
    })
    .await;
    // carl is an administrator.
    let claims = |who| if who == "carl" { json!({ "roles": ["admin"] }) } else { json!({}) };
    let tokens: BTreeMap<&str, String> =
        PEOPLE.map(|who| (who, gatepost.token_with(who, &claims(who), minutes(10)))).into();
    let mut channels = Vec::new();
    for (name, _) in &callers {
        channels.push(channel(&gatepost, name).await);
    }

    // What everybody gets without saying anything: the same through every caller.
    let mut without: BTreeMap<(&str, &str), String> = BTreeMap::new();
    for channel in &channels {
        for (who, document) in PEOPLE.iter().flat_map(|who| DOCUMENTS.iter().map(move |document| (*who, *document))) {
            let told = check(channel, &bare(&tokens[who], document)).await.told();
            assert_eq!(*without.entry((who, document)).or_insert_with(|| told.clone()), told, "{who} {document}");
        }
    }
    let allowed = without.values().filter(|told| *told == "ALLOW").count();
    assert_eq!((without.len(), allowed), (9, 5), "alice and bob their own, carl all: {without:?}");

    let (mut refused, mut stood, mut changed, mut contradicted) = (0, 0, 0, 0);
    let (mut promoted, mut expected_names) = (0, BTreeMap::new());
    let mut asked = 0;
    while asked < count {
        let said = generate(&mut dice, &tokens);
        if said.names.is_empty() {
            continue;
        }
        asked += 1;
        let at = dice.draw(callers.len());
        let (name, grants) = &callers[at];
        let before = &without[&(said.who, said.document)];
        let reply: Reply = check(&channels[at], &said.request).await;
        let told = reply.told();
        expected_names.insert(reply.decision_id().unwrap(), said.names.clone());
        if !granted(&said, grants) {
            let refusal = (reply.code(), reply.reason());
            let entitled = Some("CALLER_NOT_ENTITLED".to_owned());
            assert_eq!(refusal, (Code::PermissionDenied, entitled), "{name} lacks some of {:?}", said.needs);
            refused += 1;
            continue;
        }
        match (&told, reply.code()) {
            // What is stored stands, whatever was granted.
            (_, Code::InvalidArgument) => contradicted += 1,
            (told, Code::Ok) if *told == *before => stood += 1,
            (told, Code::Ok) => {
                changed += 1;
                promoted += usize::from(told == "ALLOW");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    let none = callers.iter().position(|(name, _)| name == "none").unwrap();
    assert_eq!(check(&channels[none], &bare(&tokens["bob"], "stored-alice")).await.told(), "DENY NO_PERMIT");

    let mut named = 0;
    for record in gatepost.call_records() {
        let Some(names) = expected_names.get(record["metadata"]["original_event_uid"].as_str().unwrap()) else {
            continue;
        };
        let told = &record["unmapped"]["gatepost"]["asserted_by_caller"];
        assert_eq!(*told, json!(names), "the record names what was asserted");
        named += 1;
    }
    assert_eq!(named, asked, "each question that asserted something has its record");
    println!(
        "hearsay: {asked} questions with assertions; {refused} refused for want of a grant, {contradicted} contradicted \
         what is stored; of the granted ones {stood} changed nothing and {changed} changed the answer ({promoted} to ALLOW)"
    );
    assert!(refused > asked / 4 && changed > 0 && promoted > 0 && stood > 0 && contradicted > 0);
}
