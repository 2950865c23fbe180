use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_supervisor::{Child, Context, Supervisor};
use tokio::time::{Instant, sleep};

/// An idle tree of 10,000 children wakes nothing for a minute: neither a worker is polled nor does a timer of ours fire,
/// which would show as a stop of the virtual clock.
#[tokio::test(start_paused = true)]
async fn an_idle_tree_of_ten_thousand_wakes_nothing() {
    let polls = Arc::new(AtomicU64::new(0));
    let leaf = |name: String| {
        let polls = Arc::clone(&polls);
        Child::new(name, move |ctx: Context| {
            let polls = Arc::clone(&polls);
            async move {
                let mut cancelled = Box::pin(ctx.cancelled());
                poll_fn(|cx| {
                    polls.fetch_add(1, Relaxed);
                    cancelled.as_mut().poll(cx)
                })
                .await;
            }
        })
    };
    let subs = (0..100).map(|sub| {
        let leaves = (0..100).map(|n| leaf(format!("{sub}.{n}")));
        let strategy = if sub % 2 == 0 { Supervisor::pool() } else { Supervisor::one_for_all() };
        strategy.with_name(format!("sub{sub}")).with_children(leaves).into_child()
    });
    let s = Supervisor::one_for_one().with_children(subs).start().await.unwrap();
    while polls.load(Relaxed) < 10_000 {
        tokio::task::yield_now().await;
    }
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let metrics = tokio::runtime::Handle::current().metrics();
    let parked = metrics.worker_park_count(0);
    let started = Instant::now();
    sleep(Duration::from_secs(60)).await;
    assert!(started.elapsed() >= Duration::from_secs(60));
    assert_eq!(polls.load(Relaxed), 10_000);
    // One park for the test's own sleep, and the wake-ups around it.
    let parks = metrics.worker_park_count(0) - parked;
    assert!(parks <= 4, "{parks}");
    assert!(s.stop().await.is_clean());
}
