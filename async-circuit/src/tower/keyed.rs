use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::task::{Context, Poll};

use async_policy::{ByError, Classify, PolicyError};
use tower_layer::Layer;
use tower_service::Service;

use super::{CircuitBreakerFuture, Handle};
use crate::CircuitBreakers;

/// [`CircuitBreakers`] as a tower layer: each request goes through the breaker of its key. All services it makes share them.
///
/// ```
/// use async_circuit::{CircuitBreaker, CircuitBreakers, Failure, KeyedCircuitBreakerLayer};
/// use std::{num::NonZeroUsize, sync::Arc};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// struct Request { host: String }
///
/// let max = NonZeroUsize::new(1000).unwrap();
/// let hosts: Arc<CircuitBreakers<String>> = Arc::new(CircuitBreaker::builder().build_keyed(max).unwrap());
/// let service = ServiceBuilder::new()
///     .layer(KeyedCircuitBreakerLayer::new(hosts.clone(), |request: &Request| request.host.clone()))
///     .map_err(Failure::Operation)
///     .service(service_fn(async |_: Request| Ok::<_, std::io::Error>("quote")));
/// assert_eq!(service.oneshot(Request { host: "quotes".into() }).await.unwrap(), "quote");
/// assert!(hosts.find("quotes").is_some());
/// # }
/// ```
#[derive(Debug)]
pub struct KeyedCircuitBreakerLayer<K, F, S = RandomState, C = ByError> {
    breakers: Arc<CircuitBreakers<K, S>>,
    key_of: F,
    classifier: C,
}

impl<K, F, S> KeyedCircuitBreakerLayer<K, F, S> {
    /// Puts the breaker of `key_of(&request)` round each call; what counts as a failure is what the error's own
    /// [`verdict`](PolicyError::verdict) says.
    #[must_use]
    pub const fn new(breakers: Arc<CircuitBreakers<K, S>>, key_of: F) -> Self {
        Self { breakers, key_of, classifier: ByError }
    }
}

impl<K, F, S, C> KeyedCircuitBreakerLayer<K, F, S, C> {
    /// What an answer means: any `Fn(Result<&Response, &Error>) -> Verdict` that is `Clone`.
    #[must_use]
    pub fn with_classifier<D>(self, classifier: D) -> KeyedCircuitBreakerLayer<K, F, S, D> {
        KeyedCircuitBreakerLayer { breakers: self.breakers, key_of: self.key_of, classifier }
    }
}

impl<K, F: Clone, S, C: Clone> Clone for KeyedCircuitBreakerLayer<K, F, S, C> {
    fn clone(&self) -> Self {
        Self {
            breakers: Arc::clone(&self.breakers),
            key_of: self.key_of.clone(),
            classifier: self.classifier.clone(),
        }
    }
}

impl<I, K, F: Clone, S, C: Clone> Layer<I> for KeyedCircuitBreakerLayer<K, F, S, C> {
    type Service = KeyedCircuitBreakerService<I, K, F, S, C>;

    fn layer(&self, inner: I) -> Self::Service {
        KeyedCircuitBreakerService { inner, layer: self.clone() }
    }
}

/// [`CircuitBreakers`] round a tower service.
///
/// Which breaker is asked is not known before the request is there, so `poll_ready` is the inner service's. A refusal
/// comes out of the future of `call`; a clone then takes the place of the inner service, so that what that had reserved (a
/// limit's permit, say) is free at once.
#[derive(Debug)]
pub struct KeyedCircuitBreakerService<I, K, F, S = RandomState, C = ByError> {
    inner: I,
    layer: KeyedCircuitBreakerLayer<K, F, S, C>,
}

impl<I: Clone, K, F: Clone, S, C: Clone> Clone for KeyedCircuitBreakerService<I, K, F, S, C> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<I, R, K, F, S, C> Service<R> for KeyedCircuitBreakerService<I, K, F, S, C>
where
    I: Service<R> + Clone,
    I::Error: PolicyError,
    K: Hash + Eq,
    F: Fn(&R) -> K,
    S: BuildHasher,
    C: Classify<I::Response, I::Error> + Clone,
{
    type Response = I::Response;
    type Error = I::Error;
    type Future = CircuitBreakerFuture<I::Future, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let breaker = self.layer.breakers.get_owned((self.layer.key_of)(&request));
        CircuitBreakerFuture::start(
            Handle::Shared(breaker),
            &mut self.inner,
            request,
            self.layer.classifier.clone(),
        )
    }
}
