//! The load: closed loops of calls over a few connections, every answer looked at, latencies and the server's CPU.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gatepost::clock::SharedClock;
use gatepost::proto::v1;
use gatepost::proto::v1::decision_service_client::DecisionServiceClient;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::Channel;

use super::connection::channel;
use super::disk::percentile_us;
use super::fixture::Fixture;
use super::questions::{BATCH, Topic};
use super::server::{ServerProcess, cpu_time};
use super::{Failure, cerbos};

/// Questions under way on one stream.
const WINDOW: usize = 64;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Questions {
    /// One question, always the same.
    Same,
    /// One question, about another object each time.
    Fresh,
    /// 100 questions, always the same ones.
    SameBatch,
    /// 100 questions, about other objects each time.
    FreshBatch,
    /// One question over a stream, always the same; as many streams as connections.
    SameStream,
    /// One question to Cerbos, always the same.
    Cerbos,
}

impl Questions {
    fn per_call(self) -> u64 {
        match self {
            Self::Same | Self::Fresh | Self::SameStream | Self::Cerbos => 1,
            Self::SameBatch | Self::FreshBatch => BATCH,
        }
    }
}

/// Connections to one server, and what to ask over them.
pub struct Load {
    lines: Vec<Line>,
    questions: Questions,
    topic: Topic,
    token: String,
    in_flight: usize,
    server: u32,
    /// Objects asked about so far. Shared by all calls, so that no object comes twice.
    objects: Arc<AtomicU64>,
}

/// A connection, and who may be at its other end.
#[derive(Clone)]
struct Line {
    gatepost: DecisionServiceClient<Channel>,
    cerbos: Grpc<Channel>,
}

impl Line {
    fn new(channel: Channel) -> Self {
        Self { gatepost: DecisionServiceClient::new(channel.clone()), cerbos: Grpc::new(channel) }
    }
}

/// One measurement, or the medians of several.
#[derive(Clone, Copy)]
pub struct Measured {
    pub calls_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    cpu_us_per_call: f64,
    pub per_call: u64,
}

impl Measured {
    pub fn decisions_per_second(&self) -> f64 {
        self.calls_per_second * self.per_call as f64
    }

    /// CPU of the server, per decision.
    pub fn cpu_us(&self) -> f64 {
        self.cpu_us_per_call / self.per_call as f64
    }

    /// The median of each figure by itself.
    pub fn median(rounds: &[Self]) -> Self {
        let median = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
        };
        Self {
            calls_per_second: median(|round| round.calls_per_second),
            p50_us: median(|round| round.p50_us),
            p99_us: median(|round| round.p99_us),
            cpu_us_per_call: median(|round| round.cpu_us_per_call),
            per_call: rounds.first().map_or(1, |round| round.per_call),
        }
    }
}

impl Load {
    pub async fn connect(
        fixture: &Fixture,
        server: &ServerProcess,
        questions: Questions,
        connections: usize,
        in_flight: usize,
    ) -> Result<Self, Failure> {
        let mut lines = Vec::new();
        for _ in 0..connections.max(1) {
            lines.push(Line::new(channel(fixture, server.port()).await?));
        }
        // Each load has objects of its own.
        static STARTS: AtomicU64 = AtomicU64::new(1);
        let objects = Arc::new(AtomicU64::new(STARTS.fetch_add(1, Ordering::Relaxed) << 40));
        let (topic, token) = (fixture.topic(), fixture.token().to_owned());
        Ok(Self { lines, questions, topic, token, in_flight: in_flight.max(1), server: server.id(), objects })
    }

    /// Asks for `duration`, as fast as answers come.
    pub async fn run(&self, clock: &SharedClock, duration: Duration) -> Result<Measured, Failure> {
        if self.questions == Questions::SameStream {
            return self.run_streams(clock, duration).await;
        }
        let (started, cpu) = (clock.monotonic(), cpu_time(self.server)?);
        let mut loops = tokio::task::JoinSet::new();
        for line in self.lines.iter().cycle().take(self.in_flight) {
            let (mut line, clock, objects) = (line.clone(), Arc::clone(clock), Arc::clone(&self.objects));
            let (questions, topic, token) = (self.questions, self.topic, self.token.clone());
            loops.spawn(async move {
                let mut latencies = Vec::new();
                while clock.monotonic() - started < duration {
                    let first = match questions {
                        Questions::Same | Questions::SameBatch | Questions::SameStream | Questions::Cerbos => 0,
                        Questions::Fresh | Questions::FreshBatch => {
                            objects.fetch_add(questions.per_call(), Ordering::Relaxed)
                        }
                    };
                    let request = request(questions, topic, &token, first);
                    let asked = clock.monotonic();
                    request.send(&mut line).await?;
                    latencies.push(clock.monotonic() - asked);
                }
                Ok::<_, Failure>(latencies)
            });
        }
        self.gather(loops, clock, started, cpu).await
    }

    /// Asks about each of these objects once, and waits for all answers.
    pub async fn ask_about(&self, objects: Range<u64>) -> Result<(), Failure> {
        let next = Arc::new(AtomicU64::new(objects.start));
        let mut loops = tokio::task::JoinSet::new();
        for line in self.lines.iter().cycle().take(self.in_flight) {
            let (mut line, next) = (line.clone(), Arc::clone(&next));
            let (questions, topic, token) = (self.questions, self.topic, self.token.clone());
            loops.spawn(async move {
                loop {
                    let first = next.fetch_add(questions.per_call(), Ordering::Relaxed);
                    if first >= objects.end {
                        return Ok::<_, Failure>(());
                    }
                    request(questions, topic, &token, first).send(&mut line).await?;
                }
            });
        }
        while let Some(finished) = loops.join_next().await {
            finished??;
        }
        Ok(())
    }

    /// One stream on each connection, a whole window of questions under way on each.
    async fn run_streams(&self, clock: &SharedClock, duration: Duration) -> Result<Measured, Failure> {
        let (started, cpu) = (clock.monotonic(), cpu_time(self.server)?);
        let mut loops = tokio::task::JoinSet::new();
        for line in &self.lines {
            let (mut service, clock) = (line.gatepost.clone(), Arc::clone(clock));
            let (topic, token) = (self.topic, self.token.clone());
            loops.spawn(async move {
                use v1::check_stream_request::Message;
                use v1::check_stream_response::Result as Said;
                let (ask, asking) = tokio::sync::mpsc::channel(WINDOW + 1);
                let opening = v1::StreamOpening {
                    subject: Some(v1::stream_opening::Subject::Token(token)),
                    ..v1::StreamOpening::default()
                };
                ask.send(v1::CheckStreamRequest { message: Some(Message::Open(opening)) }).await?;
                let mut answers =
                    service.check_stream(tokio_stream::wrappers::ReceiverStream::new(asking)).await?.into_inner();
                let (mut sent, mut latencies) = (std::collections::VecDeque::new(), Vec::new());
                let mut id = 0;
                loop {
                    while sent.len() < WINDOW && clock.monotonic() - started < duration {
                        ask.send(v1::CheckStreamRequest { message: Some(Message::Ask(topic.of_stream(id))) }).await?;
                        sent.push_back((id, clock.monotonic()));
                        id += 1;
                    }
                    if sent.is_empty() {
                        return Ok(latencies);
                    }
                    let answer = answers.message().await?.ok_or("the stream ended")?;
                    let Some(Said::Response(response)) = answer.result else { return Err("no answer".into()) };
                    allowed(&response)?;
                    let at =
                        sent.iter().position(|(id, _)| *id == answer.id).ok_or("an answer that nobody asked for")?;
                    let (_, asked) = sent.remove(at).ok_or("it was there")?;
                    latencies.push(clock.monotonic() - asked);
                }
            });
        }
        self.gather(loops, clock, started, cpu).await
    }

    async fn gather(
        &self,
        mut loops: tokio::task::JoinSet<Result<Vec<Duration>, Failure>>,
        clock: &SharedClock,
        started: Duration,
        cpu: u64,
    ) -> Result<Measured, Failure> {
        let mut latencies = Vec::new();
        while let Some(finished) = loops.join_next().await {
            latencies.extend(finished??);
        }
        let (elapsed, cpu) = (clock.monotonic() - started, cpu_time(self.server)? - cpu);
        Ok(Measured {
            calls_per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
            p50_us: percentile_us(&mut latencies, 0.5),
            p99_us: percentile_us(&mut latencies, 0.99),
            cpu_us_per_call: cpu as f64 / 1e3 / latencies.len() as f64,
            per_call: self.questions.per_call(),
        })
    }
}

enum Call {
    One(Request<v1::CheckRequest>),
    Many(Request<v1::BatchCheckRequest>),
    Cerbos(cerbos::Question),
}

fn request(questions: Questions, topic: Topic, token: &str, first: u64) -> Call {
    let timeout = Duration::from_secs(2);
    match questions {
        Questions::Same | Questions::Fresh | Questions::SameStream => {
            let mut request = Request::new(topic.check(token, first));
            request.set_timeout(timeout);
            Call::One(request)
        }
        Questions::SameBatch | Questions::FreshBatch => {
            let mut request = Request::new(topic.batch(token, first));
            request.set_timeout(timeout);
            Call::Many(request)
        }
        Questions::Cerbos => Call::Cerbos(cerbos::question(token)),
    }
}

impl Call {
    /// Sends it and looks at the answer: a fast refusal must not look like a fast decision.
    async fn send(self, line: &mut Line) -> Result<(), Failure> {
        match self {
            Self::One(request) => allowed(&line.gatepost.check(request).await?.into_inner()),
            Self::Many(request) => {
                let results = line.gatepost.batch_check(request).await?.into_inner().results;
                if results.len() as u64 != BATCH {
                    return Err("not as many answers as questions".into());
                }
                for result in results {
                    let Some(v1::batch_check_result::Result::Response(response)) = result.result else {
                        return Err("an item without an answer".into());
                    };
                    allowed(&response)?;
                }
                Ok(())
            }
            Self::Cerbos(question) => cerbos::ask(&mut line.cerbos, question).await,
        }
    }
}

/// A fast refusal must not look like a fast decision.
pub fn allowed(response: &v1::CheckResponse) -> Result<(), Failure> {
    if response.decision() == v1::Decision::Allow && response.fields.is_some() {
        return Ok(());
    }
    Err(format!("not allowed: {:?} {:?}", response.decision(), response.denial).into())
}
