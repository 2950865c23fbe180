use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use crate::{PolicyError, Timeout, TimeoutFuture};

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
        TimeoutService { inner, timeout: self.timeout.clone() }
    }
}

/// [`Timeout`] round a tower service.
///
/// The error type stays the service's own, which must be able to carry a time-out: lift a foreign one below with
/// tower's `map_err(Failure::Operation)`. `poll_ready` is the inner service's, and is not timed.
#[derive(Clone, Debug)]
pub struct TimeoutService<S> {
    inner: S,
    timeout: Timeout,
}

impl<S, R> Service<R> for TimeoutService<S>
where
    S: Service<R>,
    S::Error: PolicyError,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = TimeoutFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        TimeoutFuture::new(self.inner.call(request), self.timeout.clone())
    }
}
