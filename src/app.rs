//! The house: the only file that knows everyone. Settings in, a bound server out.
//!
//! [`build`] reads every file, binds every port and proves that evaluation is sound; [`Gatepost::run`] then serves until
//! it is told to drain. Tests and the demo start this very thing on port 0.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::admission::Admission;
use crate::audit::{
    self, AuditError, Entry, HandshakeEntry, HostFacts, LifecycleEntry, PolicyEntry, Redaction, SinkError, Sinks, Trail,
};
use crate::cache::Rulings;
use crate::caller::Callers;
use crate::caller::bond::Bond;
use crate::clock::SharedClock;
use crate::config::{Config, Limits, ListenerIdentity, PolicyConfig, TrustedIssuer};
use crate::grpc::front::Front;
use crate::grpc::layers::Recorded;
use crate::grpc::server::{ConnectionEvents, Door, Shards};
use crate::grpc::service::Service;
use crate::grpc::short::Decisions;
use crate::model::entity::EntityType;
use crate::ops::{self, Readiness};
use crate::pdp::crew::Crew;
use crate::pdp::stream::OpenStreams;
use crate::pdp::{Pdp, Recalls, turn};
use crate::policy::store::{Reload, Store};
use crate::policy::{Bundle, BundleOptions, BundleReport};
use crate::proto;
use crate::revocation::Revocations;
use crate::revocation::file::FileError;
use crate::telemetry::Process;
use crate::telemetry::metrics::{Expected, Metrics, Present, SinkLevel, Watched};
use crate::tls::server::{ServerIdentity, TlsError};
use crate::token::api_key::ApiKeys;
use crate::token::api_key::file::ApiKeyFileError;
use crate::token::{Heard, News, TokenSetupError, Verifier};

mod operators;

use operators::{Entrance, Office, Sources};

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The bundle is wrong.
    #[error("the policies can't be used:\n{0}")]
    Policies(#[source] BundleReport),
    /// Certificate, key or client authorities are wrong.
    #[error("the listener has no identity: {0}")]
    Tls(#[source] TlsError),
    /// An issuer's keys are wrong.
    #[error("tokens can't be verified: {0}")]
    Tokens(#[source] TokenSetupError),
    /// The file of API keys is wrong.
    #[error("API keys can't be verified: {0}")]
    ApiKeys(#[source] ApiKeyFileError),
    /// Records can't be written.
    #[error("records can't be written: {0}")]
    Audit(#[source] AuditError),
    /// Somebody who is to get records can't.
    #[error("{0}")]
    Sinks(#[source] SinkError),
    /// The admin listener's certificate, key or client authorities are wrong.
    #[error("the admin listener has no identity: {0}")]
    AdminTls(#[source] TlsError),
    /// The revocation file can't be used.
    #[error("revocations can't be kept: {0}")]
    Revocations(#[source] FileError),
    /// A port is taken or not ours.
    #[error("can't listen on {address} (`{key}`): {source}{}", listen_mend(.source))]
    Listen {
        /// The key of the configuration.
        key: &'static str,
        /// Which.
        address: SocketAddr,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// A deep forbid did not win on this thread: Cedar would skip it.
    #[error("the self-test of evaluation failed: a deep policy was not evaluated to its end")]
    SelfTest,
    /// No threads to serve on.
    #[error("the threads that serve could not be started: {0}")]
    Threads(#[source] std::io::Error),
    /// No randomness.
    #[error("the system gives no random bytes")]
    Random,
}

/// A bound server, ready to run.
pub struct Gatepost {
    /// Where gRPC listens.
    pub address: SocketAddr,
    /// Where operators look.
    pub ops_address: SocketAddr,
    /// Where operators revoke, if anywhere.
    pub admin_address: Option<SocketAddr>,
    /// The decision path, for tests.
    pub pdp: Arc<Pdp>,
    /// Whether it should be asked.
    pub readiness: Arc<Readiness>,
    identity: Arc<ServerIdentity>,
    listener: TcpListener,
    shards: Shards,
    ops_listener: TcpListener,
    registry: prometheus::Registry,
    config: Config,
    clock: SharedClock,
    sources: Sources,
    office: Option<Office>,
    sinks: Sinks,
}

/// What gRPC's health service can be asked about: the whole server, as most do who name nothing, and decisions.
const WHOLE_SERVER: &str = "";
const DECISIONS: &str = <Decisions as NamedService>::NAME;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Calls that had to be cut off.
    pub cut_off: usize,
    /// The listener ended without being asked to: a fault of ours.
    pub by_itself: bool,
}

/// Builds a server from settings. Everything that can be wrong is found here, before anybody is served.
///
/// # Errors
/// [`BuildError`] names the part and carries its own report.
pub async fn build(
    config: Config,
    clock: SharedClock,
    metrics: Metrics,
    registry: prometheus::Registry,
) -> Result<Gatepost, BuildError> {
    let options = serving_options(&config);
    let directory = config.policies.directory.clone();
    let opened = tokio::task::spawn_blocking(move || Store::open(&directory, options)).await;
    let store = match opened {
        Ok(store) => store.map_err(BuildError::Policies)?,
        Err(_) => return Err(BuildError::SelfTest),
    };
    if !store.current().evaluation_is_sound_here() {
        return Err(BuildError::SelfTest);
    }
    warn_of_undeclared_principals(&config, &store.current());
    let identity = match &config.server.tls {
        ListenerIdentity::Files(files) => ServerIdentity::load(files, Arc::clone(&clock)),
        ListenerIdentity::WorkloadApi(agent) => ServerIdentity::from_workload_api(agent, Arc::clone(&clock)).await,
    };
    let identity = identity.map_err(BuildError::Tls)?;
    if a_list_has_ended(&identity, &clock) {
        tell_of_ended_list();
    }
    let tokens = Verifier::new(&config.issuers, &config.limits, config.cache.tokens, Arc::clone(&clock))
        .map_err(BuildError::Tokens)?
        .within_bytes(config.cache.token_bytes)
        .heard_by(news(&metrics));
    let api_keys = ApiKeys::open(config.api_keys.as_ref(), &config.limits).map_err(BuildError::ApiKeys)?;
    let host = HostFacts::of_this_machine();
    let trail = Trail::open(&config.audit, &config.limits, host, Arc::clone(&clock), heard(&metrics))
        .map_err(BuildError::Audit)?;
    let mut hash_key = [0u8; 32];
    aws_lc_rs::rand::fill(&mut hash_key).map_err(|_| BuildError::Random)?;
    let shards = Shards::one_per_core().map_err(BuildError::Threads)?;
    let (listener, address) = bind("server.listen", config.server.listen).await?;
    let (ops_listener, ops_address) = bind("server.ops_listen", config.server.ops_listen).await?;
    let entrance = match &config.admin {
        Some(settings) => Some(Entrance::open(settings, &clock).await?),
        None => None,
    };

    let counted = metrics.clone();
    let told = Arc::new(move |source: crate::revocation::Source, fate: crate::revocation::Fate, count| {
        counted.revocation_entries(source.as_str(), fate.as_str(), count);
    });
    let revocations = Revocations::new(config.limits.revocations, Arc::clone(&clock), told);
    let sources = Sources::open(&config.revocation, &revocations).await?;
    let sinks =
        Sinks::start(&config.audit.sinks, &trail, Arc::clone(&clock), heard(&metrics)).map_err(BuildError::Sinks)?;

    metrics.expect(&expected(&config, &clock));
    in_force(&metrics, &store.current());
    let pdp = Arc::new(Pdp {
        callers: Callers::new(&config.callers),
        bond: Bond::new(&config.issuers),
        tokens: Arc::new(tokens),
        revocations,
        api_keys: Arc::new(api_keys),
        store,
        rulings: Rulings::new(&config.cache, hash_key, Arc::clone(&clock)),
        recalls: Recalls::new(&config.cache, hash_key),
        redaction: Redaction::new(&config.audit),
        trail,
        metrics,
        clock: Arc::clone(&clock),
        limits: config.limits.clone(),
        principals: config.policies.clone(),
        admission: Admission::new(&config.callers, &config.limits, Arc::clone(&clock)),
        streams: OpenStreams::new(config.limits.open_streams),
        crew: Crew::of_this_machine().map_err(BuildError::Threads)?,
        listener: address,
        caller_reuse: config.cache.caller_reuse,
    });
    let readiness = Readiness::expecting(&["serving"]);
    let trail = pdp.trail.clone();
    readiness.watch("audit", move || trail.healthy());
    // An issuer that is down takes its own tokens away and nobody else's (THREATS F6), so it is told and no condition.
    let weak = Arc::downgrade(&pdp);
    readiness.note("issuer", move || weak.upgrade().map_or_else(Vec::new, |pdp| pdp.tokens.issuers_ready()));
    let ready = Arc::clone(&readiness);
    pdp.metrics.watch(Watched::Ready, move || f64::from(u8::from(ready.unmet().is_empty())));
    let (dealer, own) = (shards.dealer(), tokio::runtime::Handle::current());
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    let tasks = move || (dealer.tasks() + own.metrics().num_alive_tasks()) as f64;
    pdp.metrics.watch(Watched::RuntimeTasks, tasks);
    let office = config.admin.as_ref().zip(entrance);
    let office = office.map(|(settings, entrance)| Office::new(entrance, settings, &config, &pdp, &sources));
    Ok(Gatepost {
        address,
        ops_address,
        admin_address: office.as_ref().map(|office| office.address),
        pdp,
        readiness,
        identity,
        listener,
        shards,
        ops_listener,
        registry,
        config,
        clock,
        sources,
        office,
        sinks,
    })
}

/// What is to be counted, and the limits that it is held against.
fn expected(config: &Config, clock: &SharedClock) -> Expected {
    Expected {
        started: clock.now().checked_sub(clock.monotonic()).unwrap_or(SystemTime::UNIX_EPOCH),
        decisions: config.limits.concurrent_decisions,
        connections: config.limits.connections,
        revocations: config.limits.revocations,
        queue: config.audit.queue,
        spool_bytes: config.audit.spool.max_bytes,
        sinks: config.audit.sinks.iter().map(|sink| sink.name.clone()).collect(),
    }
}

/// Tells the metrics which policies are in force, and which actions can be asked for now.
fn in_force(metrics: &Metrics, bundle: &Bundle) {
    metrics.policy_revision(bundle.revision().short());
    metrics.actions_in_force(bundle.actions());
}

/// How far a sink is, as the metrics call it.
fn level(level: audit::Level) -> SinkLevel {
    let audit::Level { name, lag, delay, healthy } = level;
    SinkLevel { name, lag, delay, healthy }
}

/// What the audit trail tells, counted.
fn heard(metrics: &Metrics) -> audit::Heard {
    let metrics = metrics.clone();
    Arc::new(move |news| match news {
        audit::News::Lost { place, reason, count } => metrics.audit_lost(place, reason, count),
        audit::News::Synced { took } => metrics.audit_sync(took.as_secs_f64()),
        audit::News::Sent { sink, result, count } => metrics.audit_sink(sink, result, count),
        audit::News::Alert { pattern } => metrics.audit_alert(pattern),
        audit::News::Unwatched { count } => metrics.audit_unwatched(count),
    })
}

/// How a bundle is read by a server with these settings.
pub(crate) fn serving_options(config: &Config) -> BundleOptions {
    let recorded = config.audit.attributes.iter().map(|(value, _)| value.clone()).collect();
    BundleOptions { recorded, ..bundle_options(&config.policies, &config.limits) }
}

/// How a bundle is read under these settings.
#[must_use]
pub fn bundle_options(policies: &PolicyConfig, limits: &Limits) -> BundleOptions {
    BundleOptions {
        validation_level: policies.validation_level,
        caller_type: policies.caller_type.clone(),
        anonymous: policies.anonymous.clone(),
        tenant_type: policies.tenant_type.clone(),
        recorded: Vec::new(),
        limits: limits.clone(),
    }
}

/// Nobody is let in by a type that the schema lacks, and it may come with the next bundle, so this stops nothing. But
/// whoever wrote it would look for a long time.
fn warn_of_undeclared_principals(config: &Config, bundle: &Bundle) {
    for (key, entity_type) in undeclared_principals(config, bundle) {
        tracing::warn!(key, %entity_type, "the schema declares no such entity type: such principals are denied everything");
    }
}

/// The types of principals that the schema lacks, by key.
pub(crate) fn undeclared_principals<'c>(config: &'c Config, bundle: &Bundle) -> Vec<(String, &'c EntityType)> {
    let issuers = config.issuers.iter().enumerate();
    let issuers = issuers.map(|(at, it)| (format!("issuers[{at}].principal.type"), &it.mapping.principal_type));
    let keys = config.api_keys.iter().map(|keys| ("api_keys.principal_type".to_owned(), &keys.principal_type));
    issuers.chain(keys).filter(|(_, entity_type)| !bundle.declares_type(entity_type)).collect()
}

/// Listens on what `key` of the configuration says.
async fn bind(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), BuildError> {
    let failed = |source| BuildError::Listen { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// What to do about a port that can't be had.
pub(crate) fn listen_mend(error: &std::io::Error) -> &'static str {
    let table = [
        (
            ErrorKind::AddrInUse,
            "; another process listens there, perhaps another Gatepost: end it, or take another port",
        ),
        (
            ErrorKind::AddrNotAvailable,
            "; no interface of this machine has that address: take one that `ip address` shows, or `0.0.0.0` for all",
        ),
        (
            ErrorKind::PermissionDenied,
            "; this user may not have a port below 1024: take a higher one, or give the process `CAP_NET_BIND_SERVICE`",
        ),
    ];
    table.into_iter().find(|(kind, _)| *kind == error.kind()).map_or("", |(_, mend)| mend)
}

impl Gatepost {
    /// Serves until `drain`; then readiness goes false, calls under way finish, and the last record is written.
    ///
    /// # Errors
    /// When not even the start can be put on record.
    pub async fn run(self, drain: CancellationToken) -> Result<Stopped, AuditError> {
        let Self {
            pdp,
            readiness,
            identity,
            listener,
            shards,
            ops_address,
            ops_listener,
            registry,
            config,
            clock,
            sources,
            office,
            sinks,
            ..
        } = self;
        let stop = CancellationToken::new();
        let helpers = stop.child_token();

        let operators =
            tokio::spawn(ops::serve(ops_listener, ops::router(Arc::clone(&readiness), registry), helpers.clone()));
        record_start(&pdp.trail, &clock, &drain).await?;
        let metrics = pdp.metrics.clone();
        pdp.tokens.start(&helpers, Arc::new(move |issuer, well| metrics.jwks_refresh(issuer, well)));
        let listeners = std::iter::once(&identity).chain(office.as_ref().map(Office::identity)).cloned().collect();
        watch_levels(&pdp, listeners, &clock);
        let levels = sinks.reporter();
        pdp.metrics.watch_sinks(move || levels().into_iter().map(level).collect());
        watch_policies(&pdp, &config.policies, &helpers);
        sources.start(&pdp, &helpers).await;
        watch_api_keys(&pdp, &helpers);
        let metrics = pdp.metrics.clone();
        drop(identity.spawn_watch(helpers.clone(), move |outcome| {
            metrics.tls_reload(outcome.is_ok());
            match outcome {
                Ok(_) => tracing::info!("the listener's certificate, key, client authorities or lists were renewed"),
                Err(error) => tracing::error!(
                    error = error as &dyn std::error::Error,
                    "what was renewed for TLS is not usable; what it should replace stays"
                ),
            }
        }));
        for (lane, shard) in shards.dealer().each().enumerate() {
            shard.spawn(helpers.clone().run_until_cancelled_owned(watch_lag(Arc::clone(&pdp), lane)));
        }
        tokio::spawn(report_issuers(Arc::clone(&pdp), config.issuers.clone(), helpers.clone()));
        tokio::spawn(report_lists(Arc::clone(&identity), Arc::clone(&clock), helpers.clone()));

        let (mut health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<Decisions>().await;
        let app = routes(&pdp, health_service, config.server.reflection);
        let events = Events::of(&pdp, pdp.listener, &helpers);
        let door = Door {
            listener,
            identity,
            names: config.identity.clone(),
            app,
            limits: config.limits.clone(),
            clock: Arc::clone(&clock),
            events,
            drain_timeout: config.server.drain_timeout,
            shards: Some(shards),
        };
        let closing = CancellationToken::new();
        let revoking = office.map(|office| tokio::spawn(office.serve(&pdp, &config, closing.clone(), &helpers)));
        let mut serving = tokio::spawn(door.serve(closing.clone()));
        readiness.set("serving", true);
        tracing::info!(
            address = %pdp.listener,
            ops_address = %ops_address,
            revision = pdp.store.current().revision().short(),
            "serving"
        );

        let ended = tokio::select! {
            () = drain.cancelled() => {
                tracing::info!("draining");
                None
            }
            early = &mut serving => {
                // Nobody answers at the door any more: better to stop, and be started again, than to look ready.
                tracing::error!("the listener ended by itself");
                Some(early)
            }
        };
        let mut by_itself = ended.is_some();
        readiness.set("serving", false);
        for service in [WHOLE_SERVER, DECISIONS] {
            health.set_service_status(service, ServingStatus::NotServing).await;
        }
        if !by_itself {
            tokio::time::sleep(config.server.drain_delay).await;
        }
        closing.cancel();
        // Who watches them would watch to the end of the drain, and count as a call that did not finish.
        for service in [WHOLE_SERVER, DECISIONS] {
            health.clear_service_status(service).await;
        }
        let report = match ended {
            None => serving.await,
            Some(early) => early,
        };
        by_itself |= report.is_err();
        if let Some(revoking) = revoking {
            // How it ended is told where it is served.
            let _ = revoking.await;
        }
        let cut_off = report.map_or(0, |report| report.cut_off);
        let stopped = Entry::Lifecycle(LifecycleEntry { time: clock.now(), started: false });
        if let Err(error) = pdp.trail.write(&stopped).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the stop could not be recorded");
        }
        pdp.trail.close().await;
        sinks.close().await;
        stop.cancel();
        if operators.await.is_err() {
            tracing::error!("the operators' door ended early");
        }
        tracing::info!(cut_off, "stopped");
        Ok(Stopped { cut_off, by_itself })
    }
}

/// Puts the start on record. A spool that is full of what a sink has still to get is waited for: the sink can only get it
/// while we are here.
async fn record_start(trail: &Trail, clock: &SharedClock, drain: &CancellationToken) -> Result<(), AuditError> {
    let mut told = false;
    loop {
        let started = Entry::Lifecycle(LifecycleEntry { time: clock.now(), started: true });
        let error = match trail.write(&started).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let full = matches!(error, AuditError::Disk(ErrorKind::QuotaExceeded));
        if !full || drain.is_cancelled() {
            return Err(error);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::error!("the audit spool is full: nobody is served until a sink has taken its records");
        }
        tokio::select! {
            () = drain.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}

/// Every gRPC service behind the listener, in the layer that holds for all of them.
fn routes<H>(pdp: &Arc<Pdp>, health: tonic_health::pb::health_server::HealthServer<H>, reflection: bool) -> Recorded
where
    H: tonic_health::pb::health_server::Health,
{
    let message_bytes = pdp.limits.batch_bytes.max(pdp.limits.request_bytes);
    let decisions = Decisions::new(Service::new(Arc::clone(pdp)), message_bytes);
    let mut routes = Routes::new(health.max_decoding_message_size(4096));
    if reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that a client can read the details of an error, which is where the reason is.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        // Python's reflection client speaks v1alpha, newer ones v1.
        match (builder().build_v1(), builder().build_v1alpha()) {
            (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "reflection is not available");
            }
        }
    }
    Recorded::new(Front::new(decisions, routes.prepare().into_axum_router()), Arc::clone(pdp))
}

/// Levels that are read when somebody looks.
fn watch_levels(pdp: &Arc<Pdp>, listeners: Vec<Arc<ServerIdentity>>, clock: &SharedClock) {
    let metrics = &pdp.metrics;
    let trail = pdp.trail.clone();
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    metrics.watch(Watched::AuditQueue, move || trail.depth() as f64);
    let trail = pdp.trail.clone();
    metrics.watch(Watched::AuditSpoolBytes, {
        let trail = trail.clone();
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        move || trail.spool_bytes() as f64
    });
    metrics.watch(Watched::AuditHealthy, move || f64::from(u8::from(trail.healthy())));
    let weak = Arc::downgrade(pdp);
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    metrics.watch(Watched::DecisionCache, move || weak.upgrade().map_or(0.0, |pdp| pdp.rulings.entries() as f64));
    let weak = Arc::downgrade(pdp);
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    metrics.watch(Watched::TokenCache, move || weak.upgrade().map_or(0.0, |pdp| pdp.tokens.cached() as f64));
    let admission = pdp.admission.clone();
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    metrics.watch(Watched::Places, move || admission.limit() as f64);
    let admission = pdp.admission.clone();
    metrics.watch(Watched::Accepted, move || admission.accepted());
    let admission = pdp.admission.clone();
    metrics.watch(Watched::RuntimeLag, move || admission.last_lag().as_secs_f64());
    let weak = Arc::downgrade(pdp);
    metrics.watch_key_ages(move || {
        let ages = weak.upgrade().map_or_else(Vec::new, |pdp| pdp.tokens.key_ages());
        ages.into_iter().map(|(issuer, age)| (issuer, age.as_secs_f64())).collect()
    });
    let first_list_end =
        |listeners: &[Arc<ServerIdentity>]| listeners.iter().filter_map(|one| one.lists_expire_at()).min();
    if first_list_end(&listeners).is_some() {
        let (listeners, clock) = (listeners.clone(), Arc::clone(clock));
        let left = move || first_list_end(&listeners).map_or(f64::NAN, |end| seconds_until(end, clock.now()));
        metrics.watch(Watched::RevocationExpiry, left);
    }
    let first = |listeners: &[Arc<ServerIdentity>]| {
        listeners.iter().map(|one| (one.certificate_expires_at(), one.certificate_valid_from())).min()
    };
    let (all, at) = (listeners.clone(), Arc::clone(clock));
    metrics.watch(Watched::CertificateExpiry, move || {
        first(&all).map_or(f64::NAN, |(end, _)| seconds_until(end, at.now()))
    });
    let clock = Arc::clone(clock);
    metrics.watch(Watched::CertificateAge, move || {
        first(&listeners).map_or(f64::NAN, |(_, beginning)| -seconds_until(beginning, clock.now()))
    });
    metrics.watch_process(Process::read);
}

/// Negative once `end` is past.
fn seconds_until(end: SystemTime, now: SystemTime) -> f64 {
    match end.duration_since(now) {
        Ok(left) => left.as_secs_f64(),
        Err(past) => -past.duration().as_secs_f64(),
    }
}

/// Reloads policies when they change, and says what came of it: in the log, the metrics and the record.
fn watch_policies(pdp: &Arc<Pdp>, settings: &PolicyConfig, stop: &CancellationToken) {
    let age = Arc::new(Mutex::new(pdp.clock.monotonic()));
    let (clock, since) = (Arc::clone(&pdp.clock), Arc::clone(&age));
    pdp.metrics.watch(Watched::PolicyAge, move || clock.monotonic().saturating_sub(*since.lock()).as_secs_f64());
    let (told, runtime) = (Arc::clone(pdp), tokio::runtime::Handle::current());
    let store = Arc::clone(&pdp.store);
    pdp.metrics.watch(Watched::PolicyRefused, move || f64::from(u8::from(store.is_behind())));
    let watching = pdp.store.watch(settings.reload_interval, stop.clone(), move |news| {
        let pdp = &told;
        let entry = match news {
            Reload::Unchanged => return,
            Reload::Changed { before, after } => {
                pdp.metrics.policy_reload(true);
                in_force(&pdp.metrics, &pdp.store.current());
                *age.lock() = pdp.clock.monotonic();
                tracing::info!(before = before.short(), revision = after.short(), "new policies are in force");
                PolicyEntry { time: pdp.clock.now(), before: Some(before), after: Some(after), problems: 0 }
            }
            Reload::Refused(report) => {
                pdp.metrics.policy_reload(false);
                for problem in &report.problems {
                    tracing::error!(problem = %problem, "the changed policies are not usable; the old ones stay");
                }
                let before = pdp.store.current().revision().clone();
                PolicyEntry {
                    time: pdp.clock.now(),
                    before: Some(before),
                    after: None,
                    problems: report.problems.len(),
                }
            }
        };
        if let Err(error) = runtime.block_on(pdp.trail.write(&Entry::Policy(entry))) {
            tracing::error!(error = &error as &dyn std::error::Error, "the change of policies could not be recorded");
        }
    });
    if let Err(error) = watching {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the policy folder can't be watched; it is looked at now and then"
        );
    }
}

/// Tells admission how late this runtime is, for ever: a task that wants to wake every few milliseconds. `lane` numbers the
/// runtime.
async fn watch_lag(pdp: Arc<Pdp>, lane: usize) {
    const EVERY: Duration = Duration::from_millis(5);
    loop {
        // The runtime's own time, which is what is measured, and not the house's: that one a test may move.
        let due = tokio::time::Instant::now() + EVERY;
        tokio::time::sleep_until(due).await;
        pdp.admission.lag(lane, due.elapsed() + turn::standing());
    }
}

/// Tells the metrics of introspections and status lists.
fn news(metrics: &Metrics) -> Heard {
    let metrics = metrics.clone();
    Arc::new(move |news| match news {
        News::Introspection { issuer, result } => metrics.introspection(issuer, result),
        News::Lookup { cache, hit } => metrics.cache_lookup(cache, if hit { "hit" } else { "miss" }),
        News::StatusList { issuer, well } => metrics.status_list_refresh(issuer, well),
    })
}

/// Reads API keys again when they change, and says what came of it.
fn watch_api_keys(pdp: &Arc<Pdp>, stop: &CancellationToken) {
    let metrics = pdp.metrics.clone();
    drop(pdp.api_keys.spawn_watch(stop.clone(), move |outcome| {
        metrics.api_key_reload(outcome.is_ok());
        match outcome {
            Ok(keys) => tracing::info!(keys, "the API keys were read again"),
            Err(error) => tracing::error!(
                error = error as &dyn std::error::Error,
                "the changed API keys are not usable; the old ones stay"
            ),
        }
    }));
}

/// Tells the metrics which issuers' keys are at hand.
async fn report_issuers(pdp: Arc<Pdp>, issuers: Vec<TrustedIssuer>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    let mut known: Vec<(String, bool)> = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = pdp.tokens.issuers_ready();
        for (issuer, ready) in &now {
            pdp.metrics.issuer_ready(issuer, *ready);
            let before = known.iter().find(|(name, _)| name == issuer).map(|(_, ready)| *ready);
            if !ready && before != Some(false) && issuers.iter().any(|known| known.issuer == *issuer) {
                tracing::error!(issuer, "the keys of an issuer are not at hand; its tokens are denied");
            }
        }
        known = now;
    }
}

/// Tells when a revocation list runs out, once.
async fn report_lists(identity: Arc<ServerIdentity>, clock: SharedClock, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut known = a_list_has_ended(&identity, &clock);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let ended = a_list_has_ended(&identity, &clock);
        if ended && !known {
            tell_of_ended_list();
        }
        known = ended;
    }
}

fn a_list_has_ended(identity: &ServerIdentity, clock: &SharedClock) -> bool {
    identity.lists_expire_at().is_some_and(|end| end <= clock.now())
}

/// It has to be so, but whoever is woken by all the refusals should find the one cause.
fn tell_of_ended_list() {
    tracing::error!("a list of `server.client_crls` has run out: callers whose certificates it speaks of are refused");
}

/// Hears of connections.
struct Events {
    pdp: Arc<Pdp>,
    /// Where they come in.
    listener: SocketAddr,
    connections: Mutex<Vec<Present>>,
    recorded: Mutex<Budget>,
    runtime: tokio::runtime::Handle,
}

/// Refused handshakes that get a record of their own: ten a second, so that a flood can't fill the disk. What is left
/// out is counted in the next record, and the last of it is told for the others.
#[derive(Default)]
struct Budget {
    second: u64,
    used: u32,
    suppressed: u64,
    last: Option<Stranger>,
}

/// Who was refused, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stranger {
    address: SocketAddr,
    reason: &'static str,
}

const HANDSHAKE_RECORDS_PER_SECOND: u32 = 10;

impl Budget {
    /// Whom to tell of in this second, and of how many besides.
    fn refused(&mut self, second: u64, stranger: Stranger) -> Option<(Stranger, u64)> {
        if self.second != second {
            (self.second, self.used) = (second, 0);
        }
        if self.used >= HANDSHAKE_RECORDS_PER_SECOND {
            self.suppressed += 1;
            self.last = Some(stranger);
            return None;
        }
        self.used += 1;
        self.last = None;
        Some((stranger, std::mem::take(&mut self.suppressed)))
    }

    /// What was left untold in an earlier second.
    fn rest(&mut self, second: u64) -> Option<(Stranger, u64)> {
        let last = self.last.filter(|_| self.second != second)?;
        self.suppressed -= 1;
        self.refused(second, last)
    }
}

impl Events {
    /// Those at `listener`. Must be called inside a runtime.
    fn of(pdp: &Arc<Pdp>, listener: SocketAddr, helpers: &CancellationToken) -> Arc<Self> {
        let events = Arc::new(Self {
            pdp: Arc::clone(pdp),
            listener,
            connections: Mutex::new(Vec::new()),
            recorded: Mutex::new(Budget::default()),
            runtime: tokio::runtime::Handle::current(),
        });
        tokio::spawn(record_the_rest(Arc::clone(&events), helpers.clone()));
        events
    }

    fn refused(&self, address: SocketAddr, reason: &'static str) {
        self.pdp.metrics.handshake_refused(reason);
        let told = self.recorded.lock().refused(self.pdp.clock.monotonic().as_secs(), Stranger { address, reason });
        if let Some(told) = told {
            self.runtime.spawn(record_refused(Arc::clone(&self.pdp), self.listener, told));
        }
    }
}

/// Once a second, until `stop`: puts on record what a flood that is over left untold, so that it does not wait for the
/// next stranger.
async fn record_the_rest(events: Arc<Events>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let told = events.recorded.lock().rest(events.pdp.clock.monotonic().as_secs());
        if let Some(told) = told {
            record_refused(Arc::clone(&events.pdp), events.listener, told).await;
        }
    }
}

/// In the log and on record.
async fn record_refused(
    pdp: Arc<Pdp>,
    listener: SocketAddr,
    (Stranger { address, reason }, suppressed): (Stranger, u64),
) {
    tracing::info!(%address, reason, suppressed, "a connection was refused");
    let entry = HandshakeEntry { time: pdp.clock.now(), address, listener, reason, suppressed };
    if let Err(error) = pdp.trail.write(&Entry::Handshake(entry)).await {
        tracing::error!(error = &error as &dyn std::error::Error, "a refused connection could not be recorded");
    }
}

impl ConnectionEvents for Events {
    fn handshake_refused(&self, address: SocketAddr, reason: &'static str) {
        if reason == "CLOSED" {
            // Somebody looked whether the port is open and said nothing: counted, but no attempt at anything.
            self.pdp.metrics.handshake_refused(reason);
            return;
        }
        self.refused(address, reason);
    }

    fn connections(&self, open: usize) {
        let mut present = self.connections.lock();
        present.truncate(open);
        while present.len() < open {
            present.push(self.pdp.metrics.connection());
        }
    }

    fn over_cap(&self, address: SocketAddr, limit: &'static str) {
        self.refused(address, limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refused_stranger_is_told_of_once_alone_or_among_others() {
        let stranger = Stranger { address: ([192, 0, 2, 1], 1).into(), reason: "PROTOCOL" };
        let mut budget = Budget::default();
        let mut told = |second: u64, strangers: u32| -> u64 {
            let told = (0..strangers).filter_map(|_| budget.refused(second, stranger));
            told.map(|(_, besides)| 1 + besides).sum()
        };
        assert_eq!(told(1, 10), 10, "each on its own");
        assert_eq!(told(1, 90), 0, "a flood is not");
        assert_eq!(told(2, 1), 91, "but is counted with the next");
        assert_eq!(told(2, 109), 9);
        assert_eq!(budget.rest(2), None, "perhaps there is more of it");
        assert_eq!(budget.rest(3), Some((stranger, 99)), "though nobody came next");
        assert_eq!(budget.rest(4), None, "told once");
    }

    #[test]
    fn the_time_left_goes_below_zero_once_it_is_over() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        for (now, left, why) in [(40, 60.0, "before"), (100, 0.0, "at the end"), (130, -30.0, "past it")] {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
            assert!((seconds_until(end, now) - left).abs() < f64::EPSILON, "{why}");
        }
    }
}
