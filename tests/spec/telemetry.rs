//! Traces and metrics as a collector receives them: the real binary exports over OTLP to a collector of ours.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use gatepost::cli::demo::world::{World, spiffe_id};
use gatepost::client::Client;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

use crate::support::{copy_bundle, eventually, order};

#[derive(Clone, Default)]
struct Collector {
    traces: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.traces.lock().push(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.metrics.lock().push(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

/// W3C Trace Context: the caller's trace goes on in ours, in the collector and in the record.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_the_caller_s_trace_continued_and_the_metrics() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let serving = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(collector.clone()))
        .add_service(MetricsServiceServer::new(collector.clone()))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::spawn(serving);

    let folder = tempfile::tempdir().unwrap();
    let world = World::create(folder.path()).unwrap();
    copy_bundle(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"), &folder.path().join("policies"));
    let mut settings = world.configuration(Path::new("policies"));
    settings["limits"] = json!({ "default_deadline": "10s", "max_deadline": "10s" });
    settings["telemetry"] = json!({
        "logs": { "format": "json", "filter": "info" },
        "otlp": { "endpoint": endpoint, "sample_ratio": 1.0, "interval": "1s" },
    });
    world.write("gatepost.yaml", &settings.to_string()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_gatepost"))
        .args(["serve", "--config", folder.path().join("gatepost.yaml").to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let serving = lines.find(|line| line.as_ref().unwrap().contains("\"serving\"")).unwrap().unwrap();
    let serving: Value = serde_json::from_str(&serving).unwrap();
    let address = serving["fields"]["address"].as_str().or(serving["address"].as_str()).unwrap().to_owned();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));

    let files = world.client("storefront", &spiffe_id("storefront")).unwrap();
    let client = Client::builder(format!("https://{address}"))
        .server_name("localhost")
        .ca(&files.ca)
        .identity(&files.certificate, &files.private_key)
        .deadline(Duration::from_secs(5))
        .build()
        .unwrap();
    #[expect(clippy::disallowed_methods, reason = "the real binary keeps real time")]
    let now = std::time::SystemTime::now();
    let token = world.token("alice", &json!({ "tenant": "acme" }), now, Duration::from_secs(300)).unwrap();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let ask = order("Order.read", "o-1", "alice").token(&token).traceparent(format!("00-{trace}-b7ad6b7169203331-01"));
    assert!(client.check(ask).await.unwrap().allowed());

    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let spans = || {
        let traces = collector.traces.lock();
        let scopes = traces.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
        let spans: Vec<_> = scopes.flat_map(|scope| &scope.spans).cloned().collect();
        spans
    };
    eventually("the span arrives", || spans().iter().any(|span| hex(&span.trace_id) == trace)).await;
    let span = spans().into_iter().find(|span| hex(&span.trace_id) == trace).unwrap();
    assert_eq!(hex(&span.parent_span_id), "b7ad6b7169203331", "the caller's span is its parent");
    assert_eq!(span.name, "Check");
    let named = |name: &str| {
        let metrics = collector.metrics.lock();
        let scopes =
            metrics.iter().flat_map(|request| &request.resource_metrics).flat_map(|metrics| &metrics.scope_metrics);
        scopes.flat_map(|scope| &scope.metrics).any(|metric| metric.name == name)
    };
    eventually("the metrics arrive", || named("gatepost.decisions") || named("gatepost.decision.count")).await;
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap().code(), Some(0));

    let record = crate::support::trail(&folder.path().join("audit"));
    let record = record.lines().find(|line| line.contains("\"class_uid\":6003")).unwrap();
    let record: Value = serde_json::from_str(record).unwrap();
    assert_eq!(record["trace"]["uid"], trace, "the record names the trace");
    assert_eq!(record["trace"]["span"]["uid"], hex(&span.span_id), "and our span");
    for secret in ["alice", "acme", &token[..20]] {
        assert!(!format!("{:?}", collector.traces.lock()).contains(secret), "{secret} is in no span");
    }
}
