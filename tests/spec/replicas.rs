//! Revocations between processes: two real `gatepost serve` over one file, and over a real Redis that is killed, comes
//! back empty, and lies.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gatepost::cli::demo::world::{ClientFiles, World, spiffe_id};
use gatepost::client::Client;
use gatepost::clock::{SharedClock, SystemClock, unix_seconds};
use gatepost::revocation::{Key, Kind, Revocation};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::operators::{ISSUER, Operators, client, session_request, subject_request, token_request};
use crate::support::{PATIENCE, copy_bundle, order};

const WITHIN: Duration = Duration::from_secs(1);

/// What replicas share: the world, and its operators.
struct Fleet {
    world: World,
    operators: Operators,
    folder: tempfile::TempDir,
    clock: SharedClock,
    files: ClientFiles,
}

/// One `gatepost serve`.
struct Replica {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    ops: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Fleet {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::create(folder.path()).unwrap();
        copy_bundle(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"), &folder.path().join("policies"));
        let files = world.client("storefront", &spiffe_id("storefront")).unwrap();
        Self { world, operators: Operators::new(), folder, clock: SystemClock::shared(), files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the real binary with a `revocation` section.
    fn start(&self, name: &str, revocation: &Value) -> Replica {
        let ops: SocketAddr = free_port();
        let mut settings = self.world.configuration(Path::new("policies"));
        settings["limits"] = json!({ "default_deadline": "10s", "max_deadline": "10s", "overload_target": "10s" });
        settings["server"]["ops_listen"] = json!(ops);
        settings["audit"]["spool"]["directory"] = json!(format!("{name}-audit"));
        settings["telemetry"]["logs"] = json!({ "format": "json", "filter": "info" });
        settings["admin"] = self.operators.section(&[]);
        settings["revocation"] = revocation.clone();
        let config = format!("{name}.yaml");
        self.world.write(&config, &settings.to_string()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_gatepost"))
            .args(["serve", "--config"])
            .arg(self.path(&config))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut address_of = |message: &str| -> SocketAddr {
            loop {
                let line = lines.next().unwrap_or_else(|| panic!("it ended: {:?}", log.lock())).unwrap();
                let fields: Value = serde_json::from_str(&line).unwrap();
                log.lock().push(line);
                let fields = if fields["fields"].is_object() { fields["fields"].clone() } else { fields };
                if fields["message"] == message {
                    return fields["address"].as_str().unwrap().parse().unwrap();
                }
            }
        };
        let admin = address_of("operators may revoke");
        let address = address_of("serving");
        let told = Arc::clone(&log);
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| told.lock().push(line)));
        Replica { child, address, admin, ops, log }
    }

    fn token(&self, id: &str, session: &str) -> String {
        let claims = json!({ "tenant": "acme", "jti": id, "sid": session });
        self.world.token("alice", &claims, self.clock.now(), Duration::from_secs(300)).unwrap()
    }

    fn client(&self, replica: &Replica) -> Client {
        Client::builder(format!("https://{}", replica.address))
            .server_name("localhost")
            .ca(&self.files.ca)
            .identity(&self.files.certificate, &self.files.private_key)
            .deadline(Duration::from_secs(5))
            .build()
            .unwrap()
    }

    /// Asks until the token counts no longer; how long after `since` that was.
    async fn revoked_within(&self, client: &Client, token: &str, since: Duration, what: &str) -> Duration {
        loop {
            let answer = client.check(order("Order.read", "o-1", "alice").token(token)).await.unwrap();
            let passed = self.clock.monotonic() - since;
            if !answer.allowed() {
                assert!(passed <= WITHIN, "{what}: {passed:?}");
                return passed;
            }
            assert!(passed < PATIENCE, "{what}: never");
        }
    }

    async fn allowed(&self, client: &Client, token: &str) -> bool {
        client.check(order("Order.read", "o-1", "alice").token(token)).await.unwrap().allowed()
    }
}

impl Replica {
    async fn metric(&self, name: &str) -> f64 {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let page = client.get(format!("http://{}/metrics", self.ops)).send().await.unwrap().text().await.unwrap();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in\n{page}"))
    }

    /// Waits until a metric is as it should be.
    async fn until(&self, name: &str, clock: &SharedClock, holds: impl Fn(f64) -> bool) -> Duration {
        let begun = clock.monotonic();
        loop {
            let value = self.metric(name).await;
            let passed = clock.monotonic() - begun;
            if holds(value) {
                return passed;
            }
            assert!(passed < PATIENCE, "{name} is {value}\n{:#?}", self.log.lock());
        }
    }

    fn says(&self, text: &str) -> usize {
        self.log.lock().iter().filter(|line| line.contains(text)).count()
    }
}

const STALENESS: &str = "gatepost_revocation_staleness_seconds";

/// A port to listen on in a moment. Below those that the kernel gives to connections (from 32768 on): one of these could be
/// taken by anybody's call before whoever is to listen does.
pub fn free_port() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let port = || {
        let next = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        u16::try_from(10_000 + next % 20_000).unwrap()
    };
    let listen = || std::net::TcpListener::bind(("127.0.0.1", port())).ok()?.local_addr().ok();
    std::iter::repeat_with(listen).take(1000).flatten().next().expect("a free port")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_with_one_file_tell_each_other_within_a_second() {
    let fleet = Fleet::new();
    let shared = json!({ "file": "shared.jsonl" });
    let (one, two) = (fleet.start("one", &shared), fleet.start("two", &shared));
    let (here, there) = (fleet.client(&one), fleet.client(&two));
    let mut worst = Duration::ZERO;
    for round in 0..5 {
        let (id, session) = (format!("t-{round}"), format!("s-{round}"));
        let token = fleet.token(&id, &session);
        assert!(fleet.allowed(&here, &token).await && fleet.allowed(&there, &token).await);
        let mut ops =
            client(if round % 2 == 0 { one.admin } else { two.admin }, &fleet.operators.files(&fleet.world, "ops"))
                .await;
        match round {
            0 | 1 => drop(ops.revoke_token(token_request(&id)).await.unwrap()),
            2 | 3 => drop(ops.revoke_session(session_request(&session)).await.unwrap()),
            _ => drop(ops.revoke_subject(subject_request("alice")).await.unwrap()),
        }
        let answered = fleet.clock.monotonic();
        for (client, name) in [(&here, "here"), (&there, "there")] {
            worst = worst.max(fleet.revoked_within(client, &token, answered, name).await);
        }
    }
    println!("two processes, one file: 5 revocations, in force at both {worst:?} after the answer at the latest");
    assert_eq!(std::fs::read_to_string(fleet.path("shared.jsonl")).unwrap().lines().count(), 5);
    drop(two);
    let again = fleet.start("two", &shared);
    assert!(!fleet.allowed(&fleet.client(&again), &fleet.token("t-1", "s-2")).await, "a restart forgets nothing");
}

/// The command line, end to end: against a real process, with an operator's certificate.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_revokes_from_the_command_line() {
    let fleet = Fleet::new();
    let one = fleet.start("one", &json!({}));
    let files = fleet.operators.files(&fleet.world, "ops");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_gatepost"))
            .arg("revoke")
            .args(arguments)
            .env("GATEPOST_ADMIN_SERVER", format!("https://{}", one.admin))
            .env("GATEPOST_ADMIN_SERVER_NAME", "localhost")
            .env("GATEPOST_ADMIN_CA", &files.ca)
            .env("GATEPOST_ADMIN_CERTIFICATE", &files.certificate)
            .env("GATEPOST_ADMIN_KEY", &files.private_key)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let reason = ["--reason", "case 4711"];
    let with = |arguments: &[&'static str]| [arguments, &reason].concat();
    let pem = fleet.files.certificate.to_str().unwrap();
    let (here, token) = (fleet.client(&one), fleet.token("t-1", "s-1"));
    assert!(fleet.allowed(&here, &token).await);
    let (code, told, _) = run(&with(&["token", "t-1", "--issuer", ISSUER, "--until", "24h"]));
    assert!(code == Some(0) && told.starts_with("revoked: token ") && told.contains("on record as call "), "{told}");
    assert!(!fleet.allowed(&here, &token).await);
    let (code, told, _) = run(&with(&["session", "s-2", "--issuer", ISSUER, "--format", "json"]));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &told["kind"]), (Some(0), &json!("session")));
    assert_eq!(run(&with(&["subject", "bob", "--issuer", ISSUER])).0, Some(0));
    let (code, listed, _) = run(&["list"]);
    assert!(code == Some(0) && listed.contains("3 of 3") && listed.contains(told["key"].as_str().unwrap()), "{listed}");
    let (_, listed, _) = run(&["list", "--format", "json", "--limit", "2"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((listed["total"].as_i64(), listed["revocations"].as_array().unwrap().len()), (Some(3), 2));

    let (code, _, told) = run(&with(&["token", "t-1", "--issuer", "https://other.test"]));
    assert!(code == Some(1) && told.contains("`issuer`") && told.contains("INVALID_REQUEST"), "{told}");
    assert_eq!(run(&["token", "t-1", "--issuer", ISSUER]).0, Some(64), "a reason is required");
    assert_eq!(run(&with(&["certificate", "no-such.pem"])).0, Some(64));
    assert_eq!(run(&[&["certificate", &"ab".repeat(32)], &reason[..]].concat()).0, Some(64), "until when?");
    assert_eq!(run(&["list", "--key", "no-such.key"]).0, Some(64));
    let nobody = format!("https://{}", free_port());
    assert_eq!(run(&["list", "--server", &nobody]).0, Some(69));
    assert_eq!(run(&["list", "--server", "http://localhost:1"]).0, Some(64));

    let (code, told, _) = run(&[&["certificate", pem], &reason[..]].concat());
    assert!(code == Some(0) && told.starts_with("revoked: certificate "), "{told}");
    assert!(here.check(order("Order.read", "o-1", "alice").token(&token)).await.is_err());
}

/// A Redis of our own, on a free port of this machine.
struct Redis {
    child: Child,
    port: u16,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    /// `None`, said so, where there is no `redis-server`; CI must have one.
    async fn start(port: u16, more: &[&str]) -> Option<Self> {
        let found = Command::new("redis-server").arg("--version").output();
        if found.is_err() {
            assert!(std::env::var_os("CI").is_none(), "redis-server is missing");
            println!("skipped: there is no redis-server");
            return None;
        }
        let port_text = port.to_string();
        let plain = if more.contains(&"--tls-port") { "0" } else { &port_text };
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", plain, "--save", "", "--appendonly", "no", "--daemonize", "no"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let redis = Self { child, port };
        let waited = tokio::time::timeout(PATIENCE, async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("redis-server listens");
        Some(redis)
    }

    /// Says something to it, as anybody could, and waits until it was heard.
    fn say(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// Issue 3: "revocation reaches a second Gatepost process within 1 s, Redis is killed and comes back". THREATS F10.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_tell_each_other_through_redis_and_outlast_it() {
    let fleet = Fleet::new();
    let port = free_port().port();
    let Some(redis) = Redis::start(port, &[]).await else { return };
    let store = json!({ "redis": { "url": format!("redis://127.0.0.1:{port}") } });
    let (one, two) = (fleet.start("one", &store), fleet.start("two", &store));
    let (here, there) = (fleet.client(&one), fleet.client(&two));
    let files = fleet.operators.files(&fleet.world, "ops");
    let mut ops = client(one.admin, &files).await;
    for replica in [&one, &two] {
        replica.until(STALENESS, &fleet.clock, |seconds| seconds == 0.0).await;
    }
    let mut worst = Duration::ZERO;
    for round in 0..10 {
        let id = format!("t-{round}");
        let token = fleet.token(&id, "s");
        assert!(fleet.allowed(&here, &token).await && fleet.allowed(&there, &token).await);
        ops.revoke_token(token_request(&id)).await.unwrap();
        let answered = fleet.clock.monotonic();
        worst = worst.max(fleet.revoked_within(&there, &token, answered, "through Redis").await);
        assert!(!fleet.allowed(&here, &token).await);
    }
    println!("through Redis: 10 revocations, in force at the other process {worst:?} after the answer at the latest");

    // Gone: decisions go on, what was revoked stays so, new ones take effect here, and it can be seen.
    drop(redis);
    for replica in [&one, &two] {
        replica.until(STALENESS, &fleet.clock, |seconds| seconds > 0.0).await;
    }
    let alone = fleet.token("alone", "s");
    assert!(fleet.allowed(&here, &alone).await && fleet.allowed(&there, &alone).await);
    assert!(!fleet.allowed(&there, &fleet.token("t-3", "s")).await);
    ops.revoke_token(token_request("alone")).await.unwrap();
    assert!(!fleet.allowed(&here, &alone).await, "in force where it was told");
    assert!(fleet.allowed(&there, &alone).await, "and not where nobody could tell");
    assert_eq!(two.says("out of touch with the store"), 1, "told once");
    let late = fleet.start("late", &store);
    assert!(fleet.allowed(&fleet.client(&late), &fleet.token("t-4", "s")).await, "it starts, and knows nothing yet");
    assert!(late.metric(STALENESS).await > 0.0, "which can be seen from the beginning");

    // Back, and empty: filled from what processes know.
    let redis = Redis::start(port, &[]).await.unwrap();
    let back = fleet.clock.monotonic();
    for (replica, id) in [(&two, "alone"), (&late, "t-4"), (&late, "alone")] {
        let client = fleet.client(replica);
        let token = fleet.token(id, "s");
        while fleet.allowed(&client, &token).await {
            assert!(fleet.clock.monotonic() - back < Duration::from_secs(5), "{id} is still allowed");
        }
    }
    println!("Redis came back empty: all three know everything {:?} later", fleet.clock.monotonic() - back);
    for replica in [&one, &two, &late] {
        replica.until(STALENESS, &fleet.clock, |seconds| seconds == 0.0).await;
    }
    assert_eq!(redis.say(&["ZCARD", "gatepost:list"]), "11");
    ops.revoke_session(session_request("s-9")).await.unwrap();
    let answered = fleet.clock.monotonic();
    fleet.revoked_within(&there, &fleet.token("t-99", "s-9"), answered, "again").await;

    // Emptied under everybody's eyes, without a connection lost.
    assert_eq!(redis.say(&["FLUSHALL"]), "OK");
    let refilled = fleet.clock.monotonic();
    while redis.say(&["ZCARD", "gatepost:list"]) != "12" {
        assert!(fleet.clock.monotonic() - refilled < Duration::from_secs(5), "it is not filled again");
    }
    assert!(!fleet.allowed(&there, &fleet.token("t-3", "s")).await);

    // Whoever starts now knows everything before its first answer.
    let last = fleet.start("last", &store);
    assert!(!fleet.allowed(&fleet.client(&last), &fleet.token("t-5", "s")).await);

    // It hangs: nothing here waits for it, and that can be seen.
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &redis.child.id().to_string()]).status().unwrap().success());
    };
    signal("-STOP");
    let begun = fleet.clock.monotonic();
    ops.revoke_token(token_request("hung")).await.unwrap();
    assert!(!fleet.allowed(&here, &fleet.token("hung", "s")).await);
    assert!(fleet.clock.monotonic() - begun < Duration::from_secs(1), "an operator waits for no store");
    let seen = one.until(STALENESS, &fleet.clock, |seconds| seconds > 0.0).await;
    println!("Redis hangs: seen {seen:?} later");
    signal("-CONT");
    let going = fleet.clock.monotonic();
    while fleet.allowed(&there, &fleet.token("hung", "s")).await {
        assert!(fleet.clock.monotonic() - going < Duration::from_secs(5), "within 5 s of its return");
    }
    one.until(STALENESS, &fleet.clock, |seconds| seconds == 0.0).await;

    // What is no entry is refused one by one; what is one counts, though it was written by hand and is no news.
    let by_hand =
        Revocation::whole(Kind::Token, Key::of(Kind::Token, ISSUER, "by-hand"), unix_seconds(fleet.clock.now()) + 600);
    let line = by_hand.line().unwrap();
    let far = line.replace(&by_hand.until.to_string(), "99999999999");
    redis.say(&["ZADD", "gatepost:list", "1", "rubbish", "1", &far, "1", &"x".repeat(5000), "1", &line]);
    let written = fleet.clock.monotonic();
    let by_hand = fleet.token("by-hand", "s");
    fleet.revoked_within(&there, &by_hand, written, "by hand").await;
    let malformed = "gatepost_revocation_entries_total{result=\"malformed\",source=\"redis\"}";
    two.until(malformed, &fleet.clock, |count| count == 3.0).await;
    redis.say(&["XADD", "gatepost:news", "*", "line", "rubbish too", "other", "1"]);
    redis.say(&["XADD", "gatepost:news", "*", "note", "nothing"]);
    two.until(malformed, &fleet.clock, |count| count >= 4.0).await;
    assert_eq!(two.metric(STALENESS).await, 0.0, "none of it puts us out of touch");
    // Of another type: an error at every look, and still nothing is un-revoked.
    redis.say(&["SET", "gatepost:list", "a string"]);
    two.until(STALENESS, &fleet.clock, |seconds| seconds > 0.0).await;
    assert!(!fleet.allowed(&there, &by_hand).await);
    redis.say(&["DEL", "gatepost:list"]);
    two.until(STALENESS, &fleet.clock, |seconds| seconds == 0.0).await;
}

/// TLS with a private authority, a password and a client certificate; and the password is nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_behind_tls_and_a_password_is_reached_and_the_password_is_never_told() {
    const PASSWORD: &str = "canary-5d41402abc4b2a76";
    let fleet = Fleet::new();
    let port = free_port().port();
    let path = |name: &str| fleet.path(name).to_str().unwrap().to_owned();
    let (port_text, ca, certificate, key) = (port.to_string(), path("ca.pem"), path("server.pem"), path("server.key"));
    // No more than what docs/revocation.md says.
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/revocation.md")).unwrap();
    let rights = page.split("The user needs `").nth(1).unwrap().split('`').next().unwrap();
    let secret = format!(">{PASSWORD}");
    let mut tls = vec![
        "--tls-port",
        &port_text,
        "--tls-ca-cert-file",
        &ca,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "yes",
        "--user",
        "default",
        "off",
        "--user",
        "gatepost",
        "on",
        &secret,
        "~shop:gatepost:*",
        "-@all",
    ];
    tls.extend(rights.split(' '));
    let Some(_redis) = Redis::start(port, &tls).await else { return };
    fleet.world.write("right.txt", &format!("{PASSWORD}\n")).unwrap();
    fleet.world.write("wrong.txt", "canary-wrong").unwrap();
    let store = |password: &str| {
        json!({ "redis": {
            "url": format!("rediss://gatepost@localhost:{port}/2"), "password_file": password, "ca": "ca.pem",
            "certificate": "storefront.pem", "private_key": "storefront.key", "prefix": "shop:gatepost",
        }})
    };
    let (one, two) = (fleet.start("one", &store("right.txt")), fleet.start("two", &store("right.txt")));
    for replica in [&one, &two] {
        replica.until(STALENESS, &fleet.clock, |seconds| seconds == 0.0).await;
    }
    let mut ops = client(one.admin, &fleet.operators.files(&fleet.world, "ops")).await;
    let token = fleet.token("t-1", "s-1");
    let there = fleet.client(&two);
    assert!(fleet.allowed(&there, &token).await);
    ops.revoke_token(token_request("t-1")).await.unwrap();
    fleet.revoked_within(&there, &token, fleet.clock.monotonic(), "over TLS").await;

    let wrong = fleet.start("wrong", &store("wrong.txt"));
    let told = "out of touch with the store";
    wrong.until(STALENESS, &fleet.clock, |seconds| seconds > 0.3).await;
    assert_eq!(wrong.says(told), 1, "{:#?}", wrong.log.lock());
    assert!(fleet.allowed(&fleet.client(&wrong), &fleet.token("t-2", "s")).await, "it serves all the same");
    for replica in [&one, &two, &wrong] {
        assert_eq!(replica.says("canary"), 0, "a password is in the log");
    }
}
