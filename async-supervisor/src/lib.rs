#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
mod child;
mod context;
mod error;
mod event;
mod handle;
mod intensity;
mod poll;
mod report;
mod runner;
mod signal;
mod snapshot;
mod spec;
mod state;
mod supervisor;
mod telemetry;
mod watchdog;
mod worker;

pub use async_policy::ConfigError;
pub use async_trait::async_trait;

pub use backoff::{Backoff, Jitter};
pub use child::Child;
pub use context::Context;
pub use error::{BoxError, CommandError, Exit, MeltDown, StartError, WorkerError};
pub use event::{Event, EventKind, Events, Health};
pub use handle::{Handle, Running};
pub use intensity::Intensity;
pub use report::{Cause, Report};
pub use snapshot::{ChildSnapshot, ChildState, Snapshot, SupervisorState};
pub use spec::{AutoShutdown, Restart, Shutdown, Strategy};
pub use supervisor::Supervisor;
pub use watchdog::{Stall, Stalls};
pub use worker::{IntoExit, Worker};
