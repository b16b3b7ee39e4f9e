//! Policies change under load, two hundred times in all, or a thousand times with `GATEPOST_LONG`: well, badly, half-way, and
//! as a ConfigMap does. No call fails, and every answer is the one that the revision it names gives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gatepost::cli::demo::world::spiffe_id;
use gatepost::client::Client;
use gatepost::config::Limits;
use gatepost::policy::{BundleFiles, BundleOptions};
use serde_json::json;

use crate::support::load::{InPython, Load, STATUSES, Told};
use crate::support::{Gatepost, PATIENCE, copy_bundle};

const CLIENTS: usize = 3;
const CLIENTS_IN_PYTHON: usize = 2;

/// What each good revision forbids, by its hash: known before anybody is asked.
#[derive(Default)]
struct Reference(BTreeMap<String, usize>);

/// Of each kind of folder.
fn reloads() -> usize {
    if std::env::var_os("GATEPOST_LONG").is_some() { 500 } else { 100 }
}

/// Which of [`STATUSES`] nobody may read an order in, a bit for each. The next generation always differs.
fn forbidden(generation: usize) -> usize {
    (generation * 5 + 3) % (1 << STATUSES.len())
}

/// The policies of a generation about some of the statuses. The marker makes each a revision of its own.
fn text(generation: usize, statuses: std::ops::Range<usize>) -> String {
    let marker = format!(
        "// generation {generation}\n@id(\"marker-{}\") forbid (principal, action == Action::\"User.delete\", resource);\n",
        statuses.start
    );
    let forbid = |which: usize| {
        let status = STATUSES[which];
        format!(
            "@id(\"no-{status}\")\nforbid (principal, action == Action::\"Order.read\", resource)\n\
             when {{ resource.status == \"{status}\" }};\n"
        )
    };
    statuses.filter(|which| forbidden(generation) & (1 << which) != 0).map(forbid).fold(marker, |text, one| text + &one)
}

const BROKEN: &str = "forbid (principal, action, resour";

impl Reference {
    /// Learns what a whole folder of this generation is called.
    fn learn(&mut self, folder: &Path, generation: usize) -> String {
        let files = BundleFiles::read(folder, &Limits::default()).unwrap();
        let revision = files.revision(&BundleOptions::default()).as_str().to_owned();
        self.0.insert(revision.clone(), forbidden(generation));
        revision
    }

    /// Holds every answer to the reference; gives how many revisions answered.
    fn check(&self, calls: &[Vec<Told>]) -> usize {
        let mut seen = BTreeSet::new();
        for call in calls {
            let revisions: BTreeSet<&String> = call.iter().map(|told| &told.revision).collect();
            assert_eq!(revisions.len(), 1, "a batch is of one revision: {call:?}");
            for told in call {
                let forbidden = self.0.get(&told.revision);
                let forbidden = forbidden.unwrap_or_else(|| panic!("of no revision that ever was: {told:?}"));
                assert_eq!(told.allowed, forbidden & (1 << told.question) == 0, "{told:?}");
            }
            seen.extend(revisions);
        }
        seen.len()
    }
}

/// Looks at changed policies, as the metrics tell of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Looks {
    taken: usize,
    refused: usize,
}

async fn looks(gatepost: &Gatepost) -> Looks {
    let metrics = gatepost.metrics().await;
    let of = |result: &str| {
        let label = format!("result=\"{result}\"");
        let mut lines = metrics.lines().filter(|line| line.starts_with("gatepost_policy_reloads_total"));
        let line = lines.find(|line| line.contains(&label));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as usize)
    };
    Looks { taken: of("ok"), refused: of("refused") }
}

/// Waits until one more change was refused, and holds it to having changed nothing.
async fn refused(gatepost: &Gatepost, before: Looks, in_force: &str) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while looks(gatepost).await.refused == before.refused {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "what is broken is told");
    assert_eq!(gatepost.pdp.store.current().revision().as_str(), in_force, "and the old ones serve");
}

async fn in_force(gatepost: &Gatepost, revision: &str, what: &str) {
    crate::support::eventually(what, || gatepost.pdp.store.current().revision().as_str() == revision).await;
}

/// Everybody begins to ask.
async fn load(gatepost: &Gatepost) -> Arc<Load> {
    let (load, token) = (Load::new(), gatepost.token("alice", &[]));
    for number in 0..CLIENTS {
        let files = gatepost.world.client(&format!("client-{number}"), &spiffe_id("storefront")).unwrap();
        let client = Client::builder(gatepost.grpc_address())
            .server_name("localhost")
            .ca(files.ca)
            .identity(files.certificate, files.private_key)
            .deadline(Duration::from_secs(10))
            // Whatever fails shall be seen.
            .retries(0)
            .build()
            .unwrap();
        load.ask(&number.to_string(), client, token.clone());
    }
    let files = gatepost.world.client("in-python", &spiffe_id("storefront")).unwrap();
    load.ask_in_python(&InPython::new(gatepost.address, &files, CLIENTS_IN_PYTHON), &token);
    load.more(10).await;
    load
}

async fn conclude(gatepost: &Gatepost, load: &Load, reference: &Reference, what: &str) {
    let looks = looks(gatepost).await;
    let calls = load.stop().await;
    let answers: usize = calls.iter().map(Vec::len).sum();
    let seen = reference.check(&calls);
    println!(
        "{what}: {} revisions were taken and {} refused under load; {} calls, {} failed; {answers} answers of {seen} \
         revisions, each as its revision says",
        looks.taken,
        looks.refused,
        calls.len(),
        load.failed().len(),
    );
    assert!(load.failed().is_empty(), "{:?}", load.failed());
    assert!(looks.taken + looks.refused >= reloads(), "{looks:?}");
    assert!(seen * 2 > looks.taken, "the load met most of them: {seen} of {looks:?}");
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")
}

/// THREATS F11: a plain folder, whose file is replaced, replaced by a broken one, and written in place.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_changes_of_a_folder_under_load_fail_no_call_and_mix_no_revisions() {
    let aside = tempfile::tempdir().unwrap();
    let mut reference = Reference::default();
    copy_bundle(&examples(), aside.path());
    // What the folder will be once this generation is in it.
    let mut prepare = |generation: usize| {
        let whole = text(generation, 0..STATUSES.len());
        fs::write(aside.path().join("zz.cedar"), &whole).unwrap();
        (reference.learn(aside.path(), generation), whole)
    };
    let (first, whole) = prepare(0);
    let start = tempfile::tempdir().unwrap();
    copy_bundle(&examples(), start.path());
    fs::write(start.path().join("zz.cedar"), whole).unwrap();
    let gatepost = Gatepost::start_over(start.path(), |settings| {
        settings["policies"]["tenant_type"] = json!("Tenant");
    })
    .await;
    in_force(&gatepost, &first, "the reference names revisions as the server does").await;
    let load = load(&gatepost).await;
    let place = gatepost.path("policies/zz.cedar");
    let (mut current, mut done) = (first, looks(&gatepost).await);
    for generation in 1.. {
        if done.taken + done.refused >= reloads() || !load.failed().is_empty() {
            break;
        }
        let (revision, whole) = prepare(generation);
        let (half, rest) = whole.split_at(whole.len() - 12);
        match generation % 4 {
            1 => gatepost.world.write("policies/zz.cedar", &whole).unwrap(),
            2 => {
                gatepost.world.write("policies/zz.cedar", BROKEN).unwrap();
                refused(&gatepost, done, &current).await;
                gatepost.world.write("policies/zz.cedar", &whole).unwrap();
            }
            // In place, and somebody stumbles over the cable half-way.
            3 => {
                fs::write(&place, half).unwrap();
                refused(&gatepost, done, &current).await;
                append(&place, rest);
            }
            // In place, as editors do: half of it is there for a moment.
            _ => {
                fs::write(&place, half).unwrap();
                append(&place, rest);
            }
        }
        in_force(&gatepost, &revision, "good policies are taken").await;
        current = revision;
        load.more(3).await;
        done = looks(&gatepost).await;
    }
    conclude(&gatepost, &load, &reference, "a folder").await;
}

fn append(place: &Path, rest: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(place).unwrap();
    std::io::Write::write_all(&mut file, rest.as_bytes()).unwrap();
}

/// THREATS section 7, 18: two files that belong together, changed as the kubelet changes a ConfigMap: a new folder aside,
/// `..data` swapped, the old folder removed at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_swaps_of_a_config_map_under_load_fail_no_call_and_mix_no_revisions() {
    let mount = tempfile::tempdir().unwrap();
    let mut reference = Reference::default();
    let folder = |generation: usize| mount.path().join(format!("..generation_{generation}"));
    let write = |generation: usize, second: &str| {
        copy_bundle(&examples(), &folder(generation));
        fs::write(folder(generation).join("zz-1.cedar"), text(generation, 0..2)).unwrap();
        fs::write(folder(generation).join("zz-2.cedar"), second).unwrap();
    };
    let swap = |to: usize, from: usize| {
        symlink(folder(to).file_name().unwrap(), mount.path().join("..data_tmp")).unwrap();
        fs::rename(mount.path().join("..data_tmp"), mount.path().join("..data")).unwrap();
        if from != to {
            fs::remove_dir_all(folder(from)).unwrap();
        }
    };
    write(0, &text(0, 2..4));
    let first = reference.learn(&folder(0), 0);
    swap(0, 0);
    for entry in fs::read_dir(folder(0)).unwrap() {
        let name = entry.unwrap().file_name();
        symlink(Path::new("..data").join(&name), mount.path().join(&name)).unwrap();
    }
    let directory = mount.path().to_owned();
    let gatepost = Gatepost::start_with(|settings| settings["policies"]["directory"] = json!(directory)).await;
    in_force(&gatepost, &first, "the reference names revisions as the server does").await;
    let load = load(&gatepost).await;
    let (mut current, mut linked, mut done) = (first, 0, looks(&gatepost).await);
    for generation in (2..).step_by(2) {
        if done.taken + done.refused >= reloads() || !load.failed().is_empty() {
            break;
        }
        match generation / 2 % 3 {
            0 => {
                write(generation - 1, BROKEN);
                swap(generation - 1, linked);
                linked = generation - 1;
                refused(&gatepost, done, &current).await;
            }
            // Two right after each other: the first may or may not be met.
            1 => {
                write(generation - 1, &text(generation - 1, 2..4));
                reference.learn(&folder(generation - 1), generation - 1);
                swap(generation - 1, linked);
                linked = generation - 1;
            }
            _ => {}
        }
        let second = text(generation, 2..4);
        write(generation, &second[..second.len() - 12]);
        load.more(1).await;
        append(&folder(generation).join("zz-2.cedar"), &second[second.len() - 12..]);
        let revision = reference.learn(&folder(generation), generation);
        swap(generation, linked);
        linked = generation;
        in_force(&gatepost, &revision, "the new folder is taken").await;
        current = revision;
        load.more(3).await;
        done = looks(&gatepost).await;
    }
    conclude(&gatepost, &load, &reference, "a ConfigMap").await;
}
