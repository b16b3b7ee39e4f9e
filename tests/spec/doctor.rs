//! `gatepost doctor` over a folder in which everything is right, and over the same with one mistake.

use std::collections::BTreeMap;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use serde_json::{Value, json};

use crate::replicas::free_port;
use crate::support::authority::Authority;
use crate::support::ground::{DAY, Ground, HOUR, authority, leaf, now};
use crate::support::key_server::{Answer, KeyServer, Signer, jwks};
use crate::support::process::Place;

/// Those whom the good folder's settings name, all at work.
struct Others {
    issuer: KeyServer,
    /// Takes every connection and says nothing.
    listener: std::net::TcpListener,
    /// Of callers, with a revocation list.
    callers: Authority,
}

impl Others {
    async fn start() -> Self {
        let issuer = KeyServer::start(Answer::Document(jwks([&Signer::new("a"), &Signer::new("b")]))).await;
        issuer.answers("/introspect", Answer::Document(json!({ "active": false }).to_string()));
        issuer.answers("/elsewhere", Answer::Document(json!({ "issuer": "https://other.test" }).to_string()));
        issuer.answers("/refuses", Answer::with("401 Unauthorized", b""));
        issuer.answers("/empty", Answer::Document(r#"{"keys":[]}"#.to_owned()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self { issuer, listener, callers: Authority::new("callers") }
    }

    fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// A folder that uses everything, and in which all is well.
    fn ground(&self) -> Ground {
        let mut ground = Ground::new();
        ground.certificate("server", |_| ());
        ground.certificate("admin", |_| ());
        ground.write("callers.pem", self.callers.pem());
        ground.write("callers.crl", &self.callers.list(1, now() - HOUR, now() + DAY, &[7]));
        ground.write("issuer.pem", &self.issuer.authority());
        ground.write("secret", "s3cret-of-introspection\n");
        ground.write("apikeys.json", r#"{"version":1,"keys":[]}"#);
        let key = ground.path("checkpoint.key");
        let made = Place::audit_key(&key);
        assert!(made.status.success(), "{made:?}");
        let settings = &mut ground.settings;
        self.issuer.take_over(settings);
        settings["issuers"][0]["jwks_ca"] = json!("issuer.pem");
        settings["issuers"][0]["introspection"] = json!({
            "url": self.issuer.url("/introspect"), "client_id": "gatepost", "client_secret_file": "secret",
            "ca": settings["issuers"][0]["jwks_ca"], "allow_private_addresses": true,
        });
        settings["server"]["client_ca"] = json!("callers.pem");
        settings["server"]["client_crls"] = json!(["callers.crl"]);
        settings["server"]["names"] = json!(["localhost"]);
        settings["admin"] = json!({
            "listen": "127.0.0.1:0", "certificate": "admin.pem", "private_key": "admin.key", "client_ca": "ca.pem",
            "operators": [{ "name": "ops", "spiffe_id": "spiffe://shop.example/ops", "may": ["ListRevocations"] }],
        });
        settings["api_keys"] = json!({ "file": "apikeys.json", "principal_type": "Role" });
        settings["revocation"] = json!({ "file": "revoked.jsonl" });
        // A busy machine must not look like a server that is away.
        settings["limits"] = json!({
            "connections": 300, "connections_per_caller": 300, "jwks_timeout": "30s", "introspection_timeout": "30s",
        });
        settings["telemetry"]["otlp"] = json!({ "endpoint": format!("http://{}", self.address()) });
        let audit = &mut settings["audit"];
        audit["spool"]["segment_bytes"] = json!("1MiB");
        audit["spool"]["max_bytes"] = json!("4MiB");
        audit["checkpoints"] = json!({ "key_file": "checkpoint.key" });
        audit["sinks"] = json!([
            { "name": "file", "file": { "path": "out.jsonl" } },
            { "name": "siem", "syslog": {
                "host": "127.0.0.1", "port": self.listener.local_addr().unwrap().port(), "tls": false,
            } },
        ]);
        ground
    }
}

/// The issuer's keys, from where it is another time.
fn dated(time: SystemTime) -> Answer {
    let zoned = jiff::Timestamp::try_from(time).unwrap();
    let date = zoned.strftime("%a, %d %b %Y %H:%M:%S GMT");
    let keys = jwks([&Signer::new("a")]);
    Answer::with(&format!("200 OK\r\ndate: {date}"), keys.as_bytes())
}

/// What it says, by verdict.
fn read(output: &Output) -> Vec<Value> {
    let told = String::from_utf8(output.stdout.clone()).unwrap();
    let report: Value = serde_json::from_str(&told).unwrap_or_else(|_| panic!("{output:?}"));
    report["checks"].as_array().unwrap().clone()
}

/// The checks that are not well. Whether anybody keeps this machine's clock is not for a test to say.
fn ill(checks: &[Value]) -> Vec<&Value> {
    let ill = |check: &&Value| matches!(check["verdict"].as_str(), Some("warn" | "fail"));
    checks.iter().filter(ill).filter(|check| check["check"] != "synchronised" && check["check"] != "kept").collect()
}

/// Why, the mistake, and what is to be told: verdict, group, check, key, words of what is said, a word of the mend.
type Row = (&'static str, fn(&mut Ground, &Others), [&'static str; 4], &'static [&'static str], &'static str);

const SETTINGS: [&str; 3] = ["fail", "configuration", "settings"];
const fn settings(key: &'static str) -> [&'static str; 4] {
    [SETTINGS[0], SETTINGS[1], SETTINGS[2], key]
}

/// Issue 5: "`doctor` finds each of 20 planted mistakes and names it."
const ROWS: &[Row] = &[
    (
        "an unknown key",
        |ground, _| ground.settings["server"]["lisen"] = json!("127.0.0.1:1"),
        settings("server.lisen"),
        &["gatepost.yaml:1", "is not a known key"],
        "did you mean `listen`?",
    ),
    (
        "a value out of range",
        |ground, _| ground.settings["limits"]["batch_items"] = json!(0),
        settings("limits.batch_items"),
        &["must be 1 to 10000"],
        "correct it",
    ),
    (
        "a file that is not there",
        |ground, _| std::fs::remove_file(ground.path("server.key")).unwrap(),
        settings("server.private_key"),
        &["does not exist"],
        "name a PEM file",
    ),
    (
        "a file that may not be read",
        |ground, _| {
            ground.mode("server.key", 0o000);
            ground.asked_by_nobody();
        },
        settings("server.private_key"),
        &["may not be read by this user"],
        "chown",
    ),
    (
        "a shared key that is too short",
        |ground, _| {
            ground.write("shared.key", "short");
            let principal = ground.settings["issuers"][0]["principal"].clone();
            ground.settings["issuers"] = json!([{
                "issuer": "https://idp.shop.example", "audiences": ["gatepost"], "shared_key_file": "shared.key",
                "principal": principal,
            }]);
        },
        settings("issuers[0].shared_key_file"),
        &["32 bytes"],
        "",
    ),
    (
        "a private key for everybody's eyes",
        |ground, _| ground.mode("server.key", 0o644),
        ["warn", "configuration", "mode", "server.private_key"],
        &["server.key", "open to every user"],
        "chmod 600",
    ),
    (
        "rubbish in the certificate's place",
        |ground, _| ground.write("server.pem", "rubbish"),
        ["fail", "server", "certificate", "server.certificate"],
        &["server.pem", "does not hold certificates"],
        "BEGIN CERTIFICATE",
    ),
    (
        "a certificate that has expired",
        |ground, _| drop(ground.certificate("server", |leaf| leaf.not_after = (now() - HOUR / 2).into())),
        ["fail", "server", "life", "server.certificate"],
        &["server.pem", "has expired", "here it is 20"],
        "renewed",
    ),
    (
        "a certificate of the future",
        |ground, _| drop(ground.certificate("server", |leaf| leaf.not_before = (now() + HOUR).into())),
        ["fail", "server", "life", "server.certificate"],
        &["server.pem", "is not valid yet", "here it is 20"],
        "clock (NTP)",
    ),
    (
        "a certificate with ten days left",
        |ground, _| {
            ground.certificate("server", |leaf| {
                leaf.not_before = (now() - 80 * DAY).into();
                leaf.not_after = (now() + 10 * DAY + HOUR).into();
            });
        },
        ["warn", "server", "life", "server.certificate"],
        &["server.pem", "10 days more"],
        "renew it now",
    ),
    (
        "a key of another certificate",
        |ground, _| ground.write("server.key", &KeyPair::generate().unwrap().serialize_pem()),
        ["fail", "server", "pair", "server.private_key"],
        &["server.key", "does not belong to"],
        "replace both together",
    ),
    (
        "a key behind a passphrase",
        |ground, _| {
            let text = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHs\n-----END ENCRYPTED PRIVATE KEY-----\n";
            ground.write("server.key", text);
        },
        ["fail", "server", "private-key", "server.private_key"],
        &["server.key", "is encrypted"],
        "openssl pkey",
    ),
    (
        "a certificate for clients",
        |ground, _| {
            ground.certificate("server", |leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
        },
        ["fail", "server", "purpose", "server.certificate"],
        &["server.pem", "serverAuth"],
        "serverAuth",
    ),
    (
        "a certificate for another name than the settings demand",
        |ground, _| ground.settings["server"]["names"] = json!(["gatepost.shop.svc"]),
        ["fail", "server", "names", "server.names"],
        &["is not for `gatepost.shop.svc`", "localhost"],
        "get one for that name",
    ),
    (
        "certificates that are no chain",
        |ground, _| {
            let (certificate, _) = ground.certificate("server", |_| ());
            let (_, stranger) = authority("a stranger", &KeyPair::generate().unwrap(), |_| ());
            ground.write("server.pem", &format!("{certificate}{stranger}"));
        },
        ["fail", "server", "chain", "server.certificate"],
        &["server.pem", "are no chain"],
        "the one that signed it",
    ),
    (
        "a leaf among the authorities",
        |ground, _| {
            let (certificate, _) = leaf(&ground.authority, |_| ());
            ground.write("callers.pem", &certificate);
        },
        ["fail", "server", "client-authorities", "server.client_ca"],
        &["callers.pem", "does not hold authorities"],
        "CA:TRUE",
    ),
    (
        "an authority that has expired",
        |ground, _| {
            let expired = |params: &mut CertificateParams| params.not_after = (now() - HOUR).into();
            let (_, pem) = authority("expired", &KeyPair::generate().unwrap(), expired);
            ground.write("callers.pem", &pem);
        },
        ["fail", "server", "client-authorities", "server.client_ca"],
        &["callers.pem", "has expired"],
        "that issue to callers today",
    ),
    (
        "a revocation list that has run out",
        |ground, others| {
            ground.write("callers.crl", &others.callers.list(1, now() - 2 * HOUR, now() - HOUR, &[]));
        },
        ["fail", "server", "revocation-lists", "server.client_crls"],
        &["callers.crl", "ran out at 20"],
        "newest list",
    ),
    (
        "rubbish in a revocation list's place",
        |ground, _| ground.write("callers.crl", "rubbish"),
        ["fail", "server", "revocation-lists", "server.client_crls"],
        &["callers.crl", "does not hold a revocation list"],
        "BEGIN X509 CRL",
    ),
    (
        "an expired certificate of the admin listener",
        |ground, _| drop(ground.certificate("admin", |leaf| leaf.not_after = (now() - HOUR / 2).into())),
        ["fail", "admin", "life", "admin.certificate"],
        &["admin.pem", "has expired"],
        "renewed",
    ),
    (
        "no agent at its socket",
        |ground, _| {
            let server = ground.settings["server"].as_object_mut().unwrap();
            server.retain(|key, _| {
                !["certificate", "private_key", "client_ca", "client_crls", "names"].contains(&key.as_str())
            });
            ground.settings["server"]["workload_api"] =
                json!(format!("unix://{}", ground.path("agent.sock").display()));
            ground.settings["server"]["workload_api_timeout"] = json!("1s");
        },
        ["fail", "server", "workload-api", "server.workload_api"],
        &["agent.sock", "gave no identity"],
        "the agent runs",
    ),
    (
        "an issuer's server that is not there",
        |ground, _| {
            ground.settings["issuers"][0]["jwks_url"] = json!(format!("https://localhost:{}/jwks", free_port().port()))
        },
        ["fail", "issuers", "keys", "issuers[0].jwks_url"],
        &["no connection to `localhost:", "refused"],
        "nobody listens there",
    ),
    (
        "an issuer's server of another authority",
        |ground, _| ground.settings["issuers"][0]["jwks_ca"] = json!("ca.pem"),
        ["fail", "issuers", "keys", "issuers[0].jwks_url"],
        &["is not believed", "UnknownIssuer"],
        "jwks_ca",
    ),
    (
        "an issuer inside, where that is not allowed",
        |ground, _| {
            ground.settings["issuers"][0]["allow_private_addresses"] = json!(false);
            ground.settings["issuers"][0]["introspection"] = Value::Null;
        },
        settings("issuers[0].jwks_url"),
        &["is at a private or loopback address"],
        "set `allow_private_addresses`",
    ),
    (
        "an issuer without a key",
        |ground, others| ground.settings["issuers"][0]["jwks_url"] = json!(others.issuer.url("/empty")),
        ["fail", "issuers", "keys", "issuers[0].jwks_url"],
        &["none is for"],
        "`algorithms`",
    ),
    (
        "an issuer whose keys are for another algorithm",
        |ground, _| ground.settings["issuers"][0]["algorithms"] = json!(["RS256"]),
        ["fail", "issuers", "keys", "issuers[0].jwks_url"],
        &["none is for RS256"],
        "`algorithms`",
    ),
    (
        "a page in place of the keys",
        |ground, others| ground.settings["issuers"][0]["jwks_url"] = json!(others.issuer.url("/nowhere")),
        ["fail", "issuers", "keys", "issuers[0].jwks_url"],
        &["/nowhere", "not a plain 200"],
        "curl",
    ),
    (
        "another issuer's discovery document",
        |ground, others| {
            let issuer = ground.settings["issuers"][0].as_object_mut().unwrap();
            issuer.remove("jwks_url");
            issuer.insert("discovery_url".to_owned(), json!(others.issuer.url("/elsewhere")));
        },
        ["fail", "issuers", "keys", "issuers[0].discovery_url"],
        &["another issuer's"],
        "the address",
    ),
    (
        "a clock that is an hour off",
        |ground, others| {
            others.issuer.answers("/late", dated(now() - HOUR));
            ground.settings["issuers"][0]["jwks_url"] = json!(others.issuer.url("/late"));
        },
        ["fail", "clock", "against-issuers", ""],
        &["here it is 20", "s ahead of the server of `https://idp.shop.example`"],
        "NTP",
    ),
    (
        "a clock that is half a minute off",
        |ground, others| {
            others.issuer.answers("/slow", dated(now() - Duration::from_secs(25)));
            ground.settings["issuers"][0]["jwks_url"] = json!(others.issuer.url("/slow"));
        },
        ["warn", "clock", "against-issuers", ""],
        &["s ahead of the server"],
        "NTP",
    ),
    (
        "a file of tomorrow",
        |ground, _| {
            let file = std::fs::File::options().write(true).open(ground.path("server.pem")).unwrap();
            file.set_modified(now() + DAY).unwrap();
        },
        ["warn", "clock", "file-times", "server.certificate"],
        &["server.pem", "which is to come"],
        "set back",
    ),
    (
        "an authorization server that does not know us",
        |ground, others| ground.settings["issuers"][0]["introspection"]["url"] = json!(others.issuer.url("/refuses")),
        ["fail", "issuers", "introspection", "issuers[0].introspection"],
        &["/refuses", "not a plain 200"],
        "`client_id`",
    ),
    (
        "API keys that are none",
        |ground, _| ground.write("apikeys.json", "rubbish"),
        ["fail", "api-keys", "file", "api_keys.file"],
        &["apikeys.json:1"],
        "`gatepost apikey`",
    ),
    (
        "a broken policy",
        |ground, _| ground.write("policies/order.cedar", "permit (principal, action, resour"),
        ["fail", "policies", "bundle", "policies.directory"],
        &["order.cedar:1:"],
        "gatepost check",
    ),
    (
        "a type that the schema lacks",
        |ground, _| ground.settings["api_keys"]["principal_type"] = json!("Usre"),
        ["warn", "policies", "principal-types", "api_keys.principal_type"],
        &["no entity type `Usre`"],
        "correct the type",
    ),
    (
        "a folder for records that may not be written",
        |ground, _| {
            std::fs::create_dir(ground.path("audit")).unwrap();
            ground.mode("audit", 0o500);
            ground.asked_by_nobody();
        },
        ["fail", "records", "folder", "audit.spool.directory"],
        &["audit`: Permission denied"],
        "chown",
    ),
    (
        "more records than there is room for",
        |ground, _| ground.settings["audit"]["spool"]["max_bytes"] = json!("1024GiB"),
        ["warn", "records", "room", "audit.spool.max_bytes"],
        &["are free", "may take 1.0 TiB more"],
        "audit.spool.max_bytes",
    ),
    (
        "a key of another kind for checkpoints",
        |ground, _| ground.write("checkpoint.key", &KeyPair::generate().unwrap().serialize_pem()),
        ["fail", "records", "checkpoint-key", "audit.checkpoints.key_file"],
        &["checkpoint.key", "Ed25519"],
        "gatepost audit key",
    ),
    (
        "a sink that is not there",
        |ground, _| ground.settings["audit"]["sinks"][1]["syslog"]["port"] = json!(free_port().port()),
        ["fail", "sinks", "way", "audit.sinks[1].syslog"],
        &["`siem`", "no connection to `127.0.0.1:"],
        "nobody listens there",
    ),
    (
        "a sink whose name leads nowhere",
        |ground, _| ground.settings["audit"]["sinks"][1]["syslog"]["host"] = json!("siem.invalid"),
        ["fail", "sinks", "way", "audit.sinks[1].syslog"],
        &["`siem.invalid` leads nowhere"],
        "DNS",
    ),
    (
        "authorities of a sink that are none",
        |ground, _| {
            ground.write("sink.pem", "rubbish");
            ground.settings["audit"]["sinks"][1]["syslog"]["tls"] = json!(true);
            ground.settings["audit"]["sinks"][1]["syslog"]["ca"] = json!("sink.pem");
        },
        ["fail", "sinks", "way", "audit.sinks[1].syslog"],
        &["`siem`", "no authority"],
        "`ca`",
    ),
    (
        "a revocation file in a folder that may not be written",
        |ground, _| {
            std::fs::create_dir(ground.path("revoked")).unwrap();
            ground.mode("revoked", 0o500);
            ground.asked_by_nobody();
            ground.settings["revocation"] = json!({ "file": "revoked/list" });
        },
        ["fail", "revocations", "file", "revocation.file"],
        &["revoked/list", "can't be written"],
        "writable",
    ),
    (
        "a store of revocations that is not there",
        |ground, _| ground.settings["revocation"]["redis"] = json!({ "url": format!("redis://{}", free_port()) }),
        ["fail", "revocations", "store", "revocation.redis"],
        &["no connection to `127.0.0.1:"],
        "revocation.redis.url",
    ),
    (
        "a port that somebody has",
        |ground, others| ground.settings["server"]["listen"] = json!(others.address()),
        ["fail", "machine", "port", "server.listen"],
        &["is in use by process"],
        "another port",
    ),
    (
        "an address of another machine",
        |ground, _| ground.settings["server"]["ops_listen"] = json!("192.0.2.1:9443"),
        ["fail", "machine", "port", "server.ops_listen"],
        &["can't listen on 192.0.2.1:9443"],
        "no interface of this machine",
    ),
    (
        "more connections than files may be open",
        |ground, _| ground.settings["limits"]["connections"] = json!(1_000_000),
        ["warn", "machine", "open-files", "limits.connections"],
        &["open at once"],
        "LimitNOFILE",
    ),
    (
        "a collector that is not there",
        |ground, _| {
            ground.settings["telemetry"]["otlp"]["endpoint"] = json!(format!("http://{}", free_port()));
        },
        ["warn", "telemetry", "collector", "telemetry.otlp.endpoint"],
        &["no connection to `127.0.0.1:"],
        "nobody listens there",
    ),
];

/// Plants one mistake and asks; what is wrong with the answer.
async fn planted(row: &'static Row, others: Arc<Others>) -> Option<String> {
    let (why, plant, [verdict, group, check, key], words, mend) = *row;
    let asked = tokio::task::spawn_blocking(move || {
        let mut ground = others.ground();
        plant(&mut ground, &others);
        ground.run("doctor", &["--format", "json"])
    });
    let output = asked.await.unwrap();
    let checks = read(&output);
    let ill = ill(&checks);
    let [found] = ill.as_slice() else { return Some(format!("{why}: one thing is to be told: {ill:#?}")) };
    let told = ["verdict", "group", "check", "key"].map(|part| found[part].as_str().unwrap());
    let (says, does) = (found["says"].as_str().unwrap(), found["do"].as_str().unwrap());
    let named = words.iter().all(|word| says.contains(*word)) && does.contains(mend);
    let whole = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let shown = ["s3cret-of-introspection", "PRIVATE KEY", "MIHs"].into_iter().find(|secret| whole.contains(secret));
    let code = output.status.code();
    let right = told == [verdict, group, check, key] && named && code == Some(i32::from(verdict == "fail"));
    (!right || shown.is_some()).then(|| format!("{why}: exit code {code:?}, secret {shown:?}, {found:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_each_planted_mistake_names_it_and_nothing_else() {
    let others = Arc::new(Others::start().await);
    let mut wrong = Vec::new();
    for some in ROWS.chunks(4) {
        wrong.extend(join_all(some.iter().map(|row| planted(row, Arc::clone(&others)))).await.into_iter().flatten());
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), ROWS.len(), wrong.join("\n"));
    assert!(ROWS.len() >= 20);
    println!("{} planted mistakes, each found and named, and nothing else", ROWS.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_nothing_where_all_is_well_and_changes_nothing() {
    let others = Arc::new(Others::start().await);
    let asked = Arc::clone(&others);
    let done = tokio::task::spawn_blocking(move || {
        let ground = asked.ground();
        let seen = |ground: &Ground| -> BTreeMap<String, u64> {
            let entries = std::fs::read_dir(ground.path("")).unwrap().map(Result::unwrap);
            entries.map(|one| (one.file_name().into_string().unwrap(), one.metadata().unwrap().len())).collect()
        };
        ground.run("config", &[]);
        let before = seen(&ground);
        let outputs = [
            ground.run("doctor", &["--format", "json", "--name", "localhost", "--name", "127.0.0.1"]),
            ground.run("doctor", &[]),
            ground.run("doctor", &["--offline", "--format", "json", "--skip", "policies", "--skip", "machine"]),
        ];
        assert_eq!(seen(&ground), before, "no file came or went");
        outputs
    });
    let [json, text, offline] = done.await.unwrap();
    assert_eq!(json.status.code(), Some(0), "{json:?}");
    let checks = read(&json);
    assert_eq!(ill(&checks), Vec::<&Value>::new());
    let well = checks.iter().filter(|check| check["verdict"] == "ok").count();
    assert!(well >= 25, "{well} checks are well: {checks:#?}");
    println!("{well} checks are well");

    let told = String::from_utf8(text.stdout).unwrap();
    assert!(told.starts_with("configuration\n  ok    the settings can be used"), "{told}");
    assert!(told.contains("\nserver\n") && told.trim_end().ends_with(", 0 failed"), "{told}");
    assert!(!told.contains('\u{1b}'), "no colours where nobody looks");

    assert_eq!(offline.status.code(), Some(0), "{offline:?}");
    let groups: Vec<Value> = read(&offline).iter().map(|check| check["group"].clone()).collect();
    assert!(!groups.contains(&json!("policies")) && !groups.contains(&json!("machine")), "{groups:?}");
    assert_eq!(others.issuer.asked("/introspect"), 2, "offline nobody is asked");
}

/// What callers look for, and whom they believe, only the operator knows.
#[test]
fn doctor_tells_whether_callers_will_take_the_certificate() {
    let ground = Ground::new();
    let (certificate, _) = ground.certificate("server", |_| ());
    let (_, stranger) = authority("a stranger", &KeyPair::generate().unwrap(), |_| ());
    ground.write("believed.pem", &ground.authority_pem.clone());
    ground.write("stranger.pem", &stranger);
    assert!(!certificate.is_empty());
    let asked = |arguments: &[&str]| {
        let output = ground.run("doctor", &[&["--format", "json", "--offline"], arguments].concat());
        let checks = read(&output);
        let told: Vec<String> = ill(&checks).iter().map(|check| check["says"].as_str().unwrap().to_owned()).collect();
        (output.status.code(), told)
    };
    let path = |name: &str| ground.path(name).to_str().unwrap().to_owned();
    assert_eq!(asked(&["--name", "localhost", "--ca", &path("believed.pem")]), (Some(0), vec![]));
    let (code, told) = asked(&["--name", "gatepost.shop.svc"]);
    assert_eq!(code, Some(1));
    assert_eq!(told, ["a caller that looks for `gatepost.shop.svc` refuses it: it is for localhost, 127.0.0.1"]);
    let (code, told) = asked(&["--ca", &path("stranger.pem")]);
    assert!(code == Some(1) && told[0].contains("leads to no authority in"), "{told:?}");
}

/// Its ports and its folder are its own, and that is as it should be.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_leaves_a_running_server_alone() {
    let place = Place::new(|settings| {
        settings["server"]["listen"] = json!(free_port());
        settings["limits"] = json!({ "connections": 300, "connections_per_caller": 300 });
    });
    let mut running = place.start().await;
    let output = place.doctor(&["--format", "json"]);
    let checks = read(&output);
    let of = |check: &str| checks.iter().filter(|one| one["check"] == check).collect::<Vec<_>>();
    let ports = of("port");
    assert_eq!(ports.len(), 2);
    for port in ports {
        let says = port["says"].as_str().unwrap();
        assert!(port["verdict"] == "note" && says.contains("(`gatepost`): a server that runs"), "{port:#}");
    }
    let lock = of("lock");
    assert!(lock.len() == 1 && lock[0]["verdict"] == "note", "{lock:#?}");
    assert!(lock[0]["says"].as_str().unwrap().contains("in use by process"), "{lock:#?}");
    let failed: Vec<_> = checks.iter().filter(|check| check["verdict"] == "fail").collect();
    assert!(failed.is_empty() && output.status.code() == Some(0), "{failed:#?}");
    assert_eq!(running.ops("/readyz").await, Some(200));
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn doctor_ends_with_exit_code_64_where_there_is_no_configuration_to_look_at() {
    let ground = Ground::new();
    for (text, words) in [(None, "does not exist"), (Some("server: [unclosed"), "is not YAML")] {
        let path = ground.path("other.yaml");
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gatepost"));
        let output = command.args(["doctor", "--config"]).arg(&path).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(64) && told.contains(words), "{told}");
        assert!(output.stdout.is_empty());
    }
}
