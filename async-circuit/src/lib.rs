#![doc = include_str!("../README.md")]

mod breaker;
mod config;
mod policy;
mod state;
#[cfg(feature = "tower")]
mod tower;
mod window;

pub use async_policy::{
    ConfigError, Failure, Guard, Operation, Policy, PolicyError, Rejection, TimedOut, Verdict,
};
pub use breaker::{CircuitBreaker, Permit, Snapshot};
pub use config::{
    CircuitBreakerBuilder, DEFAULT_FAILURE_RATE, DEFAULT_HALF_OPEN_LIMIT, DEFAULT_MIN_CALLS,
    DEFAULT_OPEN_FOR, DEFAULT_PROBES, DEFAULT_WINDOW, Trip,
};
pub use state::State;
#[cfg(feature = "tower")]
pub use tower::{CircuitBreakerFuture, CircuitBreakerLayer, CircuitBreakerService};
