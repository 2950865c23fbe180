//! What the core says of itself, to be read or to be taken up again.

use std::time::{Duration, SystemTime};

use super::{Circuit, Phase, later, share};
use crate::event::Cause;
use crate::meter::Meter;
use crate::snapshot::{Mode, Saved, Snapshot};
use crate::trip::Bad;

impl Circuit {
    pub(crate) fn save(&self, now: Duration, saved_at: SystemTime) -> Saved {
        let open_for = match self.phase {
            Phase::Closed { ramp: None } => None,
            Phase::Open { until } if self.mode != Mode::ForcedOpen => Some(until.saturating_sub(now)),
            _ => Some(Duration::ZERO),
        };
        let mode = (self.mode != self.config.mode).then_some(self.mode);
        Saved { mode, open_for, reopenings: self.openings.saturating_sub(1), saved_at }
    }

    /// Takes up a saved state, `elapsed` after it was saved.
    pub(crate) fn restore(&mut self, saved: &Saved, elapsed: Duration, now: Duration) {
        let mode = saved.mode.unwrap_or(self.config.mode);
        let before = std::mem::replace(&mut self.mode, mode);
        match (mode, saved.open_for) {
            (mode, Some(time)) if mode.follows_rules() => {
                self.openings = saved.reopenings.saturating_add(1);
                let left = time.min(self.config.open_for.cap()).saturating_sub(elapsed);
                let until = later(now, left);
                self.turn(Phase::Open { until }, Cause::Restored, now);
            }
            (Mode::ForcedOpen, _) => self.turn(Phase::Open { until: Duration::MAX }, Cause::Restored, now),
            _ if before == mode && self.lets_all_in() => {}
            _ => self.close(None, Cause::Restored, now),
        }
    }

    pub(crate) fn snapshot(&mut self, now: Duration) -> Snapshot {
        self.take_in();
        let rate = |slow: bool| {
            let of_kind = |meter: &&Meter| match meter {
                Meter::Rate { bad, .. } => slow == matches!(bad, Bad::SlowerThan(_)),
                Meter::InARow { .. } => false,
            };
            self.meters.iter().find(of_kind).map_or((0, 0), |meter| meter.counts(now, self.counted))
        };
        let in_a_row = self.meters.iter().find(|meter| matches!(meter, Meter::InARow { .. }));
        let (calls, failures) = rate(false);
        let (retry_after, probes_in_flight, admitted) = match self.phase {
            Phase::Closed { ramp } => {
                (None, 0, ramp.map_or(1.0, |ramp| share(ramp.since, self.config.ramp, now)))
            }
            Phase::Open { until: Duration::MAX } => (None, 0, 0.0),
            Phase::Open { until } => (Some(until.saturating_sub(now)), 0, 0.0),
            Phase::HalfOpen { in_flight, .. } => (None, in_flight, 0.0),
        };
        Snapshot {
            state: self.state(),
            mode: self.mode,
            epoch: self.epoch,
            calls,
            failures,
            slow_calls: rate(true).1,
            consecutive_failures: in_a_row.map_or(0, |meter| meter.counts(now, self.counted).0),
            retry_after,
            probes_in_flight,
            reopenings: self.openings.saturating_sub(1),
            admitted,
            totals: self.totals,
        }
    }
}
