//! What ends by the clock, or on request.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_policy::Deadline;
use tokio::task::coop;
use tokio::time::Instant;

use super::{Engine, SettledOf, Sink};
use crate::detail::Keep;
use crate::expiry::Expiry;
use crate::slot::Ending;
use crate::source::Source;
use crate::work::Work;
use crate::{Stop, Stopped};

impl<S: Source, W: Work<S::Item>, K: Keep<Item = S::Item>> Engine<S, W, K> {
    /// Begins a pause between chunks, or stops if it cannot end in time.
    pub(super) fn pause(&mut self, pause: Duration) {
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
    #[inline]
    pub(super) fn look_at_clock(&mut self, sink: &mut impl Sink<SettledOf<S, W, K>>) -> bool {
        self.next_instant().is_none() || self.end_what_is_over(Instant::now(), sink)
    }

    fn end_what_is_over(&mut self, now: Instant, sink: &mut impl Sink<SettledOf<S, W, K>>) -> bool {
        self.core.end_pause(now);
        if self.deadline.is_some_and(|end| end <= now) {
            self.pass_deadline();
        }
        while let Some((slot, _)) = self.expiry.first().filter(|(_, at)| *at <= now) {
            self.expiry.remove(slot);
            let limit = self.plan.item_timeout.unwrap_or_default();
            if let Some(result) = self.slot(slot).stop(Ending::TimedOut(limit)) {
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
    #[inline]
    pub(super) fn look_at_stop(&mut self) {
        let requested = self.plan.stop.as_ref().is_some_and(Stop::is_requested);
        if requested && self.core.stop(Stopped::Requested) {
            self.end_all();
        }
    }

    #[cold]
    pub(super) fn pass_deadline(&mut self) {
        self.deadline = None;
        if self.core.stop(Stopped::Deadline) {
            self.end_all();
        }
    }

    #[inline]
    fn next_instant(&self) -> Option<Instant> {
        let item = self.expiry.first().map(|(_, at)| at);
        [item, self.deadline, self.core.pause_until()].into_iter().flatten().min()
    }

    /// Ready when there is something to do by the clock.
    pub(super) fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(next) = self.next_instant() else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
        if timer.deadline() != next {
            timer.as_mut().reset(next);
        }
        // A timer without budget left would have the task polled again at once, in vain.
        pin!(coop::unconstrained(timer)).poll(cx)
    }
}

/// Enters a slot's item among those that expire; gives the deadline in force inside.
pub(super) fn expire(
    expiry: &mut Expiry,
    at: usize,
    limit: Duration,
    deadline: Option<Instant>,
) -> Option<Instant> {
    let Some(until) = Instant::now().checked_add(limit) else { return deadline };
    expiry.push(at, until);
    Some(deadline.map_or(until, |end| end.min(until)))
}

/// Whether the deadline has passed. Asked before each poll: what items compute may take any time. Without a deadline it
/// costs nothing.
#[inline]
pub(super) fn passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|end| end <= Instant::now())
}
