//! Retry: `cargo bench -p benches --bench retry`.

use std::future::ready;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::Duration;

use async_retry::{Backoff, Failure, Hedge, Policy, Retry, RetryLayer};
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

/// An error as tower-resilience wants it.
#[derive(Clone, Debug)]
struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Refused {}

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
    let bare = || service_fn(|n: u64| ready(Ok::<_, Refused>(black_box(n))));
    let mut ours = ServiceBuilder::new().layer(RetryLayer::new(retry.clone())).service(inner());
    let mut resilience = ServiceBuilder::new()
        .layer(
            tower_resilience::retry::RetryLayer::<u64, u64, Refused>::builder()
                .max_attempts(3)
                .exponential_backoff(delay)
                .build(),
        )
        .service(bare());
    let context = seatbelt::ResilienceContext::new(block_on(async { tick::Clock::new_tokio() }));
    let recovery = |result: &Result<u64, ()>, _: seatbelt::retry::RecoveryArgs<'_>| match result {
        Ok(_) => seatbelt::RecoveryInfo::never(),
        Err(()) => seatbelt::RecoveryInfo::retry(),
    };
    let belt = layered::Stack::into_service((
        seatbelt::retry::Retry::layer("retry", &context).clone_input().recovery_with(recovery),
        layered::Execute::new(|n: u64| ready(Ok::<u64, ()>(black_box(n)))),
    ));
    table
        .row("service success, the whole families")
        .ours("async-retry", |n| {
            block_on(async {
                for i in 0..n {
                    let _ = black_box(ours.ready().await.unwrap().call(i).await);
                }
            });
        })
        .peer("tower-resilience", |n| {
            block_on(async {
                for i in 0..n {
                    let _ = black_box(resilience.ready().await.unwrap().call(i).await);
                }
            });
        })
        .peer("seatbelt", |n| {
            block_on(async {
                for i in 0..n {
                    let _ = black_box(layered::Service::execute(&belt, i).await);
                }
            });
        })
        .run();

    let hedge = Hedge::after(delay);
    let mut towers = tower::hedge::Hedge::new(bare(), Always, 10, 0.9, Duration::from_secs(60));
    let mut resilience = ServiceBuilder::new()
        .layer(tower_resilience::hedge::HedgeLayer::builder().delay(delay).max_hedged_attempts(2).build())
        .service(bare());
    let recovery = |result: &Result<u64, ()>, _: seatbelt::hedging::RecoveryArgs<'_>| match result {
        Ok(_) => seatbelt::RecoveryInfo::never(),
        Err(()) => seatbelt::RecoveryInfo::retry(),
    };
    let belt = layered::Stack::into_service((
        seatbelt::hedging::Hedging::layer("hedge", &context)
            .clone_input()
            .recovery_with(recovery)
            .hedging_delay(delay),
        layered::Execute::new(|n: u64| ready(Ok::<u64, ()>(black_box(n)))),
    ));
    table
        .row("hedge not fired")
        .ours("async-retry", |n| {
            block_on(async {
                for i in 0..n {
                    let _ = black_box(hedge.call(|| ready(Ok::<_, ()>(black_box(i)))).await);
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
        .peer("tower-resilience", |n| {
            block_on(async {
                for i in 0..n {
                    let _ = black_box(resilience.ready().await.unwrap().call(i).await);
                }
            });
        })
        .peer("seatbelt", |n| {
            block_on(async {
                for i in 0..n {
                    let _ = black_box(layered::Service::execute(&belt, i).await);
                }
            });
        })
        .run();
    table.finish();
}
