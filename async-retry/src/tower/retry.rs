use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_policy::{ByError, Classify, PolicyError};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{ByClone, Requests, TryClone};
use crate::call::Call;
use crate::report::{Best, Record, Reporter};
use crate::{Reported, Retry};

/// [`Retry`] as a tower layer.
///
/// Three things are asked of the service inside. It is `Clone` (each attempt polls the clone that it calls); its error can carry a refusal
/// ([`PolicyError`]: lift a foreign one with tower's own `map_err`); its requests are `Clone`, or repeated
/// [as you say](Self::with_try_clone). A missing one shows as "trait bounds were not satisfied" (E0599) where the service is called; written
/// as `ServiceExt::oneshot(service, request)` the compiler says which.
///
/// ```
/// use async_retry::{Failure, Retry, RetryLayer};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(RetryLayer::new(Retry::default()))
///     .map_err(Failure::Operation) // io::Error has no room for a refusal
///     .service(service_fn(async |_url: &str| Ok::<u16, std::io::Error>(200)));
/// assert_eq!(service.oneshot("http://quotes").await.unwrap(), 200);
/// # }
/// ```
///
/// Over layers that box their errors (tower's `buffer`, `timeout`) leave the box as it is: it is a [`PolicyError`] itself, and a refusal inside
/// is found. `.map_err(Failure::Operation)` over a box would make that refusal an error of the operation: retried as a failure, and paid for.
///
/// ```
/// use async_policy::{PolicyKind, Reason};
/// use async_retry::{Failure, Rejection, Retry, RetryLayer, StopReason};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let closed = Rejection::new(PolicyKind::ConcurrencyLimit, Reason::ShutDown);
/// let mut service = ServiceBuilder::new()
///     .layer(RetryLayer::new(Retry::default()))
///     .buffer(16)
///     .service(service_fn(move |_url: &'static str| {
///         std::future::ready(Err::<u16, Failure<std::io::Error>>(closed.clone().into()))
///     }));
/// let (_, report) = service.ready().await.unwrap().call_with_report("http://quotes").await;
/// assert_eq!(report.stopped(), Some(StopReason::Refused)); // after one attempt
/// # }
/// ```
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
/// limit, a buffer) see the contract kept. That wait belongs to no attempt: neither a time-out per attempt nor the limit of the time in all ends
/// it; a time-out round the call does. An error from readiness ends the call with that error (a refusal only where no attempt was answered):
/// the service is gone. What it asks of the service inside is said at [`RetryLayer`].
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
        RetryFuture { call: self.start(request) }
    }
}

impl<S, C: Clone, K: Clone> RetryService<S, C, K> {
    #[inline]
    fn start<R, W>(&mut self, request: R) -> Call<Retry, Requests<S, R, C, K>, W>
    where
        S: Service<R> + Clone,
        S::Error: PolicyError,
        C: Classify<S::Response, S::Error>,
        K: TryClone<R>,
        W: Record<S::Response, S::Error> + Default,
    {
        let again = if self.retry.is_last(0) { None } else { self.cloner.try_clone(&request) };
        // On the instance that was polled ready. The clone is polled ready before it is called.
        let first = self.inner.call(request);
        let attempts = Requests {
            service: self.inner.clone(),
            again,
            classifier: self.classifier.clone(),
            cloner: self.cloner.clone(),
        };
        Call::<Retry, _, _>::started(&self.retry, attempts, first)
    }

    /// `call`, and what happened in it: see [`Retry::call_with_report`]. As with `call`, the service must have been polled ready.
    ///
    /// ```
    /// use async_retry::{Failure, Retry, RetryLayer};
    /// use tower::{Layer, ServiceExt, service_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let quotes = service_fn(async |_: &str| Err::<u16, _>(Failure::Operation("down")));
    /// let mut service = RetryLayer::new(Retry::default()).layer(quotes);
    /// let (result, report) = service.ready().await.unwrap().call_with_report("ACME").await;
    /// assert_eq!(result, Err(Failure::Operation("down")));
    /// assert_eq!(report.attempts().len(), 3);
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`RetryService`]'s own.
    ///
    /// # Cancel safety
    ///
    /// As [`RetryFuture`].
    pub fn call_with_report<R>(
        &mut self,
        request: R,
    ) -> impl Future<Output = Reported<S::Response, S::Error>> + use<S, R, C, K>
    where
        S: Service<R> + Clone,
        S::Error: PolicyError,
        C: Classify<S::Response, S::Error>,
        K: TryClone<R>,
    {
        self.start::<R, Reporter<_, _>>(request)
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

    // As the call's own.
    #[inline(always)]
    #[allow(clippy::inline_always)]
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
