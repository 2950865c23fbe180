//! A breaker as configuration, and what outlives it as text.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, SystemTime};

use async_circuit::{CircuitBreaker, CircuitBreakerBuilder, Mode, OpenTime, Recovery, Saved, Trip};
use serde_json::{Value, from_str, from_value, json, to_string, to_value};

use crate::breaker::quick;

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn a_whole_configuration_goes_in_and_out() {
    let given = json!({
        "name": "quotes",
        "trip": [
            {"consecutive_failures": 5},
            {"failure_rate": 0.5, "of_last": 50, "min_calls": 10},
            {"slow_rate": 0.3, "slower_than": "2s", "within": "1m 30s", "min_calls": 20},
        ],
        "open_for": {"base": "1s", "factor": 1.5, "cap": "1m", "jitter": 0.2},
        "probes": 3,
        "recovery": "in_a_row",
        "half_open_limit": "20s",
        "ramp": "30s",
        "mode": "observe_only",
    });
    let read: CircuitBreakerBuilder = from_str(&given.to_string()).unwrap();
    let slow = Trip::slow_rate(0.3, secs(2)).within(secs(90));
    let built = CircuitBreaker::builder()
        .with_name("quotes")
        .with_trip(
            Trip::consecutive_failures(n(5))
                .or(Trip::failure_rate(0.5).of_last(n(50)).with_min_calls(n(10)))
                .or(slow),
        )
        .with_open_for(OpenTime::growing(secs(1), secs(60)).with_factor(1.5).with_jitter(0.2))
        .with_probes(n(3))
        .with_recovery(Recovery::InARow)
        .with_half_open_limit(secs(20))
        .with_ramp(secs(30))
        .with_mode(Mode::ObserveOnly);
    assert_eq!(format!("{read:?}"), format!("{built:?}"));
    assert_eq!(to_value(&read).unwrap(), given);
    let breaker = read.clone().build().unwrap();
    assert_eq!((breaker.name(), breaker.snapshot().mode), (Some("quotes"), Mode::ObserveOnly));
    assert!(read.build_keyed::<String>(NonZeroUsize::MIN).is_ok());
}

#[test]
fn what_is_missing_is_the_default() {
    let as_default = |given: Value, built: CircuitBreakerBuilder| {
        let read: CircuitBreakerBuilder = from_value(given.clone()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{built:?}"), "{given}");
        let written = to_value(&read).unwrap();
        let back: CircuitBreakerBuilder = from_value(written.clone()).unwrap();
        assert_eq!(format!("{back:?}"), format!("{built:?}"), "{written}");
    };
    let builder = CircuitBreaker::builder;
    as_default(json!({}), builder());
    as_default(json!({"name": null, "trip": null, "open_for": null, "ramp": null}), builder());
    as_default(json!({"trip": {"failure_rate": "0.5"}, "open_for": {}, "recovery": {}}), builder());
    as_default(json!({"open_for": "5s"}), builder().with_open_for(secs(5)));
    as_default(
        json!({"open_for": {"jitter": 0.1}}),
        builder().with_open_for(OpenTime::fixed(secs(30)).with_jitter(0.1)),
    );
    as_default(
        json!({"open_for": {"cap": "2m"}}),
        builder().with_open_for(OpenTime::growing(secs(30), secs(120))),
    );
    as_default(
        json!({"trip": {"slow_rate": 1, "slower_than": "10ms"}, "probes": "4", "recovery": {"failure_rate": 0.25}}),
        builder()
            .with_trip(Trip::slow_rate(1.0, Duration::from_millis(10)))
            .with_probes(n(4))
            .with_recovery(Recovery::FailureRate(0.25)),
    );
    let longest = Duration::MAX;
    as_default(to_value(builder().with_open_for(longest)).unwrap(), builder().with_open_for(longest));
}

#[test]
fn what_is_wrong_is_refused_with_the_field_and_the_value() {
    const DURATION: &str = "expected a duration such as \"250ms\"";
    const RATE: &str = "expected above 0 and at most 1";
    const COUNT: &str = "expected a whole number above zero, below 2^32";
    const RULES: &str = "expected a rule such as {\"failure_rate\": 0.5}, or a list of them";
    const ONE: &str = "expected one: consecutive_failures, failure_rate or slow_rate";
    const RECOVERY: &str = "expected \"in_a_row\" or a rate such as {\"failure_rate\": 0.5}";
    for (given, field, value, expected) in [
        (json!({"trip": "often"}), "trip", "often", RULES),
        (json!({"trip": []}), "trip", "[]", RULES),
        (json!({"trip": [{}]}), "trip", "a rule with 0 thresholds", ONE),
        (json!({"trip": {"failure_rate": 0.5, "slow_rate": 0.5}}), "trip", "a rule with 2 thresholds", ONE),
        (
            json!({"trip": [{"failure_rate": 0.5}, {"consecutive_failures": 0}]}),
            "trip.consecutive_failures",
            "0",
            COUNT,
        ),
        (
            json!({"trip": {"consecutive_failures": 5, "min_calls": 9}}),
            "trip.min_calls",
            "9",
            "expected only with a rate",
        ),
        (json!({"trip": {"failure_rate": 50}}), "trip.failure_rate", "50", RATE),
        (json!({"trip": {"failure_rate": "NaN"}}), "trip.failure_rate", "NaN", RATE),
        (json!({"trip": {"failure_rate": "half"}}), "trip.failure_rate", "half", RATE),
        (
            json!({"trip": {"failure_rate": 0.5, "slower_than": "2s"}}),
            "trip.slower_than",
            "2s",
            "expected only with slow_rate",
        ),
        (json!({"trip": {"slow_rate": 0, "slower_than": "2s"}}), "trip.slow_rate", "0", RATE),
        (json!({"trip": {"slow_rate": 0.5}}), "trip.slower_than", "missing", DURATION),
        (json!({"trip": {"slow_rate": 0.5, "slower_than": 2}}), "trip.slower_than", "2", DURATION),
        (
            json!({"trip": {"failure_rate": 0.5, "of_last": 10, "within": "10s"}}),
            "trip.within",
            "10s",
            "expected only without of_last",
        ),
        (json!({"trip": {"failure_rate": 0.5, "of_last": -1}}), "trip.of_last", "-1", COUNT),
        (
            json!({"trip": {"failure_rate": 0.5, "of_last": 20_000_000}}),
            "trip.of_last",
            "20000000",
            "expected at most 16777216",
        ),
        (
            json!({"trip": {"failure_rate": 0.5, "within": "10us"}}),
            "trip.within",
            "10µs",
            "expected at least 1ms",
        ),
        (json!({"trip": {"failure_rate": 0.5, "min_calls": 1.5}}), "trip.min_calls", "1.5", COUNT),
        (json!({"open_for": 5}), "open_for", "5", DURATION),
        (json!({"open_for": true}), "open_for", "true", DURATION),
        (
            json!({"open_for": [{"base": "5s"}]}),
            "open_for",
            "a list",
            "expected a duration or the fields of one",
        ),
        (json!({"open_for": {"base": "soon"}}), "open_for.base", "soon", DURATION),
        (json!({"open_for": {"cap": "5s"}}), "open_for.cap", "5s", "expected at least the base, 30s"),
        (json!({"open_for": {"factor": 3}}), "open_for.factor", "3", "expected only with a cap"),
        (
            json!({"open_for": {"factor": 0.5, "cap": "60s"}}),
            "open_for.factor",
            "0.5",
            "expected 1 or more, and finite",
        ),
        (json!({"open_for": {"jitter": "full"}}), "open_for.jitter", "full", "expected from 0 to 1"),
        (json!({"open_for": {"jitter": 2}}), "open_for.jitter", "2", "expected from 0 to 1"),
        (json!({"probes": 0}), "probes", "0", COUNT),
        (json!({"probes": 4_294_967_296_u64}), "probes", "4294967296", COUNT),
        (json!({"recovery": 0.5}), "recovery", "0.5", RECOVERY),
        (json!({"recovery": [{"failure_rate": 0.5}]}), "recovery", "a list", RECOVERY),
        (json!({"recovery": {"failure_rate": 2}}), "recovery.failure_rate", "2", RATE),
        (json!({"half_open_limit": 60}), "half_open_limit", "60", DURATION),
        (json!({"ramp": "-1s"}), "ramp", "-1s", DURATION),
        (
            json!({"mode": "open"}),
            "mode",
            "\"open\"",
            "expected one of automatic, observe_only, forced_open, forced_closed, disabled",
        ),
    ] {
        let error = from_value::<CircuitBreakerBuilder>(given.clone()).unwrap_err().to_string();
        assert_eq!(error, format!("invalid `{field}`: {value}; {expected}"), "{given}");
    }
    for (given, message) in [
        (json!({"trips": []}), "unknown field `trips`"),
        (json!({"trip": [{"faliure_rate": 0.5}]}), "unknown field `faliure_rate`"),
        (json!({"open_for": {"delay": "5s"}}), "unknown field `delay`"),
        (json!({"recovery": {"rate": 0.5}}), "unknown field `rate`"),
        (json!({"open_for": ["5s"]}), "expected the fields of an open time, such as {\"base\": \"5s\""),
        (json!({"trip": ["often"]}), "expected the fields of a rule, such as {\"failure_rate\": 0.5}"),
        (json!("quotes"), "expected the fields of a circuit breaker, such as {\"open_for\": \"5s\"}"),
    ] {
        let error = from_value::<CircuitBreakerBuilder>(given.clone()).unwrap_err().to_string();
        assert!(error.contains(message), "{given}: {error}");
    }
}

#[test]
fn zero_is_refused_where_it_makes_no_sense() {
    for (given, field) in [
        (json!({"open_for": "0s"}), "open_for"),
        (json!({"open_for": {"base": "0ms"}}), "open_for"),
        (json!({"half_open_limit": "0s"}), "half_open_limit"),
        (json!({"ramp": "0s"}), "ramp"),
        (json!({"trip": {"slow_rate": 0.5, "slower_than": "0s"}}), "trip.slower_than"),
    ] {
        let error = from_value::<CircuitBreakerBuilder>(given.clone()).unwrap_err().to_string();
        assert_eq!(error, format!("invalid `{field}`: 0s; expected longer than zero"), "{given}");
    }
}

#[test]
fn what_cannot_be_read_back_cannot_be_written() {
    let error = |builder: CircuitBreakerBuilder| to_string(&builder).unwrap_err().to_string();
    let own = CircuitBreaker::builder().with_open_for(OpenTime::by(|_| secs(5)));
    assert_eq!(error(own), "an open time of your own cannot be written down");
    let invalid = CircuitBreaker::builder().with_trip(Trip::failure_rate(f64::NAN));
    assert_eq!(error(invalid), "invalid `trip.failure_rate`: NaN; expected above 0 and at most 1");
}

#[tokio::test(start_paused = true)]
async fn a_saved_state_is_read_back_as_it_was() {
    let breaker = quick();
    for prepare in [
        |_: &CircuitBreaker| {},
        |breaker: &CircuitBreaker| breaker.set_mode(Mode::ForcedOpen),
        |breaker: &CircuitBreaker| {
            breaker.reset();
            breaker.try_acquire().unwrap().failure();
            breaker.try_acquire().unwrap().failure();
        },
        |breaker: &CircuitBreaker| breaker.open_for(Duration::MAX),
        |breaker: &CircuitBreaker| breaker.open_for(Duration::new(86_399, 999_999_999)),
    ] {
        prepare(&breaker);
        let saved = breaker.save();
        let text = to_string(&saved).unwrap();
        assert_eq!(from_str::<Saved>(&text).unwrap(), saved, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn times_are_written_as_text() {
    let breaker = quick();
    breaker.open_for(Duration::from_millis(13_700));
    assert_eq!(to_value(breaker.snapshot()).unwrap()["retry_after"], "13s 700ms");
    let mut saved = breaker.save();
    saved.saved_at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_253_400_250);
    let text =
        r#"{"mode":null,"open_for":"13s 700ms","reopenings":0,"saved_at":"2026-11-21T09:30:00.250000000Z"}"#;
    assert_eq!(to_string(&saved).unwrap(), text);
    let by_hand = r#"{"open_for": "13.7s", "reopenings": 0, "saved_at": "2026-11-21T09:30:00.25Z"}"#;
    assert_eq!(from_str::<Saved>(by_hand).unwrap(), saved);
    let closed: Saved = from_str(r#"{"reopenings": 0, "saved_at": "2026-11-21T09:30:00Z"}"#).unwrap();
    assert_eq!((closed.mode, closed.open_for), (None, None));
    breaker.reset();
    assert_eq!(to_value(breaker.snapshot()).unwrap()["retry_after"], Value::Null);
}

#[test]
fn a_time_without_a_text_is_an_error_and_no_panic() {
    let breaker = CircuitBreaker::new();
    let year_10_000 = SystemTime::UNIX_EPOCH + secs(253_402_300_800);
    for time in [SystemTime::UNIX_EPOCH - secs(1), year_10_000] {
        let mut saved = breaker.save();
        saved.saved_at = time;
        let error = to_string(&saved).unwrap_err().to_string();
        assert_eq!(error, "invalid `saved_at`: expected a time from 1970 to 9999");
    }
    for (given, message) in [
        (
            json!({"mode": "melted", "reopenings": 0, "saved_at": "2026-11-21T09:30:00Z"}),
            "unknown variant `melted`",
        ),
        (
            json!({"open_for": "soon", "reopenings": 0, "saved_at": "2026-11-21T09:30:00Z"}),
            "\"soon\", expected a duration",
        ),
        (json!({"reopenings": 0, "saved_at": "yesterday"}), "\"yesterday\", expected a timestamp"),
    ] {
        let error = from_value::<Saved>(given.clone()).unwrap_err().to_string();
        assert!(error.contains(message), "{given}: {error}");
    }
}
