//! A Kafka topic: one partition of it for each spool, so that its records keep their order; acknowledged by every replica in
//! sync (`acks=all`).
//!
//! One batch is under way at a time. What can't be taken at once is halved until it can, or until one record is left that the
//! broker will never have. All else (no leader, no right, no such topic) is tried again until somebody has mended it. Not
//! idempotent: a batch whose answer was lost comes twice, and is told apart by the key, `metadata.uid`.
//!
//! Source: Apache Kafka protocol guide, error codes and the schemas of Metadata and Produce.

use std::borrow::Cow;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ApiKey, MetadataRequest, ProduceRequest};

use self::connection::{Broken, Connection, accepted};
use super::target::{Delivery, Fault, Outgoing, Taken, Target};
use super::tls::{TlsProblem, client};
use crate::config::KafkaTarget;

mod connection;
#[cfg(test)]
mod tests;
mod wire;

/// Every replica in sync.
const ALL: i16 = -1;
/// What a record takes beside its form: its key, its headers, and their lengths.
const AROUND_A_RECORD: usize = 128;

pub(super) struct KafkaSink {
    settings: KafkaTarget,
    timeout: Duration,
    /// Which partition, modulo how many there are.
    share: u32,
    leader: Option<Leader>,
    /// Bytes that a batch had when a broker found it too large, halved.
    most_bytes: usize,
}

/// The broker that has our partition.
struct Leader {
    connection: Connection,
    partition: i32,
}

/// What the leader says to a batch.
enum Answer {
    Stored,
    /// Not all of this at once; a single record never.
    Smaller(i16),
}

impl KafkaSink {
    pub(super) fn new(settings: &KafkaTarget, chain: &str, timeout: Duration) -> Result<Self, TlsProblem> {
        if let Some(tls) = &settings.tls {
            client(tls)?;
        }
        let [a, b, c, d, ..] = *blake3::hash(chain.as_bytes()).as_bytes();
        let share = u32::from_be_bytes([a, b, c, d]);
        Ok(Self { settings: settings.clone(), timeout, share, leader: None, most_bytes: usize::MAX })
    }

    /// Hands over some records. The connection is kept only if it answered: half an answer must not be taken for the next.
    async fn produce(&mut self, records: &[Outgoing]) -> Result<Answer, Broken> {
        let mut leader = match self.leader.take() {
            Some(leader) => leader,
            None => find(&self.settings, self.share).await?,
        };
        let name = &self.settings.topic;
        let data = PartitionProduceData::default()
            .with_index(leader.partition)
            .with_records(Some(wire::batch(records).ok_or(Broken::Unwritable)?));
        let topic = TopicProduceData::default().with_name(wire::topic(name)).with_partition_data(vec![data]);
        let question = ProduceRequest::default()
            .with_acks(ALL)
            .with_timeout_ms(i32::try_from(self.timeout.as_millis()).unwrap_or(i32::MAX))
            .with_topic_data(vec![topic]);
        let version = leader.connection.produce_version;
        let answer = leader.connection.ask(ApiKey::Produce, version, &question).await?;
        let error = wire::produced(answer, version, name, leader.partition)?;
        match ResponseError::try_from_code(error) {
            None => {
                self.leader = Some(leader);
                Ok(Answer::Stored)
            }
            Some(
                ResponseError::MessageTooLarge
                | ResponseError::RecordListTooLarge
                | ResponseError::InvalidRecord
                | ResponseError::InvalidTimestamp,
            ) => {
                self.leader = Some(leader);
                Ok(Answer::Smaller(error))
            }
            // Whoever leads now, or may take this now, is asked for afresh.
            Some(_) => Err(Broken::Refused(error)),
        }
    }

    /// The same, in time; and at once over a new connection when the old one turns out to be dead.
    async fn produce_in_time(&mut self, records: &[Outgoing]) -> Result<Answer, String> {
        let limit = self.timeout;
        let attempt = async {
            let reused = self.leader.is_some();
            match self.produce(records).await {
                Err(Broken::Io(_)) if reused => self.produce(records).await,
                answered => answered,
            }
        };
        match tokio::time::timeout(limit, attempt).await {
            Ok(answered) => answered.map_err(|broken| broken.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    /// How many of these fit into what a broker takes at once; one at least.
    fn fitting(&self, records: &[Outgoing]) -> usize {
        let mut bytes = 0_usize;
        let fits = |record: &&Outgoing| {
            bytes = bytes.saturating_add(record.encoded.len() + AROUND_A_RECORD);
            bytes <= self.most_bytes
        };
        records.iter().take_while(fits).count().max(1)
    }
}

impl Target for KafkaSink {
    fn deliver<'a>(&'a mut self, batch: &'a [Outgoing]) -> Delivery<'a> {
        Box::pin(async move {
            let (mut taken, mut refused, mut size) = (0, Vec::new(), batch.len());
            while let Some(rest) = batch.get(taken..).filter(|rest| !rest.is_empty()) {
                let part = rest.get(..self.fitting(rest).min(size.max(1))).unwrap_or(rest);
                match self.produce_in_time(part).await {
                    Ok(Answer::Stored) => {}
                    Ok(Answer::Smaller(error)) if part.len() > 1 => {
                        if too_large(error) {
                            let bytes: usize = part.iter().map(|record| record.encoded.len() + AROUND_A_RECORD).sum();
                            self.most_bytes = bytes / 2;
                        }
                        size = part.len() / 2;
                        continue;
                    }
                    Ok(Answer::Smaller(error)) => {
                        refused.push((taken, format!("the broker answers {}", name_of(error))));
                    }
                    Err(message) => return Err(Fault { taken, refused, ..Fault::new(&message) }),
                }
                taken += part.len();
                size = part.len().saturating_mul(2);
            }
            Ok(Taken { refused })
        })
    }

    /// Each request has its time; what earlier ones of a batch achieved must not be forgotten with a later one.
    fn patient(&self) -> bool {
        true
    }
}

/// Asks the brokers of the configuration, one after the other, who leads our partition, and connects to that one.
async fn find(settings: &KafkaTarget, share: u32) -> Result<Leader, Broken> {
    let mut why = Broken::Leaderless;
    for (host, port) in &settings.brokers {
        match find_through(settings, share, host, *port).await {
            Ok(leader) => return Ok(leader),
            Err(broken) => why = broken,
        }
    }
    Err(why)
}

async fn find_through(settings: &KafkaTarget, share: u32, host: &str, port: u16) -> Result<Leader, Broken> {
    let name = &settings.topic;
    let mut connection = Connection::open(settings, host, port).await?;
    let topic = MetadataRequestTopic::default().with_name(Some(wire::topic(name)));
    let question = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(false);
    let metadata = wire::metadata(connection.ask(ApiKey::Metadata, 4, &question).await?, name)?;
    accepted(metadata.error)?;
    let count = u32::try_from(metadata.partitions.len()).ok().filter(|count| *count > 0);
    let partition = i32::try_from(share % count.ok_or(Broken::Leaderless)?).unwrap_or_default();
    let ours = metadata.partitions.iter().find(|(index, ..)| *index == partition);
    let (_, error, leader) = *ours.ok_or(Broken::Leaderless)?;
    accepted(error)?;
    let broker = metadata.brokers.into_iter().find(|(id, ..)| *id == leader).ok_or(Broken::Leaderless)?;
    let at = u16::try_from(broker.2).map_err(|_| Broken::Leaderless)?;
    if (broker.1.as_str(), at) != (host, port) {
        connection = Connection::open(settings, &broker.1, at).await?;
    }
    Ok(Leader { connection, partition })
}

fn too_large(error: i16) -> bool {
    matches!(
        ResponseError::try_from_code(error),
        Some(ResponseError::MessageTooLarge | ResponseError::RecordListTooLarge)
    )
}

/// What an error is called: never the broker's own words, which may say anything.
fn name_of(error: i16) -> Cow<'static, str> {
    match ResponseError::try_from_code(error) {
        Some(ResponseError::Unknown(code)) => format!("error {code}").into(),
        Some(known) => format!("{known:?}").into(),
        None => "no error".into(),
    }
}
