//! The accept loop: from a TCP connection to HTTP/2 calls that know who sent them.
//!
//! A connection passes four doors, each with a limit: a seat ([`seats`]), the TLS handshake ([`handshake`]), a seat
//! under its own name, and then HTTP/2 until it is idle, old, or the house drains. Every call carries its connection's
//! `Arc<Peer>` in its extensions. What the calls are about is the router's business.
//!
//! The loop deals connections out in turn to threads of their own ([`shards`]), and a connection stays where it was dealt.
//!
//! Our own loop, because certificates must change under it, a connection that has to go must be asked to (GOAWAY) and
//! its calls must finish, and a drain must have an end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt as _;

use super::service::Arrived;
use super::stream::Leaving;
use crate::clock::SharedClock;
use crate::config::{IdentityConfig, Limits};
use crate::tls::peer::Peer;
use crate::tls::server::ServerIdentity;

mod farewell;
mod handshake;
mod seats;
mod shards;

use farewell::Held;
use seats::{Holder, Seat, Seats};
pub use shards::{Dealer, Shards};

/// How often an otherwise quiet connection is pinged, and how long it may take to answer.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_WITHIN: Duration = Duration::from_secs(10);
/// Streams a client may open and reset before we looked at them, and streams it may make us reset (CVE-2023-44487,
/// CVE-2025-8671). Past them the connection is closed.
const RESET_BEFORE_ACCEPTED: usize = 10;
const RESET_BY_OUR_ERROR: usize = 64;
/// What a call, and a connection, may have under way unread. A batch of 1 MiB passes in a few turns.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What one call may have written and the client not taken.
const SEND_BUFFER: usize = 256 * 1024;
/// What is read from a socket at once: a whole TLS record. The library alone reads 4 KiB at a time.
const READ_BUFFER: usize = 16 * 1024;
/// Pause after an accept error that the next accept would meet again, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that may wait in the kernel for us; tokio asks for as many.
const BACKLOG: usize = 1024;
/// How long a client without calls may take to leave when asked to, and one that came late to finish its handshake.
const GOODBYE: Duration = Duration::from_secs(1);
/// Looks at a connection in each idle time-out; it ends after this many in a row without a call.
const IDLE_LOOKS: u32 = 4;

/// A listener and everything its connections need.
pub struct Door<A> {
    /// Where connections come in.
    pub listener: TcpListener,
    /// Who we are, and whose clients we believe.
    pub identity: Arc<ServerIdentity>,
    /// How certificates become names.
    pub names: IdentityConfig,
    /// What answers the calls. Each has the connection's `Arc<Peer>` in its extensions.
    pub app: A,
    /// Connections, handshakes, header bytes, streams, idle time, age, and how long an old one's calls may go on.
    pub limits: Limits,
    /// Wall time, to tell whether a certificate still names its connection.
    pub clock: SharedClock,
    /// Who hears of connections.
    pub events: Arc<dyn ConnectionEvents>,
    /// How long a drain may take before what is left is cut off.
    pub drain_timeout: Duration,
    /// Where connections live; `None`: where the door is served.
    pub shards: Option<Shards>,
}

/// What answers calls. Each connection has a copy of its own, which all its calls share: what several cores count together they
/// wait for in turn.
pub trait App: Clone + Send + Sync + 'static {
    /// Answers one.
    fn answer(self: Arc<Self>, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>>;
}

impl App for Router {
    fn answer(self: Arc<Self>, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>> {
        let answered = Self::clone(&self).oneshot(request.map(axum::body::Body::new));
        Box::pin(async move {
            match answered.await {
                Ok(response) => response.map(Body::new),
                Err(never) => match never {},
            }
        })
    }
}

/// What happens to connections, for metrics and the record. Called on the accept path: must not block.
pub trait ConnectionEvents: Send + Sync {
    /// A handshake came to nothing. `reason` is from a closed list: `NO_CERTIFICATE`, `UNKNOWN_ISSUER`, `EXPIRED`,
    /// `NOT_YET_VALID`, `WRONG_PURPOSE`, `REVOKED`, `REVOCATION_UNKNOWN`, `BAD_CERTIFICATE`, `VERSION`, `ALPN`,
    /// `INCOMPATIBLE`, `PROTOCOL`, `CLIENT_ALERT`, `TIMEOUT`, `CLOSED`, `INTERNAL`.
    fn handshake_refused(&self, address: SocketAddr, reason: &'static str);
    /// So many connections are open now, handshakes included. Called in the order of the changes.
    fn connections(&self, open: usize);
    /// A connection was closed at once because `limit` is reached: `CONNECTIONS` or `CONNECTIONS_PER_CALLER`.
    fn over_cap(&self, address: SocketAddr, limit: &'static str);
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Calls that had not finished in time and were cut off.
    pub cut_off: usize,
}

/// What all connections share.
struct House<A> {
    identity: Arc<ServerIdentity>,
    names: IdentityConfig,
    app: A,
    limits: Limits,
    clock: SharedClock,
    events: Arc<dyn ConnectionEvents>,
    seats: Arc<Seats>,
    handshakes: Semaphore,
    /// Ask connections to go; then cut them off.
    drain: CancellationToken,
    cut: CancellationToken,
    cut_off: AtomicUsize,
    dealer: Option<Dealer>,
}

impl<A: App> Door<A> {
    /// Serves until `drain`. Then nobody new is let in, every connection is asked to go, calls under way may finish
    /// within the drain time-out, and what is left is cut off.
    pub async fn serve(self, drain: CancellationToken) -> DrainReport {
        let Self { listener, identity, names, app, limits, clock, events, drain_timeout, shards } = self;
        let house = Arc::new(House {
            seats: Seats::new(&limits, Arc::clone(&events)),
            handshakes: Semaphore::new(limits.handshakes.min(Semaphore::MAX_PERMITS)),
            cut: CancellationToken::new(),
            cut_off: AtomicUsize::new(0),
            identity,
            names,
            app,
            limits,
            clock,
            events,
            drain,
            dealer: shards.as_ref().map(Shards::dealer),
        });
        let connections = TaskTracker::new();
        house.accept(listener, &connections).await;
        connections.close();
        if tokio::time::timeout(drain_timeout, connections.wait()).await.is_err() {
            house.cut.cancel();
            connections.wait().await;
        }
        // With whatever a connection left behind.
        drop(shards);
        DrainReport { cut_off: house.cut_off.load(Ordering::Relaxed) }
    }
}

impl<A: App> House<A> {
    /// Until the drain: no error of one connection, and none of the listener, ends the loop. Whoever knocked before the
    /// drain is still let in: to be asked to go is better than to find a door slammed, which grpc's own clients take for
    /// an outage and wait out.
    async fn accept(self: &Arc<Self>, listener: TcpListener, connections: &TaskTracker) {
        let (mut number, mut troubled) = (0_u64, false);
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.drain.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    troubled = false;
                    number = number.wrapping_add(1);
                    self.welcome(stream, address, number, connections);
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut troubled, true) {
                        tracing::warn!(error = &error as &dyn std::error::Error, "no connection can be accepted");
                    }
                    tokio::select! {
                        () = self.drain.cancelled() => {}
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
        // Whom the kernel has let in and we have not looked at. The door closes when this returns.
        let Ok(listener) = listener.into_std() else { return };
        for number in (number.wrapping_add(1)..).take(BACKLOG) {
            let accepted = listener.accept().and_then(|(stream, address)| {
                stream.set_nonblocking(true)?;
                Ok((TcpStream::from_std(stream)?, address))
            });
            match accepted {
                Ok((stream, address)) => self.welcome(stream, address, number, connections),
                Err(error) if is_about_one_connection(&error) => {}
                // Nobody waits any more.
                Err(_) => return,
            }
        }
    }

    /// Gives a newcomer a seat, if there is one.
    fn welcome(self: &Arc<Self>, stream: TcpStream, address: SocketAddr, number: u64, connections: &TaskTracker) {
        match self.seats.take(address) {
            Ok(seat) => match &self.dealer {
                None => drop(connections.spawn(Arc::clone(self).attend(stream, address, seat, number))),
                Some(dealer) => {
                    // It is heard of by the thread that will serve it, and by no other.
                    let Ok(stream) = stream.into_std() else { return };
                    let house = Arc::clone(self);
                    let attended = async move {
                        let Ok(stream) = TcpStream::from_std(stream) else { return };
                        house.attend(stream, address, seat, number).await;
                    };
                    drop(connections.spawn_on(attended, dealer.next(number)));
                }
            },
            Err(limit) => self.events.over_cap(address, limit),
        }
    }

    /// One connection, from its first byte to its last.
    async fn attend(self: Arc<Self>, stream: TcpStream, address: SocketAddr, mut seat: Seat, number: u64) {
        // Answers are small and wanted now. If it can't be set the connection is only slower.
        let _ = stream.set_nodelay(true);
        let stream = BufReader::with_capacity(READ_BUFFER, stream);
        let mut withdrawals = self.identity.withdrawals();
        let generation = self.identity.generation();
        let too_late = async {
            self.drain.cancelled().await;
            tokio::time::sleep(GOODBYE).await;
        };
        let shaken = tokio::select! {
            biased;
            () = self.cut.cancelled() => return,
            () = too_late => return,
            shaken = handshake::shake(stream, &self.identity, &self.handshakes, self.limits.handshake_timeout) => shaken,
        };
        let (stream, peer) = match shaken.and_then(|stream| {
            let peer = Peer::of(stream.get_ref().1, address, &self.names, &self.identity, generation)
                .map_err(|error| error.reason())?;
            Ok((stream, peer))
        }) {
            Ok(shaken) => shaken,
            Err(reason) => return self.events.handshake_refused(address, reason),
        };
        let holder = match peer.name(self.clock.now()) {
            Ok(name) => Holder::Caller(name.clone()),
            Err(_) => Holder::Nobody(address.ip()),
        };
        if let Err(limit) = seat.hold_as(holder) {
            return self.events.over_cap(address, limit);
        }
        let grown_old =
            tokio::time::sleep(jittered(self.limits.connection_age, self.limits.connection_age_jitter, number));
        let peer = Arc::new(peer);
        let disowned = async {
            // Whoever another authority vouches for may stay.
            while withdrawals.changed().await.is_ok() && peer.name(self.clock.now()).is_ok() {}
        };
        self.converse(stream, Arc::clone(&peer), async {
            tokio::select! {
                () = grown_old => {}
                () = disowned => {}
            }
        })
        .await;
    }

    /// HTTP/2 until the client leaves, or has to: it is idle, the house drains, or `outlived` is over.
    async fn converse(
        &self,
        stream: TlsStream<BufReader<TcpStream>>,
        peer: Arc<Peer>,
        outlived: impl Future<Output = ()>,
    ) {
        let calls = Arc::new(Calls::default());
        // A stream would go on for ever: it is told, and ends.
        let leaving = Leaving::default();
        let service = service_fn({
            let (app, calls, clock) = (Arc::new(self.app.clone()), Arc::clone(&calls), Arc::clone(&self.clock));
            let leaving = leaving.clone();
            move |mut request: Request<Incoming>| {
                let call = Calls::begin(&calls);
                request.extensions_mut().insert(Arc::clone(&peer));
                request.extensions_mut().insert(Arrived(clock.monotonic()));
                if request.uri().path() == super::stream::PATH {
                    request.extensions_mut().insert(leaving.clone());
                }
                let answer = Arc::clone(&app).answer(request);
                async move {
                    let answer = answer.await;
                    Ok::<Response<CountedBody>, Infallible>(answer.map(|body| CountedBody { body, _call: call }))
                }
            }
        });
        let (stream, held) = Held::pair(stream);
        let mut connection = pin!(self.http2().serve_connection(TokioIo::new(stream), service));
        let reason_to_go = async {
            tokio::select! {
                () = self.drain.cancelled() => {}
                () = outlived => {}
                () = calls.idle_for(self.limits.idle_timeout) => {}
            }
        };
        tokio::select! {
            // An error here is the client's: it left, or broke the protocol. There is nobody to tell.
            _ = connection.as_mut() => return,
            () = reason_to_go => {
                leaving.0.cancel();
                connection.as_mut().graceful_shutdown();
            }
        }
        tokio::select! {
            biased;
            // It is over for us, and perhaps not yet for the network.
            _ = connection.as_mut() => {
                tokio::select! {
                    () = held.see_off(GOODBYE) => {}
                    () = self.cut.cancelled() => {}
                }
                return;
            }
            () = self.cut.cancelled() => {}
            // The client does not answer, though nothing is left to wait for.
            () = calls.idle_for(GOODBYE) => {}
            () = tokio::time::sleep(self.limits.connection_age_grace), if !self.drain.is_cancelled() => {}
        }
        let left = calls.open();
        if left > 0 {
            tracing::debug!(calls = left, "a connection did not go in time and was cut off");
        }
        if self.drain.is_cancelled() {
            self.cut_off.fetch_add(left, Ordering::Relaxed);
        }
    }

    fn http2(&self) -> http2::Builder<TokioExecutor> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams_per_connection)
            // The library refuses what reaches its limit, and ours may be reached.
            .max_header_list_size(self.limits.header_bytes.saturating_add(1))
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .max_pending_accept_reset_streams(RESET_BEFORE_ACCEPTED)
            .max_local_error_reset_streams(RESET_BY_OUR_ERROR)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER);
        builder
    }
}

/// Whether the next accept may well succeed: the client gave up while it waited.
fn is_about_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// `age` give or take so many percent, so that connections that came together do not all leave together. Consecutive
/// numbers fall far apart (multiples of the golden ratio), and it needs no randomness.
fn jittered(age: Duration, percent: u32, number: u64) -> Duration {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let percent = percent.min(100);
    // The multiple's fraction, in 2^32nds, laid over the range.
    let fraction = number.wrapping_mul(GOLDEN) >> 32;
    let thousandth = (fraction * u64::from(percent * 20 + 1)) >> 32;
    let share = 1000 - percent * 10 + u32::try_from(thousandth).unwrap_or_default();
    age.saturating_mul(share) / 1000
}

/// The calls of one connection.
#[derive(Debug, Default)]
struct Calls {
    open: AtomicUsize,
    begun: AtomicU64,
}

/// One call, from its headers to the last byte of its answer.
struct Call(Arc<Calls>);

impl Calls {
    fn begin(calls: &Arc<Self>) -> Call {
        calls.open.fetch_add(1, Ordering::Relaxed);
        calls.begun.fetch_add(1, Ordering::Relaxed);
        Call(Arc::clone(calls))
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns once there was no call for `limit`, or up to a quarter of it later: it looks now and then, so that a
    /// call costs two additions and no timer.
    async fn idle_for(&self, limit: Duration) {
        let (mut quiet, mut begun) = (0, 0);
        loop {
            tokio::time::sleep(limit / IDLE_LOOKS).await;
            let now_begun = self.begun.load(Ordering::Relaxed);
            quiet = if self.open() == 0 && now_begun == begun { quiet + 1 } else { 0 };
            begun = now_begun;
            if quiet >= IDLE_LOOKS {
                return;
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer whose call ends when it is sent or dropped.
struct CountedBody {
    body: Body,
    _call: Call,
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
