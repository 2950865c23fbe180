use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_policy::{ByError, Classify, Outcome, PolicyError};
use pin_project_lite::pin_project;
use tokio::task::coop::poll_proceed;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use crate::Retry;
use crate::retry::{keep, must_yield};
use crate::state::{Next, Progress};

/// [`Retry`] as a tower layer.
#[derive(Clone, Debug)]
pub struct RetryLayer<C = ByError> {
    retry: Retry,
    classifier: C,
}

impl RetryLayer {
    /// Tries calls of a service again; what is tried again is what the error's own
    /// [`verdict`](PolicyError::verdict) says.
    #[must_use]
    pub const fn new(retry: Retry) -> Self {
        Self { retry, classifier: ByError }
    }
}

impl<C> RetryLayer<C> {
    /// What an answer means: any `Fn(Result<&Response, &Error>) -> Verdict` that is `Clone`.
    #[must_use]
    pub fn with_classifier<D>(self, classifier: D) -> RetryLayer<D> {
        RetryLayer { retry: self.retry, classifier }
    }
}

impl<S, C: Clone> Layer<S> for RetryLayer<C> {
    type Service = RetryService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryService { inner, retry: self.retry.clone(), classifier: self.classifier.clone() }
    }
}

/// [`Retry`] round a tower service.
///
/// Each attempt waits for the readiness of the service it calls, so that stateful services inside (a concurrency
/// limit, a buffer) see the contract kept. A request is cloned for each attempt.
#[derive(Clone, Debug)]
pub struct RetryService<S, C = ByError> {
    inner: S,
    retry: Retry,
    classifier: C,
}

impl<S, R, C> Service<R> for RetryService<S, C>
where
    S: Service<R> + Clone,
    S::Error: PolicyError,
    R: Clone,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = RetryFuture<S, R, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // The future keeps the instance that was polled ready, and this service a fresh one.
        let fresh = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, fresh);
        let attempt = service.call(request.clone());
        RetryFuture {
            state: State::Running { attempt },
            service,
            request,
            retry: self.retry.clone(),
            classifier: self.classifier.clone(),
            progress: Progress::default(),
            answer: None,
        }
    }
}

pin_project! {
    /// One call of a [`RetryService`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the attempt in flight and the delay.
    #[must_use = "futures do nothing unless polled"]
    pub struct RetryFuture<S, R, C>
    where
        S: Service<R>,
    {
        #[pin]
        state: State<S::Future>,
        service: S,
        request: R,
        retry: Retry,
        classifier: C,
        progress: Progress,
        answer: Option<Result<S::Response, S::Error>>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        Running { #[pin] attempt: F },
        // Boxed: inline it would cost every success.
        Pausing { timer: Pin<Box<Sleep>> },
        Yielding,
        Readying,
    }
}

impl<S, R, C> Future for RetryFuture<S, R, C>
where
    S: Service<R>,
    S::Error: PolicyError,
    R: Clone,
    C: Classify<S::Response, S::Error>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProjection::Running { attempt } => {
                    let result = ready!(attempt.poll(cx));
                    let outcome = Outcome::of(&result, |answer| this.classifier.classify(answer));
                    let answered = matches!(outcome, Outcome::Answered(_));
                    let delay = match this.retry.next(this.progress, &outcome) {
                        Next::Done => return Poll::Ready(result),
                        Next::Stop(_) if answered => return Poll::Ready(result),
                        Next::Stop(_) => return Poll::Ready(this.answer.take().unwrap_or(result)),
                        Next::After(delay) => delay,
                    };
                    keep(this.answer, result, answered);
                    // The failed attempt is dropped here: what it held is free before the next one asks for it.
                    this.state.set(if !delay.is_zero() {
                        State::Pausing { timer: Box::pin(tokio::time::sleep(delay)) }
                    } else if must_yield(*this.progress) {
                        State::Yielding
                    } else {
                        State::Readying
                    });
                }
                StateProjection::Pausing { timer } => {
                    ready!(timer.as_mut().poll(cx));
                    this.state.set(State::Readying);
                }
                StateProjection::Yielding => {
                    ready!(poll_proceed(cx)).made_progress();
                    this.state.set(State::Readying);
                }
                StateProjection::Readying => {
                    ready!(this.service.poll_ready(cx))?;
                    let attempt = this.service.call(this.request.clone());
                    this.state.set(State::Running { attempt });
                }
            }
        }
    }
}

impl<S: Service<R>, R, C> fmt::Debug for RetryFuture<S, R, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture")
            .field("retry", &self.retry)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}
