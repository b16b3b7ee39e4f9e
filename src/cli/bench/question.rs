//! The questions of a file, and their bytes.
//!
//! A file holds `CheckRequest`s as `grpcurl` takes them (`action`, `resource`, `fields`, ..), in JSON or YAML. They are
//! encoded once; a call sends the same bytes again, or with `--fresh` the same bytes with another id written into them.

use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use prost_types::{FieldMask, ListValue, Struct, Value as WireValue, value::Kind};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::proto::v1;
use crate::proto::v1::check_stream_request::Message;

/// A file of questions, bytes.
const FILE_BYTES: u64 = 1024 * 1024;
/// Questions of a file.
const MOST: usize = 1_000;
/// How deep values may nest.
const DEPTH: usize = 16;
/// The path of `Check`.
pub const CHECK: &str = "/gatepost.v1.DecisionService/Check";
/// The path of `BatchCheck`.
pub const BATCH_CHECK: &str = "/gatepost.v1.DecisionService/BatchCheck";
/// The path of `CheckStream`.
pub const CHECK_STREAM: &str = "/gatepost.v1.DecisionService/CheckStream";

/// The question of the worked example, as a file: may alice read her order, and which of its fields?
pub const USUAL: &str = "\
- action: Order.read
  resource:
    type: Order
    id: ord-1
    attributes:
      tenant: { type: Tenant, id: acme }
      customer: { type: User, id: alice }
      status: paid
      total: 4200
  fields: { all: true }
";

/// What one call carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One question.
    Check,
    /// So many.
    Batch(usize),
    /// One question after the other, over a call that stays open: a stream on each connection.
    Stream,
}

impl Shape {
    /// From the command line.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "check" => return Ok(Self::Check),
            "stream" => return Ok(Self::Stream),
            _ => {}
        }
        let items = text.strip_prefix("batch:").and_then(|items| items.parse().ok());
        let items = items.filter(|items| (1..=10_000).contains(items));
        items.map(Self::Batch).ok_or_else(|| "must be check, stream, or batch:N with N from 1 to 10000".to_owned())
    }

    /// Questions of a call.
    #[must_use]
    pub fn items(self) -> usize {
        match self {
            Self::Check | Self::Stream => 1,
            Self::Batch(items) => items,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Check => f.write_str("check"),
            Self::Batch(items) => write!(f, "batch:{items}"),
            Self::Stream => f.write_str("stream"),
        }
    }
}

/// Reads a file of questions; those without a subject get `token`.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub fn read(file: &Path, token: Option<&str>) -> Result<Vec<v1::CheckRequest>, String> {
    let failed = |error: &dyn fmt::Display| format!("{}: {error}", file.display());
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|error| failed(&error))?;
    let read = opened.take(FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| failed(&error))?;
    if read as u64 > FILE_BYTES {
        return Err(failed(&format!("is longer than {FILE_BYTES} bytes")));
    }
    parse(&text, token).map_err(|error| failed(&error))
}

/// [`USUAL`], with `token` for its subject.
///
/// # Errors
/// Never, as it stands there.
pub fn usual(token: &str) -> Result<Vec<v1::CheckRequest>, String> {
    parse(USUAL, Some(token))
}

/// One question, a list of them, or `questions:` with a list.
fn parse(text: &str, token: Option<&str>) -> Result<Vec<v1::CheckRequest>, String> {
    let whole: Value = serde_saphyr::from_str(text)
        .map_err(|error| error.to_string().lines().next().unwrap_or("can't be read").to_owned())?;
    let list = match whole {
        Value::Array(list) => list,
        Value::Object(mut members) => match members.remove("questions") {
            Some(Value::Array(list)) if members.is_empty() => list,
            Some(_) => return Err("`questions` must be a list, and stand alone".to_owned()),
            None => vec![Value::Object(members)],
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            return Err("must hold a question, or a list of questions".to_owned());
        }
    };
    if list.is_empty() || list.len() > MOST {
        return Err(format!("must hold 1 to {MOST} questions, not {}", list.len()));
    }
    let numbered = |(index, value): (usize, Value)| {
        let written = serde_json::from_value::<Written>(value).map_err(|error| told(&error.to_string()));
        let question = written.and_then(|written| written.question(token));
        question.map_err(|error| format!("question {}: {error}", index + 1))
    };
    list.into_iter().enumerate().map(numbered).collect()
}

/// Without what was found in the wrong place: it may be a token or a key.
fn told(error: &str) -> String {
    match (error.starts_with("invalid type: "), error.rsplit_once(", expected ")) {
        (true, Some((_, expected))) => format!("something is of the wrong type: expected {expected}"),
        (_, Some(_) | None) => error.to_owned(),
    }
}

/// `CheckRequest` as people write it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    token: Option<String>,
    asserted: Option<WrittenEntity>,
    caller: Option<Map<String, Value>>,
    anonymous: Option<Map<String, Value>>,
    #[serde(alias = "api_key")]
    api_key: Option<WrittenKey>,
    action: String,
    resource: WrittenResource,
    fields: Option<WrittenFields>,
    #[serde(default)]
    context: Map<String, Value>,
    #[serde(default)]
    entities: Vec<WrittenEntity>,
    #[serde(default)]
    options: WrittenOptions,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenKey {
    value: String,
    #[serde(default, alias = "client_address")]
    client_address: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEntity {
    #[serde(rename = "type")]
    entity_type: String,
    id: String,
    #[serde(default)]
    attributes: Map<String, Value>,
    #[serde(default)]
    parents: Vec<WrittenUid>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenResource {
    #[serde(rename = "type")]
    entity_type: String,
    id: Option<String>,
    #[serde(default)]
    attributes: Map<String, Value>,
    #[serde(default)]
    parents: Vec<WrittenUid>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenUid {
    #[serde(rename = "type")]
    entity_type: String,
    id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFields {
    #[serde(default)]
    all: bool,
    paths: Option<WrittenPaths>,
    #[serde(default)]
    mode: WrittenMode,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenPaths {
    /// As JSON has masks: `display_name,address.city`
    Joined(String),
    List(Vec<String>),
}

#[derive(Default, Clone, Copy, Deserialize)]
enum WrittenMode {
    #[default]
    #[serde(rename = "MODE_UNSPECIFIED")]
    Unspecified,
    #[serde(rename = "MODE_STRICT", alias = "strict")]
    Strict,
    #[serde(rename = "MODE_FILTER", alias = "filter")]
    Filter,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenOptions {
    #[serde(default, alias = "bypass_cache")]
    bypass_cache: bool,
}

impl Written {
    fn question(self, token: Option<&str>) -> Result<v1::CheckRequest, String> {
        use v1::check_request::Subject;
        let mut subjects = Vec::new();
        subjects.extend(self.token.map(Subject::Token));
        if let Some(asserted) = self.asserted {
            subjects.push(Subject::Asserted(v1::AssertedSubject {
                attributes: record(asserted.attributes)?,
                parents: uids(asserted.parents),
                r#type: asserted.entity_type,
                id: asserted.id,
            }));
        }
        subjects.extend(self.caller.map(|_| Subject::Caller(())));
        subjects.extend(self.anonymous.map(|_| Subject::Anonymous(())));
        subjects.extend(
            self.api_key.map(|key| {
                Subject::ApiKey(v1::ApiKeyCredential { value: key.value, client_address: key.client_address })
            }),
        );
        if subjects.is_empty() {
            subjects.extend(token.map(|token| Subject::Token(token.to_owned())));
        }
        let [subject] = <[Subject; 1]>::try_from(subjects).map_err(|subjects: Vec<Subject>| {
            if subjects.is_empty() {
                "has no subject: add one (`token`, `asserted`, `caller`, `anonymous`, `apiKey`), or --token".to_owned()
            } else {
                "has more than one subject".to_owned()
            }
        })?;
        let entities = self.entities.into_iter().map(|entity| {
            Ok(v1::Entity {
                attributes: record(entity.attributes)?,
                parents: uids(entity.parents),
                r#type: entity.entity_type,
                id: entity.id,
            })
        });
        Ok(v1::CheckRequest {
            subject: Some(subject),
            action: self.action,
            resource: Some(v1::Resource {
                attributes: record(self.resource.attributes)?,
                parents: uids(self.resource.parents),
                r#type: self.resource.entity_type,
                id: self.resource.id,
            }),
            fields: self.fields.map(WrittenFields::query),
            context: record(self.context)?,
            entities: entities.collect::<Result<_, String>>()?,
            options: Some(v1::CheckOptions { bypass_cache: self.options.bypass_cache })
                .filter(|options| options.bypass_cache),
        })
    }
}

impl WrittenFields {
    fn query(self) -> v1::FieldQuery {
        let paths = self.paths.map(|paths| match paths {
            WrittenPaths::Joined(paths) => paths.split(',').map(|path| path.trim().to_owned()).collect(),
            WrittenPaths::List(paths) => paths,
        });
        let mode = match self.mode {
            WrittenMode::Unspecified => v1::field_query::Mode::Unspecified,
            WrittenMode::Strict => v1::field_query::Mode::Strict,
            WrittenMode::Filter => v1::field_query::Mode::Filter,
        };
        v1::FieldQuery { all: self.all, paths: paths.map(|paths| FieldMask { paths }), mode: mode.into() }
    }
}

fn uids(written: Vec<WrittenUid>) -> Vec<v1::EntityRef> {
    written.into_iter().map(|uid| v1::EntityRef { r#type: uid.entity_type, id: uid.id }).collect()
}

fn record(members: Map<String, Value>) -> Result<Option<Struct>, String> {
    if members.is_empty() {
        return Ok(None);
    }
    fields(members, DEPTH).map(Some)
}

fn fields(members: Map<String, Value>, depth: usize) -> Result<Struct, String> {
    let fields = members.into_iter().map(|(name, value)| Ok((name, wire(value, depth)?)));
    Ok(Struct { fields: fields.collect::<Result<_, String>>()? })
}

fn wire(value: Value, depth: usize) -> Result<WireValue, String> {
    let depth = depth.checked_sub(1).ok_or_else(|| format!("values nest deeper than {DEPTH}"))?;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().ok_or("a number is too large")?),
        Value::String(value) => Kind::StringValue(value),
        Value::Array(values) => {
            let values = values.into_iter().map(|value| wire(value, depth)).collect::<Result<_, _>>()?;
            Kind::ListValue(ListValue { values })
        }
        Value::Object(members) => Kind::StructValue(fields(members, depth)?),
    };
    Ok(WireValue { kind: Some(kind) })
}

/// The questions of a run, encoded: every call takes the next.
#[derive(Debug)]
pub struct Questions {
    templates: Vec<Template>,
    path: &'static str,
    items: usize,
    /// What a stream begins with.
    opening: Option<Bytes>,
    asked: AtomicU64,
    /// Where fresh ids begin: elsewhere in every run, so that no run meets what another one left in a cache.
    base: u64,
}

/// The bytes of a call: a gRPC frame, and where its fresh ids, and its number in a stream, stand in it.
#[derive(Debug)]
struct Template {
    frame: Bytes,
    places: Vec<usize>,
    number: Option<usize>,
}

/// What stands before a message.
const PREFIX: usize = 5;
/// A fresh id ends in so many hex digits.
const DIGITS: usize = 16;
/// Questions of a stream are numbered from here: as varints, this and the next 34 thousand million have the same length.
const FIRST: u64 = 1 << 28;
const VARINT: usize = 5;

impl Questions {
    /// Encodes them. `deadline` is what each question of a stream says; a call has it in its headers.
    ///
    /// # Errors
    /// When they don't fit the shape, in a sentence.
    pub fn prepare(
        questions: &[v1::CheckRequest],
        shape: Shape,
        fresh: bool,
        deadline: Duration,
    ) -> Result<Self, String> {
        let templates = match shape {
            Shape::Check => {
                let one = |question: &v1::CheckRequest| {
                    let mut question = question.clone();
                    let mark = if fresh { Some(mark(&mut question.resource)?) } else { None };
                    Template::of(&question.encode_to_vec(), mark.as_slice())
                };
                questions.iter().map(one).collect::<Result<Vec<_>, String>>()?
            }
            Shape::Batch(items) => batches(questions, items, fresh)?,
            Shape::Stream => questions
                .iter()
                .map(|question| streamed(question, fresh, deadline))
                .collect::<Result<Vec<_>, String>>()?,
        };
        let (path, opening) = match shape {
            Shape::Check => (CHECK, None),
            Shape::Batch(_) => (BATCH_CHECK, None),
            Shape::Stream => (CHECK_STREAM, opening(questions)?),
        };
        let (asked, base) = (AtomicU64::new(0), fastrand::u64(..));
        Ok(Self { templates, path, items: shape.items(), opening, asked, base })
    }

    /// The path of every call.
    #[must_use]
    pub fn path(&self) -> &'static str {
        self.path
    }

    /// Questions of a call.
    #[must_use]
    pub fn items(&self) -> usize {
        self.items
    }

    /// Different calls there are before they come round again, apart from fresh ids.
    #[must_use]
    pub fn different(&self) -> usize {
        self.templates.len()
    }

    /// Calls so far.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// What a stream begins with, if that is how they are asked.
    #[must_use]
    pub fn opening(&self) -> Option<Bytes> {
        self.opening.clone()
    }

    /// The next call: its number, by which a stream answers, and its bytes.
    #[must_use]
    pub fn next(&self) -> (u64, Bytes) {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let count = self.templates.len().max(1) as u64;
        let index = usize::try_from(number % count).unwrap_or(0);
        let frame = self.templates.get(index).map(|template| template.frame(number, self.base)).unwrap_or_default();
        (FIRST + number, frame)
    }
}

/// The first, if what they can't have of their own in `what` is the same in all of them.
fn alike<'q>(questions: &'q [v1::CheckRequest], what: &str) -> Result<Option<&'q v1::CheckRequest>, String> {
    let Some(first) = questions.first() else { return Ok(None) };
    let shared = |one: &v1::CheckRequest| (one.subject.clone(), one.context.clone(), one.entities.clone(), one.options);
    match questions.iter().position(|question| shared(question) != shared(first)) {
        None => Ok(Some(first)),
        Some(other) => Err(format!(
            "{what} has one subject, context, list of entities and options: question {} has others than question 1",
            other + 1
        )),
    }
}

/// What a stream of these questions begins with.
fn opening(questions: &[v1::CheckRequest]) -> Result<Option<Bytes>, String> {
    use v1::check_request::Subject;
    use v1::stream_opening::Subject as StreamSubject;
    let Some(first) = alike(questions, "a stream")? else { return Ok(None) };
    let subject = first.subject.clone().map(|subject| match subject {
        Subject::Token(token) => StreamSubject::Token(token),
        Subject::Asserted(asserted) => StreamSubject::Asserted(asserted),
        Subject::Caller(()) => StreamSubject::Caller(()),
        Subject::Anonymous(()) => StreamSubject::Anonymous(()),
        Subject::ApiKey(key) => StreamSubject::ApiKey(key),
    });
    let (context, entities, options) = (first.context.clone(), first.entities.clone(), first.options);
    let open = Message::Open(v1::StreamOpening { subject, context, entities, options });
    let message = v1::CheckStreamRequest { message: Some(open) };
    Template::of(&message.encode_to_vec(), &[]).map(|template| Some(template.frame))
}

/// A question of a stream.
fn streamed(question: &v1::CheckRequest, fresh: bool, deadline: Duration) -> Result<Template, String> {
    let mut resource = question.resource.clone();
    let mark = if fresh { Some(mark(&mut resource)?) } else { None };
    let ask = v1::StreamQuestion {
        id: FIRST,
        action: question.action.clone(),
        resource,
        fields: question.fields.clone(),
        deadline: prost_types::Duration::try_from(deadline).ok(),
        ..Default::default()
    };
    // The number is its first member: a key of one byte, and the varint.
    let (length, members) = (ask.encoded_len(), 1);
    let message = v1::CheckStreamRequest { message: Some(Message::Ask(ask)) }.encode_to_vec();
    let number = PREFIX + message.len() - length + members;
    Ok(Template { number: Some(number), ..Template::of(&message, mark.as_slice())? })
}

/// Batches that together hold every question, each as often as comes out.
fn batches(questions: &[v1::CheckRequest], items: usize, fresh: bool) -> Result<Vec<Template>, String> {
    use v1::batch_check_request::Subject as BatchSubject;
    use v1::check_request::Subject;
    let Some(first) = alike(questions, "a batch")? else { return Ok(Vec::new()) };
    let subject = first.subject.clone().map(|subject| match subject {
        Subject::Token(token) => BatchSubject::Token(token),
        Subject::Asserted(asserted) => BatchSubject::Asserted(asserted),
        Subject::Caller(()) => BatchSubject::Caller(()),
        Subject::Anonymous(()) => BatchSubject::Anonymous(()),
        Subject::ApiKey(key) => BatchSubject::ApiKey(key),
    });
    let mut cycle = questions.iter().cycle();
    let mut templates = Vec::new();
    for _ in 0..questions.len().div_ceil(items.max(1)) {
        let (mut marks, mut of_batch) = (Vec::new(), Vec::new());
        for question in cycle.by_ref().take(items) {
            let mut resource = question.resource.clone();
            if fresh {
                marks.push(mark(&mut resource)?);
            }
            let item =
                v1::BatchCheckItem { action: question.action.clone(), resource, fields: question.fields.clone() };
            of_batch.push(item);
        }
        let batch = v1::BatchCheckRequest {
            subject: subject.clone(),
            context: first.context.clone(),
            entities: first.entities.clone(),
            items: of_batch,
            options: first.options,
        };
        templates.push(Template::of(&batch.encode_to_vec(), &marks)?);
    }
    Ok(templates)
}

/// Lets the id end in digits that stand nowhere else, and gives them.
fn mark(resource: &mut Option<v1::Resource>) -> Result<String, String> {
    let id = resource.as_mut().and_then(|resource| resource.id.as_mut());
    let id = id.ok_or("--fresh needs an `id` of every resource")?;
    let mark = format!("{:016x}", fastrand::u64(..));
    id.push('-');
    id.push_str(&mark);
    Ok(mark)
}

impl Template {
    fn of(message: &[u8], marks: &[String]) -> Result<Self, String> {
        // Not compressed, then the length: gRPC over HTTP/2, "Length-Prefixed-Message".
        let length = u32::try_from(message.len()).map_err(|_| "a question is too long")?;
        let mut frame = Vec::with_capacity(PREFIX + message.len());
        frame.push(0);
        frame.extend(length.to_be_bytes());
        frame.extend(message);
        let place = |mark: &String| {
            let mut found = frame.windows(DIGITS).enumerate().filter(|(_, digits)| *digits == mark.as_bytes());
            let place = found.next().map(|(at, _)| at).filter(|_| found.next().is_none());
            place.ok_or_else(|| "an id can't be told from other text; try again".to_owned())
        };
        let places = marks.iter().map(place).collect::<Result<_, _>>()?;
        Ok(Self { frame: frame.into(), places, number: None })
    }

    /// The bytes, with fresh ids that no other number has.
    fn frame(&self, number: u64, base: u64) -> Bytes {
        if self.places.is_empty() && self.number.is_none() {
            return self.frame.clone();
        }
        let mut bytes = self.frame.to_vec();
        if let Some(varint) = self.number.and_then(|at| bytes.get_mut(at..at + VARINT)) {
            varint.copy_from_slice(&varint_of(FIRST + number));
        }
        let count = self.places.len() as u64;
        for (place, index) in self.places.iter().zip(0_u64..) {
            let mut fresh = base.wrapping_add(number.wrapping_mul(count)).wrapping_add(index);
            if let Some(digits) = bytes.get_mut(*place..*place + DIGITS) {
                for digit in digits.iter_mut().rev() {
                    *digit = hex(fresh & 15);
                    fresh >>= 4;
                }
            }
        }
        bytes.into()
    }
}

/// Seven bits in each byte, the lowest first; all but the last say that there are more.
fn varint_of(number: u64) -> [u8; VARINT] {
    let byte = |at: usize| u8::try_from(number >> (7 * at) & 0x7f).unwrap_or(0);
    let more = |at: usize| if at + 1 < VARINT { 0x80 } else { 0 };
    std::array::from_fn(|at| byte(at) | more(at))
}

fn hex(digit: u64) -> u8 {
    let digit = u8::try_from(digit).unwrap_or(0);
    if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const WAIT: Duration = Duration::from_secs(1);
    const ONE: &str = r#"{ "action": "Order.read", "resource": { "type": "Order", "id": "o-1",
        "attributes": { "total": 4200, "customer": { "type": "User", "id": "alice" }, "tags": ["a", null, true] } },
        "fields": { "all": true } }"#;

    fn decode<M: prost::Message + Default>(frame: &[u8]) -> M {
        assert_eq!((frame[0], u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize), (0, frame.len() - 5));
        M::decode(&frame[5..]).unwrap()
    }

    #[test]
    fn json_and_yaml_say_the_same_and_so_do_one_and_a_list() {
        let yaml = "
questions:
  - action: Order.read
    resource:
      type: Order
      id: o-1
      attributes: { total: 4200, customer: { type: User, id: alice }, tags: [a, null, true] }
    fields: { all: true }
";
        let one = parse(ONE, Some("t")).unwrap();
        assert_eq!(one, parse(yaml, Some("t")).unwrap());
        assert_eq!(one, parse(&format!("[{ONE}]"), Some("t")).unwrap());
        assert_eq!(one[0].subject, Some(v1::check_request::Subject::Token("t".into())));
    }

    #[test]
    fn what_is_no_question_is_refused_with_its_number() {
        let table = [
            ("", "must hold a question", "nothing"),
            ("[]", "1 to 1000 questions, not 0", "no question"),
            ("[{action: a, resource: {type: T}}]", "question 1: has no subject", "nobody asks"),
            ("[{action: a, token: t, caller: {}, resource: {type: T}}]", "more than one subject", "two ask"),
            ("[{action: a, token: t, resorce: {type: T}}]", "question 1: unknown field `resorce`", "a slip"),
            ("[{action: a, apiKey: secret, resource: {type: T}}]", "wrong type: expected struct", "a key, but how?"),
            ("{questions: [], token: t}", "stand alone", "a key beside the list"),
            ("{action: a, token: t, resource: {type: T}, fields: {mode: SOME}}", "unknown variant `SOME`", "no mode"),
            ("{ action: [", "", "no YAML"),
        ];
        for (text, expected, why) in table {
            let error = parse(text, None).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{why}: {error}");
        }
        let deep = format!(
            "{{action: a, token: t, resource: {{type: T, attributes: {{x: {}{}}}}}}}",
            "[".repeat(20),
            "]".repeat(20)
        );
        assert!(parse(&deep, None).unwrap_err().contains("nest deeper"));
    }

    #[test]
    fn several_questions_are_sent_in_turn_and_the_same_bytes_again() {
        let two = format!("[{ONE}, {}]", ONE.replace("o-1", "o-2"));
        let questions = Questions::prepare(&parse(&two, Some("t")).unwrap(), Shape::Check, false, WAIT).unwrap();
        let ids: Vec<String> =
            (0..4).map(|_| decode::<v1::CheckRequest>(&questions.next().1).resource.unwrap().id.unwrap()).collect();
        assert_eq!(ids, ["o-1", "o-2", "o-1", "o-2"]);
        assert_eq!((questions.asked(), questions.path()), (4, CHECK));
    }

    #[test]
    fn fresh_ids_never_come_twice_and_nothing_else_changes() {
        for shape in [Shape::Check, Shape::Batch(7)] {
            let questions = Questions::prepare(&parse(ONE, Some("t")).unwrap(), shape, true, WAIT).unwrap();
            let mut ids = BTreeSet::new();
            for _ in 0..100 {
                let (_, frame) = questions.next();
                let items = match shape {
                    Shape::Check => vec![decode::<v1::CheckRequest>(&frame).resource.unwrap()],
                    Shape::Stream => unreachable!("it is not asked"),
                    Shape::Batch(_) => decode::<v1::BatchCheckRequest>(&frame)
                        .items
                        .into_iter()
                        .map(|item| item.resource.unwrap())
                        .collect(),
                };
                for resource in items {
                    assert_eq!(resource.attributes.unwrap().fields.len(), 3);
                    let id = resource.id.unwrap();
                    assert!(id.starts_with("o-1-") && id.len() == 4 + DIGITS, "{id}");
                    assert!(ids.insert(id));
                }
            }
            assert_eq!(ids.len(), 100 * shape.items());
        }
    }

    #[test]
    fn a_batch_has_one_subject_and_holds_every_question() {
        let three = format!("[{ONE}, {}, {}]", ONE.replace("o-1", "o-2"), ONE.replace("o-1", "o-3"));
        let three = parse(&three, Some("t")).unwrap();
        let questions = Questions::prepare(&three, Shape::Batch(2), false, WAIT).unwrap();
        let ids = |frame: &Bytes| -> Vec<String> {
            let batch: v1::BatchCheckRequest = decode(frame);
            batch.items.into_iter().map(|item| item.resource.unwrap().id.unwrap()).collect()
        };
        assert_eq!(
            (ids(&questions.next().1), ids(&questions.next().1)),
            (vec!["o-1".into(), "o-2".into()], vec!["o-3".into(), "o-1".into()])
        );
        let mut mixed = three;
        mixed[1].subject = Some(v1::check_request::Subject::Caller(()));
        let error = Questions::prepare(&mixed, Shape::Batch(2), false, WAIT).unwrap_err();
        assert!(error.contains("question 2 has others"), "{error}");
    }

    #[test]
    fn questions_of_a_stream_are_numbered_and_have_their_subject_in_the_opening() {
        let three = format!("[{ONE}, {}, {}]", ONE.replace("o-1", "o-2"), ONE.replace("o-1", "o-3"));
        let three = parse(&three, Some("t")).unwrap();
        for fresh in [false, true] {
            let questions = Questions::prepare(&three, Shape::Stream, fresh, Duration::from_millis(1500)).unwrap();
            let opening: v1::CheckStreamRequest = decode(&questions.opening().unwrap());
            let Some(Message::Open(opening)) = opening.message else { panic!("{opening:?}") };
            assert_eq!(opening.subject, Some(v1::stream_opening::Subject::Token("t".into())));
            let mut ids = BTreeSet::new();
            for turn in 0..1000 {
                let (number, frame) = questions.next();
                let message: v1::CheckStreamRequest = decode(&frame);
                let Some(Message::Ask(asked)) = message.message else { panic!("{message:?}") };
                assert_eq!((asked.id, number), (FIRST + turn, FIRST + turn));
                assert_eq!(asked.deadline.unwrap().nanos, 500_000_000);
                ids.insert(asked.resource.unwrap().id.unwrap());
            }
            assert_eq!(ids.len(), if fresh { 1000 } else { 3 });
        }
    }

    #[test]
    fn fresh_needs_an_id() {
        let any = parse("{action: a, token: t, resource: {type: T}}", None).unwrap();
        assert!(Questions::prepare(&any, Shape::Check, true, WAIT).unwrap_err().contains("--fresh"));
        assert!(Questions::prepare(&any, Shape::Check, false, WAIT).is_ok());
    }

    #[test]
    fn a_shape_is_check_or_a_batch_of_so_many() {
        let table = [
            ("check", Some(Shape::Check)),
            ("batch:100", Some(Shape::Batch(100))),
            ("batch:0", None),
            ("batch:10001", None),
            ("batch", None),
            ("stream", Some(Shape::Stream)),
            ("stream:8", None),
        ];
        for (text, expected) in table {
            assert_eq!(Shape::parse(text).ok(), expected, "{text}");
        }
    }
}
