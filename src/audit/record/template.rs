//! The record of a question that is asked again: all that is the same each time is written once.
//!
//! Of two records of the same question by the same caller, few members differ: their ids and times, how long they took,
//! the connection, and what the caller calls the request. A [`Template`] is a record with those members cut out, and
//! filling it in gives byte for byte what [`render`](super::render) would give. Where the members are is found by the
//! JSON around them, which no text can imitate, because in a text each quote has a backslash before it.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use super::super::format::Body;
use super::super::ocsf::Kept;
use super::super::text::{OneLine, Text};
use super::{CallEntry, Frame, QuestionFacts, put_utc, render_call, utc};
use crate::clock::unix_millis;
use crate::model::entity::RawValue;
use crate::model::ids::{DecisionId, RequestId};
use crate::model::question::{BatchPosition, Circumstances};

/// A record with holes.
#[derive(Debug)]
pub(in crate::audit) struct Template {
    /// Each text, and what follows it.
    pieces: Vec<(Box<[u8]>, Hole)>,
    end: Box<[u8]>,
    bytes: usize,
}

/// What differs from record to record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hole {
    RecordId,
    DecisionId,
    /// With its comma and name, or nothing.
    Correlation,
    Millis,
    Stamp,
    DurationMillis,
    /// As `Correlation`.
    Request,
    Source,
    /// As `Correlation`.
    Trace,
    DurationMicros,
    /// And the batch, if it is one.
    Certificate,
    /// The object's id, where it stands twice.
    Object,
    Context,
    /// The values that may be recorded.
    Kept,
}

/// What is about one object alone.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct About<'a> {
    /// Its id.
    pub(super) id: Option<&'a str>,
    /// What the context hashes to.
    pub(super) context_sha256: Option<&'a str>,
    /// The values that may be recorded.
    pub(super) kept: &'a [(String, RawValue)],
}

impl<'a> About<'a> {
    pub(super) fn asked(asked: &'a QuestionFacts) -> Self {
        Self { id: asked.resource_id.as_deref(), context_sha256: asked.context_sha256.as_deref(), kept: &asked.kept }
    }
}

/// One more call that asks the same.
#[derive(Debug, Clone, Copy)]
pub struct Again<'a> {
    /// Names the answer.
    pub decision_id: DecisionId,
    /// When the call came.
    pub time: SystemTime,
    /// How long the answer took.
    pub duration: Duration,
    /// The connection's other end.
    pub address: SocketAddr,
    /// SHA-256 of its certificate, hex.
    pub certificate_sha256: &'a str,
    /// The caller's names for the request.
    pub circumstances: &'a Circumstances,
    /// The batch that it is an item of, and where, if the circumstances do not say so.
    pub place: Option<(DecisionId, BatchPosition)>,
}

/// Stand-ins, in the form of what they stand for.
const ID: &str = "x";
const TRACE: &str = "0";
const SPAN: &str = "1";

impl Template {
    /// Of a record like that of `call`. `None`: it has not the form that is looked for, and must be written each time.
    pub(in crate::audit) fn of(call: &CallEntry, frame: &Frame) -> Option<Self> {
        Self::with_holes(call, frame, false)
    }

    /// Of a record like that of `call`, about whichever object: for [`fill_about`](Self::fill_about).
    pub(super) fn about_any(call: &CallEntry, frame: &Frame) -> Option<Self> {
        Self::with_holes(call, frame, true)
    }

    fn with_holes(call: &CallEntry, frame: &Frame, about_any: bool) -> Option<Self> {
        if call.caller.address.is_none() || call.caller.refusal.is_some() {
            return None;
        }
        let mut call = call.clone();
        call.circumstances = Circumstances {
            request_id: Some(RequestId::parse(ID)?),
            trace_id: Some(TRACE.to_owned()),
            span_id: Some(SPAN.to_owned()),
            ..Circumstances::default()
        };
        let json = render_call(&call, frame).ok()?;
        let text = Body::of(json)?.into_rest();
        // What tells a batch would follow it.
        let certificate = format!("{}\"", call.caller.certificate_sha256.as_deref()?);
        let source = call.caller.address.map(source)?;
        let time = unix_millis(call.time);
        let millis = whole_millis(call.duration);
        let trace = trace_of(TRACE, Some(SPAN), time, millis);
        let stamp = utc(call.time);
        let micros = whole_micros(call.duration);
        let (time, millis, micros) = (time.to_string(), millis.to_string(), micros.to_string());
        let decision_id = call.decision_id.to_string();
        let asked = call.question.as_ref().filter(|_| about_any);
        let about = asked.map(About::asked).unwrap_or_default();
        let object = about.id.map(object);
        let kept = (!about.kept.is_empty()).then(|| kept(about.kept));
        // In the order in which they stand: what precedes each, what it is now, and what follows.
        let mut holes: Vec<(&str, Seek<'_>, &str, Hole)> = vec![
            ("\"uid\":\"", Seek::Long(UUID), "\",", Hole::RecordId),
            ("\"original_event_uid\":\"", Seek::Is(&decision_id), "\"", Hole::DecisionId),
            ("", Seek::Is(",\"correlation_uid\":\"x\""), ",\"log_name\":", Hole::Correlation),
            (",\"time\":", Seek::Is(&time), ",", Hole::Millis),
            ("\"time_dt\":\"", Seek::Is(&stamp), "\"", Hole::Stamp),
            (",\"duration\":", Seek::Is(&millis), ",", Hole::DurationMillis),
            ("", Seek::Is(",\"request\":{\"uid\":\"x\"}"), ",\"response\":", Hole::Request),
            ("\"src_endpoint\":{", Seek::Is(&source), ",\"svc_name\":", Hole::Source),
            ("", Seek::Is(&trace), ",\"device\":", Hole::Trace),
            ("\"decision_us\":", Seek::Is(&micros), ",", Hole::DurationMicros),
            ("\"certificate_sha256\":\"", Seek::Is(&certificate), "", Hole::Certificate),
        ];
        if let Some(object) = &object {
            let source = holes.iter().position(|(_, _, _, hole)| *hole == Hole::Source)?;
            holes.insert(source, ("\"resources\":[{", Seek::Is(object), ",\"type\":", Hole::Object));
        }
        if let Some(context) = about.context_sha256 {
            holes.push(("\"context_sha256\":\"", Seek::Is(context), "\"", Hole::Context));
        }
        if let Some(kept) = &kept {
            holes.push(("\"kept\":", Seek::Is(kept), "", Hole::Kept));
        }
        let (mut pieces, mut rest) = (Vec::with_capacity(holes.len()), text.as_slice());
        for (before, seek, after, hole) in holes {
            let now = match seek {
                Seek::Is(now) => format!("{before}{now}{after}"),
                Seek::Long(_) => before.to_owned(),
            };
            let at = find(rest, now.as_bytes())? + before.len();
            let (piece, from) = rest.split_at_checked(at)?;
            rest = from.get(seek.bytes()..)?;
            if !rest.starts_with(after.as_bytes()) {
                return None;
            }
            pieces.push((Box::from(piece), hole));
        }
        let bytes = text.len() + MORE;
        Some(Self { pieces, end: Box::from(rest), bytes })
    }

    /// The record of one more call, in the empty buffer `out`.
    pub(in crate::audit) fn fill(&self, again: &Again<'_>, out: Vec<u8>) -> Body {
        self.fill_about(again, About::default(), out)
    }

    /// The same about this object, where the template is [about any](Self::about_any).
    pub(super) fn fill_about(&self, again: &Again<'_>, about: About<'_>, mut out: Vec<u8>) -> Body {
        let circumstances = again.circumstances;
        let batch_id = again.place.map(|(id, _)| id).or(circumstances.batch_id);
        let batch = again.place.map(|(_, at)| at).or(circumstances.batch);
        for (piece, hole) in &self.pieces {
            out.extend_from_slice(piece);
            match hole {
                Hole::RecordId => out.extend_from_slice(&DecisionId::mint(again.time).text()),
                Hole::DecisionId => out.extend_from_slice(&again.decision_id.text()),
                Hole::Correlation => {
                    if let Some(id) = &circumstances.request_id {
                        out.extend_from_slice(b",\"correlation_uid\":");
                        text(&mut out, id.as_str());
                    } else if let Some(id) = batch_id {
                        out.extend_from_slice(b",\"correlation_uid\":\"");
                        out.extend_from_slice(&id.text());
                        out.push(b'"');
                    }
                }
                Hole::Millis => number(&mut out, unix_millis(again.time)),
                Hole::Stamp => put_utc(&mut out, again.time),
                Hole::DurationMillis => number(&mut out, whole_millis(again.duration)),
                Hole::Request => {
                    if let Some(id) = &circumstances.request_id {
                        out.extend_from_slice(b",\"request\":{\"uid\":");
                        text(&mut out, id.as_str());
                        out.push(b'}');
                    }
                }
                Hole::Source => put_source(&mut out, again.address),
                Hole::Trace => {
                    if let Some(trace) = circumstances.trace_id.as_deref() {
                        let (time, took) = (unix_millis(again.time), whole_millis(again.duration));
                        out.extend_from_slice(trace_of(trace, circumstances.span_id.as_deref(), time, took).as_bytes());
                    }
                }
                Hole::DurationMicros => number(&mut out, whole_micros(again.duration)),
                Hole::Object => put_object(&mut out, about.id.unwrap_or_default()),
                Hole::Context => out.extend_from_slice(about.context_sha256.unwrap_or_default().as_bytes()),
                Hole::Kept => put_json(&mut out, &Kept(about.kept)),
                Hole::Certificate => {
                    out.extend_from_slice(again.certificate_sha256.as_bytes());
                    out.push(b'"');
                    if let Some(at) = batch {
                        out.extend_from_slice(b",\"batch\":{");
                        if let Some(id) = batch_id {
                            out.extend_from_slice(b"\"id\":\"");
                            out.extend_from_slice(&id.text());
                            out.extend_from_slice(b"\",");
                        }
                        put(&mut out, format_args!("\"index\":{},\"of\":{}}}", at.index, at.of));
                    }
                }
            }
        }
        out.extend_from_slice(&self.end);
        Body::from_rest(out)
    }

    /// The longest that a record from it can get, without what numbers and chains it.
    pub(in crate::audit) fn longest(&self) -> usize {
        self.bytes
    }

    /// How many bytes it holds, about.
    pub(in crate::audit) fn bytes(&self) -> usize {
        self.bytes + self.pieces.len() * size_of::<(Box<[u8]>, Hole)>()
    }
}

/// How much longer than its template a record may be: a request id twice, a trace, a batch, and longer numbers.
const MORE: usize = 1024;
const UUID: usize = 36;

/// What stands where a hole is to be.
#[derive(Clone, Copy)]
enum Seek<'a> {
    Is(&'a str),
    /// It is not known, but for its length.
    Long(usize),
}

impl Seek<'_> {
    fn bytes(self) -> usize {
        match self {
            Self::Is(text) => text.len(),
            Self::Long(bytes) => bytes,
        }
    }
}

fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}

/// As the endpoint of a record begins.
fn source(address: SocketAddr) -> String {
    format!("\"ip\":\"{}\",\"port\":{}", address.ip().to_canonical(), address.port())
}

/// The same at the end of `out`.
fn put_source(out: &mut Vec<u8>, address: SocketAddr) {
    out.extend_from_slice(b"\"ip\":\"");
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            for (at, octet) in ip.octets().into_iter().enumerate() {
                if at > 0 {
                    out.push(b'.');
                }
                number(out, octet);
            }
        }
        IpAddr::V6(ip) => put(out, format_args!("{ip}")),
    }
    out.extend_from_slice(b"\",\"port\":");
    number(out, address.port());
}

/// A number in decimal, without the machinery of formats: a record has several.
fn number(out: &mut Vec<u8>, value: impl TryInto<u64> + Copy + std::fmt::Display) {
    let Ok(mut rest) = value.try_into() else { return put(out, format_args!("{value}")) };
    let (mut digits, mut at) = ([0; 20], 20);
    loop {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        }
        rest /= 10;
        if rest == 0 {
            return out.extend_from_slice(digits.get(at..).unwrap_or_default());
        }
    }
}

/// As the resource of a record begins.
fn object(id: &str) -> String {
    let mut out = Vec::new();
    put_object(&mut out, id);
    String::from_utf8(out).unwrap_or_default()
}

/// The same at the end of `out`.
fn put_object(out: &mut Vec<u8>, id: &str) {
    out.extend_from_slice(b"\"uid\":");
    text(out, id);
    out.extend_from_slice(b",\"name\":");
    text(out, id);
}

/// Ids of a trace are hex digits, and need no escaping.
fn trace_of(trace: &str, span: Option<&str>, time: i64, took: i64) -> String {
    let mut text = format!(",\"trace\":{{\"uid\":\"{trace}\"");
    if let Some(span) = span {
        let end = time.saturating_add(took);
        // Writing to a String can't fail.
        let _ = write!(text, ",\"span\":{{\"uid\":\"{span}\",\"start_time\":{time},\"end_time\":{end}}}");
    }
    text.push('}');
    text
}

fn whole_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn whole_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    // Writing to a Vec can't fail.
    let _ = out.write_fmt(text);
}

/// Values as a record shows them.
fn kept(values: &[(String, RawValue)]) -> String {
    let mut out = Vec::new();
    put_json(&mut out, &Kept(values));
    String::from_utf8(out).unwrap_or_default()
}

fn text(out: &mut Vec<u8>, text: &str) {
    put_json(out, &Text::new(text));
}

/// As the record's own serializer writes it.
fn put_json(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    // Only a map with keys that are no texts could fail.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(out, OneLine));
}
