//! `--overload`: whether the server still says that it is well, and how soon, however much it is asked.
//!
//! Health is asked for over a connection of its own, by a thread of its own, so that no question is before it on our side:
//! on the listener, where it waits with everything there, and at the operators' door of a server that `--here` started.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::histogram::Histogram;
use super::line::{Line, Route};
use super::tally::{Decisions, Outcome};
use crate::clock::SharedClock;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(50);
/// A probe that waits longer takes the server for dead: the usual time-out of Kubernetes.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where health is asked for, and nothing asked in particular: an empty message.
const PATH: &str = "/grpc.health.v1.Health/Check";
const QUESTION: &[u8] = &[0, 0, 0, 0, 0];
/// `status: SERVING`
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 1];
/// The operators' door takes one request a connection.
const LIVEZ: &[u8] = b"GET /livez HTTP/1.1\r\nhost: gatepost\r\nconnection: close\r\n\r\n";
const WELL: &[u8] = b"HTTP/1.1 200 ";

/// What one door said while it was listened to.
#[derive(Debug, Clone, Default)]
pub struct Beats {
    /// How long it took to say that all is well.
    pub well: Histogram,
    /// Looks that did not end so within a second.
    pub missed: u64,
}

/// What each door said.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// The listener, where questions are asked.
    pub listener: Beats,
    /// The operators' door, if we know where it is.
    pub operators: Option<Beats>,
}

/// Looks until it is dropped.
pub struct Pulse {
    health: Arc<Mutex<Health>>,
    _end: DropGuard,
}

impl Pulse {
    /// Begins to look.
    ///
    /// # Errors
    /// Why there is no connection, or no thread.
    pub async fn begin(route: &Route, operators: Option<SocketAddr>) -> Result<Self, String> {
        let uri = format!("https://{}{PATH}", route.uri.authority().map(ToString::to_string).unwrap_or_default());
        let uri = uri.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
        let route = Route { uri, deadline: PATIENCE, ..route.clone() };
        let health =
            Arc::new(Mutex::new(Health { operators: operators.map(|_| Beats::default()), ..Health::default() }));
        let (end, noted) = (CancellationToken::new(), Arc::clone(&health));
        let (stop, (opened, open)) = (end.clone(), tokio::sync::oneshot::channel());
        let looking = async move {
            let line = match Line::open(route.clone()).await {
                Ok(line) => line,
                Err(why) => return drop(opened.send(Err(why))),
            };
            // Nobody waits any more? Then `stop` says so, too.
            let _ = opened.send(Ok(()));
            tokio::select! {
                () = stop.cancelled() => {}
                () = at_the_listener(&line, &route.clock, &noted) => {}
                () = at_the_operators(operators, &route.clock, &noted) => {}
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        std::thread::Builder::new()
            .name("bench-pulse".to_owned())
            .spawn(move || runtime.block_on(looking))
            .map_err(|error| error.to_string())?;
        open.await.unwrap_or_else(|_| Err("the thread that looks at health ended".to_owned()))?;
        Ok(Self { health, _end: end.drop_guard() })
    }

    /// What was heard since this was last asked.
    #[must_use]
    pub fn heard(&self) -> Health {
        let mut health = self.health.lock();
        let fresh = Health { operators: health.operators.as_ref().map(|_| Beats::default()), ..Health::default() };
        std::mem::replace(&mut health, fresh)
    }
}

impl Beats {
    fn note(&mut self, is_well: bool, took: Duration) {
        if is_well && took <= PATIENCE {
            self.well.record(took);
        } else {
            self.missed += 1;
        }
    }
}

async fn at_the_listener(line: &Line, clock: &SharedClock, noted: &Mutex<Health>) {
    loop {
        let began = clock.monotonic();
        let read = |frame: &[u8]| (frame == SERVING).then(Decisions::default);
        let outcome = line.exchange(Bytes::from_static(QUESTION), read).await;
        let is_well = matches!(outcome, Outcome::Answered(_));
        noted.lock().listener.note(is_well, clock.monotonic().saturating_sub(began));
        tokio::time::sleep(EVERY).await;
    }
}

async fn at_the_operators(door: Option<SocketAddr>, clock: &SharedClock, noted: &Mutex<Health>) {
    let Some(door) = door else { return std::future::pending().await };
    loop {
        let began = clock.monotonic();
        let is_well = matches!(tokio::time::timeout(PATIENCE, knock(door)).await, Ok(Ok(true)));
        let took = clock.monotonic().saturating_sub(began);
        if let Some(beats) = &mut noted.lock().operators {
            beats.note(is_well, took);
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn knock(door: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(door).await?;
    stream.write_all(LIVEZ).await?;
    let mut said = [0; WELL.len()];
    stream.read_exact(&mut said).await?;
    Ok(said == WELL)
}
