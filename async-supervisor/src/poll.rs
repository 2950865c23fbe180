//! What the threads of the runtime are polling, for the watchdog.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use crate::handle::Shared;

/// A poll that is going on.
#[derive(Clone)]
pub(crate) struct Poll {
    pub(crate) shared: Weak<Shared>,
    pub(crate) worker: Arc<str>,
    pub(crate) since: Instant,
}

type Slot = Mutex<Option<Poll>>;

/// How many watchdogs there are. Without any, a poll costs one relaxed load.
static WATCHDOGS: AtomicUsize = AtomicUsize::new(0);
static THREADS: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

thread_local! {
    static CURRENT: Arc<Slot> = {
        let slot = Arc::new(Slot::default());
        let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| thread.strong_count() > 0);
        threads.push(Arc::downgrade(&slot));
        slot
    };
}

fn lock(slot: &Slot) -> MutexGuard<'_, Option<Poll>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that this thread polls `worker` until the answer is dropped.
#[must_use]
pub(crate) fn enter(shared: &Arc<Shared>, worker: &Arc<str>) -> Option<Entered> {
    if WATCHDOGS.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let poll = Poll { shared: Arc::downgrade(shared), worker: Arc::clone(worker), since: Instant::now() };
    // No slot while the thread ends.
    CURRENT.try_with(|slot| lock(slot).replace(poll)).ok().map(|outer| Entered { outer })
}

/// Puts back what was being polled before: a supervisor is itself polled as a child.
pub(crate) struct Entered {
    outer: Option<Poll>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let _ = CURRENT.try_with(|slot| *lock(slot) = self.outer.take());
    }
}

/// One more watchdog, until it is dropped.
pub(crate) struct Watching(());

impl Watching {
    pub(crate) fn new() -> Self {
        WATCHDOGS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        WATCHDOGS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The polls that are going on now.
pub(crate) fn going_on() -> Vec<Poll> {
    let threads: Vec<_> =
        THREADS.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect();
    threads.iter().filter_map(|slot| lock(slot).clone()).collect()
}
