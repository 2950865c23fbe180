use std::time::Duration;

use async_policy::ConfigError;

/// How a delay is spread at random, so that callers who failed together do not come back together.
///
/// The spread comes after the cap, so it still spreads at the cap, and never exceeds it. Formulas: "Exponential
/// Backoff And Jitter", AWS Architecture Blog, with `v = min(cap, base * factor^n)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Jitter {
    /// The delay as computed.
    None,
    /// Uniform in `0..=v`.
    #[default]
    Full,
}

impl Jitter {
    /// `unit` is uniform in `0.0..1.0`.
    fn spread(self, delay: Duration, unit: impl FnOnce() -> f64) -> Duration {
        match self {
            Self::None => delay,
            Self::Full => delay.mul_f64(unit()).min(delay),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Curve {
    Constant,
    Exponential { factor: f64 },
}

/// How long to wait between attempts.
///
/// # Default
///
/// [`exponential`](Self::exponential) from 100 ms: factor 2, at most 20 s, full jitter.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    curve: Curve,
    base: Duration,
    cap: Duration,
    jitter: Jitter,
}

/// The longest delay unless configured: that of the AWS SDKs.
pub const DEFAULT_CAP: Duration = Duration::from_secs(20);
/// The first delay unless configured.
pub const DEFAULT_BASE: Duration = Duration::from_millis(100);
/// By how much each delay exceeds the one before unless configured.
pub const DEFAULT_FACTOR: f64 = 2.0;

impl Default for Backoff {
    fn default() -> Self {
        Self::exponential(DEFAULT_BASE)
    }
}

impl Backoff {
    /// No delay at all. The task still yields now and then, so that an outer time-out can fire.
    #[must_use]
    pub const fn none() -> Self {
        Self::constant(Duration::ZERO)
    }

    /// The same delay each time, without jitter.
    #[must_use]
    pub const fn constant(delay: Duration) -> Self {
        Self { curve: Curve::Constant, base: delay, cap: delay, jitter: Jitter::None }
    }

    /// `base`, then `base * 2`, `base * 4`, … up to 20 s, with full jitter.
    #[must_use]
    pub const fn exponential(base: Duration) -> Self {
        Self {
            curve: Curve::Exponential { factor: DEFAULT_FACTOR },
            base,
            cap: DEFAULT_CAP,
            jitter: Jitter::Full,
        }
    }

    /// The factor from one delay to the next; at least 1. Makes a constant backoff exponential.
    #[must_use]
    pub const fn with_factor(mut self, factor: f64) -> Self {
        self.curve = Curve::Exponential { factor };
        self
    }

    /// The longest delay; at least the base.
    #[must_use]
    pub const fn with_cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// How the delays are spread.
    #[must_use]
    pub const fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The longest delay.
    #[must_use]
    pub const fn cap(&self) -> Duration {
        self.cap
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.cap < self.base {
            let expected = format!("at least the base, {:?}", self.base);
            return Err(ConfigError::new("backoff.cap", format!("{:?}", self.cap), expected));
        }
        if let Curve::Exponential { factor } = self.curve
            && !(factor.is_finite() && factor >= 1.0)
        {
            return Err(ConfigError::new("backoff.factor", factor, "a finite number of at least 1"));
        }
        Ok(())
    }

    /// The delay after `failed` failed attempts, counted from 1.
    pub(crate) fn delay(&self, failed: u32, unit: impl FnOnce() -> f64) -> Duration {
        let v = match self.curve {
            Curve::Constant => self.base,
            Curve::Exponential { factor } => {
                let exponent = i32::try_from(failed.saturating_sub(1)).unwrap_or(i32::MAX);
                let seconds = self.base.as_secs_f64() * factor.powi(exponent);
                // Also where the power overflows to infinity, or a zero base makes it NaN.
                if seconds < self.cap.as_secs_f64() { Duration::from_secs_f64(seconds) } else { self.cap }
            }
        };
        let v = if self.base.is_zero() { Duration::ZERO } else { v.min(self.cap) };
        self.jitter.spread(v, unit)
    }
}
