use std::fmt;
use std::hash::Hash;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use async_policy::{ConfigError, Name};

use crate::trip::{RATE, is_rate};
use crate::{CircuitBreaker, CircuitBreakers, DEFAULT_FAILURE_RATE, Event, Mode, OpenTime, TripRules};

/// How many probes decide unless configured: 1.
pub const DEFAULT_PROBES: NonZeroU32 = NonZeroU32::MIN;
/// How long probes may be in flight without a decision unless configured: 60 s.
pub const DEFAULT_HALF_OPEN_LIMIT: Duration = Duration::from_secs(60);

/// How the probes of a half-open circuit are judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Recovery {
    /// By their failure rate, over all of them: at this rate (above 0, at most 1) or more the circuit opens again, below it
    /// closes. It does so as soon as the probes still to come can no longer change that.
    FailureRate(f64),
    /// All of them have to succeed, one after the other; the first failure opens the circuit again.
    InARow,
}

impl Default for Recovery {
    fn default() -> Self {
        Self::FailureRate(DEFAULT_FAILURE_RATE)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) trip: TripRules,
    pub(crate) open_for: OpenTime,
    pub(crate) probes: NonZeroU32,
    pub(crate) recovery: Recovery,
    pub(crate) half_open_limit: Duration,
    pub(crate) ramp: Option<Duration>,
    pub(crate) mode: Mode,
    pub(crate) seed: Option<u64>,
    pub(crate) listener: Option<Listener>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            trip: TripRules::default(),
            open_for: OpenTime::default(),
            probes: DEFAULT_PROBES,
            recovery: Recovery::default(),
            half_open_limit: DEFAULT_HALF_OPEN_LIMIT,
            ramp: None,
            mode: Mode::default(),
            seed: None,
            listener: None,
        }
    }
}

type Listen = dyn Fn(&CircuitBreaker, &Event) + Send + Sync;

#[derive(Clone)]
pub(crate) struct Listener(pub(crate) Arc<Listen>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// Builds a [`CircuitBreaker`], or [`CircuitBreakers`] by key.
///
/// # Default
///
/// Opens at 50 % failures of the last 100 calls, once there were 20; stays open for 30 s; then one probe decides,
/// within 60 s; no ramp afterwards; automatic; unnamed; no listener.
///
/// With the `serde` feature it is [read from a configuration](crate#configuration) and written to one.
#[must_use = "a builder does nothing until built"]
#[derive(Clone, Debug, Default)]
pub struct CircuitBreakerBuilder {
    pub(crate) name: Option<Name>,
    pub(crate) config: Config,
}

impl CircuitBreakerBuilder {
    /// The name that refusals and events carry.
    pub fn with_name(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// When the circuit opens: a [`Trip`](crate::Trip), or several combined with [`or`](crate::Trip::or).
    pub fn with_trip(mut self, trip: impl Into<TripRules>) -> Self {
        self.config.trip = trip.into();
        self
    }

    /// How long the circuit stays open before it lets probes through: a `Duration` or an [`OpenTime`].
    pub fn with_open_for(mut self, open_for: impl Into<OpenTime>) -> Self {
        self.config.open_for = open_for.into();
        self
    }

    /// How many calls the half-open circuit lets through, at once and in all. An ignored or aborted one does not count
    /// among them and makes room for another.
    pub const fn with_probes(mut self, probes: NonZeroU32) -> Self {
        self.config.probes = probes;
        self
    }

    /// How the probes are judged: by a failure rate of 50 % unless set. A probe slower than a slow-call rule allows counts as
    /// failed.
    pub const fn with_recovery(mut self, recovery: Recovery) -> Self {
        self.config.recovery = recovery;
        self
    }

    /// How long probes may be in flight without a decision: after that the circuit is opened again, so that one which
    /// hangs cannot block it. While none is in flight the time stands still: where few calls come, the next one is a probe.
    pub const fn with_half_open_limit(mut self, limit: Duration) -> Self {
        self.config.half_open_limit = limit;
        self
    }

    /// After a recovery, lets a growing share of the calls through: a tenth of them at first, all of them after `time`, evenly
    /// spread. The circuit is closed meanwhile and opens by its rules; if it does, that counts as a reopening.
    pub const fn with_ramp(mut self, time: Duration) -> Self {
        self.config.ramp = Some(time);
        self
    }

    /// How the breaker works at first and after a [`reset`](CircuitBreaker::reset).
    pub const fn with_mode(mut self, mode: Mode) -> Self {
        self.config.mode = mode;
        self
    }

    /// Makes the jitter of the open time the same in each run. (Breakers by key differ from each other all the same.)
    pub const fn with_seed(mut self, seed: u64) -> Self {
        self.config.seed = Some(seed);
        self
    }

    /// What to tell of each [`Event`]. It runs outside every lock, in the call that caused the event (a transition may be told by
    /// another call that is just telling one), so it should be quick, and it should not panic: the panic would
    /// come out of that call, which counts as aborted if it was just let in. (On a thread that is unwinding from another panic it
    /// ends there.)
    pub fn with_listener(
        mut self,
        listener: impl Fn(&CircuitBreaker, &Event) + Send + Sync + 'static,
    ) -> Self {
        self.config.listener = Some(Listener(Arc::new(listener)));
        self
    }

    /// Builds the breaker, closed (unless its mode says otherwise).
    ///
    /// # Errors
    ///
    /// The field and the value: a rate that is not above 0 and at most 1; a window of more than 2^24 calls or less than
    /// 1 ms; a threshold, open time, half-open limit or ramp of zero; a cap below its base, a factor below 1, a jitter
    /// outside 0 to 1.
    pub fn build(self) -> Result<CircuitBreaker, ConfigError> {
        let config = self.config.checked()?;
        Ok(CircuitBreaker::from_parts(self.name, config, 0))
    }

    /// Builds breakers by key, made on demand, all alike. At most `max` are held at a time.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_keyed<K: Hash + Eq>(self, max: NonZeroUsize) -> Result<CircuitBreakers<K>, ConfigError> {
        let config = self.config.checked()?;
        Ok(CircuitBreakers::from_parts(self.name, config, max))
    }
}

impl Config {
    fn checked(self) -> Result<Arc<Self>, ConfigError> {
        self.check()?;
        Ok(Arc::new(self))
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.trip.check()?;
        self.open_for.check()?;
        if let Recovery::FailureRate(rate) = self.recovery
            && !is_rate(rate)
        {
            return Err(ConfigError::new("recovery.failure_rate", rate, RATE));
        }
        for (field, time) in [("half_open_limit", Some(self.half_open_limit)), ("ramp", self.ramp)] {
            if time.is_some_and(|time| time.is_zero()) {
                return Err(ConfigError::new(field, "0s", "longer than zero"));
            }
        }
        Ok(())
    }
}
