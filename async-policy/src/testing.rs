//! Tools for testing policies and operations (`test-util` feature).

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// When [`drop_at_every_await`] drops the future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropPoint {
    /// Created and never polled.
    Unpolled,
    /// Right after the n-th poll (counted from 1) returned pending.
    Pending(usize),
    /// After the n-th poll returned pending and the task was then woken, before it is polled again: whatever was
    /// handed to the future with the wake-up must find its way back.
    Woken(usize),
}

/// Makes the future again and again, and drops it at each of its await points in turn, until it once runs to its
/// end. After each drop, and after the full run, `check` says whether everything was given back.
///
/// Returns how many await points there were (none: it was ready at its first poll), so that a test can show
/// that it really saw some.
///
/// # Cancel safety
///
/// Dropping it drops the future under test.
///
/// # Panics
///
/// When the future is still pending after 10,000 polls.
///
/// # Examples
///
/// ```
/// use async_policy::testing::drop_at_every_await;
/// use tokio::sync::Semaphore;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let semaphore = Semaphore::new(1);
/// let points = drop_at_every_await(
///     || async {
///         let _permit = semaphore.acquire().await;
///         tokio::task::yield_now().await;
///     },
///     async |_| assert_eq!(semaphore.available_permits(), 1),
/// )
/// .await;
/// assert_eq!(points, 1);
/// # }
/// ```
pub async fn drop_at_every_await<F: Future>(
    mut make: impl FnMut() -> F,
    mut check: impl AsyncFnMut(Option<DropPoint>),
) -> usize {
    const MOST: usize = 10_000;
    drop(make());
    check(Some(DropPoint::Unpolled)).await;
    for n in 1..=MOST {
        for point in [DropPoint::Pending(n), DropPoint::Woken(n)] {
            let finished = {
                let mut future = pin!(make());
                let mut polls = 0;
                poll_fn(|cx| {
                    if point == DropPoint::Woken(polls) {
                        return Poll::Ready(false);
                    }
                    polls += 1;
                    match future.as_mut().poll(cx) {
                        Poll::Ready(_) => Poll::Ready(true),
                        Poll::Pending if point == DropPoint::Pending(polls) => Poll::Ready(false),
                        Poll::Pending => Poll::Pending,
                    }
                })
                .await
            };
            if finished {
                check(None).await;
                return n - 1;
            }
            check(Some(point)).await;
        }
    }
    panic!("still pending after {MOST} polls");
}
