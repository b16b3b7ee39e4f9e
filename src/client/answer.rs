//! Answers, taken off the wire with suspicion.
//!
//! Whatever is not exactly an allow that this service understands is no access: an unknown decision, an allow without
//! the mask that was asked for or with a wider one, an obligation nobody here knows.

use std::collections::BTreeSet;
use std::time::Duration;

use super::ask::Asked;
use super::mask::Mask;
use crate::model::decision::{Decision, DenialCode};
use crate::model::field_path::FieldPath;
use crate::model::question::FieldSelection;
use crate::proto::v1;

/// What Gatepost decided. Only [`allowed`](Self::allowed) is access.
#[derive(Debug, Clone)]
#[must_use = "an answer that nobody looks at protects nothing"]
pub struct Answer {
    decision: Decision,
    decision_id: String,
    mask: Option<Mask>,
    denial: Option<DenialCode>,
    refused_fields: Vec<FieldPath>,
    obligations: Vec<String>,
    unknown_obligations: Vec<String>,
    determining_policies: Vec<String>,
    policy_revision: String,
    reusable_for: Duration,
}

impl Answer {
    /// Whether this is access: an allow whose every obligation this service said it
    /// [understands](super::Builder::understands).
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.decision == Decision::Allow && self.unknown_obligations.is_empty()
    }

    /// The granted fields. Always there when this is access and fields were asked for; never otherwise.
    #[must_use]
    pub fn mask(&self) -> Option<&Mask> {
        self.mask.as_ref().filter(|_| self.allowed())
    }

    /// What Gatepost said, for records; [`allowed`](Self::allowed) is what counts.
    #[must_use]
    pub fn decision(&self) -> Decision {
        self.decision
    }

    /// Why not, with a deny. `None` also for a code younger than this client.
    #[must_use]
    pub fn denial(&self) -> Option<DenialCode> {
        self.denial
    }

    /// Whether the token is what was wrong: the user should sign in again, and learns nothing about the object.
    #[must_use]
    pub fn is_about_the_token(&self) -> bool {
        self.denial.is_some_and(DenialCode::is_about_the_token)
    }

    /// The fields that a strict question was refused.
    pub fn refused_fields(&self) -> impl Iterator<Item = &str> {
        self.refused_fields.iter().map(FieldPath::as_str)
    }

    /// What this service must do with an allow; it said it understands them.
    #[must_use]
    pub fn obligations(&self) -> &[String] {
        &self.obligations
    }

    /// What this service would have had to do and does not understand: the reason why an allow is no access.
    #[must_use]
    pub fn unknown_obligations(&self) -> &[String] {
        &self.unknown_obligations
    }

    /// Names this answer in the audit trail. Belongs into the service's own log.
    #[must_use]
    pub fn decision_id(&self) -> &str {
        &self.decision_id
    }

    /// The policies that settled it, if Gatepost shows them to this service.
    #[must_use]
    pub fn determining_policies(&self) -> &[String] {
        &self.determining_policies
    }

    /// The hash of what decided.
    #[must_use]
    pub fn policy_revision(&self) -> &str {
        &self.policy_revision
    }

    /// For how long the very same question may be answered with this; zero: not at all.
    #[must_use]
    pub fn reusable_for(&self) -> Duration {
        self.reusable_for
    }

    /// Takes a response to what was `asked`, or says how it breaks the contract.
    pub(super) fn take(
        response: v1::CheckResponse,
        asked: &Asked,
        understood: &BTreeSet<String>,
    ) -> Result<Self, &'static str> {
        let decision = match v1::Decision::try_from(response.decision) {
            Ok(v1::Decision::Allow) => Decision::Allow,
            Ok(v1::Decision::Deny) => Decision::Deny,
            Ok(v1::Decision::Conditional) if !asked.of_one_object => Decision::Conditional,
            Ok(v1::Decision::Conditional) => return Err("conditional about one object"),
            Ok(v1::Decision::Unspecified) | Err(_) => return Err("an unknown decision"),
        };
        if response.decision_id.is_empty() {
            return Err("an answer without a decision id");
        }
        let mask = match decision {
            Decision::Allow if response.denial.is_some() => return Err("an allow with a denial"),
            Decision::Allow => mask(response.fields, asked)?,
            Decision::Deny | Decision::Conditional if response.fields.is_some() => {
                return Err("granted fields without an allow");
            }
            Decision::Deny | Decision::Conditional => None,
        };
        let denial = response.denial.unwrap_or_default();
        let obligations: Vec<String> = response.obligations.into_iter().map(|obligation| obligation.id).collect();
        let unknown_obligations = obligations.iter().filter(|id| !understood.contains(*id)).cloned().collect();
        let reusable_for = response.cache.and_then(|hint| hint.max_age).and_then(|age| Duration::try_from(age).ok());
        Ok(Self {
            decision,
            decision_id: response.decision_id,
            mask,
            denial: denial_code(denial.code),
            refused_fields: denial
                .refused_fields
                .map(|mask| mask.paths.iter().filter_map(|path| FieldPath::parse(path).ok()).collect())
                .unwrap_or_default(),
            obligations,
            unknown_obligations,
            determining_policies: response.determining_policies,
            policy_revision: response.policy_revision,
            reusable_for: reusable_for.unwrap_or_default(),
        })
    }
}

/// The mask of an allow: there exactly when fields were asked for, no wider than what was asked, and with all of it when
/// the question was strict.
fn mask(fields: Option<prost_types::FieldMask>, asked: &Asked) -> Result<Option<Mask>, &'static str> {
    let (selection, fields) = match (&asked.fields, fields) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err("granted fields that nobody asked for"),
        (Some(_), None) => return Err("an allow without the granted fields"),
        (Some(selection), Some(fields)) => (selection, fields),
    };
    let granted = Mask::of(&fields.paths).map_err(|_| "an allow with a mask that is none")?;
    if let FieldSelection::Named(paths) = selection {
        let wanted = Mask::of(paths.iter().map(FieldPath::as_str)).map_err(|_| "asked for no fields")?;
        if granted.paths().any(|path| !wanted.permits(path.as_str())) {
            return Err("granted fields that nobody asked for");
        }
        if asked.strict && paths.iter().any(|path| !granted.permits(path.as_str())) {
            return Err("an allow to a strict question without all of its fields");
        }
    }
    Ok(Some(granted))
}

/// The codes stand in the order of the wire's enum, after its zero.
fn denial_code(code: i32) -> Option<DenialCode> {
    let position = usize::try_from(code).ok()?.checked_sub(1)?;
    DenialCode::ALL.get(position).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fields: Option<&[&str]>, strict: bool) -> Asked {
        let fields = fields.map(|paths| match paths {
            [] => FieldSelection::All,
            paths => FieldSelection::Named(paths.iter().map(|path| FieldPath::parse(path).expect("a path")).collect()),
        });
        Asked { fields, strict, of_one_object: true }
    }

    fn allow(fields: Option<&[&str]>) -> v1::CheckResponse {
        v1::CheckResponse {
            decision: v1::Decision::Allow.into(),
            decision_id: "d".to_owned(),
            fields: fields
                .map(|paths| prost_types::FieldMask { paths: paths.iter().map(ToString::to_string).collect() }),
            ..Default::default()
        }
    }

    #[test]
    fn an_allow_counts_only_when_it_answers_what_was_asked() {
        let all: Option<&[&str]> = Some(&[]);
        let table = [
            (allow(None), asked(None, false), true, "no fields asked, none granted"),
            (allow(Some(&["email"])), asked(all, false), true, "a mask for a question about all"),
            (allow(Some(&["a", "b"])), asked(Some(&["a", "b"]), true), true, "strict, and all there"),
            (allow(Some(&["a"])), asked(Some(&["a", "b"]), false), true, "filtered"),
            (allow(None), asked(all, false), false, "no mask where one was asked for"),
            (allow(Some(&[])), asked(all, false), false, "an empty mask reads as everything"),
            (allow(Some(&["*"])), asked(all, false), false, "a wildcard"),
            (allow(Some(&["email", "address.*"])), asked(all, false), false, "a wildcard below"),
            (allow(Some(&["email"])), asked(None, false), false, "an answer to another question"),
            (allow(Some(&["a", "c"])), asked(Some(&["a", "b"]), false), false, "wider than asked"),
            (allow(Some(&["a"])), asked(Some(&["a.b"]), false), false, "the parent of what was asked"),
            (allow(Some(&["a"])), asked(Some(&["a", "b"]), true), false, "strict, and one is missing"),
            (v1::CheckResponse { decision_id: String::new(), ..allow(None) }, asked(None, false), false, "no record"),
            (v1::CheckResponse { decision: 0, ..allow(None) }, asked(None, false), false, "unspecified"),
            (v1::CheckResponse { decision: 4, ..allow(None) }, asked(None, false), false, "from the future"),
            (v1::CheckResponse { decision: -1, ..allow(None) }, asked(None, false), false, "from nowhere"),
            (
                v1::CheckResponse { decision: 3, ..allow(None) },
                asked(None, false),
                false,
                "conditional about an object",
            ),
            (v1::CheckResponse { decision: 2, ..allow(None) }, asked(None, false), false, "a deny"),
            (v1::CheckResponse { decision: 2, ..allow(Some(&["a"])) }, asked(all, false), false, "a deny with fields"),
            (
                v1::CheckResponse { denial: Some(v1::Denial::default()), ..allow(None) },
                asked(None, false),
                false,
                "an allow that also denies",
            ),
        ];
        for (response, asked, expected, why) in table {
            let taken = Answer::take(response, &asked, &BTreeSet::new());
            assert_eq!(taken.is_ok_and(|answer| answer.allowed()), expected, "{why}");
        }
    }

    #[test]
    fn an_obligation_that_nobody_knows_is_no_access() {
        let understood = BTreeSet::from(["notify-owner".to_owned()]);
        let with = |ids: &[&str]| {
            let obligations = ids.iter().map(|id| v1::Obligation { id: (*id).to_owned() }).collect();
            let response = v1::CheckResponse { obligations, ..allow(Some(&["email"])) };
            Answer::take(response, &asked(Some(&[]), false), &understood).expect("an answer")
        };
        assert!(with(&["notify-owner"]).allowed());
        let refused = with(&["notify-owner", "four-eyes"]);
        assert!(!refused.allowed());
        assert!(refused.mask().is_none(), "no access, no fields");
        assert_eq!(refused.unknown_obligations(), ["four-eyes"]);
    }

    #[test]
    fn every_code_of_the_wire_is_known_and_others_are_still_a_deny() {
        for number in 1..=14 {
            let name = v1::DenialCode::try_from(number).expect("a code").as_str_name();
            let code = denial_code(number).expect("a code");
            assert_eq!(format!("DENIAL_CODE_{}", code.as_str()), name);
        }
        assert!(v1::DenialCode::try_from(15).is_err(), "a new code belongs into DenialCode::ALL");
        let future = v1::CheckResponse {
            decision: 2,
            denial: Some(v1::Denial { code: 99, refused_fields: None }),
            ..allow(None)
        };
        let answer = Answer::take(future, &asked(None, false), &BTreeSet::new()).expect("an answer");
        assert!(!answer.allowed() && answer.denial().is_none());
    }
}
