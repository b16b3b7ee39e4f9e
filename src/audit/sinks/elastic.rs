//! Elasticsearch's bulk API: each record is created under its own id, so that one that comes twice is there once.
//!
//! Source: Elasticsearch 8, "Bulk API".

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::http::{Part, Posted, Poster, Posts, in_parts, secret_header, unexpected};
use super::target::{Delivery, Fault, Outgoing, Target, bounded};
use super::tls::TlsProblem;
use crate::config::{ElasticTarget, HttpCredential};
use crate::secret::ExposeSecret as _;

pub(super) struct ElasticSink {
    poster: Poster,
    index: String,
}

#[derive(Deserialize)]
struct Answer {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    create: Created,
}

#[derive(Deserialize)]
struct Created {
    status: u16,
    error: Option<serde_json::Value>,
}

impl ElasticSink {
    pub(super) fn new(settings: &ElasticTarget, timeout: Duration) -> Result<Self, TlsProblem> {
        let mut url = settings.url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/_bulk"));
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/x-ndjson"));
        let authorization = settings.credential.as_ref().map(|credential| match credential {
            HttpCredential::ApiKey(key) => format!("ApiKey {}", key.expose_secret()),
            HttpCredential::Basic { username, password } => {
                format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.expose_secret())))
            }
        });
        if let Some(value) = authorization.and_then(|text| secret_header(&text)) {
            headers.insert(http::header::AUTHORIZATION, value);
        }
        let poster = Poster::new(url, &settings.tls, timeout, settings.gzip, headers)?;
        Ok(Self { poster, index: settings.index.clone() })
    }

    async fn send(&mut self, part: &[Outgoing]) -> Result<Part, Fault> {
        let mut body = Vec::new();
        for record in part {
            let action = json!({ "create": { "_index": self.index, "_id": record.uid } });
            body.extend_from_slice(action.to_string().as_bytes());
            body.push(b'\n');
            body.extend_from_slice(&record.encoded);
            body.push(b'\n');
        }
        let (status, answer) = self.poster.post(body).await?;
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            return Ok(Part::TooLarge);
        }
        if status != StatusCode::OK {
            return Err(unexpected(status, &String::from_utf8_lossy(&answer)));
        }
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|_| unexpected(status, "no answer of a bulk API"))?;
        // Whatever `errors` says: only an item of its own says that a record is there.
        if answer.items.len() != part.len() {
            return Err(unexpected(status, "not an answer for each record"));
        }
        let mut refused = Vec::new();
        for (at, Item { create }) in answer.items.into_iter().enumerate() {
            match create.status {
                // 409: it is there already, from the last time.
                200..=299 | 409 => {}
                400 | 413 if !create.is_about_the_index() => refused.push((at, create.to_string())),
                // Busy, full, or for somebody to mend: a missing right, an index that is not there or takes no writes.
                _ => {
                    let message = format!("record {} of the batch: {create}", at + 1);
                    return Err(Fault { taken: at, refused, ..Fault::new(&message) });
                }
            }
        }
        Ok(Part::Taken(refused))
    }
}

impl Created {
    /// Answered with 400 too, and no fault of the record.
    fn is_about_the_index(&self) -> bool {
        let kind = self.error.as_ref().and_then(|error| error.get("type")).and_then(serde_json::Value::as_str);
        matches!(kind, Some("index_closed_exception" | "invalid_index_name_exception"))
    }
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = self.error.as_ref().map(ToString::to_string).unwrap_or_default();
        write!(f, "{}: {}", self.status, bounded(&why))
    }
}

impl Posts for ElasticSink {
    fn post<'a>(&'a mut self, part: &'a [Outgoing]) -> Posted<'a> {
        Box::pin(self.send(part))
    }
}

impl Target for ElasticSink {
    fn deliver<'a>(&'a mut self, batch: &'a [Outgoing]) -> Delivery<'a> {
        Box::pin(in_parts(self, batch))
    }

    /// Each request has its time.
    fn patient(&self) -> bool {
        true
    }
}
