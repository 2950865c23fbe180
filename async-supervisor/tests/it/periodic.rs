//! Periodic workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_supervisor::{Backoff, Child, ChildState, Context, Every, MissedTicks, Supervisor};
use tokio::time::{Instant, sleep};

use crate::common::{Log, ms, secs, tolerant, up};

#[tokio::test(start_paused = true)]
async fn a_periodic_worker_runs_at_its_ticks_and_stops_at_once_while_it_waits() {
    let log = Log::new();
    let (line, start) = (log.clone(), Instant::now());
    let child = Child::periodic("p", Every::new(secs(10)), move |_: Context| {
        line.line(format!("{}", start.elapsed().as_secs()));
        async {}
    });
    let s = up(Supervisor::one_for_one().with_child(child)).await;
    sleep(secs(35)).await;
    assert_eq!(log.take(), "0 10 20 30");
    let before = Instant::now();
    assert!(s.stop().await.is_clean());
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_periodic_worker_never_overlaps_and_deals_with_missed_ticks_as_told() {
    for (missed, ticks) in [
        (MissedTicks::Skip, "0 30 40 50"),
        (MissedTicks::Burst, "0 25 25 30 40 50"),
        (MissedTicks::Delay, "0 35 45 55"),
    ] {
        let log = Log::new();
        let (line, start) = (log.clone(), Instant::now());
        let running = Arc::new(AtomicUsize::new(0));
        let every = Every::new(secs(10)).with_missed_ticks(missed);
        let child = Child::periodic("p", every, move |_: Context| {
            let (line, running) = (line.clone(), Arc::clone(&running));
            async move {
                assert_eq!(running.fetch_add(1, Relaxed), 0, "overlap");
                let now = start.elapsed().as_secs();
                line.line(format!("{now}"));
                if now == 0 {
                    sleep(secs(25)).await;
                }
                running.fetch_sub(1, Relaxed);
            }
        });
        let _s = up(Supervisor::one_for_one().with_child(child)).await;
        sleep(secs(55) + ms(500)).await;
        assert_eq!(log.take(), ticks, "{missed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_delays_each_run_but_does_not_move_the_ticks() {
    let log = Log::new();
    let (line, start) = (log.clone(), Instant::now());
    let child =
        Child::periodic("p", Every::new(secs(10)).wait_first().with_jitter(0.5), move |_: Context| {
            line.line(format!("{}", start.elapsed().as_millis()));
            async {}
        });
    let _s = up(Supervisor::one_for_one().with_child(child)).await;
    sleep(secs(100)).await;
    for (tick, at) in (1..).zip(log.take().split(' ').map(|at| at.parse::<u64>().unwrap())) {
        assert!((tick * 10_000..=tick * 10_000 + 5_002).contains(&at), "{at}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_periodic_worker_that_fails_is_restarted_after_its_backoff() {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let child = Child::periodic("p", Every::new(secs(10)), move |_: Context| {
        let run = count.fetch_add(1, Relaxed);
        async move { if run == 1 { Err("second") } else { Ok(()) } }
    });
    let s =
        up(tolerant(Supervisor::one_for_one()).with_child(child.with_backoff(Backoff::constant(secs(3)))))
            .await;
    sleep(ms(12_500)).await;
    assert_eq!((runs.load(Relaxed), s.snapshot().child("p").unwrap().state), (2, ChildState::Restarting));
    sleep(secs(1)).await;
    assert_eq!((runs.load(Relaxed), s.snapshot().child("p").unwrap().state), (3, ChildState::Running));
}
