use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle as Runtime;

use crate::event::{Event, EventKind};
use crate::poll;
use crate::shared::Shared;

/// A thread of the runtime was blocked: something was polled for long without an await.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stall {
    /// Which worker was being polled; `None` if it was none of a supervisor's.
    pub worker: Option<Arc<str>>,
    /// Since when.
    pub since: SystemTime,
    /// For how long, as far as it is known: a stall that is going on is still growing.
    pub lasted: Duration,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.worker {
            Some(worker) => write!(f, "the poll of `{worker}` has blocked its thread for {:?}", self.lasted),
            None => write!(f, "the runtime has been blocked for {:?}", self.lasted),
        }
    }
}

/// What a watchdog has seen so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stalls {
    /// How many there were.
    pub count: u64,
    /// The longest.
    pub longest: Option<Stall>,
    /// Those that are going on.
    pub current: Vec<Stall>,
}

#[derive(Default)]
struct Seen {
    stalls: Stalls,
    /// The polls reported already, by worker and start.
    reported: Vec<(Option<Arc<str>>, Instant)>,
    /// When the runtime was last asked for a sign of life, and whether it has given it.
    asked: Option<Instant>,
    over: bool,
}

/// A thread of its own that looks whether the runtime is blocked.
pub(crate) struct Watchdog {
    seen: Mutex<Seen>,
    wake: Condvar,
    limit: Duration,
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// Ends the thread when it is dropped.
pub(crate) struct Leash(Arc<Watchdog>);

impl Drop for Leash {
    fn drop(&mut self) {
        self.0.seen().over = true;
        self.0.wake.notify_one();
    }
}

impl Watchdog {
    pub(crate) fn new(limit: Duration) -> Arc<Self> {
        Arc::new(Self { seen: Mutex::default(), wake: Condvar::new(), limit })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stalls(&self) -> Stalls {
        self.seen().stalls.clone()
    }

    /// Starts the thread. Where none can be had, nothing is watched.
    pub(crate) fn start(self: &Arc<Self>, shared: &Arc<Shared>) -> Leash {
        let (dog, shared, runtime) = (Arc::clone(self), Arc::downgrade(shared), Runtime::current());
        // From now on, so that no poll is missed before the thread is there.
        let watching = poll::Watching::new();
        let watch = move || {
            dog.watch(&shared, &runtime);
            drop(watching);
        };
        let _ = thread::Builder::new().name("supervisor-watchdog".into()).spawn(watch);
        Leash(Arc::clone(self))
    }

    fn watch(self: Arc<Self>, shared: &Weak<Shared>, runtime: &Runtime) {
        // Often enough that a stall is seen before it has lasted one and a half times the limit.
        let every = (self.limit / 4).max(Duration::from_millis(1));
        let mut seen = self.seen();
        loop {
            seen = self.wake.wait_timeout(seen, every).unwrap_or_else(PoisonError::into_inner).0;
            if seen.over {
                // Nobody looks any more whether they are over.
                seen.stalls.current.clear();
                return;
            }
            drop(seen);
            let Some(shared) = shared.upgrade() else { return };
            self.look(&shared, runtime);
            drop(shared);
            seen = self.seen();
        }
    }

    fn look(self: &Arc<Self>, shared: &Arc<Shared>, runtime: &Runtime) {
        let now = Instant::now();
        let mut polls = poll::going_on();
        polls.retain(|poll| poll.shared.upgrade().is_some_and(|of| Arc::ptr_eq(&of.hub, &shared.hub)));
        let for_as_long = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        // One of these will explain it when its own time is up.
        let suspected = polls.iter().any(|poll| for_as_long(poll.since, self.limit / 2));
        let mut blocked: Vec<(Option<Arc<str>>, Instant)> = polls
            .into_iter()
            .filter(|poll| for_as_long(poll.since, self.limit))
            .map(|poll| (Some(poll.worker), poll.since))
            .collect();
        let asked = self.seen().asked;
        match asked {
            None => {
                self.seen().asked = Some(now);
                let dog = Arc::clone(self);
                // Dropped unpolled by a runtime that has been shut down: then nothing is left to watch.
                runtime.spawn(async move { dog.seen().asked = None });
            }
            Some(asked) if !suspected && for_as_long(asked, self.limit) => {
                blocked.push((None, asked));
            }
            Some(_) => {}
        }
        let stall = |(worker, since): &(Option<Arc<str>>, Instant)| {
            let lasted = now.saturating_duration_since(*since);
            Stall { worker: worker.clone(), since: SystemTime::now() - lasted, lasted }
        };
        let mut fresh = Vec::new();
        {
            let mut seen = self.seen();
            seen.stalls.current = blocked.iter().map(stall).collect();
            for known in &blocked {
                let stall = stall(known);
                if !seen.reported.contains(known) {
                    seen.stalls.count += 1;
                    fresh.push(stall.clone());
                }
                if seen.stalls.longest.as_ref().is_none_or(|longest| longest.lasted < stall.lasted) {
                    seen.stalls.longest = Some(stall);
                }
            }
            seen.reported = blocked;
        }
        for stall in fresh {
            shared.hub.emit(Event { supervisor: Arc::clone(&shared.path), kind: EventKind::Stalled(stall) });
        }
    }
}
