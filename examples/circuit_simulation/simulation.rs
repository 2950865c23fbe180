//! The backend, the callers and the breakers.

use std::error::Error;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_circuit::{CircuitBreaker, Failure, Mode, OpenTime, Policy, State, Trip, TripRules};
use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

pub(crate) const LENGTH: f64 = 180.0;
pub(crate) const DIES: f64 = 30.0;
pub(crate) const RECOVERS: f64 = 90.0;
pub(crate) const RATE: f64 = 50.0;

/// A change of state, in seconds since the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) at: f64,
    pub(crate) to: State,
}

/// What one breaker made of it, by the second.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) name: &'static str,
    pub(crate) offered: Vec<u32>,
    pub(crate) reached: Vec<u32>,
    pub(crate) refused: Vec<u32>,
    pub(crate) changes: Vec<Change>,
}

pub(crate) fn all(seed: u64) -> Result<Vec<Run>, Box<dyn Error>> {
    let n = |n| NonZeroU32::new(n).expect("not zero");
    let rate = Trip::failure_rate(0.5);
    let rules: [(&str, Option<TripRules>); 6] = [
        ("no breaker", None),
        ("10 failures in a row", Some(Trip::consecutive_failures(n(10)))),
        ("50 % of the last 100", Some(rate.into())),
        ("50 % within 10 s", Some(rate.within(Duration::from_secs(10)).into())),
        ("50 % slower than 0.5 s", Some(Trip::slow_rate(0.5, Duration::from_millis(500)).into())),
        (
            "any of these",
            Some(
                Trip::consecutive_failures(n(10))
                    .or(rate)
                    .or(Trip::slow_rate(0.5, Duration::from_millis(500))),
            ),
        ),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    rules
        .into_iter()
        .map(|(name, trip)| {
            let breaker = CircuitBreaker::builder()
                .with_mode(if trip.is_some() { Mode::Automatic } else { Mode::Disabled })
                .with_trip(trip.unwrap_or_default())
                .with_open_for(
                    OpenTime::growing(Duration::from_secs(4), Duration::from_secs(20)).with_jitter(0.2),
                )
                .with_probes(n(3))
                .with_ramp(Duration::from_secs(10))
                .with_seed(seed)
                .build()?;
            Ok(runtime.block_on(run(name, breaker, seed)))
        })
        .collect()
}

async fn run(name: &'static str, breaker: CircuitBreaker, seed: u64) -> Run {
    let seconds = LENGTH as usize + 1;
    let run = Run {
        name,
        offered: vec![0; seconds],
        reached: vec![0; seconds],
        refused: vec![0; seconds],
        changes: Vec::new(),
    };
    let run = Arc::new(Mutex::new(run));
    let mut random = Rng::with_seed(seed);
    let started = Instant::now();
    let mut transitions = breaker.transitions();
    let mut changes = Vec::new();
    let mut calls = JoinSet::new();
    let mut at = 0.0;
    loop {
        at += -(1.0 - random.f64()).ln() / RATE;
        if at >= LENGTH {
            break;
        }
        sleep_until(started + Duration::from_secs_f64(at)).await;
        let second = at as usize;
        run.lock().expect("not poisoned").offered[second] += 1;
        let (breaker, run, took) = (breaker.clone(), Arc::clone(&run), 5 + random.u64(0..15));
        calls.spawn(async move {
            let call = || backend(at, took);
            let result = breaker.call(call).await;
            let mut run = run.lock().expect("not poisoned");
            let count =
                if let Err(Failure::Rejected(_)) = result { &mut run.refused } else { &mut run.reached };
            count[second] += 1;
        });
        changes.extend(std::iter::from_fn(|| transitions.try_next()));
    }
    while calls.join_next().await.is_some() {}
    changes.extend(std::iter::from_fn(|| transitions.try_next()));
    let mut run = std::mem::take(&mut *run.lock().expect("not poisoned"));
    run.changes = changes
        .into_iter()
        .map(|transition| Change { at: (transition.at - started).as_secs_f64(), to: transition.to })
        .collect();
    run
}

async fn backend(at: f64, took: u64) -> Result<(), &'static str> {
    if (DIES..RECOVERS).contains(&at) {
        sleep(Duration::from_secs(1)).await;
        return Err("dead");
    }
    sleep(Duration::from_millis(took)).await;
    Ok(())
}
