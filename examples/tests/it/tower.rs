use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_circuit::{CircuitBreakerLayer, Mode, State};
use async_policy::{PolicyError, Timeout, TimeoutLayer};
use async_ratelimit::{ConcurrencyLimit, ConcurrencyLimitLayer, Quota, RateLimit, RateLimitLayer};
use async_retry::RetryLayer;
use tokio::time::{Instant, advance};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::closures::{breaker, every};

/// A backend that can be down, and counts what reaches it.
#[derive(Clone, Default)]
struct Backend {
    down: Arc<AtomicBool>,
    reached: Arc<AtomicU32>,
}

impl Backend {
    fn service(
        &self,
    ) -> impl Service<u32, Response = u32, Error = BoxError, Future: Send> + Clone + Send + use<> {
        let backend = self.clone();
        service_fn(move |request: u32| {
            let backend = backend.clone();
            async move {
                backend.reached.fetch_add(1, Relaxed);
                tokio::task::yield_now().await;
                if backend.down.load(Relaxed) { Err(BoxError::from("down")) } else { Ok(request) }
            }
        })
    }
}

/// Calls it well, breaks it, sees it refused, and sees it recover.
async fn opens_and_recovers<S>(backend: &Backend, breaker: &async_circuit::CircuitBreaker, service: S)
where
    S: Service<u32, Response = u32, Error = BoxError> + Clone,
{
    for request in 0..3 {
        assert_eq!(service.clone().oneshot(request).await.unwrap(), request);
    }
    backend.down.store(true, Relaxed);
    for request in 0..4 {
        service.clone().oneshot(request).await.unwrap_err();
    }
    assert_eq!(breaker.state(), State::Open);
    let reached = backend.reached.load(Relaxed);
    let refused = service.clone().oneshot(0).await.unwrap_err();
    assert!(refused.rejection().is_some(), "{refused}");
    assert_eq!(backend.reached.load(Relaxed), reached, "an open circuit lets nothing through");

    backend.down.store(false, Relaxed);
    advance(Duration::from_secs(1)).await;
    for request in 0..3 {
        assert_eq!(service.clone().oneshot(request).await.unwrap(), request);
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn ours_over_towers_limit_and_buffer() {
    let (backend, breaker) = (Backend::default(), breaker());
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Timeout::from_millis(500)))
        .layer(RetryLayer::new(every(Duration::ZERO, 2)))
        .layer(CircuitBreakerLayer::new(breaker.clone()))
        .layer(TimeoutLayer::new(Timeout::from_millis(50)))
        .buffer(1)
        .concurrency_limit(1)
        .service(backend.service());
    opens_and_recovers(&backend, &breaker, service).await;
}

#[tokio::test(start_paused = true)]
async fn towers_limit_and_buffer_over_ours() {
    let (backend, breaker) = (Backend::default(), breaker());
    let service = ServiceBuilder::new()
        .buffer(1)
        .concurrency_limit(1)
        .timeout(Duration::from_millis(500))
        // tower's time-out sets no deadline, so the retry would wait for the open circuit into it.
        .layer(RetryLayer::new(every(Duration::ZERO, 2).with_wait_for_refusals(false)))
        .layer(CircuitBreakerLayer::new(breaker.clone()))
        .layer(TimeoutLayer::new(Timeout::from_millis(50)))
        .service(backend.service());
    opens_and_recovers(&backend, &breaker, service).await;
}

#[tokio::test(start_paused = true)]
async fn ours_and_towers_in_turn_over_a_limit_of_one_of_each() {
    let (backend, breaker) = (Backend::default(), breaker());
    let limit = ConcurrencyLimit::builder(1).with_queue(16, None).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Timeout::from_millis(500)))
        .concurrency_limit(1)
        .layer(RetryLayer::new(every(Duration::ZERO, 2)))
        .buffer(4)
        .layer(CircuitBreakerLayer::new(breaker.clone()))
        .layer(ConcurrencyLimitLayer::new(limit.clone()))
        .concurrency_limit(1)
        .timeout(Duration::from_millis(50))
        .service(backend.service());
    opens_and_recovers(&backend, &breaker, service).await;
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_limit_inside_does_not_open_the_breaker() {
    let (backend, breaker) = (Backend::default(), breaker());
    let limit = ConcurrencyLimit::builder(1).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::new(breaker.clone()))
        .layer(ConcurrencyLimitLayer::new(limit.clone()))
        .service(backend.service());
    let held = limit.try_acquire().unwrap();
    for request in 0..8 {
        let refused = service.clone().oneshot(request).await.unwrap_err();
        assert!(refused.rejection().is_some(), "{refused}");
    }
    assert_eq!((breaker.state(), breaker.snapshot().failures), (State::Closed, 0));
    drop(held);
    assert_eq!(service.clone().oneshot(7).await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_outside_holds_for_a_full_limit_inside() {
    let (backend, breaker) = (Backend::default(), breaker());
    let limit = ConcurrencyLimit::builder(1).with_queue(16, None).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Timeout::from_millis(100)))
        .layer(RetryLayer::new(every(Duration::ZERO, 2)))
        .layer(CircuitBreakerLayer::new(breaker.clone()))
        .layer(RateLimitLayer::new(RateLimit::builder(Quota::per_second(10)).build().unwrap()))
        .layer(ConcurrencyLimitLayer::new(limit.clone()))
        .layer(TimeoutLayer::new(Timeout::from_millis(50)))
        .service(backend.service());
    let held = limit.try_acquire().unwrap();
    for (mode, waits) in [(Mode::Automatic, 100), (Mode::ForcedOpen, 0)] {
        breaker.set_mode(mode);
        let start = Instant::now();
        let refused = service.clone().oneshot(1).await.unwrap_err();
        assert!(refused.rejection().is_some(), "{refused}");
        assert_eq!((start.elapsed().as_millis(), limit.waiting()), (waits, 0));
    }
    breaker.set_mode(Mode::Automatic);
    drop(held);
    assert_eq!(service.oneshot(7).await.unwrap(), 7);
}

#[tokio::test]
async fn many_callers_on_two_threads_through_a_mixed_stack() {
    let (backend, breaker) = (Backend::default(), breaker());
    let service = ServiceBuilder::new()
        .buffer(8)
        .layer(RetryLayer::new(every(Duration::ZERO, 3)))
        .layer(CircuitBreakerLayer::new(breaker))
        .concurrency_limit(2)
        .service(backend.service());
    let calls: Vec<_> = (0..200).map(|request| tokio::spawn(service.clone().oneshot(request))).collect();
    for (request, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap() as usize, request);
    }
    assert_eq!(backend.reached.load(Relaxed), 200);
}
