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
    assert_eq!(
        to_value(Quota::new(3, ms(500))).unwrap(),
        json!({"cells": 3, "period": "500ms", "burst": null})
    );
}

#[test]
fn what_is_not_known_or_makes_no_sense_is_an_error() {
    let error = |value| from_value::<ConcurrencyLimitBuilder>(value).unwrap_err().to_string();
    assert!(error(json!({"limit": 1, "limits": 2})).contains("unknown field `limits`"));
    assert!(error(json!({"limit": 1, "queue": {"max_len": 1}})).contains("missing field `max_wait`"));
    assert!(error(json!({"limit": -1})).contains("-1"));
    let zero: ConcurrencyLimitBuilder = from_value(json!({"limit": 0})).unwrap();
    assert_eq!(zero.build().unwrap_err().field(), "limit");
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
