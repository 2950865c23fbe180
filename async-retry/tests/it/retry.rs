use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_policy::{PolicyKind, Reason, Timeout};
use async_retry::{Backoff, Failure, Jitter, Operation, Policy, Rejection, Retry, StopReason, Verdict};
use tokio::time::Instant;

use crate::{attempts, time_passes};

fn every(millis: u64) -> Retry {
    Retry::new(Backoff::constant(Duration::from_millis(millis))).unwrap()
}

/// Fails `failures` times, then yields the number of the attempt.
fn flaky(
    failures: u32,
) -> (impl Fn() -> std::future::Ready<Result<u32, u32>> + Send + Sync, &'static AtomicU32) {
    let count: &'static AtomicU32 = Box::leak(Box::default());
    let operation = move || {
        let n = count.fetch_add(1, Relaxed) + 1;
        std::future::ready(if n <= failures { Err(n) } else { Ok(n) })
    };
    (operation, count)
}

#[tokio::test(start_paused = true)]
async fn it_tries_again_and_waits_in_between() {
    let (operation, _) = flaky(2);
    let started = Instant::now();
    assert_eq!(every(100).call(&operation).await, Ok(3));
    assert_eq!(started.elapsed().as_millis(), 200);
}

#[tokio::test(start_paused = true)]
async fn it_gives_up_with_the_last_error() {
    let (operation, count) = flaky(9);
    assert_eq!(every(100).with_max_attempts(attempts(4)).call(&operation).await, Err(Failure::Operation(4)));
    assert_eq!(count.load(Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_never_exceeded_with_a_delay_or_without() {
    for (max, millis) in (1..40).flat_map(|max| [(max, 0), (max, 10)]) {
        let retry = every(millis).with_max_attempts(attempts(max));
        let (operation, count) = flaky(u32::MAX);
        assert_eq!(retry.call(&operation).await, Err(Failure::Operation(max)));
        assert_eq!(retry.call_mut(&operation).await, Err(Failure::Operation(2 * max)));
        let (_, report) = retry.call_with_report(&operation).await;
        assert_eq!(report.attempts().len(), max as usize);
        assert_eq!(count.load(Relaxed), 3 * max);
    }
}

#[tokio::test(start_paused = true)]
async fn no_delay_waits_for_no_timer_tick() {
    let (operation, _) = flaky(2);
    let started = Instant::now();
    assert_eq!(Retry::new(Backoff::none()).unwrap().call(&operation).await, Ok(3));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_ends_it_and_a_bad_ok_does_not() {
    let (operation, count) = flaky(9);
    let op = (&operation).classify_with(|_| Verdict::Permanent);
    assert_eq!(every(100).call(op).await, Err(Failure::Operation(1)));
    assert_eq!(count.load(Relaxed), 1);

    let op = (async || Ok::<_, ()>(503)).classify_with(|_| Verdict::Transient);
    let started = Instant::now();
    assert_eq!(every(100).call(op).await, Ok(503));
    assert_eq!(started.elapsed().as_millis(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_servers_hint_is_used_and_clamped_to_the_cap() {
    let retry =
        Retry::new(Backoff::exponential(Duration::from_millis(1)).with_cap(Duration::from_secs(3))).unwrap();
    for (hint, slept) in [(2_000, 4_000), (60_000, 6_000)] {
        let verdict = Verdict::Throttled { retry_after: Some(Duration::from_millis(hint)) };
        let op = (async || Err::<(), _>(())).classify_with(move |_| verdict);
        let started = Instant::now();
        assert!(retry.call(op).await.is_err());
        assert_eq!(started.elapsed().as_millis(), slept);
    }
}

#[tokio::test(start_paused = true)]
async fn a_servers_hint_does_not_bypass_the_deadline_or_the_time_in_all() {
    let verdict = Verdict::Throttled { retry_after: Some(Duration::from_secs(2)) };
    let op = || (async || Err::<(), _>("busy")).classify_with(move |_| verdict);
    let started = Instant::now();
    let retry = every(1);
    let ended = (Timeout::from_millis(1000), &retry).call(op()).await;
    assert_eq!(ended, Err(Failure::Operation("busy")));
    let ended = retry.with_max_elapsed(Duration::from_secs(1)).call(op()).await;
    assert_eq!(ended, Err(Failure::Operation("busy")));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_cannot_fit_the_deadline_is_not_slept() {
    let (operation, count) = flaky(9);
    let started = Instant::now();
    let stack = (Timeout::from_millis(250), every(100).with_max_attempts(attempts(10)));
    assert_eq!(stack.call(&operation).await, Err(Failure::Operation(3)));
    assert_eq!((started.elapsed().as_millis(), count.load(Relaxed)), (200, 3));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_waited_for_if_it_says_how_long_and_an_earlier_answer_stands_over_it() {
    let refusal = |wait: Option<u64>| {
        let reason = if wait.is_some() { Reason::CircuitOpen } else { Reason::ShutDown };
        let refusal = Rejection::new(PolicyKind::CircuitBreaker, reason);
        Failure::Rejected(
            wait.map_or(refusal.clone(), |wait| refusal.with_retry_after(Duration::from_millis(wait))),
        )
    };
    let retry = || every(5000).with_max_attempts(attempts(9));
    // What the operation yields in turn; what the call ends with; after how long.
    type Row = (Retry, Vec<Failure<&'static str>>, Result<(), Failure<&'static str>>, u128);
    let table: [Row; 5] = [
        (retry(), vec![refusal(Some(300))], Ok(()), 300),
        (retry(), vec![refusal(None)], Err(refusal(None)), 0),
        (retry(), vec![refusal(Some(21_000))], Err(refusal(Some(21_000))), 0),
        (retry().with_wait_for_refusals(false), vec![refusal(Some(300))], Err(refusal(Some(300))), 0),
        (retry(), vec![Failure::Operation("down"), refusal(None)], Err(Failure::Operation("down")), 5000),
    ];
    for (n, (retry, answers, end, millis)) in table.into_iter().enumerate() {
        let count = AtomicU32::new(0);
        let started = Instant::now();
        let ended = retry
            .execute(async || {
                answers
                    .get(count.fetch_add(1, Relaxed) as usize)
                    .map_or(Ok(()), |failure| Err(failure.clone()))
            })
            .await;
        assert_eq!((ended, started.elapsed().as_millis()), (end, millis), "row {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_uses_up_an_attempt_and_a_bound_in_time_is_the_one_for_waiting() {
    let ms = Duration::from_millis;
    // It answers at 0, its breaker refuses at 100 and is open until 150, and from then on it answers again.
    let outage = |retry: Retry| async move {
        let (ran, began) = (AtomicU32::new(0), Instant::now());
        let op = async || {
            let open = ms(150).saturating_sub(began.elapsed());
            if ran.load(Relaxed) == 1 && !open.is_zero() {
                let refused = Rejection::new(PolicyKind::CircuitBreaker, Reason::CircuitOpen);
                return Err::<(), _>(Failure::from(refused.with_retry_after(open)));
            }
            ran.fetch_add(1, Relaxed);
            Err(Failure::Operation("down"))
        };
        let (result, report) = retry.execute_with_report(op).await;
        assert_eq!(result, Err(Failure::Operation("down")));
        (ran.into_inner(), report.attempts().len(), report.stopped())
    };
    assert_eq!(outage(every(100)).await, (2, 3, Some(StopReason::Attempts)));
    let generous = every(100).with_max_attempts(attempts(100)).with_max_elapsed(ms(460));
    assert_eq!(outage(generous).await, (5, 6, Some(StopReason::Elapsed)));
}

#[tokio::test(start_paused = true)]
async fn an_outer_timeout_fires_on_time_over_a_retry_that_never_yields() {
    let retry = Retry::new(Backoff::none()).unwrap().with_max_attempts(attempts(u32::MAX));
    // One that sets no deadline the retry could ask.
    // Each attempt takes virtual time without being pending.
    let call = retry.call(|| {
        time_passes(Duration::from_micros(1));
        std::future::ready(Err::<(), _>(()))
    });
    assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
}

#[test]
fn what_makes_no_sense_is_refused_with_the_field_and_the_value() {
    let base = || Backoff::exponential(Duration::from_secs(1));
    for (backoff, message) in [
        (
            Backoff::exponential(Duration::from_secs(30)),
            "invalid `backoff.cap`: 20s; expected at least the base, 30s: the default is too short for it",
        ),
        (
            base().with_cap(Duration::from_millis(50)),
            "invalid `backoff.cap`: 50ms; expected at least the base, 1s",
        ),
        (
            Backoff::from_fn(|_| None).with_jitter(Jitter::Decorrelated),
            "invalid `backoff.jitter`: decorrelated; expected none, full or equal over delays of your own",
        ),
        (
            base().with_cap(Duration::MAX),
            "invalid `backoff.cap`: 18446744073.709551615s; expected at most a day",
        ),
        (
            base().with_factor(f64::NAN),
            "invalid `backoff.factor`: NaN; expected a finite number of at least 1",
        ),
        (base().with_factor(-2.0), "invalid `backoff.factor`: -2; expected a finite number of at least 1"),
        (
            base().with_factor(f64::INFINITY),
            "invalid `backoff.factor`: inf; expected a finite number of at least 1",
        ),
    ] {
        assert_eq!(Retry::new(backoff).unwrap_err().to_string(), message);
    }
}

#[tokio::test(start_paused = true)]
async fn a_constant_delay_above_the_default_cap_is_taken_as_it_is() {
    let started = Instant::now();
    assert!(every(60_000).call(async || Err::<(), _>(())).await.is_err());
    assert_eq!(started.elapsed().as_secs(), 120);
}

#[tokio::test(start_paused = true)]
async fn delays_grow_to_the_cap_and_jitter_never_exceeds_it() {
    let backoff = Backoff::exponential(Duration::from_secs(1))
        .with_cap(Duration::from_secs(3))
        .with_jitter(Jitter::None);
    let started = Instant::now();
    let retry = Retry::new(backoff.clone()).unwrap().with_max_attempts(attempts(5));
    assert!(retry.call(async || Err::<(), _>(())).await.is_err());
    assert_eq!(started.elapsed().as_secs(), 1 + 2 + 3 + 3);

    let retry = Retry::new(backoff.with_jitter(Jitter::Full)).unwrap().with_max_attempts(attempts(101));
    let started = Instant::now();
    assert!(retry.call(async || Err::<(), _>(())).await.is_err());
    // The mean of 98 delays at the cap is half of it.
    assert!((80..=240).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn delays_that_end_end_the_call_and_start_anew_for_the_next() {
    let delays = [10, 20].map(Duration::from_millis);
    let retry = Retry::new(Backoff::from_delays(delays)).unwrap().with_unlimited_attempts();
    for _ in 0..2 {
        let (operation, count) = flaky(9);
        let started = Instant::now();
        assert_eq!(retry.call(&operation).await, Err(Failure::Operation(3)));
        assert_eq!((started.elapsed().as_millis(), count.load(Relaxed)), (30, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn delays_that_end_end_the_call_also_where_somebody_says_how_long_to_wait() {
    let ms = Duration::from_millis;
    let three = [
        Backoff::from_delays([ms(10); 3]),
        Backoff::from_fn(move |failed| (failed < 4).then_some(ms(10))),
        Backoff::from_delays([ms(10); 3]).with_jitter(Jitter::Full),
    ];
    for backoff in three {
        let retry = Retry::new(backoff).unwrap().with_max_attempts(attempts(50));
        let (started, count) = (Instant::now(), AtomicU32::new(0));
        let op = async || {
            count.fetch_add(1, Relaxed);
            Err::<(), _>("busy")
        };
        let throttled = Verdict::Throttled { retry_after: Some(ms(5)) };
        let (result, report) = retry.call_with_report(op.classify_with(move |_| throttled)).await;
        assert_eq!(result, Err(Failure::Operation("busy")));
        assert_eq!(report.stopped(), Some(StopReason::Backoff));
        assert_eq!((count.load(Relaxed), started.elapsed()), (4, ms(15)), "the hint in place of each delay");

        let open = Rejection::new(PolicyKind::CircuitBreaker, Reason::CircuitOpen).with_retry_after(ms(5));
        let refused = || std::future::ready(Err::<(), Failure<()>>(open.clone().into()));
        let (_, report) = retry.execute_with_report(refused).await;
        assert_eq!((report.attempts().len(), report.stopped()), (4, Some(StopReason::Backoff)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_of_delays_that_panics_panics_for_its_caller_and_holds_nothing() {
    let budget = async_retry::Budget::in_flight(0.2, 1).unwrap();
    let retry =
        Retry::new(Backoff::from_fn(|_| panic!("no idea how long"))).unwrap().with_budget(budget.clone());
    for _ in 0..2 {
        let retry = retry.clone();
        let task = tokio::spawn(async move { retry.call(async || Err::<(), _>(())).await });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(budget.available(), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_in_all_is_a_limit_to_when_an_attempt_starts() {
    for (limit, attempts_made) in [(99, 1), (100, 2), (350, 4)] {
        let (operation, count) = flaky(99);
        let retry = every(100).with_unlimited_attempts().with_max_elapsed(Duration::from_millis(limit));
        assert!(retry.call(&operation).await.is_err());
        assert_eq!(count.load(Relaxed), attempts_made, "{limit} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_in_all_counts_what_the_attempts_take() {
    let retry = every(10).with_unlimited_attempts().with_max_elapsed(Duration::from_millis(100));
    let op = async || {
        tokio::time::sleep(Duration::from_millis(60)).await;
        Err::<(), _>("down")
    };
    // At 0 and 70; 140 would be too late.
    let (_, report) = retry.call_with_report(op).await;
    assert_eq!((report.attempts().len(), report.stopped()), (2, Some(StopReason::Elapsed)));
    let started = Instant::now();
    assert!(retry.call(op).await.is_err());
    assert!(retry.call_mut(op).await.is_err());
    assert_eq!(started.elapsed().as_millis(), 2 * 130);
}

#[tokio::test(start_paused = true)]
async fn one_seed_one_sequence_of_delays() {
    let took = |seed| async move {
        let retry = Retry::default().with_seed(seed).with_max_attempts(attempts(9));
        let started = Instant::now();
        assert!(retry.call(async || Err::<(), _>(())).await.is_err());
        started.elapsed()
    };
    assert_eq!(took(7).await, took(7).await);
    assert_ne!(took(7).await, took(8).await);
}

#[tokio::test(start_paused = true)]
async fn each_attempt_has_its_time_out() {
    let retry = every(100).with_attempt_timeout(Duration::from_millis(50));
    let started = Instant::now();
    let failure = retry.call(std::future::pending::<Result<(), ()>>).await.unwrap_err();
    assert!(matches!(failure, Failure::TimedOut(_)));
    assert_eq!(started.elapsed().as_millis(), 350);
    let Failure::TimedOut(timed_out) = failure else { unreachable!() };
    assert_eq!(timed_out.limit().as_millis(), 50);
    // Also where the attempt leaves the task's turn to nobody else.
    let busy = async || {
        loop {
            time_passes(Duration::from_millis(1));
            tokio::task::coop::consume_budget().await;
        }
        #[expect(unreachable_code)]
        Ok::<(), ()>(())
    };
    let failure = tokio::time::timeout(Duration::from_secs(60), retry.call(busy)).await.unwrap();
    assert!(matches!(failure, Err(Failure::TimedOut(_))));
    // And what is ready at once has all the time it needs.
    let retry = every(100).with_attempt_timeout(Duration::ZERO);
    assert_eq!(retry.call(async || Ok::<_, ()>(7)).await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_has_passed_ends_a_retry_without_delay() {
    let count = AtomicU32::new(0);
    let op = async || {
        count.fetch_add(1, Relaxed);
        tokio::time::sleep(Duration::from_millis(10)).await;
        Err::<(), _>(())
    };
    let retry = Retry::new(Backoff::none()).unwrap().with_max_attempts(attempts(500));
    let deadline = async_policy::Deadline::after(Duration::from_millis(25)).unwrap();
    assert!(deadline.scope(retry.call(op)).await.is_err());
    assert_eq!(count.load(Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn the_time_in_all_ends_it_under_a_clock_that_stands_still() {
    let retry = Retry::new(Backoff::none())
        .unwrap()
        .with_max_attempts(attempts(u32::MAX))
        .with_max_elapsed(Duration::from_millis(50));
    let (operation, count) = flaky(u32::MAX - 1);
    assert!(retry.call(&operation).await.is_err());
    assert!(count.load(Relaxed) <= 152, "{count:?}");
}

/// The closure calls a policy itself: its error already is a `Failure`, and `execute` reads it as it is.
#[tokio::test(start_paused = true)]
async fn a_refusal_of_a_policy_that_is_called_inside_is_seen_by_execute() {
    let refusal = || {
        let refusal = Rejection::new(PolicyKind::CircuitBreaker, Reason::CircuitOpen);
        Failure::<()>::Rejected(refusal.with_retry_after(Duration::from_secs(3)))
    };
    let budget = async_retry::Budget::aws_standard();
    let started = Instant::now();
    let retry = every(1).with_max_attempts(attempts(2)).with_budget(budget.clone());
    assert_eq!(retry.execute(async || Err::<(), _>(refusal())).await, Err(refusal()));
    assert_eq!((started.elapsed().as_secs(), budget.available()), (3, 500.0));
}

#[tokio::test(start_paused = true)]
async fn a_classifier_is_asked_once_for_each_attempt() {
    for retry in [every(0), every(10), every(10).with_name("watched")] {
        let (operation, count) = flaky(2);
        let asked = AtomicU32::new(0);
        let op = operation.classify_with(|answer| {
            asked.fetch_add(1, Relaxed);
            if answer.is_ok() { Verdict::Success } else { Verdict::Transient }
        });
        assert_eq!(retry.call(op).await, Ok(3));
        assert_eq!(asked.load(Relaxed), count.load(Relaxed));
    }
}
