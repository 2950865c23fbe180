use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_policy::{PolicyError, Reason, Rejection};
use pin_project_lite::pin_project;
use tokio::task::coop::poll_proceed;
use tokio::time::{Sleep, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

use super::{ConcurrencyLimit, OwnedPermit, Shared, Ticket};

/// [`ConcurrencyLimit`] as a tower layer: all services it makes share the one limit.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimitLayer {
    limit: ConcurrencyLimit,
}

impl ConcurrencyLimitLayer {
    /// Puts `limit` in front of each call of a service.
    #[must_use]
    pub const fn new(limit: ConcurrencyLimit) -> Self {
        Self { limit }
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimitService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ConcurrencyLimitService::new(inner, self.limit.clone())
    }
}

/// [`ConcurrencyLimit`] in front of a tower service.
///
/// `poll_ready` reserves the permit, waiting for it where the queue allows, so that backpressure reaches the caller; the
/// response future holds it. It waits no longer than the queue allows, and at most until the [deadline](async_policy::Deadline); the family's
/// `TimeoutLayer` outside sets one for `poll_ready` too. A refusal is the answer of the call, never of `poll_ready`, and does not reach the inner
/// service; asked again before the call, `poll_ready` looks whether there is room now.
///
/// The permit stays reserved until the service is called or dropped. So it is held in vain by a layer outside that makes its service ready and then
/// neither calls nor drops it, because it waits first or refuses: put such a layer inside this one. The layers of this crate may be outside: they drop the
/// ready service when they refuse, and [`RateLimitLayer`](crate::RateLimitLayer) also while it waits for a cell.
#[derive(Debug)]
pub struct ConcurrencyLimitService<S> {
    inner: S,
    limit: ConcurrencyLimit,
    reserved: Reserved,
}

/// What `poll_ready` has come to.
#[derive(Debug)]
enum Reserved {
    Nothing,
    /// The timer is boxed because a service is not pinned; only who waits pays for it.
    Waiting(Ticket<Arc<Shared>>, Option<(Pin<Box<Sleep>>, Reason)>),
    Permit(OwnedPermit),
    Refused(Rejection),
}

impl<S> ConcurrencyLimitService<S> {
    /// Puts `limit` in front of `inner`.
    pub const fn new(inner: S, limit: ConcurrencyLimit) -> Self {
        Self { inner, limit, reserved: Reserved::Nothing }
    }
}

impl<S: Clone> Clone for ConcurrencyLimitService<S> {
    /// What the original has reserved stays its own.
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.limit.clone())
    }
}

impl<S, R> Service<R> for ConcurrencyLimitService<S>
where
    S: Service<R>,
    S::Error: PolicyError,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ConcurrencyLimitFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let shared = &self.limit.shared;
        let permit = || OwnedPermit { shared: Arc::clone(shared), weight: 1 };
        if matches!(self.reserved, Reserved::Refused(_)) && shared.semaphore.try_acquire(1) {
            // Refused in an earlier poll, and since then room has come free.
            self.reserved = Reserved::Permit(permit());
        }
        loop {
            self.reserved = match &mut self.reserved {
                Reserved::Nothing => {
                    // A loop whose calls never wait must still let others on its thread have their turn.
                    ready!(poll_proceed(cx)).made_progress();
                    if shared.semaphore.try_acquire(1) {
                        Reserved::Permit(permit())
                    } else {
                        let timer = |(at, reason)| (Box::pin(sleep_until(at)), reason);
                        Reserved::Waiting(
                            Ticket::new(Arc::clone(shared), 1),
                            shared.queue.patience().map(timer),
                        )
                    }
                }
                Reserved::Waiting(ticket, timer) => {
                    let patience = timer.as_mut().map(|(timer, reason)| (timer.as_mut(), *reason));
                    match ready!(ticket.poll(cx, patience)) {
                        Ok(since) => {
                            let permit = permit();
                            shared.waited(since);
                            Reserved::Permit(permit)
                        }
                        Err(rejection) => Reserved::Refused(rejection),
                    }
                }
                Reserved::Permit(_) => return self.inner.poll_ready(cx),
                Reserved::Refused(_) => return Poll::Ready(Ok(())),
            }
        }
    }

    /// # Panics
    ///
    /// If `poll_ready` has not been ready.
    fn call(&mut self, request: R) -> Self::Future {
        let state = match std::mem::replace(&mut self.reserved, Reserved::Nothing) {
            Reserved::Permit(permit) => State::Running { future: self.inner.call(request), permit },
            Reserved::Refused(rejection) => State::Refused { rejection: Some(rejection) },
            Reserved::Nothing | Reserved::Waiting(..) => panic!("call without poll_ready having been ready"),
        };
        ConcurrencyLimitFuture { state }
    }
}

pin_project! {
    /// A response under a [`ConcurrencyLimit`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the inner response and gives the permit back.
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct ConcurrencyLimitFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Running { #[pin] future: F, permit: OwnedPermit },
        Refused { rejection: Option<Rejection> },
    }
}

impl<F, T, E> Future for ConcurrencyLimitFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: PolicyError,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Running { future, .. } => future.poll(cx),
            StateProj::Refused { rejection } => {
                let rejection = rejection.take().expect("not polled after it was ready");
                Poll::Ready(Err(E::from_rejection(rejection)))
            }
        }
    }
}
