use std::time::Instant;

use super::*;
use crate::config::PatternRule;

const HOUR: u64 = 3600;

fn detector(rules: &[(Pattern, u64, u64)]) -> Detector {
    let mut config = PatternsConfig::default();
    for (pattern, threshold, seconds) in rules {
        let window = Duration::from_secs(*seconds);
        config.set(*pattern, PatternRule { threshold: *threshold, window, ..PatternRule::standard(*pattern) });
    }
    Detector::new(config)
}

fn event<'a>(seconds: u64, principal: &'a str, what: Asked<'a>) -> Event<'a> {
    Event {
        at: Duration::from_secs(seconds),
        principal: Some(principal),
        caller: Some("orders"),
        address: None,
        decision_id: None,
        what: What::Question(what),
    }
}

fn read(id: &str) -> Asked<'_> {
    Asked {
        action: "Order.read",
        resource_type: "Order",
        id: Some(id),
        ending: Ending::Allowed,
        records: 1,
        ..Asked::default()
    }
}

fn refused(id: &str) -> Asked<'_> {
    Asked { ending: Ending::Denied, reason: Some("NO_PERMIT"), records: 0, ..read(id) }
}

/// How often `pattern` is told while the `events` happen.
fn told<'a>(detector: &mut Detector, pattern: Pattern, events: impl Iterator<Item = Event<'a>>) -> usize {
    events.map(|event| detector.observe(&event).iter().filter(|alert| alert.pattern == pattern).count()).sum()
}

fn ids(prefix: &str, range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|n| format!("{prefix}{}", n * 7919)).collect()
}

#[test]
fn a_pattern_is_told_at_its_threshold_and_not_one_below_and_once_in_a_window() {
    let ids = ids("x", 0..12);
    let denials = |count: usize, from: u64| {
        ids.iter().cycle().take(count).map(move |id| event(from, "User::\"alice\"", refused(id)))
    };
    let mut detector = detector(&[(Pattern::DenialBurst, 100, 60)]);
    assert_eq!(told(&mut detector, Pattern::DenialBurst, denials(99, 0)), 0, "one below");
    assert_eq!(told(&mut detector, Pattern::DenialBurst, denials(1, 0)), 1, "the hundredth");
    assert_eq!(told(&mut detector, Pattern::DenialBurst, denials(500, 30)), 0, "told already");
    assert_eq!(told(&mut detector, Pattern::DenialBurst, denials(1, 61)), 1, "and again, as it goes on");
    assert_eq!(told(&mut detector, Pattern::DenialBurst, denials(99, 200)), 0, "a new window, one below");
}

#[test]
fn slow_refusals_of_many_objects_are_told_by_the_day_and_the_same_ones_over_and_over_are_not() {
    let ids = ids("x", 0..30);
    let mut patient = detector(&[]);
    let slow = ids.iter().enumerate().map(|(n, id)| event(n as u64 * 1200, "User::\"alice\"", refused(id)));
    assert_eq!(told(&mut patient, Pattern::SlowEnum, slow), 1, "one each 20 minutes");
    let same = ids.iter().cycle().take(3000).enumerate();
    let same = same.map(|(n, _)| event(n as u64 * 20, "User::\"bob\"", refused(&ids[n % 24])));
    assert_eq!(told(&mut patient, Pattern::SlowEnum, same), 0, "24 different ones all day");
}

/// The share of a type is known once the type has been watched for a while.
#[test]
fn whoever_reads_many_objects_or_half_of_a_small_type_is_told_of() {
    let all = ids("o-", 0..3000);
    let mut detector = detector(&[]);
    let reads = |who: &'static str, from: u64, range: std::ops::Range<usize>| {
        all[range].iter().map(move |id| event(from, who, read(id)))
    };
    assert_eq!(told(&mut detector, Pattern::BulkRead, reads("User::\"a\"", 0, 0..900)), 0, "below the threshold");
    assert_eq!(told(&mut detector, Pattern::BulkRead, reads("User::\"a\"", 0, 900..1200)), 1, "and past it");
    assert_eq!(told(&mut detector, Pattern::BulkRead, reads("User::\"b\"", HOUR, 0..500)), 0, "less than half of 1200");
    assert_eq!(told(&mut detector, Pattern::BulkRead, reads("User::\"b\"", HOUR, 500..700)), 1, "and more");
    assert_eq!(told(&mut detector, Pattern::BulkRead, reads("User::\"c\"", HOUR, 0..90)), 0, "a handful");
}

#[test]
fn a_caller_that_was_learnt_is_told_of_when_it_asks_something_new_and_only_then() {
    let mut detector = detector(&[(Pattern::CallerHabit, 1000, 24 * HOUR)]);
    let asks = |from: u64, count: u64, action: &'static str| {
        (0..count).map(move |n| event(from + n * 80, "User::\"a\"", Asked { action, ..read("o-1") }))
    };
    assert_eq!(told(&mut detector, Pattern::CallerHabit, asks(0, 1, "Order.cancel")), 0, "it is being learnt");
    assert_eq!(told(&mut detector, Pattern::CallerHabit, asks(0, 1100, "Order.read")), 0, "a day of the same");
    let day = 24 * HOUR + 80;
    assert_eq!(told(&mut detector, Pattern::CallerHabit, asks(day, 10, "Order.cancel")), 0, "known from the first day");
    assert_eq!(told(&mut detector, Pattern::CallerHabit, asks(day, 10, "Order.delete")), 1, "new, and told once");
    assert_eq!(told(&mut detector, Pattern::CallerHabit, asks(day, 10, "Order.refund")), 1, "so is this");

    let mut young = self::detector(&[(Pattern::CallerHabit, 1000, 24 * HOUR)]);
    told(&mut young, Pattern::CallerHabit, asks(0, 1, "Order.read"));
    assert_eq!(
        told(&mut young, Pattern::CallerHabit, asks(day, 10, "Order.delete")),
        0,
        "it has hardly asked anything"
    );
}

#[test]
fn one_token_from_two_callers_is_told_of_and_nothing_of_the_token_is() {
    let mut detector = detector(&[]);
    let shows = |caller: &'static str, token: &'static str, seconds: u64| Event {
        caller: Some(caller),
        ..event(seconds, "User::\"a\"", Asked { token: Some(token), ..read("o-1") })
    };
    let fine = [shows("orders", "t1", 0), shows("orders", "t1", 1), shows("billing", "t2", 2)];
    assert_eq!(told(&mut detector, Pattern::TokenShared, fine.into_iter()), 0);
    let late = [shows("billing", "t1", HOUR + 1)];
    assert_eq!(told(&mut detector, Pattern::TokenShared, late.into_iter()), 0, "an hour later");
    let alerts = detector.observe(&shows("orders", "t1", HOUR + 2));
    let alert = alerts.iter().find(|alert| alert.pattern == Pattern::TokenShared).unwrap();
    assert!(!format!("{alert:?}").contains("t1"), "{alert:?}");
}

#[test]
fn ids_are_in_step_by_their_last_number_and_words_are_not() {
    let table: [(&str, Vec<String>, usize, &str); 8] = [
        ("plain", (1..=10).map(|n| n.to_string()).collect(), 1, "ten in a row"),
        ("nine", (1..=9).map(|n| n.to_string()).collect(), 0, "one below"),
        ("prefixed", (995..1005).map(|n| format!("o-{n}")).collect(), 1, "a number behind a word, one digit longer"),
        ("tens", (0..10).map(|n| format!("o-{}", n * 10)).collect(), 1, "a step of ten"),
        ("elevens", (0..19).map(|n| format!("o-{}", n * 11)).collect(), 0, "a step of eleven"),
        ("mixed", (0..10).map(|n| format!("{}-{n}", if n % 2 == 0 { "a" } else { "b" })).collect(), 0, "two series"),
        ("shuffled", (0..20).map(|n| format!("o-{}", n * 7 % 20)).collect(), 1, "twenty out of twenty in any order"),
        (
            "uuids",
            (0..40).map(|n: u64| format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect(),
            0,
            "random",
        ),
    ];
    let rows = table.len();
    for (who, ids, expected, why) in table {
        let events = ids.iter().enumerate().map(|(n, id)| event(n as u64, who, read(id)));
        assert_eq!(told(&mut detector(&[]), Pattern::EnumSequential, events), expected, "{who}: {why}");
    }
    println!("{rows} walks tried");
}

/// Whatever comes, memory has a bound; and what it forgets is who was not met for long.
#[test]
fn a_million_strangers_take_no_more_than_their_share_and_hide_nobody_who_comes_after_them() {
    let mut detector = detector(&[]);
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let (before, mut most) = (resident(), 0);
    let probe = ids("x", 0..5);
    for n in 0..1_000_000_u64 {
        let (who, id) = (format!("User::\"stranger-{n}\""), format!("o-{}", n * 7919));
        let asked = if n % 2 == 0 { refused(&id) } else { Asked { token: Some(&who), ..read(&id) } };
        detector.observe(&event(n / 1000, &who, asked));
        most = most.max(detector.keys());
    }
    let keys = 10_000;
    // Eight patterns of these events have a key of their own each time; types and callers are one.
    assert!(most <= 8 * keys + 16, "{most} keys");
    println!("{most} keys at most, {} MiB more resident", (resident().saturating_sub(before)) >> 20);
    let alice = probe.iter().map(|id| event(1000, "User::\"alice\"", refused(id)));
    assert_eq!(told(&mut detector, Pattern::EnumDenied, alice), 1, "after the flood");
    // During it, for as long as fewer than half as many strangers come between two of his questions.
    for (strangers, expected, why) in [(4_000_u64, 1, "he is remembered"), (11_000, 0, "he is forgotten")] {
        let mut told_of = 0;
        let mallory = format!("User::\"mallory-{strangers}\"");
        for (turn, id) in probe.iter().enumerate() {
            told_of += told(&mut detector, Pattern::EnumDenied, std::iter::once(event(2000, &mallory, refused(id))));
            for n in 0..strangers {
                detector.observe(&event(2000, &format!("{strangers}-{turn}-{n}"), refused("o-1")));
            }
        }
        assert_eq!(told_of, expected, "{strangers} between: {why}");
    }
}

#[test]
fn what_is_remembered_of_one_key_has_a_bound_too() {
    let mut detector = detector(&[]);
    for n in 0..20_000_u64 {
        let id = format!("o-{}", n * 7919);
        detector.observe(&event(n / 1000, "User::\"a\"", refused(&id)));
        detector.observe(&event(n / 1000, "User::\"a\"", read(&id)));
    }
    for states in &detector.states {
        for state in states.all() {
            assert!(state.bytes() <= 16 << 10, "{} bytes", state.bytes());
        }
    }
    let largest = detector.states.iter().flat_map(Bounded::all).map(|state| state.bytes()).max();
    println!("{largest:?} bytes at most of a key after 40000 events");
}

/// No assertion: how fast a machine is says nothing about right or wrong.
#[test]
fn what_an_event_costs_is_printed() {
    for (what, strangers) in [("one principal", 1), ("5000 principals", 5000), ("a million principals", 1_000_000_u64)]
    {
        let mut detector = detector(&[]);
        let events = 20_000_u64;
        let words: Vec<(String, String)> =
            (0..events).map(|n| (format!("User::\"u-{}\"", n * 7919 % strangers), format!("o-{}", n % 5000))).collect();
        #[expect(clippy::disallowed_methods, reason = "a measurement")]
        let began = Instant::now();
        for (n, (who, id)) in words.iter().enumerate() {
            let asked = if n % 10 == 0 { refused(id) } else { read(id) };
            detector.observe(&event(n as u64 / 1000, who, asked));
        }
        println!("{what}: {} ns an event", began.elapsed().as_nanos() / u128::from(events));
    }
}
