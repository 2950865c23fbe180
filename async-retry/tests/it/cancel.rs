use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_retry::{Backoff, Failure, Policy, Retry, RetryExt, Verdict};
use tokio::sync::Semaphore;

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_nothing_leaks() {
    let semaphore = Semaphore::new(1);
    let retry = Retry::new(Backoff::constant(Duration::from_millis(10))).unwrap();
    let points = drop_at_every_await(
        || {
            retry.call(async || {
                let _permit = semaphore.acquire().await;
                tokio::task::yield_now().await;
                Err::<(), _>(())
            })
        },
        async |_| assert_eq!(semaphore.available_permits(), 1),
    )
    .await;
    assert_eq!(points, 5, "three attempts that yield once, two delays");
}

#[tokio::test(start_paused = true)]
async fn every_other_shape_too() {
    let semaphore = Semaphore::new(1);
    let retry = Retry::new(Backoff::constant(Duration::from_millis(10)))
        .unwrap()
        .with_attempt_timeout(Duration::from_millis(5));
    let attempt = async || {
        let _permit = semaphore.acquire().await;
        tokio::task::yield_now().await;
        Err::<(), _>(())
    };
    let check = async |_| assert_eq!(semaphore.available_permits(), 1);
    assert_eq!(drop_at_every_await(|| retry.call_mut(&attempt), check).await, 5);
    assert_eq!(drop_at_every_await(|| retry.call_mut_with(&attempt, |_| Verdict::Transient), check).await, 5);
    assert_eq!(drop_at_every_await(|| retry.call_lending(&attempt), check).await, 5);
    assert_eq!(drop_at_every_await(|| retry.call_with_report(&attempt), check).await, 5);
    let refusable = async || attempt().await.map_err(Failure::Operation);
    assert_eq!(drop_at_every_await(|| retry.execute(&refusable), check).await, 5);
    assert_eq!(drop_at_every_await(|| retry.execute_with_report(&refusable), check).await, 5);
    assert_eq!(drop_at_every_await(|| (&attempt).retry(&retry), check).await, 5);
}
