//! What a hostile reader of the decision path tried: each of these once granted more than plain Cedar over all the data
//! would, or let one request be everybody's last.

use std::time::{Duration, SystemTime};

use gatepost::clock::ManualClock;
use gatepost::config::CacheConfig;
use gatepost::model::decision::{CacheUse, Decision, DenialCode, Ruling};
use gatepost::model::entity::{EntityUid, RawEntity, RawRecord, RawValue};
use gatepost::model::question::{Question, Resource};
use gatepost::policy::{Bundle, BundleFiles, BundleOptions, RequestError, SourceFile, SubjectData};

use crate::properties::uid;

const SCHEMA: &str = "entity Group in [Group]; entity User in [Group] = { blocked?: Bool };
entity Folder in [Folder, User]; entity Doc in [Folder, User];
action read appliesTo { principal: User, resource: Doc, context: { now?: datetime } };";

fn bundle(forbid: &str, entities: &str) -> Bundle {
    let file = |name: &str, text: String| SourceFile { name: name.to_owned(), text };
    let policies = format!(
        "@id(\"all\") permit (principal, action == Action::\"read\", resource);
         @id(\"not\") forbid (principal, action == Action::\"read\", resource{forbid};"
    );
    // Only who is stored can be of a type with tags, so most of these do without.
    let tags = if forbid.contains("hasTag") { "{ blocked?: Bool } tags Bool" } else { "{ blocked?: Bool }" };
    let files = BundleFiles {
        schemas: vec![file("t.cedarschema", SCHEMA.replace("{ blocked?: Bool }", tags))],
        policies: vec![file("t.cedar", policies)],
        entities: Some(file("entities.json", entities.to_owned())),
    };
    Bundle::compile(files, &BundleOptions::default()).unwrap_or_else(|report| panic!("{report}"))
}

fn entity(of: EntityUid, parents: &[EntityUid]) -> RawEntity {
    RawEntity { uid: of, attributes: RawRecord::new(), parents: parents.to_vec() }
}

fn question(doc: &str, parents: &[EntityUid], entities: Vec<RawEntity>) -> Question {
    let doc = uid("Doc", doc);
    Question {
        action: "read".to_owned(),
        resource: Resource {
            entity_type: doc.entity_type,
            id: Some(doc.id),
            attributes: RawRecord::new(),
            parents: parents.to_vec(),
        },
        fields: None,
        context: RawRecord::new(),
        entities: entities.into(),
        bypass_cache: false,
    }
}

fn rule(bundle: &Bundle, principal: RawEntity, question: &Question) -> Ruling {
    let subject = SubjectData { principal: principal.into(), token: None, caller: None };
    Ruling::clone(&bundle.rule(&bundle.request(&subject, question, SystemTime::UNIX_EPOCH).unwrap()))
}

fn forbidden(ruling: &Ruling) -> bool {
    ruling.decision == Decision::Deny && ruling.denial.as_ref().is_some_and(|d| d.code == DenialCode::Forbidden)
}

/// Nobody can send tags, so an entity that nobody stored might lack the very one that a `forbid` asks for.
#[test]
fn an_entity_whose_tags_nobody_could_send_is_refused_and_not_taken_to_have_none() {
    let bundle = bundle(") when { principal.hasTag(\"suspended\") }", "[]");
    let subject = SubjectData { principal: entity(uid("User", "alice"), &[]).into(), token: None, caller: None };
    let asked = bundle.request(&subject, &question("d", &[], Vec::new()), SystemTime::UNIX_EPOCH);
    assert!(matches!(asked, Err(RequestError::Invalid(misfit)) if misfit.at == "subject"));
}

#[test]
fn what_the_bundle_says_of_a_principal_in_tags_counts() {
    let stored = r#"[{"uid":{"type":"User","id":"alice"},"attrs":{},"tags":{"suspended":true},"parents":[]},
                     {"uid":{"type":"User","id":"bob"},"attrs":{},"tags":{},"parents":[]}]"#;
    let bundle = bundle(") when { principal.hasTag(\"suspended\") }", stored);
    assert!(forbidden(&rule(&bundle, entity(uid("User", "alice"), &[]), &question("d", &[], Vec::new()))));
    let bob = rule(&bundle, entity(uid("User", "bob"), &[]), &question("d", &[], Vec::new()));
    assert_eq!(bob.decision, Decision::Allow);
}

/// THREATS T9: stored wins on conflict.
#[test]
fn a_caller_that_vouches_for_a_principal_does_not_talk_over_the_bundle() {
    let stored = r#"[{"uid":{"type":"User","id":"alice"},"attrs":{"blocked":true},"parents":[]}]"#;
    let bundle = bundle(") when { principal has blocked && principal.blocked }", stored);
    let mut alice = entity(uid("User", "alice"), &[]);
    let asked = question("d", &[], Vec::new());
    assert!(forbidden(&rule(&bundle, alice.clone(), &asked)));
    // As for any other entity of the bundle's: nothing may be sent for it, not even what is true.
    for said in [true, false] {
        alice.attributes.insert("blocked".to_owned(), RawValue::Bool(said));
        let subject = SubjectData { principal: alice.clone().into(), token: None, caller: None };
        match bundle.request(&subject, &asked, SystemTime::UNIX_EPOCH) {
            Err(RequestError::Invalid(misfit)) => assert!(misfit.rule.contains("own data"), "{misfit:?}"),
            other => panic!("{said}: {other:?}"),
        }
    }
}

#[test]
fn whatever_stands_above_a_parent_stands_above_the_child() {
    let held = uid("Group", "held");
    let stored = r#"[{"uid":{"type":"Group","id":"a"},"attrs":{},"parents":[{"type":"Group","id":"b"}]},
                     {"uid":{"type":"Doc","id":"hers"},"attrs":{},"parents":[{"type":"User","id":"alice"}]}]"#;
    let on_resource = bundle(" in User::\"boss\")", stored);
    let on_folder = bundle(" in Folder::\"held\")", stored);
    let folders =
        vec![entity(uid("Folder", "f"), &[uid("Folder", "g")]), entity(uid("Folder", "g"), &[uid("Folder", "held")])];
    assert!(forbidden(&rule(
        &on_folder,
        entity(uid("User", "alice"), &[]),
        &question("d", &[uid("Folder", "f")], folders)
    )));
    let via = vec![entity(uid("Folder", "f"), &[uid("User", "boss")])];
    assert!(forbidden(&rule(
        &on_resource,
        entity(uid("User", "alice"), &[]),
        &question("d", &[uid("Folder", "f")], via)
    )));

    // The bundle puts `a` under `b` and says no more; the caller knows what is above `b`.
    let policies = "@id(\"all\") permit (principal, action == Action::\"read\", resource);
        @id(\"not\") forbid (principal in Group::\"held\", action == Action::\"read\", resource);";
    let file = |name: &str, text: &str| SourceFile { name: name.to_owned(), text: text.to_owned() };
    let compile = |schema: &str, policies: &str| {
        let files = BundleFiles {
            schemas: vec![file("t.cedarschema", schema)],
            policies: vec![file("t.cedar", policies)],
            entities: Some(file("entities.json", stored)),
        };
        Bundle::compile(files, &BundleOptions::default()).unwrap_or_else(|report| panic!("{report}"))
    };
    let on_group = compile(SCHEMA, policies);
    let above_b = vec![entity(uid("Group", "b"), std::slice::from_ref(&held))];
    let alice = entity(uid("User", "alice"), &[uid("Group", "a")]);
    assert!(forbidden(&rule(&on_group, alice, &question("d", &[], above_b))));

    // A document of hers, under herself: what her subject says is above her is above it.
    let schema = SCHEMA.replace("Doc in [Folder, User]", "Doc in [Folder, User, Group]");
    let on_document = compile(
        &schema,
        "@id(\"all\") permit (principal, action == Action::\"read\", resource);
         @id(\"not\") forbid (principal, action == Action::\"read\", resource in Group::\"held\");",
    );
    let alice = entity(uid("User", "alice"), &[held]);
    for (doc, parents, why) in [("d", vec![uid("User", "alice")], "sent"), ("hers", Vec::new(), "stored")] {
        assert!(forbidden(&rule(&on_document, alice.clone(), &question(doc, &parents, Vec::new()))), "{why}");
    }
}

/// V-DOS-1. Two groups a step, each under both of the next: as many ways up as 2^31, and 4 KiB to say so.
#[test]
fn ancestors_are_walked_once_by_however_many_ways_they_can_be_reached() {
    let bundle = bundle(" in Folder::\"held\")", "[]");
    let at = |step: usize, side: usize| uid("Folder", &format!("{step}-{side}"));
    let mut entities: Vec<RawEntity> = (0..30)
        .flat_map(|step| [0, 1].map(|side| entity(at(step, side), &[at(step + 1, 0), at(step + 1, 1)])))
        .collect();
    entities.push(entity(at(30, 0), &[uid("Folder", "held")]));
    let asked = question("d", &[at(0, 0), at(0, 1)], entities);
    assert!(forbidden(&rule(&bundle, entity(uid("User", "alice"), &[]), &asked)));
}

#[test]
fn a_clock_that_no_policy_reads_does_not_keep_rulings_from_being_reused() {
    let bundle = bundle(" in Folder::\"held\")", "[]");
    let clock = ManualClock::at(SystemTime::UNIX_EPOCH);
    let config = CacheConfig {
        decisions: 10,
        decision_bytes: 1 << 20,
        decision_ttl: Duration::from_secs(30),
        question_bytes: 0,
        tokens: 0,
        token_bytes: 0,
        caller_reuse: Duration::ZERO,
    };
    let rulings = gatepost::cache::Rulings::new(&config, [7; 32], clock);
    let account = gatepost::cache::Account { caller: "orders", issuer: "", ends: None };
    let subject = SubjectData { principal: entity(uid("User", "alice"), &[]).into(), token: None, caller: None };
    for (second, expected) in [(0, CacheUse::Miss), (1, CacheUse::Hit)] {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let request = bundle.request(&subject, &question("d", &[], Vec::new()), now).unwrap();
        let (ruling, found, _) = rulings.get_or(account, &request, false, || bundle.rule(&request));
        assert_eq!((ruling.decision, found), (Decision::Allow, expected), "at second {second}");
    }
}
