use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use async_policy::ConfigError;
use governor::RateLimiter;
use governor::clock::{self, Reference as _};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;

use super::clock::Clock;
use super::{Quota, TICK};

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
    #[inline]
    pub(crate) fn take_n(&self, tat: &Tat, n: NonZeroU32) -> bool {
        if n == NonZeroU32::MIN {
            return self.take(tat);
        }
        matches!(self.limiter.check_key_n(tat, n), Ok(Ok(())))
    }

    /// Whether several cells come back between two ticks of a timer.
    pub(crate) const fn is_dense(&self) -> bool {
        self.interval < TICK.as_nanos() as u64
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use governor::clock::Clock as _;

    use super::*;

    /// A clock that goes where it is put.
    #[derive(Clone, Debug, Default)]
    struct Hand(Arc<AtomicU64>);

    impl clock::Clock for Hand {
        type Instant = Nanos;

        fn now(&self) -> Nanos {
            self.0.load(Ordering::Relaxed).into()
        }
    }

    const TENTH: u64 = 100_000_000;

    /// Ten per second, as in the test of Go's limiter.
    fn ten(burst: u32) -> (Hand, Engine<Hand>, Tat) {
        let hand = Hand::default();
        hand.0.store(1_000 * TENTH, Ordering::Relaxed);
        let engine = Engine::new(Quota::per_second(10).with_burst(burst), hand.clone()).unwrap();
        (hand, engine, Tat::default())
    }

    fn at(hand: &Hand, tenths: u64) {
        hand.0.store((1_000 + tenths) * TENTH, Ordering::Relaxed);
    }

    fn n(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    #[test]
    fn its_now_counts_from_its_start() {
        let (hand, engine, _) = ten(3);
        assert_eq!(engine.now(), 0);
        at(&hand, 7);
        assert_eq!(engine.now(), 7 * TENTH);
        assert_eq!(engine.limiter.clock().now().as_u64(), 1_007 * TENTH);
    }

    #[test]
    fn gos_rules_for_turns() {
        // R(t, n) in tenths of a second at burst 2: R(0,2) = 0, R(0,2) = 2, R(3,2) = 4.
        let (hand, engine, tat) = ten(2);
        assert!(engine.take_n(&tat, n(2)));
        assert_eq!(engine.turn(tat.get(), engine.now(), 0, 2), 2 * TENTH);
        // The second two are taken at 2; at 3, one of the next two is missing.
        at(&hand, 2);
        assert!(engine.take_n(&tat, n(2)));
        at(&hand, 3);
        assert!(!engine.take_n(&tat, n(2)));
        assert_eq!(engine.turn(tat.get(), engine.now(), 0, 2), 4 * TENTH);
        // Cancelled at 1, the second two count for nobody: R(1,2) = 2.
        let (hand, engine, tat) = ten(2);
        assert!(engine.take_n(&tat, n(2)));
        at(&hand, 1);
        assert_eq!(engine.turn(tat.get(), engine.now(), 0, 2), 2 * TENTH);
        assert_eq!(engine.turn(tat.get(), engine.now(), 2, 2), 4 * TENTH);
    }

    #[test]
    fn above_the_burst_it_is_refused_and_nothing_changes() {
        let (_, engine, tat) = ten(3);
        assert!(!engine.take_n(&tat, n(4)));
        assert!(!engine.take_n(&tat, n(u32::MAX)));
        assert_eq!(tat.get(), 0);
        assert_eq!(engine.available(tat.get(), engine.now()), 3);
    }

    #[test]
    fn a_clock_that_goes_back_mints_nothing() {
        let (hand, engine, tat) = ten(2);
        at(&hand, 10);
        assert!(engine.take_n(&tat, n(2)));
        for back in [9, 5, 0] {
            at(&hand, back);
            assert!(!engine.take(&tat));
            assert_eq!(engine.available(tat.get(), engine.now()), 0);
        }
        // Before its own start, even.
        hand.0.store(0, Ordering::Relaxed);
        assert_eq!(engine.now(), 0);
        assert!(!engine.take(&tat));
        at(&hand, 11);
        assert!(engine.take(&tat));
        assert!(!engine.take(&tat));
    }

    #[test]
    fn a_clock_that_stands_still_grants_one_burst() {
        let (_, engine, tat) = ten(5);
        assert_eq!((0..100).filter(|_| engine.take(&tat)).count(), 5);
    }

    #[test]
    fn the_largest_quota_does_not_overflow() {
        let hand = Hand::default();
        let hundred_years = Duration::from_secs(100 * 365 * 86_400);
        let engine = Engine::new(Quota::new(1, hundred_years).with_burst(1), hand.clone()).unwrap();
        let tat = Tat::default();
        assert!(engine.take(&tat));
        assert!(!engine.take(&tat));
        let turn = engine.turn(tat.get(), engine.now(), u64::MAX, u32::MAX);
        assert!(turn > engine.now());
        let old = tat.retire();
        assert!(!engine.take(&tat) && !engine.take_n(&tat, n(1)));
        let fast = Engine::new(Quota::per_second(1_000_000_000), hand).unwrap();
        assert_eq!(fast.available(fast.adopt(&engine, old).get(), fast.now()), 999_999_999);
    }
}
