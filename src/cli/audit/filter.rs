//! Which records, and how one looks to people.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::audit::encode::{ending, kind};
use crate::clock::{SystemClock, unix_millis};
use crate::model::entity::is_hidden;

/// What records are about.
const KINDS: [&str; 7] = ["decision", "handshake", "policy", "revocation", "lifecycle", "checkpoint", "alert"];

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Ending {
    /// By policies.
    Allow,
    /// By policies, or because of the token.
    Deny,
    /// It depends on the object.
    Conditional,
    /// Without a decision, by our choice.
    Refused,
    /// Without a decision, by our fault.
    Failed,
}

impl Ending {
    fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Conditional => "conditional",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// Records that match all that is given.
#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Whose questions: an id (alice), a subject (issuer|alice) or an entity (User::"alice")
    #[arg(long, value_name = "WHO")]
    principal: Option<String>,
    /// Through which service: its name, or its SPIFFE ID
    #[arg(long, value_name = "SERVICE")]
    caller: Option<String>,
    /// About what: a type (Order), an id (o-1), or both (Order::"o-1")
    #[arg(long, value_name = "RESOURCE")]
    resource: Option<String>,
    /// Which action, or all before a dot (Order.*)
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// How it ended; may be given many times
    #[arg(long, value_enum, value_name = "HOW")]
    decision: Vec<Ending>,
    /// Settled by this policy, among others
    #[arg(long, value_name = "ID")]
    policy: Option<String>,
    /// What records are about; may be given many times
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(KINDS))]
    kind: Vec<String>,
    /// Alerts alone, and policies that failed
    #[arg(long)]
    alerts: bool,
    /// The answer with this id
    #[arg(long, value_name = "ID")]
    decision_id: Option<String>,
    /// From then on: RFC 3339, or so long ago (90s, 15m, 24h, 7d)
    #[arg(long, value_name = "TIME", value_parser = instant)]
    since: Option<i64>,
    /// Up to then
    #[arg(long, value_name = "TIME", value_parser = instant)]
    until: Option<i64>,
}

/// Milliseconds since 1970.
fn instant(text: &str) -> Result<i64, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_millisecond());
    }
    let ago = text.strip_suffix(|c: char| "smhd".contains(c)).and_then(|number| number.parse::<u64>().ok());
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => 0,
    };
    let ago = ago.filter(|_| unit > 0).and_then(|number| number.checked_mul(unit)).map(Duration::from_secs);
    let ago =
        ago.ok_or_else(|| "must be RFC 3339 (2026-11-26T10:00:00Z) or so long ago (90s, 15m, 24h, 7d)".to_owned())?;
    let now = unix_millis(SystemClock::shared().now());
    Ok(now.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)))
}

pub(super) fn text<'a>(record: &'a Value, pointer: &str) -> Option<&'a str> {
    record.pointer(pointer)?.as_str()
}

impl Filter {
    /// Whether nothing is left out.
    pub(super) fn takes_all(&self) -> bool {
        let Self { principal, caller, resource, action, decision, policy, kind, alerts, decision_id, since, until } =
            self;
        [principal, caller, resource, action, policy, decision_id].into_iter().all(Option::is_none)
            && decision.is_empty()
            && kind.is_empty()
            && !alerts
            && since.is_none()
            && until.is_none()
    }

    /// Whether this record is meant.
    pub(super) fn takes(&self, record: &Value) -> bool {
        let is = |wanted: &Option<String>, pointers: &[&str]| {
            wanted.as_ref().is_none_or(|wanted| pointers.iter().any(|pointer| text(record, pointer) == Some(wanted)))
        };
        let time = record.get("time").and_then(Value::as_i64).unwrap_or(0);
        let whole = resource(record);
        let resource_fits = self.resource.as_ref().is_none_or(|wanted| {
            text(record, "/resources/0/type") == Some(wanted)
                || text(record, "/resources/0/uid") == Some(wanted)
                || whole.as_deref() == Some(wanted)
        });
        let action_fits = self.action.as_ref().is_none_or(|wanted| {
            let action = text(record, "/api/operation").unwrap_or_default();
            wanted.strip_suffix('*').map_or(action == wanted, |start| action.starts_with(start))
        });
        let policies = record.pointer("/unmapped/gatepost/determining_policies").and_then(Value::as_array);
        let policy_fits = self
            .policy
            .as_ref()
            .is_none_or(|wanted| policies.into_iter().flatten().any(|id| id.as_str() == Some(wanted)));
        let ending = ending(record);
        is(&self.principal, &["/actor/user/uid", "/actor/user/name", "/unmapped/gatepost/principal"])
            && is(&self.caller, &["/actor/app_name", "/actor/app_uid"])
            && is(&self.decision_id, &["/metadata/original_event_uid"])
            && resource_fits
            && action_fits
            && policy_fits
            && (self.decision.is_empty() || self.decision.iter().any(|wanted| Some(wanted.as_str()) == ending))
            && (self.kind.is_empty() || self.kind.iter().any(|wanted| wanted == kind(record)))
            && (!self.alerts || record.get("is_alert") == Some(&Value::Bool(true)))
            && self.since.is_none_or(|since| time >= since)
            && self.until.is_none_or(|until| time <= until)
    }
}

/// `Order::"o-1"`, or `Order`.
pub(super) fn resource(record: &Value) -> Option<String> {
    let kind = text(record, "/resources/0/type")?;
    Some(text(record, "/resources/0/uid").map_or_else(|| kind.to_owned(), |id| format!("{kind}::{id:?}")))
}

/// Text for a terminal: nothing in it hides, reorders or commands.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) {
            // Writing to a String can't fail.
            let _ = write!(out, "\\u{{{:04x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// A line of the trail for a terminal. The writer escapes whatever hides; in a line that somebody else made it is escaped
/// here, as JSON has it.
pub(super) fn shown_json(line: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(line);
    if !text.chars().any(is_hidden) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 64);
    let mut units = [0_u16; 2];
    for c in text.chars() {
        if is_hidden(c) {
            for unit in c.encode_utf16(&mut units) {
                // Writing to a String can't fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// One line for people.
pub(super) fn line(record: &Value, colours: bool) -> String {
    let time = shown(text(record, "/time_dt").unwrap_or("-"));
    let Some(ending) = ending(record) else {
        let name = shown(text(record, "/activity_name").unwrap_or("record"));
        let about = kind(record);
        let alert = text(record, "/unmapped/gatepost/alert/pattern").map(|pattern| format!(" {}", shown(pattern)));
        let who = text(record, "/unmapped/gatepost/principal")
            .filter(|_| alert.is_some())
            .map(|who| format!(" {}", shown(who)));
        let detail = text(record, "/status_detail").map(|detail| format!(": {}", shown(detail))).unwrap_or_default();
        let head =
            painted(if alert.is_some() { AnsiColor::Magenta } else { AnsiColor::Cyan }, &shown(about), 11, colours);
        return format!("{time} {head} {name}{}{}{detail}", alert.unwrap_or_default(), who.unwrap_or_default());
    };
    let colour = match ending {
        "allow" => AnsiColor::Green,
        "deny" => AnsiColor::Red,
        "conditional" => AnsiColor::Yellow,
        _ => AnsiColor::Magenta,
    };
    let caller = shown(text(record, "/actor/app_name").unwrap_or("unknown"));
    let who = text(record, "/unmapped/gatepost/principal").or_else(|| text(record, "/actor/user/uid"));
    let action = shown(text(record, "/api/operation").unwrap_or("-"));
    let resource = resource(record).map(|resource| shown(&resource)).unwrap_or_else(|| "-".to_owned());
    let policies = record.pointer("/unmapped/gatepost/determining_policies").and_then(Value::as_array);
    let policies: Vec<String> = policies.into_iter().flatten().filter_map(Value::as_str).map(shown).collect();
    let why = text(record, "/status_detail").map(shown).into_iter().chain(policies).collect::<Vec<_>>().join(" ");
    let head = painted(colour, &ending.to_uppercase(), 11, colours);
    format!("{time} {head} {caller} {} {action} {resource} {why}", who.map_or_else(|| "-".to_owned(), shown))
}

/// Filled up to so many columns, colour or not.
fn painted(colour: AnsiColor, text: &str, width: usize, colours: bool) -> String {
    let text = format!("{text:<width$}");
    if colours {
        let style: Style = colour.on_default();
        format!("{style}{text}{style:#}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_or_so_long_ago() {
        assert_eq!(instant("2026-11-26T10:00:00Z"), Ok(1_795_687_200_000));
        let ago = |text: &str| unix_millis(SystemClock::shared().now()) - instant(text).unwrap();
        for (text, seconds) in [("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800)] {
            let difference = ago(text) - seconds * 1000;
            assert!((-1000..=1000).contains(&difference), "{text}: {difference}");
        }
        for text in ["", "15", "m", "-1h", "1w", "yesterday", "2026-11-26"] {
            assert!(instant(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_in_a_text_commands_a_terminal() {
        for code in (0..0x20).chain([0x7f, 0x9b, 0x202e, 0x2066]) {
            let c = char::from_u32(code).unwrap();
            assert!(shown(&format!("a{c}b")).is_ascii(), "U+{code:04X}");
        }
        let json = "{\"a\":\"\u{9b}31m \u{202e} \u{e0041} caf\u{e9}\"}";
        let escaped = shown_json(json.as_bytes());
        assert_eq!(escaped, "{\"a\":\"\\u009b31m \\u202e \\udb40\\udc41 caf\u{e9}\"}");
        let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(parse(&escaped), parse(json));
        assert!(!shown_json(b"\x1b[2J\xff").contains('\u{1b}'));
        assert_eq!(shown("\u{1b}[31mred"), "\\u{001b}[31mred");
        assert_eq!(shown("caf\u{e9}"), "caf\u{e9}");
    }
}
