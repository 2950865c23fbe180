//! The clock: governor's own fast one, or tokio's, which tests can pause.

#[cfg(not(feature = "test-util"))]
pub(crate) type Clock = governor::clock::QuantaClock;

#[cfg(feature = "test-util")]
pub(crate) type Clock = Tokio;

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
pub(crate) use tokio_clock::Tokio;
