//! Retry and hedge: `cargo bench -p benches --bench retry`.
//!
//! Each row has the peers that can do its work in that shape: a call borrows its policy, a tower service gives its future away.

use std::future::ready;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_retry::{Backoff, Failure, Hedge, HedgeLayer, Policy, Retry, RetryLayer};
use backon::Retryable;
use benches::{Table, block_on};
use tokio::time::Sleep;
use tokio_retry2::{RetryError, strategy};
use tower::util::service_fn;
use tower::{BoxError, Layer, Service, ServiceExt};

/// A call of each of `0..n`.
macro_rules! calls {
    (|$i:ident| $call:expr) => {
        |n| {
            block_on(async {
                for $i in 0..n {
                    let _ = black_box($call.await);
                }
            })
        }
    };
}

/// The same through a tower service.
macro_rules! served {
    ($service:expr) => {{
        let mut service = $service;
        move |n| {
            block_on(async {
                for i in 0..n {
                    let _ = black_box(service.ready().await.unwrap().call(i).await);
                }
            })
        }
    }};
}

/// What is called: succeeds at once.
fn good<E>(n: u64) -> std::future::Ready<Result<u64, E>> {
    ready(Ok(black_box(n)))
}

/// Fails twice, then succeeds, again and again.
fn flaky<E: 'static>(
    bad: impl Fn() -> E + Copy + 'static,
) -> impl Fn() -> std::future::Ready<Result<u64, E>> + Copy {
    // One thread only: cheaper than an atomic addition. Leaked, because services are cloned.
    let count: &'static AtomicU32 = Box::leak(Box::default());
    move || {
        let n = count.load(Relaxed);
        count.store(n.wrapping_add(1), Relaxed);
        ready(if n % 3 == 2 { Ok(7) } else { Err(bad()) })
    }
}

/// tower's own retry with a policy that really sleeps.
#[derive(Clone)]
struct Sleeping {
    left: u32,
    delay: Duration,
}

impl<R: Clone, T, E> tower::retry::Policy<R, T, E> for Sleeping {
    type Future = Pin<Box<Sleep>>;

    fn retry(&mut self, _: &mut R, result: &mut Result<T, E>) -> Option<Self::Future> {
        if result.is_ok() || self.left == 0 {
            return None;
        }
        self.left -= 1;
        Some(Box::pin(tokio::time::sleep(self.delay)))
    }

    fn clone_request(&mut self, request: &R) -> Option<R> {
        Some(request.clone())
    }
}

/// tower's hedge repeats everything.
#[derive(Clone)]
struct Always;

impl<R: Clone> tower::hedge::Policy<R> for Always {
    fn clone_request(&self, request: &R) -> Option<R> {
        Some(request.clone())
    }

    fn can_retry(&self, _: &R) -> bool {
        true
    }
}

/// An error as tower-resilience wants it.
#[derive(Clone, Debug)]
struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Refused {}

type Resilience = tower_resilience::retry::RetryLayer<u64, u64, Refused>;

type Belt = seatbelt::ResilienceContext<u64, Result<u64, ()>>;

/// What seatbelt is told of a result.
fn recovery<T, E>(result: &Result<T, E>) -> seatbelt::RecoveryInfo {
    if result.is_ok() { seatbelt::RecoveryInfo::never() } else { seatbelt::RecoveryInfo::retry() }
}

fn main() {
    let mut table = Table::new("retry");
    let delay = Duration::from_millis(100);
    let belt: Belt = seatbelt::ResilienceContext::new(block_on(async { tick::Clock::new_tokio() }));
    let belted = |delay| {
        seatbelt::retry::Retry::layer("retry", &belt)
            .clone_input()
            .recovery_with(|result, _| recovery(result))
            .base_delay(delay)
            .max_retry_attempts(2)
    };
    let hedged = || {
        seatbelt::hedging::Hedging::layer("hedge", &belt)
            .clone_input()
            .recovery_with(|result, _| recovery(result))
            .hedging_delay(delay)
    };
    let resilience = |delay| Resilience::builder().max_attempts(3).fixed_backoff(delay).build();

    let retry = Retry::new(Backoff::exponential(delay)).unwrap();
    let builder = backon::ExponentialBuilder::default();
    let seatbelt = layered::Layer::layer(&belted(delay), layered::Execute::new(good::<()>));
    table
        .row("success at first try")
        .ours("async-retry", calls!(|i| retry.call(|| good::<()>(i))))
        .peer("backon", calls!(|i| (|| good::<()>(i)).retry(builder)))
        .peer(
            "tokio-retry2",
            calls!(|i| {
                let delays = strategy::ExponentialBackoff::from_millis(100).take(2);
                tokio_retry2::Retry::spawn(delays, || good::<RetryError<()>>(i))
            }),
        )
        .peer(
            "backoff",
            calls!(|i| {
                let policy = backoff::ExponentialBackoff::default();
                backoff::future::retry(policy, || good::<backoff::Error<()>>(i))
            }),
        )
        .peer("seatbelt", calls!(|i| layered::Service::execute(&seatbelt, i)))
        .run();

    let none = Retry::new(Backoff::none()).unwrap();
    let builder = backon::ConstantBuilder::new().with_delay(Duration::ZERO).with_max_times(2);
    let (a, b, c) = (flaky(|| ()), flaky(|| ()), flaky(|| RetryError::transient(())));
    let (d, e) = (flaky(|| backoff::Error::transient(())), flaky(|| ()));
    let seatbelt = layered::Layer::layer(&belted(Duration::ZERO), layered::Execute::new(move |_: u64| e()));
    table
        .row("two failures, no delay")
        .ours("async-retry", calls!(|_i| none.call(a)))
        .peer("backon", calls!(|_i| b.retry(builder)))
        .peer(
            "tokio-retry2",
            calls!(|_i| tokio_retry2::Retry::spawn(std::iter::repeat_n(Duration::ZERO, 2), c)),
        )
        .peer("backoff", calls!(|_i| backoff::future::retry(backoff::backoff::Zero {}, d)))
        .peer("seatbelt", calls!(|i| layered::Service::execute(&seatbelt, i)))
        .run();

    // The same service for both: its error has room for a refusal.
    table
        .row("tower success")
        .ours("async-retry", served!(RetryLayer::new(retry.clone()).layer(service_fn(good::<Failure<()>>))))
        .peer(
            "tower",
            served!(
                tower::retry::RetryLayer::new(Sleeping { left: 2, delay })
                    .layer(service_fn(good::<Failure<()>>))
            ),
        )
        .peer("tower-resilience", served!(resilience(delay).layer(service_fn(good::<Refused>))))
        .peer("seatbelt", served!(layered::Layer::layer(&belted(delay), service_fn(good::<()>))))
        .run();

    // The same again with the error that tower's own layers have.
    table
        .row("tower success, boxed error")
        .ours("async-retry", served!(RetryLayer::new(retry).layer(service_fn(good::<BoxError>))))
        .peer(
            "tower",
            served!(
                tower::retry::RetryLayer::new(Sleeping { left: 2, delay })
                    .layer(service_fn(good::<BoxError>))
            ),
        )
        .run();

    let (a, b) = (flaky(|| Failure::Operation(())), flaky(|| Failure::Operation(())));
    let (c, d) = (flaky(|| Refused), flaky(|| ()));
    table
        .row("tower, two failures, no delay")
        .ours("async-retry", served!(RetryLayer::new(none).layer(service_fn(move |_: u64| a()))))
        .peer(
            "tower",
            served!(
                tower::retry::RetryLayer::new(Sleeping { left: 2, delay: Duration::ZERO })
                    .layer(service_fn(move |_: u64| b()))
            ),
        )
        .peer("tower-resilience", served!(resilience(Duration::ZERO).layer(service_fn(move |_: u64| c()))))
        .peer(
            "seatbelt",
            served!(layered::Layer::layer(&belted(Duration::ZERO), service_fn(move |_: u64| d()))),
        )
        .run();

    let hedge = Hedge::after(delay);
    let seatbelt = layered::Layer::layer(&hedged(), layered::Execute::new(good::<()>));
    table
        .row("hedge not fired")
        .ours("async-retry", calls!(|i| hedge.call(|| good::<()>(i))))
        .peer("seatbelt", calls!(|i| layered::Service::execute(&seatbelt, i)))
        .run();

    let resilience =
        tower_resilience::hedge::HedgeLayer::builder().delay(delay).max_hedged_attempts(2).build();
    table
        .row("tower hedge not fired")
        .ours("async-retry", served!(HedgeLayer::new(hedge.clone()).layer(service_fn(good::<Failure<()>>))))
        .peer(
            "tower",
            served!(tower::hedge::Hedge::new(
                service_fn(good::<Refused>),
                Always,
                10,
                0.9,
                Duration::from_secs(60)
            )),
        )
        .peer("tower-resilience", served!(resilience.layer(service_fn(good::<Refused>))))
        .peer("seatbelt", served!(layered::Layer::layer(&hedged(), service_fn(good::<()>))))
        .run();
    table.finish();
}
