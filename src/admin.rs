//! What operators do, top to bottom: as [`pdp`](crate::pdp) for decisions.
//!
//! ```text
//! operator = admit(peer)              mTLS chain of the admin authorities -> one name -> one of the operators
//! room in his ten calls a second      whatever he calls
//! right    = operator.may(method)     one by one; nobody may everything by a word
//! change   = asked()                  read only now, and checked whole before anything happens
//! room     = revocations.make_room()  so that what is recorded can take effect
//! recorded                            who, what, until when, why; or nothing happens
//! written  into the file, on the disk; or it does not take effect, and that is recorded too
//! in force
//! ```
//!
//! A call that is refused is recorded once. Knows nothing of gRPC, and of tokens no more than the issuers' names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::audit::{AdminEntry, AuditError, CallerFacts, ChangeFacts, Entry, Trail};
use crate::clock::SharedClock;
use crate::config::{AdminMethod, CallerName, Operator, TrustedIssuer};
use crate::model::ids::{DecisionId, RequestId};
use crate::revocation::file::RevocationFile;
use crate::revocation::{Place, Revocation, Revocations};
use crate::telemetry::metrics::Metrics;
use crate::tls::peer::Peer;

mod change;
mod error;
mod pace;

pub use change::{Asked, AskedFor};
pub use error::{AdminError, AdminRefusal};

use change::Checks;
use pace::Pace;

/// Everything an operator's call needs. Built once by `app.rs`.
pub struct Admin {
    operators: HashMap<CallerName, Seat>,
    checks: Checks,
    revocations: Arc<Revocations>,
    file: Option<Arc<RevocationFile>>,
    trail: Trail,
    metrics: Metrics,
    clock: SharedClock,
    /// One change at a time: the order of records is the order of changes.
    changing: tokio::sync::Mutex<()>,
}

/// What [`Admin`] is built from.
pub struct Parts {
    /// What is revoked.
    pub revocations: Arc<Revocations>,
    /// Where it is written, if anywhere.
    pub file: Option<Arc<RevocationFile>>,
    /// Where it is recorded.
    pub trail: Trail,
    /// Counted.
    pub metrics: Metrics,
    /// Time.
    pub clock: SharedClock,
}

/// An operator, and how fast he goes.
struct Seat {
    operator: Operator,
    pace: Mutex<Pace>,
}

/// A call as it came in.
pub struct AdminCall {
    /// Which method; `None`: there is no such.
    pub method: Option<AdminMethod>,
    /// The connection's other end, when the handshake gave one.
    pub peer: Option<Arc<Peer>>,
    /// The operator's name for the request.
    pub request_id: Option<RequestId>,
}

/// What is done, and the id of its record.
pub struct Done<T> {
    /// Names the record.
    pub call_id: DecisionId,
    /// What came of it.
    pub outcome: T,
}

/// A page of what is revoked.
pub struct Page {
    /// In order.
    pub revocations: Vec<Revocation>,
    /// Whether there are more.
    pub more: bool,
    /// How many there are in all.
    pub total: usize,
}

/// What is learned on the way, for the record.
#[derive(Default)]
struct Known {
    operator: CallerFacts,
    change: Option<ChangeFacts>,
}

struct Begun {
    id: DecisionId,
    time: SystemTime,
}

impl Admin {
    /// Takes the checked enrolment; its names are unique. Ids of subjects have `id_bytes` at most, as in tokens.
    #[must_use]
    pub fn new(operators: &[Operator], issuers: &[TrustedIssuer], id_bytes: usize, parts: Parts) -> Arc<Self> {
        let Parts { revocations, file, trail, metrics, clock } = parts;
        let seat = |operator: &Operator| Seat { operator: operator.clone(), pace: Mutex::default() };
        Arc::new(Self {
            operators: operators.iter().map(|operator| (operator.name.clone(), seat(operator))).collect(),
            checks: Checks::new(issuers, id_bytes),
            revocations,
            file,
            trail,
            metrics,
            clock,
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// Revokes what is `asked` for. It is read only once the operator is known to be entitled to ask. Once it is being
    /// recorded it is carried through, whether or not the operator waits for it.
    ///
    /// # Errors
    /// Why nothing was revoked; recorded. [`AdminRefusal`] carries the id of the record.
    pub async fn revoke(
        self: &Arc<Self>,
        call: &AdminCall,
        asked: impl FnOnce() -> Asked + Send,
    ) -> Result<Done<Revocation>, AdminRefusal> {
        let (begun, mut known) = (self.begin(), Known::default());
        let checked = self.entitled(call, &mut known).and_then(|()| self.checks.check(asked(), begun.time));
        let change = match checked {
            Ok(change) => change,
            Err(error) => return Err(self.refuse(call, begun, known, error).await),
        };
        known.change = Some(change.facts);
        let admin = Arc::clone(self);
        let carried = AdminCall { method: call.method, peer: None, request_id: call.request_id.clone() };
        let carrying = tokio::spawn(async move {
            match admin.carry_out(&carried, &begun, &known, change.revocation).await {
                Ok(outcome) => {
                    admin.count(&carried, "OK");
                    Ok(Done { call_id: begun.id, outcome })
                }
                Err(error) => Err(admin.refuse(&carried, begun, known, error).await),
            }
        });
        match carrying.await {
            Ok(done) => done,
            // A fault of ours ended it somewhere; that has to be on record too.
            Err(_) => Err(self.record_refused(call, AdminError::Panicked).await),
        }
    }

    /// In this order, so that nothing is in force that is not recorded, and nothing answered that is not in force.
    async fn carry_out(
        &self,
        call: &AdminCall,
        begun: &Begun,
        known: &Known,
        revocation: Revocation,
    ) -> Result<Revocation, AdminError> {
        let _one_at_a_time = self.changing.lock().await;
        let room = self.revocations.make_room(revocation).map_err(AdminError::Full)?;
        self.record(call, begun, known, None).await.map_err(AdminError::Audit)?;
        if let Some(file) = self.file.clone() {
            match tokio::task::spawn_blocking(move || file.append(&revocation)).await {
                Ok(written) => written.map_err(AdminError::NotStored)?,
                Err(_) => return Err(AdminError::Panicked),
            }
        }
        Ok(room.fill())
    }

    /// A page of what is revoked, after `after()`.
    ///
    /// # Errors
    /// As [`revoke`](Self::revoke).
    pub async fn list(
        &self,
        call: &AdminCall,
        asked: impl FnOnce() -> Result<(Option<Place>, usize), AdminError> + Send,
    ) -> Result<Done<Page>, AdminRefusal> {
        let (begun, mut known) = (self.begin(), Known::default());
        let asked = self.entitled(call, &mut known).and_then(|()| asked());
        let (after, size) = match asked {
            Ok(asked) => asked,
            Err(error) => return Err(self.refuse(call, begun, known, error).await),
        };
        let (revocations, more) = self.revocations.page(after, size);
        let page = Page { revocations, more, total: self.revocations.len() };
        match self.record(call, &begun, &known, None).await {
            Ok(()) => {
                self.count(call, "OK");
                Ok(Done { call_id: begun.id, outcome: page })
            }
            Err(error) => Err(self.refuse(call, begun, known, AdminError::Audit(error)).await),
        }
    }

    /// Puts a call on record that never came as far as a method: there is none, or its message can't be read.
    pub async fn record_refused(&self, call: &AdminCall, error: AdminError) -> AdminRefusal {
        let (begun, mut known) = (self.begin(), Known::default());
        // A stranger is told no more than that he is one.
        let error = match self.admit(call, &mut known) {
            Err(stranger) => stranger,
            Ok(seat) => match seat.pace.lock().step(self.clock.monotonic()) {
                Err(wait) => AdminError::TooFast(wait),
                Ok(()) => error,
            },
        };
        self.refuse(call, begun, known, error).await
    }

    /// Who calls, from the connection alone.
    fn admit(&self, call: &AdminCall, known: &mut Known) -> Result<&Seat, AdminError> {
        let Some(peer) = &call.peer else { return Err(AdminError::NotIdentified("NO_CERTIFICATE")) };
        known.operator.address = Some(peer.address());
        known.operator.certificate_sha256 = Some(peer.certificate_sha256_hex().to_owned());
        let name = peer.name(self.clock.now()).map_err(|error| AdminError::NotIdentified(error.reason()))?;
        known.operator.name = Some(name.to_string());
        if self.revocations.certificate_is_revoked(peer.certificate_sha256()) {
            return Err(AdminError::NotIdentified("CERTIFICATE_REVOKED"));
        }
        let seat = self.operators.get(name).ok_or(AdminError::NotEnrolled)?;
        known.operator.label = Some(seat.operator.label.clone());
        Ok(seat)
    }

    /// Whether whoever calls may call this, now.
    fn entitled(&self, call: &AdminCall, known: &mut Known) -> Result<(), AdminError> {
        let seat = self.admit(call, known)?;
        seat.pace.lock().step(self.clock.monotonic()).map_err(AdminError::TooFast)?;
        let method = call.method.ok_or(AdminError::NoSuchMethod)?;
        if seat.operator.may.contains(&method) { Ok(()) } else { Err(AdminError::NotEntitled) }
    }

    async fn refuse(&self, call: &AdminCall, begun: Begun, known: Known, error: AdminError) -> AdminRefusal {
        self.count(call, error.status());
        if let Err(audit) = self.record(call, &begun, &known, Some(&error)).await {
            return AdminRefusal { id: begun.id, error: AdminError::Audit(audit) };
        }
        AdminRefusal { id: begun.id, error }
    }

    async fn record(
        &self,
        call: &AdminCall,
        begun: &Begun,
        known: &Known,
        error: Option<&AdminError>,
    ) -> Result<(), AuditError> {
        let entry = AdminEntry {
            call_id: begun.id,
            time: begun.time,
            operation: operation(call),
            operator: known.operator.clone(),
            request_id: call.request_id.clone(),
            change: known.change.clone(),
            failure: error.map(AdminError::failure),
        };
        self.trail.write(&Entry::Admin(Box::new(entry))).await
    }

    fn count(&self, call: &AdminCall, status: &'static str) {
        self.metrics.admin_call(operation(call), status);
    }

    fn begin(&self) -> Begun {
        let time = self.clock.now();
        Begun { id: DecisionId::mint(time), time }
    }
}

fn operation(call: &AdminCall) -> &'static str {
    call.method.map_or("unknown", AdminMethod::as_str)
}
