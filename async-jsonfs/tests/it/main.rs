//! The public API under paused time.

mod basics;
mod errors;
mod limits;
mod lossless;
#[cfg(feature = "patch")]
mod patch;
mod processes;
mod round_trip;
mod seeds;
mod store;
mod store_alone;
mod store_runtimes;
mod system;
