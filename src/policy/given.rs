//! Rulings that were given before. A bundle gives few that differ, however many questions it answers: each is made once, and
//! whoever is told the same is told it by the same copy.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::compile::FieldSet;
use crate::model::decision::{DenialCode, Ruling};

/// A ruling, perhaps shared with other questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruled {
    ruling: Arc<Ruling>,
    is_kept: bool,
}

impl Ruled {
    /// One that is for this question alone.
    pub(super) fn alone(ruling: Ruling) -> Self {
        Self { ruling: Arc::new(ruling), is_kept: false }
    }

    /// Whether the bundle keeps it anyway, so that keeping it once more takes no room.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// The ruling.
    #[must_use]
    pub fn into_shared(self) -> Arc<Ruling> {
        self.ruling
    }
}

impl Deref for Ruled {
    type Target = Ruling;

    fn deref(&self) -> &Ruling {
        &self.ruling
    }
}

/// All that a ruling without errors is made of.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Grounds {
    /// Why it denies, if it does.
    pub(super) denial: Option<DenialCode>,
    /// The policies that settled it, by position, ascending.
    pub(super) policies: Vec<usize>,
    /// The number of the plan and what is granted of it, with the subtrees that are granted by name.
    pub(super) fields: Option<(usize, FieldSet, Vec<usize>)>,
}

/// Parts of [`Given`]. What is added to one does not copy the others.
const PARTS: usize = 16;
/// Rulings that each part keeps at most. What comes later is made anew each time.
const KEPT: usize = 256;
/// A longer one is made anew as well, so that what is kept is bounded in bytes.
const LARGEST: usize = 4 * 1024;

type Part = HashMap<Arc<Grounds>, Arc<Ruling>>;

/// The rulings of one bundle. Reading takes no lock; what is new is put into a copy, which happens [`PARTS`] times [`KEPT`]
/// times at most.
#[derive(Debug, Default)]
pub(super) struct Given {
    parts: [ArcSwap<Part>; PARTS],
}

impl Given {
    /// The ruling on these grounds, or what `make` makes of them.
    pub(super) fn get_or(&self, grounds: Grounds, make: impl FnOnce(&Grounds) -> Ruling) -> Ruled {
        let Some(part) = self.parts.get(grounds.part()) else { return Ruled::alone(make(&grounds)) };
        let known = part.load();
        if let Some(ruling) = known.get(&grounds) {
            return Ruled { ruling: Arc::clone(ruling), is_kept: true };
        }
        let ruling = Arc::new(make(&grounds));
        if known.len() >= KEPT || ruling.bytes() > LARGEST {
            return Ruled { ruling, is_kept: false };
        }
        drop(known);
        let (grounds, mut kept) = (Arc::new(grounds), Arc::clone(&ruling));
        part.rcu(|known| {
            let mut more = Part::clone(known);
            // Whoever made the same at the same time may have come first; and there may be no room any more.
            if let Some(first) = more.get(&grounds) {
                kept = Arc::clone(first);
            } else if more.len() < KEPT {
                more.insert(Arc::clone(&grounds), Arc::clone(&ruling));
                kept = Arc::clone(&ruling);
            }
            more
        });
        let is_kept = part.load().get(&grounds).is_some_and(|known| Arc::ptr_eq(known, &kept));
        Ruled { ruling: kept, is_kept }
    }
}

impl Grounds {
    /// Spreads them over the parts.
    fn part(&self) -> usize {
        let policies = self.policies.iter().fold(0, |sum: usize, at| sum.wrapping_mul(31).wrapping_add(*at));
        let fields = self.fields.as_ref().map_or(0, |(plan, granted, _)| {
            granted.words().iter().fold(*plan, |sum, word| sum.wrapping_mul(31) ^ word.count_ones() as usize)
        });
        policies.wrapping_add(fields) % PARTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decision::Decision;

    fn grounds(policy: usize) -> Grounds {
        Grounds { denial: None, policies: vec![policy], fields: None }
    }

    fn ruling(grounds: &Grounds) -> Ruling {
        let determining = grounds.policies.iter().map(ToString::to_string).collect();
        Ruling { decision: Decision::Allow, denial: None, determining, ..Ruling::deny(DenialCode::NoPermit) }
    }

    #[test]
    fn what_rests_on_the_same_grounds_is_one_ruling() {
        let given = Given::default();
        let first = given.get_or(grounds(7), ruling);
        let again = given.get_or(grounds(7), |_| unreachable!("it is known"));
        assert!(first.is_kept() && again.is_kept());
        assert!(Arc::ptr_eq(&first.into_shared(), &again.into_shared()));
        let with = |fields| Grounds { fields, ..grounds(7) };
        let differing = [
            Grounds { denial: Some(DenialCode::Forbidden), ..grounds(7) },
            with(Some((1, FieldSet::all(3), vec![]))),
            with(Some((2, FieldSet::all(3), vec![]))),
            with(Some((1, FieldSet::all(2), vec![]))),
            with(Some((1, FieldSet::all(3), vec![0]))),
            grounds(8),
        ];
        for other in differing {
            let mut made = 0;
            let shown = format!("{other:?}");
            given.get_or(other, |grounds| {
                made += 1;
                ruling(grounds)
            });
            assert_eq!(made, 1, "{shown}");
        }
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for_and_all_are_right() {
        let given = Given::default();
        for round in 0..2 {
            let mut kept = 0;
            for policy in 0..10_000 {
                let ruled = given.get_or(grounds(policy), ruling);
                assert_eq!(ruled.determining, [policy.to_string()], "round {round}");
                kept += usize::from(ruled.is_kept());
            }
            assert_eq!(kept, PARTS * KEPT, "round {round}");
        }
    }

    #[test]
    fn a_long_ruling_is_for_its_question_alone() {
        let given = Given::default();
        for (length, kept) in [(1_000, true), (LARGEST, false)] {
            let ruled = given.get_or(grounds(length), |_| Ruling {
                determining: vec!["x".repeat(length)],
                ..Ruling::deny(DenialCode::Forbidden)
            });
            assert_eq!(ruled.is_kept(), kept, "{length}");
        }
        let all: usize = given.parts.iter().map(|part| part.load().len()).sum();
        assert_eq!(all, 1);
    }

    #[test]
    fn whoever_comes_at_the_same_time_is_told_the_same() {
        let given = Given::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for policy in 0..2_000 {
                        let ruled = given.get_or(grounds(policy % 500), ruling);
                        assert_eq!(ruled.determining, [(policy % 500).to_string()]);
                        assert!(ruled.is_kept());
                    }
                });
            }
        });
        let all: usize = given.parts.iter().map(|part| part.load().len()).sum();
        assert_eq!(all, 500);
    }
}
