//! Who waits for a cell in the rate layer holds nothing of the service inside.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::{Ready, poll_fn, ready};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use async_policy::testing::drop_at_every_await;
use async_policy::{Failure, PolicyError, Timeout, TimeoutLayer};
use async_ratelimit::{ConcurrencyLimit, ConcurrencyLimitLayer, Quota, RateLimit, RateLimitLayer, Reason};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::{ms, settle};

const CALLERS: usize = 10;

fn one_per_second() -> RateLimit {
    RateLimit::builder(Quota::per_second(1).with_burst(1)).with_queue(100, None).build().unwrap()
}

/// Notes who calls, and takes 600 ms.
#[derive(Clone, Default)]
struct Backend(Arc<Mutex<Vec<usize>>>);

impl Backend {
    fn service<E: Send + 'static>(
        &self,
    ) -> impl Service<usize, Response = (), Error = E, Future: Send> + Clone + Send + use<E> {
        let called = Arc::clone(&self.0);
        service_fn(move |caller| {
            called.lock().unwrap().push(caller);
            async {
                sleep(ms(600)).await;
                Ok(())
            }
        })
    }

    fn called(&self) -> Vec<usize> {
        self.0.lock().unwrap().clone()
    }
}

async fn is_ready<S: Service<usize>>(service: &mut S) -> bool {
    poll_fn(|cx| Poll::Ready(matches!(service.poll_ready(cx), Poll::Ready(Ok(()))))).await
}

/// With room for 4 inside and a cell per second, the one under way is all that takes room.
async fn nine_of_ten_wait_outside<S>(backend: &Backend, inner: S)
where
    S: Service<usize, Error: PolicyError + Debug, Response: Send, Future: Send> + Clone + Send + 'static,
{
    let (rate, start) = (one_per_second(), Instant::now());
    let service = RateLimitLayer::new(rate.clone()).layer(inner.clone());
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        callers.spawn(service.clone().oneshot(caller));
    }
    sleep(ms(500)).await;
    assert_eq!((backend.called().len(), rate.snapshot().waiting), (1, CALLERS - 1));
    let mut room = [(); 3].map(|()| inner.clone());
    for service in &mut room {
        assert!(is_ready(service).await);
    }
    drop(room);
    while let Some(answer) = callers.join_next().await {
        answer.unwrap().unwrap();
    }
    // In the order in which they came, one per second.
    assert_eq!(backend.called(), (0..CALLERS).collect::<Vec<_>>());
    assert!((9_600..9_620).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_cell_holds_no_permit_and_no_place_in_its_queue() {
    for queue in [100, 0] {
        let backend = Backend::default();
        let permits = ConcurrencyLimit::builder(4).with_queue(queue, None).build().unwrap();
        let inner = ConcurrencyLimitLayer::new(permits.clone()).layer(backend.service::<BoxError>());
        let waits = nine_of_ten_wait_outside(&backend, inner);
        let looks = async {
            sleep(ms(400)).await;
            assert_eq!((permits.in_flight(), permits.waiting()), (1, 0));
        };
        tokio::join!(waits, looks);
        assert_eq!((permits.in_flight(), permits.waiting()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_cell_holds_nothing_of_towers_limit_and_buffer() {
    let backend = Backend::default();
    let limit = ServiceBuilder::new().concurrency_limit(4).service(backend.service::<BoxError>());
    nine_of_ten_wait_outside(&backend, limit).await;
    let backend = Backend::default();
    let buffer = ServiceBuilder::new().buffer(4).service(backend.service::<BoxError>());
    nine_of_ten_wait_outside(&backend, buffer).await;
    let backend = Backend::default();
    let both = ServiceBuilder::new().buffer(4).concurrency_limit(4).service(backend.service::<BoxError>());
    nine_of_ten_wait_outside(&backend, both).await;
}

/// The permit is free when the call begins, and taken while it waits for its cell, for `millis`.
fn someone_else_takes(permits: &ConcurrencyLimit, millis: u64) {
    let permits = permits.clone();
    tokio::spawn(async move {
        sleep(ms(50)).await;
        let _permit = permits.acquire().await.unwrap();
        sleep(ms(millis)).await;
    });
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_it_gives_back_its_place_in_both_queues() {
    let rate = RateLimit::builder(Quota::per_second(10).with_burst(1)).with_queue(10, None).build().unwrap();
    let permits = ConcurrencyLimit::builder(1).with_queue(10, None).build().unwrap();
    let backend = Backend::default();
    let points = drop_at_every_await(
        || {
            rate.try_acquire().unwrap();
            someone_else_takes(&permits, 100);
            ServiceBuilder::new()
                .layer(RateLimitLayer::new(rate.clone()))
                .layer(ConcurrencyLimitLayer::new(permits.clone()))
                .service(backend.service::<BoxError>())
                .oneshot(0)
        },
        async |_| {
            assert_eq!((rate.snapshot().waiting, permits.waiting()), (0, 0));
            sleep(ms(300)).await;
            assert_eq!((permits.in_flight(), permits.waiting()), (0, 0));
        },
    )
    .await;
    // For the cell, for the permit, and in the service.
    assert_eq!(points, 3);
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_the_service_after_the_cell_keeps_to_the_deadline() {
    let rate = RateLimit::builder(Quota::per_second(10).with_burst(1)).with_queue(10, None).build().unwrap();
    let permits = ConcurrencyLimit::builder(1).with_queue(10, None).build().unwrap();
    let backend = Backend::default();
    rate.try_acquire().unwrap();
    someone_else_takes(&permits, 1_000);
    let start = Instant::now();
    let refused = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Timeout::from_millis(250)))
        .layer(RateLimitLayer::new(rate.clone()))
        .layer(ConcurrencyLimitLayer::new(permits.clone()))
        .service(backend.service::<BoxError>())
        .oneshot(0)
        .await
        .unwrap_err();
    assert_eq!(refused.rejection().unwrap().reason(), Reason::DeadlineTooClose);
    assert!((250..=251).contains(&start.elapsed().as_millis()));
    assert_eq!((permits.waiting(), backend.called().len()), (0, 0));
}

/// Holds its clones to tower's contract: only the instance that was polled ready is called. Tells who is in the queue of the limit
/// when a ready instance is dropped.
struct Strict {
    ready: bool,
    gone: Arc<AtomicBool>,
    rate: RateLimit,
    dropped: Arc<Mutex<Vec<usize>>>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        let (gone, dropped) = (Arc::clone(&self.gone), Arc::clone(&self.dropped));
        Self { ready: false, gone, rate: self.rate.clone(), dropped }
    }
}

impl Drop for Strict {
    fn drop(&mut self) {
        if self.ready {
            self.dropped.lock().unwrap().push(self.rate.snapshot().waiting);
        }
    }
}

impl Service<()> for Strict {
    type Response = ();
    type Error = Failure<&'static str>;
    type Future = Ready<Result<(), Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.gone.load(Ordering::Relaxed) {
            return Poll::Ready(Err(Failure::Operation("gone")));
        }
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without having been ready");
        ready(Ok(()))
    }
}

fn strict() -> (Strict, impl Service<(), Response = (), Error = Failure<&'static str>> + Clone) {
    let rate = one_per_second();
    let strict = Strict { ready: false, gone: Arc::default(), rate: rate.clone(), dropped: Arc::default() };
    (strict.clone(), RateLimitLayer::new(rate).layer(strict))
}

#[tokio::test(start_paused = true)]
async fn each_call_is_on_an_instance_that_was_polled_ready() {
    let (strict, mut service) = strict();
    for _ in 0..3 {
        service.ready().await.unwrap().call(()).await.unwrap();
    }
    // The first had its cell at once; the others gave back what they had reserved, once they had their place in the queue.
    assert_eq!(*strict.dropped.lock().unwrap(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_readiness_after_the_cell_is_the_answer_of_the_call() {
    let (strict, mut service) = strict();
    service.ready().await.unwrap().call(()).await.unwrap();
    let mut response = pin!(service.ready().await.unwrap().call(()));
    assert!(poll_fn(|cx| Poll::Ready(response.as_mut().poll(cx).is_pending())).await);
    strict.gone.store(true, Ordering::Relaxed);
    assert_eq!(response.await, Err(Failure::Operation("gone")));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_refused_holds_nothing_while_the_response_is_kept() {
    let rate =
        RateLimit::builder(Quota::per_second(10).with_burst(1)).with_queue(10, ms(500)).build().unwrap();
    let permits = ConcurrencyLimit::builder(1).build().unwrap();
    let mut service = ServiceBuilder::new()
        .layer(RateLimitLayer::new(rate.clone()))
        .layer(ConcurrencyLimitLayer::new(permits.clone()))
        .map_err(Failure::Operation)
        .service(service_fn(async |(): ()| Ok::<_, Infallible>(())));
    rate.try_acquire().unwrap();
    let mut response = pin!(service.ready().await.unwrap().call(()));
    assert_eq!(permits.in_flight(), 1);
    assert!(poll_fn(|cx| Poll::Ready(response.as_mut().poll(cx).is_pending())).await);
    settle().await;
    assert_eq!((permits.in_flight(), rate.snapshot().waiting), (0, 1));
    // Slower than anybody may wait.
    rate.set_quota(Quota::per_hour(1)).unwrap();
    let refused = response.as_mut().await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().reason(), Reason::WaitTooLong);
    assert_eq!((permits.in_flight(), rate.snapshot().waiting), (0, 0));
}
