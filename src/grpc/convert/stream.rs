//! What a stream has been told so far, and its questions, read against that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::Struct;

use super::{
    AnySubject, Common, Described, Reader, action, attributes, entity_id, entity_type, field_query, misfit, parents,
    subject,
};
use crate::config::Limits;
use crate::model::entity::{EntityUid, RawEntity, RawRecord};
use crate::model::question::{Question, Resource, Subject};
use crate::policy::Misfit;
use crate::proto::v1;
use crate::secret::SecretString;

/// What one stream has been told: on whose behalf it asks, what its questions share, and the entities it remembers.
pub struct Memory {
    subject: Subject,
    common: Common,
    /// Of the shared context: encoded bytes, and how many keys more there may be.
    context_bytes: usize,
    context_keys_left: usize,
    remembered: HashMap<EntityUid, Remembered>,
    /// Of everything remembered.
    bytes: usize,
}

struct Remembered {
    entity: RawEntity,
    /// As it was sent.
    bytes: usize,
}

impl Memory {
    /// What the first message says. It is held to the limits of a CheckRequest.
    ///
    /// # Errors
    /// The first part that breaks a rule or a limit.
    pub fn open(opening: v1::StreamOpening, limits: &Limits) -> Result<Self, Misfit> {
        if opening.encoded_len() > limits.request_bytes {
            return Err(misfit("open", "is longer than `limits.request_bytes`"));
        }
        use v1::stream_opening::Subject as Wire;
        let subject = subject(
            opening.subject.map(|subject| match subject {
                Wire::Token(token) => AnySubject::Token(token),
                Wire::Asserted(asserted) => AnySubject::Asserted(asserted),
                Wire::ApiKey(key) => AnySubject::ApiKey(key),
                Wire::Caller(()) => AnySubject::Caller,
                Wire::Anonymous(()) => AnySubject::Anonymous,
            }),
            limits,
        )?;
        let context_bytes = opening.context.as_ref().map_or(0, Struct::encoded_len);
        let context_keys = opening.context.as_ref().map_or(0, keys);
        let common = Common::new(opening.context, &opening.entities, opening.options, limits)?;
        Ok(Self {
            subject,
            common,
            context_bytes,
            context_keys_left: limits.context_keys.saturating_sub(context_keys),
            remembered: HashMap::new(),
            bytes: 0,
        })
    }

    /// On whose behalf.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// From now on with this token.
    pub fn renew(&mut self, token: SecretString) {
        self.subject = Subject::Token(token);
    }

    /// Keeps entities; one that is there already is replaced.
    ///
    /// # Errors
    /// The first part that breaks a rule or a limit. What came before it is kept.
    pub fn remember(&mut self, told: &v1::RememberedEntities, limits: &Limits) -> Result<(), Misfit> {
        for (index, entity) in told.entities.iter().enumerate() {
            let bytes = entity.encoded_len();
            let described = Described {
                kind: &entity.r#type,
                id: &entity.id,
                attributes: entity.attributes.as_ref(),
                parents: &entity.parents,
            };
            let entity = described.read(&format!("remember.entities[{index}]"), limits)?;
            self.drop_one(&entity.uid);
            if self.remembered.len() >= limits.stream_entities {
                return Err(misfit("remember.entities", "are more than `limits.stream_entities`"));
            }
            self.bytes = self.bytes.saturating_add(bytes);
            if self.bytes > limits.stream_entity_bytes {
                return Err(misfit("remember.entities", "are longer than `limits.stream_entity_bytes`"));
            }
            self.remembered.insert(entity.uid.clone(), Remembered { entity, bytes });
        }
        Ok(())
    }

    /// Keeps them no longer.
    ///
    /// # Errors
    /// The first reference that can't be one.
    pub fn forget(&mut self, told: &v1::ForgottenEntities, limits: &Limits) -> Result<(), Misfit> {
        for (index, reference) in told.entities.iter().enumerate() {
            self.drop_one(&named(reference, &format!("forget.entities[{index}]"), limits)?);
        }
        Ok(())
    }

    fn drop_one(&mut self, uid: &EntityUid) {
        if let Some(gone) = self.remembered.remove(uid) {
            self.bytes = self.bytes.saturating_sub(gone.bytes);
        }
    }

    /// A question with everything that it refers to. It is held to the limits of a CheckRequest.
    ///
    /// # Errors
    /// The first part that breaks a rule or a limit.
    pub fn question(&self, asked: v1::StreamQuestion, limits: &Limits) -> Result<(Subject, Question), Misfit> {
        if asked.encoded_len() > limits.request_bytes {
            return Err(misfit("request", "is longer than `limits.request_bytes`"));
        }
        let action = action(&asked.action)?;
        let Some(resource) = asked.resource else { return Err(misfit("resource", "must be given")) };
        let resource = if asked.resource_remembered {
            self.recalled(resource, limits)?
        } else {
            Resource {
                entity_type: entity_type(&resource.r#type, "resource")?,
                id: resource.id.as_deref().map(|id| entity_id(id, "resource", limits)).transpose()?,
                attributes: attributes(resource.attributes.as_ref(), "resource.attributes", limits)?,
                parents: parents(&resource.parents, "resource.parents", limits)?,
            }
        };
        let question = Question {
            action,
            resource,
            fields: asked.fields.map(|query| field_query(query, "fields", limits)).transpose()?,
            context: self.context(asked.context.as_ref(), limits)?,
            entities: self.entities(&asked.entities, limits)?,
            bypass_cache: self.common.bypass_cache,
        };
        Ok((self.subject.clone(), question))
    }

    /// The remembered entity that a question is about.
    fn recalled(&self, resource: v1::Resource, limits: &Limits) -> Result<Resource, Misfit> {
        let (Some(id), None, true) = (resource.id, &resource.attributes, resource.parents.is_empty()) else {
            return Err(misfit(
                "resource",
                "is said to be remembered: its type and id, and nothing else, must be given",
            ));
        };
        let reference = v1::EntityRef { r#type: resource.r#type, id };
        let entity = self.remembered(&reference, "resource", limits)?.clone();
        let EntityUid { entity_type, id } = entity.uid;
        Ok(Resource { entity_type, id: Some(id), attributes: entity.attributes, parents: entity.parents })
    }

    fn remembered(&self, reference: &v1::EntityRef, at: &str, limits: &Limits) -> Result<&RawEntity, Misfit> {
        let found = self.remembered.get(&named(reference, at, limits)?);
        found.map(|found| &found.entity).ok_or_else(|| misfit(at, "is not remembered by this stream"))
    }

    /// What all share, and what this question adds.
    fn context(&self, own: Option<&Struct>, limits: &Limits) -> Result<RawRecord, Misfit> {
        let Some(own) = own else { return Ok(self.common.context.clone()) };
        if self.context_bytes.saturating_add(own.encoded_len()) > limits.context_bytes {
            return Err(misfit("context", "is longer than `limits.context_bytes`, with the opening's"));
        }
        let over = "has more keys than `limits.context_keys`, with the opening's";
        let mut context = Reader { at: "context", left: self.context_keys_left, over, limits }.record(own, 1)?;
        for (name, value) in &self.common.context {
            if context.insert(name.clone(), value.clone()).is_some() {
                return Err(misfit("context", "has a key that the opening has as well"));
            }
        }
        Ok(context)
    }

    fn entities(&self, named: &[v1::EntityRef], limits: &Limits) -> Result<Arc<[RawEntity]>, Misfit> {
        if named.is_empty() {
            return Ok(Arc::clone(&self.common.entities));
        }
        if self.common.entities.len().saturating_add(named.len()) > limits.entities {
            return Err(misfit("entities", "are more than `limits.entities`, with the opening's"));
        }
        let recalled = named
            .iter()
            .enumerate()
            .map(|(index, reference)| self.remembered(reference, &format!("entities[{index}]"), limits).cloned());
        self.common.entities.iter().cloned().map(Ok).chain(recalled).collect()
    }
}

/// A question's number and the rest of its bytes, if `message` is a question and nothing else, and names its number first
/// and once, as every encoder does. Whatever is written otherwise has to be read as a whole.
#[must_use]
pub fn apart(message: &[u8]) -> Option<(u64, &[u8])> {
    /// `CheckStreamRequest.ask`, `StreamQuestion.id`.
    const ASK: u32 = 4;
    const ID: u32 = 1;
    /// The key of `id`, a varint, on the wire.
    const ID_KEY: u8 = 0x08;
    let mut inner = message;
    let (ASK, WireType::LengthDelimited) = decode_key(&mut inner).ok()? else { return None };
    let length = decode_varint(&mut inner).ok()?;
    if usize::try_from(length).ok()? != inner.len() {
        return None;
    }
    // Nothing is written of a zero.
    let mut id = 0;
    if let Some((&ID_KEY, rest)) = inner.split_first() {
        inner = rest;
        id = decode_varint(&mut inner).ok()?;
    }
    let question = inner;
    while !inner.is_empty() {
        let (field, kind) = decode_key(&mut inner).ok()?;
        if field == ID {
            return None;
        }
        skip_field(kind, field, &mut inner, DecodeContext::default()).ok()?;
    }
    Some((id, question))
}

/// How long an answer is waited for.
///
/// # Errors
/// When it is no time at all.
pub fn deadline(asked: Option<&prost_types::Duration>, limits: &Limits) -> Result<Duration, Misfit> {
    let Some(asked) = asked else { return Ok(limits.default_deadline) };
    // By hand: the library's own conversion panics on the least number of seconds.
    let time = match (u64::try_from(asked.seconds), u32::try_from(asked.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Some(Duration::new(seconds, nanos)),
        _ => None,
    };
    let time = time.filter(|time| !time.is_zero()).ok_or_else(|| misfit("deadline", "must be more than no time"))?;
    Ok(time.min(limits.max_deadline))
}

fn named(reference: &v1::EntityRef, at: &str, limits: &Limits) -> Result<EntityUid, Misfit> {
    Ok(EntityUid { entity_type: entity_type(&reference.r#type, at)?, id: entity_id(&reference.id, at, limits)? })
}

/// The keys of a Struct, nested ones included. It has been decoded, so it does not nest deeper than Protobuf allows.
fn keys(of: &Struct) -> usize {
    use prost_types::value::Kind;
    fn within(value: &prost_types::Value) -> usize {
        match &value.kind {
            Some(Kind::StructValue(inner)) => keys(inner),
            Some(Kind::ListValue(list)) => list.values.iter().map(within).sum(),
            None | Some(Kind::NullValue(_) | Kind::NumberValue(_) | Kind::StringValue(_) | Kind::BoolValue(_)) => 0,
        }
    }
    of.fields.values().map(|value| 1 + within(value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(question: &v1::StreamQuestion) -> Vec<u8> {
        let message = Some(v1::check_stream_request::Message::Ask(question.clone()));
        v1::CheckStreamRequest { message }.encode_to_vec()
    }

    #[test]
    fn only_what_every_encoder_writes_is_taken_apart() {
        let question = v1::StreamQuestion { id: 300, action: "Order.read".into(), ..v1::StreamQuestion::default() };
        let whole = asks(&question);
        let (id, rest) = apart(&whole).unwrap();
        assert_eq!((id, rest), (300, &[0x12, 10, b'O', b'r', b'd', b'e', b'r', b'.', b'r', b'e', b'a', b'd'][..]));
        let inner = |bytes: &[u8]| [&[0x22, u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let table: [(Vec<u8>, Option<u64>, &str); 10] = [
            (inner(&[]), Some(0), "a zero is not written"),
            (inner(&[0x08, 0]), Some(0), "or is"),
            (inner(&[0x12, 1, b'a']), Some(0), "a zero, and an action"),
            (inner(&[0x12, 1, b'a', 0x08, 7]), None, "the number last"),
            (inner(&[0x08, 7, 0x08, 8]), None, "two numbers"),
            (inner(&[0x08, 7, 0x0a, 0]), None, "a number and a text in its place"),
            (inner(&[0x08]), None, "a number that does not come"),
            (inner(&[0x08, 7, 0x12, 9, b'a']), None, "a text that is cut off"),
            ([inner(&[0x08, 7]), inner(&[0x08, 8])].concat(), None, "two questions"),
            (vec![0x0a, 0], None, "an opening"),
        ];
        for (message, expected, why) in table {
            assert_eq!(apart(&message).map(|(id, _)| id), expected, "{why}");
        }
    }

    /// What is taken apart is what the library reads, whatever the bytes.
    #[test]
    fn a_message_taken_apart_is_the_message_read_as_a_whole() {
        use v1::check_stream_request::Message;
        let mut dice = fastrand::Rng::with_seed(23);
        let (mut taken, mut read) = (0, 0);
        for _ in 0..100_000 {
            let text = |dice: &mut fastrand::Rng| "Order.read".chars().take(dice.usize(0..10)).collect();
            let resource = v1::Resource { r#type: text(&mut dice), ..v1::Resource::default() };
            let question = v1::StreamQuestion {
                id: dice.u64(..) >> dice.u32(0..64),
                action: text(&mut dice),
                resource: dice.bool().then_some(resource),
                resource_remembered: dice.bool(),
                deadline: dice.bool().then(|| prost_types::Duration { seconds: dice.i64(..), nanos: dice.i32(..) }),
                ..v1::StreamQuestion::default()
            };
            let mut message = asks(&question);
            for _ in 0..dice.usize(0..3) {
                let at = dice.usize(0..message.len());
                message[at] = if dice.bool() { dice.u8(..) } else { message[at] ^ (1 << dice.u32(0..8)) };
            }
            let whole = v1::CheckStreamRequest::decode(message.as_slice());
            let Some((id, rest)) = apart(&message) else { continue };
            taken += 1;
            match whole {
                Ok(v1::CheckStreamRequest { message: Some(Message::Ask(question)) }) => {
                    read += 1;
                    assert_eq!(question.id, id);
                    let rest = v1::StreamQuestion::decode(rest).unwrap();
                    assert_eq!(v1::StreamQuestion { id, ..rest }, question);
                }
                // It is no text where there has to be one: nothing is known by bytes that can't be read.
                Err(_) => assert!(v1::StreamQuestion::decode(rest).is_err()),
                Ok(other) => panic!("{other:?}"),
            }
        }
        println!("{taken} of 100000 taken apart, {read} of them could be read");
        assert!(read > 30_000);
    }

    #[test]
    fn an_answer_is_waited_for_as_long_as_the_question_says_and_no_longer_than_it_may() {
        let limits = Limits {
            default_deadline: Duration::from_millis(200),
            max_deadline: Duration::from_secs(2),
            ..Limits::default()
        };
        let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        let table = [
            (None, Some(200), "none is named"),
            (time(0, 50_000_000), Some(50), "shorter"),
            (time(2, 0), Some(2000), "the longest"),
            (time(3, 0), Some(2000), "longer than that"),
            (time(i64::MAX, 999_999_999), Some(2000), "for ever"),
            (time(0, 0), None, "no time"),
            (time(-1, 0), None, "less"),
            (time(0, -1), None, "less"),
            (time(i64::MIN, i32::MIN), None, "far less"),
            (time(1, 1_000_000_000), None, "a second too many among the nanoseconds"),
        ];
        for (asked, expected, why) in table {
            let read = deadline(asked.as_ref(), &limits).ok();
            assert_eq!(read, expected.map(Duration::from_millis), "{why}");
        }
    }
}
