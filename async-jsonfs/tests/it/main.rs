//! The public API under paused time.

mod basics;
mod errors;
mod limits;
mod lossless;
mod processes;
mod seeds;
mod store;
mod system;
