//! The pure core. `now` is the time since the breaker was made; decisions and transitions go out as values.
//!
//! | state | event | next |
//! |---|---|---|
//! | closed | a failure, with the trip's rate and minimum reached | open |
//! | open | a call after `open_for` | half-open; the call is a probe |
//! | half-open | all probes answered, failure rate at or above the trip's | open |
//! | half-open | all probes answered, failure rate below the trip's | closed, with an empty window |
//! | half-open | a call after `half_open_limit` | open |
//!
//! 1. Each transition starts a new epoch; a result from an earlier epoch changes nothing.
//! 2. In half-open, probes in flight plus probes answered are never more than `probes`.
//! 3. An aborted or ignored probe gives its place back.

use std::time::Duration;

use async_policy::Reason;

use crate::config::Config;
use crate::window::CountWindow;

/// Where the circuit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls go through and are counted.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls go through and decide.
    HalfOpen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Open { until: Duration },
    HalfOpen { until: Duration, in_flight: u32, successes: u32, failures: u32 },
}

/// What the end of a call says of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Success,
    Failure,
    /// Ignored, or dropped without an answer.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) retry_after: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(crate) struct Circuit {
    config: Config,
    epoch: u64,
    phase: Phase,
    window: CountWindow,
}

impl Circuit {
    pub(crate) fn new(config: Config) -> Self {
        let window = CountWindow::new(config.trip.window.get());
        Self { config, epoch: 0, phase: Phase::Closed, window }
    }

    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) const fn state(&self) -> State {
        match self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Calls and failures in the window.
    pub(crate) const fn counts(&self) -> (u32, u32) {
        (self.window.calls(), self.window.failures())
    }

    /// How long the circuit stays open from `now`.
    pub(crate) const fn open_for(&self, now: Duration) -> Option<Duration> {
        match self.phase {
            Phase::Open { until } => Some(until.saturating_sub(now)),
            _ => None,
        }
    }

    /// A closed circuit in which one more success changes nothing.
    pub(crate) const fn is_spotless(&self) -> bool {
        matches!(self.phase, Phase::Closed) && self.window.is_spotless()
    }

    /// Lets a call in, and says under which epoch; or refuses it.
    pub(crate) fn admit(&mut self, now: Duration) -> Result<u64, Refusal> {
        match self.phase {
            Phase::Open { until } if until <= now => self.half_open(now),
            Phase::HalfOpen { until, .. } if until <= now => self.open(now),
            _ => {}
        }
        if let Some(refusal) = self.refusal(now) {
            return Err(refusal);
        }
        if let Phase::HalfOpen { in_flight, .. } = &mut self.phase {
            *in_flight += 1;
        }
        Ok(self.epoch)
    }

    /// Why a call would be refused at `now`, if it would.
    pub(crate) fn refusal(&self, now: Duration) -> Option<Refusal> {
        match self.phase {
            Phase::Open { until } if now < until => {
                Some(Refusal { reason: Reason::CircuitOpen, retry_after: Some(until - now) })
            }
            // Nobody knows when the probes will answer.
            Phase::HalfOpen { until, in_flight, successes, failures }
                if now < until && in_flight + successes + failures >= self.config.probes.get() =>
            {
                Some(Refusal { reason: Reason::ProbesTaken, retry_after: None })
            }
            _ => None,
        }
    }

    /// Takes the end of a call that was let in under `epoch`.
    pub(crate) fn record(&mut self, epoch: u64, record: Record, now: Duration) {
        if epoch != self.epoch {
            return;
        }
        match &mut self.phase {
            Phase::Closed => match record {
                Record::Nothing => {}
                Record::Success => self.window.record(false),
                Record::Failure => {
                    self.window.record(true);
                    let trip = &self.config.trip;
                    let least = trip.min_calls.min(trip.window).get();
                    let (calls, failures) = (self.window.calls(), self.window.failures());
                    if calls >= least && f64::from(failures) >= trip.rate * f64::from(calls) {
                        self.open(now);
                    }
                }
            },
            Phase::HalfOpen { in_flight, successes, failures, .. } => {
                *in_flight -= 1;
                match record {
                    Record::Nothing => {}
                    Record::Success => *successes += 1,
                    Record::Failure => *failures += 1,
                }
                let answered = *successes + *failures;
                if answered == self.config.probes.get() {
                    if f64::from(*failures) >= self.config.trip.rate * f64::from(answered) {
                        self.open(now);
                    } else {
                        self.close();
                    }
                }
            }
            // No call is let in under the epoch of an open circuit.
            Phase::Open { .. } => {}
        }
    }

    fn turn(&mut self, phase: Phase) {
        self.epoch += 1;
        self.phase = phase;
    }

    fn open(&mut self, now: Duration) {
        self.turn(Phase::Open { until: now.saturating_add(self.config.open_for) });
    }

    fn half_open(&mut self, now: Duration) {
        let until = now.saturating_add(self.config.half_open_limit);
        self.turn(Phase::HalfOpen { until, in_flight: 0, successes: 0, failures: 0 });
    }

    fn close(&mut self) {
        self.window.clear();
        self.turn(Phase::Closed);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::Trip;

    fn circuit(rate: f64, window: u32, min: u32, probes: u32) -> Circuit {
        let n = |n| NonZeroU32::new(n).unwrap();
        Circuit::new(Config {
            trip: Trip::failure_rate(rate).of_last(n(window)).with_min_calls(n(min)),
            open_for: Duration::from_secs(60),
            probes: n(probes),
            ..Config::default()
        })
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn feed(circuit: &mut Circuit, now: Duration, calls: &str) {
        for call in calls.chars() {
            let epoch = circuit.admit(now).expect("admitted");
            let record = match call {
                'S' => Record::Success,
                'F' => Record::Failure,
                _ => Record::Nothing,
            };
            circuit.record(epoch, record, now);
        }
    }

    #[test]
    fn the_ratio_opens_on_a_failure_once_the_minimum_is_reached() {
        for (rate, min, closed, opens) in
            [(0.6, 3, "FS", "F"), (0.5, 5, "SSSFF", "F"), (1.0, 2, "F", "F"), (0.5, 4, "FFF.", "F")]
        {
            let mut circuit = circuit(rate, 100, min, 1);
            feed(&mut circuit, at(0.0), closed);
            assert_eq!(circuit.state(), State::Closed, "{closed}");
            feed(&mut circuit, at(0.0), opens);
            assert_eq!(circuit.state(), State::Open, "{closed}{opens}");
        }
    }

    #[test]
    fn a_success_never_opens() {
        let mut circuit = circuit(0.5, 10, 4, 1);
        feed(&mut circuit, at(0.0), "FFFS");
        assert_eq!((circuit.state(), circuit.counts()), (State::Closed, (4, 3)));
        feed(&mut circuit, at(0.0), "F");
        assert_eq!(circuit.state(), State::Open);
    }

    #[test]
    fn the_window_slides_over_exactly_the_last_calls() {
        let mut circuit = circuit(0.5, 100, 20, 1);
        feed(&mut circuit, at(0.0), &"S".repeat(10_000));
        assert!(circuit.is_spotless());
        feed(&mut circuit, at(0.0), &"F".repeat(49));
        assert_eq!((circuit.state(), circuit.counts()), (State::Closed, (100, 49)));
        feed(&mut circuit, at(0.0), "F");
        assert_eq!(circuit.state(), State::Open);
    }

    #[test]
    fn it_stays_open_for_its_time_then_a_probe_decides() {
        let mut circuit = circuit(0.5, 10, 1, 1);
        feed(&mut circuit, at(0.0), "F");
        let refusal = circuit.admit(at(59.999)).unwrap_err();
        assert_eq!(refusal.reason, Reason::CircuitOpen);
        assert_eq!(refusal.retry_after, Some(Duration::from_millis(1)));
        feed(&mut circuit, at(60.0), "F");
        assert_eq!(circuit.open_for(at(61.0)), Some(at(59.0)));
        feed(&mut circuit, at(120.0), "S");
        assert_eq!((circuit.state(), circuit.counts()), (State::Closed, (0, 0)));
    }

    #[test]
    fn half_open_is_judged_by_rate_over_exactly_its_probes() {
        for (probes, state) in [("FSSS", State::Closed), ("FFSS", State::Open), ("F.S.SS", State::Closed)] {
            let mut circuit = circuit(0.5, 10, 1, 4);
            feed(&mut circuit, at(0.0), "F");
            feed(&mut circuit, at(60.0), probes);
            assert_eq!(circuit.state(), state, "{probes}");
        }
    }

    #[test]
    fn probes_in_flight_and_in_all_are_bounded_and_an_aborted_one_gives_its_place_back() {
        let mut circuit = circuit(0.5, 10, 1, 2);
        feed(&mut circuit, at(0.0), "F");
        let first = circuit.admit(at(60.0)).unwrap();
        let second = circuit.admit(at(60.0)).unwrap();
        assert_eq!(circuit.admit(at(60.0)).unwrap_err().reason, Reason::ProbesTaken);
        circuit.record(first, Record::Nothing, at(60.0));
        circuit.record(second, Record::Success, at(60.0));
        assert_eq!(circuit.admit(at(60.0)), Ok(first));
        assert_eq!(circuit.admit(at(60.0)).unwrap_err().reason, Reason::ProbesTaken);
    }

    #[test]
    fn a_hung_probe_cannot_block_the_circuit() {
        let mut circuit = circuit(0.5, 10, 1, 1);
        feed(&mut circuit, at(0.0), "F");
        let hung = circuit.admit(at(60.0)).unwrap();
        assert_eq!(circuit.admit(at(119.0)).unwrap_err().reason, Reason::ProbesTaken);
        assert_eq!(circuit.admit(at(120.0)).unwrap_err().reason, Reason::CircuitOpen);
        let fresh = circuit.admit(at(180.0)).unwrap();
        circuit.record(hung, Record::Failure, at(180.0));
        assert_eq!(circuit.state(), State::HalfOpen, "a result from an earlier epoch changes nothing");
        circuit.record(fresh, Record::Success, at(180.0));
        assert_eq!(circuit.state(), State::Closed);
    }

    #[test]
    fn late_results_of_the_closed_time_are_inert() {
        let mut circuit = circuit(0.5, 10, 1, 1);
        let late = circuit.admit(at(0.0)).unwrap();
        feed(&mut circuit, at(0.0), "F");
        circuit.record(late, Record::Success, at(1.0));
        assert_eq!(circuit.state(), State::Open);
        let probe = circuit.admit(at(60.0)).unwrap();
        circuit.record(late, Record::Success, at(60.0));
        assert_eq!(circuit.state(), State::HalfOpen);
        circuit.record(probe, Record::Success, at(60.0));
        assert_eq!(circuit.state(), State::Closed);
    }
}
