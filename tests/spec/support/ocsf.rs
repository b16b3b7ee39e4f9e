//! Every record of every test: valid OCSF 1.8 where the schemas are at hand, numbered without a gap, and chained.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::Value;

/// The schemas by `class_uid`; `None` where the corpus is not at hand, which is said once.
static SCHEMAS: LazyLock<Option<BTreeMap<u64, Validator>>> = LazyLock::new(|| {
    let folder = std::env::var_os("GATEPOST_CONFORMANCE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/conformance"), PathBuf::from)
        .join("ocsf");
    let names = [
        (3002, "authentication"),
        (3004, "entity_management"),
        (6002, "application_lifecycle"),
        (6003, "api_activity"),
    ];
    if !folder.is_dir() {
        assert!(std::env::var_os("CI").is_none(), "{} is missing", folder.display());
        println!("SKIPPED: no OCSF schemas in {}", folder.display());
        return None;
    }
    let read = |name: &str| {
        let text = std::fs::read_to_string(folder.join(format!("{name}-1.8.0.schema.json"))).unwrap();
        jsonschema::draft202012::new(&serde_json::from_str(&text).unwrap()).unwrap()
    };
    Some(names.into_iter().map(|(class, name)| (class, read(name))).collect())
});

/// Checks every line; says how many there were.
pub fn check(trail: &str) -> usize {
    let mut before: Option<(u64, String)> = None;
    let mut count = 0;
    for line in trail.lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let ours = &record["unmapped"]["gatepost"];
        let sequence = record["metadata"]["sequence"].as_u64().unwrap();
        let (hashed, _) = line.rsplit_once(",\"hash\":\"").unwrap();
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, hashed.as_bytes());
        let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(ours["hash"], hash.as_str(), "{record:#}");
        if let Some((number, hash)) = &before {
            assert_eq!((sequence, ours["prev_hash"].as_str().unwrap()), (number + 1, hash.as_str()), "{record:#}");
        }
        before = Some((sequence, hash));
        if let Some(schemas) = &*SCHEMAS {
            let class = record["class_uid"].as_u64().unwrap();
            let schema = schemas.get(&class).unwrap_or_else(|| panic!("class {class}: {record:#}"));
            if !schema.is_valid(&record) {
                let wrong: Vec<String> =
                    schema.iter_errors(&record).map(|error| format!("{}: {error}", error.instance_path())).collect();
                panic!("{wrong:?}\n{record:#}");
            }
        }
        count += 1;
    }
    count
}
