use std::sync::Arc;
use std::time::Duration;

use crate::sync::{AtomicU64, Ordering::Relaxed, stripe, stripes};

/// The last N calls, one bit each.
#[derive(Clone, Debug)]
pub(crate) struct CountWindow {
    bits: Box<[u64]>,
    size: u32,
    next: u32,
    calls: u32,
    bad: u32,
}

impl CountWindow {
    pub(crate) fn new(size: u32) -> Self {
        Self { bits: vec![0; size.div_ceil(64) as usize].into(), size, next: 0, calls: 0, bad: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.bits.fill(0);
        (self.next, self.calls, self.bad) = (0, 0, 0);
    }

    pub(crate) fn record(&mut self, bad: bool) {
        let (word, bit) = ((self.next / 64) as usize, 1_u64 << (self.next % 64));
        if self.calls == self.size {
            self.bad -= u32::from(self.bits[word] & bit != 0);
        } else {
            self.calls += 1;
        }
        if bad {
            self.bits[word] |= bit;
            self.bad += 1;
        } else {
            self.bits[word] &= !bit;
        }
        self.next = if self.next + 1 == self.size { 0 } else { self.next + 1 };
    }

    /// Calls in the window, and how many of them were bad.
    pub(crate) const fn counts(&self) -> (u64, u64) {
        (self.calls as u64, self.bad as u64)
    }

    /// Full of good calls: one more changes nothing.
    pub(crate) const fn is_spotless(&self) -> bool {
        self.bad == 0 && self.calls == self.size
    }
}

/// How many buckets a time window has: what is in it is between 15/16 and all of its length old. So many 8-byte slots
/// fill one pair of cache lines.
pub(crate) const BUCKETS: usize = 16;

/// A slot is the number of its bucket and a count: 36 and 28 bits. The number wraps after 49 days in a window of 1 ms (in
/// 136 years in one of a second), the count stays at its greatest value.
const COUNT_BITS: u32 = 28;
const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;
const NUMBER_MASK: u64 = u64::MAX >> COUNT_BITS;

/// A call may be counted so many buckets after its own, by a thread that did not get to it: 64 rounds or epochs.
const LATE: u64 = 64 * BUCKETS as u64;

/// How many buckets `number` is after `other`.
const fn after(number: u64, other: u64) -> u64 {
    number.wrapping_sub(other) & NUMBER_MASK
}

/// The slot after one more call in bucket `number`; `None` if it stays as it is.
const fn bumped(slot: u64, number: u64) -> Option<u64> {
    let in_slot = slot >> COUNT_BITS;
    if in_slot == number {
        return if slot & MAX_COUNT == MAX_COUNT { None } else { Some(slot + 1) };
    }
    // A slot a little ahead belongs to a later round or epoch: this call came too late to be in the window. One further ahead is
    // old, and the numbers have nearly wrapped round to it.
    if after(in_slot, number) < LATE { None } else { Some(number << COUNT_BITS | 1) }
}

/// The count of a slot, if its bucket is one of the last at `number`.
const fn live(slot: u64, number: u64) -> u64 {
    if after(number, slot >> COUNT_BITS) < BUCKETS as u64 { slot & MAX_COUNT } else { 0 }
}

/// Numbers the buckets of a time window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buckets {
    nanos: u64,
}

impl Buckets {
    fn new(window: Duration) -> Self {
        let nanos = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        Self { nanos: nanos.div_ceil(BUCKETS as u64) }
    }

    /// The bucket of `now`. Each epoch starts a whole round further on, so that a late call can write over an old epoch's count but
    /// never adds to a new one's.
    pub(crate) const fn number(self, now: Duration, epoch: u64) -> u64 {
        let nanos = now.as_nanos() as u64;
        (nanos / self.nanos).wrapping_add(epoch.wrapping_mul(BUCKETS as u64)) & NUMBER_MASK
    }
}

/// Good calls by bucket, counted without a lock, each thread in a stripe of its own: threads that only succeed do not
/// share a cache line.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    stripes: Arc<[Stripe]>,
}

#[derive(Debug)]
#[repr(align(128))]
struct Stripe([AtomicU64; BUCKETS]);

impl Tally {
    fn new() -> Self {
        let stripe = || Stripe(std::array::from_fn(|_| AtomicU64::new(0)));
        Self { stripes: std::iter::repeat_with(stripe).take(stripes()).collect() }
    }

    /// Counts one, and says how many this thread's stripe now holds.
    pub(crate) fn add(&self, number: u64) -> u64 {
        let stripe = &self.stripes[stripe() & (self.stripes.len() - 1)];
        let slot = &stripe.0[number as usize % BUCKETS];
        let mut seen = slot.load(Relaxed);
        while let Some(next) = bumped(seen, number) {
            match slot.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return next & MAX_COUNT,
                Err(now) => seen = now,
            }
        }
        MAX_COUNT
    }

    fn sum(&self, number: u64) -> u64 {
        self.stripes.iter().flat_map(|stripe| &stripe.0).map(|slot| live(slot.load(Relaxed), number)).sum()
    }
}

/// Good calls laid aside: they change a window of the last calls, but decide nothing, so they wait there for whoever takes the
/// lock. (The calls of each epoch are one bucket.)
#[derive(Clone, Debug)]
pub(crate) struct Aside {
    most: u64,
    tally: Tally,
}

impl Aside {
    /// For a window of `size` calls.
    pub(crate) fn new(size: u32) -> Self {
        // So many are taken in at a time; more would keep others waiting.
        const MOST: u32 = 1024;
        Self { most: size.min(MOST).into(), tally: Tally::new() }
    }

    /// Lays one aside, and says whether it is time to take them in.
    pub(crate) fn add(&self, epoch: u64) -> bool {
        self.tally.add(Self::number(epoch)) >= self.most
    }

    pub(crate) fn take(&self, epoch: u64) -> u64 {
        let number = Self::number(epoch);
        let slots = self.tally.stripes.iter().map(|stripe| &stripe.0[number as usize % BUCKETS]);
        let full = slots.filter(|slot| slot.load(Relaxed) != 0);
        full.map(|slot| slot.swap(0, Relaxed))
            .filter(|slot| slot >> COUNT_BITS == number)
            .map(|slot| slot & MAX_COUNT)
            .sum()
    }

    const fn number(epoch: u64) -> u64 {
        epoch.wrapping_mul(BUCKETS as u64) & NUMBER_MASK
    }
}

/// The calls of the last while, in buckets. The good ones are counted outside the lock.
#[derive(Clone, Debug)]
pub(crate) struct TimeWindow {
    buckets: Buckets,
    good: Tally,
    bad: [u64; BUCKETS],
}

impl TimeWindow {
    pub(crate) fn new(window: Duration) -> Self {
        Self { buckets: Buckets::new(window), good: Tally::new(), bad: [0; BUCKETS] }
    }

    /// What counts good calls without the window itself.
    pub(crate) fn tally(&self) -> (Buckets, Tally) {
        (self.buckets, self.good.clone())
    }

    pub(crate) fn record(&mut self, bad: bool, now: Duration, epoch: u64) {
        let number = self.buckets.number(now, epoch);
        if bad {
            let slot = &mut self.bad[number as usize % BUCKETS];
            *slot = bumped(*slot, number).unwrap_or(*slot);
        } else {
            self.good.add(number);
        }
    }

    /// Calls in the window that ends now, and how many of them were bad.
    pub(crate) fn counts(&self, now: Duration, epoch: u64) -> (u64, u64) {
        let number = self.buckets.number(now, epoch);
        let bad = self.bad.iter().map(|slot| live(*slot, number)).sum();
        (self.good.sum(number) + bad, bad)
    }
}

#[cfg(all(test, not(family_loom)))]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_call_leaves_a_time_window_after_its_length_and_not_much_before() {
        for window in [Duration::from_millis(4), ms(1600), Duration::from_secs(86_400)] {
            for bad in [true, false] {
                let mut calls = TimeWindow::new(window);
                let start = window * 5 + Duration::from_nanos(1);
                calls.record(bad, start, 0);
                let counts = (1, u64::from(bad));
                assert_eq!(calls.counts(start, 0), counts);
                assert_eq!(calls.counts(start + window * 15 / 16 - Duration::from_nanos(1), 0), counts);
                assert_eq!(calls.counts(start + window, 0), (0, 0));
            }
        }
    }

    #[test]
    fn another_epoch_starts_empty_and_a_late_call_of_the_old_one_does_not_count() {
        let mut calls = TimeWindow::new(ms(1600));
        calls.record(false, ms(50), 3);
        calls.record(true, ms(50), 3);
        assert_eq!(calls.counts(ms(50), 4), (0, 0));
        calls.record(false, ms(60), 4);
        let (buckets, tally) = calls.tally();
        tally.add(buckets.number(ms(55), 3));
        assert_eq!(calls.counts(ms(60), 4), (1, 0));
    }

    #[test]
    fn the_count_of_a_slot_saturates_and_its_number_may_wrap() {
        let full = 7 << COUNT_BITS | MAX_COUNT;
        assert_eq!(bumped(full, 7), None);
        assert_eq!(live(full, 7), MAX_COUNT);
        let last = bumped((NUMBER_MASK - 16) << COUNT_BITS | 9, NUMBER_MASK).unwrap();
        assert_eq!(live(last, 3), 1, "buckets 3 and -1 are four apart");
        assert_eq!(live(last, 15), 0);
        assert_eq!(bumped(bumped(0, 15).unwrap(), NUMBER_MASK), None, "too late by a round");
    }

    /// Ten million records in the memory of the first; and each looks at the same number of slots, whatever they hold.
    #[test]
    fn the_memory_of_a_time_window_does_not_grow() {
        let mut calls = TimeWindow::new(ms(1000));
        let slots = |calls: &TimeWindow| calls.good.stripes.len() * BUCKETS + calls.bad.len();
        let before = slots(&calls);
        for i in 0..10_000_000_u64 {
            calls.record(i % 10 == 0, Duration::from_micros(i), 0);
        }
        assert_eq!(slots(&calls), before);
        let (all, bad) = calls.counts(Duration::from_micros(9_999_999), 0);
        assert!((937_500..=1_000_000).contains(&all), "{all}");
        assert_eq!(bad, all.div_ceil(10));
    }
}
