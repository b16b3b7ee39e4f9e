//! Unusual patterns: from what was asked, and how it ended, to what somebody should look at.
//!
//! [`Detector::observe`] is told one event after the other and costs the same whatever came before. For every pattern it
//! remembers no more than `audit.patterns.keys` keys, and of a key no more than some dozens of single things; whatever is
//! larger is counted by a sketch. It is best effort: a key that was forgotten, or an event it was not told of, is an alert
//! that may not come. Records are not best effort, and nothing here delays them.
//!
//! Windows are half-open, `(t - window, t]`, and looked at after each event. A pattern is told once per key and window.
//!
//! Knows the settings. Knows nothing of records: `watch` feeds it from them and puts what it finds on record.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::time::Duration;

use self::sketch::Sketch;
use self::state::{Bounded, Distinct, Numbered, State};
use crate::config::{Exemption, Pattern, PatternsConfig};
use crate::model::ids::DecisionId;

mod sketch;
mod state;
pub(super) mod watch;

#[cfg(test)]
mod tests;

/// Something that happened.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// When, by a clock that is never set back.
    pub at: Duration,
    /// Who asked, as Cedar writes it (`User::"alice"`); `None`: nobody who is known, or anybody.
    pub principal: Option<&'a str>,
    /// The calling service, by the name that the configuration gives it.
    pub caller: Option<&'a str>,
    /// Where the client is, as far as that is known: who it is when nobody else is.
    pub address: Option<IpAddr>,
    /// Names the answer.
    pub decision_id: Option<DecisionId>,
    /// What.
    pub what: What<'a>,
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub enum What<'a> {
    /// A question was answered or refused.
    Question(Asked<'a>),
    /// An account tried to authenticate.
    Authentication {
        /// As it was typed.
        account: &'a str,
        /// Of which tenant.
        tenant: Option<&'a str>,
        /// Whether it came to nothing.
        failed: bool,
    },
    /// A GraphQL request.
    GraphQl {
        /// Its root fields (`login`, `Query.login`), and how often each is there under whatever alias.
        root: &'a [(&'a str, u64)],
    },
    /// A rate limit refused somebody.
    RateLimited,
}

/// A question and how it ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// The action; empty when it was not even read.
    pub action: &'a str,
    /// The resource's type.
    pub resource_type: &'a str,
    /// Its id, when it is about one object.
    pub id: Option<&'a str>,
    /// How it ended.
    pub ending: Ending,
    /// Why, when it was not allowed.
    pub reason: Option<&'a str>,
    /// How many records leave because of it.
    pub records: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Where a list starts; `None`: it is no list.
    pub offset: Option<u64>,
    /// The ids that a list shows.
    pub listed: &'a [&'a str],
    /// One of several that were asked together: a service that filters a list asks so, and what it asks is not what
    /// somebody typed.
    pub of_several: bool,
    /// Whether it is an administrative action, besides those of `audit.patterns.admin_actions`.
    pub admin: bool,
    /// What names the token, unless the caller may present it although it is somebody else's.
    pub token: Option<&'a str>,
}

/// How a question ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// Yes, perhaps with conditions.
    Allowed,
    /// No.
    #[default]
    Denied,
    /// There was no decision, by our choice.
    Refused,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// What it is.
    pub pattern: Pattern,
    /// What `subject` is: `principal`, `address`, `caller`, `account`, `tenant`, `token`, `request`.
    pub key: &'static str,
    /// Whose doing it is. An account or a token does not stand here: what was typed there may be a password.
    pub subject: Option<String>,
    /// The last caller.
    pub caller: Option<String>,
    /// The last client's address.
    pub address: Option<IpAddr>,
    /// The last action.
    pub action: Option<String>,
    /// The resources' type.
    pub resource_type: Option<String>,
    /// Within how long.
    pub window: Duration,
    /// How many there were, of what the pattern counts.
    pub count: u64,
    /// Where it began.
    pub first_id: Option<String>,
    /// The last one.
    pub last_id: Option<String>,
    /// The last answers that count, 10 at most.
    pub samples: Vec<DecisionId>,
}

/// Refusals that tell of an object of somebody else's, or of none. Ours come from policies and don't say which.
const NOT_YOURS: [&str; 6] =
    ["NOT_OWNER", "TENANT_MISMATCH", "RESOURCE_NOT_FOUND", "ID_FORMAT", "NO_PERMIT", "FORBIDDEN"];
/// Refusals that tell of an action that somebody may not do.
const NOT_ALLOWED: [&str; 6] =
    ["ROLE_REQUIRED", "NO_POLICY", "UNKNOWN_ACTION", "NO_PERMIT", "FORBIDDEN", "NOT_APPLICABLE"];
/// Root fields that nobody needs twice in a request.
const SENSITIVE: [&str; 3] = ["login", "resetPassword", "verifyOtp"];
/// How long an id that a list showed may be asked for.
const LISTED: Duration = Duration::from_secs(3600);
/// Bytes that are a bulk export, however many records they are.
const EXPORT_BYTES: u64 = 50 << 20;
/// Different actions that are a probe.
const PROBED_ACTIONS: u64 = 5;
/// Failures of one account at most while many accounts are sprayed: who fails more often is forced.
const SPRAYED: u64 = 3;
/// The share of a type's known objects that is told as bulk reading, in percent, ..
const SHARE_PERCENT: u64 = 50;
/// .. when there are at least so many of them, as a part of the threshold.
const SHARE_OF_THRESHOLD: u64 = 10;
/// Types whose size is estimated at most.
const TYPES: usize = 256;
/// What a caller with a habit asks for at most; one that asks for more has none.
const HABITS: usize = 512;

/// Finds patterns.
#[derive(Debug)]
pub struct Detector {
    config: PatternsConfig,
    /// In the order of [`Pattern::ALL`].
    states: Vec<Bounded<Box<State>>>,
    /// Ids that lists showed.
    listed: Bounded<Distinct>,
    /// How many objects of a type are known, and since when it is.
    types: Bounded<(Option<u64>, Sketch)>,
    hasher: RandomState,
    exempt: Vec<Exempt>,
}

/// Those for whom some patterns are not looked for.
#[derive(Debug)]
struct Exempt {
    principals: HashSet<String>,
    callers: HashSet<String>,
    patterns: u32,
}

/// Whose doing something is: a name and the kind of it.
type Whose<'a> = (&'static str, Option<&'a str>);

/// The terms of a rule for one event. Milliseconds.
struct Terms {
    t: u64,
    window: u64,
    threshold: u64,
}

/// One event, and what is found because of it.
struct Look<'e> {
    event: &'e Event<'e>,
    t: u64,
    asked: Option<&'e Asked<'e>>,
    /// What is not looked for, a bit per pattern.
    exempt: u32,
    found: Vec<Alert>,
}

impl Detector {
    /// Finds what these settings say.
    #[must_use]
    pub fn new(config: PatternsConfig) -> Self {
        Self {
            states: Pattern::ALL.iter().map(|_| Bounded::of(config.keys)).collect(),
            listed: Bounded::of(config.keys.div_ceil(4)),
            types: Bounded::of(TYPES),
            hasher: RandomState::new(),
            exempt: config.exempt.iter().map(Exempt::of).collect(),
            config,
        }
    }

    /// What is unusual now that `event` happened. Mostly nothing.
    pub fn observe(&mut self, event: &Event<'_>) -> Vec<Alert> {
        if self.config.off {
            return Vec::new();
        }
        let asked = if let What::Question(asked) = &event.what { Some(asked) } else { None };
        let mut look = Look { event, t: millis(event.at), asked, exempt: self.exempt(event), found: Vec::new() };
        match event.what {
            What::Question(ref asked) => self.question(asked, &mut look),
            What::Authentication { account, tenant, failed: true } => self.failure(account, tenant, &mut look),
            What::Authentication { failed: false, .. } => {}
            What::GraphQl { root } => self.graphql(root, &mut look),
            What::RateLimited => {
                if let Some((whose, who)) = who(event) {
                    let minute = self.hash(look.t / 60_000);
                    self.judge(
                        Pattern::RateLimitPersist,
                        (whose, Some(&who)),
                        who.as_str(),
                        &mut look,
                        |state, terms| state.distinct.add(terms.t, terms.window, minute),
                    );
                }
            }
        }
        look.found
    }

    /// How many keys are remembered, of all patterns together.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.states.iter().map(Bounded::len).sum::<usize>() + self.listed.len() + self.types.len()
    }

    fn question(&mut self, asked: &Asked<'_>, look: &mut Look<'_>) {
        let event = look.event;
        let denied = asked.ending != Ending::Allowed;
        if denied {
            // A caller that sends bad tokens has nobody to be denied for.
            let whose = event.principal.map(|who| ("principal", who)).or(event.caller.map(|who| ("caller", who)));
            if let Some((kind, who)) = whose {
                self.judge(Pattern::DenialBurst, (kind, Some(who)), (kind, who), look, |state, terms| {
                    state.tally.add(terms.t, terms.window, 1)
                });
            }
        }
        self.habit(asked, look);
        self.token(asked, look);
        if let Some((kind, who)) = who(event) {
            self.of_somebody(asked, (kind, &who), look);
        }
    }

    fn of_somebody(&mut self, asked: &Asked<'_>, (kind, who): (&'static str, &str), look: &mut Look<'_>) {
        let whose = (kind, Some(who));
        let refused_for = |reasons: &[&str]| {
            asked.ending != Ending::Allowed && asked.reason.is_some_and(|reason| reasons.contains(&reason))
        };
        let admin = asked.admin || self.config.admin_actions.iter().any(|pattern| pattern.covers(asked.action));
        let of_type = (who, asked.resource_type);
        if let Some(id) = asked.id {
            let id_hash = self.hash(id);
            if refused_for(&NOT_YOURS) && !asked.of_several {
                self.judge(Pattern::EnumDenied, whose, of_type, look, |state, terms| {
                    state.distinct.add(terms.t, terms.window, id_hash)
                });
                self.judge(Pattern::SlowEnum, whose, who, look, |state, terms| {
                    let refused = state.sketch_in(terms.t, terms.window);
                    refused.add(id_hash);
                    refused.size()
                });
            }
            if !asked.of_several && !admin && asked.offset.is_none() {
                self.sequence(id, id_hash, whose, of_type, look);
            }
            if asked.ending == Ending::Allowed {
                self.bulk_read(id_hash, asked, whose, look);
            }
        }
        if asked.ending == Ending::Allowed && !asked.listed.is_empty() {
            let (key, t) = (self.hash(of_type), look.t);
            for id in asked.listed {
                let id = self.hash(*id);
                self.listed.of_key(key).add(t, millis(LISTED), id);
            }
        }
        if asked.ending == Ending::Allowed && (asked.records > 0 || asked.bytes > 0) {
            self.judge(Pattern::BulkExport, whose, who, look, |state, terms| {
                let records = state.tally.add(terms.t, terms.window, asked.records);
                let bytes = state.bytes.add(terms.t, terms.window, asked.bytes);
                if bytes >= EXPORT_BYTES { records.max(terms.threshold) } else { records }
            });
        }
        if let Some(offset) = asked.offset {
            self.judge(Pattern::PageWalk, whose, (who, asked.action, asked.resource_type), look, |state, terms| {
                if state.offset.replace(offset).is_some_and(|before| before >= offset) {
                    state.tally.clear();
                }
                state.tally.add(terms.t, terms.window, 1)
            });
        }
        if admin && asked.ending == Ending::Allowed {
            self.judge(Pattern::MassAdmin, whose, who, look, |state, terms| state.tally.add(terms.t, terms.window, 1));
        }
        if refused_for(&NOT_ALLOWED) && !asked.of_several {
            let action = self.hash(asked.action);
            self.judge(Pattern::AuthzProbe, whose, who, look, |state, terms| {
                let actions = state.distinct.add(terms.t, terms.window, action);
                let refusals = state.tally.add(terms.t, terms.window, 1);
                if actions >= PROBED_ACTIONS { refusals } else { 0 }
            });
        }
    }

    fn sequence(&mut self, id: &str, id_hash: u64, whose: Whose<'_>, of_type: (&str, &str), look: &mut Look<'_>) {
        let key = self.hash(of_type);
        if self.listed.of_known(key).is_some_and(|shown| shown.holds(look.t, millis(LISTED), id_hash)) {
            return;
        }
        let series = trailing_number(id).map(|(before, number)| (self.hash(before), number));
        self.judge(Pattern::EnumSequential, whose, of_type, look, |state, terms| {
            let numbered = Numbered { last: terms.t, id: id_hash, series };
            state.numbers.add(terms.window, terms.threshold, numbered).unwrap_or(0)
        });
    }

    /// Many objects of a type, or a large share of those that anybody was ever allowed. The share counts once a type has
    /// been watched for a window: before, the first one to come has them all.
    fn bulk_read(&mut self, id_hash: u64, asked: &Asked<'_>, whose: Whose<'_>, look: &mut Look<'_>) {
        let Some(window) = self.config.rule(Pattern::BulkRead).map(|rule| millis(rule.window)) else { return };
        let key = self.hash(asked.resource_type);
        let (since, all) = self.types.of_key(key);
        all.add(id_hash);
        let watched = look.t.saturating_sub(*since.get_or_insert(look.t)) >= window;
        let known = if watched { Some(all.size()) } else { None };
        self.judge(Pattern::BulkRead, whose, (whose.1, asked.resource_type), look, |state, terms| {
            let read = state.sketch_in(terms.t, terms.window);
            read.add(id_hash);
            let read = read.size();
            let much = read >= terms.threshold.div_ceil(SHARE_OF_THRESHOLD)
                && known.is_some_and(|known| read.saturating_mul(100) >= known.saturating_mul(SHARE_PERCENT));
            if much { read.max(terms.threshold) } else { read }
        });
    }

    /// A caller is learnt for a window, and until it has asked often enough. What it asks for then and never did is told
    /// once, and belongs to it from then on.
    fn habit(&mut self, asked: &Asked<'_>, look: &mut Look<'_>) {
        // What is not allowed to a caller is refused whatever it is used to.
        let Some(caller) = look.event.caller.filter(|_| asked.ending != Ending::Refused) else { return };
        let habit = self.hash((asked.action, asked.resource_type));
        self.judge(Pattern::CallerHabit, ("caller", Some(caller)), caller, look, |state, terms| {
            let since = *state.since.get_or_insert(terms.t);
            let learnt = terms.t.saturating_sub(since) >= terms.window && state.asked >= terms.threshold;
            state.asked = state.asked.saturating_add(1);
            let Err(at) = state.known.binary_search(&habit) else { return 0 };
            if state.known.len() >= HABITS {
                return 0;
            }
            state.known.insert(at, habit);
            if !learnt {
                return 0;
            }
            // Every new thing is told, not one in a window.
            state.run.again();
            state.asked.max(terms.threshold)
        });
    }

    fn token(&mut self, asked: &Asked<'_>, look: &mut Look<'_>) {
        let (Some(token), Some(caller)) = (asked.token, look.event.caller) else { return };
        let from = self.hash(caller);
        self.judge(Pattern::TokenShared, ("token", look.event.principal), token, look, |state, terms| {
            state.distinct.add(terms.t, terms.window, from)
        });
    }

    fn failure(&mut self, account: &str, tenant: Option<&str>, look: &mut Look<'_>) {
        let account_hash = self.hash(account);
        self.judge(Pattern::BruteForce, ("account", None), account, look, |state, terms| {
            state.tally.add(terms.t, terms.window, 1)
        });
        if let Some(address) = look.event.address {
            let text = address.to_string();
            self.judge(Pattern::Stuffing, ("address", Some(&text)), address, look, |state, terms| {
                state.distinct.add(terms.t, terms.window, account_hash)
            });
        }
        if let Some(tenant) = tenant {
            self.judge(Pattern::Spraying, ("tenant", Some(tenant)), tenant, look, |state, terms| {
                let (accounts, most) = state.events.add(terms.t, terms.window, account_hash);
                if most <= SPRAYED { accounts } else { 0 }
            });
        }
    }

    fn graphql(&mut self, root: &[(&str, u64)], look: &mut Look<'_>) {
        let name = |field: &str| field.rsplit('.').next().is_some_and(|name| SENSITIVE.contains(&name));
        let Some(most) = root.iter().filter(|(field, _)| name(field)).map(|(_, times)| *times).max() else { return };
        let named = who(look.event);
        let whose = named.as_ref().map_or(("request", None), |(kind, who)| (*kind, Some(who.as_str())));
        self.judge(Pattern::AliasBurst, whose, whose.1, look, |_, _| most);
    }

    /// Lets `measure` note what happened at a key, and tells if that is as many as the rule says.
    fn judge(
        &mut self,
        pattern: Pattern,
        whose: Whose<'_>,
        key: impl Hash,
        look: &mut Look<'_>,
        measure: impl FnOnce(&mut State, &Terms) -> u64,
    ) {
        let action = look.asked.map(|asked| asked.action);
        let Some(rule) = self.config.rule(pattern).filter(|_| look.exempt & bit(pattern) == 0) else { return };
        let Some(threshold) = rule.threshold(action) else { return };
        let (window, terms) = (rule.window, Terms { t: look.t, window: millis(rule.window), threshold });
        let key = self.hash(key);
        let Some(state) = self.states.get_mut(pattern as usize).map(|states| states.of_key(key)) else { return };
        let id = look.asked.and_then(|asked| asked.id);
        state.run.note(terms.t, terms.window, id, look.event.decision_id);
        let count = measure(state, &terms);
        if count < threshold || !state.run.fires(terms.t, terms.window) {
            return;
        }
        let (kind, subject) = whose;
        let owned = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        look.found.push(Alert {
            pattern,
            key: kind,
            subject: subject.map(str::to_owned),
            caller: look.event.caller.map(str::to_owned),
            address: look.event.address,
            action: action.and_then(owned),
            resource_type: look.asked.and_then(|asked| owned(asked.resource_type)),
            window,
            count,
            first_id: state.run.first_id.as_deref().map(str::to_owned),
            last_id: id.map(str::to_owned),
            samples: state.run.samples.iter().copied().collect(),
        });
    }

    fn exempt(&self, event: &Event<'_>) -> u32 {
        let covers = |one: &&Exempt| {
            event.caller.is_some_and(|caller| one.callers.contains(caller))
                || event.principal.is_some_and(|who| one.principals.contains(who))
        };
        self.exempt.iter().filter(covers).fold(0, |bits, one| bits | one.patterns)
    }

    fn hash(&self, of: impl Hash) -> u64 {
        self.hasher.hash_one(of)
    }
}

impl Exempt {
    fn of(one: &Exemption) -> Self {
        Self {
            principals: one.principals.iter().map(ToString::to_string).collect(),
            callers: one.callers.iter().cloned().collect(),
            patterns: one.patterns.iter().fold(0, |bits, pattern| bits | bit(*pattern)),
        }
    }
}

fn bit(pattern: Pattern) -> u32 {
    1 << (pattern as u32)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Who did it: the principal or, when it is nobody who is known, the client's address.
fn who(event: &Event<'_>) -> Option<(&'static str, String)> {
    let principal = event.principal.map(|who| ("principal", who.to_owned()));
    principal.or_else(|| event.address.map(|address| ("address", address.to_string())))
}

/// `o-1001` is 1001 in the series `o-`. Of a very long number the last 18 digits count.
fn trailing_number(id: &str) -> Option<(&str, i64)> {
    const DIGITS: usize = 18;
    let digits = id.bytes().rev().take(DIGITS).take_while(u8::is_ascii_digit).count();
    let (before, number) = id.split_at_checked(id.len() - digits)?;
    Some((before, number.parse().ok()?))
}
