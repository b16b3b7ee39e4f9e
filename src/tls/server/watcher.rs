//! Notices that something changed: the system's notices of files for speed, a slow poll for certainty, and the stream of
//! the Workload API where that is the source.
//!
//! The *folders* are watched and not the files, because files are replaced by renaming (and Kubernetes swaps the
//! `..data` link beside them). Notices get lost on network file systems; hence the poll.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::agent::News;
use super::{ServerIdentity, Source, TlsError};
use crate::tls::revocation::files::is_list;

/// Certificate, key and authorities are seldom written in one stroke: wait this long after the first notice.
const SETTLE: Duration = Duration::from_millis(100);

impl ServerIdentity {
    /// Reloads whenever the files change or the agent says so, until `cancel`. Tells `on` of every reload that changed
    /// something and of every one that failed; of a failure again at every later look, for as long as it lasts.
    pub fn spawn_watch(
        self: &Arc<Self>,
        cancel: CancellationToken,
        on: impl Fn(Result<bool, &TlsError>) + Send + Sync + 'static,
    ) -> JoinHandle<()> {
        let identity = Arc::clone(self);
        // Watching starts before this returns: what changes from now on is noticed.
        let noticed = Arc::new(Notify::new());
        let watcher = identity.watcher(&noticed);
        let (tell, mut news) = mpsc::channel(1);
        let mut followed = false;
        if let Source::Agent(agent) = &self.source {
            let (agent, cancel) = (Arc::clone(agent), cancel.clone());
            tokio::spawn(async move { agent.follow(&cancel, &tell).await });
            followed = true;
        }
        tokio::spawn(async move {
            let watcher = watcher;
            while !cancel.is_cancelled() {
                tokio::select! {
                    () = cancel.cancelled() => break,
                    news = news.recv(), if followed => match news {
                        Some(News::Renewed) => {}
                        Some(News::Unusable(error)) => {
                            on(Err(&error));
                            continue;
                        }
                        None => {
                            followed = false;
                            if !cancel.is_cancelled() {
                                tracing::error!("nobody follows the Workload API any more: restart, or its identity runs out");
                            }
                        }
                    },
                    () = noticed.notified() => tokio::time::sleep(SETTLE).await,
                    () = tokio::time::sleep(identity.reload_interval) => {}
                }
                identity.reload_and_tell(&on).await;
            }
            drop(watcher);
        })
    }

    async fn reload_and_tell(self: &Arc<Self>, on: &(impl Fn(Result<bool, &TlsError>) + Send + Sync)) {
        let reloading = Arc::clone(self);
        match tokio::task::spawn_blocking(move || reloading.reload()).await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => on(Ok(true)),
            Ok(Err(error)) => on(Err(&error)),
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "a reload broke off"),
        }
    }

    /// Nothing when the system can't watch (too many watches, say): then the poll is all there is.
    fn watcher(&self, noticed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
        let notice = Arc::clone(noticed);
        let files = self.paths();
        let names: BTreeSet<OsString> = files.iter().filter_map(|file| file.file_name()).map(OsStr::to_owned).collect();
        let folders = self.list_folders();
        // Others write in the same folder (an audit file, say): that is no news. `..data` is what Kubernetes swaps.
        let concerns = move |path: &PathBuf| {
            let of_lists = is_list(path) && path.parent().is_some_and(|folder| folders.contains(folder));
            let named = |name: &OsStr| names.contains(name) || name.as_encoded_bytes().starts_with(b"..");
            of_lists || path.file_name().is_some_and(named)
        };
        let watching = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is an access event: it must not make us read again. An error may have swallowed events.
            if !event.is_ok_and(|event| event.kind.is_access() || !event.paths.iter().any(&concerns)) {
                notice.notify_one();
            }
        })
        .and_then(|mut watcher| {
            for folder in self.folders() {
                watcher.watch(&folder, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        watching
            .inspect_err(|error| {
                tracing::warn!(
                    error = error as &dyn std::error::Error,
                    "certificate files can't be watched, only polled"
                );
            })
            .ok()
    }

    /// Every file that is named one by one, and every folder of lists.
    fn paths(&self) -> Vec<PathBuf> {
        let own: Vec<_> = match &self.source {
            Source::Files(files) => files.paths().map(Path::to_owned).collect(),
            Source::Agent(_) => Vec::new(),
        };
        own.into_iter().chain(self.lists.iter().flat_map(|lists| lists.paths.clone())).collect()
    }

    fn list_folders(&self) -> BTreeSet<PathBuf> {
        let paths = self.lists.iter().flat_map(|lists| &lists.paths);
        paths.filter(|path| path.is_dir()).cloned().collect()
    }

    fn folders(&self) -> BTreeSet<PathBuf> {
        let paths = self.paths();
        let around = paths
            .iter()
            .filter_map(|file| file.parent())
            .map(|folder| if folder.as_os_str().is_empty() { Path::new(".").to_owned() } else { folder.to_owned() });
        around.chain(self.list_folders()).collect()
    }
}
