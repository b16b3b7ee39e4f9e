//! Alert rules, their cases and runbooks, and the dashboard: all of them ask about what is measured, a real `promtool` takes
//! them, and a real Prometheus that scrapes a real server has the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use gatepost::clock::SystemClock;
use gatepost::telemetry::metrics::{INSTRUMENTS, Kind, prometheus_name};
use serde_json::{Value, json};

use crate::support::process::Place;
use crate::support::{PATIENCE, channel_to, order};

const RULES: &str = "helm/gatepost/rules/gatepost.yaml";
const CASES: &str = "tests/alerts.yaml";
const DASHBOARD: &str = "helm/gatepost/dashboards/gatepost.json";
const RUNBOOKS: &str = "docs/operating.md";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&read(name)).unwrap()
}

/// One alert of the rules file.
pub struct Alert {
    pub name: String,
    pub expression: String,
    pub severity: String,
    pub summary: String,
    pub runbook: String,
}

/// Every alert, in order.
pub fn alerts() -> Vec<Alert> {
    let rules = yaml(RULES);
    let groups = rules["groups"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned();
    let alert = |rule: &Value| Alert {
        name: text(&rule["alert"]),
        expression: text(&rule["expr"]),
        severity: text(&rule["labels"]["severity"]),
        summary: text(&rule["annotations"]["summary"]),
        runbook: text(&rule["annotations"]["runbook_url"]),
    };
    groups.flat_map(|group| group["rules"].as_array().unwrap()).map(alert).collect()
}

/// Every question that the dashboard puts: its panel, and the expression.
fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| {
        let title = panel["title"].as_str().unwrap();
        panel["targets"].as_array().into_iter().flatten().map(move |target| (title, target))
    });
    targets.map(|(title, target)| (title.to_owned(), target["expr"].as_str().unwrap().to_owned())).collect()
}

/// The queries that the runbooks tell people to ask.
fn runbook_queries() -> Vec<String> {
    let page = read(RUNBOOKS);
    let blocks = page.split("```promql\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.flat_map(str::lines).filter(|line| !line.is_empty()).map(ToOwned::to_owned).collect()
}

/// What stands in Grafana's places for one's own choice.
fn filled(expression: &str) -> String {
    let chosen = [("$__rate_interval", "1m"), ("$__range", "5m"), ("$job", ".*"), ("$instance", ".*")];
    chosen.iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// A program of Debian's `prometheus`; `None`, said aloud, where it is not installed. CI must have it.
fn program(name: &str) -> Option<Command> {
    let mut command = Command::new(name);
    let there = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{name} is missing, and CI may skip nothing");
        println!("SKIPPED: {name} is not installed");
    }
    there.then(|| Command::new(name))
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn every_alert_has_a_runbook_a_quiet_and_a_firing_case_and_no_runbook_is_of_nothing() {
    let cases = yaml(CASES);
    let cases = cases["tests"].as_array().unwrap();
    let page = read(RUNBOOKS);
    let runbooks: BTreeMap<&str, &str> = page
        .split("\n### ")
        .skip(1)
        .filter(|part| part.starts_with("Gatepost"))
        .map(|part| part.split_once('\n').unwrap())
        .map(|(name, text)| (name, text.split("\n## ").next().unwrap()))
        .collect();
    let alerts = alerts();
    let mut names = BTreeSet::new();
    for Alert { name, severity, runbook, summary, .. } in &alerts {
        assert!(!summary.is_empty(), "{name} says nothing");
        assert!(names.insert(name.as_str()), "{name} is there twice");
        assert!(["critical", "warning", "info"].contains(&severity.as_str()), "{name}: {severity}");
        assert!(runbook.ends_with(&format!("docs/operating.md#{}", name.to_lowercase())), "{name}: {runbook}");
        let text = runbooks.get(name.as_str()).unwrap_or_else(|| panic!("{RUNBOOKS} has no runbook of {name}"));
        for part in ["**Means:**", "**Impact:**", "**Look:**", "**Mend:**", "**Escalate:**"] {
            assert!(text.contains(part), "the runbook of {name} has no {part}");
        }
        let asked = format!("ALERTS{{alertname=\"{name}\", alertstate=\"firing\"}}");
        let outcomes: BTreeSet<bool> = cases
            .iter()
            .flat_map(|case| case["promql_expr_test"].as_array().into_iter().flatten())
            .filter(|case| case["expr"].as_str().unwrap().contains(&asked))
            .map(|case| !case["exp_samples"].as_array().unwrap().is_empty())
            .collect();
        assert_eq!(outcomes, BTreeSet::from([false, true]), "{name} has no quiet, or no firing case in {CASES}");
    }
    let of_nothing: Vec<_> = runbooks.keys().filter(|name| !names.contains(*name)).collect();
    assert!(of_nothing.is_empty(), "runbooks of no alert: {of_nothing:?}");
}

#[test]
fn promtool_takes_the_rules_and_every_expression_and_every_case_holds() {
    let Some(mut promtool) = program("promtool") else { return };
    let checked = promtool.args(["check", "rules"]).arg(path(RULES)).output().unwrap();
    assert!(checked.status.success(), "{}", told(&checked));

    let Some(mut promtool) = program("promtool") else { return };
    let tested = promtool.args(["test", "rules"]).arg(path(CASES)).output().unwrap();
    assert!(tested.status.success(), "{}", told(&tested));

    // It reads expressions only as rules.
    let questions = panels().into_iter().map(|(_, expression)| filled(&expression)).chain(runbook_queries());
    let rules: Vec<Value> = questions
        .enumerate()
        .map(|(number, expression)| json!({ "record": format!("question:{number}"), "expr": expression }))
        .collect();
    let count = rules.len();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("questions.yaml");
    // JSON is YAML.
    std::fs::write(&file, json!({ "groups": [{ "name": "questions", "rules": rules }] }).to_string()).unwrap();
    let Some(mut promtool) = program("promtool") else { return };
    let checked = promtool.args(["check", "rules"]).arg(&file).output().unwrap();
    assert!(checked.status.success(), "{}", told(&checked));
    println!("{} alerts, {count} other questions", alerts().len());
}

/// The metrics that an expression names, and the labels that it tells apart.
fn named(expression: &str) -> (Vec<String>, BTreeSet<String>) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut metrics = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find("gatepost_") {
        let name: String = rest[at..].chars().take_while(|c| is_word(*c)).collect();
        rest = &rest[at + name.len()..];
        metrics.push(name);
    }
    let mut labels = BTreeSet::new();
    for by in ["by (", "on (", "group_left ("] {
        let lists = expression.split(by).skip(1).map(|rest| rest.split(')').next().unwrap());
        labels.extend(lists.flat_map(|list| list.split(", ")).map(ToOwned::to_owned));
    }
    for selector in expression.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
        let matched = selector.split(['=', '!', '~']).map(|part| part.rsplit([',', ' ', '"']).next().unwrap());
        labels.extend(matched.filter(|name| !name.is_empty() && name.chars().all(is_word)).map(ToOwned::to_owned));
    }
    (metrics, labels)
}

/// Nobody draws, or waits for, what is not there.
#[test]
fn whatever_is_asked_of_prometheus_is_measured_and_has_the_labels_that_it_is_asked_by() {
    let mut known: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for instrument in INSTRUMENTS {
        let labels: BTreeSet<&str> = instrument.labels.iter().map(|(label, _)| *label).collect();
        let name = prometheus_name(instrument);
        if instrument.kind == Kind::Histogram {
            known.insert(format!("{name}_bucket"), labels.iter().copied().chain(["le"]).collect());
            known.insert(format!("{name}_sum"), labels.clone());
            known.insert(format!("{name}_count"), labels);
        } else {
            known.insert(name, labels);
        }
    }
    // Those that Prometheus adds, and the name itself.
    let given = ["job", "instance", "namespace", "__name__"];
    let rules = alerts().into_iter().map(|alert| (alert.name, alert.expression));
    let runbooks = runbook_queries().into_iter().map(|query| (RUNBOOKS.to_owned(), query));
    let (mut asked, mut count) = (BTreeSet::new(), 0);
    for (place, expression) in rules.chain(panels()).chain(runbooks) {
        let (metrics, labels) = named(&expression);
        assert!(!metrics.is_empty(), "{place}: {expression}");
        let mut theirs: BTreeSet<&str> = given.into_iter().collect();
        for metric in metrics {
            theirs.extend(known.get(&metric).unwrap_or_else(|| panic!("{place}: there is no {metric}")));
            asked.insert(metric);
        }
        for label in &labels {
            assert!(theirs.contains(label.as_str()), "{place}: `{label}` is no label there: {expression}");
        }
        count += 1;
    }
    println!("{count} expressions over {} metrics", asked.len());
    // The other way round: what is measured can be seen.
    let unseen: Vec<_> = INSTRUMENTS
        .iter()
        .map(prometheus_name)
        .filter(|name| !asked.iter().any(|asked| asked.starts_with(name.as_str())))
        .collect();
    assert!(unseen.is_empty(), "no panel, alert or runbook asks for {unseen:?}");
}

/// A Prometheus that ends with the test.
struct Prometheus {
    child: Child,
    address: String,
    _data: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Scrapes `target` once a second, and holds the rules against what it gets.
    fn start(mut command: Command, target: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let settings = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [path(RULES)],
            "scrape_configs": [{ "job_name": "gatepost", "static_configs": [{ "targets": [target] }] }],
        });
        let file = data.path().join("prometheus.yml");
        std::fs::write(&file, settings.to_string()).unwrap();
        let address = crate::replicas::free_port();
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", data.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.spawn().unwrap(), address: address.to_string(), _data: data }
    }

    /// What its API says, once it says anything.
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Option<Value> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let url = url::Url::parse_with_params(&format!("http://{}/api/v1/{path}", self.address), parameters).unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer: Value = serde_json::from_str(&client.get(url).send().await.ok()?.text().await.ok()?).ok()?;
        assert_eq!(answer["status"], "success", "{path} {parameters:?}: {answer}");
        Some(answer["data"].clone())
    }

    async fn has_data(&self, expression: &str) -> bool {
        let found = self.ask("query", &[("query", expression)]).await;
        found.is_some_and(|found| !found["result"].as_array().unwrap().is_empty())
    }
}

/// What a server without opaque tokens, revocation lists, a sink that fails or a limit of memory has nothing to say about.
const MAY_BE_EMPTY: [&str; 8] = [
    "Revocation lists run out in",
    "Introspections",
    "Sinks whose last delivery failed",
    "Fetches of keys and status lists",
    "Memory",
    "Reloads",
    "Where revocations come from",
    "Refused handshakes",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_scrapes_a_real_server_and_has_an_answer_to_what_the_dashboard_asks() {
    let Some(prometheus) = program("prometheus") else { return };
    let place = Place::new(|settings| {
        settings["audit"]["sinks"] = json!([{ "name": "siem", "stdout": {} }]);
    });
    let process = place.start().await;
    let written: Value = serde_json::from_str(&std::fs::read_to_string(place.path("gatepost.yaml")).unwrap()).unwrap();
    let prometheus = Prometheus::start(prometheus, written["server"]["ops_listen"].as_str().unwrap());

    let client = place.client(&process);
    let (token, clock) = (place.token(), SystemClock::shared());
    let strange = place.world.client("stranger", "spiffe://shop.example/ns/shop/sa/stranger").unwrap();
    let mut stranger = gatepost::proto::v1::decision_service_client::DecisionServiceClient::new(
        channel_to(process.address, &strange).await.unwrap(),
    );
    let mut open: BTreeMap<String, String> =
        panels().into_iter().map(|(title, expression)| (filled(&expression), title)).collect();
    let (all, deadline) = (open.len(), clock.monotonic() + 3 * PATIENCE);
    // Rates need a second look at something that rises: it is asked until every panel has one.
    loop {
        for customer in ["alice", "bob"] {
            let _ = client.check(order("Order.read", "o-1", customer).token(&token)).await.unwrap();
        }
        stranger.check(crate::failing_closed::wire(&token)).await.unwrap_err();
        for expression in open.keys().cloned().collect::<Vec<_>>() {
            if prometheus.has_data(&expression).await {
                open.remove(&expression);
            }
        }
        open.retain(|_, title| !MAY_BE_EMPTY.contains(&title.as_str()));
        if open.is_empty() {
            break;
        }
        assert!(clock.monotonic() < deadline, "no answer to {open:#?}");
    }
    println!("{all} questions, answered");

    // And it takes the rules: one of them comes true.
    let rules = prometheus.ask("rules", &[]).await.unwrap();
    let rules = rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    let unwell: Vec<_> = rules.filter(|rule| !rule["lastError"].as_str().unwrap_or_default().is_empty()).collect();
    assert!(unwell.is_empty(), "{unwell:#?}");
    std::fs::write(place.path("policies/broken.cedar"), "permit (principal, action, resource) when {").unwrap();
    let pending = async {
        loop {
            let alerts = prometheus.ask("alerts", &[]).await.unwrap();
            let alerts = alerts["alerts"].as_array().unwrap().clone();
            if let Some(found) = alerts.into_iter().find(|one| one["labels"]["alertname"] == "GatepostPolicyRefused") {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let alert = tokio::time::timeout(PATIENCE, pending).await.expect("an alert about the policies");
    let target = alert["labels"]["instance"].as_str().unwrap();
    assert_eq!(alert["annotations"]["summary"], format!("{target} has not taken the changed policies"));
}
