use std::fmt;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::task::coop;

use crate::progress::Reporter;
use crate::state::Core;
use crate::wake::{SlotWake, WakeSet};
use crate::work::Item;
use crate::{ItemError, Panicked, Settled, Source, Work};

/// Polls per unit of the task's cooperative budget. One unit costs about 6 ns and a task has 128, so a gather of ready
/// items gives way about every thousand.
const POLLS_PER_UNIT: u32 = 8;

/// Keeps up to `limit` items under way, in slots that serve one item after another: no allocation per item.
pub(crate) struct Engine<S, W>
where
    S: Source,
    W: Work<S::Item>,
{
    /// `None` once it is exhausted.
    source: Option<S>,
    work: W,
    limit: NonZeroUsize,
    core: Core,
    slots: Vec<Slot<W::Future>>,
    free: Vec<usize>,
    /// Slots to poll, last first.
    due: Vec<usize>,
    wakes: Arc<WakeSet>,
    polls: u32,
    reporter: Option<Reporter>,
}

struct Slot<F> {
    future: Pin<Box<Option<F>>>,
    index: usize,
    waker: Waker,
    wake: Arc<SlotWake>,
}

/// What became of the item in a slot.
enum Polled<T, E> {
    Empty,
    Pending,
    Settled(Result<T, ItemError<E>>),
}

impl<S, W> Engine<S, W>
where
    S: Source,
    W: Work<S::Item>,
{
    pub(crate) fn new(
        source: S,
        work: W,
        limit: NonZeroUsize,
        core: Core,
        reporter: Option<Reporter>,
    ) -> Self {
        Self {
            source: Some(source),
            work,
            limit,
            core,
            slots: Vec::new(),
            free: Vec::new(),
            due: Vec::new(),
            wakes: Arc::default(),
            polls: 0,
            reporter,
        }
    }

    pub(crate) const fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn size_hint(&self) -> (usize, Option<usize>) {
        self.source.as_ref().map_or((0, Some(0)), Source::size_hint)
    }

    /// Drives the items and hands each that ends to `sink`, as long as that returns `true`.
    ///
    /// Ready when nothing is left (`true`), or when the sink takes no more for now (`false`).
    pub(crate) fn drive(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl FnMut(Settled<W::Value, W::Error>) -> bool,
    ) -> Poll<bool> {
        loop {
            // Who is under way goes before who has not begun.
            while let Some(slot) = self.due.pop() {
                if self.spend(cx).is_pending() {
                    self.due.push(slot);
                    return Poll::Pending;
                }
                if let Some(settled) = self.advance(slot)
                    && !sink(settled)
                {
                    return Poll::Ready(false);
                }
            }
            while self.source.is_some() && self.core.may_start(self.limit) {
                ready!(self.spend(cx));
                let Some(source) = &mut self.source else { break };
                match source.poll_item(cx) {
                    Poll::Ready(Some(item)) => {
                        if let Some(settled) = self.start(item)
                            && !sink(settled)
                        {
                            return Poll::Ready(false);
                        }
                    }
                    Poll::Ready(None) => self.source = None,
                    Poll::Pending => break,
                }
            }
            if self.core.in_flight() == 0 && (self.source.is_none() || self.core.stopped().is_some()) {
                return Poll::Ready(true);
            }
            if self.due.is_empty() {
                if self.wakes.park(cx.waker()) {
                    return Poll::Pending;
                }
                self.wakes.take(&mut self.due);
                self.due.reverse();
            }
        }
    }

    /// Gives way to the rest of the task, and of the runtime, when the budget is used up: by our polls, or by what the
    /// items did in theirs.
    fn spend(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.polls += 1;
        if self.polls >= POLLS_PER_UNIT {
            ready!(coop::poll_proceed(cx)).made_progress();
            self.polls = 0;
        }
        Poll::Ready(())
    }

    fn start(&mut self, item: S::Item) -> Option<Settled<W::Value, W::Error>> {
        let index = self.core.start();
        if let Some(reporter) = &mut self.reporter {
            reporter.started();
        }
        let at = self.free.pop().unwrap_or_else(|| {
            let at = self.slots.len();
            let (waker, wake) = self.wakes.waker(at);
            self.slots.push(Slot { future: Box::pin(None), index, waker, wake });
            at
        });
        let slot = &mut self.slots[at];
        slot.index = index;
        let work = &mut self.work;
        match slot.begin(|| work.start(item)) {
            Polled::Settled(result) => Some(self.settle(at, result)),
            Polled::Empty | Polled::Pending => None,
        }
    }

    /// Polls the item in a slot, or ends it if the gather has stopped.
    fn advance(&mut self, at: usize) -> Option<Settled<W::Value, W::Error>> {
        let slot = &mut self.slots[at];
        slot.wake.clear();
        let polled = if self.core.stopped().is_some() { slot.stop() } else { slot.poll() };
        match polled {
            Polled::Settled(result) => Some(self.settle(at, result)),
            Polled::Empty | Polled::Pending => None,
        }
    }

    fn settle(
        &mut self,
        at: usize,
        result: Result<W::Value, ItemError<W::Error>>,
    ) -> Settled<W::Value, W::Error> {
        self.free.push(at);
        let cancelled = matches!(result, Err(ItemError::Cancelled));
        if let Some(reporter) = &mut self.reporter {
            if cancelled { reporter.cancelled() } else { reporter.ended(result.is_ok()) }
        }
        if cancelled {
            self.core.cancel();
        } else if self.core.settle(result.is_ok()) {
            // Each of them is looked at once more, to be ended.
            self.due = (0..self.slots.len()).rev().collect();
        }
        Settled { index: self.slots[at].index, result, detail: () }
    }
}

impl<F, T, E> Slot<F>
where
    F: Item<Output = Result<T, ItemError<E>>>,
{
    fn begin(&mut self, make: impl FnOnce() -> F) -> Polled<T, E> {
        self.guarded(|future, cx| {
            future.set(Some(make()));
            Self::step(future, cx)
        })
    }

    fn poll(&mut self) -> Polled<T, E> {
        self.guarded(Self::step)
    }

    /// Drops the item, or if it runs elsewhere asks it to end and waits for that.
    fn stop(&mut self) -> Polled<T, E> {
        self.guarded(|future, cx| match future.as_mut().as_pin_mut().map(Item::stop) {
            None => Polled::Empty,
            Some(true) => Self::step(future, cx),
            Some(false) => {
                future.set(None);
                Polled::Settled(Err(ItemError::Cancelled))
            }
        })
    }

    fn step(future: &mut Pin<Box<Option<F>>>, cx: &mut Context<'_>) -> Polled<T, E> {
        match future.as_mut().as_pin_mut().map(|item| item.poll(cx)) {
            None => Polled::Empty,
            Some(Poll::Pending) => Polled::Pending,
            Some(Poll::Ready(result)) => {
                future.set(None);
                Polled::Settled(result)
            }
        }
    }

    /// A panic of the item, in its making, its polls or its drop, is its result.
    fn guarded(
        &mut self,
        run: impl FnOnce(&mut Pin<Box<Option<F>>>, &mut Context<'_>) -> Polled<T, E>,
    ) -> Polled<T, E> {
        let Self { future, waker, .. } = self;
        let mut cx = Context::from_waker(waker);
        catch_unwind(AssertUnwindSafe(|| run(future, &mut cx))).unwrap_or_else(|payload| {
            // The slot is empty even if this drop panics too.
            let _ = catch_unwind(AssertUnwindSafe(|| future.set(None)));
            Polled::Settled(Err(ItemError::Panicked(Panicked::from_payload(&*payload))))
        })
    }
}

impl<S, W> fmt::Debug for Engine<S, W>
where
    S: Source,
    W: Work<S::Item>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("core", &self.core).finish_non_exhaustive()
    }
}
