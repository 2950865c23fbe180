mod clock;
mod config;
mod engine;
mod gate;
mod line;
mod quota;
#[cfg(feature = "tower")]
mod tower;
mod wait;

use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use async_policy::{ConfigError, Deadline, Name, PolicyKind, Reason, Rejection};

pub use config::RateLimitBuilder;
pub use quota::{LONGEST_BURST, Quota, TICK};
#[cfg(feature = "tower")]
pub use tower::{RateLimitFuture, RateLimitLayer, RateLimitService};

use crate::event::{Event, emit};
use crate::fifo::Key;
use crate::queue::Queue;
use crate::wake::wake_all;
pub(crate) use clock::Clock;
pub(crate) use engine::{Engine, Tat};
use gate::Gate;
pub(crate) use line::{Cells, Joined, Line, Refusal, Turn, refuse};
pub(crate) use wait::{Desk, Wait};

/// Limits how many operations are started per time: a token bucket (GCRA, by [governor](https://docs.rs/governor)).
///
/// Who finds no cell is refused, with the time after which to come again, unless
/// [`with_queue`](RateLimitBuilder::with_queue) lets callers wait. Cells are granted in the order in which waiters came; a
/// newcomer never passes them. A wait that cannot fit the longest wait or the [deadline](Deadline) is refused at once.
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
#[derive(Clone, Debug)]
pub struct RateLimit {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    gate: Gate<(Engine, Tat)>,
    line: Mutex<Line>,
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
    pub next: Duration,
    /// After how long the burst would be full again, if no cell but those waited for were taken.
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

    /// Takes `n` cells, if there are so many and nobody waits; else none. Zero cells are always granted.
    ///
    /// # Errors
    ///
    /// [`Reason::LimitReached`], with the time after which to come again; [`Reason::ExceedsCapacity`] if `n` is above the
    /// burst.
    #[inline]
    pub fn try_acquire_many(&self, n: u32) -> Result<(), Rejection> {
        if (&*self.shared).take_now(n) { Ok(()) } else { Err(self.shared.refused_now(n)) }
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
        self.acquire_many(1).await
    }

    /// Takes `n` cells, waiting for them where the queue allows. Zero cells are always granted.
    ///
    /// First come, first served: who waits for many cells is not passed by who wants few. The longest wait is judged when
    /// the waiter joins: a quota that is made slower later makes it wait longer.
    ///
    /// The front takes its cells when it is polled: a future that has joined and is then kept without being polled or dropped
    /// (in a `select!` loop, a buffered stream) holds up those behind it, beyond their longest wait too. Drop it, or spawn it.
    ///
    /// # Errors
    ///
    /// Each but the last with the time after which to come again, computed from the queue ahead:
    /// - [`Reason::LimitReached`]: no cell, and there is no queue.
    /// - [`Reason::QueueFull`]: no cell, and no room in the queue.
    /// - [`Reason::WaitTooLong`]: its turn would come after the longest wait.
    /// - [`Reason::DeadlineTooClose`]: its turn would come after the deadline that flows in from outside.
    /// - [`Reason::ExceedsCapacity`]: `n` is above the burst, at once or after the quota was changed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue and takes no cell: a cell is taken in the poll that completes.
    #[inline]
    pub async fn acquire_many(&self, n: u32) -> Result<(), Rejection> {
        Wait::new(&*self.shared, n).await
    }

    /// Changes the quota at once, without losing anybody who waits. Cells already used stay used, up to a full burst.
    ///
    /// A waiter that wants more than the new burst is refused. Costs time in proportion to those who wait; afterwards a
    /// cell costs a read lock more.
    ///
    /// # Errors
    ///
    /// As [`RateLimitBuilder::build`]; nothing is changed then.
    pub fn set_quota(&self, quota: Quota) -> Result<(), ConfigError> {
        self.shared.set_quota(quota)
    }

    /// The quota in force.
    pub fn quota(&self) -> Quota {
        self.shared.gate.look(|(engine, _)| engine.quota())
    }

    /// What it looks like now.
    #[must_use]
    pub fn snapshot(&self) -> RateSnapshot {
        let line = self.shared.lock();
        let (waiting, ahead) = (line.len(), line.cells());
        self.shared.with_engine(|engine, tat| snapshot(engine, tat.get(), waiting, ahead))
    }

    /// The name that refusals carry.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }
}

/// What an engine and a state look like now, with `waiting` waiters for `ahead` cells.
pub(crate) fn snapshot(engine: &Engine, tat: u64, waiting: usize, ahead: u64) -> RateSnapshot {
    let (quota, now) = (engine.quota(), engine.now());
    RateSnapshot {
        quota,
        available: if waiting == 0 { engine.available(tat, now) } else { 0 },
        waiting,
        next: Duration::from_nanos(engine.turn(tat, now, ahead, 1) - now),
        full: Duration::from_nanos(engine.turn(tat, now, ahead, quota.burst()) - now),
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

/// The engine and its state at one moment.
pub(crate) struct AtEngine<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) tat: &'a Tat,
    pub(crate) now: u64,
}

impl Cells for AtEngine<'_> {
    fn take(&mut self, n: u32) -> bool {
        NonZeroU32::new(n).is_none_or(|n| self.engine.take_n(self.tat, n))
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn most(&self) -> u32 {
        self.engine.quota().burst()
    }

    fn turn(&self, ahead: u64, n: u32) -> u64 {
        self.engine.turn(self.tat.get(), self.now, ahead, n)
    }

    fn are_dense(&self) -> bool {
        self.engine.is_dense()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_engine<R>(&self, f: impl FnOnce(&Engine, &Tat) -> R) -> R {
        self.gate.with(|(engine, tat)| f(engine, tat))
    }

    /// The engine and the state in force, now.
    fn with_cells<R>(&self, f: impl FnOnce(&mut AtEngine<'_>) -> R) -> R {
        self.with_engine(|engine, tat| f(&mut AtEngine { engine, tat, now: engine.now() }))
    }

    #[cold]
    fn refused_now(&self, n: u32) -> Rejection {
        let ahead = if self.gate.is_waiting() { self.lock().cells() } else { 0 };
        self.refuse(self.gate.look(|(engine, tat)| {
            let cells = AtEngine { engine, tat, now: engine.now() };
            refuse(Reason::LimitReached, n, ahead, &cells)
        }))
    }

    fn refuse(&self, refusal: Refusal) -> Rejection {
        rejection(refusal, self.name.as_ref())
    }

    fn set_quota(&self, quota: Quota) -> Result<(), ConfigError> {
        let engine = Engine::new(quota, Clock::default())?;
        let mut wakers = Vec::new();
        let mut line = self.lock();
        let mut from = quota;
        self.gate.replace(|(old, tat)| {
            from = old.quota();
            let tat = engine.adopt(old, tat.retire());
            (engine, tat)
        });
        self.with_cells(|cells| line.reckon(cells, &mut wakers));
        drop(line);
        wake_all(wakers.into_iter());
        let name = self.name.as_ref();
        emit(PolicyKind::RateLimit, name, &Event::QuotaChanged { from, to: quota });
        warn_if_too_fine(quota, self.queue, name);
        Ok(())
    }
}

impl<S: Deref<Target = Shared>> Desk for S {
    #[inline]
    fn take_now(&self, n: u32) -> bool {
        let Some(n) = NonZeroU32::new(n) else { return true };
        self.gate.take(|(engine, tat)| engine.take_n(tat, n))
    }

    fn join(&self, n: u32, waker: Waker) -> Result<Joined, Rejection> {
        // Declared before the lock, and so dropped after it is free: wakers are the caller's code.
        let mut waker = Some(waker);
        let mut line = self.lock();
        let joined = self.with_cells(|cells| line.join(n, self.queue, Deadline::fits, &mut waker, cells));
        self.gate.set_waiting(!line.is_empty());
        drop(line);
        joined.map_err(|refusal| self.refuse(refusal))
    }

    fn poll(&self, key: Key, waker: &Waker) -> (Turn, u64) {
        let mut spare = None;
        loop {
            let mut line = self.lock();
            let polled = self.with_cells(|cells| (line.poll(key, waker, &mut spare, cells), cells.now));
            self.gate.set_waiting(!line.is_empty());
            drop(line);
            if !matches!(polled.0, Turn::WakerNeeded) {
                return polled;
            }
            spare = Some(waker.clone());
        }
    }

    fn leave(&self, key: Key) {
        let mut line = self.lock();
        let left = self.with_cells(|cells| line.leave(key, cells));
        self.gate.set_waiting(!line.is_empty());
        drop(line);
        if let Some(next) = left.next {
            next.wake();
        }
    }

    fn reject(&self, reason: Reason) -> Rejection {
        self.refuse(Refusal { reason, retry_after: None })
    }

    fn waited(&self, wait: Duration) {
        emit(PolicyKind::RateLimit, self.name.as_ref(), &Event::Waited(wait));
    }
}
