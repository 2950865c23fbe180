//! The public API under paused time.

mod cancel;
mod commands;
mod common;
mod config;
mod events;
mod group;
mod idle;
mod otp;
mod regressions;
mod signals;
mod stop;
mod tasks;
#[cfg(all(feature = "tracing", feature = "metrics"))]
mod telemetry;
mod tree;
mod watchdog;
mod workers;
