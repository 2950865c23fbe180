//! The pure core. `now` is the time since the breaker was made; decisions go out as values and transitions into an outbox.
//!
//! | state | event | next |
//! |---|---|---|
//! | closed | a failure or slow call, with a rule's threshold reached | open |
//! | open | a call after the open time | half-open; the call is a probe |
//! | half-open | the probes' judgement is certain: failed | open |
//! | half-open | the probes' judgement is certain: succeeded | closed, with empty windows |
//! | half-open | anything, once probes have been in flight for the half-open limit | open |
//! | any | the mode is set, the breaker reset or restored | what that says |
//!
//! 1. Each transition starts a new epoch; a result from an earlier epoch changes no window and no state.
//! 2. In half-open, probes in flight plus probes answered are never more than `probes`. Nor are probes in flight, those of
//!    earlier half-open times among them for as long as their time would have lasted: a decision may come before
//!    all have answered.
//! 3. An aborted or ignored probe gives its place back.
//! 4. Nothing but a failure or a slow call opens a closed circuit.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_policy::Reason;

use crate::config::{Config, Recovery};
use crate::event::{Cause, Ending};
use crate::meter::{Call, Meter, at_least};
use crate::open_time::DEFAULT_OPEN_FOR;
use crate::snapshot::{Mode, State, Totals};
use crate::window::{Aside, Buckets, Tally};

use self::values::NO_EPOCH;
pub(crate) use self::values::{Admission, Refusal, Stamp, Turn};

/// For how many times its open time a circuit that nobody calls is still remembered when that is over.
const REMEMBERED: u32 = 4;

/// The share of calls let through at the start of the ramp.
const RAMP_START: f64 = 0.1;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Closed {
        ramp: Option<Ramp>,
    },
    Open {
        until: Duration,
    },
    /// Probes in flight have `until` then to answer; where there is none, it waits for calls.
    HalfOpen {
        until: Duration,
        in_flight: u32,
        good: u32,
        bad: u32,
    },
}

/// The way back to full traffic. Calls earn a share of a place each, so that those let through are evenly spread.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ramp {
    since: Duration,
    credit: f64,
}

/// Probes that were in flight when the circuit stopped waiting for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stragglers {
    epoch: u64,
    count: u32,
    /// When their time would have been over: after that they are taken to hang.
    until: Duration,
}

#[derive(Debug)]
pub(crate) struct Circuit {
    config: Arc<Config>,
    random: fastrand::Rng,
    mode: Mode,
    phase: Phase,
    epoch: u64,
    /// When the epoch began.
    since: Duration,
    /// The epoch the windows belong to: the last closed one.
    counted: u64,
    meters: Box<[Meter]>,
    /// From the first bad call on.
    aside: Option<Aside>,
    /// How often it opened since the last recovery.
    openings: u32,
    stragglers: Vec<Stragglers>,
    totals: Totals,
    outbox: VecDeque<Turn>,
    /// Someone is telling the transitions of the outbox, and will tell the next ones too.
    pub(crate) telling: bool,
}

impl Circuit {
    /// The `nth` circuit of a configuration: a seed gives each its own jitter.
    pub(crate) fn new(config: Arc<Config>, nth: u64) -> Self {
        let meters = config.trip.rules.iter().map(|rule| Meter::new(*rule)).collect();
        let mut circuit = Self {
            random: config
                .seed
                .map_or_else(fastrand::Rng::new, |seed| fastrand::Rng::with_seed(seed.wrapping_add(nth))),
            mode: config.mode,
            phase: Phase::Closed { ramp: None },
            epoch: 0,
            since: Duration::ZERO,
            counted: 0,
            meters,
            aside: None,
            openings: 0,
            stragglers: Vec::new(),
            totals: Totals::default(),
            outbox: VecDeque::new(),
            telling: false,
            config,
        };
        if circuit.mode == Mode::ForcedOpen {
            circuit.phase = Phase::Open { until: Duration::MAX };
        }
        circuit
    }

    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) const fn state(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// What counts good calls outside the lock.
    pub(crate) fn tallies(&self) -> impl Iterator<Item = (Buckets, Tally)> {
        self.meters.iter().filter_map(Meter::tally)
    }

    /// Where good calls of the closed circuit may be laid aside.
    pub(crate) const fn aside(&self) -> Option<&Aside> {
        self.aside.as_ref()
    }

    /// Takes in the good calls that were laid aside.
    pub(crate) fn take_in(&mut self) {
        let good = self.aside.as_ref().map_or(0, |aside| aside.take(self.epoch));
        self.meters.iter_mut().for_each(|meter| meter.record_good(good));
    }

    /// Closed, and every call let in.
    pub(crate) const fn lets_all_in(&self) -> bool {
        matches!(self.phase, Phase::Closed { ramp: None })
    }

    /// Closed, and one more good call changes nothing but tallies.
    pub(crate) fn is_spotless(&self) -> bool {
        let unmoved = !self.counts() || self.meters.iter().all(Meter::is_spotless);
        matches!(self.phase, Phase::Closed { .. }) && unmoved
    }

    /// Calls are counted.
    pub(crate) const fn counts(&self) -> bool {
        !matches!(self.mode, Mode::Disabled)
    }

    /// Until when every call is refused; `Duration::MAX` is for ever.
    pub(crate) const fn refuses_until(&self) -> Option<Duration> {
        match self.phase {
            Phase::Open { until } if !matches!(self.mode, Mode::ObserveOnly) => Some(until),
            _ => None,
        }
    }

    /// Closed, with all calls let in, or long given up by those who call; and follows the mode it was built with.
    pub(crate) fn is_evictable(&self, now: Duration) -> bool {
        self.mode == self.config.mode
            && match self.phase {
                Phase::Closed { ramp } => {
                    ramp.is_none_or(|ramp| share(ramp.since, self.config.ramp, now) >= 1.0)
                }
                Phase::Open { until } => given_up(until, until.saturating_sub(self.since), now),
                Phase::HalfOpen { until, .. } => given_up(until, self.config.half_open_limit, now),
            }
    }

    /// The next transition to be told.
    pub(crate) fn next_turn(&mut self) -> Option<Turn> {
        self.outbox.pop_front()
    }

    pub(crate) fn has_turns(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Lets a call in or refuses it.
    pub(crate) fn admit(&mut self, now: Duration) -> Admission {
        self.tick(now);
        if matches!(self.phase, Phase::Open { until } if until <= now) {
            self.half_open(now);
        }
        let refusal = match &mut self.phase {
            Phase::Closed { ramp: Some(ramp) } => {
                ramp.credit += share(ramp.since, self.config.ramp, now);
                let refusal = Refusal { reason: Reason::RampingUp, retry_after: None };
                if ramp.credit < 1.0 {
                    Some(refusal)
                } else {
                    ramp.credit -= 1.0;
                    None
                }
            }
            _ => self.refusal(now),
        };
        match refusal {
            Some(refusal) if self.mode == Mode::ObserveOnly => {
                self.totals.would_refuse += 1;
                Admission::Observed(Stamp { epoch: NO_EPOCH, state: self.state() }, refusal)
            }
            Some(refusal) => Admission::Refused(refusal),
            None => {
                if let Phase::HalfOpen { until, in_flight, .. } = &mut self.phase {
                    if *in_flight == 0 {
                        *until = now.saturating_add(self.config.half_open_limit);
                    }
                    *in_flight += 1;
                }
                Admission::Admitted(Stamp { epoch: self.epoch, state: self.state() })
            }
        }
    }

    /// Why a call would be refused at `now`, if that is certain without letting it try.
    pub(crate) fn refusal(&self, now: Duration) -> Option<Refusal> {
        match self.phase {
            Phase::Open { until: Duration::MAX } => Some(Refusal::open(Duration::MAX)),
            Phase::Open { until } if now < until => Some(Refusal::open(until - now)),
            Phase::HalfOpen { until, in_flight, good, bad } if in_flight == 0 || now < until => {
                let probes = self.config.probes.get();
                let taken = in_flight + good + bad >= probes || in_flight + self.straggling(now) >= probes;
                // Nobody knows when the probes will answer.
                taken.then_some(Refusal { reason: Reason::ProbesTaken, retry_after: None })
            }
            _ => None,
        }
    }

    /// Probes of earlier half-open times that may still be in flight.
    fn straggling(&self, now: Duration) -> u32 {
        let at_large = self.stragglers.iter().filter(|stragglers| now < stragglers.until);
        at_large.map(|stragglers| stragglers.count).sum()
    }

    /// What a call that is only looking would be told: in a mode that refuses nothing, nothing.
    #[cfg(feature = "tower")]
    pub(crate) fn peek(&self, now: Duration) -> Option<Refusal> {
        if self.mode == Mode::ObserveOnly { None } else { self.refusal(now) }
    }

    /// Takes the end of a call, and says whether it was slow.
    pub(crate) fn record(&mut self, stamp: Stamp, ending: Ending, took: Duration, now: Duration) -> bool {
        self.tick(now);
        let slow = self.is_slow(ending, took);
        match ending {
            Ending::Success => {}
            Ending::Failure => self.totals.failures += 1,
            Ending::Panicked => self.totals.panics += 1,
            Ending::Ignored => self.totals.ignored += 1,
            Ending::Aborted => self.totals.aborted += 1,
        }
        self.totals.slow += u64::from(slow);
        if stamp.epoch != self.epoch {
            if let Some(stragglers) = self.stragglers.iter_mut().find(|left| left.epoch == stamp.epoch) {
                stragglers.count -= 1;
            }
            return slow;
        }
        let counts = !matches!(ending, Ending::Ignored | Ending::Aborted);
        let call = Call { failed: ending.is_failure(), took };
        let bad_call = call.failed || slow;
        match &mut self.phase {
            Phase::Closed { .. } if counts && self.mode != Mode::Disabled => {
                if bad_call && self.aside.is_none() {
                    self.aside = self.config.trip.longest_count().map(Aside::new);
                }
                self.count(call, now);
            }
            Phase::HalfOpen { in_flight, good, bad, .. } => {
                *in_flight -= 1;
                if counts && bad_call {
                    *bad += 1;
                } else if counts {
                    *good += 1;
                }
                let (good, bad) = (*good, *bad);
                match self.judge(good, bad) {
                    Some(true) => self.recover(now),
                    Some(false) => self.open(Cause::ProbesFailed, now),
                    None => {}
                }
            }
            // No call is let in under the epoch of an open circuit.
            _ => {}
        }
        slow
    }

    fn is_slow(&self, ending: Ending, took: Duration) -> bool {
        !took.is_zero()
            && !matches!(ending, Ending::Ignored | Ending::Aborted)
            && self.config.trip.slower_than().is_some_and(|time| took > time)
    }

    fn count(&mut self, call: Call, now: Duration) {
        self.take_in();
        for meter in &mut self.meters {
            meter.record(call, now, self.epoch);
        }
        if self.mode == Mode::ForcedClosed {
            return;
        }
        let cause = self.meters.iter().find_map(|meter| meter.judge(call, now, self.epoch));
        if let Some(cause) = cause {
            self.open(cause, now);
        }
    }

    /// Whether the probes have succeeded, as soon as that is certain.
    fn judge(&self, good: u32, bad: u32) -> Option<bool> {
        let probes = self.config.probes.get();
        let (failed, succeeded) = match self.config.recovery {
            Recovery::InARow => (bad > 0, good == probes),
            Recovery::FailureRate(rate) => {
                let at_least = |bad: u32| at_least(bad.into(), probes.into(), rate);
                (at_least(bad), !at_least(probes - good))
            }
        };
        if failed { Some(false) } else { succeeded.then_some(true) }
    }

    /// What time alone does.
    fn tick(&mut self, now: Duration) {
        match self.phase {
            Phase::HalfOpen { until, in_flight: 1.., .. } if until <= now => {
                self.open(Cause::HalfOpenExpired, now);
            }
            Phase::Closed { ramp: Some(ramp) } if share(ramp.since, self.config.ramp, now) >= 1.0 => {
                self.phase = Phase::Closed { ramp: None };
                self.openings = 0;
            }
            _ => {}
        }
    }

    fn turn(&mut self, phase: Phase, cause: Cause, now: Duration) {
        let from = self.state();
        self.stragglers.retain(|left| left.count > 0 && now < left.until);
        if let Phase::HalfOpen { until, in_flight: count, .. } = self.phase
            && count > 0
            && now < until
        {
            self.stragglers.push(Stragglers { epoch: self.epoch, count, until });
        }
        self.phase = phase;
        self.since = now;
        self.epoch += 1;
        let open_for = match phase {
            Phase::Open { until } if until != Duration::MAX => Some(until.saturating_sub(now)),
            _ => None,
        };
        let to = self.state();
        self.outbox.push_back(Turn { epoch: self.epoch, from, to, cause, at: now, open_for });
    }

    fn open(&mut self, cause: Cause, now: Duration) {
        let time = &self.config.open_for;
        let time = if time.choose().is_some() {
            DEFAULT_OPEN_FOR
        } else {
            time.after(self.openings, self.random.f64())
        };
        self.openings = self.openings.saturating_add(1);
        self.turn(Phase::Open { until: later(now, time) }, cause, now);
    }

    /// Gives the opening of `epoch` another time, if the circuit still is in it.
    pub(crate) fn set_open_for(&mut self, turn: &Turn, time: Duration) {
        if let Phase::Open { until } = &mut self.phase
            && self.epoch == turn.epoch
        {
            *until = later(turn.at, time);
        }
    }

    fn half_open(&mut self, now: Duration) {
        let phase = Phase::HalfOpen { until: now, in_flight: 0, good: 0, bad: 0 };
        self.turn(phase, Cause::OpenTimeOver, now);
    }

    fn recover(&mut self, now: Duration) {
        // The first call after the recovery is let in.
        let ramp = self.config.ramp.map(|_| Ramp { since: now, credit: 1.0 - RAMP_START });
        if ramp.is_none() {
            self.openings = 0;
        }
        self.close(ramp, Cause::ProbesSucceeded, now);
    }

    fn close(&mut self, ramp: Option<Ramp>, cause: Cause, now: Duration) {
        self.meters.iter_mut().for_each(Meter::clear);
        self.turn(Phase::Closed { ramp }, cause, now);
        self.counted = self.epoch;
    }

    /// Sets the mode. A circuit that was following the rules goes on where it stands if it is to follow them on, watched or
    /// not; in every other case it starts afresh.
    pub(crate) fn set_mode(&mut self, mode: Mode, now: Duration) {
        let before = std::mem::replace(&mut self.mode, mode);
        if before != mode && !(before.follows_rules() && mode.follows_rules()) {
            self.start_afresh(now);
        }
    }

    /// Opened by hand for so long; then the rules decide.
    pub(crate) fn open_for(&mut self, time: Duration, now: Duration) {
        if !self.mode.follows_rules() {
            self.mode = Mode::Automatic;
        }
        self.turn(Phase::Open { until: later(now, time) }, Cause::Manual, now);
    }

    /// Back to how it was built.
    pub(crate) fn reset(&mut self, now: Duration) {
        self.mode = self.config.mode;
        self.start_afresh(now);
    }

    fn start_afresh(&mut self, now: Duration) {
        self.openings = 0;
        if self.mode == Mode::ForcedOpen {
            self.turn(Phase::Open { until: Duration::MAX }, Cause::Manual, now);
        } else {
            self.close(None, Cause::Manual, now);
        }
    }
}

/// The share of calls let through, so long after a recovery.
fn share(since: Duration, ramp: Option<Duration>, now: Duration) -> f64 {
    let Some(ramp) = ramp else { return 1.0 };
    let passed = now.saturating_sub(since).as_secs_f64() / ramp.as_secs_f64();
    (RAMP_START + (1.0 - RAMP_START) * passed).min(1.0)
}

/// Whether a time that ended `until` then is over for long. (Forgotten sooner, a dead backend would get all calls where a probe
/// was promised.)
fn given_up(until: Duration, time: Duration, now: Duration) -> bool {
    until.checked_add(time.saturating_mul(REMEMBERED)).is_some_and(|end| end <= now)
}

/// `now` and `time` later, but before "for ever".
fn later(now: Duration, time: Duration) -> Duration {
    now.saturating_add(time).min(Duration::MAX - Duration::from_nanos(1))
}

mod report;
mod values;

#[cfg(all(test, not(family_loom)))]
mod model;
#[cfg(all(test, not(family_loom)))]
mod tests;
