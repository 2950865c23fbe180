use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

/// Which slots were woken since they were last polled, in order, each once.
///
/// The task is woken by the first of them only, and not while it is polling: it looks here before it parks.
#[derive(Debug, Default)]
pub(crate) struct WakeSet {
    state: Mutex<State>,
    /// Whether `state.slots` has any: spares the lock where nothing was woken.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<usize>,
    /// There while the task is parked.
    task: Option<Waker>,
    /// Something else changed: the task is not to park.
    nudged: bool,
}

impl WakeSet {
    // A waker's clone or drop is the executor's code and could panic, but never while the lock is held: no poison.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, slot: usize) {
        let mut state = self.lock();
        state.slots.push(slot);
        self.any.store(true, Ordering::Relaxed);
        Self::wake(state);
    }

    /// Wakes the task though no slot was woken.
    pub(crate) fn nudge(&self) {
        let mut state = self.lock();
        state.nudged = true;
        Self::wake(state);
    }

    fn wake(mut state: MutexGuard<'_, State>) {
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Swaps the woken slots into `into`, which must be empty.
    pub(crate) fn take(&self, into: &mut Vec<usize>) {
        if self.any.load(Ordering::Relaxed) {
            let mut state = self.lock();
            mem::swap(&mut state.slots, into);
            self.any.store(false, Ordering::Relaxed);
        }
    }

    /// Leaves the task's waker for the next slot that is woken, or the next nudge; `false` if there was one already.
    pub(crate) fn park(&self, task: &Waker) -> bool {
        let task = task.clone();
        let mut state = self.lock();
        if mem::take(&mut state.nudged) || !state.slots.is_empty() {
            drop(state);
            return false;
        }
        let before = state.task.replace(task);
        drop(state);
        drop(before);
        true
    }

    /// The waker of one slot, and the flag to clear before the slot is polled.
    pub(crate) fn waker(self: &Arc<Self>, slot: usize) -> (Waker, Arc<SlotWake>) {
        let wake = Arc::new(SlotWake { set: Arc::clone(self), slot, queued: AtomicBool::new(false) });
        (Waker::from(Arc::clone(&wake)), wake)
    }
}

/// Wakes one slot. It lives as long as the slot and serves item after item: a late wake-up of an earlier item costs
/// the present one a poll, no more.
#[derive(Debug)]
pub(crate) struct SlotWake {
    set: Arc<WakeSet>,
    slot: usize,
    queued: AtomicBool,
}

impl SlotWake {
    /// From here on a wake-up counts again.
    pub(crate) fn clear(&self) {
        self.queued.swap(false, Ordering::AcqRel);
    }
}

impl Wake for SlotWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.set.push(self.slot);
        }
    }
}
