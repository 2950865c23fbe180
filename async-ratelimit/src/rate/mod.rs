mod clock;
mod config;
mod counter;
mod engine;
mod line;
mod quota;
#[cfg(feature = "tower")]
mod tower;
mod wait;

use std::fmt;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_policy::{ConfigError, Name, PolicyKind, Reason, Rejection};

pub use config::RateLimitBuilder;
pub use quota::{LONGEST_BURST, Quota, TICK};
#[cfg(feature = "tower")]
pub use tower::{RateLimitFuture, RateLimitLayer, RateLimitService};

use crate::event::{Event, emit};
use crate::queue::Queue;
use crate::wake::wake_all;
pub(crate) use clock::Watch;
use counter::Counter;
pub(crate) use engine::{Cells, Engine};
pub(crate) use line::{Line, Refusal, refuse};
pub(crate) use wait::{Desk, acquire};

/// Limits how many operations are started per time: a token bucket (GCRA, by [governor](https://docs.rs/governor)).
///
/// Who finds no cell is refused, with the time after which to come again, unless
/// [`with_queue`](RateLimitBuilder::with_queue) lets callers wait. Cells are granted in the order in which waiters came; a
/// newcomer never passes them. A wait that cannot fit the longest wait or the [deadline](async_policy::Deadline) is refused at once.
///
/// Cheap to clone; clones share one limit. While nobody waits, a cell costs one reading of the clock and one atomic operation.
///
/// ```
/// use async_ratelimit::{Quota, RateLimit};
/// use std::time::Duration;
///
/// let limit = RateLimit::builder(Quota::per_second(10).with_burst(2)).with_name("api").build().unwrap();
/// limit.try_acquire().unwrap();
/// limit.try_acquire().unwrap();
/// let refused = limit.try_acquire().unwrap_err();
/// assert!(refused.retry_after().unwrap() <= Duration::from_millis(100));
/// ```
#[derive(Clone)]
pub struct RateLimit {
    shared: Arc<Shared>,
}

struct Shared {
    watch: Watch,
    counter: Counter,
    /// The one in force; locked while it is changed.
    quota: Mutex<Quota>,
    queue: Queue,
    name: Option<Name>,
}

/// What a [`RateLimit`] looks like at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RateSnapshot {
    /// The quota in force.
    pub quota: Quota,
    /// How many cells a newcomer could take at once; none while somebody waits.
    pub available: u32,
    /// How many callers wait.
    pub waiting: usize,
    /// After how long a newcomer would get a cell, behind those who wait.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::serde::duration"))]
    pub next: Duration,
    /// After how long the burst would be full again, if no cell but those waited for were taken.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::serde::duration"))]
    pub full: Duration,
}

impl RateLimit {
    /// Begins a limit of `quota`.
    pub const fn builder(quota: Quota) -> RateLimitBuilder {
        RateLimitBuilder::new(quota)
    }

    /// Takes a cell if there is one and nobody waits.
    ///
    /// # Errors
    ///
    /// [`Reason::LimitReached`], with the time after which to come again.
    #[inline]
    pub fn try_acquire(&self) -> Result<(), Rejection> {
        self.try_acquire_many(1)
    }

    /// Takes `n` cells, if there are so many and nobody waits; else none. Zero cells are always granted, past a queue too (a
    /// concurrency limit's weight of zero takes its turn).
    ///
    /// # Errors
    ///
    /// [`Reason::LimitReached`], with the time after which to come again; [`Reason::ExceedsCapacity`] if `n` is above the
    /// burst.
    #[inline]
    pub fn try_acquire_many(&self, n: u32) -> Result<(), Rejection> {
        (&*self.shared).try_now(n)
    }

    /// Takes a cell, waiting for it where the queue allows.
    ///
    /// # Errors
    ///
    /// As [`acquire_many`](Self::acquire_many).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire_many`](Self::acquire_many).
    #[inline]
    pub async fn acquire(&self) -> Result<(), Rejection> {
        acquire(&*self.shared, 1).await
    }

    /// Takes `n` cells, waiting for them where the queue allows. Zero cells are always granted, past a queue too.
    ///
    /// First come, first served: who waits for many cells is not passed by who wants few. A wait is estimated when it begins, from the
    /// queue ahead, and refused at once if it is too long. Where it takes longer than that, because the quota was made slower or
    /// somebody ahead dawdles, it ends with the longest wait or the deadline.
    ///
    /// The front takes its cells when it is polled: a future that has joined and is then kept without being polled or dropped
    /// (in a `select!` loop, a buffered stream) holds up those behind it. Drop it, or spawn it.
    ///
    /// # Errors
    ///
    /// Each but the last with the time after which to come again, computed from the queue ahead:
    /// - [`Reason::LimitReached`]: no cell, and there is no queue.
    /// - [`Reason::QueueFull`]: no cell, and no room in the queue.
    /// - [`Reason::WaitTooLong`]: its turn would come after the longest wait, or has not come in it.
    /// - [`Reason::DeadlineTooClose`]: its turn would come after the deadline that flows in from outside, or has not come
    ///   before it.
    /// - [`Reason::ExceedsCapacity`]: `n` is above the burst in force, at once or after the quota was changed under a waiter. No wait
    ///   helps then; a quota with a larger burst does.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue and takes no cell: a cell is taken in the poll that completes.
    #[inline]
    pub async fn acquire_many(&self, n: u32) -> Result<(), Rejection> {
        acquire(&*self.shared, n).await
    }

    /// Changes the quota at once, without losing anybody who waits. Cells already used stay used, up to a full burst.
    ///
    /// The burst changes with it: a quota without one of its own ([`Quota::with_burst`]) has as many as its cells, so
    /// `per_second(500)` in place of `per_second(50)` also lets 500 start at once. A waiter that wants more than the new burst is refused
    /// with [`Reason::ExceedsCapacity`], which speaks of the quota in force then. Costs time in proportion to those who wait.
    ///
    /// # Errors
    ///
    /// As [`RateLimitBuilder::build`]; nothing is changed then.
    pub fn set_quota(&self, quota: Quota) -> Result<(), ConfigError> {
        self.shared.set_quota(quota)
    }

    /// The quota in force.
    pub fn quota(&self) -> Quota {
        *self.shared.quota()
    }

    /// What it looks like now.
    #[must_use]
    pub fn snapshot(&self) -> RateSnapshot {
        self.shared.snapshot()
    }

    /// The name that refusals carry.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }
}

/// What it looks like at one moment.
pub(crate) fn snapshot(quota: Quota, line: &Line, cells: &Cells) -> RateSnapshot {
    let after = |n| Duration::from_nanos(cells.turn(line.cells(), n) - cells.now);
    RateSnapshot {
        quota,
        available: if line.is_empty() { cells.available() } else { 0 },
        waiting: line.len(),
        next: after(1),
        full: after(quota.burst()),
    }
}

pub(crate) fn rejection(refusal: Refusal, name: Option<&Name>) -> Rejection {
    let mut rejection = Rejection::new(PolicyKind::RateLimit, refusal.reason);
    if let Some(wait) = refusal.retry_after {
        rejection = rejection.with_retry_after(wait);
    }
    if let Some(name) = name {
        rejection = rejection.with_name(name.clone());
    }
    emit(PolicyKind::RateLimit, name, &Event::Rejected(&rejection));
    rejection
}

/// Warns of a quota that callers who wait cannot reach.
pub(crate) fn warn_if_too_fine(quota: Quota, queue: Queue, name: Option<&Name>) {
    if queue.max_len > 0 && quota.is_too_fine() {
        emit(PolicyKind::RateLimit, name, &Event::QuotaTooFine(quota));
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// As the limit that it is of.
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RateSnapshot { quota, available, waiting, .. } = self.snapshot();
        let mut limit = f.debug_struct("RateLimit");
        limit.field("name", &self.name.as_deref()).field("quota", &quota);
        limit.field("available", &available).field("waiting", &waiting).finish_non_exhaustive()
    }
}

impl Shared {
    fn snapshot(&self) -> RateSnapshot {
        let quota = self.quota();
        self.at_line(|line, cells| snapshot(*quota, line, cells))
    }

    fn quota(&self) -> MutexGuard<'_, Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses, after a look behind the lock where nothing was `seen`.
    #[cold]
    fn refuse(&self, n: u32, seen: Option<Cells>) -> Result<(), Rejection> {
        let reason = Reason::LimitReached;
        let refusal = match seen {
            Some(cells) => Err(refuse(reason, n, 0, &cells)),
            None => self.at_line(|line, cells| match line.is_empty() && cells.take(n) {
                true => Ok(()),
                false => Err(refuse(reason, n, line.cells(), cells)),
            }),
        };
        refusal.map_err(|refusal| rejection(refusal, self.name.as_ref()))
    }

    fn set_quota(&self, to: Quota) -> Result<(), ConfigError> {
        let engine = Engine::new(to)?;
        let mut wakers = Vec::new();
        let mut quota = self.quota();
        let from = std::mem::replace(&mut *quota, to);
        self.at_line(|line, cells| {
            cells.change(engine);
            line.reckon(cells, &mut wakers);
        });
        drop(quota);
        wake_all(wakers.into_iter());
        let name = self.name.as_ref();
        emit(PolicyKind::RateLimit, name, &Event::QuotaChanged { from, to });
        warn_if_too_fine(to, self.queue, name);
        Ok(())
    }

    fn at_line<R>(&self, work: impl FnOnce(&mut Line, &mut Cells) -> R) -> R {
        self.counter.at_line(|| self.watch.now(), work)
    }
}

impl<S: Deref<Target = Shared>> Desk for S {
    #[inline]
    fn take_now(&self, n: u32) -> bool {
        NonZeroU32::new(n).is_none_or(|n| self.counter.take(n, self.watch.now()).is_ok())
    }

    #[inline]
    fn try_now(&self, n: u32) -> Result<(), Rejection> {
        let Some(cells) = NonZeroU32::new(n) else { return Ok(()) };
        self.counter.take(cells, self.watch.now()).or_else(|seen| self.refuse(n, seen))
    }

    fn at_line<R>(&self, work: impl FnOnce(&mut Line, &mut Cells) -> R) -> R {
        (**self).at_line(work)
    }

    fn queue(&self) -> Queue {
        self.queue
    }

    fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }
}
