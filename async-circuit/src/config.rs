use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_policy::ConfigError;

use crate::CircuitBreaker;

/// How many of the last calls a failure rate is measured over unless configured.
pub const DEFAULT_WINDOW: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// How many calls a failure rate needs before it can open the circuit, unless configured.
pub const DEFAULT_MIN_CALLS: NonZeroU32 = NonZeroU32::new(20).unwrap();
/// The failure rate at which the circuit opens unless configured.
pub const DEFAULT_FAILURE_RATE: f64 = 0.5;
/// How long the circuit stays open unless configured.
pub const DEFAULT_OPEN_FOR: Duration = Duration::from_secs(30);
/// How many probes decide unless configured.
pub const DEFAULT_PROBES: NonZeroU32 = NonZeroU32::MIN;
/// How long the circuit stays half-open without a decision unless configured.
pub const DEFAULT_HALF_OPEN_LIMIT: Duration = Duration::from_secs(60);

/// When the circuit opens. Only a failure is judged: a success never opens the circuit.
#[derive(Clone, Debug, PartialEq)]
pub struct Trip {
    pub(crate) rate: f64,
    pub(crate) window: NonZeroU32,
    pub(crate) min_calls: NonZeroU32,
}

impl Default for Trip {
    fn default() -> Self {
        Self::failure_rate(DEFAULT_FAILURE_RATE)
    }
}

impl Trip {
    /// At `rate` failures per call (above 0, at most 1) or more, over exactly the last 100 calls, once there were 20.
    #[must_use]
    pub const fn failure_rate(rate: f64) -> Self {
        Self { rate, window: DEFAULT_WINDOW, min_calls: DEFAULT_MIN_CALLS }
    }

    /// The rate is measured over exactly the last `calls`.
    #[must_use]
    pub const fn of_last(mut self, calls: NonZeroU32) -> Self {
        self.window = calls;
        self
    }

    /// Fewer calls than this in the window do not open the circuit. More than the window means a full window.
    #[must_use]
    pub const fn with_min_calls(mut self, calls: NonZeroU32) -> Self {
        self.min_calls = calls;
        self
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) trip: Trip,
    pub(crate) open_for: Duration,
    pub(crate) probes: NonZeroU32,
    pub(crate) half_open_limit: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            trip: Trip::default(),
            open_for: DEFAULT_OPEN_FOR,
            probes: DEFAULT_PROBES,
            half_open_limit: DEFAULT_HALF_OPEN_LIMIT,
        }
    }
}

/// Builds a [`CircuitBreaker`].
///
/// # Default
///
/// Opens at 50 % failures of the last 100 calls, once there were 20; stays open for 30 s; then one probe decides,
/// within 60 s; unnamed.
#[must_use = "a builder does nothing until built"]
#[derive(Clone, Debug, Default)]
pub struct CircuitBreakerBuilder {
    name: Option<Arc<str>>,
    config: Config,
}

impl CircuitBreakerBuilder {
    /// The name that refusals carry.
    pub fn with_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// When the circuit opens.
    pub const fn with_trip(mut self, trip: Trip) -> Self {
        self.config.trip = trip;
        self
    }

    /// How long the circuit stays open before it lets probes through.
    pub const fn with_open_for(mut self, open_for: Duration) -> Self {
        self.config.open_for = open_for;
        self
    }

    /// How many calls the half-open circuit lets through, at once and in all. When they have answered, the circuit opens
    /// again if their failure rate is at or above that of the [`Trip`], and closes otherwise.
    pub const fn with_probes(mut self, probes: NonZeroU32) -> Self {
        self.config.probes = probes;
        self
    }

    /// How long the probes have, all together: a circuit still half-open after that is opened again, so that one
    /// probe that hangs cannot block it.
    pub const fn with_half_open_limit(mut self, limit: Duration) -> Self {
        self.config.half_open_limit = limit;
        self
    }

    /// Builds the breaker, closed.
    ///
    /// # Errors
    ///
    /// The field and the value: a rate that is not above 0 and at most 1; an open time or half-open limit of zero.
    pub fn build(self) -> Result<CircuitBreaker, ConfigError> {
        let rate = self.config.trip.rate;
        if !(rate > 0.0 && rate <= 1.0) {
            return Err(ConfigError::new("trip.rate", rate, "above 0 and at most 1"));
        }
        for (field, value) in
            [("open_for", self.config.open_for), ("half_open_limit", self.config.half_open_limit)]
        {
            if value.is_zero() {
                return Err(ConfigError::new(field, "0s", "a time above zero"));
            }
        }
        Ok(CircuitBreaker::from_parts(self.name, self.config))
    }
}
