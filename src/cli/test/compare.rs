//! A ruling beside what the row expects, difference by difference.

use std::collections::BTreeSet;

use super::rows::Expectation;
use crate::model::decision::{Decision, Ruling};

/// What came of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The policies ruled, or the answer was no before any was asked.
    Ruled(Ruling),
    /// The question is malformed; why, as a service would hear it.
    Invalid(String),
}

/// One thing that is not as expected.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// `decision`, `denial`, `mask`, `refused`, `determining`, `obligations`.
    pub what: &'static str,
    /// As the row has it.
    pub expected: String,
    /// As it came.
    pub got: String,
}

/// All that is not as expected; nothing when the row passes.
#[must_use]
pub fn compare(expect: &Expectation, outcome: &Outcome) -> Vec<Difference> {
    let decided = match outcome {
        Outcome::Ruled(ruling) => Some(ruling.decision),
        Outcome::Invalid(_) => None,
    };
    if decided != expect.decision {
        let expected = expect.decision.map_or("INVALID", decision_name).to_owned();
        return vec![Difference { what: "decision", expected, got: told(outcome) }];
    }
    let Outcome::Ruled(ruling) = outcome else { return Vec::new() };
    let mut differences = Vec::new();
    if let (Some(expected), Some(denial)) = (expect.denial, &ruling.denial)
        && expected != denial.code
    {
        let (expected, got) = (expected.as_str().to_owned(), denial.code.as_str().to_owned());
        differences.push(Difference { what: "denial", expected, got });
    }
    let mask = ruling.fields.iter().flatten().map(ToString::to_string).collect();
    let refused = ruling.denial.iter().flat_map(|denial| &denial.refused_fields).map(ToString::to_string).collect();
    let mut set = |what: &'static str, expected: &Option<BTreeSet<String>>, got: BTreeSet<String>| {
        if let Some(expected) = expected
            && *expected != got
        {
            differences.push(Difference { what, expected: listed(expected), got: listed(&got) });
        }
    };
    set("mask", &expect.mask, mask);
    set("refused", &expect.refused, refused);
    set("determining", &expect.determining, ruling.determining.iter().cloned().collect());
    set("obligations", &expect.obligations, ruling.obligations.iter().cloned().collect());
    differences
}

/// `ALLOW`, `DENY`, `CONDITIONAL`.
#[must_use]
pub fn decision_name(decision: Decision) -> &'static str {
    match decision {
        Decision::Allow => "ALLOW",
        Decision::Deny => "DENY",
        Decision::Conditional => "CONDITIONAL",
    }
}

/// The outcome in a few words: `DENY (NO_PERMIT)`.
#[must_use]
pub fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Invalid(why) => format!("INVALID ({why})"),
        Outcome::Ruled(ruling) => match &ruling.denial {
            Some(denial) => format!("{} ({})", decision_name(ruling.decision), denial.code.as_str()),
            None => decision_name(ruling.decision).to_owned(),
        },
    }
}

fn listed(texts: &BTreeSet<String>) -> String {
    if texts.is_empty() {
        return "none".to_owned();
    }
    texts.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decision::{Denial, DenialCode};
    use crate::model::field_path::FieldPath;

    fn expecting(decision: Option<Decision>) -> Expectation {
        Expectation { decision, denial: None, mask: None, refused: None, determining: None, obligations: None }
    }

    fn set(texts: &[&str]) -> Option<BTreeSet<String>> {
        Some(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn only_what_the_row_names_is_compared_and_that_exactly() {
        let allow = Outcome::Ruled(Ruling {
            decision: Decision::Allow,
            denial: None,
            fields: Some(vec![FieldPath::parse("a").unwrap(), FieldPath::parse("b.c").unwrap()]),
            obligations: vec!["tell".into()],
            determining: vec!["p".into()],
            errors: Vec::new(),
        });
        let deny = Outcome::Ruled(Ruling {
            denial: Some(Denial {
                code: DenialCode::FieldNotGranted,
                refused_fields: vec![FieldPath::parse("role").unwrap()],
            }),
            ..Ruling::deny(DenialCode::NoPermit)
        });
        let invalid = Outcome::Invalid("resource.id".into());
        let yes = || expecting(Some(Decision::Allow));
        let no = || expecting(Some(Decision::Deny));
        let table = [
            (yes(), &allow, vec![], "nothing more was asked"),
            (no(), &allow, vec!["decision"], "the other way round"),
            (expecting(None), &invalid, vec![], "malformed, as expected"),
            (no(), &invalid, vec!["decision"], "no decision is not a deny"),
            (expecting(None), &deny, vec!["decision"], "a deny is a decision"),
            (expecting(Some(Decision::Conditional)), &deny, vec!["decision"], "conditional is not deny"),
            (Expectation { mask: set(&["b.c", "a"]), ..yes() }, &allow, vec![], "a set has no order"),
            (Expectation { mask: set(&["a"]), ..yes() }, &allow, vec!["mask"], "one field too many leaks"),
            (Expectation { mask: set(&["a", "b.c", "d"]), ..yes() }, &allow, vec!["mask"], "one too few"),
            (
                Expectation { determining: set(&[]), obligations: set(&["call"]), ..yes() },
                &allow,
                vec!["determining", "obligations"],
                "each by itself",
            ),
            (Expectation { denial: Some(DenialCode::Forbidden), ..no() }, &deny, vec!["denial"], "another code"),
            (Expectation { refused: set(&["role"]), ..no() }, &deny, vec![], "the refused fields"),
            (Expectation { refused: set(&["plan"]), ..no() }, &deny, vec!["refused"], "another field"),
        ];
        for (expect, outcome, expected, why) in table {
            let got: Vec<&str> = compare(&expect, outcome).iter().map(|difference| difference.what).collect();
            assert_eq!(got, expected, "{why}");
        }
    }
}
