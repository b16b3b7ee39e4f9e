//! Questions, as a service writes them down, and how they are put on the wire.
//!
//! Building never fails; what cannot be asked is found when it is asked, before anything is sent. A token is held as a
//! secret and never printed.

use std::fmt;

use prost_types::{FieldMask, ListValue, Struct, Value as WireValue, value::Kind};
use serde_json::Value;

use super::AskError;
use crate::model::field_path::FieldPath;
use crate::model::question::{FieldMode, FieldSelection, PresentedKey};
use crate::proto::v1;
use crate::secret::{ExposeSecret as _, SecretString};

/// Values nested deeper than this are not asked about; Gatepost would refuse them.
const VALUE_DEPTH: usize = 32;
/// The whole numbers that a `google.protobuf.Value` (a double) can carry without loss: up to 2^53.
const EXACT: u64 = 1 << 53;
/// Questions in one batch.
const BATCH: usize = 100;

/// One question: may this subject do this to that object, and to which of its fields?
///
/// ```
/// use gatepost::client::Ask;
///
/// let ask = Ask::new("Account.read")
///     .token("eyJ..")
///     .resource("Account", "1")
///     .reference("owner", "User", "alice")
///     .attribute("locked", false)
///     .fields_all();
/// assert!(!format!("{ask:?}").contains("eyJ"));
/// ```
#[derive(Debug, Clone)]
#[must_use = "a question does nothing until a client asks it"]
pub struct Ask {
    about: About,
    action: String,
    resource: Option<EntityData>,
    fields: Option<FieldSelectionText>,
    mode: Option<FieldMode>,
    /// Of a stream alone: the resource, and others, are entities that it remembers.
    resource_remembered: bool,
    remembered: Vec<(String, String)>,
}

/// What the questions of a stream have in common; see [`Client::stream`](super::Client::stream).
#[derive(Debug, Clone, Default)]
#[must_use = "a stream does nothing until a client opens it"]
pub struct Opening {
    about: About,
}

/// Many questions with one subject and one context; see [`Client::batch`](super::Client::batch).
#[derive(Debug, Clone, Default)]
#[must_use = "a batch does nothing until a client asks it"]
pub struct Batch {
    about: About,
    questions: Vec<Ask>,
}

/// A typed thing with attributes and parents: an asserted subject, a resource, or what else the policies need to know.
#[derive(Clone)]
#[must_use]
pub struct EntityData {
    entity_type: String,
    id: Option<String>,
    attributes: Vec<(String, Value)>,
    parents: Vec<(String, String)>,
}

/// What the questions of a batch have in common.
#[derive(Debug, Clone, Default)]
pub(super) struct About {
    subject: Option<Subject>,
    context: Vec<(String, Value)>,
    entities: Vec<EntityData>,
    bypass_cache: bool,
    pub(super) traceparent: Option<String>,
    pub(super) request_id: Option<String>,
}

#[derive(Debug, Clone)]
enum Subject {
    Token(SecretString),
    Asserted(EntityData),
    ApiKey(PresentedKey),
    Caller,
    Anonymous,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum FieldSelectionText {
    All,
    Named(Vec<String>),
}

/// What an answer must be measured against: the fields that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) fields: Option<FieldSelection>,
    pub(super) strict: bool,
    pub(super) of_one_object: bool,
}

impl Ask {
    /// A question about `action`, for example `Account.read`. It needs a subject and a resource before it can be asked.
    pub fn new(action: impl Into<String>) -> Self {
        Self {
            about: About::default(),
            action: action.into(),
            resource: None,
            fields: None,
            mode: None,
            resource_remembered: false,
            remembered: Vec::new(),
        }
    }

    /// The object: object level.
    pub fn resource(mut self, entity_type: impl Into<String>, id: impl Into<String>) -> Self {
        self.resource = Some(EntityData::new(entity_type, id));
        self
    }

    /// Any object of this type: function level. Only ALLOW is access; CONDITIONAL means: ask again with the object.
    pub fn any_resource(mut self, entity_type: impl Into<String>) -> Self {
        self.resource =
            Some(EntityData { entity_type: entity_type.into(), id: None, attributes: Vec::new(), parents: Vec::new() });
        self
    }

    /// The object, with attributes and parents put together elsewhere.
    pub fn resource_data(mut self, resource: EntityData) -> Self {
        self.resource = Some(resource);
        self
    }

    /// An attribute of the resource; `null` means that it has none of that name. Name the resource first.
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.resource = self.resource.map(|resource| resource.attribute(name, value));
        self
    }

    /// An attribute of the resource that is another entity. Name the resource first.
    pub fn reference(mut self, name: impl Into<String>, entity_type: impl Into<String>, id: impl Into<String>) -> Self {
        self.resource = self.resource.map(|resource| resource.reference(name, entity_type, id));
        self
    }

    /// What the resource belongs to. Name the resource first.
    pub fn parent(mut self, entity_type: impl Into<String>, id: impl Into<String>) -> Self {
        self.resource = self.resource.map(|resource| resource.parent(entity_type, id));
        self
    }

    /// The object is an entity that the stream remembers. Only for a question of a stream.
    pub fn remembered_resource(mut self, entity_type: impl Into<String>, id: impl Into<String>) -> Self {
        self.resource = Some(EntityData::new(entity_type, id));
        self.resource_remembered = true;
        self
    }

    /// Besides, the policies need this entity, which the stream remembers. Only for a question of a stream.
    pub fn remembered(mut self, entity_type: impl Into<String>, id: impl Into<String>) -> Self {
        self.remembered.push((entity_type.into(), id.into()));
        self
    }

    /// Asks for every field that the action knows; an allow then carries a mask.
    pub fn fields_all(mut self) -> Self {
        self.fields = Some(FieldSelectionText::All);
        self
    }

    /// Asks for these fields, at least one, leaf paths such as `address.city`; an allow then carries a mask.
    pub fn fields<I>(mut self, paths: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.fields = Some(FieldSelectionText::Named(paths.into_iter().map(Into::into).collect()));
        self
    }

    /// All of the asked fields or none: a deny names the refused ones.
    pub fn strict(mut self) -> Self {
        self.mode = Some(FieldMode::Strict);
        self
    }

    /// Whichever of the asked fields are granted.
    pub fn filter(mut self) -> Self {
        self.mode = Some(FieldMode::Filter);
        self
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }

    pub(super) fn asked(&self) -> Result<Asked, AskError> {
        let fields = match &self.fields {
            None if self.mode.is_some() => {
                return Err(AskError::Question("strict or filter, but no fields are asked for"));
            }
            None => None,
            Some(FieldSelectionText::All) => Some(FieldSelection::All),
            Some(FieldSelectionText::Named(paths)) if paths.is_empty() => {
                return Err(AskError::Question("an empty list of fields: ask for all, for some, or for none"));
            }
            Some(FieldSelectionText::Named(paths)) => Some(FieldSelection::Named(
                paths
                    .iter()
                    .map(|path| FieldPath::parse(path))
                    .collect::<Result<_, _>>()
                    .map_err(|_| AskError::Question("a field that is not a path of identifiers"))?,
            )),
        };
        let of_one_object = self.resource.as_ref().is_some_and(|resource| resource.id.is_some());
        Ok(Asked { fields, strict: self.mode == Some(FieldMode::Strict), of_one_object })
    }

    pub(super) fn to_wire(&self) -> Result<v1::CheckRequest, AskError> {
        use v1::check_request::Subject as Wire;
        let subject = match self.about.subject()? {
            Subject::Token(token) => Wire::Token(token.expose_secret().to_owned()),
            Subject::Asserted(entity) => Wire::Asserted(asserted(entity)?),
            Subject::ApiKey(key) => Wire::ApiKey(api_key(key)),
            Subject::Caller => Wire::Caller(()),
            Subject::Anonymous => Wire::Anonymous(()),
        };
        let item = self.to_item()?;
        Ok(v1::CheckRequest {
            subject: Some(subject),
            action: item.action,
            resource: item.resource,
            fields: item.fields,
            context: self.about.context()?,
            entities: self.about.entities()?,
            options: self.about.options(),
        })
    }

    /// As a question of a stream that shares everything but some context.
    pub(super) fn to_stream(&self, id: u64, deadline: std::time::Duration) -> Result<v1::StreamQuestion, AskError> {
        let alone = About { context: self.about.context.clone(), ..About::default() };
        if !(About { context: Vec::new(), ..self.about.clone() }).is_blank() {
            return Err(AskError::Question("the subject and circumstances of a stream belong to its opening"));
        }
        let item = self.item()?;
        let references = self.remembered.iter();
        Ok(v1::StreamQuestion {
            id,
            action: item.action,
            resource: item.resource.map(|resource| match self.resource_remembered {
                true => v1::Resource { attributes: None, ..resource },
                false => resource,
            }),
            resource_remembered: self.resource_remembered,
            fields: item.fields,
            context: alone.context()?,
            entities: references.map(|(r#type, id)| v1::EntityRef { r#type: r#type.clone(), id: id.clone() }).collect(),
            deadline: prost_types::Duration::try_from(deadline).ok(),
        })
    }

    fn to_item(&self) -> Result<v1::BatchCheckItem, AskError> {
        if self.resource_remembered || !self.remembered.is_empty() {
            return Err(AskError::Question("only a stream remembers entities"));
        }
        self.item()
    }

    fn item(&self) -> Result<v1::BatchCheckItem, AskError> {
        let Some(resource) = &self.resource else { return Err(AskError::Question("no resource")) };
        let asked = self.asked()?;
        let fields = asked.fields.map(|fields| {
            use v1::field_query::Mode;
            let (all, paths) = match fields {
                FieldSelection::All => (true, None),
                FieldSelection::Named(paths) => {
                    (false, Some(FieldMask { paths: paths.iter().map(ToString::to_string).collect() }))
                }
            };
            let mode = match self.mode {
                None => Mode::Unspecified,
                Some(FieldMode::Strict) => Mode::Strict,
                Some(FieldMode::Filter) => Mode::Filter,
            };
            v1::FieldQuery { all, paths, mode: mode.into() }
        });
        let resource = v1::Resource {
            r#type: resource.entity_type.clone(),
            id: resource.id.clone(),
            attributes: record(&resource.attributes)?,
            parents: resource.parents(),
        };
        Ok(v1::BatchCheckItem { action: self.action.clone(), resource: Some(resource), fields })
    }
}

impl Batch {
    /// No questions yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more question, without a subject and circumstances of its own. 1 to 100 in all.
    pub fn ask(mut self, question: Ask) -> Self {
        self.questions.push(question);
        self
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }

    pub(super) fn asked(&self) -> Result<Vec<Asked>, AskError> {
        self.questions.iter().map(Ask::asked).collect()
    }

    pub(super) fn to_wire(&self) -> Result<v1::BatchCheckRequest, AskError> {
        use v1::batch_check_request::Subject as Wire;
        if self.questions.is_empty() || self.questions.len() > BATCH {
            return Err(AskError::Question("a batch has 1 to 100 questions"));
        }
        if self.questions.iter().any(|ask| !ask.about.is_blank()) {
            return Err(AskError::Question("the subject and circumstances of a batch belong to the batch"));
        }
        let subject = match self.about.subject()? {
            Subject::Token(token) => Wire::Token(token.expose_secret().to_owned()),
            Subject::Asserted(entity) => Wire::Asserted(asserted(entity)?),
            Subject::ApiKey(key) => Wire::ApiKey(api_key(key)),
            Subject::Caller => Wire::Caller(()),
            Subject::Anonymous => Wire::Anonymous(()),
        };
        Ok(v1::BatchCheckRequest {
            subject: Some(subject),
            context: self.about.context()?,
            entities: self.about.entities()?,
            items: self.questions.iter().map(Ask::to_item).collect::<Result<_, _>>()?,
            options: self.about.options(),
        })
    }
}

impl Opening {
    /// Nothing said yet.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }

    pub(super) fn to_wire(&self) -> Result<v1::StreamOpening, AskError> {
        use v1::stream_opening::Subject as Wire;
        let subject = match self.about.subject()? {
            Subject::Token(token) => Wire::Token(token.expose_secret().to_owned()),
            Subject::Asserted(entity) => Wire::Asserted(asserted(entity)?),
            Subject::ApiKey(key) => Wire::ApiKey(api_key(key)),
            Subject::Caller => Wire::Caller(()),
            Subject::Anonymous => Wire::Anonymous(()),
        };
        Ok(v1::StreamOpening {
            subject: Some(subject),
            context: self.about.context()?,
            entities: self.about.entities()?,
            options: self.about.options(),
        })
    }
}

/// A question, a batch and a stream take the same subject and circumstances.
macro_rules! takes_circumstances {
    ($asks:ty) => {
        impl $asks {
            /// On behalf of whoever this bearer token speaks of (without `Bearer `).
            pub fn token(mut self, token: impl Into<String>) -> Self {
                self.about.subject = Some(Subject::Token(SecretString::from(token.into())));
                self
            }

            /// On behalf of a principal that this service vouches for. Gatepost must have been told that it may.
            pub fn asserted(mut self, principal: EntityData) -> Self {
                self.about.subject = Some(Subject::Asserted(principal));
                self
            }

            /// On behalf of the machine that sent this API key (without `ApiKey `) from that address. Gatepost must have
            /// been told that this service may present API keys.
            pub fn api_key(mut self, key: impl Into<String>, client_address: Option<std::net::IpAddr>) -> Self {
                let text = SecretString::from(key.into());
                self.about.subject = Some(Subject::ApiKey(PresentedKey { text, client_address }));
                self
            }

            /// On this service's own behalf.
            pub fn caller(mut self) -> Self {
                self.about.subject = Some(Subject::Caller);
                self
            }

            /// On behalf of nobody in particular.
            pub fn anonymous(mut self) -> Self {
                self.about.subject = Some(Subject::Anonymous);
                self
            }

            /// One of the circumstances, typed by the action's context in the schema.
            pub fn context(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
                self.about.context.push((name.into(), value.into()));
                self
            }

            /// What else the policies may need to know.
            pub fn entity(mut self, entity: EntityData) -> Self {
                self.about.entities.push(entity);
                self
            }

            /// Makes Gatepost evaluate even if it knows the answer.
            pub fn bypass_cache(mut self) -> Self {
                self.about.bypass_cache = true;
                self
            }

            /// The W3C `traceparent` of the request that this question serves. One that is malformed is left out.
            pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
                self.about.traceparent = Some(traceparent.into());
                self
            }

            /// The `x-request-id` of the request that this question serves. One that is malformed is left out.
            pub fn request_id(mut self, request_id: impl Into<String>) -> Self {
                self.about.request_id = Some(request_id.into());
                self
            }
        }
    };
}
takes_circumstances!(Ask);
takes_circumstances!(Batch);
takes_circumstances!(Opening);

impl EntityData {
    /// An entity without attributes and parents yet.
    pub fn new(entity_type: impl Into<String>, id: impl Into<String>) -> Self {
        Self { entity_type: entity_type.into(), id: Some(id.into()), attributes: Vec::new(), parents: Vec::new() }
    }

    /// An attribute; `null` means that it has none of that name.
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.attributes.push((name.into(), value.into()));
        self
    }

    /// An attribute that is another entity.
    pub fn reference(self, name: impl Into<String>, entity_type: impl Into<String>, id: impl Into<String>) -> Self {
        self.attribute(name, serde_json::json!({"type": entity_type.into(), "id": id.into()}))
    }

    /// What it belongs to.
    pub fn parent(mut self, entity_type: impl Into<String>, id: impl Into<String>) -> Self {
        self.parents.push((entity_type.into(), id.into()));
        self
    }

    pub(super) fn to_wire(&self) -> Result<v1::Entity, AskError> {
        Ok(v1::Entity {
            r#type: self.entity_type.clone(),
            id: self.id.clone().unwrap_or_default(),
            attributes: record(&self.attributes)?,
            parents: self.parents(),
        })
    }

    fn parents(&self) -> Vec<v1::EntityRef> {
        self.parents.iter().map(|(r#type, id)| v1::EntityRef { r#type: r#type.clone(), id: id.clone() }).collect()
    }
}

/// Names of attributes but none of their values.
impl fmt::Debug for EntityData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.attributes.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("EntityData")
            .field("type", &self.entity_type)
            .field("attributes", &names)
            .finish_non_exhaustive()
    }
}

impl About {
    fn is_blank(&self) -> bool {
        self.subject.is_none()
            && self.context.is_empty()
            && self.entities.is_empty()
            && !self.bypass_cache
            && self.traceparent.is_none()
            && self.request_id.is_none()
    }

    fn subject(&self) -> Result<&Subject, AskError> {
        match &self.subject {
            None => {
                Err(AskError::Question("no subject: a token, an asserted one, an API key, the caller or anonymous"))
            }
            Some(Subject::Token(token)) if token.expose_secret().is_empty() => {
                Err(AskError::Question("an empty token"))
            }
            Some(Subject::ApiKey(key)) if key.text.expose_secret().is_empty() => {
                Err(AskError::Question("an empty API key"))
            }
            Some(subject) => Ok(subject),
        }
    }

    fn context(&self) -> Result<Option<Struct>, AskError> {
        record(&self.context)
    }

    fn entities(&self) -> Result<Vec<v1::Entity>, AskError> {
        self.entities.iter().map(EntityData::to_wire).collect()
    }

    fn options(&self) -> Option<v1::CheckOptions> {
        self.bypass_cache.then_some(v1::CheckOptions { bypass_cache: true })
    }
}

fn api_key(key: &PresentedKey) -> v1::ApiKeyCredential {
    v1::ApiKeyCredential {
        value: key.text.expose_secret().to_owned(),
        client_address: key.client_address.map(|address| address.to_string()).unwrap_or_default(),
    }
}

fn asserted(entity: &EntityData) -> Result<v1::AssertedSubject, AskError> {
    Ok(v1::AssertedSubject {
        r#type: entity.entity_type.clone(),
        id: entity.id.clone().unwrap_or_default(),
        attributes: record(&entity.attributes)?,
        parents: entity.parents(),
    })
}

/// A record for the wire; `None` when there is nothing in it.
fn record(attributes: &[(String, Value)]) -> Result<Option<Struct>, AskError> {
    let mut fields = std::collections::BTreeMap::new();
    for (name, value) in attributes {
        if let Some(value) = wire(value, VALUE_DEPTH)?
            && fields.insert(name.clone(), value).is_some()
        {
            return Err(AskError::Question("two values of one name"));
        }
    }
    Ok((!fields.is_empty()).then_some(Struct { fields }))
}

/// A value for the wire; `None` for `null`, because policies know values and their absence, and nothing in between.
fn wire(value: &Value, depth: usize) -> Result<Option<WireValue>, AskError> {
    let Some(below) = depth.checked_sub(1) else { return Err(AskError::Question("a value nested too deeply")) };
    let kind = match value {
        Value::Null => return Ok(None),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Number(number) => {
            let whole = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            match number.as_f64() {
                Some(exact) if whole.is_none_or(|whole| whole <= EXACT) => Kind::NumberValue(exact),
                _ => return Err(AskError::Question("a whole number beyond 2^53")),
            }
        }
        Value::Array(elements) => {
            let mut values = Vec::with_capacity(elements.len());
            for element in elements {
                values.push(wire(element, below)?.ok_or(AskError::Question("a null in a list"))?);
            }
            Kind::ListValue(ListValue { values })
        }
        Value::Object(object) => {
            let mut fields = std::collections::BTreeMap::new();
            for (name, value) in object {
                if let Some(value) = wire(value, below)? {
                    fields.insert(name.clone(), value);
                }
            }
            Kind::StructValue(Struct { fields })
        }
    };
    Ok(Some(WireValue { kind: Some(kind) }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask() -> Ask {
        Ask::new("Account.read").token("t").resource("Account", "1")
    }

    #[test]
    fn a_question_says_everything_it_was_told() {
        let wire = ask()
            .reference("owner", "User", "alice")
            .attribute("limit", 3)
            .attribute("note", Value::Null)
            .parent("Tenant", "acme")
            .fields(["email", "address.city"])
            .strict()
            .context("ip", "10.0.0.1")
            .entity(EntityData::new("Tenant", "acme").attribute("plan", "gold"))
            .bypass_cache()
            .to_wire()
            .expect("a question");
        assert_eq!(wire.subject, Some(v1::check_request::Subject::Token("t".to_owned())));
        let resource = wire.resource.expect("a resource");
        assert_eq!((resource.r#type.as_str(), resource.id.as_deref()), ("Account", Some("1")));
        let attributes = resource.attributes.expect("attributes").fields;
        assert_eq!(attributes.keys().collect::<Vec<_>>(), ["limit", "owner"], "a null attribute is an absent one");
        assert_eq!(resource.parents.len(), 1);
        let fields = wire.fields.expect("fields");
        assert_eq!(fields.paths.expect("paths").paths, ["email", "address.city"]);
        assert_eq!(fields.mode, i32::from(v1::field_query::Mode::Strict));
        assert_eq!(wire.context.expect("context").fields.len(), 1);
        assert_eq!(wire.entities.len(), 1);
        assert!(wire.options.expect("options").bypass_cache);
    }

    #[test]
    fn what_cannot_be_asked_is_found_before_anything_is_sent() {
        let mut deep = json!(1);
        for _ in 0..VALUE_DEPTH {
            deep = json!([deep]);
        }
        let table = [
            (Ask::new("Account.read").resource("Account", "1"), "no subject: nobody is privileged by forgetting it"),
            (Ask::new("Account.read").token("").resource("Account", "1"), "an empty token is no token"),
            (Ask::new("Account.read").token("t"), "no resource"),
            (Ask::new("Account.read").token("t").attribute("a", 1), "an attribute of nothing"),
            (ask().fields(Vec::<String>::new()), "an empty list of fields reads as everything"),
            (ask().fields(["*"]), "a wildcard"),
            (ask().fields(["address.*"]), "a wildcard below"),
            (ask().strict(), "strict about no fields"),
            (ask().attribute("n", 9_007_199_254_740_993_i64), "a double would round it"),
            (ask().attribute("n", i64::MIN), "a double would not, but it is out of the exact range"),
            (ask().attribute("n", json!([null])), "a null in a set"),
            (ask().attribute("n", deep), "too deep"),
            (ask().attribute("n", 1).attribute("n", 2), "which of the two"),
        ];
        for (ask, why) in table {
            assert!(matches!(ask.to_wire(), Err(AskError::Question(_))), "{why}");
        }
        let largest = ask().attribute("n", 1_i64 << 53).attribute("m", -(1_i64 << 53));
        assert!(largest.to_wire().is_ok(), "2^53 itself is exact");
    }

    #[test]
    fn a_batch_has_1_to_100_questions_and_one_subject() {
        let many = |n: usize| {
            (0..n).fold(Batch::new().token("t"), |batch, i| batch.ask(Ask::new("A.read").resource("A", i.to_string())))
        };
        assert!(many(0).to_wire().is_err());
        assert_eq!(many(100).to_wire().expect("a batch").items.len(), 100);
        assert!(many(101).to_wire().is_err());
        assert!(Batch::new().ask(Ask::new("A.read").resource("A", "1")).to_wire().is_err(), "no subject");
        assert!(many(1).ask(ask()).to_wire().is_err(), "a question with a token of its own");
    }

    #[test]
    fn a_question_prints_no_token_and_no_value() {
        let ask = ask().token("s3cret-token").attribute("iban", "CH93").context("ip", "x");
        let printed = format!("{ask:?} {:?}", Batch::new().token("s3cret-token"));
        assert!(!printed.contains("s3cret-token") && !printed.contains("CH93"), "{printed}");
    }
}
