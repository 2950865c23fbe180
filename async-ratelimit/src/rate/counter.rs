use std::num::NonZeroU32;
use std::sync::PoisonError;
use std::time::Duration;

use super::engine::{Cells, Engine};
use super::line::Line;
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering};

/// Set in the word while newcomers may take no cells on their own: somebody waits, or has the lock.
const WAITING: u64 = 1;
/// Counted up in the word with each change of the engine, so that nothing judged by the old one can be stored.
const CHANGE: u64 = 2;
/// The arrival time is above them: see [`LATEST`].
const SHIFT: u32 = 4;
const CHANGES: u64 = (1 << SHIFT) - CHANGE;

/// The last instant that is told apart from later ones, 26 years after the start: it and the longest burst fit into a word.
pub(crate) const LATEST: u64 = (1 << (64 - SHIFT)) - super::quota::LONGEST_BURST.as_nanos() as u64 - 1;

/// A quota, what has been used of it, and the queue in front.
///
/// While nobody waits, a cell is taken by one exchange of the word, whoever else is there. Everything else is done under the lock of the
/// queue:
/// 1. With the lock goes the flag: who has the lock is the only one to change the word, until it is free again.
/// 2. The flag stays set while the queue is not empty: a newcomer then needs the lock, sees the queue, and does not pass it.
/// 3. The engine is changed under the flag, and the word counts its changes: who has read a part of the old one and a part of the new
///    one finds the word changed.
#[derive(Debug)]
pub(crate) struct Counter {
    word: AtomicU64,
    // The engine.
    secs: AtomicU64,
    nanos: AtomicU32,
    burst: AtomicU32,
    line: Mutex<Line>,
}

impl Counter {
    pub(crate) fn new(engine: Engine) -> Self {
        Self {
            word: AtomicU64::new(0),
            secs: AtomicU64::new(engine.interval.as_secs()),
            nanos: AtomicU32::new(engine.interval.subsec_nanos()),
            burst: AtomicU32::new(engine.burst.get()),
            line: Mutex::new(Line::new()),
        }
    }

    #[inline]
    fn engine(&self) -> Engine {
        let interval = Duration::new(self.secs.load(Ordering::Acquire), self.nanos.load(Ordering::Acquire));
        let burst = NonZeroU32::new(self.burst.load(Ordering::Acquire)).unwrap_or(NonZeroU32::MIN);
        Engine { interval, burst }
    }

    /// Takes `n` cells if nobody waits and they conform.
    ///
    /// # Errors
    ///
    /// What it saw, or nothing if the answer is behind the lock.
    #[inline]
    pub(crate) fn take(&self, n: NonZeroU32, now: u64) -> Result<(), Option<Cells>> {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if word & WAITING != 0 {
                return Err(None);
            }
            let cells = Cells { engine: self.engine(), arrival: word >> SHIFT, now };
            let seen = match cells.engine.take(cells.arrival, now, n) {
                Some(arrival) => {
                    let next = arrival << SHIFT | word & CHANGES;
                    match self.word.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire) {
                        Ok(_) => return Ok(()),
                        Err(seen) => seen,
                    }
                }
                None => match self.word.load(Ordering::Acquire) {
                    same if same == word => return Err(Some(cells)),
                    seen => seen,
                },
            };
            word = seen;
        }
    }

    /// Works at the queue, with all cells in its hands.
    pub(crate) fn at_line<R>(
        &self,
        now: impl FnOnce() -> u64,
        work: impl FnOnce(&mut Line, &mut Cells) -> R,
    ) -> R {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let mut word = self.word.load(Ordering::Acquire);
        if word & WAITING == 0 {
            word = self.word.fetch_or(WAITING, Ordering::AcqRel);
        }
        let engine = self.engine();
        let mut cells = Cells { engine, arrival: word >> SHIFT, now: now() };
        let result = work(&mut line, &mut cells);
        let mut changes = word & CHANGES;
        if cells.engine != engine {
            let Engine { interval, burst } = cells.engine;
            self.secs.store(interval.as_secs(), Ordering::Release);
            self.nanos.store(interval.subsec_nanos(), Ordering::Release);
            self.burst.store(burst.get(), Ordering::Release);
            changes = changes.wrapping_add(CHANGE) & CHANGES;
        }
        let waiting = if line.is_empty() { 0 } else { WAITING };
        self.word.store(cells.arrival << SHIFT | changes | waiting, Ordering::Release);
        result
    }
}

#[cfg(all(test, not(family_loom)))]
mod tests {
    use super::*;
    use crate::{LONGEST_BURST, Quota};

    const ONE: NonZeroU32 = NonZeroU32::MIN;

    fn engine(quota: Quota) -> Engine {
        Engine::new(quota).unwrap()
    }

    #[test]
    fn at_the_end_of_time_the_longest_burst_still_fits_into_the_word() {
        let slowest = engine(Quota::new(1, LONGEST_BURST));
        let counter = Counter::new(slowest);
        assert!(counter.take(ONE, LATEST).is_ok());
        let full = LATEST + LONGEST_BURST.as_nanos() as u64;
        let seen = Cells { engine: slowest, arrival: full, now: LATEST };
        assert_eq!(counter.take(ONE, LATEST), Err(Some(seen)));
        assert_eq!(counter.at_line(|| LATEST, |line, cells| (line.is_empty(), *cells)), (true, seen));
    }

    #[test]
    fn changed_again_and_again_it_keeps_what_has_been_used() {
        let counter = Counter::new(engine(Quota::per_second(10).with_burst(5)));
        assert!(counter.take(NonZeroU32::new(3).unwrap(), 0).is_ok());
        for cells in 1..50 {
            let to = engine(Quota::per_second(cells).with_burst(5));
            counter.at_line(|| 0, |_, cells| cells.change(to));
            assert_eq!(counter.engine(), to);
            assert_eq!(counter.at_line(|| 0, |_, cells| cells.available()), 2);
        }
        assert!(counter.take(ONE, 0).is_ok() && counter.take(ONE, 0).is_ok());
        assert!(counter.take(ONE, 0).is_err());
    }
}
