use std::time::Duration;

use crate::spec::Wrong;

/// How much of a delay is left to chance, so that children which fell together do not come back together.
///
/// The names are those of AWS's "Exponential Backoff And Jitter". A jittered delay is never longer than the plain one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    /// The plain delay.
    None,
    /// Half of the delay, and a random part of the other half.
    Equal,
    /// Anything from zero to the delay.
    Full,
}

/// How long a child that fell waits for its restart: `base`, then `factor` times as long after each further failure,
/// at most `cap`.
///
/// A child that has been up (ready) for [`reset_after`](Self::with_reset_after) starts over with `base`.
///
/// # Default
///
/// 100 ms, doubling, at most 30 s, [`Jitter::Equal`], reset after 60 s of health.
///
/// ```
/// use async_supervisor::{Backoff, Jitter};
/// use std::time::Duration;
///
/// let backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(1)).with_jitter(Jitter::None);
/// let delays: Vec<_> = (0..5).map(|failures| backoff.delay(failures, 0.0).as_millis()).collect();
/// assert_eq!(delays, [100, 200, 400, 800, 1000]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    factor: f64,
    jitter: Jitter,
    reset_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::exponential(Duration::from_millis(100), Duration::from_secs(30))
    }
}

impl Backoff {
    const RESET_AFTER: Duration = Duration::from_secs(60);

    /// `base`, 2 `base`, 4 `base` … up to `cap`, with [`Jitter::Equal`]. A `cap` below `base` is refused when the
    /// supervisor is started.
    #[must_use]
    pub const fn exponential(base: Duration, cap: Duration) -> Self {
        Self { base, cap, factor: 2.0, jitter: Jitter::Equal, reset_after: Self::RESET_AFTER }
    }

    /// Always `delay`, without jitter.
    #[must_use]
    pub const fn constant(delay: Duration) -> Self {
        Self { base: delay, cap: delay, factor: 1.0, jitter: Jitter::None, reset_after: Self::RESET_AFTER }
    }

    /// Restarts at once, as OTP does; only the [`Intensity`](crate::Intensity) holds a failing child back.
    #[must_use]
    pub const fn none() -> Self {
        Self::constant(Duration::ZERO)
    }

    /// How much of each delay is left to chance.
    #[must_use]
    pub const fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// By how much the delay grows with each failure. Below 1, or not a finite number, it is refused when the supervisor is
    /// started.
    #[must_use]
    pub const fn with_factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// After how long in health (from ready to the failure) the next delay is `base` again.
    #[must_use]
    pub const fn with_reset_after(mut self, healthy: Duration) -> Self {
        self.reset_after = healthy;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Wrong> {
        if self.cap < self.base {
            Err(("backoff.cap", format!("{:?}", self.cap), "at least the base"))
        } else if !(self.factor.is_finite() && self.factor >= 1.0) {
            Err(("backoff.factor", self.factor.to_string(), "a finite number of at least 1"))
        } else {
            Ok(())
        }
    }

    pub(crate) fn is_reset_by(&self, healthy: Duration) -> bool {
        healthy >= self.reset_after
    }

    /// The delay after `failures` earlier failures in a row; `random` in `[0, 1)` is where in the jitter it falls. Anything else counts as
    /// the nearer end of that, and what is no number as 0.
    #[must_use]
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        if self.base.is_zero() {
            return Duration::ZERO;
        }
        let exponent = i32::try_from(failures).unwrap_or(i32::MAX);
        let grown = self.base.as_secs_f64() * self.factor.powi(exponent);
        // Written so that an overflow to infinity is capped too.
        let plain = if grown < self.cap.as_secs_f64() { Duration::from_secs_f64(grown) } else { self.cap };
        let random = if random.is_nan() { 0.0 } else { random.clamp(0.0, 1.0) };
        let part = |of: Duration| {
            let part = Duration::try_from_secs_f64(of.as_secs_f64() * random);
            part.map_or(of, |part| part.min(of))
        };
        match self.jitter {
            Jitter::None => plain,
            Jitter::Equal => plain / 2 + part(plain - plain / 2),
            Jitter::Full => part(plain),
        }
    }
}
