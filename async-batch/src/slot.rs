use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_policy::Deadline;
use tokio::time::Instant;

use crate::detail::Attempts;
use crate::error::contained;
use crate::work::Item;
use crate::{ItemError, Panicked};

/// A place for one item after another, with a box and a waker that stay.
#[derive(Debug)]
pub struct Slot<F> {
    pub(crate) future: Pin<Box<Option<F>>>,
    pub(crate) index: usize,
    pub(crate) attempts: Attempts,
    /// The deadline in force inside.
    pub(crate) until: Option<Instant>,
    /// What it was asked to stop for.
    pub(crate) ending: Option<Ending>,
    pub(crate) waker: Waker,
}

/// Why an item is ended from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    Cancelled,
    TimedOut(Duration),
}

/// What became of the item in a slot; `None` as long as nothing has.
pub(crate) type Ended<T, E> = Option<Result<T, ItemError<E>>>;

impl<F> Slot<F> {
    pub(crate) fn new(waker: Waker) -> Self {
        Self {
            future: Box::pin(None),
            index: 0,
            attempts: Attempts::default(),
            until: None,
            ending: None,
            waker,
        }
    }
}

/// An item that panics as it is dropped with its gather costs nobody else anything.
impl<F> Drop for Slot<F> {
    fn drop(&mut self) {
        if self.future.is_some() {
            contained(|| self.future.set(None));
        }
    }
}

impl<F, T, E> Slot<F>
where
    F: Item<Output = Result<T, ItemError<E>>>,
{
    /// Drops the item, or if it runs elsewhere asks it to end and waits for that.
    pub(crate) fn stop(&mut self, ending: Ending) -> Ended<T, E> {
        self.ending.get_or_insert(ending);
        self.guarded(|future, cx| match future.as_mut().as_pin_mut().map(Item::stop) {
            None => None,
            Some(true) => step(future, cx),
            Some(false) => {
                future.set(None);
                Some(Err(ItemError::Cancelled))
            }
        })
    }

    /// Runs under the item's deadline. A panic of the item, in a poll or in its drop, is its result.
    #[inline]
    pub(crate) fn guarded(
        &mut self,
        run: impl FnOnce(&mut Pin<Box<Option<F>>>, &mut Context<'_>) -> Ended<T, E>,
    ) -> Ended<T, E> {
        let Self { future, waker, until, .. } = self;
        let ran = catch_unwind(AssertUnwindSafe(|| under(*until, waker, |cx| run(future, cx))));
        ran.unwrap_or_else(|payload| Some(Err(self.panicked(payload))))
    }

    #[cold]
    pub(crate) fn panicked(&mut self, payload: Box<dyn Any + Send>) -> ItemError<E> {
        // The slot is empty even if this drop panics too.
        contained(|| self.future.set(None));
        ItemError::Panicked(Panicked::from_payload(payload))
    }
}

/// Polls the item in a slot, and empties the slot when it ends.
#[inline]
pub(crate) fn step<F, T, E>(future: &mut Pin<Box<Option<F>>>, cx: &mut Context<'_>) -> Ended<T, E>
where
    F: Future<Output = Result<T, ItemError<E>>>,
{
    match future.as_mut().as_pin_mut()?.poll(cx) {
        Poll::Pending => None,
        Poll::Ready(result) => {
            future.set(None);
            Some(result)
        }
    }
}

/// Runs `run` with the slot's waker, and with the slot's deadline in force.
#[inline]
pub(crate) fn under<R>(
    until: Option<Instant>,
    waker: &Waker,
    run: impl FnOnce(&mut Context<'_>) -> Option<R>,
) -> Option<R> {
    let mut cx = Context::from_waker(waker);
    let Some(until) = until else { return run(&mut cx) };
    let mut run = Some(run);
    let scoped = poll_fn(|cx| Poll::Ready(run.take().and_then(|run| run(cx))));
    match pin!(Deadline::at(until).scope(scoped)).poll(&mut cx) {
        Poll::Ready(ended) => ended,
        Poll::Pending => None,
    }
}
