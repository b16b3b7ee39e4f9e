//! What the trail has to say of itself: Application Lifecycle 6002, between the records of everybody else.

use std::time::SystemTime;

use super::{Body, Frame, bare, line, utc};
use crate::audit::checkpoint::Signed;
use crate::audit::ocsf::{
    APPLICATION_LIFECYCLE, CHECKPOINT, Code, Event, FAILURE, HIGH, INFORMATIONAL, MEDIUM, PRODUCT, Range, SUCCESS,
};

/// Something about the trail itself.
#[derive(Debug)]
pub(in crate::audit) enum Note<'a> {
    /// Records can't be kept from now on.
    Failed {
        /// From a closed list.
        reason: &'static str,
    },
    /// They can again; so many could not.
    Resumed {
        /// Since then.
        since: SystemTime,
        /// So many.
        missing: u64,
    },
    /// Records were not taken, for a reason from a closed list.
    Lost {
        /// Since then.
        since: SystemTime,
        /// So many.
        count: u64,
        /// Why.
        reason: &'static str,
    },
    /// Numbers that are not there: `damaged` or `missing`.
    Gap {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
        /// Why.
        reason: &'static str,
    },
    /// A file of the spool was found damaged, and is in quarantine.
    Quarantined,
    /// The end of the last segment was cut off in the middle of a line.
    Torn,
    /// The oldest segment is about to go: by `age` or `size`.
    Removed {
        /// Its first record.
        first: u64,
        /// Its last.
        last: u64,
        /// Why.
        reason: &'static str,
    },
    /// The mode is another than at the last start.
    ModeChanged {
        /// What it was.
        before: &'a str,
    },
    /// The wall clock went elsewhere than time did.
    ClockJumped {
        /// By so much; back when negative.
        milliseconds: i64,
    },
    /// Where the chain stands, signed.
    Checkpoint(&'a Signed),
}

/// Writes a note down.
///
/// # Errors
/// None that a note brings about.
pub(in crate::audit) fn render_note(
    note: &Note<'_>,
    now: SystemTime,
    frame: &Frame,
) -> Result<Body, serde_json::Error> {
    let event = |name: &'static str, severity: Code, status: Code| {
        let mut event: Event<'_> = bare(frame, APPLICATION_LIFECYCLE, 99, name, now, severity, status);
        event.app = Some(PRODUCT);
        event
    };
    let event = match note {
        Note::Failed { reason } => {
            let mut event = event("Audit Failed", HIGH, FAILURE);
            event.status_detail = Some(reason);
            event
        }
        Note::Resumed { since, missing } => {
            let mut event = event("Audit Resumed", HIGH, SUCCESS);
            event.unmapped.gatepost.not_recorded = Some(*missing);
            event.unmapped.gatepost.not_recorded_since = Some(utc(*since));
            event
        }
        Note::Lost { since, count, reason } => {
            let mut event = event("Records Lost", HIGH, FAILURE);
            event.status_detail = Some(reason);
            event.count = Some(*count);
            event.unmapped.gatepost.not_recorded = Some(*count);
            event.unmapped.gatepost.not_recorded_since = Some(utc(*since));
            event
        }
        Note::Gap { first, last, reason } => {
            let mut event = event("Audit Gap", HIGH, FAILURE);
            event.status_detail = Some(reason);
            event.count = Some(last.saturating_sub(*first).saturating_add(1));
            event.unmapped.gatepost.gap = Some(Range { first: *first, last: *last });
            event
        }
        Note::Quarantined => event("Audit Quarantined", HIGH, FAILURE),
        Note::Torn => event("Audit Repaired", INFORMATIONAL, SUCCESS),
        Note::Removed { first, last, reason } => {
            let mut event = event("Audit Segment Removed", INFORMATIONAL, SUCCESS);
            event.status_detail = Some(reason);
            event.unmapped.gatepost.removed = Some(Range { first: *first, last: *last });
            event
        }
        Note::ModeChanged { before } => {
            let mut event = event("Audit Mode Changed", MEDIUM, SUCCESS);
            event.unmapped.gatepost.before = Some((*before).to_owned());
            event.unmapped.gatepost.after = Some(frame.keeping.mode.as_str().to_owned());
            event
        }
        Note::ClockJumped { milliseconds } => {
            let mut event = event("Clock Jumped", MEDIUM, SUCCESS);
            event.unmapped.gatepost.clock_jumped_ms = Some(*milliseconds);
            event
        }
        Note::Checkpoint(signed) => {
            let mut event = bare(frame, CHECKPOINT, 99, "Audit Checkpoint", now, INFORMATIONAL, SUCCESS);
            event.app = Some(PRODUCT);
            event.unmapped.gatepost.checkpoint = Some(signed);
            event
        }
    };
    line(&event)
}
