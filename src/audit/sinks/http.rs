//! What the sinks over HTTP share: one client, bounded answers, and what a status means.

use std::io::Write as _;
use std::pin::Pin;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use url::Url;

use super::target::{Fault, Outgoing, Taken, bounded};
use super::tls::{TlsProblem, client};
use crate::config::SinkTls;

/// An answer is read no further.
const ANSWER_BYTES: usize = 8 << 20;

/// What a receiver makes of one request.
pub(super) enum Part {
    /// It has them, except those that it will never have.
    Taken(Vec<(usize, String)>),
    /// It will never have this one; whether it has those before it, it does not say.
    RefusedAt(usize, String),
    /// It takes no request of this size.
    TooLarge,
}

pub(super) type Posted<'a> = Pin<Box<dyn Future<Output = Result<Part, Fault>> + Send + 'a>>;

/// A receiver that takes a batch, or a part of it, in one request.
pub(super) trait Posts: Send {
    fn post<'a>(&'a mut self, part: &'a [Outgoing]) -> Posted<'a>;
}

/// Hands a batch over in as many requests as it takes. Each has its own time, so that what one of them achieved is not
/// forgotten with a later one.
pub(super) async fn in_parts(receiver: &mut dyn Posts, batch: &[Outgoing]) -> Result<Taken, Fault> {
    let (mut taken, mut refused, mut size) = (0, Vec::new(), batch.len());
    while let Some(rest) = batch.get(taken..).filter(|rest| !rest.is_empty()) {
        let part = rest.get(..size.max(1)).unwrap_or(rest);
        match receiver.post(part).await {
            Ok(Part::Taken(some)) => {
                refused.extend(some.into_iter().map(|(at, reason)| (taken + at, reason)));
                taken += part.len();
                size = part.len().saturating_mul(2);
            }
            // Those before it go first, without it: they may come twice, and none is left out.
            Ok(Part::RefusedAt(at, _)) if at > 0 => size = at,
            Ok(Part::RefusedAt(_, reason)) => {
                refused.push((taken, reason));
                taken += 1;
            }
            Ok(Part::TooLarge) if part.len() > 1 => size = part.len() / 2,
            Ok(Part::TooLarge) => {
                refused.push((taken, "larger than the receiver takes".to_owned()));
                taken += 1;
            }
            Err(fault) => {
                let Fault { message, taken: more, refused: some, retry_after } = fault;
                refused.extend(some.into_iter().map(|(at, reason)| (taken + at, reason)));
                return Err(Fault { message, taken: taken + more, refused, retry_after });
            }
        }
    }
    Ok(Taken { refused })
}

pub(super) struct Poster {
    url: Url,
    tls: SinkTls,
    timeout: Duration,
    gzip: bool,
    headers: HeaderMap,
    /// Made anew after a failure, so that renewed certificates count.
    client: Option<reqwest::Client>,
}

impl Poster {
    pub(super) fn new(
        url: Url,
        tls: &SinkTls,
        timeout: Duration,
        gzip: bool,
        headers: HeaderMap,
    ) -> Result<Self, TlsProblem> {
        client(tls)?;
        Ok(Self { url, tls: tls.clone(), timeout, gzip, headers, client: None })
    }

    /// Posts a body, and gives the status and the whole answer.
    pub(super) async fn post(&mut self, body: Vec<u8>) -> Result<(StatusCode, Vec<u8>), Fault> {
        let answered = self.exchange(body).await;
        if answered.is_err() {
            self.client = None;
        }
        answered
    }

    async fn exchange(&mut self, body: Vec<u8>) -> Result<(StatusCode, Vec<u8>), Fault> {
        let http = match &self.client {
            Some(client) => client.clone(),
            None => {
                let tls = client(&self.tls).map_err(|problem| Fault::new(&problem.to_string()))?;
                let made = reqwest::Client::builder()
                    .tls_backend_preconfigured(tls)
                    .redirect(reqwest::redirect::Policy::none())
                    .no_proxy()
                    // Whatever another crate has switched on: what is small on the wire must not grow here.
                    .no_gzip()
                    .no_brotli()
                    .no_deflate()
                    .no_zstd()
                    .connect_timeout(self.timeout)
                    .timeout(self.timeout)
                    .user_agent("gatepost")
                    .build()
                    .map_err(|_| Fault::new("the HTTP client could not be made"))?;
                self.client = Some(made.clone());
                made
            }
        };
        let mut request = http.post(self.url.clone()).headers(self.headers.clone());
        let body = if self.gzip {
            request = request.header(http::header::CONTENT_ENCODING, "gzip");
            gzipped(&body).map_err(|error| Fault::new(&error.to_string()))?
        } else {
            body
        };
        let told = |error: reqwest::Error| {
            let what = if error.is_timeout() { "no answer in time" } else { "no connection, or it broke" };
            Fault::new(what)
        };
        let mut answer = request.body(body).send().await.map_err(told)?;
        let (status, retry_after) = (answer.status(), retry_after(answer.headers()));
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(told)? {
            if bytes.len() + chunk.len() > ANSWER_BYTES {
                return Err(Fault::new("the answer does not end"));
            }
            bytes.extend_from_slice(&chunk);
        }
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT
        {
            return Err(Fault { retry_after, ..Fault::new(&format!("the receiver answers {status}")) });
        }
        Ok((status, bytes))
    }
}

/// A header's value that no log shows.
pub(super) fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What an unexpected answer comes down to.
pub(super) fn unexpected(status: StatusCode, what: &str) -> Fault {
    Fault::new(&format!("the receiver answers {status}: {}", bounded(what)))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn gzipped(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 8), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes requests up to a size, and will not have some records.
    struct Receiver {
        most: usize,
        bad: Vec<u64>,
        /// Whether it has what stands before a bad one, or nothing of such a request.
        keeps_what_is_before: bool,
        taken: Vec<u64>,
        requests: usize,
        /// Fails from this request on.
        fails_from: usize,
    }

    impl Posts for Receiver {
        fn post<'a>(&'a mut self, part: &'a [Outgoing]) -> Posted<'a> {
            self.requests += 1;
            let numbers: Vec<u64> = part.iter().map(|record| record.sequence).collect();
            let bad = numbers.iter().position(|number| self.bad.contains(number));
            let answer = match bad {
                _ if self.requests >= self.fails_from => Err(Fault::new("down")),
                _ if part.len() > self.most => Ok(Part::TooLarge),
                Some(at) => {
                    let before = if self.keeps_what_is_before { at } else { 0 };
                    self.taken.extend_from_slice(&numbers[..before]);
                    Ok(Part::RefusedAt(at, "bad".to_owned()))
                }
                None => {
                    self.taken.extend_from_slice(&numbers);
                    Ok(Part::Taken(Vec::new()))
                }
            };
            Box::pin(std::future::ready(answer))
        }
    }

    #[tokio::test]
    async fn a_batch_gets_through_in_parts_whatever_the_receiver_thinks_of_its_size_and_its_records() {
        let batch: Vec<Outgoing> = (0..20).map(|sequence| Outgoing { sequence, ..Outgoing::default() }).collect();
        let mut tried = 0;
        for most in [0, 1, 2, 3, 7, 19, 20, 21] {
            for bad in [vec![], vec![0], vec![19], vec![7, 8, 9], (0..20).collect()] {
                for keeps_what_is_before in [true, false] {
                    tried += 1;
                    let (taken, fails_from) = (Vec::new(), usize::MAX);
                    let mut receiver =
                        Receiver { most, bad: bad.clone(), keeps_what_is_before, taken, requests: 0, fails_from };
                    let whole = in_parts(&mut receiver, &batch).await.unwrap();
                    let refused: Vec<u64> = whole.refused.iter().map(|(at, _)| *at as u64).collect();
                    let mut taken = receiver.taken.clone();
                    let mut seen = std::collections::BTreeSet::new();
                    taken.retain(|number| seen.insert(*number));
                    let (none, all) = (Vec::new(), (0..20).collect::<Vec<u64>>());
                    let expected = if most == 0 {
                        (all, none)
                    } else {
                        (bad.clone(), all.into_iter().filter(|number| !bad.contains(number)).collect())
                    };
                    assert_eq!((refused, taken), expected, "{most} at once, {bad:?}, {keeps_what_is_before}");

                    // The same, and it goes down in the middle: what it has is known.
                    for fails_from in 1..=receiver.requests {
                        tried += 1;
                        let mut receiver = Receiver {
                            most,
                            bad: bad.clone(),
                            keeps_what_is_before,
                            taken: Vec::new(),
                            requests: 0,
                            fails_from,
                        };
                        let fault = in_parts(&mut receiver, &batch).await.unwrap_err();
                        let refused: Vec<u64> = fault.refused.iter().map(|(at, _)| *at as u64).collect();
                        for number in 0..fault.taken as u64 {
                            assert!(refused.contains(&number) != receiver.taken.contains(&number), "{number}");
                        }
                        assert!(refused.iter().all(|number| *number < fault.taken as u64));
                    }
                }
            }
        }
        println!("{tried} deliveries tried");
    }
}
