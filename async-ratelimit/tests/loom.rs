//! The cores that own atomics under every interleaving: `RUSTFLAGS="--cfg family_loom" cargo test -p async-ratelimit --test loom --release`.
#![cfg(family_loom)]
#![allow(dead_code, missing_docs, unreachable_pub, unused_imports, unused_macros)]

#[path = "../src/rate/counter.rs"]
mod counter;
#[path = "../src/rate/engine.rs"]
mod engine;
#[path = "../src/fifo.rs"]
mod fifo;
#[path = "../src/rate/line.rs"]
mod line;
#[path = "../src/queue.rs"]
mod queue;
#[path = "../src/rate/quota.rs"]
mod quota;
#[path = "../src/concurrency/state.rs"]
mod state;
#[path = "../src/wake.rs"]
mod wake;

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

use std::future::poll_fn;
use std::num::NonZeroU32;
use std::task::Poll;
use std::time::Duration;

use counter::Counter;
use engine::Engine;
use fifo::Key;
use loom::future::block_on;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use loom::thread;
use queue::Queue;
use quota::Quota;
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

/// A rate limit with a clock that goes on when somebody has slept.
struct Rate {
    counter: Counter,
    clock: AtomicU64,
    /// Who joined and who was granted, written under the lock of the queue.
    order: std::sync::Mutex<(Vec<usize>, Vec<usize>)>,
}

const MILLI: Duration = Duration::from_millis(1);

fn engine(interval: Duration, burst: u32) -> Engine {
    Engine::new(Quota::new(1, interval).with_burst(burst)).unwrap()
}

impl Rate {
    fn new(interval: Duration, burst: u32) -> Arc<Self> {
        let counter = Counter::new(engine(interval, burst));
        Arc::new(Self { counter, clock: AtomicU64::new(0), order: std::sync::Mutex::default() })
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// As the shell does it: lock-free, or else behind the lock.
    fn try_acquire(&self) -> bool {
        match self.counter.take(NonZeroU32::MIN, self.now()) {
            Ok(()) => true,
            Err(Some(_)) => false,
            Err(None) => self.counter.at_line(|| self.now(), |line, cells| line.is_empty() && cells.take(1)),
        }
    }

    /// As the shell does it, but that a sleep is over as soon as it begins.
    fn acquire(&self, id: usize) {
        if self.counter.take(NonZeroU32::MIN, self.now()).is_ok() {
            return;
        }
        let mut place = None;
        block_on(poll_fn(|cx| {
            loop {
                let until = match place {
                    None => {
                        let joined = self.join(id, cx.waker().clone());
                        let Some((key, until)) = joined else { return Poll::Ready(()) };
                        place = Some(key);
                        until
                    }
                    Some(key) => match self.look(id, key, cx.waker()) {
                        line::Turn::Taken(left) => {
                            wake::wake_all(left.next.into_iter());
                            return Poll::Ready(());
                        }
                        line::Turn::Waits(until) => until,
                        turn => panic!("{turn:?}"),
                    },
                };
                let Some(until) = until else { return Poll::Pending };
                self.clock.fetch_max(until, Ordering::Relaxed);
            }
        }));
    }

    /// A place, or none where the cell was there.
    fn join(&self, id: usize, waker: std::task::Waker) -> Option<(Key, Option<u64>)> {
        let mut waker = Some(waker);
        let queue = Queue { max_len: 10, max_wait: None };
        self.counter.at_line(
            || self.now(),
            |line, cells| match line.join(1, queue, |_| true, &mut waker, cells).unwrap() {
                line::Joined::Taken => None,
                line::Joined::Waits(key, until) => {
                    self.order.lock().unwrap().0.push(id);
                    Some((key, until))
                }
            },
        )
    }

    fn look(&self, id: usize, key: Key, waker: &std::task::Waker) -> line::Turn {
        let mut spare = Some(waker.clone());
        self.counter.at_line(
            || self.now(),
            |line, cells| {
                let turn = line.poll(key, waker, &mut spare, cells);
                if matches!(turn, line::Turn::Taken(_)) {
                    self.order.lock().unwrap().1.push(id);
                }
                turn
            },
        )
    }

    /// Joins the queue and gives up at once.
    fn give_up(&self) {
        let Some((key, _)) = self.join(usize::MAX, std::task::Waker::noop().clone()) else { return };
        self.order.lock().unwrap().0.retain(|id| *id != usize::MAX);
        let left = self.counter.at_line(|| self.now(), |line, cells| line.leave(key, cells));
        wake::wake_all(left.next.into_iter());
    }

    fn change(&self, to: Engine) {
        let mut wakers = Vec::new();
        self.counter.at_line(
            || self.now(),
            |line, cells| {
                cells.change(to);
                line.reckon(cells, &mut wakers);
            },
        );
        wake::wake_all(wakers.into_iter());
    }

    /// Nobody waits any more, whoever joined was granted in that order, and so many cells were used in all.
    fn ended(&self, used: Option<Duration>) {
        let order = self.order.lock().unwrap();
        assert_eq!(order.0, order.1);
        self.counter.at_line(
            || 0,
            |line, cells| {
                assert!(line.is_empty());
                assert!(used.is_none_or(|used| Duration::from_nanos(cells.arrival) == used));
            },
        );
    }
}

/// Three who want a cell each.
fn three(rate: &Arc<Rate>) {
    let others: Vec<_> = [1, 2]
        .map(|id| {
            let rate = rate.clone();
            thread::spawn(move || rate.acquire(id))
        })
        .into();
    rate.acquire(0);
    others.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn whoever_waits_for_a_cell_is_granted_one_in_order_and_no_cell_comes_from_nowhere() {
    for interval in [MILLI, MILLI / 2] {
        model(2, move || {
            let rate = Rate::new(interval, 1);
            three(&rate);
            rate.ended(None);
            // The third cell was there after two intervals.
            assert!(Duration::from_nanos(rate.now()) >= interval * 2);
        });
    }
}

#[test]
fn who_gives_up_its_place_takes_nobody_elses_wake_up_with_it() {
    for interval in [MILLI, MILLI / 2] {
        model(2, move || {
            let rate = Rate::new(interval, 1);
            assert!(rate.try_acquire());
            let fickle = thread::spawn({
                let rate = rate.clone();
                move || rate.give_up()
            });
            let other = thread::spawn({
                let rate = rate.clone();
                move || rate.acquire(1)
            });
            rate.acquire(0);
            fickle.join().unwrap();
            other.join().unwrap();
            rate.ended(None);
        });
    }
}

#[test]
fn a_change_of_quota_loses_nobody_who_waits() {
    model(2, || {
        let rate = Rate::new(MILLI * 2, 1);
        assert!(rate.try_acquire());
        let changer = thread::spawn({
            let rate = rate.clone();
            move || rate.change(engine(MILLI / 2, 1))
        });
        let other = thread::spawn({
            let rate = rate.clone();
            move || rate.acquire(1)
        });
        rate.acquire(0);
        changer.join().unwrap();
        other.join().unwrap();
        rate.ended(None);
    });
}

#[test]
fn a_changed_quota_neither_mints_nor_loses_a_cell_and_refuses_nobody() {
    model(3, || {
        let rate = Rate::new(MILLI, 2);
        let taker = thread::spawn({
            let rate = rate.clone();
            move || assert!(rate.try_acquire())
        });
        let changer = thread::spawn({
            let rate = rate.clone();
            move || {
                rate.change(engine(MILLI * 4, 2));
                rate.change(engine(MILLI * 2, 2));
            }
        });
        assert!(rate.try_acquire());
        taker.join().unwrap();
        changer.join().unwrap();
        assert!(!rate.try_acquire());
        rate.ended(Some(MILLI * 4));
    });
}
