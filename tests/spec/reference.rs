//! The pages of docs/reference/ say what the code says. `UPDATE_REFERENCE=1 cargo test --test spec reference` writes
//! those anew that are made from code, and the real records that docs/audit.md shows.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use gatepost::model::decision::{Decision, DenialCode};
use gatepost::pdp::DecideError;
use gatepost::proto::v1;
use gatepost::telemetry::metrics;
use serde_json::{Value, json};

use crate::support::{Gatepost, account};

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(page(name)).unwrap_or_default()
}

/// Compares, or writes.
fn holds(name: &str, made: &str) {
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(page(name), made).unwrap();
    }
    assert!(read(name) == made, "{name} is out of date: UPDATE_REFERENCE=1 cargo test --test spec reference");
}

#[test]
fn the_metrics_page_is_the_list_of_instruments() {
    let head = "\
# Metrics

<!-- Made from src/telemetry/metrics.rs by `UPDATE_REFERENCE=1 cargo test --test spec reference`; change it there. -->

`/metrics` on `server.ops_listen` shows these in Prometheus' text form; with `telemetry.otlp` they are also pushed.
A label's value comes from a closed list in the code or from the configuration, never from a caller. What the reasons
mean stands in the [error reference](errors.md).

`/readyz` beside it says `ok` with 200, or with 503 a line for each condition that does not hold: `serving`, `audit`. Then
come lines that are no condition, one for each issuer: `issuer https://idp.example.org ready`, or `not ready` while its keys
were never had or are older than `limits.jwks_max_stale`. Its tokens are then denied, and nobody else's.

## What wakes somebody

The alerts of severity `critical`; [operating](../operating.md#runbooks) has a runbook for each, and for those that wait for the
morning. They are in `helm/gatepost/rules/gatepost.yaml`, which any Prometheus takes.

";
    let table = metrics::reference_markdown();
    for name in ["gatepost_audit_healthy", "gatepost_policy_errors_total", "gatepost_policy_reloads_total"] {
        assert!(table.contains(name), "{name} in\n{table}");
    }
    let mut page = format!("{head}| alert | when |\n|---|---|\n");
    for alert in crate::alerts::alerts().iter().filter(|alert| alert.severity == "critical") {
        let when = alert.expression.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        writeln!(page, "| [{}](../operating.md#{}) | `{when}` |", alert.name, alert.name.to_lowercase()).unwrap();
    }
    let at_most = |actions, issuers, sinks| metrics::series_at_most(metrics::Extent { actions, issuers, sinks });
    let fixed = at_most(0, 0, 0);
    write!(
        page,
        "
## How many series

However many ids, actions, subjects, services and addresses callers send, `/metrics` of one process has at most {fixed} lines,
and {} more for each action of the schema (the first {} by name have a label of their own; the rest count as `other`), {} for each
issuer and {} for each sink. That is every combination there could be; a flood of ten thousand distinct ids, actions and subjects
reaches a few hundred (`ten_thousand_ids_actions_subjects_and_hundreds_of_callers_make_no_series`).

## Every metric

",
        at_most(1, 0, 0) - fixed,
        metrics::LABELLED_ACTIONS,
        at_most(0, 1, 0) - fixed,
        at_most(0, 0, 1) - fixed,
    )
    .unwrap();
    holds("docs/reference/metrics.md", &format!("{page}{table}"));
}

#[test]
fn the_command_line_page_is_the_help() {
    let mut made = String::from(
        "\
# Command line

<!-- Made from src/cli by `UPDATE_REFERENCE=1 cargo test --test spec reference`; change it there. -->

Results go to standard output, logs and complaints to standard error.
",
    );
    let commands = [
        "",
        "serve",
        "config",
        "doctor",
        "demo",
        "check",
        "test",
        "bench",
        "bench engine",
        "bench world",
        "apikey",
        "apikey new",
        "apikey list",
        "apikey revoke",
        "revoke",
        "completions",
    ];
    for command in commands {
        let output = Command::new(env!("CARGO_BIN_EXE_gatepost"))
            .args(command.split_whitespace())
            .arg("--help")
            .env_remove("GATEPOST_CONFIG")
            .env("COLUMNS", "100")
            .output()
            .unwrap();
        assert!(output.status.success());
        let help = String::from_utf8(output.stdout).unwrap();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let title = format!("gatepost {command}");
        let title = title.trim_end();
        write!(made, "\n## `{title}`\n\n```text\n{}\n```\n", help.join("\n").trim_end()).unwrap();
    }
    holds("docs/reference/cli.md", &made);
}

/// The first cell of every row of the table under `heading`, without backticks.
fn rows<'p>(page: &'p str, heading: &str) -> Vec<Vec<&'p str>> {
    let part = page.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_else(|| panic!("no heading {heading}"));
    let part = part.split("\n## ").next().unwrap();
    let rows = part.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect()).collect()
}

fn sorted<T: Ord>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut all: Vec<T> = all.into_iter().collect();
    all.sort();
    all
}

#[test]
fn the_error_page_lists_every_denial_status_and_reason() {
    let page = read("docs/reference/errors.md");
    let denials = rows(&page, "Denials").into_iter().map(|row| row[0].to_owned());
    assert_eq!(sorted(denials), sorted(DenialCode::ALL.map(|code| code.as_str().to_owned())));
    for code in DenialCode::ALL {
        let wire = format!("DENIAL_CODE_{}", code.as_str());
        assert!(v1::DenialCode::from_str_name(&wire).is_some(), "{wire}");
    }

    let statuses = rows(&page, "Statuses").into_iter().map(|row| (row[0].to_owned(), row[1].to_owned()));
    let known = DecideError::ALL.iter().map(|(status, reason)| ((*status).to_owned(), (*reason).to_owned()));
    assert_eq!(sorted(statuses), sorted(known));
}

/// What a service should do is told for every code and every reason, with the status that the library gives.
#[test]
fn the_denials_page_tells_what_to_do_about_each() {
    let page = read("docs/reference/denials.md");
    let told = rows(&page, "Denials by code").into_iter().map(|row| (row[0].to_owned(), row[1].to_owned()));
    let known = DenialCode::ALL.map(|code| (code.as_str().to_owned(), code.http_status().to_string()));
    assert_eq!(sorted(told), sorted(known));
    let reasons = rows(&page, "No decision").into_iter().map(|row| row[0].to_owned());
    assert_eq!(sorted(reasons), sorted(DecideError::ALL.map(|(_, reason)| reason.to_owned())));
}

/// The words that records and metrics use are constants of the code: the page has each, and no other.
#[test]
fn the_error_page_lists_every_word_of_a_record() {
    let page = read("docs/reference/errors.md");
    let words = |file: &str, from: &str, to: &str| {
        let text = read(file);
        let part = text.split(from).nth(1).unwrap_or_else(|| panic!("{file}: no `{from}`"));
        let part = part.split(to).next().unwrap();
        let quoted = part.split('"').skip(1).step_by(2);
        let is_word = |word: &&str| !word.is_empty() && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        sorted(quoted.filter(is_word).map(ToOwned::to_owned))
    };
    let listed = |heading: &str| sorted(rows(&page, heading).into_iter().map(|row| row[0].to_owned()));

    let mut tokens = words("src/token/error.rs", "pub fn reason(self)", "/// Why a verifier");
    tokens.extend(words("src/caller/bond.rs", "pub fn reason(self)", "impl Bond"));
    tokens.sort();
    assert_eq!(listed("Why a token was refused"), tokens);
    let revoked = words("src/revocation/list.rs", "pub fn reason(self)", "/// There is no room");
    assert_eq!(listed("Why a token counts no longer"), revoked);
    let mut peers = words("src/tls/peer.rs", "pub fn reason(self)", "impl Peer");
    // Found on the list of revocations, and not in the certificate.
    peers.push("CERTIFICATE_REVOKED".to_owned());
    peers.sort();
    peers.dedup();
    assert_eq!(listed("Why a certificate names nobody"), peers);
    let mut handshakes = words("src/grpc/server/handshake.rs", "match timeout(limit, shaking)", "\u{0}");
    handshakes.extend(words("src/grpc/server/seats.rs", "/// The limits, by the names", "/// Who holds a seat"));
    handshakes.sort();
    handshakes.dedup();
    assert_eq!(listed("Why a connection was refused"), handshakes);

    let path = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pdp")).unwrap();
    let beside = path.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let rights = read("src/pdp.rs") + &beside.collect::<String>();
    let rights = rights.split("NotEntitled(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    let mut rights = sorted(rights.chain(words("src/caller/rights.rs", "pub fn word(self)", "impl Caller")));
    rights.dedup();
    assert_eq!(listed("What a caller may lack"), rights);

    let classes = read("src/policy/evaluate.rs");
    let classes = classes.split("fn class(").nth(1).unwrap().split("\n}\n").next().unwrap();
    let mut classes = sorted(classes.split('"').skip(1).step_by(2).map(ToOwned::to_owned));
    classes.push("partial".to_owned());
    classes.sort();
    assert_eq!(listed("Why a policy could not be evaluated"), classes);
}

/// The fenced block that follows `<!-- name -->`.
fn block(page: &str, name: &str) -> String {
    let rest = page.split(&format!("<!-- {name} -->")).nth(1).unwrap_or_else(|| panic!("no block {name}"));
    let fenced = rest.split("```").nth(1).unwrap();
    fenced.split_once('\n').unwrap().1.to_owned()
}

fn wire_value(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(*truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => {
            Kind::ListValue(prost_types::ListValue { values: items.iter().map(wire_value).collect() })
        }
        Value::Object(_) => Kind::StructValue(wire_struct(value)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn wire_struct(value: &Value) -> prost_types::Struct {
    let fields = value.as_object().unwrap().iter().map(|(name, value)| (name.clone(), wire_value(value)));
    prost_types::Struct { fields: fields.collect() }
}

fn camel(path: &str) -> String {
    let mut words = path.split('_');
    let first = words.next().unwrap().to_owned();
    words.fold(first, |text, word| text + &word[..1].to_uppercase() + &word[1..])
}

/// What README shows is what happens: its policy is one of the example's, its question gets its answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_question_on_the_first_page_gets_the_answer_on_the_first_page() {
    let readme = read("README.md");
    let policy = block(&readme, "policy");
    assert!(read("policies/account.cedar").contains(policy.trim()), "the policy is not in policies/account.cedar");

    let gatepost = Gatepost::start().await;
    let question: Value = serde_json::from_str(&block(&readme, "question")).unwrap();
    assert_eq!(question["fields"], json!({ "all": true }));
    let resource = &question["resource"];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let request = v1::CheckRequest {
        subject: Some(v1::check_request::Subject::Token(gatepost.token("alice", &[]))),
        action: text(&question["action"]),
        resource: Some(v1::Resource {
            r#type: text(&resource["type"]),
            id: Some(text(&resource["id"])),
            attributes: Some(wire_struct(&resource["attributes"])),
            parents: Vec::new(),
        }),
        fields: Some(v1::FieldQuery { all: true, ..v1::FieldQuery::default() }),
        ..v1::CheckRequest::default()
    };
    let answer = gatepost.raw("storefront").await.check(request).await.unwrap().into_inner();
    let fields: Vec<String> = answer.fields.clone().unwrap().paths.iter().map(|path| camel(path)).collect();
    let told = json!({
        "decision": answer.decision().as_str_name(),
        "fields": fields.join(","),
        "determiningPolicies": answer.determining_policies,
    });
    let shown: Value = serde_json::from_str(&block(&readme, "answer")).unwrap();
    for key in ["decision", "fields", "determiningPolicies"] {
        assert_eq!(shown[key], told[key], "{key}");
    }
    assert!(shown["decisionId"].is_string() && shown["policyRevision"].is_string());
    assert_eq!(shown.as_object().unwrap().len(), 5, "nothing else is shown");
    assert!(answer.denial.is_none() && answer.obligations.is_empty() && answer.cache.is_none());
}

/// Keys of a record, all the way down: `metadata.product.name`, `resources[].uid`.
fn shape(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| shape(value, &format!("{at}.{name}"), found));
        }
        Value::Array(items) => items.iter().take(1).for_each(|item| shape(item, &format!("{at}[]"), found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => found.push(at.to_owned()),
    }
}

/// The records in docs/audit.md have every key that real ones have, in order, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn the_records_on_the_audit_page_are_real() {
    let gatepost = Gatepost::start().await;
    let sam = gatepost.token("sam", &["support"]);
    let allow = account("Account.read", "alice").fields(["email", "plan", "role"]).token(&sam).request_id("req-7");
    let allow = gatepost.ask(allow).await.unwrap();
    assert_eq!(allow.decision(), Decision::Allow);
    let raw = crate::failing_closed::wire(&gatepost.token("alice", &[]));
    let refused = gatepost.raw("warehouse").await.check(raw).await.unwrap_err();
    let refused =
        tonic_types::StatusExt::get_error_details(&refused).error_info().unwrap().metadata["decision_id"].clone();

    let text = gatepost.trail();
    for (name, id) in [("record: allow", allow.decision_id()), ("record: refused", refused.as_str())] {
        let line = text.lines().find(|line| line.contains(&format!("\"original_event_uid\":\"{id}\""))).unwrap();
        let real: Value = serde_json::from_str(line).unwrap();
        let shapes = |shown: &Value| {
            let (mut of_real, mut of_shown) = (Vec::new(), Vec::new());
            shape(&real, "", &mut of_real);
            shape(shown, "", &mut of_shown);
            (of_shown, of_real)
        };
        let told = shapes(&serde_json::from_str(&block(&read("docs/audit.md"), name)).unwrap_or_default());
        if told.0 != told.1 && std::env::var_os("UPDATE_REFERENCE").is_some() {
            let text = read("docs/audit.md");
            let (before, after) = text.split_once(&format!("<!-- {name} -->\n")).unwrap();
            let hostname = real["device"]["hostname"].to_string();
            let rest = after.split_once("\n```\n").unwrap().1;
            let shown = serde_json::to_string_pretty(&real).unwrap().replace(&hostname, "\"gatepost-0\"");
            let shown = format!("{before}<!-- {name} -->\n```json\n{shown}\n```\n{rest}");
            std::fs::write(page("docs/audit.md"), shown).unwrap();
        }
        let shown: Value = serde_json::from_str(&block(&read("docs/audit.md"), name)).unwrap();
        let (of_shown, of_real) = shapes(&shown);
        assert_eq!(of_shown, of_real, "{name}: docs/audit.md is out of date");
        for pointer in
            ["/status_detail", "/disposition", "/severity", "/unmapped/gatepost/field_mask", "/api/operation"]
        {
            assert_eq!(shown.pointer(pointer), real.pointer(pointer), "{name}: {pointer}");
        }
    }
}
