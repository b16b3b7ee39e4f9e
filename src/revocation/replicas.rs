//! Revocations shared between replicas, through Redis or Valkey.
//!
//! There the list is a sorted set, `<prefix>:list`: its members are the lines of [`entry`](super::entry), its scores
//! their ends. Beside it a stream, `<prefix>:news`, has the lines in the order in which they came. Both change in one
//! transaction. A replica reads the whole set when it connects, and from then on ten times a second what is new in the
//! stream and how many members the set has. If that is another number than it should be (the store was emptied,
//! somebody wrote by hand, news were cut off) the whole set is read again. Whatever is in force here and not there is
//! sent, whenever it came to be so. So the store may lose everything, at any time, and nothing is un-revoked.
//!
//! Asked and not waited for (`XREAD BLOCK`): one connection does for reading and writing, and a store that does not
//! answer is noticed at the next look and not after a wait that can't be told from quiet.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;
use redis::{RedisError, Value};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::entry::Revocation;
use super::list::{Joined, Revocations};
use super::{Source, Touch};
use crate::config::RedisConfig;

mod connect;

use connect::{Connected, connect};

/// Time between two looks. An entry is in force everywhere after one of them, and two ways to the store.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After a failure we wait so long, twice as long after each further one, and at most so long; less up to half of it
/// by chance, so that replicas don't come back in step.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// The set is read whole again at most so often while its size stays a riddle; twice as seldom each time, up to the
/// second.
const WHOLE_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// What is over is taken out of the store so often.
const PURGE_EVERY: Duration = Duration::from_secs(600);
/// How long the start waits for the store.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// Members asked for, news read, and entries sent at once.
const BATCH: usize = 500;
/// News kept. Who misses some reads the set.
const NEWS: usize = 10_000;
/// The only field of a piece of news.
const FIELD: &str = "line";

/// Why the store is out of touch. Never has an entry or a password in it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection.
    #[error("no connection to `{host}:{port}`")]
    Connect {
        /// Where.
        host: String,
        /// Which port.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that is needed for it can't be used.
    #[error("`{key}` can't be used: check the file it names")]
    File {
        /// The key of the configuration.
        key: &'static str,
    },
    /// The store refused, or broke off.
    #[error("the store failed: {category} {code}")]
    Store {
        /// The library's word for it.
        category: String,
        /// The server's word, `NOAUTH` for one.
        code: String,
    },
    /// It has more members than we would ever take.
    #[error("the store has more than {limit} members: take out what is none of ours, or raise `limits.revocations`")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        // A server's message could say anything; its code is a word.
        let word = |text: &str| text.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        let category = error.category().chars().filter(|c| !c.is_control()).take(64).collect();
        Self::Store { category, code: error.code().map(word).unwrap_or_default() }
    }
}

/// The store, joined with the list.
#[derive(Debug)]
pub struct Replicas {
    list: Arc<Revocations>,
    settings: RedisConfig,
    touch: Touch,
    /// Whether the first look has ended, well or badly.
    looked: watch::Sender<bool>,
}

/// What the store is known to hold.
#[derive(Debug, Default)]
struct Theirs {
    said: Joined,
    /// Every member by its hash, those that are no entries included: their number is how many there should be.
    members: HashSet<[u8; 32]>,
    /// The last news read.
    last: String,
}

/// Connects to the store, logs in, and asks whether it is there. Changes nothing.
///
/// # Errors
/// [`StoreError`]
pub async fn examine(settings: &RedisConfig) -> Result<(), StoreError> {
    let mut connected = connect(settings).await?;
    let _: Value = redis::cmd("PING").query_async(&mut connected.connection).await?;
    Ok(())
}

impl Replicas {
    /// Reaches nobody yet.
    #[must_use]
    pub fn new(settings: RedisConfig, list: &Arc<Revocations>) -> Arc<Self> {
        let touch = Touch::new(Arc::clone(list.clock()));
        Arc::new(Self { list: Arc::clone(list), settings, touch, looked: watch::Sender::new(false) })
    }

    /// How long the store has been out of touch; nothing while all is well.
    #[must_use]
    pub fn staleness(&self) -> Duration {
        self.touch.staleness()
    }

    /// Returns once the first look has ended: then what the store knows is in force, or it is out of reach. Whoever serves
    /// before would allow for a moment what is revoked. Waits for [`FIRST_LOOK`] at most.
    pub async fn first_look(&self) {
        let mut looked = self.looked.subscribe();
        // Past that time, or if nobody looks, we go on without: that can be seen by the staleness.
        let _ = tokio::time::timeout(FIRST_LOOK, looked.wait_for(|looked| *looked)).await;
    }

    /// Joins store and list until `cancel`, whatever happens to the store. Must be called inside a runtime.
    pub fn spawn(self: &Arc<Self>, cancel: CancellationToken) {
        let replicas = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let (one, end) = (Arc::clone(&replicas), cancel.clone());
                let talking = tokio::spawn(async move { end.run_until_cancelled(one.keep_in_touch()).await });
                let Err(error) = talking.await else { return };
                // A fault of ours, or of the library, over what the store said: told, and no reason to stop listening.
                replicas.touch.lost();
                replicas.looked.send_replace(true);
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "talking to the store of revocations broke off; it begins anew"
                );
                if cancel.run_until_cancelled(tokio::time::sleep(BACK_OFF.1)).await.is_none() {
                    return;
                }
            }
        });
    }

    async fn keep_in_touch(&self) {
        let (mut failures, mut theirs, mut complained) = (0_u32, Theirs::default(), false);
        loop {
            let error = match connect(&self.settings).await {
                Ok(connected) => self.converse(connected, &mut theirs, &mut failures, &mut complained).await,
                Err(error) => error,
            };
            self.looked.send_replace(true);
            if self.touch.lost() || !complained {
                complained = true;
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "out of touch with the store of revocations; what was revoked stays so, and the local list goes on"
                );
            }
            tokio::time::sleep(back_off(failures)).await;
            failures = failures.saturating_add(1);
        }
    }

    /// Until something fails.
    async fn converse(
        &self,
        connected: Connected,
        theirs: &mut Theirs,
        failures: &mut u32,
        complained: &mut bool,
    ) -> StoreError {
        let mut version = self.list.version();
        let clock = self.list.clock();
        let mut store = Store { connected, prefix: &self.settings.prefix };
        let (mut riddle, mut whole_at) = (WHOLE_EVERY.0, Duration::ZERO);
        let mut purge_at = clock.monotonic() + PURGE_EVERY;
        // What we knew of the store before is worth nothing: it may be another, or empty.
        let mut fits = false;
        loop {
            let turn = async {
                let now = clock.monotonic();
                if !fits && now >= whole_at {
                    self.read_whole(&mut store, theirs).await?;
                    whole_at = now + riddle;
                    riddle = (riddle * 2).min(WHOLE_EVERY.1);
                    version.mark_changed();
                }
                fits = self.read_news(&mut store, theirs).await?;
                if fits {
                    riddle = WHOLE_EVERY.0;
                }
                if version.has_changed().unwrap_or(false) {
                    version.mark_unchanged();
                    self.send_missing(&mut store, theirs).await?;
                }
                if now >= purge_at {
                    purge_at = now + PURGE_EVERY;
                    store.purge(self.list.now()).await?;
                }
                Ok::<(), StoreError>(())
            };
            if let Err(error) = turn.await {
                return error;
            }
            *failures = 0;
            *complained = false;
            self.looked.send_replace(true);
            if self.touch.reached() {
                tracing::info!(entries = self.list.len(), "in touch with the store of revocations");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = version.changed() => version.mark_changed(),
            }
        }
    }

    /// The whole set, a page at a time.
    async fn read_whole(&self, store: &mut Store<'_>, theirs: &mut Theirs) -> Result<(), StoreError> {
        // Where the news were before the first page: what comes while we read is read again.
        let last = store.last_news().await?;
        let mut fresh = Theirs { last, ..Theirs::default() };
        let mut cursor = 0;
        loop {
            let (next, lines) = store.page(cursor).await?;
            self.take(lines, &mut fresh, &theirs.members);
            self.bounded(&fresh)?;
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        *theirs = fresh;
        Ok(())
    }

    /// What is new. Whether we know every member there is.
    async fn read_news(&self, store: &mut Store<'_>, theirs: &mut Theirs) -> Result<bool, StoreError> {
        loop {
            let (news, members) = store.news(&theirs.last).await?;
            let full = news.len() >= BATCH;
            let mut lines = Vec::with_capacity(news.len());
            for (id, line) in news {
                theirs.last = id;
                lines.extend(line);
            }
            self.take(lines, theirs, &HashSet::new());
            // Without it a store that always has more would be listened to for ever, and all of it kept.
            self.bounded(theirs)?;
            if !full {
                return Ok(members == theirs.members.len());
            }
        }
    }

    /// Whether the store holds no more than we would ever take.
    fn bounded(&self, theirs: &Theirs) -> Result<(), StoreError> {
        let limit = self.list.limit().saturating_mul(2).saturating_add(BATCH);
        if theirs.members.len() > limit { Err(StoreError::TooMany { limit }) } else { Ok(()) }
    }

    /// Takes lines one by one; those that are no entries are counted, once each.
    fn take(&self, lines: Vec<Vec<u8>>, theirs: &mut Theirs, known: &HashSet<[u8; 32]>) {
        let now = self.list.now();
        let (mut entries, mut malformed) = (Vec::new(), 0);
        for line in lines {
            let member = *blake3::hash(&line).as_bytes();
            if !theirs.members.insert(member) {
                continue;
            }
            match Revocation::read(&line, now) {
                Ok(one) => {
                    theirs.said.join(&one);
                    entries.push(one);
                }
                Err(flaw) if !known.contains(&member) => {
                    malformed += 1;
                    if malformed == 1 {
                        tracing::error!("an entry of the store of revocations revokes nothing: it {flaw}");
                    }
                }
                Err(_) => {}
            }
        }
        self.list.take(Source::Redis, &entries);
        if malformed > 0 {
            self.list.tell_malformed(Source::Redis, malformed);
        }
    }

    /// Sends what is in force here and not there.
    async fn send_missing(&self, store: &mut Store<'_>, theirs: &mut Theirs) -> Result<(), StoreError> {
        for batch in self.list.beyond(&theirs.said).chunks(BATCH) {
            let mut lines = Vec::with_capacity(batch.len());
            for one in batch {
                let Ok(line) = one.line() else { continue };
                lines.push((one.until, line));
            }
            store.add(&lines).await?;
            for (one, (_, line)) in batch.iter().zip(&lines) {
                theirs.said.join(one);
                theirs.members.insert(*blake3::hash(line.as_bytes()).as_bytes());
            }
        }
        Ok(())
    }
}

fn back_off(failures: u32) -> Duration {
    let longest = BACK_OFF.0.saturating_mul(2_u32.saturating_pow(failures.min(8))).min(BACK_OFF.1);
    let mut chance = [0];
    // Without chance we wait the longest.
    let _ = aws_lc_rs::rand::fill(&mut chance);
    longest - longest.mul_f64(f64::from(chance[0]) / 512.0)
}

/// The few things that are asked of the store.
struct Store<'a> {
    connected: Connected,
    prefix: &'a str,
}

impl Store<'_> {
    fn list(&self) -> String {
        format!("{}:list", self.prefix)
    }

    fn stream(&self) -> String {
        format!("{}:news", self.prefix)
    }

    /// The id of the newest piece of news; the beginning when there is none.
    async fn last_news(&mut self) -> Result<String, StoreError> {
        let mut ask = redis::cmd("XREVRANGE");
        ask.arg(self.stream()).arg("+").arg("-").arg("COUNT").arg(1);
        let newest: redis::streams::StreamRangeReply = ask.query_async(self.within_bounds()).await?;
        Ok(newest.ids.into_iter().next().map_or_else(|| "0-0".to_owned(), |newest| newest.id))
    }

    /// A page of the set, and where the next one begins; 0 when there is none.
    async fn page(&mut self, cursor: u64) -> Result<(u64, Vec<Vec<u8>>), StoreError> {
        let mut ask = redis::cmd("ZSCAN");
        ask.arg(self.list()).arg(cursor).arg("COUNT").arg(BATCH);
        let (next, flat): (u64, Vec<Vec<u8>>) = ask.query_async(self.within_bounds()).await?;
        // Members and scores by turns. The score is the store's business: what counts is what the line says.
        Ok((next, flat.into_iter().step_by(2).collect()))
    }

    /// News after `last`, each with its line if it has one, and how many members the set has at that moment.
    async fn news(&mut self, last: &str) -> Result<(Vec<(String, Option<Vec<u8>>)>, usize), StoreError> {
        let mut ask = redis::pipe();
        ask.atomic()
            .cmd("XREAD")
            .arg("COUNT")
            .arg(BATCH)
            .arg("STREAMS")
            .arg(self.stream())
            .arg(last)
            .cmd("ZCARD")
            .arg(self.list());
        let (news, members): (Option<StreamReadReply>, usize) = ask.query_async(self.within_bounds()).await?;
        let news = news.into_iter().flat_map(|news| news.keys).flat_map(|key| key.ids);
        let news = news.map(|mut one| {
            let line = match one.map.remove(FIELD) {
                Some(Value::BulkString(line)) => Some(line),
                Some(_) | None => None,
            };
            (one.id, line)
        });
        Ok((news.collect(), members))
    }

    /// Adds lines to the set and to the news, all or none.
    async fn add(&mut self, lines: &[(u64, String)]) -> Result<(), StoreError> {
        let mut ask = redis::pipe();
        ask.atomic();
        for (until, line) in lines {
            ask.cmd("ZADD").arg(self.list()).arg(*until).arg(line).ignore();
            ask.cmd("XADD").arg(self.stream()).arg("MAXLEN").arg("~").arg(NEWS).arg("*").arg(FIELD).arg(line).ignore();
        }
        Ok(ask.query_async(self.within_bounds()).await?)
    }

    /// Takes out what is over.
    async fn purge(&mut self, now: u64) -> Result<(), StoreError> {
        // A day late: clocks differ, and whoever still needs an entry would send it again.
        let mut ask = redis::cmd("ZREMRANGEBYSCORE");
        ask.arg(self.list()).arg("-inf").arg(now.saturating_sub(24 * 3600));
        Ok(ask.query_async(self.within_bounds()).await?)
    }

    fn within_bounds(&mut self) -> &mut MultiplexedConnection {
        self.connected.allow_an_answer();
        &mut self.connected.connection
    }
}

#[cfg(test)]
mod tests;
