use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_policy::{ConfigError, Deadline, Name, Outcome, PolicyError, Timeout, Verdict};
use tokio::time::Instant;

use crate::event::Watch;
use crate::random::Random;
use crate::report::Record;
use crate::state::{Limits, Next, Progress, World};
use crate::{AttemptOutcome, Backoff, Budget, BudgetCall, Event, StopReason};

/// How many attempts a call gets unless configured: as in the AWS SDKs.
pub const DEFAULT_MAX_ATTEMPTS: NonZeroU32 = NonZeroU32::new(3).unwrap();

/// One in this many attempts without a delay gives the runtime a chance to take the task's turn away.
const YIELD_EVERY: u32 = 16;

/// Starts an operation again when its outcome says that another try may work.
///
/// What is tried again is the [verdict](async_policy::Verdict): `Transient` and `Throttled` outcomes and time-outs, after the
/// backoff's delay, or the server's `retry_after` where it gave one, clamped to the cap. A refusal by an inner policy
/// (an open breaker) is waited for if it says how long and that is within the cap, plus the backoff's jitter, so that not
/// all who were refused come back at once; otherwise the call ends.
///
/// A delay that would outlast the [deadline](Deadline) or [`with_max_elapsed`](Self::with_max_elapsed) is not slept. When there is
/// no other attempt, the call ends with the last answer the operation gave; if it never answered, with the last time-out (it may
/// have run), and with a refusal only if no attempt was started at all. Why it stopped is in the [event](Event::GaveUp) and in the
/// [report](Self::call_with_report).
///
/// Cheap to clone; clones share one configuration. Nothing is shared between calls but the budget.
///
/// # Default
///
/// | | |
/// |---|---|
/// | attempts in all | 3 |
/// | backoff | [`Backoff::default`] |
/// | time in all, time per attempt | not limited |
/// | refusals that say for how long | waited for |
/// | budget, listener, name | none |
/// | randomness | the thread's generator |
#[derive(Clone, Debug)]
pub struct Retry {
    pub(crate) config: Arc<Config>,
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) limits: Limits,
    pub(crate) attempt_timeout: Option<Timeout>,
    pub(crate) watch: Watch,
    random: Random,
}

impl Default for Retry {
    fn default() -> Self {
        let limits = Limits {
            backoff: Backoff::default(),
            max_attempts: Some(DEFAULT_MAX_ATTEMPTS),
            max_elapsed: None,
            wait_for_refusals: true,
            budget: None,
        };
        let config =
            Config { limits, attempt_timeout: None, watch: Watch::default(), random: Random::default() };
        Self { config: Arc::new(config) }
    }
}

impl Retry {
    /// A retry with this backoff, and the defaults otherwise.
    ///
    /// # Errors
    ///
    /// The field and the value when the backoff makes no sense: a cap below the base or above a [day](crate::MAX_CAP), a factor
    /// below 1 or not finite, decorrelated jitter over delays of your own.
    pub fn new(backoff: Backoff) -> Result<Self, ConfigError> {
        backoff.check()?;
        Ok(Self::default().change(|config| config.limits.backoff = backoff))
    }

    fn change(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self
    }

    /// How often the operation is started at most, the first time included.
    #[must_use]
    pub fn with_max_attempts(self, attempts: NonZeroU32) -> Self {
        self.change(|config| config.limits.max_attempts = Some(attempts))
    }

    /// As often as everything else allows. No delay is then shorter than a millisecond, so that nothing spins.
    #[must_use]
    pub fn with_unlimited_attempts(self) -> Self {
        self.change(|config| config.limits.max_attempts = None)
    }

    /// No attempt is started later than this after the first; a delay that would lead there is not slept. An attempt in
    /// flight is not cut off: that is what a [`Timeout`] round the retry does.
    #[must_use]
    pub fn with_max_elapsed(self, limit: Duration) -> Self {
        self.change(|config| config.limits.max_elapsed = Some(limit))
    }

    /// What one attempt may take: a [`Timeout`] round each, which is also the deadline of what is inside it.
    #[must_use]
    pub fn with_attempt_timeout(self, limit: Duration) -> Self {
        self.change(|config| {
            let timeout = Timeout::new(limit);
            config.attempt_timeout = Some(match &config.watch.name {
                Some(name) => timeout.with_name(name.clone()),
                None => timeout,
            });
        })
    }

    /// Whether a refusal by an inner policy that says when to come back is waited for (the default), or ends the call.
    #[must_use]
    pub fn with_wait_for_refusals(self, wait: bool) -> Self {
        self.change(|config| config.limits.wait_for_refusals = wait)
    }

    /// What all retries that share this budget may add to the load.
    #[must_use]
    pub fn with_budget(self, budget: Budget) -> Self {
        self.change(|config| config.limits.budget = Some(budget))
    }

    /// Names this retry in events and in the time-outs of its attempts.
    #[must_use]
    pub fn with_name(self, name: impl Into<Name>) -> Self {
        self.change(|config| {
            let name = name.into();
            config.attempt_timeout =
                config.attempt_timeout.take().map(|timeout| timeout.with_name(name.clone()));
            config.watch.name = Some(name);
        })
    }

    /// Is told of each [`Event`], in the task that makes the call; keep it short. One at a time: the last one set.
    #[must_use]
    pub fn with_listener(self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.change(|config| config.watch.listener = Some(Arc::new(listener)))
    }

    /// Draws the jitter from a seed, for tests and simulations: the same calls in the same order get the same delays. Clones
    /// go on with one sequence.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        self.change(|config| config.random = Random::seeded(seed))
    }

    /// Begins a call.
    #[inline]
    pub(crate) fn begin(&self) -> Call {
        Call {
            progress: Progress::default(),
            started: self.config.limits.max_elapsed.map(|_| Instant::now()),
            once: false,
            _in_flight: self.config.limits.budget.as_ref().and_then(Budget::enter),
        }
    }

    /// An attempt of a call ended: with what the call ends, or after how long the next one starts.
    ///
    /// By value, in a function that is not async: a result kept in the future's own memory costs every success.
    #[inline]
    pub(crate) fn settle<T, E, R>(
        &self,
        call: &mut Call,
        record: &mut R,
        classify: impl FnOnce(Result<&T, &E>) -> Option<Verdict>,
        result: Result<T, E>,
    ) -> ControlFlow<Result<T, E>, Duration>
    where
        E: PolicyError,
        R: Record<T, E>,
    {
        let outcome = Outcome::of(&result, classify);
        if let Outcome::Answered(Verdict::Success) = outcome
            && !R::ALL
            && self.config.limits.budget.is_none()
            && !self.config.watch.is_on()
        {
            return ControlFlow::Break(result);
        }
        let seen = AttemptOutcome::from(&outcome);
        let next = self.next(call, &outcome);
        record.end(seen, &next);
        match next {
            Next::Done => ControlFlow::Break(result),
            Next::Stop(_) => ControlFlow::Break(record.choose(result, seen)),
            Next::After(delay) => {
                record.keep(result, seen);
                ControlFlow::Continue(delay)
            }
        }
    }

    fn next(&self, call: &mut Call, outcome: &Outcome<'_>) -> Next {
        let world = Now { started: call.started, random: &self.config.random };
        let mut next = self.config.limits.next(&mut call.progress, outcome, &world);
        if call.once
            && let Next::After(_) = next
        {
            next = Next::Stop(StopReason::NotRepeatable);
        }
        let watch = &self.config.watch;
        if watch.is_on() {
            let attempt = call.progress.attempts;
            watch.emit(Event::Attempted { attempt, outcome: outcome.into() });
            match next {
                Next::Done => {}
                Next::After(delay) => watch.emit(Event::Scheduled { attempt: attempt + 1, delay }),
                Next::Stop(reason) => watch.emit(Event::GaveUp { attempts: attempt, reason }),
            }
        }
        next
    }
}

/// One call of a retry: what both of its shells, the async function and the tower future, carry.
#[derive(Debug)]
pub(crate) struct Call {
    progress: Progress,
    /// Read only where the time in all is limited.
    started: Option<Instant>,
    _in_flight: Option<BudgetCall>,
    /// The request cannot be repeated.
    pub(crate) once: bool,
}

impl Call {
    /// Whether an attempt without delay should let the runtime in.
    pub(crate) fn must_yield(&self) -> bool {
        self.progress.attempts.is_multiple_of(YIELD_EVERY)
    }
}

struct Now<'r> {
    started: Option<Instant>,
    random: &'r Random,
}

impl World for Now<'_> {
    fn elapsed(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }

    fn fits(&self, wait: Duration) -> bool {
        Deadline::fits(wait)
    }

    fn unit(&self) -> f64 {
        self.random.unit()
    }
}
