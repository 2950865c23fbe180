mod batch;
mod builder;
mod collect;
mod error;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_policy::{Deadline, PolicyKind, Reason, Rejection, Timeout};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use batch::{Batch, Ending, Ticket};
pub use builder::{BatcherBuilder, WhenFull};
use collect::{Bounds, Collect, Joined};
pub use error::{LoadError, Loaded};

/// Makes one bulk call of many callers' single calls.
///
/// Callers [`load`](Self::load) one key each. The first one opens a batch; it closes when it has
/// [`with_max_items`](BatcherBuilder::with_max_items) keys, or as much as [`with_max_weight`](BatcherBuilder::with_max_weight) allows, or
/// when [`with_max_delay`](BatcherBuilder::with_max_delay) has passed **since the first one came**, and is handed to the loader. Callers of
/// one key share its place until the batch is handed over; who wants the key after that has it loaded again, for nothing is
/// kept. Each caller gets its own value or its own error.
///
/// The loader runs in a task of its own, so that a caller who goes away harms no other; a key that nobody waits for any
/// more when its batch closes is left out. Clones share the batches.
///
/// # Ordering and fairness
///
/// The keys of a batch are handed over in order of arrival. Callers who wait for room get it in order of arrival;
/// the one who wants a key that is already there does not need any.
///
/// # Deadlines
///
/// Under a deadline a caller is refused where its batch would not be handed over in time: looked at when it comes, and
/// again when there is room for it. How long it waits for room, for another bulk call to end, and for its own, is not known
/// beforehand: put a time-out round the call.
///
/// No caller's deadline reaches the loader: it works for all of them, each with a deadline of its own, and who gives up
/// leaves it to the others. In force inside it is that of [`with_load_timeout`](BatcherBuilder::with_load_timeout), if there is one.
///
/// # Policies
///
/// [`LoadError`] is a [`PolicyError`](async_policy::PolicyError), so a policy *executes* a load. `call` would lift the error a
/// second time: a refusal would look like the loader's own error, and a retry would try it again.
///
/// ```
/// use async_batch::{Batcher, LoadError};
/// use async_policy::{Failure, Policy, Timeout};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let users = Batcher::builder().build(async |ids: Vec<u32>| Ok::<_, String>(ids));
/// let policy = Timeout::from_millis(500); // usually with a retry, a breaker
/// assert_eq!(policy.execute(|| users.load(7)).await, Ok(7));
///
/// users.shutdown().await;
/// let error = policy.execute(|| users.load(7)).await.unwrap_err();
/// assert!(matches!(error, LoadError::Rejected(_))); // seen as a refusal by each policy
/// let twice = policy.call(|| users.load(7)).await.unwrap_err();
/// assert!(matches!(twice, Failure::Operation(LoadError::Rejected(_)))); // not so
/// # }
/// ```
///
/// # Examples
///
/// ```
/// use async_batch::Batcher;
/// use std::time::Duration;
///
/// # async fn select(ids: Vec<u32>) -> Vec<Result<String, String>> {
/// #     ids.iter().map(|id| if *id == 404 { Err("no such user".into()) } else { Ok(format!("user {id}")) }).collect()
/// # }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let users = Batcher::builder().with_max_delay(Duration::from_millis(5)).build(|ids: Vec<u32>| select(ids));
/// let (a, b, none) = tokio::join!(users.load(7), users.load(8), users.load(404)); // one select
/// assert_eq!((a.unwrap().as_str(), b.unwrap().as_str()), ("user 7", "user 8"));
/// assert_eq!(none.unwrap_err().to_string(), "no such user");
/// users.shutdown().await;
/// # }
/// ```
pub struct Batcher<K, V, E> {
    handles: Arc<Handles<K, V, E>>,
}

/// What the clones share, and the tasks of the batches do not.
struct Handles<K, V, E>(Arc<Shared<K, V, E>>);

/// With the last handle the last caller is gone: batches that wait for more keys are in vain.
impl<K, V, E> Drop for Handles<K, V, E> {
    fn drop(&mut self) {
        self.0.close_all();
    }
}

/// One for each key in the keys' order, or one for all.
type Results<V, E> = Result<Vec<Result<V, LoadError<E>>>, LoadError<E>>;
type Weigh<K> = Box<dyn Fn(&K) -> usize + Send + Sync>;
type Loader<K, V, E> = dyn Fn(Vec<K>) -> Pin<Box<dyn Future<Output = Results<V, E>> + Send>> + Send + Sync;

struct Shared<K, V, E> {
    plan: Plan,
    weigh: Option<Weigh<K>>,
    loader: Box<Loader<K, V, E>>,
    /// One permit for each key that has a place, from its arrival until its batch has ended.
    room: Arc<Semaphore>,
    /// One permit for each bulk call under way.
    calls: Semaphore,
    state: Mutex<State<K, V, E>>,
    /// Told when the last batch has ended.
    idle: Notify,
}

#[derive(Clone, Debug)]
struct Plan {
    bounds: Bounds,
    max_delay: Duration,
    in_flight: NonZeroUsize,
    when_full: WhenFull,
    load_timeout: Option<Timeout>,
}

struct State<K, V, E> {
    /// Those that have not been handed over, in the order they were opened in.
    waiting: VecDeque<Open<K, V, E>>,
    /// Batches that have not ended.
    batches: usize,
    closed: bool,
}

/// A batch that has not been handed over.
struct Open<K, V, E> {
    batch: Arc<Batch<V, E>>,
    keys: Collect<K>,
    room: Option<OwnedSemaphorePermit>,
    /// One did not fit, so that no more come in, until somebody leaves.
    closed: bool,
}

impl<K, V, E> Batcher<K, V, E>
where
    K: Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
{
    /// Loads one key, together with others.
    ///
    /// # Errors
    ///
    /// - [`LoadError::Operation`]: the loader's error for this key, or for its batch.
    /// - [`LoadError::Missing`]: the loader's map has no value for this key.
    /// - [`LoadError::Rejected`]: not loaded. No room ([`Reason::QueueFull`]), shut down ([`Reason::ShutDown`]), too heavy
    ///   by itself ([`Reason::ExceedsCapacity`]), or the deadline in force comes before its batch is handed over
    ///   ([`Reason::DeadlineTooClose`]).
    /// - [`LoadError::TimedOut`], [`LoadError::Panicked`], [`LoadError::WrongCount`], [`LoadError::Aborted`]: what became of
    ///   the bulk call; each of its callers gets it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call gives up the wait for room, or the wait for the result. The batch goes on for the others. If its
    /// key has not been handed over and no one else waits for it, it is left out.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn load(&self, key: K) -> Result<V, LoadError<E>> {
        if !Deadline::fits(Duration::ZERO) {
            return Err(refused(Reason::DeadlineTooClose));
        }
        let weight = self.handles.0.weigh.as_ref().map_or(0, |weigh| weigh(&key));
        if weight > self.handles.0.plan.bounds.weight {
            return Err(refused(Reason::ExceedsCapacity));
        }
        let ticket = self.join(key, weight).await?;
        if !ticket.is_due_in_time() {
            return Err(refused(Reason::DeadlineTooClose));
        }
        ticket.result().await
    }

    /// Takes a place, a new one or that of the same key.
    async fn join(&self, key: K, weight: usize) -> Result<Ticket<'_, K, V, E>, LoadError<E>> {
        let shared = &self.handles.0;
        let mut room = Arc::clone(&shared.room).try_acquire_owned().ok();
        let mut key = key;
        loop {
            let Some(permit) = room else {
                // Full, or shut down: only the same key can be joined.
                match shared.join_same(key) {
                    Ok(joined) => return Ok(joined),
                    Err(Refused::NoRoom(unplaced)) => key = unplaced,
                    Err(Refused::Closed) => return Err(refused(Reason::ShutDown)),
                }
                if shared.plan.when_full == WhenFull::Refuse {
                    return Err(refused(Reason::QueueFull));
                }
                let waited = Arc::clone(&shared.room).acquire_owned().await;
                room = Some(waited.map_err(|_| refused(Reason::ShutDown))?);
                if !Deadline::fits(Duration::ZERO) {
                    return Err(refused(Reason::DeadlineTooClose));
                }
                continue;
            };
            return shared.join(key, weight, permit).ok_or_else(|| refused(Reason::ShutDown));
        }
    }

    /// Takes no more keys, hands over what there is at once, and returns when every batch has ended. Callers who wait for
    /// room are refused. (Called by the loader, it would wait for itself.)
    ///
    /// # Cancel safety
    ///
    /// Dropping it, the batcher stays shut down and goes on to drain; another call waits for it.
    pub async fn shutdown(&self) {
        let shared = &self.handles.0;
        shared.room.close();
        shared.lock().closed = true;
        shared.close_all();
        loop {
            let idle = shared.idle.notified();
            if shared.lock().batches == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// Why a key got no place.
enum Refused<K> {
    NoRoom(K),
    Closed,
}

impl<K, V, E> Shared<K, V, E> {
    fn lock(&self) -> MutexGuard<'_, State<K, V, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No batch is to wait for its delay any longer.
    fn close_all(&self) {
        let waiting: Vec<_> = self.lock().waiting.iter().map(|open| Arc::clone(&open.batch)).collect();
        for batch in waiting {
            batch.close();
        }
    }
}

impl<K, V, E> State<K, V, E> {
    /// The keys of a batch, which takes no more from here on.
    fn hand_over(&mut self, batch: &Arc<Batch<V, E>>) -> Option<Open<K, V, E>> {
        let at = self.waiting.iter().position(|open| Arc::ptr_eq(&open.batch, batch))?;
        self.waiting.remove(at)
    }
}

impl<K: Eq + Hash, V, E> State<K, V, E> {
    /// The batch and the place of the same key, where somebody waits for it.
    fn join_same(&mut self, key: &K) -> Option<(usize, Arc<Batch<V, E>>)> {
        self.waiting.iter_mut().find_map(|open| Some((open.keys.join_same(key)?, Arc::clone(&open.batch))))
    }
}

/// Closed when it is dropped, however that comes.
struct Due<V, E>(Option<Arc<Batch<V, E>>>);

impl<V, E> Drop for Due<V, E> {
    fn drop(&mut self) {
        if let Some(batch) = &self.0 {
            batch.close();
        }
    }
}

impl<K, V, E> Shared<K, V, E>
where
    K: Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
{
    fn join_same(&self, key: K) -> Result<Ticket<'_, K, V, E>, Refused<K>> {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            return Err(Refused::Closed);
        }
        let joined = state.join_same(&key);
        drop(state);
        match joined {
            Some((place, batch)) => Ok(Ticket::new(self, batch, place)),
            None => Err(Refused::NoRoom(key)),
        }
    }

    /// Gives the key a place in the first batch it fits in, or opens one. `None` if the batcher has been shut down.
    fn join(
        self: &Arc<Self>,
        key: K,
        weight: usize,
        permit: OwnedSemaphorePermit,
    ) -> Option<Ticket<'_, K, V, E>> {
        let runtime = Handle::current();
        // A key's own code may panic: these are dropped after the lock then, and leave no batch without its task.
        let mut opened = None;
        let mut without_room = Due(None);
        let mut full = Due(None);
        let mut left = (None, None);
        let mut state = self.lock();
        if state.closed {
            drop(state);
            return None;
        }
        // With one batch, that asks itself.
        if state.waiting.len() > 1
            && let Some((place, batch)) = state.join_same(&key)
        {
            drop(state);
            drop((key, permit));
            return Some(Ticket::new(self, batch, place));
        }
        let mut key = Some(key);
        let mut at = 0;
        let (place, batch) = loop {
            if at == state.waiting.len() {
                without_room.0 = state.waiting.back().map(|open| Arc::clone(&open.batch));
                let batch = Arc::new(Batch::new(Instant::now()));
                state.batches += 1;
                opened = Some(Ending { shared: Arc::clone(self), batch: Arc::clone(&batch) });
                state.waiting.push_back(Open {
                    batch,
                    keys: Collect::new(self.plan.bounds),
                    room: None,
                    closed: false,
                });
            }
            let open = &mut state.waiting[at];
            if open.closed {
                at += 1;
                continue;
            }
            let Some(wanted) = key.take() else { unreachable!("put back where it did not fit") };
            match open.keys.join(wanted, weight) {
                Joined::New(place, duplicate) => {
                    left.0 = duplicate;
                    match &mut open.room {
                        Some(room) => room.merge(permit),
                        None => open.room = Some(permit),
                    }
                    if open.keys.is_full() {
                        full.0 = Some(Arc::clone(&open.batch));
                    }
                    break (place, Arc::clone(&open.batch));
                }
                Joined::Same(place, duplicate) => {
                    left = (Some(duplicate), Some(permit));
                    break (place, Arc::clone(&open.batch));
                }
                Joined::NoRoom(unplaced) => {
                    key = Some(unplaced);
                    open.closed = true;
                    at += 1;
                }
            }
        };
        drop(state);
        let ticket = Ticket::new(&**self, batch, place);
        if let Some(ending) = opened {
            runtime.spawn(batch::run(ending));
        }
        drop(left);
        Some(ticket)
    }
}

fn refused<E>(reason: Reason) -> LoadError<E> {
    LoadError::Rejected(Rejection::new(PolicyKind::Batch, reason))
}

impl<K, V, E> Clone for Batcher<K, V, E> {
    fn clone(&self) -> Self {
        Self { handles: Arc::clone(&self.handles) }
    }
}

impl<K, V, E> fmt::Debug for Batcher<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").field("plan", &self.handles.0.plan).finish_non_exhaustive()
    }
}
