use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_retry::{Backoff, Failure, Retry, RetryLayer, Verdict};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};

fn retry() -> Retry {
    Retry::new(Backoff::constant(Duration::from_millis(100))).unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_attempt_waits_for_readiness_over_a_limit_and_a_buffer() {
    let count = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&count);
    let flaky = service_fn(move |request: u32| {
        let n = seen.fetch_add(1, Relaxed);
        async move {
            tokio::task::yield_now().await;
            if n % 3 < 2 { Err(BoxError::from("down")) } else { Ok(request) }
        }
    });
    let limited =
        ServiceBuilder::new().layer(RetryLayer::new(retry())).concurrency_limit(1).service(flaky.clone());
    let buffered =
        ServiceBuilder::new().layer(RetryLayer::new(retry())).buffer(1).concurrency_limit(1).service(flaky);
    for request in 0..3 {
        assert_eq!(limited.clone().oneshot(request).await.unwrap(), request);
        assert_eq!(buffered.clone().oneshot(request).await.unwrap(), request);
    }
    assert_eq!(count.load(Relaxed), 18);
}

#[tokio::test(start_paused = true)]
async fn a_classifier_reads_the_response() {
    let count = AtomicU32::new(0);
    let layer = RetryLayer::new(retry()).with_classifier(|answer: Result<&u32, &Failure<()>>| match answer {
        Ok(status) if *status >= 500 => Verdict::Transient,
        _ => Verdict::Success,
    });
    let mut service = layer.layer_fn(|_: ()| {
        let n = count.fetch_add(1, Relaxed);
        async move { Ok::<_, Failure<()>>(if n == 0 { 503 } else { 200 }) }
    });
    assert_eq!(service.ready().await.unwrap().call(()).await, Ok(200));
}

trait LayerFn<C> {
    fn layer_fn<F>(&self, f: F) -> async_retry::RetryService<tower::util::ServiceFn<F>, C>;
}

impl<C: Clone> LayerFn<C> for RetryLayer<C> {
    fn layer_fn<F>(&self, f: F) -> async_retry::RetryService<tower::util::ServiceFn<F>, C> {
        tower::Layer::layer(self, service_fn(f))
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_the_inner_permits_come_back() {
    let semaphore = Arc::new(tokio::sync::Semaphore::new(1));
    let held = Arc::clone(&semaphore);
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(retry().with_max_attempts(NonZeroU32::new(2).unwrap())))
        .layer(tower::limit::GlobalConcurrencyLimitLayer::with_semaphore(held))
        .service(service_fn(async |()| {
            tokio::task::yield_now().await;
            Err::<(), Failure<()>>(Failure::Operation(()))
        }));
    let points = drop_at_every_await(
        || service.clone().oneshot(()),
        async |_| assert_eq!(semaphore.available_permits(), 1),
    )
    .await;
    assert_eq!(points, 3);
}
