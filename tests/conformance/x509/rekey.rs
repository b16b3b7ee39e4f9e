//! The corpora keep no private keys, so nobody can shake hands with their certificates. Here every certificate of a chain
//! gets a key of our own and is signed anew; all else in it stays as it was, byte for byte.

use std::collections::HashMap;

use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use x509_parser::asn1_rs::{Any, FromDer as _};

/// ecdsa-with-SHA256 (RFC 5758 section 3.2).
const ECDSA_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// A key for every subject, made when it is first asked for.
#[derive(Default)]
pub(super) struct Keys(HashMap<Vec<u8>, KeyPair>);

impl Keys {
    pub(super) fn of(&mut self, subject: &[u8]) -> &KeyPair {
        self.0.entry(subject.to_vec()).or_insert_with(|| KeyPair::generate().unwrap())
    }

    /// The certificate with its subject's key in it, signed with its issuer's.
    pub(super) fn certificate(&mut self, der: &[u8]) -> Vec<u8> {
        let mut parts = parts_of_signed(der);
        let at = parts.iter().position(|part| part[0] != 0xa0).unwrap();
        // serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo (RFC 5280 section 4.1).
        parts[at + 1] = ECDSA_SHA256.to_vec();
        let (issuer, subject) = (parts[at + 2].clone(), parts[at + 4].clone());
        parts[at + 5] = self.of(&subject).subject_public_key_info();
        signed(&parts, self.of(&issuer))
    }

    /// The list, signed with its issuer's key.
    pub(super) fn list(&mut self, der: &[u8]) -> Vec<u8> {
        let mut parts = parts_of_signed(der);
        // version, signature, issuer (RFC 5280 section 5.1).
        parts[1] = ECDSA_SHA256.to_vec();
        let issuer = parts[2].clone();
        signed(&parts, self.of(&issuer))
    }
}

/// The subject of a certificate, as DER.
pub(super) fn subject(der: &[u8]) -> Vec<u8> {
    let parts = parts_of_signed(der);
    let at = parts.iter().position(|part| part[0] != 0xa0).unwrap();
    parts[at + 4].clone()
}

/// What is signed, part by part.
fn parts_of_signed(der: &[u8]) -> Vec<Vec<u8>> {
    let (_, whole) = Any::from_der(der).unwrap();
    let (_, signed) = Any::from_der(whole.data).unwrap();
    let (mut rest, mut parts) = (signed.data, Vec::new());
    while !rest.is_empty() {
        let (after, _) = Any::from_der(rest).unwrap();
        parts.push(rest[..rest.len() - after.len()].to_vec());
        rest = after;
    }
    parts
}

fn signed(parts: &[Vec<u8>], key: &KeyPair) -> Vec<u8> {
    let body = tagged(0x30, &parts.concat());
    let signature = [&[0], key.sign(&body).unwrap().as_slice()].concat();
    tagged(0x30, &[body, ECDSA_SHA256.to_vec(), tagged(0x03, &signature)].concat())
}

/// Tag, length, value.
fn tagged(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len();
    let head = match length {
        0..0x80 => vec![tag, u8::try_from(length).unwrap()],
        0x80..0x100 => vec![tag, 0x81, u8::try_from(length).unwrap()],
        _ => [&[tag, 0x82][..], &u16::try_from(length).unwrap().to_be_bytes()].concat(),
    };
    [head.as_slice(), value].concat()
}
