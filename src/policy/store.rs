//! The bundle in force: one immutable revision at a time, swapped as a whole.
//!
//! A changed folder is loaded aside. If it is good it takes the old one's place in one step; if not, the old one keeps
//! serving and every problem is told. Decisions under way keep the revision they started with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use notify::Watcher as _;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Bundle, BundleFiles, BundleOptions, BundleReport};
use crate::model::ids::PolicyRevision;

/// How long nothing must have been written before a changed folder is looked at.
const SETTLED: Duration = Duration::from_millis(200);

/// How many announcements are waited out at most: a folder that is written to for ever is looked at all the same.
const SETTLING: usize = 100;

/// The current bundle, and where it comes from.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    options: BundleOptions,
    current: ArcSwap<Bundle>,
    /// What was refused last, so that it is told of once.
    refused: Mutex<Option<Refused>>,
    /// Whether there is such a thing; for whoever must not wait until a look is over.
    behind: AtomicBool,
}

/// Something that was refused.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    /// These files.
    Files(PolicyRevision),
    /// The folder could not be read; what was said of it.
    Folder(String),
}

/// What a look at the folder gave.
#[derive(Debug)]
pub enum Reload {
    /// Nothing new.
    Unchanged,
    /// A new revision is in force.
    Changed {
        /// What was in force before.
        before: PolicyRevision,
        /// What is now.
        after: PolicyRevision,
    },
    /// The folder holds something else that can't be taken; the old revision stays.
    Refused(BundleReport),
}

impl Store {
    /// Loads the bundle for the first time.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn open(directory: &Path, options: BundleOptions) -> Result<Arc<Self>, BundleReport> {
        let bundle = Bundle::load(directory, &options)?;
        Ok(Arc::new(Self {
            directory: directory.to_owned(),
            options,
            current: ArcSwap::from_pointee(bundle),
            refused: Mutex::new(None),
            behind: AtomicBool::new(false),
        }))
    }

    /// Whether the folder holds something that can't be taken, so that what is in force is older.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    /// The revision in force. Take it once for a whole decision.
    #[must_use]
    pub fn current(&self) -> Arc<Bundle> {
        self.current.load_full()
    }

    /// Looks at the folder and takes what is new and good in it.
    #[must_use]
    pub fn reload(&self) -> Reload {
        // One at a time; whoever waited finds the work done.
        let mut refused = self.refused.lock();
        let news = self.look(&mut refused);
        self.behind.store(refused.is_some(), Ordering::Relaxed);
        news
    }

    fn look(&self, refused: &mut Option<Refused>) -> Reload {
        let files = match BundleFiles::read(&self.directory, &self.options.limits) {
            Ok(files) => files,
            Err(report) => {
                let told = Some(Refused::Folder(report.to_string()));
                if *refused == told {
                    return Reload::Unchanged;
                }
                *refused = told;
                return Reload::Refused(report);
            }
        };
        let revision = files.revision(&self.options);
        let current = self.current();
        if revision == *current.revision() {
            *refused = None;
            return Reload::Unchanged;
        }
        if *refused == Some(Refused::Files(revision.clone())) {
            return Reload::Unchanged;
        }
        match Bundle::compile(files, &self.options) {
            Ok(bundle) => {
                *refused = None;
                self.current.store(Arc::new(bundle));
                Reload::Changed { before: current.revision().clone(), after: revision }
            }
            Err(report) => {
                *refused = Some(Refused::Files(revision));
                Reload::Refused(report)
            }
        }
    }

    /// Watches the folder until `cancel`: on every announced change, and every `interval` in case one was missed.
    /// `told` hears of everything but [`Reload::Unchanged`]; it is called on a thread that may block.
    ///
    /// # Errors
    /// When the operating system can't watch the folder; the slow look then still happens.
    pub fn watch(
        self: &Arc<Self>,
        interval: Duration,
        cancel: CancellationToken,
        told: impl Fn(Reload) + Send + Sync + 'static,
    ) -> Result<(), notify::Error> {
        let (announce, mut changes) = tokio::sync::mpsc::channel::<()>(1);
        let directory = self.directory.clone();
        // Others write near by (an audit file beside the folder, say): that is no news. `..data` is what Kubernetes swaps.
        let concerns = move |path: &PathBuf| {
            let name = path.file_name().map(std::ffi::OsStr::as_encoded_bytes).unwrap_or_default();
            *path == directory || name.starts_with(b"..") || super::files::is_bundle_file(name)
        };
        let watching = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is announced too; only writing counts. An error may have swallowed events.
            if event.map_or(true, |event| !event.kind.is_access() && event.paths.iter().any(&concerns)) {
                // A full channel already holds the news.
                let _ = announce.try_send(());
            }
        });
        let (watcher, outcome) = match watching {
            Ok(mut watcher) => {
                let outcome = watcher.watch(&self.directory, notify::RecursiveMode::NonRecursive);
                // The folder may itself be a symbolic link that is swapped (git-sync): its parent hears of that. Where the
                // parent can't be watched, the slow look still finds it.
                if let Some(parent) = self.directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                    let _ = watcher.watch(parent, notify::RecursiveMode::NonRecursive);
                }
                (Some(watcher), outcome)
            }
            Err(error) => (None, Err(error)),
        };
        let store = Arc::clone(self);
        let told = Arc::new(told);
        tokio::spawn(async move {
            let _watcher = watcher;
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            ticks.tick().await;
            let mut announced = true;
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    _ = ticks.tick() => {}
                    change = changes.recv(), if announced => match change {
                        Some(()) => {}
                        None => announced = false,
                    },
                }
                // Editors, kubelets and `cp` write in several steps, and a folder that lacks the file with the forbid may
                // be a good bundle too: wait until nothing has been written for a while.
                for _ in 0..SETTLING {
                    let Ok(Some(())) = tokio::time::timeout(SETTLED, changes.recv()).await else { break };
                }
                let (store, told) = (Arc::clone(&store), Arc::clone(&told));
                let look = tokio::task::spawn_blocking(move || match store.reload() {
                    Reload::Unchanged => {}
                    news @ (Reload::Changed { .. } | Reload::Refused(_)) => told(news),
                });
                if let Err(error) = look.await {
                    tracing::error!(error = &error as &dyn std::error::Error, "looking at the policies ended early");
                }
            }
        });
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = "entity U; entity D; action go appliesTo { principal: U, resource: D };";

    fn write(folder: &Path, name: &str, text: &str) {
        std::fs::write(folder.join(name), text).unwrap();
    }

    /// THREATS F11: broken, half-written, gone and back again; each told once, and the last good revision serves.
    #[test]
    fn only_good_news_changes_what_is_in_force_and_bad_news_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("bundle");
        std::fs::create_dir(&place).unwrap();
        write(&place, "a.cedarschema", SCHEMA);
        write(&place, "a.cedar", "@id(\"one\") permit (principal, action == Action::\"go\", resource);");
        let store = Store::open(&place, BundleOptions::default()).unwrap();
        let first = store.current().revision().clone();
        assert!(matches!(store.reload(), Reload::Unchanged));

        write(&place, "b.cedar", "@id(\"two\") forbid (principal, action == Action::\"og\", resource);");
        let Reload::Refused(report) = store.reload() else { panic!("an unknown action is refused") };
        assert!(report.to_string().starts_with("b.cedar:1:"), "{report}");
        assert!(matches!(store.reload(), Reload::Unchanged), "told once");
        assert!(store.is_behind(), "and true for as long as it is");
        assert_eq!(*store.current().revision(), first);

        std::fs::rename(&place, folder.path().join("away")).unwrap();
        assert!(matches!(store.reload(), Reload::Refused(_)), "the folder is gone");
        assert!(matches!(store.reload(), Reload::Unchanged), "told once");
        std::fs::rename(folder.path().join("away"), &place).unwrap();

        write(&place, "b.cedar", "@id(\"two\") forbid (principal, action == Action::\"go\", resource);");
        let Reload::Changed { before, after } = store.reload() else { panic!("mended") };
        assert_eq!((before, &after), (first, store.current().revision()));
        assert!(!store.is_behind());
        assert_eq!(store.current().policies().len(), 2);
    }
}
