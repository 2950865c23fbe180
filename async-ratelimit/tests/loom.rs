//! The cores that own atomics under every interleaving: `RUSTFLAGS="--cfg family_loom" cargo test -p async-ratelimit --test loom --release`.
#![cfg(family_loom)]
#![allow(dead_code, missing_docs, unreachable_pub)]

#[path = "../src/fifo.rs"]
mod fifo;
#[path = "../src/rate/gate.rs"]
mod gate;
#[path = "../src/concurrency/state.rs"]
mod state;
#[path = "../src/wake.rs"]
mod wake;

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicI64, AtomicU32, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard, RwLock};
}

use std::future::poll_fn;
use std::task::Poll;

use fifo::Key;
use gate::Gate;
use loom::future::block_on;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use state::{Joined, Semaphore, Turn};

/// What the shell does: try, join, and wait for the grant.
fn acquire(semaphore: &Semaphore, n: u32) {
    if semaphore.try_acquire(n) {
        return;
    }
    let mut place: Option<Key> = None;
    block_on(poll_fn(|cx| match place {
        Some(key) => match semaphore.poll(key, cx.waker()) {
            Turn::Granted => Poll::Ready(()),
            Turn::Waits => Poll::Pending,
            Turn::TooHeavy => panic!("the limit was never below it"),
        },
        None => match semaphore.join(n, 10, cx.waker().clone()) {
            Joined::Granted => Poll::Ready(()),
            Joined::Waits(key) => {
                place = Some(key);
                Poll::Pending
            }
            other => panic!("{other:?}"),
        },
    }));
}

/// Joins the queue and gives up at once; whatever it was given goes back.
fn give_up(semaphore: &Semaphore, n: u32) {
    match semaphore.join(n, 10, std::task::Waker::noop().clone()) {
        Joined::Granted => semaphore.release(n),
        Joined::Waits(key) => assert!(!semaphore.leave(key, false)),
        other => panic!("{other:?}"),
    }
}

fn model(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

fn idle(semaphore: &Semaphore, limit: u32) {
    assert_eq!(semaphore.look(), (limit, 0, 0));
    assert!(semaphore.try_acquire(limit));
}

#[test]
fn never_more_inside_than_the_limit_and_nobody_is_forgotten() {
    model(3, || {
        let shared = Arc::new((Semaphore::new(1), AtomicUsize::new(0)));
        let inside = |shared: &(Semaphore, AtomicUsize)| {
            acquire(&shared.0, 1);
            assert_eq!(shared.1.fetch_add(1, Ordering::Relaxed), 0);
            shared.1.fetch_sub(1, Ordering::Relaxed);
            shared.0.release(1);
        };
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || inside(&shared))
            })
            .collect();
        inside(&shared);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        idle(&shared.0, 1);
    });
}

#[test]
fn a_heavy_waiter_and_one_that_gives_up_leave_everything_in_place() {
    model(3, || {
        let semaphore = Arc::new(Semaphore::new(2));
        let heavy = thread::spawn({
            let semaphore = semaphore.clone();
            move || {
                acquire(&semaphore, 2);
                semaphore.release(2);
            }
        });
        let fickle = thread::spawn({
            let semaphore = semaphore.clone();
            move || give_up(&semaphore, 2)
        });
        acquire(&semaphore, 1);
        semaphore.release(1);
        heavy.join().unwrap();
        fickle.join().unwrap();
        idle(&semaphore, 2);
    });
}

#[test]
fn a_change_of_the_limit_loses_no_waiter_and_no_permit() {
    model(3, || {
        let semaphore = Arc::new(Semaphore::new(1));
        let waiter = thread::spawn({
            let semaphore = semaphore.clone();
            move || {
                acquire(&semaphore, 1);
                semaphore.release(1);
            }
        });
        let resizer = thread::spawn({
            let semaphore = semaphore.clone();
            move || {
                semaphore.set_limit(2);
                semaphore.set_limit(1);
            }
        });
        acquire(&semaphore, 1);
        semaphore.release(1);
        waiter.join().unwrap();
        resizer.join().unwrap();
        idle(&semaphore, 1);
    });
}

/// An engine with so many cells, and nothing else.
struct Cells(AtomicUsize);

impl Cells {
    fn take(&self) -> bool {
        let one_less = |cells: usize| cells.checked_sub(1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok()
    }

    fn retire(&self) -> usize {
        self.0.swap(0, Ordering::AcqRel)
    }
}

#[test]
fn a_replaced_engine_neither_mints_nor_loses_a_cell_and_refuses_nobody() {
    model(3, || {
        let gate = Arc::new(Gate::new(Cells(AtomicUsize::new(2))));
        let taker = thread::spawn({
            let gate = gate.clone();
            move || assert!(gate.take(Cells::take))
        });
        let replacer = thread::spawn({
            let gate = gate.clone();
            move || {
                for _ in 0..2 {
                    gate.replace(|old| Cells(AtomicUsize::new(old.retire())));
                }
            }
        });
        assert!(gate.take(Cells::take));
        taker.join().unwrap();
        replacer.join().unwrap();
        assert!(!gate.take(Cells::take));
        gate.replace(|_| Cells(AtomicUsize::new(1)));
        gate.set_waiting(true);
        assert!(!gate.take(Cells::take));
        gate.set_waiting(false);
        assert!(gate.take(Cells::take));
    });
}
