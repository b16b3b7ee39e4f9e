//! The operators' door: `/livez`, `/readyz` and `/metrics` over plain HTTP on a port of its own.
//!
//! Probes and scrapers have no client certificate, so nothing here may tell anything that matters to an attacker:
//! names of conditions and issuers, and numbers, no more. It answers GET and HEAD, one request a connection, within
//! limits of its own, so that nobody can hold it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use prometheus::{Encoder as _, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// Connections at once; more wait in the system's queue.
const CONNECTIONS: usize = 128;
/// Connections of one address at once; more are closed. Probes must be answered while somebody holds on to all of his:
/// a liveness probe that isn't gets us killed.
const OF_ONE_ADDRESS: usize = 16;
/// How long we wait for others.
const PATIENCE: Patience = Patience { head: Duration::from_secs(5), connection: Duration::from_secs(15) };
/// Headers of a request.
const HEADERS: usize = 32;
/// A request's head, bytes; the smallest that hyper takes.
const HEADER_BYTES: usize = 8 * 1024;

#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For a request's head.
    head: Duration,
    /// For a connection in all.
    connection: Duration,
}

/// Whether this process should be sent questions: every condition has to hold.
pub struct Readiness {
    set: Mutex<BTreeMap<&'static str, bool>>,
    /// Says that `set` was changed.
    changed: watch::Sender<()>,
    watched: Mutex<BTreeMap<&'static str, Watch>>,
    noted: Mutex<BTreeMap<&'static str, Note>>,
}

type Watch = Box<dyn Fn() -> bool + Send + Sync>;
type Note = Box<dyn Fn() -> Vec<(String, bool)> + Send + Sync>;

impl Readiness {
    /// Not ready until each of `conditions` has been [`set`](Self::set).
    #[must_use]
    pub fn expecting(conditions: &[&'static str]) -> Arc<Self> {
        let set = conditions.iter().map(|name| (*name, false)).collect();
        let changed = watch::Sender::new(());
        Arc::new(Self { set: Mutex::new(set), changed, watched: Mutex::default(), noted: Mutex::default() })
    }

    /// Whether the condition `name` holds now. `set("draining", false)` reads as: not ready because of draining.
    pub fn set(&self, name: &'static str, ok: bool) {
        self.set.lock().insert(name, ok);
        self.changed.send_replace(());
    }

    /// Waits until the condition `name` has been [`set`](Self::set) to `ok`.
    pub async fn until(&self, name: &'static str, ok: bool) {
        let mut changes = self.changed.subscribe();
        // Listening begins before the look, so that no change falls between the two.
        while self.set.lock().get(name) != Some(&ok) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Asks `holds` whether `name` holds, each time somebody wants to know. It must be quick.
    pub fn watch(&self, name: &'static str, holds: impl Fn() -> bool + Send + Sync + 'static) {
        self.watched.lock().insert(name, Box::new(holds));
    }

    /// Parts of one `kind` that come and go by themselves, each with whether it is well: shown, and no condition, because
    /// one that is down must not take away what the others do. `read` must be quick.
    pub fn note(&self, kind: &'static str, read: impl Fn() -> Vec<(String, bool)> + Send + Sync + 'static) {
        self.noted.lock().insert(kind, Box::new(read));
    }

    /// A line for each part: `issuer https://idp.example.org ready`, or `not ready`.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let noted = self.noted.lock();
        let lines = noted.iter().flat_map(|(kind, read)| {
            let word = |well: bool| if well { "ready" } else { "not ready" };
            read().into_iter().map(move |(name, well)| format!("{kind} {name} {}", word(well)))
        });
        lines.collect()
    }

    /// The conditions that do not hold, sorted; empty when ready.
    #[must_use]
    pub fn unmet(&self) -> Vec<&'static str> {
        let mut unmet: Vec<_> = self.set.lock().iter().filter(|(_, ok)| !**ok).map(|(name, _)| *name).collect();
        unmet.extend(self.watched.lock().iter().filter(|(_, holds)| !holds()).map(|(name, _)| *name));
        unmet.sort_unstable();
        unmet
    }
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readiness").field("unmet", &self.unmet()).finish()
    }
}

/// The routes. Anything else is 404; another method than GET or HEAD is 405.
pub fn router(readiness: Arc<Readiness>, registry: prometheus::Registry) -> Router {
    Router::new()
        .route("/livez", get(|| async { plain(StatusCode::OK, "ok\n".to_owned()) }))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(metrics).with_state(registry))
}

async fn readyz(State(readiness): State<Arc<Readiness>>) -> Response {
    let unmet = readiness.unmet();
    let (status, first) = match unmet.as_slice() {
        [] => (StatusCode::OK, "ok\n".to_owned()),
        unmet => (StatusCode::SERVICE_UNAVAILABLE, unmet.iter().map(|name| format!("{name}\n")).collect()),
    };
    plain(status, readiness.notes().iter().fold(first, |text, note| text + note + "\n"))
}

async fn metrics(State(registry): State<prometheus::Registry>) -> Response {
    let encoder = TextEncoder::new();
    let mut page = Vec::new();
    if let Err(error) = encoder.encode(&registry.gather(), &mut page) {
        tracing::warn!(%error, "metrics could not be shown");
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be shown\n".to_owned());
    }
    ([(header::CONTENT_TYPE, encoder.format_type().to_owned()), no_store()], page).into_response()
}

fn plain(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()), no_store()], text).into_response()
}

fn no_store() -> (header::HeaderName, String) {
    (header::CACHE_CONTROL, "no-store".to_owned())
}

/// One connection of an address.
struct Guest {
    all: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Guest {
    fn admit(all: &Arc<Mutex<HashMap<IpAddr, usize>>>, address: IpAddr) -> Option<Self> {
        let mut counts = all.lock();
        let held = counts.entry(address).or_default();
        if *held >= OF_ONE_ADDRESS {
            return None;
        }
        *held += 1;
        Some(Self { all: Arc::clone(all), address })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.all.lock();
        match counts.get_mut(&self.address) {
            Some(held) if *held > 1 => *held -= 1,
            Some(_) | None => drop(counts.remove(&self.address)),
        }
    }
}

/// Serves `router` on `listener` until `drain` is cancelled; requests under way are finished, within their time.
pub async fn serve(listener: TcpListener, router: Router, drain: CancellationToken) {
    serve_with(listener, router, drain, PATIENCE).await;
}

async fn serve_with(listener: TcpListener, router: Router, drain: CancellationToken, patience: Patience) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let guests = Arc::new(Mutex::new(HashMap::new()));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            () = drain.cancelled() => break,
            next = next => next,
        };
        let (stream, guest) = match accepted {
            Ok((stream, address)) => match Guest::admit(&guests, address.ip()) {
                Some(guest) => (stream, guest),
                None => continue,
            },
            Err(error) => {
                // Out of file descriptors, most likely: a moment's rest instead of a busy loop.
                tracing::warn!(%error, "an operator's connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _held = (place, guest);
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(patience.head)
                .max_headers(HEADERS)
                .max_buf_size(HEADER_BYTES)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Whatever went wrong is the other end's to notice.
            let _ = tokio::time::timeout(patience.connection, connection).await;
        });
    }
    drop(listener);
    let everyone = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(patience.connection, places.acquire_many(everyone)).await;
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::telemetry::Metrics;

    async fn started(readiness: &Arc<Readiness>) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let (metrics, registry) = Metrics::new(None).unwrap();
        metrics.refused("UNAVAILABLE", "NO_POLICIES");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = CancellationToken::new();
        let router = router(Arc::clone(readiness), registry);
        let stop = drain.clone();
        let served = tokio::spawn(async move {
            serve(listener, router, stop).await;
            drop(metrics);
        });
        (address, drain, served)
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    fn call(method: &str, path: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nhost: ops\r\n\r\n")
    }

    #[tokio::test]
    async fn probes_and_scrapers_get_what_they_ask_for_and_nobody_else_anything() {
        let readiness = Readiness::expecting(&["policies"]);
        readiness.set("policies", true);
        let (address, _drain, _served) = started(&readiness).await;
        let many = format!("GET /livez HTTP/1.1\r\nhost: ops\r\n{}\r\n", "a: b\r\n".repeat(HEADERS));
        let long = format!("GET /livez HTTP/1.1\r\nhost: ops\r\na: {}\r\n\r\n", "b".repeat(HEADER_BYTES));
        let table = [
            (call("GET", "/livez"), "200", "ok", "alive"),
            (call("HEAD", "/livez"), "200", "", "a probe without a body"),
            (call("GET", "/readyz"), "200", "ok", "ready"),
            (call("GET", "/metrics"), "200", "gatepost_refused_total", "Prometheus text"),
            (call("POST", "/metrics"), "405", "", "nothing is taken"),
            (call("DELETE", "/livez"), "405", "", "nothing is taken"),
            (call("GET", "/"), "404", "", "nothing else is here"),
            (call("GET", "/metrics/../livez"), "404", "", "paths are taken as written"),
            (many, "431", "", "too many headers"),
            (long, "431", "", "too long a head"),
            ("nonsense\r\n\r\n".to_owned(), "400", "", "not HTTP"),
        ];
        for (request, status, part, why) in table {
            let answer = ask(address, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(part), "{why}: {answer}");
        }
    }

    #[tokio::test]
    async fn readiness_names_every_condition_that_does_not_hold() {
        let readiness = Readiness::expecting(&["policies", "issuers"]);
        let (address, drain, served) = started(&readiness).await;
        assert!(ask(address, &call("GET", "/readyz")).await.ends_with("\r\n\r\nissuers\npolicies\n"));
        readiness.set("policies", true);
        readiness.set("issuers", true);
        assert!(ask(address, &call("GET", "/readyz")).await.starts_with("HTTP/1.1 200"));
        readiness.watch("audit", || false);
        readiness.set("draining", false);
        let answer = ask(address, &call("GET", "/readyz")).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("\r\n\r\naudit\ndraining\n"), "{answer}");
        assert!(ask(address, &call("GET", "/livez")).await.starts_with("HTTP/1.1 200"), "alive all the same");

        drain.cancel();
        served.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }

    #[tokio::test]
    async fn what_is_only_noted_is_shown_and_takes_nothing_away() {
        let readiness = Readiness::expecting(&["policies"]);
        readiness.note("issuer", || vec![("https://a.test".to_owned(), true), ("https://b.test".to_owned(), false)]);
        let (address, _drain, _served) = started(&readiness).await;
        let notes = "issuer https://a.test ready\nissuer https://b.test not ready\n";
        let answer = ask(address, &call("GET", "/readyz")).await;
        let whole = format!("\r\n\r\npolicies\n{notes}");
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with(&whole), "{answer}");
        readiness.set("policies", true);
        let answer = ask(address, &call("GET", "/readyz")).await;
        let whole = format!("\r\n\r\nok\n{notes}");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&whole), "{answer}");
    }

    #[tokio::test]
    async fn who_holds_on_to_every_connection_he_gets_keeps_nobody_else_out() {
        let (address, _drain, _served) = started(&Readiness::expecting(&[])).await;
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS + 1 {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        let elsewhere = tokio::net::TcpSocket::new_v4().unwrap();
        elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut probe = elsewhere.connect(address).await.unwrap();
        probe.write_all(call("GET", "/livez").as_bytes()).await.unwrap();
        let mut answer = String::new();
        let within = Duration::from_secs(3);
        tokio::time::timeout(within, probe.read_to_string(&mut answer)).await.expect("at once").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    #[tokio::test]
    async fn a_head_that_never_ends_is_cut_off() {
        let (_metrics, registry) = Metrics::new(None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(Readiness::expecting(&[]), registry);
        let patience = Patience { head: Duration::from_millis(20), ..PATIENCE };
        tokio::spawn(serve_with(listener, router, CancellationToken::new(), patience));
        let answer = ask(address, "GET /livez HTTP/1.1\r\nhost:").await;
        assert!(!answer.contains("200"), "{answer}");
    }
}
