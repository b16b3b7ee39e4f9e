//! The details of a call that was shed, as `tonic_types` would write them, field by field: in an overload there are thousands a
//! second, and what a refusal costs is taken from the answers.

use std::time::Duration;

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::Code;

/// Numbers of fields. Source: google/rpc/status.proto, google/rpc/error_details.proto, google/protobuf/any.proto.
const CODE: u32 = 1;
const MESSAGE: u32 = 2;
const DETAILS: u32 = 3;
const TYPE_URL: u32 = 1;
const VALUE: u32 = 2;
const REASON: u32 = 1;
const DOMAIN: u32 = 2;
const METADATA: u32 = 3;
const KEY: u32 = 1;
const RETRY_DELAY: u32 = 1;
const SECONDS: u32 = 1;
const NANOS: u32 = 2;

/// `google.rpc.Status` with `RetryInfo` and `ErrorInfo`.
pub(super) fn details(code: Code, message: &str, reason: &str, decision_id: &str, after: Duration) -> Bytes {
    let delay = message_of(|out| {
        number(SECONDS, after.as_secs(), out);
        number(NANOS, after.subsec_nanos().into(), out);
    });
    let retry = message_of(|out| text(RETRY_DELAY, &delay, out));
    let entry = message_of(|out| {
        text(KEY, b"decision_id", out);
        text(VALUE, decision_id.as_bytes(), out);
    });
    let info = message_of(|out| {
        text(REASON, reason.as_bytes(), out);
        text(DOMAIN, super::DOMAIN.as_bytes(), out);
        text(METADATA, &entry, out);
    });
    let any = |kind: &str, value: &[u8]| {
        message_of(|out| {
            text(TYPE_URL, kind.as_bytes(), out);
            text(VALUE, value, out);
        })
    };
    let status = message_of(|out| {
        number(CODE, i32::from(code).unsigned_abs().into(), out);
        text(MESSAGE, message.as_bytes(), out);
        text(DETAILS, &any("type.googleapis.com/google.rpc.RetryInfo", &retry), out);
        text(DETAILS, &any("type.googleapis.com/google.rpc.ErrorInfo", &info), out);
    });
    status.into()
}

fn message_of(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(ROOM);
    write(&mut out);
    out
}

/// The whole of one is seldom longer.
const ROOM: usize = 320;

fn number(field: u32, value: u64, out: &mut Vec<u8>) {
    if value > 0 {
        encode_key(field, WireType::Varint, out);
        encode_varint(value, out);
    }
}

fn text(field: u32, value: &[u8], out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use tonic::Status;
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    #[test]
    fn what_is_written_of_a_call_that_was_shed_is_what_the_library_writes() {
        let mut compared = 0;
        for (code, message) in [
            (Code::ResourceExhausted, "too many decisions at once; try again"),
            (Code::Unavailable, "no decision could be recorded"),
        ] {
            for reason in ["OVERLOADED", "CALLER_OVER_SHARE", "AUDIT_UNAVAILABLE"] {
                for after in [0, 1, 50_000_000, 999_999_999, 1_000_000_000, 4_123_456_789].map(Duration::from_nanos) {
                    let id = format!("0192-{compared}");
                    let metadata = [("decision_id".to_owned(), id.clone())];
                    let mut told = ErrorDetails::with_error_info(reason, super::super::DOMAIN, metadata);
                    told.set_retry_info(Some(after));
                    let library = Status::with_error_details(code, message, told);
                    let ours = details(code, message, reason, &id, after);
                    assert_eq!(ours, library.details(), "{reason} {after:?}");
                    compared += 1;
                }
            }
        }
        println!("{compared} compared");
    }
}
