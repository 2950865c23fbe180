use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use async_policy::testing::drop_at_every_await;
use async_policy::{Deadline, Timeout};
use async_ratelimit::{ConcurrencyLimit, ConcurrencyLimitBuilder, Failure, Guard, Policy, Reason, Rejection};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::{ms, settle};

fn limit(n: u32) -> ConcurrencyLimitBuilder {
    ConcurrencyLimit::builder(n)
}

fn queued(n: u32) -> ConcurrencyLimit {
    limit(n).with_queue(1_000, None).build().unwrap()
}

fn reason<T: std::fmt::Debug>(result: Result<T, Rejection>) -> Reason {
    result.unwrap_err().reason()
}

/// Waits for `weight` in a task, notes `id`, and holds the permit for a while.
fn waiter(limit: &ConcurrencyLimit, id: u32, weight: u32, seen: &Arc<Mutex<Vec<u32>>>) -> JoinHandle<()> {
    let (limit, seen) = (limit.clone(), Arc::clone(seen));
    tokio::spawn(async move {
        let _permit = limit.acquire_many(weight).await.unwrap();
        seen.lock().unwrap().push(id);
        sleep(ms(10)).await;
    })
}

#[tokio::test(start_paused = true)]
async fn without_a_queue_who_finds_no_room_is_refused() {
    let limit = limit(2).with_name("db").build().unwrap();
    let one = limit.acquire().await.unwrap();
    let two = limit.try_acquire().unwrap();
    let refused = limit.acquire().await.unwrap_err();
    assert_eq!(refused.to_string(), "concurrency limit `db` refused: limit reached");
    assert_eq!(reason(limit.try_acquire()), Reason::LimitReached);
    drop(one);
    let three = limit.try_acquire_owned().unwrap();
    assert_eq!(limit.in_flight(), 2);
    drop((two, three));
    assert_eq!(limit.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn waiters_are_served_in_the_order_they_came_whatever_their_weight() {
    let limit = queued(4);
    let seen = Arc::default();
    let all = limit.acquire_many(4).await.unwrap();
    let mut tasks = Vec::new();
    for id in 0..40 {
        tasks.push(waiter(&limit, id, 1 + id % 4, &seen));
        settle().await;
    }
    assert_eq!(limit.waiting(), 40);
    drop(all);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), (0..40).collect::<Vec<_>>());
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_never_passes_a_heavy_waiter() {
    let limit = queued(4);
    let seen = Arc::default();
    let some = limit.acquire_many(2).await.unwrap();
    let heavy = waiter(&limit, 0, 4, &seen);
    settle().await;
    let light = waiter(&limit, 1, 1, &seen);
    settle().await;
    // Two are free, but not for those who came later.
    assert_eq!(reason(limit.try_acquire()), Reason::LimitReached);
    drop(some);
    heavy.await.unwrap();
    light.await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn when_a_heavy_front_gives_up_those_behind_it_go() {
    let limit = queued(4);
    let seen = Arc::default();
    let _some = limit.acquire_many(2).await.unwrap();
    let heavy = waiter(&limit, 0, 4, &seen);
    settle().await;
    let lights: Vec<_> = (1..=2).map(|id| waiter(&limit, id, 1, &seen)).collect();
    settle().await;
    heavy.abort();
    for light in lights {
        light.await.unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_in_length_and_in_time() {
    let limit = limit(1).with_queue(1, ms(100)).build().unwrap();
    let held = limit.acquire().await.unwrap();
    let started = Instant::now();
    let (waited, full) = tokio::join!(limit.acquire(), async {
        settle().await;
        (reason(limit.acquire().await), started.elapsed())
    });
    assert_eq!(full, (Reason::QueueFull, ms(0)));
    assert_eq!(reason(waited), Reason::WaitTooLong);
    assert!((100..=101).contains(&started.elapsed().as_millis()));
    assert_eq!(limit.waiting(), 0);
    drop(held);
    assert!(limit.acquire().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_wait_as_a_refusal_because_nothing_was_started() {
    let limit = queued(1);
    let held = limit.acquire().await.unwrap();
    let call = limit.call(async || Ok::<_, ()>(()));
    let failure = Timeout::from_millis(50).run(call).await.unwrap_err();
    let Failure::Rejected(rejection) = failure else { panic!("{failure:?}") };
    assert_eq!(rejection.reason(), Reason::DeadlineTooClose);
    // One that has passed: no wait at all.
    let started = Instant::now();
    let passed = Deadline::at(started).scope(limit.acquire()).await;
    assert_eq!((reason(passed), started.elapsed()), (Reason::DeadlineTooClose, ms(0)));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn more_than_the_limit_is_refused_at_once() {
    let limit = queued(4);
    assert_eq!(reason(limit.try_acquire_many(5)), Reason::ExceedsCapacity);
    assert_eq!(reason(limit.acquire_many(u32::MAX).await), Reason::ExceedsCapacity);
    assert_eq!(limit.in_flight(), 0);
    assert_eq!(limit.acquire_many(0).await.unwrap().weight(), 0);
}

#[tokio::test(start_paused = true)]
async fn raised_it_lets_waiters_in_and_lowered_it_waits_for_permits_to_come_back() {
    let limit = queued(1);
    let seen = Arc::default();
    let held = limit.acquire().await.unwrap();
    let tasks: Vec<_> = (0..6).map(|id| waiter(&limit, id, 1, &seen)).collect();
    settle().await;
    limit.set_limit(4).unwrap();
    settle().await;
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
    limit.set_limit(2).unwrap();
    assert_eq!(
        {
            let s = limit.snapshot();
            (s.limit, s.in_flight, s.waiting)
        },
        (2, 4, 3)
    );
    sleep(ms(11)).await;
    // Three came back; one is held by the test, so only one more may go.
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3]);
    drop(held);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(limit.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_heavier_than_a_lowered_limit_is_told_when_its_turn_comes() {
    let limit = queued(4);
    let held = limit.acquire_many(4).await.unwrap();
    let (heavy, light) = (
        tokio::spawn({
            let limit = limit.clone();
            async move { reason(limit.acquire_many(3).await) }
        }),
        tokio::spawn({
            let limit = limit.clone();
            async move { limit.acquire_many(2).await.is_ok() }
        }),
    );
    settle().await;
    limit.set_limit(2).unwrap();
    assert_eq!(heavy.await.unwrap(), Reason::ExceedsCapacity);
    drop(held);
    assert!(light.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn no_permits_at_all_is_no_limit() {
    let error = limit(0).build().unwrap_err();
    assert_eq!(error.to_string(), "invalid `limit`: 0; expected at least 1");
    let limit = limit(u32::MAX).build().unwrap();
    assert_eq!(limit.set_limit(0).unwrap_err().field(), "limit");
    let held = limit.try_acquire_many(u32::MAX).unwrap();
    limit.set_limit(1).unwrap();
    assert_eq!((limit.in_flight(), limit.limit()), (u32::MAX, 1));
    drop(held);
    assert_eq!(limit.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_everything_is_given_back() {
    let limit = queued(1);
    let points = drop_at_every_await(
        || {
            let held = limit.try_acquire_owned().unwrap();
            tokio::spawn(async move {
                sleep(ms(5)).await;
                drop(held);
            });
            limit.call(async || {
                sleep(ms(1)).await;
                Ok::<_, ()>(())
            })
        },
        async |_| {
            sleep(ms(10)).await;
            assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
        },
    )
    .await;
    assert_eq!(points, 2);
}

#[tokio::test(start_paused = true)]
async fn a_panic_gives_the_permit_back() {
    let limit = queued(1);
    let inner = limit.clone();
    let task = tokio::spawn(async move {
        inner.call(|| async { if true { panic!("boom") } else { Ok::<_, ()>(()) } }).await
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(limit.in_flight(), 0);
    let boom = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let _permit = limit.try_acquire().unwrap();
        panic!("boom");
    }));
    assert!(boom.is_err());
    assert_eq!(limit.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_operation_is_gone_before_its_permit_comes_back() {
    struct Probe<'a>(&'a ConcurrencyLimit);
    impl Drop for Probe<'_> {
        fn drop(&mut self) {
            assert_eq!(self.0.in_flight(), 1);
        }
    }
    let limit = queued(1);
    let probe = Probe(&limit);
    let run = limit.run(async {
        let _probe = probe;
        pending::<Result<(), Failure<()>>>().await
    });
    assert!(Timeout::from_millis(5).run(run).await.is_err());
    assert_eq!(limit.in_flight(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_threads_it_never_lets_in_more_than_the_limit() {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    let limit = queued(3);
    let inside = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = (0..64)
        .map(|n| {
            let (limit, inside) = (limit.clone(), Arc::clone(&inside));
            tokio::spawn(async move {
                for round in 0..200 {
                    let weight = 1 + (n + round) % 3;
                    let permit = limit.acquire_many_owned(weight).await.unwrap();
                    assert!(inside.fetch_add(weight, SeqCst) + weight <= 3);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(weight, SeqCst);
                    drop(permit);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_owned_permit_for_many_is_given_up_at_every_await_too() {
    let limit = queued(3);
    let points = drop_at_every_await(
        || {
            let held = limit.try_acquire_many_owned(2).unwrap();
            tokio::spawn(async move {
                sleep(ms(5)).await;
                drop(held);
            });
            limit.acquire_many_owned(3)
        },
        async |_| {
            sleep(ms(10)).await;
            assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
        },
    )
    .await;
    assert_eq!(points, 1);
}

#[tokio::test(start_paused = true)]
async fn limits_and_permits_show_name_limit_and_use_and_not_the_queue() {
    let limit = ConcurrencyLimit::builder(3).with_name("db").with_queue(5, None).build().unwrap();
    let permit = limit.try_acquire_many(2).unwrap();
    let shown = r#"ConcurrencyLimit { name: Some("db"), limit: 3, in_flight: 2, waiting: 0 }"#;
    assert_eq!(format!("{limit:?}"), shown);
    assert_eq!(format!("{permit:?}"), format!("Permit {{ shared: {shown}, weight: 2 }}"));
}

#[tokio::test(start_paused = true)]
async fn a_queue_of_nobody_is_no_queue() {
    let limit = ConcurrencyLimit::builder(1).with_queue(0, ms(5_000)).build().unwrap();
    let _held = limit.acquire().await.unwrap();
    assert_eq!(reason(limit.acquire().await), Reason::LimitReached);
}

#[tokio::test(start_paused = true)]
async fn a_weight_of_zero_takes_its_turn() {
    let limit = ConcurrencyLimit::builder(2).with_queue(5, None).build().unwrap();
    let held = limit.try_acquire_many(2).unwrap();
    drop(limit.try_acquire_many(0).unwrap());
    limit.set_limit(1).unwrap();
    assert_eq!(reason(limit.try_acquire_many(0)), Reason::LimitReached);
    drop(held);
    drop(limit.acquire_many(0).await.unwrap());
}
