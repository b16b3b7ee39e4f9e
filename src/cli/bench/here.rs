//! `--here`: the real server in a process of its own, in a world that is made for the run and goes with it.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Trouble, question};
use crate::cli::complain;
use crate::cli::demo::bundle::find_or_write;
use crate::cli::demo::world::{CLIENT, ClientFiles, ISSUER, World, spiffe_id};
use crate::clock::{SharedClock, SystemClock, unix_seconds};
use crate::model::entity::EntityType;
use crate::policy::{Bundle, BundleOptions};

/// How long a server may take until it serves; a large bundle is compiled first.
const START: Duration = Duration::from_secs(120);
/// How long it may take to end in order.
const END: Duration = Duration::from_secs(15);
/// The longest lifetime of a token; also what the world's issuer allows.
pub const TOKEN: Duration = Duration::from_secs(24 * 60 * 60);
/// Lines of its log that are kept for whoever has to know why it ended.
const LAST_LINES: usize = 10;

/// When a record counts as kept, as `audit.mode` in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuditMode {
    /// Queued
    Async,
    /// Written to the file
    Written,
    /// On the disk
    Durable,
}

impl AuditMode {
    /// As the configuration has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Written => "written",
            Self::Durable => "durable",
        }
    }
}

/// A server in a process of its own. It ends, and its folder goes, when this is dropped.
pub struct Here {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where its operators look.
    pub operators: SocketAddr,
    /// Who we are there.
    pub files: ClientFiles,
    /// Whom we speak of there.
    pub token: String,
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
    /// Held for its end.
    _folder: TempDir,
}

impl Here {
    /// Makes the world and starts the server over `policies`, or over the worked example.
    ///
    /// # Errors
    /// [`Trouble`] says what is wrong.
    pub fn start(policies: Option<&Path>, mode: AuditMode, clock: &SharedClock) -> Result<Self, Trouble> {
        let fault = |error: std::io::Error| Trouble::Fault(format!("no server can be made: {error}"));
        let folder = tempfile::Builder::new()
            .prefix("gatepost-bench-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()
            .map_err(fault)?;
        let (files, token) = furnish(folder.path(), policies, mode, clock)?;
        let mut command = Command::new(std::env::current_exe().map_err(fault)?);
        command.args(["serve", "--config"]).arg(folder.path().join("gatepost.yaml"));
        // Nothing of the environment may change it; a Ctrl-C is ours alone, and it is told in order.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GATEPOST_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(fault)?;
        let log = Arc::default();
        let serving = child.stderr.take().map(|stderr| listen(stderr, &log));
        let nowhere = ([127, 0, 0, 1], 0).into();
        let mut here = Self { address: nowhere, operators: nowhere, files, token, child, log, _folder: folder };
        match serving.map(|serving| serving.recv_timeout(START)) {
            Some(Ok((address, operators))) => {
                (here.address, here.operators) = (address, operators);
                Ok(here)
            }
            Some(Err(_)) | None => Err(here.why_not()),
        }
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn why_not(mut self) -> Trouble {
        // Its standard error is closed, or it is too slow; either way it says no more.
        let _ = self.child.kill();
        let code = self.child.wait().ok().and_then(|status| status.code());
        let log = Vec::from(self.log.lock().clone()).join("\n");
        let told = format!("the server did not start:\n{log}");
        if code == Some(i32::from(crate::cli::exit::DATA)) { Trouble::Policies(told) } else { Trouble::Fault(told) }
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        let asked = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // It may have ended already; then there is nobody to ask.
        let _ = asked.map(|id| kill_process(id, Signal::TERM));
        let pause = Duration::from_millis(20);
        let mut waited = Duration::ZERO;
        while waited < END && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(pause);
            waited += pause;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fills a folder with everything that a server needs, and whoever asks it: settings (`gatepost.yaml`), certificates and,
/// unless there are policies, the worked example. Gives the files of the caller `bench`, and a token of alice's.
fn furnish(
    folder: &Path,
    policies: Option<&Path>,
    mode: AuditMode,
    clock: &SharedClock,
) -> Result<(ClientFiles, String), Trouble> {
    let fault = |error: std::io::Error| Trouble::Fault(format!("no server can be made: {error}"));
    let world = World::create(folder).map_err(fault)?;
    let settings = settings(&world, policies, mode)?;
    world.write("gatepost.yaml", &settings.to_string()).map_err(fault)?;
    let files = world.client("bench", &spiffe_id("bench")).map_err(fault)?;
    // She has just signed in with a second factor: no guardrail of the worked example stands in the way.
    let login = unix_seconds(clock.now()).saturating_sub(60);
    let claims = json!({ "tenant": "acme", "roles": [], "amr": ["pwd", "mfa"], "auth_time": login });
    let token = world.token("alice", &claims, clock.now(), TOKEN).map_err(fault)?;
    Ok((files, token))
}

/// Make what a server for a load needs, and whoever asks it
#[derive(Debug, Args)]
#[command(after_long_help = "\
The folder gets what --here makes for a run: gatepost.yaml and everything that it names, the caller's bench.pem and bench.key, \
ca.pem, alice.token and question.yaml.

    gatepost bench world --folder world
    gatepost serve --config world/gatepost.yaml
    gatepost bench --address 127.0.0.1:PORT --ca world/ca.pem --certificate world/bench.pem \\
        --key world/bench.key --token world/alice.token --question world/question.yaml

Exit codes: 0 made, 64 the folder can't be used, 70 it could not be made.")]
pub struct WorldArgs {
    /// An empty folder, of the owner alone; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
}

/// Runs the command.
pub fn world(args: &WorldArgs) -> u8 {
    let unfit = |path: &Path| {
        let path = path.display().to_string();
        move |why: std::io::Error| {
            Trouble::Usage(format!("--folder: {path}: {why}; name a folder that is empty or not there"))
        }
    };
    let make = || -> Result<(), Trouble> {
        // Keys will be in it.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&args.folder).map_err(unfit(&args.folder))?;
        // Somebody else's keys may have the same names.
        if std::fs::read_dir(&args.folder).map_err(unfit(&args.folder))?.next().is_some() {
            return Err(unfit(&args.folder)(std::io::ErrorKind::DirectoryNotEmpty.into()));
        }
        let (_, token) = furnish(&args.folder, None, AuditMode::Durable, &SystemClock::shared())?;
        for (name, text) in [("alice.token", token.as_str()), ("question.yaml", question::USUAL)] {
            let file = args.folder.join(name);
            std::fs::write(&file, text).map_err(unfit(&file))?;
        }
        Ok(())
    };
    match make() {
        Ok(()) => 0,
        Err(trouble) => {
            complain(&trouble.to_string());
            trouble.code()
        }
    }
}

/// Where it listens, and where its operators look.
type Doors = (SocketAddr, SocketAddr);

/// Reads its log to the end, so that it never waits for a reader; gives the addresses when it serves.
fn listen(stderr: ChildStderr, log: &Arc<Mutex<VecDeque<String>>>) -> mpsc::Receiver<Doors> {
    let (tell, serving) = mpsc::channel();
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        let mut tell = Some(tell);
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if let Some(doors) = tell.as_ref().and_then(|_| doors_in(&line))
                && let Some(tell) = tell.take()
            {
                // Whoever waited may have given up.
                let _ = tell.send(doors);
            }
            let mut log = log.lock();
            if log.len() >= LAST_LINES {
                log.pop_front();
            }
            log.push_back(line);
        }
    });
    serving
}

fn doors_in(line: &str) -> Option<Doors> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    (fields.get("message")?.as_str()? == "serving").then_some(())?;
    let address = |name: &str| fields.get(name)?.as_str()?.parse().ok();
    Some((address("address")?, address("ops_address")?))
}

/// The demo's configuration, with one caller that may ask anything, and no more of the worked example than the bundle has.
fn settings(world: &World, policies: Option<&Path>, mode: AuditMode) -> Result<Value, Trouble> {
    let folder = match policies {
        Some(given) => std::fs::canonicalize(given)
            .map_err(|error| Trouble::Policies(format!("--policies {}: {error}", given.display())))?,
        // The folder has none of its own, so this writes the worked example.
        None => find_or_write(world.folder(), world.folder())
            .map_err(|error| Trouble::Fault(format!("the worked example can't be written: {error}")))?,
    };
    // Of what lies beside the settings, its name: they are read from there, wherever they are looked at from.
    let mut settings = world.configuration(folder.strip_prefix(world.folder()).unwrap_or(&folder));
    let mut put = |place: &str, value: Value| {
        if let Some((whole, last)) = place.rsplit_once('/')
            && let Some(members) = settings.pointer_mut(whole).and_then(Value::as_object_mut)
        {
            members.insert(last.to_owned(), value);
        }
    };
    put(
        "/callers",
        json!([{
            "spiffe_id": spiffe_id("bench"), "name": "bench", "resource_types": "*", "actions": "*",
            "supply_attributes": "*", "supply_parents": "*", "assert_subjects": "*", "sees_policies": true,
            "presents_for": [{ "issuer": ISSUER, "client": CLIENT }], "tenants": "*",
        }]),
    );
    put("/audit/mode", json!(mode.as_str()));
    put("/telemetry/logs", json!({ "format": "json", "filter": "info" }));
    put("/issuers/0/max_lifetime", json!("24h"));
    if policies.is_some() {
        let bundle = Bundle::load(&folder, &BundleOptions::default()).map_err(|report| {
            let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
            Trouble::Policies(format!("the policies can't be used:\n{}", problems.join("\n")))
        })?;
        let is_there = |kind: &str| EntityType::parse(kind).is_ok_and(|kind| bundle.declares_type(&kind));
        let has = |kind: &str, name: &str| EntityType::parse(kind).is_ok_and(|kind| bundle.declares(&kind, name));
        if !is_there("Tenant") {
            put("/policies/tenant_type", Value::Null);
        }
        let mut attributes = serde_json::Map::new();
        if is_there("Tenant") && has("User", "tenant") {
            attributes.insert("tenant".to_owned(), json!({ "claim": "tenant", "entity": "Tenant" }));
        }
        if has("User", "suspended") {
            attributes.insert("suspended".to_owned(), json!("suspended"));
        }
        put("/issuers/0/principal/attributes", Value::Object(attributes));
        let roles = if is_there("Role") { json!([{ "claim": "roles", "type": "Role" }]) } else { json!([]) };
        put("/issuers/0/principal/parents", roles);
        put("/audit/attributes", if has("Order", "status") { json!({ "Order.status": "keep" }) } else { json!({}) });
    }
    Ok(settings)
}
