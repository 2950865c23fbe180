#![doc = include_str!("../README.md")]

mod backoff;
mod retry;
mod state;
#[cfg(feature = "tower")]
mod tower;

pub use async_policy::{ConfigError, Failure, Operation, Policy, PolicyError, Rejection, TimedOut, Verdict};
pub use backoff::{Backoff, DEFAULT_BASE, DEFAULT_CAP, DEFAULT_FACTOR, Jitter};
pub use retry::{DEFAULT_MAX_ATTEMPTS, Retry};
pub use state::StopReason;
#[cfg(feature = "tower")]
pub use tower::{RetryFuture, RetryLayer, RetryService};
