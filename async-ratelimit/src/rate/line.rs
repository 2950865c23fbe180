use std::task::Waker;

use crate::fifo::{Fifo, Key};

/// Where the cells come from: the engine with one state, at one moment.
pub(crate) trait Cells {
    /// Takes `n` cells if they conform.
    fn take(&mut self, n: u32) -> bool;
    /// Now, in nanoseconds since the engine's start.
    fn now(&self) -> u64;
    /// How many cells can conform at once.
    fn most(&self) -> u32;
    /// When `n` cells conform, if `ahead` cells are taken first.
    fn turn(&self, ahead: u64, n: u32) -> u64;
}

/// The queue in front of a rate limit. Each waiter sleeps until its own estimated turn, and only the front takes cells, in
/// its own poll; so nothing has ever to be given back, and cells are granted in the order of the queue.
///
/// 1. A waiter that finds its turn come but is not the front stops sleeping; who leaves the front wakes it.
/// 2. Who leaves the front also wakes the next if that one sleeps longer than it has to, because somebody before it gave up.
/// 3. A front that is too early, because cells were taken late, sleeps again.
///
/// So a waiter is woken once where timers are exact, and once more for each of these that happens to it.
#[derive(Debug)]
pub(crate) struct Line {
    queue: Fifo<Waiter>,
    /// What all in the queue wait for.
    cells: u64,
}

#[derive(Debug)]
struct Waiter {
    n: u32,
    turn: u64,
    /// Its turn has come, but it was not the front.
    due: bool,
    waker: Option<Waker>,
}

/// How a waiter stands after a poll.
#[derive(Debug)]
pub(crate) enum Turn {
    /// It has its cells and has left.
    Taken(Left),
    /// It is to sleep until then.
    Sleep(u64),
    /// It is to be woken by who is before it.
    Parked,
    /// The burst was lowered below what it asked for; it has left.
    TooMany(Left),
}

/// What is left to do for who has left, once the lock is free: wakers are the caller's code.
#[derive(Debug)]
pub(crate) struct Left {
    /// The next, who has to be told.
    pub(crate) next: Option<Waker>,
    /// Its own waker, to be dropped.
    pub(crate) _spent: Option<Waker>,
}

impl Line {
    pub(crate) const fn new() -> Self {
        Self { queue: Fifo::new(), cells: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What all in the queue wait for.
    pub(crate) const fn cells(&self) -> u64 {
        self.cells
    }

    /// Joins at the back, with its turn as estimated.
    pub(crate) fn join(&mut self, n: u32, turn: u64, waker: Waker) -> Key {
        self.cells += u64::from(n);
        self.queue.push_back(Waiter { n, turn, due: false, waker: Some(waker) })
    }

    /// Looks whether its turn has come. Who has to go on waiting leaves `waker`, and gets back the one it left before.
    pub(crate) fn poll(&mut self, key: Key, waker: &mut Option<Waker>, cells: &mut impl Cells) -> Turn {
        let front = self.queue.front() == Some(key);
        let waiter = self.queue.get_mut(key);
        let n = waiter.n;
        if n > cells.most() {
            return Turn::TooMany(self.leave(key, cells));
        }
        if front && cells.take(n) {
            return Turn::Taken(self.leave(key, cells));
        }
        if front {
            waiter.turn = cells.turn(0, n);
        }
        waiter.due = !front && cells.now() >= waiter.turn;
        std::mem::swap(&mut waiter.waker, waker);
        if waiter.due { Turn::Parked } else { Turn::Sleep(waiter.turn) }
    }

    /// Leaves the queue, with cells or without.
    pub(crate) fn leave(&mut self, key: Key, cells: &impl Cells) -> Left {
        let front = self.queue.front() == Some(key);
        let gone = self.queue.remove(key);
        self.cells -= u64::from(gone.n);
        let next = self.queue.front().filter(|_| front).and_then(|next| {
            let next = self.queue.get_mut(next);
            let wake = next.due || next.turn > cells.turn(0, next.n);
            if wake { next.waker.take() } else { None }
        });
        Left { next, _spent: gone.waker }
    }

    /// Estimates every turn anew, after the quota changed, and collects the wakers.
    pub(crate) fn reckon(&mut self, cells: &impl Cells, wakers: &mut Vec<Waker>) {
        let mut ahead = 0;
        self.queue.for_each(|waiter| {
            waiter.turn = cells.turn(ahead, waiter.n);
            waiter.due = false;
            ahead += u64::from(waiter.n);
            wakers.extend(waiter.waker.take());
        });
    }
}
