//! The rows of `tests/*.yaml`: read whole or refused, with the file and the line.
//!
//! A row is one question and what must come of it. People and things that many rows speak of have names: `principals`
//! and `resources` of the same file, or of `shared.yaml`. Nothing here asks a policy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::model::decision::{Decision, DenialCode};
use crate::model::entity::{EntityId, EntityType, EntityUid, RawEntity, RawRecord, RawValue};
use crate::model::field_path::FieldPath;
use crate::model::question::{FieldMode, FieldQuery, FieldSelection, Question, Resource};
use crate::token::{Actor, Confirmation, TokenFacts};

/// The file whose names every other file of the folder may use.
pub const SHARED: &str = "shared.yaml";

/// The instant that rows are asked at when none is named: 2026-01-01T00:00:00Z, so that a run never depends on the day.
const USUAL_NOW: Duration = Duration::from_secs(1_767_225_600);

/// A file of rows.
#[derive(Debug, Clone)]
pub struct RowFile {
    /// Its name in the folder.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// One question and what must come of it.
#[derive(Debug)]
pub struct Row {
    /// The file it stands in.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// A sentence; no two of a file alike.
    pub name: String,
    /// Who is the principal.
    pub principal: RawEntity,
    /// What the token said, when there was one.
    pub token: Option<Arc<TokenFacts>>,
    /// The name of the calling service.
    pub caller: Option<EntityId>,
    /// What is asked.
    pub question: Question,
    /// When.
    pub now: SystemTime,
    /// What must come of it.
    pub expect: Expectation,
}

/// What must come of a row. What it does not name is not compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// `None`: the question is malformed, so there is no decision.
    pub decision: Option<Decision>,
    /// The code of a deny.
    pub denial: Option<DenialCode>,
    /// Exactly these fields.
    pub mask: Option<BTreeSet<String>>,
    /// Exactly these fields named as refused.
    pub refused: Option<BTreeSet<String>>,
    /// Exactly these policies decided.
    pub determining: Option<BTreeSet<String>>,
    /// Exactly these obligations.
    pub obligations: Option<BTreeSet<String>>,
}

/// Why a file of rows can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    /// The file.
    pub file: String,
    /// From 1; 0: the file as a whole.
    pub line: u64,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

/// Reads all files of a folder.
///
/// # Errors
/// Every problem of every file, not the first alone.
pub fn read(files: &[RowFile]) -> Result<Vec<Row>, Vec<RowError>> {
    let mut problems = Vec::new();
    let mut parsed: Vec<(&str, FileText)> = Vec::new();
    for file in files {
        match serde_saphyr::from_str::<FileText>(&file.text) {
            Ok(text) => parsed.push((&file.name, text)),
            Err(error) => {
                let line = error.location().map_or(0, |at| at.line());
                problems.push(RowError { file: file.name.clone(), line, message: first_line(&error.to_string()) });
            }
        }
    }
    let nothing = FileText::default();
    let shared = parsed.iter().find(|(name, _)| *name == SHARED).map_or(&nothing, |(_, text)| text);
    let mut rows = Vec::new();
    for (file, text) in &parsed {
        let names = Names { file: text, shared };
        let mut seen = BTreeSet::new();
        for row in &text.tests {
            let line = row.referenced.line();
            let built = if seen.insert(row.value.name.as_str()) {
                names.row(file, line, &row.value)
            } else {
                Err(format!("`{}` is the name of another row of this file", row.value.name))
            };
            match built {
                Ok(row) => rows.push(row),
                Err(message) => problems.push(RowError { file: (*file).to_owned(), line, message }),
            }
        }
    }
    if problems.is_empty() { Ok(rows) } else { Err(problems) }
}

/// The library repeats the place and shows a snippet; the sentence is enough here.
fn first_line(message: &str) -> String {
    let line = message.lines().find(|line| !line.trim().is_empty()).unwrap_or("can't be read").trim();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    match line.split_once(": ") {
        Some((place, sentence)) if place.starts_with("line ") => sentence.to_owned(),
        Some(_) | None => line.to_owned(),
    }
}

// ---- as written ----

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    defaults: DefaultsText,
    #[serde(default)]
    principals: BTreeMap<String, EntityText>,
    #[serde(default)]
    resources: BTreeMap<String, EntityText>,
    #[serde(default)]
    tests: Vec<Spanned<RowText>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DefaultsText {
    caller: Option<String>,
    now: Option<jiff::Timestamp>,
    token: Option<TokenText>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntityText {
    like: Option<String>,
    #[serde(rename = "type")]
    entity_type: Option<String>,
    id: Option<String>,
    #[serde(default)]
    attributes: serde_json::Map<String, serde_json::Value>,
    parents: Option<Vec<UidText>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct UidText {
    #[serde(rename = "type")]
    entity_type: String,
    id: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenText {
    issuer: Option<String>,
    #[serde(default)]
    scopes: BTreeSet<String>,
    acr: Option<String>,
    #[serde(default)]
    amr: BTreeSet<String>,
    auth_time: Option<jiff::Timestamp>,
    client_id: Option<String>,
    /// Who acts for the subject, the current actor first.
    #[serde(default)]
    actors: Vec<String>,
    /// Whether it is bound to its presenter's certificate.
    #[serde(default)]
    sender_constrained: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RowText {
    name: String,
    principal: Described,
    #[serde(default)]
    token: Option<TokenText>,
    caller: Option<String>,
    now: Option<jiff::Timestamp>,
    action: String,
    resource: Described,
    #[serde(default)]
    context: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    entities: Vec<Described>,
    fields: Option<FieldsText>,
    mode: Option<ModeText>,
    expect: ExpectText,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeText {
    Strict,
    Filter,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum DecisionText {
    Allow,
    Deny,
    Conditional,
    Invalid,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectText {
    decision: DecisionText,
    denial: Option<String>,
    mask: Option<BTreeSet<String>>,
    refused: Option<BTreeSet<String>>,
    determining: Option<BTreeSet<String>>,
    obligations: Option<BTreeSet<String>>,
}

/// A name, or the thing itself.
#[derive(Debug)]
enum Described {
    Name(String),
    Inline(EntityText),
}

/// `all`, or a list of paths.
#[derive(Debug)]
enum FieldsText {
    All,
    Named(Vec<String>),
}

// Written by hand rather than as untagged enums: those lose the line and the reason of an error inside.
impl<'de> Deserialize<'de> for Described {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Described;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name, or a mapping with `type`, `id`, `attributes`, `parents`, `like`")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Described, E> {
                Ok(Described::Name(name.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Described, A::Error> {
                EntityText::deserialize(MapAccessDeserializer::new(map)).map(Described::Inline)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for FieldsText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = FieldsText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`all`, or a list of paths")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<FieldsText, E> {
                if text == "all" {
                    Ok(FieldsText::All)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<FieldsText, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = list.next_element()? {
                    paths.push(path);
                }
                Ok(FieldsText::Named(paths))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

// ---- as meant ----

/// How deep `like` may lead; more is a circle.
const LIKE_STEPS: usize = 8;

struct Names<'t> {
    file: &'t FileText,
    shared: &'t FileText,
}

/// Which table a name is looked up in.
#[derive(Clone, Copy)]
enum Table {
    Principals,
    Resources,
}

impl Names<'_> {
    fn row(&self, file: &str, line: u64, text: &RowText) -> Result<Row, String> {
        let now = text.now.or(self.file.defaults.now).or(self.shared.defaults.now);
        let now = now.map_or(SystemTime::UNIX_EPOCH + USUAL_NOW, instant);
        let principal = self.entity("principal", Table::Principals, &text.principal)?;
        let caller =
            [&text.caller, &self.file.defaults.caller, &self.shared.defaults.caller].into_iter().flatten().next();
        let caller = caller.map(|name| id("caller", name)).transpose()?;
        let token = [&text.token, &self.file.defaults.token, &self.shared.defaults.token].into_iter().flatten().next();
        let token = token.map(|facts| Arc::new(token_facts(facts, principal.uid.id.as_str(), now)));
        let entities: Result<Arc<[RawEntity]>, String> =
            text.entities.iter().map(|entity| self.entity("entities", Table::Resources, entity)).collect();
        let question = Question {
            action: text.action.clone(),
            resource: self.resource(&text.resource)?,
            fields: field_query(text.fields.as_ref(), text.mode)?,
            context: record("context", &text.context)?,
            entities: entities?,
            bypass_cache: true,
        };
        let expect = expectation(&text.expect, question.fields.is_some())?;
        Ok(Row {
            file: file.to_owned(),
            line,
            name: text.name.clone(),
            principal,
            token,
            caller,
            question,
            now,
            expect,
        })
    }

    fn find(&self, table: Table, name: &str) -> Option<&EntityText> {
        let [own, shared] = [self.file, self.shared].map(|text| match table {
            Table::Principals => text.principals.get(name),
            Table::Resources => text.resources.get(name),
        });
        own.or(shared)
    }

    /// The text with all that `like` leads to laid under it: attributes are merged by name, the rest is replaced.
    fn resolved(&self, at: &str, table: Table, described: &Described) -> Result<EntityText, String> {
        let unknown = |name: &str| format!("{at}: nothing is called `{name}` in this file or in {SHARED}");
        let mut whole = match described {
            Described::Inline(text) => text.clone(),
            Described::Name(name) => self.find(table, name).cloned().ok_or_else(|| unknown(name))?,
        };
        for _ in 0..LIKE_STEPS {
            let Some(name) = whole.like.take() else { return Ok(whole) };
            let under = self.find(table, &name).cloned().ok_or_else(|| unknown(&name))?;
            let mut attributes = under.attributes;
            attributes.append(&mut whole.attributes);
            whole = EntityText {
                like: under.like,
                entity_type: whole.entity_type.or(under.entity_type),
                id: whole.id.or(under.id),
                attributes,
                parents: whole.parents.or(under.parents),
            };
        }
        Err(format!("{at}: `like` leads in a circle"))
    }

    fn entity(&self, at: &str, table: Table, described: &Described) -> Result<RawEntity, String> {
        let text = self.resolved(at, table, described)?;
        let (Some(kind), Some(name)) = (&text.entity_type, &text.id) else {
            return Err(format!("{at}: needs a `type` and an `id`"));
        };
        Ok(RawEntity {
            uid: uid(at, kind, name)?,
            attributes: record(&format!("{at}.attributes"), &text.attributes)?,
            parents: parents(at, text.parents.as_deref().unwrap_or_default())?,
        })
    }

    fn resource(&self, described: &Described) -> Result<Resource, String> {
        let at = "resource";
        let text = self.resolved(at, Table::Resources, described)?;
        let Some(kind) = &text.entity_type else { return Err("resource: needs a `type`".to_owned()) };
        Ok(Resource {
            entity_type: EntityType::parse(kind).map_err(|error| format!("{at}.type: {error}"))?,
            id: text.id.as_deref().map(|name| id(at, name)).transpose()?,
            attributes: record("resource.attributes", &text.attributes)?,
            parents: parents(at, text.parents.as_deref().unwrap_or_default())?,
        })
    }
}

fn id(at: &str, text: &str) -> Result<EntityId, String> {
    EntityId::parse(text, EntityId::DEFAULT_MAX_BYTES).map_err(|error| format!("{at}: the id {error}"))
}

fn uid(at: &str, kind: &str, name: &str) -> Result<EntityUid, String> {
    let entity_type = EntityType::parse(kind).map_err(|error| format!("{at}: the type {error}"))?;
    Ok(EntityUid { entity_type, id: id(at, name)? })
}

fn parents(at: &str, texts: &[UidText]) -> Result<Vec<EntityUid>, String> {
    texts.iter().map(|text| uid(&format!("{at}.parents"), &text.entity_type, &text.id)).collect()
}

fn record(at: &str, map: &serde_json::Map<String, serde_json::Value>) -> Result<RawRecord, String> {
    map.iter().map(|(name, value)| Ok((name.clone(), raw(&format!("{at}.{name}"), value)?))).collect()
}

fn raw(at: &str, value: &serde_json::Value) -> Result<RawValue, String> {
    use serde_json::Value as Json;
    Ok(match value {
        Json::Null => return Err(format!("{at}: there is no null; leave the attribute out")),
        Json::Bool(value) => RawValue::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => RawValue::Integer(whole),
            (None, Some(number)) => RawValue::Number(number),
            (None, None) => return Err(format!("{at}: the number is out of range")),
        },
        Json::String(text) => RawValue::Text(text.clone()),
        Json::Array(list) => RawValue::List(list.iter().map(|value| raw(at, value)).collect::<Result<_, _>>()?),
        Json::Object(map) => RawValue::Record(record(at, map)?),
    })
}

fn token_facts(text: &TokenText, subject: &str, now: SystemTime) -> TokenFacts {
    TokenFacts {
        issuer: text.issuer.clone().unwrap_or_else(|| "https://issuer.example".to_owned()),
        subject: subject.to_owned(),
        issued_at: now,
        expires_at: now + Duration::from_secs(900),
        id_sha256: None,
        scopes: text.scopes.clone(),
        acr: text.acr.clone(),
        amr: text.amr.clone(),
        auth_time: text.auth_time.map(instant),
        client_id: text.client_id.clone(),
        actors: text.actors.iter().map(|actor| Actor { subject: actor.clone(), issuer: None }).collect(),
        confirmation: text.sender_constrained.then_some(Confirmation::CertificateSha256([0; 32])),
        session_sha256: None,
        algorithm: "ES256",
        key_id: None,
    }
}

fn instant(written: jiff::Timestamp) -> SystemTime {
    let distance = Duration::from_millis(written.as_millisecond().unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    if written < jiff::Timestamp::UNIX_EPOCH { epoch - distance } else { epoch + distance }
}

fn field_query(fields: Option<&FieldsText>, mode: Option<ModeText>) -> Result<Option<FieldQuery>, String> {
    let mode = mode.map(|mode| match mode {
        ModeText::Strict => FieldMode::Strict,
        ModeText::Filter => FieldMode::Filter,
    });
    let selection = match fields {
        None if mode.is_some() => return Err("mode: says nothing without `fields`".to_owned()),
        None => return Ok(None),
        Some(FieldsText::All) => FieldSelection::All,
        Some(FieldsText::Named(paths)) if paths.is_empty() => return Err("fields: must name at least one".to_owned()),
        Some(FieldsText::Named(paths)) => {
            let parsed: Result<Vec<FieldPath>, String> = paths
                .iter()
                .map(|path| FieldPath::parse(path).map_err(|error| format!("fields: `{path}`: {error}")))
                .collect();
            FieldSelection::Named(parsed?)
        }
    };
    Ok(Some(FieldQuery { selection, mode }))
}

fn expectation(text: &ExpectText, asks_for_fields: bool) -> Result<Expectation, String> {
    let decision = match text.decision {
        DecisionText::Allow => Some(Decision::Allow),
        DecisionText::Deny => Some(Decision::Deny),
        DecisionText::Conditional => Some(Decision::Conditional),
        DecisionText::Invalid => None,
    };
    let denial = match text.denial.as_deref() {
        None => None,
        Some(name) => match DenialCode::ALL.into_iter().find(|code| code.as_str() == name) {
            Some(code) => Some(code),
            None => return Err(format!("expect.denial: there is no code `{name}`; they are {}", codes())),
        },
    };
    if decision != Some(Decision::Deny) && (denial.is_some() || text.refused.is_some()) {
        return Err("expect: `denial` and `refused` go with DENY".to_owned());
    }
    match (decision == Some(Decision::Allow) && asks_for_fields, text.mask.is_some()) {
        (true, false) => {
            return Err("expect: a row that asks for `fields` and expects ALLOW must say which: `mask`".to_owned());
        }
        (false, true) => return Err("expect: `mask` goes with ALLOW and `fields`".to_owned()),
        (true, true) | (false, false) => {}
    }
    Ok(Expectation {
        decision,
        denial,
        mask: text.mask.clone(),
        refused: text.refused.clone(),
        determining: text.determining.clone(),
        obligations: text.obligations.clone(),
    })
}

fn codes() -> String {
    DenialCode::ALL.map(DenialCode::as_str).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> RowFile {
        RowFile { name: name.into(), text: text.into() }
    }

    const SHARED_TEXT: &str = "
defaults: { caller: spiffe://shop.example/front, now: 2026-03-02T12:00:00Z }
principals:
  alice: { type: User, id: alice, attributes: { tenant: { type: Tenant, id: acme } }, parents: [{ type: Role, id: customer }] }
resources:
  order: { type: Order, id: o-1, attributes: { status: open, total: 4200 } }
";

    #[test]
    fn a_row_says_who_what_and_what_must_come_of_it() {
        let rows = read(&[
            file(SHARED, SHARED_TEXT),
            file(
                "order.yaml",
                "
tests:
  - name: she reads what she paid
    principal: { like: alice, attributes: { suspended: false } }
    token: { amr: [pwd, otp], auth_time: 2026-03-02T11:59:00Z }
    action: Order.read
    resource: { like: order, attributes: { status: paid } }
    fields: [status, total]
    mode: strict
    context: { amount: 12, note: { deep: [a, 1.5] } }
    expect: { decision: ALLOW, mask: [total, status], determining: [a, b] }
",
            ),
        ])
        .unwrap();
        let row = &rows[0];
        assert_eq!((row.file.as_str(), row.line), ("order.yaml", 3));
        assert_eq!(row.principal.uid.to_string(), "User::\"alice\"");
        assert_eq!(row.principal.attributes.len(), 2, "merged");
        assert_eq!(row.principal.parents.len(), 1, "inherited");
        assert_eq!(row.caller.as_ref().unwrap().as_str(), "spiffe://shop.example/front");
        assert_eq!(
            row.question.resource.attributes.get("status"),
            Some(&RawValue::Text("paid".into())),
            "the nearer one wins"
        );
        assert_eq!(row.question.resource.attributes.get("total"), Some(&RawValue::Integer(4200)));
        assert_eq!(row.question.fields.as_ref().unwrap().mode, Some(FieldMode::Strict));
        assert!(row.token.as_ref().unwrap().auth_time.unwrap() < row.now);
        assert_eq!(row.expect.mask.as_ref().unwrap().len(), 2);
    }

    #[test]
    fn without_an_id_the_question_is_about_the_function() {
        let text = "
tests:
  - { name: f, principal: alice, action: Order.read, resource: { type: Order }, expect: { decision: CONDITIONAL } }
";
        let rows = read(&[file(SHARED, SHARED_TEXT), file("f.yaml", text)]).unwrap();
        assert!(rows[0].question.resource.id.is_none());
    }

    #[test]
    fn what_can_not_be_meant_is_refused_with_its_line() {
        let row = |rest: &str| {
            format!("tests:\n  - name: n\n    principal: alice\n    action: A\n    resource: order\n{rest}")
        };
        let allow = "    expect: { decision: ALLOW }\n";
        let table = [
            (
                row("    expct: { decision: ALLOW }\n"),
                6,
                "expct",
                "a misspelt key must not make a row that checks nothing",
            ),
            (row("    expect: { decision: MAYBE }\n"), 6, "MAYBE", "decisions are a closed list"),
            (row("    expect: { decision: DENY, denial: NOPE }\n"), 2, "no code `NOPE`", "so are codes"),
            (row("    expect: { decision: ALLOW, denial: FORBIDDEN }\n"), 2, "go with DENY", "an allow has no denial"),
            (
                row(&format!("    fields: all\n{allow}")),
                2,
                "must say which",
                "an allow of fields without a mask checks little",
            ),
            (
                row("    expect: { decision: ALLOW, mask: [a] }\n"),
                2,
                "goes with ALLOW and `fields`",
                "a mask needs a question",
            ),
            (row(&format!("    mode: strict\n{allow}")), 2, "without `fields`", "a mode needs fields"),
            (row(&format!("    fields: every\n{allow}")), 6, "`all`, or a list", "not a list, not all"),
            (row(&format!("    fields: []\n{allow}")), 2, "at least one", "no field is no question"),
            (row(&format!("    fields: ['*']\n{allow}")), 2, "identifier", "not a path"),
            (row(&format!("    context: {{ a: null }}\n{allow}")), 2, "no null", "Cedar has none"),
            (row(allow).replace("alice", "nobody"), 2, "nothing is called `nobody`", "an unknown name"),
            (format!("{}{}", row(allow), row(allow).replace("tests:\n", "")), 7, "name of another row", "two alike"),
            (row(allow).replace("principal: alice", "principal: { like: loop }"), 2, "circle", "a circle of likes"),
        ];
        for (text, line, message, why) in table {
            let shared = SHARED_TEXT.replace("resources:", "  loop: { like: loop }\nresources:");
            let problems = read(&[file(SHARED, &shared), file("t.yaml", &text)]).unwrap_err();
            let [problem] = problems.as_slice() else { panic!("{why}: {problems:?}") };
            assert_eq!((problem.file.as_str(), problem.line), ("t.yaml", line), "{why}: {problem}");
            assert!(problem.message.contains(message), "{why}: {problem}");
        }
    }
}
