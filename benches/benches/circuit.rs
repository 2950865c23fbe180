//! The circuit breaker: `cargo bench -p benches --bench circuit`.

use std::future::ready;
use std::hint::black_box;

use async_circuit::{CircuitBreaker, Policy};
use benches::{Table, block_on, on_threads};

fn main() {
    let mut table = Table::new("circuit");

    let ours = CircuitBreaker::new();
    let calls = |n: u64| {
        block_on(async {
            for i in 0..n {
                let _ = black_box(ours.call(|| ready(Ok::<_, ()>(black_box(i)))).await);
            }
        });
    };
    let recloser = recloser::AsyncRecloser::from(recloser::Recloser::custom().closed_len(100).build());
    let recloser_calls = |n: u64| {
        block_on(async {
            for i in 0..n {
                let _ = black_box(recloser.call(ready(Ok::<_, ()>(black_box(i)))).await);
            }
        });
    };
    let failsafe = failsafe::Config::new().build();
    let failsafe_calls = |n: u64| {
        use failsafe::futures::CircuitBreaker as _;
        block_on(async {
            for i in 0..n {
                let _ = black_box(failsafe.call(ready(Ok::<_, ()>(black_box(i)))).await);
            }
        });
    };
    table
        .row("closed success, count window")
        .ours("async-circuit", calls)
        .peer("recloser", recloser_calls)
        .peer("failsafe", failsafe_calls)
        .run();
    table
        .row("closed success, count window, 2 threads")
        .ours("async-circuit", |n| on_threads(2, n, calls))
        .peer("recloser", |n| on_threads(2, n, recloser_calls))
        .peer("failsafe", |n| on_threads(2, n, failsafe_calls))
        .run();
    table.finish();
}
