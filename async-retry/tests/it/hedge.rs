use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_policy::{Deadline, PolicyKind, Reason, Timeout};
use async_retry::{
    AttemptOutcome, Backoff, Budget, Event, Failure, Hedge, Operation, Policy, Rejection, Retry, StopReason,
    Verdict,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::{attempts, caught, time_passes};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

type Plan = [(u64, Result<&'static str, &'static str>)];

/// The n-th attempt takes so long and then yields that.
async fn planned(plan: &Plan, count: &AtomicU32) -> Result<&'static str, &'static str> {
    let (millis, result) = plan[count.fetch_add(1, Relaxed) as usize];
    sleep(ms(millis)).await;
    result
}

/// What it ended with, after how long, and what it told.
async fn run(hedge: Hedge, plan: &Plan) -> (Result<&'static str, Failure<&'static str>>, u128, Vec<Event>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    let hedge = hedge.with_listener(move |event| sink.lock().unwrap().push(*event));
    let count = AtomicU32::new(0);
    let started = Instant::now();
    let result = hedge.call(|| planned(plan, &count)).await;
    let events = events.lock().unwrap().clone();
    (result, started.elapsed().as_millis(), events)
}

const fn ended(attempt: u32, outcome: AttemptOutcome) -> Event {
    Event::Attempted { attempt, outcome }
}

#[tokio::test(start_paused = true)]
async fn a_fast_first_attempt_is_all_there_is() {
    let (result, took, events) = run(Hedge::after(ms(50)), &[(30, Ok("a"))]).await;
    assert_eq!((result, took), (Ok("a"), 30));
    assert_eq!(events, [ended(1, AttemptOutcome::Success)]);
}

#[tokio::test(start_paused = true)]
async fn the_first_success_wins_and_the_loser_is_aborted() {
    let (result, took, events) = run(Hedge::after(ms(50)), &[(200, Ok("a")), (30, Ok("b"))]).await;
    assert_eq!((result, took), (Ok("b"), 80));
    let aborted = Event::Aborted { attempt: 1 };
    assert_eq!(events, [Event::Hedged { attempt: 2 }, ended(2, AttemptOutcome::Success), aborted]);

    let (result, took, _) = run(Hedge::after(ms(50)), &[(60, Ok("a")), (30, Ok("b"))]).await;
    assert_eq!((result, took), (Ok("a"), 60));
}

#[tokio::test(start_paused = true)]
async fn an_error_that_comes_first_does_not_win() {
    let (result, took, _) = run(Hedge::after(ms(50)), &[(200, Ok("a")), (30, Err("b"))]).await;
    assert_eq!((result, took), (Ok("a"), 200));
}

#[tokio::test(start_paused = true)]
async fn a_failed_first_attempt_starts_the_next_at_once() {
    let (result, took, _) = run(Hedge::after(ms(50)), &[(10, Err("a")), (30, Ok("b"))]).await;
    assert_eq!((result, took), (Ok("b"), 40));
}

#[tokio::test(start_paused = true)]
async fn when_all_have_failed_it_ends_with_the_last_answer() {
    let hedge = Hedge::after(ms(50)).with_max_extra(attempts(2));
    let (result, took, events) = run(hedge, &[(100, Err("a")), (100, Err("b")), (100, Err("c"))]).await;
    assert_eq!((result, took), (Err(Failure::Operation("c")), 200));
    assert_eq!(events.last(), Some(&Event::GaveUp { attempts: 3, reason: StopReason::Attempts }));
}

#[tokio::test(start_paused = true)]
async fn the_delay_counts_from_the_last_start() {
    let hedge = Hedge::after(ms(50)).with_max_extra(attempts(2));
    let (result, took, _) = run(hedge, &[(10, Err("a")), (500, Ok("b")), (20, Ok("c"))]).await;
    assert_eq!((result, took), (Ok("c"), 10 + 50 + 20));
}

#[tokio::test(start_paused = true)]
async fn extra_attempts_follow_each_other_and_stop_at_their_number() {
    let slow = [(500, Ok("a")), (500, Ok("b")), (500, Ok("c")), (0, Ok("never"))];
    let (result, took, events) = run(Hedge::after(ms(50)).with_max_extra(attempts(2)), &slow).await;
    assert_eq!((result, took), (Ok("a"), 500));
    let aborted: Vec<_> = events.iter().filter(|event| matches!(event, Event::Aborted { .. })).collect();
    assert_eq!(aborted.len(), 2);

    let (result, took, _) = run(Hedge::after(Duration::ZERO), &[(500, Ok("a")), (20, Ok("b"))]).await;
    assert_eq!((result, took), (Ok("b"), 20), "no delay: all at once");
}

#[tokio::test(start_paused = true)]
async fn a_permanent_answer_ends_it_and_a_refusal_or_a_throttle_starts_no_other() {
    let hedge = || Hedge::after(ms(50)).with_max_extra(attempts(5));
    let count = AtomicU32::new(0);
    let fail = async || {
        count.fetch_add(1, Relaxed);
        sleep(ms(10)).await;
        Err::<(), _>("no such thing")
    };
    let op = fail.classify_with(|_| Verdict::Permanent);
    assert_eq!(hedge().call(op).await, Err(Failure::Operation("no such thing")));
    let op = fail.classify_with(|_| Verdict::Throttled { retry_after: None });
    assert_eq!(hedge().call(op).await, Err(Failure::Operation("no such thing")));
    let refused = || Failure::<()>::Rejected(Rejection::new(PolicyKind::RateLimit, Reason::LimitReached));
    let result = hedge()
        .execute(async || {
            count.fetch_add(1, Relaxed);
            Err::<(), _>(refused())
        })
        .await;
    assert_eq!(result, Err(refused()));
    assert_eq!(count.load(Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn one_budget_for_retries_and_hedges() {
    let budget = Budget::token_bucket(10, attempts(5), attempts(10));
    let hedge = Hedge::after(ms(50)).with_budget(budget.clone());
    let slow = [(200, Ok("a")), (500, Ok("b"))];
    // It lost: the extra attempt was made.
    let (_, _, events) = run(hedge.clone(), &slow).await;
    assert!(events.contains(&Event::Hedged { attempt: 2 }));
    assert_eq!(budget.available(), 5.0);
    // It won: it has its cost back.
    assert_eq!(run(hedge.clone(), &[(500, Ok("a")), (10, Ok("b"))]).await.0, Ok("b"));
    assert_eq!(budget.available(), 5.0);

    let retry = Retry::new(Backoff::constant(ms(10)))
        .unwrap()
        .with_budget(budget.clone())
        .with_max_attempts(attempts(2));
    assert!(retry.call(async || Err::<(), _>(())).await.is_err());
    assert_eq!(budget.available(), 0.0);
    let (result, took, events) = run(hedge, &slow).await;
    assert_eq!((result, took), (Ok("a"), 200));
    assert_eq!(events, [Event::HedgeWithheld { attempt: 2 }, ended(1, AttemptOutcome::Success)]);
}

#[tokio::test(start_paused = true)]
async fn under_a_throttle_every_success_earns_and_every_failure_costs() {
    let budget = Budget::grpc_throttle(10, 0.5).unwrap();
    let hedge = Hedge::after(ms(50)).with_budget(budget.clone());
    for (plan, left) in [
        ([(10, Err("a")), (10, Err("b"))], 8.0),
        ([(10, Err("a")), (10, Ok("b"))], 7.5),
        ([(80, Ok("a")), (500, Ok("b"))], 8.0),
        ([(10, Ok("a")), (0, Ok("never"))], 8.5),
    ] {
        let _ = run(hedge.clone(), &plan).await;
        assert_eq!(budget.available(), left, "{plan:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_extra_attempt_after_a_time_out_costs_what_that_costs() {
    let budget = Budget::aws_standard();
    let hedge = Hedge::after(ms(50)).with_budget(budget.clone());
    let failure = (hedge, Timeout::from_millis(20)).call(std::future::pending::<Result<(), ()>>).await;
    assert!(matches!(failure, Err(Failure::TimedOut(_))));
    assert_eq!(budget.available(), 490.0);
}

#[tokio::test(start_paused = true)]
async fn an_extra_attempt_that_ends_the_call_is_spent_only_where_it_failed() {
    for (verdict, left) in [(Verdict::Success, 500.0), (Verdict::Ignored, 500.0), (Verdict::Permanent, 495.0)]
    {
        let budget = Budget::aws_standard();
        let hedge = Hedge::after(ms(50)).with_budget(budget.clone());
        let count = AtomicU32::new(0);
        let plan = [(500, Err("slow")), (10, Err("extra"))];
        let op = (async || planned(&plan, &count).await).classify_with(move |_| verdict);
        assert_eq!(hedge.call(op).await, Err(Failure::Operation("extra")));
        assert_eq!(budget.available(), left, "{verdict:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tracked_percentile_follows_the_latencies() {
    let hedge = Hedge::at_percentile(0.9, ms(500)).unwrap();
    assert_eq!(hedge.delay(), ms(500));
    let count = AtomicU32::new(0);
    for _ in 0..64 {
        hedge
            .clone()
            .call(async || {
                sleep(ms(if count.fetch_add(1, Relaxed).is_multiple_of(8) { 80 } else { 20 })).await;
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
    }
    assert_eq!(hedge.delay(), ms(80));
    for _ in 0..512 {
        assert!(hedge.call(async || Err::<(), _>("at once")).await.is_err());
    }
    assert_eq!(hedge.delay(), ms(80), "what failed says nothing of how long a success takes");
    for percentile in [0.0, 1.0, -1.0, f64::NAN] {
        let error = Hedge::at_percentile(percentile, ms(1)).unwrap_err();
        assert_eq!((error.field(), error.value()), ("hedge.percentile", percentile.to_string().as_str()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_could_only_start_after_the_deadline_is_not_started() {
    let count = AtomicU32::new(0);
    let op = async || {
        count.fetch_add(1, Relaxed);
        sleep(ms(500)).await;
        Ok::<_, ()>(())
    };
    let failure = (Timeout::from_millis(100), Hedge::after(ms(150))).call(&op).await.unwrap_err();
    assert!(matches!(failure, Failure::TimedOut(_)));
    assert_eq!(count.swap(0, Relaxed), 1);
    // Also where nothing ends the call at its deadline.
    let deadline = Deadline::after(ms(100)).unwrap();
    assert_eq!(deadline.scope(Hedge::after(ms(150)).call(&op)).await, Ok(()));
    assert_eq!(count.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_permits_and_tokens_come_back() {
    let semaphore = Semaphore::new(9);
    let budget = Budget::aws_standard();
    let in_flight = Budget::in_flight(0.5, 3).unwrap();
    for budget in [budget, in_flight] {
        let full = budget.available();
        let hedge = Hedge::after(ms(10)).with_max_extra(attempts(2)).with_budget(budget.clone());
        let points = drop_at_every_await(
            || {
                hedge.call(async || {
                    let _permit = semaphore.acquire().await;
                    sleep(ms(35)).await;
                    Ok::<_, ()>(())
                })
            },
            async |point| {
                assert_eq!(semaphore.available_permits(), 9);
                if point.is_some() {
                    assert_eq!(budget.available(), full, "{point:?}");
                }
            },
        )
        .await;
        assert!(points >= 3, "{points}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outer_timeout_fires_over_attempts_that_fail_at_once() {
    let hedge = Hedge::after(ms(50)).with_max_extra(attempts(u32::MAX));
    let op = || {
        time_passes(Duration::from_micros(100));
        std::future::ready(Err::<(), _>(()))
    };
    let failure = (Timeout::from_millis(20), hedge).call(op).await.unwrap_err();
    assert!(matches!(failure, Failure::TimedOut(_)));
}

/// Panics when it is dropped, but for during another panic.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "dropped");
    }
}

#[tokio::test(start_paused = true)]
async fn a_loser_that_panics_while_it_is_dropped_costs_nothing() {
    let budget = Budget::token_bucket(100, attempts(5), attempts(10));
    let count = AtomicU32::new(0);
    let hedge = Hedge::after(ms(5)).with_max_extra(attempts(3)).with_budget(budget.clone());
    let call = hedge.call(|| {
        let n = count.fetch_add(1, Relaxed);
        async move {
            let bomb = (n != 3).then(|| Bomb);
            sleep(if n == 3 { ms(10) } else { ms(1000) }).await;
            drop(bomb);
            Ok::<_, ()>(n)
        }
    });
    assert_eq!(caught(call).await.unwrap(), Ok(3));
    assert_eq!(budget.available(), 90.0, "two lost, and are spent; one won");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_error_that_panics_while_it_is_dropped_does_not_cost_the_answer() {
    let count = AtomicU32::new(0);
    let hedge = Hedge::after(ms(50));
    let call = hedge.call(async || match count.fetch_add(1, Relaxed) {
        0 => Err(Bomb),
        n => Ok(n),
    });
    assert!(matches!(caught(call).await, Ok(Ok(1))));
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_meets_no_loser_that_panics_too() {
    /// Ends the process when it is dropped during another panic.
    struct Unforgiving;

    impl Drop for Unforgiving {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }

    let count = AtomicU32::new(0);
    let hedge = Hedge::after(ms(5))
        .with_max_extra(attempts(3))
        .with_listener(|event| assert!(!matches!(event, Event::Aborted { .. }), "told"));
    let call = hedge.call(|| {
        let n = count.fetch_add(1, Relaxed);
        async move {
            let unforgiving = (n != 3).then_some(Unforgiving);
            sleep(if n == 3 { ms(10) } else { ms(1000) }).await;
            std::mem::forget(unforgiving);
            Ok::<_, ()>(n)
        }
    });
    let panic = caught(call).await.unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"told"));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_panics_has_failed_and_any_other_may_win() {
    // Which one panics, what wins, after how long: the extra one next to the first, and the first, after which the next starts at once.
    for (bad, wins, millis) in [(1, 0, 20), (0, 1, 20)] {
        let budget = Budget::token_bucket(100, attempts(5), attempts(10));
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        let hedge = Hedge::after(ms(5))
            .with_budget(budget.clone())
            .with_listener(move |event| sink.lock().unwrap().push(*event));
        let count = AtomicU32::new(0);
        let started = Instant::now();
        let call = hedge.call(|| {
            let n = count.fetch_add(1, Relaxed);
            async move {
                assert_ne!(n, bad, "a bug");
                sleep(ms(20)).await;
                Ok::<_, ()>(n)
            }
        });
        assert_eq!(caught(call).await.unwrap(), Ok(wins));
        assert_eq!(started.elapsed().as_millis(), millis);
        assert!(events.lock().unwrap().contains(&ended(bad + 1, AttemptOutcome::Panicked)));
        assert_eq!(budget.available(), if bad == 1 { 95.0 } else { 100.0 });
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_have_failed_the_last_one_decides_between_its_error_and_its_panic() {
    let run = |panics: [bool; 2]| async move {
        let count = AtomicU32::new(0);
        caught(Hedge::after(ms(5)).call(|| {
            let n = count.fetch_add(1, Relaxed) as usize;
            assert!(!panics[n], "attempt {n}");
            async move { Err::<(), _>(n) }
        }))
        .await
    };
    assert_eq!(run([true, false]).await.unwrap(), Err(Failure::Operation(1)));
    let panic = run([false, true]).await.unwrap_err();
    assert_eq!(panic.downcast_ref::<String>().unwrap(), "attempt 1");
    let panic = run([true, true]).await.unwrap_err();
    assert_eq!(panic.downcast_ref::<String>().unwrap(), "attempt 1");
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_leaves_the_budget_whole() {
    let budget = Budget::token_bucket(100, attempts(5), attempts(10));
    let hedge = Hedge::after(ms(5))
        .with_max_extra(attempts(2))
        .with_budget(budget.clone())
        .with_listener(|event| assert!(!matches!(event, Event::Aborted { .. }), "told"));
    let call = hedge.call(async || {
        sleep(ms(50)).await;
        Ok::<_, ()>(())
    });
    assert!(caught(call).await.is_err());
    assert_eq!(budget.available(), 90.0, "the losers were made");
}
