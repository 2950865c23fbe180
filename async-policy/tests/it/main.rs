//! The public API under paused time.

mod compose;
mod deadline;
mod errors;
mod send;
mod timeout;
#[cfg(feature = "tower")]
mod tower;
#[cfg(feature = "serde")]
mod written;
