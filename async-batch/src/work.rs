use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::ItemError;

/// How an item becomes a future.
pub trait Work<I> {
    /// What an item yields.
    type Value;
    /// What an item fails with.
    type Error;
    #[doc(hidden)]
    type Future: Item<Output = Result<Self::Value, ItemError<Self::Error>>>;

    #[doc(hidden)]
    fn start(&mut self, item: I) -> Self::Future;
}

/// One item under way.
pub trait Item: Future {
    /// Asks it to stop. `false`: dropping it is enough; `true`: it runs elsewhere, and is to be polled to its end.
    #[doc(hidden)]
    fn stop(self: Pin<&mut Self>) -> bool;
}

/// Runs each item in the caller's task.
#[derive(Clone)]
pub struct InTask<F>(pub(crate) F);

impl<F> fmt::Debug for InTask<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InTask").finish_non_exhaustive()
    }
}

impl<I, F, Fut, T, E> Work<I> for InTask<F>
where
    F: FnMut(I) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    type Value = T;
    type Error = E;
    type Future = InTaskFuture<Fut>;

    fn start(&mut self, item: I) -> Self::Future {
        InTaskFuture { future: (self.0)(item) }
    }
}

pin_project! {
    /// One item in the caller's task.
    #[derive(Debug)]
    pub struct InTaskFuture<Fut> {
        #[pin]
        future: Fut,
    }
}

impl<Fut, T, E> Future for InTaskFuture<Fut>
where
    Fut: Future<Output = Result<T, E>>,
{
    type Output = Result<T, ItemError<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx).map_err(ItemError::Operation)
    }
}

impl<Fut, T, E> Item for InTaskFuture<Fut>
where
    Fut: Future<Output = Result<T, E>>,
{
    fn stop(self: Pin<&mut Self>) -> bool {
        false
    }
}
