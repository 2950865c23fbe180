//! The public API under paused time.

mod breaker;
mod cancel;
mod control;
mod events;
mod keyed;
#[cfg(feature = "serde")]
mod serde;
mod stampede;
#[cfg(any(feature = "tracing", feature = "metrics"))]
mod telemetry;
#[cfg(feature = "tower")]
mod tower;
