//! Five policies round an operation that is ready at once: `cargo bench -p benches --bench stack`.
//!
//! Ours: Timeout, Retry, CircuitBreaker, ConcurrencyLimit, Timeout. tower's own layers have no breaker, so theirs is one
//! policy less; tower-resilience has all five.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::pin::Pin;
use std::time::Duration;

use async_circuit::{CircuitBreaker, CircuitBreakerLayer};
use async_policy::{Failure, Policy, Timeout, TimeoutLayer};
use async_ratelimit::{ConcurrencyLimit, ConcurrencyLimitLayer};
use async_retry::{Backoff, Retry, RetryLayer};
use benches::{Table, block_on};
use tower::util::service_fn;
use tower::{Service, ServiceBuilder, ServiceExt};

const WHOLE: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(1);
const DELAY: Duration = Duration::from_millis(100);
const PERMITS: usize = 64;

type BoxError = Box<dyn Error + Send + Sync>;

/// tower's own retry with a policy that really sleeps.
#[derive(Clone)]
struct Sleeping(u32);

impl<T, E> tower::retry::Policy<u64, T, E> for Sleeping {
    type Future = Pin<Box<tokio::time::Sleep>>;

    fn retry(&mut self, _: &mut u64, result: &mut Result<T, E>) -> Option<Self::Future> {
        if result.is_ok() || self.0 == 0 {
            return None;
        }
        self.0 -= 1;
        Some(Box::pin(tokio::time::sleep(DELAY)))
    }

    fn clone_request(&mut self, request: &u64) -> Option<u64> {
        Some(*request)
    }
}

fn answer<E>(request: u64) -> Ready<Result<u64, E>> {
    ready(Ok(black_box(request)))
}

/// Calls the service n times, as a client does: ready, then call.
fn calls<S: Service<u64, Response = u64>>(service: &mut S, n: u64)
where
    S::Error: std::fmt::Debug,
{
    block_on(async {
        for i in 0..n {
            let future: S::Future = service.ready().await.unwrap().call(i);
            let _ = black_box(future.await);
        }
    });
}

fn main() {
    let mut table = Table::new("stack");

    let retry = Retry::new(Backoff::exponential(DELAY)).unwrap();
    let breaker = CircuitBreaker::new();
    let limit = ConcurrencyLimit::builder(PERMITS as u32).build().unwrap();
    let (whole, attempt) = (Timeout::new(WHOLE), Timeout::new(ATTEMPT));

    let closures = |n| {
        let stack = (&whole, &retry, &breaker, &limit, &attempt);
        block_on(async {
            for i in 0..n {
                let _ = black_box(stack.call(|| answer::<Infallible>(i)).await);
            }
        });
    };
    let layers = || {
        ServiceBuilder::new()
            .layer(TimeoutLayer::new(whole.clone()))
            .layer(RetryLayer::new(retry.clone()))
            .layer(CircuitBreakerLayer::new(breaker.clone()))
            .layer(ConcurrencyLimitLayer::new(limit.clone()))
            .layer(TimeoutLayer::new(attempt.clone()))
            .service(service_fn(answer::<Failure<Infallible>>))
    };
    let towers = || {
        ServiceBuilder::new()
            .timeout(WHOLE)
            .retry(Sleeping(2))
            .concurrency_limit(PERMITS)
            .timeout(ATTEMPT)
            .service(service_fn(answer::<BoxError>))
    };
    let resilience = || {
        use tower_resilience::bulkhead::BulkheadLayer;
        use tower_resilience::circuitbreaker::CircuitBreakerLayer;
        use tower_resilience::retry::RetryLayer;
        use tower_resilience::timelimiter::TimeLimiterLayer;
        ServiceBuilder::new()
            .layer(TimeLimiterLayer::builder().timeout_duration(WHOLE).build())
            .layer(RetryLayer::builder().max_attempts(3).exponential_backoff(DELAY).build())
            .layer(CircuitBreakerLayer::builder().build().unwrap())
            .layer(BulkheadLayer::builder().max_concurrent_calls(PERMITS).build().unwrap())
            .layer(TimeLimiterLayer::builder().timeout_duration(ATTEMPT).build())
            .service(service_fn(answer::<String>))
    };

    let mut service = towers();
    table
        .row("closure form, tower's own layers")
        .ours("family", closures)
        .peer("tower", |n| calls(&mut service, n))
        .run();
    let mut service = resilience();
    table
        .row("closure form, tower-resilience")
        .ours("family", closures)
        .peer("tower-resilience", |n| calls(&mut service, n))
        .run();
    let (mut ours, mut service) = (layers(), towers());
    table
        .row("tower form, tower's own layers")
        .ours("family", |n| calls(&mut ours, n))
        .peer("tower", |n| calls(&mut service, n))
        .run();
    let (mut ours, mut service) = (layers(), resilience());
    table
        .row("tower form, tower-resilience")
        .ours("family", |n| calls(&mut ours, n))
        .peer("tower-resilience", |n| calls(&mut service, n))
        .run();
    table.finish();
}
