//! The core against a naive model that keeps every record and looks through all of them each time.

use std::num::NonZeroU32;
use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::{OpenTime, Trip, TripRules};

/// How one rule is written down for the model, in milliseconds.
#[derive(Clone, Copy, Debug)]
enum Rule {
    InARow(u32),
    OfLast { slow: bool, percent: u32, calls: u32, min: u32 },
    Within { slow: bool, percent: u32, millis: u64, min: u32 },
}

const SLOW: u64 = 50;

impl Rule {
    fn real(self) -> TripRules {
        let n = |n| NonZeroU32::new(n).unwrap();
        let rate = |slow, percent| match slow {
            true => Trip::slow_rate(f64::from(percent) / 100.0, Duration::from_millis(SLOW)),
            false => Trip::failure_rate(f64::from(percent) / 100.0),
        };
        match self {
            Self::InARow(failures) => Trip::consecutive_failures(n(failures)),
            Self::OfLast { slow, percent, calls, min } => {
                rate(slow, percent).of_last(n(calls)).with_min_calls(n(min)).into()
            }
            Self::Within { slow, percent, millis, min } => {
                rate(slow, percent).within(Duration::from_millis(millis)).with_min_calls(n(min)).into()
            }
        }
    }

    /// Whether the last of these records opens the circuit. Rates are compared in whole numbers.
    fn trips(self, records: &[Record], now: u64) -> bool {
        let last = records[records.len() - 1];
        match self {
            Self::InARow(failures) => {
                last.failed
                    && records.iter().rev().take_while(|record| record.failed).count() as u32 >= failures
            }
            Self::OfLast { slow, percent, calls, min } => {
                let from = records.len().saturating_sub(calls as usize);
                reached(&records[from..], slow, percent, min.min(calls))
            }
            Self::Within { slow, percent, millis, min } => {
                // 16 buckets, counted in whole nanoseconds.
                let bucket = |at: u64| at * 1_000_000 / (millis * 1_000_000).div_ceil(16);
                let live: Vec<_> =
                    records.iter().filter(|record| bucket(record.at) + 16 > bucket(now)).copied().collect();
                reached(&live, slow, percent, min)
            }
        }
    }
}

fn reached(records: &[Record], slow: bool, percent: u32, min: u32) -> bool {
    let is_bad = |record: &Record| if slow { record.slow } else { record.failed };
    let bad = records.iter().filter(|record| is_bad(record)).count();
    is_bad(&records[records.len() - 1])
        && records.len() >= min as usize
        && bad * 100 >= percent as usize * records.len()
}

#[derive(Clone, Copy, Debug)]
struct Record {
    at: u64,
    failed: bool,
    slow: bool,
}

/// A probe's answer, or none yet.
type Probe = Option<Option<bool>>;

#[derive(Debug)]
enum Place {
    Closed,
    Open { until: u64 },
    HalfOpen { until: u64, probes: Vec<Probe> },
}

struct Naive {
    rules: Vec<Rule>,
    probes: u32,
    in_a_row: bool,
    open_for: u64,
    cap: u64,
    limit: u64,
    place: Place,
    epoch: u64,
    openings: u32,
    records: Vec<Record>,
    /// Every probe ever: its epoch and number, when its half-open time is over, whether it has ended.
    all_probes: Vec<((u64, usize), u64, bool)>,
}

impl Naive {
    fn probes_in_flight(&self, now: u64) -> usize {
        self.all_probes
            .iter()
            .filter(|((epoch, _), until, ended)| !ended && (*epoch == self.epoch || now < *until))
            .count()
    }

    /// A probe of this half-open time has not answered.
    fn waits(&self) -> bool {
        self.all_probes.iter().any(|((epoch, _), _, ended)| !ended && *epoch == self.epoch)
    }

    fn go(&mut self, place: Place) {
        self.epoch += 1;
        self.place = place;
    }

    fn start_afresh(&mut self) {
        (self.openings, self.records) = (0, Vec::new());
        self.go(Place::Closed);
    }

    fn open(&mut self, now: u64) {
        let time = (self.open_for << self.openings.min(20)).min(self.cap);
        self.openings += 1;
        self.go(Place::Open { until: now + time });
    }

    fn tick(&mut self, now: u64) {
        if matches!(self.place, Place::HalfOpen { until, .. } if self.waits() && until <= now) {
            self.open(now);
        }
    }

    /// The epoch and, for a probe, its number; `None` if refused.
    fn admit(&mut self, now: u64) -> Option<(u64, usize)> {
        self.tick(now);
        if matches!(self.place, Place::Open { until } if until <= now) {
            self.go(Place::HalfOpen { until: 0, probes: Vec::new() });
        }
        let in_flight = self.probes_in_flight(now);
        let waits = self.waits();
        match &mut self.place {
            Place::Closed => Some((self.epoch, 0)),
            Place::Open { .. } => None,
            Place::HalfOpen { probes, until } => {
                // In flight or answered; those that told nothing have made room.
                let taken = probes.iter().filter(|probe| !matches!(probe, Some(None))).count();
                (taken.max(in_flight) < self.probes as usize).then(|| {
                    if !waits {
                        *until = now + self.limit;
                    }
                    probes.push(None);
                    let call = (self.epoch, probes.len() - 1);
                    self.all_probes.push((call, *until, false));
                    call
                })
            }
        }
    }

    fn record(&mut self, (epoch, probe): (u64, usize), ending: Ending, took: u64, now: u64) {
        self.tick(now);
        if let Some(probe) = self.all_probes.iter_mut().find(|(call, ..)| *call == (epoch, probe)) {
            probe.2 = true;
        }
        if epoch != self.epoch {
            return;
        }
        let told = !matches!(ending, Ending::Ignored | Ending::Aborted);
        let has_slow = self
            .rules
            .iter()
            .any(|rule| matches!(rule, Rule::OfLast { slow: true, .. } | Rule::Within { slow: true, .. }));
        let failed = matches!(ending, Ending::Failure | Ending::Panicked);
        let slow = has_slow && took > SLOW;
        match &mut self.place {
            Place::Closed if told => {
                self.records.push(Record { at: now, failed, slow });
                if self.rules.iter().any(|rule| rule.trips(&self.records, now)) {
                    self.open(now);
                }
            }
            Place::HalfOpen { probes, .. } => {
                probes[probe] = Some(told.then_some(!failed && !slow));
                let answers =
                    |good: bool| probes.iter().filter(|probe| **probe == Some(Some(good))).count() as u32;
                let (good, bad) = (answers(true), answers(false));
                let all = self.probes;
                // At half of all: even if the rest were good, or even if it were bad.
                let (fails, holds) = match self.in_a_row {
                    true => (bad > 0, good == all),
                    false => (bad * 2 >= all, (all - good) * 2 < all),
                };
                if fails {
                    self.open(now);
                } else if holds {
                    self.start_afresh();
                }
            }
            _ => {}
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Admit,
    End {
        which: usize,
        ending: Ending,
        took: u64,
    },
    Reset,
    /// Restored as it is saved, so much later.
    Restart(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ending = prop_oneof![
        6 => Just(Ending::Success),
        5 => Just(Ending::Failure),
        1 => Just(Ending::Panicked),
        1 => Just(Ending::Ignored),
        1 => Just(Ending::Aborted),
    ];
    let step = prop_oneof![
        2 => (0_u64..40).prop_map(Step::Wait),
        1 => (100_u64..900).prop_map(Step::Wait),
        1 => prop_oneof![
            4 => Just(Step::Wait(1)),
            1 => Just(Step::Reset),
            1 => (0_u64..200).prop_map(Step::Restart),
        ],
        8 => Just(Step::Admit),
        8 => (any::<prop::sample::Index>(), ending, 0_u64..70)
            .prop_map(|(which, ending, took)| Step::End { which: which.index(64), ending, took }),
    ];
    prop::collection::vec(step, 1..250)
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = prop_oneof![
        (1_u32..6).prop_map(Rule::InARow),
        (any::<bool>(), 1_u32..=100, 1_u32..80, 1_u32..20)
            .prop_map(|(slow, percent, calls, min)| Rule::OfLast { slow, percent, calls, min }),
        (any::<bool>(), 1_u32..=100, 1_u64..2000, 1_u32..20)
            .prop_map(|(slow, percent, millis, min)| Rule::Within { slow, percent, millis, min }),
    ];
    prop::collection::vec(rule, 1..4)
}

proptest! {
    #[test]
    fn the_core_does_what_the_naive_model_does(
        rules in rules(),
        probes in 1_u32..6,
        in_a_row: bool,
        (open_for, cap, limit) in (1_u64..300, 300_u64..1000, 1_u64..500),
        steps in steps(),
    ) {
        let trip = rules.iter().skip(1).fold(rules[0].real(), |trip, rule| trip.or(rule.real()));
        let ms = Duration::from_millis;
        let mut core = Circuit::new(Arc::new(Config {
            trip,
            probes: NonZeroU32::new(probes).unwrap(),
            recovery: if in_a_row { Recovery::InARow } else { Recovery::FailureRate(0.5) },
            open_for: OpenTime::growing(ms(open_for), ms(cap)),
            half_open_limit: ms(limit),
            ..Config::default()
        }), 0);
        let mut naive = Naive {
            rules, probes, in_a_row, open_for, cap, limit,
            place: Place::Closed, epoch: 0, openings: 0, records: Vec::new(),
            all_probes: Vec::new(),
        };
        let (mut now, mut calls) = (0_u64, Vec::new());
        for step in steps {
            match step {
                Step::Wait(time) => now += time,
                Step::Admit => match (core.admit(ms(now)), naive.admit(now)) {
                    (Admission::Admitted(stamp), Some(call)) => {
                        prop_assert_eq!(stamp.epoch, call.0);
                        calls.push((stamp, call));
                    }
                    (Admission::Refused(refusal), None) => {
                        let left = match naive.place {
                            Place::Open { until } => Some(ms(until - now)),
                            _ => None,
                        };
                        prop_assert_eq!(refusal.retry_after, left);
                    }
                    (core, naive) => prop_assert!(false, "{:?} and {:?}", core, naive),
                },
                Step::End { which, ending, took } if !calls.is_empty() => {
                    let (stamp, call) = calls.swap_remove(which % calls.len());
                    // A good call of the closed circuit may be counted outside the core.
                    let quick = ending == Ending::Success && took <= SLOW && stamp.epoch == core.epoch();
                    let outside = core.is_spotless() || core.aside().is_some() && stamp.state == State::Closed;
                    if quick && outside {
                        for (buckets, tally) in core.tallies() {
                            tally.add(buckets.number(ms(now), stamp.epoch));
                        }
                        if !core.is_spotless() && core.aside().is_some_and(|aside| aside.add(stamp.epoch)) {
                            core.take_in();
                        }
                    } else {
                        core.record(stamp, ending, ms(took), ms(now));
                    }
                    naive.record(call, ending, took, now);
                }
                Step::End { .. } => {}
                Step::Reset => {
                    core.reset(ms(now));
                    naive.start_afresh();
                }
                Step::Restart(elapsed) => {
                    let saved = core.save(ms(now), SystemTime::UNIX_EPOCH);
                    core.restore(&saved, ms(elapsed), ms(now));
                    match naive.place {
                        Place::Closed => {}
                        Place::Open { until } => {
                            let left = until.saturating_sub(now).saturating_sub(elapsed);
                            naive.go(Place::Open { until: now + left });
                        }
                        Place::HalfOpen { .. } => naive.go(Place::Open { until: now }),
                    }
                }
            }
            let state = match naive.place {
                Place::Closed => State::Closed,
                Place::Open { .. } => State::Open,
                Place::HalfOpen { .. } => State::HalfOpen,
            };
            prop_assert_eq!((core.state(), core.epoch()), (state, naive.epoch));
            let snapshot = core.snapshot(ms(now));
            prop_assert!(snapshot.probes_in_flight <= probes);
            prop_assert_eq!(core.refuses_until().is_some(), state == State::Open);
        }
    }
}
