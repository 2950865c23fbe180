//! The public API under paused time.

mod cancel;
mod commands;
mod common;
mod config;
mod events;
mod group;
mod idle;
mod otp;
mod signals;
mod stop;
mod tasks;
mod tree;
mod watchdog;
mod workers;
