//! Server hints over HTTP (`http` feature).

use std::time::{Duration, SystemTime};

use async_policy::{Classify, PolicyError, Verdict};
use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

/// The delay a `Retry-After` header asks for: seconds, or a date that is compared with `now` (a past one is zero). `None` where there
/// is no such header, or it is neither. (RFC 9110, section 10.2.3.)
///
/// ```
/// use async_retry::http::parse_retry_after;
/// use std::time::{Duration, SystemTime};
///
/// let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
/// assert_eq!(parse_retry_after("120", now), Some(Duration::from_secs(120)));
/// assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
/// assert_eq!(parse_retry_after("soon", now), None);
/// ```
#[must_use]
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than fit are for ever; the cap has the last word.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The delay that the `Retry-After` header of a response asks for: see [`parse_retry_after`]. Dates are compared with the clock of
/// this machine.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    parse_retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

/// What a response means by its status.
///
/// | status | [`Verdict`] |
/// |---|---|
/// | 429; 503 with `Retry-After` | `Throttled`, with the delay where there is one |
/// | 408, 500, 502, 503, 504 | `Transient` |
/// | any other 4xx and 5xx | `Permanent` |
/// | the rest | `Success` |
///
/// Whether the request may be repeated at all (a `POST`) is not for the status to say.
///
/// ```
/// use async_retry::http::verdict;
/// use async_retry::{Operation, Policy, Retry};
/// # use http::{Response, StatusCode};
/// # async fn get() -> Result<Response<()>, std::io::Error> { Ok(Response::new(())) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let op = get.classify_with(|answer| match answer {
///     Ok(response) => verdict(response.status(), response.headers()),
///     Err(_) => async_retry::Verdict::Transient,
/// });
/// assert_eq!(Retry::default().call(op).await.unwrap().status(), StatusCode::OK);
/// # }
/// ```
#[must_use]
pub fn verdict(status: StatusCode, headers: &HeaderMap) -> Verdict {
    match status.as_u16() {
        429 => Verdict::Throttled { retry_after: retry_after(headers) },
        503 => match retry_after(headers) {
            None => Verdict::Transient,
            after => Verdict::Throttled { retry_after: after },
        },
        408 | 500 | 502 | 504 => Verdict::Transient,
        400..=599 => Verdict::Permanent,
        _ => Verdict::Success,
    }
}

/// The classifier of a tower layer over HTTP responses: [`verdict`], and errors by their own
/// [`verdict`](PolicyError::verdict).
///
/// For [`http::Response`]. Where a client's response is a type of its own (reqwest), give the layer a closure that asks [`verdict`]: the
/// [front page](crate#shapes) has it in full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByStatus;

impl<B, E: PolicyError> Classify<http::Response<B>, E> for ByStatus {
    fn classify(&self, answer: Result<&http::Response<B>, &E>) -> Option<Verdict> {
        answer.ok().map(|response| verdict(response.status(), response.headers()))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_header_in_all_its_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let secs = |seconds| Some(Duration::from_secs(seconds));
        for (value, wait) in [
            ("0", secs(0)),
            (" 120 ", secs(120)),
            ("99999999999999999999999999", secs(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", secs(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", secs(30)),
            ("Sunday, 06-Nov-94 08:50:07 GMT", secs(30)),
            ("Sun Nov  6 08:50:07 1994", secs(30)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", secs(0)),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
        ] {
            assert_eq!(parse_retry_after(value, now), wait, "{value:?}");
        }
    }

    #[test]
    fn statuses() {
        let mut headers = HeaderMap::new();
        let of = |status, headers: &HeaderMap| verdict(StatusCode::from_u16(status).unwrap(), headers);
        assert_eq!(of(200, &headers), Verdict::Success);
        assert_eq!(of(304, &headers), Verdict::Success);
        assert_eq!(of(404, &headers), Verdict::Permanent);
        assert_eq!(of(501, &headers), Verdict::Permanent);
        assert_eq!(of(503, &headers), Verdict::Transient);
        assert_eq!(of(429, &headers), Verdict::Throttled { retry_after: None });
        headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        let throttled = Verdict::Throttled { retry_after: Some(Duration::from_secs(7)) };
        assert_eq!(of(503, &headers), throttled);
        assert_eq!(of(429, &headers), throttled);
        headers.insert(RETRY_AFTER, HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(of(503, &headers), Verdict::Transient);
    }
}
