use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::time::Instant;

use crate::Stopped;

/// When a gather gives up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// Never: every item settles.
    Settle,
    /// At so many failures.
    After(NonZeroUsize),
    /// Above a share of failures among those that have ended, once there are so many.
    Above { ratio: f64, of: NonZeroUsize },
}

/// Items in groups, with a pause between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunks {
    pub(crate) size: NonZeroUsize,
    pub(crate) pause: Duration,
}

/// The counts of one gather and what follows from them. It knows no clock, no task and no item.
///
/// Invariants: (1) `started` = succeeded + failed + cancelled + in flight. (2) Once stopped, nothing starts and the
/// reason does not change. (3) Nothing starts in a pause, or beyond the chunk that is under way.
#[derive(Debug)]
pub(crate) struct Core {
    rule: Rule,
    chunks: Option<Chunks>,
    /// Of the chunk under way, how many have not started.
    chunk_left: usize,
    pause_until: Option<Instant>,
    started: usize,
    succeeded: usize,
    failed: usize,
    cancelled: usize,
    stopped: Option<Stopped>,
}

/// Whether another item may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MayStart {
    Yes,
    /// Not before one ends, or the one who asked changes the limit.
    Full,
    /// Not before the pause that begins now.
    PauseDue(Duration),
    /// Not before the pause is over.
    Pausing,
    /// No more.
    Stopped,
}

impl Core {
    pub(crate) fn new(rule: Rule, chunks: Option<Chunks>) -> Self {
        Self {
            rule,
            chunks,
            chunk_left: chunks.map_or(usize::MAX, |chunks| chunks.size.get()),
            pause_until: None,
            started: 0,
            succeeded: 0,
            failed: 0,
            cancelled: 0,
            stopped: None,
        }
    }

    /// Whether one more may start beside those under way, with an index below `horizon`.
    #[inline]
    pub(crate) const fn may_start(&self, limit: NonZeroUsize, horizon: usize) -> MayStart {
        if self.stopped.is_some() {
            return MayStart::Stopped;
        }
        if self.pause_until.is_some() {
            return MayStart::Pausing;
        }
        let in_flight = self.in_flight();
        if self.chunk_left == 0 {
            return match &self.chunks {
                Some(chunks) if in_flight == 0 => MayStart::PauseDue(chunks.pause),
                _ => MayStart::Full,
            };
        }
        if in_flight < limit.get() && self.started < horizon { MayStart::Yes } else { MayStart::Full }
    }

    /// How many may start one after the other where [`may_start`](Self::may_start) says yes, if each ends before the
    /// next and none stops the gather.
    pub(crate) fn room(&self, horizon: usize) -> usize {
        self.chunk_left.min(horizon.saturating_sub(self.started))
    }

    /// The pause that is due begins: it lasts until `until`.
    pub(crate) const fn pause(&mut self, until: Instant) {
        self.pause_until = Some(until);
    }

    /// Ends the pause if it is over at `now`.
    pub(crate) fn end_pause(&mut self, now: Instant) {
        if self.pause_until.is_some_and(|until| until <= now) {
            self.pause_until = None;
            self.next_chunk();
        }
    }

    /// The next chunk begins, without a pause.
    pub(crate) fn next_chunk(&mut self) {
        self.chunk_left = self.chunks.map_or(usize::MAX, |chunks| chunks.size.get());
    }

    pub(crate) const fn pause_until(&self) -> Option<Instant> {
        self.pause_until
    }

    /// One more has started: its index.
    #[inline]
    pub(crate) const fn start(&mut self) -> usize {
        let index = self.started;
        self.started += 1;
        self.chunk_left -= 1;
        index
    }

    /// One has ended by itself. `true` if the gather stops because of it.
    #[inline]
    pub(crate) fn settle(&mut self, ok: bool) -> bool {
        if ok {
            self.succeeded += 1;
        } else {
            self.failed += 1;
        }
        let ended = self.succeeded + self.failed;
        let stops = match self.rule {
            Rule::Settle => false,
            Rule::After(failures) => self.failed >= failures.get(),
            Rule::Above { ratio, of } => ended >= of.get() && self.failed as f64 > ratio * ended as f64,
        };
        stops && self.stop(Stopped::Failures)
    }

    /// One has been cancelled.
    pub(crate) const fn cancel(&mut self) {
        self.cancelled += 1;
    }

    /// Nothing starts from here on. `false` if that was so already.
    pub(crate) const fn stop(&mut self, why: Stopped) -> bool {
        let first = self.stopped.is_none();
        if first {
            self.stopped = Some(why);
        }
        first
    }

    pub(crate) const fn in_flight(&self) -> usize {
        self.started - self.succeeded - self.failed - self.cancelled
    }

    pub(crate) const fn stopped(&self) -> Option<Stopped> {
        self.stopped
    }

    /// Started, succeeded, failed, cancelled.
    pub(crate) const fn counts(&self) -> [usize; 4] {
        [self.started, self.succeeded, self.failed, self.cancelled]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn n(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn when_the_rules_stop() {
        let (ok, no) = (true, false);
        let table: [(Rule, &[bool], Option<usize>); 7] = [
            (Rule::Settle, &[no, no, no], None),
            (Rule::After(n(1)), &[ok, no], Some(1)),
            (Rule::After(n(2)), &[no, ok, ok, no], Some(3)),
            (Rule::Above { ratio: 0.0, of: n(1) }, &[ok, no], Some(1)),
            (Rule::Above { ratio: 0.5, of: n(1) }, &[ok, no, no], Some(2)),
            (Rule::Above { ratio: 0.5, of: n(3) }, &[no, no, ok], Some(2)),
            (Rule::Above { ratio: 1.0, of: n(1) }, &[no, no, no], None),
        ];
        for (rule, ends, stops) in table {
            let mut core = Core::new(rule, None);
            let stopped = ends.iter().position(|ok| {
                core.start();
                core.settle(*ok)
            });
            assert_eq!(stopped, stops, "{rule:?}");
            assert_eq!(core.stopped().is_some(), stops.is_some(), "{rule:?}");
        }
    }

    #[test]
    fn once_stopped_nothing_starts_and_the_reason_stays() {
        let mut core = Core::new(Rule::After(n(1)), None);
        core.start();
        core.start();
        assert!(core.stop(Stopped::Deadline));
        assert!(!core.settle(false), "it has stopped already");
        core.cancel();
        assert_eq!(core.stopped(), Some(Stopped::Deadline));
        assert_eq!(core.may_start(n(9), usize::MAX), MayStart::Stopped);
        assert_eq!((core.counts(), core.in_flight()), ([2, 0, 1, 1], 0));
    }

    #[test]
    fn limit_horizon_and_chunks() {
        let pause = Duration::from_secs(1);
        let mut core = Core::new(Rule::Settle, Some(Chunks { size: n(2), pause }));
        assert_eq!(core.may_start(n(1), 9), MayStart::Yes);
        assert_eq!((core.room(9), core.room(1)), (2, 1));
        core.start();
        assert_eq!(core.may_start(n(1), 9), MayStart::Full);
        assert_eq!(core.may_start(n(2), 1), MayStart::Full);
        core.start();
        core.settle(true);
        assert_eq!(core.may_start(n(9), 9), MayStart::Full, "one of the chunk is under way");
        core.settle(true);
        assert_eq!(core.may_start(n(9), 9), MayStart::PauseDue(pause));
        let until = Instant::now() + pause;
        core.pause(until);
        core.end_pause(until - Duration::from_millis(1));
        assert_eq!(core.may_start(n(9), 9), MayStart::Pausing);
        core.end_pause(until);
        assert_eq!(core.may_start(n(9), 9), MayStart::Yes);
    }
}
