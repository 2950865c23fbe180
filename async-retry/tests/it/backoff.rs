use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_policy::{Deadline, Timeout};
use async_retry::compat::{self, BackoffExt, into_inner};
use async_retry::{Backoff, Failure, Policy, Retry};
use backoff::backoff::{Backoff as _, Constant, Stop};
use backoff::{Error, ExponentialBackoff};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::attempts;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn existing() -> ExponentialBackoff {
    ExponentialBackoff {
        initial_interval: ms(100),
        current_interval: ms(100),
        randomization_factor: 0.0,
        multiplier: 3.0,
        max_interval: Duration::from_secs(60),
        ..Default::default()
    }
}

#[tokio::test(start_paused = true)]
async fn an_existing_policy_drives_a_retry_from_its_start_each_time() {
    let retry = Retry::from_backoff(existing()).with_max_attempts(attempts(4));
    for _ in 0..2 {
        let started = Instant::now();
        assert!(retry.call(async || Err::<(), _>(())).await.is_err());
        assert_eq!(started.elapsed(), ms(100 + 300 + 900), "and the first attempt at once");
    }
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_policy_and_takes_any_of_them() {
    let retry = Retry::new(Backoff::from_backoff_with(|| Stop {})).unwrap();
    let started = Instant::now();
    assert!(retry.call(async || Err::<(), _>(())).await.is_err());
    assert_eq!(started.elapsed(), Duration::ZERO);
    let retry = Retry::new(Backoff::from_backoff_with(|| Constant::new(ms(70)))).unwrap();
    assert!(retry.call(async || Err::<(), _>(())).await.is_err());
    assert_eq!(started.elapsed(), ms(140));
    let started = Instant::now();
    let retry = Retry::new(Backoff::from_backoff_with(|| Constant::new(ms(60_000)))).unwrap();
    assert!(retry.call(async || Err::<(), _>(())).await.is_err());
    assert_eq!(started.elapsed(), ms(120_000), "no cap but a day");
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_policy_also_where_the_error_says_how_long_to_wait() {
    let retry = Retry::new(Backoff::from_backoff_with(|| Stop {})).unwrap().with_max_attempts(attempts(50));
    let op = async || Err::<(), _>(Error::retry_after("busy", ms(1000)));
    let started = Instant::now();
    assert!(retry.call(op.self_classified()).await.is_err());
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn its_errors_classify_themselves_through_a_whole_stack() {
    let stack = (Timeout::from_secs(10), Retry::from_backoff(existing()));
    let count = std::sync::atomic::AtomicU32::new(0);
    let fetch = || {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::future::ready(Err::<(), _>(match n {
            0 => Error::transient("busy"),
            1 => Error::retry_after("later", ms(2000)),
            _ => Error::permanent("gone"),
        }))
    };
    let started = Instant::now();
    let failure = stack.call(fetch.self_classified()).await.unwrap_err().map(into_inner);
    assert_eq!(failure, Failure::Operation("gone"));
    assert_eq!(started.elapsed(), ms(2100));
}

#[tokio::test(start_paused = true)]
async fn the_old_functions_have_a_place_to_move_to() {
    let mut errors = vec![Error::transient("a"), Error::retry_after("b", ms(50))].into_iter();
    let mut seen = Vec::new();
    let result = compat::retry_notify(
        existing(),
        || std::future::ready(errors.next().map_or(Ok("done"), Err)),
        |error, delay| seen.push((error, delay)),
    )
    .await;
    assert_eq!(result, Ok("done"));
    assert_eq!(seen, [("a", ms(100)), ("b", ms(50))]);
    let result = compat::retry(existing(), async || Err::<(), _>(Error::permanent("gone"))).await;
    assert_eq!(result, Err("gone"));
    // A policy that has been in use begins anew, and no delay outlasts the deadline.
    let mut used = existing();
    for _ in 0..3 {
        used.next_backoff();
    }
    let deadline = Deadline::after(ms(350)).unwrap();
    let started = Instant::now();
    let result = deadline.scope(compat::retry(used, async || Err::<(), _>(Error::transient("busy")))).await;
    assert_eq!((result, started.elapsed()), (Err("busy"), ms(100)));
}

#[tokio::test(start_paused = true)]
async fn the_old_functions_wait_for_no_timer_tick_without_a_delay() {
    let mut errors = [Error::transient(()), Error::transient(())].into_iter();
    let started = Instant::now();
    let op = || std::future::ready(errors.next().map_or(Ok(7), Err));
    assert_eq!(compat::retry(backoff::backoff::Zero {}, op).await, Ok(7));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_old_functions_are_dropped_at_every_await_and_nothing_leaks() {
    let semaphore = &Semaphore::new(1);
    let points = drop_at_every_await(
        || {
            let mut left = 2;
            compat::retry(existing(), move || {
                left -= 1;
                let error = if left > 0 { Error::transient(()) } else { Error::permanent(()) };
                let permit = semaphore.try_acquire().unwrap();
                async move {
                    tokio::task::yield_now().await;
                    drop(permit);
                    Err::<(), _>(error)
                }
            })
        },
        async |_| assert_eq!(semaphore.available_permits(), 1),
    )
    .await;
    assert_eq!(points, 3, "two attempts that yield once, a delay");
}
