//! The crate `backoff`, which is no longer maintained, over this one (`backoff` feature).
//!
//! Its policies drive a [`Retry`]; its [`Error`] says itself what may be tried again. So code moves over in one step:
//! `backoff::future::retry` becomes [`compat::retry`](retry), with the same arguments and the same result.

use std::future::Future;
use std::time::Duration;

use ::backoff::Error;
use ::backoff::backoff::Backoff as Delays;
use async_policy::{Operation, Verdict};

use crate::{Backoff, MAX_CAP, Retry};

impl Backoff {
    /// Drives a retry by a policy of the crate `backoff`: each call gets a clone of it, reset. Where it says `None`, the call ends,
    /// also where the error says how long to wait.
    ///
    /// The delays are taken as they come: its own jitter, no other, and no cap below a [day](MAX_CAP). Its own limit on the time in all
    /// counts by the clock it was made with.
    #[must_use]
    pub fn from_backoff<B>(backoff: B) -> Self
    where
        B: Delays + Clone + Send + Sync + 'static,
    {
        Self::from_backoff_with(move || backoff.clone())
    }

    /// [`from_backoff`](Self::from_backoff) for a policy that is not `Clone`: each call gets a new one.
    #[must_use]
    pub fn from_backoff_with<B>(make: impl Fn() -> B + Send + Sync + 'static) -> Self
    where
        B: Delays + Send + 'static,
    {
        let start = move || {
            let mut backoff = make();
            backoff.reset();
            std::iter::from_fn(move || backoff.next_backoff())
        };
        Self::from_starts(start).with_cap(MAX_CAP)
    }
}

impl Retry {
    /// A retry that a policy of the crate `backoff` drives alone: no limit on attempts but its own.
    #[must_use]
    pub fn from_backoff<B>(backoff: B) -> Self
    where
        B: Delays + Clone + Send + Sync + 'static,
    {
        Self::default().with_checked(Backoff::from_backoff(backoff)).with_unlimited_attempts()
    }
}

/// What an answer of code written for the crate `backoff` means: `Permanent` ends the call, `Transient` is tried again, after its
/// `retry_after` where it has one. For [`classify_with`](Operation::classify_with), or the classifier of a tower layer.
#[must_use]
pub fn verdict<T, E>(answer: Result<&T, &Error<E>>) -> Verdict {
    match answer {
        Ok(_) => Verdict::Success,
        Err(Error::Permanent(_)) => Verdict::Permanent,
        Err(Error::Transient { retry_after: None, .. }) => Verdict::Transient,
        Err(Error::Transient { retry_after, .. }) => Verdict::Throttled { retry_after: *retry_after },
    }
}

/// The caller's own error, out of its wrapper.
#[must_use]
pub fn into_inner<E>(error: Error<E>) -> E {
    match error {
        Error::Permanent(error) | Error::Transient { err: error, .. } => error,
    }
}

/// An operation whose error says itself what may be tried again: see [`BackoffExt::self_classified`].
#[must_use = "an operation does nothing until a policy starts it"]
#[derive(Clone, Copy, Debug)]
pub struct SelfClassified<Op>(Op);

impl<Op, E> Operation for SelfClassified<Op>
where
    Op: Operation<Error = Error<E>>,
    E: Send,
{
    type Value = Op::Value;
    type Error = Error<E>;
    type Future = Op::Future;

    fn start(&self) -> Op::Future {
        self.0.start()
    }

    fn classify(&self, outcome: Result<&Op::Value, &Error<E>>) -> Option<Verdict> {
        Some(verdict(outcome))
    }
}

/// `.self_classified()` on operations that fail with a [`backoff::Error`].
pub trait BackoffExt<E>: Operation<Error = Error<E>> + Sized {
    /// Lets the error say what may be tried again, to every policy of a stack.
    ///
    /// ```
    /// use async_retry::compat::{BackoffExt, into_inner};
    /// use async_retry::{Policy, Retry};
    /// use backoff::{Error, ExponentialBackoff};
    ///
    /// # async fn fetch() -> Result<u32, Error<&'static str>> { Err(Error::permanent("no such thing")) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let retry = Retry::from_backoff(ExponentialBackoff::default());
    /// let failure = retry.call(fetch.self_classified()).await.unwrap_err().map(into_inner);
    /// assert_eq!(failure.into_operation(), Some("no such thing"));
    /// # }
    /// ```
    fn self_classified(self) -> SelfClassified<Self> {
        SelfClassified(self)
    }
}

impl<Op: Operation<Error = Error<E>>, E> BackoffExt<E> for Op {}

/// In place of `backoff::future::retry`: the same arguments, the same result. The first attempt starts at once.
///
/// As in the original the delay of an [`Error::retry_after`] is slept without asking the policy, so its `max_elapsed_time` does not end a
/// call that only gets those. ([`Retry::from_backoff`] does ask: there the policy's end is the call's.)
///
/// # Errors
///
/// The error of the last attempt.
///
/// # Cancel safety
///
/// Dropping the future drops the attempt or the delay.
pub async fn retry<B, Op, Fut, T, E>(backoff: B, operation: Op) -> Result<T, E>
where
    B: Delays,
    Op: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error<E>>>,
{
    retry_notify(backoff, operation, |_, _| ()).await
}

/// In place of `backoff::future::retry_notify`: `notify` gets each error that is followed by another attempt, and the delay before
/// that one.
///
/// # Errors
///
/// The error of the last attempt.
///
/// # Cancel safety
///
/// Dropping the future drops the attempt or the delay.
pub async fn retry_notify<B, Op, Fut, T, E>(
    mut backoff: B,
    mut operation: Op,
    mut notify: impl FnMut(E, Duration),
) -> Result<T, E>
where
    B: Delays,
    Op: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error<E>>>,
{
    backoff.reset();
    loop {
        let (error, hint) = match operation().await {
            Ok(value) => return Ok(value),
            Err(Error::Permanent(error)) => return Err(error),
            Err(Error::Transient { err, retry_after }) => (err, retry_after),
        };
        let Some(delay) = hint.or_else(|| backoff.next_backoff()) else { return Err(error) };
        if !async_policy::Deadline::fits(delay) {
            return Err(error);
        }
        notify(error, delay);
        if delay.is_zero() {
            // A sleep of zero would still cost a timer tick.
            tokio::task::coop::consume_budget().await;
        } else {
            tokio::time::sleep(delay).await;
        }
    }
}
