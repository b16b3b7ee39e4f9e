//! Notices that the file, or the list, changed: the system's notices for speed, a poll twice a second for certainty.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{RevocationFile, folder_of};

/// A line must be in force within a second, whatever the file system tells us.
const POLL: Duration = Duration::from_millis(500);
/// What is written in one go is looked at in one go.
const SETTLE: Duration = Duration::from_millis(20);

impl RevocationFile {
    /// Joins file and list whenever either changed, until `cancel`. Must be called inside a runtime.
    pub fn spawn_watch(self: &Arc<Self>, cancel: CancellationToken) {
        let (file, noticed) = (Arc::clone(self), Arc::new(Notify::new()));
        let watcher = watcher(&self.path, &noticed);
        let mut version = self.list.version();
        tokio::spawn(async move {
            let _watcher = watcher;
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = noticed.notified() => tokio::time::sleep(SETTLE).await,
                    _ = version.changed() => {}
                    () = tokio::time::sleep(POLL) => {}
                }
                let joining = Arc::clone(&file);
                match tokio::task::spawn_blocking(move || joining.join()).await {
                    Ok(Ok(())) => {
                        if file.touch.reached() {
                            tracing::info!(file = %file.path.display(), "the revocation file is within reach again");
                        }
                    }
                    Ok(Err(error)) => {
                        if file.touch.lost() {
                            tracing::error!(
                                error = &error as &dyn std::error::Error,
                                "the revocation file is out of reach; what was revoked stays so"
                            );
                        }
                    }
                    Err(error) => {
                        file.touch.lost();
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "a look at the revocation file broke off"
                        );
                    }
                }
            }
        });
    }
}

/// Nothing when the system can't watch: then the poll is all there is. The folder is watched, for files are replaced.
fn watcher(path: &Path, noticed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let (notice, name) = (Arc::clone(noticed), path.file_name().map(ToOwned::to_owned));
    let watching = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading, and others' files, are no news. An error may have swallowed some.
        let concerns = |path: &std::path::PathBuf| path.file_name() == name.as_deref();
        if !event.is_ok_and(|event| event.kind.is_access() || !event.paths.iter().any(concerns)) {
            notice.notify_one();
        }
    })
    .and_then(|mut watcher| watcher.watch(folder_of(path), RecursiveMode::NonRecursive).map(|()| watcher));
    watching
        .inspect_err(|error| {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "the revocation file can't be watched, only polled"
            );
        })
        .ok()
}
