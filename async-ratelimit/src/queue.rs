use std::time::Duration;

use async_policy::{Deadline, Reason};
use tokio::time::Instant;

/// Who may wait, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queue {
    /// Zero: nobody may.
    pub(crate) max_len: usize,
    pub(crate) max_wait: Option<Duration>,
}

impl Queue {
    /// Who finds no room is refused.
    pub(crate) const NONE: Self = Self { max_len: 0, max_wait: None };

    /// When a waiter who comes now has to give up, and what to call it then.
    pub(crate) fn patience(self) -> Option<(Instant, Reason)> {
        let longest = self.max_wait.and_then(|wait| Instant::now().checked_add(wait));
        let deadline = Deadline::current().map(Deadline::instant);
        match (longest, deadline) {
            (Some(longest), Some(deadline)) if deadline <= longest => {
                Some((deadline, Reason::DeadlineTooClose))
            }
            (Some(longest), _) => Some((longest, Reason::WaitTooLong)),
            (None, Some(deadline)) => Some((deadline, Reason::DeadlineTooClose)),
            (None, None) => None,
        }
    }
}

/// What every builder here has, besides its limit: who may wait, and a name.
macro_rules! queue_and_name {
    ($who_waits:literal) => {
        #[doc = $who_waits]
        ///
        /// A `max_len` of zero is no queue: nobody waits, whatever `max_wait` says.
        pub fn with_queue(
            mut self,
            max_len: usize,
            max_wait: impl Into<Option<std::time::Duration>>,
        ) -> Self {
            self.queue = Queue { max_len, max_wait: max_wait.into() };
            self
        }

        /// The name that refusals carry.
        pub fn with_name(mut self, name: impl Into<Name>) -> Self {
            self.name = Some(name.into());
            self
        }
    };
}
pub(crate) use queue_and_name;
