use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_policy::{Deadline, Timeout};
use async_ratelimit::{Failure, Guard, Policy, Quota, RateLimit, Reason, Rejection};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep};

use crate::{ms, settle};

/// One cell per 100 ms.
fn slow(burst: u32) -> RateLimit {
    RateLimit::builder(Quota::per_second(10).with_burst(burst)).with_queue(1_000, None).build().unwrap()
}

fn reason<T: std::fmt::Debug>(result: Result<T, Rejection>) -> Reason {
    result.unwrap_err().reason()
}

type Seen = Arc<Mutex<Vec<(u32, u128)>>>;

fn waiter(limit: &RateLimit, id: u32, n: u32, seen: &Seen, started: Instant) -> JoinHandle<()> {
    let (limit, seen) = (limit.clone(), Arc::clone(seen));
    tokio::spawn(async move {
        limit.acquire_many(n).await.unwrap();
        seen.lock().unwrap().push((id, started.elapsed().as_millis()));
    })
}

#[tokio::test(start_paused = true)]
async fn a_burst_goes_at_once_and_then_a_cell_per_interval() {
    let limit = RateLimit::builder(Quota::per_second(10).with_burst(3)).with_name("api").build().unwrap();
    for _ in 0..3 {
        limit.try_acquire().unwrap();
    }
    let refused = limit.acquire().await.unwrap_err();
    assert_eq!(refused.to_string(), "rate limit `api` refused: limit reached (retry after 100ms)");
    advance(ms(99)).await;
    assert_eq!(limit.try_acquire().unwrap_err().retry_after(), Some(ms(1)));
    advance(ms(1)).await;
    limit.try_acquire().unwrap();
    assert_eq!(limit.try_acquire().unwrap_err().retry_after(), Some(ms(100)));
    advance(Duration::from_secs(3600)).await;
    assert_eq!(limit.snapshot().available, 3);
}

#[tokio::test(start_paused = true)]
async fn many_cells_at_once_or_none() {
    let limit = slow(5);
    limit.try_acquire_many(4).unwrap();
    let refused = limit.try_acquire_many(3).unwrap_err();
    assert_eq!((refused.reason(), refused.retry_after()), (Reason::LimitReached, Some(ms(200))));
    assert_eq!(limit.snapshot().available, 1);
    limit.try_acquire_many(0).unwrap();
    limit.try_acquire_many(1).unwrap();
    assert_eq!(reason(limit.try_acquire_many(1)), Reason::LimitReached);
}

#[tokio::test(start_paused = true)]
async fn more_than_the_burst_is_refused_and_changes_nothing() {
    let limit = slow(5);
    assert_eq!(reason(limit.try_acquire_many(6)), Reason::ExceedsCapacity);
    assert_eq!(reason(limit.acquire_many(u32::MAX).await), Reason::ExceedsCapacity);
    assert_eq!(limit.snapshot().available, 5);
    let hourly = RateLimit::builder(Quota::per_hour(1)).build().unwrap();
    assert_eq!(reason(hourly.try_acquire_many(u32::MAX)), Reason::ExceedsCapacity);
    assert_eq!(hourly.snapshot().available, 1);
}

#[tokio::test(start_paused = true)]
async fn waiters_are_granted_in_the_order_they_came_each_at_its_time() {
    let limit = slow(1);
    let (seen, started) = (Seen::default(), Instant::now());
    let mut tasks = Vec::new();
    for id in 0..20 {
        tasks.push(waiter(&limit, id, 1, &seen, started));
        settle().await;
    }
    assert_eq!(limit.snapshot().waiting, 19);
    // 19 of them wait for a cell each; a newcomer comes after them, and is told so.
    assert_eq!(limit.try_acquire().unwrap_err().retry_after(), Some(ms(2000)));
    for task in tasks {
        task.await.unwrap();
    }
    let expected: Vec<_> = (0..20).map(|id| (id, u128::from(id) * 100)).collect();
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(limit.snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_never_passes_one_who_waits_for_many() {
    let limit = slow(4);
    limit.try_acquire_many(4).unwrap();
    let (seen, started) = (Seen::default(), Instant::now());
    let many = waiter(&limit, 0, 4, &seen, started);
    settle().await;
    sleep(ms(300)).await;
    // Three cells are there, but they are spoken for.
    assert_eq!(limit.try_acquire().unwrap_err().retry_after(), Some(ms(200)));
    let one = waiter(&limit, 1, 1, &seen, started);
    many.await.unwrap();
    one.await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [(0, 400), (1, 500)]);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_leaves_its_cell_to_those_behind() {
    let limit = slow(1);
    let (seen, started) = (Seen::default(), Instant::now());
    let mut tasks = Vec::new();
    for id in 0..8 {
        tasks.push(waiter(&limit, id, 1, &seen, started));
        settle().await;
    }
    sleep(ms(150)).await;
    // The front, and one in the middle.
    tasks[2].abort();
    tasks[4].abort();
    for (id, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await.is_ok(), id != 2 && id != 4);
    }
    assert_eq!(*seen.lock().unwrap(), [(0, 0), (1, 100), (3, 200), (5, 300), (6, 400), (7, 500)]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_does_not_fit_is_refused_at_once_with_the_time_of_the_queue_ahead() {
    let limit =
        RateLimit::builder(Quota::per_second(10).with_burst(1)).with_queue(5, ms(250)).build().unwrap();
    limit.try_acquire().unwrap();
    let started = Instant::now();
    let (first, second, third) = tokio::join!(limit.acquire(), limit.acquire(), limit.acquire());
    assert!(first.is_ok() && second.is_ok());
    let third = third.unwrap_err();
    assert_eq!((third.reason(), third.retry_after()), (Reason::WaitTooLong, Some(ms(300))));
    assert_eq!(started.elapsed(), ms(200));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once() {
    let limit = RateLimit::builder(Quota::per_second(10).with_burst(1)).with_queue(1, None).build().unwrap();
    limit.try_acquire().unwrap();
    let (first, second) = tokio::join!(limit.acquire(), limit.acquire());
    assert!(first.is_ok());
    let second = second.unwrap_err();
    assert_eq!((second.reason(), second.retry_after()), (Reason::QueueFull, Some(ms(200))));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_shorter_than_the_wait_fails_at_once() {
    let limit = slow(1);
    limit.try_acquire().unwrap();
    let started = Instant::now();
    let call = limit.call(async || Ok::<_, ()>(()));
    let failure = Timeout::from_millis(100).run(call).await.unwrap_err();
    let Failure::Rejected(rejection) = failure else { panic!("{failure:?}") };
    assert_eq!((rejection.reason(), rejection.retry_after()), (Reason::DeadlineTooClose, Some(ms(100))));
    assert_eq!(started.elapsed(), ms(0));
    assert!(Deadline::after(ms(102)).unwrap().scope(limit.acquire()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_it_takes_no_cell_and_leaves_no_place() {
    let limit = slow(1);
    let mut taken = 0;
    let points = drop_at_every_await(
        || {
            taken += u32::from(limit.try_acquire().is_ok());
            limit.acquire()
        },
        async |point| {
            assert_eq!(limit.snapshot().waiting, 0);
            // One taken by the maker, and one by the wait if it came to its end.
            sleep(ms(if point.is_none() { 200 } else { 100 })).await;
            assert_eq!(limit.snapshot().available, 1, "{point:?}");
        },
    )
    .await;
    assert_eq!(points, 1);
    assert_eq!(taken, 4);
}

#[tokio::test(start_paused = true)]
async fn a_quota_made_faster_or_slower_loses_nobody() {
    let limit = slow(1);
    let (seen, started) = (Seen::default(), Instant::now());
    let mut tasks = Vec::new();
    for id in 0..10 {
        tasks.push(waiter(&limit, id, 1, &seen, started));
        settle().await;
    }
    sleep(ms(50)).await;
    // Half a cell has come back: half is missing, at one per 20 ms.
    limit.set_quota(Quota::per_second(50).with_burst(1)).unwrap();
    sleep(ms(60)).await;
    assert_eq!(*seen.lock().unwrap(), [(0, 0), (1, 60), (2, 80), (3, 100)]);
    limit.set_quota(Quota::per_second(1).with_burst(1)).unwrap();
    for task in tasks {
        task.await.unwrap();
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(|(id, _)| *id).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    assert_eq!(seen[4..6], [(4, 610), (5, 1610)]);
    assert_eq!(limit.quota(), Quota::per_second(1).with_burst(1));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_for_more_than_a_lowered_burst_is_told_at_once() {
    let limit = slow(5);
    limit.try_acquire_many(5).unwrap();
    let task = tokio::spawn({
        let limit = limit.clone();
        async move { (reason(limit.acquire_many(4).await), Instant::now()) }
    });
    settle().await;
    let now = Instant::now();
    limit.set_quota(Quota::per_second(10).with_burst(2)).unwrap();
    assert_eq!(task.await.unwrap(), (Reason::ExceedsCapacity, now));
}

#[tokio::test(start_paused = true)]
async fn used_cells_stay_used_over_a_change_of_quota() {
    let limit = slow(10);
    limit.try_acquire_many(4).unwrap();
    limit.set_quota(Quota::per_second(1).with_burst(10)).unwrap();
    assert_eq!(limit.snapshot().available, 6);
    // A debt is at most one full burst of the new quota.
    limit.set_quota(Quota::per_hour(1).with_burst(2)).unwrap();
    assert_eq!(limit.snapshot().full, Duration::from_secs(7200));
    limit.set_quota(Quota::per_second(10).with_burst(10)).unwrap();
    assert_eq!(limit.snapshot().available, 8);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let field = |quota: Quota| RateLimit::builder(quota).build().unwrap_err().to_string();
    assert_eq!(field(Quota::per_second(0)), "invalid `quota.cells`: 0; expected at least 1");
    assert_eq!(
        field(Quota::new(50, Duration::from_nanos(49))),
        "invalid `quota.cells`: 50 per 49ns; expected at most one per nanosecond"
    );
    assert_eq!(field(Quota::new(1, Duration::ZERO)), "invalid `quota.period`: 0ns; expected above zero");
    assert_eq!(field(Quota::per_second(10).with_burst(0)), "invalid `quota.burst`: 0; expected at least 1");
    assert_eq!(
        field(Quota::per_hour(1).with_burst(u32::MAX)),
        "invalid `quota.burst`: 4294967295 cells of 3600s each; expected at most 315360000s worth"
    );
    let eleven_years = Duration::from_secs(11 * 365 * 86_400);
    assert_eq!(
        field(Quota::new(2, eleven_years)),
        "invalid `quota.period`: 2 per 346896000s; expected at most 315360000s"
    );
    assert!(field(Quota::new(1, Duration::MAX).with_burst(1)).starts_with("invalid `quota.period`"));
    let limit = slow(1);
    assert_eq!(limit.set_quota(Quota::per_second(0)).unwrap_err().field(), "quota.cells");
    assert_eq!(limit.quota(), Quota::per_second(10).with_burst(1));
}

#[test]
fn a_rate_that_does_not_divide_is_rounded_down_never_up() {
    assert_eq!(Quota::per_second(3).interval(), Duration::from_nanos(333_333_334));
    assert_eq!(Quota::per_second(600_000_000).interval(), Duration::from_nanos(2));
    assert_eq!(Quota::per_second(10).burst(), 10);
}

#[test]
fn under_threads_a_change_of_quota_neither_mints_nor_loses_a_cell() {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
    let quota = Quota::per_minute(1).with_burst(100_000);
    let limit = RateLimit::builder(quota).build().unwrap();
    let (granted, done) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let takers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    // Nobody is refused while there are cells, least of all because of a change.
                    while limit.try_acquire().is_ok() {
                        granted.fetch_add(1, SeqCst);
                    }
                })
            })
            .collect();
        let changer = scope.spawn(|| {
            while !done.load(SeqCst) {
                limit.set_quota(quota).unwrap();
            }
        });
        takers.into_iter().for_each(|taker| taker.join().unwrap());
        done.store(true, SeqCst);
        changer.join().unwrap();
    });
    assert_eq!(granted.into_inner(), 100_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_threads_waiters_who_give_up_and_come_again_leave_nothing_behind() {
    let limit =
        RateLimit::builder(Quota::per_second(20_000).with_burst(20)).with_queue(1_000, None).build().unwrap();
    let tasks: Vec<_> = (0..64_u32)
        .map(|n| {
            let limit = limit.clone();
            tokio::spawn(async move {
                for round in 0..20 {
                    let mut wait = Box::pin(limit.acquire_many(1 + (n + round) % 3));
                    if (n + round).is_multiple_of(4) {
                        // Polled once, and dropped.
                        std::future::poll_fn(|cx| {
                            let _ = wait.as_mut().poll(cx);
                            std::task::Poll::Ready(())
                        })
                        .await;
                    } else {
                        wait.await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(limit.snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_cancelled_beforehand_takes_nothing() {
    let limit = slow(2);
    drop(limit.acquire_many(2));
    assert_eq!(limit.snapshot().available, 2);
    limit.acquire_many(2).await.unwrap();
    let (seen, started) = (Seen::default(), Instant::now());
    // In tenths, as the test of Go's limiter has it: R(0,2) = 2 is cancelled at 1, so R(1,2) = 2.
    let cancelled = waiter(&limit, 0, 2, &seen, started);
    sleep(ms(100)).await;
    cancelled.abort();
    assert!(cancelled.await.unwrap_err().is_cancelled());
    waiter(&limit, 1, 2, &seen, started).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [(1, 200)]);
}

#[tokio::test(start_paused = true)]
async fn a_loop_whose_waits_are_never_waits_lets_others_have_their_turn() {
    let rate = RateLimit::builder(Quota::per_second(1_000_000_000)).with_queue(1, None).build().unwrap();
    let permits = async_ratelimit::ConcurrencyLimit::builder(1).build().unwrap();
    let rounds = std::cell::Cell::new(0);
    let turn = || {
        rounds.set(rounds.get() + 1);
        assert!(rounds.get() < 1_000, "it keeps the thread for itself");
    };
    let rate = async {
        loop {
            rate.acquire().await.unwrap();
            turn();
        }
    };
    let permits = async {
        loop {
            drop(permits.acquire().await.unwrap());
            turn();
        }
    };
    let (mut rate, mut permits) = (std::pin::pin!(rate), std::pin::pin!(permits));
    for _ in 0..3 {
        std::future::poll_fn(|cx| {
            let _: std::task::Poll<()> = rate.as_mut().poll(cx);
            let _: std::task::Poll<()> = permits.as_mut().poll(cx);
            std::task::Poll::Ready(())
        })
        .await;
        rounds.set(0);
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn callers_who_wait_get_the_waiting_rate_of_the_quota() {
    for (burst, expected) in [(1, 1_000.0), (10, 10_000.0), (50, 50_000.0), (100, 50_000.0)] {
        let quota = Quota::per_second(50_000).with_burst(burst);
        assert_eq!(quota.waiting_rate(), expected);
        let limit = RateLimit::builder(quota).with_queue(10_000, None).build().unwrap();
        let started = Instant::now();
        let waits: Vec<_> = (0..2_000)
            .map(|_| {
                let limit = limit.clone();
                tokio::spawn(async move { limit.acquire().await.unwrap() })
            })
            .collect();
        for wait in waits {
            wait.await.unwrap();
        }
        let rate = f64::from(2_000 - burst) / started.elapsed().as_secs_f64();
        assert!((0.95 * expected..=1.05 * expected).contains(&rate), "{rate} at a burst of {burst}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_future_is_run_when_its_cell_is_there() {
    let limit = slow(1);
    let started = Instant::now();
    for at in [0, 100, 200] {
        let run = limit.run(async { Ok::<_, Failure<()>>(started.elapsed()) });
        assert_eq!(run.await.unwrap(), ms(at));
    }
    let unqueued = RateLimit::builder(Quota::per_second(10).with_burst(1)).build().unwrap();
    unqueued.acquire_many(0).await.unwrap();
    unqueued.acquire().await.unwrap();
    let refused = unqueued.run(async { unreachable!("not started") as Result<(), Failure<()>> }).await;
    assert!(matches!(refused, Err(Failure::Rejected(rejection)) if rejection.retry_after() == Some(ms(100))));
    assert_eq!(reason(unqueued.acquire_many(2).await), Reason::ExceedsCapacity);
}

#[test]
fn a_rate_limit_shows_its_name_the_quota_in_force_and_what_is_left() {
    let limit = RateLimit::builder(Quota::per_second(50)).with_name("api").build().unwrap();
    limit.try_acquire_many(10).unwrap();
    let quota = "Quota { cells: 50, period: 1s, burst: 50 }";
    let shown =
        format!(r#"RateLimit {{ name: Some("api"), quota: {quota}, available: 40, waiting: 0, .. }}"#);
    assert_eq!(format!("{limit:?}"), shown);
}

#[tokio::test(start_paused = true)]
async fn a_queue_of_nobody_is_no_queue() {
    let limit = RateLimit::builder(Quota::per_second(1)).with_queue(0, ms(5_000)).build().unwrap();
    limit.acquire().await.unwrap();
    assert_eq!(reason(limit.acquire().await), Reason::LimitReached);
}

#[tokio::test(start_paused = true)]
async fn no_cells_are_granted_past_a_queue() {
    let limit = RateLimit::builder(Quota::per_second(1)).with_queue(5, None).build().unwrap();
    limit.try_acquire().unwrap();
    let waiter = tokio::spawn({
        let limit = limit.clone();
        async move { limit.acquire().await }
    });
    crate::settle().await;
    assert_eq!(limit.snapshot().waiting, 1);
    limit.try_acquire_many(0).unwrap();
    limit.acquire_many(0).await.unwrap();
    waiter.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn another_number_of_cells_is_another_default_burst() {
    let limit = RateLimit::builder(Quota::per_second(1)).build().unwrap();
    assert_eq!(reason(limit.try_acquire_many(2)), Reason::ExceedsCapacity);
    limit.set_quota(Quota::per_second(5)).unwrap();
    assert_eq!(limit.quota().burst(), 5);
    assert_eq!(Quota::per_second(5), Quota::per_second(5).with_burst(5));
}
