use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_policy::{ByError, Classify, Outcome, PolicyError, Rejection, Verdict};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::CircuitBreaker;
use crate::breaker::{Admitted, Judge, Ticket};

/// [`CircuitBreaker`] as a tower layer. All services it makes share the breaker's one state.
#[derive(Clone, Debug)]
pub struct CircuitBreakerLayer<C = ByError> {
    breaker: CircuitBreaker,
    classifier: C,
}

impl CircuitBreakerLayer {
    /// Puts `breaker` round each call of a service; what counts as a failure is what the error's own
    /// [`verdict`](PolicyError::verdict) says.
    #[must_use]
    pub const fn new(breaker: CircuitBreaker) -> Self {
        Self { breaker, classifier: ByError }
    }
}

impl<C> CircuitBreakerLayer<C> {
    /// What an answer means: any `Fn(Result<&Response, &Error>) -> Verdict` that is `Clone`.
    #[must_use]
    pub fn with_classifier<D>(self, classifier: D) -> CircuitBreakerLayer<D> {
        CircuitBreakerLayer { breaker: self.breaker, classifier }
    }
}

impl<S, C: Clone> Layer<S> for CircuitBreakerLayer<C> {
    type Service = CircuitBreakerService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitBreakerService {
            inner,
            breaker: self.breaker.clone(),
            classifier: self.classifier.clone(),
            refused: None,
        }
    }
}

/// [`CircuitBreaker`] round a tower service.
///
/// `poll_ready` looks at the circuit first: while it refuses, the service is ready without the inner one being asked,
/// and the future of `call` carries the refusal. It never fails from `poll_ready`, which would leave a buffer above dead for
/// good.
#[derive(Debug)]
pub struct CircuitBreakerService<S, C = ByError> {
    inner: S,
    breaker: CircuitBreaker,
    classifier: C,
    /// The inner service was not asked, because the circuit refused.
    refused: Option<Rejection>,
}

impl<S: Clone, C: Clone> Clone for CircuitBreakerService<S, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            breaker: self.breaker.clone(),
            classifier: self.classifier.clone(),
            refused: None,
        }
    }
}

impl<S, R, C> Service<R> for CircuitBreakerService<S, C>
where
    S: Service<R>,
    S::Error: PolicyError,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = CircuitBreakerFuture<S::Future, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.refused = self.breaker.peek();
        if self.refused.is_some() { Poll::Ready(Ok(())) } else { self.inner.poll_ready(cx) }
    }

    fn call(&mut self, request: R) -> Self::Future {
        let admitted = self.refused.take().map_or_else(|| self.breaker.admit(), Err);
        let state = match admitted {
            Ok(epoch) => {
                // Taken first: if `call` panics, the permit is given back.
                let ticket = Ticket::new(self.breaker.clone(), epoch);
                let judge = ByClassifier(self.classifier.clone());
                State::Admitted { future: Admitted::new(self.inner.call(request), ticket, judge) }
            }
            Err(rejection) => State::Refused { rejection: Some(rejection) },
        };
        CircuitBreakerFuture { state }
    }
}

struct ByClassifier<C>(C);

impl<T, E: PolicyError, C: Classify<T, E>> Judge<Result<T, E>> for ByClassifier<C> {
    fn judge(&self, result: &Result<T, E>) -> Verdict {
        Outcome::of(result, |answer| self.0.classify(answer)).verdict()
    }
}

pin_project! {
    /// One call of a [`CircuitBreakerService`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the inner call and gives its permit back; the call counts as aborted.
    #[must_use = "futures do nothing unless polled"]
    pub struct CircuitBreakerFuture<F, C> {
        #[pin]
        state: State<F, C>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, C> {
        Admitted { #[pin] future: Admitted<F, CircuitBreaker, ByClassifier<C>> },
        Refused { rejection: Option<Rejection> },
    }
}

impl<F, C, T, E> Future for CircuitBreakerFuture<F, C>
where
    F: Future<Output = Result<T, E>>,
    E: PolicyError,
    C: Classify<T, E>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, E>> {
        match self.project().state.project() {
            StateProjection::Admitted { future } => future.poll(cx),
            StateProjection::Refused { rejection } => {
                let rejection = rejection.take().expect("polled after it was ready");
                Poll::Ready(Err(E::from_rejection(rejection)))
            }
        }
    }
}

impl<F, C> fmt::Debug for CircuitBreakerFuture<F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerFuture").finish_non_exhaustive()
    }
}
