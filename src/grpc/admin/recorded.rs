//! Makes sure that no call on the admin listener ends without a record: as `layers` does for decisions.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tower::Service;

use super::{call, to_status};
use crate::admin::{Admin, AdminError};
use crate::config::AdminMethod;
use crate::grpc::layers::{misaddressed, timely, unrecorded};
use crate::pdp::DecideError;
use crate::tls::peer::Peer;

/// A message has to come in whole within this time.
const MESSAGE_WITHIN: Duration = Duration::from_secs(5);
/// Where the service is.
const SERVICE: &str = "/gatepost.admin.v1.RevocationService/";

/// Around the service.
#[derive(Clone)]
pub struct OperatorsRecorded<S> {
    inner: S,
    admin: Arc<Admin>,
}

impl<S> OperatorsRecorded<S> {
    /// Around `inner`.
    pub fn new(inner: S, admin: Arc<Admin>) -> Self {
        Self { inner, admin }
    }
}

impl<S> Service<Request<Body>> for OperatorsRecorded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let admin = Arc::clone(&self.admin);
        Box::pin(async move {
            let method = request.uri().path().strip_prefix(SERVICE);
            let method = method.and_then(|name| AdminMethod::ALL.into_iter().find(|known| known.as_str() == name));
            let call = call(method, request.headers(), request.extensions().get::<Arc<Peer>>().cloned());
            if let Some((error, http)) = misaddressed(&request) {
                let refusal = admin.record_refused(&call, ours(&error)).await;
                let mut response = to_status(&refusal).into_http();
                *response.status_mut() = http;
                return Ok(response);
            }
            let response = inner.call(timely(request, MESSAGE_WITHIN).map(Body::new)).await?;
            let Some(error) = unrecorded(&response) else { return Ok(response) };
            let refusal = admin.record_refused(&call, ours(&error)).await;
            Ok(to_status(&refusal).into_http())
        })
    }
}

/// The same in an operator's words.
fn ours(error: &DecideError) -> AdminError {
    match error {
        DecideError::NoSuchMethod => AdminError::NoSuchMethod,
        DecideError::Unreadable => AdminError::Unreadable,
        DecideError::Deadline => AdminError::Deadline,
        DecideError::NotIdentified(_)
        | DecideError::NotEnrolled
        | DecideError::NotEntitled(_)
        | DecideError::Invalid(_)
        | DecideError::Overloaded { .. }
        | DecideError::OverShare { .. }
        | DecideError::Audit(_)
        | DecideError::ShedUnrecorded { .. }
        | DecideError::Panicked => AdminError::Panicked,
    }
}
