#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
mod blocking;
mod child;
mod context;
mod error;
mod event;
mod group;
mod handle;
mod intensity;
mod periodic;
mod poll;
mod report;
mod runner;
mod shared;
mod signal;
mod snapshot;
mod spec;
mod state;
mod supervisor;
mod tasks;
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
pub use group::{GroupError, GroupFailure, TaskGroup};
pub use handle::{Handle, Running};
pub use intensity::Intensity;
pub use periodic::{Every, MissedTicks};
pub use report::{Cause, Report};
pub use signal::Signal;
pub use snapshot::{ChildSnapshot, ChildState, Snapshot, SupervisorState};
pub use spec::{AutoShutdown, Restart, Shutdown, Strategy};
pub use supervisor::Supervisor;
pub use tasks::{TaskFailure, Tasks, TasksReport};
pub use watchdog::{Stall, Stalls};
pub use worker::{IntoExit, Worker};
