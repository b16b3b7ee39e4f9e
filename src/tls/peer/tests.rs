use super::*;
use crate::tls::fixture::{Authority, clock, leaf, living, names, noon, numbered, peer_at, peer_with, write_server};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};

const ORDERS: &str = "spiffe://corp.test/ns/prod/sa/orders";

/// X509-SVID sections 2 and 4. The corpus in `tests/conformance` has more forms of each.
#[test]
fn a_certificate_names_one_workload_or_none() {
    use IdentityError::{DnsName, ForeignTrustDomain, ManyNames, NoName, NoWorkload, NotSpiffe};
    let long = format!("{}.test", "a".repeat(64));
    type Row<'a> = (&'a [&'a str], &'a [&'a str], bool, Result<&'a str, IdentityError>, &'a str);
    let table: &[Row<'_>] = &[
        (&[ORDERS], &[], false, Ok(ORDERS), "the everyday shape"),
        (&[ORDERS], &["orders.corp.test"], true, Ok(ORDERS), "a host name beside it is allowed and not used"),
        (&[ORDERS, ORDERS], &[], false, Err(ManyNames), "the same twice is still two"),
        (&[ORDERS, "https://corp.test/"], &[], false, Err(ManyNames), "whatever the second says"),
        (&["https://corp.test/"], &["orders.corp.test"], true, Err(NotSpiffe), "a URI keeps the host name out"),
        (&["spiffe://corp.test"], &[], false, Err(NoWorkload), "a trust domain is no workload"),
        (&["spiffe://evil.test/ns/prod/sa/orders"], &[], false, Err(ForeignTrustDomain), "not ours to believe"),
        (&["spiffe://corp.test.evil.test/a"], &[], false, Err(ForeignTrustDomain), "compared whole"),
        (&["spiffe://CORP.test/a"], &[], false, Err(NotSpiffe), "upper case"),
        (&["spiffe://corp.test/a/"], &[], false, Err(NotSpiffe), "trailing slash"),
        (&[], &["orders.corp.test"], false, Err(NoName), "host names are off"),
        (&[], &["orders.corp.test"], true, Ok("dns:orders.corp.test"), "host names are on"),
        (&[], &["orders"], true, Ok("dns:orders"), "one label"),
        (&[], &["a.test", "b.test"], true, Err(DnsName), "two host names are none"),
        (&[], &["*.corp.test"], true, Err(DnsName), "a wildcard names many"),
        (&[], &["Orders.corp.test"], true, Err(DnsName), "one spelling only"),
        (&[], &["orders.corp.test."], true, Err(DnsName), "a trailing dot is another spelling"),
        (&[], &["-orders.test"], true, Err(DnsName), "leading hyphen"),
        (&[], &[&long], true, Err(DnsName), "a label of 64 bytes"),
        (&[], &["orders\0.test"], true, Err(DnsName), "NUL"),
        (&[], &[], true, Err(DnsName), "no name at all"),
        (&[], &[], false, Err(NoName), "no name at all"),
    ];
    let authority = Authority::new("corp");
    for (uris, hosts, dns_san, expected, why) in table {
        let certificate = authority.issue(&leaf(uris, hosts)).certificate;
        let got = identify(&certificate, &names(*dns_san)).map(|name| name.to_string());
        assert_eq!(got, expected.map(str::to_owned), "{uris:?} {hosts:?}: {why}");
    }
}

#[test]
fn a_certificate_that_may_do_more_than_shake_hands_names_nobody() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign, KeyEncipherment};
    let uses = |uses: &[KeyUsagePurpose]| {
        let mut params = leaf(&[ORDERS], &[]);
        params.key_usages = uses.to_vec();
        params
    };
    let authority_leaf = |is_ca: IsCa| {
        let mut params = leaf(&[ORDERS], &[]);
        params.is_ca = is_ca;
        params
    };
    let table: [(CertificateParams, Result<(), IdentityError>, &str); 7] = [
        (uses(&[DigitalSignature]), Ok(()), "what a workload needs"),
        (uses(&[]), Ok(()), "no uses named"),
        (authority_leaf(IsCa::ExplicitNoCa), Ok(()), "says that it is none"),
        (authority_leaf(IsCa::Ca(BasicConstraints::Unconstrained)), Err(IdentityError::Authority), "an authority"),
        (uses(&[DigitalSignature, KeyCertSign]), Err(IdentityError::Authority), "may sign certificates"),
        (uses(&[DigitalSignature, CrlSign]), Err(IdentityError::Authority), "may sign revocation lists"),
        (uses(&[KeyEncipherment]), Err(IdentityError::KeyUsage), "may not sign a handshake"),
    ];
    let authority = Authority::new("corp");
    for (params, expected, why) in table {
        let certificate = authority.issue(&params).certificate;
        assert_eq!(identify(&certificate, &names(false)).map(|_| ()), expected, "{why}");
    }
}

#[test]
fn what_can_not_be_read_names_nobody() {
    let whole = Authority::new("corp").issue(&leaf(&[ORDERS], &[])).certificate;
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.to_vec();
        change(&mut bytes);
        identify(&CertificateDer::from(bytes), &names(false))
    };
    assert!(with(&|_| {}).is_ok());
    assert_eq!(with(&|bytes| bytes.push(0)), Err(IdentityError::Unreadable), "something follows");
    assert_eq!(with(&Vec::clear), Err(IdentityError::Unreadable), "nothing there");
    for length in 0..whole.len() {
        assert_eq!(with(&|bytes| bytes.truncate(length)), Err(IdentityError::Unreadable), "cut at {length}");
    }
}

/// RFC 5280 section 4.1.2.5.
#[test]
fn a_name_ends_with_its_certificate() {
    let second = Duration::from_secs(1);
    let (from, until) = (noon() - second, noon() + second);
    let peer = peer_with(&Authority::new("corp"), living(leaf(&[ORDERS], &[]), from, until), &names(false));
    let table = [
        (from - second, Err(IdentityError::NotYetValid), "a second before its first"),
        (from, Ok(()), "its first second"),
        (noon(), Ok(()), "between"),
        (until, Ok(()), "its last second"),
        (until + Duration::from_millis(999), Ok(()), "the whole of it"),
        (until + second, Err(IdentityError::Expired), "a second after its last"),
    ];
    for (now, expected, why) in table {
        assert_eq!(peer.name(now).map(|_| ()), expected, "{why}");
    }
    assert_eq!((peer.not_before(), peer.not_after()), (from, until));
}

#[test]
fn a_peer_tells_what_the_record_needs() {
    let mut params = leaf(&[ORDERS], &[]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let peer = peer_with(&Authority::new("corp"), params, &names(false));
    assert_eq!(peer.address().to_string(), "192.0.2.7:4711");
    assert_eq!(peer.name(noon()).unwrap().to_string(), ORDERS);
    let hex = peer.certificate_sha256_hex();
    assert_eq!(hex.len(), 64);
    assert!(hex.ends_with(&format!("{:02x}", peer.certificate_sha256()[31])), "{hex}");
}

/// The chain is verified anew when something changed, and what was found then counts until the next change.
#[test]
fn a_name_is_lost_and_found_again_with_the_lists_in_force() {
    let corp = Authority::new("corp");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("corp.crl");
    let end = noon() + Duration::from_secs(1800);
    let write = |number, revoked: &[u64]| std::fs::write(&file, corp.list(number, end, revoked).der()).unwrap();
    write(1, &[]);
    let mut config = write_server(folder.path(), &corp.issue(&leaf(&[], &["gatepost.test"])), &corp.pem());
    config.revocation.lists = vec![file.clone()];
    let identity = ServerIdentity::load(&config, clock()).unwrap();
    let shown = corp.issue(&numbered(5, leaf(&[ORDERS], &[])));
    let peer = peer_at(&identity, &corp, &shown, &names(false));
    assert!(peer.name(noon()).is_ok());
    type Row<'a> = (u64, &'a [u64], Result<(), IdentityError>, &'a str);
    let table: [Row<'_>; 4] = [
        (2, &[4, 6], Ok(()), "its neighbours are revoked"),
        (3, &[4, 5, 6], Err(IdentityError::Revoked), "it is"),
        (3, &[], Err(IdentityError::Revoked), "another list of the same number is not newer"),
        (4, &[4, 6], Ok(()), "its issuer took it off the list"),
    ];
    for (number, revoked, expected, why) in table {
        write(number, revoked);
        identity.reload().unwrap();
        for _ in 0..3 {
            assert_eq!(peer.name(noon()).map(|_| ()), expected, "{why}");
        }
    }
    let second = Duration::from_secs(1);
    assert_eq!(peer.name(end - second).map(|_| ()), Ok(()), "the list's last second");
    assert_eq!(peer.name(end).map(|_| ()), Err(IdentityError::NotTrusted), "it has run out");
    assert_eq!(peer.name(noon()).map(|_| ()), Ok(()), "the clock was set back: asked again, not remembered");
}

/// webpki's paths end with the first of their certificates, not with the leaf alone.
#[test]
fn a_name_ends_with_the_certificate_above_it() {
    let corp = Authority::new("corp");
    let end = noon() + Duration::from_secs(90);
    let between = living(CertificateParams::default(), noon() - Duration::from_secs(60), end);
    let between = corp.subordinate_of(&[KeyUsagePurpose::KeyCertSign], between);
    let mut shown = between.issue(&leaf(&[ORDERS], &[]));
    shown.above = vec![between.der()];
    let folder = tempfile::tempdir().unwrap();
    let server = corp.issue(&leaf(&[], &["gatepost.test"]));
    let identity = ServerIdentity::load(&write_server(folder.path(), &server, &corp.pem()), clock()).unwrap();
    let peer = peer_at(&identity, &corp, &shown, &names(false));
    let second = Duration::from_secs(1);
    for (now, expected, why) in [
        (noon(), Ok(()), "all of them live"),
        (end - 31 * second, Ok(()), "still, and verified for no longer than that"),
        (end, Ok(()), "its last second"),
        (end + second, Err(IdentityError::NotTrusted), "the one above has ended"),
    ] {
        assert_eq!(peer.name(now).map(|_| ()), expected, "{why}");
    }
}
