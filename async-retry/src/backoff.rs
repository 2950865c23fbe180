use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_policy::ConfigError;

use crate::random::Random;

/// How a delay is spread at random, so that callers who failed together do not come back together.
///
/// The spread comes after the cap, so it still spreads at the cap, and never exceeds it. Formulas: "Exponential
/// Backoff And Jitter", AWS Architecture Blog, with `v` the delay of the curve within the cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Jitter {
    /// The delay as computed: `v`.
    None,
    /// Uniform in `0..=v`. The least work for the backend.
    #[default]
    Full,
    /// Uniform in `v/2..=v`. Keeps a minimum distance.
    Equal,
    /// Uniform in `base..=min(cap, 3 * previous delay)`, whatever the curve; the delay before the first is the base.
    ///
    /// AWS caps the drawn number instead, `min(cap, U(base, 3 * previous))`: the same until the cap is reached, but there two
    /// thirds of all callers would wait exactly the cap.
    Decorrelated,
}

impl Jitter {
    fn spread(self, v: Duration, unit: impl FnOnce() -> f64) -> Duration {
        match self {
            Self::Full => between(Duration::ZERO, v, unit()),
            Self::Equal => between(v / 2, v, unit()),
            Self::None | Self::Decorrelated => v,
        }
    }
}

/// `unit` is uniform in `0.0..1.0`.
fn between(low: Duration, high: Duration, unit: f64) -> Duration {
    (low + high.saturating_sub(low).mul_f64(unit)).clamp(low, high.max(low))
}

/// A duration in one word: a tower future carries its policy, and its size is paid on the success path. What is longer than 584 years
/// stays at that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nanos(u64);

impl Nanos {
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) const fn new(duration: Duration) -> Self {
        let nanos = duration.as_nanos();
        Self(if nanos < u64::MAX as u128 { nanos as u64 } else { u64::MAX })
    }

    pub(crate) const fn get(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

impl fmt::Debug for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

type DelayIterator = Box<dyn Iterator<Item = Duration> + Send>;

/// Delays that somebody else computes.
pub(crate) enum Custom {
    Each(Box<dyn Fn(u32) -> Option<Duration> + Send + Sync>),
    Sequence(Box<dyn Fn() -> DelayIterator + Send + Sync>),
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Custom")
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Curve {
    Constant,
    Linear { step: Nanos },
    Exponential { factor: f64 },
    Fibonacci,
    Custom,
}

/// The numbers of a backoff. `Copy`: a tower future carries them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) curve: Curve,
    pub(crate) base: Nanos,
    pub(crate) cap: Nanos,
    pub(crate) jitter: Jitter,
}

/// How long to wait between attempts.
///
/// The cap bounds every delay, whatever it comes from: the curve, a closure, a server's hint. (A refusal that says how long is waited for if
/// that is within the cap; the jitter that spreads those who were refused together comes on top.)
///
/// As configuration (feature `serde`): the fields are in [the table](crate#configuration).
///
/// ```
/// use async_retry::{Backoff, Jitter};
/// use std::time::Duration;
///
/// let backoff = Backoff::exponential(Duration::from_millis(100))
///     .with_cap(Duration::from_millis(500))
///     .with_jitter(Jitter::None);
/// let delays: Vec<_> = backoff.delays(0).map(|delay| delay.as_millis()).take(5).collect();
/// assert_eq!(delays, [100, 200, 400, 500, 500]);
/// ```
///
/// # Default
///
/// [`exponential`](Self::exponential) from 100 ms: factor 2, at most 20 s, full jitter.
#[derive(Clone)]
pub struct Backoff {
    pub(crate) shape: Shape,
    /// With [`Curve::Custom`].
    pub(crate) custom: Option<Arc<Custom>>,
}

impl PartialEq for Backoff {
    /// Delays of your own are equal to their clones only.
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.custom, &other.custom) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        self.shape == other.shape && same
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { curve, base, cap, jitter } = &self.shape;
        f.debug_struct("Backoff")
            .field("curve", curve)
            .field("base", base)
            .field("cap", cap)
            .field("jitter", jitter)
            .finish()
    }
}

/// The longest delay unless configured: that of the AWS SDKs.
pub const DEFAULT_CAP: Duration = Duration::from_secs(20);
/// The longest cap that can be configured: nothing waits longer than a day.
pub const MAX_CAP: Duration = Duration::from_secs(24 * 60 * 60);
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
    const fn new(curve: Curve, base: Duration, jitter: Jitter) -> Self {
        let shape = Shape { curve, base: Nanos::new(base), cap: Nanos::new(DEFAULT_CAP), jitter };
        Self { shape, custom: None }
    }

    /// No delay at all. One attempt in sixteen spends a unit of tokio's cooperative budget, so that a task which only fails still yields and an
    /// outer time-out can fire (not inside [`unconstrained`](tokio::task::unconstrained)).
    #[must_use]
    pub const fn none() -> Self {
        Self::constant(Duration::ZERO)
    }

    /// The same delay each time, without jitter. The cap is 20 s, or the delay where that is longer.
    #[must_use]
    pub const fn constant(delay: Duration) -> Self {
        let mut backoff = Self::new(Curve::Constant, delay, Jitter::None);
        if delay.as_nanos() > DEFAULT_CAP.as_nanos() {
            backoff.shape.cap = backoff.shape.base;
        }
        backoff
    }

    /// `base`, `base + step`, `base + 2 * step`, … up to 20 s, with full jitter.
    #[must_use]
    pub const fn linear(base: Duration, step: Duration) -> Self {
        Self::new(Curve::Linear { step: Nanos::new(step) }, base, Jitter::Full)
    }

    /// `base`, then `base * 2`, `base * 4`, … up to 20 s, with full jitter.
    #[must_use]
    pub const fn exponential(base: Duration) -> Self {
        Self::new(Curve::Exponential { factor: DEFAULT_FACTOR }, base, Jitter::Full)
    }

    /// `base` times 1, 1, 2, 3, 5, 8, … up to 20 s, with full jitter.
    #[must_use]
    pub const fn fibonacci(base: Duration) -> Self {
        Self::new(Curve::Fibonacci, base, Jitter::Full)
    }

    /// Each delay drawn between `base` and three times the one before, up to 20 s: [`Jitter::Decorrelated`].
    #[must_use]
    pub const fn decorrelated(base: Duration) -> Self {
        Self::exponential(base).with_jitter(Jitter::Decorrelated)
    }

    /// The delay after the n-th failed attempt, counted from 1, is `delay(n)`, up to 20 s unless
    /// [`with_cap`](Self::with_cap) says otherwise, without jitter; `None` ends the call. It is asked also where a server or an inner
    /// policy says how long to wait: that replaces the delay, not the end.
    #[must_use]
    pub fn from_fn(delay: impl Fn(u32) -> Option<Duration> + Send + Sync + 'static) -> Self {
        Self::custom(Custom::Each(Box::new(delay)))
    }

    /// These delays in turn, from the start for each call, up to 20 s unless [`with_cap`](Self::with_cap) says otherwise,
    /// without jitter; their end ends the call. Where a server or an inner policy says how long to wait, that takes the place of one of
    /// them. Starting them allocates, once per call that fails.
    #[must_use]
    pub fn from_delays<I>(delays: I) -> Self
    where
        I: IntoIterator<Item = Duration> + Clone + Send + Sync + 'static,
        I::IntoIter: Send + 'static,
    {
        Self::from_starts(move || delays.clone().into_iter())
    }

    pub(crate) fn from_starts<I>(start: impl Fn() -> I + Send + Sync + 'static) -> Self
    where
        I: Iterator<Item = Duration> + Send + 'static,
    {
        Self::custom(Custom::Sequence(Box::new(move || Box::new(start()))))
    }

    fn custom(custom: Custom) -> Self {
        let backoff = Self::new(Curve::Custom, Duration::ZERO, Jitter::None);
        Self { custom: Some(Arc::new(custom)), ..backoff }
    }

    /// The factor from one delay to the next; at least 1. Makes any other curve exponential.
    #[must_use]
    pub fn with_factor(mut self, factor: f64) -> Self {
        self.shape.curve = Curve::Exponential { factor };
        self.custom = None;
        self
    }

    /// The longest delay; at least the base, at most a day.
    #[must_use]
    pub const fn with_cap(mut self, cap: Duration) -> Self {
        self.shape.cap = Nanos::new(cap);
        self
    }

    /// How the delays are spread.
    #[must_use]
    pub const fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.shape.jitter = jitter;
        self
    }

    /// The longest delay.
    #[must_use]
    pub const fn cap(&self) -> Duration {
        self.shape.cap.get()
    }

    /// The delays of one call, drawn from a seed: for tests, plots and simulations. Where the configuration makes no sense
    /// ([`Retry::new`](crate::Retry::new) would refuse it) the delays make none either, but stay within the cap.
    pub fn delays(&self, seed: u64) -> Delays<'_> {
        Delays { backoff: self, cursor: Cursor::default(), random: Random::seeded(seed), failed: 0 }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.shape.check()
    }
}

impl Shape {
    /// Whether there is never any delay.
    #[inline]
    pub(crate) fn is_none(&self) -> bool {
        self.base.0 == 0 && matches!(self.curve, Curve::Constant)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.cap < self.base {
            let default =
                if self.cap.get() == DEFAULT_CAP { ": the default is too short for it" } else { "" };
            let expected = format!("at least the base, {:?}{default}", self.base);
            return Err(ConfigError::new("backoff.cap", format!("{:?}", self.cap), expected));
        }
        if self.cap.get() > MAX_CAP {
            return Err(ConfigError::new("backoff.cap", format!("{:?}", self.cap), "at most a day"));
        }
        match self.curve {
            Curve::Exponential { factor } if !(factor.is_finite() && factor >= 1.0) => {
                Err(ConfigError::new("backoff.factor", factor, "a finite number of at least 1"))
            }
            Curve::Custom if self.jitter == Jitter::Decorrelated => Err(ConfigError::new(
                "backoff.jitter",
                "decorrelated",
                "none, full or equal over delays of your own",
            )),
            _ => Ok(()),
        }
    }

    /// The delay after `failed` failed attempts, counted from 1; `None` when there are no more.
    pub(crate) fn next(
        &self,
        custom: Option<&Custom>,
        cursor: &mut Cursor,
        failed: u32,
        unit: impl FnOnce() -> f64,
    ) -> Option<Duration> {
        let (base, cap) = (self.base.get(), self.cap.get());
        if self.jitter == Jitter::Decorrelated {
            let previous = cursor.previous.unwrap_or(base);
            let high = previous.saturating_mul(3).min(cap);
            let delay = between(base.min(cap), high, unit());
            cursor.previous = Some(delay);
            return Some(delay);
        }
        let v = match &self.curve {
            Curve::Constant => base,
            Curve::Linear { step } => step.get().saturating_mul(failed - 1).saturating_add(base),
            Curve::Exponential { factor } => self.exponential_delay(*factor, failed),
            Curve::Fibonacci => scaled(base, fibonacci(failed)),
            Curve::Custom => match custom? {
                Custom::Each(delay) => delay(failed)?,
                Custom::Sequence(start) => cursor.delays.get_or_insert_with(start).next()?,
            },
        };
        Some(self.jitter.spread(v.min(cap), unit))
    }

    /// How far behind a moment that everybody was told the next attempt comes: nothing without jitter.
    pub(crate) fn spread_behind(
        &self,
        cursor: &mut Cursor,
        failed: u32,
        unit: impl FnOnce() -> f64,
    ) -> Duration {
        match (self.jitter, &self.curve) {
            (Jitter::None, _) | (_, Curve::Custom) => Duration::ZERO,
            _ => self.next(None, cursor, failed, unit).unwrap_or_default(),
        }
    }

    fn exponential_delay(&self, factor: f64, failed: u32) -> Duration {
        let (base, cap) = (self.base.get(), self.cap.get());
        if base.is_zero() {
            return Duration::ZERO;
        }
        let exponent = i32::try_from(failed - 1).unwrap_or(i32::MAX);
        let seconds = base.as_secs_f64() * factor.powi(exponent);
        // Also where the power overflows to infinity.
        if seconds < cap.as_secs_f64() { Duration::try_from_secs_f64(seconds).unwrap_or(cap) } else { cap }
    }
}

/// 1, 1, 2, 3, 5, …; what does not fit stays at the largest.
fn fibonacci(n: u32) -> u64 {
    let (mut current, mut next) = (1_u64, 1_u64);
    for _ in 1..n {
        match current.checked_add(next) {
            Some(sum) => (current, next) = (next, sum),
            None => return next,
        }
    }
    current
}

fn scaled(base: Duration, by: u64) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    let nanos = base.as_nanos().saturating_mul(u128::from(by));
    u64::try_from(nanos / SECOND).map_or(Duration::MAX, |secs| Duration::new(secs, (nanos % SECOND) as u32))
}

/// How far one call has come in its backoff.
#[derive(Default)]
pub(crate) struct Cursor {
    previous: Option<Duration>,
    delays: Option<DelayIterator>,
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("previous", &self.previous).finish_non_exhaustive()
    }
}

/// The delays of one call: see [`Backoff::delays`]. Endless, but for delays of your own.
#[derive(Debug)]
#[must_use = "iterators are lazy"]
pub struct Delays<'b> {
    backoff: &'b Backoff,
    cursor: Cursor,
    random: Random,
    failed: u32,
}

impl Iterator for Delays<'_> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.failed = self.failed.saturating_add(1);
        let Backoff { shape, custom } = self.backoff;
        shape.next(custom.as_deref(), &mut self.cursor, self.failed, || self.random.unit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn at(backoff: &Backoff, cursor: &mut Cursor, failed: u32, unit: f64) -> Option<Duration> {
        backoff.shape.next(backoff.custom.as_deref(), cursor, failed, || unit)
    }

    fn drawn(backoff: &Backoff, units: &[f64]) -> Vec<u128> {
        let mut cursor = Cursor::default();
        (1..)
            .zip(units)
            .map_while(|(failed, unit)| at(backoff, &mut cursor, failed, *unit))
            .map(|delay| delay.as_millis())
            .collect()
    }

    #[test]
    fn the_curves() {
        let plain = |backoff: Backoff| backoff.with_cap(ms(1000)).with_jitter(Jitter::None);
        let table: [(Backoff, &[u128]); 6] = [
            (Backoff::constant(ms(100)), &[100, 100, 100, 100, 100, 100, 100]),
            (Backoff::linear(ms(100), ms(250)), &[100, 350, 600, 850, 1000, 1000, 1000]),
            (Backoff::exponential(ms(100)), &[100, 200, 400, 800, 1000, 1000, 1000]),
            (Backoff::exponential(ms(100)).with_factor(3.0), &[100, 300, 900, 1000, 1000, 1000, 1000]),
            (Backoff::fibonacci(ms(100)), &[100, 100, 200, 300, 500, 800, 1000]),
            (Backoff::from_delays([ms(5), ms(7000)]), &[5, 1000]),
        ];
        for (backoff, delays) in table {
            assert_eq!(drawn(&plain(backoff.clone()), &[0.0; 7]), delays, "{backoff:?}");
        }
        let closure = Backoff::from_fn(|failed| (failed < 3).then(|| ms(u64::from(failed) * 10)));
        assert_eq!(drawn(&closure, &[0.0; 7]), [10, 20]);
        assert_eq!(closure, closure.clone());
        assert_ne!(closure, Backoff::from_fn(|failed| (failed < 3).then(|| ms(u64::from(failed) * 10))));
    }

    /// The formulas of "Exponential Backoff And Jitter", v = min(cap, base * 2^n), base 100 ms, cap 400 ms.
    #[test]
    fn the_jitters() {
        let backoff = |jitter| Backoff::exponential(ms(100)).with_cap(ms(400)).with_jitter(jitter);
        let units = [0.0, 0.5, 0.75, 0.999, 0.25];
        let table: [(Jitter, [u128; 5]); 4] = [
            (Jitter::None, [100, 200, 400, 400, 400]),
            (Jitter::Full, [0, 100, 300, 399, 100]),
            (Jitter::Equal, [50, 150, 350, 399, 250]),
            // U(100, 300), U(100, 300), U(100, min(400, 600)), U(100, 400), U(100, 400)
            (Jitter::Decorrelated, [100, 200, 325, 399, 175]),
        ];
        for (jitter, delays) in table {
            assert_eq!(drawn(&backoff(jitter), &units), delays, "{jitter:?}");
        }
    }

    #[test]
    fn nothing_overflows() {
        let day = |backoff: Backoff| backoff.with_cap(MAX_CAP).with_jitter(Jitter::None);
        for backoff in [
            Backoff::exponential(ms(1)).with_factor(f64::MAX),
            Backoff::linear(ms(1), Duration::MAX),
            Backoff::fibonacci(ms(1)),
            Backoff::from_fn(|_| Some(Duration::MAX)),
        ] {
            let backoff = day(backoff);
            for failed in [1_000_000, u32::MAX] {
                assert_eq!(at(&backoff, &mut Cursor::default(), failed, 0.5), Some(MAX_CAP), "{backoff:?}");
            }
        }
        let zero = Backoff::exponential(Duration::ZERO);
        assert_eq!(at(&zero, &mut Cursor::default(), 1_000_000, 0.5), Some(Duration::ZERO));
        let zero = Backoff::decorrelated(Duration::ZERO);
        assert_eq!(at(&zero, &mut Cursor::default(), 1_000_000, 0.5), Some(Duration::ZERO));
    }
}
