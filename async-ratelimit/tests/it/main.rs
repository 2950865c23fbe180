//! The public API under paused time.

mod concurrency;
#[cfg(feature = "serde")]
mod config;
mod dawdlers;
#[cfg(feature = "http")]
mod http;
mod keyed;
#[cfg(feature = "metrics")]
mod measures;
mod races;
mod rate;
#[cfg(feature = "tracing")]
mod telemetry;
#[cfg(feature = "tower")]
mod tower;
#[cfg(feature = "tower")]
mod tower_waits;

use std::time::Duration;

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Lets everything run that can run now.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
