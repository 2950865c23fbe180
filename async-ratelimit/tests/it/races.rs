//! Changes of a limit or quota that race with its use.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use async_ratelimit::{KeyedConcurrencyLimit, KeyedRateLimit, Quota, RateLimit};

/// Ends the other thread also where this one panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn a_limit_that_is_changed_all_the_time_leaves_no_key_behind() {
    let limit = KeyedConcurrencyLimit::<u64>::builder(4).with_max_keys(1_000_000).build().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if stop.load(Relaxed) {
                    break;
                }
                limit.set_limit(4 + n % 2).unwrap();
            }
        });
        let _stop = Stop(&stop);
        for round in 0..300_u64 {
            let permits: Vec<_> =
                (0..200_u64).map(|key| limit.try_acquire(&(round << 16 | key)).unwrap()).collect();
            drop(permits);
        }
    });
    assert_eq!(limit.len(), 0, "busy keys with nothing in flight");
}

/// Calls `change` at any moment of `use_it`.
fn race<T: Send>(spin: u32, change: impl FnOnce(), use_it: impl FnOnce() -> T + Send) -> T {
    let start = Barrier::new(2);
    thread::scope(|scope| {
        let user = scope.spawn(|| {
            start.wait();
            use_it()
        });
        start.wait();
        (0..spin).for_each(|_| std::hint::spin_loop());
        change();
        user.join().unwrap()
    })
}

#[test]
fn a_refusal_while_the_quota_is_changed_says_nothing_absurd() {
    let quota = Quota::per_second(10).with_burst(1);
    for round in 0..4_000 {
        let limit = RateLimit::builder(quota).build().unwrap();
        limit.try_acquire().unwrap();
        let worst = race(
            round * 37 % 2_000,
            || limit.set_quota(quota).unwrap(),
            || (0..300).filter_map(|_| limit.try_acquire().err()?.retry_after()).max(),
        );
        assert!(worst < Some(Duration::from_secs(1)), "retry after {worst:?}");
    }
}

#[test]
fn a_full_bucket_refuses_nobody_while_the_quota_is_changed() {
    let quota = Quota::per_second(1_000_000);
    for round in 0..4_000 {
        let limit = RateLimit::builder(quota).build().unwrap();
        let refused = race(
            round * 37 % 2_000,
            || limit.set_quota(quota).unwrap(),
            || (0..300).find_map(|_| limit.try_acquire_many(2).err()),
        );
        assert_eq!(refused, None, "round {round}");
    }
}

#[test]
fn of_two_changes_at_once_one_is_the_last_for_every_key() {
    for round in 0..300 {
        let limit = KeyedConcurrencyLimit::<u32>::builder(9).build().unwrap();
        race(0, || limit.set_limit(1).unwrap(), || limit.set_limit(2).unwrap());
        let ones = (0..500).filter(|key| limit.key(key).snapshot().limit == 1).count();
        assert!(ones == 0 || ones == 500, "round {round}: {ones} of 500 keys have a limit of 1");

        let limit = KeyedRateLimit::<u32>::builder(Quota::per_second(9)).build().unwrap();
        let set = |n| limit.set_quota(Quota::per_second(n)).unwrap();
        race(0, || set(1), || set(2));
        let ones = (0..500).filter(|key| limit.key(key).snapshot().quota == Quota::per_second(1)).count();
        assert!(ones == 0 || ones == 500, "round {round}: {ones} of 500 keys have 1/s");
    }
}
