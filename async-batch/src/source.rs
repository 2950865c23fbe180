use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

/// Where items come from: any iterator, or a stream by way of [`streamed`].
pub trait IntoSource {
    /// One item.
    type Item;
    #[doc(hidden)]
    type Source: Source<Item = Self::Item>;

    #[doc(hidden)]
    fn into_source(self) -> Self::Source;
}

/// Items one after the other, possibly with waits between.
#[doc(hidden)]
pub trait Source {
    type Item;

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::Item>>;

    fn size_hint(&self) -> (usize, Option<usize>);
}

/// The items of an iterator.
#[derive(Clone, Debug)]
pub struct Items<I>(I);

impl<I: Iterator> Source for Items<I> {
    type Item = I::Item;

    fn poll_item(&mut self, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        Poll::Ready(self.0.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<I: IntoIterator> IntoSource for I {
    type Item = I::Item;
    type Source = Items<I::IntoIter>;

    fn into_source(self) -> Self::Source {
        Items(self.into_iter())
    }
}

/// The items of a stream: see [`streamed`].
#[derive(Clone, Debug)]
pub struct Streamed<S>(S);

/// Takes the items of a gather from a stream, which is polled only when there is room for one more.
///
/// A stream that is not `Unpin` is pinned first (`std::pin::pin!`, `Box::pin`). Passed by `&mut`, it keeps the items
/// that were not started.
///
/// ```
/// use async_batch::{Gather, streamed};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// # struct Numbers(u32);
/// # impl futures_core::Stream for Numbers {
/// #     type Item = u32;
/// #     fn poll_next(mut self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<u32>> {
/// #         self.0 += 1;
/// #         std::task::Poll::Ready((self.0 < 4).then_some(self.0))
/// #     }
/// # }
/// # let numbers = Numbers(0);
/// let outcomes = Gather::up_to::<2>().run(streamed(numbers), async |n| Ok::<_, ()>(n * 10)).await;
/// assert_eq!(outcomes.values(), [10, 20, 30]);
/// # }
/// ```
pub const fn streamed<S: Stream + Unpin>(stream: S) -> Streamed<S> {
    Streamed(stream)
}

impl<S: Stream + Unpin> Source for Streamed<S> {
    type Item = S::Item;

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        Pin::new(&mut self.0).poll_next(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<S: Stream + Unpin> IntoSource for Streamed<S> {
    type Item = S::Item;
    type Source = Self;

    fn into_source(self) -> Self {
        self
    }
}
