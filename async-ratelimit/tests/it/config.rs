use async_ratelimit::{
    ConcurrencyLimitBuilder, KeyedConcurrencyLimitBuilder, KeyedRateLimitBuilder, Quota, RateLimitBuilder,
};
use serde_json::{from_value, json, to_value};

use crate::ms;

#[test]
fn limits_are_configured_as_data() {
    let limit: ConcurrencyLimitBuilder =
        from_value(json!({"limit": 8, "name": "db", "queue": {"max_len": 100, "max_wait": "1s 500ms"}}))
            .unwrap();
    let limit = limit.build().unwrap();
    assert_eq!((limit.limit(), limit.name()), (8, Some("db")));
    let rate: RateLimitBuilder =
        from_value(json!({"quota": {"cells": 50, "period": "1s", "burst": 10}, "queue": {"max_len": 1, "max_wait": null}}))
            .unwrap();
    assert_eq!(rate.build().unwrap().quota(), Quota::per_second(50).with_burst(10));
    let keyed: KeyedRateLimitBuilder<str> =
        from_value(json!({"quota": {"cells": 30, "period": "1m"}, "max_keys": 1000})).unwrap();
    assert_eq!(keyed.build().unwrap().quota(), Quota::per_minute(30));
    let keyed: KeyedConcurrencyLimitBuilder<str> = from_value(json!({"limit": 2})).unwrap();
    assert!(keyed.build().is_ok());
    assert_eq!(to_value(Quota::new(3, ms(500))).unwrap(), json!({"cells": 3, "period": "500ms", "burst": 3}));
}

#[test]
fn what_is_not_known_or_makes_no_sense_is_an_error() {
    let error = |value| from_value::<ConcurrencyLimitBuilder>(value).unwrap_err().to_string();
    assert!(error(json!({"limit": 1, "limits": 2})).contains("unknown field `limits`"));
    assert!(error(json!({"limit": 1, "queue": {"max_wait": "1s"}})).contains("missing field `max_len`"));
    assert!(
        error(json!({"limit": 1, "queue": 10}))
            .contains("expected a queue: `max_len` and perhaps `max_wait`")
    );
    let wait = error(json!({"limit": 1, "queue": {"max_len": 1, "max_wait": "1 fortnight"}}));
    assert_eq!(wait, "invalid `queue.max_wait`: 1 fortnight; expected a duration such as \"250ms\"");
    assert!(error(json!({"limit": -1})).starts_with("invalid `limit`: -1;"));
    assert_eq!(error(json!({"limit": 0})), "invalid `limit`: 0; expected at least 1");
    assert!(error(json!({"limit": 1, "queue": {"max_len": "x"}})).starts_with("invalid `queue.max_len`: x;"));
}

#[test]
fn a_quota_that_makes_no_sense_is_refused_when_it_is_read() {
    let error = |quota| from_value::<RateLimitBuilder>(json!({ "quota": quota })).unwrap_err().to_string();
    let with_cells = |cells| json!({"cells": cells, "period": "1s"});
    assert_eq!(error(with_cells(json!(0))), "invalid `quota.cells`: 0; expected at least 1");
    assert!(error(with_cells(json!("many"))).starts_with("invalid `quota.cells`: many;"));
    assert!(error(with_cells(json!(true))).starts_with("invalid `quota.cells`: true;"));
    assert!(error(with_cells(json!(1.5))).starts_with("invalid `quota.cells`: 1.5;"));
    assert!(error(json!({"cells": 1, "period": "0s"})).starts_with("invalid `quota.period`: 0ns;"));
    assert!(error(json!({"cells": 1, "period": "1s", "burst": 0})).starts_with("invalid `quota.burst`: 0;"));
    assert!(error(json!(50)).contains("expected a quota: `cells`, `period` and perhaps `burst`"));
    let keys = json!({"quota": with_cells(json!(1)), "max_keys": 0});
    let keys = from_value::<KeyedRateLimitBuilder<str>>(keys).unwrap_err().to_string();
    assert_eq!(keys, "invalid `max_keys`: 0; expected 1 to 2^32");
}

#[test]
fn without_a_longest_wait_callers_wait_as_long_as_it_takes() {
    let queue = |queue| from_value::<ConcurrencyLimitBuilder>(json!({"limit": "8", "queue": queue})).unwrap();
    let none = format!("{:?}", async_ratelimit::ConcurrencyLimit::builder(8).with_queue(5, None));
    assert_eq!(format!("{:?}", queue(json!({"max_len": 5}))), none);
    assert_eq!(format!("{:?}", queue(json!({"max_len": "5", "max_wait": null}))), none);
}

#[test]
fn a_quota_comes_back_as_it_was_written() {
    for quota in [Quota::per_second(50), Quota::per_minute(7).with_burst(3), Quota::new(1, ms(1_500))] {
        assert_eq!(from_value::<Quota>(to_value(quota).unwrap()).unwrap(), quota);
    }
}

#[test]
fn snapshots_serialize() {
    let limit = async_ratelimit::ConcurrencyLimit::builder(8).build().unwrap();
    let _permit = limit.try_acquire().unwrap();
    assert_eq!(to_value(limit.snapshot()).unwrap(), json!({"limit": 8, "in_flight": 1, "waiting": 0}));
    let rate = async_ratelimit::RateLimit::builder(Quota::per_minute(60).with_burst(2)).build().unwrap();
    assert_eq!(
        to_value(rate.snapshot()).unwrap(),
        json!({
            "quota": {"cells": 60, "period": "1m", "burst": 2},
            "available": 2,
            "waiting": 0,
            "next": "0s",
            "full": "0s",
        })
    );
}
