//! Between the wire and the words: every message becomes a question within its limits, or a [`Misfit`] that names the
//! part and not the content. An answer becomes a message that can't be misread.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::value::Kind;
use prost_types::{FieldMask, Struct, Value};
use zeroize::Zeroizing;

use crate::config::Limits;
use crate::model::decision::{Answer, Decision, DenialCode};
use crate::model::entity::{EntityId, EntityType, EntityUid, NameError, RawEntity, RawRecord, RawValue, is_hidden};
use crate::model::field_path::FieldPath;
use crate::model::question::{FieldMode, FieldQuery, FieldSelection, PresentedKey, Question, Resource, Subject};
use crate::pdp::{DecideError, Explained, Shared};
use crate::policy::Misfit;
use crate::proto::v1;
use crate::secret::SecretString;

pub mod stream;

/// A CheckRequest as a question.
///
/// # Errors
/// The first part that breaks a rule or a limit.
pub fn check(request: v1::CheckRequest, limits: &Limits) -> Result<(Subject, Question), Misfit> {
    if request.encoded_len() > limits.request_bytes {
        return Err(misfit("request", "is longer than `limits.request_bytes`"));
    }
    use v1::check_request::Subject as Wire;
    let subject = subject(
        request.subject.map(|subject| match subject {
            Wire::Token(token) => AnySubject::Token(token),
            Wire::Asserted(asserted) => AnySubject::Asserted(asserted),
            Wire::ApiKey(key) => AnySubject::ApiKey(key),
            Wire::Caller(()) => AnySubject::Caller,
            Wire::Anonymous(()) => AnySubject::Anonymous,
        }),
        limits,
    )?;
    let common = Common::new(request.context, &request.entities, request.options, limits)?;
    let question = question(&request.action, request.resource, request.fields, &common, limits)?;
    Ok((subject, question))
}

/// An ExplainRequest as a question. It is named as one of Check would be, and is held to the same limits.
///
/// # Errors
/// As [`check`].
pub fn explained(request: v1::ExplainRequest, limits: &Limits) -> Result<(Subject, Question), Misfit> {
    check(request.check.ok_or_else(|| misfit("check", "must be given"))?, limits)
}

/// A BatchCheckRequest as questions: what they share must be right, each item stands for itself, and is read only if it has to
/// be.
///
/// # Errors
/// The first shared part that breaks a rule or a limit; or that it is no BatchCheckRequest.
pub fn batch(message: Bytes, limits: &Limits) -> Result<Shared, DecideError> {
    let refused = |at: &str, rule: &'static str| DecideError::Invalid(misfit(at, rule));
    if message.len() > limits.batch_bytes {
        return Err(refused("request", "is longer than `limits.batch_bytes`"));
    }
    let (shared, items) = items_apart(message, limits.batch_items).ok_or(DecideError::Unreadable)?;
    let request = v1::BatchCheckRequest::decode(shared.as_slice()).map_err(|_| DecideError::Unreadable)?;
    if items.is_empty() {
        return Err(refused("items", "must hold at least one question"));
    }
    if items.len() > limits.batch_items {
        return Err(refused("items", "are more than `limits.batch_items`"));
    }
    use v1::batch_check_request::Subject as Wire;
    let subject = subject(
        request.subject.map(|subject| match subject {
            Wire::Token(token) => AnySubject::Token(token),
            Wire::Asserted(asserted) => AnySubject::Asserted(asserted),
            Wire::ApiKey(key) => AnySubject::ApiKey(key),
            Wire::Caller(()) => AnySubject::Caller,
            Wire::Anonymous(()) => AnySubject::Anonymous,
        }),
        limits,
    )
    .map_err(DecideError::Invalid)?;
    let common = Common::new(request.context, &request.entities, request.options, limits);
    let common = common.map_err(DecideError::Invalid)?;
    let entities = Arc::clone(&common.entities);
    // What is wrong with an item is told at its own place among the answers, so its number is not repeated.
    let read = move |item: &[u8], limits: &Limits| {
        let item = v1::BatchCheckItem::decode(item).map_err(|_| misfit("item", "is no BatchCheckItem"))?;
        question(&item.action, item.resource, item.fields, &common, limits)
    };
    Ok(Shared { subject, common: shared, entities, items, read: Arc::new(read) })
}

/// The items of a BatchCheckRequest, unread, and the rest of it as it came. `None`: it is no message. Of more than `most` items
/// the first `most` and one more: that they are too many is all that matters then.
fn items_apart(mut message: Bytes, most: usize) -> Option<(Zeroizing<Vec<u8>>, Vec<Bytes>)> {
    /// `BatchCheckRequest.items`.
    const ITEMS: u32 = 7;
    // It holds the token, and must not leave pieces of it behind by growing.
    let (mut shared, mut items) = (Zeroizing::new(Vec::with_capacity(message.len())), Vec::new());
    while message.has_remaining() && items.len() <= most {
        let whole = message.clone();
        let (field, kind) = decode_key(&mut message).ok()?;
        if field == ITEMS && kind == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
            if length > message.len() {
                return None;
            }
            items.push(message.split_to(length));
        } else {
            skip_field(kind, field, &mut message, DecodeContext::default()).ok()?;
            shared.extend_from_slice(whole.get(..whole.len() - message.len())?);
        }
    }
    Some((shared, items))
}

enum AnySubject {
    Token(String),
    Asserted(v1::AssertedSubject),
    ApiKey(v1::ApiKeyCredential),
    Caller,
    Anonymous,
}

fn subject(wire: Option<AnySubject>, limits: &Limits) -> Result<Subject, Misfit> {
    match wire {
        None => Err(misfit("subject", "must be given: token, asserted, api_key, caller or anonymous")),
        Some(AnySubject::Token(token)) => Ok(Subject::Token(SecretString::from(token))),
        Some(AnySubject::ApiKey(key)) => Ok(Subject::ApiKey(PresentedKey {
            client_address: match key.client_address.as_str() {
                "" => None,
                text => Some(
                    text.parse::<std::net::IpAddr>()
                        .map_err(|_| misfit("api_key.client_address", "must be an IP address without a port"))?
                        .to_canonical(),
                ),
            },
            text: SecretString::from(key.value),
        })),
        Some(AnySubject::Caller) => Ok(Subject::Caller),
        Some(AnySubject::Anonymous) => Ok(Subject::Anonymous),
        Some(AnySubject::Asserted(asserted)) => {
            let described = Described {
                kind: &asserted.r#type,
                id: &asserted.id,
                attributes: asserted.attributes.as_ref(),
                parents: &asserted.parents,
            };
            Ok(Subject::Asserted(Box::new(described.read("asserted", limits)?)))
        }
    }
}

/// What all questions of a message share.
struct Common {
    context: RawRecord,
    entities: Arc<[RawEntity]>,
    bypass_cache: bool,
}

impl Common {
    fn new(
        context: Option<Struct>,
        entities: &[v1::Entity],
        options: Option<v1::CheckOptions>,
        limits: &Limits,
    ) -> Result<Self, Misfit> {
        if context.as_ref().is_some_and(|context| context.encoded_len() > limits.context_bytes) {
            return Err(misfit("context", "is longer than `limits.context_bytes`"));
        }
        let context = match &context {
            Some(context) => Reader {
                at: "context",
                left: limits.context_keys,
                over: "has more keys than `limits.context_keys`",
                limits,
            }
            .record(context, 1)?,
            None => RawRecord::new(),
        };
        if entities.len() > limits.entities {
            return Err(misfit("entities", "are more than `limits.entities`"));
        }
        let entities = entities
            .iter()
            .enumerate()
            .map(|(index, entity)| {
                let described = Described {
                    kind: &entity.r#type,
                    id: &entity.id,
                    attributes: entity.attributes.as_ref(),
                    parents: &entity.parents,
                };
                described.read(&format!("entities[{index}]"), limits)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { context, entities, bypass_cache: options.is_some_and(|options| options.bypass_cache) })
    }
}

fn question(
    action: &str,
    resource: Option<v1::Resource>,
    fields: Option<v1::FieldQuery>,
    common: &Common,
    limits: &Limits,
) -> Result<Question, Misfit> {
    let action = self::action(action)?;
    let Some(resource) = resource else { return Err(misfit("resource", "must be given")) };
    let at = "resource";
    let entity_type = entity_type(&resource.r#type, at)?;
    let id = resource.id.as_deref().map(|id| entity_id(id, at, limits)).transpose()?;
    let resource = Resource {
        entity_type,
        id,
        attributes: attributes(resource.attributes.as_ref(), &format!("{at}.attributes"), limits)?,
        parents: parents(&resource.parents, &format!("{at}.parents"), limits)?,
    };
    Ok(Question {
        action,
        resource,
        fields: fields.map(|query| field_query(query, "fields", limits)).transpose()?,
        context: common.context.clone(),
        entities: Arc::clone(&common.entities),
        bypass_cache: common.bypass_cache,
    })
}

fn action(text: &str) -> Result<String, Misfit> {
    if text.is_empty() || text.len() > 256 || text.chars().any(is_hidden) {
        return Err(misfit("action", "must be 1 to 256 printable bytes"));
    }
    Ok(text.to_owned())
}

fn field_query(query: v1::FieldQuery, at: &str, limits: &Limits) -> Result<FieldQuery, Misfit> {
    let mode = match v1::field_query::Mode::try_from(query.mode) {
        Ok(v1::field_query::Mode::Unspecified) => None,
        Ok(v1::field_query::Mode::Strict) => Some(FieldMode::Strict),
        Ok(v1::field_query::Mode::Filter) => Some(FieldMode::Filter),
        Err(_) => return Err(misfit(&format!("{at}.mode"), "is not a mode that this version knows")),
    };
    let paths = query.paths.map(|mask| mask.paths).unwrap_or_default();
    let selection = match (query.all, paths.is_empty()) {
        (true, true) => FieldSelection::All,
        (true, false) => return Err(misfit(at, "asks for all fields and for named ones: choose")),
        (false, true) => return Err(misfit(at, "asks for no field: set `all`, or name paths")),
        (false, false) => {
            let at = format!("{at}.paths");
            if paths.len() > limits.field_paths {
                return Err(misfit(&at, "are more than `limits.field_paths`"));
            }
            let mut named: Vec<FieldPath> = Vec::with_capacity(paths.len());
            for path in &paths {
                let path = FieldPath::parse(path).map_err(|_| {
                    misfit(&at, "must be identifiers joined by dots, without `*`: at most 16 of them and 256 bytes")
                })?;
                if !named.contains(&path) {
                    named.push(path);
                }
            }
            FieldSelection::Named(named)
        }
    };
    Ok(FieldQuery { selection, mode })
}

/// An entity as the wire describes it.
struct Described<'w> {
    kind: &'w str,
    id: &'w str,
    attributes: Option<&'w Struct>,
    parents: &'w [v1::EntityRef],
}

impl Described<'_> {
    fn read(&self, at: &str, limits: &Limits) -> Result<RawEntity, Misfit> {
        Ok(RawEntity {
            uid: EntityUid { entity_type: entity_type(self.kind, at)?, id: entity_id(self.id, at, limits)? },
            attributes: attributes(self.attributes, &format!("{at}.attributes"), limits)?,
            parents: parents(self.parents, &format!("{at}.parents"), limits)?,
        })
    }
}

fn entity_type(text: &str, at: &str) -> Result<EntityType, Misfit> {
    EntityType::parse(text).map_err(|error| {
        misfit(
            &format!("{at}.type"),
            match error {
                NameError::Empty => "must be given",
                NameError::TooLong => "is longer than 256 bytes",
                NameError::Shape | NameError::Unprintable => "must be identifiers joined by `::`",
            },
        )
    })
}

fn entity_id(text: &str, at: &str, limits: &Limits) -> Result<EntityId, Misfit> {
    EntityId::parse(text, limits.id_bytes).map_err(|error| {
        misfit(
            &format!("{at}.id"),
            match error {
                NameError::Empty => "must not be empty",
                NameError::TooLong => "is longer than `limits.id_bytes`",
                NameError::Shape | NameError::Unprintable => "holds a control, bidirectional or zero-width character",
            },
        )
    })
}

fn parents(wire: &[v1::EntityRef], at: &str, limits: &Limits) -> Result<Vec<EntityUid>, Misfit> {
    if wire.len() > limits.ancestors {
        return Err(misfit(at, "are more than `limits.ancestors`"));
    }
    wire.iter()
        .map(|parent| {
            Ok(EntityUid { entity_type: entity_type(&parent.r#type, at)?, id: entity_id(&parent.id, at, limits)? })
        })
        .collect()
}

fn attributes(wire: Option<&Struct>, at: &str, limits: &Limits) -> Result<RawRecord, Misfit> {
    let Some(wire) = wire else { return Ok(RawRecord::new()) };
    Reader { at, left: limits.entity_attributes, over: "has more attributes than `limits.entity_attributes`", limits }
        .record(wire, 1)
}

/// Reads a Struct, counting keys and depth.
struct Reader<'r> {
    at: &'r str,
    left: usize,
    over: &'static str,
    limits: &'r Limits,
}

impl Reader<'_> {
    fn record(&mut self, wire: &Struct, depth: usize) -> Result<RawRecord, Misfit> {
        let mut record = RawRecord::with_capacity(wire.fields.len().min(self.left));
        for (name, value) in &wire.fields {
            self.left = self.left.checked_sub(1).ok_or_else(|| misfit(self.at, self.over))?;
            if name.len() > 256 || name.chars().any(is_hidden) {
                return Err(misfit(self.at, "has a name of more than 256 bytes, or with hidden characters"));
            }
            record.insert(name.clone(), self.value(value, depth + 1)?);
        }
        Ok(record)
    }

    fn value(&mut self, wire: &Value, depth: usize) -> Result<RawValue, Misfit> {
        if depth > self.limits.value_depth {
            return Err(misfit(self.at, "nests deeper than `limits.value_depth`"));
        }
        match &wire.kind {
            None | Some(Kind::NullValue(_)) => Err(misfit(self.at, "holds null: leave the member out instead")),
            Some(Kind::BoolValue(value)) => Ok(RawValue::Bool(*value)),
            Some(Kind::NumberValue(value)) => Ok(RawValue::Number(*value)),
            Some(Kind::StringValue(text)) if text.len() > self.limits.string_bytes => {
                Err(misfit(self.at, "holds text longer than `limits.string_bytes`"))
            }
            Some(Kind::StringValue(text)) => Ok(RawValue::Text(text.clone())),
            Some(Kind::ListValue(list)) if list.values.len() > self.limits.set_elements => {
                Err(misfit(self.at, "holds a list of more than `limits.set_elements`"))
            }
            Some(Kind::ListValue(list)) => Ok(RawValue::List(
                list.values.iter().map(|value| self.value(value, depth + 1)).collect::<Result<_, _>>()?,
            )),
            Some(Kind::StructValue(record)) => Ok(RawValue::Record(self.record(record, depth)?)),
        }
    }
}

fn misfit(at: &str, rule: &'static str) -> Misfit {
    Misfit { at: at.to_owned(), rule }
}

/// An answer as a message. An ALLOW to a question without fields has no mask; one with fields never has an empty one.
#[must_use]
pub fn answer(answer: &Answer) -> v1::CheckResponse {
    let ruling = &answer.ruling;
    let allowed = ruling.decision == Decision::Allow;
    v1::CheckResponse {
        decision: match ruling.decision {
            Decision::Allow => v1::Decision::Allow,
            Decision::Deny => v1::Decision::Deny,
            Decision::Conditional => v1::Decision::Conditional,
        }
        .into(),
        decision_id: answer.decision_id.to_string(),
        fields: ruling.fields.as_ref().filter(|_| allowed).map(|paths| mask(paths)),
        denial: ruling.denial.as_ref().map(|denial| v1::Denial {
            code: denial_code(denial.code).into(),
            refused_fields: (!denial.refused_fields.is_empty()).then(|| mask(&denial.refused_fields)),
        }),
        obligations: ruling.obligations.iter().map(|id| v1::Obligation { id: id.clone() }).collect(),
        determining_policies: if answer.show_policies { ruling.determining.clone() } else { Vec::new() },
        policy_revision: answer.revision.to_string(),
        cache: (answer.reusable_for > Duration::ZERO).then(|| cache_hint(answer.reusable_for)),
    }
}

/// For how long an answer may be reused.
pub(super) fn cache_hint(time: Duration) -> v1::CacheHint {
    v1::CacheHint { max_age: duration(time) }
}

/// An answer with what decided it, as a message.
#[must_use]
pub fn explanation(explained: &Explained) -> v1::ExplainResponse {
    let response = answer(&explained.answer);
    let ruling = &explained.answer.ruling;
    let by = |id: &String| v1::DeterminingPolicy { id: id.clone(), decision: response.decision };
    v1::ExplainResponse {
        level: explained.level.to_owned(),
        principal: explained
            .principal
            .as_ref()
            .map(|uid| v1::EntityRef { r#type: uid.entity_type.to_string(), id: uid.id.to_string() }),
        token_refusal: explained.token_refusal.unwrap_or_default().to_owned(),
        determining_policies: ruling.determining.iter().map(by).collect(),
        policy_failures: ruling
            .errors
            .iter()
            .map(|error| v1::PolicyFailure { id: error.policy.clone(), class: error.class.to_owned() })
            .collect(),
        asserted_by_caller: explained.asserted.clone(),
        response: Some(response),
    }
}

fn mask(paths: &[FieldPath]) -> FieldMask {
    FieldMask { paths: paths.iter().map(ToString::to_string).collect() }
}

/// Whole seconds, rounded down: a hint must not outlive the token.
fn duration(time: Duration) -> Option<prost_types::Duration> {
    let seconds = i64::try_from(time.as_secs()).ok().filter(|seconds| *seconds > 0)?;
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn denial_code(code: DenialCode) -> v1::DenialCode {
    match code {
        DenialCode::NoPermit => v1::DenialCode::NoPermit,
        DenialCode::Forbidden => v1::DenialCode::Forbidden,
        DenialCode::PolicyError => v1::DenialCode::PolicyError,
        DenialCode::NoFieldGranted => v1::DenialCode::NoFieldGranted,
        DenialCode::FieldNotGranted => v1::DenialCode::FieldNotGranted,
        DenialCode::TokenExpired => v1::DenialCode::TokenExpired,
        DenialCode::TokenRejected => v1::DenialCode::TokenRejected,
        DenialCode::TokenRevoked => v1::DenialCode::TokenRevoked,
        DenialCode::TokenNotForCaller => v1::DenialCode::TokenNotForCaller,
        DenialCode::IssuerUnavailable => v1::DenialCode::IssuerUnavailable,
        DenialCode::PrincipalIncomplete => v1::DenialCode::PrincipalIncomplete,
        DenialCode::ContextIncomplete => v1::DenialCode::ContextIncomplete,
        DenialCode::UnknownAction => v1::DenialCode::UnknownAction,
        DenialCode::NotApplicable => v1::DenialCode::NotApplicable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch taken apart holds what the library reads, whatever the bytes: as many items, each with its bytes, and the rest.
    #[test]
    fn a_batch_taken_apart_is_the_batch_read_as_a_whole() {
        let mut dice = fastrand::Rng::with_seed(29);
        let (mut taken, mut spoilt) = (0, 0);
        for _ in 0..50_000 {
            let text = |dice: &mut fastrand::Rng| "Order.read".chars().take(dice.usize(0..10)).collect();
            let batch = v1::BatchCheckRequest {
                subject: dice.bool().then(|| v1::batch_check_request::Subject::Token(text(&mut dice))),
                items: (0..dice.usize(0..5))
                    .map(|_| v1::BatchCheckItem { action: text(&mut dice), ..v1::BatchCheckItem::default() })
                    .collect(),
                options: dice.bool().then(|| v1::CheckOptions { bypass_cache: dice.bool() }),
                ..v1::BatchCheckRequest::default()
            };
            let mut message = batch.encode_to_vec();
            // Fields may come in any order, and twice.
            if dice.u8(0..4) == 0 {
                message
                    .extend(v1::BatchCheckRequest { items: batch.items.clone(), ..Default::default() }.encode_to_vec());
            }
            for _ in 0..dice.usize(0..3) {
                if !message.is_empty() {
                    let at = dice.usize(0..message.len());
                    message[at] = dice.u8(..);
                }
            }
            let whole = v1::BatchCheckRequest::decode(message.as_slice());
            let parts = items_apart(Bytes::from(message), 100).and_then(|(shared, items)| {
                let rest = v1::BatchCheckRequest::decode(shared.as_slice()).ok()?;
                let items = items.into_iter().map(v1::BatchCheckItem::decode).collect::<Result<Vec<_>, _>>().ok()?;
                Some(v1::BatchCheckRequest { items, ..rest })
            });
            assert_eq!(parts, whole.ok());
            if parts.is_some() { taken += 1 } else { spoilt += 1 }
        }
        let many = v1::BatchCheckRequest { items: vec![v1::BatchCheckItem::default(); 1000], ..Default::default() };
        let (_, items) = items_apart(Bytes::from(many.encode_to_vec()), 100).unwrap();
        assert_eq!(items.len(), 101, "no more are counted than it takes to refuse them");
        println!("{taken} batches, {spoilt} that are none");
        assert!(taken > 20_000 && spoilt > 1000);
    }

    #[test]
    fn every_denial_code_has_its_own_name_on_the_wire() {
        for code in DenialCode::ALL {
            assert_eq!(denial_code(code).as_str_name(), format!("DENIAL_CODE_{}", code.as_str()));
        }
    }
}
