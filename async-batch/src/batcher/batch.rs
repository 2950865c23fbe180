use std::future::poll_fn;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;

use async_policy::Guard as _;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::collect::Collect;
use super::{LoadError, Open, Shared};
use crate::Panicked;

/// One bulk call, from its first key to its results.
pub(crate) struct Batch<K, V, E> {
    opened: Instant,
    /// Told when it is not to wait any longer.
    due: Notify,
    /// Its keys, from when it takes no more until they are handed over.
    sealed: Mutex<Option<Sealed<K>>>,
    results: OnceLock<Results<V, E>>,
    /// Told when there are results.
    done: Notify,
}

type Sealed<K> = (Collect<K>, Option<OwnedSemaphorePermit>);

enum Results<V, E> {
    /// By position in the bulk call; each place has its position, if it had one.
    Each(Vec<Result<V, E>>, Vec<Option<usize>>),
    All(LoadError<E>),
}

impl<K, V, E> Batch<K, V, E> {
    pub(crate) fn new(opened: Instant) -> Self {
        let (due, done) = (Notify::new(), Notify::new());
        Self { opened, due, sealed: Mutex::default(), results: OnceLock::new(), done }
    }

    /// Takes its keys over from the open batch: no more can join.
    pub(crate) fn seal(open: Open<K, V, E>) -> Arc<Self> {
        *open.batch.sealed() = Some((open.keys, open.room));
        open.batch
    }

    /// It is not to wait for its delay any longer.
    pub(crate) fn close(&self) {
        self.due.notify_one();
    }

    fn sealed(&self) -> MutexGuard<'_, Option<Sealed<K>>> {
        self.sealed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, results: Results<V, E>) {
        let _ = self.results.set(results);
        self.done.notify_waiters();
    }
}

/// A caller's place in a batch, given up when it is dropped before the keys are handed over.
pub(crate) struct Ticket<'b, K: Eq + Hash, V, E> {
    shared: &'b Shared<K, V, E>,
    batch: Arc<Batch<K, V, E>>,
    place: usize,
}

impl<'b, K: Eq + Hash, V: Clone, E: Clone> Ticket<'b, K, V, E> {
    pub(crate) const fn new(shared: &'b Shared<K, V, E>, batch: Arc<Batch<K, V, E>>, place: usize) -> Self {
        Self { shared, batch, place }
    }

    pub(crate) async fn result(self) -> Result<V, LoadError<E>> {
        loop {
            let done = self.batch.done.notified();
            match self.batch.results.get() {
                None => done.await,
                Some(Results::All(error)) => return Err(error.clone()),
                Some(Results::Each(each, positions)) => {
                    // A place that somebody waits for has been handed over.
                    let result = positions[self.place].and_then(|position| each.get(position));
                    return result.map_or(Err(LoadError::Aborted), |result| {
                        result.clone().map_err(LoadError::Operation)
                    });
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
        match &mut state.open {
            Some(open) if Arc::ptr_eq(&open.batch, &self.batch) => open.keys.leave(self.place),
            _ => {
                if let Some((keys, _)) = &mut *self.batch.sealed() {
                    keys.leave(self.place);
                }
            }
        }
    }
}

/// Ends a batch however its task ends.
struct Ending<'b, K, V, E> {
    shared: &'b Shared<K, V, E>,
    batch: &'b Batch<K, V, E>,
}

impl<K, V, E> Drop for Ending<'_, K, V, E> {
    fn drop(&mut self) {
        // Without effect where there are results.
        self.batch.publish(Results::All(LoadError::Aborted));
        let mut state = self.shared.lock();
        let aborted = state.open.take_if(|open| std::ptr::eq(&*open.batch, self.batch));
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
pub(crate) async fn run<K, V, E>(shared: Arc<Shared<K, V, E>>, batch: Arc<Batch<K, V, E>>)
where
    K: Eq + Hash + Send + 'static,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    let ending = Ending { shared: &shared, batch: &batch };
    let due = batch.due.notified();
    match batch.opened.checked_add(shared.plan.max_delay) {
        Some(at) => drop(timeout_at(at, due).await),
        None => due.await,
    }
    // As long as there is no room for another bulk call, the batch may still take keys.
    let call = shared.calls.acquire().await;
    let Some((keys, mut room)) = shared.hand_over(&batch) else { return };
    let places = keys.len();
    let (wanted, unwanted) = keys.into_keys();
    if let Some(room) = &mut room {
        drop(room.split(unwanted.len()));
    }
    drop(unwanted);
    let mut positions = vec![None; places];
    let mut keys = Vec::with_capacity(wanted.len());
    for (place, key) in wanted {
        positions[place] = Some(keys.len());
        keys.push(key);
    }
    if !keys.is_empty() {
        let count = keys.len();
        let results = match load(&shared, keys).await {
            Ok(each) if each.len() == count => Results::Each(each, positions),
            Ok(each) => Results::All(LoadError::WrongCount { keys: count, results: each.len() }),
            Err(error) => Results::All(error),
        };
        batch.publish(results);
    }
    drop(call);
    drop(room);
    drop(ending);
}

/// Makes the bulk call.
async fn load<K, V, E>(shared: &Shared<K, V, E>, keys: Vec<K>) -> Result<Vec<Result<V, E>>, LoadError<E>>
where
    K: Send,
    V: Send + Sync,
    E: Send + Sync,
{
    let mut loading = pin!(async { (shared.loader)(keys).await });
    let caught = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| loading.as_mut().poll(cx))) {
        Ok(polled) => polled.map_err(LoadError::Operation),
        Err(payload) => Poll::Ready(Err(LoadError::Panicked(Panicked::from_payload(&*payload)))),
    });
    shared.plan.load_timeout.run(caught).await
}

impl<K, V, E> Shared<K, V, E> {
    /// The keys of a batch, which takes no more from here on.
    fn hand_over(&self, batch: &Batch<K, V, E>) -> Option<Sealed<K>> {
        let mut state = self.lock();
        if let Some(open) = state.open.take_if(|open| std::ptr::eq(&*open.batch, batch)) {
            return Some((open.keys, open.room));
        }
        drop(state);
        batch.sealed().take()
    }
}
