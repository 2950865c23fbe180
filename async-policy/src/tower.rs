use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::task::coop::{has_budget_remaining, unconstrained};
use tokio::time::{Instant, Sleep};
use tower_layer::Layer;
use tower_service::Service;

use crate::{PolicyError, Rejection, Timeout, TimeoutFuture, deadline};

/// [`Timeout`] as a tower layer.
#[derive(Clone, Debug)]
pub struct TimeoutLayer {
    timeout: Timeout,
}

impl TimeoutLayer {
    /// Puts `timeout` round each call of a service.
    #[must_use]
    pub const fn new(timeout: Timeout) -> Self {
        Self { timeout }
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = TimeoutService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TimeoutService::new(inner, self.timeout.clone())
    }
}

/// [`Timeout`] round a tower service.
///
/// The time counts from where the request first has to wait, be it for the inner service to be ready (for a permit of a
/// [`Buffer`](https://docs.rs/tower/latest/tower/buffer/index.html) or a concurrency limit inside) or for its answer; the call gets what a wait for
/// readiness has left. If that wait takes all of it, the answer of the call is a refusal
/// ([`Reason::WaitTooLong`](crate::Reason::WaitTooLong)), and the request does not reach the inner service: where nothing inside refused in time by itself,
/// for its deadline.
///
/// A wait that is given up belongs to the next request on this service; a clone begins anew, as does
/// [`oneshot`](https://docs.rs/tower/latest/tower/trait.ServiceExt.html#method.oneshot) on one.
///
/// The error type stays the service's own, which must be able to carry a time-out: lift a foreign one below with
/// tower's `map_err(Failure::Operation)`.
#[derive(Debug)]
pub struct TimeoutService<S> {
    inner: S,
    timeout: Timeout,
    wait: Wait,
}

/// What the wait for readiness has come to.
#[derive(Debug)]
enum Wait {
    None,
    /// It began when the task's budget was spent, which is most likely all it waits for: if not, the timer is armed in the next poll.
    Yields,
    /// Boxed because a service is not pinned; only who waits pays for it.
    Timed(Pin<Box<Sleep>>),
    /// It is over, and leaves so much to the call.
    Left(Duration),
    TooLong,
}

impl<S> TimeoutService<S> {
    const fn new(inner: S, timeout: Timeout) -> Self {
        Self { inner, timeout, wait: Wait::None }
    }

    /// The inner service has to be waited for: whether that has come to its end.
    #[cold]
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = match self.wait {
            Wait::None if !has_budget_remaining() => {
                self.wait = Wait::Yields;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Wait::None | Wait::Yields => self.timeout.limit(),
            Wait::Left(left) => left,
            Wait::Timed(_) | Wait::TooLong => Duration::ZERO,
        };
        if !left.is_zero() {
            self.wait = Wait::Timed(Box::pin(tokio::time::sleep(left)));
        }
        if let Wait::Timed(timer) = &mut self.wait
            && Pin::new(&mut unconstrained(timer)).poll(cx).is_pending()
        {
            return Poll::Pending;
        }
        self.wait = Wait::TooLong;
        Poll::Ready(())
    }

    /// The inner service is ready.
    #[cold]
    fn waited(&mut self) {
        self.wait = match &self.wait {
            // A wait whose time was over before it was given up, and its request is not the one that comes.
            Wait::Timed(timer) => match timer.deadline().saturating_duration_since(Instant::now()) {
                Duration::ZERO => Wait::None,
                left => Wait::Left(left),
            },
            Wait::Left(left) => Wait::Left(*left),
            Wait::None | Wait::Yields | Wait::TooLong => Wait::None,
        };
    }
}

impl<S: Clone> Clone for TimeoutService<S> {
    /// What the original has waited stays its own.
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.timeout.clone())
    }
}

impl<S, R> Service<R> for TimeoutService<S>
where
    S: Service<R>,
    S::Error: PolicyError,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = TimeoutResponse<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let entered = match &self.wait {
            Wait::Timed(timer) => deadline::enter_at(timer.deadline()),
            Wait::Left(left) => deadline::enter_within(*left),
            Wait::None | Wait::Yields | Wait::TooLong => deadline::enter_within(self.timeout.limit()),
        };
        let polled = self.inner.poll_ready(cx);
        drop(entered);
        if polled.is_pending() {
            return self.poll_wait(cx).map(Ok);
        }
        if !matches!(self.wait, Wait::None) {
            self.waited();
        }
        polled
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        let mut timer = None;
        if !matches!(self.wait, Wait::None) {
            match std::mem::replace(&mut self.wait, Wait::None) {
                Wait::TooLong => {
                    let state = State::Refused { rejection: Some(self.timeout.refusal()) };
                    return TimeoutResponse { state };
                }
                Wait::Left(left) => timer = Some(tokio::time::sleep(left)),
                Wait::None | Wait::Yields | Wait::Timed(_) => {}
            }
        }
        let future = TimeoutFuture::new(self.inner.call(request), self.timeout.clone(), timer);
        TimeoutResponse { state: State::Running { future } }
    }
}

pin_project! {
    /// A response of a [`TimeoutService`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the inner response and its timer.
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct TimeoutResponse<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProjection]
    #[derive(Debug)]
    enum State<F> {
        Running { #[pin] future: TimeoutFuture<F> },
        Refused { rejection: Option<Rejection> },
    }
}

impl<F, T, E> Future for TimeoutResponse<F>
where
    F: Future<Output = Result<T, E>>,
    E: PolicyError,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Running { future } => future.poll(cx),
            StateProjection::Refused { rejection } => {
                let rejection = rejection.take().expect("not polled after it was ready");
                Poll::Ready(Err(E::from_rejection(rejection)))
            }
        }
    }
}
