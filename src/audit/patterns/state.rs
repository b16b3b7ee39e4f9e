//! What is remembered of one key: counts in a window, the last different things, a run of numbers. All of it bounded.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

use super::sketch::Sketch;
use crate::model::ids::DecisionId;

/// Decision ids that an alert names at most.
const SAMPLES: usize = 10;
/// Single things that are remembered of a key at most.
pub(super) const REMEMBERED: usize = 64;
/// Single events, where each counts.
const EVENTS: usize = 256;

/// A map that holds no more than so many: who was not met for long is forgotten first. Two halves, so that it costs the
/// same for everyone: when the young half is full, the old one is thrown away and the young one gets old.
#[derive(Debug)]
pub(super) struct Bounded<V> {
    young: HashMap<u64, V, RandomState>,
    old: HashMap<u64, V, RandomState>,
    half: usize,
}

impl<V: Default> Bounded<V> {
    pub(super) fn of(keys: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), half: keys.div_ceil(2) }
    }

    /// What is known of `key`.
    pub(super) fn of_key(&mut self, key: u64) -> &mut V {
        if !self.young.contains_key(&key) {
            let known = self.old.remove(&key).unwrap_or_default();
            if self.young.len() >= self.half {
                std::mem::swap(&mut self.young, &mut self.old);
                self.young.clear();
            }
            self.young.insert(key, known);
        }
        self.young.entry(key).or_default()
    }

    /// What is known of `key`, if anything is.
    pub(super) fn of_known(&self, key: u64) -> Option<&V> {
        self.young.get(&key).or_else(|| self.old.get(&key))
    }

    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// Of one key and one pattern. Each pattern uses a part; what it does not use costs no memory of its own.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) run: Run,
    pub(super) tally: Tally,
    pub(super) bytes: Tally,
    pub(super) distinct: Distinct,
    pub(super) numbers: Numbers,
    pub(super) events: Events,
    pub(super) sketch: Sketch,
    /// When `sketch` began to fill or a caller was first heard, milliseconds.
    pub(super) since: Option<u64>,
    /// The last offset of a list.
    pub(super) offset: Option<u64>,
    /// What a caller asks for. Sorted.
    pub(super) known: Vec<u64>,
    /// How often it asked.
    pub(super) asked: u64,
}

impl State {
    /// A sketch that starts anew when `window` is over.
    pub(super) fn sketch_in(&mut self, t: u64, window: u64) -> &mut Sketch {
        let since = *self.since.get_or_insert(t);
        if t.saturating_sub(since) >= window {
            self.sketch.clear();
            self.since = Some(t);
        }
        &mut self.sketch
    }
}

/// What an alert shows of how it came about.
#[derive(Debug, Default)]
pub(super) struct Run {
    last: Option<u64>,
    fired: Option<u64>,
    pub(super) first_id: Option<Box<str>>,
    pub(super) samples: VecDeque<DecisionId>,
}

impl Run {
    /// Something that counts was seen.
    pub(super) fn note(&mut self, t: u64, window: u64, id: Option<&str>, decision: Option<DecisionId>) {
        if self.last.is_some_and(|last| t.saturating_sub(last) >= window) {
            self.first_id = None;
            self.samples.clear();
        }
        self.last = Some(t);
        if self.first_id.is_none() {
            self.first_id = id.map(Into::into);
        }
        if let Some(decision) = decision {
            if self.samples.len() == SAMPLES {
                self.samples.pop_front();
            }
            self.samples.push_back(decision);
        }
    }

    /// Whether it may be told: once in a window.
    pub(super) fn fires(&mut self, t: u64, window: u64) -> bool {
        if self.fired.is_some_and(|fired| t.saturating_sub(fired) < window) {
            return false;
        }
        self.fired = Some(t);
        true
    }

    /// Lets it be told although it was.
    pub(super) fn again(&mut self) {
        self.fired = None;
    }
}

/// A sum over `(t - window, t]`: exact while there are up to 64 parts, then within a 64th of the window.
#[derive(Debug, Default)]
pub(super) struct Tally {
    parts: VecDeque<(u64, u64)>,
    sum: u64,
}

impl Tally {
    pub(super) fn add(&mut self, t: u64, window: u64, weight: u64) -> u64 {
        while let Some((_, old)) = self.parts.pop_front_if(|(began, _)| began.saturating_add(window) <= t) {
            self.sum = self.sum.saturating_sub(old);
        }
        let room = self.parts.len() < REMEMBERED;
        match self.parts.back_mut() {
            Some((began, part)) if !room && t.saturating_sub(*began) < window / REMEMBERED as u64 => {
                *part = part.saturating_add(weight);
            }
            _ => self.parts.push_back((t, weight)),
        }
        self.sum = self.sum.saturating_add(weight);
        self.sum
    }

    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.sum = 0;
    }
}

/// The last 64 different things of a window, the latest seen last.
#[derive(Debug, Default)]
pub(super) struct Distinct {
    seen: VecDeque<(u64, u64)>,
}

impl Distinct {
    /// How many different ones there are in `(t - window, t]`, 64 at most.
    pub(super) fn add(&mut self, t: u64, window: u64, hash: u64) -> u64 {
        while self.seen.pop_front_if(|(last, _)| last.saturating_add(window) <= t).is_some() {}
        if let Some(at) = self.seen.iter().position(|(_, known)| *known == hash) {
            self.seen.remove(at);
        } else if self.seen.len() == REMEMBERED {
            self.seen.pop_front();
        }
        self.seen.push_back((t, hash));
        self.seen.len() as u64
    }

    pub(super) fn holds(&self, t: u64, window: u64, hash: u64) -> bool {
        self.seen.iter().any(|(last, known)| *known == hash && last.saturating_add(window) > t)
    }
}

/// The last 64 different ids of a window in the order in which they came, as numbers.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    seen: VecDeque<Numbered>,
}

/// An id that ends in a number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbered {
    pub(super) last: u64,
    pub(super) id: u64,
    /// What stands before the number; `None`: there is no number.
    pub(super) series: Option<(u64, i64)>,
}

impl Numbers {
    /// The largest step that still is one.
    const STEP: u64 = 10;

    /// Adds an id and tells how many follow each other: the last `run` different ids with one step between them, 1 to 10
    /// up or down; or at least twice as many that fill at least half of their range.
    pub(super) fn add(&mut self, window: u64, run: u64, id: Numbered) -> Option<u64> {
        self.seen.retain(|known| known.last.saturating_add(window) > id.last);
        if let Some(known) = self.seen.iter_mut().find(|known| known.id == id.id) {
            known.last = id.last;
        } else {
            if self.seen.len() == REMEMBERED {
                self.seen.pop_front();
            }
            self.seen.push_back(id);
        }
        let (series, _) = id.series?;
        let run = usize::try_from(run).unwrap_or(usize::MAX);
        self.in_step(run, series).or_else(|| self.dense(run.saturating_mul(2), series))
    }

    fn in_step(&self, run: usize, series: u64) -> Option<u64> {
        let first = self.seen.len().checked_sub(run)?;
        let mut numbers = self.seen.range(first..).map(|seen| seen.series.filter(|(of, _)| *of == series));
        let (_, mut before) = numbers.next()??;
        let mut step = None;
        for number in numbers {
            let (_, number) = number?;
            let this = number.saturating_sub(before);
            if *step.get_or_insert(this) != this || !(1..=Self::STEP).contains(&this.unsigned_abs()) {
                return None;
            }
            before = number;
        }
        Some(run as u64)
    }

    fn dense(&self, least: usize, series: u64) -> Option<u64> {
        if self.seen.len() < least {
            return None;
        }
        let of_series = self.seen.iter().filter_map(|seen| seen.series).filter(|(of, _)| *of == series);
        let (mut count, mut lowest, mut highest) = (0_u64, i64::MAX, i64::MIN);
        for (_, number) in of_series {
            (count, lowest, highest) = (count + 1, lowest.min(number), highest.max(number));
        }
        let range = highest.abs_diff(lowest).saturating_add(1);
        (count >= least as u64 && count.saturating_mul(2) >= range).then_some(count)
    }
}

/// Single events of a window, 256 at most, each with what it was about.
#[derive(Debug, Default)]
pub(super) struct Events {
    seen: VecDeque<(u64, u64)>,
}

impl Events {
    /// How many different ones there are in `(t - window, t]`, and how often the most frequent one is there.
    pub(super) fn add(&mut self, t: u64, window: u64, hash: u64) -> (u64, u64) {
        while self.seen.pop_front_if(|(at, _)| at.saturating_add(window) <= t).is_some() {}
        if self.seen.len() == EVENTS {
            self.seen.pop_front();
        }
        self.seen.push_back((t, hash));
        let mut hashes: Vec<u64> = self.seen.iter().map(|(_, hash)| *hash).collect();
        hashes.sort_unstable();
        let groups = hashes.chunk_by(|one, next| one == next);
        groups.fold((0, 0), |(count, most), group| (count + 1, most.max(group.len() as u64)))
    }
}

#[cfg(test)]
impl<V> Bounded<V> {
    pub(super) fn all(&self) -> impl Iterator<Item = &V> {
        self.young.values().chain(self.old.values())
    }
}

#[cfg(test)]
impl State {
    /// What it takes of memory.
    pub(super) fn bytes(&self) -> usize {
        let pairs = self.tally.parts.capacity()
            + self.bytes.parts.capacity()
            + self.distinct.seen.capacity()
            + self.events.seen.capacity();
        size_of::<Self>()
            + pairs * 16
            + self.numbers.seen.capacity() * size_of::<Numbered>()
            + self.sketch.bytes()
            + self.known.capacity() * 8
            + self.run.samples.capacity() * 16
            + self.run.first_id.as_ref().map_or(0, |id| id.len())
    }
}
