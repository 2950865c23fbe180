//! The clock: governor's own fast one, or tokio's, which tests can pause.

#[cfg(not(feature = "test-util"))]
use governor::clock::{Clock as _, QuantaClock, QuantaInstant, Reference as _};
#[cfg(feature = "test-util")]
use tokio::time::Instant;

use super::counter::LATEST;

/// Tells the nanoseconds since it was made.
#[derive(Debug)]
pub(crate) struct Watch {
    #[cfg(not(feature = "test-util"))]
    clock: QuantaClock,
    #[cfg(not(feature = "test-util"))]
    start: QuantaInstant,
    #[cfg(feature = "test-util")]
    start: Instant,
}

#[cfg(not(feature = "test-util"))]
impl Watch {
    pub(crate) fn new() -> Self {
        let clock = QuantaClock::default();
        Self { start: clock.now(), clock }
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.clock.now().duration_since(self.start).as_u64().min(LATEST)
    }
}

#[cfg(feature = "test-util")]
impl Watch {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> u64 {
        let nanos = Instant::now().saturating_duration_since(self.start).as_nanos();
        u64::try_from(nanos).unwrap_or(LATEST).min(LATEST)
    }
}
