use std::task::{Context, Poll};

/// Where the items come from.
pub trait Source {
    /// One item.
    type Item;

    #[doc(hidden)]
    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::Item>>;

    #[doc(hidden)]
    fn size_hint(&self) -> (usize, Option<usize>);
}

/// The items of an iterator.
#[derive(Clone, Debug)]
pub struct Items<I>(I);

impl<I: Iterator> Items<I> {
    pub(crate) fn new(items: impl IntoIterator<IntoIter = I>) -> Self {
        Self(items.into_iter())
    }
}

impl<I: Iterator> Source for Items<I> {
    type Item = I::Item;

    fn poll_item(&mut self, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        Poll::Ready(self.0.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}
