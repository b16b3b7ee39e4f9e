//! A good token in the wrong hands is worth nothing: who may present which, over real certificates.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatepost::cli::demo::world::{ClientFiles, spiffe_id};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::failing_closed::wire;
use crate::support::{Gatepost, minutes};
use crate::wire::{check, object, truth, with_token};

/// Five services: two that are clients, one that presents for others by name, one for everybody, one for nobody.
const CALLERS: [&str; 5] = ["web", "orders", "billing", "gateway", "lonely"];
/// Whom a token may name: three clients that services are, one that none is, and nobody.
const CLIENTS: [Option<&str>; 5] = [Some("app-web"), Some("app-orders"), Some("app-billing"), Some("app-phone"), None];
/// Who may present what was issued to whom, or is acted with by whom. Nothing else is granted.
const GRANTED: [(&str, Option<&str>); 9] = [
    ("web", Some("app-web")),
    ("orders", Some("app-orders")),
    ("billing", Some("app-billing")),
    ("billing", Some("app-orders")),
    ("gateway", Some("app-web")),
    ("gateway", Some("app-orders")),
    ("gateway", Some("app-billing")),
    ("gateway", Some("app-phone")),
    ("gateway", None),
];
/// An issuer whose tokens must be bound to a certificate.
const STRICT: &str = "https://strict.shop.example";
const HOME: &str = gatepost::cli::demo::world::ISSUER;

fn enrolled(settings: &mut Value) {
    let of = |id: &str| json!([{ "issuer": HOME, "id": id }, { "issuer": STRICT, "id": id }]);
    let for_client = |id: &str| json!([{ "issuer": HOME, "client": id }, { "issuer": STRICT, "client": id }]);
    let callers = CALLERS.map(|name| {
        let mut caller = json!({
            "spiffe_id": spiffe_id(name), "name": name, "resource_types": "*", "actions": "*",
            "supply_attributes": "*", "tenants": "*",
        });
        match name {
            "web" | "orders" => caller["clients"] = of(&format!("app-{name}")),
            "billing" => {
                caller["clients"] = of("app-billing");
                caller["presents_for"] = for_client("app-orders");
            }
            "gateway" => caller["presents_for"] = json!("*"),
            _ => {}
        }
        caller
    });
    settings["callers"] = json!(callers);
    settings["issuers"][0]["principal"]["shared_type"] = json!(true);
    let mut strict = settings["issuers"][0].clone();
    strict["issuer"] = json!(STRICT);
    strict["require_sender_constrained"] = json!(true);
    settings["issuers"].as_array_mut().unwrap().push(strict);
}

fn thumbprint(files: &ClientFiles) -> String {
    let leaf = CertificateDer::from_pem_file(&files.certificate).unwrap();
    URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf))
}

/// One cell: who presents what, and the word that the record must have. `None`: it passes.
struct Cell {
    caller: &'static str,
    token: String,
    word: Option<&'static str>,
    what: String,
}

struct Bench {
    gatepost: Gatepost,
    channels: BTreeMap<&'static str, Channel>,
    thumbprints: BTreeMap<&'static str, String>,
}

impl Bench {
    async fn start() -> Self {
        let gatepost = Gatepost::start_with(enrolled).await;
        let (mut channels, mut thumbprints) = (BTreeMap::new(), BTreeMap::new());
        for caller in CALLERS {
            let files = gatepost.client_files(caller);
            thumbprints.insert(caller, thumbprint(&files));
            channels.insert(caller, gatepost.channel(&files).await.unwrap());
        }
        Self { gatepost, channels, thumbprints }
    }

    /// A token of alice, issued to `client`, with these claims over the rest.
    fn token(&self, client: Option<&str>, more: &Value) -> String {
        let mut claims = json!({ "tenant": "acme", "roles": [], "client_id": client });
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.gatepost.token_with("alice", &claims, minutes(5))
    }

    fn cnf(&self, caller: &str) -> Value {
        json!({ "cnf": { "x5t#S256": self.thumbprints[caller] } })
    }
}

fn other(caller: &str) -> &'static str {
    let at = CALLERS.iter().position(|name| *name == caller).unwrap();
    CALLERS[(at + 1) % CALLERS.len()]
}

fn matrix(bench: &Bench) -> Vec<Cell> {
    let mut cells = Vec::new();
    for caller in CALLERS {
        let mut add = |token: String, word: Option<&'static str>, what: String| {
            cells.push(Cell { caller, token, word, what: format!("{caller}: {what}") });
        };
        for client in CLIENTS {
            let granted = GRANTED.contains(&(caller, client));
            let by_client = match client {
                _ if granted => None,
                Some(_) => Some("CLIENT_NOT_CALLER"),
                None => Some("NO_CLIENT"),
            };
            let name = client.unwrap_or("nobody");
            let strict = |more: &Value| {
                let mut claims = json!({ "iss": STRICT });
                claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                claims
            };
            let (own, others) = (bench.cnf(caller), bench.cnf(other(caller)));
            add(bench.token(client, &json!({})), by_client, format!("plain, issued to {name}"));
            add(bench.token(client, &own), by_client, format!("bound to it, issued to {name}"));
            add(bench.token(client, &others), Some("WRONG_CERTIFICATE"), format!("bound to another, issued to {name}"));
            add(bench.token(client, &strict(&own)), by_client, format!("bound as required, issued to {name}"));
            add(
                bench.token(client, &strict(&json!({}))),
                Some("NOT_SENDER_CONSTRAINED"),
                format!("not bound as required, issued to {name}"),
            );
            let Some(acting) = client else { continue };
            let by_actor = (!granted).then_some("ACTOR_NOT_CALLER");
            let act = json!({ "act": { "sub": acting } });
            add(bench.token(Some("app-phone"), &act), by_actor, format!("{acting} acts"));
            // A prior actor and the client it was issued to give nothing.
            let handed_on = json!({ "act": { "sub": "app-phone", "act": { "sub": acting } } });
            let passes = caller == "gateway";
            add(
                bench.token(client, &handed_on),
                (!passes).then_some("ACTOR_NOT_CALLER"),
                format!("{acting} acted before"),
            );
        }
        for service in CALLERS {
            let passes = caller == service || caller == "gateway";
            let word = (!passes).then_some("ACTOR_NOT_CALLER");
            let act = json!({ "act": { "sub": spiffe_id(service) } });
            add(bench.token(None, &act), word, format!("the service {service} acts"));
            let elsewhere = json!({ "act": { "sub": spiffe_id(service), "iss": STRICT } });
            let passes = caller == "gateway";
            add(
                bench.token(None, &elsewhere),
                (!passes).then_some("ACTOR_NOT_CALLER"),
                format!("{service} acts by the word of another issuer"),
            );
            let may_act = json!({ "may_act": { "sub": spiffe_id(service) } });
            add(
                bench.token(None, &may_act),
                (!passes).then_some("NO_CLIENT"),
                format!("{service} might have it exchanged"),
            );
        }
    }
    cells
}

/// THREATS T3: 5 callers x 5 clients x {plain, bound, acting}, each asked twice, so that the second time everything is
/// cached that can be.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_passes_in_exactly_the_granted_hands() {
    let bench = Bench::start().await;
    let cells = matrix(&bench);
    let mut answers = Vec::new();
    for round in 0..2 {
        for cell in &cells {
            let reply = check(&bench.channels[cell.caller], &wire(&cell.token)).await;
            let expected = if cell.word.is_some() { "DENY TOKEN_NOT_FOR_CALLER" } else { "ALLOW" };
            assert_eq!(reply.told(), expected, "round {round}, {}", cell.what);
            answers.push((reply.decision_id().unwrap(), cell));
        }
    }
    let records: BTreeMap<String, Value> = bench
        .gatepost
        .call_records()
        .into_iter()
        .map(|record| (record["metadata"]["original_event_uid"].as_str().unwrap().to_owned(), record))
        .collect();
    assert_eq!(records.len(), answers.len(), "one record each");
    let mut passed = 0;
    for (id, cell) in &answers {
        let ours = &records[id]["unmapped"]["gatepost"];
        assert_eq!(ours["token_refusal"].as_str(), cell.word, "{}", cell.what);
        assert_eq!(ours["principal"], "User::\"alice\"", "{}: whose token it was", cell.what);
        passed += usize::from(cell.word.is_none());
    }
    let words: BTreeSet<&str> = cells.iter().filter_map(|cell| cell.word).collect();
    assert_eq!(words.len(), 5, "every word has its cells: {words:?}");
    println!(
        "bond: {} cells, each asked twice: {} passed, {} were denied",
        cells.len(),
        passed / 2,
        cells.len() - passed / 2
    );
    assert!(cells.len() >= 150);
}

/// An allow that one caller earned, cached with its token, is nothing for the next.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cached_for_one_caller_is_not_anothers() {
    let bench = Bench::start().await;
    let question = wire(&bench.token(Some("app-web"), &json!({})));
    let ask = |caller| check(&bench.channels[caller], &question);
    for expected in ["miss", "hit"] {
        let reply = ask("web").await;
        assert_eq!(reply.told(), "ALLOW");
        let record = bench.gatepost.record_of(&reply.decision_id().unwrap());
        assert_eq!(record["unmapped"]["gatepost"]["cache"], expected);
    }
    assert_eq!(ask("orders").await.told(), "DENY TOKEN_NOT_FOR_CALLER");
}

/// RFC 8705 section 3: the same service with another certificate does not have the key of the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_bound_token_does_not_survive_the_certificate_that_it_is_bound_to() {
    let bench = Bench::start().await;
    let token = bench.token(Some("app-web"), &bench.cnf("web"));
    assert_eq!(check(&bench.channels["web"], &wire(&token)).await.told(), "ALLOW");
    let renewed = bench.gatepost.channel(&bench.gatepost.client_files("web")).await.unwrap();
    let reply = check(&renewed, &wire(&token)).await;
    assert_eq!(reply.told(), "DENY TOKEN_NOT_FOR_CALLER");
    let record = bench.gatepost.record_of(&reply.decision_id().unwrap());
    let ours = &record["unmapped"]["gatepost"];
    assert_eq!((&ours["token_refusal"], &ours["cnf"]), (&json!("WRONG_CERTIFICATE"), &json!("x5t#S256")));
    assert!(!record.to_string().contains(&bench.thumbprints["web"]), "what is to be proven is not on record");
}

/// Policies see who acts, and the cache keeps tokens apart that differ in nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn policies_see_the_actor_the_chain_and_the_proof() {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spec/bundles/acting");
    let gatepost = Gatepost::start_over(&bundle, |settings| {
        settings["callers"] = json!([{
            "spiffe_id": spiffe_id("storefront"), "name": "storefront", "resource_types": "*", "actions": "*",
            "supply_attributes": "*", "presents_for": "*",
        }]);
        settings["issuers"][0]["principal"] = json!({ "type": "User" });
        settings["audit"]["attributes"] = json!({});
    })
    .await;
    let files = gatepost.client_files("storefront");
    let channel = gatepost.channel(&files).await.unwrap();
    let bound = json!({ "cnf": { "x5t#S256": thumbprint(&files) } });
    let chain = json!({ "act": { "sub": "batch", "act": { "sub": "gateway", "iss": STRICT } } });
    let table = [
        ("read", json!({}), "DENY NO_PERMIT", json!(null), "nobody acts"),
        ("read", json!({ "act": { "sub": "batch" } }), "ALLOW", json!([{ "sub": "batch" }]), "the job acts"),
        ("read", json!({ "act": { "sub": "Batch" } }), "DENY NO_PERMIT", json!([{ "sub": "Batch" }]), "another does"),
        (
            "read",
            chain,
            "DENY FORBIDDEN",
            json!([{ "sub": "batch" }, { "sub": "gateway", "iss": STRICT }]),
            "the chain is told, the current actor first",
        ),
        ("sign", json!({}), "DENY NO_PERMIT", json!(null), "a bearer token"),
        ("sign", bound, "ALLOW", json!(null), "a bound one"),
    ];
    for (action, claims, expected, act, why) in table {
        let token = gatepost.token_with("alice", &claims, minutes(5));
        for _ in 0..2 {
            let reply = check(&channel, &with_token(&token, action, object("Doc", "d", [("open", truth(true))]))).await;
            assert_eq!(reply.told(), expected, "{why}");
            let record = gatepost.record_of(&reply.decision_id().unwrap());
            let ours = &record["unmapped"]["gatepost"];
            assert_eq!((&ours["act"], &ours["token_client"]), (&act, &json!("shop-app")), "{why}");
        }
    }
}

/// An author tests such policies without a server, and the rows say what tokens say.
#[test]
fn policy_tests_know_actors_and_bound_tokens() {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spec/bundles/acting");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_gatepost")).arg("test").arg(bundle).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("5 rows: 5 passed, 0 failed; 3 policies, 0 without a row"),
        "{text}"
    );
}
