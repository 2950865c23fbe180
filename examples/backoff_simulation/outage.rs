//! A backend half of whose answers fail for a minute, and 1,000 clients who try again.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use async_retry::{Backoff, Budget, Retry};
use tokio::time::{Instant, sleep};

use crate::virtual_time;

const CLIENTS: u64 = 1000;
/// The outage, in seconds from the start.
pub(crate) const BEGINS: usize = 20;
pub(crate) const ENDS: usize = 80;
const LAST: usize = 120;

/// What happened in one second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Second {
    /// Calls that began.
    pub(crate) calls: u32,
    /// Attempts that reached the backend.
    pub(crate) attempts: u32,
    pub(crate) ended: u32,
    pub(crate) succeeded: u32,
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) name: &'static str,
    pub(crate) seconds: Vec<Second>,
}

/// Each client calls about once a second; the backend answers in about 50 ms.
async fn run(budget: Option<Budget>, seed: u64) -> Vec<Second> {
    let retry = Retry::new(Backoff::exponential(Duration::from_millis(100)))
        .expect("a valid backoff")
        .with_max_attempts(NonZeroU32::new(5).expect("not zero"))
        .with_seed(seed);
    let retry = match budget {
        Some(budget) => retry.with_budget(budget),
        None => retry,
    };
    let seconds = Rc::new(RefCell::new(vec![Second::default(); LAST + 1]));
    let random = Rc::new(RefCell::new(fastrand::Rng::with_seed(seed)));
    let started = Instant::now();
    let tell = move |seconds: &RefCell<Vec<Second>>, change: fn(&mut Second)| {
        let now = started.elapsed().as_secs() as usize;
        if let Some(second) = seconds.borrow_mut().get_mut(now) {
            change(second);
        }
        now
    };
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (retry, seconds, random) = (retry.clone(), Rc::clone(&seconds), Rc::clone(&random));
            tokio::task::spawn_local(async move {
                let unit = || random.borrow_mut().f64();
                loop {
                    sleep(Duration::from_secs_f64(-(1.0 - unit()).ln())).await;
                    if tell(&seconds, |second| second.calls += 1) >= LAST {
                        return;
                    }
                    let result = retry
                        .call_mut(async || {
                            let now = tell(&seconds, |second| second.attempts += 1);
                            sleep(Duration::from_secs_f64(0.025 + 0.05 * unit())).await;
                            if (BEGINS..ENDS).contains(&now) && unit() < 0.5 { Err(()) } else { Ok(()) }
                        })
                        .await;
                    tell(&seconds, |second| second.ended += 1);
                    if result.is_ok() {
                        tell(&seconds, |second| second.succeeded += 1);
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("no client panics");
    }
    let mut seconds = seconds.take();
    seconds.truncate(LAST);
    seconds
}

/// One budget is shared by all clients.
pub(crate) fn all(seed: u64) -> Vec<Run> {
    let budgets = [
        ("none", None),
        ("AWS standard", Some(Budget::aws_standard())),
        ("gRPC throttle 100, 0.1", Some(Budget::grpc_throttle(100, 0.1).expect("a valid throttle"))),
        ("in flight 20 %, floor 3", Some(Budget::in_flight(0.2, 3).expect("a valid ratio"))),
    ];
    budgets.into_iter().map(|(name, budget)| Run { name, seconds: virtual_time(run(budget, seed)) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_budget_bounds_the_load() {
        let runs = all(1);
        let load = |run: &Run| {
            let outage = &run.seconds[BEGINS + 10..ENDS];
            let calls: u32 = outage.iter().map(|second| second.calls).sum();
            f64::from(outage.iter().map(|second| second.attempts).sum::<u32>()) / f64::from(calls)
        };
        let [none, aws, grpc, in_flight] = &runs[..] else { panic!("four runs") };
        assert!(load(none) > 1.85, "{}", load(none));
        for run in [aws, grpc, in_flight] {
            assert!((1.0..1.35).contains(&load(run)), "{}: {}", run.name, load(run));
        }
    }
}
