use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::limit::Gathers;
use crate::wake::WakeSet;

/// Stops gathers from outside, and has them keep what has ended.
///
/// Clones are the same one, and it stays requested: a gather that begins under it afterwards starts nothing. (A time-out
/// or a `select!` round the call would drop the results.)
///
/// ```
/// use async_batch::{Gather, Stop, Stopped};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let stop = Stop::new();
/// let on_signal = stop.clone();
/// tokio::spawn(async move {
///     tokio::time::sleep(Duration::from_millis(45)).await; // or tokio::signal::ctrl_c()
///     on_signal.request();
/// });
/// let outcomes = Gather::up_to::<1>()
///     .with_stop(&stop)
///     .run(0.., async |n| {
///         tokio::time::sleep(Duration::from_millis(10)).await;
///         Ok::<u32, ()>(n)
///     })
///     .await;
/// assert_eq!(outcomes.stopped(), Some(Stopped::Requested));
/// assert!(outcomes.values().starts_with(&[0, 1, 2]));
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    requested: AtomicBool,
    gathers: Gathers,
}

impl Stop {
    /// One that has not been requested.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every gather under it stops: no other item starts, and what is under way is cancelled.
    pub fn request(&self) {
        self.shared.requested.store(true, Ordering::Release);
        self.shared.gathers.nudge();
    }

    /// Whether it has been requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.shared.requested.load(Ordering::Acquire)
    }

    /// Nudges `gather` when it is requested.
    pub(crate) fn watch(&self, gather: &Arc<WakeSet>) {
        self.shared.gathers.watch(gather);
    }
}
