//! Why: an answer with what decided it, for callers with the right to ask.

use super::{Call, DecideError, Known, Pdp, Refusal};
use crate::audit::QuestionFacts;
use crate::model::decision::Answer;
use crate::model::entity::EntityUid;
use crate::model::question::{Question, Subject};

/// An answer, and what decided it.
pub struct Explained {
    /// The answer, as `check` gives it.
    pub answer: Answer,
    /// At which level it was asked.
    pub level: &'static str,
    /// The principal, if what was sent makes one.
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
        asked: impl FnOnce() -> Result<(Subject, Question), DecideError> + Send,
    ) -> Result<Explained, Refusal> {
        let begun = self.begin();
        let _present = self.metrics.inflight();
        let mut known = Known::default();
        let decided = self.within(self.left(call), self.decide(call, asked, true, &mut known)).await;
        let asked = known.question.as_ref();
        let level = known.level.or(asked.map(QuestionFacts::level)).unwrap_or("object");
        let asserted = asked.map(|asked| asked.asserted.clone()).unwrap_or_default();
        let token_refusal = known.subject.token_refusal;
        // Whose a refused token is stands in the record. Whoever shows one that is not for it has no right to hear that.
        let principal = known.subject.principal.clone().filter(|_| token_refusal.is_none());
        let answer = self.conclude(call, &begun, known, call.circumstances.clone(), decided).await?;
        Ok(Explained { answer, level, principal, token_refusal, asserted })
    }
}
