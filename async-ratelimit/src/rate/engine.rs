use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

use async_policy::ConfigError;
use governor::RateLimiter;
use governor::clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};

use super::quota::{Quota, TICK};

/// A quota as governor's GCRA judges by it. It keeps neither the time nor what has been used: those are handed in, and what
/// is used afterwards comes out.
///
/// Instants are nanoseconds since some start. What has been used is the arrival time of the algorithm: the instant at which the
/// burst is full again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Engine {
    /// The time in which one cell comes back.
    pub(super) interval: Duration,
    pub(crate) burst: NonZeroU32,
}

/// Governor's clock for one judgement, which is made at the start of its time.
#[derive(Clone, Debug)]
struct Moment;

impl clock::Clock for Moment {
    type Instant = Nanos;

    #[inline]
    fn now(&self) -> Nanos {
        Nanos::new(0)
    }
}

/// Governor's store for one judgement: the arrival time, counted from that moment.
#[derive(Debug)]
struct Used(Cell<u64>);

impl StateStore for Used {
    type Key = NotKeyed;

    #[inline]
    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (answer, next) = judge(Some(Nanos::new(self.0.get())))?;
        self.0.set(next.as_u64());
        Ok(answer)
    }
}

impl Engine {
    pub(crate) fn new(quota: Quota) -> Result<Self, ConfigError> {
        let burst = quota.check()?;
        Ok(Self { interval: quota.interval(), burst })
    }

    /// The arrival time after `n` cells are taken at `now`, if all of them conform.
    #[inline]
    pub(crate) fn take(self, arrival: u64, now: u64, n: NonZeroU32) -> Option<u64> {
        let quota = governor::Quota::with_period(self.interval)?.allow_burst(self.burst);
        let used = Used(Cell::new(arrival.saturating_sub(now)));
        let judge = RateLimiter::<_, _, _, NoOpMiddleware<Nanos>>::new(quota, used, Moment);
        let conforms = match n {
            NonZeroU32::MIN => judge.check().is_ok(),
            // Governor multiplies before it compares.
            n if n > self.burst => false,
            n => matches!(judge.check_n(n), Ok(Ok(()))),
        };
        conforms.then(|| now + judge.into_state_store().0.get())
    }

    /// Nanoseconds per cell.
    const fn nanos(self) -> u64 {
        self.interval.as_nanos() as u64
    }

    /// How far ahead of now the arrival time may be for one cell to conform.
    const fn tolerance(self) -> u64 {
        self.nanos() * (self.burst.get() as u64 - 1)
    }
}

/// Where cells come from: an engine, what has been used, and the time, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cells {
    pub(crate) engine: Engine,
    pub(crate) arrival: u64,
    pub(crate) now: u64,
}

impl Cells {
    /// Takes `n` cells if they conform.
    pub(crate) fn take(&mut self, n: u32) -> bool {
        let Some(n) = NonZeroU32::new(n) else { return true };
        let taken = self.engine.take(self.arrival, self.now, n);
        self.arrival = taken.unwrap_or(self.arrival);
        taken.is_some()
    }

    /// How many cells can conform at once.
    pub(crate) const fn most(&self) -> u32 {
        self.engine.burst.get()
    }

    /// Whether several cells come back between two ticks of a timer.
    pub(crate) const fn are_dense(&self) -> bool {
        self.engine.nanos() < TICK.as_nanos() as u64
    }

    /// When `n` cells conform, after `ahead` cells were taken each as soon as they conform; at least now.
    pub(crate) fn turn(&self, ahead: u64, n: u32) -> u64 {
        // The last of n cells conforms `tolerance` before its arrival time; the one after `ahead` arrives at the present one.
        let cells = ahead.saturating_add(u64::from(n)).saturating_sub(1);
        let arrival = self.arrival.max(self.now).saturating_add(cells.saturating_mul(self.engine.nanos()));
        arrival.saturating_sub(self.engine.tolerance()).max(self.now)
    }

    /// How many cells conform now.
    pub(crate) fn available(&self) -> u32 {
        let full = self.now + self.engine.tolerance() + self.engine.nanos();
        u32::try_from(full.saturating_sub(self.arrival.max(self.now)) / self.engine.nanos())
            .unwrap_or(u32::MAX)
    }

    /// Goes on with another engine, with as many cells used as there are now, to a full burst at most. What does not divide is
    /// rounded up: no part of a cell comes back by a change.
    pub(crate) fn change(&mut self, to: Engine) {
        let used = u128::from(self.arrival.saturating_sub(self.now));
        let same = (used * u128::from(to.nanos())).div_ceil(u128::from(self.engine.nanos()));
        let most = to.tolerance() + to.nanos();
        self.arrival = self.now + u64::try_from(same).unwrap_or(u64::MAX).min(most);
        self.engine = to;
    }
}

#[cfg(all(test, not(family_loom)))]
mod tests {
    use super::*;
    use crate::LONGEST_BURST;

    const TENTH: u64 = 100_000_000;

    /// Ten per second, as in the test of Go's limiter.
    fn ten(burst: u32) -> Cells {
        let engine = Engine::new(Quota::per_second(10).with_burst(burst)).unwrap();
        Cells { engine, arrival: 0, now: 1_000 * TENTH }
    }

    fn at(cells: &mut Cells, tenths: u64) {
        cells.now = (1_000 + tenths) * TENTH;
    }

    #[test]
    fn gos_rules_for_turns() {
        // R(t, n) in tenths of a second at burst 2: R(0,2) = 0, R(0,2) = 2, R(3,2) = 4.
        let mut cells = ten(2);
        assert!(cells.take(2));
        assert_eq!(cells.turn(0, 2), 1_002 * TENTH);
        // The second two are taken at 2; at 3, one of the next two is missing.
        at(&mut cells, 2);
        assert!(cells.take(2));
        at(&mut cells, 3);
        assert!(!cells.take(2));
        assert_eq!(cells.turn(0, 2), 1_004 * TENTH);
        // Cancelled at 1, the second two count for nobody: R(1,2) = 2.
        let mut cells = ten(2);
        assert!(cells.take(2));
        at(&mut cells, 1);
        assert_eq!(cells.turn(0, 2), 1_002 * TENTH);
        assert_eq!(cells.turn(2, 2), 1_004 * TENTH);
    }

    #[test]
    fn above_the_burst_it_is_refused_and_nothing_changes() {
        let mut cells = ten(3);
        let before = cells;
        assert!(!cells.take(4));
        assert!(!cells.take(u32::MAX));
        assert_eq!((cells, cells.available()), (before, 3));
    }

    #[test]
    fn a_clock_that_goes_back_mints_nothing() {
        let mut cells = ten(2);
        at(&mut cells, 10);
        assert!(cells.take(2));
        for back in [9, 5, 0] {
            at(&mut cells, back);
            assert!(!cells.take(1));
            assert_eq!(cells.available(), 0);
        }
        cells.now = 0;
        assert!(!cells.take(1));
        at(&mut cells, 11);
        assert!(cells.take(1));
        assert!(!cells.take(1));
    }

    #[test]
    fn a_clock_that_stands_still_grants_one_burst() {
        let mut cells = ten(5);
        assert_eq!((0..100).filter(|_| cells.take(1)).count(), 5);
    }

    #[test]
    fn no_part_of_a_cell_comes_back_by_a_change() {
        let minute = Engine::new(Quota::per_minute(1).with_burst(10)).unwrap();
        let fast = Engine::new(Quota::new(1, Duration::from_nanos(1)).with_burst(10)).unwrap();
        let mut cells = Cells { engine: minute, arrival: 0, now: 0 };
        assert!(cells.take(2));
        // A tenth of a cell is back.
        cells.now += 6_000_000_000;
        for _ in 0..10 {
            cells.change(fast);
            cells.change(minute);
        }
        assert_eq!(cells.available(), 8);
    }

    #[test]
    fn the_largest_quota_does_not_overflow() {
        let engine = |cells, period| Engine::new(Quota::new(cells, period)).unwrap();
        let mut cells = Cells { engine: engine(1, LONGEST_BURST), arrival: 0, now: 0 };
        assert!(!cells.take(u32::MAX));
        assert!(cells.take(1));
        assert!(!cells.take(1));
        assert!(cells.turn(u64::MAX, u32::MAX) > cells.now);
        cells.change(engine(1_000_000_000, Duration::from_secs(1)));
        assert_eq!(cells.available(), 999_999_999);
        cells.change(engine(1, LONGEST_BURST));
        assert_eq!((cells.available(), cells.take(1)), (0, false));
    }
}
