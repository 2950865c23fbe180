use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_policy::{ConfigError, Deadline, Name, Outcome, PolicyError, TimedOut, Verdict};
use tokio::time::Instant;

use crate::event::Watch;
use crate::random::Random;
use crate::report::Record;
use crate::state::{Limits, More, Next, Progress, World, YIELD_EVERY};
use crate::{AttemptOutcome, Backoff, Budget, BudgetCall, Event, StopReason};

/// How many attempts a call gets unless configured: as in the AWS SDKs.
pub const DEFAULT_MAX_ATTEMPTS: NonZeroU32 = NonZeroU32::new(3).unwrap();

/// Starts an operation again when its outcome says that another try may work.
///
/// What is tried again is the [verdict](async_policy::Verdict): `Transient` and `Throttled` outcomes and time-outs, after the
/// backoff's delay, or the server's hint where it gave one (below). A refusal by an inner policy
/// (an open breaker) is waited for if it says how long and that is within the cap, plus the backoff's jitter, so that not
/// all who were refused come back at once. One that does not say, but [may pass](async_policy::Reason::may_pass), is tried again after
/// the backoff's delay. Any other ends the call. A refusal uses up [an attempt](Self::with_max_attempts) as an answer does.
///
/// A server's hint (`Throttled { retry_after }`) replaces the delay: exactly, without jitter, as
/// [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md) has it (a server that wants its clients spread gives
/// them different hints), but never for longer than the cap. So a hint of a minute under a cap of 20 s is tried before the server asked
/// for it: where hints are longer, raise the cap with [`Backoff::with_cap`]. All limits hold for a hint as for any delay, and delays of your own
/// that have come to their end end the call with a hint too.
///
/// A delay that would outlast the [deadline](Deadline) or [`with_max_elapsed`](Self::with_max_elapsed) is not slept. When there is
/// no other attempt, the call ends with the last answer the operation gave; if it never answered, with the last time-out (it may
/// have run), and with a refusal only if no attempt was started at all. Why it stopped is in the [event](Event::GaveUp) and in the
/// [report](Self::call_with_report).
///
/// Cheap to clone. Nothing is shared between calls but the budget. As configuration (feature `serde`): the fields are in
/// [the table](crate#configuration).
///
/// Compose with other policies as a tuple, `(retry, breaker).call(op)`, or with [`execute`](async_policy::Policy::execute) where the closure
/// calls them itself: `retry.execute(|| breaker.call(op))`. In `retry.call(|| breaker.call(op))` the breaker's refusal would be wrapped as
/// the operation's own error: retried as a failure, paid for from the budget, its `retry_after` not seen. (A `Failure<Failure<E>>` in a
/// signature is the sign of it.)
///
/// # Panics
///
/// A panic of the operation, the classifier, the listener or a closure of delays passes on to the caller: it is not retried, and a
/// listener that panics costs the answer. A retry that was made and panicked is spent; a token for one that was not made comes back.
///
/// # Default
///
/// | | |
/// |---|---|
/// | attempts in all | 3 |
/// | backoff | [`Backoff::default`] |
/// | time in all, time per attempt | not limited |
/// | refusals that may pass | waited for |
/// | budget, listener, name | none |
/// | randomness | the thread's generator |
#[derive(Debug)]
pub struct Retry {
    // By value, and what few ask for behind one pointer: a tower future carries a clone, and counting references costs more than
    // the rest of the success path.
    pub(crate) limits: Limits,
    extras: Option<Arc<Extras>>,
}

#[derive(Clone, Debug, Default)]
struct Extras {
    more: More,
    attempt_timeout: Option<Duration>,
    watch: Watch,
    random: Random,
}

impl Clone for Retry {
    /// The numbers come last: copied before the pointer is cloned they would be copied twice.
    #[inline]
    fn clone(&self) -> Self {
        let extras = self.extras.clone();
        Self { limits: self.limits, extras }
    }
}

impl Default for Retry {
    fn default() -> Self {
        let limits = Limits {
            backoff: Backoff::default().shape,
            max_attempts: Some(DEFAULT_MAX_ATTEMPTS),
            wait_for_refusals: true,
        };
        Self { limits, extras: None }
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
        Ok(Self::default().with_checked(backoff))
    }

    pub(crate) fn with_checked(mut self, backoff: Backoff) -> Self {
        self.limits.backoff = backoff.shape;
        match backoff.custom {
            Some(custom) => self.extra(|extras| extras.more.custom = Some(custom)),
            None => self,
        }
    }

    fn limit(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }

    fn extra(mut self, change: impl FnOnce(&mut Extras)) -> Self {
        change(Arc::make_mut(self.extras.get_or_insert_default()));
        self
    }

    #[inline]
    pub(crate) fn attempt_timeout(&self) -> Option<Duration> {
        self.extras.as_ref()?.attempt_timeout
    }

    #[cfg(feature = "serde")]
    pub(crate) fn more(&self) -> &More {
        self.extras.as_deref().map_or(More::NONE, |extras| &extras.more)
    }

    #[cfg(feature = "serde")]
    pub(crate) fn name(&self) -> Option<&Name> {
        self.extras.as_ref()?.watch.name.as_ref()
    }

    /// How often the operation is started at most, the first time included.
    ///
    /// An attempt that an inner policy refused is used up too, though it did not start the operation: the bound holds where nothing else
    /// bounds the call. Of 3 attempts with one refusal the operation sees two, and the call may end with
    /// [`StopReason::Attempts`]. Where a breaker or a limit inside is to be waited for, give attempts generously, and bound the call by
    /// [`with_max_elapsed`](Self::with_max_elapsed) or by a time-out outside.
    #[must_use]
    pub fn with_max_attempts(self, attempts: NonZeroU32) -> Self {
        self.limit(|limits| limits.max_attempts = Some(attempts))
    }

    /// As often as everything else allows. No delay is then shorter than a millisecond, so that nothing spins.
    #[must_use]
    pub fn with_unlimited_attempts(self) -> Self {
        self.limit(|limits| limits.max_attempts = None)
    }

    /// No attempt is planned for later than this after the first: a delay that would lead there is not slept. (A timer may fire a little late, and
    /// over tower an attempt also waits until its service is ready.) After 100 attempts no delay is shorter than a millisecond. An attempt in flight
    /// is not cut off: that is what a [`Timeout`](async_policy::Timeout) round the retry does.
    #[must_use]
    pub fn with_max_elapsed(self, limit: Duration) -> Self {
        self.extra(|extras| extras.more.max_elapsed = Some(limit))
    }

    /// What one attempt may take, from its first poll; it is also the deadline of what is inside. Where less is left of the
    /// [deadline](Deadline) in force, the attempt gets that: a call whose deadline passes ends by itself, with its last answer. Zero means
    /// "ready at the first poll or not at all" (as configuration it is refused: there it is a slip). It allocates once for each
    /// attempt; a [`Timeout`](async_policy::Timeout) inside the retry does the same without.
    #[must_use]
    pub fn with_attempt_timeout(self, limit: Duration) -> Self {
        self.extra(|extras| extras.attempt_timeout = Some(limit))
    }

    /// Whether a refusal by an inner policy that may pass is waited for (the default), or ends the call.
    ///
    /// Each refusal that is waited for uses up one of the [attempts](Self::with_max_attempts): give them generously where a breaker or a
    /// limit inside is to be waited for, and bound the call by [`with_max_elapsed`](Self::with_max_elapsed) or by a time-out outside.
    #[must_use]
    pub fn with_wait_for_refusals(self, wait: bool) -> Self {
        self.limit(|limits| limits.wait_for_refusals = wait)
    }

    /// What all retries that share this budget may add to the load.
    #[must_use]
    pub fn with_budget(self, budget: Budget) -> Self {
        self.extra(|extras| extras.more.budget = Some(budget))
    }

    /// Names this retry in events and in the time-outs of its attempts.
    #[must_use]
    pub fn with_name(self, name: impl Into<Name>) -> Self {
        self.extra(|extras| extras.watch.name = Some(name.into()))
    }

    /// Is told of each [`Event`], in the task that makes the call; keep it short. One at a time: the last one set.
    #[must_use]
    pub fn with_listener(self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.extra(|extras| extras.watch.listener = Some(Arc::new(listener)))
    }

    /// Draws the jitter from a seed, for tests and simulations: the same calls in the same order get the same delays. Clones
    /// go on with one sequence.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        self.extra(|extras| extras.random = Random::seeded(seed))
    }

    /// Whether a success at the first try is nobody's business but the caller's.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.extras.is_none() && !Watch::ALWAYS
    }

    /// A call begins: reads the clock and counts itself, where that is asked for.
    #[inline]
    pub(crate) fn begin(&self) -> Began {
        let Some(extras) = &self.extras else { return Began::default() };
        Began::new(extras.more.max_elapsed.is_some(), extras.more.budget.as_ref())
    }

    fn watch(&self) -> Option<&Watch> {
        self.extras.as_deref().map_or(Watch::NOBODY, |extras| Some(&extras.watch))
    }

    /// The error of an attempt that had no answer in time.
    #[cold]
    pub(crate) fn timed_out(&self, limit: Duration) -> TimedOut {
        let timed_out = TimedOut::new(limit);
        match self.extras.as_ref().and_then(|extras| extras.watch.name.as_ref()) {
            Some(name) => timed_out.with_name(name.clone()),
            None => timed_out,
        }
    }

    /// The service of the next attempt is gone.
    #[cold]
    pub(crate) fn not_ready<T, E, R: Record<T, E>>(&self, past: Past<R>, error: E) -> R::Output
    where
        E: PolicyError,
    {
        let Past { progress, mut record, .. } = past;
        if let Some(watch) = self.watch() {
            watch.emit(Event::GaveUp { attempts: progress.attempts, reason: StopReason::NotReady });
        }
        record.stop(StopReason::NotReady);
        let result = Err(error);
        // A refusal stands behind an answer here too.
        let seen = AttemptOutcome::from(&Outcome::of(&result, |_| Some(Verdict::Permanent)));
        let result = record.choose(result, seen);
        R::finish(Some(record), result)
    }

    /// An attempt of a call ended: what comes next, and who is told.
    #[inline(never)]
    fn next(&self, began: &Began, progress: &mut Progress, repeatable: bool, outcome: &Outcome<'_>) -> Next {
        let extras = self.extras.as_deref();
        let more = extras.map_or(More::NONE, |extras| &extras.more);
        let world = Now { began: began.at, random: extras.map(|extras| &extras.random) };
        let mut next = self.limits.next(more, progress, outcome, &world);
        if let Next::After(_) = next
            && !repeatable
        {
            next = Next::Stop(StopReason::NotRepeatable);
        }
        if let Some(watch) = self.watch() {
            let attempt = progress.attempts;
            watch.emit(Event::Attempted { attempt, outcome: outcome.into() });
            match next {
                Next::Done => {}
                Next::After(delay) => watch.emit(Event::Scheduled { attempt: attempt + 1, delay }),
                Next::Stop(reason) => watch.emit(Event::GaveUp { attempts: attempt, reason }),
            }
        }
        next
    }

    /// Whether there is no other attempt after so many and one more.
    #[inline]
    pub(crate) fn is_last(&self, attempts: u32) -> bool {
        self.limits.max_attempts.is_some_and(|max| attempts >= max.get() - 1)
    }

    /// Whether an attempt that failed is followed by another at once, with nothing else to decide. Out of line: what a success does not need
    /// must not make its code larger.
    #[inline(never)]
    pub(crate) fn goes_on_at_once(&self, attempts: u32) -> bool {
        self.is_plain() && self.limits.is_at_once(attempts) && Deadline::fits(Duration::ZERO)
    }

    /// An attempt of a call ended: with what the call ends, or what comes before the next attempt.
    ///
    /// By value, in a function that is not async: a result kept in the future's own memory costs every success.
    pub(crate) fn settle<T, E, R: Record<T, E>>(
        &self,
        past: &mut Past<R>,
        repeatable: bool,
        verdict: Option<Verdict>,
        result: Result<T, E>,
    ) -> ControlFlow<Result<T, E>, Pause>
    where
        E: PolicyError,
    {
        let Past { began, progress, record } = past;
        let outcome = Outcome::of(&result, |_| verdict);
        let seen = AttemptOutcome::from(&outcome);
        let next = self.next(began, progress, repeatable, &outcome);
        record.end(seen, &next);
        match next {
            Next::Done => ControlFlow::Break(result),
            Next::Stop(_) => ControlFlow::Break(record.choose(result, seen)),
            Next::After(delay) => {
                record.keep(result, seen);
                // A sleep of zero would still cost a timer tick.
                ControlFlow::Continue(if !delay.is_zero() {
                    Pause::Sleep(delay)
                } else if progress.attempts.is_multiple_of(YIELD_EVERY) {
                    Pause::Yield
                } else {
                    Pause::None
                })
            }
        }
    }
}

/// What a call, hedged ones too, needs from its start.
#[derive(Debug, Default)]
pub(crate) struct Began {
    pub(crate) at: Option<Instant>,
    _in_flight: Option<BudgetCall>,
}

impl Began {
    /// Reads the clock only where somebody `asks`.
    pub(crate) fn new(asks: bool, budget: Option<&Budget>) -> Self {
        Self { at: asks.then(Instant::now), _in_flight: budget.and_then(Budget::enter) }
    }
}

/// What a call carries from one attempt to the next.
#[derive(Debug, Default)]
pub(crate) struct Past<R> {
    pub(crate) began: Began,
    pub(crate) progress: Progress,
    pub(crate) record: R,
}

impl<R> Past<R> {
    /// So many attempts failed, without a delay in between.
    pub(crate) fn early(attempts: u32, record: R) -> Self {
        Self { began: Began::default(), progress: Progress::after(attempts), record }
    }
}

/// What comes between two attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    None,
    /// The runtime gets a chance to take the task's turn away.
    Yield,
    Sleep(Duration),
}

struct Now<'r> {
    began: Option<Instant>,
    random: Option<&'r Random>,
}

impl World for Now<'_> {
    fn elapsed(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    fn fits(&self, wait: Duration) -> bool {
        Deadline::fits(wait)
    }

    fn unit(&self) -> f64 {
        self.random.map_or_else(fastrand::f64, Random::unit)
    }
}
