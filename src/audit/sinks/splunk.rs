//! Splunk's HTTP Event Collector: a batch is one body of events, and the answer says which of them could not be read.
//!
//! Source: Splunk Enterprise 9, "Format events for HTTP Event Collector" and "Troubleshoot HTTP Event Collector" (codes).

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::http::{Part, Posted, Poster, Posts, in_parts, secret_header, unexpected};
use super::target::{Delivery, Fault, Outgoing, Target, bounded};
use super::tls::TlsProblem;
use crate::config::{Encoding, SplunkTarget};
use crate::secret::ExposeSecret as _;

/// Where the collector is, when the address names only the server.
const PATH: &str = "/services/collector/event";
/// Codes that say an event can't be taken, with `invalid-event-number`: 5 no data, 6 invalid data format, 12 event field is
/// required, 13 event field cannot be blank, 15 error in handling indexed fields.
const BAD_EVENT: [u64; 5] = [5, 6, 12, 13, 15];

pub(super) struct SplunkSink {
    poster: Poster,
    /// What each event says besides.
    about: Map<String, Value>,
    encoding: Encoding,
}

/// What the collector answers.
#[derive(Deserialize)]
struct Answer {
    code: u64,
    #[serde(default)]
    text: String,
    #[serde(rename = "invalid-event-number")]
    invalid: Option<usize>,
}

impl SplunkSink {
    pub(super) fn new(settings: &SplunkTarget, encoding: Encoding, timeout: Duration) -> Result<Self, TlsProblem> {
        let mut url = settings.url.clone();
        if url.path() == "/" {
            url.set_path(PATH);
        }
        let mut headers = HeaderMap::new();
        // A token is a line of text: the configuration has seen to that.
        if let Some(value) = secret_header(&format!("Splunk {}", settings.token.expose_secret())) {
            headers.insert(http::header::AUTHORIZATION, value);
        }
        headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        let sourcetype = settings.sourcetype.clone().unwrap_or_else(|| format!("gatepost:{}", encoding.as_str()));
        let mut about = Map::new();
        about.insert("source".to_owned(), settings.source.clone().into());
        about.insert("sourcetype".to_owned(), sourcetype.into());
        if let Some(index) = &settings.index {
            about.insert("index".to_owned(), index.clone().into());
        }
        let poster = Poster::new(url, &settings.tls, timeout, settings.gzip, headers)?;
        Ok(Self { poster, about, encoding })
    }

    fn event(&self, record: &Outgoing) -> Vec<u8> {
        let mut event = self.about.clone();
        // Seconds, with the milliseconds behind the point.
        event.insert("time".to_owned(), format!("{}.{:03}", record.time_ms / 1000, record.time_ms % 1000).into());
        if let Some(host) = record.record.pointer("/device/hostname") {
            event.insert("host".to_owned(), host.clone());
        }
        let form = match self.encoding {
            Encoding::Cef | Encoding::Rfc5424 => json!(String::from_utf8_lossy(&record.encoded)),
            Encoding::Ocsf | Encoding::Ecs => serde_json::from_slice(&record.encoded).unwrap_or(Value::Null),
        };
        event.insert("event".to_owned(), form);
        crate::audit::encode::json(&Value::Object(event))
    }

    async fn send(&mut self, part: &[Outgoing]) -> Result<Part, Fault> {
        let mut body = Vec::new();
        for record in part {
            body.extend_from_slice(&self.event(record));
            body.push(b'\n');
        }
        let (status, answer) = self.poster.post(body).await?;
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            return Ok(Part::TooLarge);
        }
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|_| unexpected(status, "no answer of a collector"))?;
        match (status, answer) {
            (StatusCode::OK, Answer { code: 0, .. }) => Ok(Part::Taken(Vec::new())),
            (StatusCode::BAD_REQUEST, Answer { code, text, invalid: Some(at) })
                if BAD_EVENT.contains(&code) && at < part.len() =>
            {
                Ok(Part::RefusedAt(at, format!("code {code}: {}", bounded(&text))))
            }
            // A wrong token, a full queue, an index that is not there: for somebody to mend. The records wait.
            (status, Answer { code, text, .. }) => Err(unexpected(status, &format!("code {code}: {text}"))),
        }
    }
}

impl Posts for SplunkSink {
    fn post<'a>(&'a mut self, part: &'a [Outgoing]) -> Posted<'a> {
        Box::pin(self.send(part))
    }
}

impl Target for SplunkSink {
    fn deliver<'a>(&'a mut self, batch: &'a [Outgoing]) -> Delivery<'a> {
        Box::pin(in_parts(self, batch))
    }

    /// Each request has its time.
    fn patient(&self) -> bool {
        true
    }
}
