//! Who the principal is, by what the caller presents or says.

use std::sync::Arc;

use super::{DecideError, Pdp, Who};
use crate::audit::SubjectFacts;
use crate::caller::Caller;
use crate::model::decision::DenialCode;
use crate::model::entity::{EntityId, EntityUid, RawEntity, RawRecord};
use crate::model::question::Subject;
use crate::policy::{CallerData, SubjectData};
use crate::token::{TokenError, TokenFacts, VerifiedToken};

impl Pdp {
    /// Who the principal is. A bad token is a denial to come, no error: it is the user's, not the caller's. `shown`: the
    /// look at a token is a span of its own.
    pub(super) async fn identify(&self, caller: &Caller, subject: Subject, shown: bool) -> Result<Who, DecideError> {
        let kind = Some(subject.kind());
        let caller_data = self.caller_entity(caller);
        let plain = |principal: RawEntity| {
            let principal = Arc::new(principal);
            let facts = SubjectFacts { kind, principal: Some(principal.uid.clone()), ..SubjectFacts::default() };
            let data = SubjectData { principal, token: None, caller: caller_data.clone() };
            Ok(Who { data, facts, issuer: String::new(), ends: None, refusal: None, token: None })
        };
        let bare = |uid: EntityUid| RawEntity { uid, attributes: RawRecord::new(), parents: Vec::new() };
        match subject {
            Subject::Token(text) => {
                let stage = self.stage("token", shown);
                let verified = self.tokens.check(&text, self.clock.now()).await;
                stage.end(verified.as_ref().map_or_else(|error| error.reason(), |_| "verified"));
                Ok(self.presented(caller, kind, verified))
            }
            Subject::ApiKey(key) => {
                if !caller.presents_api_keys() {
                    return Err(DecideError::NotEntitled("PRESENT_API_KEYS"));
                }
                let stage = self.stage("token", shown);
                let verified = self.api_keys.verify(&key, self.clock.now());
                stage.end(verified.as_ref().map_or_else(|refusal| refusal.error.reason(), |_| "verified"));
                let refused = verified.as_ref().err().and_then(|refusal| refusal.known.clone());
                let mut who = self.presented(caller, kind, verified.map_err(|refusal| refusal.error));
                // Whose key was refused is worth a look; it makes no principal all the same.
                who.facts.token = who.facts.token.or(refused);
                who.facts.client_address = key.client_address;
                Ok(who)
            }
            Subject::Asserted(principal) => {
                caller.may_vouch_for(&principal, self.tenant_type())?;
                plain(*principal)
            }
            Subject::Caller => match &caller_data {
                Some(data) => plain(bare(data.uid.clone())),
                None => Err(DecideError::NotEntitled("CALLER_AS_PRINCIPAL")),
            },
            Subject::Anonymous => plain(bare(self.principals.anonymous.clone())),
        }
    }

    /// Whom a verified credential makes, in the hands of `caller`: bad or misplaced ones are a denial to come.
    pub(super) fn presented(
        &self,
        caller: &Caller,
        kind: Option<&'static str>,
        verified: Result<Arc<VerifiedToken>, TokenError>,
    ) -> Who {
        let caller_data = self.caller_entity(caller);
        let refused = |known: Option<&VerifiedToken>, reason: &'static str, denial: DenialCode| {
            let nobody =
                RawEntity { uid: self.principals.anonymous.clone(), attributes: RawRecord::new(), parents: Vec::new() };
            Who {
                facts: SubjectFacts {
                    kind,
                    principal: known.map(|token| token.principal().uid.clone()),
                    token: known.map(|token| Arc::clone(token.facts())),
                    token_refusal: Some(reason),
                    client_address: None,
                },
                issuer: String::new(),
                ends: None,
                refusal: Some(denial),
                token: None,
                data: SubjectData { principal: Arc::new(nobody), token: None, caller: self.caller_entity(caller) },
            }
        };
        let token = match verified {
            Ok(token) => token,
            Err(error) => return refused(None, error.reason(), error.denial()),
        };
        if let Some((reason, denial)) = self.out_of_place(caller, kind, &token) {
            return refused(Some(&token), reason, denial);
        }
        // Only whoever may present a token at all hears that it is revoked.
        if let Some(hit) = self.revocations.revoked(token.facts()) {
            return refused(Some(&token), hit.reason(), DenialCode::TokenRevoked);
        }
        let facts: &Arc<TokenFacts> = token.facts();
        Who {
            facts: SubjectFacts {
                kind,
                principal: Some(token.principal().uid.clone()),
                token: Some(Arc::clone(facts)),
                token_refusal: None,
                client_address: None,
            },
            issuer: facts.issuer.clone(),
            ends: Some(token.expires_at()),
            refusal: None,
            token: Some(Arc::clone(&token)),
            data: SubjectData {
                principal: Arc::clone(token.principal()),
                token: Some(Arc::clone(facts)),
                caller: caller_data,
            },
        }
    }

    /// Why a token that is good in itself does not count here and now: the word for the record, and the denial. Asked on
    /// every question, whatever is cached.
    pub(super) fn out_of_place(
        &self,
        caller: &Caller,
        kind: Option<&'static str>,
        token: &VerifiedToken,
    ) -> Option<(&'static str, DenialCode)> {
        // An API key is issued to its owner and to no client: who may present one is a right of its own.
        if kind == Some("api_key") {
            return None;
        }
        let unbound = self.bond.hold(caller, token.facts()).err()?;
        Some((unbound.reason(), DenialCode::TokenNotForCaller))
    }

    /// The calling workload as an entity.
    pub(super) fn caller_entity(&self, caller: &Caller) -> Option<CallerData> {
        let id = EntityId::parse(&caller.name().to_string(), 4096).ok()?;
        Some(CallerData { uid: EntityUid { entity_type: self.principals.caller_type.clone(), id } })
    }
}
