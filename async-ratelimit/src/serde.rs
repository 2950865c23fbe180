//! Limits as configuration. Numbers and durations come in as plain text first, so that every error names the field and the value.

use std::time::Duration;

use ::serde::{Deserialize, Serialize, Serializer};
use async_policy::written::Text;
use async_policy::{ConfigError, Name};

use crate::concurrency::check_limit;
use crate::keyed::check_max_keys;
use crate::queue::Queue;
use crate::{
    ConcurrencyLimitBuilder, DEFAULT_MAX_KEYS, KeyedConcurrencyLimitBuilder, KeyedRateLimitBuilder, Quota,
    RateLimitBuilder,
};

/// A duration with its units: `250ms`.
pub(crate) fn duration<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    Text::of(*duration).serialize(to)
}

/// What the builders take their counts as.
const COUNT: &str = "a whole number from 1 to 4294967295";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a quota: `cells`, `period` and perhaps `burst`")]
pub(crate) struct RawQuota {
    cells: Text,
    period: Text,
    burst: Option<Text>,
}

impl TryFrom<RawQuota> for Quota {
    type Error = ConfigError;

    fn try_from(raw: RawQuota) -> Result<Self, ConfigError> {
        let cells = raw.cells.parse("quota.cells", COUNT)?;
        let mut quota = Self::new(cells, raw.period.duration("quota.period")?);
        if let Some(burst) = raw.burst {
            quota = quota.with_burst(burst.parse("quota.burst", COUNT)?);
        }
        quota.check()?;
        Ok(quota)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a queue: `max_len` and perhaps `max_wait`")]
struct RawQueue {
    max_len: Text,
    max_wait: Option<Text>,
}

fn queue(raw: Option<RawQueue>) -> Result<Queue, ConfigError> {
    let Some(raw) = raw else { return Ok(Queue::NONE) };
    let max_wait = raw.max_wait.map(|wait| wait.duration("queue.max_wait")).transpose()?;
    Ok(Queue { max_len: raw.max_len.parse("queue.max_len", "a whole number")?, max_wait })
}

fn max_keys(raw: Option<Text>) -> Result<usize, ConfigError> {
    let Some(raw) = raw else { return Ok(DEFAULT_MAX_KEYS) };
    let max_keys = raw.parse("max_keys", "1 to 2^32")?;
    check_max_keys(max_keys)?;
    Ok(max_keys)
}

fn limit(raw: &Text) -> Result<u32, ConfigError> {
    let limit = raw.parse("limit", COUNT)?;
    check_limit(limit)?;
    Ok(limit)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a concurrency limit: `limit` and perhaps `queue` and `name`")]
pub(crate) struct RawConcurrencyLimit {
    limit: Text,
    queue: Option<RawQueue>,
    name: Option<String>,
}

impl TryFrom<RawConcurrencyLimit> for ConcurrencyLimitBuilder {
    type Error = ConfigError;

    fn try_from(raw: RawConcurrencyLimit) -> Result<Self, ConfigError> {
        Ok(Self { limit: limit(&raw.limit)?, queue: queue(raw.queue)?, name: raw.name.map(Name::from) })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a rate limit: `quota` and perhaps `queue` and `name`")]
pub(crate) struct RawRateLimit {
    quota: Quota,
    queue: Option<RawQueue>,
    name: Option<String>,
}

impl TryFrom<RawRateLimit> for RateLimitBuilder {
    type Error = ConfigError;

    fn try_from(raw: RawRateLimit) -> Result<Self, ConfigError> {
        Ok(Self { quota: raw.quota, queue: queue(raw.queue)?, name: raw.name.map(Name::from) })
    }
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a keyed concurrency limit: `limit` and perhaps `max_keys`, `queue` and `name`"
)]
pub(crate) struct RawKeyedConcurrencyLimit {
    limit: Text,
    max_keys: Option<Text>,
    queue: Option<RawQueue>,
    name: Option<String>,
}

impl<K: ?Sized> TryFrom<RawKeyedConcurrencyLimit> for KeyedConcurrencyLimitBuilder<K> {
    type Error = ConfigError;

    fn try_from(raw: RawKeyedConcurrencyLimit) -> Result<Self, ConfigError> {
        let (limit, queue, max_keys) = (limit(&raw.limit)?, queue(raw.queue)?, max_keys(raw.max_keys)?);
        Ok(Self::of(limit, queue, raw.name.map(Name::from), max_keys))
    }
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a keyed rate limit: `quota` and perhaps `max_keys`, `queue` and `name`"
)]
pub(crate) struct RawKeyedRateLimit {
    quota: Quota,
    max_keys: Option<Text>,
    queue: Option<RawQueue>,
    name: Option<String>,
}

impl<K: ?Sized> TryFrom<RawKeyedRateLimit> for KeyedRateLimitBuilder<K> {
    type Error = ConfigError;

    fn try_from(raw: RawKeyedRateLimit) -> Result<Self, ConfigError> {
        let (queue, max_keys) = (queue(raw.queue)?, max_keys(raw.max_keys)?);
        Ok(Self::of(raw.quota, queue, raw.name.map(Name::from), max_keys))
    }
}
