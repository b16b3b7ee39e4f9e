//! What stands between services and replicas in a cluster: it passes each new connection on to a replica that says it is
//! ready, and leaves the old ones alone. It reads nothing of what it carries.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gatepost::clock::{SharedClock, SystemClock};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::eventually;

/// How often a replica is asked whether it is ready.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub struct Balancer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _running: DropGuard,
}

struct Shared {
    replicas: Mutex<BTreeMap<String, Replica>>,
    /// How long each connection that is over lived.
    lives: Mutex<Vec<Duration>>,
    clock: SharedClock,
}

struct Replica {
    address: SocketAddr,
    ops: SocketAddr,
    ready: bool,
    open: usize,
    /// Connections that it ever got; the next goes to whoever got the least.
    given: usize,
}

impl Balancer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared =
            Arc::new(Shared { replicas: Mutex::default(), lives: Mutex::default(), clock: SystemClock::shared() });
        let running = CancellationToken::new();
        tokio::spawn(running.clone().run_until_cancelled_owned(Arc::clone(&shared).accept(listener, running.clone())));
        tokio::spawn(running.clone().run_until_cancelled_owned(Arc::clone(&shared).look()));
        Self { address, shared, _running: running.drop_guard() }
    }

    /// From now on `name` is there, and gets connections once it is ready.
    pub async fn put(&self, name: &str, address: SocketAddr, ops: SocketAddr) {
        let given = self.shared.replicas.lock().values().map(|replica| replica.given).max().unwrap_or(0);
        let replica = Replica { address, ops, ready: false, open: 0, given };
        self.shared.replicas.lock().insert(name.to_owned(), replica);
        eventually("the balancer sees that it is ready", || self.shared.replicas.lock()[name].ready).await;
    }

    /// Connections to `name` that are open.
    pub fn open(&self, name: &str) -> usize {
        self.shared.replicas.lock().get(name).map_or(0, |replica| replica.open)
    }

    /// How long each connection that is over lived.
    pub fn lives(&self) -> Vec<Duration> {
        self.shared.lives.lock().clone()
    }
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener, running: CancellationToken) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(running.clone().run_until_cancelled_owned(Arc::clone(&self).carry(stream)));
        }
    }

    async fn carry(self: Arc<Self>, mut near: TcpStream) {
        let chosen = {
            let mut replicas = self.replicas.lock();
            let ready = replicas.iter_mut().filter(|(_, replica)| replica.ready);
            ready.min_by_key(|(_, replica)| replica.given).map(|(name, replica)| {
                replica.given += 1;
                replica.open += 1;
                (name.clone(), replica.address)
            })
        };
        // Nobody is ready: closed at once, as by a node without endpoints.
        let Some((name, address)) = chosen else { return };
        let began = self.clock.monotonic();
        if let Ok(mut far) = TcpStream::connect(address).await {
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            // How it ends is theirs to see.
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            self.lives.lock().push(self.clock.monotonic().saturating_sub(began));
        }
        if let Some(replica) = self.replicas.lock().get_mut(&name).filter(|replica| replica.address == address) {
            replica.open -= 1;
        }
    }

    /// Asks everybody, for ever.
    async fn look(self: Arc<Self>) {
        loop {
            let asked: Vec<_> =
                self.replicas.lock().iter().map(|(name, replica)| (name.clone(), replica.ops)).collect();
            for (name, ops) in asked {
                let ready = tokio::time::timeout(Duration::from_secs(1), is_ready(ops)).await;
                if let Some(replica) = self.replicas.lock().get_mut(&name).filter(|replica| replica.ops == ops) {
                    replica.ready = ready.unwrap_or(false);
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn is_ready(ops: SocketAddr) -> bool {
    let asking = async {
        let mut stream = TcpStream::connect(ops).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    asking.await.is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200"))
}
