//! Panics of workers, of what they own, and of what they leave behind.

use std::sync::Arc;

use async_supervisor::{
    Backoff, Child, CommandError, Context, EventKind, Exit, Shutdown, Supervisor, SupervisorState,
};
use tokio::time::sleep;

use crate::common::{Bomb, Log, Order, idle, secs, settle, tolerant, up};

/// The exits of a child, in order.
pub(crate) async fn exits(supervisor: Supervisor, count: usize) -> Vec<Exit> {
    let s = supervisor.spawn().unwrap();
    let mut events = s.events();
    let mut exits = Vec::new();
    while exits.len() < count {
        if let EventKind::Exited { exit, .. } = events.recv().await.unwrap().kind {
            exits.push(exit);
        }
    }
    exits
}

#[derive(Debug)]
struct BadError;

impl std::fmt::Display for BadError {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("in display")
    }
}

impl std::error::Error for BadError {}

struct BadPayload;

impl Drop for BadPayload {
    fn drop(&mut self) {
        panic!("in the payload's drop");
    }
}

#[tokio::test(start_paused = true)]
async fn wherever_a_worker_panics_it_is_a_failure_of_its_own() {
    let cases: Vec<(&str, Child)> = vec![
        ("in the future", Child::new("a", async |_: Context| -> () { panic!("in the future") })),
        (
            "in the closure",
            Child::new("a", |_: Context| -> std::future::Ready<()> { panic!("in the closure") }),
        ),
        (
            "after 7",
            Child::new("a", async |_: Context| -> () {
                tokio::task::yield_now().await;
                panic!("after {}", 7)
            }),
        ),
        (
            "in drop",
            Child::new("a", |_: Context| {
                let bomb = Bomb;
                std::future::poll_fn(move |_| {
                    let _held = &bomb;
                    std::task::Poll::Ready(())
                })
            }),
        ),
        ("in display", Child::new("a", async |_: Context| Err::<(), _>(BadError))),
        ("(no message)", Child::new("a", async |_: Context| -> () { std::panic::panic_any(BadPayload) })),
        ("on its thread", Child::blocking("a", |_: Context| -> () { panic!("on its thread") })),
        (
            "before it is ready",
            Child::new("a", async |ctx: Context| {
                if ctx.attempt() > 0 {
                    panic!("before it is ready");
                }
            })
            .with_readiness(secs(1)),
        ),
    ];
    for (said, child) in cases {
        let seen =
            exits(tolerant(Supervisor::one_for_one()).with_child(child.with_backoff(Backoff::none())), 1)
                .await;
        assert!(matches!(&seen[0], Exit::Panicked(text) if &**text == said), "{said}: {seen:?}");
    }
}

/// A child whose closure panics when it is dropped.
fn with_a_bomb(name: &str) -> Child {
    let bomb = Arc::new(Bomb);
    Child::new(name, move |ctx: Context| {
        let _held = &bomb;
        async move { ctx.cancelled().await }
    })
}

#[tokio::test(start_paused = true)]
async fn a_child_that_panics_when_it_is_dropped_is_removed_or_refused_all_the_same() {
    let log = Log::new();
    let s = up(tolerant(Supervisor::one_for_one()).with_max_children(2).with_child(log.child("b"))).await;
    s.add(with_a_bomb("a")).await.unwrap();
    assert_eq!(s.add(with_a_bomb("a")).await, Err(CommandError::AlreadyExists("a".into())));
    assert_eq!(s.add(with_a_bomb("c")).await, Err(CommandError::LimitReached(2)));
    let invalid = with_a_bomb("c").with_heartbeat(secs(0));
    assert!(matches!(s.add(invalid).await, Err(CommandError::Config(_))));
    s.remove_child("a").await.unwrap();
    log.tell("b", Order::Fail).await;
    assert_eq!(log.take(), "+b +b");
    let handle = s.handle();
    assert!(s.stop().await.is_clean());
    // The caller's own now: the panic is where the child is dropped, and nowhere else.
    assert_eq!(handle.add(idle("c")).await, Err(CommandError::ShutDown));
}

#[tokio::test(start_paused = true)]
async fn an_error_that_panics_when_it_is_dropped_ends_where_it_is_dropped() {
    #[derive(Debug, thiserror::Error)]
    #[error("evil")]
    struct Evil {
        _bomb: Bomb,
    }
    let bad = Child::new("bad", async |_: Context| Err::<(), _>(Evil { _bomb: Bomb }));
    let s = tolerant(Supervisor::one_for_one())
        .with_children([idle("good"), bad.with_backoff(Backoff::constant(secs(1)))])
        .spawn()
        .unwrap();
    // Of those that push others out of the stream that nobody reads, too.
    let never_read = s.events();
    sleep(secs(2000)).await;
    let snapshot = s.snapshot();
    assert_eq!((snapshot.state, snapshot.child("good").unwrap().attempts), (SupervisorState::Running, 1));
    assert!(snapshot.child("bad").unwrap().restarts > 1024);
    drop(never_read);
    assert!(s.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_while_it_is_aborted_has_panicked() {
    let child = Child::new("a", async |_: Context| {
        let _bomb = Bomb;
        std::future::pending::<()>().await;
    });
    let s = up(Supervisor::one_for_one().with_child(child.with_shutdown(Shutdown::Abort))).await;
    let mut events = s.events();
    let report = s.stop().await;
    assert!(report.to_string().ends_with("; `a` panicked: in drop"), "{report}");
    loop {
        if let EventKind::Exited { exit, .. } = events.recv().await.unwrap().kind {
            assert!(matches!(exit, Exit::Panicked(said) if &*said == "in drop"));
            break;
        }
    }
    settle().await;
}

struct PanickyWaker;

impl std::task::Wake for PanickyWaker {
    fn wake(self: Arc<Self>) {
        std::panic::resume_unwind(Box::new("in a waker"));
    }
}

/// Polls it once with a waker that panics, and drops it.
fn poll_badly<F: Future>(future: &mut std::pin::Pin<Box<F>>) {
    let waker = std::task::Waker::from(Arc::new(PanickyWaker));
    assert!(future.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
}

#[tokio::test(start_paused = true)]
async fn wakers_that_panic_do_not_take_the_supervisor_along() {
    let log = Log::new();
    let waits_badly = Child::new("waits badly", async |ctx: Context| {
        let mut cancelled = Box::pin(ctx.cancelled());
        poll_badly(&mut cancelled);
        std::future::pending::<()>().await;
    })
    .with_shutdown(Shutdown::Abort);
    let s = tolerant(Supervisor::one_for_one()).with_children([log.child("a"), waits_badly]).spawn().unwrap();
    let mut ready = Box::pin(s.ready());
    poll_badly(&mut ready);
    settle().await;
    let mut events = s.events();
    let mut event = Box::pin(events.recv());
    poll_badly(&mut event);
    let mut add = Box::pin(s.add(idle("b")));
    poll_badly(&mut add);
    settle().await;
    log.tell("a", Order::Fail).await;
    assert_eq!(log.take(), "+a +a");
    let snapshot = s.snapshot();
    assert_eq!((snapshot.state, snapshot.children.len()), (SupervisorState::Running, 3));
    let report = s.stop().await;
    assert!(report.is_clean(), "{report}");
}

#[test]
fn wakers_that_panic_when_the_runtime_ends_do_not_keep_the_report_back() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let s = runtime.block_on(up(Supervisor::one_for_one()));
    runtime.block_on(async {
        let never = Child::new("never", async |_: Context| std::future::pending::<()>().await);
        for child in [never.with_readiness(secs(3600)), idle("waits")] {
            let mut add = Box::pin(s.add(child));
            poll_badly(&mut add);
            // Nobody polls them again, and they are not dropped either.
            std::mem::forget(add);
            settle().await;
        }
    });
    drop(runtime);
    let other =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let report = other.block_on(async { tokio::time::timeout(secs(60), s.wait()).await.unwrap() });
    assert!(matches!(report.cause, async_supervisor::Cause::Lost), "{report}");
}
