#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod config;
mod deadline;
mod error;
mod operation;
mod policy;
mod rejection;
#[cfg(feature = "test-util")]
pub mod testing;
mod timeout;
#[cfg(feature = "tower")]
mod tower;
mod verdict;
#[cfg(feature = "serde")]
pub mod written;

pub use config::ConfigError;
pub use deadline::{Deadline, DeadlineScope};
pub use error::{Failure, PolicyError};
pub use operation::{ByRef, ClassifyWith, Layered, Lift, LiftFuture, Operation, Start};
pub use policy::{Guard, Policy};
pub use rejection::{Name, PolicyKind, Reason, Rejection, TimedOut};
pub use timeout::{Timeout, TimeoutFuture};
#[cfg(feature = "tower")]
pub use tower::{TimeoutLayer, TimeoutResponse, TimeoutService};
pub use verdict::{ByError, Classify, Outcome, Verdict};
