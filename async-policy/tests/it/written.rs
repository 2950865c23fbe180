use std::time::Duration;

use async_policy::Timeout;
use async_policy::written::Text;
use serde_json::{from_str, to_string};

#[test]
fn what_is_written_stays_what_it_is() {
    for written in ["5", "18446744073709551615", "-3", "0.25", "true", "\"250ms\"", "\"\"", "\"a \\\"b\\\"\""]
    {
        let text: Text = from_str(written).unwrap();
        assert_eq!(to_string(&text).unwrap(), written);
    }
    for neither in ["null", "[1]", "{\"a\": 1}"] {
        let error = from_str::<Text>(neither).unwrap_err().to_string();
        assert!(error.contains("expected a number, a truth value or a text"), "{error}");
    }
}

#[test]
fn durations_have_units() {
    for (written, millis) in [("0s", 0), ("250ms", 250), ("1m 30s", 90_000)] {
        let duration = Duration::from_millis(millis);
        assert_eq!(Text::new(written).duration("field"), Ok(duration));
        assert_eq!(Text::of(duration).as_str(), written);
    }
    for (written, millis) in
        [("13.7s", 13_700), ("1m30s500ms", 90_500), ("0", 0), (" 2 s ", 2_000), ("1 000ms", 1_000)]
    {
        assert_eq!(Text::new(written).duration("field"), Ok(Duration::from_millis(millis)), "{written}");
    }
    assert_eq!(Text::of(Duration::MAX).duration("field"), Ok(Duration::MAX));
    let (too_long, in_parts) = ("99999999999999999999s", "18446744073709551615s 1000000000ns");
    for none in ["250", "-1s", "soon", "", "s", "1s 2", "1s, 2s", "µ", too_long, in_parts] {
        let error = Text::new(none).duration("field").unwrap_err();
        assert_eq!((error.field(), error.value()), ("field", none));
    }
}

#[test]
fn a_time_out_is_its_limit() {
    let timeout: Timeout = from_str("\"250ms\"").unwrap();
    assert_eq!(timeout, Timeout::from_millis(250));
    assert_eq!(to_string(&timeout.with_name("quotes")).unwrap(), "\"250ms\"");
    let error = from_str::<Timeout>("250").unwrap_err().to_string();
    assert_eq!(error, "invalid `timeout`: 250; expected a duration such as \"250ms\"");
}
