//! The public API under paused time.

mod gather;
mod modes;
mod progress;
