//! What a stream has been told so far, and its questions, read against that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
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
