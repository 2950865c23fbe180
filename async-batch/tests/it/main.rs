//! The public API under paused time.

mod batcher;
mod batcher_answers;
mod gather;
mod hostile;
mod model;
mod modes;
mod plan;
mod progress;
mod race;
mod spawned;
mod stop;
mod streams;
mod under_policy;
