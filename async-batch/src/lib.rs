#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod batcher;
mod detail;
mod draw;
mod engine;
mod error;
mod expiry;
mod gather;
mod limit;
mod order;
mod outcomes;
mod progress;
mod race;
mod run;
mod slot;
mod source;
mod state;
mod stop;
mod wake;
mod work;

#[cfg(feature = "indicatif")]
pub use indicatif;

pub use async_policy::{
    ConfigError, Deadline, Failure, Guard, Name, Operation, Policy, PolicyError, PolicyKind, Reason,
    Rejection, TimedOut, Timeout, Verdict,
};
pub use batcher::{Batcher, BatcherBuilder, LoadError, Loaded, WhenFull};
pub use detail::{Detail, Detailed, Plain};
pub use error::{ItemError, Panicked};
pub use gather::{Gather, PolicyGather};
pub use limit::Limit;
pub use outcomes::{IntoIter, Iter, Outcomes, Settled, Stopped};
pub use progress::{Progress, Snapshot};
pub use race::{first_success, first_to_finish, quorum};
pub use run::{Completed, Ordered, Run, Summary};
pub use source::{IntoSource, Items, Streamed, streamed};
pub use stop::Stop;
pub use work::{Blocking, InTask, Spawned, Work};
