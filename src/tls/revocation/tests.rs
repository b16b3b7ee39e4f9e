use std::time::Duration;

use rcgen::{CertificateRevocationList, KeyUsagePurpose};
use rustls_pki_types::UnixTime;

use super::*;
use crate::clock::unix_seconds;
use crate::tls::fixture::{Authority, leaf, noon, numbered};
use crate::tls::server::verifier::{ClientChains, Rules};

const HOUR: Duration = Duration::from_secs(3600);
const ORDERS: &str = "spiffe://corp.test/orders";

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
}

fn read(list: &CertificateRevocationList) -> RevocationList {
    RevocationList::read(list.der(), &Arc::new(PathBuf::from("corp.crl"))).unwrap()
}

/// Authorities, and the lists as they come in one reload after another.
struct World {
    authorities: Arc<Authorities>,
    lists: Lists,
    told: usize,
}

impl World {
    fn of(authority: &Authority) -> Self {
        let authorities = Arc::new(Authorities::shared(vec![authority.der()]).unwrap());
        Self { authorities, lists: Lists::none(algorithms()), told: 0 }
    }

    /// One reload; counts the files that hold a list that is too old.
    fn reads(&mut self, lists: &[&CertificateRevocationList]) -> &mut Self {
        let (renewed, gone_back) = self.lists.renewed(lists.iter().map(|list| read(list)).collect(), &self.authorities);
        self.lists = renewed;
        self.told += gone_back.len();
        self
    }

    fn judge(&mut self, chain: &[CertificateDer<'static>]) -> Result<(), webpki::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        // The lists are shared, so what is proven in a handshake stays known.
        let lists = Arc::new(std::mem::replace(&mut self.lists, Lists::none(algorithms())));
        let chains = ClientChains::new(Arc::clone(&self.authorities), Arc::clone(&lists), &provider);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(unix_seconds(noon())));
        let judged = chains.verify(&chain[0], &chain[1..], now, Rules::CLIENTS);
        drop(chains);
        self.lists = Arc::into_inner(lists).unwrap();
        judged
    }
}

#[test]
fn whatever_the_order_of_files_the_newest_list_of_the_true_signer_counts() {
    let (corp, impostor) = (Authority::new("corp"), Authority::new("corp"));
    let mute = corp.twin("corp", &[KeyUsagePurpose::KeyCertSign]);
    let other = Authority::new("other");
    let issued = |serial| vec![corp.issue(&numbered(serial, leaf(&[ORDERS], &[]))).certificate];
    let (first, second) = (issued(1), issued(2));
    let end = noon() + HOUR;
    let (empty, revokes) = (corp.list(7, end, &[]), corp.list(8, end, &[1]));
    let (forged_empty, forged) = (impostor.list(99, end, &[]), impostor.list(99, end, &[2]));
    let (foreign, run_out) = (other.list(50, end, &[1]), corp.list(9, noon() - HOUR, &[]));
    let (long, short) = (corp.list(0x0100, end, &[1]), corp.list(0xff, end, &[]));
    let (part, whole) = (corp.list_of(8, end, &[1], Some("http://corp.test/1.crl")), corp.list(7, end, &[]));
    let old_part = corp.list_of(3, end, &[], Some("http://corp.test/1.crl"));
    let past_part = corp.list_of(3, noon() - HOUR, &[], Some("http://corp.test/1.crl"));

    type Row<'a> = (Vec<&'a CertificateRevocationList>, &'a str, &'a str, &'a str);
    let table: Vec<Row<'_>> = vec![
        (vec![&empty], "Ok", "Ok", "neither is on it"),
        (vec![&empty, &revokes], "CertRevoked", "Ok", "an older, empty one must not shadow a newer one"),
        (vec![&short, &long], "CertRevoked", "Ok", "numbers are numbers, not text"),
        (vec![&forged_empty, &revokes], "CertRevoked", "Ok", "one that another key signed does not displace it"),
        (vec![&forged, &empty], "Ok", "Ok", "nor does it revoke anything"),
        (vec![&forged], "InvalidCrlSignature", "InvalidCrlSignature", "alone it clears nobody"),
        (vec![&foreign], "UnknownRevocationStatus", "UnknownRevocationStatus", "of another issuer"),
        (vec![&run_out], "CrlExpired", "CrlExpired", "run out"),
        (vec![&run_out, &revokes], "CrlExpired", "CrlExpired", "the newest has run out: the older does not step in"),
        (vec![&part, &whole], "CertRevoked", "Ok", "on one partition's list, though not on the whole's older one"),
        (vec![&part, &old_part, &whole], "CertRevoked", "Ok", "a partition's older list does not shadow its newer"),
        (vec![&run_out, &old_part], "CrlExpired", "CrlExpired", "the whole has run out: a part does not step in"),
        (vec![&past_part, &empty], "Ok", "Ok", "a part that has run out takes nothing from the whole"),
    ];
    for (lists, one, two, why) in table {
        // Several times: no chance decides.
        for turned in [false, true].into_iter().cycle().take(8) {
            let mut lists = lists.clone();
            if turned {
                lists.reverse();
            }
            let mut world = World::of(&corp);
            world.reads(&lists);
            for (chain, expected) in [(&first, one), (&second, two)] {
                let judged = world.judge(chain);
                let got = judged.map_or_else(|error| format!("{error:?}"), |()| "Ok".to_owned());
                assert!(got.starts_with(expected), "{why} (turned: {turned}): expected {expected}, got {got}");
            }
            assert_eq!(world.told, 0, "{why}: nothing was in force before");
        }
    }

    let mut world = World::of(&mute);
    world.reads(&[&corp.list(1, end, &[])]);
    let chain = vec![mute.issue(&leaf(&[ORDERS], &[])).certificate];
    assert_eq!(world.judge(&chain), Err(webpki::Error::IssuerNotCrlSigner), "its authority may not sign lists");
}

/// The usual shape: the list is signed by an authority that only clients show, so its signer is known from a handshake on.
#[test]
fn a_list_of_an_authority_that_clients_bring_along_counts_by_its_own_signature() {
    let root = Authority::new("root");
    let uses = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let (between, impostor) = (root.subordinate(&uses), Authority::new("stranger").subordinate(&uses));
    let revoked = vec![between.issue(&numbered(1, leaf(&[ORDERS], &[]))).certificate, between.der()];
    let good = vec![between.issue(&numbered(2, leaf(&[ORDERS], &[]))).certificate, between.der()];
    let end = noon() + HOUR;
    let of_root = root.list(1, end, &[]);
    let (empty, revokes) = (between.list(7, end, &[]), between.list(8, end, &[1]));
    let forged: Vec<_> = (90..93).map(|number| impostor.list(number, end, &[2])).collect();

    let mut world = World::of(&root);
    world.reads(&[&of_root, &empty, &forged[0], &revokes, &forged[1], &forged[2]]);
    assert_eq!(world.judge(&revoked), Err(webpki::Error::CertRevoked));
    assert_eq!(world.judge(&good), Ok(()), "the forged ones revoke nobody");

    // Once its signer is known, all older ones of that signer are gone, and stay so.
    world.reads(&[&of_root, &empty]);
    assert_eq!(world.told, 1, "the older one alone is not taken, and that is said");
    assert_eq!(world.judge(&revoked), Err(webpki::Error::CertRevoked));
    for number in 100..120 {
        world.reads(&[&of_root, &between.list(number, end, &[1])]);
        assert!(world.lists.every().count() <= 2 + MAX_UNPROVEN, "lists do not pile up");
        assert_eq!(world.judge(&good), Ok(()), "{number}");
    }

    world.reads(&[&of_root]);
    let mut intermediate_gone = World::of(&root);
    intermediate_gone.reads(&[&root.list(1, end, &[]), &root.list(2, end, &[Authority::SUBORDINATE]), &revokes]);
    assert_eq!(intermediate_gone.judge(&good), Err(webpki::Error::CertRevoked), "the authority between is revoked");
    let mut silent = World::of(&root);
    silent.reads(&[&revokes]);
    assert_eq!(silent.judge(&good), Err(webpki::Error::UnknownRevocationStatus), "nothing is said of the one between");
}

/// Lists of an authority that no client has shown yet pile up to a few, and must not keep everybody's from being renewed.
#[test]
fn lists_that_nobody_was_ever_held_against_make_room_for_newer_ones() {
    let root = Authority::new("root");
    let uses = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let between = root.subordinate(&uses);
    let end = noon() + HOUR;
    let many: Vec<u64> = (1000..1200).collect();
    let limit = 3 * between.list(1, end, &many).der().len() + root.list(1, end, &[]).der().len();
    let authorities = Authorities::shared(vec![root.der()]).unwrap();
    let mut lists = Lists::none(algorithms());
    for number in 1..10 {
        let offered = [root.list(number, end, &[]), between.list(number, end, &many)];
        lists = lists.renewed_within(limit, offered.iter().map(read).collect(), &authorities).0;
        assert!(lists.bytes() <= limit, "reload {number}: {} bytes", lists.bytes());
        assert!(offered.iter().all(|one| lists.every().any(|list| list.hash == blake3::hash(one.der()))), "{number}");
    }
    let revoked = [1000, 5].map(|serial| {
        let leaf = between.issue(&numbered(serial, leaf(&[ORDERS], &[]))).certificate;
        let mut world = World::of(&root);
        std::mem::swap(&mut world.lists, &mut lists);
        let judged = world.judge(&[leaf, between.der()]);
        std::mem::swap(&mut world.lists, &mut lists);
        judged
    });
    assert_eq!(revoked, [Err(webpki::Error::CertRevoked), Ok(())], "what is left is asked");
    let (kept, _) = lists.renewed_within(1, vec![], &authorities);
    assert_eq!(kept.every().count(), 2, "what has been proven stays, whatever the limit");
}

#[test]
fn what_was_in_force_stays_until_something_newer_comes() {
    let corp = Authority::new("corp");
    let chain = vec![corp.issue(&numbered(1, leaf(&[ORDERS], &[]))).certificate];
    let end = noon() + HOUR;
    let (old, new, newer) = (corp.list(4, end, &[]), corp.list(5, end, &[1]), corp.list(6, end, &[]));
    let mut world = World::of(&corp);
    assert_eq!(world.reads(&[&old]).judge(&chain), Ok(()));
    assert_eq!(world.reads(&[&new]).judge(&chain), Err(webpki::Error::CertRevoked));
    assert_eq!(world.told, 0);
    let again = corp.list(5, end, &[]);
    let table = [
        (vec![&old], 1, "an old file is put back"),
        (vec![], 0, "the file is lost"),
        (vec![&old], 1, "and an old one is put in its place"),
        (vec![&old, &new], 0, "the newer file is there too"),
        (vec![&again], 0, "the number is used twice: the one in force stays"),
    ];
    for (lists, told, why) in table {
        let before = world.told;
        assert_eq!(world.reads(&lists).judge(&chain), Err(webpki::Error::CertRevoked), "{why}");
        assert_eq!(world.told - before, told, "{why}");
    }
    assert_eq!(world.reads(&[&newer]).judge(&chain), Ok(()), "taken off the list by its issuer (a hold, say)");
    assert_eq!((world.lists.every().count(), world.lists.first_end()), (1, Some(end)));
}

#[test]
fn lists_tell_when_the_first_of_them_runs_out() {
    let (corp, other) = (Authority::new("corp"), Authority::new("other"));
    let (soon, late) = (noon() + HOUR, noon() + 5 * HOUR);
    let mut world = World::of(&corp);
    assert_eq!((world.lists.first_end(), world.lists.next_end(noon())), (None, None));
    world.reads(&[&corp.list(1, soon, &[]), &other.list(1, late, &[])]);
    assert_eq!((world.lists.first_end(), world.lists.next_end(noon())), (Some(soon), Some(soon)));
    assert_eq!((world.lists.first_end(), world.lists.next_end(soon)), (Some(soon), Some(late)), "it is past");
    world.reads(&[&corp.list(2, late + HOUR, &[])]);
    assert_eq!(world.lists.first_end(), Some(late), "replaced");
}
