use std::future::poll_fn;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use async_policy::{Deadline, Guard as _};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{LoadError, Open, Results, Shared};
use crate::Panicked;
use crate::error::contained;

/// One bulk call, from its first key to its results.
pub(crate) struct Batch<V, E> {
    opened: Instant,
    /// Told when it is not to wait any longer.
    due: Notify,
    closed: AtomicBool,
    results: OnceLock<Outcome<V, E>>,
    /// Told when there are results.
    done: Notify,
}

enum Outcome<V, E> {
    /// By position in the bulk call; each place has its position, if it had one.
    Each(Vec<Result<V, LoadError<E>>>, Vec<Option<usize>>),
    All(LoadError<E>),
}

impl<V, E> Batch<V, E> {
    pub(crate) fn new(opened: Instant) -> Self {
        let (due, done) = (Notify::new(), Notify::new());
        Self { opened, due, closed: AtomicBool::new(false), results: OnceLock::new(), done }
    }

    /// It is not to wait for its delay any longer.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.due.notify_one();
    }

    fn publish(&self, results: Outcome<V, E>) {
        let _ = self.results.set(results);
        self.done.notify_waiters();
    }
}

/// A caller's place in a batch, given up when it is dropped before the keys are handed over.
pub(crate) struct Ticket<'b, K: Eq + Hash, V, E> {
    shared: &'b Shared<K, V, E>,
    batch: Arc<Batch<V, E>>,
    place: usize,
}

impl<'b, K: Eq + Hash, V: Clone, E: Clone> Ticket<'b, K, V, E> {
    pub(crate) const fn new(shared: &'b Shared<K, V, E>, batch: Arc<Batch<V, E>>, place: usize) -> Self {
        Self { shared, batch, place }
    }

    /// Whether its batch stops waiting for more keys before the deadline in force.
    pub(crate) fn is_due_in_time(&self) -> bool {
        let Some(deadline) = Deadline::current() else { return true };
        let due = self.batch.opened.checked_add(self.shared.plan.max_delay);
        self.batch.closed.load(Ordering::Relaxed) || due.is_some_and(|due| due < deadline.instant())
    }

    pub(crate) async fn result(self) -> Result<V, LoadError<E>> {
        loop {
            let done = self.batch.done.notified();
            match self.batch.results.get() {
                None => done.await,
                Some(Outcome::All(error)) => return Err(error.clone()),
                Some(Outcome::Each(each, positions)) => {
                    // A place that somebody waits for has been handed over.
                    let result = positions[self.place].and_then(|position| each.get(position));
                    return result.map_or(Err(LoadError::Aborted), Clone::clone);
                }
            }
        }
    }
}

impl<K: Eq + Hash, V, E> Drop for Ticket<'_, K, V, E> {
    fn drop(&mut self) {
        if self.batch.results.get().is_some() {
            return;
        }
        let mut state = self.shared.lock();
        let Some(open) = state.waiting.iter_mut().find(|open| Arc::ptr_eq(&open.batch, &self.batch)) else {
            return;
        };
        // Nobody waits for its key any more: its room is for others.
        let Some(swept) = open.keys.leave(self.place) else { return };
        open.closed = false;
        let room = open.room.as_mut().and_then(|room| room.split(1));
        drop(state);
        drop(room);
        drop(swept);
    }
}

/// A batch from when it is opened, and its end, whatever becomes of its task: a runtime may drop that before its first
/// poll.
pub(crate) struct Ending<K, V, E> {
    pub(crate) shared: Arc<Shared<K, V, E>>,
    pub(crate) batch: Arc<Batch<V, E>>,
}

impl<K, V, E> Drop for Ending<K, V, E> {
    fn drop(&mut self) {
        // Without effect where there are results.
        self.batch.publish(Outcome::All(LoadError::Aborted));
        let mut state = self.shared.lock();
        let aborted = state.hand_over(&self.batch);
        state.batches -= 1;
        let idle = state.batches == 0;
        drop(state);
        drop(aborted);
        if idle {
            self.shared.idle.notify_waiters();
        }
    }
}

/// The task of one batch.
pub(crate) async fn run<K, V, E>(ending: Ending<K, V, E>)
where
    K: Eq + Hash + Send + 'static,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    let Ending { shared, batch } = &ending;
    let due = batch.due.notified();
    match batch.opened.checked_add(shared.plan.max_delay) {
        Some(at) => drop(timeout_at(at, due).await),
        None => due.await,
    }
    // As long as there is no room for another bulk call, the batch may still take keys.
    let call = shared.calls.acquire().await;
    let Some(Open { keys, room, .. }) = shared.lock().hand_over(batch) else { return };
    let places = keys.len();
    let (wanted, unwanted) = keys.into_keys();
    drop(unwanted);
    let mut positions = vec![None; places];
    let mut keys = Vec::with_capacity(wanted.len());
    for (place, key) in wanted {
        positions[place] = Some(keys.len());
        keys.push(key);
    }
    if !keys.is_empty() {
        let count = keys.len();
        let results = match load(shared, keys).await {
            Ok(each) if each.len() == count => Outcome::Each(each, positions),
            Ok(each) => Outcome::All(LoadError::WrongCount { keys: count, results: each.len() }),
            Err(error) => Outcome::All(error),
        };
        batch.publish(results);
    }
    drop(call);
    drop(room);
    drop(ending);
}

/// Makes the bulk call.
async fn load<K, V, E>(shared: &Shared<K, V, E>, keys: Vec<K>) -> Results<V, E>
where
    K: Send,
    V: Send + Sync,
    E: Send + Sync,
{
    let mut loading = pin!(Some(async { (shared.loader)(keys).await }));
    let caught = poll_fn(|cx| {
        let poll = || loading.as_mut().as_pin_mut().map(|loading| loading.poll(cx));
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(Some(polled)) => polled,
            Ok(None) => Poll::Ready(Err(LoadError::Aborted)),
            Err(payload) => Poll::Ready(Err(LoadError::Panicked(Panicked::from_payload(payload)))),
        }
    });
    let results = shared.plan.load_timeout.run(caught).await;
    // A panic in its drop changes nothing any more.
    contained(|| loading.set(None));
    results
}
