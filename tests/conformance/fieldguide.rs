//! The field guide's authorization cases: ownership, id types, functions, fields, mass assignment, lists.
//!
//! The policy (P1 to P9 in the header of `cases.json`) is the bundle `bundles/fieldguide`; Cedar decides. What stands
//! between a case and a question is what a service that asks us would do, and is kept here in one place: it reads ids and
//! bodies, and refuses what it can't read ([`Adapter`]). GraphQL documents are not read yet, so that group is listed.

#![expect(clippy::indexing_slicing, clippy::panic, reason = "a test: a malformed corpus may end it")]

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::support::say;
use gatepost::model::decision::{Decision, DenialCode, Ruling};
use gatepost::model::entity::{EntityId, EntityType, EntityUid, RawEntity, RawRecord, RawValue};
use gatepost::model::field_path::FieldPath;
use gatepost::model::question::{FieldMode, FieldQuery, FieldSelection, Question, Resource};
use gatepost::policy::{Bundle, BundleFiles, BundleOptions, RequestError, SourceFile, SubjectData};
use serde_json::{Map, Value as Json};

/// The group that comes with the GraphQL door.
const LATER: &str = "gql";

#[test]
fn the_field_guides_cases_are_decided_as_it_says() {
    let Some(path) = crate::support::corpus("fieldguide/authz/cases.json") else { return };
    let corpus: Json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let policies = Policies::load();
    let (mut ran, mut later, mut failures) = (0, Vec::new(), Vec::new());
    for case in corpus["cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let group = case["group"].as_str().unwrap();
        if group == LATER {
            later.push(id);
            continue;
        }
        ran += 1;
        let outcome = match group {
            "bola" | "idtype" | "func" => decision_case(&policies, case),
            "field" => field_case(&policies, case),
            "mass" => mass_case(&policies, case),
            "list" => list_case(&policies, case),
            _ => Err("a group that nobody has read yet".to_owned()),
        };
        if let Err(why) = outcome {
            failures.push(format!("{id} ({}): {why}", case["title"].as_str().unwrap_or_default()));
        }
    }
    say!("fieldguide/authz: {ran} cases ran, {} failed", failures.len());
    say!("fieldguide/authz: {} cases come with the GraphQL door: {}", later.len(), later.join(" "));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

// ---- one group each ----

fn decision_case(policies: &Policies, case: &Json) -> Result<(), String> {
    let request = &case["request"];
    let adapter = Adapter { policies, bundle: policies.usual.clone() };
    let verdict = adapter.decide(request, &request["resource"], None);
    expect_decision(&case["expected"], &verdict)
}

fn list_case(policies: &Policies, case: &Json) -> Result<(), String> {
    let request = &case["request"];
    let adapter = Adapter { policies, bundle: policies.usual.clone() };
    let mut visible = 0;
    for resource in request["resources"].as_array().ok_or("no resources")? {
        let id = resource["id"].as_str().ok_or("a resource without an id")?;
        let allowed = adapter.decide(request, resource, None).allowed();
        visible += u64::from(allowed);
        let expected = case["expected"]["items"][id].as_str().ok_or("an item without an expectation")?;
        if (expected == "allow") != allowed {
            return Err(format!("order {id}: expected {expected}, got allowed={allowed}"));
        }
    }
    match case["expected"]["visible_count"].as_u64() {
        Some(expected) if expected != visible => Err(format!("expected {expected} visible, got {visible}")),
        _ => Ok(()),
    }
}

fn field_case(policies: &Policies, case: &Json) -> Result<(), String> {
    let (request, expected) = (&case["request"], &case["expected"]);
    let adapter = Adapter { policies, bundle: policies.usual.clone() };
    if let Some(document) = request.get("document") {
        return document_case(&adapter, request, document, expected);
    }
    let asked: Vec<&str> =
        request["requested_fields"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    let all = asked.is_empty() || asked == ["*"];
    // A name that no mask can spell is no field of anything.
    let readable: Vec<FieldPath> = asked.iter().filter_map(|name| FieldPath::parse(name).ok()).collect();
    let selection = match (all, readable.is_empty()) {
        (true, _) => FieldSelection::All,
        (false, false) => FieldSelection::Named(readable),
        (false, true) => return expect_decision(expected, &Verdict::refused(&["UNKNOWN_FIELD"])),
    };
    let query = FieldQuery { selection, mode: Some(FieldMode::Filter) };
    let verdict = adapter.decide(request, &request["resource"], Some(query));
    expect_decision(expected, &verdict)?;
    let granted: BTreeSet<&str> = verdict.mask.iter().map(String::as_str).collect();
    let names = |key: &str| -> Option<BTreeSet<&str>> {
        expected[key].as_array().map(|names| names.iter().filter_map(Json::as_str).collect())
    };
    if let Some(visible) = names("visible_fields")
        && visible != granted
    {
        return Err(format!("expected to see {visible:?}, got {granted:?}"));
    }
    match names("hidden_fields").map(|hidden| hidden.intersection(&granted).count()) {
        Some(leaks) if leaks > 0 => Err(format!("{leaks} hidden fields are granted")),
        _ => Ok(()),
    }
}

/// A document with people inside: what the mask does not grant is taken out, wherever it stands.
fn document_case(adapter: &Adapter<'_>, request: &Json, document: &Json, expected: &Json) -> Result<(), String> {
    let mut leaves = Vec::new();
    collect(document, &mut Vec::new(), &mut leaves);
    let named: BTreeSet<FieldPath> = leaves.iter().filter_map(Leaf::path).collect();
    let query = (!named.is_empty()).then(|| FieldQuery {
        selection: FieldSelection::Named(named.into_iter().collect()),
        mode: Some(FieldMode::Filter),
    });
    let mut verdict = adapter.decide(request, &request["resource"], query);
    if verdict.nothing_granted {
        // The document may be looked at, but nothing in it: it is served empty.
        verdict = adapter.decide(request, &request["resource"], None);
    }
    expect_decision(expected, &verdict)?;
    let visible = |leaf: &Leaf| {
        leaf.path().is_some_and(|path| {
            let path = path.as_str();
            let below = |upper: &str, lower: &str| lower.strip_prefix(upper).is_some_and(|rest| rest.starts_with('.'));
            verdict
                .mask
                .iter()
                .any(|granted| granted == path || below(granted, path) || (leaf.is_empty && below(path, granted)))
        })
    };
    let hidden: BTreeSet<String> = leaves.iter().filter(|leaf| !visible(leaf)).map(ToString::to_string).collect();
    if let Some(removed) = expected["removed_paths"].as_array() {
        let removed: BTreeSet<String> = removed.iter().filter_map(Json::as_str).map(ToOwned::to_owned).collect();
        let stray = hidden.iter().find(|path| !removed.iter().any(|upper| covers(upper, path)));
        let missed = removed.iter().find(|upper| !hidden.iter().any(|path| covers(upper, path)));
        if stray.is_some() || missed.is_some() {
            return Err(format!("expected {removed:?} to be removed, got {hidden:?}"));
        }
    }
    if let Some(expected) = expected.get("visible_document") {
        let mut shown = document.clone();
        prune(&mut shown, &mut Vec::new(), &hidden);
        if shown != *expected {
            return Err(format!("expected the document {expected}, got {shown}"));
        }
    }
    Ok(())
}

fn mass_case(policies: &Policies, case: &Json) -> Result<(), String> {
    let request = &case["request"];
    let adapter = Adapter { policies, bundle: policies.writing(request)? };
    for (name, mode) in [("mode_strip", FieldMode::Filter), ("mode_reject", FieldMode::Strict)] {
        let expected = &case["expected"][name];
        let (verdict, written) = write(&adapter, request, mode);
        expect_decision(expected, &verdict).map_err(|why| format!("{name}: {why}"))?;
        for (key, applied) in [("applied_fields", true), ("stripped_fields", false)] {
            let Some(listed) = expected[key].as_array() else { continue };
            let listed: Vec<&str> = listed.iter().filter_map(Json::as_str).collect();
            let ours: Vec<String> =
                written.iter().filter(|(_, granted)| *granted == applied).map(|(leaf, _)| leaf.to_string()).collect();
            // `profile` in the guide's list stands for all below it that was sent.
            let stray = ours.iter().find(|leaf| !listed.iter().any(|upper| covers(upper, leaf)));
            let missed = listed.iter().find(|upper| !ours.iter().any(|leaf| covers(upper, leaf)));
            if stray.is_some() || missed.is_some() {
                return Err(format!("{name}: expected {key} {listed:?}, got {ours:?}"));
            }
        }
    }
    Ok(())
}

/// What becomes of a write: the verdict, and for every leaf of the body whether it is applied.
fn write(adapter: &Adapter<'_>, request: &Json, mode: FieldMode) -> (Verdict, Vec<(Leaf, bool)>) {
    let body = request["body"].as_str().unwrap_or_default();
    let change = match Change::read(request["content_type"].as_str().unwrap_or("application/json"), body) {
        Ok(change) => change,
        Err(reason) => return (Verdict::refused(&[reason]), Vec::new()),
    };
    let ask = |action: &str, paths: BTreeSet<FieldPath>, mode: FieldMode| {
        let query = (!paths.is_empty())
            .then(|| FieldQuery { selection: FieldSelection::Named(paths.into_iter().collect()), mode: Some(mode) });
        let mut request = request.clone();
        request["action"] = Json::from(action);
        adapter.decide(&request, &request["resource"], query)
    };
    let action = request["action"].as_str().unwrap_or_default();
    let not_writable = || (Verdict::refused(&["FIELD_NOT_WRITABLE", "FIELD_FORBIDDEN"]), Vec::new());
    if change.whole {
        return not_writable();
    }
    // What a patch copies or tests it reads: that takes the right to read it, in either mode.
    if !change.reads.is_empty() {
        let paths: BTreeSet<FieldPath> = change.reads.iter().filter_map(Leaf::path).collect();
        if paths.len() < change.reads.len() || !ask("view_user", paths, FieldMode::Strict).allowed() {
            return not_writable();
        }
    }
    // An update mask is a demand for exactly these fields, in either mode; `*` names none.
    let mask: Vec<&str> = request["update_mask"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    let masked = !mask.is_empty() && mask != ["*"];
    if masked {
        let paths: BTreeSet<FieldPath> = mask.iter().filter_map(|path| FieldPath::parse(path).ok()).collect();
        let verdict = ask(action, paths.clone(), FieldMode::Strict);
        if paths.len() < mask.iter().collect::<BTreeSet<_>>().len() {
            return not_writable();
        }
        if !verdict.allowed() {
            return (verdict, Vec::new());
        }
    }
    let paths: BTreeSet<FieldPath> = change.writes.iter().filter_map(Leaf::path).collect();
    let unspeakable = change.writes.iter().any(|leaf| leaf.path().is_none());
    if unspeakable && mode == FieldMode::Strict {
        return not_writable();
    }
    let mut verdict = ask(action, paths, mode);
    if verdict.nothing_granted && mode == FieldMode::Filter {
        // The object may be changed, but in none of these fields: nothing is left to apply.
        verdict = ask(action, BTreeSet::new(), mode);
    }
    let granted = |leaf: &Leaf| {
        let path = leaf.path();
        path.is_some_and(|path| {
            verdict.mask.iter().any(|granted| covers(granted, path.as_str()))
                && (!masked || mask.iter().any(|wanted| covers(wanted, path.as_str())))
        })
    };
    let written = change.writes.iter().map(|leaf| (leaf.clone(), granted(leaf))).collect();
    (verdict, written)
}

fn covers(upper: &str, lower: &str) -> bool {
    lower.strip_prefix(upper).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

// ---- verdicts ----

/// What the service that asks would do.
struct Verdict {
    decision: Decision,
    /// The guide's reason codes that would be true of it.
    reasons: BTreeSet<&'static str>,
    mask: Vec<String>,
    /// The base action is allowed, but none of the asked fields.
    nothing_granted: bool,
}

impl Verdict {
    fn refused(reasons: &[&'static str]) -> Self {
        Self {
            decision: Decision::Deny,
            reasons: reasons.iter().copied().collect(),
            mask: Vec::new(),
            nothing_granted: false,
        }
    }

    fn allowed(&self) -> bool {
        self.decision == Decision::Allow
    }

    fn of(ruling: &Ruling, action: &str, anonymous: bool) -> Self {
        let mut reasons = BTreeSet::new();
        match ruling.denial.as_ref().map(|denial| denial.code) {
            None => {}
            Some(DenialCode::NotApplicable) if anonymous => reasons.extend(["UNAUTHENTICATED"]),
            Some(DenialCode::Forbidden) => {
                reasons.extend(ruling.determining.iter().map(|policy| match policy.as_str() {
                    "principal-inactive" => "PRINCIPAL_INACTIVE",
                    "tenant-mismatch" => "TENANT_MISMATCH",
                    "order-deleted" | "user-deleted" => "RESOURCE_DELETED",
                    _ => "NO_POLICY",
                }))
            }
            Some(DenialCode::UnknownAction) => reasons.extend(["UNKNOWN_ACTION", "NO_POLICY"]),
            Some(DenialCode::NoPermit) => reasons.extend(match action {
                "delete_user" => ["ROLE_REQUIRED", "NO_POLICY"],
                _ => ["NOT_OWNER", "NO_POLICY"],
            }),
            Some(DenialCode::FieldNotGranted | DenialCode::NoFieldGranted) => {
                reasons.extend(["FIELD_NOT_WRITABLE", "FIELD_FORBIDDEN", "UNKNOWN_FIELD"]);
            }
            Some(_) => reasons.extend(["NO_POLICY"]),
        }
        Self {
            decision: ruling.decision,
            reasons,
            mask: ruling.fields.iter().flatten().map(ToString::to_string).collect(),
            nothing_granted: ruling.denial.as_ref().is_some_and(|denial| denial.code == DenialCode::NoFieldGranted),
        }
    }
}

fn expect_decision(expected: &Json, verdict: &Verdict) -> Result<(), String> {
    let wanted = expected["decision"].as_str().ok_or("no expected decision")?;
    if (wanted == "allow") != verdict.allowed() {
        return Err(format!("expected {wanted}, got {:?} {:?}", verdict.decision, verdict.reasons));
    }
    let acceptable: Vec<&str> = expected["reasons"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    if !verdict.allowed() && !acceptable.is_empty() && !acceptable.iter().any(|reason| verdict.reasons.contains(reason))
    {
        return Err(format!("denied, but for {:?}, not {acceptable:?}", verdict.reasons));
    }
    Ok(())
}

// ---- the bundle ----

struct Policies {
    folder: PathBuf,
    options: BundleOptions,
    usual: Bundle,
}

/// The records of the schema, which are granted as subtrees.
const RECORDS: [&str; 2] = ["profile", "addresses"];

impl Policies {
    fn load() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/bundles/fieldguide");
        let options = BundleOptions::default();
        let usual = Bundle::load(&folder, &options).unwrap_or_else(|report| panic!("{report}"));
        assert!(usual.warnings().is_empty(), "{:?}", usual.warnings());
        Self { folder, options, usual }
    }

    /// The bundle whose P6 is what the case configures.
    fn writing(&self, request: &Json) -> Result<Bundle, String> {
        let Some(configured) = request["writable_fields"].as_array() else { return Ok(self.usual.clone()) };
        let configured: BTreeSet<&str> = configured.iter().filter_map(Json::as_str).collect();
        let action = request["action"].as_str().unwrap_or_default();
        let admin = request["principal"]["role"] == "admin";
        let usual: BTreeSet<&str> = match (action, admin) {
            ("update_order", _) => ["status"].into(),
            (_, true) => ["name", "email", "role"].into(),
            (_, false) => ["name", "email"].into(),
        };
        if configured == usual {
            return Ok(self.usual.clone());
        }
        let mut granted = format!("Action::{action:?}");
        for field in &configured {
            let path = field.replace("[]", "");
            let path = path.strip_suffix(".*").unwrap_or(&path);
            let subtree = if RECORDS.contains(&path) { ".*" } else { "" };
            granted += &format!(", Action::{:?}", format!("{action}:{path}{subtree}"));
        }
        let own = if action == "update_order" {
            "resource has user_id && resource.user_id == principal"
        } else {
            "resource == principal"
        };
        let who = if admin { "principal is User in Role::\"admin\"" } else { "principal is User" };
        let when = if admin { String::new() } else { format!("when {{ {own} }}") };
        let text = format!(
            "@id(\"updates\")\n@owner(\"conformance\")\n@reason(\"as the case configures it\")\npermit ({who}, action in [{granted}], resource) {when};"
        );
        let mut files = BundleFiles::read(&self.folder, &self.options.limits).map_err(|report| report.to_string())?;
        files.policies.retain(|file| file.name != "update.cedar");
        files.policies.push(SourceFile { name: "update.cedar".into(), text });
        Bundle::compile(files, &self.options).map_err(|report| format!("the configured fields: {report}"))
    }
}

// ---- from a case to a question ----

/// What a service in front of us does: it names principal and resource, and refuses what it can't name.
struct Adapter<'p> {
    policies: &'p Policies,
    bundle: Bundle,
}

/// "policy: an id has at most 256 bytes" (az-idtype-13).
const ID_BYTES: usize = 256;

impl Adapter<'_> {
    fn decide(&self, request: &Json, resource: &Json, fields: Option<FieldQuery>) -> Verdict {
        let action = request["action"].as_str().unwrap_or_default();
        let anonymous = request["principal"]["kind"] == "anonymous";
        let subject = match self.subject(&request["principal"]) {
            Ok(subject) => subject,
            Err(reasons) => return Verdict::refused(&reasons),
        };
        let missing = resource["exists"] == false;
        let resource = match self.resource(resource, &request["principal"]["id"], request["raw_path"].as_str()) {
            Ok(resource) => resource,
            // Who may not ask at all is told so first, whatever the path looks like.
            Err(_) if anonymous => return Verdict::refused(&["UNAUTHENTICATED"]),
            Err(reasons) => return Verdict::refused(&reasons),
        };
        let question = Question {
            action: action.to_owned(),
            resource,
            fields: if missing { None } else { fields },
            context: RawRecord::new(),
            entities: [].into(),
            bypass_cache: true,
        };
        match self.bundle.request(&subject, &question, SystemTime::UNIX_EPOCH) {
            Ok(request) => {
                let ruling = self.bundle.rule(&request);
                if missing && ruling.decision != Decision::Deny {
                    // P7: there is nothing to be allowed.
                    return Verdict::refused(&["RESOURCE_NOT_FOUND", "NOT_OWNER"]);
                }
                Verdict::of(&ruling, action, anonymous)
            }
            Err(RequestError::Denied(code)) => Verdict::of(&Ruling::deny(code), action, anonymous),
            Err(RequestError::Invalid(_)) => Verdict::refused(&["INVALID_REQUEST", "TENANT_MISMATCH", "TYPE_MISMATCH"]),
        }
    }

    fn subject(&self, principal: &Json) -> Result<SubjectData, Vec<&'static str>> {
        let kind = principal["kind"].as_str().unwrap_or_default();
        let uid = match kind {
            "anonymous" => self.policies.options.anonymous.clone(),
            "user" => identity("User", &principal["id"])?,
            "service" => identity("Service", &principal["id"])?,
            _ => return Err(vec!["UNAUTHENTICATED", "INVALID_REQUEST"]),
        };
        let (mut attributes, mut parents) = (RawRecord::new(), Vec::new());
        if kind != "anonymous" {
            common(principal, &mut attributes);
            let role = |value: &Json| value.as_str().and_then(|name| uid_of("Role", name).ok());
            // Text alone is a role; an empty one, a list or a null is none.
            parents.extend(role(&principal["role"]));
            if let Some(role) = role(&principal["directory_role"]) {
                attributes.insert("directory_role".into(), reference(&role));
            }
        }
        Ok(SubjectData { principal: RawEntity { uid, attributes, parents }.into(), token: None, caller: None })
    }

    /// `principal_id`: ids of one API have one JSON type, so a number is never compared with a text.
    fn resource(
        &self,
        resource: &Json,
        principal_id: &Json,
        raw_path: Option<&str>,
    ) -> Result<Resource, Vec<&'static str>> {
        let kind = resource["type"].as_str().unwrap_or_default();
        let entity_type = EntityType::parse(kind).map_err(|_| vec!["INVALID_REQUEST"])?;
        let id = resource["id"].as_str().ok_or(vec!["ID_FORMAT"])?;
        if let Some(raw) = raw_path {
            let named = id_of_path(kind, raw).ok_or(vec!["ID_FORMAT", "RESOURCE_NOT_FOUND"])?;
            if named != id {
                return Err(vec!["RESOURCE_NOT_FOUND", "NOT_OWNER"]);
            }
        }
        if !is_canonical(id) {
            return Err(vec!["ID_FORMAT"]);
        }
        let mut attributes = RawRecord::new();
        if resource["exists"] == false {
            return Ok(Resource { entity_type, id: None, attributes, parents: Vec::new() });
        }
        let given = &resource["attrs"];
        common(given, &mut attributes);
        if kind == "Order" {
            let owner = given.get("user_id").or(given.get("owner")).unwrap_or(&Json::Null);
            if !owner.is_null() {
                if json_type(owner) != json_type(principal_id) && !principal_id.is_null() {
                    return Err(vec!["TYPE_MISMATCH"]);
                }
                attributes.insert("user_id".into(), reference(&identity("User", owner)?));
            }
        }
        let id = EntityId::parse(id, ID_BYTES).map_err(|_| vec!["ID_FORMAT"])?;
        Ok(Resource { entity_type, id: Some(id), attributes, parents: Vec::new() })
    }
}

fn common(given: &Json, attributes: &mut RawRecord) {
    if let Some(tenant) = given["tenant"].as_str().and_then(|name| uid_of("Tenant", name).ok()) {
        attributes.insert("tenant".into(), reference(&tenant));
    }
    if let Some(status) = given["status"].as_str() {
        attributes.insert("status".into(), RawValue::Text(status.to_owned()));
    }
}

/// P8: an id as an entity. Text is taken byte for byte; a whole number is its decimal text; a typed id is of its type.
fn identity(kind: &str, id: &Json) -> Result<EntityUid, Vec<&'static str>> {
    match id {
        Json::Null => Err(vec!["UNAUTHENTICATED", "TYPE_MISMATCH"]),
        Json::String(text) if text.is_empty() => Err(vec!["UNAUTHENTICATED", "INVALID_REQUEST"]),
        Json::String(text) => uid_of(kind, text),
        Json::Number(number) if number.is_i64() => uid_of(kind, &number.to_string()),
        Json::Object(typed) => match (typed.get("type").and_then(Json::as_str), typed.get("id").and_then(Json::as_str))
        {
            (Some(kind), Some(id)) => uid_of(kind, id),
            _ => Err(vec!["TYPE_MISMATCH"]),
        },
        Json::Number(_) | Json::Bool(_) | Json::Array(_) => Err(vec!["TYPE_MISMATCH"]),
    }
}

fn uid_of(kind: &str, id: &str) -> Result<EntityUid, Vec<&'static str>> {
    let invalid = |_| vec!["INVALID_REQUEST"];
    Ok(EntityUid {
        entity_type: EntityType::parse(kind).map_err(invalid)?,
        id: EntityId::parse(id, ID_BYTES).map_err(invalid)?,
    })
}

fn reference(uid: &EntityUid) -> RawValue {
    let text = |text: &str| RawValue::Text(text.to_owned());
    RawValue::Record(RawRecord::from_iter([
        ("type".to_owned(), text(uid.entity_type.as_str())),
        ("id".to_owned(), text(uid.id.as_str())),
    ]))
}

fn json_type(value: &Json) -> u8 {
    match value {
        Json::Null => 0,
        Json::Bool(_) => 1,
        Json::Number(_) => 2,
        Json::String(_) => 3,
        Json::Array(_) => 4,
        Json::Object(_) => 5,
    }
}

/// P8: ASCII decimal without sign or leading zero, at most 2^63-1.
fn is_canonical(id: &str) -> bool {
    id.bytes().all(|b| b.is_ascii_digit()) && id.parse::<i64>().is_ok_and(|number| number.to_string() == id)
}

/// The id in `/api/orders/10`: the path is taken as it is, its last segment decoded once.
fn id_of_path(kind: &str, raw: &str) -> Option<String> {
    let path = raw.split_once('?').map_or(raw, |(path, _)| path);
    let segment = path.strip_prefix(&format!("/api/{}s/", kind.to_lowercase()))?;
    let mut bytes = Vec::new();
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
                u8::from_str_radix(digits, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|id| is_canonical(id))
}

// ---- bodies and documents ----

/// One place of a document that holds no further names: `addresses[].city`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Leaf {
    /// Member names; `None` is "each element".
    steps: Vec<Option<String>>,
    /// A null, an empty list or an empty object.
    is_empty: bool,
}

impl Leaf {
    /// As a field mask spells it; nothing when a name is no identifier, and so names no field.
    fn path(&self) -> Option<FieldPath> {
        let names: Vec<&str> = self.steps.iter().flatten().map(String::as_str).collect();
        if names.iter().any(|name| name.contains('.')) {
            return None;
        }
        FieldPath::parse(&names.join(".")).ok()
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.steps.iter().enumerate() {
            match step {
                None => f.write_str("[]")?,
                Some(name) if index == 0 => f.write_str(name)?,
                Some(name) => write!(f, ".{name}")?,
            }
        }
        Ok(())
    }
}

fn collect(value: &Json, steps: &mut Vec<Option<String>>, leaves: &mut Vec<Leaf>) {
    match value {
        Json::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                steps.push(Some(name.clone()));
                collect(value, steps, leaves);
                steps.pop();
            }
        }
        Json::Array(elements) if elements.iter().any(Json::is_object) => {
            steps.push(None);
            elements.iter().for_each(|element| collect(element, steps, leaves));
            steps.pop();
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) | Json::Object(_) => {
            let is_empty = match value {
                Json::Null => true,
                Json::Array(elements) => elements.is_empty(),
                Json::Object(members) => members.is_empty(),
                Json::Bool(_) | Json::Number(_) | Json::String(_) => false,
            };
            // The document itself is no field of itself.
            if !steps.is_empty() {
                leaves.push(Leaf { steps: steps.clone(), is_empty });
            }
        }
    }
}

fn prune(value: &mut Json, steps: &mut Vec<Option<String>>, hidden: &BTreeSet<String>) {
    match value {
        Json::Object(members) => {
            let names: Vec<String> = members.keys().cloned().collect();
            for name in names {
                steps.push(Some(name.clone()));
                let here = Leaf { steps: steps.clone(), is_empty: false }.to_string();
                let inner = members.get_mut(&name);
                let was_empty = inner.as_ref().is_some_and(|inner| inner.as_object().is_some_and(Map::is_empty));
                if hidden.contains(&here) {
                    members.remove(&name);
                } else if let Some(inner) = inner {
                    prune(inner, steps, hidden);
                    // What lost all its members leaves no trace of having had some.
                    if !was_empty && inner.as_object().is_some_and(Map::is_empty) {
                        members.remove(&name);
                    }
                }
                steps.pop();
            }
        }
        Json::Array(elements) => {
            steps.push(None);
            elements.iter_mut().for_each(|element| prune(element, steps, hidden));
            steps.pop();
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

/// What a body wants changed.
#[derive(Default)]
struct Change {
    writes: BTreeSet<Leaf>,
    reads: BTreeSet<Leaf>,
    /// The document as a whole.
    whole: bool,
}

impl Change {
    fn read(content_type: &str, body: &str) -> Result<Self, &'static str> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json" | "application/merge-patch+json" => {
                let body = strict_json(body)?;
                if !body.is_object() {
                    return Err("INVALID_REQUEST");
                }
                let mut leaves = Vec::new();
                collect(&body, &mut Vec::new(), &mut leaves);
                Ok(Self { writes: leaves.into_iter().collect(), ..Self::default() })
            }
            "application/json-patch+json" => Self::patch(&strict_json(body)?),
            "application/x-www-form-urlencoded" => {
                let mut change = Self::default();
                for (name, _) in url::form_urlencoded::parse(body.as_bytes()) {
                    if !change.writes.insert(Leaf { steps: vec![Some(name.into_owned())], is_empty: false }) {
                        return Err("DUPLICATE_MEMBER");
                    }
                }
                Ok(change)
            }
            _ => Err("INVALID_REQUEST"),
        }
    }

    /// RFC 6902: `add`, `replace` and `remove` write, `test` reads, `copy` reads and writes, `move` writes both ends too.
    fn patch(body: &Json) -> Result<Self, &'static str> {
        let mut change = Self::default();
        for operation in body.as_array().ok_or("INVALID_REQUEST")? {
            let place = |key: &str| pointer(operation[key].as_str().ok_or("INVALID_REQUEST")?);
            let path = place("path")?;
            let (mut reads, mut writes) = (Vec::new(), Vec::new());
            match operation["op"].as_str() {
                Some("add" | "replace" | "remove") => writes.push(path),
                Some("test") => reads.push(path),
                Some("copy") => {
                    reads.push(place("from")?);
                    writes.push(path);
                }
                Some("move") => {
                    let from = place("from")?;
                    reads.push(from.clone());
                    writes.extend([from, path]);
                }
                _ => return Err("INVALID_REQUEST"),
            }
            change.whole |= reads.iter().chain(&writes).any(|leaf| leaf.steps.is_empty());
            let value = &operation["value"];
            for leaf in writes {
                let mut below = Vec::new();
                collect(value, &mut leaf.steps.clone(), &mut below);
                if below.is_empty() {
                    change.writes.insert(leaf)
                } else {
                    change.writes.extend(below);
                    true
                };
            }
            change.reads.extend(reads);
        }
        Ok(change)
    }
}

/// RFC 6901. An index, or `-`, is "each element".
fn pointer(text: &str) -> Result<Leaf, &'static str> {
    let mut segments = text.split('/');
    if segments.next() != Some("") {
        return Err("INVALID_REQUEST");
    }
    let steps = segments.map(|segment| {
        let index = segment == "-" || (!segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit()));
        (!index).then(|| segment.replace("~1", "/").replace("~0", "~"))
    });
    Ok(Leaf { steps: steps.collect(), is_empty: false })
}

/// JSON in which no object has a member twice: two readers would take different ones.
fn strict_json(text: &str) -> Result<Json, &'static str> {
    struct Strict(Json);
    impl<'de> serde::Deserialize<'de> for Strict {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(Visitor).map(Strict)
        }
    }
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Json;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("JSON")
        }
        fn visit_unit<E>(self) -> Result<Json, E> {
            Ok(Json::Null)
        }
        fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
            Ok(value.into())
        }
        fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
            Ok(value.into())
        }
        fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
            Ok(value.into())
        }
        fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
            Ok(value.into())
        }
        fn visit_str<E>(self, value: &str) -> Result<Json, E> {
            Ok(value.into())
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
            let mut elements = Vec::new();
            while let Some(Strict(element)) = list.next_element()? {
                elements.push(element);
            }
            Ok(Json::Array(elements))
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
            let mut members = Map::new();
            while let Some((name, Strict(value))) = map.next_entry::<String, Strict>()? {
                if members.insert(name, value).is_some() {
                    return Err(serde::de::Error::custom("twice"));
                }
            }
            Ok(Json::Object(members))
        }
    }
    match serde_json::from_str::<Strict>(text) {
        Ok(Strict(value)) => Ok(value),
        Err(error) if error.to_string().starts_with("twice") => Err("DUPLICATE_MEMBER"),
        Err(_) => Err("INVALID_REQUEST"),
    }
}
