//! What a broker says is taken apart, or refused; whatever lengths it claims.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::wire::{Fields, Malformed, Metadata, metadata, produce_versions, produced, sasl_handshake};

fn fields(answer: &[u8]) -> Result<Fields, Malformed> {
    let mut bytes = 7_i32.to_be_bytes().to_vec();
    bytes.extend_from_slice(answer);
    Fields::of(Bytes::from(bytes), 7)
}

fn put_text(to: &mut BytesMut, text: &str) {
    to.put_i16(i16::try_from(text.len()).unwrap());
    to.put_slice(text.as_bytes());
}

fn a_metadata() -> Vec<u8> {
    let mut bytes = BytesMut::new();
    bytes.put_i32(0);
    bytes.put_i32(1);
    bytes.put_i32(111);
    put_text(&mut bytes, "kafka-0");
    bytes.put_i32(9093);
    bytes.put_i16(-1);
    bytes.put_i16(-1);
    bytes.put_i32(111);
    bytes.put_i32(1);
    bytes.put_i16(0);
    put_text(&mut bytes, "audit");
    bytes.put_u8(0);
    bytes.put_i32(1);
    bytes.put_i16(0);
    bytes.put_i32(0);
    bytes.put_i32(111);
    for _ in 0..2 {
        bytes.put_i32(1);
        bytes.put_i32(111);
    }
    bytes.to_vec()
}

fn a_produced(version: i16) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    bytes.put_i32(1);
    put_text(&mut bytes, "audit");
    bytes.put_i32(1);
    bytes.put_i32(2);
    bytes.put_i16(10);
    bytes.put_i64(0);
    bytes.put_i64(-1);
    if version >= 5 {
        bytes.put_i64(0);
    }
    bytes.put_i32(0);
    bytes.to_vec()
}

#[test]
fn answers_are_read_as_the_protocol_guide_lays_them_out() {
    let expected =
        Metadata { brokers: vec![(111, "kafka-0".to_owned(), 9093)], error: 0, partitions: vec![(0, 0, 111)] };
    assert_eq!(metadata(fields(&a_metadata()).unwrap(), "audit"), Ok(expected));
    assert_eq!(metadata(fields(&a_metadata()).unwrap(), "other"), Err(Malformed), "not the topic that was asked about");
    for version in 3..=7 {
        let answer = || fields(&a_produced(version)).unwrap();
        assert_eq!(produced(answer(), version, "audit", 2), Ok(10));
        assert_eq!(produced(answer(), version, "audit", 1), Err(Malformed), "another partition");
        assert_eq!(produced(answer(), version, "other", 2), Err(Malformed), "another topic");
    }
    assert!(Fields::of(Bytes::from_static(&[0, 0, 0, 8]), 7).is_err(), "the answer to something else");
}

/// Every prefix, and every place of every answer with a length that is as large as can be, or negative.
#[test]
fn no_length_on_the_wire_is_believed() {
    let answers = [a_metadata(), a_produced(3), a_produced(7)];
    let mut tried = 0;
    let mut read_all = |bytes: &[u8]| {
        tried += 1;
        let read = || fields(bytes).unwrap();
        let _ = (metadata(read(), "audit"), produced(read(), 7, "audit", 2), produced(read(), 3, "audit", 2));
        let _ = (produce_versions(read()), sasl_handshake(read()));
    };
    for answer in &answers {
        for end in 0..answer.len() {
            read_all(&answer[..end]);
        }
        for at in 0..answer.len() {
            for length in [[0x7f, 0xff, 0xff, 0xff], [0xff; 4], [0x80, 0, 0, 0], [0; 4], [0, 0, 0xff, 0xff]] {
                let mut bent = answer.clone();
                for (byte, new) in bent.iter_mut().skip(at).zip(length) {
                    *byte = new;
                }
                read_all(&bent);
            }
        }
    }
    let claims = [0, 0, 0x7f, 0xff, 0xff, 0xff];
    assert_eq!(produce_versions(fields(&claims).unwrap()), Err(Malformed));
    assert!(tried > 1000, "{tried} answers");
}
