//! Background work that outlives its own faults.

use std::error::Error;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Between a fault and the next beginning.
const PAUSE: Duration = Duration::from_secs(1);

/// Does what `work` makes until it ends, in the background; begins again when it broke off, until `cancel`led. A document
/// that one of our readers panics over must not be the last one that was ever fetched: keys would grow too old, and
/// revocations would not be heard of.
pub(super) fn tend<W>(what: &'static str, cancel: &CancellationToken, work: impl Fn() -> W + Send + 'static)
where
    W: Future<Output = ()> + Send + 'static,
{
    let cancel = cancel.clone();
    tokio::spawn(async move {
        while let Err(error) = tokio::spawn(work()).await {
            tracing::error!(error = &error as &dyn Error, what, "background work broke off and begins again");
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    });
}
