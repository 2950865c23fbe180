use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_ratelimit::{Guard, KeyedConcurrencyLimit, KeyedRateLimit, Policy, Quota, Reason, Rejection};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, advance, sleep};

use crate::{ms, settle};

fn reason<T: std::fmt::Debug>(result: Result<T, Rejection>) -> Reason {
    result.unwrap_err().reason()
}

/// One cell per 100 ms for each key.
fn slow(burst: u32) -> KeyedRateLimit<u64> {
    let quota = Quota::per_second(10).with_burst(burst);
    KeyedRateLimit::builder(quota).with_name("client").with_queue(10, None).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_burst_and_its_own_time() {
    let limit = slow(2);
    for key in 0..100 {
        limit.key(&key).try_acquire_many(2).unwrap();
        let refused = limit.try_acquire(&key).unwrap_err();
        assert_eq!(refused.to_string(), "rate limit `client` refused: limit reached (retry after 100ms)");
    }
    assert_eq!(reason(limit.key(&1_000).try_acquire_many(3)), Reason::ExceedsCapacity);
    advance(ms(100)).await;
    limit.try_acquire(&7).unwrap();
    assert!(limit.try_acquire(&7).is_err());
    assert_eq!(limit.key(&7).snapshot().available, 0);
    assert_eq!(limit.key(&8).snapshot().available, 1);
    assert_eq!(limit.key(&12_345).snapshot().available, 2);
}

#[tokio::test(start_paused = true)]
async fn waiters_of_a_key_are_granted_in_order_and_keys_do_not_wait_for_each_other() {
    let limit = slow(1);
    let (seen, started) = (Arc::new(Mutex::new(Vec::new())), Instant::now());
    let mut tasks = Vec::new();
    for id in 0..12_u64 {
        let (limit, seen) = (limit.clone(), Arc::clone(&seen));
        tasks.push(tokio::spawn(async move {
            limit.acquire(&(id % 2)).await.unwrap();
            seen.lock().unwrap().push((id, started.elapsed().as_millis()));
        }));
        settle().await;
    }
    assert_eq!(limit.key(&0).snapshot().waiting, 5);
    assert_eq!(limit.try_acquire(&0).unwrap_err().retry_after(), Some(ms(600)));
    tasks[2].abort();
    for task in tasks {
        let _ = task.await;
    }
    let of = |key: u64| -> Vec<_> {
        seen.lock().unwrap().iter().filter(|(id, _)| id % 2 == key).copied().collect()
    };
    assert_eq!(of(0), [(0, 0), (4, 100), (6, 200), (8, 300), (10, 400)]);
    assert_eq!(of(1), [(1, 0), (3, 100), (5, 200), (7, 300), (9, 400), (11, 500)]);
}

#[tokio::test(start_paused = true)]
async fn idle_keys_are_evicted_by_themselves_and_busy_ones_kept() {
    let limit = KeyedRateLimit::<u64>::builder(Quota::per_second(1)).with_max_keys(100_000).build().unwrap();
    for key in 0..50_000 {
        limit.try_acquire(&key).unwrap();
    }
    assert_eq!(limit.len(), 50_000);
    advance(Duration::from_secs(11)).await;
    for key in 50_000..60_000 {
        limit.try_acquire(&key).unwrap();
    }
    assert!(limit.len() <= 10_100, "{}", limit.len());
    // Those of now are busy still, every one.
    for key in 50_000..60_000 {
        assert!(limit.try_acquire(&key).is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn up_to_max_keys_no_busy_key_is_forgotten_and_above_it_those_go_that_have_used_least() {
    let quota = Quota::per_hour(1).with_burst(10);
    let limit = KeyedRateLimit::<u64>::builder(quota).with_max_keys(20_000).build().unwrap();
    let heavy = 0..10_000_u64;
    for key in heavy.clone() {
        limit.key(&key).try_acquire_many(10).unwrap();
    }
    for key in 10_000..20_000 {
        limit.try_acquire(&key).unwrap();
    }
    assert_eq!(limit.len(), 20_000);
    // An attacker with ever new keys.
    for key in 1_000_000..1_200_000 {
        limit.try_acquire(&key).unwrap();
    }
    assert!(limit.len() <= 30_000, "{}", limit.len());
    let remembered = heavy.filter(|key| limit.try_acquire(key).is_err()).count();
    assert!(remembered > 9_000, "{remembered}");
}

#[tokio::test(start_paused = true)]
async fn what_a_new_key_can_never_have_makes_no_state_of_it() {
    let quota = Quota::per_second(1).with_burst(2);
    let limit = KeyedRateLimit::<u64>::builder(quota).with_queue(10, None).build().unwrap();
    let refused = [limit.key(&0).try_acquire_many(3), limit.key(&1).acquire_many(3).await];
    assert_eq!(refused.map(reason), [Reason::ExceedsCapacity; 2]);
    assert_eq!(limit.len(), 0);
    limit.key(&0).acquire_many(2).await.unwrap();
    assert_eq!(limit.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_somebody_waits_for_is_never_forgotten() {
    let quota = Quota::per_second(1).with_burst(1);
    let limit = KeyedRateLimit::<u64>::builder(quota).with_max_keys(1).with_queue(10, None).build().unwrap();
    limit.try_acquire(&0).unwrap();
    let started = Instant::now();
    let (waited, ()) = tokio::join!(limit.acquire(&0), async {
        settle().await;
        for key in 1..10_000 {
            limit.try_acquire(&key).unwrap();
        }
        assert!(limit.try_acquire(&0).is_err());
    });
    waited.unwrap();
    assert_eq!(started.elapsed(), ms(1000));
    assert!(limit.len() <= 64 * 15);
}

/// Ten million; a tenth without optimisation. The bench does it with ten million too, and a larger limit.
const ATTACK: u64 = if cfg!(debug_assertions) { 1_000_000 } else { 10_000_000 };

#[test]
fn millions_of_distinct_keys_stay_within_the_bound() {
    let counted = allocation_counter::measure(|| {
        let limit =
            KeyedRateLimit::<u64>::builder(Quota::per_hour(1)).with_max_keys(100_000).build().unwrap();
        for key in 0..ATTACK {
            limit.try_acquire(&key).unwrap();
        }
    });
    assert!(counted.bytes_max <= 100_000 * 64 + 65_536, "{}", counted.bytes_max);
}

#[test]
fn memory_stays_within_its_bound_whatever_the_keys_are() {
    let bound = |max_keys: u64| max_keys * 64 + 65_536;
    let counted = allocation_counter::measure(|| {
        let limit =
            KeyedRateLimit::<u64>::builder(Quota::per_hour(1)).with_max_keys(100_000).build().unwrap();
        for key in 0..300_000 {
            limit.try_acquire(&key).unwrap();
        }
    });
    assert!(counted.bytes_max <= bound(100_000), "{}", counted.bytes_max);

    let mut long = String::with_capacity(2 << 20);
    long.push_str(&"x".repeat(1 << 20));
    let counted = allocation_counter::measure(|| {
        let limit = KeyedRateLimit::<str>::builder(Quota::per_hour(1)).with_max_keys(100).build().unwrap();
        for key in 0..20 {
            long.truncate(1 << 20);
            long.push_str(&key.to_string());
            limit.try_acquire(&long).unwrap();
            assert!(limit.try_acquire(&long).is_err());
        }
    });
    assert!(counted.bytes_max <= bound(100), "{}", counted.bytes_max);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_waited_for_costs_what_is_stated_besides_the_future_of_its_waiter() {
    const KEYS: usize = 10_000;
    let quota = Quota::per_hour(1).with_burst(1);
    let mut future = 0;
    let counted = allocation_counter::measure(|| {
        let limit = KeyedRateLimit::<usize>::builder(quota)
            .with_max_keys(2 * KEYS)
            .with_queue(10, None)
            .build()
            .unwrap();
        let mut waits = Vec::with_capacity(KEYS);
        for key in 0..KEYS {
            limit.try_acquire(&key).unwrap();
            let limit = limit.clone();
            let mut wait = Box::pin(unconstrained(async move { limit.acquire(&key).await }));
            future = size_of_val(&*wait) + size_of_val(&wait);
            assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            waits.push(wait);
        }
    });
    let own = counted.bytes_max - (KEYS * future) as u64;
    assert!(own <= (2 * KEYS * 64 + 65_536 + KEYS * 400) as u64, "{}", own / KEYS as u64);
}

#[tokio::test(start_paused = true)]
async fn a_changed_quota_holds_for_every_key_and_loses_nobody() {
    let limit = slow(1);
    for key in 0..1_000 {
        limit.try_acquire(&key).unwrap();
    }
    let started = Instant::now();
    let (waited, ()) = tokio::join!(limit.acquire(&3), async {
        settle().await;
        limit.set_quota(Quota::per_second(1).with_burst(1)).unwrap();
    });
    waited.unwrap();
    assert_eq!(started.elapsed(), ms(1000));
    assert_eq!(limit.set_quota(Quota::per_second(0)).unwrap_err().field(), "quota.cells");
    assert_eq!(limit.quota(), Quota::per_second(1).with_burst(1));
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_a_keyed_wait_leaves_no_place() {
    let limit = slow(1);
    let points = drop_at_every_await(
        || {
            let _ = limit.try_acquire(&1);
            limit.acquire(&1)
        },
        async |point| {
            assert_eq!(limit.key(&1).snapshot().waiting, 0);
            sleep(ms(200)).await;
            assert_eq!(limit.key(&1).snapshot().available, 1, "{point:?}");
        },
    )
    .await;
    assert_eq!(points, 1);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let rate = |max| KeyedRateLimit::<u64>::builder(Quota::per_second(1)).with_max_keys(max).build();
    assert_eq!(rate(0).unwrap_err().to_string(), "invalid `max_keys`: 0; expected 1 to 2^32");
    assert_eq!(rate(usize::MAX).unwrap_err().field(), "max_keys");
    let quota = KeyedRateLimit::<u64>::builder(Quota::per_second(0)).build();
    assert_eq!(quota.unwrap_err().field(), "quota.cells");
    assert_eq!(KeyedConcurrencyLimit::<u64>::builder(0).build().unwrap_err().field(), "limit");
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_permits_and_is_kept_only_while_it_is_busy() {
    let limit = KeyedConcurrencyLimit::<str>::builder(1).with_queue(5, None).build().unwrap();
    let alice = limit.acquire("alice").await.unwrap();
    assert_eq!(reason(limit.try_acquire("alice")), Reason::LimitReached);
    let _bob = limit.acquire("bob").await.unwrap();
    assert_eq!(limit.len(), 2);
    let waiter = tokio::spawn({
        let limit = limit.clone();
        async move { limit.acquire("alice").await.unwrap() }
    });
    settle().await;
    assert_eq!(limit.key("alice").snapshot().waiting, 1);
    drop(alice);
    let alice = waiter.await.unwrap();
    assert_eq!(limit.key("alice").snapshot().in_flight, 1);
    limit.set_limit(2).unwrap();
    drop(limit.try_acquire("alice").unwrap());
    drop(limit.key("carol").try_acquire_many(2).unwrap());
    drop(alice);
    assert_eq!(limit.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn with_all_keys_busy_further_ones_are_refused() {
    let limit = KeyedConcurrencyLimit::<u64>::builder(1).with_max_keys(1_000).build().unwrap();
    let mut held = Vec::new();
    let first_refused = (0..).find(|key| limit.try_acquire(key).map(|permit| held.push(permit)).is_err());
    let first_refused = first_refused.unwrap();
    assert!(first_refused >= 1_000);
    let refused = limit.try_acquire(&first_refused).unwrap_err();
    assert_eq!((refused.reason(), refused.reason().may_pass()), (Reason::TooManyKeys, true));
    assert_eq!(reason(limit.acquire(&first_refused).await), Reason::TooManyKeys);
    assert_eq!(reason(limit.try_acquire(&0)), Reason::LimitReached);
    held.clear();
    assert!(limit.is_empty());
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_a_key_is_given_up_with_its_last_user() {
    let limit = KeyedConcurrencyLimit::<u64>::builder(1).with_queue(5, None).build().unwrap();
    let points = drop_at_every_await(
        || {
            let held = limit.try_acquire(&1).unwrap();
            tokio::spawn(async move {
                sleep(ms(5)).await;
                drop(held);
            });
            async {
                let key = limit.key(&1);
                key.call(async || {
                    sleep(ms(1)).await;
                    Ok::<_, ()>(())
                })
                .await
            }
        },
        async |_| {
            sleep(ms(10)).await;
            assert!(limit.is_empty());
        },
    )
    .await;
    assert_eq!(points, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_threads_no_key_is_left_behind() {
    let limit = KeyedConcurrencyLimit::<u64>::builder(2).with_queue(100, None).build().unwrap();
    let tasks: Vec<_> = (0..32_u64)
        .map(|n| {
            let limit = limit.clone();
            tokio::spawn(async move {
                for round in 0..300 {
                    let key = limit.key(&((n * round) % 3));
                    key.run(async {
                        tokio::task::yield_now().await;
                        Ok::<_, async_ratelimit::Failure<()>>(())
                    })
                    .await
                    .unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(limit.is_empty());
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_waited_for_are_bounded_too() {
    let quota = Quota::per_hour(1);
    let limit = KeyedRateLimit::<u64>::builder(quota).with_max_keys(64).with_queue(1, None).build().unwrap();
    let mut waits = tokio::task::JoinSet::new();
    for key in 0..5_000 {
        let limit = limit.clone();
        waits.spawn(async move {
            let _ = limit.try_acquire(&key);
            limit.acquire(&key).await
        });
    }
    settle().await;
    assert!(limit.len() <= 64 * 16, "{} keys kept", limit.len());
    let refused = waits.try_join_next().unwrap().unwrap();
    assert_eq!(reason(refused), Reason::TooManyKeys);
}
