//! What `gatepost serve` needs for one run: the world of the demo, with the bundle in `policies/` or a generated one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gatepost::cli::demo::world::{CLIENT, ClientFiles, ISSUER, World, spiffe_id};
use gatepost::clock::SystemClock;
use serde_json::{Value, json};

use super::questions::Topic;
use super::{Failure, generated};

/// A folder with the files, and one user's token.
pub struct Fixture {
    folder: tempfile::TempDir,
    port: u16,
    ops_port: u16,
    client: ClientFiles,
    token: String,
    topic: Topic,
}

impl Fixture {
    /// Writes everything; the server keeps records in this mode before it answers.
    pub fn make(topic: Topic, mode: &str) -> Result<Self, Failure> {
        Self::with(topic, mode, &[])
    }

    /// The same, with these settings over it, by JSON pointer. What leads there has to exist.
    pub fn with(topic: Topic, mode: &str, settings: &[(&str, Value)]) -> Result<Self, Failure> {
        let (port, ops_port) = (super::free_port()?, super::free_port()?);
        let folder = tempfile::tempdir()?;
        let world = World::create(folder.path())?;
        let mut all = configuration(&world, topic)?;
        put(&mut all, "/server/listen", json!(format!("127.0.0.1:{port}")))?;
        put(&mut all, "/server/ops_listen", json!(format!("127.0.0.1:{ops_port}")))?;
        put(&mut all, "/audit/mode", json!(mode))?;
        // So many questions in a row are an unusual pattern, and it would say so.
        put(&mut all, "/telemetry/logs/filter", json!("error"))?;
        // What an answer takes is measured, on a machine that may be busy: nothing is to be shed for being late.
        put(&mut all, "/limits/overload_target", json!("1s"))?;
        for (place, value) in settings {
            put(&mut all, place, value.clone())?;
        }
        world.write("gatepost.yaml", &all.to_string())?;
        let client = world.client("storefront", &spiffe_id("storefront"))?;
        let (user, claims) = match topic {
            Topic::Shop => ("alice", json!({"tenant": "acme", "roles": [], "scope": "openid profile orders"})),
            Topic::Documents(_) => ("u4", json!({"level": 3, "roles": ["r0", "staff"], "scope": "openid profile"})),
        };
        let token = world.token(user, &claims, SystemClock::shared().now(), Duration::from_secs(14 * 60))?;
        Ok(Self { folder, port, ops_port, client, token, topic })
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The configuration of the server.
    pub fn config(&self) -> PathBuf {
        self.path("gatepost.yaml")
    }

    /// Where the server is to listen.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its operators' door is.
    pub fn ops_port(&self) -> u16 {
        self.ops_port
    }

    /// The storefront's certificate files.
    pub fn client(&self) -> &ClientFiles {
        &self.client
    }

    /// The user's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// What its bundle is about.
    pub fn topic(&self) -> Topic {
        self.topic
    }
}

fn configuration(world: &World, topic: Topic) -> Result<Value, Failure> {
    let Topic::Documents(policies) = topic else {
        let mut settings = world.configuration(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"));
        put(&mut settings, "/limits", json!({}))?;
        return Ok(settings);
    };
    let bundle = world.folder().join("bundle");
    std::fs::create_dir(&bundle)?;
    for file in generated::policies(policies).iter().chain([&generated::schema()]) {
        std::fs::write(bundle.join(&file.name), &file.text)?;
    }
    let mut settings = world.configuration(&bundle);
    put(&mut settings, "/policies", json!({ "directory": bundle }))?;
    put(&mut settings, "/limits", json!({ "policies": policies.max(10_000), "bundle_bytes": "64MiB" }))?;
    put(&mut settings, "/issuers/0/principal/attributes", json!({ "level": "level" }))?;
    put(&mut settings, "/audit/attributes", json!({}))?;
    let kinds = generated::KINDS.map(|fields| format!("D{fields}"));
    let storefront = json!([{
        "spiffe_id": spiffe_id("storefront"), "name": "storefront",
        "resource_types": kinds, "actions": kinds.clone().map(|kind| format!("{kind}.*")),
        "supply_attributes": kinds, "supply_parents": kinds, "sees_policies": true,
        "presents_for": [{ "issuer": ISSUER, "client": CLIENT }],
    }]);
    put(&mut settings, "/callers", storefront)?;
    Ok(settings)
}

/// Sets what stands at `place`, whether or not it was there.
fn put(settings: &mut Value, place: &str, value: Value) -> Result<(), Failure> {
    let (section, key) = place.rsplit_once('/').ok_or("no JSON pointer")?;
    let section = settings.pointer_mut(section).and_then(Value::as_object_mut);
    section.ok_or("the demo's configuration has changed")?.insert(key.to_owned(), value);
    Ok(())
}
