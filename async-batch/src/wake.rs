use std::mem;
use std::sync::Arc;
use std::task::{Wake, Waker};

#[cfg(not(family_loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

#[cfg(family_loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Slots per block: one bit each.
const BLOCK: usize = 64;

/// Which slots were woken since they were last looked at, each once.
///
/// Slots come in blocks of 64, with a bit each. A wake-up sets its bit; only the first of a block also takes the lock, to
/// enter the block in the list and to wake the task, if that is parked. Invariant: a block has bits set only while it is in
/// the list, or between the two steps of the wake-up that enters it.
#[derive(Debug, Default)]
pub(crate) struct WakeSet {
    state: Mutex<State>,
    /// Whether `state.blocks` has any: spares the lock where nothing was woken.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    blocks: Vec<Arc<Block>>,
    /// There while the task is parked.
    task: Option<Waker>,
    /// Something else changed: the task is not to park.
    nudged: bool,
}

/// Sixty-four slots.
#[derive(Debug)]
pub(crate) struct Block {
    set: Arc<WakeSet>,
    /// The first of its slots.
    base: usize,
    bits: AtomicU64,
}

/// Wakes one slot. It lives as long as the slot and serves item after item: a late wake-up of an earlier item costs
/// the present one a poll, no more.
struct SlotWake {
    block: Arc<Block>,
    bit: u64,
}

impl WakeSet {
    // A waker's clone or drop is the executor's code and could panic, but never while the lock is held: no poison.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wake(mut state: MutexGuard<'_, State>) {
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Wakes the task though no slot was woken.
    pub(crate) fn nudge(&self) {
        let mut state = self.lock();
        state.nudged = true;
        Self::wake(state);
    }

    /// Moves the woken slots into `due`, so that those with the lowest numbers are last. `room` is an empty list to
    /// swap with.
    #[inline]
    pub(crate) fn take(&self, due: &mut Vec<usize>, room: &mut Vec<Arc<Block>>) {
        if self.any.load(Ordering::Relaxed) {
            self.take_blocks(due, room);
        }
    }

    fn take_blocks(&self, due: &mut Vec<usize>, blocks: &mut Vec<Arc<Block>>) {
        let mut state = self.lock();
        mem::swap(&mut state.blocks, blocks);
        self.any.store(false, Ordering::Relaxed);
        drop(state);
        for block in blocks.drain(..).rev() {
            // Out of the list already: a bit set from here on enters the block again.
            let mut bits = block.bits.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let highest = BLOCK - 1 - bits.leading_zeros() as usize;
                due.push(block.base + highest);
                bits &= !(1 << highest);
            }
        }
    }

    /// Leaves the task's waker for the next slot that is woken, or the next nudge; `false` if there was one already.
    pub(crate) fn park(&self, task: &Waker) -> bool {
        let task = task.clone();
        let mut state = self.lock();
        if mem::take(&mut state.nudged) || !state.blocks.is_empty() {
            drop(state);
            return false;
        }
        let before = state.task.replace(task);
        drop(state);
        drop(before);
        true
    }

    /// The block of a slot, to make once.
    pub(crate) fn block(self: &Arc<Self>, slot: usize) -> Arc<Block> {
        Arc::new(Block { set: Arc::clone(self), base: slot - slot % BLOCK, bits: AtomicU64::new(0) })
    }
}

impl Block {
    /// The waker of a slot, if that is one of this block.
    pub(crate) fn waker(self: &Arc<Self>, slot: usize) -> Option<Waker> {
        let bit = slot.checked_sub(self.base).filter(|bit| *bit < BLOCK)?;
        Some(Waker::from(Arc::new(SlotWake { block: Arc::clone(self), bit: 1 << bit })))
    }
}

impl Wake for SlotWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let block = &self.block;
        if block.bits.fetch_or(self.bit, Ordering::AcqRel) == 0 {
            let mut state = block.set.lock();
            state.blocks.push(Arc::clone(block));
            block.set.any.store(true, Ordering::Relaxed);
            WakeSet::wake(state);
        }
    }
}
