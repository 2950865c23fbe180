use std::num::NonZeroUsize;

use crate::Stopped;

/// When a gather gives up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// Never: every item settles.
    Settle,
    /// At so many failures.
    After(NonZeroUsize),
}

/// The counts of one gather and what follows from them. It knows no clock, no task and no item.
#[derive(Debug)]
pub(crate) struct Core {
    rule: Rule,
    started: usize,
    settled: usize,
    failed: usize,
    stopped: Option<Stopped>,
}

impl Core {
    pub(crate) const fn new(rule: Rule) -> Self {
        Self { rule, started: 0, settled: 0, failed: 0, stopped: None }
    }

    /// Whether one more may start beside those under way.
    pub(crate) const fn may_start(&self, limit: NonZeroUsize) -> bool {
        self.stopped.is_none() && self.in_flight() < limit.get()
    }

    /// One more has started: its index.
    pub(crate) const fn start(&mut self) -> usize {
        let index = self.started;
        self.started += 1;
        index
    }

    /// One has ended by itself. `true` if the gather stops because of it.
    pub(crate) fn settle(&mut self, ok: bool) -> bool {
        self.settled += 1;
        if ok || self.stopped.is_some() {
            return false;
        }
        self.failed += 1;
        let stops = match self.rule {
            Rule::Settle => false,
            Rule::After(failures) => self.failed >= failures.get(),
        };
        if stops {
            self.stopped = Some(Stopped::Failures);
        }
        stops
    }

    /// One has been cancelled.
    pub(crate) const fn cancel(&mut self) {
        self.settled += 1;
    }

    pub(crate) const fn in_flight(&self) -> usize {
        self.started - self.settled
    }

    pub(crate) const fn stopped(&self) -> Option<Stopped> {
        self.stopped
    }
}
