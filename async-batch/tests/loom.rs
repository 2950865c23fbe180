//! The wake-up set under every interleaving: `RUSTFLAGS="--cfg family_loom" cargo test -p async-batch --test loom --release`.
#![cfg(family_loom)]
#![allow(missing_docs)]

#[allow(dead_code, unreachable_pub)]
#[path = "../src/wake.rs"]
mod wake;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Wake, Waker};

use loom::thread;

/// Counts how often the task was woken.
#[derive(Default)]
struct Task(AtomicUsize);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn no_wake_up_is_lost_and_the_task_is_woken_once() {
    loom::model(|| {
        let set = Arc::new(wake::WakeSet::default());
        let block = set.block(0);
        let wakers: Vec<Waker> = (0..2).map(|slot| block.waker(slot).unwrap()).collect();
        let task = Arc::new(Task::default());
        let waker = Waker::from(Arc::clone(&task));
        let threads: Vec<_> = wakers.into_iter().map(|waker| thread::spawn(move || waker.wake())).collect();

        let (mut due, mut room) = (Vec::new(), Vec::new());
        set.take(&mut due, &mut room);
        let parked = set.park(&waker);
        for thread in threads {
            thread.join().unwrap();
        }
        if parked {
            assert_eq!(task.0.load(SeqCst), usize::from(due.len() < 2), "{due:?}");
        }
        // Whether woken or not let go: all are found now, each once.
        set.take(&mut due, &mut room);
        due.sort_unstable();
        assert_eq!(due, [0, 1]);
    });
}

#[test]
fn a_wake_up_while_the_set_is_emptied_counts_for_the_next_time() {
    loom::model(|| {
        let set = Arc::new(wake::WakeSet::default());
        let block = set.block(0);
        let waker = block.waker(0).unwrap();
        waker.wake_by_ref();
        let again = thread::spawn(move || waker.wake());
        let (mut due, mut room) = (Vec::new(), Vec::new());
        set.take(&mut due, &mut room);
        again.join().unwrap();
        // Polled once for both, or once for each: never less than once after the last.
        let before = due.len();
        set.take(&mut due, &mut room);
        assert!(before == 1 && due.len() <= 2, "{due:?}");
        assert!(set.park(Waker::noop()), "nothing is left behind");
    });
}

#[test]
fn a_nudge_is_not_lost() {
    loom::model(|| {
        let set = Arc::new(wake::WakeSet::default());
        let task = Arc::new(Task::default());
        let waker = Waker::from(Arc::clone(&task));
        let nudged = {
            let set = Arc::clone(&set);
            thread::spawn(move || set.nudge())
        };
        let parked = set.park(&waker);
        nudged.join().unwrap();
        assert_eq!(task.0.load(SeqCst), usize::from(parked));
    });
}
