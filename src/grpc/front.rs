//! What is behind the listener: decisions straight ahead, everything else by the router.
//!
//! The router takes any service, and pays for that with a look-up, copies of services and boxes on every call. Nearly all
//! calls go one way.

use axum::Router;
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::ServiceExt as _;

use super::short::Decisions;

/// Decisions, and the services beside them.
#[derive(Clone)]
pub struct Front {
    decisions: Decisions,
    others: Router,
}

impl Front {
    /// `others`: health, and reflection if it is wanted. It answers for services that nobody knows, too.
    #[must_use]
    pub fn new(decisions: Decisions, others: Router) -> Self {
        Self { decisions, others }
    }

    /// Answers a call.
    pub(super) async fn answer(&self, request: Request<Body>) -> Response<Body> {
        if is_of(<Decisions as NamedService>::NAME, request.uri().path()) {
            return self.decisions.answer(request).await;
        }
        match Box::pin(self.others.clone().oneshot(request)).await {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        }
    }
}

/// Whether `path` names a method of `service`. Source: gRPC over HTTP/2, "Path".
fn is_of(service: &str, path: &str) -> bool {
    let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(service));
    method.is_some_and(|method| method.starts_with('/'))
}
