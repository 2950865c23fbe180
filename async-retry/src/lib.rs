#![doc = include_str!("../README.md")]

mod backoff;
mod budget;
mod call;
#[cfg(feature = "backoff")]
pub mod compat;
mod event;
mod hedge;
#[cfg(feature = "http")]
pub mod http;
mod latency;
mod policy;
mod race;
mod random;
mod report;
mod retry;
#[cfg(feature = "serde")]
mod serde;
mod state;
#[cfg(feature = "tower")]
mod tower;

pub use async_policy::{
    ConfigError, Deadline, Failure, Guard, Name, Operation, Policy, PolicyError, PolicyKind, Reason,
    Rejection, TimedOut, Timeout, Verdict,
};
pub use backoff::{Backoff, DEFAULT_BASE, DEFAULT_CAP, DEFAULT_FACTOR, Delays, Jitter, MAX_CAP};
pub use budget::{AWS_CAPACITY, AWS_COST, AWS_TIMEOUT_COST, After, Budget, BudgetCall, BudgetToken};
pub use event::{AttemptOutcome, Event};
pub use hedge::{DEFAULT_MAX_EXTRA, Hedge};
pub use policy::RetryExt;
pub use report::{AttemptReport, Report, Reported};
pub use retry::{DEFAULT_MAX_ATTEMPTS, Retry};
pub use state::StopReason;
#[cfg(feature = "tower")]
pub use tower::{
    ByClone, HedgeFuture, HedgeLayer, HedgeService, RetryFuture, RetryLayer, RetryService, TryClone,
};
