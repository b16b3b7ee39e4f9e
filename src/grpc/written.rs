//! Answers as they go over the wire. Of one that was given before, all but its id and its cache hint is written already.
//!
//! Protobuf takes fields in any order, so the part that is the same each time comes first, as it was written then.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::convert;
use crate::model::decision::Answer;
use crate::model::ids::DecisionId;
use crate::proto::codec::Outgoing;
use crate::proto::v1;

/// A `CheckResponse`.
#[derive(Debug)]
pub enum CheckWritten {
    /// Of which nothing is written yet.
    Whole(Box<v1::CheckResponse>),
    /// Of which all but this is.
    Same {
        /// As it was written before.
        same: Bytes,
        /// Names this one.
        decision_id: DecisionId,
        /// Whether it may be reused.
        cache: Option<v1::CacheHint>,
    },
}

/// What a question of several is answered, or why it is not.
#[derive(Debug)]
pub struct Answered(pub Result<CheckWritten, v1::ItemError>);

/// A `BatchCheckResponse`.
#[derive(Debug)]
pub struct BatchWritten(pub Vec<Answered>);

/// A `CheckStreamResponse`.
#[derive(Debug)]
pub struct StreamWritten {
    /// That of the question.
    pub id: u64,
    /// What it is answered.
    pub result: Answered,
}

/// `CheckResponse.decision_id` and `.cache`.
const DECISION_ID: u32 = 2;
const CACHE: u32 = 8;
/// `BatchCheckResponse.results`; in each of them `response` and then `error`.
const RESULTS: u32 = 1;
const IN_RESULT: [u32; 2] = [1, 2];
/// `CheckStreamResponse.id`; `response` and then `error`.
const ID: u32 = 1;
const IN_STREAM: [u32; 2] = [2, 3];

impl CheckWritten {
    /// Of this answer.
    #[must_use]
    pub fn of(answer: &Answer) -> Self {
        let Some(said) = &answer.said else { return Self::Whole(Box::new(convert::answer(answer))) };
        let same = said.load_full().unwrap_or_else(|| {
            let response = convert::answer(answer);
            let response = v1::CheckResponse { decision_id: String::new(), cache: None, ..response };
            let same = Arc::new(Bytes::from(response.encode_to_vec()));
            // Whoever does it twice writes the same.
            said.store(Some(Arc::clone(&same)));
            same
        });
        let may_be_reused = answer.reusable_for > Duration::ZERO;
        let cache = may_be_reused.then(|| convert::cache_hint(answer.reusable_for));
        Self::Same { same: Bytes::clone(&same), decision_id: answer.decision_id, cache }
    }
}

impl Outgoing for CheckWritten {
    fn bytes(&self) -> usize {
        match self {
            Self::Whole(response) => response.encoded_len(),
            Self::Same { same, decision_id, cache } => {
                let cache = cache.as_ref().map_or(0, |cache| nested_bytes(CACHE, cache.encoded_len()));
                same.len() + nested_bytes(DECISION_ID, decision_id.text().len()) + cache
            }
        }
    }

    fn put(&self, to: &mut impl BufMut) {
        match self {
            Self::Whole(response) => response.encode_raw(to),
            Self::Same { same, decision_id, cache } => {
                to.put_slice(same);
                let id = decision_id.text();
                nested(DECISION_ID, id.len(), to);
                to.put_slice(&id);
                if let Some(cache) = cache {
                    nested(CACHE, cache.encoded_len(), to);
                    cache.encode_raw(to);
                }
            }
        }
    }
}

impl Answered {
    fn bytes(&self, [response, error]: [u32; 2]) -> usize {
        match &self.0 {
            Ok(written) => nested_bytes(response, written.bytes()),
            Err(told) => nested_bytes(error, told.encoded_len()),
        }
    }

    fn put(&self, [response, error]: [u32; 2], to: &mut impl BufMut) {
        match &self.0 {
            Ok(written) => {
                nested(response, written.bytes(), to);
                written.put(to);
            }
            Err(told) => {
                nested(error, told.encoded_len(), to);
                told.encode_raw(to);
            }
        }
    }
}

impl Outgoing for BatchWritten {
    fn bytes(&self) -> usize {
        self.0.iter().map(|result| nested_bytes(RESULTS, result.bytes(IN_RESULT))).sum()
    }

    fn put(&self, to: &mut impl BufMut) {
        for result in &self.0 {
            nested(RESULTS, result.bytes(IN_RESULT), to);
            result.put(IN_RESULT, to);
        }
    }
}

impl Outgoing for StreamWritten {
    fn bytes(&self) -> usize {
        key_len(ID) + encoded_len_varint(self.id) + self.result.bytes(IN_STREAM)
    }

    fn put(&self, to: &mut impl BufMut) {
        encode_key(ID, WireType::Varint, to);
        encode_varint(self.id, to);
        self.result.put(IN_STREAM, to);
    }
}

/// What a part of so many bytes takes with its key and length.
fn nested_bytes(field: u32, bytes: usize) -> usize {
    key_len(field) + encoded_len_varint(bytes as u64) + bytes
}

/// The key and the length of a part that follows.
fn nested(field: u32, bytes: usize, to: &mut impl BufMut) {
    encode_key(field, WireType::LengthDelimited, to);
    encode_varint(bytes as u64, to);
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use arc_swap::ArcSwapOption;

    use super::*;
    use crate::model::decision::{CacheUse, Decision, Denial, DenialCode, Ruling};
    use crate::model::field_path::FieldPath;
    use crate::model::ids::PolicyRevision;

    fn id(dice: &mut fastrand::Rng) -> DecisionId {
        DecisionId::mint(SystemTime::UNIX_EPOCH + Duration::from_millis(dice.u64(..1 << 42)))
    }

    fn any(dice: &mut fastrand::Rng) -> Answer {
        let paths = |dice: &mut fastrand::Rng| -> Vec<FieldPath> {
            (0..dice.usize(0..40)).map(|at| FieldPath::parse(&format!("address.f{at}")).unwrap()).collect()
        };
        let mut ruling = Ruling::deny(DenialCode::NoPermit);
        if dice.bool() {
            ruling.decision = Decision::Allow;
            ruling.denial = None;
            ruling.fields = dice.bool().then(|| paths(dice));
        } else {
            ruling.denial = Some(Denial { code: DenialCode::FieldNotGranted, refused_fields: paths(dice) });
        }
        ruling.determining = (0..dice.usize(0..3)).map(|at| format!("policy-{at}")).collect();
        Answer {
            decision_id: id(dice),
            ruling: Arc::new(ruling),
            revision: PolicyRevision::from_digest(&[7; 32]),
            cache: CacheUse::Hit,
            reusable_for: Duration::from_millis(dice.u64(0..3000)),
            show_policies: dice.bool(),
            said: dice.bool().then(|| Arc::new(ArcSwapOption::empty())),
        }
    }

    fn bytes(written: &impl Outgoing) -> Vec<u8> {
        let mut bytes = Vec::new();
        written.put(&mut bytes);
        assert_eq!(bytes.len(), written.bytes());
        bytes
    }

    fn error() -> v1::ItemError {
        v1::ItemError { reason: "INVALID_QUESTION".into(), field: "resource".into(), ..v1::ItemError::default() }
    }

    /// Answers alone, in batches and in streams, given once and given again: the library reads what it would have written.
    #[test]
    fn what_is_written_by_hand_reads_as_what_the_library_writes() {
        let mut dice = fastrand::Rng::with_seed(37);
        let mut again = 0;
        for _ in 0..2000 {
            let answer = any(&mut dice);
            for _ in 0..2 {
                let next = Answer { decision_id: id(&mut dice), ..answer.clone() };
                let read = v1::CheckResponse::decode(bytes(&CheckWritten::of(&next)).as_slice()).unwrap();
                assert_eq!(read, convert::answer(&next));
                again += usize::from(matches!(CheckWritten::of(&next), CheckWritten::Same { .. }));
            }
            let id = dice.u64(..) >> dice.u32(0..64);
            let (result, expected) = if dice.bool() {
                (Ok(CheckWritten::of(&answer)), v1::check_stream_response::Result::Response(convert::answer(&answer)))
            } else {
                (Err(error()), v1::check_stream_response::Result::Error(error()))
            };
            let written = bytes(&StreamWritten { id, result: Answered(result) });
            let read = v1::CheckStreamResponse::decode(written.as_slice()).unwrap();
            assert_eq!(read, v1::CheckStreamResponse { id, result: Some(expected) });
        }
        let answers: Vec<Answer> = (0..100).map(|_| any(&mut dice)).collect();
        fn of(answer: &Answer) -> Result<&Answer, v1::ItemError> {
            if answer.show_policies { Ok(answer) } else { Err(error()) }
        }
        let written = BatchWritten(answers.iter().map(|one| Answered(of(one).map(CheckWritten::of))).collect());
        let read = v1::BatchCheckResponse::decode(bytes(&written).as_slice()).unwrap();
        use v1::batch_check_result::Result as Wire;
        let result = |one| of(one).map_or_else(Wire::Error, |answer| Wire::Response(convert::answer(answer)));
        let results = answers.iter().map(|one| v1::BatchCheckResult { result: Some(result(one)) }).collect();
        assert_eq!(read, v1::BatchCheckResponse { results });
        println!("{again} of 4000 were written before");
        assert!(again > 1000);
    }
}
