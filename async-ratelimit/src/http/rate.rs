use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_policy::Rejection;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::answer::Refused;
use super::extract::KeyExtractor;
use super::fields;
use crate::{KeyedRateLimit, RateSnapshot};

/// Whose request it is, as a [`KeyExtractor`] found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey(u64);

/// A rate limit per client, in front of an HTTP service: as a layer of axum, or of any tower service that takes [`http`] requests.
///
/// Who is above the limit gets `429 Too Many Requests` with `Retry-After` in whole seconds, rounded up. Every answer carries the
/// fields `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers-10, under the limit's name (`default` without one). What such
/// a field cannot carry, which is quotes, backslashes and all but printable ASCII, is left out of the name.
///
/// The limit is asked in `call` and never waits: a server that lets its clients wait holds their connections. Requests whose client
/// cannot be told share one limit.
#[derive(Clone, Debug)]
pub struct HttpRateLimitLayer<X> {
    limit: KeyedRateLimit<RequestKey>,
    extractor: X,
}

impl<X: KeyExtractor> HttpRateLimitLayer<X> {
    /// Limits the requests of each client that `extractor` tells apart.
    #[must_use]
    pub const fn new(limit: KeyedRateLimit<RequestKey>, extractor: X) -> Self {
        Self { limit, extractor }
    }
}

impl<S, X: KeyExtractor> Layer<S> for HttpRateLimitLayer<X> {
    type Service = HttpRateLimitService<S, X>;

    fn layer(&self, inner: S) -> Self::Service {
        HttpRateLimitService { inner, limit: self.limit.clone(), extractor: self.extractor.clone() }
    }
}

/// A service behind a rate limit per client: see [`HttpRateLimitLayer`].
#[derive(Clone, Debug)]
pub struct HttpRateLimitService<S, X> {
    inner: S,
    limit: KeyedRateLimit<RequestKey>,
    extractor: X,
}

impl<S, X, B, C> Service<Request<B>> for HttpRateLimitService<S, X>
where
    S: Service<Request<B>, Response = Response<C>> + Clone,
    X: KeyExtractor,
    C: Default,
{
    type Response = Response<C>;
    type Error = S::Error;
    type Future = HttpRateLimitFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // By the limit's own seed, so that a client is the same in front of all services that share the limit.
        let mut key = self.limit.seed().build_hasher();
        let known = self.extractor.extract(&request, &mut key);
        let key = if known { RequestKey(key.finish()) } else { RequestKey(0) };
        let key = self.limit.key(&key);
        let taken = key.try_acquire();
        let state = match taken {
            Ok(()) => State::Running { future: self.inner.call(request) },
            Err(rejection) => {
                // What the inner service has reserved to be ready is for others.
                self.inner = self.inner.clone();
                State::Refused { rejection: Some(rejection) }
            }
        };
        HttpRateLimitFuture { state, limit: self.limit.clone(), snapshot: key.snapshot() }
    }
}

pin_project! {
    /// A response behind a rate limit per client.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the inner response; the cell stays taken.
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct HttpRateLimitFuture<F> {
        #[pin]
        state: State<F>,
        limit: KeyedRateLimit<RequestKey>,
        snapshot: RateSnapshot,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Running { #[pin] future: F },
        Refused { rejection: Option<Rejection> },
    }
}

impl<F, C, E> Future for HttpRateLimitFuture<F>
where
    F: Future<Output = Result<Response<C>, E>>,
    C: Default,
{
    type Output = Result<Response<C>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.state.project() {
            StateProj::Running { future } => ready!(future.poll(cx))?,
            StateProj::Refused { rejection } => {
                let rejection = rejection.take().expect("not polled after it was ready");
                Refused::new(&rejection, Some(Duration::ZERO)).answer()
            }
        };
        fields::rate_limit_fields(response.headers_mut(), this.limit.name(), this.snapshot);
        Poll::Ready(Ok(response))
    }
}
