//! Retry: `cargo bench -p benches --bench retry`.

use std::future::ready;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::Duration;

use async_retry::{Backoff, Failure, Policy, Retry, RetryLayer};
use backon::Retryable;
use benches::{Table, block_on};
use tower::util::service_fn;
use tower::{Service, ServiceBuilder, ServiceExt};

/// Fails twice, then succeeds, again and again.
#[derive(Default)]
struct TwiceBad(std::sync::atomic::AtomicU32);

impl TwiceBad {
    fn next(&self) -> Result<u64, ()> {
        use std::sync::atomic::Ordering::Relaxed;
        // One thread only: cheaper than an atomic addition.
        let n = self.0.load(Relaxed);
        self.0.store(n.wrapping_add(1), Relaxed);
        if n % 3 == 2 { Ok(7) } else { Err(()) }
    }
}

/// tower's own retry with a policy that really sleeps.
#[derive(Clone)]
struct Sleeping {
    left: u32,
    delay: Duration,
}

impl<R: Clone, T, E> tower::retry::Policy<R, T, E> for Sleeping {
    type Future = std::pin::Pin<Box<tokio::time::Sleep>>;

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

fn main() {
    let mut table = Table::new("retry");
    let delay = Duration::from_millis(100);

    let retry = Retry::new(Backoff::exponential(delay)).unwrap();
    table
        .row("success at first try")
        .ours("async-retry", |n| {
            block_on(async {
                for i in 0..n {
                    let _ = black_box(retry.call(|| ready(Ok::<_, ()>(black_box(i)))).await);
                }
            });
        })
        .peer("backon", |n| {
            block_on(async {
                let builder = backon::ExponentialBuilder::default();
                for i in 0..n {
                    let _ = black_box((|| ready(Ok::<_, ()>(black_box(i)))).retry(builder).await);
                }
            });
        })
        .peer("tokio-retry2", |n| {
            block_on(async {
                for i in 0..n {
                    let strategy = tokio_retry2::strategy::ExponentialBackoff::from_millis(100).take(2);
                    let call = tokio_retry2::Retry::spawn(strategy, || {
                        ready(Ok::<_, tokio_retry2::RetryError<()>>(black_box(i)))
                    });
                    let _ = black_box(call.await);
                }
            });
        })
        .peer("backoff", |n| {
            block_on(async {
                for i in 0..n {
                    let policy = backoff::ExponentialBackoff::default();
                    let _ = black_box(
                        backoff::future::retry(policy, || ready(Ok::<_, backoff::Error<()>>(black_box(i))))
                            .await,
                    );
                }
            });
        })
        .run();

    let none = Retry::new(Backoff::none()).unwrap().with_max_attempts(NonZeroU32::new(3).unwrap());
    let (a, b, c) = (TwiceBad::default(), TwiceBad::default(), TwiceBad::default());
    table
        .row("two failures, no delay")
        .ours("async-retry", |n| {
            block_on(async {
                for _ in 0..n {
                    let _ = black_box(none.call(|| ready(a.next())).await);
                }
            });
        })
        .peer("backon", |n| {
            block_on(async {
                let builder = backon::ConstantBuilder::new().with_delay(Duration::ZERO).with_max_times(2);
                for _ in 0..n {
                    let _ = black_box((|| ready(b.next())).retry(builder).await);
                }
            });
        })
        .peer("tokio-retry2", |n| {
            block_on(async {
                for _ in 0..n {
                    let strategy = std::iter::repeat_n(Duration::ZERO, 2);
                    let call = tokio_retry2::Retry::spawn(strategy, || {
                        ready(c.next().map_err(tokio_retry2::RetryError::transient))
                    });
                    let _ = black_box(call.await);
                }
            });
        })
        .run();

    let inner = || service_fn(|n: u64| ready(Ok::<_, Failure<()>>(black_box(n))));
    let mut ours = ServiceBuilder::new().layer(RetryLayer::new(retry.clone())).service(inner());
    let mut towers = ServiceBuilder::new().retry(Sleeping { left: 2, delay }).service(inner());
    table
        .row("tower success")
        .ours("async-retry", |n| {
            block_on(async {
                for i in 0..n {
                    let _ = black_box(ours.ready().await.unwrap().call(i).await);
                }
            });
        })
        .peer("tower", |n| {
            block_on(async {
                for i in 0..n {
                    let _ = black_box(towers.ready().await.unwrap().call(i).await);
                }
            });
        })
        .run();
    table.finish();
}
