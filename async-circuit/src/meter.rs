use std::time::Duration;

use crate::event::Cause;
use crate::trip::{Bad, Rule, Window};
use crate::window::{Buckets, CountWindow, Tally, TimeWindow};

/// A finished call, as the rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) failed: bool,
    /// How long it took; zero where no rule asks.
    pub(crate) took: Duration,
}

/// One rule and what it has counted.
#[derive(Clone, Debug)]
pub(crate) enum Meter {
    InARow { limit: u32, failures: u32 },
    Rate { bad: Bad, rate: f64, min_calls: u64, calls: Calls },
}

#[derive(Clone, Debug)]
pub(crate) enum Calls {
    OfLast(CountWindow),
    Within(TimeWindow),
}

impl Bad {
    pub(crate) fn is(self, call: Call) -> bool {
        match self {
            Self::Failed => call.failed,
            Self::SlowerThan(time) => call.took > time,
        }
    }
}

impl Meter {
    pub(crate) fn new(rule: Rule) -> Self {
        match rule {
            Rule::InARow(limit) => Self::InARow { limit: limit.get(), failures: 0 },
            Rule::Rate(trip) => {
                let (calls, least) = match trip.window {
                    Window::OfLast(n) => {
                        (Calls::OfLast(CountWindow::new(n.get())), trip.min_calls.min(n).get())
                    }
                    Window::Within(time) => (Calls::Within(TimeWindow::new(time)), trip.min_calls.get()),
                };
                Self::Rate { bad: trip.bad, rate: trip.rate, min_calls: least.into(), calls }
            }
        }
    }

    /// Forgets everything. (A time window does so by itself: its counts belong to an epoch.)
    pub(crate) fn clear(&mut self) {
        match self {
            Self::InARow { failures, .. } => *failures = 0,
            Self::Rate { calls: Calls::OfLast(calls), .. } => calls.clear(),
            Self::Rate { calls: Calls::Within(_), .. } => {}
        }
    }

    pub(crate) fn record(&mut self, call: Call, now: Duration, epoch: u64) {
        match self {
            Self::InARow { failures, .. } if call.failed => *failures = failures.saturating_add(1),
            Self::InARow { failures, .. } => *failures = 0,
            Self::Rate { bad, calls: Calls::OfLast(calls), .. } => calls.record(bad.is(call)),
            Self::Rate { bad, calls: Calls::Within(calls), .. } => calls.record(bad.is(call), now, epoch),
        }
    }

    /// Takes in so many good calls. (A window over time counts them by itself.)
    pub(crate) fn record_good(&mut self, good: u64) {
        match self {
            Self::InARow { failures, .. } if good > 0 => *failures = 0,
            Self::Rate { calls: Calls::OfLast(calls), .. } => (0..good).for_each(|_| calls.record(false)),
            _ => {}
        }
    }

    /// Why this call, already recorded, opens the circuit, if it does.
    pub(crate) fn judge(&self, call: Call, now: Duration, epoch: u64) -> Option<Cause> {
        match self {
            Self::InARow { limit, failures } => {
                (call.failed && failures >= limit).then_some(Cause::ConsecutiveFailures)
            }
            Self::Rate { bad: kind, rate, min_calls, .. } => {
                if !kind.is(call) {
                    return None;
                }
                let (calls, bad) = self.counts(now, epoch);
                let cause = match kind {
                    Bad::Failed => Cause::FailureRate,
                    Bad::SlowerThan(_) => Cause::SlowRate,
                };
                (calls >= *min_calls && at_least(bad, calls, *rate)).then_some(cause)
            }
        }
    }

    /// Calls, and how many of them were bad.
    pub(crate) fn counts(&self, now: Duration, epoch: u64) -> (u64, u64) {
        match self {
            Self::InARow { failures, .. } => (u64::from(*failures), u64::from(*failures)),
            Self::Rate { calls: Calls::OfLast(calls), .. } => calls.counts(),
            Self::Rate { calls: Calls::Within(calls), .. } => calls.counts(now, epoch),
        }
    }

    /// A good call changes nothing but a tally.
    pub(crate) const fn is_spotless(&self) -> bool {
        match self {
            Self::InARow { failures, .. } => *failures == 0,
            Self::Rate { calls: Calls::OfLast(calls), .. } => calls.is_spotless(),
            Self::Rate { calls: Calls::Within(_), .. } => true,
        }
    }

    pub(crate) fn tally(&self) -> Option<(Buckets, Tally)> {
        match self {
            Self::Rate { calls: Calls::Within(calls), .. } => Some(calls.tally()),
            _ => None,
        }
    }
}

/// Whether `part` of `all` is `rate` or more. By division, which rounds to the same value as the literal: 55 of 100 are
/// 0.55, but 0.55 * 100 is more than 55.
pub(crate) fn at_least(part: u64, all: u64, rate: f64) -> bool {
    part as f64 / all as f64 >= rate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_of_so_many_per_cent_is_reached_by_so_many_of_a_hundred() {
        for percent in 1..=100_u64 {
            let rate: f64 = format!("{}e-2", percent).parse().unwrap();
            assert!(at_least(percent, 100, rate), "{percent}");
            assert!(!at_least(percent - 1, 100, rate), "{percent}");
        }
    }
}
