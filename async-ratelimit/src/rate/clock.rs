//! The clock: governor's own fast one, or tokio's, which tests can pause.

use governor::clock::{Clock as _, Reference as _};

use super::counter::LATEST;

#[cfg(not(feature = "test-util"))]
type Clock = governor::clock::QuantaClock;

#[cfg(feature = "test-util")]
type Clock = Tokio;

/// Tells the nanoseconds since it was made.
#[derive(Debug)]
pub(crate) struct Watch {
    clock: Clock,
    start: <Clock as governor::clock::Clock>::Instant,
}

impl Watch {
    pub(crate) fn new() -> Self {
        let clock = Clock::default();
        Self { start: clock.now(), clock }
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.clock.now().duration_since(self.start).as_u64().min(LATEST)
    }
}

#[cfg(feature = "test-util")]
mod tokio_clock {
    use std::ops::Add;
    use std::time::Duration;

    use governor::clock::{Clock, Reference};
    use governor::nanos::Nanos;

    /// Tokio's clock, which stands still while a test has paused it.
    #[derive(Clone, Copy, Debug, Default)]
    pub(crate) struct Tokio;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct At(tokio::time::Instant);

    impl Clock for Tokio {
        type Instant = At;

        fn now(&self) -> At {
            At(tokio::time::Instant::now())
        }
    }

    impl Add<Nanos> for At {
        type Output = Self;

        fn add(self, nanos: Nanos) -> Self {
            Self(self.0 + Duration::from(nanos))
        }
    }

    impl Reference for At {
        fn duration_since(&self, earlier: Self) -> Nanos {
            self.0.saturating_duration_since(earlier.0).into()
        }

        fn saturating_sub(&self, nanos: Nanos) -> Self {
            self.0.checked_sub(nanos.into()).map_or(*self, Self)
        }
    }
}

#[cfg(feature = "test-util")]
use tokio_clock::Tokio;
