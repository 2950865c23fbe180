use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::snapshot::whole;
use crate::worker::shielded;
use crate::{Exit, Report, Signal, Stall};

/// What a worker says of itself, with [`Context::report_health`](crate::Context::report_health).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    #[default]
    Healthy,
    /// It works, but not as it should; why. Shown in snapshots, and nothing else follows from it: a worker that cannot work ends
    /// with an error.
    Degraded(Arc<str>),
}

/// Something that happened in a tree of supervisors.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// The supervisor it happened in, as a path from the root: `root/feeds`.
    pub supervisor: Arc<str>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened: see [`Event`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// A child was started.
    Started {
        /// The child.
        child: Arc<str>,
        /// Which start of it.
        attempt: u64,
    },
    /// A child reported that it is up.
    Ready {
        /// The child.
        child: Arc<str>,
    },
    /// A run of a child ended.
    Exited {
        /// The child.
        child: Arc<str>,
        /// How.
        exit: Exit,
    },
    /// A child that fell will be restarted.
    Restarting {
        /// The child.
        child: Arc<str>,
        /// In how long.
        delay: Duration,
    },
    /// A child did not end in time, and was aborted.
    Aborted {
        /// The child.
        child: Arc<str>,
    },
    /// A child did not end even so: it blocks its thread.
    Stuck {
        /// The child.
        child: Arc<str>,
    },
    /// A child was forgotten.
    Removed {
        /// The child.
        child: Arc<str>,
    },
    /// A worker reported a change of its health.
    HealthChanged {
        /// The child.
        child: Arc<str>,
        /// How it is now.
        health: Health,
    },
    /// A [tracked task](crate::Tasks) failed.
    TaskFailed {
        /// The child that looks after the tasks.
        child: Arc<str>,
        /// The task.
        task: Arc<str>,
        /// How it ended.
        exit: Exit,
    },
    /// All children of the first start are up.
    Up,
    /// The program got a signal in [`run_until_signal`](crate::Running::run_until_signal): the first stops the supervisor, the second forces that.
    Signal(Signal),
    /// The supervisor began to stop its children.
    Stopping,
    /// The supervisor is over.
    Ended {
        /// How it ended.
        report: Arc<Report>,
    },
    /// A poll has blocked its thread for longer than the [watchdog](crate::Supervisor::with_watchdog) allows.
    Stalled(Stall),
    /// The receiver was too slow: this many events are lost to it.
    Missed(u64),
}

impl EventKind {
    /// The child it is about, if it is about one.
    #[must_use]
    pub const fn child(&self) -> Option<&Arc<str>> {
        match self {
            Self::Started { child, .. }
            | Self::Ready { child }
            | Self::Exited { child, .. }
            | Self::Restarting { child, .. }
            | Self::Aborted { child }
            | Self::Stuck { child }
            | Self::Removed { child }
            | Self::TaskFailed { child, .. }
            | Self::HealthChanged { child, .. } => Some(child),
            Self::Stalled(stall) => stall.worker.as_ref(),
            Self::Up | Self::Signal(_) | Self::Stopping | Self::Ended { .. } | Self::Missed(_) => None,
        }
    }

    /// Its name as a word, for logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Ready { .. } => "ready",
            Self::Exited { .. } => "exited",
            Self::Restarting { .. } => "restarting",
            Self::Aborted { .. } => "aborted",
            Self::Stuck { .. } => "stuck",
            Self::Removed { .. } => "removed",
            Self::HealthChanged { .. } => "health_changed",
            Self::TaskFailed { .. } => "task_failed",
            Self::Up => "up",
            Self::Signal(_) => "signal",
            Self::Stopping => "stopping",
            Self::Ended { .. } => "ended",
            Self::Stalled(_) => "stalled",
            Self::Missed(_) => "missed",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.supervisor)?;
        if let Some(child) = self.kind.child() {
            write!(f, "/{child}")?;
        }
        match &self.kind {
            EventKind::Started { attempt, .. } => write!(f, ": started (attempt {attempt})"),
            EventKind::Exited { exit, .. } => write!(f, ": {exit}"),
            EventKind::Restarting { delay, .. } => write!(f, ": restarting in {:?}", whole(*delay)),
            // What follows is told by the exit.
            EventKind::Aborted { .. } => f.write_str(": being aborted"),
            EventKind::HealthChanged { health: Health::Degraded(why), .. } => write!(f, ": degraded: {why}"),
            EventKind::HealthChanged { health: Health::Healthy, .. } => f.write_str(": healthy"),
            EventKind::TaskFailed { task, exit, .. } => write!(f, ": task `{task}` {exit}"),
            EventKind::Signal(signal) => write!(f, ": {signal} received"),
            EventKind::Ended { report } => write!(f, ": {report}"),
            EventKind::Stalled(stall) => write!(f, ": {stall}"),
            EventKind::Missed(lost) => write!(f, ": {lost} events missed"),
            other => write!(f, ": {}", other.name()),
        }
    }
}

enum Channel {
    Unused,
    Open(broadcast::Sender<Event>),
    Closed,
}

/// Where the events of a tree come together. Without a listener an event is not even made.
pub(crate) struct Hub {
    observed: AtomicBool,
    channel: Mutex<Channel>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hub")
    }
}

/// How many events wait for a slow receiver before it loses the oldest.
const CAPACITY: usize = 1024;

impl Hub {
    pub(crate) fn new() -> Self {
        let logged = cfg!(feature = "tracing") || cfg!(feature = "metrics");
        Self { observed: AtomicBool::new(logged), channel: Mutex::new(Channel::Unused) }
    }

    fn channel(&self) -> MutexGuard<'_, Channel> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_observed(&self) -> bool {
        self.observed.load(Ordering::Relaxed)
    }

    pub(crate) fn emit(&self, event: Event) {
        shielded(|| crate::telemetry::record(&event));
        let sender = match &*self.channel() {
            Channel::Open(sender) => sender.clone(),
            Channel::Unused | Channel::Closed => return,
        };
        // Nobody may listen any more.
        shielded(|| drop(sender.send(event)));
    }

    pub(crate) fn subscribe(&self) -> Events {
        let mut channel = self.channel();
        if matches!(*channel, Channel::Unused) {
            *channel = Channel::Open(broadcast::Sender::new(CAPACITY));
            self.observed.store(true, Ordering::Relaxed);
        }
        Events {
            receiver: if let Channel::Open(sender) = &*channel { Some(sender.subscribe()) } else { None },
        }
    }

    /// No event comes after this.
    pub(crate) fn close(&self) {
        *self.channel() = Channel::Closed;
    }
}

/// The events of a tree from now on: see [`Handle::events`](crate::Handle::events).
///
/// The supervisor never waits for a receiver. One that falls behind by more than 1,024 events loses the oldest, and is told how many
/// ([`EventKind::Missed`]).
#[derive(Debug)]
pub struct Events {
    receiver: Option<broadcast::Receiver<Event>>,
}

impl Events {
    /// The next event; `None` when the root supervisor is over.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses no event.
    pub async fn recv(&mut self) -> Option<Event> {
        match self.receiver.as_mut()?.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(lost)) => {
                Some(Event { supervisor: Arc::from(""), kind: EventKind::Missed(lost) })
            }
            Err(RecvError::Closed) => {
                self.receiver = None;
                None
            }
        }
    }
}
