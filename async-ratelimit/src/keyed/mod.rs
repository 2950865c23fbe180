mod concurrency;
mod rate;
mod shards;

use async_policy::ConfigError;

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

fn check_max_keys(max_keys: usize) -> Result<(), ConfigError> {
    if (1..=1 << 32).contains(&max_keys) {
        Ok(())
    } else {
        Err(ConfigError::new("max_keys", max_keys, "1 to 2^32"))
    }
}
