//! The server's certificate and key, the authority of clients and the clients' own certificates change under load, as an
//! operator changes them: the new authority beside the old, then the clients, then the old one goes.

use std::collections::BTreeSet;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gatepost::cli::demo::world::{ClientFiles, spiffe_id};
use gatepost::client::Client;
use parking_lot::Mutex;
use serde_json::json;

use crate::support::authority::Authority;
use crate::support::load::{InPython, Load};
use crate::support::{Gatepost, eventually, order};

const CLIENTS: usize = 16;
/// The same over grpcio.
const CLIENTS_IN_PYTHON: usize = 4;
/// Everybody's last calls are among the last so many bytes of records.
const LATELY: u64 = 768 * 1024;

struct Rotation {
    gatepost: Gatepost,
    folder: tempfile::TempDir,
    /// Calls of each client since it last changed its certificate.
    answered: Vec<AtomicUsize>,
    failed: Mutex<Vec<String>>,
    stop: AtomicBool,
    in_python: Arc<Load>,
}

impl Rotation {
    fn trust(&self, authorities: &[&Authority]) {
        let text: String = authorities.iter().map(|authority| authority.pem()).collect();
        let aside = self.folder.path().join(".new");
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, self.folder.path().join("clients.pem")).unwrap();
    }

    /// New certificates for everybody: clients in Rust, then those in Python.
    fn issue(&self, authority: &Authority, round: usize) -> Vec<ClientFiles> {
        let names = (0..CLIENTS).map(|client| format!("client-{client}"));
        let names = names.chain((0..CLIENTS_IN_PYTHON).map(|client| format!("grpcio-{client}")));
        let serials = (round * 100 + 1..).map(|serial| u64::try_from(serial).unwrap());
        let issue = |(name, serial): (String, u64)| {
            authority.client(&self.gatepost.world, &name, serial, &spiffe_id("storefront"))
        };
        names.zip(serials).map(issue).collect()
    }

    /// The certificates that clients showed lately, by their hash.
    fn shown(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.gatepost.path("audit")).unwrap().map(|entry| entry.unwrap().path());
        let segments = entries.filter(|path| path.to_str().unwrap().contains("/segment-"));
        let mut newest = std::fs::File::open(segments.max().unwrap()).unwrap();
        let length = newest.metadata().unwrap().len();
        newest.seek(SeekFrom::Start(length.saturating_sub(LATELY))).unwrap();
        let mut bytes = Vec::new();
        newest.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let hash = |line: &str| line.split("\"certificate_sha256\":\"").nth(1)?.get(..64).map(str::to_owned);
        // The first line may have lost its beginning.
        text.lines().skip(1).filter_map(hash).collect()
    }

    fn failures(&self) -> usize {
        self.failed.lock().len() + self.in_python.failed().len()
    }

    async fn ask(self: Arc<Self>, number: usize, files: ClientFiles) {
        let client = Client::builder(self.gatepost.grpc_address())
            .server_name("localhost")
            .ca(files.ca)
            .identity(files.certificate, files.private_key)
            .deadline(Duration::from_secs(10))
            .reload_interval(Duration::from_millis(20))
            // Whatever fails shall be seen.
            .retries(0)
            .build()
            .unwrap();
        let token = self.gatepost.token("alice", &[]);
        while !self.stop.load(Ordering::Relaxed) {
            match client.check(order("Order.read", "o-1", "alice").token(&token)).await {
                Ok(answer) if answer.allowed() => drop(self.answered[number].fetch_add(1, Ordering::Relaxed)),
                Ok(answer) => self.failed.lock().push(format!("{:?}", answer.denial())),
                Err(error) => self.failed.lock().push(format!("client {number}: {error:?}")),
            }
            // Many clients and not many calls: there are few processors here for both sides.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Every client has asked so many times more.
    async fn calls(&self, more: usize) {
        let before: Vec<_> = self.answered.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let all = || self.answered.iter().zip(&before).all(|(now, then)| now.load(Ordering::Relaxed) >= then + more);
        eventually("every client goes on", || all() || self.failures() > 0).await;
        self.in_python.more(more * CLIENTS_IN_PYTHON).await;
    }
}

fn sha256_hex(file: &PathBuf) -> String {
    use rustls_pki_types::pem::PemObject as _;
    let leaf = rustls_pki_types::CertificateDer::from_pem_file(file).unwrap();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// THREATS F12. With `GATEPOST_LONG=1` a rotation every 5 s for 10 minutes, with `GATEPOST_ROTATIONS=24` for 2, else as many
/// as fast as they are noticed.
#[tokio::test(flavor = "multi_thread")]
async fn certificate_key_and_client_authority_rotate_under_load_without_a_failed_call() {
    let long = std::env::var_os("GATEPOST_LONG").is_some_and(|value| value == "1");
    let wanted = std::env::var("GATEPOST_ROTATIONS").ok().map(|count| count.parse().unwrap());
    let (rounds, pause) = match wanted.or(long.then_some(120)) {
        Some(rounds) => (rounds, Duration::from_secs(5)),
        None => (24, Duration::ZERO),
    };
    let folder = tempfile::tempdir().unwrap();
    let mut authority = Authority::new("authority 0");
    std::fs::write(folder.path().join("clients.pem"), authority.pem()).unwrap();
    let clients = folder.path().join("clients.pem");
    let gatepost = Gatepost::start_with(|settings| settings["server"]["client_ca"] = json!(clients)).await;
    let answered = (0..CLIENTS).map(|_| AtomicUsize::new(0)).collect();
    let (failed, stop, in_python) = (Mutex::default(), AtomicBool::new(false), Load::new());
    let rotation = Arc::new(Rotation { gatepost, folder, answered, failed, stop, in_python });
    let files = rotation.issue(&authority, 0);
    let how = InPython {
        address: rotation.gatepost.address,
        ca: rotation.gatepost.path("ca.pem"),
        certificate: rotation.gatepost.path("grpcio-{n}.pem"),
        private_key: rotation.gatepost.path("grpcio-{n}.key"),
        clients: CLIENTS_IN_PYTHON,
        reload_interval: Duration::from_millis(50),
    };
    rotation.in_python.ask_in_python(&how, &rotation.gatepost.token("alice", &[]));
    let asking: Vec<_> = (0..CLIENTS)
        .zip(&files)
        .map(|(number, files)| tokio::spawn(Arc::clone(&rotation).ask(number, files.clone())))
        .collect();
    rotation.calls(5).await;

    #[expect(clippy::disallowed_methods, reason = "the long run keeps real time")]
    let now = std::time::Instant::now;
    let begun = now();
    for round in 1..=rounds {
        if rotation.failures() > 3 {
            break;
        }
        let round_begun = now();
        let next = Authority::new(&format!("authority {round}"));
        rotation.trust(&[&authority, &next]);
        rotation.gatepost.world.renew_server().unwrap();
        // Noticed once a client of the new authority is let in.
        let probe = next.client(&rotation.gatepost.world, "probe", 1, &spiffe_id("storefront"));
        let noticed = tokio::time::timeout(crate::support::PATIENCE, async {
            loop {
                let channel = rotation.gatepost.channel(&probe).await.unwrap();
                let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
                if health.check(tonic_health::pb::HealthCheckRequest::default()).await.is_ok() {
                    break;
                }
            }
        });
        assert!(noticed.await.is_ok(), "round {round}: the new authority is not noticed");

        rotation.issue(&next, round);
        let new: BTreeSet<_> = files.iter().map(|files| sha256_hex(&files.certificate)).collect();
        eventually("every client shows its new certificate", || {
            let shown = rotation.shown();
            shown == new || rotation.failures() > 0
        })
        .await;
        rotation.trust(&[&next]);
        authority = next;
        rotation.calls(5).await;
        tokio::time::sleep(pause.saturating_sub(round_begun.elapsed())).await;
    }
    rotation.stop.store(true, Ordering::Relaxed);
    for asking in asking {
        asking.await.unwrap();
    }
    let in_python = rotation.in_python.stop().await.len();
    let mut failed = std::mem::take(&mut *rotation.failed.lock());
    failed.extend(rotation.in_python.failed());
    let calls: usize = rotation.answered.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    println!(
        "{calls} calls of {CLIENTS} clients and {in_python} of {CLIENTS_IN_PYTHON} over grpcio, over {rounds} rotations of \
         certificate, key and client authority in {:?}, {} failed",
        begun.elapsed(),
        failed.len()
    );
    assert!(failed.is_empty(), "{} failed, first: {:?}", failed.len(), failed.first());
}
