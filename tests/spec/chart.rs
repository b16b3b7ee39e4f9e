//! The Helm chart and the server agree: the schema of the chart's values has the configuration's own in it, and what the
//! chart makes of its examples is what the server's loader takes. That the chart renders, tests/chart.py shows.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gatepost::config::ListenerIdentity;
use gatepost::config::load::{Source, json_schema, load};
use serde_json::{Map, Value, json};

const SCHEMA: &str = "helm/gatepost/values.schema.json";

fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Required keys of the file that a user of the chart does not give: the chart sets them, or asks for them in a sentence
/// of its own.
const NOT_ASKED_FOR: [(&str, &str); 8] = [
    ("RawConfig", "callers"),
    ("RawPolicies", "directory"),
    ("RawAudit", "spool"),
    ("RawSpool", "directory"),
    ("RawAdmin", "listen"),
    ("RawAdmin", "certificate"),
    ("RawAdmin", "private_key"),
    ("RawAdmin", "client_ca"),
];

/// A schema of ours in the words that Helm knows: what is required, and between which bounds numbers lie, is said in
/// keywords of our own, because the loader tells it in better words. `section` is the struct that it describes.
fn standard(section: &str, schema: &Value) -> Value {
    let Value::Object(members) = schema else {
        return match schema {
            Value::Array(items) => items.iter().map(|item| standard(section, item)).collect(),
            other => other.clone(),
        };
    };
    let mut told = Map::new();
    for (name, member) in members {
        let kept = match name.as_str() {
            // A default that is a section or a list says again what its members say.
            "default" => !(member.is_object() || member.is_array() || member.is_null()),
            "format" | "title" | "$schema" | "$defs" => false,
            own => !own.starts_with("x-"),
        };
        if kept {
            told.insert(name.clone(), standard(section, member));
        }
    }
    for (ours, theirs) in [("x-least", "minimum"), ("x-most", "maximum")] {
        if let Some(bound) = schema.get(ours).filter(|bound| bound.is_number()) {
            told.insert(theirs.to_owned(), bound.clone());
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let required: BTreeSet<&str> = properties
        .into_iter()
        .flatten()
        .filter(|(name, property)| {
            property.get("x-required").is_some() && !NOT_ASKED_FOR.contains(&(section, name.as_str()))
        })
        .map(|(name, _)| name.as_str())
        .collect();
    if !required.is_empty() {
        told.insert("required".to_owned(), json!(required));
    }
    Value::Object(told)
}

/// Keys in order: whether `serde_json` keeps one is up to the other crates of the build.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut names: Vec<&String> = members.keys().collect();
            names.sort();
            Value::Object(names.into_iter().map(|name| (name.clone(), sorted(&members[name]))).collect())
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// The half that is written by hand, with the configuration in its place.
fn values_schema() -> Value {
    let text = fs::read_to_string(repository("helm/gatepost/schema/values.json")).unwrap();
    let mut values: Value = serde_json::from_str(&text).unwrap();
    let ours = json_schema();
    let definitions = values["$defs"].as_object_mut().unwrap();
    for (name, definition) in ours["$defs"].as_object().unwrap() {
        let before = definitions.insert(name.clone(), standard(name, definition));
        assert!(before.is_none(), "two definitions are called {name}");
    }
    let mut config = standard("RawConfig", &ours);
    // Unset is null in values.yaml, where it is told what it is.
    config["properties"]["issuers"]["type"] = json!(["array", "null"]);
    definitions.insert("config".to_owned(), config);
    sorted(&values)
}

#[test]
fn the_values_of_the_chart_are_held_to_the_configuration_reference() {
    let made = format!("{}\n", serde_json::to_string_pretty(&values_schema()).unwrap());
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        fs::write(repository(SCHEMA), &made).unwrap();
    }
    let there = fs::read_to_string(repository(SCHEMA)).unwrap();
    assert!(there == made, "{SCHEMA} is out of date: UPDATE_REFERENCE=1 cargo test --test spec reference");
}

/// Without a tag, the chart takes the image of the version that it says it is for.
#[test]
fn the_chart_installs_this_version() {
    let chart = fs::read_to_string(repository("helm/gatepost/Chart.yaml")).unwrap();
    let line = format!("appVersion: \"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(chart.lines().any(|one| one == line), "no `{line}` in\n{chart}");
}

/// Everything that `keep` finds in a schema, with the path to it.
fn find<'s>(schema: &'s Value, at: &str, keep: &impl Fn(&Value) -> bool, found: &mut Vec<(String, &'s Value)>) {
    if keep(schema) {
        found.push((at.to_owned(), schema));
    }
    match schema {
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| find(member, &format!("{at}/{name}"), keep, found));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| find(item, &format!("{at}/{index}"), keep, found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A section that takes any key would take a typo; a reference that leads nowhere would take anything.
#[test]
fn no_section_of_the_settings_takes_a_key_that_it_does_not_know() {
    let schema = values_schema();
    let mut sections = Vec::new();
    find(&schema, "", &|part| part["properties"].is_object() && part["type"] == "object", &mut sections);
    for (at, section) in &sections {
        assert_eq!(section["additionalProperties"], json!(false), "{at}");
    }
    assert!(sections.len() > 40, "{}", sections.len());
    let mut references = Vec::new();
    find(&schema, "", &|part| part["$ref"].is_string(), &mut references);
    for (at, reference) in &references {
        let target = reference["$ref"].as_str().unwrap();
        let pointer = target.strip_prefix('#').unwrap_or_else(|| panic!("{at} leads out of the file: {target}"));
        assert!(schema.pointer(pointer).is_some(), "{at}: {target}");
        // Draft 7, which every Helm knows, reads nothing beside a reference.
        let beside = reference
            .as_object()
            .unwrap()
            .keys()
            .find(|key| !["$ref", "description", "default"].contains(&key.as_str()));
        assert_eq!(beside, None, "{at}");
    }
    for (section, key) in NOT_ASKED_FOR {
        let known = if section == "RawConfig" { &schema["$defs"]["config"] } else { &schema["$defs"][section] };
        assert!(known["properties"][key].is_object(), "{section}.{key} is no setting any more");
    }
}

/// The settings of an example, with everything that they name in a folder of the test's.
fn placed(example: &Path, root: &Path) -> PathBuf {
    let mut text = fs::read_to_string(example.join("gatepost.yaml")).unwrap();
    for place in ["/etc/gatepost", "/var/lib/gatepost"] {
        text = text.replace(place, &format!("{}{place}", root.display()));
    }
    fs::create_dir_all(root.join("var/lib/gatepost")).unwrap();
    let start = root.display().to_string();
    for line in text.lines() {
        let Some(at) = line.find(&start) else { continue };
        let path = Path::new(&line[at..]);
        if line.contains("directory: ") {
            // The spool makes its own.
            if !path.starts_with(root.join("var")) {
                fs::create_dir_all(path).unwrap();
            }
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "a secret of no less than thirty-two bytes").unwrap();
        }
    }
    let file = root.join("gatepost.yaml");
    fs::write(&file, text).unwrap();
    file
}

#[test]
fn the_server_takes_what_the_chart_makes_of_every_example() {
    let folder = repository("tests/chart/rendered");
    let mut examples: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    examples.sort();
    let mut bundles = 0;
    for example in &examples {
        let name = example.file_name().unwrap().to_str().unwrap();
        let root = tempfile::tempdir().unwrap();
        let config =
            load(&Source::file(placed(example, root.path()))).unwrap_or_else(|report| panic!("{name}:\n{report}"));

        // Where the chart's ports and probes lead.
        let addresses = (config.server.listen.to_string(), config.server.ops_listen.to_string());
        let own = if name == "sidecar" { "127.0.0.1:8443" } else { "0.0.0.0:8443" };
        assert_eq!(addresses, (own.to_owned(), "0.0.0.0:9443".to_owned()), "{name}");
        assert_eq!(matches!(config.server.tls, ListenerIdentity::WorkloadApi(_)), name == "spire", "{name}");
        assert!(config.audit.spool.directory.ends_with("var/lib/gatepost/audit"), "{name}");
        assert!(!config.audit.sinks.is_empty(), "{name}: nobody gets the records");
        assert_eq!(config.issuers.is_empty(), name == "image-volume", "{name}");

        let policies = example.join("policies");
        if policies.exists() {
            bundles += 1;
            let checked = Command::new(env!("CARGO_BIN_EXE_gatepost")).arg("check").arg(&policies).output().unwrap();
            assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stderr));
        }
    }
    println!("{} examples loaded, {bundles} bundles checked", examples.len());
    assert!(examples.len() >= 6 && bundles > 0);
}
