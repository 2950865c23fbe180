use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_policy::{ByError, Classify, PolicyError};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{ByClone, Requests, TryClone};
use crate::Hedge;
use crate::race::Race;

/// [`Hedge`] as a tower layer.
///
/// What it asks of the service inside is what [`RetryLayer`](crate::RetryLayer) asks.
///
/// ```
/// use async_retry::{Failure, Hedge, HedgeLayer};
/// use std::time::Duration;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(HedgeLayer::new(Hedge::after(Duration::from_millis(50))))
///     .map_err(Failure::Operation)
///     .service(service_fn(async |_url: &str| Ok::<u16, std::io::Error>(200)));
/// assert_eq!(service.oneshot("http://quotes").await.unwrap(), 200);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct HedgeLayer<C = ByError, K = ByClone> {
    hedge: Hedge,
    classifier: C,
    cloner: K,
}

impl HedgeLayer {
    /// Hedges calls of a service; what a failure is says the error's own [`verdict`](PolicyError::verdict). Requests are cloned.
    #[must_use]
    pub const fn new(hedge: Hedge) -> Self {
        Self { hedge, classifier: ByError, cloner: ByClone }
    }
}

impl<C, K> HedgeLayer<C, K> {
    /// What an answer means: any `Fn(Result<&Response, &Error>) -> Verdict` that is `Clone`.
    #[must_use]
    pub fn with_classifier<D>(self, classifier: D) -> HedgeLayer<D, K> {
        HedgeLayer { hedge: self.hedge, classifier, cloner: self.cloner }
    }

    /// How a request is repeated: as in [`RetryLayer::with_try_clone`](crate::RetryLayer::with_try_clone). Where it says `None`, there
    /// is no extra attempt.
    #[must_use]
    pub fn with_try_clone<L>(self, cloner: L) -> HedgeLayer<C, L> {
        HedgeLayer { hedge: self.hedge, classifier: self.classifier, cloner }
    }
}

impl<S, C: Clone, K: Clone> Layer<S> for HedgeLayer<C, K> {
    type Service = HedgeService<S, C, K>;

    fn layer(&self, inner: S) -> Self::Service {
        HedgeService {
            inner,
            hedge: self.hedge.clone(),
            classifier: self.classifier.clone(),
            cloner: self.cloner.clone(),
        }
    }
}

/// [`Hedge`] round a tower service.
///
/// An extra attempt waits for the readiness of the service it calls, next to those in flight. Where the service is gone, no other one is
/// started; the call ends with that error only if no attempt was answered.
#[derive(Clone, Debug)]
pub struct HedgeService<S, C = ByError, K = ByClone> {
    inner: S,
    hedge: Hedge,
    classifier: C,
    cloner: K,
}

impl<S, R, C, K> Service<R> for HedgeService<S, C, K>
where
    S: Service<R> + Clone,
    S::Error: PolicyError,
    C: Classify<S::Response, S::Error> + Clone,
    K: TryClone<R> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = HedgeFuture<S, R, C, K>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

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
        HedgeFuture { race: Race::started(self.hedge.clone(), attempts, first) }
    }
}

pin_project! {
    /// One call of a [`HedgeService`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops all attempts in flight and gives the budget's tokens back.
    #[must_use = "futures do nothing unless polled"]
    pub struct HedgeFuture<S, R, C, K = ByClone>
    where
        S: Service<R>,
        S::Error: PolicyError,
        C: Classify<S::Response, S::Error>,
        K: TryClone<R>,
    {
        #[pin]
        race: Race<Hedge, Requests<S, R, C, K>>,
    }
}

impl<S, R, C, K> Future for HedgeFuture<S, R, C, K>
where
    S: Service<R>,
    S::Error: PolicyError,
    C: Classify<S::Response, S::Error>,
    K: TryClone<R>,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().race.poll(cx)
    }
}

impl<S, R, C, K> fmt::Debug for HedgeFuture<S, R, C, K>
where
    S: Service<R>,
    S::Error: PolicyError,
    C: Classify<S::Response, S::Error>,
    K: TryClone<R>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeFuture").finish_non_exhaustive()
    }
}
