//! Supervisors under supervisors.

use std::sync::Arc;
use std::time::Duration;

use async_supervisor::{
    Backoff, Cause, Child, ChildState, CommandError, Context, EventKind, Exit, Intensity, MeltDown, Restart,
    Shutdown, Strategy, Supervisor, SupervisorState,
};
use proptest::prelude::{Just, ProptestConfig, any, prop, prop_oneof, proptest};
use proptest::strategy::Strategy as _;
use tokio::time::{Instant, sleep};

use crate::common::{Log, Order, Roll, secs, settle, tolerant, up};

fn sub(log: &Log, names: &[&str]) -> Supervisor {
    Supervisor::one_for_one()
        .with_name("sub")
        .with_intensity(Intensity::new(0, secs(5)))
        .with_children(names.iter().map(|name| log.child(name)))
}

#[tokio::test(start_paused = true)]
async fn a_tree_starts_and_stops_in_order() {
    let log = Log::new();
    let s = tolerant(Supervisor::one_for_one()).with_children([
        log.child("a"),
        sub(&log, &["b", "c"]).into_child(),
        log.child("d"),
    ]);
    let s = up(s).await;
    assert!(s.stop().await.is_clean());
    assert_eq!(log.take(), "+a +b +c +d -d -c -b -a");
}

#[tokio::test(start_paused = true)]
async fn the_next_child_starts_when_the_whole_tree_before_it_is_up() {
    let log = Log::new();
    let below = tolerant(Supervisor::one_for_one())
        .with_name("sub")
        .with_children([log.child("b").with_readiness(secs(60)), log.child("c")]);
    let s = Supervisor::one_for_one().with_children([below.into_child(), log.child("d")]).spawn().unwrap();
    settle().await;
    assert_eq!(log.take(), "+b");
    log.tell("b", Order::Ready).await;
    s.ready().await.unwrap();
    settle().await;
    assert_eq!(log.take(), "+c +d");
}

#[tokio::test(start_paused = true)]
async fn a_melt_down_is_a_typed_failure_whatever_the_restart_kind() {
    for (restart, comes_back) in
        [(Restart::Permanent, true), (Restart::Transient, true), (Restart::Temporary, false)]
    {
        let log = Log::new();
        let s = tolerant(Supervisor::one_for_one()).with_name("root").with_child(
            sub(&log, &["b", "c"]).into_child().with_restart(restart).with_backoff(Backoff::none()),
        );
        let s = up(s).await;
        let mut events = s.events();
        log.tell("b", Order::Fail).await;
        assert_eq!(log.take(), if comes_back { "+b +c -c +b +c" } else { "+b +c -c" });
        let exit = loop {
            let event = events.recv().await.unwrap();
            if let ("root", EventKind::Exited { child, exit }) = (&*event.supervisor, event.kind) {
                assert_eq!(&*child, "sub");
                break exit;
            }
        };
        let Exit::MeltedDown(MeltDown::Intensity { supervisor, child, restarts, error, .. }) = exit else {
            panic!("{exit}")
        };
        assert_eq!(
            (&*supervisor, &*child, restarts, error.as_deref()),
            ("sub", "b", 1, Some("told to fail"))
        );
        assert_eq!(s.snapshot().child("sub").is_some(), comes_back);
    }
}

#[tokio::test(start_paused = true)]
async fn a_melt_down_climbs_the_tree_as_far_as_it_must() {
    let log = Log::new();
    let middle = Supervisor::one_for_all()
        .with_name("middle")
        .with_intensity(Intensity::new(1, secs(60)))
        .with_children([log.child("m"), sub(&log, &["b"]).into_child().with_backoff(Backoff::none())]);
    let s = Supervisor::one_for_one()
        .with_name("root")
        .with_intensity(Intensity::new(0, secs(60)))
        .with_children([log.child("a"), middle.into_child()]);
    let s = up(s).await;
    log.tell("b", Order::Fail).await;
    assert_eq!(log.take(), "+a +m +b -m +m +b");
    log.tell("b", Order::Fail).await;
    assert_eq!(log.take(), "-m -a");
    let Cause::MeltedDown(MeltDown::Intensity { child, error, .. }) = s.wait().await.cause else { panic!() };
    assert_eq!(&*child, "middle");
    assert_eq!(
        error.as_deref(),
        Some(
            "supervisor `middle` melted down: 2 restarts within 60s (1 allowed), the last of `sub`: \
             supervisor `sub` melted down: 1 restart within 5s (0 allowed), the last of `b`: told to fail"
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_sub_supervisor_that_shuts_itself_down_has_ended_well() {
    let log = Log::new();
    let below = Supervisor::one_for_one()
        .with_name("sub")
        .with_auto_shutdown(async_supervisor::AutoShutdown::AnySignificant)
        .with_child(log.child("b").with_restart(Restart::Transient).with_significant());
    let s = Supervisor::one_for_one()
        .with_intensity(Intensity::new(0, secs(5)))
        .with_child(below.into_child().with_restart(Restart::Transient));
    let s = up(s).await;
    log.tell("b", Order::End).await;
    let snapshot = s.snapshot();
    assert_eq!((snapshot.state, snapshot.children[0].state), (SupervisorState::Running, ChildState::Stopped));
}

#[tokio::test(start_paused = true)]
async fn what_is_stuck_below_is_named_above_and_a_sub_supervisor_is_waited_for() {
    let deaf = Child::new("deaf", async |_: Context| sleep(secs(3600)).await)
        .with_shutdown(Shutdown::Timeout(secs(7)));
    let below = Supervisor::one_for_one().with_name("sub").with_child(deaf).into_child();
    let s = up(Supervisor::one_for_one().with_child(below)).await;
    let started = Instant::now();
    let report = s.stop().await;
    let took = started.elapsed();
    assert!((secs(7)..secs(7) + Duration::from_millis(5)).contains(&took), "{took:?}");
    assert_eq!(report.aborted, ["sub/deaf".into()]);
}

#[tokio::test(start_paused = true)]
async fn a_tree_can_be_changed_below() {
    let log = Log::new();
    let s = up(Supervisor::one_for_one().with_child(sub(&log, &["b"]).into_child())).await;
    let below = s.supervisor("sub").unwrap();
    below.add(log.child("c")).await.unwrap();
    below.remove_child("b").await.unwrap();
    assert!(s.supervisor("b").is_none());
    settle().await;
    assert_eq!(log.take(), "+b +c -b");
    let names: Vec<_> = below.snapshot().children.into_iter().map(|child| child.name).collect();
    assert_eq!(names, ["c".into()]);
    s.remove_child("sub").await.unwrap();
    assert!(s.supervisor("sub").is_none());
    assert!(matches!(below.add(log.child("d")).await, Err(async_supervisor::CommandError::ShutDown)));
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_tree_is_left_when_it_is_over() {
    struct Token(Arc<()>);
    let held = Arc::new(());
    let token = Arc::new(Token(Arc::clone(&held)));
    let leaf = |name: &str| {
        Child::with(name, Arc::clone(&token), async |ctx: Context, token: Arc<Token>| {
            ctx.cancelled().await;
            drop(Arc::clone(&token.0));
        })
    };
    let below = Supervisor::pool().with_name("sub").with_child(leaf("b")).into_child();
    let s = up(Supervisor::one_for_one().with_children([leaf("a"), below])).await;
    drop(token);
    let handle = s.handle();
    assert!(s.stop().await.is_clean());
    settle().await;
    assert_eq!(
        Arc::strong_count(&held),
        1,
        "what the workers captured is dropped while handles are still there"
    );
    assert_eq!(handle.snapshot().state, SupervisorState::Stopped);
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_as_text() {
    let log = Log::new();
    let s = tolerant(Supervisor::rest_for_one()).with_name("root").with_children([
        log.child("checkpoint"),
        tolerant(Supervisor::pool())
            .with_name("feeds")
            .with_children([log.child("acme"), log.child("globex")])
            .into_child(),
        log.child("status").with_backoff(Backoff::constant(secs(90))),
    ]);
    let s = up(s).await;
    sleep(secs(75)).await;
    log.tell("acme", Order::Fail).await;
    log.tell("status", Order::Fail).await;
    assert_eq!(
        s.snapshot().to_string(),
        "\
root (rest_for_one) running
├─ checkpoint  running     1m15s
├─ feeds       running     1m15s  (pool)
│  ├─ acme    running     0.0s  1 restart  told to fail
│  └─ globex  running     1m15s
└─ status      restarting  in 1m30s  1 restart  told to fail"
    );
}

#[cfg(feature = "serde")]
#[tokio::test(start_paused = true)]
async fn the_snapshot_as_data() {
    let log = Log::new();
    let fails = log.child("a").with_backoff(Backoff::constant(secs(60)));
    let s = tolerant(Supervisor::one_for_one()).with_name("root");
    let s = up(s.with_children([sub(&log, &["b"]).into_child(), fails])).await;
    sleep(secs(75)).await;
    log.tell("a", Order::Fail).await;
    let snapshot = s.snapshot();
    let json = serde_json::to_string(&snapshot).unwrap();
    assert!(json.contains(r#""uptime":"1m 15s"#) && json.contains(r#""next_restart":"1m""#), "{json}");
    assert!(json.contains(r#""strategy":"one_for_one","state":"running""#), "{json}");
    assert_eq!(serde_json::from_str::<async_supervisor::Snapshot>(&json).unwrap(), snapshot);
}

#[cfg(feature = "serde")]
#[tokio::test(start_paused = true)]
async fn the_report_as_data() {
    let deaf = Child::new("deaf", async |_: Context| std::future::pending::<()>().await)
        .with_shutdown(Shutdown::Timeout(secs(90)));
    let bad = Child::new("bad", async |ctx: Context| {
        ctx.cancelled().await;
        Err::<(), _>("disk full")
    });
    let s = up(Supervisor::one_for_one().with_name("root").with_children([deaf, bad])).await;
    let data = serde_json::to_value(s.stop().await).unwrap();
    assert!(data["took"].as_str().unwrap().starts_with("1m 30s"), "{data}");
    let expected = serde_json::json!({
        "supervisor": "root", "clean": false, "cause": "stopped", "why": null, "signal": null,
        "aborted": ["deaf"], "leaked": [],
        "failed": [{ "child": "bad", "exit": "failed", "error": "disk full" }],
        "took": data["took"],
    });
    assert_eq!(data, expected);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_below_fails_above_and_what_was_started_is_stopped() {
    let log = Log::new();
    let bad = Child::new("bad", async |_: Context| Err::<(), _>(std::io::Error::other("no port")));
    let below = sub(&log, &["b"]).with_child(bad.with_readiness(secs(1)));
    let s = Supervisor::one_for_one().with_name("root").with_children([
        log.child("a"),
        below.into_child(),
        log.child("c"),
    ]);
    let error = s.start().await.unwrap_err();
    settle().await;
    assert_eq!(log.take(), "+a +b -b -a");
    assert_eq!(
        error.to_string(),
        "supervisor `root` did not start: `sub`: supervisor `sub` did not start: `bad`: no port"
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_supervisor_is_what_its_specification_says_and_old_handles_lead_nowhere() {
    let log = Log::new();
    let s = up(Supervisor::one_for_one().with_child(sub(&log, &["b"]).into_child())).await;
    let before = s.supervisor("sub").unwrap();
    before.add(log.child("c")).await.unwrap();
    s.restart_child("sub").await.unwrap();
    settle().await;
    assert_eq!(log.take(), "+b +c -c -b +b");
    assert_eq!(before.add(log.child("d")).await, Err(CommandError::ShutDown));
    s.supervisor("sub").unwrap().add(log.child("d")).await.unwrap();
}

#[derive(Clone, Debug)]
struct Leaf {
    restart: Restart,
    /// How long it lives, whether it then fails, how long it takes to end when asked to (not at all: it must be aborted).
    lives: Option<u64>,
    fails: bool,
    cleanup: Option<u64>,
    ready_after: Option<u64>,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(Leaf),
    Sub(Strategy, Vec<Node>),
}

fn leaf() -> impl proptest::strategy::Strategy<Value = Node> {
    let restart = prop_oneof![Just(Restart::Permanent), Just(Restart::Transient), Just(Restart::Temporary)];
    let lives = prop::option::of(0..3000_u64);
    let cleanup = prop::option::weighted(0.8, 0..300_u64);
    (restart, lives, any::<bool>(), cleanup, prop::option::of(0..400_u64)).prop_map(
        |(restart, lives, fails, cleanup, ready_after)| {
            Node::Leaf(Leaf { restart, lives, fails, cleanup, ready_after })
        },
    )
}

fn tree() -> impl proptest::strategy::Strategy<Value = Node> {
    let strategy = prop_oneof![
        Just(Strategy::OneForOne),
        Just(Strategy::OneForAll),
        Just(Strategy::RestForOne),
        Just(Strategy::Pool)
    ];
    let node = leaf().prop_recursive(2, 12, 4, move |inner| {
        (
            prop_oneof![Just(Strategy::OneForOne), Just(Strategy::OneForAll), Just(Strategy::RestForOne)],
            prop::collection::vec(inner, 1..4),
        )
            .prop_map(|(strategy, nodes)| Node::Sub(strategy, nodes))
    });
    (strategy, prop::collection::vec(node, 1..5)).prop_map(|(strategy, nodes)| Node::Sub(strategy, nodes))
}

fn build(node: &Node, path: &str, roll: &Roll) -> Child {
    match node {
        Node::Sub(..) => supervisor(node, path, roll).into_child(),
        Node::Leaf(leaf) => {
            let (roll, path, spec) = (roll.clone(), path.to_owned(), leaf.clone());
            let child = Child::new(path.clone(), move |ctx: Context| {
                let (roll, path, leaf) = (roll.clone(), path.clone(), spec.clone());
                async move {
                    let _present = roll.enter(&path);
                    if let Some(ms) = leaf.ready_after {
                        sleep(Duration::from_millis(ms)).await;
                        ctx.ready();
                    }
                    let life = async {
                        match leaf.lives {
                            Some(ms) => sleep(Duration::from_millis(ms)).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = life => return if leaf.fails { Err("fell") } else { Ok(()) },
                        () = ctx.cancelled() => {}
                    }
                    match leaf.cleanup {
                        Some(ms) => sleep(Duration::from_millis(ms)).await,
                        None => std::future::pending().await,
                    }
                    Ok(())
                }
            })
            .with_restart(leaf.restart)
            .with_backoff(Backoff::exponential(Duration::from_millis(10), Duration::from_millis(200)))
            .with_shutdown(Shutdown::Timeout(Duration::from_millis(150)));
            if leaf.ready_after.is_some() { child.with_readiness(Duration::from_millis(300)) } else { child }
        }
    }
}

fn supervisor(node: &Node, path: &str, roll: &Roll) -> Supervisor {
    let Node::Sub(strategy, nodes) = node else { unreachable!() };
    let children = nodes.iter().enumerate().map(|(i, node)| build(node, &format!("{path}.{i}"), roll));
    Supervisor::new(*strategy)
        .with_name(path)
        .with_seed(7)
        .with_intensity(Intensity::new(20, secs(5)))
        .with_children(children)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// Whatever a random tree's workers do and whatever its callers ask, nobody runs twice at once, and after a stop nobody runs.
    #[test]
    fn random_trees(tree in tree(), commands in prop::collection::vec((0..5_u8, 0..5_usize, 0..800_u64), 0..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let roll = Roll::default();
            let running = supervisor(&tree, "r", &roll).spawn().unwrap();
            for (verb, child, pause) in commands {
                let (handle, name) = (running.handle(), format!("r.{child}"));
                tokio::spawn(async move {
                    let _ = match verb {
                        0 => handle.stop_child(&name).await,
                        1 => handle.start_child(&name).await,
                        2 => handle.restart_child(&name).await,
                        3 => handle.remove_child(&name).await,
                        _ => handle.delete_child(&name).await,
                    };
                });
                sleep(Duration::from_millis(pause)).await;
                let snapshot = running.snapshot();
                if snapshot.state == SupervisorState::Stopped {
                    break;
                }
            }
            let report = running.stop().await;
            assert!(report.leaked.is_empty(), "{report}");
            settle().await;
            assert_eq!(roll.len(), 0, "{report}");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_restart_below_holds_up_nobody_above() {
    let log = Log::new();
    let sub = tolerant(Supervisor::one_for_one()).with_name("sub").with_child(
        Child::new("slow", async |ctx: Context| {
            if ctx.attempt() == 1 {
                ctx.ready();
                tokio::time::sleep(secs(1)).await;
                return Err("lost");
            }
            ctx.cancelled().await;
            Ok(())
        })
        .with_readiness(secs(60)),
    );
    let s = up(tolerant(Supervisor::one_for_one()).with_children([log.child("web"), sub.into_child()])).await;
    tokio::time::sleep(secs(5)).await;
    let below = s.snapshot().child("sub").unwrap().supervisor.clone().unwrap();
    assert_eq!(below.child("slow").unwrap().state, ChildState::Starting);
    log.tell("web", Order::Fail).await;
    assert_eq!(log.take(), "+web +web");
    assert!(s.stop().await.is_clean());
}
