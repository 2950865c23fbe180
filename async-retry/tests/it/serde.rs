use async_retry::{Backoff, Budget, Hedge, Retry};

#[test]
fn a_whole_policy_goes_in_and_out() {
    let text = r#"{
        "name": "quotes", "max_attempts": 5, "max_elapsed": "45s", "attempt_timeout": "1s 500ms", "wait_for_refusals": false,
        "backoff": { "kind": "exponential", "base": "250ms", "factor": 1.5, "cap": "10s", "jitter": "equal" },
        "budget": { "kind": "in_flight", "ratio": 0.2, "floor": 3 }
    }"#;
    let retry: Retry = serde_json::from_str(text).unwrap();
    let given: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_value(&retry).unwrap(), given);
    let debug = format!("{retry:?}");
    for part in ["1.5s", "250ms", "45s", "InFlight"] {
        assert!(debug.contains(part), "{part} in {debug}");
    }
}

#[test]
fn what_is_missing_is_the_default() {
    let retry: Retry = serde_json::from_str("{}").unwrap();
    assert_eq!(serde_json::to_value(&retry).unwrap(), serde_json::to_value(Retry::default()).unwrap());
    let backoff: Backoff = serde_json::from_str("{}").unwrap();
    assert_eq!(backoff, Backoff::default());
    let budget: Budget = serde_json::from_str("{}").unwrap();
    assert_eq!(budget.available(), 500.0);
    let unlimited = r#"{"max_attempts":"unlimited"}"#;
    let retry: Retry = serde_json::from_str(unlimited).unwrap();
    assert!(serde_json::to_string(&retry).unwrap().contains(r#""max_attempts":"unlimited""#));
}

#[test]
fn each_kind_goes_in_and_out() {
    for text in [
        r#"{"kind":"constant","base":"2s","cap":"20s","jitter":"none"}"#,
        r#"{"kind":"linear","base":"10ms","step":"5ms","cap":"1s","jitter":"full"}"#,
        r#"{"kind":"fibonacci","base":"10ms","cap":"1s","jitter":"decorrelated"}"#,
    ] {
        let backoff: Backoff = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&backoff).unwrap(), text);
    }
    for text in [
        r#"{"kind":"token_bucket","capacity":0,"cost":5,"timeout_cost":10}"#,
        r#"{"kind":"grpc_throttle","max_tokens":10,"token_ratio":0.1}"#,
    ] {
        let budget: Budget = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&budget).unwrap(), text);
    }
    let own = Backoff::from_fn(|_| None);
    let error = serde_json::to_string(&own).unwrap_err().to_string();
    assert_eq!(error, "delays of your own cannot be written down");
}

#[test]
fn what_is_wrong_is_refused_with_the_field_and_the_value() {
    for (text, message) in [
        (
            r#"{"max_attempts": 0}"#,
            "invalid `max_attempts`: 0; expected a whole number of at least 1, or \"unlimited\"",
        ),
        (
            r#"{"max_attempts": -3}"#,
            "invalid `max_attempts`: -3; expected a whole number of at least 1, or \"unlimited\"",
        ),
        (r#"{"max_elapsed": "soon"}"#, "invalid `max_elapsed`: soon; expected a duration such as \"250ms\""),
        (
            r#"{"attempt_timeout": 250}"#,
            "invalid `attempt_timeout`: 250; expected a duration such as \"250ms\"",
        ),
        (r#"{"attempt_timeout": "0s"}"#, "invalid `attempt_timeout`: 0ns; expected longer than zero"),
        (
            r#"{"budget": {"kind": "aws_standard", "capacity": 9}}"#,
            "invalid `budget.capacity`: 9; expected only with another kind of budget",
        ),
        (
            r#"{"backoff": {"base": "1s", "cap": "50ms"}}"#,
            "invalid `backoff.cap`: 50ms; expected at least the base, 1s",
        ),
        (
            r#"{"backoff": {"factor": -2}}"#,
            "invalid `backoff.factor`: -2; expected a finite number of at least 1",
        ),
        (
            r#"{"backoff": {"factor": "NaN"}}"#,
            "invalid `backoff.factor`: NaN; expected a finite number of at least 1",
        ),
        (
            r#"{"backoff": {"kind": "quadratic"}}"#,
            "invalid `backoff.kind`: quadratic; expected none, constant, linear, exponential, fibonacci or decorrelated",
        ),
        (
            r#"{"backoff": {"kind": "linear"}}"#,
            "invalid `backoff.step`: missing; expected a duration such as \"250ms\"",
        ),
        (
            r#"{"backoff": {"kind": "constant", "factor": 2}}"#,
            "invalid `backoff.factor`: 2; expected only with kind \"exponential\"",
        ),
        (
            r#"{"backoff": {"jitter": "some"}}"#,
            "invalid `backoff.jitter`: some; expected none, full, equal or decorrelated",
        ),
        (r#"{"budget": {"cost": 0}}"#, "invalid `budget.cost`: 0; expected a whole number of at least 1"),
        (
            r#"{"budget": {"kind": "in_flight", "ratio": 1.5, "floor": 3}}"#,
            "invalid `budget.ratio`: 1.5; expected 0 to 1",
        ),
        (
            r#"{"budget": {"ratio": 0.2}}"#,
            "invalid `budget.ratio`: 0.2; expected only with another kind of budget",
        ),
        (
            r#"{"budget": {"kind": "grpc_throttle", "token_ratio": 0.1}}"#,
            "invalid `budget.max_tokens`: missing; expected 1 to 1000",
        ),
    ] {
        let error = serde_json::from_str::<Retry>(text).unwrap_err().to_string();
        assert!(error.starts_with(message), "{text}\n{error}\n{message}");
    }
    let error = serde_json::from_str::<Retry>(r#"{"max_atempts": 3}"#).unwrap_err().to_string();
    assert!(error.contains("unknown field `max_atempts`"), "{error}");
}

#[test]
fn a_hedge_goes_in_and_out_and_is_refused_with_the_field_and_the_value() {
    for given in [
        r#"{"delay":"50ms","max_extra":1}"#,
        r#"{"name":"quotes","percentile":0.95,"initial":"50ms","max_extra":3,"budget":{"kind":"in_flight","ratio":0.2,"floor":3}}"#,
    ] {
        let hedge: Hedge = serde_json::from_str(given).unwrap();
        assert_eq!(hedge.delay(), std::time::Duration::from_millis(50));
        assert_eq!(serde_json::to_string(&hedge).unwrap(), given);
    }
    for (given, message) in [
        ("{}", "invalid `hedge.delay`: missing; expected a duration such as \"250ms\""),
        (r#"{"delay": 50}"#, "invalid `hedge.delay`: 50; expected a duration such as \"250ms\""),
        (
            r#"{"delay": "50ms", "max_extra": 0}"#,
            "invalid `hedge.max_extra`: 0; expected a whole number of at least 1",
        ),
        (
            r#"{"percentile": 95, "initial": "50ms"}"#,
            "invalid `hedge.percentile`: 95; expected a number above 0 and below 1",
        ),
        (r#"{"percentile": 0.9}"#, "invalid `hedge.initial`: missing; expected a duration such as \"250ms\""),
        (
            r#"{"percentile": 0.9, "initial": "1s", "delay": "1s"}"#,
            "invalid `hedge.delay`: 1s; expected only without a percentile",
        ),
        (
            r#"{"delay": "1s", "initial": "1s"}"#,
            "invalid `hedge.initial`: 1s; expected only with a percentile",
        ),
        (
            r#"{"delay": "1s", "budget": {"cost": 0}}"#,
            "invalid `budget.cost`: 0; expected a whole number of at least 1",
        ),
    ] {
        let error = serde_json::from_str::<Hedge>(given).unwrap_err().to_string();
        assert!(error.starts_with(message), "{given}\n{error}\n{message}");
    }
}

#[test]
fn an_error_of_form_names_what_was_expected_and_no_private_type() {
    let error = |text| serde_json::from_str::<Retry>(text).unwrap_err().to_string();
    for (given, expected) in [
        ("3", "expected the fields of a retry, such as"),
        (r#"{"backoff": "exponential"}"#, "expected the fields of a backoff, such as"),
        (r#"{"budget": 500}"#, "expected the fields of a budget, such as"),
    ] {
        let error = error(given);
        assert!(error.contains(expected) && !error.contains("Raw"), "{error}");
    }
    let error = serde_json::from_str::<Hedge>("3").unwrap_err().to_string();
    assert!(error.contains("expected the fields of a hedge, such as") && !error.contains("Raw"), "{error}");
}

#[test]
fn other_words_for_the_same_fields_are_taken() {
    let constant: Backoff = serde_json::from_str(r#"{"kind":"constant","delay":"2s"}"#).unwrap();
    assert_eq!(constant, Backoff::constant(std::time::Duration::from_secs(2)));
    let hedge: Hedge = serde_json::from_str(r#"{"after":"50ms"}"#).unwrap();
    assert_eq!(hedge.delay(), std::time::Duration::from_millis(50));
    let budget: Budget = serde_json::from_str(r#"{"kind":"aws_standard"}"#).unwrap();
    let written = serde_json::to_string(&budget).unwrap();
    assert_eq!(written, serde_json::to_string(&Budget::aws_standard()).unwrap());
}

#[test]
fn a_listener_and_a_seed_are_not_written_down() {
    let plain = serde_json::to_string(&Retry::default()).unwrap();
    let heard = Retry::default().with_listener(|_| {}).with_seed(1);
    assert_eq!(serde_json::to_string(&heard).unwrap(), plain);
}
