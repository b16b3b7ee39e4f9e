//! What the service manager is told: that we serve, that we stop, and, if it wants to know, that we are alive.
//!
//! systemd's protocol (sd_notify(3)); silent where `NOTIFY_SOCKET` is unset. Knows whether we are ready, and nothing of
//! how we came to be.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::ops::Readiness;

/// What a stop may take beyond the drain itself: the last records and their receivers.
const AFTER_THE_DRAIN: Duration = Duration::from_secs(15);

/// Tells the service manager, until the process ends, how the server behind `readiness` fares. `drain` is how long a stop
/// may take by our own settings; the manager is asked to wait for it, whatever its unit says.
pub fn follow(readiness: Arc<Readiness>, address: SocketAddr, drain: Duration) {
    tokio::spawn(async move {
        let serving = format!("serving on {address}");
        feeding(readiness.until("serving", true)).await;
        tell(&[NotifyState::Ready, NotifyState::Status(&serving)]);
        feeding(readiness.until("serving", false)).await;
        let patience = u32::try_from((drain + AFTER_THE_DRAIN).as_micros()).unwrap_or(u32::MAX);
        tell(&[
            NotifyState::Stopping,
            NotifyState::Status("draining: calls under way finish"),
            NotifyState::ExtendTimeoutUsec(patience),
        ]);
        // The watchdog looks on until we are gone.
        feeding(std::future::pending()).await;
    });
}

/// Waits for `event`, and meanwhile shows the watchdog, if there is one, that the runtime still runs what is due.
async fn feeding(event: impl Future<Output = ()>) {
    tokio::pin!(event);
    let Some(patience) = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero()) else {
        return event.await;
    };
    // Twice as often as it must be, as sd_watchdog_enabled(3) advises.
    let mut ticks = tokio::time::interval((patience / 2).max(Duration::from_millis(1)));
    loop {
        tokio::select! {
            () = &mut event => return,
            _ = ticks.tick() => tell(&[NotifyState::Watchdog]),
        }
    }
}

/// One datagram. A manager that can't be told may end us for our silence, so the log has to say why.
fn tell(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        tracing::warn!(error = &error as &dyn std::error::Error, "the service manager can't be told how we are");
    }
}
