//! Why: an answer with what decided it, for callers with the right to ask.

use super::{Call, Known, Pdp, Refusal};
use crate::audit::QuestionFacts;
use crate::model::decision::Answer;
use crate::model::entity::EntityUid;
use crate::model::question::{Question, Subject};
use crate::policy::Misfit;

/// An answer, and what decided it.
pub struct Explained {
    /// The answer, as `check` gives it.
    pub answer: Answer,
    /// At which level it was asked.
    pub level: &'static str,
    /// The principal, as far as it is known.
    pub principal: Option<EntityUid>,
    /// Why the token was refused, from a closed list.
    pub token_refusal: Option<&'static str>,
    /// What the caller itself asserted.
    pub asserted: Vec<String>,
}

impl Pdp {
    /// Answers one question and tells what decided it, to a caller with the right to know. Decided like any other, but
    /// neither from the cache nor into it: an explanation is of this very evaluation.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub async fn explain(
        &self,
        call: &Call,
        asked: impl FnOnce() -> Result<(Subject, Question), Misfit> + Send,
    ) -> Result<Explained, Refusal> {
        let begun = self.begin();
        let _present = self.metrics.inflight();
        let mut known = Known::default();
        let decided = self.within(call.deadline, self.decide(call, asked, true, &mut known)).await;
        let asked = known.question.as_ref();
        let level = known.level.or(asked.map(QuestionFacts::level)).unwrap_or("object");
        let asserted = asked.map(|asked| asked.asserted.clone()).unwrap_or_default();
        let (principal, token_refusal) = (known.subject.principal.clone(), known.subject.token_refusal);
        let answer = self.conclude(call, &begun, known, call.circumstances.clone(), decided).await?;
        Ok(Explained { answer, level, principal, token_refusal, asserted })
    }
}
