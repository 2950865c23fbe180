//! The tower forms: what they share, and one file for each.

use std::task::{Context, Poll, ready};

use async_policy::{Classify, PolicyError, Verdict};
use tower_service::Service;

use crate::call::Attempts;

mod hedge;
mod retry;

pub use hedge::{HedgeFuture, HedgeLayer, HedgeService};
pub use retry::{RetryFuture, RetryLayer, RetryService};

/// How a [`RetryService`] or a [`HedgeService`] repeats a request: any `Fn(&R) -> Option<R>` is one.
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

/// The attempts of a request.
pub(crate) struct Requests<S, R, C, K> {
    /// Polled ready before each call of it.
    pub(crate) service: S,
    /// The request of the next attempt.
    pub(crate) again: Option<R>,
    pub(crate) classifier: C,
    pub(crate) cloner: K,
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

    fn poll_start(&mut self, cx: &mut Context<'_>, last: bool) -> Poll<Result<S::Future, S::Error>> {
        ready!(self.service.poll_ready(cx))?;
        let request = self.again.take().expect("another attempt only where there is a request");
        if !last {
            self.again = self.cloner.try_clone(&request);
        }
        Poll::Ready(Ok(self.service.call(request)))
    }

    fn classify(&self, answer: Result<&S::Response, &S::Error>) -> Option<Verdict> {
        self.classifier.classify(answer)
    }

    fn is_repeatable(&self) -> bool {
        self.again.is_some()
    }
}
