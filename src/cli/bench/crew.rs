//! Threads that ask: each has a runtime of its own, some of the connections, and a tally that nobody else writes.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::line::{Line, Route};
use super::question::Questions;
use super::schedule::{Arrivals, Schedule};
use super::tally::{Failure, LATE, Outcome, Tally};
use crate::clock::SharedClock;

/// Questions of an open loop that are due and not yet taken up. More than that are not sent.
const DUE: usize = 16_384;
/// The beginning of a measurement lies so far ahead that every thread has heard of it.
const AHEAD: Duration = Duration::from_millis(5);
/// A pause after a call that failed, so that a server that is away is not hammered.
const PAUSE: Duration = Duration::from_millis(10);

/// How questions follow each other.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// The next one when the last one is answered.
    Closed {
        /// So many at once on each connection.
        in_flight: usize,
    },
    /// So many a second, whatever becomes of them.
    Open {
        /// On all connections together.
        rate: f64,
        /// At random or at equal distances.
        arrivals: Arrivals,
        /// So many at once on each connection; what comes beyond is not sent.
        in_flight: usize,
    },
}

/// One measurement, as every thread hears of it.
struct Order {
    pace: Pace,
    begin: Duration,
    length: Duration,
    tally: Arc<Mutex<Tally>>,
    done: oneshot::Sender<()>,
}

/// What all threads of a crew have in common.
#[derive(Clone)]
struct Common {
    questions: Arc<Questions>,
    clock: SharedClock,
    stop: CancellationToken,
}

/// The threads. They end when this is dropped.
pub struct Crew {
    threads: Vec<Worker>,
    clock: SharedClock,
}

struct Worker {
    orders: mpsc::UnboundedSender<Order>,
    lines: Vec<Arc<Line>>,
}

/// A measurement under way.
pub struct Running {
    begin: Duration,
    length: Duration,
    tallies: Vec<Arc<Mutex<Tally>>>,
    finished: Vec<oneshot::Receiver<()>>,
}

/// Looks on while a measurement is under way.
#[derive(Clone)]
pub struct Watch(Vec<Arc<Mutex<Tally>>>);

impl Watch {
    /// Answers so far, and what else came.
    #[must_use]
    pub fn so_far(&self) -> (u64, u64) {
        self.0.iter().fold((0, 0), |(answers, others), tally| {
            let tally = tally.lock();
            (answers + tally.answers.count(), others + tally.refused() + tally.failed())
        })
    }
}

impl Crew {
    /// Starts the threads and connects.
    ///
    /// # Errors
    /// Why there is no connection, or no thread.
    pub async fn assemble(
        route: &Route,
        questions: &Arc<Questions>,
        threads: usize,
        connections: usize,
        stop: &CancellationToken,
    ) -> Result<Self, String> {
        let threads = threads.clamp(1, connections.max(1));
        let mut crew = Self { threads: Vec::new(), clock: Arc::clone(&route.clock) };
        for which in 0..threads {
            let share = connections / threads + usize::from(which < connections % threads);
            let common =
                Common { questions: Arc::clone(questions), clock: Arc::clone(&route.clock), stop: stop.clone() };
            let (route, (orders, heard), (opened, lines)) =
                (route.clone(), mpsc::unbounded_channel(), oneshot::channel());
            let place = (u32::try_from(which).unwrap_or(0), u32::try_from(threads).unwrap_or(1));
            std::thread::Builder::new()
                .name(format!("bench-{which}"))
                .spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    match runtime {
                        Ok(runtime) => runtime.block_on(work(route, share, common, place, opened, heard)),
                        Err(error) => drop(opened.send(Err(error.to_string()))),
                    }
                })
                .map_err(|error| error.to_string())?;
            let lines = lines.await.unwrap_or_else(|_| Err("a thread of the load ended".to_owned()))?;
            crew.threads.push(Worker { orders, lines });
        }
        Ok(crew)
    }

    /// Begins a measurement; [`Running::finish`] ends it.
    #[must_use]
    pub fn begin(&self, pace: Pace, length: Duration) -> Running {
        let begin = self.clock.monotonic() + AHEAD;
        let (mut tallies, mut finished) = (Vec::new(), Vec::new());
        for worker in &self.threads {
            let tally = Arc::new(Mutex::new(Tally::over(length)));
            let (done, heard) = oneshot::channel();
            // A thread that has ended drops the order, and the receiver hears of it.
            let _ = worker.orders.send(Order { pace, begin, length, tally: Arc::clone(&tally), done });
            tallies.push(tally);
            finished.push(heard);
        }
        Running { begin, length, tallies, finished }
    }

    /// Whether no connection is left.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.threads.iter().flat_map(|worker| &worker.lines).all(|line| line.is_lost())
    }

    /// What was heard last when a connection ended.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        self.threads.iter().flat_map(|worker| &worker.lines).find_map(|line| line.last_words())
    }
}

impl Running {
    /// To look on.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(self.tallies.clone())
    }

    /// What all threads counted together. Waits for them.
    pub async fn finish(self, clock: &SharedClock) -> Tally {
        for heard in self.finished {
            // Heard, or the thread is gone: what it counted counts.
            let _ = heard.await;
        }
        let mut all = Tally::over(self.length);
        for tally in &self.tallies {
            all.merge(&tally.lock());
        }
        all.cut(clock.monotonic().saturating_sub(self.begin));
        all
    }
}

/// A thread: connects, then carries out orders until there are none.
async fn work(
    route: Route,
    connections: usize,
    common: Common,
    place: (u32, u32),
    opened: oneshot::Sender<Result<Vec<Arc<Line>>, String>>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let mut lines = Vec::new();
    for _ in 0..connections {
        match Line::open(route.clone()).await {
            Ok(line) => lines.push(Arc::new(line)),
            Err(why) => return drop(opened.send(Err(why))),
        }
    }
    if opened.send(Ok(lines.clone())).is_err() {
        return;
    }
    while let Some(order) = orders.recv().await {
        let ahead = order.begin.saturating_sub(common.clock.monotonic());
        match order.pace {
            Pace::Closed { in_flight } => {
                tokio::time::sleep(ahead).await;
                closed(&lines, &common, &order, in_flight).await;
            }
            Pace::Open { rate, arrivals, in_flight } => {
                let schedule = Schedule::new(arrivals, rate, order.length, place);
                open(&lines, &common, &order, schedule, in_flight).await;
            }
        }
        // If nobody waits any more, that is that.
        let _ = order.done.send(());
    }
}

async fn closed(lines: &[Arc<Line>], common: &Common, order: &Order, in_flight: usize) {
    let mut loops = JoinSet::new();
    for line in lines.iter().cycle().take(lines.len() * in_flight) {
        let (line, common, tally) = (Arc::clone(line), common.clone(), Arc::clone(&order.tally));
        let (begin, length) = (order.begin, order.length);
        loops.spawn(async move {
            loop {
                let asked = common.clock.monotonic().saturating_sub(begin);
                if asked >= length || common.stop.is_cancelled() || line.is_lost() {
                    return;
                }
                let outcome = line.ask(&common.questions).await;
                let failed = matches!(outcome, Outcome::Failed(_));
                tally.lock().note(outcome, asked, common.clock.monotonic().saturating_sub(begin));
                if failed {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
    }
    while loops.join_next().await.is_some() {}
}

/// Latency counts from the instant at which a question was to be asked, not from the one at which it was: what waits
/// because the server is slow waits in the figures too.
async fn open(lines: &[Arc<Line>], common: &Common, order: &Order, schedule: Schedule, in_flight: usize) {
    let (due, mut heard) = mpsc::channel(DUE);
    let pacing = pace(schedule, common.clone(), order, due);
    let mut lines: Vec<(Arc<Line>, Arc<Semaphore>)> =
        lines.iter().map(|line| (Arc::clone(line), Arc::new(Semaphore::new(in_flight)))).collect();
    let mut calls = JoinSet::new();
    while let Some(intended) = heard.recv().await {
        while calls.try_join_next().is_some() {}
        // The next connection with room; the one that took this call comes last next time.
        let room = lines.iter().enumerate().find_map(|(index, (line, room))| {
            let permit = Arc::clone(room).try_acquire_owned().ok().filter(|_| !line.is_lost())?;
            Some((index, Arc::clone(line), permit))
        });
        let mut tally = order.tally.lock();
        let Some((index, line, permit)) = room else {
            tally.unsent += 1;
            if lines.iter().all(|(line, _)| line.is_lost()) {
                break;
            }
            continue;
        };
        lines.rotate_left(index + 1);
        let asked = common.clock.monotonic().saturating_sub(order.begin);
        tally.late += u64::from(asked.saturating_sub(intended) > LATE);
        drop(tally);
        let (common, tally, begin) = (common.clone(), Arc::clone(&order.tally), order.begin);
        calls.spawn(async move {
            let outcome = line.ask(&common.questions).await;
            let done = common.clock.monotonic().saturating_sub(begin);
            tally.lock().note(outcome, intended, done);
            drop(permit);
        });
    }
    drop(heard);
    while calls.join_next().await.is_some() {}
    if pacing.is_err() {
        *order.tally.lock().failures.entry(Failure::Connection).or_default() += 1;
    }
}

/// A thread that says when a question is due: a runtime's timers are a millisecond coarse.
fn pace(schedule: Schedule, common: Common, order: &Order, due: mpsc::Sender<Duration>) -> std::io::Result<()> {
    /// So often a pause looks whether it is to end.
    const GLANCE: Duration = Duration::from_millis(50);
    let (begin, length, tally) = (order.begin, order.length, Arc::clone(&order.tally));
    let pacer = move || {
        // The time is not over with the last question.
        for question in schedule.map(Some).chain([None]) {
            let at = question.unwrap_or(length);
            loop {
                if common.stop.is_cancelled() || due.is_closed() {
                    return;
                }
                let wait = (begin + at).saturating_sub(common.clock.monotonic());
                if wait.is_zero() {
                    break;
                }
                std::thread::sleep(wait.min(GLANCE));
            }
            if question.is_some() && due.try_send(at).is_err() {
                tally.lock().unsent += 1;
            }
        }
    };
    std::thread::Builder::new().name("bench-pace".to_owned()).spawn(pacer).map(drop)
}
