//! How many connections there may be, in all and of one holder.
//!
//! A connection takes its seat before its first byte, under its address, and holds it under its caller's name once that
//! is known. It gives the seat back when it is dropped, however it ends.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;

use super::ConnectionEvents;
use crate::config::{CallerName, Limits};

/// The limits, by the names they are told by.
const ALL: &str = "CONNECTIONS";
const OF_ONE: &str = "CONNECTIONS_PER_CALLER";

/// Who holds a seat.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// A connection whose handshake is not over.
    Stranger(IpAddr),
    /// One whose certificate names nobody.
    Nobody(IpAddr),
    /// A named workload.
    Caller(CallerName),
}

pub(super) struct Seats {
    limit: usize,
    limit_per_holder: usize,
    /// Strangers of one address may be many callers behind one gateway, so they have as many seats as there are
    /// handshakes, if that is more.
    limit_of_strangers: usize,
    taken: Mutex<Taken>,
    events: Arc<dyn ConnectionEvents>,
}

/// Never has more entries than there are seats.
#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    by: HashMap<Holder, usize>,
}

/// One taken seat.
pub(super) struct Seat {
    seats: Arc<Seats>,
    holder: Holder,
}

impl Seats {
    pub(super) fn new(limits: &Limits, events: Arc<dyn ConnectionEvents>) -> Arc<Self> {
        Arc::new(Self {
            limit: limits.connections,
            limit_per_holder: limits.connections_per_caller,
            limit_of_strangers: limits.connections_per_caller.max(limits.handshakes),
            taken: Mutex::default(),
            events,
        })
    }

    /// A seat for a connection that just came, or the name of the limit that is reached.
    pub(super) fn take(self: &Arc<Self>, address: SocketAddr) -> Result<Seat, &'static str> {
        let holder = Holder::Stranger(address.ip());
        let mut taken = self.taken.lock();
        if taken.in_all >= self.limit {
            return Err(ALL);
        }
        if !taken.add(&holder, self.limit_of_strangers) {
            return Err(OF_ONE);
        }
        taken.in_all += 1;
        // Told under the lock, so that the last number told is the true one.
        self.events.connections(taken.in_all);
        Ok(Seat { seats: Arc::clone(self), holder })
    }
}

impl Seat {
    /// Holds the seat as `holder` from now on, unless that one has all its seats taken.
    pub(super) fn hold_as(&mut self, holder: Holder) -> Result<(), &'static str> {
        let mut taken = self.seats.taken.lock();
        if !taken.add(&holder, self.seats.limit_per_holder) {
            return Err(OF_ONE);
        }
        taken.remove(&self.holder);
        self.holder = holder;
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock();
        taken.remove(&self.holder);
        taken.in_all = taken.in_all.saturating_sub(1);
        self.seats.events.connections(taken.in_all);
    }
}

impl Taken {
    fn add(&mut self, holder: &Holder, limit: usize) -> bool {
        let held = self.by.get(holder).copied().unwrap_or_default();
        if held >= limit {
            return false;
        }
        self.by.insert(holder.clone(), held + 1);
        true
    }

    fn remove(&mut self, holder: &Holder) {
        match self.by.get_mut(holder) {
            Some(held) if *held > 1 => *held -= 1,
            _ => {
                self.by.remove(holder);
            }
        }
    }
}
