//! Maps by names and entities that are looked into for every question.
//!
//! Entities have long names, and SipHash took a tenth of a decision. What is kept here comes from the bundle, or is as little as
//! one question may hold, and every bundle has seeds of its own: nobody can fill a map with keys that meet.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy_core::ast::{EntityType, EntityUID};
use foldhash::fast::RandomState;

/// By an entity that others hold as well.
pub(super) type ByShared<V> = HashMap<Arc<EntityUID>, V, RandomState>;
/// By entity.
pub(super) type ByUid<V> = HashMap<EntityUID, V, RandomState>;
/// By the type of entities.
pub(super) type ByType<V> = HashMap<EntityType, V, RandomState>;
/// By name, as callers write it.
pub(super) type ByName<V> = HashMap<String, V, RandomState>;
