use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use async_supervisor::{
    Backoff, BoxError, Child, ChildState, Context, EventKind, Exit, Health, Intensity, Restart, Shutdown,
    Supervisor, Worker,
};
use tokio::time::{Instant, sleep};

use crate::common::{Log, ms, secs, settle, tolerant, up};
use crate::panics::exits;

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
    assert_eq!(error.to_string(), "supervisor `supervisor` did not start: `slow`: not ready within 1s");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_wanted_from_readiness_on() {
    let child = Child::new("a", async |ctx: Context| -> Result<(), BoxError> {
        sleep(secs(8)).await;
        ctx.ready();
        loop {
            sleep(secs(4)).await;
            ctx.heartbeat();
        }
    });
    let child = child.with_readiness(secs(10)).with_heartbeat(secs(5));
    let s = tolerant(Supervisor::one_for_one()).with_child(child).spawn().unwrap();
    sleep(secs(60)).await;
    let child = s.snapshot().children.remove(0);
    assert_eq!((child.state, child.restarts), (ChildState::Running, 0));
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
        "supervisor `supervisor` melted down: 3 restarts within 60s (2 allowed), the last of `a`: no heartbeat within 1s"
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
    assert!(error.to_string().ends_with("`b`: not ready within 5s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_loop_without_an_end_is_a_worker() {
    let ticks = Child::new("ticks", async |_: Context| {
        loop {
            tokio::time::sleep(secs(1)).await;
        }
    });
    let tocks = Child::periodic("tocks", async_supervisor::Every::new(secs(1)), async |ctx: Context| {
        loop {
            ctx.token().cancelled().await;
            tokio::task::yield_now().await;
        }
    });
    let quick = Shutdown::Timeout(ms(10));
    let s = Supervisor::one_for_one()
        .with_children([ticks.with_shutdown(quick), tocks.with_shutdown(Shutdown::Abort)]);
    let s = up(s).await;
    assert_eq!(s.stop().await.aborted, ["ticks".into()]);
}

#[tokio::test(start_paused = true)]
async fn one_that_ends_before_it_is_ready_is_said_to() {
    let hasty = || Child::new("hasty", async |_: Context| {}).with_readiness(secs(1));
    let error = Supervisor::one_for_one().with_child(hasty()).start().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "supervisor `supervisor` did not start: `hasty`: it ended before it was ready"
    );
    let s = up(Supervisor::one_for_one()).await;
    let error = s.add(hasty()).await.unwrap_err();
    assert_eq!(error.to_string(), "child `hasty` did not start: it ended before it was ready");
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_for_its_turn_to_be_restarted_is_restarting() {
    let short = |name: &str| Child::new(name, async |_: Context| tokio::time::sleep(ms(500)).await);
    let s = tolerant(Supervisor::one_for_one())
        .with_children([
            short("again"),
            short("once").with_restart(Restart::Transient),
            crate::common::slow("slow"),
        ])
        .spawn()
        .unwrap();
    tokio::time::sleep(ms(700)).await;
    let snapshot = s.snapshot();
    assert_eq!(snapshot.child("slow").unwrap().state, ChildState::Starting);
    let state = |name: &str| snapshot.child(name).unwrap().state;
    assert_eq!((state("again"), state("once")), (ChildState::Restarting, ChildState::Stopped));
    let text = snapshot.to_string();
    assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    assert_eq!(
        text,
        "supervisor (one_for_one) starting\n├─ again  restarting\n├─ once   stopped\n└─ slow   starting"
    );
    assert!(s.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_restart_by_hand_that_fails_leaves_a_permanent_child_stopped() {
    let child = Child::new("a", async |ctx: Context| {
        if ctx.attempt() == 2 {
            return Err("no port");
        }
        ctx.ready();
        ctx.cancelled().await;
        Ok(())
    });
    let s = up(Supervisor::one_for_one().with_child(child.with_readiness(secs(5)))).await;
    assert!(s.restart_child("a").await.is_err());
    tokio::time::sleep(secs(60)).await;
    assert_eq!(s.snapshot().child("a").unwrap().state, ChildState::Stopped);
    s.start_child("a").await.unwrap();
    assert!(s.stop().await.is_clean());
}
