//! The budget under every interleaving:
//! `RUSTFLAGS="--cfg family_loom" cargo test -p async-retry --release --test loom`.
#![cfg(family_loom)]

use std::num::NonZeroU32;

use async_retry::{After, Budget};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;

fn nonzero(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

#[test]
fn a_bucket_never_lends_more_than_it_holds_and_gets_everything_back() {
    loom::model(|| {
        let budget = Budget::token_bucket(2, nonzero(1), nonzero(2));
        let other = budget.clone();
        let thread = thread::spawn(move || {
            let token = other.try_acquire(After::TimedOut);
            assert!((0.0..=2.0).contains(&other.available()));
            drop(token);
        });
        let token = budget.try_acquire(After::Failed);
        assert!((0.0..=1.0).contains(&budget.available()) || token.is_none());
        drop(token);
        thread.join().unwrap();
        assert_eq!(budget.available(), 2.0);
    });
}

#[test]
fn spent_tokens_and_successes_add_up() {
    loom::model(|| {
        let budget = Budget::token_bucket(3, nonzero(1), nonzero(1));
        let spender = budget.clone();
        let spend = thread::spawn(move || spender.try_acquire(After::Failed).unwrap().spend());
        budget.record_success();
        drop(budget.try_acquire(After::Failed));
        spend.join().unwrap();
        // The success counts only if it came when the bucket was not full.
        assert!([2.0, 3.0].contains(&budget.available()));
    });
}

#[test]
fn extra_attempts_in_flight_stay_within_their_share() {
    loom::model(|| {
        let budget = Budget::in_flight(0.5, 1).unwrap();
        let most = Arc::new(AtomicUsize::new(0));
        let held = Arc::new(AtomicUsize::new(0));
        let work = {
            let (budget, most, held) = (budget.clone(), most.clone(), held.clone());
            move || {
                let call = budget.enter();
                if let Some(token) = budget.try_acquire(After::Failed) {
                    most.fetch_max(held.fetch_add(1, Relaxed) + 1, Relaxed);
                    held.fetch_sub(1, Relaxed);
                    token.spend();
                }
                drop(call);
            }
        };
        let thread = thread::spawn(work.clone());
        work();
        thread.join().unwrap();
        assert_eq!(most.load(Relaxed), 1, "half of two calls, and one at least");
        assert_eq!(budget.available(), 1.0);
    });
}

#[test]
fn the_throttle_stays_within_its_bounds() {
    loom::model(|| {
        let budget = Budget::grpc_throttle(1, 1.0).unwrap();
        let other = budget.clone();
        let thread = thread::spawn(move || {
            other.record_failure();
            other.record_success();
        });
        budget.record_failure();
        assert!((0.0..=1.0).contains(&budget.available()));
        thread.join().unwrap();
        assert!([0.0, 1.0].contains(&budget.available()));
    });
}
