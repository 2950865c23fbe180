//! The public API under paused time.

#[cfg(feature = "backoff")]
mod backoff;
mod budget;
mod cancel;
mod closures;
mod hedge;
#[cfg(feature = "metrics")]
mod metrics;
mod report;
mod retry;
#[cfg(feature = "serde")]
mod serde;
#[cfg(feature = "tower")]
mod tower;
#[cfg(feature = "tracing")]
mod tracing;

use std::num::NonZeroU32;

fn attempts(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}
