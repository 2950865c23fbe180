use std::num::NonZeroU32;
use std::time::Duration;

use async_circuit::{CircuitBreaker, Failure, Guard, Operation, Policy, State, Trip, Verdict};
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
async fn permits_report_by_hand() {
    let breaker = quick();
    breaker.try_acquire().unwrap().success();
    breaker.try_acquire().unwrap().ignore();
    drop(breaker.try_acquire().unwrap());
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (1, 0));
    breaker.try_acquire().unwrap().failure();
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after(), Some(Duration::from_secs(1)));
}

#[test]
fn what_makes_no_sense_is_refused_with_the_field_and_the_value() {
    let rate =
        |rate| CircuitBreaker::builder().with_trip(Trip::failure_rate(rate)).build().unwrap_err().to_string();
    assert_eq!(rate(0.0), "invalid `trip.rate`: 0; expected above 0 and at most 1");
    assert_eq!(rate(f64::NAN), "invalid `trip.rate`: NaN; expected above 0 and at most 1");
    assert_eq!(rate(1.5), "invalid `trip.rate`: 1.5; expected above 0 and at most 1");
    let error = CircuitBreaker::builder().with_open_for(Duration::ZERO).build().unwrap_err();
    assert_eq!(error.to_string(), "invalid `open_for`: 0s; expected a time above zero");
}
