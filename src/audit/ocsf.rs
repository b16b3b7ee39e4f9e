//! The shape of our records: the part of OCSF 1.8.0 that we fill, and what is ours under `unmapped.gatepost`.
//!
//! Field order here is key order in the record. `metadata` comes first and `sequence` first in it, because the writer
//! puts the number in when the line goes out. What each field holds is decided in `record`.
//!
//! Source: OCSF 1.8.0, classes 3002, 3004, 6002 and 6003 with the profiles `security_control`, `trace`, `host` and
//! `datetime`.

use std::borrow::Cow;
use std::net::SocketAddr;

use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Serialize, Serializer};

use super::checkpoint::Signed;
use super::text::Text;
use crate::model::entity::RawValue;

/// An OCSF class.
#[derive(Debug, Clone, Copy)]
pub(super) struct Class {
    pub(super) category_uid: u32,
    pub(super) category_name: &'static str,
    pub(super) uid: u32,
    pub(super) name: &'static str,
    pub(super) log_name: &'static str,
    pub(super) profiles: &'static [&'static str],
}

pub(super) const API_ACTIVITY: Class = Class {
    category_uid: 6,
    category_name: "Application Activity",
    uid: 6003,
    name: "API Activity",
    log_name: "gatepost.decision",
    profiles: &["security_control", "trace", "host", "datetime"],
};

pub(super) const ALERT: Class = Class { log_name: "gatepost.alert", ..API_ACTIVITY };

pub(super) const AUTHENTICATION: Class = Class {
    category_uid: 3,
    category_name: "Identity & Access Management",
    uid: 3002,
    name: "Authentication",
    log_name: "gatepost.handshake",
    profiles: &["host", "datetime"],
};

pub(super) const ENTITY_MANAGEMENT: Class = Class {
    category_uid: 3,
    category_name: "Identity & Access Management",
    uid: 3004,
    name: "Entity Management",
    log_name: "gatepost.policy",
    profiles: &["host", "datetime"],
};

pub(super) const REVOCATION: Class = Class { log_name: "gatepost.revocation", ..ENTITY_MANAGEMENT };

pub(super) const CHECKPOINT: Class = Class { log_name: "gatepost.checkpoint", ..APPLICATION_LIFECYCLE };

pub(super) const APPLICATION_LIFECYCLE: Class = Class {
    category_uid: 6,
    category_name: "Application Activity",
    uid: 6002,
    name: "Application Lifecycle",
    log_name: "gatepost.lifecycle",
    profiles: &["host", "datetime"],
};

/// An OCSF number and its caption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code(pub(super) u32, pub(super) &'static str);

pub(super) const INFORMATIONAL: Code = Code(1, "Informational");
pub(super) const LOW: Code = Code(2, "Low");
pub(super) const MEDIUM: Code = Code(3, "Medium");
pub(super) const HIGH: Code = Code(4, "High");

pub(super) const SUCCESS: Code = Code(1, "Success");
pub(super) const FAILURE: Code = Code(2, "Failure");

/// One record. What a class does not have is left out.
#[derive(Serialize)]
pub(super) struct Event<'a> {
    pub(super) metadata: Metadata<'a>,
    pub(super) category_uid: u32,
    pub(super) category_name: &'static str,
    pub(super) class_uid: u32,
    pub(super) class_name: &'static str,
    pub(super) activity_id: u32,
    pub(super) activity_name: Text<'a>,
    pub(super) type_uid: u32,
    pub(super) type_name: String,
    pub(super) time: i64,
    pub(super) time_dt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) duration: Option<i64>,
    pub(super) severity_id: u32,
    pub(super) severity: &'static str,
    pub(super) status_id: u32,
    pub(super) status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status_detail: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) is_alert: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) action_id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) disposition_id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) disposition: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) actor: Option<Actor<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<User<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) auth_protocol_id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) auth_protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) is_remote: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) app: Option<Product>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) entity: Option<ManagedEntity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) entity_result: Option<ManagedEntity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) comment: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api: Option<Api<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resources: Option<[Resource<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<Policy<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) src_endpoint: Option<Endpoint<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dst_endpoint: Option<Endpoint<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trace: Option<Trace<'a>>,
    pub(super) device: Device<'a>,
    pub(super) unmapped: Unmapped<'a>,
}

#[derive(Serialize)]
pub(super) struct Metadata<'a> {
    /// Always 0 here: the writer numbers the line as it goes out.
    pub(super) sequence: u8,
    pub(super) version: &'static str,
    pub(super) uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) original_event_uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) correlation_uid: Option<Text<'a>>,
    pub(super) log_name: &'static str,
    pub(super) log_version: &'static str,
    pub(super) profiles: &'static [&'static str],
    pub(super) product: Product,
}

#[derive(Serialize)]
pub(super) struct Product {
    pub(super) name: &'static str,
    pub(super) vendor_name: &'static str,
    pub(super) version: &'static str,
}

pub(super) const PRODUCT: Product =
    Product { name: "Gatepost", vendor_name: "Gatepost", version: env!("CARGO_PKG_VERSION") };

#[derive(Serialize)]
pub(super) struct Actor<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<User<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<Session<'a>>,
    pub(super) app_name: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) app_uid: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) authorizations: Vec<Authorization<'a>>,
}

#[derive(Serialize)]
pub(super) struct User<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<Text<'a>>,
    pub(super) name: Text<'a>,
    pub(super) type_id: u32,
    pub(super) r#type: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) domain: Option<Text<'a>>,
}

#[derive(Serialize)]
pub(super) struct Session<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<String>,
    pub(super) issuer: Text<'a>,
    pub(super) created_time: i64,
    pub(super) expiration_time: i64,
    pub(super) is_mfa: bool,
}

#[derive(Serialize)]
pub(super) struct Authorization<'a> {
    pub(super) decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<Policy<'a>>,
}

#[derive(Serialize, Clone)]
pub(super) struct Policy<'a> {
    pub(super) uid: Text<'a>,
    pub(super) version: String,
    pub(super) r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) is_applied: Option<bool>,
}

#[derive(Serialize)]
pub(super) struct ManagedEntity {
    pub(super) uid: Cow<'static, str>,
    pub(super) name: &'static str,
    pub(super) type_id: u32,
    pub(super) r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Api<'a> {
    pub(super) operation: Text<'a>,
    pub(super) version: &'static str,
    pub(super) service: Service,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request: Option<Request<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response: Option<Response>,
}

#[derive(Serialize)]
pub(super) struct Service {
    pub(super) name: &'static str,
}

#[derive(Serialize)]
pub(super) struct Request<'a> {
    pub(super) uid: Text<'a>,
}

#[derive(Serialize)]
pub(super) struct Response {
    pub(super) code: i32,
    pub(super) message: &'static str,
}

#[derive(Serialize)]
pub(super) struct Resource<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<Text<'a>>,
    pub(super) name: Text<'a>,
    pub(super) r#type: Text<'a>,
}

#[derive(Serialize, Default)]
pub(super) struct Endpoint<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hostname: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) svc_name: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<Text<'a>>,
}

impl Endpoint<'_> {
    /// Where `address` is. An IPv4 address in an IPv6 coat is written as the IPv4 address it is.
    pub(super) fn at(address: SocketAddr) -> Self {
        Self { ip: Some(address.ip().to_canonical().to_string()), port: Some(address.port()), ..Self::default() }
    }
}

#[derive(Serialize)]
pub(super) struct Trace<'a> {
    pub(super) uid: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) span: Option<Span<'a>>,
}

#[derive(Serialize)]
pub(super) struct Span<'a> {
    pub(super) uid: Text<'a>,
    pub(super) start_time: i64,
    pub(super) end_time: i64,
}

#[derive(Serialize)]
pub(super) struct Device<'a> {
    pub(super) hostname: Text<'a>,
    pub(super) type_id: u32,
    pub(super) r#type: &'static str,
}

#[derive(Serialize)]
pub(super) struct Unmapped<'a> {
    pub(super) gatepost: Ours<'a>,
}

/// What OCSF has no place for.
#[derive(Serialize, Default)]
pub(super) struct Ours<'a> {
    pub(super) schema: u32,
    pub(super) boot: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) operation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decision: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) level: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decision_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cache: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy_snapshot: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) principal: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_alg: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_kid: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_refusal: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_client: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cnf: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) act: Vec<Acting<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) caller_refusal: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate_sha256: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch: Option<Batch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) field_mask: Option<Mask<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) obligations: Vec<Text<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) determining_policies: Vec<Text<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) policy_errors: Vec<Erred<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) context_sha256: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) asserted_by_caller: Vec<Text<'a>>,
    #[serde(skip_serializing_if = "Kept::is_empty")]
    pub(super) kept: Kept<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) suppressed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) problems: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) revocation: Option<Revoked<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) audit: Option<Trailing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) checkpoint: Option<&'a Signed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gap: Option<Range>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) removed: Option<Range>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clock_jumped_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) place: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_recorded: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_recorded_since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) alert: Option<Alerted<'a>>,
}

/// An unusual pattern.
#[derive(Serialize)]
pub(super) struct Alerted<'a> {
    pub(super) pattern: &'static str,
    /// What `subject` is.
    pub(super) key: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Text<'a>>,
    pub(super) window_s: u64,
    pub(super) count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_id: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_id: Option<Text<'a>>,
    pub(super) sample_decision_ids: Vec<String>,
}

/// How the trail keeps records.
#[derive(Serialize)]
pub(super) struct Trailing {
    pub(super) mode: &'static str,
    pub(super) on_failure: &'static str,
    /// Exceptions by action.
    pub(super) exceptions: usize,
}

/// Records from number to number.
#[derive(Serialize, Clone, Copy)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// A party of a delegation, as the token names it (RFC 8693 section 4.1).
#[derive(Serialize)]
pub(super) struct Acting<'a> {
    pub(super) sub: Text<'a>,
    /// Absent: the token's own issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iss: Option<Text<'a>>,
}

/// What an operator revoked, or wanted to.
#[derive(Serialize)]
pub(super) struct Revoked<'a> {
    pub(super) kind: &'static str,
    pub(super) key: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) issuer: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) issued_before: Option<u64>,
    pub(super) until: u64,
}

#[derive(Serialize)]
pub(super) struct Batch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    pub(super) index: usize,
    pub(super) of: usize,
}

/// Names only.
#[derive(Serialize)]
pub(super) struct Mask<'a> {
    /// `all`, or the paths that were named.
    pub(super) asked: Asked<'a>,
    pub(super) allowed: Vec<Text<'a>>,
    pub(super) denied: Vec<Text<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Asked<'a> {
    All(&'static str),
    Named(Vec<Text<'a>>),
}

#[derive(Serialize)]
pub(super) struct Erred<'a> {
    pub(super) policy: Text<'a>,
    pub(super) class: &'static str,
}

/// The allow-listed values, as one JSON object.
#[derive(Default)]
pub(super) struct Kept<'a>(pub(super) &'a [(String, RawValue)]);

impl Kept<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Kept<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(&Text::new(name), &Value(value))?;
        }
        map.end()
    }
}

struct Value<'a>(&'a RawValue);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            RawValue::Bool(value) => serializer.serialize_bool(*value),
            RawValue::Integer(value) => serializer.serialize_i64(*value),
            RawValue::Number(value) if value.is_finite() => serializer.serialize_f64(*value),
            RawValue::Number(value) => serializer.serialize_str(&value.to_string()),
            RawValue::Text(text) => Text::new(text).serialize(serializer),
            RawValue::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(&Value(item))?;
                }
                list.end()
            }
            RawValue::Record(record) => {
                let mut map = serializer.serialize_map(Some(record.len()))?;
                for (name, item) in record {
                    map.serialize_entry(&Text::new(name), &Value(item))?;
                }
                map.end()
            }
        }
    }
}
