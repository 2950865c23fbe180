//! The circuit breaker: `cargo bench -p benches --bench circuit`.
//!
//! Every candidate runs an operation that is ready at once, so that what is measured is the breaker. Peers are in the rows of
//! which they offer the kind: recloser counts calls, failsafe counts failures in a row or averages over a time, seatbelt measures
//! over a time and by key, tower-resilience does all kinds as a tower layer, and alone looks at slow calls.

use std::future::{Future, poll_fn, ready};
use std::hint::black_box;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use async_circuit::{
    CircuitBreaker, CircuitBreakerLayer, CircuitBreakers, Failure, KeyedCircuitBreakerLayer, Policy, Trip,
    TripRules,
};
use benches::{Row, Table, block_on};
use failsafe::futures::CircuitBreaker as _;
use seatbelt::breaker::{Breaker, BreakerId};
use seatbelt::{RecoveryInfo, ResilienceContext};
use tower::{Layer, Service, service_fn};
use tower_resilience::circuitbreaker as tr;

const LONG: Duration = Duration::from_secs(600);
const WINDOW: Duration = Duration::from_secs(10);
const SLOW: Duration = Duration::from_secs(1);
const KEYS: u64 = 10_000;

/// Keys in an order that no cache guesses.
fn key(i: u64) -> u64 {
    i.wrapping_mul(0x9E37_79B9_7F4A_7C15) % KEYS
}

/// `work(n)` on one thread or on several at once.
fn on_threads(threads: usize, n: u64, work: impl Fn(u64) + Sync) {
    // On the measuring thread itself, where allocations are counted.
    if threads == 1 { work(n) } else { benches::on_threads(threads, n, work) }
}

/// A row for so many threads. Threads take a while to start, so two of them always do the same amount of work.
fn row<'t, 'a>(table: &'t mut Table, name: &'static str, threads: usize) -> Row<'t, 'a> {
    let row = table.row(name);
    if threads == 1 { row } else { row.fixed(100_000) }
}

/// One thread's work: `n` calls, one after the other.
fn repeat<F: Future>(n: u64, call: impl Fn(u64) -> F) {
    block_on(async {
        for i in 0..n {
            black_box(call(black_box(i)).await);
        }
    });
}

fn ours(trip: impl Into<TripRules>) -> CircuitBreaker {
    CircuitBreaker::builder().with_trip(trip).with_open_for(LONG).build().unwrap()
}

fn over_time() -> Trip {
    Trip::failure_rate(0.5).within(WINDOW)
}

fn slow() -> TripRules {
    Trip::failure_rate(0.5).or(Trip::slow_rate(0.5, SLOW))
}

fn our_calls(breaker: &CircuitBreaker, n: u64) {
    repeat(n, |i| breaker.call(move || ready(Ok::<_, ()>(i))));
}

fn recloser() -> recloser::AsyncRecloser {
    recloser::Recloser::custom().closed_len(100).open_wait(LONG).build().into()
}

fn recloser_calls(breaker: &recloser::AsyncRecloser, n: u64) {
    repeat(n, |i| breaker.call(ready(Ok::<_, ()>(i))));
}

macro_rules! failsafe {
    ($policy:ident($($argument:expr),*)) => {
        failsafe::Config::new()
            .failure_policy(failsafe::failure_policy::$policy($($argument,)* failsafe::backoff::constant(LONG)))
            .build()
    };
}

/// `n` calls of a tower service, each of a service that was polled ready.
fn service_calls<S: Service<u64> + Clone>(service: &S, n: u64) {
    let mut service = service.clone();
    block_on(async {
        for i in 0..n {
            let _ = poll_fn(|cx| service.poll_ready(cx)).await;
            let _ = black_box(service.call(black_box(i)).await);
        }
    });
}

fn bare_service<E: Send>() -> impl Service<u64, Response = u64, Error = E, Future: Send> + Clone + Send + Sync
{
    service_fn(|i: u64| ready(Ok::<_, E>(i)))
}

macro_rules! tower_resilience {
    ($($with:ident($($argument:expr),*)),*) => {
        tr::CircuitBreakerLayer::builder()
            .failure_rate_threshold(0.5)
            .sliding_window_size(100)
            .wait_duration_in_open(LONG)
            $(.$with($($argument),*))*
            .build()
            .unwrap()
    };
}

fn main() {
    let mut table = Table::new("circuit");

    let count = ours(Trip::failure_rate(0.5));
    let peer = recloser();
    let in_a_row = failsafe!(consecutive_failures(5));
    let in_a_row_calls = |n| repeat(n, |i| in_a_row.call(ready(Ok::<_, ()>(i))));
    let service = tower_resilience!().layer(bare_service::<()>());
    for (name, threads) in [("closed, count window", 1), ("closed, count window, 2 threads", 2)] {
        row(&mut table, name, threads)
            .ours("async-circuit", |n| on_threads(threads, n, |n| our_calls(&count, n)))
            .peer("recloser", |n| on_threads(threads, n, |n| recloser_calls(&peer, n)))
            .peer("failsafe, in a row", |n| on_threads(threads, n, in_a_row_calls))
            .peer("tower-resilience", |n| on_threads(threads, n, |n| service_calls(&service, n)))
            .bare(|n| on_threads(threads, n, |n| repeat(n, |i| ready(Ok::<_, ()>(i)))))
            .run();
    }

    let time = ours(over_time());
    let average = failsafe!(success_rate_over_time_window(0.5, 20, WINDOW));
    let average_calls = |n| repeat(n, |i| average.call(ready(Ok::<_, ()>(i))));
    let window = tower_resilience!(
        sliding_window_type(tr::SlidingWindowType::TimeBased),
        sliding_window_duration(Duration::from_millis(1))
    );
    let service = window.layer(bare_service::<()>());
    let context = ResilienceContext::new(block_on(async { tick::Clock::new_tokio() }));
    macro_rules! seatbelt {
        ($operation:expr $(, $with:ident($argument:expr))*) => {
            layered::Stack::into_service((
                Breaker::layer("breaker", &context)
                    .recovery_with(|result: &Result<u64, ()>, _| match result {
                        Ok(_) => RecoveryInfo::never(),
                        Err(()) => RecoveryInfo::retry(),
                    })
                    $(.$with($argument))*
                    .rejected_input_error(|_: u64, _| ()),
                layered::Execute::new($operation),
            ))
        };
    }
    let seatbelt = seatbelt!(|i: u64| ready(Ok::<u64, ()>(i)));
    for (name, threads) in [("closed, time window", 1), ("closed, time window, 2 threads", 2)] {
        row(&mut table, name, threads)
            .ours("async-circuit", |n| on_threads(threads, n, |n| our_calls(&time, n)))
            .peer("failsafe, average", |n| on_threads(threads, n, average_calls))
            .peer("seatbelt", |n| {
                on_threads(threads, n, |n| repeat(n, |i| layered::Service::execute(&seatbelt, i)));
            })
            .peer("tower-resilience, 1 ms", |n| on_threads(threads, n, |n| service_calls(&service, n)))
            .run();
    }

    let slow_on = ours(slow());
    let with_slow = tower_resilience!(slow_call_duration_threshold(SLOW), slow_call_rate_threshold(0.5));
    let service = with_slow.layer(bare_service::<()>());
    for (name, threads) in [("closed, slow-call on", 1), ("closed, slow-call on, 2 threads", 2)] {
        row(&mut table, name, threads)
            .ours("async-circuit", |n| on_threads(threads, n, |n| our_calls(&slow_on, n)))
            .peer("tower-resilience", |n| on_threads(threads, n, |n| service_calls(&service, n)))
            .run();
    }

    let one_in_100 = |i: u64| ready(if i.is_multiple_of(100) { Err(()) } else { Ok(i) });
    let ailing = ours(Trip::failure_rate(0.5));
    let ailing_calls = |n| repeat(n, |i| ailing.call(move || one_in_100(i)));
    let peer = recloser();
    let peer_calls = |n| repeat(n, |i| peer.call(one_in_100(i)));
    let in_a_row_calls = |n| repeat(n, |i| in_a_row.call(one_in_100(i)));
    for (name, threads) in
        [("one failure in 100, count window", 1), ("one failure in 100, count window, 2 threads", 2)]
    {
        row(&mut table, name, threads)
            .ours("async-circuit", |n| on_threads(threads, n, ailing_calls))
            .peer("recloser", |n| on_threads(threads, n, peer_calls))
            .peer("failsafe, in a row", |n| on_threads(threads, n, in_a_row_calls))
            .run();
    }

    let open = ours(Trip::failure_rate(0.5).with_min_calls(NonZeroU32::MIN));
    open.try_acquire().unwrap().failure();
    let peer = recloser();
    repeat(200, |_| peer.call(ready(Err::<u64, _>(()))));
    let dead = failsafe!(consecutive_failures(1));
    repeat(5, |_| dead.call(ready(Err::<u64, _>(()))));
    let dead_calls = |n| repeat(n, |i| dead.call(ready(Ok::<_, ()>(i))));
    let service =
        tower_resilience!(minimum_number_of_calls(1)).layer(service_fn(|_: u64| ready(Err::<u64, _>(()))));
    service_calls(&service, 5);
    let refusing = seatbelt!(|_: u64| ready(Err::<u64, ()>(())), min_throughput(2));
    repeat(100, |i| layered::Service::execute(&refusing, i));
    for (name, threads) in [("open, refused", 1), ("open, refused, 2 threads", 2)] {
        row(&mut table, name, threads)
            .ours("async-circuit", |n| on_threads(threads, n, |n| our_calls(&open, n)))
            .peer("recloser", |n| on_threads(threads, n, |n| recloser_calls(&peer, n)))
            .peer("failsafe, in a row", |n| on_threads(threads, n, dead_calls))
            .peer("seatbelt", |n| {
                on_threads(threads, n, |n| repeat(n, |i| layered::Service::execute(&refusing, i)));
            })
            .peer("tower-resilience", |n| on_threads(threads, n, |n| service_calls(&service, n)))
            .run();
    }

    let max = NonZeroUsize::new(KEYS as usize * 2).unwrap();
    let keyed = || -> CircuitBreakers<u64> {
        CircuitBreaker::builder().with_trip(over_time()).build_keyed(max).unwrap()
    };
    let breakers = keyed();
    let keyed_calls = |n| {
        repeat(n, |i| {
            let breaker = breakers.get(&key(i));
            async move { breaker.call(move || ready(Ok::<_, ()>(i))).await }
        });
    };
    let by_key = seatbelt!(|i: u64| ready(Ok::<u64, ()>(i)), breaker_id(|i: &u64| BreakerId::from(key(*i))));
    keyed_calls(KEYS * 10);
    for (name, threads) in
        [("keyed, 10,000 keys, time window", 1), ("keyed, 10,000 keys, time window, 2 threads", 2)]
    {
        row(&mut table, name, threads)
            .ours("async-circuit", |n| on_threads(threads, n, keyed_calls))
            .peer("seatbelt", |n| {
                on_threads(threads, n, |n| repeat(n, |i| layered::Service::execute(&by_key, i)));
            })
            .run();
    }

    // The window holds as many calls as were made, in the memory of none; what a failure costs does not depend on it.
    let full_and_empty = [10_000_000, 0].map(|calls| {
        let breaker = ours(Trip::failure_rate(1.0).within(LONG));
        our_calls(&breaker, calls);
        breaker
    });
    let [full, empty] = full_and_empty.each_ref().map(|breaker| {
        move |n| {
            for _ in 0..n {
                breaker.try_acquire().unwrap().failure();
                breaker.try_acquire().unwrap().success();
            }
        }
    });
    table
        .row("a failure and a success, time window")
        .ours("async-circuit, after 10^7 calls", full)
        .ours("async-circuit, after none", empty)
        .run();

    let layer = CircuitBreakerLayer::new(ours(Trip::failure_rate(0.5)));
    let service = layer.layer(bare_service::<Failure<()>>());
    let peer = tower_resilience!().layer(bare_service::<()>());
    let layer = KeyedCircuitBreakerLayer::new(Arc::new(keyed()), |i: &u64| key(*i));
    let keyed_service = layer.layer(bare_service::<Failure<()>>());
    service_calls(&keyed_service, KEYS * 10);
    for (name, threads) in [("tower, closed, count window", 1), ("tower, closed, count window, 2 threads", 2)]
    {
        row(&mut table, name, threads)
            .ours("async-circuit", |n| on_threads(threads, n, |n| service_calls(&service, n)))
            .peer("tower-resilience", |n| on_threads(threads, n, |n| service_calls(&peer, n)))
            .run();
    }
    for (name, threads) in [("tower, keyed", 1), ("tower, keyed, 2 threads", 2)] {
        row(&mut table, name, threads)
            .ours("async-circuit", |n| on_threads(threads, n, |n| service_calls(&keyed_service, n)))
            .peer("seatbelt", |n| {
                on_threads(threads, n, |n| repeat(n, |i| layered::Service::execute(&by_key, i)));
            })
            .run();
    }
    table.finish();
}
