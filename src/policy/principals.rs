//! Principals as the policies see them, worked out once for each verified token and not for each of its questions.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use cedar_policy_core::ast::Entity;

use super::request::SubjectData;
use crate::model::entity::{RawEntity, RawRecord, RawValue};

/// Principals that are kept at most.
const PLACES: usize = 1024;
/// What a principal says of itself may be so long; longer ones are worked out each time.
const BYTES: usize = 4 * 1024;
/// And so many may stand above it.
const ANCESTORS: usize = 64;

/// The principals of tokens, for one bundle. Each has one place where it can be, which it takes from whoever was there before:
/// nothing is locked, and nothing grows.
#[derive(Debug)]
pub(super) struct Principals {
    places: Box<[ArcSwapOption<Known>]>,
}

#[derive(Debug)]
struct Known {
    /// Whose entity it is. Held, so that nothing else can be taken for it.
    raw: Arc<RawEntity>,
    entity: Arc<Entity>,
}

impl Default for Principals {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| ArcSwapOption::empty()).collect() }
    }
}

impl Principals {
    /// The entity of a principal that was put here: this very one, and not one that says the same.
    pub(super) fn find(&self, subject: &SubjectData) -> Option<Arc<Entity>> {
        let known = self.place(subject)?.load();
        known
            .as_ref()
            .filter(|known| Arc::ptr_eq(&known.raw, &subject.principal))
            .map(|known| Arc::clone(&known.entity))
    }

    /// Keeps the entity of a principal that a token tells of: others come with each question anew.
    pub(super) fn put(&self, subject: &SubjectData, entity: &Arc<Entity>) {
        if let Some(place) =
            self.place(subject).filter(|_| is_short(&subject.principal) && entity.ancestors().count() <= ANCESTORS)
        {
            place.store(Some(Arc::new(Known { raw: Arc::clone(&subject.principal), entity: Arc::clone(entity) })));
        }
    }

    fn place(&self, subject: &SubjectData) -> Option<&ArcSwapOption<Known>> {
        subject.token.as_ref()?;
        // Allocations are aligned, and of a size: the low bits say nothing.
        let address = Arc::as_ptr(&subject.principal) as usize;
        self.places.get((address >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & (PLACES - 1))
    }
}

fn is_short(principal: &RawEntity) -> bool {
    let parents: usize = principal.parents.iter().map(|parent| parent.id.as_str().len() + 64).sum();
    parents + bytes(&principal.attributes) <= BYTES
}

fn bytes(record: &RawRecord) -> usize {
    record.iter().map(|(name, value)| name.len() + 64 + bytes_of(value)).sum()
}

fn bytes_of(value: &RawValue) -> usize {
    match value {
        RawValue::Bool(_) | RawValue::Number(_) | RawValue::Integer(_) => 0,
        RawValue::Text(text) => text.len(),
        RawValue::List(items) => items.iter().map(|item| 64 + bytes_of(item)).sum(),
        RawValue::Record(record) => bytes(record),
    }
}
