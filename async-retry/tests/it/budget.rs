use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_policy::{PolicyKind, Reason};
use async_retry::{Backoff, Budget, Failure, Hedge, Operation, Policy, Rejection, Retry, Verdict};
use tokio::time::sleep;

use crate::{attempts, caught};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn retry(budget: &Budget) -> Retry {
    Retry::new(Backoff::constant(ms(100))).unwrap().with_budget(budget.clone())
}

#[tokio::test(start_paused = true)]
async fn it_bounds_the_retries_of_all_callers_together() {
    let budget = Budget::token_bucket(50, attempts(5), attempts(10));
    let retry = retry(&budget);
    let count = AtomicU32::new(0);
    let fail = async || {
        count.fetch_add(1, Relaxed);
        Err::<(), _>("down")
    };
    for _ in 0..1000 {
        assert_eq!(retry.call(&fail).await, Err(Failure::Operation("down")));
    }
    assert_eq!(count.load(Relaxed), 1010, "ten retries, and then none");
}

#[tokio::test(start_paused = true)]
async fn half_of_the_calls_failing_does_not_double_the_load() {
    // tower-resilience's budget lets 1,000 requests, half of which fail, make 2,000 calls.
    for budget in
        [Budget::aws_standard(), Budget::grpc_throttle(10, 0.1).unwrap(), Budget::in_flight(0.2, 3).unwrap()]
    {
        let retry = retry(&budget).with_max_attempts(attempts(9));
        let count = AtomicU32::new(0);
        let calls: Vec<_> = (0..1000)
            .map(|n| {
                let (retry, count) = (&retry, &count);
                retry.call(move || async move {
                    count.fetch_add(1, Relaxed);
                    sleep(ms(10)).await;
                    if n % 2 == 0 { Ok(()) } else { Err(()) }
                })
            })
            .collect();
        let mut calls: Vec<_> = calls.into_iter().map(Box::pin).collect();
        let mut open = calls.len();
        std::future::poll_fn(|cx| {
            calls.retain_mut(|call| call.as_mut().poll(cx).is_pending());
            open = calls.len();
            if open == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        let load = count.load(Relaxed);
        assert!((1000..=1500).contains(&load), "{budget:?}: {load}");
    }
}

#[tokio::test(start_paused = true)]
async fn its_place_is_taken_before_the_backoff_and_given_back_after() {
    let budget = Budget::in_flight(0.2, 1).unwrap();
    let retry = retry(&budget);
    let call = retry.call(async || Err::<(), _>(()));
    tokio::pin!(call);
    assert!(futures_poll(call.as_mut()).await, "in its backoff");
    assert_eq!(budget.available(), 0.0);
    let other = retry.call(async || Err::<(), _>("no place")).await;
    assert_eq!(other, Err(Failure::Operation("no place")));
    assert!(call.await.is_err());
    assert_eq!(budget.available(), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_in_flight_until_it_ends() {
    let budget = Budget::in_flight(1.0, 1).unwrap();
    let retry = retry(&budget);
    let hedge = Hedge::after(ms(500)).with_budget(budget.clone());
    let slow = async || {
        sleep(ms(50)).await;
        Err::<(), _>(())
    };
    type Call<'c> = Pin<Box<dyn Future<Output = Result<(), Failure<()>>> + 'c>>;
    let mut calls: [Call<'_>; 3] =
        [Box::pin(retry.call(slow)), Box::pin(retry.call_mut(slow)), Box::pin(hedge.call(slow))];
    for (n, call) in calls.iter_mut().enumerate() {
        assert!(futures_poll(call.as_mut()).await);
        assert_eq!(budget.available(), (n + 1) as f64);
    }
    // The two retries are in their backoff, the hedge in its second attempt.
    sleep(ms(60)).await;
    for call in &mut calls {
        assert!(futures_poll(call.as_mut()).await);
    }
    assert_eq!(budget.available(), 0.0, "three calls, three extra attempts");
    for call in calls {
        assert!(call.await.is_err());
    }
    assert_eq!(budget.available(), 1.0, "the floor");
}

/// Polls once; whether it is pending.
async fn futures_poll<F: Future + ?Sized>(mut future: Pin<&mut F>) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

/// What the second start panics in, in every shape: each is the attempt's own failure.
#[tokio::test(start_paused = true)]
async fn a_retry_that_panics_is_spent() {
    let attempt = |n: u32| async move {
        tokio::task::yield_now().await;
        assert!(n < 1, "the second attempt panics");
        Err::<(), _>(())
    };
    let budget = Budget::aws_standard();
    let retry = retry(&budget);
    let count = AtomicU32::new(0);
    let next = || count.fetch_add(1, Relaxed) % 2;
    // In the attempt; in the closure; in the classifier.
    panics(retry.call(|| attempt(next()))).await;
    assert_eq!(budget.available(), 495.0);
    panics(retry.call_with_report(|| attempt(next()))).await;
    assert_eq!(budget.available(), 490.0);
    panics(retry.call_mut(|| attempt(next()))).await;
    assert_eq!(budget.available(), 485.0);
    panics(retry.clone().with_attempt_timeout(ms(9)).call_lending(async || attempt(next()).await)).await;
    assert_eq!(budget.available(), 480.0);
    let started = || {
        assert!(next() < 1, "the closure panics");
        std::future::ready(Err::<(), _>(()))
    };
    panics(retry.call(started)).await;
    assert_eq!(budget.available(), 475.0);
    panics(retry.call_mut(started)).await;
    assert_eq!(budget.available(), 470.0);
    let op = (async || Err::<(), _>(())).classify_with(|_| {
        assert!(next() < 1, "the classifier panics");
        Verdict::Transient
    });
    panics(retry.call(op)).await;
    assert_eq!(budget.available(), 465.0);
}

/// A panic of one call must not be taken for one of its neighbour, which is dropped by it.
#[tokio::test(start_paused = true)]
async fn a_retry_that_is_dropped_by_the_panic_of_another_is_not_spent() {
    let budget = Budget::aws_standard();
    let retry = retry(&budget);
    panics(async {
        let waiting = retry.call(async || Err::<(), _>(()));
        tokio::pin!(waiting);
        assert!(futures_poll(waiting.as_mut()).await, "in its backoff");
        assert_eq!(budget.available(), 495.0);
        panic!("the neighbour");
    })
    .await;
    assert_eq!(budget.available(), 500.0);
}

async fn panics<F: Future>(call: F) {
    assert!(caught(call).await.is_err(), "it panics");
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_nothing_is_missing() {
    for budget in [Budget::aws_standard(), Budget::in_flight(0.2, 1).unwrap()] {
        let full = budget.available();
        let points = drop_at_every_await(
            || {
                let count = AtomicU32::new(0);
                let retry = retry(&budget);
                async move {
                    let answers = [
                        Failure::Operation(()),
                        Failure::Rejected(Rejection::new(PolicyKind::RateLimit, Reason::LimitReached)),
                    ];
                    let op = async || {
                        sleep(ms(5)).await;
                        match answers.get(count.fetch_add(1, Relaxed) as usize) {
                            Some(answer) => Err(answer.clone()),
                            None => Ok(()),
                        }
                    };
                    retry.execute(op).await.unwrap();
                }
            },
            async |point| assert_eq!(budget.available(), full, "{point:?}"),
        )
        .await;
        assert_eq!(points, 5);
    }
}
