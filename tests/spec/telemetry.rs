//! Traces and metrics as a collector receives them: the real binary exports over OTLP, to a collector of ours and to a real one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use gatepost::client::Batch;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::support::process::Place;
use crate::support::{channel_to, eventually, order};

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

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Everything that a span may say of itself.
const ATTRIBUTES: [&str; 14] = [
    "rpc.system",
    "rpc.method",
    "gatepost.decision_id",
    "gatepost.action",
    "gatepost.caller",
    "gatepost.level",
    "gatepost.outcome",
    "gatepost.denial",
    "gatepost.cache",
    "gatepost.policy_revision",
    "gatepost.status",
    "gatepost.reason",
    "gatepost.items",
    "gatepost.result",
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn traceparent(trace: &str) -> String {
    format!("00-{trace}-{PARENT}-01")
}

impl Collector {
    /// Starts it; gives its address.
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        tokio::spawn(serving);
        endpoint
    }

    /// The spans of one trace that have arrived.
    fn spans(&self, trace: &str) -> Vec<Span> {
        let traces = self.traces.lock();
        let scopes = traces.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
        scopes.flat_map(|scope| &scope.spans).filter(|span| hex(&span.trace_id) == trace).cloned().collect()
    }

    /// A whole trace: its root has arrived, which is the last to end.
    async fn whole(&self, trace: &str) -> (Span, Vec<Span>) {
        let is_root = |span: &Span| hex(&span.parent_span_id) == PARENT;
        eventually("the call's span arrives", || self.spans(trace).iter().any(is_root)).await;
        let (mut roots, stages): (Vec<_>, Vec<_>) = self.spans(trace).into_iter().partition(is_root);
        assert_eq!(roots.len(), 1, "one span of the call");
        (roots.remove(0), stages)
    }
}

/// A span's attributes, as text.
fn attributes(span: &Span) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        other => panic!("{}: {other:?}", pair.key),
    };
    let attributes: BTreeMap<String, String> = span.attributes.iter().map(|it| (it.key.clone(), text(it))).collect();
    for key in attributes.keys() {
        assert!(ATTRIBUTES.contains(&key.as_str()), "`{key}` is not on the list");
    }
    attributes
}

/// What a stage says of itself, by its name.
fn stages(root: &Span, stages: &[Span]) -> BTreeMap<String, String> {
    let told = stages.iter().map(|span| {
        assert_eq!(hex(&span.parent_span_id), hex(&root.span_id), "{} is a stage of the call", span.name);
        assert!(root.start_time_unix_nano <= span.start_time_unix_nano, "{}", span.name);
        assert!(span.end_time_unix_nano <= root.end_time_unix_nano, "{}", span.name);
        assert!(span.events.is_empty(), "no log line is in it");
        (span.name.clone(), attributes(span).remove("gatepost.result").unwrap_or_default())
    });
    told.collect()
}

/// A server that exports to `endpoint`.
fn exporting(endpoint: &str) -> Place {
    Place::new(|settings| {
        settings["telemetry"]["otlp"] = json!({ "endpoint": endpoint, "sample_ratio": 0.0, "interval": "1s" });
    })
}

/// W3C Trace Context: the caller's trace goes on in ours, stage by stage, in the collector and in the record.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_the_caller_s_trace_continued_with_a_span_for_each_stage() {
    let collector = Collector::default();
    let place = exporting(&collector.start().await);
    let mut process = place.start().await;
    let (client, token) = (place.client(&process), place.token());

    let ask = || order("Order.read", "o-1", "alice").token(&token);
    assert!(client.check(ask().traceparent(traceparent(TRACE))).await.unwrap().allowed());
    let (root, children) = collector.whole(TRACE).await;
    assert_eq!(root.name, "Check");
    let told = attributes(&root);
    let expected = [
        ("rpc.system", "grpc"),
        ("rpc.method", "Check"),
        ("gatepost.action", "Order.read"),
        ("gatepost.caller", "storefront"),
        ("gatepost.level", "object"),
        ("gatepost.outcome", "allow"),
        ("gatepost.cache", "miss"),
    ];
    for (key, value) in expected {
        assert_eq!(told.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!(told["gatepost.policy_revision"].len(), 12);
    let steps = [
        ("admit", "admitted"),
        ("token", "verified"),
        ("request", "checked"),
        ("ruling", "miss"),
        ("record", "written"),
    ];
    let steps: BTreeMap<_, _> = steps.map(|(stage, result)| (stage.to_owned(), result.to_owned())).into();
    assert_eq!(stages(&root, &children), steps);

    // A denial, a refusal, and a batch: each a trace of the caller's.
    let other = |number: u8| TRACE.replace("0af7", &format!("{number:04x}"));
    let expired = order("Order.read", "o-1", "alice").token("a.b.c").traceparent(traceparent(&other(1)));
    assert!(!client.check(expired).await.unwrap().allowed());
    let (root, children) = collector.whole(&other(1)).await;
    assert_eq!(attributes(&root)["gatepost.denial"], "TOKEN_REJECTED");
    let steps = stages(&root, &children);
    assert_eq!(steps["token"], "SHAPE");
    assert_eq!(steps.keys().collect::<Vec<_>>(), ["admit", "record", "token"], "no further than that");

    let files = place.world.client("stranger", "spiffe://shop.example/ns/shop/sa/stranger").unwrap();
    let channel = channel_to(process.address, &files).await.unwrap();
    let mut stranger = gatepost::proto::v1::decision_service_client::DecisionServiceClient::new(channel);
    let mut request = Request::new(crate::failing_closed::wire(&token));
    request.metadata_mut().insert("traceparent", traceparent(&other(2)).parse().unwrap());
    stranger.check(request).await.unwrap_err();
    let (root, children) = collector.whole(&other(2)).await;
    let told = attributes(&root);
    assert_eq!(
        (told["gatepost.outcome"].as_str(), told["gatepost.reason"].as_str()),
        ("refused", "CALLER_NOT_ENROLLED")
    );
    assert!(!told.contains_key("gatepost.caller"), "a stranger has no name here");
    assert_eq!(stages(&root, &children)["admit"], "CALLER_NOT_ENROLLED");

    let batch =
        (0..50).fold(Batch::new(), |batch, number| batch.ask(order("Order.read", &format!("o-{number}"), "alice")));
    client.batch(batch.token(&token).traceparent(traceparent(&other(3)))).await.unwrap();
    let (root, children) = collector.whole(&other(3)).await;
    assert_eq!((root.name.as_str(), attributes(&root)["gatepost.items"].as_str()), ("BatchCheck", "50"));
    let steps = stages(&root, &children);
    assert_eq!(steps.keys().collect::<Vec<_>>(), ["admit", "items", "record", "token"], "and not three for each item");
    assert_eq!(children.len(), 4);

    // Nobody asked for a trace, and our share is none.
    let _ = client.check(ask()).await.unwrap();
    let unsampled = format!("00-{}-{PARENT}-00", other(4));
    let _ = client.check(ask().traceparent(unsampled)).await.unwrap();

    let named = |name: &str| {
        let metrics = collector.metrics.lock();
        let scopes =
            metrics.iter().flat_map(|request| &request.resource_metrics).flat_map(|metrics| &metrics.scope_metrics);
        scopes.flat_map(|scope| &scope.metrics).any(|metric| metric.name == name)
    };
    eventually("the metrics arrive", || named("gatepost.decisions")).await;
    let records = place.records();
    assert_eq!(process.stop(), Some(0));

    let traces: BTreeSet<String> = {
        let traces = collector.traces.lock();
        let scopes = traces.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
        scopes.flat_map(|scope| &scope.spans).map(|span| hex(&span.trace_id)).collect()
    };
    assert_eq!(traces, [TRACE.to_owned(), other(1), other(2), other(3)].into(), "and no other, once all was sent");
    let (root, _) = collector.whole(TRACE).await;
    let record = records.iter().find(|record| record["class_uid"] == 6003).unwrap();
    assert_eq!(record["trace"]["uid"], TRACE, "the record names the trace");
    assert_eq!(record["trace"]["span"]["uid"], hex(&root.span_id), "and our span");
    assert_eq!(record["metadata"]["original_event_uid"], attributes(&root)["gatepost.decision_id"].as_str());
    let sent = format!("{:?} {:?}", collector.traces.lock(), collector.metrics.lock());
    for secret in ["alice", "acme", "o-1", "o-49", "stranger", &token[..20]] {
        assert!(!sent.contains(secret), "{secret} is in no span and no metric");
    }
}

/// A collector that is a program of its own: whatever it is told, it prints.
struct Agent {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    fn start(program: &std::path::Path, folder: &std::path::Path, address: std::net::SocketAddr) -> Self {
        let mut command = Command::new(program);
        command.args([
            "start",
            "--exporter",
            "blackhole",
            "--debug-log",
            "traces",
            "--debug-log-verbosity",
            "detailed",
        ]);
        command.arg("--pid-file").arg(folder.join("pid"));
        command.arg("--otlp-grpc-endpoint").arg(address.to_string());
        command.arg("--otlp-http-endpoint").arg(crate::replicas::free_port().to_string());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (lines, heard) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&said));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().extend([line.trim(), "\n"]);
            }
        });
        Self { child, said }
    }

    /// Name, id and parent of each span of a trace.
    fn spans(&self, trace: &str) -> Vec<[String; 3]> {
        let said = self.said.lock();
        let blocks = said.split("Trace ID       : ").skip(1).filter(|block| block.starts_with(trace));
        let field = |block: &str, name: &str| {
            let line = block.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(": ").map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        blocks.map(|block| ["Name ", "ID ", "Parent ID "].map(|name| field(block, name))).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_collector_has_the_call_in_the_caller_s_trace_and_the_stages_under_it() {
    let Some((program, _)) = crate::collectors::program("rotel", "rotel-agent") else { return };
    let folder = tempfile::tempdir().unwrap();
    let address = crate::replicas::free_port();
    let agent = Agent::start(&program, folder.path(), address);
    eventually("the collector listens", || std::net::TcpStream::connect(address).is_ok()).await;
    let place = exporting(&format!("http://{address}"));
    let mut process = place.start().await;
    let ask = order("Order.read", "o-1", "alice").token(place.token()).traceparent(traceparent(TRACE));
    assert!(place.client(&process).check(ask).await.unwrap().allowed());
    // What is waiting is sent at the end.
    assert_eq!(process.stop(), Some(0));

    eventually("all spans are printed", || {
        agent.spans(TRACE).iter().filter(|[name, ..]| !name.is_empty()).count() == 6
    })
    .await;
    let spans = agent.spans(TRACE);
    let [_, id, parent] = spans.iter().find(|[name, ..]| name == "Check").unwrap();
    assert_eq!(parent, PARENT, "the caller's span is its parent");
    let of_call: BTreeSet<&str> =
        spans.iter().filter(|[.., parent]| parent == id).map(|[name, ..]| name.as_str()).collect();
    assert_eq!(of_call, BTreeSet::from(["admit", "token", "request", "ruling", "record"]));
    let record = place.records().into_iter().find(|record| record["class_uid"] == 6003).unwrap();
    assert_eq!((&record["trace"]["uid"], &record["trace"]["span"]["uid"]), (&json!(TRACE), &json!(id)));
    assert!(!agent.said.lock().contains("alice"), "and nobody's name");
}
