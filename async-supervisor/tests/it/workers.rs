use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

use async_supervisor::{
    Backoff, BoxError, Child, ChildState, Context, EventKind, Every, Exit, Health, Intensity, MissedTicks,
    Shutdown, Supervisor, Worker,
};
use tokio::time::{Instant, sleep};

use crate::common::{Log, Order, settle, tolerant, up};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The exits of a child, in order.
async fn exits(supervisor: Supervisor, count: usize) -> Vec<Exit> {
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

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in drop");
        }
    }
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
                let bomb = PanicsWhenDropped;
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

#[tokio::test(start_paused = true)]
async fn a_user_value_whose_drop_panics_does_not_take_the_supervisor_along() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the closure is dropped");
        }
    }
    let log = Log::new();
    let s = up(tolerant(Supervisor::one_for_one()).with_child(log.child("b"))).await;
    let bomb = Arc::new(Bomb);
    let child = Child::new("a", move |ctx: Context| {
        let _held = &bomb;
        async move { ctx.cancelled().await }
    });
    s.add(child).await.unwrap();
    s.remove_child("a").await.unwrap();
    log.tell("b", Order::Fail).await;
    assert_eq!(log.take(), "+b +b");
}

#[tokio::test(start_paused = true)]
async fn an_error_keeps_its_type_and_its_sources() {
    #[derive(Debug, thiserror::Error)]
    #[error("no checkpoint")]
    struct Checkpoint(#[source] std::io::Error);
    let child =
        Child::new("a", async |_: Context| Err::<(), _>(Checkpoint(std::io::Error::other("disk full"))));
    let seen = exits(tolerant(Supervisor::one_for_one()).with_child(child), 1).await;
    let Exit::Failed(error) = &seen[0] else { panic!("{seen:?}") };
    assert_eq!(error.to_string(), "no checkpoint: disk full");
    assert!(error.downcast_ref::<Checkpoint>().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_trait_object_and_a_closure_with_state() {
    struct Counting(AtomicUsize);
    #[async_supervisor::async_trait]
    impl Worker for Counting {
        async fn run(&self, ctx: Context) -> Result<(), BoxError> {
            self.0.fetch_add(1, Relaxed);
            if ctx.attempt() < 3 {
                return Err("again".into());
            }
            ctx.cancelled().await;
            Ok(())
        }
    }
    let worker = Arc::new(Counting(AtomicUsize::new(0)));
    let state = Arc::new(AtomicUsize::new(0));
    let with = Child::with("with", Arc::clone(&state), async |ctx: Context, state: Arc<AtomicUsize>| {
        state.fetch_add(10, Relaxed);
        ctx.cancelled().await;
    });
    let dynamic: Arc<dyn Worker> = Arc::clone(&worker) as _;
    let s = tolerant(Supervisor::one_for_one())
        .with_children([Child::worker("dyn", dynamic).with_backoff(Backoff::none()), with]);
    let s = up(s).await;
    assert_eq!((worker.0.load(Relaxed), state.load(Relaxed)), (3, 10));
    assert!(s.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn the_next_child_starts_when_the_one_before_is_ready_or_its_time_is_up() {
    let log = Log::new();
    let line = log.clone();
    let slow = Child::new("slow", move |ctx: Context| {
        let line = line.clone();
        async move {
            line.line("+slow");
            sleep(secs(2)).await;
            ctx.ready();
            ctx.ready();
            line.line("ready");
            ctx.cancelled().await;
        }
    });
    let s = Supervisor::one_for_one().with_children([slow.clone().with_readiness(secs(3)), log.child("b")]);
    let started = Instant::now();
    let _s = up(s).await;
    assert_eq!(log.take(), "+slow ready +b");
    assert!(started.elapsed() >= secs(2));

    let s = Supervisor::one_for_one().with_children([
        log.child("a"),
        slow.with_readiness(secs(1)),
        log.child("c"),
    ]);
    let error = s.start().await.unwrap_err();
    let text = error_text(&error);
    assert_eq!(
        text,
        "a child did not start: supervisor `supervisor` did not start: `slow`: not ready within 1s"
    );
}

fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    text
}

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

#[tokio::test]
async fn a_blocking_worker_has_its_own_thread_and_can_be_asked_to_stop() {
    let (tx, rx) = mpsc::channel();
    let child = Child::blocking("blocks", move |ctx: Context| {
        let _ = tx.send(std::thread::current().name().map(str::to_owned));
        tokio::runtime::Handle::current().block_on(ctx.cancelled());
        if ctx.attempt() == 1 { Err("first") } else { Ok(()) }
    });
    let s = Supervisor::one_for_one().with_child(child).start().await.unwrap();
    let name = tokio::task::spawn_blocking(move || rx.recv().unwrap()).await.unwrap();
    assert_eq!(name.as_deref(), Some("blocks"));
    s.stop_child("blocks").await.unwrap();
    assert_eq!(s.snapshot().child("blocks").unwrap().last_error.as_deref(), Some("first"));
    s.start_child("blocks").await.unwrap();
    let report = s.stop().await;
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn a_thread_that_will_not_end_is_named_and_never_runs_twice() {
    let (release, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let child = Child::blocking("deaf", move |_: Context| {
        count.fetch_add(1, Relaxed);
        let _ = gate.lock().unwrap().recv();
    })
    .with_shutdown(Shutdown::Timeout(ms(5)));
    let s = Supervisor::one_for_one()
        .with_abort_grace(ms(5))
        .with_child(child)
        .with_child(Child::new("ok", async |ctx: Context| ctx.cancelled().await))
        .start()
        .await
        .unwrap();
    let error = s.restart_child("deaf").await.unwrap_err();
    assert_eq!(error.to_string(), "child `deaf` would not stop");
    assert_eq!(s.snapshot().child("deaf").unwrap().state, ChildState::Stuck);
    assert_eq!(s.snapshot().child("ok").unwrap().state, ChildState::Running);
    assert_eq!(runs.load(Relaxed), 1);
    // When it ends at last, the command is completed.
    release.send(()).unwrap();
    let mut events = s.events();
    while s.snapshot().child("deaf").unwrap().attempts < 2 {
        events.recv().await.unwrap();
    }
    let report = s.stop().await;
    assert_eq!(report.leaked, ["deaf".into()]);
    drop(release);
}

#[tokio::test(start_paused = true)]
async fn a_missed_heartbeat_stops_the_child_and_counts_as_a_failure() {
    let child = Child::new("a", async |ctx: Context| {
        assert_eq!(ctx.heartbeat_within(), Some(secs(10)));
        for _ in 0..5 {
            sleep(secs(5)).await;
            ctx.heartbeat();
        }
        // It still ends in order when told to; that does not make it a success.
        ctx.cancelled().await;
        Ok::<_, BoxError>(())
    });
    let s = tolerant(Supervisor::one_for_one())
        .with_child(child.with_heartbeat(secs(10)).with_backoff(Backoff::constant(secs(1))))
        .spawn()
        .unwrap();
    let mut events = s.events();
    let started = Instant::now();
    let exit = loop {
        if let EventKind::Exited { exit, .. } = events.recv().await.unwrap().kind {
            break exit;
        }
    };
    assert!(matches!(exit, Exit::MissedHeartbeat(within) if within == secs(10)));
    let took = started.elapsed();
    assert!((secs(35)..secs(35) + ms(20)).contains(&took), "{took:?}");
    settle().await;
    let child = s.snapshot().children.remove(0);
    assert_eq!((child.state, child.restarts), (ChildState::Restarting, 1));
    assert_eq!(child.last_error.as_deref(), Some("no heartbeat within 10s"));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_count_towards_the_intensity() {
    let silent = Child::new("a", async |ctx: Context| ctx.cancelled().await).with_heartbeat(secs(1));
    let s = Supervisor::one_for_one().with_intensity(Intensity::new(2, secs(60))).with_child(silent);
    let report = s.start().await.unwrap().wait().await;
    assert_eq!(
        report.to_string().split(" (in").next().unwrap(),
        "supervisor `supervisor` failed: supervisor `supervisor` melted down: 3 restarts within the period, the last of `a`: no heartbeat within 1s"
    );
}

#[tokio::test(start_paused = true)]
async fn health_is_shown_until_it_is_better_or_the_run_is_over() {
    let log = Log::new();
    let line = log.clone();
    let child = Child::new("a", move |ctx: Context| {
        let line = line.clone();
        async move {
            if ctx.attempt() > 1 {
                return ctx.cancelled().await;
            }
            for health in
                [Health::Degraded("lagging".into()), Health::Degraded("lagging".into()), Health::Healthy]
            {
                ctx.report_health(health);
                settle().await;
                let degraded = ctx.supervisor().snapshot().children[0].degraded.clone();
                line.line(degraded.as_deref().unwrap_or("well"));
            }
            ctx.report_health(Health::Degraded("gone".into()));
        }
    });
    let s = tolerant(Supervisor::one_for_one())
        .with_child(child.with_backoff(Backoff::constant(secs(1))))
        .spawn()
        .unwrap();
    let mut events = s.events();
    let mut changes = 0;
    loop {
        match events.recv().await.unwrap().kind {
            EventKind::HealthChanged { .. } => changes += 1,
            EventKind::Exited { .. } => break,
            _ => {}
        }
    }
    assert_eq!((log.take().as_str(), changes), ("lagging lagging well", 3));
    settle().await;
    assert_eq!(s.snapshot().children[0].degraded, None);
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_started_with_its_token_ends_with_the_run() {
    let log = Log::new();
    let line = log.clone();
    let child = Child::new("a", move |ctx: Context| {
        let line = line.clone();
        async move {
            let token = ctx.token().clone();
            tokio::spawn(async move {
                token.cancelled().await;
                line.line("helper ends");
            });
            settle().await;
            Err::<(), _>("fell")
        }
    });
    let _s =
        up(tolerant(Supervisor::one_for_one()).with_child(child.with_backoff(Backoff::constant(secs(60)))))
            .await;
    settle().await;
    assert_eq!(log.take(), "helper ends");
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_up_when_all_its_children_are_which_start_side_by_side() {
    let slow = |name: &str, after: u64| {
        let child = Child::new(name, move |ctx: Context| async move {
            sleep(secs(after)).await;
            ctx.ready();
            ctx.cancelled().await;
        });
        child.with_readiness(secs(5))
    };
    let started = Instant::now();
    let s =
        Supervisor::pool().with_children([slow("a", 3), slow("b", 2), slow("c", 3)]).start().await.unwrap();
    assert!((secs(3)..secs(3) + ms(5)).contains(&started.elapsed()));
    assert!(s.stop().await.is_clean());
    let error = Supervisor::pool().with_children([slow("a", 3), slow("b", 7)]).start().await.unwrap_err();
    assert!(error_text(&error).ends_with("`b`: not ready within 5s"), "{}", error_text(&error));
}
