//! Whether a call may come in: whose it is, and whether there is room for it.

use std::time::Duration;

use super::{Call, DecideError, Known, Pdp};
use crate::admission::Knocked;
use crate::caller::Caller;
use crate::telemetry::traces;
use crate::tls::peer::Peer;

impl Pdp {
    /// Who is calling, from the connection alone.
    pub(super) fn admit(&self, call: &Call, known: &mut Known) -> Result<Caller, DecideError> {
        let Some(peer) = &call.peer else { return Err(DecideError::NotIdentified("NO_CERTIFICATE")) };
        known.caller.address = Some(peer.address());
        known.caller.certificate_sha256 = Some(peer.certificate_sha256_hex().to_owned());
        let now = self.clock.now();
        known.caller.name = peer.name(now).ok().map(|_| peer.name_text().to_owned());
        if self.revocations.certificate_is_revoked(peer.certificate_sha256()) {
            return Err(DecideError::NotIdentified("CERTIFICATE_REVOKED"));
        }
        let stage = self.stage("admit", !known.of_batch);
        let admitted = self.callers.admit(peer, now).map_err(DecideError::from);
        stage.end(admitted.as_ref().map_or_else(DecideError::reason, |_| "admitted"));
        let caller = admitted?;
        traces::called_by(caller.label());
        known.caller.label = Some(caller.label().to_owned());
        Ok(caller)
    }

    /// For a call that nobody has read: whether it is let in. `None`: it is of nobody whom we know, and told so further in.
    pub fn knock(&self, peer: &Peer, due: Option<Duration>) -> Option<Result<Knocked, DecideError>> {
        if self.revocations.certificate_is_revoked(peer.certificate_sha256()) {
            return None;
        }
        let caller = self.callers.admit(peer, self.clock.now()).ok()?;
        Some(self.admission.knock(&caller, due).map_err(DecideError::from))
    }

    /// A seat for this call, asked for once however many ways the call goes.
    pub(super) fn seat(&self, caller: &Caller, call: &Call, known: &mut Known) -> Result<(), DecideError> {
        let enter = || match call.knocked {
            Some(knocked) => self.admission.enter_after(knocked, caller, call.due),
            None => self.admission.enter(caller, call.due),
        };
        match known.seat.get_or_insert_with(enter) {
            Ok(_) => Ok(()),
            Err(away) => Err((*away).into()),
        }
    }
}
