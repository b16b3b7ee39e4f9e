//! A folder with everything that a server can need, in which a test plants one mistake.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use gatepost::cli::demo::world::World;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::Value;

use super::authority::host;
use super::copy_bundle;

/// Who has no rights anywhere.
pub const NOBODY: u32 = 65_534;
pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(24 * 3600);

pub fn now() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "the real binary keeps real time")]
    SystemTime::now()
}

/// The folder, its configuration, and an authority for whatever a test wants to put there.
pub struct Ground {
    pub settings: Value,
    pub authority: Issuer<'static, KeyPair>,
    pub authority_pem: String,
    folder: tempfile::TempDir,
    nobody_asks: bool,
}

impl Ground {
    /// The worked example, as the demo has it.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::create(folder.path()).unwrap();
        copy_bundle(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"), &folder.path().join("policies"));
        let settings = world.configuration(Path::new("policies"));
        let (authority, authority_pem) = authority("a test's own", &KeyPair::generate().unwrap(), |_| ());
        Self { settings, authority, authority_pem, folder, nobody_asks: false }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// For the owner alone, as keys should be.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        self.mode(name, 0o600);
    }

    pub fn mode(&self, name: &str, mode: u32) {
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Another certificate and key for the server, `server` or `admin`.
    pub fn certificate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let (certificate, key) = leaf(&self.authority, change);
        self.write(&format!("{name}.pem"), &certificate);
        self.write(&format!("{name}.key"), &key);
        (certificate, key)
    }

    /// Whoever asks from now on may do nothing that the folder does not let everybody do. Root may do anything, so that
    /// root becomes somebody else.
    pub fn asked_by_nobody(&mut self) {
        self.nobody_asks = true;
    }

    /// `gatepost <command> --config .. <arguments>`, to its end.
    pub fn run(&self, command: &str, arguments: &[&str]) -> Output {
        self.write("gatepost.yaml", &self.settings.to_string());
        let mut asked = Command::new(env!("CARGO_BIN_EXE_gatepost"));
        asked.args([command, "--config"]).arg(self.path("gatepost.yaml")).args(arguments);
        asked.env_remove("GATEPOST_CONFIG").env_remove("NO_COLOR").stdin(Stdio::null());
        if self.nobody_asks && is_root(self.folder.path()) {
            give_away(self.folder.path());
            asked.uid(NOBODY).gid(NOBODY);
        }
        asked.output().unwrap()
    }
}

fn is_root(folder: &Path) -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(folder).unwrap()) == 0
}

fn give_away(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give_away(&entry.unwrap().path());
        }
    }
}

/// An authority that signs itself.
pub fn authority(
    name: &str,
    key: &KeyPair,
    change: impl FnOnce(&mut CertificateParams),
) -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    let pem = params.self_signed(key).unwrap().pem();
    let key = KeyPair::from_pem(&key.serialize_pem()).unwrap();
    (Issuer::new(params, key), pem)
}

/// A server's certificate for `localhost`, good for a year, and its key.
pub fn leaf(issuer: &Issuer<'_, KeyPair>, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![host("localhost"), SanType::IpAddress([127, 0, 0, 1].into())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = (now() - HOUR).into();
    params.not_after = (now() + 365 * DAY).into();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}
