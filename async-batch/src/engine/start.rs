//! How items start.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::task::{Context, Poll};

use super::clock::{expire, passed};
use super::end::count;
use super::{Engine, SettledOf, Sink, budgeted, spend};
use crate::Settled;
use crate::detail::{Attempts, Keep};
use crate::slot::{Slot, step, under};
use crate::source::Source;
use crate::state::MayStart;
use crate::work::{Make, Work};

/// Slots made room for at once. Beyond, the list grows as it fills: a limit may be as good as none, and a hint wrong.
const MOST_RESERVED: usize = 1 << 14;

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

impl<S: Source, W: Work<S::Item>, K: Keep<Item = S::Item>> Engine<S, W, K> {
    /// Starts items as long as there is room. Pending if the budget is spent, `false` if the sink is full.
    pub(super) fn fill(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl Sink<SettledOf<S, W, K>>,
    ) -> Poll<bool> {
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
        let Self { plan, source, work, core, notes, polls, expiry, reporter, deadline, .. } = self;
        let Some(source) = source else { return Burst::Exhausted };
        let (make, slots) = work.parts();
        let slot = &mut slots[at];
        // Each of them ends before the next one starts, so that all see the same number beside them.
        let mut room = core.room(horizon);
        let mut stop = false;
        // There while an item's own code runs: a panic is its result then, and otherwise passes through.
        let mut under_way = None;
        let ran = catch_unwind(AssertUnwindSafe(|| {
            if budgeted(cx).is_pending() {
                return Burst::Spent;
            }
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
                if K::COUNTS && W::Make::REPLAYS {
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
                    future.set(Some(make.start(item, attempts)));
                    step(future, cx)
                });
                let Some((index, note)) = under_way.take() else { unreachable!("inserted above") };
                let Some(result) = ended else {
                    slot.index = index;
                    notes[at] = Some(note);
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
                notes[at] = Some(note);
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
        let at = self.notes.len();
        if at == 1 {
            // Items do wait: as many slots as there may be, which costs no memory before they are filled.
            let items = self.source.as_ref().map_or(0, |source| source.size_hint().0);
            let more = items.min(self.plan.limit().get()).min(MOST_RESERVED);
            self.work.parts().1.reserve(more);
            self.notes.reserve(more);
            self.free.reserve(more);
        }
        let waker = match self.block.as_ref().and_then(|block| block.waker(at)) {
            Some(waker) => waker,
            None => {
                let block = self.block.insert(self.wakes.block(at));
                block.waker(at).expect("a slot is in its own block")
            }
        };
        self.work.parts().1.push(Slot::new(waker));
        self.notes.push(None);
        at
    }
}
