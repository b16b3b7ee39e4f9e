//! Instruments that know their labels beforehand: counting with one of them costs an addition, where otherwise the labels
//! would be hashed and looked for, each time, under a lock that all threads share.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundCounter, BoundHistogram, Counter, Histogram};

use super::super::instruments::{CACHE_LOOKUPS_SEEN, RECORD_RESULTS, STAGES};
use super::{Answered, Metrics};

/// The instruments of which every call uses several, one for each of the labels that they can have.
#[derive(Debug)]
pub(super) struct Bound {
    stages: Vec<(&'static str, BoundHistogram<f64>)>,
    records: Vec<(&'static str, BoundCounter<u64>)>,
    lookups: Vec<((&'static str, &'static str), BoundCounter<u64>)>,
}

impl Bound {
    pub(super) fn new(stages: &Histogram<f64>, records: &Counter<u64>, lookups: &Counter<u64>) -> Self {
        let stage = |name| (name, stages.bind(&[KeyValue::new("stage", name)]));
        let record = |result| (result, records.bind(&[KeyValue::new("result", result)]));
        let lookup = |(cache, result)| {
            ((cache, result), lookups.bind(&[KeyValue::new("cache", cache), KeyValue::new("result", result)]))
        };
        Self {
            stages: STAGES.into_iter().map(stage).collect(),
            records: RECORD_RESULTS.into_iter().map(record).collect(),
            lookups: CACHE_LOOKUPS_SEEN.into_iter().map(lookup).collect(),
        }
    }

    pub(super) fn stage(&self, stage: &str) -> Option<&BoundHistogram<f64>> {
        self.stages.iter().find(|(name, _)| *name == stage).map(|(_, bound)| bound)
    }

    pub(super) fn record(&self, result: &str) -> Option<&BoundCounter<u64>> {
        self.records.iter().find(|(name, _)| *name == result).map(|(_, bound)| bound)
    }

    pub(super) fn lookup(&self, cache: &str, result: &str) -> Option<&BoundCounter<u64>> {
        self.lookups.iter().find(|(labels, _)| *labels == (cache, result)).map(|(_, bound)| bound)
    }
}

/// Counts answers that are all alike in words.
#[derive(Debug)]
pub struct Tally {
    answers: BoundCounter<u64>,
    durations: BoundHistogram<f64>,
}

impl Tally {
    /// One more, after so many seconds.
    pub fn add(&self, seconds: f64) {
        self.answers.add(1);
        self.durations.record(seconds);
    }
}

impl Metrics {
    /// Counts answers like this one, however long they take.
    #[must_use]
    pub fn tally(&self, answered: Answered) -> Tally {
        let (counted, timed, _) = answered.labels();
        Tally { answers: self.inner.decisions.bind(&counted), durations: self.inner.decision_duration.bind(&timed) }
    }
}
