use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use async_policy::ConfigError;
use governor::RateLimiter;
use governor::clock::{self, Reference as _};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;

use super::Quota;
use super::clock::Clock;

/// How many cells the past has used up: governor's theoretical arrival time, in nanoseconds since the engine's start.
/// Zero before the first cell.
#[derive(Debug, Default)]
pub(crate) struct Tat(AtomicU64);

/// Later than any instant a limiter sees, and far from overflow: nothing conforms.
const NEVER: u64 = 1 << 62;

impl Tat {
    pub(crate) const fn new(nanos: u64) -> Self {
        Self(AtomicU64::new(nanos))
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Makes it refuse everything from now on, and says where it stood: no cell is granted on it unseen.
    pub(crate) fn retire(&self) -> u64 {
        self.0.swap(NEVER, Ordering::AcqRel)
    }
}

// What governor asks of its keys; an engine never compares or stores one.
impl Clone for Tat {
    fn clone(&self) -> Self {
        Self::new(self.get())
    }
}
impl PartialEq for Tat {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}
impl Eq for Tat {}
impl Hash for Tat {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.get().hash(state);
    }
}

/// Governor's "store" with nothing in it: the state to judge is handed in as the key. So one engine serves any number of
/// states, wherever they are kept.
#[derive(Debug)]
struct HandedIn;

impl StateStore for HandedIn {
    type Key = Tat;

    #[inline]
    fn measure_and_replace<T, F, E>(&self, tat: &Tat, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut seen = tat.0.load(Ordering::Acquire);
        loop {
            let (answer, next) = f((seen != 0).then(|| Nanos::from(seen)))?;
            match tat.0.compare_exchange_weak(seen, next.as_u64(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(answer),
                Err(now) => seen = now,
            }
        }
    }
}

type Limiter<C> = RateLimiter<Tat, HandedIn, C, NoOpMiddleware<<C as clock::Clock>::Instant>>;

/// The judge of one quota: governor's GCRA over a clock. Instants are nanoseconds since its start.
#[derive(Debug)]
pub(crate) struct Engine<C: clock::Clock = Clock> {
    limiter: Limiter<C>,
    start: C::Instant,
    quota: Quota,
    /// Nanoseconds per cell.
    interval: u64,
    /// How far ahead of now the arrival time may be for one cell to conform.
    tolerance: u64,
}

impl<C: clock::Clock> Engine<C> {
    pub(crate) fn new(quota: Quota, clock: C) -> Result<Self, ConfigError> {
        const LATER: u64 = 3_600_000_000_000;
        let checked = quota.check()?;
        let interval = Nanos::from(checked.replenish_interval()).as_u64();
        let tolerance = interval * (u64::from(checked.burst_size().get()) - 1);
        let limiter: Limiter<C> = RateLimiter::new(checked, HandedIn, clock);
        // Governor keeps its start to itself, but a refusal tells: it says until when, on the clock.
        let refused = limiter.check_key(&Tat::new(tolerance + LATER)).expect_err("an hour early");
        let start = refused.earliest_possible().saturating_sub(LATER.into());
        Ok(Self { limiter, start, quota, interval, tolerance })
    }

    pub(crate) const fn quota(&self) -> Quota {
        self.quota
    }

    pub(crate) fn now(&self) -> u64 {
        self.limiter.clock().now().duration_since(self.start).as_u64()
    }

    /// Takes one cell if it conforms.
    #[inline]
    pub(crate) fn take(&self, tat: &Tat) -> bool {
        self.limiter.check_key(tat).is_ok()
    }

    /// Takes `n` cells if all of them conform.
    pub(crate) fn take_n(&self, tat: &Tat, n: NonZeroU32) -> bool {
        matches!(self.limiter.check_key_n(tat, n), Ok(Ok(())))
    }

    /// When `n` cells conform, after `ahead` cells were taken each as soon as they conform; at least `now`.
    pub(crate) fn turn(&self, tat: u64, now: u64, ahead: u64, n: u32) -> u64 {
        // The last of n cells conforms `tolerance` before its arrival time; the one after `ahead` arrives at the present one.
        let cells = ahead.saturating_add(u64::from(n)).saturating_sub(1);
        let arrival = tat.max(now).saturating_add(cells.saturating_mul(self.interval));
        arrival.saturating_sub(self.tolerance).max(now)
    }

    /// How many cells conform now.
    pub(crate) fn available(&self, tat: u64, now: u64) -> u32 {
        let free =
            (now.saturating_add(self.tolerance).saturating_add(self.interval)).saturating_sub(tat.max(now));
        u32::try_from(free / self.interval).unwrap_or(u32::MAX)
    }

    /// The state under this engine that has as many cells used up as `tat` has under `old`, to the burst at most.
    pub(crate) fn adopt(&self, old: &Self, tat: u64) -> Tat {
        let used = u128::from(tat.saturating_sub(old.now()));
        let same = used * u128::from(self.interval) / u128::from(old.interval);
        let most = self.tolerance.saturating_add(self.interval);
        Tat::new(self.now() + u64::try_from(same).unwrap_or(u64::MAX).min(most))
    }
}
