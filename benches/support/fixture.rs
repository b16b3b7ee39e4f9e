//! What `gatepost serve` needs for one run: the world of the demo, with the bundle in `policies/`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gatepost::cli::demo::world::{ClientFiles, World, spiffe_id};
use gatepost::clock::SystemClock;
use serde_json::json;

use super::Failure;

/// A folder with the files, and one user's token.
pub struct Fixture {
    folder: tempfile::TempDir,
    port: u16,
    client: ClientFiles,
    token: String,
}

impl Fixture {
    /// Writes everything; the server is to listen on `port`, its operators' door on `ops_port`, and to keep records in
    /// this mode before it answers.
    pub fn make(port: u16, ops_port: u16, mode: &str) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        let world = World::create(folder.path())?;
        let mut settings = world.configuration(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"));
        let changes = [
            ("/server/listen", json!(format!("127.0.0.1:{port}"))),
            ("/server/ops_listen", json!(format!("127.0.0.1:{ops_port}"))),
        ];
        let audit = settings.get_mut("audit").and_then(serde_json::Value::as_object_mut);
        audit.ok_or("the demo's configuration has changed")?.insert("mode".to_owned(), json!(mode));
        for (place, value) in changes {
            *settings.pointer_mut(place).ok_or("the demo's configuration has changed")? = value;
        }
        world.write("gatepost.yaml", &settings.to_string())?;
        let client = world.client("storefront", &spiffe_id("storefront"))?;
        let claims = json!({"tenant": "acme", "roles": [], "scope": "openid profile orders"});
        let token = world.token("alice", &claims, SystemClock::shared().now(), Duration::from_secs(14 * 60))?;
        Ok(Self { folder, port, client, token })
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

    /// The storefront's certificate files.
    pub fn client(&self) -> &ClientFiles {
        &self.client
    }

    /// Alice's token.
    pub fn token(&self) -> &str {
        &self.token
    }
}
