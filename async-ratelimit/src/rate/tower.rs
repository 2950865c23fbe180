use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_policy::{PolicyError, Rejection};
use pin_project_lite::pin_project;
use tokio::task::coop::poll_proceed;
use tower_layer::Layer;
use tower_service::Service;

use super::wait::{Desk, Wait};
use super::{RateLimit, Shared};

/// [`RateLimit`] as a tower layer: all services it makes share the one limit.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    limit: RateLimit,
}

impl RateLimitLayer {
    /// Puts `limit` in front of each call of a service.
    #[must_use]
    pub const fn new(limit: RateLimit) -> Self {
        Self { limit }
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimitService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimitService::new(inner, self.limit.clone())
    }
}

/// [`RateLimit`] in front of a tower service.
///
/// `poll_ready` is the inner service's. The cell is taken in the response future, waiting for it where the queue allows: a cell taken by
/// `poll_ready` could not be given back.
///
/// Who waits for a cell holds nothing of the inner service. Where the cell is there at once, the service that was polled ready is called.
/// Where it is not, that service is dropped, and what it had reserved (a permit of a concurrency limit, a place in a buffer) is given
/// back: at once with a refusal, and also for the length of a wait. Once the cell is granted, a clone of the service is polled ready and
/// called. That second wait is the inner service's own, under the deadline in force; the cell is spent by then, and an error is the answer of the call.
///
/// (A thread keeps a handle of the limit whose cell it took last: that limit's memory is free when the thread ends or takes another's.)
#[derive(Clone, Debug)]
pub struct RateLimitService<S> {
    inner: S,
    limit: RateLimit,
}

impl<S> RateLimitService<S> {
    /// Puts `limit` in front of `inner`.
    pub const fn new(inner: S, limit: RateLimit) -> Self {
        Self { inner, limit }
    }
}

thread_local! {
    /// The handle of the last response on this thread that was done with it. A response needs its limit only until it has a cell, and to
    /// count one handle more and one less costs half as much again as the cell: two atomic operations, where all threads meet.
    /// So a thread keeps the limit that it used last.
    static SPARE: Cell<Option<Arc<Shared>>> = const { Cell::new(None) };
}

/// Another handle of a limit. Where the thread is about to end, the spare one may be gone.
#[inline]
fn handle(limit: &Arc<Shared>) -> Arc<Shared> {
    match SPARE.try_with(Cell::take) {
        Ok(Some(spare)) if Arc::ptr_eq(&spare, limit) => spare,
        _ => Arc::clone(limit),
    }
}

impl<S, R> Service<R> for RateLimitService<S>
where
    S: Service<R> + Clone,
    S::Error: PolicyError,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = RateLimitFuture<S, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // The one that was polled ready is the one to call.
        let clone = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, clone);
        let limit = handle(&self.limit.shared);
        RateLimitFuture { state: State::Begins { limit, ready: Some((ready, request)) } }
    }
}

pin_project! {
    /// A response under a [`RateLimit`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives up its place in the queue or what it has reserved inside, or drops the inner response; a cell once taken stays taken.
    #[must_use = "futures do nothing unless polled"]
    pub struct RateLimitFuture<S: Service<R>, R> {
        #[pin]
        state: State<S, R>,
    }
}

pin_project! {
    /// Waits for its cell, and then for its service.
    #[project = QueuedProj]
    struct Queued {
        #[pin]
        wait: Wait<Arc<Shared>>,
        // It has its cell.
        granted: bool,
        // Its service is the one that was polled ready before the call.
        holds: bool,
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateWas]
    enum State<S: Service<R>, R> {
        Begins { limit: Arc<Shared>, ready: Option<(S, R)> },
        // Boxed, because only who waits needs its timer: the future is small where it is made and moved.
        Waits { queued: Pin<Box<Queued>>, ready: Option<(S, R)> },
        Runs { #[pin] future: S::Future },
    }
}

impl<S: Service<R>, R> std::fmt::Debug for RateLimitFuture<S, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimitFuture").finish_non_exhaustive()
    }
}

const DONE: &str = "not polled after it was ready";

/// What the service has reserved is for others while this one waits. Only once it has its place: nobody gets before it by that.
#[cold]
fn give_back<S: Clone, R>(ready: &mut Option<(S, R)>) {
    if let Some((service, _)) = ready {
        *service = service.clone();
    }
}

/// What the service has reserved to be ready is for others, at once.
fn refused<T, E: PolicyError>(ready: &mut Option<T>, rejection: Rejection) -> E {
    *ready = None;
    E::from_rejection(rejection)
}

impl<S, R> Future for RateLimitFuture<S, R>
where
    S: Service<R> + Clone,
    S::Error: PolicyError,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let ready = match this.state.as_mut().project() {
                StateProj::Runs { future } => return future.poll(cx),
                StateProj::Begins { limit, ready } => {
                    // A loop whose waits are never waits must still let others on its thread have their turn.
                    ready!(poll_proceed(cx)).made_progress();
                    if !limit.take_now(1) {
                        if limit.queue.max_len > 0 {
                            let wait = Wait::new(Arc::clone(limit), 1);
                            let queued = Box::pin(Queued { wait, granted: false, holds: true });
                            let ready = ready.take();
                            this.state.set(State::Waits { queued, ready });
                            continue;
                        }
                        if let Err(rejection) = limit.try_now(1) {
                            return Poll::Ready(Err(refused(ready, rejection)));
                        }
                    }
                    ready
                }
                // Refusals are made here, not in a function of their own: if one returned them, each result of a call would pass through
                // memory.
                StateProj::Waits { queued, ready } => {
                    let QueuedProj { wait, granted, holds } = queued.as_mut().project();
                    if !*granted {
                        match wait.poll(cx) {
                            Poll::Ready(Ok(())) => *granted = true,
                            Poll::Ready(Err(rejection)) => {
                                return Poll::Ready(Err(refused(ready, rejection)));
                            }
                            Poll::Pending => {
                                if std::mem::take(holds) {
                                    give_back(ready);
                                }
                                return Poll::Pending;
                            }
                        }
                    }
                    if !*holds {
                        let (service, _) = ready.as_mut().expect(DONE);
                        if let Err(error) = ready!(service.poll_ready(cx)) {
                            *ready = None;
                            return Poll::Ready(Err(error));
                        }
                    }
                    ready
                }
            };
            let (mut service, request) = ready.take().expect(DONE);
            let future = service.call(request);
            if let StateWas::Begins { limit, .. } =
                this.state.as_mut().project_replace(State::Runs { future })
            {
                _ = SPARE.try_with(|spare| spare.set(Some(limit)));
            }
        }
    }
}
