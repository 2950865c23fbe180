use std::future::{pending, ready};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_circuit::{CircuitBreaker, State, Trip};
use async_policy::testing::drop_at_every_await;
use async_policy::{Failure, Policy, PolicyKind, Reason, Timeout};
use async_ratelimit::ConcurrencyLimit;
use async_retry::{Backoff, Retry};
use tokio::time::Instant;

pub(crate) fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

/// Opens at two failures of the last four calls, for a second.
pub(crate) fn breaker() -> CircuitBreaker {
    CircuitBreaker::builder()
        .with_name("quotes")
        .with_trip(Trip::failure_rate(0.5).of_last(n(4)).with_min_calls(n(2)))
        .with_open_for(Duration::from_secs(1))
        .build()
        .unwrap()
}

pub(crate) fn every(delay: Duration, attempts: u32) -> Retry {
    Retry::new(Backoff::constant(delay)).unwrap().with_max_attempts(n(attempts))
}

#[tokio::test(start_paused = true)]
async fn a_breaker_outside_a_timeout_opens_on_a_backend_that_hangs() {
    let breaker = breaker();
    let stack = (&breaker, Timeout::from_millis(50));
    for _ in 0..2 {
        assert!(matches!(stack.call(pending::<Result<(), ()>>).await, Err(Failure::TimedOut(_))));
    }
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_outside_a_full_concurrency_limit_does_not() {
    let breaker = breaker();
    let limit = ConcurrencyLimit::builder(1).build().unwrap();
    let held = limit.try_acquire().unwrap();
    for _ in 0..10 {
        let Err(Failure::Rejected(refusal)) = (&breaker, &limit).call(async || Ok::<_, ()>(())).await else {
            panic!("not refused")
        };
        assert_eq!(refusal.policy(), PolicyKind::ConcurrencyLimit);
    }
    assert_eq!((breaker.state(), breaker.snapshot().failures), (State::Closed, 0));
    drop(held);
    (&breaker, &limit).call(async || Ok::<_, ()>(())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_retry_outside_a_breaker_waits_for_its_retry_after() {
    let breaker = breaker();
    let calls = AtomicU32::new(0);
    let stack = (every(Duration::from_millis(10), 9), &breaker);
    let started = Instant::now();
    // Fails twice, which opens the circuit; the probe succeeds.
    let answer = stack
        .call(|| {
            let n = calls.fetch_add(1, Relaxed);
            ready(if n < 2 { Err("down") } else { Ok(n) })
        })
        .await;
    assert_eq!((answer, breaker.state()), (Ok(2), State::Closed));
    // One backoff of 10 ms, the open time of a second, and no more: nobody knocked in between.
    assert_eq!(started.elapsed().as_millis(), 1010);
}

#[tokio::test(start_paused = true)]
async fn an_outer_deadline_stops_an_inner_backoff_at_once() {
    let stack = (Timeout::from_millis(1000), every(Duration::from_secs(30), 3), breaker());
    let started = Instant::now();
    assert_eq!(stack.call(async || Err::<(), _>("down")).await, Err(Failure::Operation("down")));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_outer_deadline_ends_a_wait_for_a_permit() {
    let limit = ConcurrencyLimit::builder(1).with_queue(8, None).build().unwrap();
    let held = limit.try_acquire().unwrap();
    let stack = (Timeout::from_millis(1000), &limit);
    // Nobody knows when the permit comes back, so this one waits; at the deadline the limit says that nothing was started.
    let started = Instant::now();
    let Failure::Rejected(refusal) = stack.call(async || Ok::<_, ()>(())).await.unwrap_err() else {
        panic!("a time-out, which would mean that it may have run")
    };
    assert_eq!(
        (refusal.policy(), refusal.reason()),
        (PolicyKind::ConcurrencyLimit, Reason::DeadlineTooClose)
    );
    assert!(started.elapsed() <= Duration::from_millis(1001));
    assert_eq!(limit.waiting(), 0);
    drop(held);
    assert_eq!(stack.call(async || Ok::<_, ()>(7)).await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn an_outer_timeout_ends_a_retry_that_never_yields_on_time() {
    let stack = (Timeout::from_millis(20), every(Duration::ZERO, u32::MAX), Timeout::from_millis(500));
    let started = Instant::now();
    let failure = stack
        .call(|| {
            // Each attempt takes virtual time without ever being pending.
            let mut advance = std::pin::pin!(tokio::time::advance(Duration::from_micros(1)));
            let _ = advance.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
            ready(Err::<(), _>(()))
        })
        .await
        .unwrap_err();
    // Whoever looks first: the timer, or the retry at the deadline, which ends it with the last answer.
    assert!(matches!(failure, Failure::TimedOut(_) | Failure::Operation(())), "{failure:?}");
    // The budget of the runtime is 128 steps, and a retry spends one in 16 attempts of a microsecond each.
    let took = started.elapsed().as_millis();
    assert!((20..=30).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_whole_stack_dropped_at_every_await_holds_nothing() {
    let breaker = breaker();
    let limit = ConcurrencyLimit::builder(1).with_queue(8, None).build().unwrap();
    let stack = (
        Timeout::from_millis(5000),
        every(Duration::from_millis(10), 3),
        &breaker,
        &limit,
        Timeout::from_millis(50),
    );
    let points = drop_at_every_await(
        || {
            stack.call(async || {
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok::<_, ()>(())
            })
        },
        async |_| {
            assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
            assert_eq!((breaker.state(), breaker.snapshot().failures), (State::Closed, 0));
        },
    )
    .await;
    assert_eq!(points, 2);
}

#[tokio::test]
async fn a_stack_with_borrowed_parts_is_send_inside_spawn() {
    let task = tokio::spawn(async {
        let (breaker, limit, retry) =
            (breaker(), ConcurrencyLimit::builder(2).build().unwrap(), Retry::default());
        let url = String::from("http://quotes");
        let stack = (Timeout::from_millis(500), &retry, &breaker, &limit, Timeout::from_millis(50));
        let fetch = async |url: &str| Ok::<_, std::io::Error>(url.len());
        stack.call(|| fetch(&url)).await.unwrap()
    });
    assert_eq!(task.await.unwrap(), 13);
}
