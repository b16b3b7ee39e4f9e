//! The caller's trace: read from its `traceparent`, continued in ours, named in the record.
//!
//! Follows W3C Trace Context section 3.2 strictly: a header that is not exactly right is as good as none. `tracestate`
//! is not read, because Gatepost passes the trace on to nobody.
//!
//! A span's attributes are words of closed lists, names of the configuration and of the bundle, and the decision's id: nothing
//! that a caller sent, and nobody's name.

use http::{HeaderMap, HeaderName};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::metrics::ActionLabel;
use crate::model::ids::DecisionId;

/// The ids that a record names, when there are any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceIds {
    /// 32 lower-case hex digits, not all zero.
    pub trace_id: Option<String>,
    /// 16 lower-case hex digits, not all zero.
    pub span_id: Option<String>,
}

/// Where a caller's trace is named (W3C Trace Context, section 3.2). A name that is made once needs no reading at each look-up.
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The ids of the caller's span, from its one `traceparent`; nothing if there is none, several, or a wrong one.
#[must_use]
pub fn circumstances(headers: &HeaderMap) -> TraceIds {
    parent(headers).as_ref().map(TraceIds::of).unwrap_or_default()
}

/// The target of every span that is exported, and of nothing else.
pub(super) const TARGET: &str = "gatepost::spans";

/// How a call ended, for its span.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'e> {
    /// The id of the decision, which is the record's too.
    pub decision_id: &'e DecisionId,
    /// What was asked for.
    pub action: &'e ActionLabel,
    /// `function`, `object` or `field`.
    pub level: Option<&'static str>,
    /// How.
    pub end: End<'e>,
}

/// The two ways in which it can.
#[derive(Debug, Clone, Copy)]
pub enum End<'e> {
    /// With an answer.
    Answered {
        /// `allow`, `deny` or `conditional`.
        outcome: &'static str,
        /// A denial code.
        denial: Option<&'static str>,
        /// `hit`, `miss` or `bypass`.
        cache: &'static str,
        /// The first digits of the policies' revision.
        revision: &'e str,
    },
    /// With none.
    Refused {
        /// A gRPC status.
        status: &'static str,
        /// A reason of the error reference.
        reason: &'static str,
        /// Whether that is our fault.
        failed: bool,
    },
}

/// The span that one call is answered in. It continues the caller's trace, if there is one and spans are exported.
#[must_use]
pub fn call_span(operation: &'static str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        "call",
        otel.name = operation,
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system = "grpc",
        rpc.method = operation,
        gatepost.decision_id = Empty,
        gatepost.action = Empty,
        gatepost.caller = Empty,
        gatepost.level = Empty,
        gatepost.outcome = Empty,
        gatepost.denial = Empty,
        gatepost.cache = Empty,
        gatepost.policy_revision = Empty,
        gatepost.status = Empty,
        gatepost.reason = Empty,
        gatepost.items = Empty,
    );
    if let Some(parent) = parent(headers) {
        // Without an exporter there is no layer that could take it; the record has the caller's ids all the same.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
    span
}

/// The span of one stage of a call: `admit`, `token`, `request`, `ruling`, `record`; of a batch's items together, `items`.
/// `result` is recorded into it by [`staged`].
#[must_use]
pub fn stage_span(stage: &'static str) -> Span {
    tracing::info_span!(target: TARGET, "stage", otel.name = stage, gatepost.result = Empty)
}

/// What came of a stage, in a word of a closed list.
pub fn staged(span: &Span, result: &'static str) {
    span.record("gatepost.result", result);
}

/// Tells the span of the call that is being answered who asked, by the name in the configuration.
pub fn called_by(caller: &str) {
    Span::current().record("gatepost.caller", caller);
}

/// Tells the span of the call that is being answered how many questions it holds.
pub fn batch_of(items: usize) {
    Span::current().record("gatepost.items", items);
}

/// Tells the span of the call that is being answered how it ended.
pub fn ended(ending: &Ending<'_>) {
    let span = Span::current();
    if span.is_disabled() {
        return;
    }
    let Ending { decision_id, action, level, end } = *ending;
    tracing::record_all!(
        span,
        gatepost.decision_id = display(decision_id),
        gatepost.action = action.as_str(),
        gatepost.level = level,
    );
    match end {
        End::Answered { outcome, denial, cache, revision } => tracing::record_all!(
            span,
            gatepost.outcome = outcome,
            gatepost.denial = denial,
            gatepost.cache = cache,
            gatepost.policy_revision = revision,
        ),
        End::Refused { status, reason, failed } => tracing::record_all!(
            span,
            gatepost.outcome = if failed { "failed" } else { "refused" },
            gatepost.status = status,
            gatepost.reason = reason,
            otel.status_code = failed.then_some("ERROR"),
        ),
    }
}

/// The ids for the record: those of `span` when spans are exported, else the caller's.
#[must_use]
pub fn ids_of(span: &Span, headers: &HeaderMap) -> TraceIds {
    let context = span.context();
    let own = context.span().span_context().clone();
    if own.is_valid() { TraceIds::of(&own) } else { circumstances(headers) }
}

impl TraceIds {
    fn of(context: &SpanContext) -> Self {
        Self { trace_id: Some(context.trace_id().to_string()), span_id: Some(context.span_id().to_string()) }
    }
}

fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let mut all = headers.get_all(&TRACEPARENT).iter();
    let (Some(only), None) = (all.next(), all.next()) else { return None };
    parse(only.to_str().ok()?)
}

/// W3C Trace Context section 3.2.2: `version-traceid-parentid-flags`, lower case. Later versions may add to it.
fn parse(text: &str) -> Option<SpanContext> {
    /// Longer ones are of no version we could know.
    const MAX_BYTES: usize = 256;
    if text.len() > MAX_BYTES {
        return None;
    }
    let mut parts = text.split('-');
    let version = hex(parts.next()?, 2)?;
    let trace_id = hex(parts.next()?, 32)?;
    let span_id = hex(parts.next()?, 16)?;
    let flags = hex(parts.next()?, 2)?;
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace_id).ok()?,
        SpanId::from_hex(span_id).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

fn hex(part: &str, digits: usize) -> Option<&str> {
    let fits = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    fits.then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (TRACEPARENT.clone(), value.parse().unwrap())).collect()
    }

    /// W3C Trace Context section 3.2.2.
    #[test]
    fn a_traceparent_is_taken_whole_or_not_at_all() {
        let good = format!("00-{TRACE}-{SPAN}-01");
        let table = [
            (vec![good.clone()], true, "the everyday shape"),
            (vec![format!("00-{TRACE}-{SPAN}-00")], true, "not sampled"),
            (vec![format!("01-{TRACE}-{SPAN}-01-more")], true, "a later version may add"),
            (vec![], false, "none"),
            (vec![good.clone(), good.clone()], false, "two"),
            (vec![format!("00-{TRACE}-{SPAN}-01-more")], false, "version 00 has four parts"),
            (vec![format!("ff-{TRACE}-{SPAN}-01")], false, "ff is no version"),
            (vec![format!("00-{}-{SPAN}-01", TRACE.to_uppercase())], false, "upper case"),
            (vec![format!("00-{}-{SPAN}-01", "0".repeat(32))], false, "the trace of nothing"),
            (vec![format!("00-{TRACE}-{}-01", "0".repeat(16))], false, "the span of nothing"),
            (vec![format!("00-{TRACE}0-{SPAN}-01")], false, "33 digits"),
            (vec![format!("00-{TRACE}-{SPAN}")], false, "no flags"),
            (vec![format!("00-{TRACE}-{SPAN}-1")], false, "half a flag"),
            (vec![format!("00-{}-{SPAN}-01", "+".repeat(32))], false, "not hex"),
            (vec![String::new()], false, "empty"),
            (vec![format!("01-{TRACE}-{SPAN}-01-{}", "a".repeat(300))], false, "past any version's length"),
        ];
        for (values, expected, why) in table {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let ids = circumstances(&headers(&values));
            let wanted = TraceIds { trace_id: Some(TRACE.to_owned()), span_id: Some(SPAN.to_owned()) };
            assert_eq!(ids, if expected { wanted } else { TraceIds::default() }, "{why}");
        }
    }

    #[test]
    fn the_record_names_our_span_in_the_callers_trace_when_spans_are_exported() {
        use opentelemetry::trace::TracerProvider as _;
        use tracing_subscriber::layer::SubscriberExt as _;

        let headers = headers(&[&format!("00-{TRACE}-{SPAN}-01")]);
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let ids = tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            ids_of(&call_span("Check", &headers), &headers)
        });
        assert_eq!(ids.trace_id.as_deref(), Some(TRACE));
        assert_ne!(ids.span_id.as_deref(), Some(SPAN));

        let unexported = tracing::subscriber::with_default(tracing_subscriber::registry(), || {
            ids_of(&call_span("Check", &headers), &headers)
        });
        assert_eq!(unexported.span_id.as_deref(), Some(SPAN), "else the caller's");
    }
}
