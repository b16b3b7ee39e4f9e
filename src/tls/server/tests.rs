use std::fs;
use std::path::Path;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::tls::fixture::{
    Authority, Leaf, client, client_of, clock, leaf, living, noon, numbered, shake_hands, write_server,
};

const HOUR: Duration = Duration::from_secs(3600);

fn server_leaf(authority: &Authority) -> Leaf {
    authority.issue(&leaf(&[], &["gatepost.test"]))
}

fn client_leaf(authority: &Authority) -> Leaf {
    authority.issue(&leaf(&["spiffe://corp.test/orders"], &[]))
}

#[test]
fn files_are_refused_with_the_name_of_the_one_to_mend() {
    let (corp, other) = (Authority::new("corp"), Authority::new("other"));
    let good = server_leaf(&corp);
    let stranger = server_leaf(&other);
    let expired = corp.issue(&living(leaf(&[], &["gatepost.test"]), noon() - 2 * HOUR, noon() - HOUR));
    let big = "x".repeat(1024 * 1024 + 1);
    let cut = good.certificate_pem.get(..good.certificate_pem.len() / 2).unwrap();

    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let table: [(&str, Option<&str>, &str, &str); 14] = [
        ("tls.crt", None, "`tls.crt` can't be read", "missing"),
        ("tls.crt", Some(""), "`tls.crt` does not hold certificates", "empty"),
        ("tls.crt", Some(cut), "`tls.crt` does not hold certificates", "cut off in the middle of writing"),
        ("tls.crt", Some(&good.key_pem), "`tls.crt` does not hold certificates", "the key in its place"),
        ("tls.crt", Some(&stranger.certificate_pem), "the key in `tls.key` does not belong to", "another pair's"),
        ("tls.crt", Some(&big), "`tls.crt` is larger than 1 MiB", "one byte past the limit"),
        ("tls.key", None, "`tls.key` can't be read", "missing"),
        (
            "tls.key",
            Some("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
            "`tls.key` does not",
            "no key",
        ),
        ("tls.key", Some(encrypted), "the private key in `tls.key` is encrypted", "a passphrase"),
        ("tls.key", Some(&good.certificate_pem), "`tls.key` does not hold a usable", "the certificate in its place"),
        ("tls.key", Some(&stranger.key_pem), "the key in `tls.key` does not belong to", "another pair's"),
        ("ca.crt", None, "`ca.crt` can't be read", "missing"),
        ("ca.crt", Some(""), "`ca.crt` does not hold authorities", "believing nobody is a mistake"),
        ("ca.crt", Some(&good.certificate_pem), "`ca.crt` does not hold authorities", "a leaf may vouch for nobody"),
    ];
    for (file, text, expected, why) in table {
        let folder = tempfile::tempdir().unwrap();
        let config = write_server(folder.path(), &good, &corp.pem());
        let identity = ServerIdentity::load(&config, clock()).unwrap();
        let before = identity.current();
        match text {
            Some(text) => fs::write(folder.path().join(file), text).unwrap(),
            None => fs::remove_file(folder.path().join(file)).unwrap(),
        }
        let at_start = ServerIdentity::load(&config, clock()).unwrap_err().to_string();
        let at_reload = identity.reload().unwrap_err().to_string();
        assert_eq!(at_start, at_reload, "{why}");
        let shown = at_start.replace(&format!("{}/", folder.path().display()), "");
        assert!(shown.starts_with(expected), "{why}: {shown}");
        assert!(!shown.contains("PRIVATE KEY") && !shown.contains("MII"), "{why}: shows content");
        assert!(Arc::ptr_eq(&before, &identity.current()), "{why}: the old pair serves on");
    }

    let folder = tempfile::tempdir().unwrap();
    let config = write_server(folder.path(), &expired, &corp.pem());
    let told = ServerIdentity::load(&config, clock()).unwrap_err().to_string();
    let times = [noon() - HOUR, noon()].map(|time| crate::clock::timestamp(time).to_string());
    assert!(told.contains("has expired") && times.iter().all(|time| told.contains(time)), "{told}");
}

/// Seen from a clock that is an hour late, a certificate of now is one of the future.
#[test]
fn a_certificate_of_the_future_is_refused_unless_clocks_merely_differ() {
    let corp = Authority::new("corp");
    for (from, taken) in
        [(noon() + HOUR, false), (noon() + Duration::from_secs(61), false), (noon() + Duration::from_secs(60), true)]
    {
        let folder = tempfile::tempdir().unwrap();
        let leaf = corp.issue(&living(leaf(&[], &["gatepost.test"]), from, from + 5 * HOUR));
        let loaded = ServerIdentity::load(&write_server(folder.path(), &leaf, &corp.pem()), clock());
        assert_eq!(loaded.is_ok(), taken);
        if let Err(error) = loaded {
            let told = error.to_string();
            let times = [from, noon()].map(|time| crate::clock::timestamp(time).to_string());
            assert!(told.contains("not valid yet") && times.iter().all(|time| told.contains(time)), "{told}");
        }
    }
}

#[test]
fn a_certificate_for_another_name_is_refused_where_the_settings_name_one() {
    let corp = Authority::new("corp");
    let folder = tempfile::tempdir().unwrap();
    let mut config = write_server(folder.path(), &server_leaf(&corp), &corp.pem());
    for (names, refused) in [(vec!["gatepost.test"], None), (vec!["gatepost.test", "10.0.0.7"], Some("`10.0.0.7`"))] {
        config.names = names.into_iter().map(str::to_owned).collect();
        let told = ServerIdentity::load(&config, clock()).err().map(|error| error.to_string());
        assert_eq!(told.is_some(), refused.is_some());
        let named = |told: &String| told.contains(refused.unwrap()) && told.contains("it is for gatepost.test;");
        assert!(told.as_ref().is_none_or(named), "{told:?}");
    }
}

#[test]
fn a_reload_swaps_only_what_changed_and_belongs_together() {
    let corp = Authority::new("corp");
    let folder = tempfile::tempdir().unwrap();
    let config = write_server(folder.path(), &server_leaf(&corp), &corp.pem());
    let identity = ServerIdentity::load(&config, clock()).unwrap();
    let withdrawals = identity.withdrawals();
    let first = identity.current();
    assert_eq!(identity.certificate_expires_at(), noon() + HOUR);

    write_again(&config.certificate);
    assert!(!identity.reload().unwrap(), "touched, not changed");
    assert!(Arc::ptr_eq(&first, &identity.current()));

    let renewed = corp.issue(&living(leaf(&[], &["gatepost.test"]), noon(), noon() + 5 * HOUR));
    fs::write(&config.certificate, &renewed.certificate_pem).unwrap();
    assert!(matches!(identity.reload(), Err(TlsError::Mismatch { .. })), "half of the pair is there");
    fs::write(&config.private_key, &renewed.key_pem).unwrap();
    assert!(identity.reload().unwrap(), "the other half came");
    assert!(!Arc::ptr_eq(&first, &identity.current()));
    assert_eq!(identity.certificate_expires_at(), noon() + 5 * HOUR);

    let other = Authority::new("other");
    let stranger = client_leaf(&other);
    let attempt = || shake_hands(identity.current(), Arc::new(client(&corp, Some(&stranger))));
    assert!(attempt().is_err(), "not believed yet");
    fs::write(&config.client_ca, format!("{}{}", corp.pem(), other.pem())).unwrap();
    assert!(identity.reload().unwrap(), "another authority");
    assert!(attempt().is_ok(), "believed now");
    assert!(!withdrawals.has_changed().unwrap(), "nobody lost their authority");
    fs::write(&config.client_ca, corp.pem()).unwrap();
    assert!(identity.reload().unwrap());
    assert!(withdrawals.has_changed().unwrap(), "one is believed no longer");
}

fn write_again(path: &Path) {
    fs::write(path, fs::read(path).unwrap()).unwrap();
}

/// RFC 8446 section 2.2: a resumed session does not show its certificate. The client has a session store and would resume.
#[test]
fn a_session_is_never_resumed() {
    let corp = Authority::new("corp");
    let folder = tempfile::tempdir().unwrap();
    let identity =
        ServerIdentity::load(&write_server(folder.path(), &server_leaf(&corp), &corp.pem()), clock()).unwrap();
    let client = Arc::new(client(&corp, Some(&client_leaf(&corp))));
    for attempt in 0..20 {
        let (mut server, mut end) = shake_hands(identity.current(), Arc::clone(&client)).unwrap();
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        end.read_tls(&mut wire.as_slice()).unwrap();
        let state = end.process_new_packets().unwrap();
        assert_eq!(state.plaintext_bytes_to_read(), 0);
        assert_eq!(end.tls13_tickets_received(), 0, "attempt {attempt}: no ticket is given");
        assert_ne!(end.handshake_kind(), Some(rustls::HandshakeKind::Resumed), "attempt {attempt}");
        assert_ne!(server.handshake_kind(), Some(rustls::HandshakeKind::Resumed), "attempt {attempt}");
    }
    let tls = identity.current();
    assert_eq!((tls.max_early_data_size, tls.send_tls13_tickets), (0, 0));
    assert!(!tls.session_storage.can_cache());
}

#[test]
fn only_certificates_of_a_believed_authority_shake_hands() {
    let (corp, other, impostor) = (Authority::new("corp"), Authority::new("other"), Authority::new("corp"));
    let folder = tempfile::tempdir().unwrap();
    let identity =
        ServerIdentity::load(&write_server(folder.path(), &server_leaf(&corp), &corp.pem()), clock()).unwrap();
    let aged = |from, until| corp.issue(&living(leaf(&["spiffe://corp.test/a"], &[]), from, until));
    let table = [
        (Some(client_leaf(&corp)), true, "one of ours"),
        (None, false, "none at all"),
        (Some(client_leaf(&other)), false, "a foreign one"),
        (Some(client_leaf(&impostor)), false, "an authority of the same name with another key"),
        (Some(aged(noon() - 2 * HOUR, noon() - HOUR)), false, "expired by our clock"),
        (Some(aged(noon() + HOUR, noon() + 2 * HOUR)), false, "not valid yet by our clock"),
    ];
    for (leaf, expected, why) in table {
        let client = Arc::new(client(&corp, leaf.as_ref()));
        assert_eq!(shake_hands(identity.current(), client).is_ok(), expected, "{why}");
    }
    let old = client_of(&corp, Some(&client_leaf(&corp)), &[&rustls::version::TLS12]);
    assert!(shake_hands(identity.current(), Arc::new(old)).is_err(), "TLS 1.2");
}

/// SPIFFE Federation section 7.3: an authority speaks for its own trust domain.
#[test]
fn an_authority_of_one_trust_domain_names_no_workload_of_another() {
    let (corp, partner, stranger) = (Authority::new("corp"), Authority::new("partner"), Authority::new("stranger"));
    let folder = tempfile::tempdir().unwrap();
    let mut config = write_server(folder.path(), &server_leaf(&corp), &corp.pem());
    let own = folder.path().join("partner.crt");
    fs::write(&own, partner.pem()).unwrap();
    config.domain_ca = [("partner.test".parse().unwrap(), own.clone())].into();
    let identity = ServerIdentity::load(&config, clock()).unwrap();
    const OURS: &[&str] = &["spiffe://corp.test/a"];
    const THEIRS: &[&str] = &["spiffe://partner.test/a"];
    type Row<'a> = (&'a Authority, &'a [&'a str], &'a [&'a str], bool, &'a str);
    let table: [Row<'_>; 10] = [
        (&corp, OURS, &[], true, "ours by ours"),
        (&partner, THEIRS, &[], true, "theirs by theirs"),
        (&partner, OURS, &[], false, "ours by theirs"),
        (&corp, THEIRS, &[], false, "theirs by ours: they have authorities of their own"),
        (&stranger, THEIRS, &[], false, "theirs by a stranger"),
        (&partner, &[], &["orders.corp.test"], false, "a host by theirs"),
        (&corp, &[], &["orders.corp.test"], true, "a host by ours"),
        (&partner, &[THEIRS[0], OURS[0]], &[], false, "two names are no name: only the common ones vouch"),
        (&partner, &["spiffe://PARTNER.test/a"], &[], false, "an odd name is no name either"),
        (&partner, &["spiffe://partner.test.corp.test/a"], &[], false, "compared whole"),
    ];
    for (authority, uris, hosts, expected, why) in table {
        let shown = authority.issue(&leaf(uris, hosts));
        let client = client(&corp, Some(&shown));
        assert_eq!(shake_hands(identity.current(), Arc::new(client)).is_ok(), expected, "{why}");
    }

    let withdrawals = identity.withdrawals();
    fs::write(&own, "").unwrap();
    let told = identity.reload().unwrap_err().to_string();
    assert!(told.contains("partner.crt"), "{told}");
    // The same authority, now believed about another domain: whoever came by it has to come again.
    fs::write(&own, corp.pem()).unwrap();
    assert!(identity.reload().unwrap());
    assert!(withdrawals.has_changed().unwrap());
    let shown = corp.issue(&leaf(THEIRS, &[]));
    assert!(shake_hands(identity.current(), Arc::new(client(&corp, Some(&shown)))).is_ok());
    let shown = partner.issue(&leaf(THEIRS, &[]));
    assert!(shake_hands(identity.current(), Arc::new(client(&corp, Some(&shown)))).is_err());
}

#[test]
fn an_authority_that_has_expired_or_may_not_sign_vouches_for_nobody() {
    let (old, corp) = (Authority::living("old", noon() - 2 * HOUR, noon() - HOUR), Authority::new("corp"));
    let folder = tempfile::tempdir().unwrap();
    let config = write_server(folder.path(), &server_leaf(&corp), &format!("{}{}", old.pem(), corp.pem()));
    let identity = ServerIdentity::load(&config, clock()).unwrap();
    let shown = |authority: &Authority| client(&corp, Some(&client_leaf(authority)));
    assert!(shake_hands(identity.current(), Arc::new(shown(&corp))).is_ok());
    assert!(shake_hands(identity.current(), Arc::new(shown(&old))).is_err());

    let mute = Authority::with("mute", &[rcgen::KeyUsagePurpose::CrlSign]);
    fs::write(&config.client_ca, mute.pem()).unwrap();
    assert!(matches!(identity.reload(), Err(TlsError::ClientAuthorities { .. })));
}

#[test]
fn revocation_lists_are_read_from_files_and_folders_and_what_is_wrong_is_told_by_file() {
    let corp = Authority::new("corp");
    let folder = tempfile::tempdir().unwrap();
    let mut config = write_server(folder.path(), &server_leaf(&corp), &corp.pem());
    let (lists, single) = (folder.path().join("lists"), folder.path().join("corp.crl"));
    fs::create_dir(&lists).unwrap();
    config.revocation.lists = vec![lists.clone(), single.clone()];
    let shown = |error: TlsError| error.to_string().replace(&format!("{}/", folder.path().display()), "");
    let told = || shown(ServerIdentity::load(&config, clock()).unwrap_err());

    assert!(told().starts_with("`lists` holds no revocation list"), "{}", told());
    let list = |number, revoked: &[u64]| corp.list(number, noon() + HOUR, revoked);
    let pem = |list: &rcgen::CertificateRevocationList| list.pem().unwrap();
    fs::write(lists.join("ignored.txt"), "not a list").unwrap();
    fs::write(lists.join(".hidden.crl"), "not a list").unwrap();
    fs::write(lists.join("a.der"), list(1, &[]).der()).unwrap();
    assert!(told().starts_with("`corp.crl` can't be read"), "{}", told());
    for (text, why) in [("", "empty"), (&*corp.pem(), "a certificate"), ("0rubbish", "neither PEM nor DER")] {
        fs::write(&single, text).unwrap();
        assert!(told().starts_with("`corp.crl` does not hold a revocation list"), "{why}: {}", told());
    }
    fs::write(&single, format!("{}{}", pem(&list(2, &[1])), pem(&list(1, &[])))).unwrap();
    let identity = ServerIdentity::load(&config, clock()).unwrap();
    let client_of = |serial| client(&corp, Some(&corp.issue(&numbered(serial, leaf(&["spiffe://corp.test/a"], &[])))));
    let enters = |serial| shake_hands(identity.current(), Arc::new(client_of(serial))).is_ok();
    assert!(!enters(1) && enters(2) && enters(3));
    assert_eq!(identity.lists_expire_at(), Some(noon() + HOUR));

    // A broken list leaves the last good ones, and does not keep the certificate from being renewed; nor the reverse.
    fs::write(lists.join("b.pem"), "half a li").unwrap();
    let renewed = corp.issue(&living(leaf(&[], &["gatepost.test"]), noon(), noon() + 5 * HOUR));
    fs::write(&config.certificate, &renewed.certificate_pem).unwrap();
    fs::write(&config.private_key, &renewed.key_pem).unwrap();
    let generation = identity.generation();
    assert!(shown(identity.reload().unwrap_err()).starts_with("`lists/b.pem` does not hold"));
    assert_eq!(identity.certificate_expires_at(), noon() + 5 * HOUR);
    assert!(identity.generation() > generation && !enters(1) && enters(2));
    fs::write(lists.join("b.pem"), pem(&list(3, &[1, 2]))).unwrap();
    fs::write(&config.private_key, "half a ke").unwrap();
    assert!(shown(identity.reload().unwrap_err()).starts_with("`tls.key`"));
    assert!(!enters(1) && !enters(2) && enters(3), "the list is in force though the key is broken");
    fs::write(&config.private_key, &renewed.key_pem).unwrap();
    let generation = identity.generation();
    assert!(!identity.reload().unwrap());
    assert_eq!(identity.generation(), generation, "nothing changed");
}

#[test]
fn revocation_lists_past_their_limit_are_not_read() {
    let corp = Authority::new("corp");
    let folder = tempfile::tempdir().unwrap();
    let mut config = write_server(folder.path(), &server_leaf(&corp), &corp.pem());
    let list = corp.list(1, noon() + HOUR, &[1, 2, 3]).der().to_vec();
    let files = [folder.path().join("one.crl"), folder.path().join("two.crl")];
    files.iter().for_each(|file| fs::write(file, &list).unwrap());
    config.revocation.lists = files.to_vec();
    for (limit, expected, why) in [(2 * list.len(), true, "at `crl_bytes`"), (2 * list.len() - 1, false, "one past it")]
    {
        config.revocation.max_bytes = limit;
        let loaded = ServerIdentity::load(&config, clock());
        assert_eq!(loaded.is_ok(), expected, "{why}");
        if let Err(error) = loaded {
            assert!(error.to_string().contains("limits.crl_bytes"), "{error}");
        }
    }
}

/// Waits for the next word of the watch; the time-out is only for when it never comes.
async fn told(words: &mut mpsc::UnboundedReceiver<Result<bool, String>>) -> Result<bool, String> {
    tokio::time::timeout(Duration::from_secs(20), words.recv()).await.expect("the watch says something").unwrap()
}

fn watch(identity: &Arc<ServerIdentity>) -> (mpsc::UnboundedReceiver<Result<bool, String>>, CancellationToken) {
    let (speak, words) = mpsc::unbounded_channel();
    let cancel = CancellationToken::new();
    identity.spawn_watch(cancel.clone(), move |outcome| {
        let _ = speak.send(outcome.map_err(ToString::to_string));
    });
    (words, cancel)
}

#[tokio::test]
async fn changed_files_are_noticed_and_broken_ones_reported() {
    let corp = Authority::new("corp");
    let folder = tempfile::tempdir().unwrap();
    let config = write_server(folder.path(), &server_leaf(&corp), &corp.pem());
    let identity = ServerIdentity::load(&config, clock()).unwrap();
    let (mut words, cancel) = watch(&identity);

    fs::write(&config.private_key, "half a ke").unwrap();
    assert!(told(&mut words).await.unwrap_err().contains("tls.key"));

    let renewed = server_leaf(&corp);
    fs::write(&config.private_key, &renewed.key_pem).unwrap();
    fs::write(&config.certificate, &renewed.certificate_pem).unwrap();
    // Should the two writes fall apart, the half pair is reported first.
    while told(&mut words).await != Ok(true) {}
    cancel.cancel();
    assert_eq!(words.recv().await, None, "the watch ends, and nothing else was said");
}

#[tokio::test]
async fn the_poll_sees_what_no_notice_told() {
    let corp = Authority::new("corp");
    let folder = tempfile::tempdir().unwrap();
    // The folder of the link is watched, the one it points into is not.
    let real = tempfile::tempdir().unwrap();
    let mut config = write_server(real.path(), &server_leaf(&corp), &corp.pem());
    config.reload_interval = Duration::from_millis(20);
    for file in [&mut config.certificate, &mut config.private_key, &mut config.client_ca] {
        let link = folder.path().join(file.file_name().unwrap());
        std::os::unix::fs::symlink(&*file, &link).unwrap();
        *file = link;
    }
    let identity = ServerIdentity::load(&config, clock()).unwrap();
    let (mut words, _cancel) = watch(&identity);
    write_server(real.path(), &server_leaf(&corp), &corp.pem());
    while told(&mut words).await != Ok(true) {}
}

/// The kubelet writes a new folder and renames a link over `..data`; the files themselves are links into it.
#[tokio::test]
async fn the_link_swap_of_a_mounted_secret_is_noticed() {
    use std::os::unix::fs::symlink;
    let corp = Authority::new("corp");
    let mount = tempfile::tempdir().unwrap();
    let version = |name: &str| {
        let folder = mount.path().join(name);
        fs::create_dir(&folder).unwrap();
        write_server(&folder, &server_leaf(&corp), &corp.pem())
    };
    let mut config = version("..1");
    symlink("..1", mount.path().join("..data")).unwrap();
    for file in [&mut config.certificate, &mut config.private_key, &mut config.client_ca] {
        let name = file.file_name().unwrap().to_owned();
        symlink(Path::new("..data").join(&name), mount.path().join(&name)).unwrap();
        *file = mount.path().join(name);
    }
    let identity = ServerIdentity::load(&config, clock()).unwrap();
    let (mut words, _cancel) = watch(&identity);

    version("..2");
    symlink("..2", mount.path().join("..data_tmp")).unwrap();
    fs::rename(mount.path().join("..data_tmp"), mount.path().join("..data")).unwrap();
    assert_eq!(told(&mut words).await, Ok(true));
}
