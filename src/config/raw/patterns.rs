//! `audit.patterns`, as it is written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{RawDuration, RawGrant};

/// `audit.patterns`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawPatterns {
    /// Looks for nothing.
    pub off: bool,
    /// What holds for a pattern, by its name (`ENUM_DENIED`). docs/audit.md has them all, and what holds for each that is
    /// not named here.
    pub rules: BTreeMap<String, RawPatternRule>,
    /// Those who are known to do such things.
    pub exempt: Vec<RawExemption>,
    /// What `MASS_ADMIN` counts: whole ids (`User.delete`) or everything before a dot (`User.*`).
    pub admin_actions: RawGrant,
    /// How many principals (callers, tokens, ..) are remembered for each pattern; 100 to 1000000. Each takes up to 4KiB.
    pub keys: u64,
}

impl Default for RawPatterns {
    fn default() -> Self {
        Self {
            off: false,
            rules: BTreeMap::new(),
            exempt: Vec::new(),
            admin_actions: RawGrant::Only(Vec::new()),
            keys: 10_000,
        }
    }
}

/// One of `audit.patterns.rules`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawPatternRule {
    /// From how many on it is told. Between which bounds, the pattern says.
    pub threshold: Option<u64>,
    /// Within how long; 1s to 720h. Of `CALLER_HABIT`: how long a caller is learnt.
    pub window: Option<RawDuration>,
    /// Not looked for.
    pub off: bool,
    /// Exceptions by action; the first that covers it counts.
    pub actions: Vec<RawPatternException>,
}

/// One of `audit.patterns.rules.NAME.actions`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawPatternException {
    /// The actions it is about: whole ids (`Order.read`) or everything before a dot (`Order.*`); at least one.
    #[schemars(extend("x-required" = true))]
    pub actions: RawGrant,
    /// The threshold for them; exactly one of this and `off`.
    pub threshold: Option<u64>,
    /// Not looked for at them.
    pub off: bool,
}

impl Default for RawPatternException {
    fn default() -> Self {
        Self { actions: RawGrant::Only(Vec::new()), threshold: None, off: false }
    }
}

/// One of `audit.patterns.exempt`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawExemption {
    /// Principals, as Cedar writes them: `Service::"nightly"`. Not of a type of `audit.pseudonyms.ids`.
    pub principals: Vec<String>,
    /// Callers, by `callers[].name`.
    pub callers: Vec<String>,
    /// What is not looked for at them; at least one.
    #[schemars(extend("x-required" = true))]
    pub patterns: Vec<String>,
}
