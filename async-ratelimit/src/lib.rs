#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod concurrency;
mod event;
mod fifo;
#[cfg(feature = "http")]
pub mod http;
mod keyed;
mod policy;
mod queue;
mod rate;
#[cfg(feature = "serde")]
mod serde;
mod sync;
mod wake;

pub use async_policy::{
    ConfigError, Deadline, Failure, Guard, Name, Operation, Policy, PolicyError, PolicyKind, Reason,
    Rejection, TimedOut, Timeout, Verdict,
};
pub use concurrency::{ConcurrencyLimit, ConcurrencyLimitBuilder, ConcurrencySnapshot, OwnedPermit, Permit};
#[cfg(feature = "tower")]
pub use concurrency::{ConcurrencyLimitFuture, ConcurrencyLimitLayer, ConcurrencyLimitService};
pub use keyed::{
    ConcurrencyLimitKey, DEFAULT_MAX_KEYS, KeyedConcurrencyLimit, KeyedConcurrencyLimitBuilder, KeyedPermit,
    KeyedRateLimit, KeyedRateLimitBuilder, RateLimitKey,
};
pub use rate::{LONGEST_BURST, Quota, RateLimit, RateLimitBuilder, RateSnapshot, TICK};
#[cfg(feature = "tower")]
pub use rate::{RateLimitFuture, RateLimitLayer, RateLimitService};
