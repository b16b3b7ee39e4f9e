//! `gatepost config`: what counts, and where it comes from.

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::ground::Ground;

/// A configuration as people write it, with something from each layer over it.
const FILE: &str = "\
server:
  listen: 127.0.0.1:0
  ops_listen: 127.0.0.1:0
  certificate: server.pem
  private_key: server.key
  client_ca: ca.pem
identity:
  trust_domains: [shop.example]
callers:
  - name: storefront
    spiffe_id: spiffe://shop.example/ns/shop/sa/storefront
    resource_types: \"*\"
    actions:
      - Order.read
      - Order.*
policies:
  directory: policies
audit:
  spool: { directory: audit, max_bytes: 128MiB }
  attributes: { Order.status: keep, \"context.channel\": \"truncate:32\" }
  sinks:
    - name: siem
      syslog: { host: siem.shop.example, tls: false, app_name: eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln }
";

fn config(ground: &Ground, file: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    command.args(["config", "--config", file]).args(arguments).current_dir(ground.path(""));
    command.env_remove("GATEPOST_CONFIG").envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

fn text(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn flat(output: Output) -> BTreeMap<String, Value> {
    serde_json::from_str(&text(output)).unwrap()
}

#[test]
fn each_setting_is_shown_with_where_it_comes_from() {
    let ground = Ground::new();
    ground.write("gatepost.yaml", FILE);
    let variables = [("GATEPOST_CACHE__DECISIONS", "7"), ("GATEPOST_CALLERS__0__ACTIONS__0", "Order.list")];
    let flags = ["--set", "server.drain_timeout=20s", "--format", "json"];
    let settings = flat(config(&ground, "gatepost.yaml", &flags, &variables));
    let table = [
        ("server.certificate", json!("server.pem"), "gatepost.yaml:4"),
        ("server.drain_timeout", json!("20s"), "--set server.drain_timeout"),
        ("cache.decisions", json!(7), "GATEPOST_CACHE__DECISIONS"),
        ("callers[0].name", json!("storefront"), "gatepost.yaml:10"),
        ("callers[0].resource_types", json!("*"), "gatepost.yaml:12"),
        ("callers[0].actions[0]", json!("Order.list"), "GATEPOST_CALLERS__0__ACTIONS__0"),
        ("callers[0].actions[1]", json!("Order.*"), "gatepost.yaml:15"),
        ("identity.trust_domains", json!(["shop.example"]), "gatepost.yaml:8"),
        ("audit.spool.max_bytes", json!("128MiB"), "gatepost.yaml:19"),
        ("audit.spool.segment_bytes", json!("64MiB"), "default"),
        ("audit.attributes.context.channel", json!("truncate:32"), "gatepost.yaml:20"),
        ("limits.token_bytes", json!("16KiB"), "default"),
        ("callers[0].explain", json!(false), "default"),
        ("server.workload_api", Value::Null, "not set"),
        ("issuers", json!([]), "default"),
    ];
    for (key, value, origin) in table {
        assert_eq!(settings.get(key), Some(&json!({ "value": value, "origin": origin })), "{key}");
    }
    println!("{} settings, each with its origin", settings.len());
}

/// What is printed can be put in the file's place.
#[test]
fn what_is_shown_reads_back_as_the_same_settings() {
    let ground = Ground::new();
    let worked = ground.settings.to_string();
    let own = FILE.replace(", app_name: eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln", "");
    for file in [own.as_str(), worked.as_str()] {
        ground.write("gatepost.yaml", file);
        for flags in [&[][..], &["--only-set"]] {
            let shown = text(config(&ground, "gatepost.yaml", flags, &[]));
            assert!(!shown.contains('\u{1b}'), "no colours where nobody looks");
            ground.write("shown.yaml", &shown);
            let values = |file| {
                let settings = flat(config(&ground, file, &["--format", "json"], &[])).into_iter();
                // On a line of their own items of a list have places of their own.
                settings.map(|(key, setting)| (key, setting["value"].clone())).collect::<BTreeMap<_, _>>()
            };
            let joined = |values: BTreeMap<String, Value>| {
                let mut joined: BTreeMap<String, Vec<Value>> = BTreeMap::new();
                for (key, value) in values {
                    let list =
                        key.rsplit_once('[').filter(|(_, rest)| rest.ends_with(']')).map(|(list, _)| list.to_owned());
                    let items = match value {
                        Value::Array(items) => items,
                        other => vec![other],
                    };
                    joined.entry(list.unwrap_or(key)).or_default().extend(items);
                }
                joined
            };
            assert_eq!(joined(values("shown.yaml")), joined(values("gatepost.yaml")), "{shown}");
        }
    }
    ground.write("gatepost.yaml", FILE);
    let only_set = text(config(&ground, "gatepost.yaml", &["--only-set"], &[]));
    assert!(!only_set.contains("# default") && !only_set.contains("not set"), "{only_set}");
    assert!(only_set.contains("  certificate: server.pem") && only_set.contains("# gatepost.yaml:4"), "{only_set}");
}

/// A secret has no place in a setting; whoever puts one there finds it nowhere else.
#[test]
fn what_looks_like_a_secret_is_hidden_and_what_is_refused_is_not_repeated() {
    let ground = Ground::new();
    ground.write("gatepost.yaml", FILE);
    for flags in [&[][..], &["--format", "json"]] {
        let shown = text(config(&ground, "gatepost.yaml", flags, &[]));
        assert!(shown.contains("(hidden)") && !shown.contains("eyJ"), "{shown}");
    }
    let variables = [
        ("GATEPOST_REVOCATION__REDIS__URL", "redis://:hunter2@store.shop.example"),
        ("GATEPOST_SERVER__PRIVATE_KEY", "-----BEGIN PRIVATE KEY-----hunter2"),
    ];
    for (name, value) in variables {
        let output = config(&ground, "gatepost.yaml", &[], &[(name, value)]);
        assert_eq!(output.status.code(), Some(64));
        assert!(output.stdout.is_empty());
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(name) && !told.contains("hunter2"), "{told}");
    }
}

/// The page is made of the comments and the defaults of the file's structs; what counts must be what the page promises.
#[test]
fn the_defaults_that_count_are_those_of_the_reference() {
    let ground = Ground::new();
    ground.write("gatepost.yaml", FILE);
    let settings = flat(config(&ground, "gatepost.yaml", &["--format", "json"], &[]));
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/configuration.md")).unwrap();
    let mut promised = BTreeMap::new();
    let mut section = String::new();
    for line in page.lines() {
        if let Some(name) = line.strip_prefix("## `") {
            section = format!("{}.", name.trim_end_matches('`'));
        } else if line.starts_with("## ") {
            section = String::new();
        } else if let Some(row) = line.strip_prefix("| `") {
            let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
            promised.insert(format!("{section}{}", cells[0].trim_end_matches('`')), cells[2].to_owned());
        }
    }
    let mut compared = 0;
    for (key, setting) in settings.iter().filter(|(_, setting)| setting["origin"] == "default") {
        let general = key.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest));
        let general = general.collect::<Vec<_>>().join("[]");
        let Some(default) = promised.get(&general) else { continue };
        let shown = match &setting["value"] {
            Value::String(text) => format!("`{text}`"),
            Value::Array(items) if items.is_empty() => "none".to_owned(),
            Value::Array(items) => {
                format!("`[{}]`", items.iter().map(|item| item.as_str().unwrap()).collect::<Vec<_>>().join(", "))
            }
            Value::Object(entries) if entries.is_empty() => String::new(),
            other => format!("`{other}`"),
        };
        assert_eq!(&shown, default, "{key}");
        compared += 1;
    }
    assert!(compared > 80, "{compared} compared");
    println!("{compared} defaults are those of the reference");
}

#[test]
fn the_schema_of_the_file_takes_what_the_server_takes() {
    let output = Command::new(env!("CARGO_BIN_EXE_gatepost"))
        .args(["config", "--schema"])
        .env("GATEPOST_CONFIG", "somewhere.yaml")
        .output()
        .unwrap();
    let schema: Value = serde_json::from_str(&text(output)).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut settings = Ground::new().settings;
    assert!(validator.is_valid(&settings));
    settings["server"]["lisen"] = json!("127.0.0.1:8443");
    assert!(!validator.is_valid(&settings), "an unknown key");
}
