//! The public API under paused time.

mod cancel;
mod retry;
#[cfg(feature = "tower")]
mod tower;
