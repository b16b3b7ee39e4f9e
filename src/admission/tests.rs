//! The room itself, and a simulated server before which it stands: one thread that takes calls as they come, a client side
//! that sends no more than its streams allow, and a clock that only the simulation moves.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use super::*;
use crate::clock::{Clock as _, ManualClock};
use crate::config::{AttributeGrant, CallerName, ClientNames, PresentGrant, Share, TenantGrant, TypeGrant};

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn enrolled(number: usize, percent: u8) -> EnrolledCaller {
    EnrolledCaller {
        name: CallerName::Spiffe(format!("spiffe://corp.test/caller-{number}").parse().unwrap()),
        label: format!("caller-{number}"),
        resource_types: TypeGrant::Only(BTreeSet::new()),
        actions: Vec::new(),
        assert_subjects: TypeGrant::Only(BTreeSet::new()),
        supply_attributes: AttributeGrant::All,
        supply_parents: TypeGrant::Only(BTreeSet::new()),
        sees_policies: false,
        clients: ClientNames::default(),
        presents_for: PresentGrant::Only(ClientNames::default()),
        tenants: TenantGrant::Only(BTreeSet::new()),
        batch_items: None,
        capacity: Share::new(percent).unwrap(),
        explain: false,
        presents_api_keys: false,
    }
}

/// A house with so many places for callers with these shares, in percent.
fn house(places: usize, shares: &[u8]) -> (Admission, Arc<ManualClock>) {
    let clock = ManualClock::at(SystemTime::UNIX_EPOCH);
    let callers: Vec<_> = shares.iter().enumerate().map(|(number, percent)| enrolled(number, *percent)).collect();
    let limits = Limits { concurrent_decisions: places, ..Limits::default() };
    (Admission::new(&callers, &limits, clock.clone()), clock)
}

impl Admission {
    fn ask(&self, caller: usize) -> Result<Seat, &'static str> {
        self.ask_by(caller, None)
    }

    fn ask_by(&self, caller: usize, due: Option<Duration>) -> Result<Seat, &'static str> {
        self.house.enter(caller, due).map_err(|away| match away {
            TurnedAway::Full { .. } => "full",
            TurnedAway::OverShare { .. } => "over share",
            TurnedAway::Late => "late",
        })
    }

    fn take(&self, caller: usize, places: usize) -> Vec<Seat> {
        (0..places).map(|_| self.ask(caller).unwrap()).collect()
    }
}

/// THREATS T20.
#[test]
fn a_place_comes_back_however_its_decision_ends() {
    let (admission, _) = house(4, &[50, 50]);
    let taken = admission.take(0, 2);
    assert_eq!(admission.ask(0).err(), Some("over share"), "two of four");
    assert!(admission.ask(1).is_ok(), "another caller has its own");
    drop(taken);

    for _ in 0..10 {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let _seats = admission.take(0, 2);
            panic!("a decision that panics");
        }));
        assert!(ended.is_err());
    }
    assert!(admission.ask(0).is_ok());
}

#[test]
fn who_is_alone_may_have_every_place_and_others_find_one_all_the_same() {
    let (admission, clock) = house(20, &[100, 100, 100]);
    let mut greedy = admission.take(0, 20);
    assert_eq!(admission.ask(0).err(), Some("full"), "it is alone: there are no more");
    assert_eq!(admission.ask(1).err(), Some("full"), "whoever comes now comes too early");
    greedy.pop();
    assert_eq!(admission.ask(0).err(), Some("over share"), "but from now on it is not alone");
    let modest = admission.ask(1).unwrap();
    greedy.truncate(17);
    assert_eq!(admission.ask(0).err(), Some("over share"), "a tenth is for others");
    let other = admission.take(2, 2);
    assert_eq!(admission.ask(2).err(), Some("full"), "until nothing is left");
    drop((modest, other));
    greedy.truncate(10);
    assert!(admission.ask(0).is_ok(), "what nobody needs it may have");

    // The others are gone for a second.
    for _ in 0..300 {
        clock.advance(millis(5));
        admission.lag(0, Duration::ZERO);
        drop(admission.ask(0));
    }
    let all = admission.take(0, 10);
    assert_eq!((greedy.len() + all.len(), admission.ask(0).err()), (20, Some("full")));
}

#[test]
fn a_batch_takes_more_places_as_far_as_there_are_any() {
    let (admission, _) = house(10, &[50]);
    let mut batch = admission.ask(0).unwrap();
    batch.holds(20);
    assert_eq!((batch.places, batch.weight), (3, 3), "one, and one for every ten questions");
    let rest = admission.take(0, 2);
    assert_eq!(admission.ask(0).err(), Some("over share"));
    drop(rest);
    batch.holds(1000);
    assert_eq!(batch.places, 5, "no more than its share, and not refused");
    assert_eq!(admission.ask(0).err(), Some("over share"));
    drop(batch);
    assert_eq!(admission.take(0, 5).len(), 5, "all of them come back");
    assert_eq!(admission.house.taken.load(Ordering::Relaxed), 0);
}

#[test]
fn a_call_that_can_not_be_answered_in_time_is_not_begun() {
    let (admission, clock) = house(10, &[100]);
    clock.advance(millis(1000));
    let now = || clock.monotonic();
    assert_eq!(admission.ask_by(0, Some(now())).err(), Some("late"), "nobody waits for it any more");
    assert_eq!(admission.ask_by(0, Some(millis(1))).err(), Some("late"), "for long");
    assert!(admission.ask_by(0, Some(now() + millis(1))).is_ok());

    // Calls take 40 ms now.
    let turn = |stay: Option<u64>| {
        let seat = stay.map(|_| admission.ask(0).unwrap());
        clock.advance(millis(stay.unwrap_or(100)));
        drop(seat);
        clock.advance(WINDOW);
        admission.lag(0, Duration::ZERO);
        admission.lag(0, Duration::ZERO);
    };
    (0..10).for_each(|_| turn(Some(40)));
    assert_eq!(
        admission.ask_by(0, Some(now() + millis(30))).err(),
        Some("full"),
        "not even the quickest took so little"
    );
    assert!(admission.ask_by(0, Some(now() + millis(50))).is_ok());
    assert!(admission.ask(0).is_ok(), "whoever names no time has all of it");
    (0..20).for_each(|_| turn(None));
    assert!(admission.ask_by(0, Some(now() + millis(30))).is_ok(), "what was long ago keeps nobody out for ever");
    turn(Some(60_000));
    assert!(admission.ask_by(0, Some(now() + millis(30))).is_ok(), "no call takes so long: the clock was moved");
}

#[test]
fn one_hiccup_is_no_overload_and_every_runtime_counts() {
    type Row = (&'static [(usize, u64)], bool, &'static str);
    let table: [Row; 6] = [
        (&[(0, 0), (0, 300), (0, 0), (0, 0)], false, "once, and then in time"),
        (&[(0, 21), (0, 50), (0, 30), (0, 21)], true, "every time"),
        (&[(1, 800), (0, 0), (0, 0), (0, 0)], true, "one of two, so late that it hardly looks"),
        (&[(0, 20), (0, 20), (0, 20), (0, 20)], false, "within the target"),
        (&[(0, 0), (1, 50), (0, 0), (1, 50)], true, "one of two, every time"),
        (&[(0, 0), (1, 50), (0, 0), (1, 0)], false, "one of two, now and then"),
    ];
    for (lags, expected, why) in table {
        let (admission, clock) = house(1000, &[100]);
        for _ in 0..20 {
            (0..100).for_each(|_| drop(admission.ask(0)));
            for (lane, late) in lags {
                clock.advance(WINDOW / 4);
                admission.lag(*lane, millis(*late));
            }
        }
        assert_eq!(admission.accepted() < 1.0, expected, "{why}: {}", admission.accepted());
        assert_eq!(admission.limit() < 1000, expected, "{why}: {}", admission.limit());
    }
}

/// A call on its way, or the probe.
enum Waiting {
    Call {
        caller: usize,
        sent: Duration,
    },
    /// A call that was let in and has so many turns to go: its body, its record, its answer. Each waits behind everybody.
    Within {
        caller: usize,
        sent: Duration,
        seat: Seat,
        turns: usize,
    },
    Probe {
        wanted: Duration,
    },
}

/// A server of one thread.
struct Simulation {
    admission: Admission,
    clock: Arc<ManualClock>,
    /// What a decision takes, what a refusal takes, and how long the disk takes to keep a record.
    decision: Duration,
    refusal: Duration,
    disk: Duration,
    /// How often a call that was let in waits for everybody else.
    turns: usize,
    /// How long clients wait, and how many calls each may have under way.
    patience: Duration,
    streams: Vec<usize>,
    under_way: Vec<usize>,
    queue: VecDeque<Waiting>,
    probe: Option<Duration>,
    on_disk: VecDeque<(Duration, usize, Duration, Seat)>,
    /// By caller: when the next call is due to be sent.
    next: Vec<Duration>,
}

/// What came of one stretch of time.
#[derive(Debug, Default)]
struct Came {
    offered: Vec<f64>,
    answered: Vec<f64>,
    refused: usize,
    /// From sending to answer, and from sending to refusal.
    times: Vec<Duration>,
    refusals: Vec<Duration>,
}

impl Came {
    fn goodput(&self) -> f64 {
        self.answered.iter().sum()
    }
}

fn p99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

impl Simulation {
    fn new(callers: usize, refusal: f64) -> Self {
        let (admission, clock) = house(1024, &vec![100; callers]);
        let decision = Duration::from_micros(200);
        Self {
            admission,
            clock,
            decision,
            refusal: decision.mul_f64(refusal),
            disk: millis(2),
            turns: 0,
            patience: millis(200),
            streams: vec![500 / callers; callers],
            under_way: vec![0; callers],
            queue: VecDeque::new(),
            probe: Some(millis(5)),
            on_disk: VecDeque::new(),
            next: vec![Duration::ZERO; callers],
        }
    }

    /// Decisions a second.
    fn capacity(&self) -> f64 {
        1.0 / self.decision.as_secs_f64()
    }

    /// Lets time pass while each caller sends so many calls a second.
    fn pass(&mut self, time: Duration, rates: &[f64]) -> Came {
        let (begun, callers) = (self.clock.monotonic(), rates.len());
        let mut came = Came { offered: vec![0.0; callers], answered: vec![0.0; callers], ..Came::default() };
        let every: Vec<_> = rates.iter().map(|rate| Duration::from_secs_f64(1.0 / rate)).collect();
        self.next.iter_mut().for_each(|next| *next = begun);
        while self.clock.monotonic() < begun + time {
            self.clients(&every, &mut came);
            let worked = match self.queue.pop_front() {
                Some(Waiting::Probe { wanted }) => {
                    let now = self.clock.monotonic();
                    self.admission.lag(0, now.saturating_sub(wanted));
                    self.probe = Some(now + millis(5));
                    Duration::ZERO
                }
                Some(Waiting::Call { caller, sent }) => self.serve(caller, sent, &mut came),
                Some(Waiting::Within { caller, sent, seat, turns }) => {
                    self.go_on((caller, sent, seat, turns), &mut came);
                    Duration::ZERO
                }
                None => Duration::from_micros(20),
            };
            self.clock.advance(worked);
        }
        came
    }

    /// What was sent meanwhile, in the order of time as nearly as it matters.
    fn clients(&mut self, every: &[Duration], came: &mut Came) {
        let now = self.clock.monotonic();
        if let Some(wanted) = self.probe.take_if(|wanted| *wanted <= now) {
            self.queue.push_back(Waiting::Probe { wanted });
        }
        for (caller, every) in every.iter().enumerate() {
            while self.next[caller] <= now {
                came.offered[caller] += 1.0;
                if self.under_way[caller] < self.streams[caller] {
                    self.under_way[caller] += 1;
                    self.queue.push_back(Waiting::Call { caller, sent: self.next[caller] });
                }
                self.next[caller] += *every;
            }
        }
        while let Some((_, caller, sent, seat)) = self.on_disk.pop_front_if(|(kept, ..)| *kept <= now) {
            self.go_on((caller, sent, seat, self.turns), came);
        }
    }

    /// A turn of a call that was let in; with the last it is over.
    fn go_on(&mut self, (caller, sent, seat, turns): (usize, Duration, Seat, usize), came: &mut Came) {
        if let Some(turns) = turns.checked_sub(1) {
            return self.queue.push_back(Waiting::Within { caller, sent, seat, turns });
        }
        drop(seat);
        self.under_way[caller] -= 1;
        let took = self.clock.monotonic() - sent;
        if took <= self.patience {
            came.answered[caller] += 1.0;
        }
        came.times.push(took);
    }

    fn serve(&mut self, caller: usize, sent: Duration, came: &mut Came) -> Duration {
        match self.admission.ask_by(caller, Some(sent + self.patience)) {
            Ok(seat) => {
                let kept = self.clock.monotonic() + self.decision + self.disk;
                self.on_disk.push_back((kept, caller, sent, seat));
                self.decision
            }
            Err(_) => {
                came.refused += 1;
                self.under_way[caller] -= 1;
                came.refusals.push(self.clock.monotonic() + self.refusal - sent);
                self.refusal
            }
        }
    }
}

/// THREATS F13, the figures of section 4a. That a decision takes 0.2 ms is the simulation's own; what a refusal takes beside
/// it is what matters. Where ten refusals take more than one decision, refusing is not enough, and clients have to wait.
#[test]
fn however_much_comes_four_fifths_of_the_peak_are_answered_and_calm_is_back_within_five_seconds() {
    for refusal in [0.02, 0.05, 0.2, 0.5] {
        let mut server = Simulation::new(4, refusal);
        let each = server.capacity() / 4.0;
        let normal = p99(&mut server.pass(millis(3000), &[each * 0.5; 4]).times);
        let peak = server.pass(millis(3000), &[each * 0.95; 4]).goodput() / 3.0;
        for times in [2.0, 5.0, 10.0, 20.0] {
            let mut came = server.pass(millis(5000), &[each * times; 4]);
            let goodput = came.goodput() / 5.0;
            let (answers, refusals) = (p99(&mut came.times), p99(&mut came.refusals));
            let shares: Vec<_> = came.answered.iter().map(|one| (one / 5.0).round()).collect();
            println!(
                "a refusal {refusal} of a decision, {times} times the capacity: {:.0} % of the peak, answers within \
                 {answers:?}, refusals {refusals:?}; each {shares:?}; {} places",
                100.0 * goodput / peak,
                server.admission.limit(),
            );
            assert!(goodput >= 0.8 * peak, "{refusal}, {times} times: {goodput} of {peak}");

            // Afterwards.
            let mut back = None;
            for slot in 0..50 {
                let mut came = server.pass(millis(100), &[each * 0.5; 4]);
                let calm = came.refused == 0 && p99(&mut came.times) <= 2 * normal;
                back = calm.then(|| back.unwrap_or(slot));
            }
            println!("    calm after {back:?} tenths of a second");
            assert!(back.is_some(), "{refusal}, {times} times: calm within five seconds");
        }
    }
}

/// A call that was let in waits for its turn several times: for its body, for its record, for its answer to be written. Where
/// many calls are open, it is in the house for long, and what was let in a while ago is not lost because it comes later.
#[test]
fn what_takes_its_turns_in_the_house_is_late_and_not_lost() {
    for turns in [2, 5, 10] {
        let mut server = Simulation::new(4, 0.07);
        (server.decision, server.refusal) = (millis(1), Duration::from_micros(70));
        (server.turns, server.patience, server.streams) = (turns, millis(2000), vec![200; 4]);
        let each = server.capacity() / 4.0;
        server.pass(millis(3000), &[each * 0.5; 4]);
        let peak = server.pass(millis(3000), &[each * 0.95; 4]).goodput() / 3.0;
        for times in [2.0, 10.0, 20.0] {
            let mut came = server.pass(millis(10_000), &[each * times; 4]);
            let goodput = came.goodput() / 10.0;
            println!(
                "{turns} turns, {times} times the capacity: {:.0} % of the peak, answers within {:?}, refusals {:?}",
                100.0 * goodput / peak,
                p99(&mut came.times),
                p99(&mut came.refusals),
            );
            assert!(goodput >= 0.8 * peak, "{turns} turns, {times} times: {goodput} of {peak}");
        }
    }
}

/// THREATS T20: one of twenty asks for ten times what the server can do; the others notice nothing.
#[test]
fn a_greedy_caller_of_twenty_takes_nothing_from_the_others() {
    let mut server = Simulation::new(20, 0.05);
    let capacity = server.capacity();
    let mut rates = vec![capacity * 0.03; 20];
    server.pass(millis(2000), &rates);
    rates[0] = capacity * 10.0;
    server.streams = vec![100; 20];
    server.streams[0] = 1000;
    // What it takes to notice.
    let first = server.pass(millis(500), &rates);
    let came = server.pass(millis(5000), &rates);
    let part = |came: &Came, caller: usize| came.answered[caller] / came.offered[caller];
    let worst = (1..20).map(|caller| part(&came, caller)).fold(1.0, f64::min);
    let at_first = (1..20).map(|caller| part(&first, caller)).fold(1.0, f64::min);
    println!(
        "the worst off of the others was answered {:.1} % of its calls ({:.1} % in the first half second), the greedy one {:.1} %; \
         in all {:.0} % of the capacity",
        100.0 * worst,
        100.0 * at_first,
        100.0 * part(&came, 0),
        100.0 * came.goodput() / 5.0 / capacity,
    );
    assert!(worst >= 0.95, "{worst}");
    // Some of it goes into refusing the greedy one.
    assert!(came.goodput() / 5.0 >= 0.7 * capacity, "and it works on");
}

/// Questions become four times dearer in the midst of an overload: what was the best is not possible any more.
#[test]
fn a_server_that_becomes_slower_is_asked_for_less() {
    let mut server = Simulation::new(4, 0.05);
    let each = server.capacity() / 4.0;
    server.pass(millis(3000), &[each; 4]);
    server.decision *= 4;
    server.pass(millis(3000), &[each * 3.0; 4]);
    let came = server.pass(millis(5000), &[each * 3.0; 4]);
    let (goodput, capacity) = (came.goodput() / 5.0, server.capacity());
    println!("after it became slower: {:.0} % of what it can do", 100.0 * goodput / capacity);
    assert!(goodput >= 0.7 * capacity, "{goodput} of {capacity}");
}

/// THREATS F5: records are kept many at a time, so fewer calls would not make the disk faster.
#[test]
fn a_slow_disk_is_no_overload() {
    let mut server = Simulation::new(4, 0.05);
    (server.disk, server.patience, server.streams) = (millis(300), millis(2000), vec![1000; 4]);
    let each = server.capacity() / 4.0;
    let came = server.pass(millis(5000), &[each * 0.6; 4]);
    let offered: f64 = came.offered.iter().sum();
    // What is on its way to the disk at the end is not lost.
    assert!(
        came.goodput() >= 0.93 * offered && came.refused < 1000,
        "{} of {offered}, {} refused",
        came.goodput(),
        came.refused
    );
    assert!((server.admission.accepted() - 1.0).abs() < f64::EPSILON);
}
