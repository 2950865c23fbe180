//! The public API under paused time.

#[cfg(feature = "backoff")]
mod backoff;
mod budget;
mod cancel;
mod closures;
mod hedge;
#[cfg(feature = "tower")]
mod hedge_tower;
#[cfg(all(feature = "http", feature = "tower"))]
mod http;
#[cfg(feature = "metrics")]
mod metrics;
mod report;
mod retry;
#[cfg(feature = "serde")]
mod serde;
#[cfg(feature = "tower")]
mod tower;

use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

fn attempts(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

/// Virtual time passes while nobody is pending.
fn time_passes(duration: Duration) {
    let mut cx = Context::from_waker(Waker::noop());
    let _ = Box::pin(tokio::time::advance(duration)).as_mut().poll(&mut cx);
}

/// What the call yields, or the payload of its panic.
async fn caught<F: Future>(call: F) -> thread::Result<F::Output> {
    let mut call = Box::pin(call);
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}
