//! What must hold whatever the policies are: a mask is one plain Cedar question per field, what the index leaves out
//! changes nothing, and the function level never contradicts the object level. Random bundles, random questions; Cedar's
//! own authorizer over the whole set, with deny-on-error, is the judge.
//!
//! `GATEPOST_LONG=1` asks ten times as much.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cedar_policy::PolicySet;
use gatepost::model::decision::{Decision, DenialCode, Ruling};
use gatepost::model::entity::{EntityId, EntityType, EntityUid, RawEntity, RawRecord, RawValue};
use gatepost::model::field_path::FieldPath;
use gatepost::model::question::{FieldMode, FieldQuery, FieldSelection, Question, Resource};
use gatepost::policy::{AuthorizationRequest, Bundle, BundleFiles, BundleOptions, SourceFile, SubjectData, dangerous};
use gatepost::token::TokenFacts;
use serde_json::json;

/// SplitMix64: small, seeded, and the same everywhere.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

const GROUPS: [&str; 3] = ["basic", "pii", "admin"];
const USERS: [&str; 3] = ["ann", "bob", "cyd"];
const ROLES: [&str; 2] = ["staff", "chief"];
/// `drafts` is in `work`, which is in `top`; `attic` is in nothing.
const FOLDERS: [&str; 4] = ["top", "work", "drafts", "attic"];

/// How many questions to put to Cedar, each for one action of one request.
fn cases() -> usize {
    if std::env::var_os("GATEPOST_LONG").is_some() { 1_000_000 } else { 100_000 }
}

/// A schema of random fields, some nested, and what can be named in policies about them.
struct World {
    schema: String,
    actions: Vec<String>,
    fields: Vec<String>,
}

fn world(dice: &mut Dice) -> World {
    let mut fields = Vec::new();
    let (mut top, mut nested) = (String::new(), String::new());
    let mut groups = BTreeSet::new();
    let mut subtree = false;
    for index in 0..1 + dice.below(7) {
        let chosen: Vec<&str> = GROUPS.into_iter().filter(|_| dice.one_in(3)).collect();
        groups.extend(chosen.iter().copied());
        let annotation = if chosen.is_empty() { String::new() } else { format!("@read(\"{}\") ", chosen.join(",")) };
        if dice.one_in(3) {
            nested.push_str(&format!("{annotation}n{index}?: String, "));
            fields.push(format!("box.n{index}"));
            subtree = true;
        } else {
            top.push_str(&format!("{annotation}f{index}?: String, "));
            fields.push(format!("f{index}"));
        }
    }
    let record = if subtree { format!("box?: {{ {nested} }},") } else { String::new() };
    let schema = format!(
        "entity Role; entity User in [Role] = {{ level: Long }}; entity Folder in [Folder];
         entity Doc in [Folder] = {{ owner: User, open: Bool, size: Long, {top} {record} }};
         action look;
         @fields(\"read\") action read in [look] appliesTo {{ principal: User, resource: Doc, context: {{ mfa: Bool, deep?: Long }} }};
         action list in [look] appliesTo {{ principal: User, resource: Doc, context: {{ mfa: Bool, deep?: Long }} }};"
    );
    let mut actions = vec!["read".to_owned(), "read".to_owned(), "list".to_owned(), "look".to_owned()];
    actions.extend(fields.iter().map(|field| format!("read:{field}")));
    for group in groups {
        actions.extend([format!("read#{group}"), format!("read#{group}")]);
    }
    if subtree {
        actions.push("read:box.*".to_owned());
    }
    fields.extend(["open", "owner", "size"].map(str::to_owned));
    World { schema, actions, fields }
}

/// A condition; some overflow on some resources, some look at the action.
fn condition(dice: &mut Dice, world: &World, depth: usize) -> String {
    if depth > 0 && dice.one_in(2) {
        let (left, right) = (condition(dice, world, depth - 1), condition(dice, world, depth - 1));
        return match dice.below(4) {
            0 => format!("({left}) && ({right})"),
            1 => format!("({left}) || ({right})"),
            2 => format!("!({left})"),
            _ => format!("if {left} then {right} else resource.open"),
        };
    }
    match dice.below(13) {
        0 => "resource.owner == principal".to_owned(),
        1 => "context.mfa".to_owned(),
        2 => "resource.open".to_owned(),
        3 => format!("principal.level > {}", dice.below(4)),
        4 => "resource.size + 1 > principal.level".to_owned(),
        5 => "9223372036854775807 - principal.level + resource.size > 0".to_owned(),
        6 => format!("principal in Role::\"{}\"", dice.pick(&ROLES)),
        7 => format!("action in Action::\"{}\"", dice.pick(&world.actions)),
        8 => format!("action == Action::\"{}\"", dice.pick(&world.actions)),
        9 => {
            format!("action in [Action::\"{}\", Action::\"{}\"]", dice.pick(&world.actions), dice.pick(&world.actions))
        }
        10 => format!("resource in Folder::\"{}\"", dice.pick(&FOLDERS)),
        11 => format!("[Action::\"{}\"].contains(action)", dice.pick(&world.actions)),
        _ => "context has deep && context.deep * 4611686018427387904 > 1".to_owned(),
    }
}

fn policies(dice: &mut Dice, world: &World) -> String {
    let mut text = String::new();
    for index in 0..2 + dice.below(11) {
        let forbids = dice.one_in(4);
        let principal = match dice.below(8) {
            0 | 1 => format!("principal == User::\"{}\"", dice.pick(&USERS)),
            2 => format!("principal in Role::\"{}\"", dice.pick(&ROLES)),
            3 => format!("principal is User in Role::\"{}\"", dice.pick(&ROLES)),
            4 => format!("principal in User::\"{}\"", dice.pick(&USERS)),
            5 => "principal is User".to_owned(),
            _ => "principal".to_owned(),
        };
        let action = match dice.below(6) {
            0 if forbids => "action".to_owned(),
            0 | 1 => format!("action == Action::\"{}\"", dice.pick(&world.actions)),
            2 => format!("action in Action::\"{}\"", dice.pick(&world.actions)),
            _ => {
                let names: Vec<String> =
                    (0..1 + dice.below(3)).map(|_| format!("Action::\"{}\"", dice.pick(&world.actions))).collect();
                format!("action in [Action::\"read\", {}]", names.join(", "))
            }
        };
        let resource = match dice.below(9) {
            0 | 1 => format!("resource == Doc::\"{}\"", dice.pick(&["d1", "d2"])),
            2 | 3 => format!("resource in Folder::\"{}\"", dice.pick(&FOLDERS)),
            4 => format!("resource is Doc in Folder::\"{}\"", dice.pick(&FOLDERS)),
            5 => "resource in Doc::\"d1\"".to_owned(),
            6 => "resource is Doc".to_owned(),
            _ => "resource".to_owned(),
        };
        let effect = if forbids { "forbid" } else { "permit" };
        let mut body = String::new();
        for _ in 0..dice.below(3) {
            let keyword = if dice.one_in(3) { "unless" } else { "when" };
            body.push_str(&format!(" {keyword} {{ {} }}", condition(dice, world, 2)));
        }
        text.push_str(&format!("@id(\"p{index}\") {effect} ({principal}, {action}, {resource}){body};\n"));
    }
    text
}

const FOLDERS_STORED: &str = r#"[
    { "uid": { "type": "Folder", "id": "top" }, "attrs": {}, "parents": [] },
    { "uid": { "type": "Folder", "id": "work" }, "attrs": {}, "parents": [{ "type": "Folder", "id": "top" }] },
    { "uid": { "type": "Folder", "id": "drafts" }, "attrs": {}, "parents": [{ "type": "Folder", "id": "work" }] }
]"#;

/// A random bundle; `==` on a group or a condition that can't be true may not validate, so some dice are thrown again.
fn bundle(dice: &mut Dice) -> (World, Bundle) {
    loop {
        let world = world(dice);
        let file = |name: &str, text: String| SourceFile { name: name.to_owned(), text };
        let files = BundleFiles {
            schemas: vec![file("w.cedarschema", world.schema.clone())],
            policies: vec![file("w.cedar", policies(dice, &world))],
            entities: Some(file("entities.json", FOLDERS_STORED.to_owned())),
        };
        if let Ok(bundle) = Bundle::compile(files, &BundleOptions::default()) {
            return (world, bundle);
        }
    }
}

pub fn uid(kind: &str, id: &str) -> EntityUid {
    EntityUid { entity_type: EntityType::parse(kind).unwrap(), id: EntityId::parse(id, 1024).unwrap() }
}

fn reference(kind: &str, id: &str) -> RawValue {
    RawValue::Record(
        [("type".to_owned(), RawValue::Text(kind.into())), ("id".to_owned(), RawValue::Text(id.into()))]
            .into_iter()
            .collect(),
    )
}

fn subject(dice: &mut Dice) -> SubjectData {
    let attributes = [("level".to_owned(), RawValue::Integer(dice.below(5) as i64))].into_iter().collect();
    let parents = ROLES.into_iter().filter(|_| dice.one_in(2)).map(|role| uid("Role", role)).collect();
    SubjectData {
        principal: RawEntity { uid: uid("User", dice.pick(&USERS)), attributes, parents }.into(),
        token: None,
        caller: None,
    }
}

fn context(dice: &mut Dice) -> RawRecord {
    let mut context = RawRecord::from_iter([("mfa".to_owned(), RawValue::Bool(dice.one_in(2)))]);
    if dice.one_in(3) {
        context.insert("deep".to_owned(), RawValue::Integer(dice.below(4) as i64));
    }
    context
}

fn document(dice: &mut Dice) -> Resource {
    let size = dice.pick(&[-3, 0, 2, i64::MAX]);
    Resource {
        entity_type: EntityType::parse("Doc").unwrap(),
        id: Some(EntityId::parse(dice.pick(&["d1", "d2"]), 64).unwrap()),
        attributes: RawRecord::from_iter([
            ("owner".to_owned(), reference("User", dice.pick(&USERS))),
            ("open".to_owned(), RawValue::Bool(dice.one_in(2))),
            ("size".to_owned(), RawValue::Integer(size)),
        ]),
        parents: FOLDERS.into_iter().filter(|_| dice.one_in(4)).map(|folder| uid("Folder", folder)).collect(),
    }
}

fn question(action: &str, resource: Resource, context: RawRecord, fields: Option<FieldQuery>) -> Question {
    Question { action: action.to_owned(), resource, fields, context, entities: [].into(), bypass_cache: true }
}

fn ask(bundle: &Bundle, subject: &SubjectData, question: &Question) -> (AuthorizationRequest, Ruling) {
    let request = bundle.request(subject, question, SystemTime::UNIX_EPOCH).unwrap();
    let ruling = bundle.rule(&request);
    // The second time by what the bundle keeps of the first.
    assert_eq!(ruling, bundle.rule(&request));
    (request, Ruling::clone(&ruling))
}

/// What Cedar's own authorizer says, with deny if any forbid erred.
struct Plainly {
    allowed: bool,
    /// The permits that hold if it is allowed, the forbids that hold if not.
    determining: Vec<String>,
    errors: Vec<String>,
}

fn plainly(bundle: &Bundle, oracle: &PolicySet, request: &AuthorizationRequest, field: Option<&str>) -> Plainly {
    let (holds, mut determining, errors) = dangerous::plain(request, oracle, field).unwrap();
    let forbids = |id: &String| bundle.policies().iter().any(|policy| policy.forbids && policy.id == *id);
    let allowed = holds && !errors.iter().any(forbids);
    if allowed != holds {
        determining.clear();
    }
    Plainly { allowed, determining, errors }
}

#[test]
fn a_mask_is_one_plain_cedar_question_per_field() {
    let mut dice = Dice(20_261_124);
    let (mut masks, mut asked_of_cedar, mut erring, mut nonempty, mut whole) = (0, 0, 0, 0, 0);
    while asked_of_cedar < cases() {
        let (world, bundle) = bundle(&mut dice);
        let oracle = dangerous::oracle(&bundle);
        for _ in 0..40 {
            let strict = dice.one_in(4);
            let selection = if dice.one_in(2) {
                FieldSelection::All
            } else {
                let mut named: Vec<FieldPath> = Vec::new();
                for field in &world.fields {
                    if dice.one_in(2) {
                        named.push(FieldPath::parse(field).unwrap());
                    }
                }
                if named.is_empty() { FieldSelection::All } else { FieldSelection::Named(named) }
            };
            let asked: BTreeSet<String> = match &selection {
                FieldSelection::All => world.fields.iter().cloned().collect(),
                FieldSelection::Named(paths) => paths.iter().map(ToString::to_string).collect(),
            };
            let mode = Some(if strict { FieldMode::Strict } else { FieldMode::Filter });
            let fields = Some(FieldQuery { selection, mode });
            let (resource, context) = (document(&mut dice), context(&mut dice));
            let question = question("read", resource, context, fields);
            let (request, ruling) = ask(&bundle, &subject(&mut dice), &question);

            assert!(dangerous::conforms(&request), "what we typed is what Cedar would take: {question:?}");
            let of_base = plainly(&bundle, &oracle, &request, None);
            let base = of_base.allowed;
            let by_field: BTreeMap<&String, Plainly> = asked
                .iter()
                .filter(|_| base)
                .map(|field| (field, plainly(&bundle, &oracle, &request, Some(field))))
                .collect();
            let granted: BTreeSet<String> =
                by_field.iter().filter(|(_, told)| told.allowed).map(|(field, _)| (*field).clone()).collect();
            asked_of_cedar += 1 + by_field.len();
            let expect_allow = if strict { base && granted == asked } else { !granted.is_empty() };
            assert_eq!(ruling.decision == Decision::Allow, expect_allow, "{question:?}\n{ruling:?}\n{granted:?}");
            let covers = |mask: &FieldPath, field: &str| {
                field == mask.as_str() || field.strip_prefix(mask.as_str()).is_some_and(|rest| rest.starts_with('.'))
            };
            match &ruling.fields {
                Some(mask) => {
                    assert!(!mask.is_empty(), "an empty mask never leaves");
                    let shown: BTreeSet<String> = world
                        .fields
                        .iter()
                        .filter(|field| mask.iter().any(|path| covers(path, field)))
                        .cloned()
                        .collect();
                    assert_eq!(shown, granted, "{question:?}\n{ruling:?}");
                    nonempty += 1;
                    whole += usize::from(mask.iter().any(|path| path.as_str() == "box"));
                }
                None => assert_ne!(ruling.decision, Decision::Allow),
            }
            if base && strict && !expect_allow {
                let denial = ruling.denial.as_ref().unwrap();
                assert_eq!(denial.code, DenialCode::FieldNotGranted);
                let refused: BTreeSet<String> = denial.refused_fields.iter().map(ToString::to_string).collect();
                assert_eq!(refused, asked.difference(&granted).cloned().collect());
            }
            // Those who settled the fields with the base, or the forbids that refused fields; nobody else.
            let mut determining: BTreeSet<&String> = by_field
                .values()
                .filter(|told| told.allowed == expect_allow)
                .flat_map(|told| &told.determining)
                .collect();
            if expect_allow || !base {
                determining.extend(&of_base.determining);
            }
            assert!(ruling.determining.iter().eq(determining), "{question:?}\n{ruling:?}");
            let errors: BTreeSet<&String> =
                by_field.values().flat_map(|told| &told.errors).chain(&of_base.errors).collect();
            assert!(ruling.errors.iter().map(|error| &error.policy).eq(errors), "{question:?}\n{ruling:?}");
            masks += 1;
            erring += usize::from(!ruling.errors.is_empty());
        }
    }
    println!(
        "{masks} masks, {asked_of_cedar} questions to Cedar: {nonempty} granted, {whole} with a whole subtree, {erring} with erring policies"
    );
    assert!(nonempty > 2000 && erring > 500 && whole > 50, "the dice reach every corner: {nonempty} {erring} {whole}");
}

#[test]
fn the_function_level_never_contradicts_the_object_level() {
    let mut dice = Dice(7);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut pairs = 0;
    while pairs < 20_000 {
        let (_, bundle) = bundle(&mut dice);
        let oracle = dangerous::oracle(&bundle);
        for _ in 0..12 {
            let (subject, context) = (subject(&mut dice), context(&mut dice));
            let action = dice.pick(&["read", "list"]);
            let mut of_type = document(&mut dice);
            (of_type.id, of_type.attributes, of_type.parents) = (None, RawRecord::new(), Vec::new());
            let (_, function) = ask(&bundle, &subject, &question(action, of_type, context.clone(), None));
            *seen
                .entry(match function.decision {
                    Decision::Allow => "allow",
                    Decision::Deny => "deny",
                    Decision::Conditional => "conditional",
                })
                .or_default() += 1;
            for _ in 0..8 {
                let (request, object) =
                    ask(&bundle, &subject, &question(action, document(&mut dice), context.clone(), None));
                assert_eq!(object.decision == Decision::Allow, plainly(&bundle, &oracle, &request, None).allowed);
                match function.decision {
                    Decision::Conditional => {}
                    told => assert_eq!(object.decision, told, "{request:?}\n{function:?}\n{object:?}"),
                }
                pairs += 1;
            }
        }
    }
    println!("{pairs} pairs of function and object; function level: {seen:?}");
    assert!(seen.len() == 3 && seen.values().all(|count| *count > 100), "the dice reach every answer: {seen:?}");
}

/// Cedar keeps the policies of a partial answer in maps whose order differs from one to the next.
#[test]
fn policies_that_err_on_a_function_are_told_in_one_order() {
    let file = |name: &str, text: String| SourceFile { name: name.to_owned(), text };
    let schema = "entity User; entity Doc;
                  action list appliesTo { principal: User, resource: Doc, context: { deep: Long } };";
    let expected: Vec<String> = (0..8).map(|at| format!("p{at}")).collect();
    let mut text = "@id(\"q\") permit (principal, action == Action::\"list\", resource);\n".to_owned();
    for id in expected.iter().rev() {
        text += &format!(
            "@id(\"{id}\") permit (principal, action == Action::\"list\", resource) when {{ context.deep * 4611686018427387904 > 1 }};\n"
        );
    }
    let files = BundleFiles {
        schemas: vec![file("w.cedarschema", schema.to_owned())],
        policies: vec![file("w.cedar", text)],
        entities: None,
    };
    let bundle = Bundle::compile(files, &BundleOptions::default()).unwrap();
    let principal = RawEntity { uid: uid("User", "ann"), attributes: RawRecord::new(), parents: Vec::new() };
    let subject = SubjectData { principal: principal.into(), token: None, caller: None };
    for _ in 0..100 {
        let mut of_type = document(&mut Dice(1));
        (of_type.id, of_type.attributes, of_type.parents) = (None, RawRecord::new(), Vec::new());
        let context = RawRecord::from_iter([("deep".to_owned(), RawValue::Integer(4))]);
        let (_, ruling) = ask(&bundle, &subject, &question("list", of_type, context, None));
        let told: Vec<&String> = ruling.errors.iter().map(|error| &error.policy).collect();
        assert!(told.iter().copied().eq(&expected), "{told:?}");
    }
}

fn token() -> TokenFacts {
    TokenFacts {
        issuer: "https://issuer.test".to_owned(),
        subject: "ann".to_owned(),
        issued_at: SystemTime::UNIX_EPOCH,
        expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(600),
        id_sha256: None,
        scopes: BTreeSet::new(),
        acr: None,
        amr: BTreeSet::new(),
        auth_time: None,
        client_id: None,
        actors: Vec::new(),
        confirmation: None,
        session_sha256: None,
        algorithm: "ES256",
        key_id: None,
    }
}

/// Groups `g0` to `g5`, each in some before it; of some the bundle knows, and others a question may describe.
#[test]
fn a_principal_that_is_kept_for_its_token_is_what_it_would_be_anew() {
    let mut dice = Dice(20_261_127);
    let schema = "entity Group in [Group]; entity User in [Group] = { level: Long }; entity Doc;
                  action read appliesTo { principal: User, resource: Doc };";
    let permit = "@id(\"p\") permit (principal in Group::\"g0\", action == Action::\"read\", resource);";
    let file = |name: &str, text: &str| SourceFile { name: name.to_owned(), text: text.to_owned() };
    let facts = Arc::new(token());
    let (mut asked, mut described, mut wrong, mut differing) = (0, 0, 0, 0);
    for _ in 0..500 {
        let before = |dice: &mut Dice, at: usize| (0..at).filter(|_| dice.one_in(3)).collect::<Vec<_>>();
        let stored: BTreeMap<usize, Vec<usize>> =
            (0..6).filter(|_| dice.one_in(3)).map(|at| (at, Vec::new())).collect();
        let stored: BTreeMap<usize, Vec<usize>> = stored.into_keys().map(|at| (at, before(&mut dice, at))).collect();
        let entity = |(at, above): (&usize, &Vec<usize>)| {
            let parents: Vec<_> = above.iter().map(|at| json!({ "type": "Group", "id": format!("g{at}") })).collect();
            json!({ "uid": { "type": "Group", "id": format!("g{at}") }, "attrs": {}, "parents": parents })
        };
        // What the bundle refers to it has to hold.
        let known: BTreeSet<usize> = stored.keys().chain(stored.values().flatten()).copied().collect();
        let none = Vec::new();
        let entities: Vec<_> = known.iter().map(|at| entity((at, stored.get(at).unwrap_or(&none)))).collect();
        let files = BundleFiles {
            schemas: vec![file("w.cedarschema", schema)],
            policies: vec![file("w.cedar", permit)],
            entities: Some(file("entities.json", &json!(entities).to_string())),
        };
        let bundle = Bundle::compile(files, &BundleOptions::default()).unwrap();
        let group = |at: &usize| uid("Group", &format!("g{at}"));
        let principal = Arc::new(RawEntity {
            uid: uid("User", "ann"),
            attributes: RawRecord::from_iter([("level".to_owned(), RawValue::Integer(dice.below(5) as i64))]),
            parents: before(&mut dice, 6).iter().map(group).collect(),
        });
        let mut seen = BTreeSet::new();
        for _ in 0..20 {
            let sent: Vec<RawEntity> = (0..6)
                .filter(|at| !known.contains(at))
                .filter(|_| dice.one_in(4))
                .collect::<Vec<_>>()
                .into_iter()
                .map(|at| {
                    let mut parents: Vec<EntityUid> = before(&mut dice, at).iter().map(group).collect();
                    // Now and then one that stands above itself.
                    parents.extend(dice.one_in(20).then(|| group(&at)));
                    RawEntity { uid: group(&at), attributes: RawRecord::new(), parents }
                })
                .collect();
            described += usize::from(!sent.is_empty());
            let resource = Resource {
                entity_type: EntityType::parse("Doc").unwrap(),
                id: Some(EntityId::parse("d", 9).unwrap()),
                attributes: RawRecord::new(),
                parents: Vec::new(),
            };
            let question = Question { entities: sent.into(), ..question("read", resource, RawRecord::new(), None) };
            let by = |principal: Arc<RawEntity>| {
                let subject = SubjectData { principal, token: Some(Arc::clone(&facts)), caller: None };
                let request = bundle.request(&subject, &question, SystemTime::UNIX_EPOCH);
                request.map(|request| (request.framed(), bundle.rule(&request).decision))
            };
            let (kept, anew) = (by(Arc::clone(&principal)), by(Arc::new(RawEntity::clone(&principal))));
            assert_eq!(kept, anew, "{principal:?}\n{question:?}");
            asked += 1;
            wrong += usize::from(kept.is_err());
            seen.extend(kept.ok().map(|(_, decision)| decision == Decision::Allow));
        }
        differing += usize::from(seen.len() > 1);
    }
    println!(
        "{asked} questions, {described} that describe groups, {wrong} refused; in {differing} of 500 bundles some are allowed and some not"
    );
    assert!(described > 1_000 && wrong > 50 && differing > 20, "{described} {wrong} {differing}");
}
