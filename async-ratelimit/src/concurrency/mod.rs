mod config;
mod state;
#[cfg(feature = "tower")]
mod tower;

use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use async_policy::{ConfigError, Name, PolicyKind, Reason, Rejection};
use tokio::task::coop::{poll_proceed, unconstrained};
use tokio::time::{Instant, Sleep, sleep_until};

pub use config::ConcurrencyLimitBuilder;
#[cfg(feature = "tower")]
pub use tower::{ConcurrencyLimitFuture, ConcurrencyLimitLayer, ConcurrencyLimitService};

use crate::event::{Event, emit, stopwatch};
use crate::fifo::Key;
use crate::queue::Queue;
pub(crate) use config::check_limit;
pub(crate) use state::Semaphore;
use state::{Joined, Turn};

/// Limits how many operations are in flight at once: a fair semaphore, or bulkhead.
///
/// Who finds no room is refused, unless [`with_queue`](ConcurrencyLimitBuilder::with_queue) lets callers wait. Waiters get
/// their permits in the order in which they came, whatever their weight; a newcomer never passes them. Permits are given
/// back on drop, also when the operation is dropped or panics, and go straight to who waits longest.
///
/// Cheap to clone; clones share one limit. While nobody waits, taking and giving back a permit is one atomic operation each.
///
/// ```
/// use async_ratelimit::{ConcurrencyLimit, Policy};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let limit = ConcurrencyLimit::builder(2).with_name("db").with_queue(100, Duration::from_secs(1)).build().unwrap();
/// let row = limit.call(async || Ok::<_, std::io::Error>("row")).await.unwrap();
/// assert_eq!((row, limit.in_flight()), ("row", 0));
/// # }
/// ```
#[derive(Clone)]
pub struct ConcurrencyLimit {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) semaphore: Semaphore,
    pub(crate) queue: Queue,
    pub(crate) name: Option<Name>,
}

/// What a [`ConcurrencyLimit`] looks like at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ConcurrencySnapshot {
    /// How many permits there are.
    pub limit: u32,
    /// How many of them are held; above the limit while it was lowered under them.
    pub in_flight: u32,
    /// How many callers wait.
    pub waiting: usize,
}

impl ConcurrencyLimit {
    /// Begins a limit of `limit` operations in flight, or of so much weight.
    pub const fn builder(limit: u32) -> ConcurrencyLimitBuilder {
        ConcurrencyLimitBuilder::new(limit)
    }

    /// Takes a permit if one is free and nobody waits.
    ///
    /// # Errors
    ///
    /// [`Reason::LimitReached`].
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit<'_>, Rejection> {
        self.try_acquire_many(1)
    }

    /// Takes a permit that counts as `weight`, if so much is free and nobody waits.
    ///
    /// A weight of zero takes its turn as any other: it is refused while somebody waits, or while a lowered limit has more in flight than
    /// it allows.
    ///
    /// # Errors
    ///
    /// [`Reason::LimitReached`]; [`Reason::ExceedsCapacity`] if `weight` is above the limit in force.
    #[inline]
    pub fn try_acquire_many(&self, weight: u32) -> Result<Permit<'_>, Rejection> {
        let shared = &*self.shared;
        shared.try_acquire(weight).map(|()| Permit { shared, weight })
    }

    /// [`try_acquire`](Self::try_acquire) for a permit that outlives the borrow.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    #[inline]
    pub fn try_acquire_owned(&self) -> Result<OwnedPermit, Rejection> {
        self.try_acquire_many_owned(1)
    }

    /// [`try_acquire_many`](Self::try_acquire_many) for a permit that outlives the borrow.
    ///
    /// # Errors
    ///
    /// As [`try_acquire_many`](Self::try_acquire_many).
    #[inline]
    pub fn try_acquire_many_owned(&self, weight: u32) -> Result<OwnedPermit, Rejection> {
        self.shared.try_acquire(weight).map(|()| OwnedPermit { shared: Arc::clone(&self.shared), weight })
    }

    /// Takes a permit, waiting for one where the queue allows.
    ///
    /// # Errors
    ///
    /// As [`acquire_many`](Self::acquire_many).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire_many`](Self::acquire_many).
    #[inline]
    pub async fn acquire(&self) -> Result<Permit<'_>, Rejection> {
        self.acquire_many(1).await
    }

    /// Takes a permit that counts as `weight`, waiting for it where the queue allows.
    ///
    /// First come, first served: a heavy waiter is not passed by lighter ones, and those behind it wait with it. A weight of zero takes
    /// its turn as any other.
    ///
    /// # Errors
    ///
    /// - [`Reason::LimitReached`]: no room, and there is no queue.
    /// - [`Reason::QueueFull`]: no room, neither in the queue.
    /// - [`Reason::WaitTooLong`]: the longest wait has passed.
    /// - [`Reason::DeadlineTooClose`]: the deadline that flows in from outside came first.
    /// - [`Reason::ExceedsCapacity`]: `weight` is above the limit in force, at once or after it was lowered under a waiter. No wait helps
    ///   then; a raised limit does.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue, and a permit that was on its way goes to the next.
    #[inline]
    pub async fn acquire_many(&self, weight: u32) -> Result<Permit<'_>, Rejection> {
        let shared = &*self.shared;
        let since = shared.acquire(weight).await?;
        let permit = Permit { shared, weight };
        shared.waited(since);
        Ok(permit)
    }

    /// [`acquire`](Self::acquire) for a permit that outlives the borrow: to move into a task.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    #[inline]
    pub async fn acquire_owned(&self) -> Result<OwnedPermit, Rejection> {
        self.acquire_many_owned(1).await
    }

    /// [`acquire_many`](Self::acquire_many) for a permit that outlives the borrow: to move into a task.
    ///
    /// # Errors
    ///
    /// As [`acquire_many`](Self::acquire_many).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire_many`](Self::acquire_many).
    #[inline]
    pub async fn acquire_many_owned(&self, weight: u32) -> Result<OwnedPermit, Rejection> {
        let since = self.shared.acquire(weight).await?;
        let permit = OwnedPermit { shared: Arc::clone(&self.shared), weight };
        self.shared.waited(since);
        Ok(permit)
    }

    /// Changes how many permits there are, at once and without losing anybody who waits.
    ///
    /// Raised, it lets waiters in. Lowered, it takes no permit away: nobody new comes in until enough have come back. A
    /// waiter heavier than the new limit is refused ([`Reason::ExceedsCapacity`]: more than the limit as it is then can grant) when it
    /// comes to the front, unless the limit was raised again.
    ///
    /// # Errors
    ///
    /// `limit`: zero.
    pub fn set_limit(&self, limit: u32) -> Result<(), ConfigError> {
        check_limit(limit)?;
        let from = self.shared.semaphore.set_limit(limit);
        let event = Event::LimitChanged { from, to: limit };
        emit(PolicyKind::ConcurrencyLimit, self.shared.name.as_ref(), &event);
        Ok(())
    }

    /// How many permits there are.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.shared.semaphore.limit()
    }

    /// How many permits are held.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.snapshot().in_flight
    }

    /// How many callers wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.snapshot().waiting
    }

    /// The limit, what is in flight and who waits, read at one moment.
    #[must_use]
    pub fn snapshot(&self) -> ConcurrencySnapshot {
        self.shared.snapshot()
    }

    /// The name that refusals carry.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }
}

impl fmt::Debug for ConcurrencyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// As the limit that it is of.
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConcurrencySnapshot { limit, in_flight, waiting } = self.snapshot();
        let mut all = f.debug_struct("ConcurrencyLimit");
        all.field("name", &self.name.as_deref()).field("limit", &limit);
        all.field("in_flight", &in_flight).field("waiting", &waiting).finish()
    }
}

impl Shared {
    pub(crate) fn snapshot(&self) -> ConcurrencySnapshot {
        let (limit, in_flight, waiting) = self.semaphore.look();
        ConcurrencySnapshot { limit, in_flight, waiting }
    }

    #[inline]
    pub(crate) fn try_acquire(&self, weight: u32) -> Result<(), Rejection> {
        if self.semaphore.try_acquire(weight) { Ok(()) } else { Err(self.refused_now(weight)) }
    }

    #[cold]
    fn refused_now(&self, weight: u32) -> Rejection {
        let too_heavy = weight > self.semaphore.limit();
        self.refuse(if too_heavy { Reason::ExceedsCapacity } else { Reason::LimitReached })
    }

    #[cold]
    fn refuse(&self, reason: Reason) -> Rejection {
        Self::rejection(self.name.as_ref(), reason)
    }

    pub(crate) fn rejection(name: Option<&Name>, reason: Reason) -> Rejection {
        let mut rejection = Rejection::new(PolicyKind::ConcurrencyLimit, reason);
        if let Some(name) = name {
            rejection = rejection.with_name(name.clone());
        }
        emit(PolicyKind::ConcurrencyLimit, name, &Event::Rejected(&rejection));
        rejection
    }

    /// Tells of a wait; once the permit is in hands that give it back, should a subscriber panic.
    #[inline]
    pub(crate) fn waited(&self, since: Option<Instant>) {
        if let Some(since) = since {
            emit(PolicyKind::ConcurrencyLimit, self.name.as_ref(), &Event::Waited(since.elapsed()));
        }
    }

    #[inline]
    pub(crate) async fn acquire(&self, weight: u32) -> Result<Option<Instant>, Rejection> {
        // A loop whose acquires never wait must still let others on its thread have their turn.
        poll_fn(poll_proceed).await.made_progress();
        if self.semaphore.try_acquire(weight) { Ok(None) } else { self.wait(weight).await }
    }

    #[cold]
    async fn wait(&self, weight: u32) -> Result<Option<Instant>, Rejection> {
        let mut ticket = Ticket::new(self, weight);
        match self.queue.patience() {
            None => poll_fn(|cx| ticket.poll(cx, None)).await,
            Some((at, reason)) => {
                let mut timer = pin!(sleep_until(at));
                poll_fn(|cx| ticket.poll(cx, Some((timer.as_mut(), reason)))).await
            }
        }
    }
}

/// A place in the queue, once polled; dropped, it gives back what it was given.
#[derive(Debug)]
struct Ticket<S: Deref<Target = Shared>> {
    shared: S,
    weight: u32,
    /// Its place, and since when.
    place: Option<(Key, Option<Instant>)>,
}

impl<S: Deref<Target = Shared>> Ticket<S> {
    const fn new(shared: S, weight: u32) -> Self {
        Self { shared, weight, place: None }
    }

    /// Ready with `Ok`, the permits are the caller's, to be given back by it; it waited since then, if at all.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        patience: Option<(Pin<&mut Sleep>, Reason)>,
    ) -> Poll<Result<Option<Instant>, Rejection>> {
        let semaphore = &self.shared.semaphore;
        match self.place {
            Some((key, since)) => match semaphore.poll(key, cx.waker()) {
                Turn::Waits => {}
                Turn::Granted => {
                    self.place = None;
                    return Poll::Ready(Ok(since));
                }
                Turn::TooHeavy => {
                    self.place = None;
                    return Poll::Ready(Err(self.shared.refuse(Reason::ExceedsCapacity)));
                }
            },
            None => {
                let full = match semaphore.join(self.weight, self.shared.queue.max_len, cx.waker().clone()) {
                    Joined::Granted => return Poll::Ready(Ok(None)),
                    Joined::Waits(key) => {
                        self.place = Some((key, stopwatch()));
                        None
                    }
                    Joined::Full if self.shared.queue.max_len == 0 => Some(Reason::LimitReached),
                    Joined::Full => Some(Reason::QueueFull),
                    Joined::TooHeavy => Some(Reason::ExceedsCapacity),
                };
                if let Some(reason) = full {
                    return Poll::Ready(Err(self.shared.refuse(reason)));
                }
            }
        }
        let Some((timer, reason)) = patience else { return Poll::Pending };
        if pin!(unconstrained(timer)).poll(cx).is_pending() {
            return Poll::Pending;
        }
        match self.place.take() {
            // Granted in the same moment: then it stands.
            Some((key, since)) if semaphore.leave(key, true) => Poll::Ready(Ok(since)),
            _ => Poll::Ready(Err(self.shared.refuse(reason))),
        }
    }
}

impl<S: Deref<Target = Shared>> Drop for Ticket<S> {
    fn drop(&mut self) {
        if let Some((key, _)) = self.place {
            self.shared.semaphore.leave(key, false);
        }
    }
}

/// Room for one operation; dropped, it is given back.
#[must_use = "a permit dropped at once limits nothing"]
#[derive(Debug)]
pub struct Permit<'a> {
    shared: &'a Shared,
    weight: u32,
}

impl Permit<'_> {
    /// What it counts as.
    #[must_use]
    pub const fn weight(&self) -> u32 {
        self.weight
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        self.shared.semaphore.release(self.weight);
    }
}

/// Room for one operation, to move into a task or keep in a struct; dropped, it is given back.
#[must_use = "a permit dropped at once limits nothing"]
#[derive(Debug)]
pub struct OwnedPermit {
    shared: Arc<Shared>,
    weight: u32,
}

impl OwnedPermit {
    /// What it counts as.
    #[must_use]
    pub const fn weight(&self) -> u32 {
        self.weight
    }
}

impl Drop for OwnedPermit {
    #[inline]
    fn drop(&mut self) {
        self.shared.semaphore.release(self.weight);
    }
}
