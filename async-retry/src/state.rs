//! The pure core: outcomes, time and randomness come in, decisions go out.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_policy::{Outcome, Rejection, Verdict};

use crate::backoff::{Cursor, Curve, Custom, Shape};
use crate::{After, Budget, BudgetToken};

/// The shortest delay where the attempts are not limited.
pub(crate) const MIN_UNLIMITED_DELAY: Duration = Duration::from_millis(1);

/// After this many attempts of a call that is limited in time, no delay is shorter either.
const MANY: u32 = 100;

/// One in this many attempts without a delay gives the runtime a chance to take the task's turn away.
pub(crate) const YIELD_EVERY: u32 = 16;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) backoff: Shape,
    /// `None`: not limited.
    pub(crate) max_attempts: Option<NonZeroU32>,
    pub(crate) wait_for_refusals: bool,
}

/// What few ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct More {
    pub(crate) max_elapsed: Option<Duration>,
    pub(crate) budget: Option<Budget>,
    pub(crate) custom: Option<Arc<Custom>>,
}

impl More {
    pub(crate) const NONE: &'static Self = &Self { max_elapsed: None, budget: None, custom: None };
}

/// How far one call has come.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) attempts: u32,
    slept: Duration,
    cursor: Cursor,
    /// What the attempt under way took from the budget.
    token: Option<BudgetToken>,
}

/// What the core asks of the world, each when it needs it.
pub(crate) trait World {
    /// Since the first attempt was started.
    fn elapsed(&self) -> Duration;
    /// Whether a wait ends before the deadline that flows in from outside.
    fn fits(&self, wait: Duration) -> bool;
    /// Uniform in `0.0..1.0`.
    fn unit(&self) -> f64;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It succeeded.
    Done,
    /// Another attempt, after this delay.
    After(Duration),
    /// There is no other attempt: why.
    Stop(StopReason),
}

/// Why a call that did not succeed made no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// The verdict was permanent: another try would fail the same way.
    Permanent,
    /// The verdict was to ignore the outcome.
    Ignored,
    /// All attempts are used, those that an inner policy refused among them.
    Attempts,
    /// The next attempt would start after the time the call may take in all.
    Elapsed,
    /// The delay would outlast the deadline that flows in from outside.
    Deadline,
    /// The budget allows no extra attempt now.
    Budget,
    /// An inner policy refused, and will go on to, or for longer than the cap; or waiting is not wanted.
    Refused,
    /// The delays of the backoff have come to their end.
    Backoff,
    /// The request cannot be repeated.
    NotRepeatable,
    /// The service failed to become ready for the next attempt.
    NotReady,
    /// The backend asked for less, and a hedge does not wait.
    Throttled,
}

impl StopReason {
    /// One lower-case word or two: the label in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Ignored => "ignored",
            Self::Attempts => "attempts",
            Self::Elapsed => "elapsed",
            Self::Deadline => "deadline",
            Self::Budget => "budget",
            Self::Refused => "refused",
            Self::Backoff => "backoff",
            Self::NotRepeatable => "not_repeatable",
            Self::NotReady => "not_ready",
            Self::Throttled => "throttled",
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Limits {
    /// An attempt ended with `outcome`: what comes next. In this order: what the outcome means, attempts, the backoff's end,
    /// elapsed time, deadline, budget.
    pub(crate) fn next(
        &self,
        more: &More,
        progress: &mut Progress,
        outcome: &Outcome<'_>,
        world: &impl World,
    ) -> Next {
        progress.attempts = progress.attempts.saturating_add(1);
        let mut after = After::Failed;
        let hint = match outcome {
            Outcome::Answered(Verdict::Success) => {
                more.succeed(progress);
                return Next::Done;
            }
            Outcome::Answered(Verdict::Permanent) => {
                progress.spend();
                return Next::Stop(StopReason::Permanent);
            }
            Outcome::Answered(Verdict::Ignored) => return Next::Stop(StopReason::Ignored),
            Outcome::Answered(Verdict::Transient) => None,
            Outcome::Answered(Verdict::Throttled { retry_after }) => *retry_after,
            Outcome::TimedOut(_) => {
                after = After::TimedOut;
                None
            }
            Outcome::Refused(rejection) => return self.next_after_refusal(more, progress, rejection, world),
        };
        progress.spend();
        if let Some(budget) = &more.budget {
            budget.record_failure();
        }
        if self.used_up(progress) {
            return Next::Stop(StopReason::Attempts);
        }
        let delay = match hint {
            Some(_) if self.backoff_ends(more, progress) => return Next::Stop(StopReason::Backoff),
            Some(hint) => hint.min(self.backoff.cap.get()),
            None => match self.backoff.next(
                more.custom.as_deref(),
                &mut progress.cursor,
                progress.attempts,
                || world.unit(),
            ) {
                Some(delay) => delay,
                None => return Next::Stop(StopReason::Backoff),
            },
        };
        self.wait(more, progress, delay, Some(after), world)
    }

    /// Nothing was started, so nothing is spent: a token that is held stays for the next attempt.
    fn next_after_refusal(
        &self,
        more: &More,
        progress: &mut Progress,
        rejection: &Rejection,
        world: &impl World,
    ) -> Next {
        let cap = self.backoff.cap.get();
        let wait = match rejection.retry_after() {
            Some(wait) if self.wait_for_refusals && wait <= cap => Some(wait),
            None if self.wait_for_refusals && rejection.reason().may_pass() => None,
            _ => return Next::Stop(StopReason::Refused),
        };
        if self.used_up(progress) {
            return Next::Stop(StopReason::Attempts);
        }
        if wait.is_some() && self.backoff_ends(more, progress) {
            return Next::Stop(StopReason::Backoff);
        }
        let Progress { cursor, attempts, .. } = progress;
        let delay = match wait {
            // Everybody was told the same moment: a jittered backoff spreads them behind it, also where that moment is the cap.
            Some(wait) => wait + self.backoff.spread_behind(cursor, *attempts, || world.unit()),
            None => match self.backoff.next(more.custom.as_deref(), cursor, *attempts, || world.unit()) {
                Some(delay) => delay,
                None => return Next::Stop(StopReason::Backoff),
            },
        };
        self.wait(more, progress, delay, None, world)
    }

    fn wait(
        &self,
        more: &More,
        progress: &mut Progress,
        delay: Duration,
        after: Option<After>,
        world: &impl World,
    ) -> Next {
        // So that nothing spins, not even under a clock that stands still.
        let floor = self.max_attempts.is_none() || more.max_elapsed.is_some() && progress.attempts > MANY;
        let delay = if floor { delay.max(MIN_UNLIMITED_DELAY) } else { delay };
        if let Some(limit) = more.max_elapsed {
            // What was slept counts even where the clock stands still.
            let elapsed = world.elapsed().max(progress.slept);
            if elapsed.saturating_add(delay) > limit {
                return Next::Stop(StopReason::Elapsed);
            }
        }
        // Also without a delay: a deadline that has passed ends it. (Where there is none, no clock is read.)
        if !world.fits(delay) {
            return Next::Stop(StopReason::Deadline);
        }
        if let (Some(budget), Some(after)) = (&more.budget, after) {
            match budget.try_acquire(after) {
                Some(token) => progress.token = Some(token),
                None => return Next::Stop(StopReason::Budget),
            }
        }
        progress.slept = progress.slept.saturating_add(delay);
        Next::After(delay)
    }

    /// Whether the attempt after `attempts` and one more may start at once, with nothing else to decide.
    #[inline]
    pub(crate) fn is_at_once(&self, attempts: u32) -> bool {
        self.backoff.is_none()
            && self.max_attempts.is_some_and(|max| attempts + 1 < max.get())
            && attempts < YIELD_EVERY - 1
    }

    /// Whether delays of somebody's own have come to their end, where another word than theirs says how long to wait: that replaces a delay
    /// of theirs, it does not add one.
    fn backoff_ends(&self, more: &More, Progress { cursor, attempts, .. }: &mut Progress) -> bool {
        self.backoff.curve == Curve::Custom
            && self.backoff.next(more.custom.as_deref(), cursor, *attempts, || 0.0).is_none()
    }

    fn used_up(&self, progress: &Progress) -> bool {
        self.max_attempts.is_some_and(|max| progress.attempts >= max.get())
    }
}

impl More {
    fn succeed(&self, progress: &mut Progress) {
        match progress.token.take() {
            Some(token) => token.succeed(),
            None => {
                if let Some(budget) = &self.budget {
                    budget.record_success();
                }
            }
        }
    }
}

impl Progress {
    /// So many attempts failed, without a delay in between.
    pub(crate) fn after(attempts: u32) -> Self {
        Self { attempts, ..Self::default() }
    }

    /// Runs a piece of an attempt. Should it panic, the attempt has failed: its token is spent.
    pub(crate) fn guard<T>(&mut self, attempt: impl FnOnce() -> T) -> T {
        struct Unwound<'p>(&'p mut Progress);

        impl Drop for Unwound<'_> {
            fn drop(&mut self) {
                self.0.spend();
            }
        }

        let unwound = Unwound(self);
        let result = attempt();
        std::mem::forget(unwound);
        result
    }

    fn spend(&mut self) {
        if let Some(token) = self.token.take() {
            token.spend();
        }
    }
}

#[cfg(all(test, not(family_loom)))]
mod tests;
