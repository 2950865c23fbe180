use std::mem;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};

use bytemuck::{TransparentWrapper, TransparentWrapperAlloc as _};

#[cfg(not(family_loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

#[cfg(family_loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

/// Slots per block: one bit each.
const BLOCK: usize = 32;

/// Which slots were woken since they were last looked at, each once.
///
/// Slots come in blocks of 32, with a bit each. A wake-up sets its bit; only the first of a block also takes the lock, to
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

/// Thirty-two slots.
#[derive(Debug)]
pub(crate) struct Block {
    /// Weak: the set may hold the block, and goes with the gather whoever still has a waker.
    set: Weak<WakeSet>,
    /// The first of its slots.
    base: usize,
    bits: AtomicU32,
}

/// Wakes one slot of a block. Which one is in the type and so in the waker's table of functions: all wakers of a block
/// share its one allocation.
///
/// It serves item after item: a late wake-up of an earlier one costs the present one a poll, no more.
#[derive(TransparentWrapper)]
#[repr(transparent)]
struct Bit<const N: u32>(Block);

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
        Arc::new(Block { set: Arc::downgrade(self), base: slot - slot % BLOCK, bits: AtomicU32::new(0) })
    }
}

impl Block {
    /// The waker of a slot, if that is one of this block.
    pub(crate) fn waker(self: &Arc<Self>, slot: usize) -> Option<Waker> {
        let waker = WAKERS.get(slot.checked_sub(self.base)?)?;
        Some(waker(Arc::clone(self)))
    }

    /// Enters the block in the list.
    fn enter(self: Arc<Self>) {
        let Some(set) = self.set.upgrade() else { return };
        let mut state = set.lock();
        state.blocks.push(self);
        set.any.store(true, Ordering::Relaxed);
        WakeSet::wake(state);
    }
}

impl<const N: u32> Wake for Bit<N> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.0.bits.fetch_or(1 << N, Ordering::AcqRel) == 0 {
            Self::peel_arc(Arc::clone(self)).enter();
        }
    }
}

fn waker<const N: u32>(block: Arc<Block>) -> Waker {
    Waker::from(Bit::<N>::wrap_arc(block))
}

macro_rules! wakers {
    ($($n:literal)*) => { [$(waker::<$n>),*] };
}

const WAKERS: [fn(Arc<Block>) -> Waker; BLOCK] =
    wakers![0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31];

#[cfg(all(test, not(family_loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_waker_wakes_its_own_slot() {
        let set = Arc::new(WakeSet::default());
        for slot in 0..3 * BLOCK {
            let waker = set.block(slot).waker(slot).expect("it is in its own block");
            assert!(waker.will_wake(&waker.clone()));
            waker.wake();
            let mut due = Vec::new();
            set.take(&mut due, &mut Vec::new());
            assert_eq!(due, [slot]);
        }
        let second = set.block(BLOCK);
        assert!(second.waker(BLOCK - 1).is_none() && second.waker(2 * BLOCK).is_none());
    }

    #[test]
    fn the_set_goes_with_its_gather_whatever_was_woken() {
        let set = Arc::new(WakeSet::default());
        let gone = Arc::downgrade(&set);
        let waker = set.block(0).waker(0).expect("it is in its own block");
        waker.wake_by_ref();
        drop(set);
        assert!(gone.upgrade().is_none(), "a block in the list does not hold the list");
        waker.wake();
    }
}
