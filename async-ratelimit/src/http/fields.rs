use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use crate::RateSnapshot;

// draft-ietf-httpapi-ratelimit-headers-10: each a structured list of named policies with their parameters.
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Whole seconds, rounded up: who comes back after them is not too early, and none is zero.
pub(super) const fn seconds(wait: Duration) -> u64 {
    let whole = wait.as_secs().saturating_add((wait.subsec_nanos() > 0) as u64);
    if whole == 0 { 1 } else { whole }
}

pub(super) fn retry_after(headers: &mut HeaderMap, wait: Duration) {
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds(wait)));
}

/// Adds the fields `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers-10, as
/// [`HttpRateLimitLayer`](super::HttpRateLimitLayer) does: what the limit allows (`q` cells per window of `w` seconds), and what is left of it
/// (`r` cells now, and the full burst again after `t` seconds).
///
/// ```
/// use async_ratelimit::http::rate_limit_fields;
/// use async_ratelimit::{Quota, RateLimit};
///
/// let limit = RateLimit::builder(Quota::per_minute(60)).with_name("api").build().unwrap();
/// let mut response = http::Response::new(());
/// rate_limit_fields(response.headers_mut(), limit.name(), &limit.snapshot());
/// assert_eq!(response.headers()["ratelimit-policy"], "\"api\";q=60;w=60");
/// assert_eq!(response.headers()["ratelimit"], "\"api\";r=60");
/// ```
pub fn rate_limit_fields(headers: &mut HeaderMap, name: Option<&str>, limit: &RateSnapshot) {
    // A structured string holds printable ASCII, and neither quote nor backslash as such.
    let plain = |c: &char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\');
    let name: String = name.unwrap_or("default").chars().filter(plain).collect();
    let (cells, window) = (limit.quota.cells(), seconds(limit.quota.period()));
    let policy = format!("\"{name}\";q={cells};w={window}");
    let left = match limit.full {
        Duration::ZERO => format!("\"{name}\";r={}", limit.available),
        full => format!("\"{name}\";r={};t={}", limit.available, seconds(full)),
    };
    for (field, text) in [(RATELIMIT_POLICY, policy), (RATELIMIT, left)] {
        if let Ok(value) = HeaderValue::try_from(text) {
            // Appended, because an inner limit may have said its own.
            headers.append(field, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_up_and_never_zero() {
        assert_eq!(seconds(Duration::ZERO), 1);
        assert_eq!(seconds(Duration::from_nanos(1)), 1);
        assert_eq!(seconds(Duration::from_secs(2)), 2);
        assert_eq!(seconds(Duration::from_millis(2_001)), 3);
        assert_eq!(seconds(Duration::MAX), u64::MAX);
    }
}
