use std::num::NonZeroU32;
use std::time::SystemTime;

use super::*;
use crate::{OpenTime, Trip, TripRules};

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn at(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn circuit_with(change: impl FnOnce(&mut Config)) -> Circuit {
    let mut config = Config { open_for: at(60.0).into(), ..Config::default() };
    change(&mut config);
    Circuit::new(Arc::new(config), 0)
}

fn circuit(trip: impl Into<TripRules>, probes: u32) -> Circuit {
    circuit_with(|config| (config.trip, config.probes) = (trip.into(), n(probes)))
}

fn rate(rate: f64, window: u32, min: u32) -> Trip {
    Trip::failure_rate(rate).of_last(n(window)).with_min_calls(n(min))
}

/// The stamp of a call that has to be let in.
fn admit(circuit: &mut Circuit, now: f64) -> Stamp {
    match circuit.admit(at(now)) {
        Admission::Admitted(stamp) => stamp,
        other => panic!("{other:?}"),
    }
}

fn refused(circuit: &mut Circuit, now: f64) -> Refusal {
    match circuit.admit(at(now)) {
        Admission::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

fn end(circuit: &mut Circuit, stamp: Stamp, ending: Ending, now: f64) {
    circuit.record(stamp, ending, Duration::ZERO, at(now));
}

/// Calls one after the other: `S` success, `F` failure, `P` panic, `L` a success that took a second, `X` a failure that did, `I`
/// ignored, anything else aborted.
fn feed(circuit: &mut Circuit, now: f64, calls: &str) {
    for call in calls.chars() {
        let stamp = admit(circuit, now);
        let (ending, took) = match call {
            'S' => (Ending::Success, 0.0),
            'L' => (Ending::Success, 1.0),
            'F' => (Ending::Failure, 0.0),
            'X' => (Ending::Failure, 1.0),
            'P' => (Ending::Panicked, 0.0),
            'I' => (Ending::Ignored, 0.0),
            _ => (Ending::Aborted, 9.0),
        };
        circuit.record(stamp, ending, at(took), at(now));
    }
}

fn counts(circuit: &mut Circuit, now: f64) -> (u64, u64) {
    let snapshot = circuit.snapshot(at(now));
    (snapshot.calls, snapshot.failures)
}

#[test]
fn so_many_failures_in_a_row_open_it_for_its_time() {
    // gobreaker's defaults: more than 5 in a row, 60 s, 1 probe.
    let mut circuit = circuit(Trip::consecutive_failures(n(6)), 1);
    feed(&mut circuit, 0.0, "FFFFF");
    assert_eq!(circuit.state(), State::Closed);
    feed(&mut circuit, 0.0, "SFFFFF");
    assert_eq!(circuit.state(), State::Closed);
    feed(&mut circuit, 0.0, "F");
    assert_eq!(circuit.state(), State::Open);
    assert_eq!(refused(&mut circuit, 59.999).retry_after, Some(Duration::from_millis(1)));
    feed(&mut circuit, 60.0, "F");
    assert_eq!(circuit.state(), State::Open);
    feed(&mut circuit, 120.0, "S");
    assert_eq!(circuit.state(), State::Closed);
}

#[test]
fn a_row_is_broken_by_a_success_only() {
    for (calls, state) in [("FIF.F", State::Open), ("FFSF", State::Closed), ("PFP", State::Open)] {
        let mut circuit = circuit(Trip::consecutive_failures(n(3)), 1);
        feed(&mut circuit, 0.0, calls);
        assert_eq!(circuit.state(), state, "{calls}");
    }
}

#[test]
fn the_ratio_opens_on_a_failure_once_the_minimum_is_reached() {
    for (ratio, min, closed, opens) in [
        (0.6, 3, "FS", "F"),
        (0.5, 5, "SSSFF", "F"),
        (1.0, 2, "F", "F"),
        (0.5, 4, "FFF.I", "F"),
        (0.5, 2, "F", "P"),
    ] {
        let mut circuit = circuit(rate(ratio, 100, min), 1);
        feed(&mut circuit, 0.0, closed);
        assert_eq!(circuit.state(), State::Closed, "{closed}");
        feed(&mut circuit, 0.0, opens);
        assert_eq!(circuit.state(), State::Open, "{closed}{opens}");
    }
}

#[test]
fn a_success_never_opens() {
    for trip in [rate(0.5, 10, 4), rate(0.5, 10, 4).within(at(10.0))] {
        let mut circuit = circuit(trip, 1);
        feed(&mut circuit, 0.0, "FFFS");
        assert_eq!((circuit.state(), counts(&mut circuit, 0.0)), (State::Closed, (4, 3)));
        feed(&mut circuit, 0.0, "F");
        assert_eq!(circuit.state(), State::Open);
    }
}

#[test]
fn three_slow_of_five_open_at_half() {
    for slow in [Trip::slow_rate(0.5, at(0.5)), Trip::slow_rate(0.5, at(0.5)).within(at(10.0))] {
        let mut circuit = circuit(slow.with_min_calls(n(5)), 1);
        feed(&mut circuit, 0.0, "SLSL");
        assert_eq!(circuit.state(), State::Closed);
        feed(&mut circuit, 0.0, "L");
        assert_eq!(circuit.state(), State::Open);
        assert_eq!(circuit.next_turn().unwrap().cause, Cause::SlowRate);
    }
}

#[test]
fn slow_is_longer_than_the_limit_and_an_aborted_call_is_not_slow() {
    let mut circuit = circuit(Trip::slow_rate(1.0, at(1.0)).with_min_calls(n(1)), 1);
    feed(&mut circuit, 0.0, "LLX...");
    assert_eq!((circuit.state(), circuit.snapshot(at(0.0)).totals.slow), (State::Closed, 0));
    let stamp = admit(&mut circuit, 0.0);
    circuit.record(stamp, Ending::Success, at(1.001), at(0.0));
    assert_eq!(circuit.state(), State::Closed, "one of four");
}

#[test]
fn rules_combine_with_or_and_the_first_that_holds_is_the_cause() {
    let trip = rate(0.5, 10, 4)
        .or(Trip::consecutive_failures(n(3)))
        .or(Trip::slow_rate(0.5, at(0.5)).with_min_calls(n(2)));
    for (calls, cause) in [
        ("FFF", Cause::ConsecutiveFailures),
        ("FSSF", Cause::FailureRate),
        ("FFSF", Cause::FailureRate),
        ("SL", Cause::SlowRate),
        ("SX", Cause::SlowRate),
    ] {
        let mut circuit = circuit(trip.clone(), 1);
        feed(&mut circuit, 0.0, calls);
        assert_eq!(circuit.next_turn().map(|turn| turn.cause), Some(cause), "{calls}");
    }
}

#[test]
fn the_window_slides_over_exactly_the_last_calls() {
    let mut circuit = circuit(rate(0.5, 100, 20), 1);
    feed(&mut circuit, 0.0, &"S".repeat(10_000));
    assert!(circuit.is_spotless());
    feed(&mut circuit, 0.0, &"F".repeat(49));
    assert_eq!((circuit.state(), counts(&mut circuit, 0.0)), (State::Closed, (100, 49)));
    feed(&mut circuit, 0.0, "F");
    assert_eq!(circuit.state(), State::Open);
}

#[test]
fn a_window_over_time_forgets() {
    for window in [0.004, 10.0, 86_400.0] {
        let mut circuit = circuit(Trip::failure_rate(0.5).within(at(window)).with_min_calls(n(2)), 1);
        feed(&mut circuit, 0.0, "F");
        feed(&mut circuit, window * 1.01, "F");
        assert_eq!(
            (circuit.state(), counts(&mut circuit, window * 1.01)),
            (State::Closed, (1, 1)),
            "{window}"
        );
        feed(&mut circuit, window * 1.5, "F");
        assert_eq!(circuit.state(), State::Open, "{window}");
    }
}

#[test]
fn half_open_is_judged_by_rate_as_soon_as_it_is_certain() {
    for (probes, state) in [
        ("FSS", State::HalfOpen),
        ("FSSS", State::Closed),
        ("FF", State::Open),
        ("F.S.SIS", State::Closed),
        ("SSS", State::Closed),
        ("PF", State::Open),
    ] {
        let mut circuit = circuit(rate(0.5, 10, 1), 4);
        feed(&mut circuit, 0.0, "F");
        feed(&mut circuit, 60.0, probes);
        assert_eq!(circuit.state(), state, "{probes}");
    }
}

#[test]
fn half_open_is_judged_by_successes_in_a_row() {
    for (probes, state) in
        [("SS", State::HalfOpen), ("SSS", State::Closed), ("SSF", State::Open), ("F", State::Open)]
    {
        let mut circuit = circuit_with(|config| {
            config.trip = rate(0.5, 10, 1).into();
            (config.recovery, config.probes) = (Recovery::InARow, n(3));
        });
        feed(&mut circuit, 0.0, "F");
        feed(&mut circuit, 60.0, probes);
        assert_eq!(circuit.state(), state, "{probes}");
    }
}

#[test]
fn a_slow_probe_has_failed() {
    let mut circuit = circuit(Trip::slow_rate(0.5, at(0.5)).with_min_calls(n(1)), 1);
    feed(&mut circuit, 0.0, "L");
    feed(&mut circuit, 60.0, "L");
    assert_eq!(circuit.state(), State::Open);
}

#[test]
fn probes_in_flight_and_in_all_are_bounded_and_an_aborted_one_gives_its_place_back() {
    let mut circuit = circuit(rate(0.5, 10, 1), 2);
    feed(&mut circuit, 0.0, "F");
    let first = admit(&mut circuit, 60.0);
    let second = admit(&mut circuit, 60.0);
    assert_eq!(refused(&mut circuit, 60.0), Refusal { reason: Reason::ProbesTaken, retry_after: None });
    end(&mut circuit, first, Ending::Aborted, 60.0);
    assert_eq!(admit(&mut circuit, 60.0), first);
    end(&mut circuit, first, Ending::Ignored, 60.0);
    end(&mut circuit, second, Ending::Failure, 60.0);
    assert_eq!(circuit.state(), State::Open, "one of two is half");
}

#[test]
fn a_hung_probe_cannot_block_the_circuit() {
    let mut circuit = circuit(rate(0.5, 10, 1), 1);
    feed(&mut circuit, 0.0, "F");
    let hung = admit(&mut circuit, 60.0);
    assert_eq!(refused(&mut circuit, 119.0).reason, Reason::ProbesTaken);
    assert_eq!(refused(&mut circuit, 120.0).reason, Reason::CircuitOpen);
    let fresh = admit(&mut circuit, 180.0);
    end(&mut circuit, hung, Ending::Failure, 180.0);
    assert_eq!(circuit.state(), State::HalfOpen, "a result from an earlier epoch changes nothing");
    end(&mut circuit, fresh, Ending::Success, 180.0);
    assert_eq!(circuit.state(), State::Closed);
}

#[test]
fn a_probe_that_was_not_waited_for_still_takes_its_place_until_its_time_is_over() {
    let mut circuit = circuit_with(|config| {
        config.trip = rate(0.5, 10, 1).into();
        (config.probes, config.open_for) = (n(2), at(1.0).into());
    });
    feed(&mut circuit, 0.0, "F");
    let slow = admit(&mut circuit, 1.0);
    feed(&mut circuit, 1.0, "F");
    assert_eq!(circuit.state(), State::Open, "one of two is half");
    let one = admit(&mut circuit, 2.0);
    assert_eq!(refused(&mut circuit, 2.0).reason, Reason::ProbesTaken, "two are in flight");
    end(&mut circuit, slow, Ending::Success, 3.0);
    let two = admit(&mut circuit, 3.0);
    end(&mut circuit, one, Ending::Failure, 3.0);
    // The second hangs: after its time it is counted no more.
    assert_eq!(admit(&mut circuit, 4.0).epoch, circuit.epoch());
    assert_eq!(refused(&mut circuit, 4.0).reason, Reason::ProbesTaken);
    admit(&mut circuit, 62.0);
    end(&mut circuit, two, Ending::Success, 63.0);
    assert_eq!(circuit.state(), State::HalfOpen);
}

#[test]
fn a_probe_that_answers_after_the_limit_decides_nothing() {
    let mut circuit = circuit(rate(0.5, 10, 1), 1);
    feed(&mut circuit, 0.0, "F");
    let late = admit(&mut circuit, 60.0);
    end(&mut circuit, late, Ending::Success, 120.0);
    assert_eq!(circuit.state(), State::Open);
    assert_eq!(refused(&mut circuit, 121.0).retry_after, Some(at(59.0)));
}

#[test]
fn late_results_of_the_closed_time_are_inert() {
    for trip in [rate(0.5, 10, 1), rate(0.5, 10, 1).within(at(600.0))] {
        let mut circuit = circuit(trip, 1);
        let late = admit(&mut circuit, 0.0);
        feed(&mut circuit, 0.0, "F");
        end(&mut circuit, late, Ending::Success, 1.0);
        assert_eq!(circuit.state(), State::Open);
        let probe = admit(&mut circuit, 60.0);
        end(&mut circuit, late, Ending::Success, 60.0);
        assert_eq!(circuit.state(), State::HalfOpen);
        end(&mut circuit, probe, Ending::Success, 60.0);
        end(&mut circuit, late, Ending::Failure, 60.0);
        assert_eq!((circuit.state(), counts(&mut circuit, 60.0)), (State::Closed, (0, 0)));
    }
}

#[test]
fn the_open_time_grows_with_each_reopening_until_a_recovery() {
    let mut circuit = circuit_with(|config| {
        config.trip = rate(0.5, 10, 1).into();
        config.open_for = OpenTime::growing(at(1.0), at(3.0));
    });
    let mut now = 0.0;
    for (times, call) in [(1.0, "F"), (2.0, "F"), (3.0, "F"), (3.0, "S")] {
        feed(&mut circuit, now, "F");
        assert_eq!(circuit.snapshot(at(now)).retry_after, Some(at(times)));
        now += times;
        if call == "S" {
            feed(&mut circuit, now, "S");
        }
    }
    assert_eq!((circuit.state(), circuit.snapshot(at(now)).reopenings), (State::Closed, 0));
    feed(&mut circuit, now, "F");
    assert_eq!(circuit.snapshot(at(now)).retry_after, Some(at(1.0)));
}

#[test]
fn a_time_chosen_for_an_earlier_opening_changes_nothing() {
    let mut circuit = circuit_with(|config| {
        config.trip = rate(0.5, 10, 1).into();
        config.open_for = OpenTime::by(|_| unreachable!("the shell asks"));
    });
    feed(&mut circuit, 0.0, "F");
    let first = circuit.next_turn().unwrap();
    circuit.reset(at(1.0));
    circuit.set_open_for(&first, at(9.0));
    assert_eq!(circuit.state(), State::Closed);
    feed(&mut circuit, 2.0, "F");
    circuit.set_open_for(&first, at(9.0));
    assert_eq!(circuit.snapshot(at(2.0)).retry_after, Some(DEFAULT_OPEN_FOR));
}

#[test]
fn jitter_is_the_same_for_the_same_seed_and_within_its_bounds() {
    let times = |seed| {
        let mut circuit = circuit_with(|config| {
            config.trip = rate(0.5, 10, 1).into();
            config.open_for = OpenTime::fixed(at(10.0)).with_jitter(0.3);
            config.seed = Some(seed);
        });
        let mut now = 0.0;
        std::iter::repeat_with(|| {
            feed(&mut circuit, now, "F");
            let time = circuit.snapshot(at(now)).retry_after.unwrap();
            assert!((at(7.0)..=at(10.0)).contains(&time), "{time:?}");
            now += 10.0;
            time
        })
        .take(20)
        .collect::<Vec<_>>()
    };
    assert_eq!(times(1), times(1));
    assert_ne!(times(1), times(2));
}

#[test]
fn the_ramp_lets_an_even_and_growing_share_through() {
    let mut circuit = circuit_with(|config| {
        config.trip = rate(0.5, 10, 1).into();
        (config.ramp, config.open_for) = (Some(at(9.0)), OpenTime::growing(at(60.0), at(600.0)));
    });
    feed(&mut circuit, 0.0, "F");
    feed(&mut circuit, 60.0, "S");
    let through = |circuit: &mut Circuit, now: f64| {
        (0..100).filter(|_| matches!(circuit.admit(at(now)), Admission::Admitted(_))).count()
    };
    assert_eq!(through(&mut circuit, 60.0), 10);
    assert_eq!(through(&mut circuit, 64.0), 50);
    assert!(!circuit.lets_all_in());
    let refusal = loop {
        if let Admission::Refused(refusal) = circuit.admit(at(64.0)) {
            break refusal;
        }
    };
    assert_eq!(refusal, Refusal { reason: Reason::RampingUp, retry_after: None });
    // A failure on the ramp is a reopening.
    let call = loop {
        if let Admission::Admitted(stamp) = circuit.admit(at(64.0)) {
            break stamp;
        }
    };
    end(&mut circuit, call, Ending::Failure, 64.0);
    assert_eq!(circuit.snapshot(at(64.0)).retry_after, Some(at(120.0)));
    feed(&mut circuit, 200.0, "S");
    assert_eq!(through(&mut circuit, 209.0), 100);
    assert!(circuit.lets_all_in());
    feed(&mut circuit, 209.0, "F");
    assert_eq!(circuit.snapshot(at(209.0)).retry_after, Some(at(60.0)), "recovered");
}

#[test]
fn modes_decide_over_the_rules() {
    let mut circuit = circuit(rate(0.5, 10, 1), 1);
    circuit.set_mode(Mode::ForcedOpen, at(0.0));
    assert_eq!(refused(&mut circuit, 1e9), Refusal { reason: Reason::ForcedOpen, retry_after: None });
    assert_eq!(circuit.refuses_until(), Some(Duration::MAX));

    circuit.set_mode(Mode::ForcedClosed, at(0.0));
    feed(&mut circuit, 0.0, "FFFF");
    assert_eq!((circuit.state(), counts(&mut circuit, 0.0)), (State::Closed, (4, 4)));

    circuit.set_mode(Mode::Disabled, at(0.0));
    feed(&mut circuit, 0.0, "FFFF");
    assert_eq!((circuit.state(), counts(&mut circuit, 0.0)), (State::Closed, (0, 0)));
    assert!(circuit.lets_all_in() && circuit.is_spotless());

    let late = admit(&mut circuit, 0.0);
    circuit.set_mode(Mode::Automatic, at(0.0));
    end(&mut circuit, late, Ending::Failure, 0.0);
    assert_eq!((circuit.state(), counts(&mut circuit, 0.0)), (State::Closed, (0, 0)));
    feed(&mut circuit, 0.0, "F");
    assert_eq!(circuit.state(), State::Open);
    circuit.reset(at(0.0));
    assert_eq!((circuit.state(), counts(&mut circuit, 0.0)), (State::Closed, (0, 0)));
}

#[test]
fn observing_refuses_nothing_and_counts_what_would_have_been_let_in() {
    let mut circuit = circuit(rate(0.5, 10, 1), 1);
    circuit.set_mode(Mode::ObserveOnly, at(0.0));
    feed(&mut circuit, 0.0, "F");
    assert_eq!((circuit.state(), circuit.refuses_until()), (State::Open, None));
    let Admission::Observed(shadow, refusal) = circuit.admit(at(1.0)) else { panic!("not observed") };
    assert_eq!(refusal.retry_after, Some(at(59.0)));
    let probe = admit(&mut circuit, 60.0);
    assert!(matches!(
        circuit.admit(at(60.0)),
        Admission::Observed(_, Refusal { reason: Reason::ProbesTaken, .. })
    ));
    end(&mut circuit, shadow, Ending::Failure, 60.0);
    assert_eq!(circuit.state(), State::HalfOpen);
    // Once it is to refuse, it goes on where it stands.
    circuit.set_mode(Mode::Automatic, at(60.0));
    end(&mut circuit, probe, Ending::Success, 60.0);
    assert_eq!((circuit.state(), circuit.snapshot(at(60.0)).totals.would_refuse), (State::Closed, 2));
}

#[test]
fn a_restored_circuit_remembers_a_dead_backend() {
    let saved_at = SystemTime::UNIX_EPOCH;
    let config = |config: &mut Config| {
        config.trip = rate(0.5, 10, 1).into();
        config.open_for = OpenTime::growing(at(10.0), at(1000.0));
    };
    let mut dead = circuit_with(config);
    feed(&mut dead, 0.0, "F");
    feed(&mut dead, 10.0, "F");
    let saved = dead.save(at(15.0), saved_at);
    assert_eq!((saved.open_for, saved.reopenings), (Some(at(15.0)), 1));

    let mut fresh = circuit_with(config);
    fresh.restore(&saved, at(5.0), at(100.0));
    assert_eq!(refused(&mut fresh, 101.0).retry_after, Some(at(9.0)));
    feed(&mut fresh, 110.0, "F");
    assert_eq!(fresh.snapshot(at(110.0)).retry_after, Some(at(40.0)), "the third opening");

    // While it was being probed, it is probed again.
    let _probe = admit(&mut fresh, 150.0);
    let mut third = circuit_with(config);
    third.restore(&fresh.save(at(151.0), saved_at), at(1e9), at(0.0));
    assert_eq!(admit(&mut third, 0.0).state, State::HalfOpen);

    third.set_mode(Mode::ForcedOpen, at(0.0));
    let mut fourth = circuit_with(config);
    fourth.restore(&third.save(at(0.0), saved_at), at(0.0), at(0.0));
    assert_eq!(refused(&mut fourth, 1.0).retry_after, None);
    fourth.set_mode(Mode::Automatic, at(0.0));
    feed(&mut fourth, 1.0, "SSSSS");
    let mut fifth = circuit_with(config);
    fifth.restore(&fourth.save(at(1.0), saved_at), at(0.0), at(0.0));
    assert_eq!((fifth.state(), fifth.epoch()), (State::Closed, 0), "closed to closed is no transition");
}

#[test]
fn a_restored_circuit_stays_open_no_longer_than_its_configuration_allows() {
    let capped = |config: &mut Config| config.open_for = OpenTime::fixed(at(10.0));
    let chosen = |config: &mut Config| config.open_for = OpenTime::by(|_| at(1.0));
    let mut dead = circuit_with(|_| {});
    feed(&mut dead, 0.0, "FFFFFFFFFFFFFFFFFFFF");
    let mut saved = dead.save(at(0.0), SystemTime::UNIX_EPOCH);
    saved.open_for = Some(Duration::MAX);
    let mut fresh = circuit_with(capped);
    fresh.restore(&saved, at(0.0), at(0.0));
    assert_eq!(refused(&mut fresh, 0.0).retry_after, Some(at(10.0)));
    let mut fresh = circuit_with(chosen);
    fresh.restore(&saved, at(0.0), at(0.0));
    assert!(refused(&mut fresh, 0.0).retry_after > Some(at(1e9)));
}

#[test]
fn a_mode_nobody_set_by_hand_is_that_of_the_new_configuration() {
    let watching = |config: &mut Config| config.mode = Mode::ObserveOnly;
    let saved = circuit_with(|_| {}).save(at(0.0), SystemTime::UNIX_EPOCH);
    let mut fresh = circuit_with(watching);
    fresh.restore(&saved, at(0.0), at(0.0));
    assert_eq!(fresh.snapshot(at(0.0)).mode, Mode::ObserveOnly);

    let mut by_hand = circuit_with(watching);
    by_hand.set_mode(Mode::Disabled, at(0.0));
    fresh.restore(&by_hand.save(at(0.0), SystemTime::UNIX_EPOCH), at(0.0), at(0.0));
    assert_eq!(fresh.snapshot(at(0.0)).mode, Mode::Disabled);
}

#[test]
fn circuits_of_one_seed_have_a_jitter_each_and_the_same_in_each_run() {
    let config = Arc::new(Config {
        trip: Trip::consecutive_failures(NonZeroU32::MIN),
        open_for: OpenTime::fixed(at(100.0)).with_jitter(1.0),
        seed: Some(7),
        ..Config::default()
    });
    let open_for = |nth| {
        let mut circuit = Circuit::new(Arc::clone(&config), nth);
        feed(&mut circuit, 0.0, "F");
        circuit.snapshot(at(0.0)).retry_after.unwrap()
    };
    let times: Vec<_> = (0..20).map(open_for).collect();
    assert_eq!(times, (0..20).map(open_for).collect::<Vec<_>>());
    let mut different = times.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 20);
    assert!(different[0] < at(30.0) && different[19] > at(70.0), "{times:?}");
}

#[test]
fn each_transition_is_one_epoch_and_they_come_out_in_order() {
    let mut circuit = circuit(rate(0.5, 10, 1), 1);
    feed(&mut circuit, 0.0, "F");
    feed(&mut circuit, 60.0, "F");
    let _hung = admit(&mut circuit, 120.0);
    refused(&mut circuit, 180.0);
    feed(&mut circuit, 240.0, "S");
    circuit.reset(at(240.0));
    let turns: Vec<_> = std::iter::from_fn(|| circuit.next_turn()).collect();
    let epochs: Vec<_> = turns.iter().map(|turn| turn.epoch).collect();
    assert_eq!(epochs, (1..=8).collect::<Vec<_>>());
    let causes: Vec<_> = turns.iter().map(|turn| turn.cause).collect();
    use Cause::*;
    assert_eq!(
        causes,
        [
            FailureRate,
            OpenTimeOver,
            ProbesFailed,
            OpenTimeOver,
            HalfOpenExpired,
            OpenTimeOver,
            ProbesSucceeded,
            Manual
        ]
    );
    assert!(turns.windows(2).all(|pair| pair[0].to == pair[1].from));
}
