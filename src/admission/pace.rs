//! How much is let in: the controller. Pure arithmetic on what one window saw, so that a simulation can drive it.
//!
//! It knows one thing for certain: how much was answered in time when as much as possible was. While a runtime is late it
//! lets in about that much, a little less each time, and never less than 85 % of it: refusing costs work too, and
//! where refusals alone keep a runtime busy, to refuse still more would gain no time and lose answers. Once the runtime is
//! in time again, more is let in each window until nobody is refused.

use std::time::Duration;

/// What is let in after the first late window, and the least while it stays late, of the best that was ever answered.
const FIRST: f64 = 0.95;
const LEAST: f64 = 0.85;
/// From one late window to the next, and from one calm window to the next.
const LESS: f64 = 0.95;
const MORE: f64 = 1.1;
/// Above so many times the best nobody is held to it any more.
const FREE: f64 = 2.0;
/// The best is forgotten by half in about ten minutes of calm, and in half a second of overload in which what was let in was
/// answered too late: questions may have become dearer, or the machine slower.
const FORGET: f64 = 0.9999;
const RELEARN: f64 = 0.87;
/// Of what ended: less than this was answered in time, so what was let in was too much. What is still in the house is not
/// lost: where a runtime is late, it is there for many windows.
const IN_TIME: f64 = 0.7;
/// So few calls a window are always let in: they are no overload, whatever makes a runtime late.
const TRICKLE: f64 = 10.0;
/// And so few places there always are.
const FEWEST: usize = 16;

/// What one window saw, in calls by weight, as of a window of the usual length.
pub(super) struct Seen {
    /// A runtime was later than its target, each time it looked.
    pub overloaded: bool,
    /// How late.
    pub late: Duration,
    /// Answered while the caller still waited.
    pub answered: f64,
    /// Ended when the caller waited no longer.
    pub too_late: f64,
    /// How long a call was in the house, where one ended.
    pub stay: Option<Duration>,
}

/// The pace, and what it is set by.
pub(super) struct Pace {
    ceiling: usize,
    places: usize,
    /// Answered in a window, in time and too late, of late.
    answering: f64,
    missing: f64,
    /// Answered in time at best.
    best: f64,
    /// What may be let in; `None`: everything.
    budget: Option<f64>,
    /// How long calls stay: of late, and when nothing is late.
    stay: Duration,
    calm_stay: Duration,
}

impl Pace {
    pub fn new(ceiling: usize) -> Self {
        Self {
            ceiling,
            places: ceiling,
            answering: 0.0,
            missing: 0.0,
            best: 0.0,
            budget: None,
            stay: Duration::ZERO,
            calm_stay: Duration::ZERO,
        }
    }

    /// What may be let in during the next window; `None`: everything.
    pub fn budget(&self) -> Option<f64> {
        self.budget
    }

    /// Places in the house.
    pub fn places(&self) -> usize {
        self.places
    }

    /// How long calls are in the house of late.
    pub fn usual_stay(&self) -> Duration {
        self.stay
    }

    pub fn turn(&mut self, seen: &Seen) {
        self.answering = f64::midpoint(self.answering, seen.answered);
        self.missing = f64::midpoint(self.missing, seen.too_late);
        if let Some(stay) = seen.stay {
            self.stay = (self.stay + stay) / 2;
        }
        if seen.overloaded { self.slower(seen) } else { self.faster(seen) }
    }

    fn slower(&mut self, seen: &Seen) {
        self.best = self.best.max(self.answering);
        if self.budget.is_some() && self.answering < IN_TIME * (self.answering + self.missing) {
            self.best = (self.best * RELEARN).max(self.answering);
        }
        let before = self.budget.unwrap_or(f64::INFINITY);
        let next = (FIRST * self.best).min(LESS * before).max(LEAST * self.best);
        self.budget = Some(next.max(TRICKLE));
        // Little's law: twice the places that the best rate needs, in a house where calls stay as long as when all is calm
        // and wait for a late runtime once. It is not the wait for the disk that places are short of: records are kept
        // many at a time, and fewer calls would only make each round smaller.
        let stay = (self.calm_stay + seen.late).as_secs_f64();
        let needed = 2.0 * self.best * stay / super::WINDOW.as_secs_f64();
        self.places = whole(needed).clamp(FEWEST.min(self.ceiling), self.ceiling);
    }

    fn faster(&mut self, seen: &Seen) {
        self.best = (self.best * FORGET).max(self.answering);
        if let Some(stay) = seen.stay {
            self.calm_stay = (self.calm_stay * 7 + stay) / 8;
        }
        self.budget = self.budget.map(|budget| budget * MORE).filter(|budget| *budget < FREE * self.best.max(TRICKLE));
        self.places = (self.places + self.places / 4 + 1).min(self.ceiling);
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is clamped")]
fn whole(number: f64) -> usize {
    number as usize
}
