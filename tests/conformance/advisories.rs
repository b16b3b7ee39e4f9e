//! What we link: no version with a known advisory, one version of each crate whose types cross our own, and none of
//! the crates that we decided against. Against the RustSec advisories of the corpus; no network.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use semver::{Version, VersionReq};
use serde::Deserialize;

use crate::support::{corpus, say};

#[derive(Deserialize)]
struct Corpus {
    advisories: Vec<Advisory>,
}

#[derive(Deserialize)]
struct Advisory {
    #[serde(rename = "crate")]
    package: String,
    id: String,
    title: String,
    /// Versions that are well; with none, no version is.
    patched: Vec<String>,
}

impl Advisory {
    fn concerns(&self, version: &Version) -> bool {
        !self.patched.iter().any(|range| {
            VersionReq::parse(range).unwrap_or_else(|error| panic!("{}: {range}: {error}", self.id)).matches(version)
        })
    }
}

/// Every package of Cargo.lock with its version.
fn locked() -> Vec<(String, Version)> {
    let lock = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let value =
        |line: &str, key: &str| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"').map(str::to_owned);
    let mut packages = Vec::new();
    for package in lock.split("[[package]]").skip(1) {
        let name = package.lines().find_map(|line| value(line, "name")).unwrap();
        let version = package.lines().find_map(|line| value(line, "version")).unwrap();
        packages.push((name, Version::parse(&version).unwrap()));
    }
    assert!(packages.len() > 100, "Cargo.lock was read");
    packages
}

/// Every package that is built here, for the service or for its tests. Cargo.lock also holds optional ones that no
/// feature turns on.
fn built() -> BTreeSet<(String, Version)> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let packages: BTreeSet<_> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?.to_owned(), Version::parse(words.next()?.trim_start_matches('v')).unwrap()))
        })
        .collect();
    assert!(packages.len() > 100, "the tree was read");
    packages
}

#[test]
fn nothing_that_is_built_has_a_known_advisory() {
    let Some(path) = corpus("advisories/rustsec-gatepost.json") else { return };
    let corpus: Corpus = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (locked, built) = (locked(), built());
    let mut checked = 0;
    let mut hits = Vec::new();
    for advisory in &corpus.advisories {
        for package in locked.iter().filter(|(name, _)| *name == advisory.package) {
            checked += 1;
            if advisory.concerns(&package.1) {
                let hit = format!("{} {}: {}: {}", package.0, package.1, advisory.id, advisory.title);
                if built.contains(package) {
                    hits.push(hit);
                } else {
                    say!("advisories: locked, but not built: {hit}");
                }
            }
        }
    }
    say!("advisories: {} read, {checked} concern a locked crate, {} hit", corpus.advisories.len(), hits.len());
    assert!(checked > 0, "an empty corpus proves nothing");
    assert!(hits.is_empty(), "{}", hits.join("\n"));
}

#[test]
fn an_advisory_hits_what_is_outside_its_patched_ranges() {
    let advisory = |patched: &[&str]| Advisory {
        package: String::new(),
        id: String::new(),
        title: String::new(),
        patched: patched.iter().map(|range| (*range).to_owned()).collect(),
    };
    let ranges: &[&str] = &[">= 0.103.12, < 0.104.0-alpha.1", ">= 0.104.0-alpha.6"];
    let table = [
        ("0.103.11", ranges, true, "older than the mend"),
        ("0.103.12", ranges, false, "the mend itself"),
        ("0.103.17", ranges, false, "newer"),
        ("0.104.0", ranges, false, "past the second mend"),
        ("0.104.0-alpha.3", ranges, true, "between the two"),
        ("1.0.0", &[], true, "never mended"),
    ];
    for (version, patched, hit, why) in table {
        assert_eq!(advisory(patched).concerns(&Version::parse(version).unwrap()), hit, "{version}: {why}");
    }
}

#[test]
fn there_is_one_version_of_every_crate_whose_types_cross_ours() {
    let locked = locked();
    for name in ["tonic", "prost", "http", "hyper", "rustls", "opentelemetry", "cedar-policy", "cedar-policy-core"] {
        let versions: Vec<_> = locked.iter().filter(|(known, _)| known == name).map(|(_, version)| version).collect();
        assert_eq!(versions.len(), 1, "{name}: {versions:?}");
    }
}

#[test]
fn crates_that_we_decided_against_are_not_built() {
    let built = built();
    for name in ["ring", "openssl", "openssl-sys", "native-tls", "rsa", "serde_yaml", "rustls-pemfile"] {
        assert!(!built.iter().any(|(known, _)| known == name), "{name} is built: `cargo tree --invert {name}`");
    }
    assert!(built.iter().any(|(name, _)| name == "aws-lc-rs"), "the one provider of cryptography");
}
