//! The server's certificate and key, the authority of clients and the clients' own certificates change under load, as an
//! operator changes them: the new authority beside the old, then the clients, then the old one goes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gatepost::cli::demo::world::{ClientFiles, spiffe_id};
use gatepost::client::Client;
use parking_lot::Mutex;
use serde_json::json;

use crate::support::authority::Authority;
use crate::support::{Gatepost, eventually, order};

const CLIENTS: usize = 16;

struct Rotation {
    gatepost: Gatepost,
    folder: tempfile::TempDir,
    /// Calls of each client since it last changed its certificate.
    answered: Vec<AtomicUsize>,
    failed: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Rotation {
    fn trust(&self, authorities: &[&Authority]) {
        let text: String = authorities.iter().map(|authority| authority.pem()).collect();
        let aside = self.folder.path().join(".new");
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, self.folder.path().join("clients.pem")).unwrap();
    }

    fn issue(&self, authority: &Authority, client: usize, round: usize) -> ClientFiles {
        let serial = u64::try_from(round * CLIENTS + client + 1).unwrap();
        authority.client(&self.gatepost.world, &format!("client-{client}"), serial, &spiffe_id("storefront"))
    }

    /// The certificates that clients showed on the last calls, by their hash.
    fn shown(&self, last: usize) -> BTreeSet<String> {
        let text = self.gatepost.trail();
        let hash = |line: &str| line.split("\"certificate_sha256\":\"").nth(1)?.get(..64).map(str::to_owned);
        text.lines().rev().take(last).filter_map(hash).collect()
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
        eventually("every client goes on", || all() || !self.failed.lock().is_empty()).await;
    }
}

fn sha256_hex(file: &PathBuf) -> String {
    use rustls_pki_types::pem::PemObject as _;
    let leaf = rustls_pki_types::CertificateDer::from_pem_file(file).unwrap();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// THREATS F12. With `GATEPOST_LONG=1` a rotation every 5 s for 10 minutes, else 12 as fast as they are noticed.
#[tokio::test(flavor = "multi_thread")]
async fn certificate_key_and_client_authority_rotate_under_load_without_a_failed_call() {
    let long = std::env::var_os("GATEPOST_LONG").is_some_and(|value| value == "1");
    let (rounds, pause) = if long { (120, Duration::from_secs(5)) } else { (12, Duration::ZERO) };
    let folder = tempfile::tempdir().unwrap();
    let mut authority = Authority::new("authority 0");
    std::fs::write(folder.path().join("clients.pem"), authority.pem()).unwrap();
    let clients = folder.path().join("clients.pem");
    let gatepost = Gatepost::start_with(|settings| settings["server"]["client_ca"] = json!(clients)).await;
    let answered = (0..CLIENTS).map(|_| AtomicUsize::new(0)).collect();
    let (failed, stop) = (Mutex::default(), AtomicBool::new(false));
    let rotation = Arc::new(Rotation { gatepost, folder, answered, failed, stop });
    let files: Vec<_> = (0..CLIENTS).map(|client| rotation.issue(&authority, client, 0)).collect();
    let asking: Vec<_> = (0..)
        .zip(&files)
        .map(|(number, files)| tokio::spawn(Arc::clone(&rotation).ask(number, files.clone())))
        .collect();
    rotation.calls(5).await;

    #[expect(clippy::disallowed_methods, reason = "the long run keeps real time")]
    let now = std::time::Instant::now;
    let begun = now();
    for round in 1..=rounds {
        if rotation.failed.lock().len() > 3 {
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

        for client in 0..CLIENTS {
            rotation.issue(&next, client, round);
        }
        let new: BTreeSet<_> = files.iter().map(|files| sha256_hex(&files.certificate)).collect();
        eventually("every client shows its new certificate", || {
            let shown = rotation.shown(CLIENTS * 4);
            new.is_subset(&shown) && shown.len() == CLIENTS || !rotation.failed.lock().is_empty()
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
    let failed = std::mem::take(&mut *rotation.failed.lock());
    let calls: usize = rotation.answered.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    println!(
        "{calls} calls of {CLIENTS} clients over {rounds} rotations of certificate, key and client authority in {:?}, {} failed",
        begun.elapsed(),
        failed.len()
    );
    assert!(failed.is_empty(), "{} failed, first: {:?}", failed.len(), failed.first());
}
