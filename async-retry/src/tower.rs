use std::fmt;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_policy::{ByError, Classify, PolicyError, TimeoutFuture, TimeoutLayer};
use pin_project_lite::pin_project;
use tokio::task::coop::poll_proceed;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use crate::Retry;
use crate::report::Best;
use crate::retry::{Began, Past, Pause, Slot};

/// Boxed: inline it would cost every success.
type Boxed<P> = Option<Box<P>>;

impl<P: Default> Slot<P> for Boxed<P> {
    fn get(&mut self) -> &mut P {
        self.get_or_insert_default()
    }
}

/// [`Retry`] as a tower layer.
#[derive(Clone, Debug)]
pub struct RetryLayer<C = ByError, K = ByClone> {
    retry: Retry,
    classifier: C,
    cloner: K,
}

impl RetryLayer {
    /// Tries calls of a service again; what is tried again is what the error's own
    /// [`verdict`](PolicyError::verdict) says. Requests are cloned.
    #[must_use]
    pub const fn new(retry: Retry) -> Self {
        Self { retry, classifier: ByError, cloner: ByClone }
    }
}

impl<C, K> RetryLayer<C, K> {
    /// What an answer means: any `Fn(Result<&Response, &Error>) -> Verdict` that is `Clone`.
    #[must_use]
    pub fn with_classifier<D>(self, classifier: D) -> RetryLayer<D, K> {
        RetryLayer { retry: self.retry, classifier, cloner: self.cloner }
    }

    /// How a request is repeated: any `Fn(&Request) -> Option<Request>` that is `Clone`, asked before each attempt that is not the
    /// last one. Where it says `None`, that attempt is the last one.
    ///
    /// ```
    /// use async_retry::{Retry, RetryLayer};
    ///
    /// // No `Clone`: the body may be a stream.
    /// struct Request { body: Option<Vec<u8>> }
    ///
    /// let layer = RetryLayer::new(Retry::default())
    ///     .with_try_clone(|request: &Request| Some(Request { body: Some(request.body.clone()?) }));
    /// ```
    #[must_use]
    pub fn with_try_clone<L>(self, cloner: L) -> RetryLayer<C, L> {
        RetryLayer { retry: self.retry, classifier: self.classifier, cloner }
    }
}

/// How a [`RetryService`] repeats a request: any `Fn(&R) -> Option<R>` is one.
pub trait TryClone<R> {
    /// The same request again; `None` where it cannot be repeated.
    fn try_clone(&self, request: &R) -> Option<R>;
}

impl<R, F: Fn(&R) -> Option<R>> TryClone<R> for F {
    fn try_clone(&self, request: &R) -> Option<R> {
        self(request)
    }
}

/// The default [`TryClone`]: the request is `Clone`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByClone;

impl<R: Clone> TryClone<R> for ByClone {
    fn try_clone(&self, request: &R) -> Option<R> {
        Some(request.clone())
    }
}

impl<S, C: Clone, K: Clone> Layer<S> for RetryLayer<C, K> {
    type Service = RetryService<S, C, K>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryService {
            inner,
            retry: self.retry.clone(),
            classifier: self.classifier.clone(),
            cloner: self.cloner.clone(),
        }
    }
}

/// [`Retry`] round a tower service.
///
/// Each attempt waits for the readiness of the service it calls, so that stateful services inside (a concurrency
/// limit, a buffer) see the contract kept. An error from readiness ends the call: the service is gone.
///
/// A time-out per attempt ([`Retry::with_attempt_timeout`]) allocates for each attempt here; a
/// [`TimeoutLayer`](async_policy::TimeoutLayer) inside does the same without.
#[derive(Clone, Debug)]
pub struct RetryService<S, C = ByError, K = ByClone> {
    inner: S,
    retry: Retry,
    classifier: C,
    cloner: K,
}

impl<S, R, C, K> Service<R> for RetryService<S, C, K>
where
    S: Service<R> + Clone,
    S::Error: PolicyError,
    C: Classify<S::Response, S::Error> + Clone,
    K: TryClone<R> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = RetryFuture<S, R, C, K>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // The future keeps the instance that was polled ready, and this service a fresh one.
        let fresh = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, fresh);
        let began = self.retry.begin();
        let again = self.cloner.try_clone(&request);
        let state = State::running(service.call(request), &self.retry);
        RetryFuture {
            state,
            service,
            again,
            retry: self.retry.clone(),
            classifier: self.classifier.clone(),
            cloner: self.cloner.clone(),
            began,
            past: None,
        }
    }
}

pin_project! {
    /// One call of a [`RetryService`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the attempt in flight and the delay, and gives the budget's token back.
    #[must_use = "futures do nothing unless polled"]
    pub struct RetryFuture<S, R, C, K = ByClone>
    where
        S: Service<R>,
    {
        #[pin]
        state: State<S::Future>,
        service: S,
        // The request of the next attempt.
        again: Option<R>,
        retry: Retry,
        classifier: C,
        cloner: K,
        began: Began,
        past: Boxed<Past<Best<S::Response, S::Error>>>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        Running { #[pin] attempt: F },
        Timed { attempt: Pin<Box<TimeoutFuture<F>>> },
        // Boxed: inline it would cost every success.
        Pausing { timer: Pin<Box<Sleep>> },
        Yielding,
        Readying,
    }
}

impl<F> State<F> {
    fn running<T, E>(attempt: F, retry: &Retry) -> Self
    where
        F: Future<Output = Result<T, E>>,
        E: PolicyError,
    {
        match retry.attempt_timeout() {
            None => Self::Running { attempt },
            Some(timeout) => {
                let mut timed = TimeoutLayer::new(timeout.clone()).layer(Ready { future: Some(attempt) });
                Self::Timed { attempt: Box::pin(timed.call(())) }
            }
        }
    }
}

/// A service that hands out the one future it has.
struct Ready<F> {
    future: Option<F>,
}

impl<F, T, E> Service<()> for Ready<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Response = T;
    type Error = E;
    type Future = F;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> F {
        self.future.take().expect("called once")
    }
}

impl<S, R, C, K> Future for RetryFuture<S, R, C, K>
where
    S: Service<R>,
    S::Error: PolicyError,
    C: Classify<S::Response, S::Error>,
    K: TryClone<R>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let result = match this.state.as_mut().project() {
                StateProjection::Running { attempt } => ready!(attempt.poll(cx)),
                StateProjection::Timed { attempt } => ready!(attempt.as_mut().poll(cx)),
                StateProjection::Pausing { timer } => {
                    ready!(timer.as_mut().poll(cx));
                    this.state.set(State::Readying);
                    continue;
                }
                StateProjection::Yielding => {
                    ready!(poll_proceed(cx)).made_progress();
                    this.state.set(State::Readying);
                    continue;
                }
                StateProjection::Readying => {
                    ready!(this.service.poll_ready(cx))?;
                    let request =
                        this.again.take().expect("an attempt follows only where there is a request");
                    *this.again = this.cloner.try_clone(&request);
                    this.state.set(State::running(this.service.call(request), this.retry));
                    continue;
                }
            };
            let classify = |answer: Result<&_, &_>| this.classifier.classify(answer);
            let again = this.again.is_some();
            let pause = match this.retry.settle(this.began, this.past, again, classify, result) {
                ControlFlow::Break(result) => return Poll::Ready(result),
                ControlFlow::Continue(pause) => pause,
            };
            // The failed attempt is dropped here: what it held is free before the next one asks for it.
            this.state.set(match pause {
                Pause::None => State::Readying,
                Pause::Yield => State::Yielding,
                Pause::Sleep(delay) => State::Pausing { timer: Box::pin(tokio::time::sleep(delay)) },
            });
        }
    }
}

impl<S: Service<R>, R, C, K> fmt::Debug for RetryFuture<S, R, C, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture")
            .field("retry", &self.retry)
            .field("began", &self.began)
            .finish_non_exhaustive()
    }
}
