use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_policy::{Failure, PolicyError, PolicyKind, Reason, Rejection};
use http::{Response, StatusCode};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::fields;

/// Turns what policies inside refuse into HTTP answers, so that a stack of them fits where no error may come out, as in axum.
///
/// | inside | answer |
/// |---|---|
/// | a rate limit refuses | `429 Too Many Requests` |
/// | a full bulkhead, an open circuit or any other policy refuses | `503 Service Unavailable` |
/// | a time-out expires | `504 Gateway Timeout` |
/// | the service's own error | stays the error |
///
/// A refusal that knows when to come again says so in `Retry-After`: whole seconds, rounded up. A full bulkhead does not know;
/// [`with_retry_after`](Self::with_retry_after) says it for all that do not.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use async_ratelimit::http::AnswerLayer;
/// use async_ratelimit::{ConcurrencyLimit, ConcurrencyLimitLayer, Failure};
/// use http::{Request, Response};
/// use std::time::Duration;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// let bulkhead = ConcurrencyLimit::builder(1).build().unwrap();
/// let _full = bulkhead.try_acquire().unwrap();
/// let service = ServiceBuilder::new()
///     .layer(AnswerLayer::new().with_retry_after(Duration::from_secs(2)))
///     .layer(ConcurrencyLimitLayer::new(bulkhead.clone()))
///     .map_err(Failure::Operation)
///     .service(service_fn(async |_: Request<String>| Ok::<_, std::convert::Infallible>(Response::new(String::new()))));
/// let Ok(answer) = service.oneshot(Request::new(String::new())).await;
/// assert_eq!(answer.status(), 503);
/// assert_eq!(answer.headers()["retry-after"], "2");
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct AnswerLayer {
    retry_after: Option<Duration>,
}

impl AnswerLayer {
    /// Answers as above, with `Retry-After` where the refusal knows it.
    #[must_use]
    pub const fn new() -> Self {
        Self { retry_after: None }
    }

    /// What refusals that do not know when to come again say in `Retry-After`: rounded up to whole seconds, at least one. Not those of
    /// more than can be granted at all ([`Reason::ExceedsCapacity`]).
    #[must_use]
    pub const fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}

impl<S> Layer<S> for AnswerLayer {
    type Service = AnswerService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AnswerService { inner, retry_after: self.retry_after, unready: None }
    }
}

/// The answer of [`AnswerLayer`], for a handler that calls policies itself: `429` or `503` for a refusal, `504` for a time-out, `None` for
/// an error of the operation's own.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use async_ratelimit::http::answer;
/// use async_ratelimit::{Failure, Policy, Quota, RateLimit};
/// use http::{Response, StatusCode};
///
/// async fn handler(limit: &RateLimit) -> Response<String> {
///     let quote = limit.call(async || Err::<String, _>("no such symbol")).await;
///     quote.map_or_else(|failure| not_found_or(&failure), Response::new)
/// }
///
/// fn not_found_or(failure: &Failure<&str>) -> Response<String> {
///     answer(failure).unwrap_or_else(|| {
///         let mut response = Response::new(failure.to_string());
///         *response.status_mut() = StatusCode::NOT_FOUND;
///         response
///     })
/// }
///
/// let limit = RateLimit::builder(Quota::per_minute(1)).build().unwrap();
/// assert_eq!(handler(&limit).await.status(), 404);
/// let refused = handler(&limit).await;
/// assert_eq!(refused.status(), 429);
/// assert_eq!(refused.headers()["retry-after"], "60");
/// # }
/// ```
///
/// The body is the default one; `answer(…).map(|answer| answer.map(|()| body))` gives it another. The fields of a rate limit are added by
/// [`rate_limit_fields`](super::rate_limit_fields). What [`try_acquire`](crate::RateLimit::try_acquire) refuses is lifted into a failure first:
/// `Failure::<Infallible>::from(rejection)`.
pub fn answer<C: Default>(error: &impl PolicyError) -> Option<Response<C>> {
    Refused::of(error, None).map(Refused::answer)
}

/// A service that answers where policies refuse: see [`AnswerLayer`].
#[derive(Debug)]
pub struct AnswerService<S> {
    inner: S,
    retry_after: Option<Duration>,
    /// What `poll_ready` was refused with; the call answers with it.
    unready: Option<Refused>,
}

/// What to answer with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    status: StatusCode,
    retry_after: Option<Duration>,
}

impl<S: Clone> Clone for AnswerService<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), retry_after: self.retry_after, unready: None }
    }
}

impl<S, R, C, E> Service<R> for AnswerService<S>
where
    S: Service<R, Response = Response<C>, Error = Failure<E>>,
    C: Default,
{
    type Response = Response<C>;
    type Error = E;
    type Future = AnswerFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.unready = match ready!(self.inner.poll_ready(cx)) {
            Ok(()) => None,
            Err(Failure::Operation(error)) => return Poll::Ready(Err(error)),
            Err(Failure::Rejected(rejection)) => Some(Refused::new(&rejection, self.retry_after)),
            Err(Failure::TimedOut(_)) => Some(Refused::TIMED_OUT),
        };
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let state = match self.unready.take() {
            Some(refused) => State::Unready { refused },
            None => State::Running { future: self.inner.call(request), retry_after: self.retry_after },
        };
        AnswerFuture { state }
    }
}

impl Refused {
    const TIMED_OUT: Self = Self { status: StatusCode::GATEWAY_TIMEOUT, retry_after: None };

    fn of(error: &impl PolicyError, otherwise: Option<Duration>) -> Option<Self> {
        match error.rejection() {
            Some(rejection) => Some(Self::new(rejection, otherwise)),
            None => error.timed_out().map(|_| Self::TIMED_OUT),
        }
    }

    pub(super) fn new(rejection: &Rejection, otherwise: Option<Duration>) -> Self {
        let status = match rejection.policy() {
            PolicyKind::RateLimit => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let otherwise = otherwise.filter(|_| rejection.reason() != Reason::ExceedsCapacity);
        Self { status, retry_after: rejection.retry_after().or(otherwise) }
    }

    pub(super) fn answer<C: Default>(self) -> Response<C> {
        let mut response = Response::new(C::default());
        *response.status_mut() = self.status;
        if let Some(wait) = self.retry_after {
            fields::retry_after(response.headers_mut(), wait);
        }
        response
    }
}

pin_project! {
    /// A response, or the answer in its place: see [`AnswerLayer`].
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct AnswerFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Running { #[pin] future: F, retry_after: Option<Duration> },
        Unready { refused: Refused },
    }
}

impl<F, C, E> Future for AnswerFuture<F>
where
    F: Future<Output = Result<Response<C>, Failure<E>>>,
    C: Default,
{
    type Output = Result<Response<C>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (result, retry_after) = match self.project().state.project() {
            StateProj::Running { future, retry_after } => (ready!(future.poll(cx)), *retry_after),
            StateProj::Unready { refused } => return Poll::Ready(Ok(refused.answer())),
        };
        Poll::Ready(match result {
            Ok(response) => Ok(response),
            Err(Failure::Operation(error)) => Err(error),
            Err(Failure::TimedOut(_)) => Ok(Refused::TIMED_OUT.answer()),
            Err(Failure::Rejected(rejection)) => Ok(Refused::new(&rejection, retry_after).answer()),
        })
    }
}
