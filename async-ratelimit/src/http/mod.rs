//! Limits in front of an HTTP server (feature `http`): 429, 503, `Retry-After` and the `RateLimit` fields.

mod answer;
mod extract;
mod fields;
mod rate;

pub use answer::{AnswerFuture, AnswerLayer, AnswerService, answer};
pub use extract::{ByHeader, ByPath, ByPeer, KeyExtractor, by_header, by_path, by_peer};
pub use fields::rate_limit_fields;
pub use rate::{HttpRateLimitFuture, HttpRateLimitLayer, HttpRateLimitService, RequestKey};
