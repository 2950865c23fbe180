//! Micro-batching: 100,000 loads of different keys by 1,000 tasks, up to 100 in a bulk call.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use async_batch::Batcher;
use benches::{Table, block_on, note};
use dataloader::BatchFn;
use dataloader::non_cached::Loader;
use tokio::task::JoinSet;
use tokio::time::sleep;
use ultra_batch::{BatchFetcher, Cache, Fetcher};

const TASKS: u64 = 1000;
const ITEMS: usize = 100;
const DELAY: Duration = Duration::from_millis(2);

/// The bulk call itself: at once, or after some time.
async fn bulk(took: Duration) {
    if !took.is_zero() {
        sleep(took).await;
    }
}

struct Source(Duration);

impl BatchFn<u64, u64> for Source {
    async fn load(&mut self, keys: &[u64]) -> HashMap<u64, u64> {
        bulk(self.0).await;
        keys.iter().map(|key| (*key, key * 2)).collect()
    }
}

impl Fetcher for Source {
    type Key = u64;
    type Value = u64;
    type Error = Infallible;

    async fn fetch(&self, keys: &[u64], values: &mut Cache<'_, u64, u64>) -> Result<(), Infallible> {
        bulk(self.0).await;
        for key in keys {
            values.insert(*key, key * 2);
        }
        Ok(())
    }
}

/// Loads `n` keys in `TASKS` tasks, and notes how long one load took.
async fn work<L, F, Fut>(n: u64, loader: L, load: F)
where
    L: Clone + Send + 'static,
    F: Fn(L, u64) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = u64> + Send,
{
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let loader = loader.clone();
        tasks.spawn(async move {
            let mut took = Vec::with_capacity((n / TASKS) as usize);
            for key in (task..n).step_by(TASKS as usize) {
                let started = Instant::now();
                assert_eq!(load(loader.clone(), key).await, key * 2);
                took.push(started.elapsed());
            }
            took
        });
    }
    let mut took: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    took.sort_unstable();
    let millis = |share: f64| took[(took.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    note("p50 ms", millis(0.5));
    note("p99 ms", millis(0.99));
}

async fn ours(n: u64, took: Duration) {
    let builder =
        Batcher::builder().with_max_items(NonZeroUsize::new(ITEMS).expect("some")).with_max_delay(DELAY);
    let batcher = builder.with_in_flight(NonZeroUsize::new(16).expect("some")).build(
        move |keys: Vec<u64>| async move {
            bulk(took).await;
            keys.into_iter().map(|key| Ok::<_, Infallible>(key * 2)).collect::<Vec<_>>()
        },
    );
    work(n, batcher, |batcher, key| async move { batcher.load(key).await.expect("it does not fail") }).await;
}

async fn data_loader(n: u64, took: Duration) {
    let loader = Loader::new(Source(took)).with_max_batch_size(ITEMS);
    work(n, loader, |loader, key| async move { loader.load(key).await }).await;
}

async fn ultra(n: u64, took: Duration) {
    let fetcher =
        BatchFetcher::build(Source(took)).delay_duration(DELAY).eager_batch_size(Some(ITEMS)).finish();
    work(n, fetcher, |fetcher, key| async move { fetcher.load(key).await.expect("it does not fail") }).await;
}

fn main() {
    let mut table = Table::new("batcher");
    for (name, took, rounds) in [("at once", Duration::ZERO, 11), ("2 ms", Duration::from_millis(2), 3)] {
        table
            .row(name)
            .fixed(100_000)
            .rounds(rounds)
            .ours("async-batch", |n| block_on(ours(n, took)))
            .peer("dataloader", |n| block_on(data_loader(n, took)))
            .peer("ultra-batch", |n| block_on(ultra(n, took)))
            .run();
    }
    table.finish();
}
