//! N clients contend on one write under an optimistic lock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_retry::{Backoff, Delays, Jitter};

/// What the clients do between two tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    None,
    Exponential,
    Equal,
    Full,
    Decorrelated,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::None, Self::Exponential, Self::Equal, Self::Full, Self::Decorrelated];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Exponential => "exponential",
            Self::Equal => "equal jitter",
            Self::Full => "full jitter",
            Self::Decorrelated => "decorrelated",
        }
    }

    /// Base 5 ms, cap 2 s, all so many times longer.
    fn backoff(self, scale: u32) -> Backoff {
        let backoff =
            Backoff::exponential(Duration::from_millis(5) * scale).with_cap(Duration::from_secs(2) * scale);
        match self {
            Self::None => Backoff::none(),
            Self::Exponential => backoff.with_jitter(Jitter::None),
            Self::Equal => backoff.with_jitter(Jitter::Equal),
            Self::Full => backoff.with_jitter(Jitter::Full),
            Self::Decorrelated => backoff.with_jitter(Jitter::Decorrelated),
        }
    }
}

/// The mean over all trials.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) kind: Kind,
    pub(crate) clients: u32,
    /// Until the last client has written.
    pub(crate) millis: f64,
    /// How many writes reached the server.
    pub(crate) writes: f64,
}

/// One row whose version says whether anybody wrote in between.
#[derive(Default)]
struct Server {
    version: u64,
    writes: u64,
}

impl Server {
    fn write(&mut self, expected: u64) -> bool {
        self.writes += 1;
        let fresh = self.version == expected;
        self.version += u64::from(fresh);
        fresh
    }
}

/// A hop takes |N(10, 2)| ms each way.
fn hop(random: &mut fastrand::Rng) -> Duration {
    // Box and Muller, 1958.
    let (u, v) = (1.0 - random.f64(), random.f64());
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    Duration::from_secs_f64((10.0 + 2.0 * normal).abs() / 1000.0)
}

/// What reaches the server next: the events of all clients in the order of their time.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    at: Duration,
    client: usize,
    /// The version that was read; `None` reads it.
    write: Option<u64>,
}

/// How long it took, and how many writes.
fn trial(kind: Kind, clients: u32, seed: u64) -> (Duration, u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let backoff = kind.backoff(1);
    let mut delays: Vec<Delays<'_>> = (0..clients).map(|_| backoff.delays(random.u64(..))).collect();
    let mut server = Server::default();
    let mut arrivals: BinaryHeap<_> = (0..delays.len())
        .map(|client| Reverse(Arrival { at: hop(&mut random), client, write: None }))
        .collect();
    let mut last = Duration::ZERO;
    while let Some(Reverse(Arrival { at, client, write })) = arrivals.pop() {
        let answered = at + hop(&mut random);
        let next = match write {
            None => Some((Duration::ZERO, Some(server.version))),
            Some(version) if server.write(version) => None,
            Some(_) => Some((delays[client].next().expect("endless"), None)),
        };
        match next {
            Some((delay, write)) => {
                arrivals.push(Reverse(Arrival { at: answered + delay + hop(&mut random), client, write }));
            }
            None => last = last.max(answered),
        }
    }
    (last, server.writes)
}

/// All kinds for 10, 20, … 200 clients, on all cores.
pub(crate) fn sweep(trials: u32, seed: u64) -> Vec<Point> {
    let jobs: Vec<_> = (1..=20).rev().flat_map(|tens| Kind::ALL.map(|kind| (kind, tens * 10))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut points = Vec::new();
        while let Some(&(kind, clients)) = jobs.get(next.fetch_add(1, Relaxed)) {
            let (mut time, mut writes) = (0.0, 0);
            for n in 0..trials {
                let seed = seed
                    .wrapping_add(u64::from(n))
                    .wrapping_mul(0x9E37_79B9)
                    .wrapping_add(u64::from(clients));
                let (took, written) = trial(kind, clients, seed);
                time += took.as_secs_f64() * 1000.0;
                writes += written;
            }
            let trials = f64::from(trials);
            points.push(Point { kind, clients, millis: time / trials, writes: writes as f64 / trials });
        }
        points
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut points: Vec<Point> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no trial panics")).collect()
    });
    points.sort_by_key(|point| point.clients);
    points
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::num::NonZeroU32;
    use std::rc::Rc;

    use async_retry::Retry;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::virtual_time;

    #[test]
    fn jitter_takes_the_fewest_writes_and_one_seed_gives_one_result() {
        let run = |kind| trial(kind, 100, 7);
        let [none, exponential, equal, full, decorrelated] = Kind::ALL.map(run);
        assert!(none.1 > exponential.1 && exponential.1 > equal.1);
        assert!(full.1 < none.1 * 3 / 5 && decorrelated.1 < none.1 * 3 / 5);
        assert!(full.0 < equal.0 && equal.0 < exponential.0);
        assert_eq!(full, run(Kind::Full));
    }

    /// The same with the real `Retry`, a thousand times slower so that tokio's timers are exact enough.
    async fn real(kind: Kind, clients: u32, seed: u64) -> (Duration, u64) {
        const SLOWER: u32 = 1000;
        let retry =
            Retry::new(kind.backoff(SLOWER)).unwrap().with_max_attempts(NonZeroU32::MAX).with_seed(seed);
        let server = Rc::new(RefCell::new(Server::default()));
        let random = Rc::new(RefCell::new(fastrand::Rng::with_seed(seed)));
        let started = Instant::now();
        let clients: Vec<_> = (0..clients)
            .map(|_| {
                let (server, random, retry) = (Rc::clone(&server), Rc::clone(&random), retry.clone());
                tokio::task::spawn_local(async move {
                    let hop = || hop(&mut random.borrow_mut()) * SLOWER;
                    retry
                        .call_mut(async || {
                            sleep(hop()).await;
                            let version = server.borrow().version;
                            sleep(hop() + hop()).await;
                            let written = server.borrow_mut().write(version);
                            sleep(hop()).await;
                            if written { Ok(()) } else { Err(()) }
                        })
                        .await
                        .expect("it tries until it has written");
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        let writes = server.borrow().writes;
        (started.elapsed() / SLOWER, writes)
    }

    #[test]
    fn the_real_retry_does_the_same() {
        for kind in [Kind::Exponential, Kind::Full, Kind::Decorrelated] {
            let mean = |run: &dyn Fn(u64) -> (Duration, u64)| {
                let (mut took, mut writes) = (0.0, 0.0);
                for seed in 0..20 {
                    let run = run(seed);
                    took += run.0.as_secs_f64() / 20.0;
                    writes += run.1 as f64 / 20.0;
                }
                (took, writes)
            };
            let simulated = mean(&|seed| trial(kind, 30, seed));
            let real = mean(&|seed| virtual_time(real(kind, 30, seed)));
            for (a, b) in [(simulated.0, real.0), (simulated.1, real.1)] {
                assert!((0.75..1.33).contains(&(a / b)), "{kind:?}: {simulated:?} and {real:?}");
            }
        }
    }
}
