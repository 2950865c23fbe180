//! These block threads, so they run on the real clock; none sleeps on it or judges it.

use std::sync::{Mutex, mpsc};

use async_supervisor::{Backoff, Child, Context, EventKind, Shutdown, Supervisor};

use crate::common::ms;

/// A worker that blocks its thread until the test lets it go.
fn blocker(name: &str) -> (Child, mpsc::Sender<()>) {
    let (release, gate) = mpsc::channel::<()>();
    let gate = std::sync::Arc::new(Mutex::new(gate));
    let child = Child::new(name, move |ctx: Context| {
        let gate = std::sync::Arc::clone(&gate);
        async move {
            tokio::task::yield_now().await;
            if ctx.attempt() == 1 {
                let _ = gate.lock().unwrap().recv();
            }
            ctx.cancelled().await;
        }
    });
    (child, release)
}

#[test]
fn a_blocked_runtime_is_noticed_from_outside_and_the_worker_named() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (child, release) = blocker("greedy");
    let (tx, rx) = mpsc::channel();
    let outside = std::thread::spawn(move || {
        let handle: async_supervisor::Handle = rx.recv().unwrap();
        // The only thread of the runtime is blocked; the watchdog's own is not.
        loop {
            let stalls = handle.stalls().unwrap();
            if let Some(stall) = stalls.current.first() {
                assert!(stall.lasted >= ms(20));
                assert_eq!(stall.worker.as_deref(), Some("greedy"));
                break;
            }
            std::thread::yield_now();
        }
        release.send(()).unwrap();
    });
    runtime.block_on(async {
        let s = Supervisor::one_for_one().with_watchdog(ms(20)).with_child(child).spawn().unwrap();
        let mut events = s.events();
        tx.send(s.handle()).unwrap();
        let stall = loop {
            if let EventKind::Stalled(stall) = events.recv().await.unwrap().kind {
                break stall;
            }
        };
        assert_eq!(stall.worker.as_deref(), Some("greedy"));
        let stalls = s.stalls().unwrap();
        assert_eq!(stalls.longest.unwrap().worker.as_deref(), Some("greedy"));
        assert!(s.stop().await.is_clean());
    });
    outside.join().unwrap();
}

#[test]
fn a_runtime_blocked_by_something_else_is_noticed_too() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let s = Supervisor::one_for_one().with_watchdog(ms(10)).spawn().unwrap();
        s.ready().await.unwrap();
        while s.stalls().unwrap().count == 0 {
            std::thread::yield_now();
        }
        assert_eq!(s.stalls().unwrap().longest.unwrap().worker, None);
        assert!(s.stop().await.is_clean());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_worker_that_blocks_its_thread_all_goes_on_and_it_is_named() {
    let (child, release) = blocker("greedy");
    let other = Child::new("other", async |ctx: Context| {
        if ctx.attempt() < 5 {
            return Err("again");
        }
        ctx.cancelled().await;
        Ok(())
    });
    let s = Supervisor::one_for_one()
        .with_watchdog(ms(10))
        .with_abort_grace(ms(10))
        .with_intensity(async_supervisor::Intensity::unlimited())
        .with_child(child.with_shutdown(Shutdown::Timeout(ms(10))))
        .with_child(other.with_backoff(Backoff::none()))
        .spawn()
        .unwrap();
    // Both go on while the one blocks: the restarts of the other, and what the watchdog sees.
    let attempts = || s.snapshot().child("other").unwrap().attempts;
    let named = || s.stalls().unwrap().longest.is_some_and(|stall| stall.worker.as_deref() == Some("greedy"));
    while !named() || attempts() < 5 {
        tokio::task::yield_now().await;
    }
    let report = s.stop().await;
    assert_eq!((report.aborted, report.leaked), (vec!["greedy".into()], vec!["greedy".into()]));
    release.send(()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_speaks_to_its_supervisor_and_then_blocks_does_not_block_it() {
    let (release, gate) = mpsc::channel::<()>();
    let gate = std::sync::Arc::new(Mutex::new(gate));
    let (tx, rx) = mpsc::channel();
    let child = Child::new("greedy", move |ctx: Context| {
        let (gate, tx) = (std::sync::Arc::clone(&gate), tx.clone());
        async move {
            ctx.report_health(async_supervisor::Health::Degraded("about to block".into()));
            tx.send(()).unwrap();
            let _ = gate.lock().unwrap().recv();
            ctx.cancelled().await;
        }
    });
    let s = Supervisor::one_for_one().with_child(child).spawn().unwrap();
    tokio::task::spawn_blocking(move || rx.recv().unwrap()).await.unwrap();
    s.add(Child::new("other", async |ctx: Context| ctx.cancelled().await)).await.unwrap();
    s.remove_child("other").await.unwrap();
    release.send(()).unwrap();
    assert!(s.stop().await.is_clean());
}
