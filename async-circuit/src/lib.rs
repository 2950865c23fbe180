#![doc = include_str!("../README.md")]

mod breaker;
mod config;
mod event;
mod keyed;
mod meter;
mod open_time;
mod permit;
mod policy;
#[cfg(feature = "serde")]
mod serde;
mod snapshot;
mod state;
mod sync;
#[cfg(feature = "tower")]
mod tower;
mod transitions;
mod trip;
mod window;

pub use async_policy::{
    ConfigError, Deadline, Failure, Guard, Name, Operation, Policy, PolicyError, PolicyKind, Reason,
    Rejection, TimedOut, Timeout, Verdict,
};
pub use breaker::CircuitBreaker;
pub use config::{CircuitBreakerBuilder, DEFAULT_HALF_OPEN_LIMIT, DEFAULT_PROBES, Recovery};
pub use event::{Cause, Ending, Event, Transition};
pub use keyed::CircuitBreakers;
pub use open_time::{DEFAULT_GROWTH, DEFAULT_OPEN_FOR, OpenTime};
pub use permit::{OwnedPermit, Permit};
pub use snapshot::{Mode, Saved, Snapshot, State, Totals};
#[cfg(feature = "tower")]
pub use tower::{
    CircuitBreakerFuture, CircuitBreakerLayer, CircuitBreakerService, KeyedCircuitBreakerLayer,
    KeyedCircuitBreakerService,
};
pub use transitions::Transitions;
pub use trip::{DEFAULT_FAILURE_RATE, DEFAULT_MIN_CALLS, DEFAULT_WINDOW, Trip, TripRules};
