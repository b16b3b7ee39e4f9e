//! API keys from the file to the proof, and every way a key or a file is not good enough.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use super::file::SecretHash;
use super::*;
use crate::model::entity::EntityType;
use crate::secret::SecretString;

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// A key and its entry: made an hour ago, good for another.
fn key(change: impl FnOnce(&mut file::ApiKeyEntry)) -> (SecretString, file::ApiKeyEntry) {
    let key = text::new_key().unwrap();
    let parsed = KeyText::parse(key.expose_secret()).unwrap();
    let mut entry = file::ApiKeyEntry {
        id: parsed.id().to_owned(),
        secret_sha256: SecretHash(parsed.secret_sha256()),
        owner: "nightly-export".to_owned(),
        created: at(-3600),
        expires: at(3600),
        scopes: ["orders:read".to_owned()].into(),
        networks: Vec::new(),
        note: None,
        revoked: None,
    };
    change(&mut entry);
    (key, entry)
}

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn of(entries: &[file::ApiKeyEntry]) -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        bench.write(entries);
        bench
    }

    fn write(&self, entries: &[file::ApiKeyEntry]) {
        let mut keys = ApiKeyFile::empty();
        keys.keys = entries.to_vec();
        std::fs::write(self.config().file, serde_json::to_string(&keys).unwrap()).unwrap();
    }

    fn config(&self) -> ApiKeyConfig {
        ApiKeyConfig {
            file: self.folder.path().join("keys.json"),
            principal_type: EntityType::parse("ApiClient").unwrap(),
        }
    }

    fn open(&self) -> ApiKeys {
        ApiKeys::open(Some(&self.config()), &Limits::default()).unwrap()
    }
}

fn present(text: &SecretString, from: Option<&str>) -> PresentedKey {
    PresentedKey { text: text.clone(), client_address: from.map(|address| address.parse().unwrap()) }
}

#[test]
fn a_good_key_is_its_owner_with_its_scopes() {
    let (good, entry) = key(|_| ());
    let id = entry.id.clone();
    let verified = Bench::of(&[entry]).open().verify(&present(&good, None), noon()).unwrap();
    assert_eq!(verified.principal().uid.to_string(), r#"ApiClient::"nightly-export""#);
    let facts = verified.facts();
    assert_eq!((facts.issuer.as_str(), facts.subject.as_str()), ("urn:gatepost:api-keys", "nightly-export"));
    assert_eq!(facts.scopes, ["orders:read".to_owned()].into());
    assert_eq!((facts.key_id.as_deref(), facts.algorithm), (Some(id.as_str()), "api-key"));
    assert_eq!(facts.id_sha256.as_deref(), Some(sha256_hex(&id).as_str()));
    assert_eq!(verified.expires_at(), noon() + Duration::from_secs(3600));
}

/// In this order: shape, id and secret, revoked, expired, network. Only whoever has the secret learns of the last three.
#[test]
fn a_key_counts_or_is_refused_for_the_first_reason() {
    use TokenError::{ApiKey, ApiKeyNetwork, ApiKeyRevoked, Expired};
    let office = |entry: &mut file::ApiKeyEntry| entry.networks = vec!["10.20.0.0/16".parse().unwrap()];
    let table = [
        (key(|_| ()), None, Ok(()), "the everyday shape"),
        (key(|_| ()), Some("203.0.113.9"), Ok(()), "from anywhere, where no network is named"),
        (key(|entry| entry.expires = at(1)), None, Ok(()), "its last second"),
        (key(|entry| entry.expires = at(0)), None, Err(Expired), "the second after: there is no skew"),
        (key(|entry| entry.revoked = Some(at(-1))), None, Err(ApiKeyRevoked), "revoked"),
        (key(|entry| entry.revoked = Some(at(9))), None, Err(ApiKeyRevoked), "revoked, whenever that was to be"),
        (
            key(|entry| (entry.revoked, entry.expires) = (Some(at(-9)), at(-1))),
            None,
            Err(ApiKeyRevoked),
            "revoked goes before expired",
        ),
        (key(office), Some("10.20.3.4"), Ok(()), "from inside"),
        (key(office), Some("::ffff:10.20.3.4"), Ok(()), "from inside, in an IPv6 coat"),
        (key(office), Some("10.21.0.1"), Err(ApiKeyNetwork), "from outside"),
        (key(office), Some("::ffff:10.21.0.1"), Err(ApiKeyNetwork), "from outside, in an IPv6 coat"),
        (key(office), Some("::10.20.3.4"), Err(ApiKeyNetwork), "a coat of another cut is another address"),
        (key(office), None, Err(ApiKeyNetwork), "from nobody knows where"),
        (
            key(|entry| entry.networks = vec!["::/0".parse().unwrap()]),
            Some("10.0.0.1"),
            Err(ApiKeyNetwork),
            "all of IPv6 is not IPv4",
        ),
    ];
    for ((text, entry), from, expected, why) in table {
        let keys = Bench::of(&[key(|_| ()).1, entry]).open();
        let got = keys.verify(&present(&text, from), noon());
        let known = got.as_ref().err().and_then(|refusal| refusal.known.clone());
        assert_eq!(got.map(|_| ()).map_err(|refusal| refusal.error), expected, "{why}");
        assert_eq!(known.is_some(), expected.is_err(), "{why}: the record may name a key that was proven");
    }
    let (mine, entry) = key(|entry| entry.revoked = Some(at(-1)));
    let (theirs, _) = key(|_| ());
    let keys = Bench::of(std::slice::from_ref(&entry)).open();
    let forged = |secret: &SecretString| {
        // The id of one, the secret of another, and check digits that are right.
        let secret: String = secret.expose_secret().chars().skip(21).take(64).collect();
        let text = format!("gpk_{}_{secret}", entry.id);
        let check: String = sha256_hex(&text).chars().take(8).collect();
        format!("{text}{check}").into()
    };
    let table = [
        (forged(&mine), ApiKeyRevoked, "the forgery is well made"),
        (forged(&theirs), ApiKey, "a wrong secret: not even that it was revoked is told"),
        (theirs, ApiKey, "an unknown id"),
        ("".into(), ApiKey, "nothing"),
        ("x".repeat(1_000_000).into(), ApiKey, "endless"),
    ];
    for (text, expected, why) in table {
        let refusal = keys.verify(&present(&text, None), noon()).unwrap_err();
        assert_eq!((refusal.error, refusal.known.is_none()), (expected, expected == ApiKey), "{why}");
    }
    let off = ApiKeys::open(None, &Limits::default()).unwrap();
    assert_eq!(off.verify(&present(&mine, None), noon()).unwrap_err().error, ApiKey, "without settings none counts");
}

#[test]
fn a_file_is_strict_and_its_mistakes_are_told_by_key_without_values() {
    const GOOD: &str = r#"{"version":1,"keys":[{"id":"0123456789abcdef","secret_sha256":"HASH","owner":"o","created":"2027-01-01T00:00:00Z","expires":"2027-02-01T00:00:00Z","scopes":["a"],"networks":["::ffff:10.0.0.0/104"],"note":"n"}]}"#;
    let good = GOOD.replace("HASH", &"0a".repeat(32));
    let file = tempfile::NamedTempFile::new().unwrap();
    let read = |text: &str, limits: &Limits| {
        std::fs::write(file.path(), text).unwrap();
        ApiKeyFile::read(file.path(), limits).map_err(|error| error.to_string())
    };
    let whole = read(&good, &Limits::default()).unwrap();
    assert_eq!(whole.keys[0].networks, ["10.0.0.0/8".parse::<IpNet>().unwrap()], "IPv4 is IPv4");
    let table = [
        ("\"owner\"", "\"owmer\"", "is not a file of API keys", "an unknown member"),
        ("\"owner\":\"o\",", "", "is not a file of API keys", "nobody's"),
        ("\"owner\":\"o\"", "\"owner\":\"o\",\"owner\":\"p\"", "is not a file of API keys", "two owners"),
        ("\"version\":1", "\"version\":2", "is not a file of API keys", "another version"),
        ("0a0a", "0A0A", "is not a file of API keys", "a hash has one spelling"),
        ("0a0a", "0a", "is not a file of API keys", "a shorter hash"),
        (",\"expires\":\"2027-02-01T00:00:00Z\"", "", "is not a file of API keys", "no end"),
        ("2027-02-01", "2026-02-01", "`expires` must be after", "over before it began"),
        ("0123456789abcdef", "gpk_secret", "key (without a proper id): `id` must be", "a secret in the id's place"),
        ("\"o\"", "\"\"", "`owner` is not fit", "an owner without a name"),
        ("\"o\"", "\"o\\u202e\"", "`owner` is not fit", "reorders text"),
        ("[\"a\"]", "[\"a b\"]", "a scope must be", "two scopes in one"),
        ("10.0.0.0/104", "10.0.0.1/104", "a network must have no bits", "no network"),
        ("\"n\"", "\"n\\u0007\"", "`note` must be", "rings a bell in a terminal"),
    ];
    for (from, to, expected, why) in table {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{why}");
        let error = read(&text, &Limits::default()).unwrap_err();
        assert!(error.contains(expected) && !error.contains("gpk_secret"), "{why}: {error}");
    }
    let two = |id: &str| {
        let mut keys = whole.clone();
        keys.keys.push(file::ApiKeyEntry { id: id.to_owned(), ..whole.keys[0].clone() });
        serde_json::to_string(&keys).unwrap()
    };
    assert!(read(&two("0123456789abcdef"), &Limits::default()).unwrap_err().contains("is listed twice"));
    let text = two("0123456789abcdee");
    let limits = |keys: usize, bytes: usize| Limits { api_keys: keys, api_key_file_bytes: bytes, ..Limits::default() };
    assert!(read(&text, &limits(2, text.len())).is_ok(), "at `api_keys` and `api_key_file_bytes`");
    assert!(read(&text, &limits(1, text.len())).unwrap_err().contains("limits.api_keys"), "one key past");
    assert!(
        read(&text, &limits(2, text.len() - 1)).unwrap_err().contains("limits.api_key_file_bytes"),
        "one byte past"
    );
}

/// Thirty-two that change the file at once lose nothing of each other's, and its mode stays.
#[test]
fn changes_at_once_come_one_after_the_other_and_the_mode_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    std::thread::scope(|scope| {
        for _ in 0..32 {
            let add = || {
                let (_, entry) = key(|_| ());
                ApiKeyFile::change(&path, &Limits::default(), true, |keys| {
                    keys.keys.push(entry);
                    Ok::<_, ApiKeyFileError>(())
                })
            };
            scope.spawn(move || add().unwrap());
        }
    });
    assert_eq!(ApiKeyFile::read(&path, &Limits::default()).unwrap().keys.len(), 32);
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600, "a new file is for its owner");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let strike = |keys: &mut ApiKeyFile| {
        keys.keys.truncate(1);
        Ok::<_, ApiKeyFileError>(())
    };
    ApiKeyFile::change(&path, &Limits::default(), false, strike).unwrap();
    assert_eq!(mode(), 0o640, "one that a group may read stays so");
    let link = folder.path().join("link.json");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    ApiKeyFile::change(&link, &Limits::default(), false, |_| Ok::<_, ApiKeyFileError>(())).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink(), "a link stays a link");
    std::fs::remove_file(link).unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing lies about but the lock: {left:?}");

    let before = std::fs::read(&path).unwrap();
    let spoil = |keys: &mut ApiKeyFile| {
        keys.keys[0].owner = String::new();
        Ok::<_, ApiKeyFileError>(())
    };
    assert!(ApiKeyFile::change(&path, &Limits::default(), false, spoil).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before, "a change that would not be read again is not written");
}

#[tokio::test]
async fn a_changed_file_is_taken_and_a_broken_one_changes_nothing() {
    let ((old, old_entry), (new, new_entry)) = (key(|_| ()), key(|_| ()));
    let bench = Bench::of(std::slice::from_ref(&old_entry));
    let keys = Arc::new(bench.open());
    let (told, mut news) = tokio::sync::mpsc::unbounded_channel();
    let cancel = CancellationToken::new();
    let watching = keys.spawn_watch(cancel.clone(), move |outcome| told.send(outcome.ok()).unwrap()).unwrap();
    let good = |key: &SecretString| keys.verify(&present(key, None), noon()).is_ok();
    assert_eq!((good(&old), good(&new)), (true, false));

    bench.write(&[old_entry.clone(), new_entry.clone()]);
    assert_eq!(news.recv().await, Some(Some(2)));
    assert_eq!((good(&old), good(&new)), (true, true), "added");

    std::fs::File::create(bench.config().file).unwrap().write_all(b"{\"version\":1,").unwrap();
    assert_eq!(news.recv().await, Some(None), "told");
    assert_eq!((good(&old), good(&new)), (true, true), "half a file");

    std::fs::remove_file(bench.config().file).unwrap();
    assert_eq!(news.recv().await, Some(None), "told");
    assert_eq!((good(&old), good(&new)), (true, true), "no file");

    bench.write(&[file::ApiKeyEntry { revoked: Some(at(0)), ..old_entry }, new_entry]);
    assert_eq!(news.recv().await, Some(Some(2)));
    assert_eq!((good(&old), good(&new)), (false, true), "revoked");
    cancel.cancel();
    watching.await.unwrap();
}

/// A revocation that is written while the process is out of file descriptors takes effect as soon as it has one.
#[test]
fn a_file_that_could_not_be_read_is_looked_at_again_and_told_of_once() {
    let bench = Bench::of(&[key(|_| ()).1]);
    let path = bench.config().file;
    let before = Stamp::of(&path);
    bench.write(&[key(|_| ()).1, key(|_| ()).1]);
    let after = Stamp::of(&path);
    assert_ne!(before, after);
    let unread = || {
        let source = std::io::Error::other("no file descriptor left");
        Err(ApiKeyFileError::Io { path: path.clone(), doing: "can't be read", source })
    };
    let broken = || Err(ApiKeyFileError::Shape { path: path.clone(), line: 1 });

    let mut progress = Progress { seen: before.clone(), told: before.clone() };
    let table = [
        (unread(), true, false, "told, and looked at again"),
        (unread(), false, false, "as before, and told already"),
        (Ok(2), true, true, "read at last"),
    ];
    for (outcome, news, done, why) in table {
        assert_eq!(progress.is_news(after.clone(), &outcome), news, "{why}");
        assert_eq!(progress.seen == after, done, "{why}");
    }
    let mut progress = Progress { seen: before.clone(), told: before };
    assert!(progress.is_news(after.clone(), &broken()), "what is read and broken is told");
    assert!(progress.seen == after, "and needs no second look until it changes");
}

/// THREATS T13: whoever guesses ids learns nothing from the clock. Medians of interleaved samples, so that a busy machine
/// disturbs both alike; the work that must not be skipped, the hash of the secret, is almost half of all.
#[test]
fn an_unknown_id_takes_as_long_as_a_wrong_secret() {
    let rounds = if std::env::var_os("GATEPOST_LONG").is_some() { 50_000 } else { 5_000 };
    let (known, _) = key(|_| ());
    let (_, entry) = key(|_| ());
    let keys = Bench::of(&[file::ApiKeyEntry { id: text::id_of(&known).unwrap().to_owned(), ..entry }]).open();
    let (wrong_secret, unknown_id) = (present(&known, None), present(&key(|_| ()).0, None));
    let clock = crate::clock::SystemClock::shared();
    let timed = |presented: &PresentedKey| {
        let begun = clock.monotonic();
        let refused = keys.verify(presented, noon());
        let took = clock.monotonic() - begun;
        assert_eq!(refused.unwrap_err().error, TokenError::ApiKey);
        took
    };
    let (mut wrong, mut unknown): (Vec<_>, Vec<_>) =
        (0..rounds).map(|_| (timed(&wrong_secret), timed(&unknown_id))).unzip();
    wrong.sort();
    unknown.sort();
    let (wrong, unknown) = (wrong[rounds / 2], unknown[rounds / 2]);
    let ratio = wrong.as_secs_f64() / unknown.as_secs_f64();
    assert!((0.75..1.33).contains(&ratio), "{rounds} rounds: a wrong secret {wrong:?}, an unknown id {unknown:?}");
}
