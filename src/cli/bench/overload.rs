//! `--overload`: what becomes of answers when more is asked than can be answered, and how soon all is well again.

use std::time::Duration;

use super::crew::Pace;
use super::{LoadArgs, Report, Site};
use crate::cli::bench::schedule::Arrivals;

/// A gentle load is this share of the peak: it shows how the server is without being a burden.
const GENTLE: f64 = 0.05;
/// It is looked at for so long at once.
const WINDOW: Duration = Duration::from_millis(200);
/// So long it may take until all is well.
const PATIENCE: Duration = Duration::from_secs(30);
/// Well is a p90 below twice that of the quiet server, or above it by no more than this.
const SLACK: Duration = Duration::from_millis(1);

/// What was found beside the rounds.
#[derive(Debug, Clone, Copy)]
pub struct Overload {
    /// Answered calls a second in the closed loop.
    pub peak: f64,
    /// p90 of the quiet server under a gentle load, before the steps.
    pub quiet: Duration,
    /// From the end of the last step until a gentle load was answered whole and as fast as before, in steps of 200 ms;
    /// `None`: not in 30 s, or it was not looked.
    pub recovered: Option<Duration>,
}

/// The peak, then each multiple of it, then the time until all is well.
pub(super) async fn measure(site: &Site, args: &LoadArgs, in_flight: usize, report: &mut Report) {
    let closed = site.round(report.pace, args.duration, "peak").await;
    let peak = closed.tally.answers_in_time as f64 / closed.tally.window().as_secs_f64().max(1e-3);
    report.rounds.push(closed);
    let gentle = Pace::Open { rate: (peak * GENTLE).clamp(50.0, 1_000_000.0), arrivals: Arrivals::Even, in_flight };
    let quiet = site.round(gentle, WINDOW * 5, "quiet").await.tally.answers.at(0.9);
    let mut found = Overload { peak, quiet, recovered: None };
    let mut ended = site.clock.monotonic();
    for multiple in &args.steps {
        if site.stop.is_cancelled() || site.crew.is_lost() {
            break;
        }
        let rate = (peak * multiple).clamp(0.1, 10_000_000.0);
        let pace = Pace::Open { rate, arrivals: args.arrivals, in_flight };
        // A round waits for its last answers; the burden ends before that.
        ended = site.clock.monotonic() + args.duration;
        let mut round = site.round(pace, args.duration, &format!("{multiple} times the peak")).await;
        round.multiple = Some(*multiple);
        report.rounds.push(round);
    }
    while !site.stop.is_cancelled() && !site.crew.is_lost() {
        let spent = site.clock.monotonic().saturating_sub(ended);
        if spent > PATIENCE {
            break;
        }
        let tally = site.round(gentle, WINDOW, "recovery").await.tally;
        let whole = tally.refused() + tally.failed() + tally.unsent == 0 && tally.answers.count() > 0;
        if whole && tally.answers.at(0.9) <= (quiet * 2).max(quiet + SLACK) {
            found.recovered = Some(spent);
            break;
        }
    }
    report.overload = Some(found);
}
