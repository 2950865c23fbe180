use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_policy::{Deadline, TimedOut};
use tokio::task::coop;
use tokio::time::{Instant, Sleep};

use crate::detail::{Attempts, Keep};
use crate::expiry::Expiry;
use crate::gather::Plan;
use crate::progress::Reporter;
use crate::slot::{Ended, Ending, Slot, step, under};
use crate::source::Source;
use crate::state::{Core, MayStart};
use crate::wake::{Block, WakeSet};
use crate::work::Work;
use crate::{ItemError, Settled, Stop, Stopped};

/// Polls per unit of the task's cooperative budget. One unit costs about 6 ns and a task has 128, so a gather of ready
/// items gives way about every thousand.
const POLLS_PER_UNIT: u32 = 8;

/// Slots made room for at once. Beyond, the list grows as it fills: a limit may be as good as none, and a hint wrong.
const MOST_RESERVED: usize = 1 << 14;

/// Keeps items under way, in slots that serve one item after another: no allocation per item.
pub(crate) struct Engine<S: Source, W: Work<S::Item>, K: Keep<S::Item>> {
    plan: Plan,
    begun: bool,
    /// `None` once it is exhausted.
    source: Option<S>,
    work: W,
    core: Core,
    /// So many items more than the limit may have started for now: those taken, and those that may wait.
    pub(crate) ahead: usize,
    slots: Vec<Slot<W::Item, K::Note>>,
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

/// Why a burst ended.
enum Burst {
    /// The last item started stays in the slot.
    Started,
    NoRoom,
    Exhausted,
    /// The source has no item now.
    Waiting,
    /// The deadline has passed.
    Late,
    /// The task's budget is used up.
    Spent,
    /// The sink takes no more.
    Full,
}

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
            ahead: usize::MAX,
            slots: Vec::new(),
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

    /// The same, with something else kept of each item. Only before it begins.
    pub(crate) fn keeping<L: Keep<S::Item>>(self) -> Engine<S, W, L> {
        let source = self.source.expect("a gather that has not begun has its source");
        Engine::new(self.plan, source, self.work)
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
                    self.due.pop();
                    let ended = if self.core.stopped().is_some() {
                        self.stop(at)
                    } else {
                        let Slot { future, waker, until, .. } = &mut self.slots[at];
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
                    let result = Err(self.slots[at].panicked(payload));
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

    /// Ends the item in a slot, because the gather has stopped.
    #[cold]
    fn stop(&mut self, at: usize) -> Ended<W::Value, W::Error> {
        let ending = match self.core.stopped() {
            Some(Stopped::Deadline) => Ending::TimedOut(self.plan.deadline.unwrap_or_default()),
            _ => Ending::Cancelled,
        };
        self.slots[at].stop(ending)
    }

    /// Starts items as long as there is room. Pending if the budget is spent, `false` if the sink is full.
    fn fill(&mut self, cx: &mut Context<'_>, sink: &mut impl Sink<SettledOf<S, W, K>>) -> Poll<bool> {
        while let Some(source) = &mut self.source {
            // Each time anew: an item may have changed the limit.
            let limit = self.plan.limit();
            let horizon = self.ahead.saturating_add(limit.get());
            match self.core.may_start(limit, horizon) {
                MayStart::Yes => {}
                MayStart::PauseDue(pause) => {
                    // The hint may be wrong: it says whether to pause, not whether there are more.
                    if pause.is_zero() || source.size_hint().1 == Some(0) {
                        self.core.next_chunk();
                    } else {
                        self.pause(pause);
                    }
                    continue;
                }
                MayStart::Full | MayStart::Pausing | MayStart::Stopped => break,
            }
            match self.burst(cx, horizon, sink) {
                Burst::Started | Burst::NoRoom => self.look_at_stop(),
                Burst::Exhausted => self.source = None,
                Burst::Waiting => break,
                Burst::Late => self.pass_deadline(),
                Burst::Spent => return Poll::Pending,
                Burst::Full => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }

    /// Starts items in one slot, one after the other, until one stays there.
    ///
    /// This is the loop a gather of ready items lives in. One net under all of it catches their panics.
    fn burst(
        &mut self,
        cx: &mut Context<'_>,
        horizon: usize,
        sink: &mut impl Sink<SettledOf<S, W, K>>,
    ) -> Burst {
        let at = match self.free.pop_front() {
            Some(at) => at,
            None => self.make_slot(),
        };
        let Self { plan, source, work, core, slots, polls, expiry, reporter, deadline, .. } = self;
        let Some(source) = source else { return Burst::Exhausted };
        let slot = &mut slots[at];
        // Each of them ends before the next one starts, so that all see the same number beside them.
        let mut room = core.room(horizon);
        let mut stop = false;
        // There while an item's own code runs: a panic is its result then, and otherwise passes through.
        let mut under_way = None;
        let ran = catch_unwind(AssertUnwindSafe(|| {
            while room > 0 {
                room -= 1;
                if passed(*deadline) {
                    return Burst::Late;
                }
                if spend(polls, cx).is_pending() {
                    return Burst::Spent;
                }
                let item = match source.poll_item(cx) {
                    Poll::Ready(Some(item)) => item,
                    Poll::Ready(None) => return Burst::Exhausted,
                    Poll::Pending => return Burst::Waiting,
                };
                let note = K::note(&item);
                if K::COUNTS && W::REPLAYS {
                    slot.attempts = Attempts::counted();
                }
                let until = match plan.item_timeout {
                    Some(limit) => expire(expiry, at, limit, *deadline),
                    None => *deadline,
                };
                let index = core.start();
                if let Some(reporter) = reporter {
                    reporter.started();
                }
                let Slot { future, waker, attempts, .. } = &mut *slot;
                under_way = Some((index, note));
                let ended = under(until, waker, |cx| {
                    future.set(Some(work.start(item, attempts)));
                    step(future, cx)
                });
                let Some((index, note)) = under_way.take() else { unreachable!("inserted above") };
                let Some(result) = ended else {
                    slot.index = index;
                    slot.note = Some(note);
                    slot.until = until;
                    return Burst::Started;
                };
                if plan.item_timeout.is_some() {
                    expiry.remove(at);
                }
                stop = count(core, reporter, &result);
                let detail = K::detail(note, attempts);
                if !sink.take(Settled { index, result, detail }) {
                    return Burst::Full;
                }
                if stop || plan.shared_limit.is_some() || plan.stop.is_some() {
                    return Burst::NoRoom;
                }
            }
            Burst::NoRoom
        }));
        let burst = match ran {
            Ok(Burst::Started) => return Burst::Started,
            Ok(idle) => idle,
            Err(payload) => {
                let Some((index, note)) = under_way else {
                    self.free.push_back(at);
                    resume_unwind(payload);
                };
                slot.index = index;
                slot.note = Some(note);
                let result = Err(slot.panicked(payload));
                let settled = self.settle(at, result);
                if sink.take(settled) { Burst::NoRoom } else { Burst::Full }
            }
        };
        self.free.push_back(at);
        if stop {
            self.end_all();
        }
        burst
    }

    fn make_slot(&mut self) -> usize {
        let at = self.slots.len();
        if at == 1 {
            // Items do wait: as many slots as there may be, which costs no memory before they are filled.
            let items = self.source.as_ref().map_or(0, |source| source.size_hint().0);
            let more = items.min(self.plan.limit().get()).min(MOST_RESERVED);
            self.slots.reserve(more);
            self.free.reserve(more);
        }
        let waker = match self.block.as_ref().and_then(|block| block.waker(at)) {
            Some(waker) => waker,
            None => {
                let block = self.block.insert(self.wakes.block(at));
                block.waker(at).expect("a slot is in its own block")
            }
        };
        self.slots.push(Slot::new(waker));
        at
    }

    /// Begins a pause between chunks, or stops if it cannot end in time.
    fn pause(&mut self, pause: Duration) {
        // What the clock cannot tell is as good as for ever.
        const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 86_400);
        let until = Instant::now() + pause.min(FOR_EVER);
        if self.deadline.is_none_or(|end| until < end) && Deadline::fits(pause) {
            self.core.pause(until);
        } else {
            self.core.stop(Stopped::Deadline);
        }
    }

    /// Ends what is over by the clock; `false` if the sink is full before all of it has.
    fn look_at_clock(&mut self, sink: &mut impl Sink<SettledOf<S, W, K>>) -> bool {
        if self.next_instant().is_none() {
            return true;
        }
        let now = Instant::now();
        self.core.end_pause(now);
        if self.deadline.is_some_and(|end| end <= now) {
            self.pass_deadline();
        }
        while let Some((slot, _)) = self.expiry.first().filter(|(_, at)| *at <= now) {
            self.expiry.remove(slot);
            let limit = self.plan.item_timeout.unwrap_or_default();
            if let Some(result) = self.slots[slot].stop(Ending::TimedOut(limit)) {
                let settled = self.settle(slot, result);
                self.free.push_back(slot);
                if !sink.take(settled) {
                    return false;
                }
            }
        }
        true
    }

    /// Stops if that was requested.
    fn look_at_stop(&mut self) {
        let requested = self.plan.stop.as_ref().is_some_and(Stop::is_requested);
        if requested && self.core.stop(Stopped::Requested) {
            self.end_all();
        }
    }

    #[cold]
    fn pass_deadline(&mut self) {
        self.deadline = None;
        if self.core.stop(Stopped::Deadline) {
            self.end_all();
        }
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

    /// Counts an item that has ended. (Inlined where it is called, so that results stay in registers: 10 ns an item.)
    #[inline(always)]
    fn settle(&mut self, at: usize, mut result: Result<W::Value, ItemError<W::Error>>) -> SettledOf<S, W, K> {
        let slot = &mut self.slots[at];
        let detail = K::detail(slot.note.take().expect("noted at its start"), &slot.attempts);
        let index = slot.index;
        if self.plan.item_timeout.is_some() {
            self.expiry.remove(at);
        }
        if let Some(Ending::TimedOut(limit)) = slot.ending.take()
            && matches!(result, Err(ItemError::Cancelled))
        {
            result = Err(ItemError::TimedOut(TimedOut::new(limit)));
        }
        if count(&mut self.core, &mut self.reporter, &result) {
            self.end_all();
        }
        Settled { index, result, detail }
    }

    /// Has each slot looked at once more, to be ended.
    fn end_all(&mut self) {
        self.due = (0..self.slots.len()).rev().collect();
    }
}

/// Counts an item that has ended; `true` if the gather stops because of it.
#[inline(always)]
fn count<T, E>(core: &mut Core, reporter: &mut Option<Reporter>, result: &Result<T, ItemError<E>>) -> bool {
    let cancelled = matches!(result, Err(ItemError::Cancelled));
    if let Some(reporter) = reporter {
        if cancelled { reporter.cancelled() } else { reporter.ended(result.is_ok()) }
    }
    if cancelled {
        core.cancel();
        return false;
    }
    core.settle(result.is_ok())
}

/// Enters a slot's item among those that expire; gives the deadline in force inside.
fn expire(expiry: &mut Expiry, at: usize, limit: Duration, deadline: Option<Instant>) -> Option<Instant> {
    let Some(until) = Instant::now().checked_add(limit) else { return deadline };
    expiry.push(at, until);
    Some(deadline.map_or(until, |end| end.min(until)))
}

/// Whether the deadline has passed. Asked before each poll: what items compute may take any time. Without a deadline it
/// costs nothing.
#[inline]
fn passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|end| end <= Instant::now())
}

/// Gives way to the rest of the task, and of the runtime, when the budget is used up: by our polls, or by what the items
/// did in theirs. (What is polled without any budget is polled in vain, and comes out of order.)
#[inline]
fn spend(polls: &mut u32, cx: &mut Context<'_>) -> Poll<()> {
    *polls += 1;
    if *polls >= POLLS_PER_UNIT {
        ready!(coop::poll_proceed(cx)).made_progress();
        *polls = 0;
    }
    if !coop::has_budget_remaining() {
        // Pending, and awake again once the others have had their turn.
        drop(ready!(coop::poll_proceed(cx)));
    }
    Poll::Ready(())
}

impl<S: Source, W: Work<S::Item>, K: Keep<S::Item>> fmt::Debug for Engine<S, W, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("core", &self.core).finish_non_exhaustive()
    }
}
