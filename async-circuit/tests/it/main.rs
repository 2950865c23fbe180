//! The public API under paused time.

mod breaker;
mod cancel;
#[cfg(feature = "tower")]
mod tower;
