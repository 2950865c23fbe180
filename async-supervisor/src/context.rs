use std::sync::Arc;

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::Handle;
use crate::handle::{Message, Shared};
use crate::state::Key;

/// What a worker has in hand during one run.
///
/// Cheap to clone; a clone that outlives the run has no effect on later runs.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) name: Arc<str>,
    pub(crate) token: CancellationToken,
    pub(crate) key: Key,
    pub(crate) epoch: u64,
    pub(crate) attempt: u64,
}

impl Context {
    /// The child's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which start of this child it is, from 1 on.
    #[must_use]
    pub const fn attempt(&self) -> u64 {
        self.attempt
    }

    /// The token that is cancelled when the worker should end. It is cancelled at the end of the run in any case, so what
    /// the worker started with it does not outlive the run unasked.
    #[must_use]
    pub const fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Waits until the worker should end.
    ///
    /// # Cancel safety
    ///
    /// Dropping it has no effect.
    pub fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }

    /// Whether the worker should end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Says that the worker is up, for a child [with readiness](crate::Child::with_readiness). Further calls have no effect.
    pub fn ready(&self) {
        self.shared.send(Message::Ready { key: self.key, epoch: self.epoch });
    }

    /// The supervisor that runs this worker.
    #[must_use]
    pub fn supervisor(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared))
    }
}
