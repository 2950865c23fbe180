//! The public API under paused time.

mod gather;
mod progress;
