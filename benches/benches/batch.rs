//! Gather: the same items run by `async-batch` and by its peers, at most 64 at once where a limit exists.

use std::cell::Cell;
use std::convert::Infallible;
use std::fs;
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_batch::Gather;
use benches::{Table, block_on, note};
use futures_buffered::BufferedStreamExt as _;
use futures_concurrency::prelude::*;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Of the rows whose items do not all wait at the same time.
const LIMIT: usize = 64;

/// Wakes itself and is pending once.
fn yield_once() -> impl Future<Output = ()> + Send {
    let mut yielded = false;
    poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

async fn ready(n: u64) -> Result<u64, Infallible> {
    Ok(black_box(n))
}

async fn yielding(n: u64) -> Result<u64, Infallible> {
    yield_once().await;
    Ok(black_box(n))
}

async fn spawned(n: u64) -> Result<u64, Infallible> {
    tokio::spawn(ready(n)).await.expect("no panic")
}

async fn sleeping(n: u64) -> Result<u64, Infallible> {
    sleep(Duration::from_millis(5)).await;
    Ok(black_box(n))
}

fn nonzero(limit: usize) -> NonZeroUsize {
    NonZeroUsize::new(limit).expect("a limit")
}

/// Notes how much the resident set grew at its peak while `work` ran.
fn with_peak(work: impl FnOnce()) {
    // 5: the peak counts from here on (proc(5)).
    let _ = fs::write("/proc/self/clear_refs", "5");
    let kilobytes = |field: &str| -> Option<f64> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        status.lines().find(|line| line.starts_with(field))?.split_whitespace().nth(1)?.parse().ok()
    };
    let before = kilobytes("VmRSS");
    work();
    if let Some((before, peak)) = before.zip(kilobytes("VmHWM")) {
        note("peak MB", ((peak - before) / 1024.0).max(0.0));
    }
}

async fn ours<Fut>(n: u64, limit: usize, item: impl Fn(u64) -> Fut)
where
    Fut: Future<Output = Result<u64, Infallible>>,
{
    let outcomes = Gather::new(nonzero(limit)).run(0..n, item).await;
    assert_eq!(black_box(outcomes).values().len() as u64, n);
}

async fn ours_spawned<Fut>(n: u64, limit: usize, item: impl Fn(u64) -> Fut)
where
    Fut: Future<Output = Result<u64, Infallible>> + Send + 'static,
{
    let outcomes = Gather::new(nonzero(limit)).spawn(0..n, item).await;
    assert_eq!(black_box(outcomes).values().len() as u64, n);
}

async fn ours_streamed<Fut>(n: u64, limit: usize, item: impl Fn(u64) -> Fut)
where
    Fut: Future<Output = Result<u64, Infallible>>,
{
    let mut sum = 0;
    let mut run = Gather::new(nonzero(limit)).run(0..n, item).stream();
    while let Some(settled) = run.next().await {
        sum += settled.result.unwrap_or(0);
    }
    black_box(sum);
}

async fn buffer_unordered<Fut>(n: u64, limit: usize, item: impl Fn(u64) -> Fut)
where
    Fut: Future<Output = Result<u64, Infallible>>,
{
    let all: Vec<_> = stream::iter(0..n).map(item).buffer_unordered(limit).collect().await;
    assert_eq!(black_box(all).len() as u64, n);
}

async fn buffer_unordered_streamed<Fut>(n: u64, limit: usize, item: impl Fn(u64) -> Fut)
where
    Fut: Future<Output = Result<u64, Infallible>>,
{
    let mut sum = 0;
    let mut all = std::pin::pin!(stream::iter(0..n).map(item).buffer_unordered(limit));
    while let Some(result) = all.next().await {
        sum += result.unwrap_or(0);
    }
    black_box(sum);
}

async fn buffered<Fut>(n: u64, limit: usize, item: impl Fn(u64) -> Fut)
where
    Fut: Future<Output = Result<u64, Infallible>>,
{
    let all: Vec<_> = stream::iter(0..n).map(item).buffered(limit).collect().await;
    assert_eq!(black_box(all).len() as u64, n);
}

async fn futures_buffered<Fut>(n: u64, limit: usize, item: impl Fn(u64) -> Fut)
where
    Fut: Future<Output = Result<u64, Infallible>>,
{
    let all: Vec<_> = stream::iter(0..n).map(item).buffered_unordered(limit).collect().await;
    assert_eq!(black_box(all).len() as u64, n);
}

async fn futures_concurrency<Fut>(n: u64, limit: usize, item: impl Fn(u64) -> Fut + Clone)
where
    Fut: Future<Output = Result<u64, Infallible>>,
{
    let count = Cell::new(0_u64);
    stream::iter(0..n)
        .co()
        .limit(NonZeroUsize::new(limit))
        .map(item)
        .for_each(async |result| {
            let _ = black_box(result);
            count.set(count.get() + 1);
        })
        .await;
    assert_eq!(count.get(), n);
}

async fn all_at_once<Fut>(n: u64, _: usize, item: impl Fn(u64) -> Fut)
where
    Fut: Future<Output = Result<u64, Infallible>>,
{
    let all = join_all((0..n).map(item)).await;
    assert_eq!(black_box(all).len() as u64, n);
}

async fn join_set<Fut>(n: u64, limit: usize, item: impl Fn(u64) -> Fut)
where
    Fut: Future<Output = Result<u64, Infallible>> + Send + 'static,
{
    let semaphore = Arc::new(Semaphore::new(limit));
    let mut tasks = JoinSet::new();
    let mut all = Vec::new();
    for i in 0..n {
        let permit = Arc::clone(&semaphore).acquire_owned().await.expect("never closed");
        while let Some(done) = tasks.try_join_next() {
            all.push(done.expect("no panic"));
        }
        let item = item(i);
        tasks.spawn(async move {
            let result = item.await;
            drop(permit);
            result
        });
    }
    while let Some(done) = tasks.join_next().await {
        all.push(done.expect("no panic"));
    }
    assert_eq!(black_box(all).len() as u64, n);
}

macro_rules! row {
    ($table:ident, $name:literal, $n:expr, $limit:expr, $rounds:expr, $item:ident) => {
        $table
            .row($name)
            .fixed($n)
            .rounds($rounds)
            .ours("async-batch", |n| with_peak(|| block_on(ours(n, $limit, $item))))
            .peer("buffer_unordered", |n| with_peak(|| block_on(buffer_unordered(n, $limit, $item))))
            .peer("buffered", |n| with_peak(|| block_on(buffered(n, $limit, $item))))
            .peer("futures-buffered", |n| with_peak(|| block_on(futures_buffered(n, $limit, $item))))
            .peer("futures-concurrency", |n| with_peak(|| block_on(futures_concurrency(n, $limit, $item))))
            .peer("JoinSet + semaphore", |n| with_peak(|| block_on(join_set(n, $limit, $item))))
            .peer("join_all", |n| with_peak(|| block_on(all_at_once(n, $limit, $item))))
            .run();
    };
}

fn main() {
    let mut table = Table::new("batch");
    row!(table, "ready", 1_000_000, LIMIT, 11, ready);
    row!(table, "yielding", 100_000, LIMIT, 21, yielding);
    table
        .row("streamed")
        .fixed(1_000_000)
        .rounds(11)
        .ours("async-batch", |n| with_peak(|| block_on(ours_streamed(n, LIMIT, ready))))
        .peer("buffer_unordered", |n| with_peak(|| block_on(buffer_unordered_streamed(n, LIMIT, ready))))
        .run();
    table
        .row("spawned")
        .fixed(1_000_000)
        .rounds(5)
        .ours("async-batch", |n| with_peak(|| block_on(ours_spawned(n, LIMIT, ready))))
        .peer("buffer_unordered", |n| with_peak(|| block_on(buffer_unordered(n, LIMIT, spawned))))
        .peer("JoinSet + semaphore", |n| with_peak(|| block_on(join_set(n, LIMIT, ready))))
        .run();
    row!(table, "sleeping", 10_000, 10_000, 11, sleeping);
    table.finish();
}
