use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_policy::{ByError, Classify, PolicyError, Verdict};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::Retry;
use crate::call::{Attempts, Call};
use crate::report::Best;

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

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        let again = self.cloner.try_clone(&request);
        // On the instance that was polled ready. The clone is polled ready before it is called.
        let first = self.inner.call(request);
        let attempts = Requests {
            service: self.inner.clone(),
            again,
            classifier: self.classifier.clone(),
            cloner: self.cloner.clone(),
        };
        RetryFuture { call: Call::<Retry, _, _>::started(&self.retry, attempts, first) }
    }
}

/// The attempts of a request.
struct Requests<S, R, C, K> {
    service: S,
    /// The request of the next attempt.
    again: Option<R>,
    classifier: C,
    cloner: K,
}

impl<S, R, C, K> Attempts for Requests<S, R, C, K>
where
    S: Service<R>,
    S::Error: PolicyError,
    C: Classify<S::Response, S::Error>,
    K: TryClone<R>,
{
    type Value = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_start(&mut self, cx: &mut Context<'_>) -> Poll<Result<S::Future, S::Error>> {
        ready!(self.service.poll_ready(cx))?;
        let request = self.again.take().expect("another attempt only where there is a request");
        self.again = self.cloner.try_clone(&request);
        Poll::Ready(Ok(self.service.call(request)))
    }

    fn classify(&self, answer: Result<&S::Response, &S::Error>) -> Option<Verdict> {
        self.classifier.classify(answer)
    }

    fn is_repeatable(&self) -> bool {
        self.again.is_some()
    }
}

type BestOf<S, R> = Best<<S as Service<R>>::Response, <S as Service<R>>::Error>;

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
        S::Error: PolicyError,
        C: Classify<S::Response, S::Error>,
        K: TryClone<R>,
    {
        #[pin]
        call: Call<Retry, Requests<S, R, C, K>, BestOf<S, R>>,
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

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().call.poll(cx)
    }
}

impl<S, R, C, K> fmt::Debug for RetryFuture<S, R, C, K>
where
    S: Service<R>,
    S::Error: PolicyError,
    C: Classify<S::Response, S::Error>,
    K: TryClone<R>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}
