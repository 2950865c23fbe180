use std::num::NonZeroU32;
use std::time::Duration;

use async_circuit::{
    CircuitBreaker, CircuitBreakerBuilder, Failure, Guard, Mode, OpenTime, Operation, OwnedPermit, Policy,
    Recovery, Rejection, State, Trip, Verdict,
};
use async_policy::{PolicyKind, Reason, Timeout};
use tokio::time::advance;

/// Opens at two failures of the last four calls, for a second.
pub(crate) fn quick() -> CircuitBreaker {
    let n = |n| NonZeroU32::new(n).unwrap();
    CircuitBreaker::builder()
        .with_name("quotes")
        .with_trip(Trip::failure_rate(0.5).of_last(n(4)).with_min_calls(n(2)))
        .with_open_for(Duration::from_secs(1))
        .build()
        .unwrap()
}

async fn fail(breaker: &CircuitBreaker, times: u32) {
    for _ in 0..times {
        breaker.call(async || Err::<(), _>("down")).await.unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn it_opens_refuses_with_the_time_left_and_recovers() {
    let breaker = quick();
    fail(&breaker, 2).await;
    advance(Duration::from_millis(400)).await;
    let Err(Failure::Rejected(refusal)) = breaker.call(async || -> Result<(), ()> { unreachable!() }).await
    else {
        panic!("not refused")
    };
    assert_eq!(
        (refusal.policy(), refusal.name(), refusal.reason(), refusal.retry_after()),
        (PolicyKind::CircuitBreaker, Some("quotes"), Reason::CircuitOpen, Some(Duration::from_millis(600)))
    );
    advance(Duration::from_millis(600)).await;
    assert_eq!(breaker.run(async { Ok::<_, Failure<()>>(7) }).await, Ok(7));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_healthy_path_still_sees_the_first_failures() {
    let breaker = quick();
    for _ in 0..100 {
        breaker.call(async || Ok::<_, ()>(())).await.unwrap();
    }
    fail(&breaker, 1).await;
    assert_eq!(
        (breaker.state(), breaker.snapshot().calls, breaker.snapshot().failures),
        (State::Closed, 4, 1)
    );
    fail(&breaker, 1).await;
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn what_counts_is_the_verdict() {
    for (verdict, state) in [
        (Verdict::Success, State::Closed),
        (Verdict::Permanent, State::Closed),
        (Verdict::Ignored, State::Closed),
        (Verdict::Transient, State::Open),
        (Verdict::Throttled { retry_after: None }, State::Open),
    ] {
        let breaker = quick();
        for _ in 0..2 {
            let _ = breaker.call((async || Ok::<_, ()>(())).classify_with(move |_| verdict)).await;
        }
        assert_eq!(breaker.state(), state, "{verdict:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn outside_a_timeout_it_opens_on_a_backend_that_hangs() {
    let breaker = quick();
    let stack = (&breaker, Timeout::from_millis(10));
    for _ in 0..2 {
        let failure = stack.call(std::future::pending::<Result<(), ()>>).await.unwrap_err();
        assert!(matches!(failure, Failure::TimedOut(_)));
    }
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_from_inside_does_not_count() {
    let inner = quick();
    fail(&inner, 2).await;
    let outer = quick();
    for _ in 0..10 {
        (&outer, &inner).call(async || Ok::<_, ()>(())).await.unwrap_err();
    }
    assert_eq!((outer.state(), outer.snapshot().calls), (State::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_and_a_healthy_sibling_of_a_panic_is_not() {
    let breaker = quick();
    for _ in 0..2 {
        let breaker = breaker.clone();
        let task = tokio::spawn(async move { breaker.call(|| async { boom() }).await });
        assert!(task.await.unwrap_err().is_panic());
    }
    assert_eq!(breaker.state(), State::Open);

    let breaker = quick();
    for _ in 0..4 {
        let breaker = breaker.clone();
        let task = tokio::spawn(async move {
            tokio::join!(breaker.call(std::future::pending::<Result<(), ()>>), async {
                tokio::task::yield_now().await;
                panic!("a sibling")
            })
        });
        assert!(task.await.unwrap_err().is_panic());
    }
    assert_eq!((breaker.state(), breaker.snapshot().calls), (State::Closed, 0));
}

fn boom() -> Result<(), ()> {
    panic!("boom")
}

#[tokio::test(start_paused = true)]
async fn a_short_window_works_on_every_day() {
    let n = |n| NonZeroU32::new(n).unwrap();
    for day in [1, 37, 38, 49, 150] {
        let trip = Trip::failure_rate(0.5).within(Duration::from_millis(1)).with_min_calls(n(5));
        let breaker = CircuitBreaker::builder().with_trip(trip).build().unwrap();
        advance(Duration::from_secs(day * 86_400)).await;
        fail(&breaker, 5).await;
        assert_eq!(breaker.state(), State::Open, "day {day}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_open_time_takes_jitter() {
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(NonZeroU32::MIN))
        .with_open_for(OpenTime::fixed(Duration::MAX).with_jitter(1e-17))
        .build()
        .unwrap();
    fail(&breaker, 1).await;
    assert!(breaker.try_acquire().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_owned_permit_goes_to_another_task() {
    let breaker = quick();
    for ends in [OwnedPermit::failure as fn(OwnedPermit), OwnedPermit::success, OwnedPermit::ignore] {
        let permit = breaker.try_acquire_owned().unwrap();
        assert!(!permit.is_probe());
        tokio::spawn(async move { ends(permit) }).await.unwrap();
    }
    drop(breaker.try_acquire_owned().unwrap());
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.calls, snapshot.totals.aborted), (State::Closed, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn permits_report_by_hand() {
    let breaker = quick();
    breaker.try_acquire().unwrap().success();
    breaker.try_acquire().unwrap().ignore();
    drop(breaker.try_acquire().unwrap());
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (1, 0));
    breaker.try_acquire().unwrap().failure();
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after(), Some(Duration::from_secs(1)));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_answers_after_the_decision_gives_its_place_back_however_it_ends() {
    for end in [OwnedPermit::success, OwnedPermit::failure, OwnedPermit::ignore, drop as fn(OwnedPermit)] {
        let breaker = quick();
        fail(&breaker, 2).await;
        advance(Duration::from_secs(1)).await;
        let probe = breaker.try_acquire_owned().unwrap();
        breaker.reset();
        fail(&breaker, 2).await;
        advance(Duration::from_secs(1)).await;
        assert_eq!(breaker.try_acquire().unwrap_err().reason(), Reason::ProbesTaken);
        end(probe);
        assert!(breaker.try_acquire().unwrap().is_probe());
    }
}

#[tokio::test(start_paused = true)]
async fn with_few_calls_it_recovers_too() {
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(NonZeroU32::MIN))
        .with_open_for(Duration::from_secs(1))
        .with_probes(NonZeroU32::new(3).unwrap())
        .build()
        .unwrap();
    fail(&breaker, 1).await;
    // One call in so long a time; the second is given up.
    for dropped in [false, true, false, false] {
        advance(Duration::from_secs(3600)).await;
        let probe = breaker.try_acquire().unwrap();
        if !dropped {
            probe.success();
        }
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn slow_calls_open_it_too() {
    let n = |n| NonZeroU32::new(n).unwrap();
    let slow = Trip::slow_rate(0.5, Duration::from_millis(100)).with_min_calls(n(4));
    let breaker = CircuitBreaker::builder().with_trip(Trip::failure_rate(0.5).or(slow)).build().unwrap();
    let call = async |millis| {
        let op = || async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Ok::<_, ()>(())
        };
        breaker.call(op).await
    };
    for millis in [10, 150, 100] {
        call(millis).await.unwrap();
    }
    assert_eq!(breaker.state(), State::Closed);
    call(150).await.unwrap();
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.snapshot().totals.slow, 2);
}

#[tokio::test(start_paused = true)]
async fn a_window_over_time_counts_without_the_lock_and_forgets() {
    let n = |n| NonZeroU32::new(n).unwrap();
    let trip = Trip::failure_rate(0.5).within(Duration::from_secs(10)).with_min_calls(n(2));
    let breaker = CircuitBreaker::builder().with_trip(trip).build().unwrap();
    for _ in 0..100 {
        breaker.call(async || Ok::<_, ()>(())).await.unwrap();
    }
    fail(&breaker, 99).await;
    assert_eq!(
        (breaker.state(), breaker.snapshot().calls, breaker.snapshot().failures),
        (State::Closed, 199, 99)
    );
    advance(Duration::from_secs(10)).await;
    assert_eq!(breaker.snapshot().calls, 0);
    fail(&breaker, 1).await;
    assert_eq!(breaker.state(), State::Closed);
    fail(&breaker, 1).await;
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn no_call_of_any_thread_is_lost_from_a_count_window() {
    let n = |n| NonZeroU32::new(n).unwrap();
    let trip = Trip::failure_rate(0.5).of_last(n(1_000_000));
    let breaker = CircuitBreaker::builder().with_trip(trip).build().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for i in 1..=10_000 {
                    let permit = breaker.try_acquire().unwrap();
                    if i % 100 == 0 { permit.failure() } else { permit.success() }
                }
            });
        }
    });
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (40_000, 400));
}

#[tokio::test(start_paused = true)]
async fn good_calls_push_the_bad_ones_out_of_a_count_window() {
    let n = |n| NonZeroU32::new(n).unwrap();
    let trip = Trip::failure_rate(0.5).of_last(n(3000)).with_min_calls(n(3000));
    let breaker = CircuitBreaker::builder().with_trip(trip).build().unwrap();
    fail(&breaker, 1000).await;
    let mut good = 0;
    for (calls, held, failures) in [(1999, 2999, 1000), (2, 3000, 999), (998, 3000, 1), (1, 3000, 0)] {
        (0..calls).for_each(|_| breaker.try_acquire().unwrap().success());
        good += calls;
        let snapshot = breaker.snapshot();
        assert_eq!((snapshot.calls, snapshot.failures), (held, failures), "after {good}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_permit_knows_whether_it_is_a_probe() {
    let breaker = quick();
    assert!(!breaker.try_acquire().unwrap().is_probe());
    fail(&breaker, 2).await;
    advance(Duration::from_secs(1)).await;
    let probe = breaker.try_acquire().unwrap();
    assert!(probe.is_probe());
    let refusal = breaker.try_acquire().unwrap_err();
    assert_eq!((refusal.reason(), refusal.retry_after()), (Reason::ProbesTaken, None));
    probe.success();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn endings_are_told_apart() {
    let breaker = CircuitBreaker::new();
    breaker.try_acquire().unwrap().success();
    breaker.try_acquire().unwrap().failure();
    breaker.try_acquire().unwrap().ignore();
    drop(breaker.try_acquire().unwrap());
    let task = tokio::spawn({
        let breaker = breaker.clone();
        async move { breaker.call(|| async { boom() }).await }
    });
    task.await.unwrap_err();
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.failures, totals.ignored, totals.aborted, totals.panics), (1, 1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_fallback_takes_the_place_of_a_refusal_by_this_breaker_only() {
    let breaker = quick();
    assert_eq!(breaker.call_or(async || Ok::<_, ()>(7), 8).await, Ok(7));
    let failed = breaker.call_or(async || Err::<u32, _>("down"), 8).await;
    assert_eq!(failed, Err(Failure::Operation("down")));
    fail(&breaker, 2).await;
    assert_eq!(breaker.call_or(async || Ok::<_, ()>(7), 8).await, Ok(8));
    let cached = async |refusal: Rejection| Ok::<_, Failure<()>>(refusal.retry_after().unwrap().as_millis());
    assert_eq!(breaker.call_or_else(async || Ok(7), cached).await, Ok(1000));

    // A refusal from inside is not this breaker's.
    let outer = quick();
    let inside = || async { breaker.call(async || Ok::<_, ()>(7)).await };
    let inner_refusal = outer.execute(inside).await.unwrap_err();
    assert!(matches!(inner_refusal, Failure::Rejected(_)));
    let lifted = outer.call_or(inside, 8).await;
    assert!(matches!(lifted, Err(Failure::Operation(Failure::Rejected(_)))));
    let failures = outer.snapshot().failures;
    let told_apart = outer.execute_or_else(inside, async |_| Ok(8)).await;
    assert!(matches!(told_apart, Err(Failure::Rejected(_))));
    assert_eq!(outer.snapshot().failures, failures);
    outer.set_mode(Mode::ForcedOpen);
    assert_eq!(outer.execute_or_else(inside, async |_| Ok(8)).await, Ok(8));
}

#[tokio::test(start_paused = true)]
async fn calls_go_into_tasks() {
    let breaker = quick();
    let task = tokio::spawn({
        let breaker = breaker.clone();
        async move {
            let first = breaker.call_or_else(|| async { Ok::<_, String>(1) }, |_| async { Ok(0) }).await?;
            Ok::<_, Failure<String>>(first + breaker.run(async { Ok::<_, Failure<String>>(2) }).await?)
        }
    });
    assert_eq!(task.await.unwrap(), Ok(3));
}

#[test]
fn what_makes_no_sense_is_refused_with_the_field_and_the_value() {
    let error = |change: fn(CircuitBreakerBuilder) -> CircuitBreakerBuilder| {
        change(CircuitBreaker::builder()).build().unwrap_err().to_string()
    };
    let secs = Duration::from_secs;
    const RATE: &str = "expected above 0 and at most 1";
    for (rate, value) in [(0.0, "0"), (f64::NAN, "NaN"), (1.5, "1.5"), (-1.0, "-1")] {
        let trip = Trip::consecutive_failures(NonZeroU32::MIN).or(Trip::failure_rate(rate));
        let error = CircuitBreaker::builder().with_trip(trip).build().unwrap_err().to_string();
        assert_eq!(error, format!("invalid `trip.failure_rate`: {value}; {RATE}"));
    }
    assert_eq!(
        error(|b| b.with_recovery(Recovery::FailureRate(2.0))),
        format!("invalid `recovery.failure_rate`: 2; {RATE}")
    );
    assert_eq!(
        error(|b| b.with_open_for(Duration::ZERO)),
        "invalid `open_for`: 0s; expected longer than zero"
    );
    assert_eq!(error(|b| b.with_ramp(Duration::ZERO)), "invalid `ramp`: 0s; expected longer than zero");
    assert_eq!(
        error(|b| b.with_half_open_limit(Duration::ZERO)),
        "invalid `half_open_limit`: 0s; expected longer than zero"
    );
    assert_eq!(
        error(|b| b.with_trip(Trip::slow_rate(0.5, Duration::ZERO))),
        "invalid `trip.slower_than`: 0s; expected longer than zero"
    );
    assert_eq!(
        error(|b| b.with_trip(Trip::failure_rate(0.5).within(Duration::from_micros(10)))),
        "invalid `trip.within`: 10µs; expected at least 1ms"
    );
    assert_eq!(
        error(|b| b.with_trip(Trip::failure_rate(0.5).of_last(NonZeroU32::MAX))),
        "invalid `trip.of_last`: 4294967295; expected at most 16777216"
    );
    let growing = |base, cap| OpenTime::growing(secs(base), secs(cap));
    let open_for = |time| CircuitBreaker::builder().with_open_for(time).build().unwrap_err().to_string();
    assert_eq!(open_for(growing(5, 4)), "invalid `open_for.cap`: 4s; expected at least the base, 5s");
    assert_eq!(
        open_for(growing(5, 6).with_factor(0.5)),
        "invalid `open_for.factor`: 0.5; expected 1 or more, and finite"
    );
    assert_eq!(
        open_for(growing(5, 6).with_jitter(1.1)),
        "invalid `open_for.jitter`: 1.1; expected from 0 to 1"
    );
}
