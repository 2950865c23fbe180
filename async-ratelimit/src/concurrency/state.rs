use std::iter::from_fn;
use std::mem::take;
use std::sync::PoisonError;
use std::task::Waker;

use crate::fifo::{Fifo, Key};
use crate::sync::{AtomicI64, Mutex, MutexGuard, Ordering};
use crate::wake::wake_all;

/// Set in the state word while somebody waits: newcomers then queue, and who releases looks at the queue.
const WAITING: i64 = 1;

const fn weight(n: u32) -> i64 {
    (n as i64) << 1
}

const fn free(word: i64) -> i64 {
    word >> 1
}

/// A fair weighted semaphore: one atomic word while nobody waits, and a locked queue while somebody does.
///
/// The word holds the free permits (below zero after the limit was lowered under those in flight) and the `WAITING` flag.
/// 1. `free = limit - held`, at every moment the lock is free.
/// 2. The flag is set and cleared under the lock, and is set whenever the queue is not empty.
/// 3. While it is set, permits are taken only under the lock, for the front of the queue.
///
/// A waiter is given its permits by whoever releases them; it finds them in its place.
#[derive(Debug)]
pub(crate) struct Semaphore {
    word: AtomicI64,
    waiters: Mutex<Waiters>,
}

#[derive(Debug)]
struct Waiters {
    limit: u32,
    queue: Fifo<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    n: u32,
    status: Status,
}

#[derive(Debug)]
enum Status {
    Waiting(Waker),
    Granted,
    /// The limit was lowered below what it asked for.
    TooHeavy,
}

/// How an attempt to join the queue ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    Granted,
    Waits(Key),
    Full,
    TooHeavy,
}

/// How a place in the queue stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The permits are the caller's, and its place is gone.
    Granted,
    Waits,
    /// Never to be granted, and its place is gone.
    TooHeavy,
}

/// Who to wake, and whether more may be granted after that.
struct Handed {
    waker: Option<Waker>,
    more: bool,
}

impl Semaphore {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            word: AtomicI64::new(weight(limit)),
            waiters: Mutex::new(Waiters { limit, queue: Fifo::new() }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `n` permits if they are free and nobody waits.
    #[inline]
    pub(crate) fn try_acquire(&self, n: u32) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & WAITING == 0 && word >= weight(n) {
            match self.word.compare_exchange_weak(
                word,
                word - weight(n),
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Takes `n` permits, or a place in the queue if fewer than `most` are in it.
    pub(crate) fn join(&self, n: u32, most: usize, waker: Waker) -> Joined {
        let mut waiters = self.lock();
        if n > waiters.limit {
            return Joined::TooHeavy;
        }
        loop {
            if self.try_acquire(n) {
                return Joined::Granted;
            }
            if waiters.queue.len() >= most {
                return Joined::Full;
            }
            let word = self.word.load(Ordering::Relaxed);
            let fits = word & WAITING == 0 && word >= weight(n);
            // In one step with the look at what is free, so that no release can fall between the two.
            if !fits
                && self
                    .word
                    .compare_exchange(word, word | WAITING, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return Joined::Waits(waiters.queue.push_back(Waiter { n, status: Status::Waiting(waker) }));
            }
        }
    }

    /// How it stands with `key`, to be told to `waker` when that changes.
    pub(crate) fn poll(&self, key: Key, waker: &Waker) -> Turn {
        let mut spare = None;
        loop {
            let mut waiters = self.lock();
            match &mut waiters.queue.get_mut(key).status {
                Status::Waiting(left) if left.will_wake(waker) => return Turn::Waits,
                Status::Waiting(left) => {
                    if let Some(new) = spare.take() {
                        let old = std::mem::replace(left, new);
                        drop(waiters);
                        drop(old);
                        return Turn::Waits;
                    }
                    // To clone or drop a waker is the caller's code: not under the lock.
                    drop(waiters);
                    spare = Some(waker.clone());
                }
                Status::Granted => {
                    waiters.queue.remove(key);
                    return Turn::Granted;
                }
                Status::TooHeavy => {
                    waiters.queue.remove(key);
                    return Turn::TooHeavy;
                }
            }
        }
    }

    /// Gives up a place in the queue. What it was given meanwhile goes back, or, if `keep`, to the caller: true then.
    pub(crate) fn leave(&self, key: Key, keep: bool) -> bool {
        let mut waiters = self.lock();
        let waiter = waiters.queue.remove(key);
        let granted = matches!(waiter.status, Status::Granted);
        let last = waiters.queue.is_empty();
        if last && !granted {
            // At once: a flag over an empty queue would refuse newcomers though permits are free.
            self.word.fetch_and(!WAITING, Ordering::Release);
        }
        drop(waiters);
        if granted && keep {
            return true;
        }
        if granted {
            self.release(waiter.n);
        } else if !last {
            // It may have been the front, and those behind it lighter.
            self.hand_out(0);
        }
        false
    }

    /// Gives `n` permits back, first to those who wait.
    #[inline]
    pub(crate) fn release(&self, n: u32) {
        if self.word.load(Ordering::Relaxed) & WAITING != 0 {
            // Straight to them, without a detour through the word.
            self.hand_out(weight(n));
        } else if self.word.fetch_add(weight(n), Ordering::Release) & WAITING != 0 {
            self.hand_out(0);
        }
    }

    /// Gives out what is free and what comes `back`.
    #[cold]
    fn hand_out(&self, back: i64) {
        wake_all(self.grants(back));
    }

    /// Gives out what is free and what comes `back`, as it is asked for who is to be woken.
    fn grants(&self, mut back: i64) -> impl Iterator<Item = Waker> {
        let mut more = true;
        from_fn(move || {
            while take(&mut more) {
                let handed = self.hand_to_front(take(&mut back));
                more = handed.more;
                if handed.waker.is_some() {
                    return handed.waker;
                }
            }
            None
        })
    }

    /// One at a time, because wakers are run without the lock.
    fn hand_to_front(&self, back: i64) -> Handed {
        let mut waiters = self.lock();
        let limit = waiters.limit;
        let Some(key) = waiters.queue.front() else {
            self.word.fetch_add(back, Ordering::Release);
            self.word.fetch_and(!WAITING, Ordering::Release);
            return Handed { waker: None, more: false };
        };
        let waiter = waiters.queue.get_mut(key);
        let n = waiter.n;
        let status = if n > limit {
            Status::TooHeavy
        } else if free(self.word.load(Ordering::Acquire) + back) >= i64::from(n) {
            Status::Granted
        } else {
            self.word.fetch_add(back, Ordering::Release);
            return Handed { waker: None, more: false };
        };
        let taken = if matches!(status, Status::Granted) { weight(n) } else { 0 };
        let waker = match std::mem::replace(&mut waiter.status, status) {
            Status::Waiting(waker) => Some(waker),
            _ => None,
        };
        waiters.queue.unlink(key);
        let next = waiters.queue.front().map(|next| waiters.queue.get_mut(next).n);
        let flag = if next.is_none() { WAITING } else { 0 };
        // Only releases can come between the look and this: the flag is set, and the lock is ours.
        let change = back - taken - flag;
        let left = match change {
            0 => self.word.load(Ordering::Acquire),
            _ => self.word.fetch_add(change, Ordering::AcqRel) + change,
        };
        let more = next.is_some_and(|n| n > limit || free(left) >= i64::from(n));
        Handed { waker, more }
    }

    /// Changes how many permits there are. Raised, it lets in those who wait; lowered, it takes effect as permits come back.
    pub(crate) fn set_limit(&self, limit: u32) -> u32 {
        let before = self.set_limit_only(limit);
        self.hand_out(0);
        before
    }

    /// Lets in those who fit after [`set_limit_only`](Self::set_limit_only), as it is asked for who is to be woken.
    pub(crate) fn let_in(&self) -> impl Iterator<Item = Waker> {
        self.grants(0)
    }

    /// Changes how many permits there are, and wakes nobody yet: good under another lock.
    pub(crate) fn set_limit_only(&self, limit: u32) -> u32 {
        let mut waiters = self.lock();
        let before = std::mem::replace(&mut waiters.limit, limit);
        self.word.fetch_add((i64::from(limit) - i64::from(before)) << 1, Ordering::Release);
        before
    }

    pub(crate) fn limit(&self) -> u32 {
        self.lock().limit
    }

    /// The limit, the permits held and the waiters, at one moment.
    pub(crate) fn look(&self) -> (u32, u32, usize) {
        let waiters = self.lock();
        let held = i64::from(waiters.limit) - free(self.word.load(Ordering::Acquire));
        (waiters.limit, u32::try_from(held).unwrap_or(0), waiters.queue.len())
    }
}

#[cfg(all(test, not(family_loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Try(u32),
        Join(u32),
        Leave(usize),
        Release(usize),
        Resize(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            2 => (0..5_u32).prop_map(Step::Try),
            4 => (0..5_u32).prop_map(Step::Join),
            1 => (0..16_usize).prop_map(Step::Leave),
            3 => (0..16_usize).prop_map(Step::Release),
            1 => (1..8_u32).prop_map(Step::Resize),
        ];
        prop::collection::vec(step, 1..200)
    }

    /// The same in a few plain lines.
    struct Model {
        limit: u32,
        held: Vec<u32>,
        queue: VecDeque<(Key, u32)>,
    }

    impl Model {
        fn free(&self) -> i64 {
            i64::from(self.limit) - self.held.iter().map(|n| i64::from(*n)).sum::<i64>()
        }

        fn fits(&self, n: u32) -> bool {
            self.queue.is_empty() && self.free() >= i64::from(n)
        }
    }

    proptest! {
        #[test]
        fn it_grants_what_a_plain_queue_grants_and_in_its_order(steps in steps()) {
            const MOST: usize = 6;
            let semaphore = Semaphore::new(4);
            let mut model = Model { limit: 4, held: Vec::new(), queue: VecDeque::new() };
            let waker = Waker::noop();
            for step in steps {
                match step {
                    Step::Try(n) => {
                        let fits = model.fits(n);
                        prop_assert_eq!(semaphore.try_acquire(n), fits);
                        model.held.extend(fits.then_some(n));
                    }
                    Step::Join(n) => match semaphore.join(n, MOST, waker.clone()) {
                        Joined::TooHeavy => prop_assert!(n > model.limit),
                        Joined::Granted => {
                            prop_assert!(model.fits(n));
                            model.held.push(n);
                        }
                        Joined::Full => prop_assert!(!model.fits(n) && model.queue.len() == MOST),
                        Joined::Waits(key) => {
                            prop_assert!(!model.fits(n) && n <= model.limit);
                            model.queue.push_back((key, n));
                        }
                    },
                    Step::Leave(at) if !model.queue.is_empty() => {
                        let (key, _) = model.queue.remove(at % model.queue.len()).unwrap();
                        prop_assert!(!semaphore.leave(key, true), "it had not been granted");
                    }
                    Step::Release(at) if !model.held.is_empty() => {
                        let n = model.held.swap_remove(at % model.held.len());
                        semaphore.release(n);
                    }
                    Step::Resize(limit) => {
                        prop_assert_eq!(semaphore.set_limit(limit), model.limit);
                        model.limit = limit;
                    }
                    Step::Leave(_) | Step::Release(_) => {}
                }
                // Whoever can go now has been told so, front first, and nobody else.
                while let Some(&(key, n)) = model.queue.front() {
                    if n > model.limit {
                        prop_assert_eq!(semaphore.poll(key, waker), Turn::TooHeavy);
                    } else if model.free() >= i64::from(n) {
                        prop_assert_eq!(semaphore.poll(key, waker), Turn::Granted);
                        model.held.push(n);
                    } else {
                        break;
                    }
                    model.queue.pop_front();
                }
                for (key, _) in &model.queue {
                    prop_assert_eq!(semaphore.poll(*key, waker), Turn::Waits);
                }
                let held: u32 = model.held.iter().sum();
                prop_assert_eq!(semaphore.look(), (model.limit, held, model.queue.len()));
            }
        }
    }
}
