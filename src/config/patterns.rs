//! Settings of unusual patterns: what is counted, from when on it is told, and who is known to do such things.

use std::time::Duration;

use super::{ActionPattern, PresentGrant};
use crate::model::entity::EntityUid;

/// What is looked for. The names are those of records, metrics and the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pattern {
    /// Somebody is refused many different objects of a type.
    EnumDenied,
    /// Somebody asks for one object of a type after the other.
    EnumSequential,
    /// Somebody gets very many records or bytes.
    BulkExport,
    /// Somebody turns page after page of a list.
    PageWalk,
    /// An account fails to authenticate again and again.
    BruteForce,
    /// Many accounts fail to authenticate from one address.
    Stuffing,
    /// Many accounts of a tenant fail to authenticate a few times each.
    Spraying,
    /// One GraphQL request asks for a login (or its like) many times.
    AliasBurst,
    /// Somebody does many administrative things.
    MassAdmin,
    /// Somebody tries out what he may do.
    AuthzProbe,
    /// Somebody keeps running into a rate limit.
    RateLimitPersist,
    /// Somebody, or a caller on nobody's behalf, is denied very often.
    DenialBurst,
    /// Somebody reads many different objects of a type, or a large share of all that are known.
    BulkRead,
    /// A caller asks for an action on a type that it never asked for while it was learnt.
    CallerHabit,
    /// One token comes from several callers.
    TokenShared,
    /// Somebody is refused many different objects in a day, slowly.
    SlowEnum,
}

/// What a pattern comes with.
struct Standard {
    threshold: u64,
    least: u64,
    most: u64,
    window: Duration,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::EnumDenied,
        Self::EnumSequential,
        Self::BulkExport,
        Self::PageWalk,
        Self::BruteForce,
        Self::Stuffing,
        Self::Spraying,
        Self::AliasBurst,
        Self::MassAdmin,
        Self::AuthzProbe,
        Self::RateLimitPersist,
        Self::DenialBurst,
        Self::BulkRead,
        Self::CallerHabit,
        Self::TokenShared,
        Self::SlowEnum,
    ];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EnumDenied => "ENUM_DENIED",
            Self::EnumSequential => "ENUM_SEQUENTIAL",
            Self::BulkExport => "BULK_EXPORT",
            Self::PageWalk => "PAGE_WALK",
            Self::BruteForce => "BRUTE_FORCE",
            Self::Stuffing => "STUFFING",
            Self::Spraying => "SPRAYING",
            Self::AliasBurst => "ALIAS_BURST",
            Self::MassAdmin => "MASS_ADMIN",
            Self::AuthzProbe => "AUTHZ_PROBE",
            Self::RateLimitPersist => "RATE_LIMIT_PERSIST",
            Self::DenialBurst => "DENIAL_BURST",
            Self::BulkRead => "BULK_READ",
            Self::CallerHabit => "CALLER_HABIT",
            Self::TokenShared => "TOKEN_SHARED",
            Self::SlowEnum => "SLOW_ENUM",
        }
    }

    /// The pattern of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pattern| pattern.as_str() == name)
    }

    /// Whether somebody should look at once: these are attacks, the others may be.
    #[must_use]
    pub fn is_grave(self) -> bool {
        matches!(
            self,
            Self::EnumDenied
                | Self::BruteForce
                | Self::Stuffing
                | Self::Spraying
                | Self::AliasBurst
                | Self::TokenShared
                | Self::SlowEnum
        )
    }

    /// The least and the most its threshold may be. Where single things are remembered, that is not many.
    #[must_use]
    pub fn bounds(self) -> (u64, u64) {
        let standard = self.standard();
        (standard.least, standard.most)
    }

    fn standard(self) -> Standard {
        const MANY: u64 = 1_000_000;
        const FEW: u64 = 64;
        let of = |threshold, (least, most), seconds| Standard {
            threshold,
            least,
            most,
            window: Duration::from_secs(seconds),
        };
        match self {
            Self::EnumDenied | Self::BruteForce => of(5, (2, FEW), 60),
            // With fewer than three there is no step that could stay the same.
            Self::EnumSequential => of(10, (3, FEW / 2), 300),
            Self::BulkExport => of(5000, (2, MANY), 600),
            Self::PageWalk => of(20, (2, MANY), 300),
            Self::Stuffing => of(10, (2, FEW), 300),
            Self::Spraying => of(20, (2, FEW), 600),
            Self::AliasBurst => of(5, (2, MANY), 60),
            Self::MassAdmin => of(10, (2, MANY), 60),
            Self::AuthzProbe => of(10, (2, MANY), 300),
            Self::RateLimitPersist => of(3, (2, FEW), 600),
            Self::DenialBurst => of(100, (2, MANY), 60),
            Self::BulkRead => of(1000, (2, MANY), 3600),
            Self::CallerHabit => of(1000, (1, MANY), 24 * 3600),
            Self::TokenShared => of(2, (2, FEW), 3600),
            Self::SlowEnum => of(25, (2, MANY), 24 * 3600),
        }
    }
}

/// What holds for one pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatternRule {
    /// From how many on it is told. Of what, the pattern says.
    pub threshold: u64,
    /// Within how long; of `CALLER_HABIT`, how long a caller is learnt.
    pub window: Duration,
    /// Not looked for.
    pub off: bool,
    /// Exceptions by action; the first that covers it counts.
    pub actions: Vec<PatternException>,
}

impl PatternRule {
    /// What holds for `pattern` when nothing is said.
    #[must_use]
    pub fn standard(pattern: Pattern) -> Self {
        let Standard { threshold, window, .. } = pattern.standard();
        Self { threshold, window, off: false, actions: Vec::new() }
    }

    /// From how many on questions about `action` are told; `None`: never.
    #[must_use]
    pub fn threshold(&self, action: Option<&str>) -> Option<u64> {
        let exception = action.and_then(|action| {
            self.actions.iter().find(|one| one.actions.iter().any(|pattern| pattern.covers(action)))
        });
        match exception {
            Some(exception) => exception.threshold,
            None => (!self.off).then_some(self.threshold),
        }
    }
}

/// What holds for some actions instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatternException {
    /// The actions; at least one.
    pub actions: Vec<ActionPattern>,
    /// The threshold; `None`: not looked for.
    pub threshold: Option<u64>,
}

/// Those who are known to do such things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exemption {
    /// Who asks..
    pub principals: Vec<EntityUid>,
    /// ..or which caller, by the name that the configuration gives it.
    pub callers: Vec<String>,
    /// What is not looked for at them; at least one.
    pub patterns: Vec<Pattern>,
}

/// Unusual patterns.
#[derive(Debug, Clone)]
pub struct PatternsConfig {
    /// Nothing is looked for.
    pub off: bool,
    /// What holds for each, in the order of [`Pattern::ALL`]. What is missing is not looked for.
    pub rules: Vec<PatternRule>,
    /// Those who are known to do such things.
    pub exempt: Vec<Exemption>,
    /// What `MASS_ADMIN` counts.
    pub admin_actions: Vec<ActionPattern>,
    /// How many principals (callers, tokens, ..) are remembered for each pattern. 10 000 when unset.
    pub keys: usize,
    /// Callers, by the name that the configuration gives them, and whose tokens they may present besides their own: such a
    /// token comes from them and from somebody else as it should.
    pub presenters: Vec<(String, PresentGrant)>,
}

impl Default for PatternsConfig {
    fn default() -> Self {
        Self {
            off: false,
            rules: Pattern::ALL.into_iter().map(PatternRule::standard).collect(),
            exempt: Vec::new(),
            admin_actions: Vec::new(),
            keys: 10_000,
            presenters: Vec::new(),
        }
    }
}

impl PatternsConfig {
    /// What holds for `pattern`.
    #[must_use]
    pub fn rule(&self, pattern: Pattern) -> Option<&PatternRule> {
        self.rules.get(pattern as usize)
    }

    /// Lets `rule` hold for `pattern`.
    pub fn set(&mut self, pattern: Pattern, rule: PatternRule) {
        if let Some(slot) = self.rules.get_mut(pattern as usize) {
            *slot = rule;
        }
    }
}
