//! Notices that certificate files changed: the system's notices for speed, a slow poll for certainty.
//!
//! The *folders* are watched and not the files, because files are replaced by renaming (and Kubernetes swaps the
//! `..data` link beside them). Notices get lost on network file systems; hence the poll.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{ServerIdentity, TlsError};

/// Certificate, key and authorities are seldom written in one stroke: wait this long after the first notice.
const SETTLE: Duration = Duration::from_millis(100);

impl ServerIdentity {
    /// Reloads whenever the files change, until `cancel`. Tells `on` of every reload that changed something and of
    /// every one that failed; of a failure again at every later look, for as long as it lasts.
    pub fn spawn_watch(
        self: &Arc<Self>,
        cancel: CancellationToken,
        on: impl Fn(Result<bool, &TlsError>) + Send + Sync + 'static,
    ) -> JoinHandle<()> {
        let identity = Arc::clone(self);
        // Watching starts before this returns: what changes from now on is noticed.
        let noticed = Arc::new(Notify::new());
        let watcher = identity.watcher(&noticed);
        tokio::spawn(async move {
            let watcher = watcher;
            while !cancel.is_cancelled() {
                tokio::select! {
                    () = cancel.cancelled() => break,
                    () = noticed.notified() => tokio::time::sleep(SETTLE).await,
                    () = tokio::time::sleep(identity.reload_interval) => {}
                }
                let reloading = Arc::clone(&identity);
                match tokio::task::spawn_blocking(move || reloading.reload()).await {
                    Ok(Ok(false)) => {}
                    Ok(Ok(true)) => on(Ok(true)),
                    Ok(Err(error)) => on(Err(&error)),
                    Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "a reload broke off"),
                }
            }
            drop(watcher);
        })
    }

    /// Nothing when the system can't watch (too many watches, say): then the poll is all there is.
    fn watcher(&self, noticed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
        let notice = Arc::clone(noticed);
        let files = [&self.files.certificate, &self.files.private_key, &self.files.client_ca];
        let names: BTreeSet<OsString> =
            files.into_iter().filter_map(|file| file.file_name()).map(OsStr::to_owned).collect();
        // Others write in the same folder (an audit file, say): that is no news. `..data` is what Kubernetes swaps.
        let concerns = move |path: &PathBuf| {
            path.file_name().is_some_and(|name| names.contains(name) || name.as_encoded_bytes().starts_with(b".."))
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

    fn folders(&self) -> BTreeSet<PathBuf> {
        let files = [&self.files.certificate, &self.files.private_key, &self.files.client_ca];
        files
            .into_iter()
            .filter_map(|file| file.parent())
            .map(|folder| if folder.as_os_str().is_empty() { Path::new(".").to_owned() } else { folder.to_owned() })
            .collect()
    }
}
