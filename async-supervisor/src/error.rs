use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_policy::ConfigError;

use crate::worker::bury;

/// Names make up paths (`root/feeds/import`) and lines of text.
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), ConfigError> {
    if name.is_empty() || name.contains(|c: char| c == '/' || c.is_control()) {
        return Err(ConfigError::new(
            field,
            format_args!("{name:?}"),
            "a name, without `/` and control characters",
        ));
    }
    Ok(())
}

/// Any error of a worker.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The error with which a worker ended. Cheap to clone: events, reports and snapshots share it.
///
/// `Display` is the error with its chain of sources, written once when it happened.
#[derive(Clone)]
pub struct WorkerError {
    text: Arc<str>,
    error: Arc<Shield>,
}

/// A user's error, which is dropped wherever the last report or event with it is: a panic of its drop ends there.
struct Shield(Option<BoxError>);

impl Drop for Shield {
    fn drop(&mut self) {
        bury(self.0.take());
    }
}

impl WorkerError {
    /// Writes the error down.
    #[must_use]
    pub fn new(error: BoxError) -> Self {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(source) = next {
            let cause = source.to_string();
            // Many errors repeat their source.
            if !text.ends_with(&cause) {
                text.push_str(": ");
                text.push_str(&cause);
            }
            next = source.source();
        }
        Self { text: text.into(), error: Arc::new(Shield(Some(error))) }
    }

    /// The error and its sources as one line.
    #[must_use]
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// The error as the type it had.
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.error.0.as_ref()?.downcast_ref()
    }
}

impl fmt::Debug for WorkerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error.0 {
            Some(error) => fmt::Debug::fmt(error, f),
            None => fmt::Debug::fmt(&self.text, f),
        }
    }
}

impl fmt::Display for WorkerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for WorkerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.0.as_ref()?.source()
    }
}

/// How a run of a child ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Exit {
    /// It returned, with success.
    Completed,
    /// It returned an error.
    Failed(WorkerError),
    /// It panicked; what it said.
    Panicked(Arc<str>),
    /// It was aborted: it did not stop in time, or somebody else ended its task.
    Aborted,
    /// It did not report readiness within this time, and was stopped.
    NotReady(Duration),
    /// Its heartbeat was overdue by this time, and it was stopped.
    MissedHeartbeat(Duration),
    /// It is a supervisor, and gave up.
    MeltedDown(MeltDown),
}

impl Exit {
    /// Whether it is a success: [`Completed`](Self::Completed).
    #[must_use]
    pub const fn is_normal(&self) -> bool {
        matches!(self, Self::Completed)
    }

    /// It as one word, for logs and metrics: `missed_heartbeat`, say.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed(_) => "failed",
            Self::Panicked(_) => "panicked",
            Self::Aborted => "aborted",
            Self::NotReady(_) => "not_ready",
            Self::MissedHeartbeat(_) => "missed_heartbeat",
            Self::MeltedDown(_) => "melted_down",
        }
    }

    /// A failure in words; `None` for a success.
    pub(crate) fn text(&self) -> Option<Arc<str>> {
        match self {
            Self::Completed => None,
            Self::Failed(error) => Some(Arc::clone(error.text())),
            other => Some(other.to_string().into()),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed => f.write_str("completed"),
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::Panicked(said) => write!(f, "panicked: {said}"),
            Self::Aborted => f.write_str("aborted"),
            Self::NotReady(limit) => write!(f, "not ready within {limit:?}"),
            Self::MissedHeartbeat(limit) => write!(f, "no heartbeat within {limit:?}"),
            Self::MeltedDown(down) => write!(f, "{down}"),
        }
    }
}

/// A supervisor gave up, and stopped all its children.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum MeltDown {
    /// One restart too many within the period of its [`Intensity`](crate::Intensity).
    Intensity {
        /// Which supervisor.
        supervisor: Arc<str>,
        /// The child that fell last.
        child: Arc<str>,
        /// How many restarts there would have been within the period.
        restarts: u32,
        /// How many are allowed.
        limit: u32,
        /// Within how long.
        period: Duration,
        /// How that child last failed.
        error: Option<Arc<str>>,
    },
    /// A child's first start failed, so the supervisor did not come up.
    Start {
        /// Which supervisor.
        supervisor: Arc<str>,
        /// The child that did not start.
        child: Arc<str>,
        /// Why.
        error: Option<Arc<str>>,
    },
}

impl MeltDown {
    /// What happened, where it is known to whom.
    pub(crate) fn what(&self) -> String {
        match self {
            Self::Intensity { child, restarts, limit, period, error, .. } => {
                let s = if *restarts == 1 { "" } else { "s" };
                let why = because(error);
                format!(
                    "melted down: {restarts} restart{s} within {period:?} ({limit} allowed), the last of `{child}`{why}"
                )
            }
            Self::Start { child, error, .. } => format!("did not start: `{child}`{}", because(error)),
        }
    }
}

impl fmt::Display for MeltDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Intensity { supervisor, .. } | Self::Start { supervisor, .. }) = self;
        write!(f, "supervisor `{supervisor}` {}", self.what())
    }
}

impl Error for MeltDown {}

fn because(error: &Option<Arc<str>>) -> String {
    error.as_ref().map_or_else(String::new, |error| format!(": {error}"))
}

/// The supervisor did not come up.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// It cannot be made like this; nothing was started.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The first start of a child [with readiness](crate::Child::with_readiness) failed, which is not tried again. Those started before it
    /// have been stopped in reverse order; the later ones were not started.
    #[error(transparent)]
    Child(MeltDown),
    /// It was stopped before all children were up.
    #[error("stopped during start-up")]
    Stopped,
}

/// A command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// There is a child of this name already.
    #[error("a child `{0}` is there already")]
    AlreadyExists(Arc<str>),
    /// The supervisor has as many children as it may have.
    #[error("the limit of {0} children is reached")]
    LimitReached(usize),
    /// The child's settings do not fit the supervisor.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no child of this name.
    #[error("no child `{0}`")]
    NotFound(Arc<str>),
    /// The child is running.
    #[error("child `{0}` is running")]
    Running(Arc<str>),
    /// The child waits for its restart.
    #[error("child `{0}` is about to be restarted")]
    Restarting(Arc<str>),
    /// The child is being stopped, by another command.
    #[error("child `{0}` is being stopped")]
    Stopping(Arc<str>),
    /// The child did not end even when it was aborted: it blocks its thread. The command is completed when it ends.
    #[error("child `{0}` would not stop")]
    WouldNotStop(Arc<str>),
    /// The supervisor is restarting a group and waits for this child, which would not stop.
    #[error("the supervisor waits for child `{0}`, which would not stop")]
    Blocked(Arc<str>),
    /// The child was started, and ended before it was ready.
    #[error("child `{name}` did not start{}", because(.error))]
    StartFailed {
        /// The child.
        name: Arc<str>,
        /// Why.
        error: Option<Arc<str>>,
    },
    /// The supervisor is stopping or has stopped.
    #[error("the supervisor is shut down")]
    ShutDown,
}
