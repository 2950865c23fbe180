use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_policy::{Name, Outcome, Verdict};

use crate::StopReason;

/// What events are filtered by: the crate, not the module they happen to come from.
#[cfg(feature = "tracing")]
const TARGET: &str = "async_retry";

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AttemptOutcome {
    /// It worked.
    Success,
    /// It failed, and another try may work.
    Transient,
    /// The backend asked for less.
    Throttled,
    /// It failed, and would fail again the same way.
    Permanent,
    /// It ended in a way that says nothing about the backend.
    Ignored,
    /// An inner policy refused: the operation was not started.
    Refused,
    /// A time-out gave up: the operation may have run.
    TimedOut,
    /// It panicked, which counts as a failure. A hedge tells it: out of a retry the panic passes at once.
    Panicked,
}

impl AttemptOutcome {
    /// One lower-case word or two: the label in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::Permanent => "permanent",
            Self::Ignored => "ignored",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Panicked => "panicked",
        }
    }

    /// How much the answer is worth to the caller: what the operation said, over "it may have run", over "not started".
    pub(crate) const fn rank(self) -> u8 {
        match self {
            Self::Refused => 0,
            Self::TimedOut => 1,
            _ => 2,
        }
    }
}

impl From<&Outcome<'_>> for AttemptOutcome {
    fn from(outcome: &Outcome<'_>) -> Self {
        match outcome {
            Outcome::Answered(Verdict::Success) => Self::Success,
            Outcome::Answered(Verdict::Transient) => Self::Transient,
            Outcome::Answered(Verdict::Throttled { .. }) => Self::Throttled,
            Outcome::Answered(Verdict::Permanent) => Self::Permanent,
            Outcome::Answered(Verdict::Ignored) => Self::Ignored,
            Outcome::Refused(_) => Self::Refused,
            Outcome::TimedOut(_) => Self::TimedOut,
        }
    }
}

impl fmt::Display for AttemptOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a [`Retry`](crate::Retry) or a [`Hedge`](crate::Hedge) did. Attempts count from 1 in each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An attempt ended.
    Attempted {
        /// Which one.
        attempt: u32,
        /// How.
        outcome: AttemptOutcome,
    },
    /// Another attempt will follow.
    Scheduled {
        /// Which one.
        attempt: u32,
        /// After how long.
        delay: Duration,
    },
    /// The call ends without success.
    GaveUp {
        /// How many attempts it made.
        attempts: u32,
        /// Why it makes no other.
        reason: StopReason,
    },
    /// A hedge started an extra attempt next to those in flight.
    Hedged {
        /// Which one.
        attempt: u32,
    },
    /// A hedge would have started an extra attempt, but the budget is spent.
    HedgeWithheld {
        /// Which one.
        attempt: u32,
    },
    /// A hedge dropped an attempt in flight, because another one brought the answer.
    Aborted {
        /// Which one.
        attempt: u32,
    },
}

type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// Who is told: the one place where events leave the crate.
#[derive(Clone, Default)]
pub(crate) struct Watch {
    pub(crate) name: Option<Name>,
    pub(crate) listener: Option<Listener>,
}

impl Watch {
    /// Whether everything is told, listener or not.
    pub(crate) const ALWAYS: bool = cfg!(any(feature = "tracing", feature = "metrics"));
    const UNNAMED: Self = Self { name: None, listener: None };
    /// Who is told where nothing is configured.
    pub(crate) const NOBODY: Option<&'static Self> = if Self::ALWAYS { Some(&Self::UNNAMED) } else { None };

    pub(crate) fn emit(&self, event: Event) {
        #[cfg(feature = "tracing")]
        self.trace(event);
        #[cfg(feature = "metrics")]
        self.measure(event);
        if let Some(listener) = &self.listener {
            listener(&event);
        }
    }

    #[cfg(feature = "tracing")]
    fn trace(&self, event: Event) {
        let name = self.name.as_deref();
        match event {
            Event::Attempted { attempt, outcome } => {
                tracing::trace!(target: TARGET, name, attempt, outcome = outcome.as_str(), "attempt ended");
            }
            Event::Scheduled { attempt, delay } => {
                tracing::debug!(target: TARGET, name, attempt, ?delay, "retrying");
            }
            Event::GaveUp { attempts, reason: reason @ (StopReason::Permanent | StopReason::Ignored) } => {
                tracing::debug!(target: TARGET, name, attempts, reason = reason.as_str(), "gave up");
            }
            Event::GaveUp { attempts, reason } => {
                tracing::warn!(target: TARGET, name, attempts, reason = reason.as_str(), "gave up");
            }
            Event::Hedged { attempt } => {
                tracing::debug!(target: TARGET, name, attempt, "hedging");
            }
            Event::HedgeWithheld { attempt } => {
                tracing::debug!(target: TARGET, name, attempt, "hedge withheld: budget spent");
            }
            Event::Aborted { attempt } => {
                tracing::trace!(target: TARGET, name, attempt, "attempt aborted");
            }
        }
    }

    /// Counters per event, and the delays as a histogram; `name` is the label of the instance.
    #[cfg(feature = "metrics")]
    fn measure(&self, event: Event) {
        let name = || self.name.as_deref().unwrap_or_default().to_owned();
        match event {
            Event::Attempted { outcome, .. } => {
                metrics::counter!("async_retry_attempts_total", "name" => name(), "outcome" => outcome.as_str())
                    .increment(1);
            }
            Event::Scheduled { delay, .. } => {
                metrics::histogram!("async_retry_delay_seconds", "name" => name())
                    .record(delay.as_secs_f64());
            }
            Event::GaveUp { reason, .. } => {
                metrics::counter!("async_retry_give_ups_total", "name" => name(), "reason" => reason.as_str())
                    .increment(1);
            }
            Event::Hedged { .. } => {
                metrics::counter!("async_retry_hedges_total", "name" => name()).increment(1);
            }
            Event::HedgeWithheld { .. } => {
                metrics::counter!("async_retry_hedges_withheld_total", "name" => name()).increment(1);
            }
            Event::Aborted { .. } => {
                metrics::counter!("async_retry_aborted_total", "name" => name()).increment(1);
            }
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("name", &self.name).field("listener", &self.listener.is_some()).finish()
    }
}
