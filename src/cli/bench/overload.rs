//! `--overload`: what becomes of answers when more is asked than can be answered, and how soon all is well again.
//!
//! Each step is told as a share of what could be answered right before it.

use std::time::Duration;

use super::crew::Pace;
use super::{LoadArgs, Report, Round, Site};
use crate::cli::bench::schedule::Arrivals;

/// Calls at once on each connection, in the search for the peak: too few leave a server idle, and too many are an overload.
const AT_ONCE: [usize; 5] = [1, 2, 4, 8, 16];
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
    /// Answered calls a second in the best of the closed loops, before all steps.
    pub peak: f64,
    /// p90 of the quiet server under a gentle load, before the steps.
    pub quiet: Duration,
    /// Calls at once on each connection in the steps; more are not sent.
    pub in_flight: usize,
}

/// The peak; then each multiple of it, and the time until all is well after it.
pub(super) async fn measure(site: &Site, args: &LoadArgs, in_flight: usize, report: &mut Report) {
    let Some((at_once, closed)) = peak(site, args, in_flight).await else { return };
    let peak = per_second(&closed);
    report.rounds.push(closed);
    let gentle = Pace::Open { rate: (peak * GENTLE).clamp(50.0, 1_000_000.0), arrivals: Arrivals::Even, in_flight };
    let quiet = site.round(gentle, WINDOW * 5, "quiet").await.tally.answers.at(0.9);
    report.overload = Some(Overload { peak, quiet, in_flight });
    for multiple in &args.steps {
        if site.is_over() {
            break;
        }
        // A machine that is shared is not as fast as it was a minute ago, and a step is told by what could be done then.
        let before = site.round(Pace::Closed { in_flight: at_once }, search(args), "peak").await;
        if site.is_over() {
            break;
        }
        let peak = per_second(&before);
        let rate = (peak * multiple).clamp(0.1, 10_000_000.0);
        let pace = Pace::Open { rate, arrivals: args.arrivals, in_flight };
        // A round waits for its last answers; the burden ends before that.
        let ended = site.clock.monotonic() + args.duration;
        let mut round = site.round(pace, args.duration, &format!("{multiple} times the peak")).await;
        round.multiple = Some(*multiple);
        round.peak = Some(peak);
        round.recovered = recovered(site, gentle, quiet, ended).await;
        report.rounds.push(round);
    }
}

/// How long a closed loop is looked at for the peak.
fn search(args: &LoadArgs) -> Duration {
    args.duration / AT_ONCE.len() as u32
}

/// The closed loop that was answered most, and how many calls it had at once on each connection.
async fn peak(site: &Site, args: &LoadArgs, in_flight: usize) -> Option<(usize, Round)> {
    let mut best: Option<(usize, Round)> = None;
    for in_flight in AT_ONCE.into_iter().filter(|at_once| *at_once <= in_flight) {
        if site.is_over() {
            break;
        }
        let round = site.round(Pace::Closed { in_flight }, search(args), "peak").await;
        if best.as_ref().is_none_or(|(_, best)| per_second(&round) > per_second(best)) {
            best = Some((in_flight, round));
        }
    }
    best
}

#[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
fn per_second(round: &Round) -> f64 {
    round.tally.answers_in_time as f64 / round.tally.window().as_secs_f64().max(1e-3)
}

/// From the end of a step until a gentle load is answered whole and as fast as before it.
async fn recovered(site: &Site, gentle: Pace, quiet: Duration, ended: Duration) -> Option<Duration> {
    while !site.is_over() {
        let spent = site.clock.monotonic().saturating_sub(ended);
        if spent > PATIENCE {
            break;
        }
        let tally = site.round(gentle, WINDOW, "recovery").await.tally;
        let whole = tally.refused() + tally.failed() + tally.unsent == 0 && tally.answers.count() > 0;
        if whole && tally.answers.at(0.9) <= (quiet * 2).max(quiet + SLACK) {
            return Some(spent);
        }
    }
    None
}
