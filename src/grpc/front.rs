//! What is behind the listener: decisions straight ahead, everything else by the router.
//!
//! The router takes any service, and pays for that with a look-up, copies of services and boxes on every call. Nearly all
//! calls go one way.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::Router;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Service, ServiceExt as _};

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
}

impl Service<Request<Body>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The router is asked when it is its turn.
        self.decisions.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if is_of(<Decisions as NamedService>::NAME, request.uri().path()) {
            return self.decisions.call(request);
        }
        let others = self.others.clone();
        Box::pin(async move { Ok(others.oneshot(request).await?.map(Body::new)) })
    }
}

/// Whether `path` names a method of `service`. Source: gRPC over HTTP/2, "Path".
fn is_of(service: &str, path: &str) -> bool {
    let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(service));
    method.is_some_and(|method| method.starts_with('/'))
}
