//! The two example services, each in a process of its own, in front of the real Gatepost.
//!
//! What they say over HTTP is what `docs/for-services.md` promises: masked reads, refused writes, no ids to probe, and
//! nothing at all while Gatepost is away.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Gatepost, PATIENCE};

#[tokio::test]
async fn the_rust_service_enforces_what_gatepost_says() {
    let binary = rust_service();
    enforces(Command::new(binary)).await;
}

#[tokio::test]
async fn the_python_service_enforces_what_gatepost_says() {
    let mut command = Command::new(python());
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(root().join("examples/python/service.py"));
    enforces(command).await;
}

#[test]
fn the_mask_of_the_python_service_passes_the_table_of_the_rust_client() {
    let tested = Command::new(python())
        .args(["-m", "unittest", "-q", "test_mask"])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(root().join("examples/python"))
        .output()
        .expect("python runs");
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stderr));
}

/// The whole story, for whichever service `command` starts.
async fn enforces(command: Command) {
    let mut gatepost = Gatepost::start().await;
    let service = Service::start(command, &gatepost).await;
    let (alice, bob) = (gatepost.token("alice", &[]), gatepost.token("bob", &[]));
    let mine = "/accounts/acc-alice";

    let (status, account) = service.get(mine, &alice).await;
    assert_eq!(status, 200, "the owner reads her account: {account}");
    assert_eq!(account["display_name"], "Alice");
    assert_eq!(account["address"]["city"], "Bern", "a nested field is granted");
    for hidden in ["last_login_ip", "risk_score", "password_hash", "owner", "tenant"] {
        assert!(account.get(hidden).is_none(), "`{hidden}` is not hers to read");
    }

    let (status, order) = service.get("/orders/ord-1", &alice).await;
    assert_eq!((status, &order["total"]), (200, &json!(4200)), "the customer reads her order");
    assert!(order.get("internal_note").is_none(), "what staff write about her is not hers to read");

    let not_found = (404, json!({"error": "not found"}));
    assert_eq!(service.get(mine, &bob).await, not_found, "somebody else's account");
    assert_eq!(service.get("/accounts/acc-nobody", &bob).await, not_found, "the same as one that is not there");
    assert_eq!(service.get("/orders/ord-1", &bob).await, not_found, "somebody else's order");

    let (status, account) = service.patch(mine, &alice, json!({"display_name": "Alice A."})).await;
    assert_eq!((status, &account["display_name"]), (200, &json!("Alice A.")), "she may change her name");
    let refused = service.patch(mine, &alice, json!({"display_name": "Root", "role": "admin"})).await;
    assert_eq!((refused.0, &refused.1["fields"]), (403, &json!(["role"])), "a role sent along is refused by name");
    let refused = service.patch(mine, &alice, json!({"role": "admin"})).await;
    assert_eq!((refused.0, &refused.1["fields"]), (403, &json!(["role"])), "alone, too");
    assert_eq!(service.patch(mine, &bob, json!({"display_name": "Bob"})).await, not_found, "somebody else's account");
    let (_, account) = service.get(mine, &alice).await;
    assert_eq!(
        (&account["display_name"], &account["role"]),
        (&json!("Alice A."), &json!("customer")),
        "all or nothing"
    );

    assert_eq!(service.get(mine, "").await.0, 401, "no token");
    assert_eq!(service.get(mine, &format!("{alice}x")).await.0, 401, "a token that somebody touched");
    assert_eq!(service.get("/accounts/acc-nobody", "x.y.z").await.0, 401, "a bad token learns nothing about ids");

    gatepost.stop().await;
    assert_eq!(service.get(mine, &alice).await.0, 503, "no answer is no access");
    assert_eq!(service.patch(mine, &alice, json!({"display_name": "Late"})).await.0, 503, "nor a change");
}

/// A running example service; ends when this is dropped.
struct Service {
    process: Child,
    address: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Service {
    async fn start(mut command: Command, gatepost: &Gatepost) -> Self {
        let files = gatepost.client_files("storefront");
        let mut process = command
            .args(["--gatepost", &gatepost.grpc_address(), "--server-name", "localhost"])
            .args(["--listen", "127.0.0.1:0", "--deadline-ms", "10000"])
            .arg("--ca")
            .arg(files.ca)
            .arg("--cert")
            .arg(files.certificate)
            .arg("--key")
            .arg(files.private_key)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the service starts");
        let output = process.stdout.take().expect("its output");
        let mut service = Self { process, address: String::new() };
        let first = tokio::task::spawn_blocking(|| BufReader::new(output).lines().next());
        let first = tokio::time::timeout(PATIENCE, first).await.expect("it says so in time");
        let first = first.expect("read").expect("it has not ended").expect("a line");
        service.address = first.strip_prefix("listening on ").expect("it says where it listens").to_owned();
        service
    }

    async fn get(&self, path: &str, token: &str) -> (u16, Value) {
        self.call("GET", path, token, "").await
    }

    async fn patch(&self, path: &str, token: &str, patch: Value) -> (u16, Value) {
        self.call("PATCH", path, token, &patch.to_string()).await
    }

    /// One HTTP/1.1 exchange on a connection of its own.
    async fn call(&self, method: &str, path: &str, token: &str, body: &str) -> (u16, Value) {
        let bearer = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: shop\r\n{bearer}Content-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(&self.address).await.expect("the service listens");
        stream.write_all(request.as_bytes()).await.expect("it takes the request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The example, built. `cargo test` has built it already; `cargo test --test spec` alone has not.
fn rust_service() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_gatepost")).parent().expect("a folder");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--example", "axum_service", "--profile", profile])
        .arg("--target-dir")
        .arg(folder.parent().expect("the target folder"))
        .current_dir(root())
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the example does not build");
    folder.join("examples/axum_service")
}

/// A Python that has what `examples/python/requirements.txt` asks for: the one that `tests/run` has prepared, or one of our own.
pub fn python() -> PathBuf {
    static ONCE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    ONCE.get_or_init(|| {
        let able = |python: &Path| {
            let tried = Command::new(python).args(["-c", "import grpc, grpc_tools"]).output();
            tried.is_ok_and(|tried| tried.status.success())
        };
        if let Some(prepared) = std::env::var_os("GATEPOST_TEST_PYTHON").map(PathBuf::from) {
            assert!(able(&prepared), "GATEPOST_TEST_PYTHON has no grpcio-tools");
            return prepared;
        }
        if let Some(found) = ["test-tools", "example-tools"].map(tool).into_iter().find(|python| able(python)) {
            return found;
        }
        let run = |command: &mut Command| assert!(command.status().expect("it runs").success(), "{command:?}");
        run(Command::new("python3").args(["-m", "venv"]).arg(root().join("target/example-tools")));
        let requirements = root().join("examples/python/requirements.txt");
        let python = tool("example-tools");
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements));
        python
    })
    .clone()
}

fn tool(venv: &str) -> PathBuf {
    root().join("target").join(venv).join("bin/python")
}
