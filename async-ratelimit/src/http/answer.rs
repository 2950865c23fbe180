use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_policy::{Failure, PolicyKind, Rejection};
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
/// A refusal that knows when to come again says so in `Retry-After`: whole seconds, rounded up.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use async_ratelimit::http::AnswerLayer;
/// use async_ratelimit::{ConcurrencyLimit, ConcurrencyLimitLayer, Failure};
/// use http::{Request, Response};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// let bulkhead = ConcurrencyLimit::builder(1).build().unwrap();
/// let _full = bulkhead.try_acquire().unwrap();
/// let service = ServiceBuilder::new()
///     .layer(AnswerLayer)
///     .layer(ConcurrencyLimitLayer::new(bulkhead.clone()))
///     .map_err(Failure::Operation)
///     .service(service_fn(async |_: Request<String>| Ok::<_, std::convert::Infallible>(Response::new(String::new()))));
/// let Ok(answer) = service.oneshot(Request::new(String::new())).await;
/// assert_eq!(answer.status(), 503);
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct AnswerLayer;

impl<S> Layer<S> for AnswerLayer {
    type Service = AnswerService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AnswerService { inner, unready: None }
    }
}

/// A service that answers where policies refuse: see [`AnswerLayer`].
#[derive(Debug)]
pub struct AnswerService<S> {
    inner: S,
    /// What `poll_ready` was refused with; the call answers with it.
    unready: Option<StatusCode>,
}

impl<S: Clone> Clone for AnswerService<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), unready: None }
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
        match ready!(self.inner.poll_ready(cx)) {
            Ok(()) => {}
            Err(Failure::Operation(error)) => return Poll::Ready(Err(error)),
            Err(Failure::Rejected(rejection)) => self.unready = Some(status(&rejection)),
            Err(Failure::TimedOut(_)) => self.unready = Some(StatusCode::GATEWAY_TIMEOUT),
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let state = match self.unready.take() {
            Some(status) => State::Unready { status },
            None => State::Running { future: self.inner.call(request) },
        };
        AnswerFuture { state }
    }
}

fn status(rejection: &Rejection) -> StatusCode {
    match rejection.policy() {
        PolicyKind::RateLimit => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn answer<C: Default>(status: StatusCode) -> Response<C> {
    let mut response = Response::new(C::default());
    *response.status_mut() = status;
    response
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
        Running { #[pin] future: F },
        Unready { status: StatusCode },
    }
}

impl<F, C, E> Future for AnswerFuture<F>
where
    F: Future<Output = Result<Response<C>, Failure<E>>>,
    C: Default,
{
    type Output = Result<Response<C>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match self.project().state.project() {
            StateProj::Running { future } => ready!(future.poll(cx)),
            StateProj::Unready { status } => return Poll::Ready(Ok(answer(*status))),
        };
        Poll::Ready(match result {
            Ok(response) => Ok(response),
            Err(Failure::Operation(error)) => Err(error),
            Err(Failure::TimedOut(_)) => Ok(answer(StatusCode::GATEWAY_TIMEOUT)),
            Err(Failure::Rejected(rejection)) => {
                let mut response = answer(status(&rejection));
                if let Some(wait) = rejection.retry_after() {
                    fields::retry_after(response.headers_mut(), wait);
                }
                Ok(response)
            }
        })
    }
}
