//! The part of the house that operators use to revoke: the sources of revocations, and the listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use super::{BuildError, Events, bind};
use crate::admin::{Admin, Parts};
use crate::clock::SharedClock;
use crate::config::{AdminConfig, Config, Limits, RevocationConfig};
use crate::grpc::admin::recorded::OperatorsRecorded;
use crate::grpc::admin::{MESSAGE_BYTES, Operators};
use crate::grpc::layers::PanicToInternal;
use crate::grpc::server::Door;
use crate::pdp::Pdp;
use crate::proto::admin::v1::revocation_service_server::RevocationServiceServer;
use crate::revocation::Revocations;
use crate::revocation::file::RevocationFile;
use crate::revocation::replicas::Replicas;
use crate::telemetry::metrics::Watched;
use crate::tls::server::ServerIdentity;

/// What is over is let go so often.
const PURGE_EVERY: Duration = Duration::from_secs(60);
/// Operators are few, and so are their connections.
const CONNECTIONS: usize = 64;
const CONNECTIONS_PER_OPERATOR: usize = 16;
const HANDSHAKES: usize = 16;
const STREAMS: u32 = 16;

/// Where revocations come from and go to, beside the admin listener.
pub(super) struct Sources {
    file: Option<Arc<RevocationFile>>,
    replicas: Option<Arc<Replicas>>,
}

impl Sources {
    /// Reads the file, so that nobody is served before what it says is in force. The store may come when it likes.
    pub(super) async fn open(settings: &RevocationConfig, list: &Arc<Revocations>) -> Result<Self, BuildError> {
        let file = match settings.file.clone() {
            None => None,
            Some(path) => {
                let list = Arc::clone(list);
                match tokio::task::spawn_blocking(move || RevocationFile::open(&path, &list)).await {
                    Ok(opened) => Some(opened.map_err(BuildError::Revocations)?),
                    Err(_) => return Err(BuildError::SelfTest),
                }
            }
        };
        let replicas = settings.redis.clone().map(|redis| Replicas::new(redis, list));
        Ok(Self { file, replicas })
    }

    /// Keeps all of them joined until `helpers` ends. Returns when the store was looked at once, or can't be.
    pub(super) async fn start(&self, pdp: &Arc<Pdp>, helpers: &CancellationToken) {
        if let Some(file) = &self.file {
            file.spawn_watch(helpers.clone());
        }
        if let Some(replicas) = &self.replicas {
            replicas.spawn(helpers.clone());
        }
        let list = Arc::clone(&pdp.revocations);
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        pdp.metrics.watch(Watched::Revocations, move || list.len() as f64);
        let (file, replicas) = (self.file.clone(), self.replicas.clone());
        pdp.metrics.watch(Watched::RevocationStaleness, move || {
            let file = file.as_ref().map_or(Duration::ZERO, |file| file.staleness());
            let store = replicas.as_ref().map_or(Duration::ZERO, |replicas| replicas.staleness());
            file.max(store).as_secs_f64()
        });
        let (list, helpers) = (Arc::clone(&pdp.revocations), helpers.clone());
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(PURGE_EVERY);
            while helpers.run_until_cancelled(ticks.tick()).await.is_some() {
                list.purge();
            }
        });
        if let Some(replicas) = &self.replicas {
            replicas.first_look().await;
        }
    }
}

/// The admin listener, bound.
pub(super) struct Office {
    pub(super) address: SocketAddr,
    listener: TcpListener,
    identity: Arc<ServerIdentity>,
    admin: Arc<Admin>,
}

/// Where the admin listener will be: bound before anything is written, so that what is wrong with it ends the start.
pub(super) struct Entrance {
    address: SocketAddr,
    listener: TcpListener,
    identity: Arc<ServerIdentity>,
}

impl Entrance {
    pub(super) async fn open(settings: &AdminConfig, clock: &SharedClock) -> Result<Self, BuildError> {
        let identity = ServerIdentity::load(&settings.tls, Arc::clone(clock)).map_err(BuildError::AdminTls)?;
        let (listener, address) = bind("admin.listen", settings.listen).await?;
        Ok(Self { address, listener, identity })
    }
}

impl Office {
    pub(super) fn new(
        entrance: Entrance,
        settings: &AdminConfig,
        config: &Config,
        pdp: &Arc<Pdp>,
        sources: &Sources,
    ) -> Self {
        let Entrance { address, listener, identity } = entrance;
        let parts = Parts {
            revocations: Arc::clone(&pdp.revocations),
            file: sources.file.clone(),
            trail: pdp.trail.clone(),
            metrics: pdp.metrics.clone(),
            clock: Arc::clone(&pdp.clock),
        };
        let admin = Admin::new(&settings.operators, &config.issuers, config.limits.id_bytes, parts);
        Self { address, listener, identity, admin }
    }

    /// Who the listener is.
    pub(super) fn identity(&self) -> &Arc<ServerIdentity> {
        &self.identity
    }

    /// Serves until `closing`.
    pub(super) fn serve(
        self,
        pdp: &Arc<Pdp>,
        config: &Config,
        closing: CancellationToken,
        helpers: &CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let Self { address, listener, identity, admin } = self;
        let metrics = pdp.metrics.clone();
        drop(identity.spawn_watch(helpers.clone(), move |outcome| {
            metrics.tls_reload(outcome.is_ok());
            match outcome {
                Ok(_) => tracing::info!("the admin listener's certificate, key or client authorities were renewed"),
                Err(error) => tracing::error!(
                    error = error as &dyn std::error::Error,
                    "renewed TLS files of the admin listener are not usable; the old ones stay"
                ),
            }
        }));
        let door = Door {
            listener,
            identity,
            names: config.admin.as_ref().map_or_else(|| config.identity.clone(), |admin| admin.identity.clone()),
            app: routes(&admin),
            limits: Limits {
                connections: CONNECTIONS,
                connections_per_caller: CONNECTIONS_PER_OPERATOR,
                handshakes: HANDSHAKES,
                streams_per_connection: STREAMS,
                ..config.limits.clone()
            },
            clock: Arc::clone(&pdp.clock),
            events: Events::of(pdp, address, helpers),
            drain_timeout: config.server.drain_timeout,
            shards: None,
        };
        tracing::info!(%address, "operators may revoke");
        if config.revocation.file.is_none() && config.revocation.redis.is_none() {
            tracing::warn!(
                "what is revoked is kept in this process alone, and a restart forgets it: set `revocation.file` or `revocation.redis`"
            );
        }
        async move {
            if tokio::spawn(door.serve(closing)).await.is_err() {
                // Decisions go on; that nobody can revoke here must not wait for the drain to be told.
                tracing::error!("the admin listener ended by a fault: nobody can revoke here until a restart");
            }
        }
    }
}

/// The service alone: no health, no reflection.
fn routes(admin: &Arc<Admin>) -> axum::Router {
    let service =
        RevocationServiceServer::new(Operators::new(Arc::clone(admin))).max_decoding_message_size(MESSAGE_BYTES);
    let recorded = Arc::clone(admin);
    Routes::new(service)
        .prepare()
        .into_axum_router()
        .layer(ServiceBuilder::new().layer(CatchPanicLayer::custom(PanicToInternal)))
        .layer(tower::layer::layer_fn(move |inner| OperatorsRecorded::new(inner, Arc::clone(&recorded))))
}
