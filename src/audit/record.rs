//! From what happened to the line that says so: an [`Entry`] becomes an OCSF 1.8.0 record.
//!
//! | entry | class |
//! |---|---|
//! | call, unusual pattern | API Activity 6003 |
//! | refused handshake | Authentication 3002 |
//! | policies, revocations | Entity Management 3004 |
//! | start, stop, records resumed after a gap | Application Lifecycle 6002 |
//!
//! Takes facts, gives bytes, and adds nothing but a fresh id. What must never be in a record is not in the facts either.

use std::cell::RefCell;
use std::time::SystemTime;

use self::words::{Ending, activity, grpc_number};
use super::format::Body;
use super::ocsf::{
    API_ACTIVITY, APPLICATION_LIFECYCLE, AUTHENTICATION, Acting, Actor, Api, Asked, Authorization, Batch, Class, Code,
    Device, ENTITY_MANAGEMENT, Endpoint, Erred, Event, FAILURE, HIGH, INFORMATIONAL, Kept, LOW, MEDIUM, ManagedEntity,
    Mask, Metadata, Ours, PRODUCT, Policy, Request, Resource, Response, SUCCESS, Service, Session, Span, Trace,
    Trailing, Unmapped, User,
};
use super::text::{OneLine, Text, cut};
use super::{
    CallEntry, CallerFacts, Entry, HandshakeEntry, HostFacts, LifecycleEntry, LostEntry, Outcome, PolicyEntry,
    QuestionFacts, SubjectFacts,
};
use crate::clock::unix_millis;
use crate::config::Keeping;
use crate::model::decision::Ruling;
use crate::model::entity::EntityUid;
use crate::model::ids::{DecisionId, PolicyRevision};
use crate::token::Confirmation;

mod admin;
mod alert;
pub(super) mod kin;
pub(super) mod notes;
pub(super) mod template;
mod words;

/// What every record of this process shares.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) host: HostFacts,
    /// Names this run of the process.
    pub(super) boot: String,
    /// How well records are kept, and what becomes of an answer whose record can't be.
    pub(super) keeping: Keeping,
    /// For how many exceptions by action.
    pub(super) exceptions: usize,
}

/// Writes `entry` down.
///
/// # Errors
/// Only if JSON can't hold it, which no entry brings about.
pub(super) fn render(entry: &Entry, frame: &Frame) -> Result<Body, serde_json::Error> {
    let event = match entry {
        Entry::Call(call) => of_call(call, frame),
        Entry::Handshake(handshake) => of_handshake(handshake, frame),
        Entry::Policy(policy) => of_policy(policy, frame),
        Entry::Lifecycle(lifecycle) => of_lifecycle(lifecycle, frame),
        Entry::Admin(call) => admin::of_admin(call, frame),
        Entry::Lost(lost) => of_lost(lost, frame),
        Entry::Alert(entry) => alert::of_alert(entry, frame),
    };
    line(&event)
}

/// The record of a call as one JSON object.
fn render_call(call: &CallEntry, frame: &Frame) -> Result<Vec<u8>, serde_json::Error> {
    json(&of_call(call, frame))
}

fn json(event: &Event<'_>) -> Result<Vec<u8>, serde_json::Error> {
    let mut json = Vec::with_capacity(2048);
    serde::Serialize::serialize(event, &mut serde_json::Serializer::with_formatter(&mut json, OneLine))?;
    Ok(json)
}

fn line(event: &Event<'_>) -> Result<Body, serde_json::Error> {
    Body::of(json(event)?)
        .ok_or_else(|| serde::ser::Error::custom("a record must begin with its number and end with ours"))
}

/// What every class has.
fn bare<'a>(
    frame: &'a Frame,
    class: Class,
    activity_id: u32,
    activity_name: &'a str,
    time: SystemTime,
    severity: Code,
    status: Code,
) -> Event<'a> {
    let caption = if activity_id == 99 { "Other" } else { activity_name };
    Event {
        metadata: Metadata {
            sequence: 0,
            version: "1.8.0",
            uid: mint(time),
            original_event_uid: None,
            correlation_uid: None,
            log_name: class.log_name,
            log_version: "1",
            profiles: class.profiles,
            product: PRODUCT,
        },
        category_uid: class.category_uid,
        category_name: class.category_name,
        class_uid: class.uid,
        class_name: class.name,
        activity_id,
        activity_name: Text::new(activity_name),
        type_uid: class.uid * 100 + activity_id,
        type_name: format!("{}: {caption}", class.name),
        time: unix_millis(time),
        time_dt: utc(time),
        duration: None,
        severity_id: severity.0,
        severity: severity.1,
        status_id: status.0,
        status: status.1,
        status_code: None,
        status_detail: None,
        is_alert: None,
        count: None,
        action_id: None,
        action: None,
        disposition_id: None,
        disposition: None,
        actor: None,
        user: None,
        auth_protocol_id: None,
        auth_protocol: None,
        is_remote: None,
        app: None,
        entity: None,
        entity_result: None,
        comment: None,
        api: None,
        resources: None,
        policy: None,
        src_endpoint: None,
        dst_endpoint: None,
        trace: None,
        device: Device { hostname: Text::new(&frame.host.hostname), type_id: 1, r#type: "Server" },
        unmapped: Unmapped { gatepost: Ours { schema: 1, boot: &frame.boot, ..Ours::default() } },
    }
}

fn of_call<'a>(call: &'a CallEntry, frame: &'a Frame) -> Event<'a> {
    let ending = Ending::of(&call.outcome);
    let (activity_id, activity_name) = call.question.as_ref().map_or((0, "Unknown"), |asked| activity(&asked.action));
    let mut event = bare(frame, API_ACTIVITY, activity_id, activity_name, call.time, ending.severity, ending.status);
    let request_id = call.circumstances.request_id.as_ref().map(|id| Text::new(id.as_str()));
    let batch_id = call.circumstances.batch_id.map(|id| id.to_string());

    event.metadata.original_event_uid = Some(call.decision_id.to_string());
    event.metadata.correlation_uid = request_id.clone().or_else(|| batch_id.clone().map(Text::composed));
    event.duration = Some(i64::try_from(call.duration.as_millis()).unwrap_or(i64::MAX));
    event.status_code = Some(ending.grpc);
    event.status_detail = ending.reason;
    (event.action_id, event.action) = (Some(ending.action.0), Some(ending.action.1));
    (event.disposition_id, event.disposition) = (Some(ending.disposition.0), Some(ending.disposition.1));
    event.actor = Some(actor(call, ending.decision));
    event.api = Some(Api {
        operation: Text::new(call.question.as_ref().map_or(call.operation, |asked| asked.action.as_str())),
        version: "gatepost.v1",
        service: Service { name: "gatepost.v1.DecisionService" },
        request: request_id.map(|uid| Request { uid }),
        response: Some(Response { code: grpc_number(ending.grpc), message: ending.decision.unwrap_or(ending.grpc) }),
    });
    event.resources = call.question.as_ref().map(|asked| [resource(asked)]);
    event.src_endpoint = Some(source(&call.caller));
    event.dst_endpoint = Some(listener(call.listener, frame));
    event.trace = call.circumstances.trace_id.as_deref().map(|trace_id| Trace {
        uid: Text::new(trace_id),
        span: call.circumstances.span_id.as_deref().map(|span_id| Span {
            uid: Text::new(span_id),
            start_time: unix_millis(call.time),
            end_time: unix_millis(call.time).saturating_add(event.duration.unwrap_or(0)),
        }),
    });
    if let Outcome::Decided { ruling, revision, cache } = &call.outcome {
        event.policy = Some(bundle(revision));
        event.is_alert = (!ruling.errors.is_empty()).then_some(true);
        event.unmapped.gatepost.cache = Some(cache.as_str());
        event.unmapped.gatepost.policy_snapshot = Some(snapshot(revision));
        event.unmapped.gatepost.obligations = ruling.obligations.iter().map(|name| Text::new(name)).collect();
        event.unmapped.gatepost.determining_policies = ruling.determining.iter().map(|id| Text::new(id)).collect();
        event.unmapped.gatepost.policy_errors =
            ruling.errors.iter().map(|error| Erred { policy: Text::new(&error.policy), class: error.class }).collect();
        event.unmapped.gatepost.field_mask = call.question.as_ref().and_then(|asked| mask(asked, ruling));
    }

    let ours = &mut event.unmapped.gatepost;
    ours.operation = Some(call.operation);
    ours.decision = ending.decision;
    ours.decision_us = Some(u64::try_from(call.duration.as_micros()).unwrap_or(u64::MAX));
    ours.subject = call.subject.kind;
    ours.principal = call.subject.principal.as_ref().map(entity_text);
    ours.token_alg = call.subject.token.as_ref().map(|token| token.algorithm);
    ours.token_kid = call.subject.token.as_ref().and_then(|token| token.key_id.as_deref()).map(Text::new);
    ours.token_refusal = call.subject.token_refusal;
    if let Some(token) = call.subject.token.as_deref() {
        ours.token_client = token.client_id.as_deref().map(Text::new);
        ours.cnf = token.confirmation.as_ref().map(Confirmation::method);
        ours.act = token
            .actors
            .iter()
            .map(|actor| Acting { sub: Text::new(&actor.subject), iss: actor.issuer.as_deref().map(Text::new) })
            .collect();
    }
    ours.caller_refusal = call.caller.refusal;
    ours.client_address = call.subject.client_address.map(|address| address.to_canonical().to_string());
    ours.certificate_sha256 = call.caller.certificate_sha256.as_deref().map(Text::new);
    ours.batch = call.circumstances.batch.map(|at| Batch { id: batch_id, index: at.index, of: at.of });
    if let Some(asked) = &call.question {
        ours.level = Some(asked.level());
        ours.context_sha256 = asked.context_sha256.as_deref().map(Text::new);
        ours.asserted_by_caller = asked.asserted.iter().map(|name| Text::new(name)).collect();
        ours.kept = Kept(&asked.kept);
    }
    event
}

fn of_handshake<'a>(handshake: &'a HandshakeEntry, frame: &'a Frame) -> Event<'a> {
    let mut event = bare(frame, AUTHENTICATION, 1, "Logon", handshake.time, LOW, FAILURE);
    event.status_detail = Some(handshake.reason);
    event.count = Some(handshake.suppressed.saturating_add(1));
    event.user =
        Some(User { uid: None, name: Text::new("unknown"), type_id: 0, r#type: Text::new("Unknown"), domain: None });
    (event.auth_protocol_id, event.auth_protocol) = (Some(99), Some("mTLS"));
    event.is_remote = Some(true);
    event.src_endpoint = Some(Endpoint::at(handshake.address));
    event.dst_endpoint = Some(listener(handshake.listener, frame));
    event.unmapped.gatepost.suppressed = Some(handshake.suppressed);
    event
}

fn of_policy<'a>(policy: &'a PolicyEntry, frame: &'a Frame) -> Event<'a> {
    let (severity, status, reason) = match &policy.after {
        Some(_) => (INFORMATIONAL, SUCCESS, "ACTIVATED"),
        None => (MEDIUM, FAILURE, "REFUSED"),
    };
    let (activity, name) = if policy.before.is_none() { (1, "Create") } else { (3, "Update") };
    let mut event = bare(frame, ENTITY_MANAGEMENT, activity, name, policy.time, severity, status);
    let entity = |revision: Option<&PolicyRevision>| ManagedEntity {
        uid: "bundle".into(),
        name: "policy bundle",
        type_id: 5,
        r#type: "Policy",
        version: revision.map(snapshot),
    };
    event.status_detail = Some(reason);
    event.actor = Some(Actor {
        user: None,
        session: None,
        app_name: Text::new("gatepost"),
        app_uid: None,
        authorizations: Vec::new(),
    });
    event.entity = Some(entity(policy.before.as_ref()));
    event.entity_result = policy.after.as_ref().map(|after| entity(Some(after)));
    event.unmapped.gatepost.before = policy.before.as_ref().map(snapshot);
    event.unmapped.gatepost.after = policy.after.as_ref().map(snapshot);
    event.unmapped.gatepost.problems = Some(policy.problems);
    event
}

fn of_lifecycle<'a>(lifecycle: &'a LifecycleEntry, frame: &'a Frame) -> Event<'a> {
    let (activity, name) = if lifecycle.started { (3, "Start") } else { (4, "Stop") };
    let mut event = bare(frame, APPLICATION_LIFECYCLE, activity, name, lifecycle.time, INFORMATIONAL, SUCCESS);
    event.app = Some(PRODUCT);
    if lifecycle.started {
        event.unmapped.gatepost.audit = Some(Trailing {
            mode: frame.keeping.mode.as_str(),
            on_failure: frame.keeping.on_failure.as_str(),
            exceptions: frame.exceptions,
        });
    }
    event
}

fn of_lost<'a>(lost: &'a LostEntry, frame: &'a Frame) -> Event<'a> {
    let mut event = bare(frame, APPLICATION_LIFECYCLE, 99, "Records Lost", lost.time, HIGH, FAILURE);
    event.app = Some(PRODUCT);
    event.count = Some(lost.count);
    event.status_detail = Some(lost.reason);
    event.unmapped.gatepost.place = Some(Text::new(&lost.place));
    event.unmapped.gatepost.not_recorded = Some(lost.count);
    event.unmapped.gatepost.not_recorded_since = Some(utc(lost.since));
    event
}

fn actor<'a>(call: &'a CallEntry, decision: Option<&'static str>) -> Actor<'a> {
    let authorizations = match (&call.outcome, decision) {
        (Outcome::Decided { ruling, .. }, Some(decision)) if ruling.determining.is_empty() => {
            vec![Authorization { decision, policy: None }]
        }
        (Outcome::Decided { ruling, revision, .. }, Some(decision)) => {
            let by = |id: &'a String| Authorization {
                decision,
                policy: Some(Policy { uid: Text::new(id), is_applied: Some(true), ..bundle(revision) }),
            };
            ruling.determining.iter().map(by).collect()
        }
        (Outcome::Decided { .. } | Outcome::Refused { .. } | Outcome::Failed { .. }, _) => Vec::new(),
    };
    Actor {
        user: user(&call.subject),
        session: call.subject.token.as_deref().map(|token| Session {
            uid: token.id_sha256.as_ref().map(|id| format!("sha256:{}", cut(id))),
            issuer: Text::new(&token.issuer),
            created_time: unix_millis(token.issued_at),
            expiration_time: unix_millis(token.expires_at),
            is_mfa: token.amr.contains("mfa"),
        }),
        app_name: Text::new(caller_label(&call.caller)),
        app_uid: call.caller.name.as_deref().map(Text::new),
        authorizations,
    }
}

fn user(subject: &SubjectFacts) -> Option<User<'_>> {
    if let Some(token) = subject.token.as_deref() {
        return Some(User {
            uid: Some(Text::composed(format!("{}|{}", cut(&token.issuer), cut(&token.subject)))),
            name: Text::new(&token.subject),
            type_id: 1,
            r#type: Text::new("User"),
            domain: Some(Text::new(&token.issuer)),
        });
    }
    let principal = subject.principal.as_ref()?;
    let (type_id, type_name) = match subject.kind {
        Some("caller") => (4, "Service"),
        Some("anonymous") => (0, "Unknown"),
        _ => (99, principal.entity_type.as_str()),
    };
    Some(User {
        uid: Some(entity_text(principal)),
        name: Text::new(principal.id.as_str()),
        type_id,
        r#type: Text::new(type_name),
        domain: None,
    })
}

/// `Order::"o-1001"`, as Cedar writes it.
fn entity_text(uid: &EntityUid) -> Text<'_> {
    Text::composed(format!("{}::{:?}", uid.entity_type, cut(uid.id.as_str())))
}

fn resource(asked: &QuestionFacts) -> Resource<'_> {
    let id = asked.resource_id.as_deref();
    Resource {
        uid: id.map(Text::new),
        name: Text::new(id.unwrap_or(&asked.resource_type)),
        r#type: Text::new(&asked.resource_type),
    }
}

fn mask<'a>(asked: &'a QuestionFacts, ruling: &'a Ruling) -> Option<Mask<'a>> {
    let names = asked.fields.as_ref()?;
    let allowed = ruling.fields.as_deref().unwrap_or_default();
    let denied = ruling.denial.as_ref().map_or(&[][..], |denial| denial.refused_fields.as_slice());
    Some(Mask {
        asked: if names.is_empty() {
            Asked::All("all")
        } else {
            Asked::Named(names.iter().map(|name| Text::new(name)).collect())
        },
        allowed: allowed.iter().map(|path| Text::new(path.as_str())).collect(),
        denied: denied.iter().map(|path| Text::new(path.as_str())).collect(),
    })
}

/// The best name we have for the calling service.
fn caller_label(caller: &CallerFacts) -> &str {
    caller.label.as_deref().or(caller.name.as_deref()).unwrap_or("unknown")
}

fn source(caller: &CallerFacts) -> Endpoint<'_> {
    Endpoint {
        svc_name: Some(Text::new(caller_label(caller))),
        uid: caller.name.as_deref().map(Text::new),
        ..caller.address.map(Endpoint::at).unwrap_or_default()
    }
}

fn listener(address: std::net::SocketAddr, frame: &Frame) -> Endpoint<'_> {
    Endpoint {
        hostname: Some(Text::new(&frame.host.hostname)),
        svc_name: Some(Text::new("gatepost")),
        ..Endpoint::at(address)
    }
}

fn bundle(revision: &PolicyRevision) -> Policy<'static> {
    Policy { uid: Text::new("bundle"), version: snapshot(revision), r#type: "Cedar", is_applied: None }
}

fn snapshot(revision: &PolicyRevision) -> String {
    format!("sha256:{revision}")
}

fn mint(time: SystemTime) -> String {
    DecisionId::mint(time).to_string()
}

/// RFC 3339 in UTC, to the millisecond. Records come many in a second, so each thread keeps what it wrote of the last one.
pub(super) fn utc(time: SystemTime) -> String {
    let mut text = Vec::with_capacity(24);
    put_utc(&mut text, time);
    String::from_utf8(text).unwrap_or_default()
}

/// The same at the end of `out`.
fn put_utc(out: &mut Vec<u8>, time: SystemTime) {
    thread_local! {
        static LAST: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    let millis = unix_millis(time);
    let (second, rest) = (millis.div_euclid(1000), millis.rem_euclid(1000));
    LAST.with_borrow_mut(|(last, text)| {
        if *last != second {
            let Ok(instant) = jiff::Timestamp::from_second(second) else {
                return out.extend_from_slice(b"9999-12-31T23:59:59.999Z");
            };
            (*last, *text) = (second, format!("{instant:.0}").trim_end_matches('Z').to_owned());
        }
        out.extend_from_slice(text.as_bytes());
        let digit = |value: i64| b'0' + u8::try_from(value % 10).unwrap_or_default();
        out.extend_from_slice(&[b'.', digit(rest / 100), digit(rest / 10), digit(rest), b'Z']);
    });
}

/// Names this run of the process.
pub(super) fn mint_boot(now: SystemTime) -> String {
    mint(now)
}

#[cfg(test)]
pub(super) mod tests;
