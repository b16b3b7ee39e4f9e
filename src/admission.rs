//! Whether there is room for a call, told before any work is done for it.
//!
//! Decisions are short and synchronous, so too much load does not show in how many are under way. It shows in how long
//! calls wait before anybody looks at them: in sockets, and in the runtime's queue of tasks. [`Admission::lag`] is told how
//! late a runtime is, and that is what everything here adapts to ([`pace`]). What [`Admission::enter`] asks, in this order:
//!
//! 1. is the caller still waiting, by the deadline that it named, and can it be answered by then?
//! 2. while a runtime is late: is the call within the caller's part of what can be answered?
//! 3. is there a place in the house: of the caller's own share, and of everybody's?
//!
//! While calls are turned away for being too many, the first two are asked before a call's message is read
//! ([`Admission::knock`]). What [`Admission::enter`] gives is a [`Seat`], held until the answer has its record. When there
//! is not enough for all, callers are dealt with fairly by weight ([`shares`]): whoever asks for less than its part gets all
//! it asks for, whoever asks for more is refused first. Who is alone may have everything, up to its own share.
//!
//! Imports `config`, `clock`, and a caller as the proof of who asks. Knows nothing of gRPC, tokens or policies. On a call's
//! way there are atomics alone; the one lock is taken by whoever reports lag.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::caller::Caller;
use crate::clock::SharedClock;
use crate::config::{EnrolledCaller, Limits};

mod pace;
mod retry;
mod shares;

use pace::{Pace, Seen};
use shares::{Demand, deal};

/// How often what was seen is looked at, and the pace is set anew: as long as a standing queue must stand to be one
/// (CoDel, RFC 8289).
pub const WINDOW: Duration = Duration::from_millis(100);
/// A caller counts as active for so many windows after its last call: a second.
const ACTIVE_WINDOWS: u32 = 10;
/// A caller's part of its calls, in 65536ths.
const ALL: u32 = 1 << 16;
/// Runtimes that can be told apart; further ones count as the last.
const LANES: usize = 256;
/// A lane is late when it was late each time it looked, and looked at least this often: one hiccup is no queue.
const LOOKS: u32 = 2;
/// What has not looked for so many windows is gone, or stuck in a way that refusing does not mend.
const SILENT_WINDOWS: u32 = 10;

/// Why a call is not let in. Each but the last says when to come back: 50 ms to 5 s, different for each call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// There is no room for anybody.
    Full {
        /// When to come back.
        retry_after: Duration,
    },
    /// There is room for others: this caller has, or asks for, more than its share.
    OverShare {
        /// When to come back.
        retry_after: Duration,
    },
    /// The time that the caller named is over.
    Late,
}

/// The room of one server. Cheap to clone; every clone is the same room.
#[derive(Clone)]
pub struct Admission {
    house: Arc<House>,
}

struct House {
    /// The longest that a call may take, microseconds.
    longest: u64,
    clock: SharedClock,
    /// Lag that is still normal.
    target: Duration,
    /// Places, whatever happens: `limits.concurrent_decisions`.
    ceiling: usize,
    /// Places now.
    limit: AtomicUsize,
    taken: AtomicUsize,
    /// By the callers' numbers.
    accounts: Vec<Account>,
    /// Of all active callers together.
    active_weight: AtomicU32,
    /// How long calls were in the house of late, microseconds.
    usual_stay: AtomicU64,
    /// And the quickest of them: who has less time than that can't be answered, whatever it asks.
    quickest: AtomicU64,
    /// For the metrics: the last lag, microseconds, and the part of all calls that is let in, in 65536ths.
    lag: AtomicU64,
    accepted: AtomicU32,
    turned_away: AtomicU64,
    window: Mutex<Window>,
}

/// One caller's.
struct Account {
    /// Places at most: its share of the ceiling.
    places: usize,
    /// For fair dealing: the percent of its share.
    weight: u32,
    held: AtomicUsize,
    active: AtomicBool,
    /// The part of its calls that is let in, and what is left over of the last one.
    part: AtomicU32,
    carried: AtomicU32,
    /// Others are let in whole while it is not.
    greedy: AtomicBool,
    /// Since the window began: calls, those let in, and what they weigh.
    calls: AtomicU64,
    entered: AtomicU64,
    entered_weight: AtomicU64,
    /// Since then: what was answered in time, and too late, by weight; calls that ended, and how long they stayed in all
    /// and at least, microseconds.
    answered: AtomicU64,
    too_late: AtomicU64,
    ended: AtomicU64,
    stayed: AtomicU64,
    quickest: AtomicU64,
}

/// What is only looked at when a window ends.
struct Window {
    began: Duration,
    /// By runtime.
    lanes: Vec<Lane>,
    pace: Pace,
    /// By caller: windows since its last call, and what its calls weigh.
    idle: Vec<u32>,
    heft: Vec<f64>,
}

/// What one runtime's probe told.
#[derive(Clone, Copy)]
struct Lane {
    /// Since it was last judged. One that is very late looks seldom, and is judged seldom.
    least: Duration,
    looks: u32,
    /// The judgement, and for how many windows there was nothing to judge by.
    late: Duration,
    silent: u32,
}

const UNSEEN: Lane = Lane { least: Duration::MAX, looks: 0, late: Duration::ZERO, silent: 0 };

impl Lane {
    fn judge(&mut self) -> Duration {
        if self.looks >= LOOKS {
            *self = Self { late: self.least, ..UNSEEN };
        } else {
            self.silent += 1;
            if self.silent >= SILENT_WINDOWS {
                *self = UNSEEN;
            }
        }
        self.late
    }
}

/// A call has been asked the first two questions, and may ask for its place.
#[derive(Debug, Clone, Copy)]
pub struct Knocked(());

/// A place in the house, or several; given back when it is dropped, whatever ends the call.
#[must_use = "the place is held only while it lives"]
pub struct Seat {
    house: Arc<House>,
    number: usize,
    places: usize,
    weight: u64,
    since: Duration,
    due: Option<Duration>,
}

impl Admission {
    /// Room for `callers`, numbered as `Callers::new` numbers them.
    #[must_use]
    pub fn new(callers: &[EnrolledCaller], limits: &Limits, clock: SharedClock) -> Self {
        let ceiling = limits.concurrent_decisions;
        let accounts: Vec<Account> = callers.iter().map(|caller| Account::new(caller, ceiling)).collect();
        let window = Window {
            began: clock.monotonic(),
            lanes: vec![UNSEEN],
            pace: Pace::new(ceiling),
            idle: vec![0; accounts.len()],
            heft: vec![1.0; accounts.len()],
        };
        let house = House {
            clock,
            target: limits.overload_target,
            ceiling,
            limit: AtomicUsize::new(ceiling),
            taken: AtomicUsize::new(0),
            accounts,
            active_weight: AtomicU32::new(0),
            usual_stay: AtomicU64::new(0),
            quickest: AtomicU64::new(0),
            longest: micros(limits.max_deadline),
            lag: AtomicU64::new(0),
            accepted: AtomicU32::new(ALL),
            turned_away: AtomicU64::new(0),
            window: Mutex::new(window),
        };
        Self { house: Arc::new(house) }
    }

    /// Lets a call of `caller` in, or not. `due`: when the caller will wait no longer, by our monotonic clock, if it said
    /// so itself. A call whose caller named no time is never refused for taking long.
    ///
    /// # Errors
    /// [`TurnedAway`] says why, and when to come back.
    pub fn enter(&self, caller: &Caller, due: Option<Duration>) -> Result<Seat, TurnedAway> {
        // Every caller is enrolled. Should that ever not hold, there is no room for it.
        self.house.enter(caller.number(), due)
    }

    /// Whether some calls are turned away for being too many.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.house.accepted.load(Ordering::Relaxed) < ALL
    }

    /// As [`enter`](Self::enter), but for the place: for a call that has not been read yet.
    ///
    /// # Errors
    /// As there.
    pub fn knock(&self, caller: &Caller, due: Option<Duration>) -> Result<Knocked, TurnedAway> {
        self.house.knock(caller.number(), due).map(|_| Knocked(()))
    }

    /// The place of a call that has [knocked](Self::knock) before.
    ///
    /// # Errors
    /// [`TurnedAway`], if there is none.
    pub fn enter_after(&self, _: Knocked, caller: &Caller, due: Option<Duration>) -> Result<Seat, TurnedAway> {
        let account = self.house.account(caller.number())?;
        self.house.sit(account, caller.number(), due, self.house.clock.monotonic())
    }

    /// A runtime's probe woke so much later than it wanted to. `lane` numbers the runtime, from 0. To be told every few
    /// milliseconds: this is what ends windows and sets the pace, and without it only places are counted.
    /// How many runtimes there are need not be known before.
    pub fn lag(&self, lane: usize, late: Duration) {
        self.house.lag(lane, late);
    }

    /// Takes so many places out of use until what this returns is dropped. Made for tests: it stands in for calls that are
    /// being worked on. `None` when there are not so many.
    #[must_use]
    pub fn withhold(&self, places: usize) -> Option<Withheld> {
        add_within(&self.house.taken, places, self.house.ceiling).then(|| Withheld(Arc::clone(&self.house), places))
    }

    /// Places there are now: `limits.concurrent_decisions`, fewer while a runtime is late.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.house.limit.load(Ordering::Relaxed)
    }

    /// The part of all calls that is let in, as the last window was dealt: 1 while there is no overload.
    #[must_use]
    pub fn accepted(&self) -> f64 {
        f64::from(self.house.accepted.load(Ordering::Relaxed)) / f64::from(ALL)
    }

    /// How late a runtime was when it last told.
    #[must_use]
    pub fn last_lag(&self) -> Duration {
        Duration::from_micros(self.house.lag.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("limit", &self.limit()).finish_non_exhaustive()
    }
}

impl Account {
    fn new(caller: &EnrolledCaller, ceiling: usize) -> Self {
        Self {
            places: caller.capacity.of(ceiling),
            weight: u32::try_from(caller.capacity.of(100)).unwrap_or(1),
            held: AtomicUsize::new(0),
            active: AtomicBool::new(false),
            part: AtomicU32::new(ALL),
            carried: AtomicU32::new(0),
            greedy: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            entered: AtomicU64::new(0),
            entered_weight: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            too_late: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            stayed: AtomicU64::new(0),
            quickest: AtomicU64::new(u64::MAX),
        }
    }

    /// Whether the next call is within the caller's part: of a part of a third every third is, without chance.
    fn within_its_part(&self) -> bool {
        let part = self.part.load(Ordering::Relaxed);
        if part >= ALL {
            return true;
        }
        let carried = self.carried.fetch_add(part, Ordering::Relaxed) % ALL;
        carried + part >= ALL
    }
}

impl House {
    fn enter(self: &Arc<Self>, number: usize, due: Option<Duration>) -> Result<Seat, TurnedAway> {
        let (account, since) = self.knock(number, due)?;
        self.sit(account, number, due, since)
    }

    fn account(&self, number: usize) -> Result<&Account, TurnedAway> {
        self.accounts.get(number).ok_or(TurnedAway::Full { retry_after: retry::LONGEST })
    }

    /// Whether a call can be answered in time, and is within its caller's part; and the time by which that was told.
    fn knock(&self, number: usize, due: Option<Duration>) -> Result<(&Account, Duration), TurnedAway> {
        let account = self.account(number)?;
        account.calls.fetch_add(1, Ordering::Relaxed);
        if !account.active.load(Ordering::Relaxed) && !account.active.swap(true, Ordering::Relaxed) {
            self.active_weight.fetch_add(account.weight, Ordering::Relaxed);
        }
        let since = self.clock.monotonic();
        if let Some(due) = due {
            let left = due.saturating_sub(since);
            if left.is_zero() {
                return Err(TurnedAway::Late);
            }
            if left < Duration::from_micros(self.quickest.load(Ordering::Relaxed)) {
                return Err(self.full(account));
            }
        }
        if !account.within_its_part() {
            let greedy = account.greedy.load(Ordering::Relaxed);
            return Err(if greedy { self.over_share(account) } else { self.full(account) });
        }
        Ok((account, since))
    }

    fn sit(
        self: &Arc<Self>,
        account: &Account,
        number: usize,
        due: Option<Duration>,
        since: Duration,
    ) -> Result<Seat, TurnedAway> {
        self.seat(account)?;
        account.entered.fetch_add(1, Ordering::Relaxed);
        account.entered_weight.fetch_add(1, Ordering::Relaxed);
        Ok(Seat { house: Arc::clone(self), number, places: 1, weight: 1, since, due })
    }

    /// Takes one place, of the caller's share and of everybody's.
    fn seat(&self, account: &Account) -> Result<(), TurnedAway> {
        if !add_within(&account.held, 1, account.places) {
            let has_all = account.places >= self.ceiling;
            return Err(if has_all { self.full(account) } else { self.over_share(account) });
        }
        if add_within(&self.taken, 1, self.room(account)) {
            return Ok(());
        }
        // Full. What is left belongs to those who have less than their part.
        let (alone, fair) = (self.is_alone(account), self.fair_places(account));
        let has_less = account.held.load(Ordering::Relaxed) <= fair;
        if !alone && has_less && add_within(&self.taken, 1, self.ceiling) {
            return Ok(());
        }
        account.held.fetch_sub(1, Ordering::Relaxed);
        Err(if alone || has_less { self.full(account) } else { self.over_share(account) })
    }

    /// Places that anybody may take. With others about, a tenth stays free for who has less than its part.
    fn room(&self, account: &Account) -> usize {
        let limit = self.limit.load(Ordering::Relaxed);
        if self.is_alone(account) {
            return limit;
        }
        limit.min(self.ceiling.saturating_sub((self.ceiling / 10).max(1)))
    }

    fn is_alone(&self, account: &Account) -> bool {
        self.active_weight.load(Ordering::Relaxed) <= account.weight
    }

    /// The caller's part of the places there are, among those who are active.
    fn fair_places(&self, account: &Account) -> usize {
        let (weight, all) = (u64::from(account.weight), u64::from(self.active_weight.load(Ordering::Relaxed)));
        let limit = self.limit.load(Ordering::Relaxed) as u64;
        let fair = limit.saturating_mul(weight).checked_div(all).unwrap_or(limit);
        usize::try_from(fair).unwrap_or(usize::MAX).max(1)
    }

    fn full(&self, account: &Account) -> TurnedAway {
        TurnedAway::Full { retry_after: self.retry_after(account) }
    }

    fn over_share(&self, account: &Account) -> TurnedAway {
        TurnedAway::OverShare { retry_after: self.retry_after(account) }
    }

    /// The fewer get in, the later to come back: so that who does as told asks about as often as it can be answered.
    fn retry_after(&self, account: &Account) -> Duration {
        let number = self.turned_away.fetch_add(1, Ordering::Relaxed);
        let part = f64::from(account.part.load(Ordering::Relaxed)) / f64::from(ALL);
        let stay = Duration::from_micros(self.usual_stay.load(Ordering::Relaxed));
        retry::after(part, stay, number)
    }

    fn lag(&self, lane: usize, late: Duration) {
        let now = self.clock.monotonic();
        self.lag.store(micros(late), Ordering::Relaxed);
        let mut window = self.window.lock();
        let lane = lane.min(LANES - 1);
        if window.lanes.len() <= lane {
            window.lanes.resize(lane + 1, UNSEEN);
        }
        let Some(told) = window.lanes.get_mut(lane) else { return };
        told.least = told.least.min(late);
        // Who was late for a whole window need not look twice: it may not come to that for long.
        told.looks = told.looks.saturating_add(if late >= WINDOW { LOOKS } else { 1 });
        let enough = told.looks >= LOOKS;
        let open_for = now.saturating_sub(window.began);
        // A runtime that is very late looks seldom: the window waits for its second look.
        if open_for >= WINDOW && (enough || open_for >= 4 * WINDOW) {
            self.turn(&mut window, now, open_for);
        }
    }

    /// One window is over: sets the pace for the next, and deals it out.
    fn turn(&self, window: &mut Window, now: Duration, open_for: Duration) {
        let Window { began, lanes, pace, idle, heft } = window;
        *began = now;
        // The worst of them counts: its calls wait, however idle its neighbours are.
        let late = lanes.iter_mut().map(Lane::judge).max().unwrap_or_default();
        let scale = WINDOW.as_secs_f64() / open_for.as_secs_f64();

        let (mut answered, mut too_late, mut ended, mut stayed, mut quickest) = (0.0, 0.0, 0.0, 0.0, u64::MAX);
        let mut demands = Vec::with_capacity(self.accounts.len());
        for ((account, idle), heft) in self.accounts.iter().zip(idle).zip(heft) {
            let demand = account.turn(heft, scale);
            if demand.asked > 0.0 {
                *idle = 0;
            } else {
                *idle = idle.saturating_add(1);
                if *idle >= ACTIVE_WINDOWS && account.active.swap(false, Ordering::Relaxed) {
                    self.active_weight.fetch_sub(account.weight, Ordering::Relaxed);
                }
            }
            answered += counted(account.answered.swap(0, Ordering::Relaxed)) * scale;
            too_late += counted(account.too_late.swap(0, Ordering::Relaxed)) * scale;
            ended += counted(account.ended.swap(0, Ordering::Relaxed));
            stayed += counted(account.stayed.swap(0, Ordering::Relaxed));
            quickest = quickest.min(account.quickest.swap(u64::MAX, Ordering::Relaxed));
            demands.push(demand);
        }
        let stay = (ended > 0.0).then(|| Duration::from_secs_f64(stayed / ended / 1e6));
        let asked: f64 = demands.iter().map(|demand| demand.asked).sum();
        pace.turn(&Seen { overloaded: late > self.target, late, answered, too_late, stay });

        self.limit.store(pace.places(), Ordering::Relaxed);
        self.usual_stay.store(micros(pace.usual_stay()), Ordering::Relaxed);
        // Nobody came through? Should that be because of this figure, it must not stay.
        // Longer than any call may take: the clock was moved, and nothing was measured.
        let known = (quickest < self.longest).then_some(quickest);
        let none_shorter = known.unwrap_or_else(|| self.quickest.load(Ordering::Relaxed) / 2);
        self.quickest.store(none_shorter, Ordering::Relaxed);
        let level = pace.budget().and_then(|budget| deal(&demands, budget));
        let (mut let_in, mut any_whole) = (0.0, false);
        for (account, demand) in self.accounts.iter().zip(&demands) {
            let part = demand.part_at(level);
            let_in += part * demand.asked;
            any_whole |= part >= 1.0 && demand.asked > 0.0;
            account.part.store(of_all(part), Ordering::Relaxed);
        }
        for account in &self.accounts {
            let greedy = any_whole && account.part.load(Ordering::Relaxed) < ALL;
            account.greedy.store(greedy, Ordering::Relaxed);
        }
        self.accepted.store(if asked > 0.0 { of_all(let_in / asked) } else { ALL }, Ordering::Relaxed);
    }
}

impl Account {
    /// What the caller asked for in this window, by weight. What a call that was not let in would have weighed nobody
    /// knows: it is taken to weigh what those weigh that were.
    fn turn(&self, heft: &mut f64, scale: f64) -> Demand {
        let entered = counted(self.entered.swap(0, Ordering::Relaxed));
        let weight = counted(self.entered_weight.swap(0, Ordering::Relaxed));
        if entered > 0.0 {
            *heft = (weight / entered).max(1.0);
        }
        let asked = counted(self.calls.swap(0, Ordering::Relaxed)) * *heft * scale;
        Demand { asked, weight: f64::from(self.weight) }
    }
}

impl Seat {
    /// The call turned out to be a batch of so many questions, which weighs as much as one call and another for every ten
    /// of them. It takes more places as far as there are any, and is never refused for it: it has been let in.
    pub fn holds(&mut self, questions: usize) {
        let more = questions / 10;
        let Some(account) = self.house.accounts.get(self.number) else { return };
        self.weight += more as u64;
        account.entered_weight.fetch_add(more as u64, Ordering::Relaxed);
        let own = add_up_to(&account.held, more, account.places);
        let taken = add_up_to(&self.house.taken, own, self.house.room(account));
        account.held.fetch_sub(own - taken, Ordering::Relaxed);
        self.places += taken;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let now = self.house.clock.monotonic();
        self.house.taken.fetch_sub(self.places, Ordering::Relaxed);
        let Some(account) = self.house.accounts.get(self.number) else { return };
        account.held.fetch_sub(self.places, Ordering::Relaxed);
        account.ended.fetch_add(1, Ordering::Relaxed);
        let stayed = micros(now.saturating_sub(self.since));
        account.stayed.fetch_add(stayed, Ordering::Relaxed);
        account.quickest.fetch_min(stayed, Ordering::Relaxed);
        // Nobody waits for an answer that is too late: it is no work done.
        let in_time = self.due.is_none_or(|due| now <= due);
        let count = if in_time { &account.answered } else { &account.too_late };
        count.fetch_add(self.weight, Ordering::Relaxed);
    }
}

/// Places out of use, until it is dropped.
#[must_use = "they are out of use only while it lives"]
pub struct Withheld(Arc<House>, usize);

impl Drop for Withheld {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// Adds all of `more`, unless that would make it more than `most`.
fn add_within(level: &AtomicUsize, more: usize, most: usize) -> bool {
    let sum = |now: usize| now.checked_add(more).filter(|sum| *sum <= most);
    level.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok()
}

/// Adds as much of `more` as there is room for, and says how much that was.
fn add_up_to(level: &AtomicUsize, more: usize, most: usize) -> usize {
    let fits = |now: usize| more.min(most.saturating_sub(now));
    match level.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now + fits(now))) {
        Ok(before) => fits(before),
        Err(_) => 0,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "calls of a tenth of a second")]
fn counted(count: u64) -> f64 {
    count as f64
}

/// A part from 0 to 1 in 65536ths.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 65536")]
fn of_all(part: f64) -> u32 {
    (part.clamp(0.0, 1.0) * f64::from(ALL)) as u32
}

#[cfg(test)]
mod tests;
