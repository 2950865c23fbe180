use std::borrow::Borrow;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::coop::unconstrained;
use tokio::time::Sleep;

use crate::{Guard, Name, Operation, Policy, PolicyError, Start, TimedOut, deadline};
#[cfg(feature = "tower")]
use crate::{PolicyKind, Reason, Rejection};

/// Drops an operation that has no answer in time.
///
/// What it allows is also the [`Deadline`](crate::Deadline) of everything inside, so a retry or a limit refuses at
/// once a wait that could not end in time. Round a whole stack it is the overall deadline; inside a retry it is the
/// time-out per attempt.
///
/// The timer is armed when the operation is first pending, and the time counts from there: an operation that is
/// ready at once costs no clock and no timer. A limit of zero means "ready at the first poll or not at all"; one
/// that is later than the clock can tell never ends.
///
/// ```
/// use async_policy::{Failure, Policy, Timeout};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let timeout = Timeout::new(Duration::from_millis(250)).with_name("quotes");
/// let failure = timeout.call(std::future::pending::<Result<(), std::io::Error>>).await.unwrap_err();
/// let Failure::TimedOut(timed_out) = failure else { panic!("{failure}") };
/// assert_eq!(timed_out.to_string(), "timeout `quotes` expired: no answer within 250ms");
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeout {
    limit: Duration,
    name: Option<Name>,
}

impl Timeout {
    /// At most `limit` from the moment the operation is first pending.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self { limit, name: None }
    }

    /// [`new`](Self::new), in milliseconds.
    #[must_use]
    pub const fn from_millis(limit: u64) -> Self {
        Self::new(Duration::from_millis(limit))
    }

    /// [`new`](Self::new), in seconds.
    #[must_use]
    pub const fn from_secs(limit: u64) -> Self {
        Self::new(Duration::from_secs(limit))
    }

    /// Names this time-out in the errors it makes.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What it allows.
    #[must_use]
    pub const fn limit(&self) -> Duration {
        self.limit
    }

    /// A request that was not started, because the service was not ready in time.
    #[cfg(feature = "tower")]
    pub(crate) fn refusal(&self) -> Rejection {
        let rejection = Rejection::new(PolicyKind::Timeout, Reason::WaitTooLong);
        match &self.name {
            Some(name) => rejection.with_name(name.clone()),
            None => rejection,
        }
    }

    fn expired<E: PolicyError>(&self) -> E {
        let timed_out = TimedOut::new(self.limit);
        E::from_timed_out(match &self.name {
            Some(name) => timed_out.with_name(name.clone()),
            None => timed_out,
        })
    }
}

impl Policy for Timeout {
    fn execute<Op>(&self, op: Op) -> impl Future<Output = Result<Op::Value, Op::Error>> + Send
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        TimeoutFuture::new(Start::new(op), self, None)
    }
}

impl Guard for Timeout {
    fn run<T, E>(
        &self,
        operation: impl Future<Output = Result<T, E>> + Send,
    ) -> impl Future<Output = Result<T, E>> + Send
    where
        T: Send,
        E: PolicyError,
    {
        TimeoutFuture::new(operation, self, None)
    }
}

pin_project! {
    /// A future under a [`Timeout`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the operation and its timer.
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct TimeoutFuture<F, P = Timeout> {
        #[pin]
        future: F,
        #[pin]
        timer: Option<Sleep>,
        timeout: P,
    }
}

impl<F, P> TimeoutFuture<F, P> {
    #[inline]
    pub(crate) const fn new(future: F, timeout: P, timer: Option<Sleep>) -> Self {
        Self { future, timer, timeout }
    }
}

impl<F, P, T, E> Future for TimeoutFuture<F, P>
where
    F: Future<Output = Result<T, E>>,
    P: Borrow<Timeout>,
    E: PolicyError,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let timeout: &Timeout = (*this.timeout).borrow();
        let entered = match this.timer.as_ref().as_pin_ref() {
            None => deadline::enter_within(timeout.limit),
            Some(timer) => deadline::enter_at(timer.deadline()),
        };
        let polled = this.future.poll(cx);
        drop(entered);
        if polled.is_ready() {
            return polled;
        }
        if timeout.limit.is_zero() {
            return Poll::Ready(Err(timeout.expired()));
        }
        if this.timer.is_none() {
            this.timer.set(Some(tokio::time::sleep(timeout.limit)));
        }
        // An operation that used up the task's budget must not keep the timer from being looked at.
        match this.timer.as_pin_mut().map(|timer| Pin::new(&mut unconstrained(timer)).poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(timeout.expired())),
            _ => Poll::Pending,
        }
    }
}
