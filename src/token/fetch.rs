//! Getting a document over https, from the address the operator wrote and from nowhere else: a JWKS, a status list, the
//! answer to an introspection.
//!
//! No redirects, no proxy from the environment, no decompression, a cap on the bytes and on the time, and no
//! connection to an address inside our own network unless the issuer's settings allow it. Names are resolved here, so
//! that what was checked is what is connected to (against DNS rebinding).
//! [`discovery`](super::discovery) alone leads to a second address, within the bounds that the operator set.

use std::error::Error;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use rustls::ClientConfig;
use tokio::sync::Semaphore;
use url::Url;

use super::address::{may_connect, may_connect_to_literal};
use super::error::SetupProblem;
use crate::trust::{TrustProblem, client_tls};

/// Fetches documents of one issuer, or asks one of its endpoints.
#[derive(Debug)]
pub(super) struct Fetcher {
    client: reqwest::Client,
    url: Url,
    private: bool,
    max_bytes: usize,
    timeout: Duration,
}

/// A document, and what time it was where it came from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fetched {
    pub(super) document: Vec<u8>,
    /// `Date` (RFC 9110 section 6.6.1), as it was sent. Nothing is decided by it.
    pub(super) date: Option<String>,
}

/// Why a document could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no answer in time")]
    Timeout,
    #[error("no connection, or it broke")]
    Connection,
    #[error("the address is private or reserved")]
    Address,
    #[error("the answer is not a plain 200")]
    Status,
    #[error("the answer is compressed or otherwise encoded")]
    Encoding,
    #[error("the answer is longer than its limit")]
    Size,
}

/// Addresses of a name that are tried at most.
const ADDRESSES: usize = 16;
/// Look-ups of names under way at once. A name server that does not answer holds each for half a minute, on one of the
/// threads that also read the files in which keys and tokens are revoked.
const LOOK_UPS: usize = 8;

/// PEM files of a client certificate and its key (RFC 8705 section 2).
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientFiles<'a> {
    pub(super) certificate: &'a Path,
    pub(super) private_key: &'a Path,
}

impl Fetcher {
    /// `ca` holds the only authorities trusted for this host; the system's when there is none.
    pub(super) fn new(
        url: &Url,
        ca: Option<&Path>,
        private: bool,
        max_bytes: usize,
        timeout: Duration,
    ) -> Result<Self, SetupProblem> {
        Self::over(Arc::new(SystemNames::new(look_up)), None, url, ca, private, max_bytes, timeout)
    }

    /// The same with a certificate of our own, if there is one, for servers that ask who we are.
    pub(super) fn showing(
        identity: Option<ClientFiles<'_>>,
        url: &Url,
        ca: Option<&Path>,
        private: bool,
        max_bytes: usize,
        timeout: Duration,
    ) -> Result<Self, SetupProblem> {
        Self::over(Arc::new(SystemNames::new(look_up)), identity, url, ca, private, max_bytes, timeout)
    }

    /// The same with another book of names, so that a test can write it.
    pub(super) fn over(
        names: Arc<dyn Resolve>,
        identity: Option<ClientFiles<'_>>,
        url: &Url,
        ca: Option<&Path>,
        private: bool,
        max_bytes: usize,
        timeout: Duration,
    ) -> Result<Self, SetupProblem> {
        if url.scheme() != "https" || !url.username().is_empty() || url.password().is_some() || !url.has_host() {
            return Err(SetupProblem::Url);
        }
        if !may_connect_to_literal(url, private) {
            return Err(SetupProblem::Address);
        }
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(ca, identity)?)
            .https_only(true)
            .redirect(Policy::none())
            .no_proxy()
            // Whatever another crate has switched on: what is small on the wire must not grow here.
            .no_gzip()
            .no_brotli()
            .no_deflate()
            .no_zstd()
            .dns_resolver(Arc::new(CheckedResolver { private, names }))
            .connect_timeout(timeout)
            .timeout(timeout)
            // One document in minutes: an idle connection would be checked against an old address.
            .pool_max_idle_per_host(0)
            .user_agent("gatepost")
            .build()
            .map_err(|_| SetupProblem::Client)?;
        Ok(Self { client, url: url.clone(), private, max_bytes, timeout })
    }

    /// The document at the address that the operator wrote, whole.
    pub(super) async fn fetch(&self) -> Result<Fetched, FetchError> {
        self.fetch_from(&self.url).await
    }

    /// A document from elsewhere, by the same rules. Whoever calls this has made sure that the operator agrees.
    pub(super) async fn fetch_from(&self, url: &Url) -> Result<Fetched, FetchError> {
        // The resolver never sees an address that stands in the URL.
        if !may_connect_to_literal(url, self.private) {
            return Err(FetchError::Address);
        }
        self.within(self.client.get(url.clone()).header(http::header::ACCEPT, "application/json")).await
    }

    /// The document, whole, if it is to be had as this media type.
    pub(super) async fn fetch_as(&self, accept: &'static str) -> Result<Vec<u8>, FetchError> {
        let fetched = self.within(self.client.get(self.url.clone()).header(http::header::ACCEPT, accept)).await?;
        Ok(fetched.document)
    }

    /// What the endpoint answers to a form. `authorization` must be marked sensitive.
    pub(super) async fn ask(
        &self,
        form: String,
        authorization: Option<http::HeaderValue>,
    ) -> Result<Vec<u8>, FetchError> {
        let mut request = self
            .client
            .post(self.url.clone())
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form);
        if let Some(authorization) = authorization {
            request = request.header(http::header::AUTHORIZATION, authorization);
        }
        Ok(self.within(request).await?.document)
    }

    async fn within(&self, request: reqwest::RequestBuilder) -> Result<Fetched, FetchError> {
        tokio::time::timeout(self.timeout, self.read(request)).await.unwrap_or(Err(FetchError::Timeout))
    }

    async fn read(&self, request: reqwest::RequestBuilder) -> Result<Fetched, FetchError> {
        let request = request.header(http::header::ACCEPT_ENCODING, "identity");
        let mut answer = request.send().await.map_err(|error| failure(&error))?;
        if !answer.remote_addr().is_some_and(|address| may_connect(address.ip(), self.private)) {
            return Err(FetchError::Address);
        }
        if answer.status() != http::StatusCode::OK {
            return Err(FetchError::Status);
        }
        let mut encodings = answer.headers().get_all(http::header::CONTENT_ENCODING).iter();
        if encodings.any(|encoding| encoding != "identity") {
            return Err(FetchError::Encoding);
        }
        let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
        let mut document = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| failure(&error))? {
            if document.len() + chunk.len() > self.max_bytes {
                return Err(FetchError::Size);
            }
            document.extend_from_slice(&chunk);
        }
        Ok(Fetched { document, date })
    }
}

/// What the library's error comes down to; our own, when the resolver said no.
fn failure(error: &reqwest::Error) -> FetchError {
    if error.is_timeout() {
        return FetchError::Timeout;
    }
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(inner) = cause {
        if let Some(ours) = inner.downcast_ref::<FetchError>() {
            return *ours;
        }
        cause = inner.source();
    }
    FetchError::Connection
}

fn tls(ca: Option<&Path>, identity: Option<ClientFiles<'_>>) -> Result<ClientConfig, SetupProblem> {
    let identity = identity.map(|files| (files.certificate, files.private_key));
    client_tls(ca, identity).map_err(|problem| match problem {
        TrustProblem::Authorities => SetupProblem::Authorities,
        TrustProblem::Certificate | TrustProblem::PrivateKey => SetupProblem::ClientCertificate,
        TrustProblem::EncryptedKey => SetupProblem::EncryptedClientKey,
    })
}

/// Names as the system resolves them.
struct SystemNames {
    look_up: fn(&str) -> std::io::Result<Vec<SocketAddr>>,
    room: Arc<Semaphore>,
}

impl SystemNames {
    fn new(look_up: fn(&str) -> std::io::Result<Vec<SocketAddr>>) -> Self {
        Self { look_up, room: Arc::new(Semaphore::new(LOOK_UPS)) }
    }
}

impl Resolve for SystemNames {
    fn resolve(&self, name: Name) -> Resolving {
        let (look_up, room) = (self.look_up, Arc::clone(&self.room));
        Box::pin(async move {
            let place = room.acquire_owned().await?;
            let looking = tokio::task::spawn_blocking(move || {
                // The system's look-up can't be called off. It keeps its thread and its place to the end, though whoever
                // asked has long gone.
                let _place = place;
                look_up(name.as_str())
            });
            let found: Addrs = Box::new(looking.await??.into_iter());
            Ok(found)
        })
    }
}

fn look_up(name: &str) -> std::io::Result<Vec<SocketAddr>> {
    Ok((name, 0).to_socket_addrs()?.collect())
}

/// Resolves names to the addresses we may connect to, and to no others. Each connection is made to what came out of its
/// own, single resolution.
struct CheckedResolver {
    private: bool,
    names: Arc<dyn Resolve>,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (private, found) = (self.private, self.names.resolve(name));
        Box::pin(async move {
            let allowed: Vec<SocketAddr> =
                found.await?.take(ADDRESSES).filter(|address| may_connect(address.ip(), private)).collect();
            if allowed.is_empty() {
                return Err(FetchError::Address.into());
            }
            let allowed: Addrs = Box::new(allowed.into_iter());
            Ok(allowed)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use parking_lot::{Condvar, Mutex};

    use super::*;

    #[test]
    fn a_url_is_https_to_an_allowed_host_or_refused() {
        let table = [
            ("http://issuer.test/jwks", SetupProblem::Url, "in the clear"),
            ("https://me@issuer.test/jwks", SetupProblem::Url, "a user"),
            ("file:///etc/passwd", SetupProblem::Url, "a file"),
            ("https://127.0.0.1/jwks", SetupProblem::Address, "loopback"),
            ("https://0x7f.1/jwks", SetupProblem::Address, "loopback, spelled otherwise"),
            ("https://[::ffff:10.0.0.1]/jwks", SetupProblem::Address, "private, mapped"),
            ("https://169.254.169.254/latest", SetupProblem::Address, "cloud metadata"),
        ];
        for (url, expected, why) in table {
            let fetcher = Fetcher::new(&url.parse().unwrap(), None, false, 1000, Duration::from_secs(2));
            assert_eq!(fetcher.err(), Some(expected), "{url}: {why}");
        }
    }

    /// THREATS T16: however often it is asked, and however soon whoever asked gives up.
    #[tokio::test]
    async fn a_name_server_that_does_not_answer_takes_a_few_threads_and_no_more() {
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        static ANSWERS: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
        fn silent(_: &str) -> std::io::Result<Vec<SocketAddr>> {
            BEGUN.fetch_add(1, Ordering::SeqCst);
            ANSWERS.1.wait_while(&mut ANSWERS.0.lock(), |answers| !*answers);
            Ok(Vec::new())
        }
        let names = SystemNames::new(silent);
        for _ in 0..LOOK_UPS * 3 {
            let asked = names.resolve("keys.test".parse().unwrap());
            assert!(tokio::time::timeout(Duration::from_millis(5), asked).await.is_err(), "nobody waits for long");
        }
        let begun = async {
            while BEGUN.load(Ordering::SeqCst) < LOOK_UPS {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), begun).await.unwrap();
        assert_eq!(BEGUN.load(Ordering::SeqCst), LOOK_UPS);
        *ANSWERS.0.lock() = true;
        ANSWERS.1.notify_all();
        let found = names.resolve("keys.test".parse().unwrap()).await;
        assert_eq!(found.map(Iterator::count).ok(), Some(0), "and there is room again");
        assert_eq!(BEGUN.load(Ordering::SeqCst), LOOK_UPS + 1);
    }

    /// A book of names in which every look-up finds the next page.
    struct Rebound {
        pages: Vec<Vec<&'static str>>,
        looked_up: AtomicUsize,
    }

    impl Resolve for Rebound {
        fn resolve(&self, _: Name) -> Resolving {
            let page = self.pages.get(self.looked_up.fetch_add(1, Ordering::SeqCst)).cloned().unwrap_or_default();
            let found: Vec<SocketAddr> =
                page.into_iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0)).collect();
            let found: Addrs = Box::new(found.into_iter());
            Box::pin(std::future::ready(Ok(found)))
        }
    }

    /// THREATS V-SSRF-1: a name that was public when it was first looked at leads nowhere inside later, and a
    /// connection goes to what its own look-up gave.
    #[tokio::test]
    async fn a_name_that_turns_inwards_is_never_connected_to() {
        let inside = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("https://keys.test:{}/jwks", inside.local_addr().unwrap().port()).parse().unwrap();
        let ca = tempfile::NamedTempFile::new().unwrap();
        let authority = rcgen::generate_simple_self_signed(vec!["keys.test".to_owned()]).unwrap();
        std::fs::write(ca.path(), authority.cert.pem()).unwrap();
        let names = Arc::new(Rebound {
            pages: vec![
                vec!["93.184.216.34"],
                vec!["127.0.0.1"],
                vec!["169.254.169.254"],
                vec!["::ffff:127.0.0.1", "::1", "10.0.0.1", "fe80::1"],
                vec![],
            ],
            looked_up: AtomicUsize::new(0),
        });
        let checked = CheckedResolver { private: false, names: names.clone() };
        let found = checked.resolve("keys.test".parse().unwrap()).await;
        assert_eq!(found.map(Iterator::count).ok(), Some(1), "public at first");
        let fetcher =
            Fetcher::over(names.clone(), None, &url, Some(ca.path()), false, 1000, Duration::from_secs(2)).unwrap();
        for attempt in 2..=5 {
            assert_eq!(fetcher.fetch().await, Err(FetchError::Address), "attempt {attempt}");
            assert_eq!(names.looked_up.load(Ordering::SeqCst), attempt, "one look-up for one attempt");
        }
        let stranger = tokio::time::timeout(Duration::from_millis(1), inside.accept()).await;
        assert!(stranger.is_err(), "nobody ever came");

        // The first look-up is good, and the connection goes there though the second would not be.
        let names = Arc::new(Rebound {
            pages: vec![vec!["169.254.169.254", "127.0.0.1"], vec!["169.254.169.254"]],
            looked_up: AtomicUsize::new(0),
        });
        let fetcher =
            Fetcher::over(names.clone(), None, &url, Some(ca.path()), true, 1000, Duration::from_secs(2)).unwrap();
        let came = tokio::spawn(async move { inside.accept().await.is_ok() });
        assert_eq!(fetcher.fetch().await, Err(FetchError::Connection), "it hangs up on us, but that is where we went");
        assert!(came.await.unwrap());
        assert_eq!(names.looked_up.load(Ordering::SeqCst), 1);
        assert_eq!(fetcher.fetch().await, Err(FetchError::Address), "the next attempt asks again, and does not go");
        assert_eq!(names.looked_up.load(Ordering::SeqCst), 2);
    }
}
