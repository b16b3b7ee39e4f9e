//! The list and the file, row by row. What they mean for questions is shown in `tests/spec/revocation.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::entry::{CLOCKS_DIFFER, LATEST_CUT_OFF, LINE_BYTES};
use super::file::{FileError, RevocationFile};
use super::*;
use crate::clock::{Clock as _, ManualClock, unix_seconds};
use crate::token::TokenFacts;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://idp.test";

fn clock() -> Arc<ManualClock> {
    ManualClock::at(SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
}

type Heard = Arc<Mutex<Vec<(Source, Fate, usize)>>>;

fn list_of(limit: usize) -> (Arc<Revocations>, Arc<ManualClock>, Heard) {
    let (clock, heard) = (clock(), Heard::default());
    let told = Arc::clone(&heard);
    let list = Revocations::new(
        limit,
        clock.clone(),
        Arc::new(move |source, fate, count| told.lock().push((source, fate, count))),
    );
    (list, clock, heard)
}

fn token(number: usize) -> Revocation {
    Revocation::whole(Kind::Token, Key::of(Kind::Token, ISSUER, &format!("t-{number}")), NOW + 600)
}

fn cut_off(subject: &str, issued_before: u64) -> Revocation {
    Revocation { kind: Kind::Subject, key: Key::of(Kind::Subject, ISSUER, subject), issued_before, until: NOW + 600 }
}

fn sha256_hex(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn facts(subject: &str, issued: u64, id: Option<&str>, session: Option<&str>) -> TokenFacts {
    TokenFacts {
        issuer: ISSUER.to_owned(),
        subject: subject.to_owned(),
        issued_at: SystemTime::UNIX_EPOCH + Duration::from_secs(issued),
        expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(issued + 600),
        id_sha256: id.map(sha256_hex),
        scopes: BTreeSet::new(),
        acr: None,
        amr: BTreeSet::new(),
        auth_time: None,
        client_id: None,
        actors: Vec::new(),
        confirmation: None,
        session_sha256: session.map(sha256_hex),
        algorithm: "ES256",
        key_id: None,
    }
}

#[test]
fn a_token_is_found_by_its_id_its_subject_s_cut_off_or_its_session_and_by_nothing_else() {
    let (list, _, _) = list_of(10);
    let session = Key::of(Kind::Session, ISSUER, "s-1");
    let entries = [token(1), cut_off("alice", NOW - 100), Revocation::whole(Kind::Session, session, NOW + 600)];
    list.take(Source::File, &entries);
    let elsewhere =
        TokenFacts { issuer: "https://other.test".to_owned(), ..facts("alice", NOW - 200, Some("t-1"), Some("s-1")) };
    let table = [
        (facts("bob", NOW, Some("t-1"), None), Some(Hit::Token), "its id"),
        (facts("bob", NOW, Some("t-2"), None), None, "another id"),
        (facts("bob", NOW, None, None), None, "no id"),
        (facts("alice", NOW - 101, None, None), Some(Hit::Subject), "issued a second before the cut-off"),
        (facts("alice", NOW - 100, None, None), None, "issued at the cut-off"),
        (facts("Alice", NOW - 101, None, None), None, "subjects are compared as written"),
        (facts("bob", NOW, None, Some("s-1")), Some(Hit::Session), "its session"),
        (facts("bob", NOW, Some("s-1"), Some("t-1")), None, "kinds are not mixed"),
        (elsewhere, None, "another issuer's names are others"),
    ];
    for (token, expected, why) in table {
        assert_eq!(list.revoked(&token), expected, "{why}");
    }
    assert!(!list.certificate_is_revoked(&[7; 32]));
    list.take(Source::File, &[Revocation::whole(Kind::Certificate, Key::of_certificate(&[7; 32]), NOW + 1)]);
    assert!(list.certificate_is_revoked(&[7; 32]) && !list.certificate_is_revoked(&[8; 32]));
}

#[test]
fn a_cut_off_never_moves_back_and_the_order_of_entries_does_not_matter() {
    let entries = [cut_off("alice", NOW - 300), cut_off("alice", NOW - 100), cut_off("alice", NOW - 200)];
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in orders {
        let (list, _, _) = list_of(10);
        for at in order {
            list.take(Source::Redis, &entries[at..=at]);
        }
        assert_eq!(list.len(), 1);
        assert_eq!(list.revoked(&facts("alice", NOW - 101, None, None)), Some(Hit::Subject), "{order:?}");
        assert_eq!(list.revoked(&facts("alice", NOW - 100, None, None)), None, "{order:?}");
    }
}

#[test]
fn an_entry_ends_by_time_and_not_before_the_last_token_it_is_about() {
    let (list, clock, _) = list_of(10);
    list.take(Source::File, &[token(1)]);
    let revoked = |list: &Revocations| list.revoked(&facts("bob", NOW, Some("t-1"), None)).is_some();
    clock.advance(Duration::from_secs(600 + 60));
    assert!(revoked(&list), "a token passes for up to the clock skew after its `exp`");
    clock.advance(Duration::from_secs(60));
    list.purge();
    assert!(revoked(&list) && list.len() == 1, "two minutes in all");
    clock.advance(Duration::from_secs(1));
    assert!(!revoked(&list));
    list.purge();
    assert!(list.is_empty(), "and its place is free again");
    list.take(Source::File, &[token(1)]);
    assert!(list.is_empty(), "what is over does not come back");
}

#[test]
fn past_the_limit_new_ones_are_refused_told_and_none_is_dropped() {
    let (list, clock, heard) = list_of(3);
    let entries: Vec<_> = (0..5).map(token).collect();
    list.take(Source::Redis, &entries);
    assert_eq!(list.len(), 3);
    assert_eq!(*heard.lock(), [(Source::Redis, Fate::Taken, 3), (Source::Redis, Fate::Full, 2)]);
    for number in 0..3 {
        assert!(list.revoked(&facts("bob", NOW, Some(&format!("t-{number}")), None)).is_some(), "{number} holds");
    }
    assert_eq!(list.make_room(token(9)).unwrap_err(), Full { limit: 3 });
    assert!(list.make_room(token(1)).is_ok(), "one that is there needs no room");
    clock.advance(Duration::from_secs(600 + 121));
    let later = Revocation { until: NOW + 6000, ..token(9) };
    let room = list.make_room(later).unwrap();
    assert_eq!(list.len(), 0, "what is over makes room");
    let others: Vec<_> = (10..13).map(|number| Revocation { until: NOW + 6000, ..token(number) }).collect();
    list.take(Source::File, &others);
    assert_eq!(list.len(), 2, "the place that is held stays free");
    assert_eq!(room.fill(), later);
    assert_eq!(list.len(), 3);
}

#[test]
fn room_that_is_not_used_is_given_back() {
    let (list, _, _) = list_of(1);
    let room = list.make_room(token(1)).unwrap();
    assert!(list.make_room(token(2)).is_err());
    drop(room);
    assert!(list.is_empty(), "nothing took effect");
    let _ = list.make_room(token(2)).unwrap().fill();
    assert_eq!(list.len(), 1);
}

#[test]
fn pages_have_every_entry_once_and_in_order() {
    let (list, _, _) = list_of(2000);
    let mut entries: Vec<_> = (0..700).map(token).collect();
    entries.extend((0..300).map(|number| cut_off(&format!("s-{number}"), NOW)));
    list.take(Source::File, &entries);
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let (page, more) = list.page(after, 128);
        seen.extend(page.iter().map(|one| (one.kind, one.key)));
        after = seen.last().copied();
        if !more {
            break;
        }
    }
    assert_eq!(seen.len(), 1000);
    assert!(seen.is_sorted() && seen.windows(2).all(|pair| pair[0] != pair[1]));
    assert!(list.page(after, 128).0.is_empty());
}

/// What an operator's shell makes is what we make: `printf 'token\nhttps://idp.test\n%s' "$(printf t-1 | sha256sum ..)"`.
#[test]
fn a_key_is_the_hash_of_kind_issuer_and_the_id_s_hash() {
    let expected = sha256_hex(&format!("token\n{ISSUER}\n{}", sha256_hex("t-1")));
    assert_eq!(Key::of(Kind::Token, ISSUER, "t-1").to_string(), expected);
    let keys: BTreeSet<_> = [
        Key::of(Kind::Token, ISSUER, "a"),
        Key::of(Kind::Session, ISSUER, "a"),
        Key::of(Kind::Token, "https://idp.test\n", "a"),
        Key::of(Kind::Token, ISSUER, "\na"),
    ]
    .into();
    assert_eq!(keys.len(), 4, "no two triples share one");
    assert_eq!(Key::parse(&expected).unwrap().to_string(), expected);
}

#[test]
fn a_line_is_one_entry_or_none() {
    let hex = "0f".repeat(32);
    let line = |kind: &str, rest: &str| format!(r#"{{"kind":"{kind}","key":"{hex}"{rest},"until":{}}}"#, NOW + 5);
    let ahead = |seconds: u64| format!(r#","issued_before":{}"#, NOW + seconds);
    let end = |until: u64| format!(r#"{{"kind":"token","key":"{hex}","until":{until}}}"#);
    let table = [
        (line("token", ""), None, "a token"),
        (line("session", ""), None, "a session"),
        (line("certificate", ""), None, "a certificate"),
        (line("subject", &ahead(0)), None, "a subject"),
        (line("subject", &ahead(LATEST_CUT_OFF)), None, "a cut-off at the limit of whoever wrote it"),
        (line("subject", &ahead(LATEST_CUT_OFF + CLOCKS_DIFFER)), None, "by a clock that is ahead of ours"),
        (line("subject", &ahead(LATEST_CUT_OFF + CLOCKS_DIFFER + 1)), Some(Flaw::CutOffAhead), "one past it"),
        (line("subject", ""), Some(Flaw::CutOff), "a subject without a cut-off"),
        (line("token", &ahead(0)), Some(Flaw::CutOff), "a token with one"),
        (line("cookie", ""), Some(Flaw::Shape), "no kind of ours"),
        (line("token", r#","note":1"#), Some(Flaw::Shape), "an unknown member"),
        (line("token", r#","kind":"session""#), Some(Flaw::Shape), "a member twice"),
        (line("token", "").replace(&hex, "alice"), Some(Flaw::Key), "an id in clear"),
        (line("token", "").replace("0f", "0F"), Some(Flaw::Key), "upper case"),
        (line("token", "") + "{}", Some(Flaw::Shape), "two objects"),
        (format!("{}\r", line("token", "")), None, "JSON allows white space after it"),
        (end(Kind::Token.latest_end(NOW) + CLOCKS_DIFFER), None, "an end at its limit, by a clock that is ahead"),
        (end(Kind::Token.latest_end(NOW) + CLOCKS_DIFFER + 1), Some(Flaw::EndsTooLate), "one past it"),
        (end(253_402_300_799).replace("token", "certificate"), None, "certificates may live long"),
        (end(253_402_300_800).replace("token", "certificate"), Some(Flaw::EndsTooLate), "though not for ever"),
        (end(NOW).replace(&NOW.to_string(), "-1"), Some(Flaw::Shape), "before 1970"),
        (end(NOW).replace(&NOW.to_string(), "1e9"), Some(Flaw::Shape), "not whole"),
        (String::new(), Some(Flaw::Shape), "nothing"),
        ("[]".to_owned(), Some(Flaw::Shape), "no object"),
        (format!("{:<1$}", line("token", ""), LINE_BYTES + 1), Some(Flaw::TooLong), "too long"),
    ];
    for (line, flaw, why) in table {
        assert_eq!(Revocation::read(line.as_bytes(), NOW).err(), flaw, "{why}");
    }
    for one in [token(1), cut_off("alice", NOW)] {
        assert_eq!(Revocation::read(one.line().unwrap().as_bytes(), NOW), Ok(one), "what is written reads back");
    }
}

/// A folder with a file, and as many processes as are opened over it.
struct Desk {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("revocations.jsonl");
        Self { _folder: folder, path }
    }

    fn open(&self) -> (Arc<RevocationFile>, Arc<Revocations>, Heard) {
        let (list, _, heard) = list_of(100);
        (RevocationFile::open(&self.path, &list).unwrap(), list, heard)
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }

    fn add(&self, text: &str) {
        fs::OpenOptions::new().append(true).open(&self.path).unwrap().write_all(text.as_bytes()).unwrap();
    }
}

fn line(number: usize) -> String {
    token(number).line().unwrap()
}

fn malformed(heard: &Heard) -> usize {
    let heard = heard.lock();
    heard.iter().filter(|(_, fate, _)| *fate == Fate::Malformed).map(|(_, _, count)| count).sum()
}

#[test]
fn what_one_process_appends_another_takes_and_a_third_starts_with() {
    let desk = Desk::new();
    let ((one, ones, _), (two, twos, _)) = (desk.open(), desk.open());
    one.append(&token(1)).unwrap();
    let _ = ones.make_room(token(1)).unwrap().fill();
    two.join().unwrap();
    assert_eq!(twos.len(), 1);
    one.append(&token(1)).unwrap();
    assert_eq!(desk.text(), format!("{}\n", line(1)), "what is there is not written twice");
    assert_eq!(desk.open().1.len(), 1);
}

#[test]
fn a_file_that_is_emptied_cut_removed_or_replaced_un_revokes_nothing_and_is_filled_again() {
    type Harm = fn(&Path);
    let table: [(&str, Harm); 5] = [
        ("emptied", |path| fs::write(path, "").unwrap()),
        ("cut inside a line", |path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 70).unwrap();
        }),
        ("removed", |path| fs::remove_file(path).unwrap()),
        ("replaced", |path| {
            fs::write(path.with_extension("new"), format!("{}\n", line(50))).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }),
        ("overwritten with as many bytes", |path| {
            let text = fs::read_to_string(path).unwrap().replace(&token(1).key.to_string(), &token(50).key.to_string());
            fs::write(path, text).unwrap();
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)).unwrap();
        }),
    ];
    for (what, harm) in table {
        let desk = Desk::new();
        let (file, list, _) = desk.open();
        list.take(Source::Redis, &[token(1), token(2), token(3)]);
        file.join().unwrap();
        assert_eq!(desk.text().lines().count(), 3);
        harm(&desk.path);
        file.join().unwrap();
        for number in 1..=3 {
            assert!(list.revoked(&facts("bob", NOW, Some(&format!("t-{number}")), None)).is_some(), "{what}: {number}");
            assert!(desk.text().lines().any(|held| held == line(number)), "{what}: {number} is written again");
        }
        assert!(desk.open().1.len() >= 3, "{what}: a restart loses nothing");
    }
}

#[test]
fn a_line_that_is_no_entry_is_told_once_and_the_others_count() {
    let desk = Desk::new();
    let (file, list, heard) = desk.open();
    desk.add(&format!("{}\nalice\n{}\n", line(1), line(2)));
    file.join().unwrap();
    assert_eq!((list.len(), malformed(&heard)), (2, 1));
    desk.add(&format!("{}\n", line(3)));
    file.join().unwrap();
    file.join().unwrap();
    assert_eq!((list.len(), malformed(&heard)), (3, 1), "once");
    let (_, again, heard) = desk.open();
    assert_eq!((again.len(), malformed(&heard)), (3, 1), "and at the next start");
}

#[test]
fn half_a_line_counts_for_nothing_is_told_of_and_hurts_no_other() {
    let desk = Desk::new();
    let (file, list, heard) = desk.open();
    let whole = line(1);
    let (half, rest) = whole.split_at(40);
    desk.add(half);
    file.join().unwrap();
    assert_eq!((list.len(), malformed(&heard)), (0, 0), "its writer may be at work");
    desk.add(&format!("{rest}\n"));
    file.join().unwrap();
    assert_eq!(list.len(), 1, "and has finished");
    desk.add(half);
    file.join().unwrap();
    file.join().unwrap();
    assert_eq!(malformed(&heard), 1, "nobody finishes it");
    file.append(&token(2)).unwrap();
    assert!(desk.text().ends_with(&format!("{half}\n{}\n", line(2))), "it becomes a line of its own");
    assert_eq!(desk.open().1.len(), 2);
}

#[test]
fn a_last_line_without_a_line_break_counts() {
    let desk = Desk::new();
    let (file, list, heard) = desk.open();
    desk.add(&line(1));
    file.join().unwrap();
    assert_eq!((list.len(), malformed(&heard)), (1, 0));
    file.append(&token(2)).unwrap();
    assert_eq!(desk.text(), format!("{}\n{}\n", line(1), line(2)));
}

#[test]
fn lines_that_are_over_go_at_the_start_and_those_that_are_no_entries_stay() {
    let desk = Desk::new();
    drop(desk.open());
    let over = Revocation { until: NOW - 200, ..token(1) }.line().unwrap();
    desk.add(&format!("{over}\nalice\n{}\n{over}\n{}", line(2), line(3)));
    let (_, list, _) = desk.open();
    assert_eq!(desk.text(), format!("alice\n{}\n{}", line(2), line(3)));
    assert_eq!(list.len(), 2);
}

/// Whoever revokes a session at every logout fills the file in days: what is over makes room, without a restart.
#[test]
fn a_file_that_fills_up_while_it_is_served_drops_what_is_over_and_goes_on() {
    const AT_ONCE: usize = 10_000;
    let desk = Desk::new();
    let (list, clock, _) = list_of(AT_ONCE + 1);
    let file = RevocationFile::open(&desk.path, &list).unwrap();
    let other = list_of(AT_ONCE + 1);
    let reader = RevocationFile::open(&desk.path, &other.0).unwrap();
    desk.add("alice\n");
    let mut most = 0;
    for round in 0..8 {
        let until = unix_seconds(clock.now()) + 600;
        let fresh = (0..AT_ONCE).map(|number| Revocation { until, ..token(round * AT_ONCE + number) });
        list.take(Source::Redis, &fresh.collect::<Vec<_>>());
        file.join().unwrap_or_else(|error| panic!("round {round}: {error}"));
        most = most.max(fs::metadata(&desk.path).unwrap().len());
        reader.join().unwrap();
        assert_eq!(other.0.len(), AT_ONCE, "round {round}: others follow");
        clock.advance(Duration::from_secs(800));
        other.1.advance(Duration::from_secs(800));
        list.purge();
        other.0.purge();
    }
    assert!(most <= u64::try_from((AT_ONCE + 1 + 10_000) * LINE_BYTES).unwrap());
    assert!(desk.text().starts_with("alice\n"), "what is no entry stays");
    let last = token(8 * AT_ONCE);
    file.append(&Revocation { until: unix_seconds(clock.now()) + 600, ..last }).unwrap();
    assert!(desk.text().contains(&last.key.to_string()));
}

#[test]
fn a_file_past_its_size_is_not_read_and_what_is_known_stays() {
    let desk = Desk::new();
    let (file, list, _) = desk.open();
    file.append(&token(1)).unwrap();
    list.take(Source::File, &[token(1)]);
    let most = (100 + 10_000) * LINE_BYTES;
    desk.add(&"x".repeat(most));
    assert!(matches!(file.join(), Err(FileError::TooLarge { .. })));
    assert!(matches!(file.append(&token(2)), Err(FileError::TooLarge { .. })));
    assert_eq!(list.len(), 1);
    assert!(RevocationFile::open(&desk.path, &list_of(100).0).is_err(), "nor does anybody start with it");
}

#[test]
fn a_lock_that_is_held_is_not_waited_for_for_ever() {
    let desk = Desk::new();
    let (file, _, _) = desk.open();
    let mut lock = desk.path.clone().into_os_string();
    lock.push(".lock");
    let held = fs::File::open(lock).unwrap();
    held.lock().unwrap();
    assert!(matches!(file.append(&token(1)), Err(FileError::Locked { .. })));
    assert_eq!(desk.text(), "");
    held.unlock().unwrap();
    file.append(&token(1)).unwrap();
}

/// Eight writers, each with a file handle of its own: every line is whole and there once.
#[test]
fn writers_do_not_write_into_each_other_s_lines() {
    let desk = Desk::new();
    let writers: Vec<_> = (0..8).map(|_| desk.open().0).collect();
    std::thread::scope(|scope| {
        for (writer, file) in writers.iter().enumerate() {
            scope.spawn(move || (0..25).for_each(|number| file.append(&token(writer * 100 + number)).unwrap()));
        }
    });
    let text = desk.text();
    let lines: BTreeSet<&str> = text.lines().collect();
    assert_eq!((lines.len(), text.lines().count()), (200, 200));
    assert!(lines.iter().all(|line| Revocation::read(line.as_bytes(), unix_seconds(clock().now())).is_ok()));
}
