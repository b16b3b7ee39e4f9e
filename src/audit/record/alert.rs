//! The record of an unusual pattern: API Activity 6003 that nobody decided, observed and told.

use super::{Frame, bare};
use crate::audit::AlertEntry;
use crate::audit::ocsf::{ALERT, Actor, Alerted, Api, Code, Endpoint, Event, HIGH, MEDIUM, Resource, Service, User};
use crate::audit::text::Text;

const UNKNOWN: Code = Code(0, "Unknown");
const OBSERVED: Code = Code(3, "Observed");
const ALERTED: Code = Code(19, "Alert");

pub(super) fn of_alert<'a>(entry: &'a AlertEntry, frame: &'a Frame) -> Event<'a> {
    let alert = &entry.alert;
    let severity = if alert.is_grave() { HIGH } else { MEDIUM };
    let mut event = bare(frame, ALERT, 99, "Unusual Pattern", entry.time, severity, UNKNOWN);
    event.status_detail = Some(alert.pattern.as_str());
    event.is_alert = Some(true);
    event.count = Some(alert.count);
    (event.action_id, event.action) = (Some(OBSERVED.0), Some(OBSERVED.1));
    (event.disposition_id, event.disposition) = (Some(ALERTED.0), Some(ALERTED.1));
    let principal = alert.subject.as_deref().filter(|_| matches!(alert.key, "principal" | "token"));
    let caller = alert.caller.as_deref().unwrap_or("unknown");
    event.actor = Some(Actor {
        user: principal.map(|who| User {
            uid: Some(Text::new(who)),
            name: Text::new(who),
            type_id: 99,
            r#type: Text::new("Principal"),
            domain: None,
        }),
        session: None,
        app_name: Text::new(caller),
        app_uid: None,
        authorizations: Vec::new(),
    });
    event.api = Some(Api {
        operation: Text::new(alert.action.as_deref().unwrap_or("unknown")),
        version: "gatepost.v1",
        service: Service { name: "gatepost.v1.DecisionService" },
        request: None,
        response: None,
    });
    event.resources = alert
        .resource_type
        .as_deref()
        .map(|entity_type| [Resource { uid: None, name: Text::new(entity_type), r#type: Text::new(entity_type) }]);
    event.src_endpoint = Some(Endpoint {
        ip: alert.address.map(|address| address.to_canonical().to_string()),
        svc_name: Some(Text::new(caller)),
        ..Endpoint::default()
    });
    let ours = &mut event.unmapped.gatepost;
    ours.principal = principal.map(Text::new);
    ours.alert = Some(Alerted {
        pattern: alert.pattern.as_str(),
        key: alert.key,
        subject: alert.subject.as_deref().map(Text::new),
        window_s: alert.window.as_secs(),
        count: alert.count,
        first_id: alert.first_id.as_deref().map(Text::new),
        last_id: alert.last_id.as_deref().map(Text::new),
        sample_decision_ids: alert.samples.iter().map(ToString::to_string).collect(),
    });
    event
}
