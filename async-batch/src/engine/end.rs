//! How items end.

use async_policy::TimedOut;

use super::{Engine, SettledOf};
use crate::detail::Keep;
use crate::progress::Reporter;
use crate::slot::{Ended, Ending};
use crate::source::Source;
use crate::state::Core;
use crate::work::Work;
use crate::{ItemError, Settled, Stopped};

impl<S: Source, W: Work<S::Item>, K: Keep<Item = S::Item>> Engine<S, W, K> {
    /// Ends the item in a slot, because the gather has stopped.
    #[cold]
    pub(super) fn stop(&mut self, at: usize) -> Ended<W::Value, W::Error> {
        let ending = match self.core.stopped() {
            Some(Stopped::Deadline) => Ending::TimedOut(self.plan.deadline.unwrap_or_default()),
            _ => Ending::Cancelled,
        };
        self.slot(at).stop(ending)
    }

    /// Counts an item that has ended. (Inlined where it is called, so that results stay in registers: 10 ns an item.)
    #[inline(always)]
    pub(super) fn settle(
        &mut self,
        at: usize,
        mut result: Result<W::Value, ItemError<W::Error>>,
    ) -> SettledOf<S, W, K> {
        let note = self.notes[at].take();
        let slot = self.slot(at);
        let detail = K::detail(note.expect("noted at its start"), &slot.attempts);
        let index = slot.index;
        if let Some(Ending::TimedOut(limit)) = slot.ending.take()
            && matches!(result, Err(ItemError::Cancelled))
        {
            result = Err(ItemError::TimedOut(TimedOut::new(limit)));
        }
        if self.plan.item_timeout.is_some() {
            self.expiry.remove(at);
        }
        if count(&mut self.core, &mut self.reporter, &result) {
            self.end_all();
        }
        Settled { index, result, detail }
    }

    /// Has each slot looked at once more, to be ended.
    pub(super) fn end_all(&mut self) {
        self.due = (0..self.notes.len()).rev().collect();
    }
}

/// Counts an item that has ended; `true` if the gather stops because of it.
#[inline(always)]
pub(super) fn count<T, E>(
    core: &mut Core,
    reporter: &mut Option<Reporter>,
    result: &Result<T, ItemError<E>>,
) -> bool {
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
