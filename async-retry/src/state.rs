//! The pure core: outcomes and randomness come in, decisions go out.

use std::num::NonZeroU32;
use std::time::Duration;

use async_policy::{Outcome, Verdict};

use crate::Backoff;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) backoff: Backoff,
    pub(crate) max_attempts: NonZeroU32,
    pub(crate) wait_for_refusals: bool,
}

/// How far one call has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) attempts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The outcome is the call's.
    Done,
    /// Another attempt, after this delay.
    After(Duration),
    /// It failed and there is no other attempt: why.
    Stop(StopReason),
}

/// Why a call that failed made no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// All attempts are used.
    Attempts,
    /// The delay would outlast the deadline that flows in from outside.
    Deadline,
    /// An inner policy refused, and does not say for how long, or for longer than the cap, or waiting is not wanted.
    Refused,
}

impl Config {
    pub(crate) fn next(
        &self,
        progress: &mut Progress,
        outcome: &Outcome<'_>,
        unit: impl FnOnce() -> f64,
    ) -> Next {
        progress.attempts = progress.attempts.saturating_add(1);
        let hint = match outcome {
            Outcome::Answered(Verdict::Success | Verdict::Permanent | Verdict::Ignored) => return Next::Done,
            Outcome::Answered(Verdict::Transient) | Outcome::TimedOut(_) => None,
            Outcome::Answered(Verdict::Throttled { retry_after }) => {
                retry_after.map(|after| after.min(self.backoff.cap()))
            }
            Outcome::Refused(rejection) => match rejection.retry_after() {
                Some(wait) if self.wait_for_refusals && wait <= self.backoff.cap() => Some(wait),
                None if self.wait_for_refusals && rejection.reason().may_pass() => None,
                _ => return Next::Stop(StopReason::Refused),
            },
        };
        if progress.attempts >= self.max_attempts.get() {
            return Next::Stop(StopReason::Attempts);
        }
        Next::After(hint.unwrap_or_else(|| self.backoff.delay(progress.attempts, unit)))
    }
}
