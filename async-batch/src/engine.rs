use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_policy::{Deadline, TimedOut};
use tokio::task::coop;
use tokio::time::{Instant, Sleep};

use crate::detail::{Attempts, Keep};
use crate::expiry::Expiry;
use crate::gather::Plan;
use crate::progress::Reporter;
use crate::source::Source;
use crate::state::{Core, MayStart};
use crate::wake::{SlotWake, WakeSet};
use crate::work::{Item, Work};
use crate::{ItemError, Panicked, Settled, Stopped};

/// Polls per unit of the task's cooperative budget. One unit costs about 6 ns and a task has 128, so a gather of ready
/// items gives way about every thousand.
const POLLS_PER_UNIT: u32 = 8;

/// Keeps items under way, in slots that serve one item after another: no allocation per item.
pub(crate) struct Engine<S: Source, W: Work<S::Item>, K: Keep<S::Item>> {
    plan: Plan,
    begun: bool,
    /// `None` once it is exhausted.
    source: Option<S>,
    work: W,
    core: Core,
    /// No item with this index or a later one starts for now.
    pub(crate) horizon: usize,
    slots: Vec<Slot<W::Item, K::Note>>,
    free: Vec<usize>,
    /// Slots to poll, last first.
    due: Vec<usize>,
    wakes: Arc<WakeSet>,
    polls: u32,
    expiry: Expiry,
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    reporter: Option<Reporter>,
}

struct Slot<F, N> {
    future: Pin<Box<Option<F>>>,
    index: usize,
    note: Option<N>,
    attempts: Attempts,
    /// The deadline in force inside.
    until: Option<Instant>,
    /// What it was asked to stop for.
    ending: Option<Ending>,
    waker: Waker,
    wake: Arc<SlotWake>,
}

/// Why an item is ended from outside.
#[derive(Clone, Copy)]
enum Ending {
    Cancelled,
    TimedOut(Duration),
}

impl Ending {
    fn error<E>(self) -> ItemError<E> {
        match self {
            Self::Cancelled => ItemError::Cancelled,
            Self::TimedOut(limit) => ItemError::TimedOut(TimedOut::new(limit)),
        }
    }
}

/// What became of the item in a slot; `None` as long as nothing has.
type Ended<T, E> = Option<Result<T, ItemError<E>>>;

type SettledOf<S, W, K> = Settled<
    <W as Work<<S as Source>::Item>>::Value,
    <W as Work<<S as Source>::Item>>::Error,
    <K as Keep<<S as Source>::Item>>::Detail,
>;

impl<S: Source, W: Work<S::Item>, K: Keep<S::Item>> Engine<S, W, K> {
    pub(crate) fn new(plan: Plan, source: S, work: W) -> Self {
        Self {
            core: Core::new(plan.rule, plan.chunks),
            plan,
            begun: false,
            source: Some(source),
            work,
            horizon: usize::MAX,
            slots: Vec::new(),
            free: Vec::new(),
            due: Vec::new(),
            wakes: Arc::default(),
            polls: 0,
            expiry: Expiry::new(),
            deadline: None,
            timer: None,
            reporter: None,
        }
    }

    /// The same, with something else kept of each item. Only before it begins.
    pub(crate) fn keeping<L: Keep<S::Item>>(self) -> Engine<S, W, L> {
        let source = self.source.expect("a gather that has not begun has its source");
        Engine::new(self.plan, source, self.work)
    }

    pub(crate) const fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) const fn plan(&self) -> &Plan {
        &self.plan
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
        self.deadline = self.plan.deadline.and_then(|limit| Instant::now().checked_add(limit));
    }

    /// Drives the items and hands each that ends to `sink`, as long as that returns `true`.
    ///
    /// Ready when nothing is left (`true`), or when the sink takes no more for now (`false`).
    pub(crate) fn drive(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl FnMut(SettledOf<S, W, K>) -> bool,
    ) -> Poll<bool> {
        if !self.begun {
            self.begin();
        }
        if !self.look_at_clock(sink) {
            return Poll::Ready(false);
        }
        loop {
            if self.due.is_empty() {
                self.wakes.take(&mut self.due);
                self.due.reverse();
            }
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
            if !ready!(self.fill(cx, sink)) {
                return Poll::Ready(false);
            }
            if self.core.in_flight() == 0 && (self.source.is_none() || self.core.stopped().is_some()) {
                self.reporter = None;
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

    /// Starts items as long as there is room. Pending if the budget is spent, `false` if the sink is full.
    fn fill(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl FnMut(SettledOf<S, W, K>) -> bool,
    ) -> Poll<bool> {
        while let Some(source) = &mut self.source {
            match self.core.may_start(self.plan.limit(), self.horizon) {
                MayStart::Yes => {}
                MayStart::PauseDue(pause) => {
                    if source.size_hint().1 == Some(0) {
                        self.source = None;
                    } else if !pause.is_zero() {
                        self.pause(pause);
                    } else {
                        self.core.next_chunk();
                    }
                    continue;
                }
                MayStart::Full | MayStart::Pausing | MayStart::Stopped => break,
            }
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
        Poll::Ready(true)
    }

    /// Begins a pause between chunks, or stops if it cannot end in time.
    fn pause(&mut self, pause: Duration) {
        let until =
            Instant::now().checked_add(pause).filter(|until| self.deadline.is_none_or(|end| *until < end));
        match until {
            Some(until) if Deadline::fits(pause) => self.core.pause(until),
            _ => {
                self.core.stop(Stopped::Deadline);
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

    /// Ends what is over by the clock; `false` if the sink is full before all of it has.
    fn look_at_clock(&mut self, sink: &mut impl FnMut(SettledOf<S, W, K>) -> bool) -> bool {
        if self.next_instant().is_none() {
            return true;
        }
        let now = Instant::now();
        self.core.end_pause(now);
        if self.deadline.is_some_and(|end| end <= now) {
            self.deadline = None;
            if self.core.stop(Stopped::Deadline) {
                self.end_all();
            }
        }
        while let Some((slot, _)) = self.expiry.first().filter(|(_, at)| *at <= now) {
            self.expiry.remove(slot);
            let limit = self.plan.item_timeout.unwrap_or_default();
            if let Some(result) = self.slots[slot].stop(Ending::TimedOut(limit)) {
                let settled = self.settle(slot, result);
                if !sink(settled) {
                    return false;
                }
            }
        }
        true
    }

    fn next_instant(&self) -> Option<Instant> {
        let item = self.expiry.first().map(|(_, at)| at);
        [item, self.deadline, self.core.pause_until()].into_iter().flatten().min()
    }

    /// Ready when there is something to do by the clock.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(next) = self.next_instant() else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
        if timer.deadline() != next {
            timer.as_mut().reset(next);
        }
        // Items that used up the task's budget must not keep the timer from being looked at.
        pin!(coop::unconstrained(timer)).poll(cx)
    }

    fn start(&mut self, item: S::Item) -> Option<SettledOf<S, W, K>> {
        let index = self.core.start();
        if let Some(reporter) = &mut self.reporter {
            reporter.started();
        }
        let at = self.free.pop().unwrap_or_else(|| {
            let at = self.slots.len();
            let (waker, wake) = self.wakes.waker(at);
            self.slots.push(Slot {
                future: Box::pin(None),
                index,
                note: None,
                attempts: Attempts::default(),
                until: None,
                ending: None,
                waker,
                wake,
            });
            at
        });
        let slot = &mut self.slots[at];
        slot.index = index;
        slot.ending = None;
        slot.note = Some(K::note(&item));
        if K::COUNTS && W::REPLAYS {
            slot.attempts = Attempts::counted();
        }
        if let Some(limit) = self.plan.item_timeout
            && let Some(until) = Instant::now().checked_add(limit)
        {
            self.expiry.push(at, until);
            slot.until = Some(self.deadline.map_or(until, |end| end.min(until)));
        } else {
            slot.until = self.deadline;
        }
        let work = &mut self.work;
        let result = slot.begin(|attempts| work.start(item, attempts))?;
        Some(self.settle(at, result))
    }

    /// Polls the item in a slot, or ends it if the gather has stopped.
    fn advance(&mut self, at: usize) -> Option<SettledOf<S, W, K>> {
        let slot = &mut self.slots[at];
        slot.wake.clear();
        let result = match self.core.stopped() {
            None => slot.poll(),
            Some(Stopped::Deadline) => slot.stop(Ending::TimedOut(self.plan.deadline.unwrap_or_default())),
            Some(Stopped::Failures) => slot.stop(Ending::Cancelled),
        }?;
        Some(self.settle(at, result))
    }

    fn settle(&mut self, at: usize, mut result: Result<W::Value, ItemError<W::Error>>) -> SettledOf<S, W, K> {
        let slot = &mut self.slots[at];
        if let Some(ending) = slot.ending.take()
            && matches!(result, Err(ItemError::Cancelled))
        {
            result = Err(ending.error());
        }
        let detail = K::detail(slot.note.take().expect("noted at its start"), &slot.attempts);
        let index = slot.index;
        if self.plan.item_timeout.is_some() {
            self.expiry.remove(at);
        }
        self.free.push(at);
        let cancelled = matches!(result, Err(ItemError::Cancelled));
        if let Some(reporter) = &mut self.reporter {
            if cancelled { reporter.cancelled() } else { reporter.ended(result.is_ok()) }
        }
        if cancelled {
            self.core.cancel();
        } else if self.core.settle(result.is_ok()) {
            self.end_all();
        }
        Settled { index, result, detail }
    }

    /// Has each slot looked at once more, to be ended.
    fn end_all(&mut self) {
        self.due = (0..self.slots.len()).rev().collect();
    }
}

impl<F, N, T, E> Slot<F, N>
where
    F: Item<Output = Result<T, ItemError<E>>>,
{
    fn begin(&mut self, make: impl FnOnce(&Attempts) -> F) -> Ended<T, E> {
        let Self { attempts, .. } = self;
        let attempts = attempts.clone();
        self.guarded(|future, cx| {
            future.set(Some(make(&attempts)));
            Self::step(future, cx)
        })
    }

    fn poll(&mut self) -> Ended<T, E> {
        self.guarded(Self::step)
    }

    /// Drops the item, or if it runs elsewhere asks it to end and waits for that.
    fn stop(&mut self, ending: Ending) -> Ended<T, E> {
        self.ending.get_or_insert(ending);
        self.guarded(|future, cx| match future.as_mut().as_pin_mut().map(Item::stop) {
            None => None,
            Some(true) => Self::step(future, cx),
            Some(false) => {
                future.set(None);
                Some(Err(ItemError::Cancelled))
            }
        })
    }

    fn step(future: &mut Pin<Box<Option<F>>>, cx: &mut Context<'_>) -> Ended<T, E> {
        match future.as_mut().as_pin_mut()?.poll(cx) {
            Poll::Pending => None,
            Poll::Ready(result) => {
                future.set(None);
                Some(result)
            }
        }
    }

    /// Runs under the item's deadline. A panic of the item, in its making, its polls or its drop, is its result.
    fn guarded(
        &mut self,
        run: impl FnOnce(&mut Pin<Box<Option<F>>>, &mut Context<'_>) -> Ended<T, E>,
    ) -> Ended<T, E> {
        let Self { future, waker, until, .. } = self;
        let mut cx = Context::from_waker(waker);
        let ran = catch_unwind(AssertUnwindSafe(|| match *until {
            None => run(future, &mut cx),
            Some(until) => {
                let mut run = Some(run);
                let scoped = std::future::poll_fn(|cx| match run.take() {
                    Some(run) => Poll::Ready(run(future, cx)),
                    None => Poll::Pending,
                });
                match pin!(Deadline::at(until).scope(scoped)).poll(&mut cx) {
                    Poll::Ready(ended) => ended,
                    Poll::Pending => None,
                }
            }
        }));
        ran.unwrap_or_else(|payload| {
            // The slot is empty even if this drop panics too.
            let _ = catch_unwind(AssertUnwindSafe(|| future.set(None)));
            Some(Err(ItemError::Panicked(Panicked::from_payload(&*payload))))
        })
    }
}

impl<S: Source, W: Work<S::Item>, K: Keep<S::Item>> fmt::Debug for Engine<S, W, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("core", &self.core).finish_non_exhaustive()
    }
}
