use std::fmt;
use std::time::Duration;

use async_policy::{Rejection, Verdict};
use tokio::time::Instant;

use crate::State;

/// Why the circuit changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// So many failures in a row.
    ConsecutiveFailures,
    /// The failure rate was reached.
    FailureRate,
    /// The rate of slow calls was reached.
    SlowRate,
    /// The open time was over and a call came.
    OpenTimeOver,
    /// The probes failed.
    ProbesFailed,
    /// The probes succeeded.
    ProbesSucceeded,
    /// The probes did not decide within their time.
    HalfOpenExpired,
    /// Someone set the mode, opened the breaker for a while or reset it.
    Manual,
    /// A saved state was restored.
    Restored,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Cause {
    /// The cause as a word: `failure_rate`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::FailureRate => "failure_rate",
            Self::SlowRate => "slow_rate",
            Self::OpenTimeOver => "open_time_over",
            Self::ProbesFailed => "probes_failed",
            Self::ProbesSucceeded => "probes_succeeded",
            Self::HalfOpenExpired => "half_open_expired",
            Self::Manual => "manual",
            Self::Restored => "restored",
        }
    }
}

/// One change of the circuit's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// The epoch that began. Each transition begins the next one, so a gap between two of them shows that some were
    /// missed.
    pub epoch: u64,
    /// The state before. A change by hand may begin a new epoch in the same state.
    pub from: State,
    /// The state after.
    pub to: State,
    /// Why.
    pub cause: Cause,
    /// When.
    pub at: Instant,
    /// When it opened: for how long. `None` for one forced open.
    pub open_for: Option<Duration>,
}

/// How a call that was let in ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// It succeeded: `Success` or `Permanent` by its [`Verdict`](crate::Verdict).
    Success,
    /// It failed: `Transient` or `Throttled` by its verdict, or an inner time-out gave up on it.
    Failure,
    /// It panicked, which counts as a failure.
    Panicked,
    /// It says nothing about the backend: `Ignored` by its verdict, or an inner policy refused it. Not counted.
    Ignored,
    /// It was dropped before it had an outcome. Not counted.
    Aborted,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Ending {
    pub(crate) const fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Success | Verdict::Permanent => Self::Success,
            Verdict::Transient | Verdict::Throttled { .. } => Self::Failure,
            Verdict::Ignored => Self::Ignored,
        }
    }

    pub(crate) const fn is_failure(self) -> bool {
        matches!(self, Self::Failure | Self::Panicked)
    }

    /// The ending as a word: `failure`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Panicked => "panicked",
            Self::Ignored => "ignored",
            Self::Aborted => "aborted",
        }
    }
}

/// What a breaker tells its listener, after every lock has been released.
///
/// Transitions come in order, one at a time. A call that ends well and in time is not an event: the healthy path
/// has nothing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The circuit changed its state.
    Transitioned(Transition),
    /// A call was refused.
    Rejected(Rejection),
    /// A call would have been refused if the breaker did more than [observe](crate::Mode::ObserveOnly).
    WouldReject(Rejection),
    /// A key got a breaker that is [not held](crate::CircuitBreakers): there was no room, and nothing to evict. Its calls are not
    /// protected.
    NotHeld,
    /// A call ended in any other way than well and in time.
    Ended {
        /// How.
        ending: Ending,
        /// Whether it took longer than a [slow-call rule](crate::Trip::slow_rate) allows.
        slow: bool,
    },
}
