//! What is decided without the lock, in every interleaving:
//! `RUSTFLAGS="--cfg family_loom" cargo test -p async-circuit --release --test loom`.
#![cfg(family_loom)]

use std::num::NonZeroU32;
use std::time::Duration;

use async_circuit::{CircuitBreaker, Mode, State, Trip, TripRules};
use loom::thread;

/// Opens on so many failures in a row; its times are longer than any run.
fn breaker(trip: impl Into<TripRules>) -> CircuitBreaker {
    let hour = Duration::from_secs(3600);
    CircuitBreaker::builder().with_trip(trip).with_open_for(hour).with_half_open_limit(hour).build().unwrap()
}

fn in_a_row(failures: u32) -> TripRules {
    Trip::consecutive_failures(NonZeroU32::new(failures).unwrap())
}

fn over_an_hour() -> Trip {
    Trip::failure_rate(0.5).within(Duration::from_secs(3600 * 16)).with_min_calls(NonZeroU32::MAX)
}

#[test]
fn a_caller_sees_the_circuit_closed_or_open_and_afterwards_open() {
    loom::model(|| {
        let breaker = breaker(in_a_row(1));
        let other = {
            let breaker = breaker.clone();
            thread::spawn(move || match breaker.try_acquire() {
                Ok(permit) => {
                    assert!(!permit.is_probe());
                    permit.success();
                }
                Err(refusal) => assert!(refusal.retry_after().is_some()),
            })
        };
        breaker.try_acquire().unwrap().failure();
        assert!(breaker.try_acquire().is_err(), "who opened it sees it open");
        other.join().unwrap();
        assert_eq!((breaker.state(), breaker.snapshot().epoch), (State::Open, 1));
    });
}

#[test]
fn who_lets_go_is_seen_to_have_let_go() {
    loom::model(|| {
        let breaker = breaker(in_a_row(1));
        breaker.set_mode(Mode::ForcedOpen);
        let other = {
            let breaker = breaker.clone();
            thread::spawn(move || {
                if let Err(refusal) = breaker.try_acquire() {
                    assert_eq!(refusal.retry_after(), None);
                }
            })
        };
        breaker.set_mode(Mode::Automatic);
        drop(breaker.try_acquire().unwrap());
        other.join().unwrap();
        drop(breaker.try_acquire().unwrap());
    });
}

#[test]
fn a_success_is_counted_by_its_own_epoch_or_not_at_all() {
    loom::model(|| {
        let breaker = breaker(over_an_hour());
        let other = {
            let breaker = breaker.clone();
            thread::spawn(move || breaker.try_acquire().map(|permit| permit.success()).unwrap())
        };
        let late = breaker.try_acquire().unwrap();
        breaker.reset();
        late.success();
        other.join().unwrap();
        // The other was let in before the reset, and then does not count, or after it.
        assert!(breaker.snapshot().calls <= 1);
        breaker.reset();
        assert_eq!(breaker.snapshot().calls, 0);
    });
}

#[test]
fn no_count_is_lost() {
    let of_last = |calls| Trip::failure_rate(1.0).of_last(NonZeroU32::new(calls).unwrap());
    // Good calls counted by time; laid aside; laid aside and taken in by who counts them.
    for (trip, held) in [(over_an_hour(), 5), (of_last(100), 5), (of_last(3), 3)] {
        no_count_of_this_rule_is_lost(trip.with_min_calls(NonZeroU32::MAX), held);
    }
}

fn no_count_of_this_rule_is_lost(trip: Trip, held: u64) {
    loom::model(move || {
        let breaker = breaker(trip);
        breaker.try_acquire().unwrap().failure();
        let other = {
            let breaker = breaker.clone();
            thread::spawn(move || (0..2).for_each(|_| breaker.try_acquire().unwrap().success()))
        };
        breaker.try_acquire().unwrap().success();
        breaker.try_acquire().unwrap().failure();
        other.join().unwrap();
        let snapshot = breaker.snapshot();
        assert_eq!((snapshot.calls, snapshot.totals.failures), (held, 2));
        assert!(snapshot.failures == 2 || held == 3);
    });
}

#[test]
fn a_success_that_changes_nothing_is_one_before_the_failure() {
    loom::model(|| {
        let breaker = breaker(in_a_row(2));
        let other = {
            let breaker = breaker.clone();
            thread::spawn(move || breaker.try_acquire().unwrap().success())
        };
        breaker.try_acquire().unwrap().failure();
        other.join().unwrap();
        // It came before the failure (which then is one in a row) or after it (and ended the row).
        assert!(breaker.snapshot().consecutive_failures <= 1);
        breaker.try_acquire().unwrap().success();
        assert_eq!(breaker.snapshot().consecutive_failures, 0);
    });
}

#[test]
fn one_probe_is_one() {
    loom::model(|| {
        let breaker = breaker(in_a_row(1));
        let mut saved = breaker.save();
        saved.open_for = Some(Duration::ZERO);
        breaker.restore(&saved);
        let other = {
            let breaker = breaker.clone();
            thread::spawn(move || breaker.try_acquire().map(std::mem::forget).is_ok())
        };
        let mine = breaker.try_acquire().map(std::mem::forget).is_ok();
        assert!(mine ^ other.join().unwrap());
        assert_eq!((breaker.state(), breaker.snapshot().probes_in_flight), (State::HalfOpen, 1));
    });
}
