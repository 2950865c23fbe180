use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::ConfigError;

/// How many restarts within how long are borne before the supervisor gives up: OTP's `intensity` and `period`.
///
/// The period slides: a restart counts until it is more than `period` ago. One more than `restarts` within it and the
/// supervisor stops all its children and fails ([`Cause::MeltedDown`](crate::Cause::MeltedDown)). Zero restarts means
/// that the first fall is one too many.
///
/// # Default
///
/// One restart within 5 s, as in OTP: few, since OTP restarts at once and expects a child that fails again to fail for good. With a
/// [backoff](crate::Backoff) in between, a handful within a minute suits most services: `Intensity::new(5, Duration::from_secs(60))`. All
/// children of the supervisor share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intensity {
    pub(crate) limit: Option<u32>,
    pub(crate) period: Duration,
}

impl Default for Intensity {
    fn default() -> Self {
        Self::new(1, Duration::from_secs(5))
    }
}

impl Intensity {
    /// At most `restarts` within `period`. A period of zero is refused when the supervisor is started.
    #[must_use]
    pub const fn new(restarts: u32, period: Duration) -> Self {
        Self { limit: Some(restarts), period }
    }

    /// Any number of restarts: only the backoff holds a failing child back.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self { limit: None, period: Duration::ZERO }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.limit.is_some() && self.period.is_zero() {
            return Err(ConfigError::new("intensity.period", "0ns", "longer than zero"));
        }
        Ok(())
    }
}

/// The restarts of the last period.
#[derive(Debug)]
pub(crate) struct Window {
    intensity: Intensity,
    restarts: VecDeque<Instant>,
}

impl Window {
    pub(crate) const fn new(intensity: Intensity) -> Self {
        Self { intensity, restarts: VecDeque::new() }
    }

    /// Counts a restart; says how many there were in the period if that is too many.
    pub(crate) fn count(&mut self, now: Instant) -> Result<(), u32> {
        let Some(limit) = self.intensity.limit else { return Ok(()) };
        while self
            .restarts
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) > self.intensity.period)
        {
            self.restarts.pop_front();
        }
        self.restarts.push_back(now);
        let counted = u32::try_from(self.restarts.len()).unwrap_or(u32::MAX);
        if counted > limit { Err(counted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_counts_to_the_end_of_the_period_and_no_longer() {
        let (start, period) = (Instant::now(), Duration::from_secs(5));
        for (later, counted) in [(period, Err(2)), (period + Duration::from_nanos(1), Ok(()))] {
            let mut window = Window::new(Intensity::new(1, period));
            assert_eq!(window.count(start), Ok(()));
            assert_eq!(window.count(start + later), counted);
        }
    }
}
