//! The record of an operator's call: Entity Management 3004, as for policies. Written before what it tells of takes
//! effect.

use super::{Frame, bare, caller_label, source};
use crate::audit::ocsf::{
    Actor, Event, FAILURE, HIGH, INFORMATIONAL, LOW, MEDIUM, ManagedEntity, REVOCATION, Revoked, SUCCESS,
};
use crate::audit::scrub::scrub_text;
use crate::audit::text::{Text, cut};
use crate::audit::{AdminEntry, ChangeFacts};

pub(super) fn of_admin<'a>(call: &'a AdminEntry, frame: &'a Frame) -> Event<'a> {
    let (activity, name) = match call.operation {
        "unknown" => (0, "Unknown"),
        "ListRevocations" => (2, "Read"),
        _ => (1, "Create"),
    };
    let (severity, status) = match &call.failure {
        // That something was revoked is worth a look; that somebody looked is not.
        None if activity == 1 => (MEDIUM, SUCCESS),
        None => (INFORMATIONAL, SUCCESS),
        Some(failure) if failure.ours => (HIGH, FAILURE),
        Some(_) => (LOW, FAILURE),
    };
    let mut event = bare(frame, REVOCATION, activity, name, call.time, severity, status);
    event.metadata.original_event_uid = Some(call.call_id.to_string());
    event.metadata.correlation_uid = call.request_id.as_ref().map(|id| Text::new(id.as_str()));
    event.status_code = Some(call.failure.map_or("OK", |failure| failure.status));
    event.status_detail = call.failure.map(|failure| failure.reason);
    event.actor = Some(Actor {
        user: None,
        session: None,
        app_name: Text::new(caller_label(&call.operator)),
        app_uid: call.operator.name.as_deref().map(Text::new),
        authorizations: Vec::new(),
    });
    event.entity = Some(entity(call.change.as_ref()));
    event.entity_result = call.change.as_ref().filter(|_| call.failure.is_none()).map(|change| entity(Some(change)));
    event.comment = call.change.as_ref().map(|change| Text::composed(cut(&scrub_text(&change.reason)).into_owned()));
    event.src_endpoint = Some(source(&call.operator));
    let ours = &mut event.unmapped.gatepost;
    ours.operation = Some(call.operation);
    ours.caller_refusal = call.failure.and_then(|failure| failure.caller_refusal);
    ours.certificate_sha256 = call.operator.certificate_sha256.as_deref().map(Text::new);
    ours.revocation = call.change.as_ref().map(|change| Revoked {
        kind: change.kind,
        key: Text::new(&change.key),
        issuer: change.issuer.as_deref().map(Text::new),
        subject: change.subject.as_deref().map(Text::new),
        issued_before: change.issued_before,
        until: change.until,
    });
    event
}

fn entity(change: Option<&ChangeFacts>) -> ManagedEntity {
    ManagedEntity {
        uid: change.map_or("revocations".into(), |change| format!("{}:{}", change.kind, change.key).into()),
        name: if change.is_some() { "revocation" } else { "list of revocations" },
        type_id: 99,
        r#type: "Revocation",
        version: None,
    }
}
