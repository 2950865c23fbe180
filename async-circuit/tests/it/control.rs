//! Control by hand, and what outlives the process.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use async_circuit::{Cause, CircuitBreaker, Mode, OpenTime, Policy, Reason, State, Trip};
use tokio::time::advance;

use crate::breaker::quick;

async fn call(breaker: &CircuitBreaker, ok: bool) -> bool {
    let result = breaker.call(async || if ok { Ok(()) } else { Err(()) }).await;
    !matches!(result, Err(async_circuit::Failure::Rejected(_)))
}

#[tokio::test(start_paused = true)]
async fn forced_open_refuses_until_told_otherwise_and_names_no_time() {
    let breaker = quick();
    breaker.set_mode(Mode::ForcedOpen);
    advance(Duration::from_secs(86_400)).await;
    let refusal = breaker.try_acquire().unwrap_err();
    assert_eq!((refusal.reason(), refusal.retry_after()), (Reason::ForcedOpen, None));
    assert!(!refusal.reason().may_pass(), "a retry does not wait for an operator");
    assert_eq!((breaker.state(), breaker.snapshot().mode), (State::Open, Mode::ForcedOpen));
    breaker.set_mode(Mode::Automatic);
    assert!(call(&breaker, true).await);
}

#[test]
fn an_operator_says_the_mode_in_a_word() {
    for word in ["automatic", "observe_only", "forced_open", "forced_closed", "disabled"] {
        assert_eq!(word.parse::<Mode>().unwrap().to_string(), word);
    }
    assert_eq!(
        "open".parse::<Mode>().unwrap_err().to_string(),
        "invalid `mode`: \"open\"; expected one of automatic, observe_only, forced_open, forced_closed, disabled"
    );
}

#[tokio::test(start_paused = true)]
async fn forced_closed_counts_and_disabled_does_not_and_neither_opens() {
    let breaker = quick();
    for (mode, counted) in [(Mode::ForcedClosed, 4), (Mode::Disabled, 0)] {
        breaker.set_mode(mode);
        for _ in 0..10 {
            assert!(call(&breaker, false).await);
        }
        assert_eq!((breaker.state(), breaker.snapshot().failures), (State::Closed, counted), "{mode:?}");
    }
    breaker.reset();
    assert!(call(&breaker, false).await && call(&breaker, false).await);
    assert_eq!((breaker.state(), breaker.snapshot().mode), (State::Open, Mode::Automatic));
}

#[tokio::test(start_paused = true)]
async fn disabled_counts_no_success_over_a_time_either() {
    let trip = Trip::failure_rate(0.5).within(Duration::from_secs(10));
    let breaker = CircuitBreaker::builder().with_trip(trip).with_mode(Mode::Disabled).build().unwrap();
    for ok in [true, false, true] {
        assert!(call(&breaker, ok).await);
    }
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (0, 0));
    breaker.set_mode(Mode::Automatic);
    assert!(call(&breaker, true).await);
    assert_eq!(breaker.snapshot().calls, 1);
}

#[tokio::test(start_paused = true)]
async fn observing_shows_what_the_rules_would_do() {
    let n = |n| NonZeroU32::new(n).unwrap();
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(n(2)))
        .with_open_for(Duration::from_secs(1))
        .with_mode(Mode::ObserveOnly)
        .build()
        .unwrap();
    for _ in 0..10 {
        assert!(call(&breaker, false).await);
    }
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.totals.would_refuse), (State::Open, 8));
    advance(Duration::from_secs(1)).await;
    let probe = breaker.try_acquire().unwrap();
    let observed = breaker.try_acquire().unwrap();
    assert!(probe.is_probe() && !observed.is_probe());
    observed.failure();
    probe.success();
    assert_eq!(breaker.state(), State::Closed);
    breaker.reset();
    assert_eq!(breaker.snapshot().mode, Mode::ObserveOnly, "as it was built");
}

#[tokio::test(start_paused = true)]
async fn opened_by_hand_for_a_while_it_is_probed_afterwards() {
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(NonZeroU32::MIN))
        .with_open_for(OpenTime::by(|_| Duration::from_secs(7)))
        .build()
        .unwrap();
    let hour = Duration::from_secs(3600);
    let in_flight = breaker.try_acquire().unwrap();
    let mut transitions = breaker.transitions();
    breaker.open_for(hour);
    in_flight.failure();
    let refusal = breaker.try_acquire().unwrap_err();
    assert_eq!((refusal.reason(), refusal.retry_after()), (Reason::CircuitOpen, Some(hour)));
    let opened = transitions.try_next().unwrap();
    assert_eq!((opened.cause, opened.open_for), (Cause::Manual, Some(hour)));
    advance(hour).await;
    let probe = breaker.try_acquire().unwrap();
    assert!(probe.is_probe());
    // Said again, it counts from now; the probe then decides nothing.
    breaker.open_for(hour);
    probe.success();
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after(), Some(hour));
    breaker.open_for(Duration::ZERO);
    let probe = breaker.try_acquire().unwrap();
    assert!(probe.is_probe());
    probe.failure();
    let again = breaker.try_acquire().unwrap_err().retry_after();
    assert_eq!((again, breaker.snapshot().reopenings), (Some(Duration::from_secs(7)), 0));
}

#[tokio::test(start_paused = true)]
async fn opened_for_a_while_a_forced_or_disabled_breaker_follows_the_rules_again() {
    for (mode, after) in [
        (Mode::ForcedOpen, Mode::Automatic),
        (Mode::ForcedClosed, Mode::Automatic),
        (Mode::Disabled, Mode::Automatic),
        (Mode::ObserveOnly, Mode::ObserveOnly),
    ] {
        let breaker = quick();
        breaker.set_mode(mode);
        breaker.open_for(Duration::from_secs(1));
        assert_eq!((breaker.state(), breaker.snapshot().mode), (State::Open, after));
        assert_eq!(call(&breaker, true).await, after == Mode::ObserveOnly);
        advance(Duration::from_secs(1)).await;
        assert!(call(&breaker, true).await);
        assert_eq!(breaker.state(), State::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn reset_forgets_the_calls_and_those_in_flight() {
    let breaker = quick();
    let in_flight = breaker.try_acquire().unwrap();
    breaker.try_acquire().unwrap().failure();
    breaker.reset();
    in_flight.failure();
    assert_eq!((breaker.state(), breaker.snapshot().calls), (State::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn a_closure_chooses_the_open_time_from_what_it_sees() {
    let n = |n| NonZeroU32::new(n).unwrap();
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::failure_rate(0.5).of_last(n(4)).with_min_calls(n(2)))
        .with_open_for(OpenTime::by(|snapshot| {
            assert_eq!(snapshot.state, State::Open);
            Duration::from_millis(100 * snapshot.failures + 1000 * u64::from(snapshot.reopenings))
        }))
        .build()
        .unwrap();
    for (ok, open_for) in [(false, 200), (false, 1200)] {
        while breaker.state() != State::Open {
            call(&breaker, ok).await;
        }
        assert_eq!(breaker.try_acquire().unwrap_err().retry_after(), Some(Duration::from_millis(open_for)));
        advance(Duration::from_millis(open_for)).await;
        breaker.try_acquire().unwrap().failure();
    }
    // A restored time was chosen before.
    let mut saved = breaker.save();
    saved.open_for = Some(Duration::from_secs(77));
    breaker.restore(&saved);
    let left = breaker.try_acquire().unwrap_err().retry_after().unwrap();
    assert!((Duration::from_secs(70)..=Duration::from_secs(77)).contains(&left), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn the_ramp_refuses_some_calls_and_names_no_time() {
    let n = |n| NonZeroU32::new(n).unwrap();
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(n(1)))
        .with_ramp(Duration::from_secs(9))
        .with_open_for(Duration::from_secs(1))
        .build()
        .unwrap();
    breaker.try_acquire().unwrap().failure();
    advance(Duration::from_secs(1)).await;
    breaker.try_acquire().unwrap().success();
    assert_eq!((breaker.state(), breaker.snapshot().admitted), (State::Closed, 0.1));
    let mut through = 0;
    for _ in 0..100 {
        match breaker.try_acquire() {
            Ok(permit) => {
                through += 1;
                permit.success();
            }
            Err(refusal) => {
                assert_eq!((refusal.reason(), refusal.retry_after()), (Reason::RampingUp, None));
            }
        }
    }
    assert_eq!(through, 10);
    advance(Duration::from_secs(9)).await;
    for _ in 0..100 {
        breaker.try_acquire().unwrap().success();
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_does_not_forget_a_dead_backend() {
    let before = quick();
    before.try_acquire().unwrap().failure();
    before.try_acquire().unwrap().failure();
    let saved = before.save();
    assert_eq!(saved.open_for, Some(Duration::from_secs(1)));

    let after = quick();
    after.restore(&saved);
    let left = after.try_acquire().unwrap_err().retry_after().unwrap();
    assert!(left <= Duration::from_secs(1), "{left:?}");
    advance(Duration::from_secs(1)).await;
    assert!(after.try_acquire().unwrap().is_probe());
}

#[tokio::test(start_paused = true)]
async fn a_saved_state_ages_by_the_systems_clock_and_not_by_virtual_time() {
    let hours = |hours: u64| Duration::from_secs(3600 * hours);
    let breaker = CircuitBreaker::builder().with_open_for(hours(24)).build().unwrap();
    breaker.open_for(hours(24));
    let mut saved = breaker.save();
    advance(hours(8)).await;
    let left = || breaker.snapshot().retry_after.unwrap();
    assert_eq!(left(), hours(16));
    breaker.restore(&saved);
    assert!(left() > hours(23), "{:?}", left());
    saved.saved_at -= hours(8);
    breaker.restore(&saved);
    assert!((hours(15)..=hours(16)).contains(&left()), "{:?}", left());
}

#[tokio::test(start_paused = true)]
async fn the_time_between_saving_and_restoring_counts_unless_the_clock_went_backwards() {
    let before = quick();
    before.try_acquire().unwrap().failure();
    before.try_acquire().unwrap().failure();
    let hour = Duration::from_secs(3600);
    let mut saved = before.save();

    saved.saved_at = SystemTime::now() - hour;
    let after = quick();
    after.restore(&saved);
    assert!(after.try_acquire().unwrap().is_probe());

    saved.saved_at = SystemTime::now() + hour;
    let after = quick();
    after.restore(&saved);
    assert_eq!(after.try_acquire().unwrap_err().retry_after(), Some(Duration::from_secs(1)));
}
