//! Ten thousand tasks on two worker threads while the circuit opens, half-opens and closes a thousand times.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use async_circuit::{CircuitBreaker, Event, State, Trip};
use async_policy::{PolicyKind, Reason};

const TASKS: u64 = 10_000;
const CYCLES: u64 = 1000;
const PROBES: u32 = 3;

#[derive(Default)]
struct Counts {
    attempts: AtomicU64,
    refused: AtomicU64,
    open: AtomicU64,
    taken: AtomicU64,
    successes: AtomicU64,
    failures: AtomicU64,
    ignored: AtomicU64,
    aborted: AtomicU64,
    probes_in_flight: AtomicU64,
    most_probes: AtomicU64,
}

#[derive(Default)]
struct Told {
    refused: AtomicU64,
    ended: AtomicU64,
    opened: AtomicU64,
    half_opened: AtomicU64,
    closed: AtomicU64,
    last_epoch: AtomicU64,
}

#[test]
fn never_more_than_so_many_probes_and_every_call_is_accounted_for() {
    let told = Arc::new(Told::default());
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::failure_rate(0.3).within(Duration::from_secs(5)).with_min_calls(NonZeroU32::MIN))
        // As short as can be: the time of the test is its calls, and nothing waits.
        .with_open_for(Duration::from_nanos(1))
        .with_probes(NonZeroU32::new(PROBES).unwrap())
        .with_listener({
            let told = Arc::clone(&told);
            move |_: &CircuitBreaker, event: &Event| {
                let count = match event {
                    Event::Rejected(_) => &told.refused,
                    Event::Ended { .. } => &told.ended,
                    Event::Transitioned(transition) => {
                        // In order and one at a time, whichever thread tells them.
                        assert_eq!(told.last_epoch.swap(transition.epoch, SeqCst) + 1, transition.epoch);
                        match transition.to {
                            State::Open => &told.opened,
                            State::HalfOpen => &told.half_opened,
                            State::Closed => &told.closed,
                        }
                    }
                    _ => return,
                };
                count.fetch_add(1, SeqCst);
            }
        })
        .build()
        .unwrap();
    let counts = Arc::new(Counts::default());
    let enough = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for id in 0..TASKS {
            tasks.spawn(caller(
                id,
                breaker.clone(),
                Arc::clone(&counts),
                Arc::clone(&enough),
                Arc::clone(&told),
            ));
        }
        tasks.join_all().await;
    });

    let get = |count: &AtomicU64| count.load(SeqCst);
    assert!(get(&told.closed) >= CYCLES, "{} cycles", get(&told.closed));
    assert!(get(&counts.most_probes) <= u64::from(PROBES));
    assert_eq!(get(&counts.probes_in_flight), 0);
    let let_in = [&counts.successes, &counts.failures, &counts.ignored, &counts.aborted].map(get);
    assert_eq!(get(&counts.attempts), get(&counts.refused) + let_in.iter().sum::<u64>());
    assert_eq!(get(&counts.refused), get(&counts.open) + get(&counts.taken));
    let snapshot = breaker.snapshot();
    assert_eq!(
        [snapshot.totals.failures, snapshot.totals.ignored, snapshot.totals.aborted],
        [get(&counts.failures), get(&counts.ignored), get(&counts.aborted)]
    );
    assert_eq!(get(&told.refused), get(&counts.refused));
    assert_eq!(get(&told.ended), let_in[1..].iter().sum::<u64>());
    assert_eq!(snapshot.epoch, get(&told.opened) + get(&told.half_opened) + get(&told.closed));
    assert_eq!(snapshot.probes_in_flight, 0, "nothing leaked");
}

async fn caller(
    id: u64,
    breaker: CircuitBreaker,
    counts: Arc<Counts>,
    enough: Arc<AtomicBool>,
    told: Arc<Told>,
) {
    let mut round = 0_u64;
    // Each task calls at least a few times; then until the circuit has been through it all often enough.
    while round < 5 || !enough.load(SeqCst) {
        round += 1;
        counts.attempts.fetch_add(1, SeqCst);
        match breaker.try_acquire() {
            Ok(permit) => {
                let probe = permit.is_probe();
                if probe {
                    let in_flight = counts.probes_in_flight.fetch_add(1, SeqCst) + 1;
                    counts.most_probes.fetch_max(in_flight, SeqCst);
                }
                // Now and then all others get to call while this call is under way.
                if (id + round).is_multiple_of(512) {
                    tokio::task::yield_now().await;
                }
                // Counted down first: from then on another may take its place.
                if probe {
                    counts.probes_in_flight.fetch_sub(1, SeqCst);
                }
                let count = match (id * 31 + round) % 16 {
                    0..8 => &counts.successes,
                    8..14 => &counts.failures,
                    14 => &counts.ignored,
                    _ => &counts.aborted,
                };
                count.fetch_add(1, SeqCst);
                match (id * 31 + round) % 16 {
                    0..8 => permit.success(),
                    8..14 => permit.failure(),
                    14 => permit.ignore(),
                    _ => drop(permit),
                }
            }
            Err(refusal) => {
                assert_eq!(refusal.policy(), PolicyKind::CircuitBreaker);
                counts.refused.fetch_add(1, SeqCst);
                match refusal.reason() {
                    Reason::CircuitOpen => counts.open.fetch_add(1, SeqCst),
                    Reason::ProbesTaken => counts.taken.fetch_add(1, SeqCst),
                    other => panic!("{other:?}"),
                };
                tokio::task::yield_now().await;
            }
        }
        if told.closed.load(SeqCst) >= CYCLES {
            enough.store(true, SeqCst);
        }
    }
}
