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
#[must_use = "a builder does nothing until built"]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(deny_unknown_fields))]
pub struct ConcurrencyLimitBuilder {
    limit: u32,
    #[cfg_attr(feature = "serde", serde(default))]
    queue: Queue,
    #[cfg_attr(feature = "serde", serde(default, deserialize_with = "crate::queue::name"))]
    name: Option<Name>,
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
