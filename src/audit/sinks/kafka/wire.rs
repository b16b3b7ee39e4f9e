//! Kafka's wire, as far as a producer needs it: what is asked is put together by `kafka-protocol`, what is answered is read
//! here. That library makes room for as many items as a length claims, four thousand million if need be; this reader takes a
//! length only if there are bytes for it.
//!
//! All versions are from before tagged fields (KIP-482): ApiVersions 0, Metadata 4, SaslHandshake 1, SaslAuthenticate 0,
//! Produce 3 to 7.
//!
//! Source: Apache Kafka protocol guide, "Protocol Primitive Types" and the schemas of these messages.

use bytes::{Buf as _, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, TopicName};
use kafka_protocol::protocol::{Encodable, HeaderVersion, StrBytes};
use kafka_protocol::records::{
    Compression, NO_PARTITION_LEADER_EPOCH, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, Record, RecordBatchEncoder,
    RecordEncodeOptions, TimestampType,
};

use crate::audit::encode::kind;
use crate::audit::sinks::target::Outgoing;

/// What we call ourselves.
const CLIENT: &str = "gatepost";

/// What came is not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker's answer can't be read")]
pub(super) struct Malformed;

/// A whole request, its length before it.
pub(super) fn request<R: Encodable + HeaderVersion>(
    key: ApiKey,
    correlation: i32,
    version: i16,
    body: &R,
) -> Option<Bytes> {
    let header = RequestHeader::default()
        .with_request_api_key(key as i16)
        .with_request_api_version(version)
        .with_correlation_id(correlation)
        .with_client_id(Some(StrBytes::from_static_str(CLIENT)));
    let mut message = BytesMut::new();
    header.encode(&mut message, R::header_version(version)).ok()?;
    body.encode(&mut message, version).ok()?;
    let length = i32::try_from(message.len()).ok()?;
    let mut frame = BytesMut::with_capacity(message.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&message);
    Some(frame.freeze())
}

/// The name of a topic.
pub(super) fn topic(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// A record batch, version 2: the id of each record is its key, `kind` and `sequence` are headers.
pub(super) fn batch(records: &[Outgoing]) -> Option<Bytes> {
    let records: Vec<Record> = (0..).zip(records).map(|(at, record)| message(at, record)).collect();
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut bytes, records.iter(), &options).ok()?;
    Some(bytes.freeze())
}

fn message(at: i32, record: &Outgoing) -> Record {
    let header = |name, value: String| (StrBytes::from_static_str(name), Some(Bytes::from(value)));
    let headers = [header("kind", kind(&record.record).to_owned()), header("sequence", record.sequence.to_string())];
    Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
        producer_id: NO_PRODUCER_ID,
        producer_epoch: NO_PRODUCER_EPOCH,
        timestamp_type: TimestampType::Creation,
        offset: i64::from(at),
        // Counted from "none", which is -1: that is what the batch as a whole says then.
        sequence: at - 1,
        timestamp: record.time_ms,
        key: Some(Bytes::from(record.uid.clone())),
        value: Some(Bytes::from(record.encoded.clone())),
        headers: headers.into_iter().collect(),
    }
}

/// Reads an answer from its beginning on.
pub(super) struct Fields(Bytes);

impl Fields {
    /// After the correlation id, which must be this one.
    pub(super) fn of(answer: Bytes, correlation: i32) -> Result<Self, Malformed> {
        let mut fields = Self(answer);
        if fields.int32()? == correlation { Ok(fields) } else { Err(Malformed) }
    }

    pub(super) fn boolean(&mut self) -> Result<bool, Malformed> {
        self.0.try_get_u8().map(|byte| byte != 0).map_err(|_| Malformed)
    }

    pub(super) fn int16(&mut self) -> Result<i16, Malformed> {
        self.0.try_get_i16().map_err(|_| Malformed)
    }

    pub(super) fn int32(&mut self) -> Result<i32, Malformed> {
        self.0.try_get_i32().map_err(|_| Malformed)
    }

    pub(super) fn int64(&mut self) -> Result<i64, Malformed> {
        self.0.try_get_i64().map_err(|_| Malformed)
    }

    /// `None` for the length -1.
    pub(super) fn string(&mut self) -> Result<Option<String>, Malformed> {
        let length = self.int16()?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).ok().filter(|length| *length <= self.0.len()).ok_or(Malformed)?;
        String::from_utf8(self.0.split_to(length).to_vec()).map(Some).map_err(|_| Malformed)
    }

    /// An item is a byte at least, so there can't be more of them than bytes. Room is made as they come.
    pub(super) fn array<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let length = usize::try_from(self.int32()?).ok().filter(|length| *length <= self.0.len()).ok_or(Malformed)?;
        let mut items = Vec::new();
        for _ in 0..length {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// There must be nothing more.
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// The versions of Produce that the broker speaks, the lowest and the highest.
pub(super) fn produce_versions(mut fields: Fields) -> Result<Option<(i16, i16)>, Malformed> {
    if fields.int16()? != 0 {
        return Err(Malformed);
    }
    let ranges = fields.array(|item| Ok((item.int16()?, item.int16()?, item.int16()?)))?;
    fields.end()?;
    Ok(ranges.into_iter().find(|(key, ..)| *key == 0).map(|(_, lowest, highest)| (lowest, highest)))
}

/// Where a topic is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Id, host and port.
    pub(super) brokers: Vec<(i32, String, i32)>,
    /// The topic's error.
    pub(super) error: i16,
    /// Index, error and leader of each partition.
    pub(super) partitions: Vec<(i32, i16, i32)>,
}

/// Metadata 4 about one topic.
pub(super) fn metadata(mut fields: Fields, topic: &str) -> Result<Metadata, Malformed> {
    let _throttled = fields.int32()?;
    let brokers = fields.array(|item| {
        let (id, host, port) = (item.int32()?, item.string()?.ok_or(Malformed)?, item.int32()?);
        let _rack = item.string()?;
        Ok((id, host, port))
    })?;
    let _cluster = fields.string()?;
    let _controller = fields.int32()?;
    let topics = fields.array(|item| {
        let (error, name, _internal) = (item.int16()?, item.string()?, item.boolean()?);
        let partitions = item.array(|item| {
            let (error, index, leader) = (item.int16()?, item.int32()?, item.int32()?);
            let _replicas = item.array(Fields::int32)?;
            let _in_sync = item.array(Fields::int32)?;
            Ok((index, error, leader))
        })?;
        Ok((name, error, partitions))
    })?;
    fields.end()?;
    let ours = topics.into_iter().find(|(name, ..)| name.as_deref() == Some(topic)).ok_or(Malformed)?;
    Ok(Metadata { brokers, error: ours.1, partitions: ours.2 })
}

/// Produce 3 to 7: the error of our partition, which alone was asked about.
pub(super) fn produced(mut fields: Fields, version: i16, topic: &str, partition: i32) -> Result<i16, Malformed> {
    let topics = fields.array(|item| {
        let name = item.string()?;
        let partitions = item.array(|item| {
            let (index, error) = (item.int32()?, item.int16()?);
            let _offset = item.int64()?;
            let _time = item.int64()?;
            if version >= 5 {
                let _log_start = item.int64()?;
            }
            Ok((index, error))
        })?;
        Ok((name, partitions))
    })?;
    let _throttled = fields.int32()?;
    fields.end()?;
    match topics.as_slice() {
        [(Some(name), partitions)] if name == topic => match partitions.as_slice() {
            [(index, error)] if *index == partition => Ok(*error),
            _ => Err(Malformed),
        },
        _ => Err(Malformed),
    }
}

/// SaslHandshake 1: its error.
pub(super) fn sasl_handshake(mut fields: Fields) -> Result<i16, Malformed> {
    let error = fields.int16()?;
    let _mechanisms = fields.array(Fields::string)?;
    fields.end()?;
    Ok(error)
}

/// SaslAuthenticate 0: its error. The words may quote what was sent, so nobody reads them.
pub(super) fn sasl_authenticate(mut fields: Fields) -> Result<i16, Malformed> {
    fields.int16()
}
