//! One thread per core, each with a runtime of its own: a connection lives on one of them from its first byte to its last,
//! with all its calls.
//!
//! Nothing is handed from thread to thread on the way of a call, so no core waits for another's cache and no call for a
//! thread to wake up. The kernel could deal connections out as well (`SO_REUSEPORT`), but does so by hash, and leaves a core
//! idle when there are few of them.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::dispatcher;
use tracing::subscriber::NoSubscriber;

/// The threads. They end, with whatever still runs on them, when this is dropped.
#[derive(Debug)]
pub struct Shards {
    dealer: Dealer,
    _end: DropGuard,
}

/// Deals connections out. Keeps no thread running.
#[derive(Debug, Clone)]
pub struct Dealer {
    first: Handle,
    others: Arc<[Handle]>,
}

impl Shards {
    /// As many as the machine, or the container, has cores.
    ///
    /// # Errors
    /// When the system gives no thread or no descriptor.
    pub fn one_per_core() -> io::Result<Self> {
        Self::start(thread::available_parallelism().map_or(1, std::num::NonZero::get))
    }

    /// So many, at least one, with stacks that evaluation can do with.
    ///
    /// # Errors
    /// As [`one_per_core`](Self::one_per_core).
    pub fn start(count: usize) -> io::Result<Self> {
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let first = shard(0, end.clone())?;
        let others = (1..count).map(|number| shard(number, end.clone())).collect::<io::Result<_>>()?;
        Ok(Self { dealer: Dealer { first, others }, _end: guard })
    }

    /// Who deals connections out to them.
    #[must_use]
    pub fn dealer(&self) -> Dealer {
        self.dealer.clone()
    }
}

impl Dealer {
    /// Each in turn.
    #[must_use]
    pub fn next(&self, number: u64) -> &Handle {
        let among = self.others.len() as u64 + 1;
        let at = usize::try_from(number % among).unwrap_or_default();
        at.checked_sub(1).and_then(|at| self.others.get(at)).unwrap_or(&self.first)
    }

    /// Tasks that have not ended, of all of them.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.each().map(|handle| handle.metrics().num_alive_tasks()).sum()
    }

    /// All of them.
    pub fn each(&self) -> impl Iterator<Item = &Handle> {
        std::iter::once(&self.first).chain(self.others.iter())
    }
}

fn shard(number: usize, end: CancellationToken) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let starter = dispatcher::get_default(Clone::clone);
    thread::Builder::new().name(format!("shard-{number}")).stack_size(crate::policy::STACK).spawn(move || {
        // Where nobody listens to the whole process, whoever listens to the thread that starts us listens here too.
        let unheard = dispatcher::get_default(|own| own.is::<NoSubscriber>());
        let _heard = unheard.then(|| dispatcher::set_default(&starter));
        runtime.block_on(end.cancelled());
    })?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_dealt_out_in_turn_and_the_threads_end_with_their_owner() {
        let shards = Shards::start(3).unwrap();
        let dealer = shards.dealer();
        let names = |number: u64| {
            let (tell, told) = std::sync::mpsc::channel();
            dealer.next(number).spawn(async move { tell.send(thread::current().name().map(str::to_owned)) });
            told.recv().unwrap().unwrap()
        };
        let dealt: Vec<String> = (0..6).map(names).collect();
        assert_eq!(dealt, ["shard-0", "shard-1", "shard-2", "shard-0", "shard-1", "shard-2"]);
        let (tell, told) = std::sync::mpsc::channel::<()>();
        dealer.next(0).spawn(async move {
            std::future::pending::<()>().await;
            drop(tell);
        });
        drop(shards);
        assert!(told.recv().is_err(), "what ran there is dropped");
    }
}
