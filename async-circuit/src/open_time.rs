use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_policy::ConfigError;

use crate::Snapshot;

/// How long the circuit stays open unless configured: 30 s.
pub const DEFAULT_OPEN_FOR: Duration = Duration::from_secs(30);
/// By how much a growing open time grows with each reopening unless configured: 2.
pub const DEFAULT_GROWTH: f64 = 2.0;

type Choose = dyn Fn(&Snapshot) -> Duration + Send + Sync;

/// How long the circuit stays open before it lets probes through.
///
/// ```
/// use async_circuit::{CircuitBreaker, OpenTime};
/// use std::time::Duration;
///
/// let growing = OpenTime::growing(Duration::from_secs(5), Duration::from_secs(120)).with_jitter(0.2);
/// let breaker = CircuitBreaker::builder().with_open_for(growing).build().unwrap();
/// ```
#[must_use = "an open time does nothing until given to a builder"]
#[derive(Clone)]
pub struct OpenTime {
    pub(crate) base: Duration,
    pub(crate) cap: Duration,
    pub(crate) factor: f64,
    pub(crate) jitter: f64,
    choose: Option<Arc<Choose>>,
}

impl Default for OpenTime {
    fn default() -> Self {
        Self::fixed(DEFAULT_OPEN_FOR)
    }
}

impl From<Duration> for OpenTime {
    fn from(time: Duration) -> Self {
        Self::fixed(time)
    }
}

impl OpenTime {
    /// Always `time`.
    pub const fn fixed(time: Duration) -> Self {
        Self { base: time, cap: time, factor: 1.0, jitter: 0.0, choose: None }
    }

    /// `base` when the circuit first opens, and more each time it opens again before it has recovered: `base` times 2 to the
    /// number of reopenings, at most `cap`. After a recovery it is `base` again.
    pub const fn growing(base: Duration, cap: Duration) -> Self {
        Self { base, cap, factor: DEFAULT_GROWTH, jitter: 0.0, choose: None }
    }

    /// What `choose` says, each time the circuit opens: it sees the circuit as it then is. It runs outside every lock; while it
    /// runs the circuit is open for [`DEFAULT_OPEN_FOR`]. It should not panic: the panic would come out of
    /// whichever call opened the circuit.
    pub fn by(choose: impl Fn(&Snapshot) -> Duration + Send + Sync + 'static) -> Self {
        Self { choose: Some(Arc::new(choose)), ..Self::default() }
    }

    /// By how much a [growing](Self::growing) one grows with each reopening: 1 or more.
    pub const fn with_factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// Takes off a random part of the time, up to this fraction (0 to 1), so that many breakers which opened together do not
    /// probe together. No jitter by default.
    pub const fn with_jitter(mut self, fraction: f64) -> Self {
        self.jitter = fraction;
        self
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.base.is_zero() {
            return Err(ConfigError::new("open_for", "0s", "longer than zero"));
        }
        if self.cap < self.base {
            let expected = format_args!("at least the base, {:?}", self.base);
            return Err(ConfigError::new("open_for.cap", format_args!("{:?}", self.cap), expected));
        }
        if !(self.factor >= 1.0 && self.factor.is_finite()) {
            return Err(ConfigError::new("open_for.factor", self.factor, "1 or more, and finite"));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(ConfigError::new("open_for.jitter", self.jitter, "from 0 to 1"));
        }
        Ok(())
    }

    /// The time for an opening after so many earlier ones without a recovery; `random` is below 1.
    pub(crate) fn after(&self, reopenings: u32, random: f64) -> Duration {
        let grown = self.base.as_secs_f64() * self.factor.powf(f64::from(reopenings));
        let time = Duration::try_from_secs_f64(grown).map_or(self.cap, |grown| grown.min(self.cap));
        // A fixed time is kept to the nanosecond.
        let time = if reopenings == 0 || self.factor == 1.0 { self.base } else { time };
        if self.jitter == 0.0 {
            return time;
        }
        // The longest times are not exact as a float, and may come back longer.
        let part = time.as_secs_f64() * (1.0 - self.jitter * random);
        Duration::try_from_secs_f64(part).map_or(time, |part| part.min(time))
    }

    /// The longest there is; what a closure chooses has no bound.
    pub(crate) const fn cap(&self) -> Duration {
        if self.choose.is_some() { Duration::MAX } else { self.cap }
    }

    pub(crate) const fn choose(&self) -> Option<&Arc<Choose>> {
        self.choose.as_ref()
    }
}

impl fmt::Debug for OpenTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.choose.is_some() {
            return f.write_str("OpenTime::by(..)");
        }
        let Self { base, cap, factor, jitter, choose: _ } = self;
        write!(f, "OpenTime {{ base: {base:?}, cap: {cap:?}, factor: {factor}, jitter: {jitter} }}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_by_the_factor_up_to_the_cap_and_jitter_only_takes_off() {
        let secs = Duration::from_secs;
        let growing = OpenTime::growing(secs(5), secs(60));
        let times: Vec<_> = (0..6).map(|n| growing.after(n, 0.9).as_secs()).collect();
        assert_eq!(times, [5, 10, 20, 40, 60, 60]);
        assert_eq!(growing.after(u32::MAX, 0.0), secs(60));
        let jittered = growing.with_jitter(0.5);
        assert_eq!((jittered.after(1, 0.0), jittered.after(1, 0.5)), (secs(10), Duration::from_millis(7500)));
        let longest = OpenTime::fixed(Duration::MAX);
        assert_eq!(longest.after(3, 0.0), Duration::MAX);
        assert_eq!(longest.with_jitter(1e-17).after(0, 0.9), Duration::MAX);
    }
}
