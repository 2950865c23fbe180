use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_policy::{ConfigError, Deadline, Operation, Outcome, Policy, PolicyError, Verdict};
use tokio::task::coop::consume_budget;

use crate::Backoff;
use crate::state::{Config, Next, Progress, StopReason};

/// How many attempts a call gets unless configured: as in the AWS SDKs.
pub const DEFAULT_MAX_ATTEMPTS: NonZeroU32 = NonZeroU32::new(3).unwrap();

/// One in this many attempts without a delay gives the runtime a chance to take the task's turn away.
const YIELD_EVERY: u32 = 16;

/// Starts an operation again when its outcome says that another try may work.
///
/// What is tried again is the [verdict](async_policy::Verdict): `Transient` and `Throttled` outcomes and time-outs, after the
/// backoff's delay, or the server's `retry_after` where it gave one, clamped to the cap. A refusal by an inner policy
/// (an open breaker) is waited for if it says how long and that is within the cap; otherwise the call ends.
///
/// A delay that would outlast the [deadline](Deadline) is not slept. When there is no other attempt, the call ends with the
/// last answer the operation gave; with a refusal or a time-out only if no attempt was answered.
///
/// Cheap to clone; clones share one configuration.
///
/// # Default
///
/// 3 attempts in all, [`Backoff::default`], refusals are waited for.
#[derive(Clone, Debug)]
pub struct Retry {
    config: Arc<Config>,
}

impl Default for Retry {
    fn default() -> Self {
        let config = Config {
            backoff: Backoff::default(),
            max_attempts: DEFAULT_MAX_ATTEMPTS,
            wait_for_refusals: true,
        };
        Self { config: Arc::new(config) }
    }
}

impl Retry {
    /// A retry with this backoff, and the defaults otherwise.
    ///
    /// # Errors
    ///
    /// The field and the value when the backoff makes no sense: a cap below the base, a factor below 1 or not finite.
    pub fn new(backoff: Backoff) -> Result<Self, ConfigError> {
        backoff.check()?;
        Ok(Self::default().change(|config| config.backoff = backoff))
    }

    fn change(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self
    }

    /// How often the operation is started at most, the first time included.
    #[must_use]
    pub fn with_max_attempts(self, attempts: NonZeroU32) -> Self {
        self.change(|config| config.max_attempts = attempts)
    }

    /// Whether a refusal by an inner policy that says when to come back is waited for (the default), or ends the call.
    #[must_use]
    pub fn with_wait_for_refusals(self, wait: bool) -> Self {
        self.change(|config| config.wait_for_refusals = wait)
    }

    /// The decision after an outcome, with the deadline in force taken into account.
    pub(crate) fn next(&self, progress: &mut Progress, outcome: &Outcome<'_>) -> Next {
        match self.config.next(progress, outcome, fastrand::f64) {
            Next::After(delay) if !delay.is_zero() && !Deadline::fits(delay) => {
                Next::Stop(StopReason::Deadline)
            }
            next => next,
        }
    }
}

/// Whether an attempt without delay should let the runtime in.
pub(crate) fn must_yield(progress: Progress) -> bool {
    progress.attempts.is_multiple_of(YIELD_EVERY)
}

/// Keeps the result a call ends with: the last answer of the operation's own stands over a later refusal or time-out.
pub(crate) fn keep<T>(kept: &mut Option<T>, result: T, answered: bool) {
    if answered || kept.is_none() {
        *kept = Some(result);
    }
}

async fn pause(delay: Duration, progress: Progress) {
    // A sleep of zero still costs a timer tick.
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    } else if must_yield(progress) {
        consume_budget().await;
    }
}

impl Policy for Retry {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        let mut call = Call { retry: self, progress: Progress::default(), answer: None };
        loop {
            // By value, into a function that is not async: a result kept in the future's own memory costs every success.
            let result = op.start().await;
            let delay = match call.settle(&op, result) {
                ControlFlow::Break(result) => return result,
                ControlFlow::Continue(delay) => delay,
            };
            pause(delay, call.progress).await;
        }
    }
}

struct Call<'r, R> {
    retry: &'r Retry,
    progress: Progress,
    answer: Option<R>,
}

impl<T, E: PolicyError> Call<'_, Result<T, E>> {
    #[inline]
    fn settle<Op>(&mut self, op: &Op, result: Result<T, E>) -> ControlFlow<Result<T, E>, Duration>
    where
        Op: Operation<Value = T, Error = E>,
    {
        let outcome = op.outcome(&result);
        if let Outcome::Answered(Verdict::Success | Verdict::Permanent | Verdict::Ignored) = outcome {
            return ControlFlow::Break(result);
        }
        let answered = matches!(outcome, Outcome::Answered(_));
        match self.retry.next(&mut self.progress, &outcome) {
            Next::After(delay) => {
                keep(&mut self.answer, result, answered);
                ControlFlow::Continue(delay)
            }
            Next::Done | Next::Stop(_) if answered => ControlFlow::Break(result),
            Next::Done | Next::Stop(_) => ControlFlow::Break(self.answer.take().unwrap_or(result)),
        }
    }
}
