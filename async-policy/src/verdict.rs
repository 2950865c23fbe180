use std::time::Duration;

use crate::{PolicyError, Rejection, TimedOut};

/// What an outcome of the operation means to policies.
///
/// One table holds for the whole family:
///
/// | outcome | [`Verdict`] | retry | hedge | circuit breaker | adaptive limit |
/// |---|---|---|---|---|---|
/// | `Ok` (by default) | `Success` | done | wins | success | sample |
/// | `Err` (by default) | `Transient` | tries again, after its backoff | starts the next at once | failure | sample |
/// | classified so: 429, 503 with `Retry-After` | `Throttled` | tries again, after the server's delay | starts no further one | failure | overload |
/// | classified so: the answer would be the same again (404, invalid input) | `Permanent` | ends with it | ends with it | success: the backend answered | sample |
/// | classified so: says nothing of the backend (cancelled by the caller) | `Ignored` | ends with it | ends with it | not counted | not counted |
/// | [`TimedOut`](crate::TimedOut) by an inner time-out: may have run | as `Transient` | tries again, after its backoff | starts the next at once | failure | overload |
/// | [`Rejection`](crate::Rejection) by an inner policy: not started | as `Ignored` | waits for its `retry_after` (its own backoff where none is known and it [may pass](crate::Reason::may_pass)), or ends | starts no further one | not counted | not counted |
/// | panic | – | passes on | that attempt has failed | failure | overload |
/// | dropped before an answer | – | aborted | aborted | not counted | not counted |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It worked.
    Success,
    /// It failed, and another try may work.
    Transient,
    /// The backend asks for less: another try may work, after the delay where one is given.
    Throttled {
        /// How long the backend asks to wait, counted from the answer.
        retry_after: Option<Duration>,
    },
    /// It failed, and would fail again the same way. The backend itself is well.
    Permanent,
    /// It says nothing about the backend.
    Ignored,
}

impl Verdict {
    /// Whether another try may succeed: `Transient` or `Throttled`.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Transient | Self::Throttled { .. })
    }
}

/// What a policy sees of a result: the operation's own answer with its verdict, or the word of an inner policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'r> {
    /// The operation ran to its end.
    Answered(Verdict),
    /// An inner policy refused: the operation was not started.
    Refused(&'r Rejection),
    /// An inner time-out gave up: the operation may have run.
    TimedOut(&'r TimedOut),
}

impl<'r> Outcome<'r> {
    /// Reads a result: first what an inner policy put into it, then `classify`, then the error's own
    /// [`verdict`](PolicyError::verdict).
    pub fn of<T, E: PolicyError>(
        result: &'r Result<T, E>,
        classify: impl FnOnce(Result<&'r T, &'r E>) -> Option<Verdict>,
    ) -> Self {
        if let Err(error) = result {
            if let Some(rejection) = error.rejection() {
                return Self::Refused(rejection);
            }
            if let Some(timed_out) = error.timed_out() {
                return Self::TimedOut(timed_out);
            }
        }
        Self::Answered(classify(result.as_ref()).unwrap_or_else(|| match result {
            Ok(_) => Verdict::Success,
            Err(error) => error.verdict(),
        }))
    }

    /// The verdict as the table has it for those who count: a refusal is `Ignored`, a time-out is `Transient`.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::Answered(verdict) => *verdict,
            Self::Refused(_) => Verdict::Ignored,
            Self::TimedOut(_) => Verdict::Transient,
        }
    }
}

/// What an answer means, where the types of the answer are known: a tower layer takes one of these. (In the closure
/// form the verdict travels with the operation: [`Operation::classify_with`](crate::Operation::classify_with).)
///
/// Any `Fn(Result<&T, &E>) -> Verdict` is one.
pub trait Classify<T, E> {
    /// What the answer means; `None` leaves it to the error's own [`verdict`](PolicyError::verdict), and `Ok` to
    /// success.
    fn classify(&self, answer: Result<&T, &E>) -> Option<Verdict>;
}

impl<T, E, F: Fn(Result<&T, &E>) -> Verdict> Classify<T, E> for F {
    fn classify(&self, answer: Result<&T, &E>) -> Option<Verdict> {
        Some(self(answer))
    }
}

/// The default [`Classify`]: an error means what its own [`verdict`](PolicyError::verdict) says, `Ok` is a success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByError;

impl<T, E> Classify<T, E> for ByError {
    fn classify(&self, _: Result<&T, &E>) -> Option<Verdict> {
        None
    }
}
