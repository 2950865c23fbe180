mod clock;
mod end;
mod start;

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::task::coop;
use tokio::time::{Instant, Sleep};

use clock::passed;

use crate::Settled;
use crate::detail::Keep;
use crate::expiry::Expiry;
use crate::gather::Plan;
use crate::progress::Reporter;
use crate::slot::{Slot, step, under};
use crate::source::Source;
use crate::state::Core;
use crate::wake::{Block, WakeSet};
use crate::work::Work;

/// Polls per unit of the task's cooperative budget. One unit costs about 6 ns and a task has 128, so a gather of ready
/// items gives way about every thousand.
const POLLS_PER_UNIT: u32 = 8;

/// Keeps items under way, in slots that serve one item after another: no allocation per item.
pub(crate) struct Engine<S, W, K: Keep> {
    plan: Plan,
    begun: bool,
    /// `None` once it is exhausted.
    source: Option<S>,
    work: W,
    core: Core,
    /// So many items more than the limit may have started for now: those taken, and those that may wait.
    pub(crate) ahead: usize,
    /// Of the items in the slots, what else is kept.
    notes: Vec<Option<K::Note>>,
    /// First out is who has been free longest, so that slots stay in the order of their items.
    free: VecDeque<usize>,
    /// Slots to poll, last first.
    due: Vec<usize>,
    wakes: Arc<WakeSet>,
    /// The block of the last slot made.
    block: Option<Arc<Block>>,
    room: Vec<Arc<Block>>,
    polls: u32,
    expiry: Expiry,
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    reporter: Option<Reporter>,
}

/// Takes items as they end; `false` when it takes no more for now.
pub(crate) trait Sink<T> {
    fn take(&mut self, settled: T) -> bool;
}

impl<T, F: FnMut(T) -> bool> Sink<T> for F {
    fn take(&mut self, settled: T) -> bool {
        self(settled)
    }
}

type SettledOf<S, W, K> = Settled<
    <W as Work<<S as Source>::Item>>::Value,
    <W as Work<<S as Source>::Item>>::Error,
    <K as Keep>::Detail,
>;

impl<S: Source, W: Work<S::Item>, K: Keep<Item = S::Item>> Engine<S, W, K> {
    pub(crate) fn new(plan: Plan, source: S, work: W) -> Self {
        Self {
            core: Core::new(plan.rule, plan.chunks),
            plan,
            begun: false,
            source: Some(source),
            work,
            ahead: usize::MAX,
            notes: Vec::new(),
            free: VecDeque::new(),
            due: Vec::new(),
            wakes: Arc::default(),
            block: None,
            room: Vec::new(),
            polls: 0,
            expiry: Expiry::new(),
            deadline: None,
            timer: None,
            reporter: None,
        }
    }

    /// Itself, if it has not begun: what it has collected by then would be lost on another way to its results.
    #[track_caller]
    pub(crate) fn not_begun(self) -> Self {
        assert!(!self.begun, "a gather that has begun can only be awaited to its end");
        self
    }

    /// The same, with something else kept of each item. Only before it begins.
    #[track_caller]
    pub(crate) fn keeping<L: Keep<Item = S::Item>>(self) -> Engine<S, W, L> {
        let Self { plan, source, work, .. } = self.not_begun();
        Engine::new(plan, source.expect("it has not begun"), work)
    }

    pub(crate) const fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn size_hint(&self) -> (usize, Option<usize>) {
        let (least, most) = self.source.as_ref().map_or((0, Some(0)), Source::size_hint);
        let in_flight = self.core.in_flight();
        (least.saturating_add(in_flight), most.and_then(|most| most.checked_add(in_flight)))
    }

    fn begin(&mut self) {
        self.begun = true;
        let items = self.size_hint();
        self.reporter = self.plan.progress.as_ref().map(|progress| progress.begin(items));
        if let Some(limit) = &self.plan.shared_limit {
            limit.watch(&self.wakes);
        }
        if let Some(stop) = &self.plan.stop {
            stop.watch(&self.wakes);
        }
        self.deadline = self.plan.deadline.and_then(|limit| Instant::now().checked_add(limit));
    }

    /// Drives the items and hands each that ends to `sink`, as long as that returns `true`.
    ///
    /// Ready when nothing is left (`true`), or when the sink takes no more for now (`false`).
    pub(crate) fn drive(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl Sink<SettledOf<S, W, K>>,
    ) -> Poll<bool> {
        if !self.begun {
            self.begin();
        }
        if !self.look_at_clock(sink) {
            return Poll::Ready(false);
        }
        loop {
            self.look_at_stop();
            if self.due.is_empty() {
                self.wakes.take(&mut self.due, &mut self.room);
            }
            // Who is under way goes before who has not begun.
            if !ready!(self.poll_due(cx, sink)) {
                return Poll::Ready(false);
            }
            if !ready!(self.fill(cx, sink)) {
                return Poll::Ready(false);
            }
            if self.core.in_flight() == 0 && (self.source.is_none() || self.core.stopped().is_some()) {
                if let Some(reporter) = self.reporter.take()
                    && self.core.stopped().is_none()
                {
                    reporter.finish();
                }
                return Poll::Ready(true);
            }
            if self.due.is_empty() {
                if self.poll_timer(cx).is_ready() {
                    if !self.look_at_clock(sink) {
                        return Poll::Ready(false);
                    }
                } else if self.wakes.park(cx.waker()) {
                    return Poll::Pending;
                }
            }
        }
    }

    /// Polls the items that are due. Pending if the budget is spent, `false` if the sink is full.
    fn poll_due(&mut self, cx: &mut Context<'_>, sink: &mut impl Sink<SettledOf<S, W, K>>) -> Poll<bool> {
        // One net under all of them, as in `burst`.
        while !self.due.is_empty() {
            let mut polled = None;
            let ran = catch_unwind(AssertUnwindSafe(|| {
                while let Some(&at) = self.due.last() {
                    if passed(self.deadline) {
                        self.pass_deadline();
                        continue;
                    }
                    ready!(spend(&mut self.polls, cx));
                    ready!(budgeted(cx));
                    self.due.pop();
                    let ended = if self.core.stopped().is_some() {
                        self.stop(at)
                    } else {
                        let Slot { future, waker, until, .. } = &mut self.work.parts().1[at];
                        polled = Some(at);
                        let ended = under(*until, waker, |cx| step(future, cx));
                        polled = None;
                        ended
                    };
                    let Some(result) = ended else { continue };
                    self.free.push_back(at);
                    let settled = self.settle(at, result);
                    if !sink.take(settled) {
                        return Poll::Ready(false);
                    }
                }
                Poll::Ready(true)
            }));
            match (ran, polled) {
                (Ok(polled), _) => return polled,
                (Err(payload), None) => resume_unwind(payload),
                (Err(payload), Some(at)) => {
                    let result = Err(self.slot(at).panicked(payload));
                    self.free.push_back(at);
                    let settled = self.settle(at, result);
                    if !sink.take(settled) {
                        return Poll::Ready(false);
                    }
                }
            }
        }
        Poll::Ready(true)
    }

    /// A slot, to use.
    fn slot(&mut self, at: usize) -> &mut Slot<W::Item> {
        &mut self.work.parts().1[at]
    }
}

/// Gives way to the rest of the task, and of the runtime, when our polls have used up the budget.
#[inline]
fn spend(polls: &mut u32, cx: &mut Context<'_>) -> Poll<()> {
    *polls += 1;
    if *polls >= POLLS_PER_UNIT {
        ready!(coop::poll_proceed(cx)).made_progress();
        *polls = 0;
        ready!(budgeted(cx));
    }
    Poll::Ready(())
}

/// The same when the items have, in theirs: what is polled without any budget is polled in vain, and comes out of order. Asked
/// before an item is polled that may wait; items that are all ready are spared it.
#[inline]
fn budgeted(cx: &mut Context<'_>) -> Poll<()> {
    if !coop::has_budget_remaining() {
        // Pending, and awake again once the others have had their turn.
        drop(ready!(coop::poll_proceed(cx)));
    }
    Poll::Ready(())
}

impl<S, W, K: Keep> fmt::Debug for Engine<S, W, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("core", &self.core).finish_non_exhaustive()
    }
}
