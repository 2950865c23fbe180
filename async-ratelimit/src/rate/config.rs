use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_policy::{ConfigError, Name};

use super::clock::Clock;
use super::engine::{Engine, Tat};
use super::gate::Gate;
use super::line::Line;
use super::{Quota, RateLimit, Shared, warn_if_too_fine};
use crate::queue::Queue;

/// Builds a [`RateLimit`].
///
/// # Default
///
/// No queue: who finds no cell is refused. Unnamed.
#[must_use = "a builder does nothing until built"]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(deny_unknown_fields))]
pub struct RateLimitBuilder {
    quota: Quota,
    #[cfg_attr(feature = "serde", serde(default))]
    queue: Queue,
    #[cfg_attr(feature = "serde", serde(default, deserialize_with = "crate::queue::name"))]
    name: Option<Name>,
}

impl RateLimitBuilder {
    pub(super) const fn new(quota: Quota) -> Self {
        Self { quota, queue: Queue::NONE, name: None }
    }

    /// Lets up to `max_len` callers wait, first come, first served, each for at most `max_wait`; `None` for as long as it takes.
    pub fn with_queue(mut self, max_len: usize, max_wait: impl Into<Option<Duration>>) -> Self {
        self.queue = Queue { max_len, max_wait: max_wait.into() };
        self
    }

    /// The name that refusals carry.
    pub fn with_name(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Builds the limit, with a full burst.
    ///
    /// # Errors
    ///
    /// - `quota.cells`: zero, or more than one per nanosecond.
    /// - `quota.burst`: zero, or more than stands for [`LONGEST_BURST`](crate::LONGEST_BURST).
    pub fn build(self) -> Result<RateLimit, ConfigError> {
        let Self { quota, queue, name } = self;
        let engine = Engine::new(quota, Clock::default())?;
        warn_if_too_fine(quota, queue, name.as_ref());
        Ok(RateLimit {
            shared: Arc::new(Shared {
                gate: Gate::new((engine, Tat::default())),
                line: Mutex::new(Line::new()),
                queue,
                name,
            }),
        })
    }
}
