//! What the threads of the runtime are polling, for the watchdog.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::context::Run;
use crate::shared::Shared;

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
    /// How many polls of workers are going on in this thread, one inside the other.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
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

/// Notes that this thread polls a worker until the answer is dropped.
pub(crate) fn enter(run: Option<&Arc<Run>>) -> Entered {
    let depth = DEPTH.get();
    DEPTH.set(depth + 1);
    let Some(run) = run.filter(|_| WATCHDOGS.load(Ordering::Relaxed) > 0) else {
        return Entered { outer: None };
    };
    let (shared, worker) = (Arc::downgrade(&run.shared), Arc::clone(&run.name));
    let poll = Poll { shared, worker, since: Instant::now() };
    // No slot while the thread ends.
    Entered { outer: CURRENT.try_with(|slot| lock(slot).replace(poll)).ok() }
}

/// Puts back what was being polled before.
pub(crate) struct Entered {
    outer: Option<Option<Poll>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(outer) = self.outer.take() {
            let _ = CURRENT.try_with(|slot| *lock(slot) = outer);
        }
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Lets another thread have the task that has just been woken from a poll of a worker.
///
/// A task that is woken from a poll goes to a slot of that thread (tokio's LIFO slot) from which no other thread can take it. So a
/// worker that said something to its supervisor and then blocked would block the supervisor too. The next task that is woken takes
/// the slot, and moves the one before to the queue, from which others steal.
pub(crate) fn let_go() {
    if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
        return;
    }
    if let Ok(runtime) = Handle::try_current()
        && runtime.runtime_flavor() == RuntimeFlavor::MultiThread
    {
        runtime.spawn(async {});
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
