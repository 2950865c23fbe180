use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::shared::{Message, Shared};
use crate::state::Key;
use crate::{Handle, Health};

/// What a worker has in hand during one run.
///
/// Cheap to clone; a clone that outlives the run has no effect on later runs.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) run: Arc<Run>,
}

/// One run of a child.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) shared: Arc<Shared>,
    pub(crate) name: Arc<str>,
    pub(crate) token: CancellationToken,
    pub(crate) key: Key,
    pub(crate) epoch: u64,
    pub(crate) attempt: u64,
    pub(crate) beat: Option<Box<Beat>>,
    /// Whether it need not say any more that it is ready.
    pub(crate) told: AtomicBool,
    /// What it said last of its health, until the supervisor has heard it.
    pub(crate) health: Mutex<Option<Health>>,
}

impl Run {
    fn say(&self, health: Option<Health>) -> Option<Health> {
        std::mem::replace(&mut *self.health.lock().unwrap_or_else(PoisonError::into_inner), health)
    }

    /// What has not been heard yet.
    pub(crate) fn hear(&self) -> Option<Health> {
        self.say(None)
    }
}

/// When a heart last beat.
#[derive(Debug)]
pub(crate) struct Beat {
    started: Instant,
    within: Duration,
    /// In nanoseconds since the start.
    last: AtomicU64,
}

impl Beat {
    pub(crate) fn new(within: Duration) -> Self {
        Self { started: Instant::now(), within, last: AtomicU64::new(0) }
    }

    pub(crate) fn last(&self) -> Instant {
        self.started + Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }
}

impl Context {
    /// The child's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.run.name
    }

    /// Which start of this child it is, from 1 on.
    #[must_use]
    pub fn attempt(&self) -> u64 {
        self.run.attempt
    }

    /// The token that is cancelled when the worker should end. It is cancelled at the end of the run in any case, so what
    /// the worker started with it does not outlive the run unasked.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.run.token
    }

    /// Waits until the worker should end.
    ///
    /// # Cancel safety
    ///
    /// Dropping it has no effect.
    pub fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.run.token.cancelled()
    }

    /// Whether the worker should end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.run.token.is_cancelled()
    }

    /// Says that the worker is up, for a child [with readiness](crate::Child::with_readiness). Further calls have no effect.
    pub fn ready(&self) {
        if self.run.told.swap(true, Ordering::Relaxed) {
            return;
        }
        self.run.shared.send(Message::Ready { key: self.run.key, epoch: self.run.epoch });
    }

    /// Says that the worker is alive, for a child [with a heartbeat](crate::Child::with_heartbeat): one clock reading and one store.
    pub fn heartbeat(&self) {
        if let Some(beat) = &self.run.beat {
            let nanos = u64::try_from(beat.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            beat.last.store(nanos, Ordering::Relaxed);
        }
    }

    /// How far apart heartbeats may be at most; `None` for a child without one. A worker does well to beat twice as often, as
    /// systemd advises for its own watchdog.
    #[must_use]
    pub fn heartbeat_within(&self) -> Option<Duration> {
        self.run.beat.as_ref().map(|beat| beat.within)
    }

    /// Says how the worker does: shown in snapshots, and an event when it changes. What is followed by another word before the
    /// supervisor has heard it is not told.
    pub fn report_health(&self, health: Health) {
        // One message at a time, however often it is said.
        if self.run.say(Some(health)).is_none() {
            self.run.shared.send(Message::Health(Arc::clone(&self.run)));
        }
    }

    /// The supervisor that runs this worker.
    #[must_use]
    pub fn supervisor(&self) -> Handle {
        Handle::new(Arc::clone(&self.run.shared))
    }
}
