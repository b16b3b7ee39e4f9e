//! Logs, traces and metrics: what operators watch. What auditors read is `audit`.
//!
//! Logs go to standard error, through a queue that nobody waits for. Traces and metrics go out over OTLP when the configuration says where; metrics are also
//! there for Prometheus. Nothing here is needed for a decision, so nothing here may fail one.
//!
//! Imports `config`. Never holds a token, a claim, an attribute or any other text that a caller sent.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::FilterExt as _;
use tracing_subscriber::filter::combinator::And;
use tracing_subscriber::filter::{Filtered, Targets};
use tracing_subscriber::layer::Layered;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use self::lines::{LastLines, Lines};
use crate::config::{LogFormat, OtlpConfig, TelemetryConfig};

mod instruments;
mod lines;
pub mod metrics;
mod process;
pub mod traces;

pub use metrics::Metrics;
pub use process::Process;

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `telemetry.logs.filter` is not a filter.
    #[error("`telemetry.logs.filter` is not a `tracing` filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The process has a subscriber already.
    #[error("logging has been set up already")]
    Subscriber(#[from] tracing_subscriber::util::TryInitError),
    /// The thread that writes logs could not be started.
    #[error("logs can't be written")]
    Logs(#[source] io::Error),
    /// The exporter for OTLP could not be made.
    #[error("the OTLP exporter could not be made")]
    Otlp(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The Prometheus side could not be made.
    #[error("the metrics registry could not be made")]
    Registry(#[source] opentelemetry_sdk::error::OTelSdkError),
}

/// Everything that was set up, for as long as the process runs.
#[derive(Debug)]
pub struct Telemetry {
    /// Every instrument.
    pub metrics: Metrics,
    /// What `/metrics` shows.
    pub registry: prometheus::Registry,
    tracer: Option<SdkTracerProvider>,
    /// Last, so that what the others have to say on their way out is still written.
    _logs: Option<LastLines>,
}

type Logs = Box<dyn Layer<Registry> + Send + Sync>;
type LogFilter = And<EnvFilter, Targets, Registry>;

impl Telemetry {
    /// Sets up the process's logs and, if configured, the export of traces and metrics. Once a process; with OTLP it
    /// has to run inside a tokio runtime that outlives it.
    ///
    /// # Errors
    /// [`TelemetryError`] says which part.
    pub fn start(config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let filter = EnvFilter::try_new(&config.log_filter)?;
        let (metrics, registry) = Metrics::new(config.otlp.as_ref())?;
        let tracer = config.otlp.as_ref().map(tracer).transpose()?;
        let spans = tracer.as_ref().map(|provider| {
            // Those alone: a log line may hold what a span must not, and the exporter's own HTTP/2 spans would be exported,
            // and so on for ever.
            let own = Targets::new().with_target(traces::TARGET, LevelFilter::INFO);
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("gatepost"))
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false)
                .with_filter(own)
        });
        let lines = Lines::to(io::stderr()).map_err(TelemetryError::Logs)?;
        let logs = match config.log_format {
            LogFormat::Json => tracing_subscriber::fmt::layer()
                .json()
                .with_writer(lines.clone())
                // It would be reported to standard error, past the queue.
                .log_internal_errors(false)
                .boxed(),
            LogFormat::Human => tracing_subscriber::fmt::layer()
                .with_writer(lines.clone())
                .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty()))
                .log_internal_errors(false)
                .boxed(),
        };
        dispatch(logs, filter, spans).try_init()?;
        Ok(Self { metrics, registry, tracer, _logs: Some(LastLines(lines)) })
    }

    /// Sends what is still waiting, for `within` at most.
    pub async fn shutdown(self, within: Duration) {
        let flush = tokio::task::spawn_blocking(move || {
            if let Some(tracer) = &self.tracer {
                // Nobody is left to tell.
                let _ = tracer.shutdown_with_timeout(within);
            }
            self.metrics.shutdown(within);
        });
        let _ = tokio::time::timeout(within, flush).await;
    }
}

fn tracer(otlp: &OtlpConfig) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(otlp.endpoint.as_str())
        .with_timeout(EXPORT_TIMEOUT)
        .build()?;
    // A caller that traces decides; when none did, our share does.
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(otlp.sample_ratio)));
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(sampler)
        .with_resource(resource())
        .build())
}

/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What exported data says about its origin.
fn resource() -> Resource {
    // In a cluster the host is the pod. Without it the series of replicas would be pushed over one another.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let instance = format!("{}-{}", host.trim(), std::process::id());
    Resource::builder_empty()
        .with_service_name("gatepost")
        .with_attributes([
            opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            opentelemetry::KeyValue::new("service.instance.id", instance),
        ])
        .build()
}

/// Lines for `logs` and spans for the collector. Where there is none they cost nothing, as none are made.
fn dispatch<S>(logs: Logs, filter: EnvFilter, spans: Option<S>) -> Dispatch
where
    S: Layer<Layered<Filtered<Logs, LogFilter, Registry>, Registry>> + Send + Sync,
{
    let no_spans = Targets::new().with_default(LevelFilter::TRACE).with_target(traces::TARGET, LevelFilter::OFF);
    let logged = tracing_subscriber::registry().with(logs.with_filter(filter.and(no_spans)));
    match spans {
        Some(spans) => logged.with(spans).into(),
        // Not `with(None)`: a layer that may be there is asked for nothing and wants everything, so each span would be made.
        None => logged.into(),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::Tracer as _;

    use super::*;

    #[test]
    fn a_process_has_its_logs_set_up_once_and_by_a_filter_that_is_one() {
        let config =
            |filter: &str| TelemetryConfig { log_format: LogFormat::Json, log_filter: filter.to_owned(), otlp: None };
        assert!(matches!(Telemetry::start(&config("gatepost=loud")), Err(TelemetryError::Filter(_))));
        Telemetry::start(&config("off")).unwrap();
        assert!(matches!(Telemetry::start(&config("off")), Err(TelemetryError::Subscriber(_))));
    }

    #[test]
    fn spans_are_made_where_there_is_a_collector_and_nowhere_else() {
        let spans = |layer| {
            let logs = tracing_subscriber::fmt::layer().with_writer(io::sink).boxed();
            tracing::dispatcher::with_default(&dispatch(logs, EnvFilter::new("debug"), layer), || {
                let spans = [traces::call_span("Check", &http::HeaderMap::new()), traces::stage_span("ruling")];
                spans.map(|span| !span.is_disabled())
            })
        };
        let layer = tracing_opentelemetry::layer();
        assert_eq!(spans(Some(layer)), [true, true]);
        assert_eq!(spans(None), [false, false]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_waiting_is_sent_at_the_end_and_a_mute_collector_holds_nobody_up() {
        let collector = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", collector.local_addr().unwrap());
        let otlp =
            OtlpConfig { endpoint: endpoint.parse().unwrap(), sample_ratio: 1.0, interval: Duration::from_secs(3600) };
        let (metrics, registry) = Metrics::new(Some(&otlp)).unwrap();
        let provider = tracer(&otlp).unwrap();
        provider.tracer("test").in_span("call", |_| ());
        let telemetry = Telemetry { metrics, registry, tracer: Some(provider), _logs: None };

        let shutdown = tokio::spawn(telemetry.shutdown(Duration::from_millis(200)));
        let _mute = collector.accept().await.unwrap();
        shutdown.await.unwrap();
    }
}
