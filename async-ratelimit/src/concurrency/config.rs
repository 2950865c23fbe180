use std::sync::Arc;

use async_policy::{ConfigError, Name};

use super::state::Semaphore;
use super::{ConcurrencyLimit, Shared};
use crate::queue::{Queue, queue_and_name};

/// Builds a [`ConcurrencyLimit`].
///
/// # Default
///
/// No queue: who finds no room is refused. Unnamed.
///
/// # Configuration
///
/// With the feature `serde`, from these fields; what is invalid is refused with field and value when it is read:
///
/// | field | value |
/// |---|---|
/// | `limit` | at least 1; required |
/// | `queue` | without it nobody waits |
/// | `queue.max_len` | how many may wait; required in a `queue` |
/// | `queue.max_wait` | the longest wait, as `"1s 500ms"`; without it as long as it takes |
/// | `name` | the name that refusals carry |
#[must_use = "a builder does nothing until built"]
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Deserialize),
    serde(try_from = "crate::serde::RawConcurrencyLimit")
)]
pub struct ConcurrencyLimitBuilder {
    pub(crate) limit: u32,
    pub(crate) queue: Queue,
    pub(crate) name: Option<Name>,
}

impl ConcurrencyLimitBuilder {
    pub(super) const fn new(limit: u32) -> Self {
        Self { limit, queue: Queue::NONE, name: None }
    }

    queue_and_name!(
        "Lets up to `max_len` callers wait, first come, first served, each for at most `max_wait`; `None` for as long as it takes."
    );

    /// Builds the limit, with nothing in flight.
    ///
    /// # Errors
    ///
    /// `limit`: zero.
    pub fn build(self) -> Result<ConcurrencyLimit, ConfigError> {
        check_limit(self.limit)?;
        let Self { limit, queue, name } = self;
        Ok(ConcurrencyLimit { shared: Arc::new(Shared { semaphore: Semaphore::new(limit), queue, name }) })
    }
}

pub(crate) fn check_limit(limit: u32) -> Result<(), ConfigError> {
    if limit == 0 { Err(ConfigError::new("limit", limit, "at least 1")) } else { Ok(()) }
}
