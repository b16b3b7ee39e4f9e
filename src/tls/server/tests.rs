use std::fs;
use std::path::Path;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::tls::fixture::{Authority, Leaf, client, client_of, clock, leaf, living, noon, shake_hands, write_server};

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

    let table: [(&str, Option<&str>, &str, &str); 13] = [
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
    assert!(matches!(ServerIdentity::load(&config, clock()), Err(TlsError::Expired { .. })));
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

/// RFC 8446 section 2.2: a resumed session does not show its certificate.
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
