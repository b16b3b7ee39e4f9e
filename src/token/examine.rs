//! A look at one issuer before the start: are its keys, its introspection and its status lists to be had, and of any use?
//! Everything is opened, fetched and read by the very code that does so while Gatepost serves; nothing is kept.

use super::discovery::DiscoveryError;
use super::error::SetupProblem;
use super::fetch::FetchError;
use super::introspection::door::Door;
use super::json::{self, Json};
use super::ring::{KeyRing, RefreshError};
use super::status_list::Statuses;
use crate::clock::SharedClock;
use crate::config::{IntrospectionConfig, KeySource, Limits, TokenAlgorithm, TrustedIssuer};

/// What one look found.
#[derive(Debug)]
pub struct Examined {
    /// Its public keys; nothing where it has none, or nobody was to be asked for them.
    pub keys: Result<Option<KeysFound>, Ailment>,
    /// Whether its authorization server answers us; nothing where none is asked.
    pub introspection: Option<Result<(), Ailment>>,
    /// Each status list, by its address. Without the issuer's keys none can be read, so none is looked at.
    pub status_lists: Vec<(String, Result<(), Ailment>)>,
}

/// An issuer's public keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysFound {
    /// How many keys may be used with each of the issuer's algorithms.
    pub usable: Vec<(TokenAlgorithm, usize)>,
    /// Keys that can't be used, or stand there twice.
    pub left_out: usize,
    /// What time it is where they came from, as the server said it.
    pub date: Option<String>,
}

/// Something that can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Ailment {
    /// In words.
    pub why: String,
    /// Of what kind.
    pub kind: AilmentKind,
}

/// Where to look for the mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AilmentKind {
    /// In the settings, or in a file that they name.
    Settings,
    /// On the way there: names, routes, ports, certificates.
    Way,
    /// At the address, which may not be connected to as things are set.
    Address,
    /// With whoever answered.
    Answer,
}

/// Looks at everything of `issuer`; over the network only if `network`.
pub async fn examine(issuer: &TrustedIssuer, limits: &Limits, clock: &SharedClock, network: bool) -> Examined {
    let ring = KeyRing::open(issuer, limits, clock);
    let keys = match &ring {
        Err(problem) => Err(Ailment::from(*problem)),
        Ok(KeyRing::Public(keys)) if network || matches!(issuer.keys, KeySource::File(_)) => {
            keys.examine(&issuer.algorithms).await.map(Some).map_err(Ailment::from)
        }
        Ok(_) => Ok(None),
    };
    let introspection = match &issuer.introspection {
        None => None,
        Some(config) => Some(introspection(config, limits, network).await),
    };
    let mut status_lists = Vec::new();
    match (Statuses::open(issuer, limits, clock), &ring) {
        (Err(problem), _) => status_lists.push((String::new(), Err(problem.into()))),
        (Ok(statuses), Ok(ring)) if network && keys.is_ok() => {
            for list in statuses.lists() {
                let fetched = list.attempt(issuer, ring).await;
                status_lists.push((list.uri().to_owned(), fetched.map_err(Ailment::from)));
            }
        }
        (Ok(_), _) => {}
    }
    Examined { keys, introspection, status_lists }
}

/// Asks about a token that nobody has.
async fn introspection(config: &IntrospectionConfig, limits: &Limits, network: bool) -> Result<(), Ailment> {
    let door = Door::open(config, limits)?;
    if !network {
        return Ok(());
    }
    let answer = door.ask(&format!("{}gatepost-doctor-asks", config.token_prefix)).await?;
    let answer = json::read_object(&answer, limits.token_json_depth).ok();
    match answer.as_ref().and_then(|answer| answer.get("active")) {
        Some(Json::Bool(false)) => Ok(()),
        Some(Json::Bool(true)) => Err(Ailment::answer("it calls a token active that nobody was given")),
        Some(_) | None => Err(Ailment::answer("its answer is no introspection: `active` is neither true nor false")),
    }
}

impl Ailment {
    fn answer(why: &str) -> Self {
        Self { why: why.to_owned(), kind: AilmentKind::Answer }
    }
}

impl From<SetupProblem> for Ailment {
    fn from(problem: SetupProblem) -> Self {
        let kind = if problem == SetupProblem::Address { AilmentKind::Address } else { AilmentKind::Settings };
        Self { why: problem.to_string(), kind }
    }
}

impl From<FetchError> for Ailment {
    fn from(error: FetchError) -> Self {
        let kind = match error {
            FetchError::Timeout | FetchError::Connection => AilmentKind::Way,
            FetchError::Address => AilmentKind::Address,
            FetchError::Status | FetchError::Encoding | FetchError::Size => AilmentKind::Answer,
        };
        Self { why: error.to_string(), kind }
    }
}

impl From<RefreshError> for Ailment {
    fn from(error: RefreshError) -> Self {
        let kind = match error {
            RefreshError::File => AilmentKind::Settings,
            RefreshError::Fetch(error) | RefreshError::Discovery(DiscoveryError::Document(error)) => {
                Self::from(error).kind
            }
            // The way to the keys is the document's to say.
            RefreshError::Discovery(DiscoveryError::Keys(_) | DiscoveryError::Metadata(_))
            | RefreshError::Document(_) => AilmentKind::Answer,
        };
        Self { why: error.to_string(), kind }
    }
}

impl From<super::status_list::RefreshError> for Ailment {
    fn from(error: super::status_list::RefreshError) -> Self {
        use super::status_list::RefreshError as E;
        let kind = match error {
            E::Fetch(error) => Self::from(error).kind,
            E::Document(_) | E::Older => AilmentKind::Answer,
        };
        Self { why: error.to_string(), kind }
    }
}
