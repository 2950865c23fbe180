mod concurrency;
mod rate;
mod shards;

pub use concurrency::{
    ConcurrencyLimitKey, KeyedConcurrencyLimit, KeyedConcurrencyLimitBuilder, KeyedPermit,
};
pub use rate::{KeyedRateLimit, KeyedRateLimitBuilder, RateLimitKey};

/// How many keys a keyed limit keeps unless configured.
pub const DEFAULT_MAX_KEYS: usize = 100_000;

#[cfg(feature = "serde")]
const fn default_max_keys() -> usize {
    DEFAULT_MAX_KEYS
}
