//! Limits on concurrency and on rate: `cargo bench -p benches --bench limit`.

use std::convert::Infallible;
use std::future::{Future, poll_fn, ready};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use async_policy::Failure;
use async_ratelimit::{
    ConcurrencyLimit, ConcurrencyLimitLayer, KeyedConcurrencyLimit, KeyedRateLimit, Policy, Quota, RateLimit,
    RateLimitLayer,
};
use benches::{Table, block_on, note, on_threads};
use tokio::sync::Semaphore;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

/// A rate that no bench reaches.
const BILLION: u32 = 1_000_000_000;

/// Calls per thread and round, so many that the start of the threads does not count.
const THREADED: u64 = 500_000;

fn main() {
    let mut table = Table::new("limit");
    permits(&mut table);
    rates(&mut table);
    keyed(&mut table);
    towers(&mut table);
    herd(&mut table);
    table.finish();
}

/// Does `work` so many times.
fn repeat(work: impl Fn(u64)) -> impl Fn(u64) {
    move |n| (0..n).for_each(&work)
}

/// Does `work` so many times on a runtime, each after the other.
fn awaited(work: impl AsyncFn(u64)) -> impl Fn(u64) {
    move |n| {
        block_on(async {
            for i in 0..n {
                work(i).await;
            }
        });
    }
}

type Work<'a> = &'a (dyn Fn(u64) + Sync);

/// One row, and the same with two threads.
fn alone_and_together(
    table: &mut Table,
    names: [&'static str; 2],
    ours: Work<'_>,
    peers: &[(&'static str, Work<'_>)],
) {
    let [alone, together] = names;
    let row = table.row(alone).ours("async-ratelimit", ours);
    peers.iter().fold(row, |row, (name, peer)| row.peer(name, peer)).run();
    let row = table.row(together).fixed(THREADED).ours("async-ratelimit", |n| on_threads(2, n, ours));
    peers.iter().fold(row, |row, (name, peer)| row.peer(name, move |n| on_threads(2, n, peer))).run();
}

fn permits(table: &mut Table) {
    let ours = ConcurrencyLimit::builder(100).with_queue(1_000, None).build().unwrap();
    let tokio = Semaphore::new(100);
    alone_and_together(
        table,
        ["permit, acquire", "permit, acquire, 2 threads"],
        &awaited(async |_| drop(black_box(ours.acquire().await.unwrap()))),
        &[("tokio semaphore", &awaited(async |_| drop(black_box(tokio.acquire().await.unwrap()))))],
    );
    alone_and_together(
        table,
        ["permit, try", "permit, try, 2 threads"],
        &repeat(|_| drop(black_box(ours.try_acquire().unwrap()))),
        &[("tokio semaphore", &repeat(|_| drop(black_box(tokio.try_acquire().unwrap()))))],
    );
    let owned = Arc::new(Semaphore::new(100));
    table
        .row("permit, owned")
        .ours("async-ratelimit", awaited(async |_| drop(black_box(ours.acquire_owned().await.unwrap()))))
        .peer(
            "tokio semaphore",
            awaited(async |_| drop(black_box(Arc::clone(&owned).acquire_owned().await.unwrap()))),
        )
        .run();

    // Two tasks on one thread that hand one permit to and fro: each acquire waits.
    let one = ConcurrencyLimit::builder(1).with_queue(10, None).build().unwrap();
    let tokio_one = Semaphore::new(1);
    let side = async |n| {
        for _ in 0..n {
            let _permit = one.acquire().await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let tokio_side = async |n| {
        for _ in 0..n {
            let _permit = tokio_one.acquire().await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    table
        .row("permit, handed over")
        .ours("async-ratelimit", |n| block_on(async { _ = tokio::join!(side(n), side(n)) }))
        .peer("tokio semaphore", |n| block_on(async { _ = tokio::join!(tokio_side(n), tokio_side(n)) }))
        .run();
}

fn rates(table: &mut Table) {
    let ours = RateLimit::builder(Quota::per_second(BILLION)).with_queue(1_000, None).build().unwrap();
    let governor =
        governor::RateLimiter::direct(governor::Quota::per_second(NonZeroU32::new(BILLION).unwrap()));
    let governor_check = repeat(|_| black_box(governor.check()).unwrap());
    let leaky = leaky_bucket::RateLimiter::builder()
        .initial(BILLION as usize)
        .max(BILLION as usize)
        .refill(BILLION as usize)
        .build();
    alone_and_together(
        table,
        ["rate, check", "rate, check, 2 threads"],
        &repeat(|_| black_box(ours.try_acquire()).unwrap()),
        &[
            ("governor", &governor_check),
            ("leaky-bucket", &repeat(|_| assert!(black_box(leaky.try_acquire(1))))),
        ],
    );

    let changed = RateLimit::builder(Quota::per_second(1)).build().unwrap();
    changed.set_quota(Quota::per_second(BILLION)).unwrap();
    table
        .row("rate, check after a change of quota")
        .ours("async-ratelimit", repeat(|_| black_box(changed.try_acquire()).unwrap()))
        .peer("governor", &governor_check)
        .run();

    let hourly = RateLimit::builder(Quota::per_hour(1)).build().unwrap();
    hourly.try_acquire().unwrap();
    let governor_hourly = governor::RateLimiter::direct(governor::Quota::per_hour(NonZeroU32::MIN));
    governor_hourly.check().unwrap();
    table
        .row("rate, refusal with its wait")
        .ours(
            "async-ratelimit",
            repeat(|_| assert!(black_box(hourly.try_acquire().unwrap_err().retry_after()).is_some())),
        )
        .peer(
            "governor",
            repeat(|_| {
                use governor::clock::Clock as _;
                let until = governor_hourly.check().unwrap_err();
                black_box(until.wait_time_from(governor_hourly.clock().now()));
            }),
        )
        .run();

    table
        .row("rate, acquire")
        .ours("async-ratelimit", awaited(async |_| black_box(ours.acquire().await).unwrap()))
        .peer("governor until_ready", awaited(async |_| governor.until_ready().await))
        .peer("leaky-bucket", awaited(async |_| leaky.acquire_one().await))
        .run();

    table
        .row("rate, policy")
        .ours(
            "async-ratelimit",
            awaited(async |i| _ = black_box(ours.call(|| ready(Ok::<_, ()>(black_box(i)))).await)),
        )
        .peer(
            "governor + call",
            awaited(async |i| {
                if governor.check().is_ok() {
                    let _ = black_box(ready(Ok::<_, ()>(black_box(i))).await);
                }
            }),
        )
        .run();
}

fn keyed(table: &mut Table) {
    const KEYS: u64 = 10_000;
    let ours = KeyedRateLimit::<u64>::builder(Quota::per_second(BILLION)).build().unwrap();
    let governor =
        governor::RateLimiter::dashmap(governor::Quota::per_second(NonZeroU32::new(BILLION).unwrap()));
    // Keys in an order without neighbours.
    let key = |i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15) % KEYS;
    alone_and_together(
        table,
        ["keyed check", "keyed check, 2 threads"],
        &repeat(|i| black_box(ours.try_acquire(&key(i))).unwrap()),
        &[("governor", &repeat(|i| black_box(governor.check_key(&key(i))).unwrap()))],
    );

    let names: Vec<String> = (0..KEYS).map(|i| format!("client-{i:08}.example.org")).collect();
    let ours = KeyedRateLimit::<str>::builder(Quota::per_second(BILLION)).build().unwrap();
    let governor =
        governor::RateLimiter::dashmap(governor::Quota::per_second(NonZeroU32::new(BILLION).unwrap()));
    table
        .row("keyed check, names")
        .ours("async-ratelimit", repeat(|i| black_box(ours.try_acquire(&names[key(i) as usize])).unwrap()))
        .peer("governor", repeat(|i| black_box(governor.check_key(&names[key(i) as usize])).unwrap()))
        .run();

    // Every key is new and none comes twice, as an attacker would have it.
    let hour = governor::Quota::per_hour(NonZeroU32::MIN);
    table
        .row("10 million keys")
        .fixed(10_000_000)
        .rounds(1)
        .ours("async-ratelimit", |n| {
            let bytes = kept(|| {
                let limit = KeyedRateLimit::<u64>::builder(Quota::per_hour(1))
                    .with_max_keys(1_000_000)
                    .build()
                    .unwrap();
                (0..n).for_each(|i| black_box(limit.try_acquire(&i)).unwrap());
                limit.len()
            });
            assert!(bytes <= 64 * 1_000_000 + 65_536, "above the bound that the docs state");
        })
        .peer("governor", |n| {
            kept(|| {
                let limit = governor::RateLimiter::dashmap(hour);
                (0..n).for_each(|i| black_box(limit.check_key(&i)).unwrap());
                limit.len()
            });
        })
        .run();

    let ours = KeyedConcurrencyLimit::<u64>::builder(10).build().unwrap();
    table
        .row("keyed permit")
        .ours("async-ratelimit", repeat(|i| drop(black_box(ours.try_acquire(&key(i)).unwrap()))))
        .run();
}

/// Notes how many keys are kept in the end, and in how much memory at most.
fn kept(fill: impl FnOnce() -> usize) -> u64 {
    let mut keys = 0;
    let counted = allocation_counter::measure(|| keys = fill());
    note("keys kept", keys as f64);
    note("MB at most", counted.bytes_max as f64 / 1e6);
    counted.bytes_max
}

/// `n` calls of a service that is its own readiness's owner.
async fn serve<S: Service<u64, Response = u64>>(service: &mut S, n: u64) {
    for i in 0..n {
        let Ok(ready) = service.ready().await else { panic!("not ready") };
        let Ok(_) = black_box(ready.call(black_box(i)).await) else { panic!("failed") };
    }
}

/// The same by a clone on each of two threads.
fn shared_by_two<S>(service: &S) -> impl Fn(u64)
where
    S: Service<u64, Response = u64> + Clone + Sync,
{
    move |n| on_threads(2, n, |n| block_on(serve(&mut service.clone(), n)))
}

fn echo(i: u64) -> std::future::Ready<Result<u64, Failure<Infallible>>> {
    ready(Ok(i))
}

fn towers(table: &mut Table) {
    let limit = ConcurrencyLimit::builder(100).with_queue(1_000, None).build().unwrap();
    let mut ours = ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(limit)).service(service_fn(echo));
    let mut towers = ServiceBuilder::new().concurrency_limit(100).service(service_fn(echo));
    let mut resilience = ServiceBuilder::new()
        .layer(
            tower_resilience::bulkhead::BulkheadLayer::builder().max_concurrent_calls(100).build().unwrap(),
        )
        .map_err(|_: Failure<Infallible>| std::io::Error::other("never"))
        .service(service_fn(echo));
    table
        .row("tower, concurrency")
        .ours("async-ratelimit", |n| block_on(serve(&mut ours, n)))
        .peer("tower", |n| block_on(serve(&mut towers, n)))
        .peer("tower-resilience", |n| block_on(serve(&mut resilience, n)))
        .run();
    table
        .row("tower, concurrency, 2 threads")
        .fixed(THREADED)
        .ours("async-ratelimit", shared_by_two(&ours))
        .peer("tower", shared_by_two(&towers))
        .peer("tower-resilience", shared_by_two(&resilience))
        .run();

    // Tower's own is a fixed window and cannot be cloned: to share it, one puts it behind a buffer.
    let rate = RateLimit::builder(Quota::per_second(BILLION)).build().unwrap();
    let mut ours = ServiceBuilder::new().layer(RateLimitLayer::new(rate)).service(service_fn(echo));
    let hour = Duration::from_secs(3600);
    let mut towers =
        block_on(async { ServiceBuilder::new().rate_limit(u64::MAX, hour).service(service_fn(echo)) });
    let mut shared = block_on(async {
        ServiceBuilder::new().buffer(100).rate_limit(u64::MAX, hour).service(service_fn(echo))
    });
    let mut resilience = ServiceBuilder::new()
        .layer(
            tower_resilience::ratelimiter::RateLimiterLayer::builder()
                .limit_for_period(usize::MAX)
                .refresh_period(hour)
                .build()
                .unwrap(),
        )
        .map_err(|_: Failure<Infallible>| std::io::Error::other("never"))
        .service(service_fn(echo));
    table
        .row("tower, rate")
        .ours("async-ratelimit", |n| block_on(serve(&mut ours, n)))
        .peer("tower", |n| block_on(serve(&mut towers, n)))
        .peer("tower-resilience", |n| block_on(serve(&mut resilience, n)))
        .run();
    table
        .row("tower, rate shared by clones")
        .ours("async-ratelimit", |n| block_on(serve(&mut ours, n)))
        .peer("tower behind its buffer", |n| block_on(serve(&mut shared, n)))
        .peer("tower-resilience", |n| block_on(serve(&mut resilience, n)))
        .run();
    table
        .row("tower, rate shared by clones, 2 threads")
        .fixed(THREADED)
        .ours("async-ratelimit", shared_by_two(&ours))
        .peer("tower-resilience", shared_by_two(&resilience))
        .run();
}

const WAITERS: u64 = 10_000;
const RATE: u32 = 50_000;
const BURST: u32 = 100;

/// When one of a crowd came, which is in its first poll, and when it went, which is in its last. Each time is the begin and the end of that poll, by
/// a clock that counts such events.
#[derive(Clone, Copy)]
struct Visit {
    came: (u64, u64),
    went: (u64, u64),
}

/// All waiters come at once; who came first should go first. Notes what it cost: percent of the ideal time, percent of pairs
/// granted in the wrong order, polls per waiter.
///
/// A pair is in the wrong order if one had come before the other began to, and began to go when the other had gone. What overlaps on two
/// threads has no order from outside, and is not counted for anybody.
fn crowd<L: Send + Sync + 'static, F: Future<Output = ()> + Send + 'static>(
    threads: usize,
    limiter: L,
    wait: impl Fn(Arc<L>) -> F + Copy + Send + 'static,
) {
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        _ => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    };
    let limiter = Arc::new(limiter);
    let [events, polls] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let started = Instant::now();
    let visits: Vec<Visit> = runtime.unwrap().block_on(async {
        let tasks: Vec<_> = (0..WAITERS)
            .map(|_| {
                let (limiter, events, polls) = (limiter.clone(), events.clone(), polls.clone());
                tokio::spawn(async move {
                    let mut wait = pin!(wait(limiter));
                    let mut came = None;
                    poll_fn(|cx| {
                        polls.fetch_add(1, Relaxed);
                        let began = events.fetch_add(1, SeqCst);
                        let poll = wait.as_mut().poll(cx);
                        let now = (began, events.fetch_add(1, SeqCst));
                        let came = *came.get_or_insert(now);
                        poll.map(|()| Visit { came, went: now })
                    })
                    .await
                })
            })
            .collect();
        let mut visits = Vec::new();
        for task in tasks {
            visits.push(task.await.unwrap());
        }
        visits
    });
    let took = started.elapsed();
    let ideal = f64::from(WAITERS as u32 - BURST) / f64::from(RATE);
    note("of ideal", took.as_secs_f64() / ideal);
    note("% inverted", 100.0 * inversions(&visits) as f64 / (WAITERS * (WAITERS - 1) / 2) as f64);
    note("polls/waiter", polls.load(Relaxed) as f64 / WAITERS as f64);
}

/// How many pairs are in the wrong order.
fn inversions(visits: &[Visit]) -> u64 {
    let sorted = |by: fn(&Visit) -> u64| {
        let mut visits = visits.to_vec();
        visits.sort_unstable_by_key(by);
        visits
    };
    let mut come = sorted(|visit| visit.came.1).into_iter().peekable();
    let goes = sorted(|visit| visit.went.0);
    // A Fenwick tree of those who have come, by when they begin to go.
    let mut tree = vec![0_u64; goes.len() + 1];
    let (mut here, mut inverted) = (0, 0);
    for later in sorted(|visit| visit.came.0) {
        while let Some(earlier) = come.next_if(|earlier| earlier.came.1 < later.came.0) {
            here += 1;
            let mut at = goes.partition_point(|visit| visit.went.0 < earlier.went.0) + 1;
            while at < tree.len() {
                tree[at] += 1;
                at += at & at.wrapping_neg();
            }
        }
        let mut gone = 0;
        let mut at = goes.partition_point(|visit| visit.went.0 <= later.went.1);
        while at > 0 {
            gone += tree[at];
            at &= at - 1;
        }
        inverted += here - gone;
    }
    inverted
}

fn herd(table: &mut Table) {
    let quota = governor::Quota::per_second(NonZeroU32::new(RATE).unwrap())
        .allow_burst(NonZeroU32::new(BURST).unwrap());
    let ours = |threads, longest: Option<Duration>| {
        move |_| {
            let limit =
                RateLimit::builder(Quota::per_second(RATE).with_burst(BURST)).with_queue(20_000, longest);
            crowd(threads, limit.build().unwrap(), async |limit: Arc<RateLimit>| {
                limit.acquire().await.unwrap();
            });
        }
    };
    let governor = |threads| {
        move |_| {
            let limit = governor::DefaultDirectRateLimiter::direct(quota);
            crowd(threads, limit, async |limit: Arc<governor::DefaultDirectRateLimiter>| {
                limit.until_ready().await;
            });
        }
    };
    let leaky = |threads| {
        move |_| {
            let limit = leaky_bucket::RateLimiter::builder()
                .initial(BURST as usize)
                .max(RATE as usize / 100)
                // At 1 ms it takes twice as long: it sleeps the interval anew each time, and ticks are 1 ms.
                .refill(RATE as usize / 100)
                .interval(Duration::from_millis(10))
                .build();
            crowd(threads, limit, async |limit: Arc<leaky_bucket::RateLimiter>| limit.acquire_one().await);
        }
    };
    let jitter = |_| {
        let limit = governor::DefaultDirectRateLimiter::direct(quota);
        crowd(1, limit, async |limit: Arc<governor::DefaultDirectRateLimiter>| {
            limit.until_ready_with_jitter(governor::Jitter::up_to(Duration::from_millis(10))).await;
        });
    };
    let resilience = |_| {
        let layer = tower_resilience::ratelimiter::RateLimiterLayer::builder()
            .limit_for_period(BURST as usize)
            .refresh_period(Duration::from_millis(1) * BURST * 1_000 / RATE)
            .timeout_duration(Duration::from_secs(60))
            .build()
            .unwrap();
        let service = ServiceBuilder::new()
            .layer(layer)
            .map_err(|_: Failure<Infallible>| std::io::Error::other("never"))
            .service(service_fn(echo));
        crowd(1, service, |service| {
            let service = (*service).clone();
            async move { assert!(service.oneshot(0).await.is_ok()) }
        });
    };
    table
        .row("herd of 10,000, the others")
        .fixed(1)
        .rounds(1)
        .ours("async-ratelimit", ours(1, None))
        .ours("with a longest wait", ours(1, Some(Duration::from_secs(10))))
        .peer("governor with jitter", jitter)
        .peer("tower-resilience", resilience)
        .run();
    for (name, threads) in [("herd of 10,000", 1), ("herd of 10,000, 2 threads", 2)] {
        table
            .row(name)
            .fixed(1)
            .rounds(7)
            .ours("async-ratelimit", ours(threads, None))
            .peer("governor", governor(threads))
            .peer("leaky-bucket", leaky(threads))
            .run();
    }
}
