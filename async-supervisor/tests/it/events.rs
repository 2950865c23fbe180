use std::time::Duration;

use async_supervisor::{Backoff, EventKind, Supervisor};

use crate::common::{Log, Order, settle, tolerant, up};

#[tokio::test(start_paused = true)]
async fn the_life_of_a_tree_in_order_and_then_none() {
    let log = Log::new();
    let below = tolerant(Supervisor::one_for_one())
        .with_name("sub")
        .with_child(log.child("b").with_readiness(Duration::from_secs(1)));
    let s = tolerant(Supervisor::one_for_one())
        .with_name("root")
        .with_children([
            log.child("a").with_backoff(Backoff::constant(Duration::from_secs(2))),
            below.into_child(),
        ])
        .spawn()
        .unwrap();
    let mut events = s.events();
    settle().await;
    log.tell("b", Order::Ready).await;
    log.tell("a", Order::Fail).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let _ = s.stop().await;
    let mut lines = Vec::new();
    while let Some(event) = events.recv().await {
        lines.push(event.to_string());
    }
    let last = lines.pop().unwrap();
    assert!(last.starts_with("root: supervisor `root` stopped (in "), "{last}");
    let expected = "\
root/a: started (attempt 1)
root/sub: started (attempt 1)
root/sub/b: started (attempt 1)
root/sub/b: ready
root/sub: up
root/sub: ready
root: up
root/a: failed: told to fail
root/a: restarting in 2s
root/a: started (attempt 2)
root: stopping
root/sub: stopping
root/sub/b: completed
root/sub: supervisor `sub` stopped
root/sub: completed
root/a: completed";
    let lines: Vec<_> = lines.iter().map(|line| line.split(" (in ").next().unwrap()).collect();
    assert_eq!(lines.join("\n"), expected);
    assert!(events.recv().await.is_none());
    assert!(s.events().recv().await.is_none(), "nothing comes after the end");
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_loses_the_oldest_and_holds_nobody_up() {
    let log = Log::new();
    let s = up(tolerant(Supervisor::one_for_one()).with_child(log.child("a"))).await;
    let mut events = s.events();
    for _ in 0..1000 {
        log.tell("a", Order::Fail).await;
    }
    assert_eq!(s.snapshot().child("a").unwrap().restarts, 1000);
    let EventKind::Missed(lost) = events.recv().await.unwrap().kind else { panic!() };
    assert_eq!(lost, 3000 - 1024);
    assert!(matches!(
        events.recv().await.unwrap().kind,
        EventKind::Restarting { .. } | EventKind::Exited { .. } | EventKind::Started { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_harms_itself_alone() {
    let log = Log::new();
    let s = up(tolerant(Supervisor::one_for_one()).with_child(log.child("a"))).await;
    let mut events = s.events();
    let listener = tokio::spawn(async move {
        events.recv().await;
        panic!("in the listener");
    });
    log.tell("a", Order::Fail).await;
    assert!(listener.await.unwrap_err().is_panic());
    log.tell("a", Order::Fail).await;
    assert_eq!(log.take(), "+a +a +a");
}

#[tokio::test(start_paused = true)]
async fn a_delay_is_told_in_whole_milliseconds() {
    let log = Log::new();
    let s = up(tolerant(Supervisor::one_for_one())
        .with_child(log.child("a").with_backoff(Backoff::constant(Duration::from_nanos(73_283_929)))))
    .await;
    let mut events = s.events();
    log.tell("a", Order::Fail).await;
    let text = loop {
        let event = events.recv().await.unwrap();
        if let EventKind::Restarting { .. } = event.kind {
            break event.to_string();
        }
    };
    assert_eq!(text, "supervisor/a: restarting in 73ms");
}
