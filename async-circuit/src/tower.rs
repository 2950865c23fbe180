use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_policy::{ByError, Classify, Outcome, PolicyError, Rejection, Verdict};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

mod keyed;
pub use keyed::{KeyedCircuitBreakerLayer, KeyedCircuitBreakerService};

use crate::CircuitBreaker;
use crate::event::Ending;
use crate::permit::{Guarded, Judge, Ticket};

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
    /// What an answer means: any `Fn(Result<&Response, &Error>) -> Verdict` that is `Clone`. (Its argument's type has to be
    /// written out.)
    ///
    /// ```
    /// # use async_circuit::{CircuitBreaker, CircuitBreakerLayer, Failure, Verdict};
    /// # use std::io;
    /// let layer = CircuitBreakerLayer::new(CircuitBreaker::new()).with_classifier(
    ///     |answer: Result<&u16, &Failure<io::Error>>| match answer {
    ///         Ok(status) if *status < 500 => Verdict::Success,
    ///         _ => Verdict::Transient,
    ///     },
    /// );
    /// ```
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
            breaker: Handle::Shared(self.breaker.clone()),
            classifier: self.classifier.clone(),
            asked: false,
            refused: None,
        }
    }
}

/// [`CircuitBreaker`] round a tower service.
///
/// `poll_ready` looks at the circuit first: while it refuses, the service is ready without the inner one being asked,
/// and the future of `call` carries the refusal. It never fails from `poll_ready`, which would leave a buffer above dead for
/// good. An error of the inner readiness counts as a call's error does.
///
/// If the circuit refuses after the inner service was asked, a clone takes its place, so that what the inner one had reserved (a
/// limit's permit, say) is free at once. Who waits for the inner service to be ready looks at the circuit again
/// when next polled, not when the circuit opens: bound that wait, by the limit's own or by a time-out outside.
#[derive(Debug)]
pub struct CircuitBreakerService<S, C = ByError> {
    inner: S,
    breaker: Handle,
    classifier: C,
    /// The inner service was asked since its last call, and may have reserved something.
    asked: bool,
    /// The inner service was not asked, because the circuit refused.
    refused: Option<Rejection>,
}

impl<S: Clone, C: Clone> Clone for CircuitBreakerService<S, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            breaker: Handle::Shared(self.breaker().clone()),
            classifier: self.classifier.clone(),
            asked: false,
            refused: None,
        }
    }
}

impl<S, R, C> Service<R> for CircuitBreakerService<S, C>
where
    S: Service<R> + Clone,
    S::Error: PolicyError,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = CircuitBreakerFuture<S::Future, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.refused = self.breaker().peek();
        if self.refused.is_some() {
            if std::mem::take(&mut self.asked) {
                self.inner = self.inner.clone();
            }
            return Poll::Ready(Ok(()));
        }
        self.asked = true;
        let ready = self.inner.poll_ready(cx);
        if let Poll::Ready(result @ Err(_)) = &ready {
            self.failed_to_get_ready::<S::Response, S::Error>(result);
        }
        ready
    }

    fn call(&mut self, request: R) -> Self::Future {
        if let Some(rejection) = self.refused.take() {
            return CircuitBreakerFuture::refused(self.breaker().rejected(rejection));
        }
        self.asked = false;
        CircuitBreakerFuture::start(
            self.breaker.for_call(),
            &mut self.inner,
            request,
            self.classifier.clone(),
        )
    }
}

impl<S, C> CircuitBreakerService<S, C> {
    fn breaker(&self) -> &CircuitBreaker {
        self.breaker.borrow()
    }

    /// An error of the inner readiness (a connection refused, say) is a call's error: it counts by its verdict.
    #[cold]
    fn failed_to_get_ready<T, E: PolicyError>(&self, result: &Result<(), E>)
    where
        C: Classify<T, E>,
    {
        let Ok((stamp, started)) = self.breaker().admit() else { return };
        let mut ticket = Ticket::new(self.breaker(), stamp, started);
        let classify =
            |answer: Result<&(), _>| answer.err().and_then(|error| self.classifier.classify(Err(error)));
        let verdict = ticket.guard(|| Outcome::of(result, classify).verdict());
        ticket.settle(Ending::of(verdict));
    }
}

/// How a service and the futures of its calls hold the breaker. A service that is called again and again keeps a count of its own
/// for its futures: that of the breaker is shared by all threads, and to change it for each call would slow them down.
#[derive(Debug)]
enum Handle {
    /// Not called yet.
    Shared(CircuitBreaker),
    /// Called once: a service of one call allocates nothing.
    Once(CircuitBreaker),
    Own(Arc<CircuitBreaker>),
}

impl Handle {
    fn for_call(&mut self) -> Self {
        match self {
            Self::Own(own) => Self::Own(Arc::clone(own)),
            Self::Shared(breaker) => {
                let breaker = breaker.clone();
                *self = Self::Once(breaker.clone());
                Self::Shared(breaker)
            }
            Self::Once(breaker) => {
                let own = Arc::new(breaker.clone());
                *self = Self::Own(Arc::clone(&own));
                Self::Own(own)
            }
        }
    }
}

impl Borrow<CircuitBreaker> for Handle {
    #[inline]
    fn borrow(&self) -> &CircuitBreaker {
        match self {
            Self::Shared(breaker) | Self::Once(breaker) => breaker,
            Self::Own(breaker) => breaker,
        }
    }
}

struct ByClassifier<C>(C);

impl<F, T, E: PolicyError, C: Classify<T, E>> Judge<F, Result<T, E>> for ByClassifier<C> {
    fn judge(&self, _: &F, result: &Result<T, E>) -> Verdict {
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
        Admitted { #[pin] future: Guarded<F, Handle, ByClassifier<C>> },
        Refused { rejection: Option<Rejection> },
    }
}

impl<F, C> CircuitBreakerFuture<F, C> {
    const fn refused(rejection: Rejection) -> Self {
        Self { state: State::Refused { rejection: Some(rejection) } }
    }

    /// Calls the service, which is ready, if the breaker lets it; if not, it reserves nothing any more.
    fn start<S, R>(breaker: Handle, inner: &mut S, request: R, classifier: C) -> Self
    where
        S: Service<R, Future = F> + Clone,
    {
        let asked: &CircuitBreaker = breaker.borrow();
        match asked.admit() {
            Ok((stamp, started)) => {
                let mut ticket = Ticket::new(breaker, stamp, started);
                let future = ticket.guard(|| inner.call(request));
                let future = Guarded::admitted(future, ticket, ByClassifier(classifier));
                Self { state: State::Admitted { future } }
            }
            Err(rejection) => {
                *inner = inner.clone();
                Self::refused(rejection)
            }
        }
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
