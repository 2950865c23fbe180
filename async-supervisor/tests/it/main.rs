//! The public API under paused time.

mod backoff;
mod blocking;
mod cancel;
mod commands;
mod common;
mod config;
mod events;
mod group;
mod idle;
mod model;
mod otp;
mod otp_itself;
mod panics;
mod periodic;
mod signals;
mod significant;
mod stop;
mod storm;
mod tasks;
#[cfg(all(feature = "tracing", feature = "metrics"))]
mod telemetry;
mod tree;
mod watchdog;
mod workers;
