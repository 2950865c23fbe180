use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_policy::Timeout;
use tokio::sync::{Notify, Semaphore};

use super::collect::Bounds;
use super::{Batcher, Handles, Loaded, Plan, Shared, State, Weigh};

/// What a caller meets when there is [no room](BatcherBuilder::with_in_flight) for its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits for room, in order of arrival.
    #[default]
    Wait,
    /// It is refused at once: [`Reason::QueueFull`](async_policy::Reason::QueueFull).
    Refuse,
}

/// Builds a [`Batcher`].
///
/// # Default
///
/// | setting | default |
/// |---|---|
/// | [`with_max_items`](Self::with_max_items) | 100 |
/// | [`with_max_weight`](Self::with_max_weight) | none |
/// | [`with_max_delay`](Self::with_max_delay) | 1 ms |
/// | [`with_in_flight`](Self::with_in_flight) | 1 bulk call |
/// | [`with_when_full`](Self::with_when_full) | [`WhenFull::Wait`] |
/// | [`with_load_timeout`](Self::with_load_timeout) | none |
#[must_use = "a builder does nothing until it is built"]
pub struct BatcherBuilder<K> {
    plan: Plan,
    weigh: Option<Weigh<K>>,
}

impl<K> BatcherBuilder<K> {
    /// A batch closes when it has so many different keys.
    pub const fn with_max_items(mut self, items: NonZeroUsize) -> Self {
        self.plan.bounds.items = items;
        self
    }

    /// A batch closes before its keys weigh more than `limit`, as `weigh` has it: bytes, or any other unit. A key that
    /// weighs more by itself is refused with [`Reason::ExceedsCapacity`](async_policy::Reason::ExceedsCapacity).
    pub fn with_max_weight(
        mut self,
        limit: NonZeroUsize,
        weigh: impl Fn(&K) -> usize + Send + Sync + 'static,
    ) -> Self {
        self.plan.bounds.weight = limit.get();
        self.weigh = Some(Box::new(weigh));
        self
    }

    /// A batch closes so long after its first key came. Zero: as soon as the runtime turns to it.
    pub const fn with_max_delay(mut self, delay: Duration) -> Self {
        self.plan.max_delay = delay;
        self
    }

    /// At most so many bulk calls are under way at once. A batch that is due while they are goes on taking keys until
    /// it is full.
    ///
    /// It also says for how many keys there is room: as many as fill these calls and one batch more, those being loaded
    /// included. With 4 calls and 100 keys a batch that is 500; the 501st meets [`with_when_full`](Self::with_when_full).
    pub const fn with_in_flight(mut self, calls: NonZeroUsize) -> Self {
        self.plan.in_flight = calls;
        self
    }

    /// What a caller meets when there is [no room](Self::with_in_flight) for its key.
    pub const fn with_when_full(mut self, when_full: WhenFull) -> Self {
        self.plan.when_full = when_full;
        self
    }

    /// Gives each bulk call at most `limit`; then it is dropped, and its callers' error is
    /// [`LoadError::TimedOut`](crate::LoadError::TimedOut). It is the deadline in force inside the loader, and the only one:
    /// those of the callers do not reach it.
    pub fn with_load_timeout(mut self, limit: Duration) -> Self {
        self.plan.load_timeout = Some(Timeout::new(limit));
        self
    }

    /// A batcher that has `loader` load a batch of keys, each of them once in it.
    ///
    /// What it returns is one of the forms of [`Loaded`]: a result for each key in the keys' order, all values or one error,
    /// or a map. Callers share values and errors, so both are `Clone`: put one that is not (`std::io::Error`) into an `Arc`,
    /// with `.map_err(Arc::new)`.
    ///
    /// The loader must not [`load`](Batcher::load) from its own batcher: with every bulk call it may make under way, it
    /// waits for itself.
    ///
    /// ```
    /// use async_batch::{Batcher, LoadError};
    /// use std::collections::HashMap;
    /// use std::sync::Arc;
    ///
    /// # async fn select(ids: Vec<u32>) -> std::io::Result<Vec<(u32, String)>> { Ok(vec![(8, "b".into()), (7, "a".into())]) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// // Rows come in any order, and some are missing.
    /// let users = Batcher::builder().build(async |ids: Vec<u32>| {
    ///     let rows = select(ids).await.map_err(Arc::new)?;
    ///     Ok::<_, Arc<std::io::Error>>(HashMap::<_, _>::from_iter(rows))
    /// });
    /// let (a, none) = tokio::join!(users.load(7), users.load(9));
    /// assert_eq!(a.unwrap(), "a");
    /// assert!(matches!(none, Err(LoadError::Missing)));
    /// # }
    /// ```
    pub fn build<L, Fut, V, E>(self, loader: L) -> Batcher<K, V, E>
    where
        K: Eq + Hash + Send + 'static,
        V: Clone + Send + Sync + 'static,
        E: Clone + Send + Sync + 'static,
        L: Fn(Vec<K>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Loaded<K, Value = V, Error = E>> + Send + 'static,
    {
        let Self { plan, weigh } = self;
        let places = plan.bounds.items.get().saturating_mul(plan.in_flight.get().saturating_add(1));
        let loader = move |keys: Vec<K>| {
            let order = <Fut::Output as Loaded<K>>::order(&keys);
            let loading = loader(keys);
            let each: Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(async move { loading.await.each(order) });
            each
        };
        let calls = plan.in_flight.get();
        Batcher {
            handles: Arc::new(Handles(Arc::new(Shared {
                plan,
                weigh,
                loader: Box::new(loader),
                room: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))),
                calls: Semaphore::new(calls.min(Semaphore::MAX_PERMITS)),
                state: Mutex::new(State { waiting: VecDeque::new(), batches: 0, closed: false }),
                idle: Notify::new(),
            }))),
        }
    }
}

impl Batcher<(), (), ()> {
    /// Begins a batcher.
    pub fn builder<K>() -> BatcherBuilder<K> {
        let items = NonZeroUsize::new(100).unwrap_or(NonZeroUsize::MIN);
        let plan = Plan {
            bounds: Bounds { items, weight: usize::MAX },
            max_delay: Duration::from_millis(1),
            in_flight: NonZeroUsize::MIN,
            when_full: WhenFull::Wait,
            load_timeout: None,
        };
        BatcherBuilder { plan, weigh: None }
    }
}

impl<K> fmt::Debug for BatcherBuilder<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatcherBuilder").field("plan", &self.plan).finish_non_exhaustive()
    }
}
