use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::wake::WakeSet;

/// A limit that can be changed while gathers run under it.
///
/// Clones are the same limit. Each gather under it may have so many items under way (for a limit on all of them
/// together put a concurrency limit round each item). Raised, more items start at once; lowered, none is cut short, and
/// none starts until enough have ended.
///
/// ```
/// use async_batch::{Gather, Limit};
/// use std::num::NonZeroUsize;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let limit = Limit::new(NonZeroUsize::MIN);
/// let gather = Gather::new(NonZeroUsize::MIN).with_limit(&limit);
/// let run = gather.run(0..10, async |n| {
///     limit.set(NonZeroUsize::new(5).unwrap());
///     Ok::<_, ()>(n)
/// });
/// assert!(run.await.is_ok());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Limit {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    items: AtomicUsize,
    gathers: Gathers,
}

/// The gathers that are to be told of a change, as long as they live.
#[derive(Debug, Default)]
pub(crate) struct Gathers(Mutex<Vec<Weak<WakeSet>>>);

impl Gathers {
    pub(crate) fn nudge(&self) {
        let gathers = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for gather in gathers.iter().filter_map(Weak::upgrade) {
            gather.nudge();
        }
    }

    pub(crate) fn watch(&self, gather: &Arc<WakeSet>) {
        let mut gathers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gathers.retain(|gather| gather.strong_count() > 0);
        gathers.push(Arc::downgrade(gather));
    }
}

impl Limit {
    /// At most `items` at once, for now.
    #[must_use]
    pub fn new(items: NonZeroUsize) -> Self {
        let shared = Shared { items: AtomicUsize::new(items.get()), gathers: Gathers::default() };
        Self { shared: Arc::new(shared) }
    }

    /// At most `items` at once, from now on.
    pub fn set(&self, items: NonZeroUsize) {
        self.shared.items.store(items.get(), Ordering::Release);
        self.shared.gathers.nudge();
    }

    /// How many items may be under way at once now.
    #[must_use]
    pub fn get(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.shared.items.load(Ordering::Acquire)).unwrap_or(NonZeroUsize::MIN)
    }

    /// Nudges `gather` at each change, as long as it lives.
    pub(crate) fn watch(&self, gather: &Arc<WakeSet>) {
        self.shared.gathers.watch(gather);
    }
}
