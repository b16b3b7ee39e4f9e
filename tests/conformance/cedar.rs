//! Cedar's own verdicts, through our decision path, with the cache and without.
//!
//! The corpora hold sets that are no strict bundles (unvalidated, unconstrained), so they enter by the door for tests
//! alone; from there on it is the path that every question takes. Where an erring `forbid` is skipped by Cedar we deny:
//! that is a known difference, and the derived corpus is made of nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use cedar_policy::{Context, Entities, EntityUid, PolicySet, Schema};
use gatepost::cache::{Account, Rulings};
use gatepost::clock::SystemClock;
use gatepost::config::CacheConfig;
use gatepost::model::decision::{CacheUse, Decision, Ruling};
use gatepost::policy::{Bundle, dangerous};
use serde_json::Value;

use crate::support::{corpus, say};

const PERMIT_ALL: &str = "permit (principal, action, resource);";

/// What one request must give.
struct Expected<'j> {
    allow: bool,
    reason: BTreeSet<&'j str>,
    errors: BTreeSet<&'j str>,
}

fn rulings(entries: u64) -> Rulings {
    let second = Duration::from_secs(60);
    let config = CacheConfig {
        decisions: entries,
        decision_bytes: 1 << 30,
        decision_ttl: second,
        question_bytes: 0,
        tokens: 0,
        token_bytes: 0,
        caller_reuse: second,
    };
    Rulings::new(&config, [7; 32], SystemClock::shared())
}

fn uid(json: &Value) -> EntityUid {
    EntityUid::from_json(json.clone()).unwrap()
}

/// A set of the corpus, compiled by us.
struct World {
    bundle: Bundle,
    schema: Schema,
    entities: Entities,
}

impl World {
    fn new(schema: &str, policies: &str, entities: &Value) -> Self {
        let (schema, _) = Schema::from_cedarschema_str(schema).unwrap();
        let policies = PolicySet::from_str(policies).unwrap();
        let entities = Entities::from_json_value(entities.clone(), Some(&schema))
            .or_else(|_| Entities::from_json_value(entities.clone(), None))
            .unwrap();
        let bundle = dangerous::unvalidated(schema.clone(), &policies, &entities).unwrap();
        Self { bundle, schema, entities }
    }

    /// Our ruling on one request of the corpus: without the cache, then twice with it; all three must agree.
    fn ask(&self, request: &Value, cache: &Rulings) -> Ruling {
        let (principal, action, resource) =
            (uid(&request["principal"]), uid(&request["action"]), uid(&request["resource"]));
        let context = Context::from_json_value(request["context"].clone(), Some((&self.schema, &action)))
            .or_else(|_| Context::from_json_value(request["context"].clone(), None))
            .unwrap();
        let asked = dangerous::request(&self.bundle, &principal, &action, &resource, &context, &self.entities)
            .unwrap_or_else(|| panic!("{action} can be asked about"));
        let account = Account { caller: "corpus", issuer: "", ends: None };
        let rule = || self.bundle.rule(&asked);
        let (plain, used, _) = rulings(0).get_or(account, &asked, false, rule);
        assert_eq!(used, CacheUse::Bypass);
        let (first, ..) = cache.get_or(account, &asked, false, rule);
        let (second, used, _) = cache.get_or(account, &asked, false, rule);
        assert_eq!(used == CacheUse::Hit, plain.errors.is_empty() && !asked.reads_now(), "errors are never cached");
        assert!(plain == first && plain == second, "the cache changes nothing");
        (*plain).clone()
    }
}

/// Compares one request; gives a line about what differs.
fn compare(world: &World, cache: &Rulings, request: &Value, known: &mut usize) -> Option<String> {
    let texts = |name: &str| request[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let expected: Expected<'_> =
        Expected { allow: request["decision"] == "allow", reason: texts("reason"), errors: texts("errors") };
    let ruling = world.ask(request, cache);
    let erring: BTreeSet<&str> = ruling.errors.iter().map(|error| error.policy.as_str()).collect();
    let forbids: BTreeSet<&str> =
        world.bundle.policies().iter().filter(|policy| policy.forbids).map(|policy| policy.id.as_str()).collect();
    let allow = ruling.decision == Decision::Allow;
    if expected.allow && !allow && !expected.errors.is_disjoint(&forbids) {
        // Cedar skipped an erring forbid and allowed. We deny, by decision.
        *known += 1;
        return None;
    }
    let determining: BTreeSet<&str> = ruling.determining.iter().map(String::as_str).collect();
    // Once an erring forbid denies, what Cedar would have named is beside the point.
    let reasons_agree = determining == expected.reason || (!allow && !erring.is_disjoint(&forbids));
    let same = allow == expected.allow && erring == expected.errors && reasons_agree;
    (!same).then(|| {
        format!(
            "expected allow={} reason={:?} errors={:?}, got allow={allow} reason={determining:?} errors={erring:?}",
            expected.allow, expected.reason, expected.errors
        )
    })
}

fn conclude(name: &str, ran: usize, known: usize, failed: &[String]) {
    say!("{name}: {ran} requests ran, {} failed; {known} known differences (an erring forbid denies)", failed.len());
    for line in failed {
        say!("  FAILED {line}");
    }
    assert!(failed.is_empty(), "{} of {ran} requests of {name} differ", failed.len());
}

#[test]
fn the_hand_written_cedar_tests_are_decided_as_cedar_does() {
    let Some(tests) = corpus("cedar/tests") else { return };
    let root = tests.parent().unwrap();
    let (mut ran, mut known, mut failed) = (0, 0, Vec::new());
    let read = |relative: &Value| std::fs::read_to_string(root.join(relative.as_str().unwrap())).unwrap();
    for path in json_files(&tests) {
        let test: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let entities = serde_json::from_str(&read(&test["entities"])).unwrap();
        let world = World::new(&read(&test["schema"]), &read(&test["policies"]), &entities);
        let cache = rulings(1000);
        for (index, request) in test["requests"].as_array().unwrap().iter().enumerate() {
            ran += 1;
            if let Some(difference) = compare(&world, &cache, request, &mut known) {
                failed.push(format!("{}#{index}: {difference}", path.file_name().unwrap().to_string_lossy()));
            }
        }
    }
    conclude("cedar/tests", ran, known, &failed);
}

fn json_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    if let Ok(entries) = std::fs::read_dir(folder) {
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                found.extend(json_files(&path));
            } else if path.extension().is_some_and(|extension| extension == "json") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sample() -> Option<Vec<Value>> {
    let path = corpus("cedar/corpus-sample.json")?;
    let mut corpus: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let Value::Array(tests) = corpus["tests"].take() else { panic!("the sample holds a list of tests") };
    Some(tests)
}

fn text<'j>(test: &'j Value, name: &str) -> &'j str {
    test[name].as_str().unwrap()
}

#[test]
fn the_cedar_corpus_is_decided_as_cedar_does() {
    let Some(tests) = sample() else { return };
    let (mut ran, mut known, mut failed) = (0, 0, Vec::new());
    for test in &tests {
        let world = World::new(text(test, "schema"), text(test, "policies"), &test["entities"]);
        let cache = rulings(1000);
        for request in test["requests"].as_array().unwrap() {
            ran += 1;
            if let Some(difference) = compare(&world, &cache, request, &mut known) {
                failed.push(format!("{}#{}: {difference}", text(test, "test"), request["index"]));
            }
        }
    }
    conclude("cedar/corpus-sample", ran, known, &failed);
}

/// THREATS T8: Cedar skips the erring forbid and would allow every one of these.
#[test]
fn an_erring_forbid_denies_even_beside_a_permit_of_everything() {
    let (Some(path), Some(tests)) = (corpus("cedar/derived/forbid-error-cases.json"), sample()) else { return };
    let derived: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let by_name: BTreeMap<&str, &Value> = tests.iter().map(|test| (text(test, "test"), test)).collect();
    let (mut ran, mut absent, mut failed) = (0, 0, Vec::new());
    for case in derived["cases"].as_array().unwrap() {
        let wanted: Vec<&Value> = case["requests"].as_array().unwrap().iter().collect();
        // The derived list names requests of the whole corpus; the sample holds some of its sets, or a case brings its own.
        let Some(test) = by_name.get(text(case, "test")).copied().or(case.get("policies").map(|_| case)) else {
            absent += wanted.len();
            continue;
        };
        let policies = format!("{}\n{PERMIT_ALL}", text(test, "policies"));
        let world = World::new(text(test, "schema"), &policies, &test["entities"]);
        let cache = rulings(1000);
        for index in wanted {
            let found = test["requests"].as_array().unwrap().iter().find(|request| request["index"] == *index);
            let Some(request) = found else {
                absent += 1;
                continue;
            };
            ran += 1;
            let ruling = world.ask(request, &cache);
            let named = world.bundle.policies().iter().filter(|policy| policy.forbids);
            let erring = |id: &str| ruling.errors.iter().any(|error| error.policy == id);
            if ruling.decision != Decision::Deny || !named.map(|policy| &policy.id).any(|id| erring(id)) {
                failed.push(format!("{}#{index}: {:?}", text(case, "test"), ruling.decision));
            }
        }
    }
    say!("cedar/derived/forbid-error-cases: {absent} requests are of sets that this sample does not hold");
    conclude("cedar/derived/forbid-error-cases", ran, 0, &failed);
}

/// THREATS section 1, 2: Cedar measures what is left of the thread's stack and skips a deep forbid.
#[test]
fn a_deep_forbid_denies_whatever_the_stack_of_the_thread_that_asks() {
    let Some(path) = corpus("cedar/derived/stack-depth-cases.json") else { return };
    let derived: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let schema = "entity P; entity R; action go appliesTo { principal: P, resource: R, context: { bad: Bool } };";
    let stacks: Vec<usize> =
        derived["measured"].as_array().unwrap().iter().map(|row| row["stack_kib"].as_u64().unwrap() as usize).collect();
    let (mut ran, mut failed) = (0, Vec::new());
    for case in derived["cases"].as_array().unwrap() {
        // Parsing needs a big stack of its own; evaluation is what is tested.
        let world = std::thread::scope(|scope| {
            let build = || World::new(schema, text(case, "policies"), &serde_json::json!([]));
            std::thread::Builder::new().stack_size(512 << 20).spawn_scoped(scope, build).unwrap().join().unwrap()
        });
        let request = serde_json::json!({
            "principal": { "type": "P", "id": "p" }, "action": { "type": "Action", "id": "go" },
            "resource": { "type": "R", "id": "r" }, "context": derived["context"],
        });
        for kib in &stacks {
            ran += 1;
            let cache = rulings(10);
            let ruling = std::thread::scope(|scope| {
                let ask = || world.ask(&request, &cache);
                std::thread::Builder::new().stack_size(kib << 10).spawn_scoped(scope, ask).unwrap().join().unwrap()
            });
            if ruling.decision != Decision::Deny || !ruling.errors.is_empty() {
                failed.push(format!("{} on {kib} KiB: {:?} {:?}", text(case, "id"), ruling.decision, ruling.errors));
            }
        }
        // Dropping a deep tree recurses too.
        std::thread::scope(|scope| {
            drop(
                std::thread::Builder::new()
                    .stack_size(512 << 20)
                    .spawn_scoped(scope, move || drop(world))
                    .unwrap()
                    .join(),
            );
        });
    }
    conclude("cedar/derived/stack-depth-cases", ran, 0, &failed);
}
