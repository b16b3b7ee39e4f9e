//! How far each sink is. The spool asks before it removes a segment; the sinks tell as they go.
//!
//! Knows numbers of records; nothing of files or networks.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::config::WhenFull;

/// Shared between the spool and its sinks.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    sinks: Mutex<BTreeMap<String, (u64, WhenFull)>>,
}

impl Delivered {
    /// `sink` is there, and has every record up to `upto`.
    pub(crate) fn expect(&self, sink: &str, upto: u64, when_full: WhenFull) {
        self.sinks.lock().insert(sink.to_owned(), (upto, when_full));
    }

    /// `sink` has, or was told that it will never have, every record up to `upto`. It never goes back.
    pub(crate) fn reached(&self, sink: &str, upto: u64) {
        if let Some((reached, _)) = self.sinks.lock().get_mut(sink) {
            *reached = upto.max(*reached);
        }
    }

    /// The last record that nobody needs any more; `u64::MAX` without sinks. With `full`, those that rather lose records
    /// than hold everybody up are not asked.
    pub(crate) fn by_all(&self, full: bool) -> u64 {
        let sinks = self.sinks.lock();
        let asked = sinks.values().filter(|(_, when_full)| !full || *when_full == WhenFull::Wait);
        asked.map(|(reached, _)| *reached).min().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_that_somebody_needs_unless_he_said_that_it_may() {
        let delivered = Delivered::default();
        assert_eq!(delivered.by_all(false), u64::MAX, "nobody is there");
        delivered.expect("slow", 3, WhenFull::Skip);
        delivered.expect("siem", 10, WhenFull::Wait);
        assert_eq!((delivered.by_all(false), delivered.by_all(true)), (3, 10));
        delivered.reached("slow", 20);
        delivered.reached("siem", 5);
        delivered.reached("stranger", 1);
        assert_eq!((delivered.by_all(false), delivered.by_all(true)), (10, 10), "nobody goes back");
    }
}
