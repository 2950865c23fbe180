use std::future::Future;
use std::num::NonZeroUsize;

use crate::order::Order;
use crate::{Gather, ItemError, Outcomes, Settled, Stopped};

/// Runs the futures side by side and gives the first success, with its index; the others are dropped.
///
/// They are polled in the caller's task, all at once, the first one first. A panic counts as a failure. (For a staggered
/// start have each future sleep for its turn first; one that fails early does not call the next one in, though.)
///
/// # Errors
///
/// When none succeeds: every error, with its index. Without any future, empty outcomes,
/// [stopped](Outcomes::stopped) as [`TooFew`](Stopped::TooFew).
///
/// # Cancel safety
///
/// Dropping the call drops the futures.
///
/// # Examples
///
/// ```
/// use async_batch::first_success;
/// # async fn fetch(mirror: &str) -> Result<&str, String> {
/// #     if mirror == "b" { Ok(mirror) } else { Err(format!("{mirror} is down")) }
/// # }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let (index, page) = first_success(["a", "b"].map(fetch)).await.unwrap();
/// assert_eq!((index, page), (1, "b"));
/// let failed = first_success(["a", "c"].map(fetch)).await.unwrap_err();
/// assert_eq!(failed.to_string(), "2 of 2 items failed: #0: a is down; #1: c is down");
/// # }
/// ```
pub async fn first_success<I, Fut, T, E>(futures: I) -> Result<(usize, T), Outcomes<T, E>>
where
    I: IntoIterator<Item = Fut>,
    Fut: Future<Output = Result<T, E>>,
{
    let mut winners = quorum(NonZeroUsize::MIN, futures).await?;
    Ok(winners.swap_remove(0))
}

/// Runs the futures side by side and gives the first one that ends, well or not, with its index; the others are
/// dropped. `None` without any future.
///
/// They are polled in the caller's task, all at once, the first one first.
///
/// # Cancel safety
///
/// Dropping the call drops the futures.
pub async fn first_to_finish<I, Fut, T, E>(futures: I) -> Option<(usize, Result<T, ItemError<E>>)>
where
    I: IntoIterator<Item = Fut>,
    Fut: Future<Output = Result<T, E>>,
{
    let mut all = everything().run(futures, std::convert::identity).stream();
    let Settled { index, result, .. } = all.next().await?;
    Some((index, result))
}

/// Runs the futures side by side until `k` of them have succeeded, and gives those in the order they did, each with its
/// index; the others are dropped.
///
/// They are polled in the caller's task, all at once, the first one first. A panic counts as a failure.
///
/// # Errors
///
/// As soon as `k` successes can no longer be reached: the outcomes so far, every error and every success, and the rest
/// as cancelled. With fewer futures than `k`, none is started and the outcomes are empty, stopped as
/// [`TooFew`](Stopped::TooFew).
///
/// # Cancel safety
///
/// Dropping the call drops the futures.
///
/// # Examples
///
/// ```
/// use async_batch::quorum;
/// use std::num::NonZeroUsize;
/// # async fn write(replica: u32) -> Result<u32, String> {
/// #     if replica == 0 { Err("down".into()) } else { Ok(replica) }
/// # }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let two = NonZeroUsize::new(2).unwrap();
/// let acknowledged = quorum(two, (0..3).map(write)).await.unwrap();
/// assert_eq!(acknowledged, [(1, 1), (2, 2)]);
/// # }
/// ```
pub async fn quorum<I, Fut, T, E>(k: NonZeroUsize, futures: I) -> Result<Vec<(usize, T)>, Outcomes<T, E>>
where
    I: IntoIterator<Item = Fut>,
    Fut: Future<Output = Result<T, E>>,
{
    // How many there are decides when it is lost, so all are taken in before one is polled.
    let futures: Vec<Fut> = futures.into_iter().collect();
    let count = futures.len();
    let Some(bearable) = count.checked_sub(k.get()) else {
        let mut none = Outcomes::with_capacity(0);
        none.stop(Some(Stopped::TooFew { asked: k.get(), futures: count }));
        return Err(none);
    };
    let lost_at = NonZeroUsize::MIN.saturating_add(bearable);
    let gather = everything().stop_after(lost_at);
    let mut all = gather.run(futures, std::convert::identity).stream();
    let mut successes = Vec::new();
    let mut failures = Vec::new();
    while let Some(Settled { index, result, .. }) = all.next().await {
        match result {
            Ok(value) => successes.push((index, value)),
            Err(error) => failures.push((index, error)),
        }
        if successes.len() == k.get() {
            return Ok(successes);
        }
    }
    let mut order = Order::new();
    let mut outcomes = Outcomes::with_capacity(0);
    let successes = successes.into_iter().map(|(index, value)| (index, Ok(value)));
    for (index, result) in successes.chain(failures.into_iter().map(|(index, error)| (index, Err(error)))) {
        order.push(index, Settled { index, result, detail: () }, |settled| outcomes.push(settled));
    }
    // The last failure that could be borne may also have been the last of all.
    let summary = all.summary();
    if summary.started < count || summary.cancelled > 0 {
        outcomes.stop(summary.stopped);
    }
    Err(outcomes)
}

const fn everything() -> Gather {
    Gather::new(NonZeroUsize::MAX)
}
