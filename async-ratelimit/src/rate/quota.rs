use std::num::NonZeroU32;
use std::time::Duration;

use async_policy::ConfigError;

/// The resolution of tokio's timers: who sleeps wakes at the next whole millisecond.
pub const TICK: Duration = Duration::from_millis(1);

/// The longest time a full burst may stand for: ten years. It keeps all arithmetic on instants within 64 bits of nanoseconds.
pub const LONGEST_BURST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How many cells per time, and how many at once: a token bucket that holds `burst` cells and is refilled one cell per
/// [`interval`](Self::interval).
///
/// In any window of length `T` at most `burst + T / interval` cells are granted.
///
/// # Default
///
/// The burst is the number of cells per period: `per_second(50)` lets 50 start at once after a pause, and so up to 100 within one second.
/// Another number of cells is another default burst; name the burst where it must not change with the rate.
///
/// # Configuration
///
/// With the feature `serde`: `cells` (at least 1), `period` (such as `"1s"`) and, if it is not to be as many as `cells`, `burst`.
///
/// # Waiting and small bursts
///
/// Timers tick once per millisecond. Who sleeps finds at each tick at most `burst` cells, so at a burst below `rate * 1 ms` waiting
/// callers cannot reach the rate; and they wake up to a tick late, which at a burst of 1 is lost each time.
/// [`waiting_rate`](Self::waiting_rate) says what they can reach. A limit with a queue and such a quota (where a burst of 1 costs more than
/// a tenth of the rate) warns when it is built, with the feature `tracing`.
///
/// ```
/// use async_ratelimit::Quota;
///
/// let smooth = Quota::per_second(50_000).with_burst(1);
/// assert_eq!(smooth.waiting_rate(), 1_000.0);
/// assert_eq!(smooth.with_burst(100).waiting_rate(), 50_000.0);
/// // One cell per 2 ms, taken up to a tick late: one per 3 ms.
/// let slower = Quota::per_second(500).with_burst(1);
/// assert_eq!(slower.waiting_rate().round(), 333.0);
/// assert_eq!(slower.with_burst(2).waiting_rate(), 500.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a quota does nothing by itself"]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "crate::serde::RawQuota")
)]
pub struct Quota {
    cells: u32,
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::serde::duration"))]
    period: Duration,
    burst: u32,
}

impl Quota {
    /// `cells` per `period`, and as many at once after a pause unless [`with_burst`](Self::with_burst) says otherwise. What makes no sense is refused by the limit that is built with it.
    pub const fn new(cells: u32, period: Duration) -> Self {
        Self { cells, period, burst: cells }
    }

    /// `cells` per second.
    pub const fn per_second(cells: u32) -> Self {
        Self::new(cells, Duration::from_secs(1))
    }

    /// `cells` per minute.
    pub const fn per_minute(cells: u32) -> Self {
        Self::new(cells, Duration::from_secs(60))
    }

    /// `cells` per hour.
    pub const fn per_hour(cells: u32) -> Self {
        Self::new(cells, Duration::from_secs(3600))
    }

    /// How many cells may be taken at once after a pause; without it, as many as [`cells`](Self::cells).
    ///
    /// Where callers wait in a queue use at least 2, and at least `rate * 1 ms`: see "Waiting and small bursts" above.
    pub const fn with_burst(mut self, burst: u32) -> Self {
        self.burst = burst;
        self
    }

    /// How many cells per [`period`](Self::period).
    #[must_use]
    pub const fn cells(&self) -> u32 {
        self.cells
    }

    /// The period that [`cells`](Self::cells) are counted over.
    #[must_use]
    pub const fn period(&self) -> Duration {
        self.period
    }

    /// How many cells may be taken at once after a pause.
    #[must_use]
    pub const fn burst(&self) -> u32 {
        self.burst
    }

    /// The time in which one cell comes back: the period divided by the cells, rounded up to a nanosecond, so that the rate
    /// is never exceeded.
    #[must_use]
    pub fn interval(&self) -> Duration {
        if self.cells == 0 {
            return Duration::MAX;
        }
        let nanos = self.period.as_nanos().div_ceil(u128::from(self.cells));
        u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
    }

    /// The rate in cells per second: one per [`interval`](Self::interval).
    #[must_use]
    pub fn rate(&self) -> f64 {
        1e9 / self.interval().as_nanos() as f64
    }

    /// The rate in cells per second that callers who wait can get out of it, given timers that tick once per millisecond: at
    /// most `burst` cells per tick, and at a burst of 1 one cell at the first tick after each interval.
    #[must_use]
    pub fn waiting_rate(&self) -> f64 {
        let ticks = match self.burst() {
            1 => self.interval().as_nanos() / TICK.as_nanos() + 1,
            _ => 1,
        };
        let per_tick = f64::from(self.burst()) / ticks as f64;
        self.rate().min(per_tick * 1e9 / TICK.as_nanos() as f64)
    }

    /// Whether the burst is too small for callers who wait to reach the rate, by more than what is lost here and there anyway.
    pub(crate) fn is_too_fine(&self) -> bool {
        self.interval().saturating_mul(self.burst()) < TICK || self.waiting_rate() < 0.9 * self.rate()
    }

    /// The burst, if everything makes sense.
    pub(crate) fn check(&self) -> Result<NonZeroU32, ConfigError> {
        if self.cells == 0 {
            return Err(ConfigError::new("quota.cells", self.cells, "at least 1"));
        }
        if self.period.is_zero() {
            return Err(ConfigError::new("quota.period", format_args!("{:?}", self.period), "above zero"));
        }
        if self.period.as_nanos() < u128::from(self.cells) {
            let value = format!("{} per {:?}", self.cells, self.period);
            return Err(ConfigError::new("quota.cells", value, "at most one per nanosecond"));
        }
        let Some(burst) = NonZeroU32::new(self.burst()) else {
            return Err(ConfigError::new("quota.burst", 0, "at least 1"));
        };
        let interval = self.interval();
        let fits = |full: Option<Duration>| full.is_some_and(|full| full <= LONGEST_BURST);
        if fits(interval.checked_mul(burst.get())) {
            return Ok(burst);
        }
        // Named is what was set.
        if self.burst != self.cells && fits(Some(interval)) {
            let value = format!("{burst} cells of {interval:?} each");
            return Err(ConfigError::new(
                "quota.burst",
                value,
                format_args!("at most {LONGEST_BURST:?} worth"),
            ));
        }
        let value = format!("{} per {:?}", self.cells, self.period);
        Err(ConfigError::new("quota.period", value, format_args!("at most {LONGEST_BURST:?}")))
    }
}
