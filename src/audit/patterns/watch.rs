//! Between records and the detector: what is on record is looked at soon after, by a thread of its own.
//!
//! An answer that waits for nothing but its record must not wait for this: it leaves a few words in a bounded list and
//! goes. The thread looks at what has come together every 50 ms. When the list is full, what comes is not looked at, and
//! counted. What is found goes through the same queue as every record.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Alert, Asked, Detector, Ending, Event, What};
use crate::audit::{AlertEntry, CallEntry, Outcome};
use crate::clock::SharedClock;
use crate::config::{Pattern, PatternsConfig, PresentGrant};
use crate::model::decision::Decision;
use crate::model::ids::DecisionId;
use crate::token::TokenFacts;

/// Where alerts go.
pub(in crate::audit) trait Told: Send + Sync + 'static {
    /// Puts an alert on record, without waiting for it.
    fn found(&self, pattern: Pattern, entry: AlertEntry);
    /// So many events were not looked at.
    fn missed(&self, count: u64);
}

/// Events that wait to be looked at, at most.
const WAITING: usize = 20_000;
/// What comes within this is looked at together.
const GATHERED: Duration = Duration::from_millis(50);
/// Of an id or action that somebody sent, in bytes. What is longer is cut, so that no event is large.
const MAX_WORD: usize = 512;

/// Looks at what is on record.
#[derive(Debug)]
pub(in crate::audit) struct Watch {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    detector: Mutex<Detector>,
    presenters: Vec<(String, PresentGrant)>,
    clock: SharedClock,
}

#[derive(Debug, Default)]
struct Waiting {
    seen: Vec<Seen>,
    missed: u64,
    asleep: bool,
    closing: bool,
}

/// What the detector needs of a call.
#[derive(Debug)]
struct Seen {
    at: Duration,
    decision_id: DecisionId,
    facts: Arc<Facts>,
}

/// Of that, what is the same each time that the same is asked.
#[derive(Debug)]
pub(in crate::audit) struct Facts {
    principal: Option<String>,
    caller: Option<String>,
    address: Option<IpAddr>,
    action: String,
    resource_type: String,
    id: Option<String>,
    ending: Ending,
    reason: Option<&'static str>,
    of_several: bool,
    token: Option<String>,
}

impl Watch {
    /// Nothing when nothing is looked for.
    pub(in crate::audit) fn new(config: &PatternsConfig, clock: SharedClock) -> Option<Arc<Self>> {
        (!config.off).then(|| {
            Arc::new(Self {
                waiting: Mutex::default(),
                wake: Condvar::new(),
                detector: Mutex::new(Detector::new(config.clone())),
                presenters: config.presenters.clone(),
                clock,
            })
        })
    }

    /// Starts the thread. It ends when [`close`](Self::close) is called or whoever is told is gone.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(in crate::audit) fn start<T: Told>(self: &Arc<Self>, told: Weak<T>) -> io::Result<()> {
        let watch = Arc::clone(self);
        thread::Builder::new().name("patterns".to_owned()).spawn(move || watch.run(&told)).map(drop)
    }

    /// Leaves word of a call whose answer is about to go.
    pub(in crate::audit) fn tell(&self, call: &CallEntry) {
        // What would be decided is asked by operators who look for a mistake in a policy.
        if call.operation == "Explain" {
            return;
        }
        // Not made for nothing, and not under the lock.
        if self.waiting.lock().seen.len() >= WAITING {
            self.missed();
            return;
        }
        self.tell_of([(call.decision_id, Arc::new(self.facts(call)))]);
    }

    /// Leaves word of calls that are like others before.
    pub(in crate::audit) fn tell_of(&self, calls: impl IntoIterator<Item = (DecisionId, Arc<Facts>)>) {
        let at = self.clock.monotonic();
        let mut waiting = self.waiting.lock();
        for (decision_id, facts) in calls {
            if waiting.seen.len() >= WAITING {
                waiting.missed += 1;
            } else {
                waiting.seen.push(Seen { at, decision_id, facts });
            }
        }
        let asleep = std::mem::take(&mut waiting.asleep);
        drop(waiting);
        if asleep {
            self.wake.notify_one();
        }
    }

    fn missed(&self) {
        self.waiting.lock().missed += 1;
    }

    /// Looks at everything that waits.
    pub(in crate::audit) fn look(&self, told: &impl Told) {
        // Before the list is taken: whoever looks next finds later events.
        let mut detector = self.detector.lock();
        let (seen, missed) = {
            let mut waiting = self.waiting.lock();
            (std::mem::take(&mut waiting.seen), std::mem::take(&mut waiting.missed))
        };
        if missed > 0 {
            told.missed(missed);
        }
        for seen in &seen {
            for alert in detector.observe(&seen.event()) {
                told.found(alert.pattern, AlertEntry { time: self.clock.now(), alert });
            }
        }
    }

    /// Ends the thread.
    pub(in crate::audit) fn close(&self) {
        self.waiting.lock().closing = true;
        self.wake.notify_one();
    }

    fn run(&self, told: &Weak<impl Told>) {
        loop {
            {
                let mut waiting = self.waiting.lock();
                while waiting.seen.is_empty() && !waiting.closing {
                    waiting.asleep = true;
                    self.wake.wait(&mut waiting);
                }
                // Nobody wakes it now but whoever closes.
                waiting.asleep = false;
                if !waiting.closing {
                    let _ = self.wake.wait_for(&mut waiting, GATHERED);
                }
                if waiting.closing {
                    return;
                }
            }
            let Some(told) = told.upgrade() else { return };
            self.look(told.as_ref());
        }
    }

    /// What is looked at of this call, and of every one like it.
    pub(in crate::audit) fn facts(&self, call: &CallEntry) -> Facts {
        let (ending, reason) = match &call.outcome {
            Outcome::Decided { ruling, .. } => match ruling.decision {
                Decision::Allow | Decision::Conditional => (Ending::Allowed, None),
                Decision::Deny => (Ending::Denied, ruling.denial.as_ref().map(|denial| denial.code.as_str())),
            },
            Outcome::Refused { reason, .. } | Outcome::Failed { reason, .. } => (Ending::Refused, Some(*reason)),
        };
        let anonymous = call.subject.kind == Some("anonymous");
        let asked = call.question.as_ref();
        Facts {
            principal: call.subject.principal.as_ref().filter(|_| !anonymous).map(|uid| word(&uid.to_string())),
            caller: call.caller.label.as_deref().or(call.caller.name.as_deref()).map(word),
            // The caller's own address is a service's: everybody whom it serves would be one.
            address: call.subject.client_address,
            action: asked.map(|asked| word(&asked.action)).unwrap_or_default(),
            resource_type: asked.map(|asked| word(&asked.resource_type)).unwrap_or_default(),
            id: asked.and_then(|asked| asked.resource_id.as_deref()).map(word),
            ending,
            reason,
            of_several: call.circumstances.batch.is_some_and(|batch| batch.of > 1),
            token: call.subject.token.as_deref().and_then(|token| self.token(call.caller.label.as_deref(), token)),
        }
    }

    /// What names the token, unless it may come from this caller and from another: `presents_for` says so.
    fn token(&self, caller: Option<&str>, token: &TokenFacts) -> Option<String> {
        let (issuer, party) = match token.actors.first() {
            Some(actor) => (actor.issuer.as_ref().unwrap_or(&token.issuer), Some(&actor.subject)),
            None => (&token.issuer, token.client_id.as_ref()),
        };
        let presents = self.presenters.iter().filter(|(name, _)| caller == Some(name)).any(|(_, grant)| match grant {
            PresentGrant::All => true,
            PresentGrant::Only(names) => party.is_some_and(|party| names.names(issuer, party)),
        });
        if presents { None } else { token.id_sha256.clone() }
    }
}

impl Seen {
    fn event(&self) -> Event<'_> {
        let facts = &*self.facts;
        let allowed_object = facts.ending == Ending::Allowed && facts.id.is_some();
        Event {
            at: self.at,
            principal: facts.principal.as_deref(),
            caller: facts.caller.as_deref(),
            address: facts.address,
            decision_id: Some(self.decision_id),
            what: What::Question(Asked {
                action: &facts.action,
                resource_type: &facts.resource_type,
                id: facts.id.as_deref(),
                ending: facts.ending,
                reason: facts.reason,
                records: u64::from(allowed_object),
                of_several: facts.of_several,
                token: facts.token.as_deref(),
                ..Asked::default()
            }),
        }
    }
}

/// At most 512 bytes of it; the end of a cut one tells it from others that begin the same.
fn word(text: &str) -> String {
    if text.len() <= MAX_WORD {
        return text.to_owned();
    }
    let (end, begin) = (text.ceil_char_boundary(text.len() - MAX_WORD / 2), text.floor_char_boundary(MAX_WORD / 2));
    format!("{}..{}", text.get(..begin).unwrap_or_default(), text.get(end..).unwrap_or_default())
}

impl Alert {
    /// How bad it is.
    pub(in crate::audit) fn is_grave(&self) -> bool {
        self.pattern.is_grave()
    }
}
