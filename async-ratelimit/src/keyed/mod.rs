mod concurrency;
mod rate;
mod shards;

pub use concurrency::{
    ConcurrencyLimitKey, KeyedConcurrencyLimit, KeyedConcurrencyLimitBuilder, KeyedPermit,
};
pub use rate::{KeyedRateLimit, KeyedRateLimitBuilder, RateLimitKey};

#[cfg(feature = "serde")]
pub(crate) use shards::check_max_keys;

/// How many keys a keyed limit keeps unless configured.
pub const DEFAULT_MAX_KEYS: usize = 100_000;
