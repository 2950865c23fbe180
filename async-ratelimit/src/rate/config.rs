use std::sync::{Arc, Mutex};

use async_policy::{ConfigError, Name};

use super::clock::Watch;
use super::counter::Counter;
use super::engine::Engine;
use super::{Quota, RateLimit, Shared, warn_if_too_fine};
use crate::queue::{Queue, queue_and_name};

/// Builds a [`RateLimit`].
///
/// # Default
///
/// No queue: who finds no cell is refused. Unnamed.
///
/// # Configuration
///
/// With the feature `serde`, from these fields; what is invalid is refused with field and value when it is read:
///
/// | field | value |
/// |---|---|
/// | `quota.cells` | cells per period; required |
/// | `quota.period` | as `"1s"`; required |
/// | `quota.burst` | cells at once after a pause; without it as many as `cells` |
/// | `queue` | without it nobody waits |
/// | `queue.max_len` | how many may wait; required in a `queue` |
/// | `queue.max_wait` | the longest wait, as `"1s 500ms"`; without it as long as it takes |
/// | `name` | the name that refusals carry |
#[must_use = "a builder does nothing until built"]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(try_from = "crate::serde::RawRateLimit"))]
pub struct RateLimitBuilder {
    pub(crate) quota: Quota,
    pub(crate) queue: Queue,
    pub(crate) name: Option<Name>,
}

impl RateLimitBuilder {
    pub(super) const fn new(quota: Quota) -> Self {
        Self { quota, queue: Queue::NONE, name: None }
    }

    queue_and_name!(
        "Lets up to `max_len` callers wait, first come, first served, each for at most `max_wait`; `None` for as long as it takes."
    );

    /// Builds the limit, with a full burst.
    ///
    /// # Errors
    ///
    /// - `quota.cells`: zero, or more than one per nanosecond.
    /// - `quota.period`: zero, or longer than [`LONGEST_BURST`](crate::LONGEST_BURST).
    /// - `quota.burst`: zero, or more than comes back in that time.
    pub fn build(self) -> Result<RateLimit, ConfigError> {
        let Self { quota, queue, name } = self;
        let counter = Counter::new(Engine::new(quota)?);
        warn_if_too_fine(quota, queue, name.as_ref());
        Ok(RateLimit {
            shared: Arc::new(Shared { watch: Watch::new(), counter, quota: Mutex::new(quota), queue, name }),
        })
    }
}
