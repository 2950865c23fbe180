//! OTP's behaviour, row by row: what its documentation says, and what OTP 25 does.
//!
//! The typed errors of its commands are in `commands`, the times of a stop in `stop`, automatic shutdown in `significant`, supervisors under
//! supervisors in `tree`, and all of it at random in `model`, and beside OTP in `otp_itself`.

use std::time::Duration;

use async_supervisor::{
    Backoff, Cause, Child, ChildState, CommandError, Context, Intensity, MeltDown, Restart, StartError,
    Supervisor, SupervisorState,
};
use tokio::time::sleep;

use crate::common::{Log, Order, secs, settle, tolerant, up};

#[tokio::test(start_paused = true)]
async fn intensity_one_survives_the_first_crash_and_not_the_second() {
    let log = Log::new();
    let s = Supervisor::one_for_one()
        .with_intensity(Intensity::new(1, secs(5)))
        .with_children(["a", "b", "c"].map(|name| log.child(name)));
    let s = up(s).await;
    log.tell("b", Order::Fail).await;
    assert_eq!(log.take(), "+a +b +c +b");
    sleep(secs(4)).await;
    log.tell("b", Order::Fail).await;
    assert_eq!(log.take(), "-c -a");
    let report = s.wait().await;
    let Cause::MeltedDown(MeltDown::Intensity { child, restarts, error, .. }) = &report.cause else {
        panic!("{report}")
    };
    assert_eq!((&**child, *restarts, error.as_deref()), ("b", 2, Some("told to fail")));
}

#[tokio::test(start_paused = true)]
async fn the_period_slides() {
    let log = Log::new();
    let s = Supervisor::one_for_one().with_intensity(Intensity::new(1, secs(5))).with_child(log.child("a"));
    let s = up(s).await;
    for _ in 0..5 {
        log.tell("a", Order::Panic).await;
        sleep(Duration::from_millis(5001)).await;
    }
    assert_eq!(log.take(), "+a +a +a +a +a +a");
    assert_eq!(s.snapshot().child("a").unwrap().restarts, 5);
}

#[tokio::test(start_paused = true)]
async fn intensity_zero_fails_at_the_first_crash() {
    let log = Log::new();
    let s = Supervisor::one_for_one()
        .with_intensity(Intensity::new(0, secs(5)))
        .with_children(["a", "b"].map(|name| log.child(name)));
    let s = up(s).await;
    log.tell("a", Order::Fail).await;
    assert_eq!(log.take(), "+a +b -b");
    assert!(matches!(s.wait().await.cause, Cause::MeltedDown(_)));
}

#[tokio::test(start_paused = true)]
async fn a_permanent_child_that_ends_normally_is_restarted_and_counted() {
    let log = Log::new();
    let s = Supervisor::one_for_one().with_intensity(Intensity::new(1, secs(5))).with_child(log.child("a"));
    let s = up(s).await;
    log.tell("a", Order::End).await;
    assert_eq!(log.take(), "+a +a");
    log.tell("a", Order::End).await;
    assert!(matches!(s.wait().await.cause, Cause::MeltedDown(_)));
}

#[tokio::test(start_paused = true)]
async fn a_transient_child_is_restarted_only_after_a_failure() {
    let log = Log::new();
    let s =
        up(tolerant(Supervisor::one_for_one()).with_child(log.child("a").with_restart(Restart::Transient)))
            .await;
    log.tell("a", Order::Fail).await;
    log.tell("a", Order::Panic).await;
    assert_eq!(log.take(), "+a +a +a");
    log.tell("a", Order::End).await;
    assert_eq!(log.take(), "");
    assert_eq!(s.snapshot().child("a").unwrap().state, ChildState::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_temporary_child_is_forgotten_when_it_ends() {
    let log = Log::new();
    for order in [Order::End, Order::Fail, Order::Panic] {
        let s =
            up(tolerant(Supervisor::one_for_one())
                .with_child(log.child("a").with_restart(Restart::Temporary)));
        let s = s.await;
        log.tell("a", order).await;
        assert_eq!(log.take(), "+a");
        assert_eq!(s.snapshot().children, []);
    }
}

#[tokio::test(start_paused = true)]
async fn one_for_all_stops_in_reverse_starts_in_order_and_counts_once() {
    let log = Log::new();
    let s = Supervisor::one_for_all()
        .with_intensity(Intensity::new(1, secs(5)))
        .with_children(["a", "b", "c"].map(|name| log.child(name)));
    let s = up(s).await;
    log.take();
    log.tell("b", Order::Fail).await;
    assert_eq!(log.take(), "-c -a +a +b +c");
    let snapshot = s.snapshot();
    assert_eq!(snapshot.children.iter().map(|c| c.restarts).collect::<Vec<_>>(), [0, 1, 0]);
    log.tell("b", Order::Fail).await;
    assert_eq!(log.take(), "-c -a");
}

#[tokio::test(start_paused = true)]
async fn rest_for_one_restarts_those_started_after() {
    let log = Log::new();
    let s = tolerant(Supervisor::rest_for_one())
        .with_children(["a", "b", "c", "d", "e"].map(|name| log.child(name)));
    let _s = up(s).await;
    log.take();
    log.tell("c", Order::Fail).await;
    assert_eq!(log.take(), "-e -d +c +d +e");
}

#[tokio::test(start_paused = true)]
async fn the_third_of_four_fails_to_start() {
    let log = Log::new();
    let bad = log.clone();
    let bad = Child::new("c", move |_: Context| {
        bad.line("+c");
        async { Err::<(), _>(std::io::Error::other("no port")) }
    })
    .with_readiness(secs(1));
    let s = tolerant(Supervisor::one_for_one())
        .with_children([log.child("a"), log.child("b"), bad, log.child("d")])
        .start();
    let error = s.await.unwrap_err();
    settle().await;
    assert_eq!(log.take(), "+a +b +c -b -a");
    assert!(matches!(&error, StartError::Child(MeltDown::Start { child, .. }) if &**child == "c"));
    assert_eq!(error.to_string(), "supervisor `supervisor` did not start: `c`: no port");
}

#[tokio::test(start_paused = true)]
async fn a_temporary_sibling_is_stopped_with_the_group_and_forgotten() {
    for strategy in [Supervisor::one_for_all(), Supervisor::rest_for_one()] {
        let log = Log::new();
        let s = tolerant(strategy).with_children([
            log.child("a"),
            log.child("b").with_restart(Restart::Temporary),
            log.child("c"),
        ]);
        let s = up(s).await;
        log.take();
        log.tell("a", Order::Fail).await;
        assert_eq!(log.take(), "-c -b +a +c");
        assert!(s.snapshot().child("b").is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_restart_starts_what_had_ended_or_was_stopped_by_hand_too() {
    let log = Log::new();
    let s = tolerant(Supervisor::one_for_all()).with_children([
        log.child("a"),
        log.child("b").with_restart(Restart::Transient),
        log.child("c"),
    ]);
    let s = up(s).await;
    log.tell("b", Order::End).await;
    s.stop_child("c").await.unwrap();
    log.take();
    log.tell("a", Order::Fail).await;
    assert_eq!(log.take(), "+a +b +c");
}

#[tokio::test(start_paused = true)]
async fn stops_and_restarts_by_hand_are_not_counted() {
    let log = Log::new();
    let s =
        up(Supervisor::one_for_one().with_intensity(Intensity::new(0, secs(5))).with_child(log.child("a")))
            .await;
    for _ in 0..3 {
        s.restart_child("a").await.unwrap();
        s.stop_child("a").await.unwrap();
        s.start_child("a").await.unwrap();
    }
    settle().await;
    assert_eq!(log.take(), "+a -a +a -a +a -a +a -a +a -a +a -a +a");
    assert_eq!(s.snapshot().child("a").unwrap().restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn an_exit_of_a_sibling_waits_for_the_end_of_the_sequence() {
    let log = Log::new();
    let s = tolerant(Supervisor::one_for_one()).with_children([
        log.child("a"),
        log.child("b").with_readiness(secs(60)),
        log.child("c"),
    ]);
    let s = s.spawn().unwrap();
    settle().await;
    // While `b` is not ready, `a` falls: it is restarted when `c` is up.
    log.tell("a", Order::Fail).await;
    assert_eq!(log.take(), "+a +b");
    log.tell("b", Order::Ready).await;
    assert_eq!(log.take(), "+c +a");
    s.ready().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_missed_heartbeat_during_a_sequence_is_judged_when_that_ends() {
    let log = Log::new();
    let s = tolerant(Supervisor::one_for_all()).with_children([
        log.child("a").with_heartbeat(secs(1)),
        log.child("b").with_readiness(secs(60)),
        log.child("c"),
    ]);
    let s = s.spawn().unwrap();
    sleep(secs(2)).await;
    assert_eq!(log.take(), "+a +b -a");
    assert_eq!(s.snapshot().child("a").unwrap().state, ChildState::Restarting);
    log.tell("b", Order::Ready).await;
    assert_eq!(log.take(), "+c -c -b +a +b");
}

#[tokio::test(start_paused = true)]
async fn a_sibling_that_falls_while_the_group_is_stopped_is_not_counted() {
    let log = Log::new();
    let s = Supervisor::one_for_all().with_intensity(Intensity::new(1, secs(5))).with_children([
        log.child("a"),
        log.child("b"),
        log.child_with("c", secs(1)),
    ]);
    let s = up(s).await;
    log.take();
    log.tell("b", Order::Fail).await;
    log.tell("a", Order::Fail).await;
    assert_eq!(log.take(), "-c");
    sleep(secs(2)).await;
    assert_eq!(log.take(), "+a +b +c");
    assert_eq!(s.snapshot().state, SupervisorState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_keeps_failing_leaves_the_child_restarting_and_is_counted_each_time() {
    let log = Log::new();
    let line = log.clone();
    let ok_once = Child::new("a", move |ctx: Context| {
        line.line(format!("+a{}", ctx.attempt()));
        async move {
            if ctx.attempt() == 1 {
                ctx.ready();
                sleep(secs(1)).await;
            }
            Err::<(), _>(std::io::Error::other("no port"))
        }
    });
    let s = Supervisor::one_for_one().with_intensity(Intensity::new(3, secs(60))).with_children([
        ok_once.with_readiness(secs(5)).with_backoff(Backoff::constant(secs(2))),
        log.child("b"),
    ]);
    let s = up(s).await;
    sleep(Duration::from_millis(3500)).await;
    assert_eq!(log.take(), "+a1 +b +a2");
    let child = s.snapshot().children.remove(0);
    assert_eq!((child.state, child.restarts, child.attempts), (ChildState::Restarting, 2, 2));
    assert_eq!(child.last_error.as_deref(), Some("no port"));
    assert!(matches!(s.wait().await.cause, Cause::MeltedDown(MeltDown::Intensity { restarts: 4, .. })));
    assert_eq!(log.take(), "+a3 +a4 -b");
}

#[tokio::test(start_paused = true)]
async fn rest_for_one_with_the_first_and_the_last() {
    let log = Log::new();
    let s = tolerant(Supervisor::rest_for_one()).with_children(["a", "b", "c"].map(|name| log.child(name)));
    let _s = up(s).await;
    log.take();
    log.tell("c", Order::Fail).await;
    assert_eq!(log.take(), "+c");
    log.tell("a", Order::Panic).await;
    assert_eq!(log.take(), "-c -b +a +b +c");
}

#[tokio::test(start_paused = true)]
async fn the_restarts_of_all_children_count_together() {
    let log = Log::new();
    let s = Supervisor::one_for_one()
        .with_intensity(Intensity::new(2, secs(5)))
        .with_children(["a", "b", "c"].map(|name| log.child(name)));
    let s = up(s).await;
    for name in ["a", "b", "c"] {
        log.tell(name, Order::Fail).await;
    }
    assert_eq!(log.take(), "+a +b +c +a +b -b -a");
    let report = s.wait().await;
    assert!(
        matches!(&report.cause, Cause::MeltedDown(MeltDown::Intensity { child, restarts: 3, .. }) if &**child == "c")
    );
}

#[tokio::test(start_paused = true)]
async fn a_restart_counts_until_it_is_longer_ago_than_the_period() {
    for (pause, borne) in [(4998, false), (5002, true)] {
        let log = Log::new();
        let s = Supervisor::one_for_one().with_intensity(Intensity::new(1, secs(5)));
        let s = up(s.with_child(log.child("a"))).await;
        log.tell("a", Order::Fail).await;
        sleep(Duration::from_millis(pause)).await;
        log.tell("a", Order::Fail).await;
        assert_eq!(s.snapshot().state == SupervisorState::Running, borne, "{pause}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_period_may_be_shorter_than_a_second() {
    let log = Log::new();
    let s = Supervisor::one_for_one().with_intensity(Intensity::new(1, Duration::from_millis(50)));
    let s = up(s.with_child(log.child("a"))).await;
    for _ in 0..3 {
        log.tell("a", Order::Fail).await;
        sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(s.snapshot().child("a").unwrap().restarts, 3);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_ends_for_good_leaves_its_group_alone() {
    for strategy in [Supervisor::one_for_all(), Supervisor::rest_for_one()] {
        let log = Log::new();
        let s = strategy.with_intensity(Intensity::new(0, secs(5))).with_children([
            log.child("a").with_restart(Restart::Temporary),
            log.child("b").with_restart(Restart::Transient),
            log.child("c"),
        ]);
        let s = up(s).await;
        log.tell("a", Order::Panic).await;
        log.tell("b", Order::End).await;
        assert_eq!(log.take(), "+a +b +c");
        let states: Vec<_> = s.snapshot().children.iter().map(|c| (c.name.clone(), c.state)).collect();
        assert_eq!(states, [("b".into(), ChildState::Stopped), ("c".into(), ChildState::Running)]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_added_child_is_the_last_of_the_order_and_a_restarted_one_keeps_its_place() {
    let log = Log::new();
    let s =
        up(tolerant(Supervisor::rest_for_one()).with_children(["a", "b"].map(|name| log.child(name)))).await;
    s.add(log.child("c")).await.unwrap();
    s.restart_child("a").await.unwrap();
    settle().await;
    log.take();
    log.tell("b", Order::Fail).await;
    assert_eq!(log.take(), "-c +b +c");
    assert!(s.stop().await.is_clean());
    assert_eq!(log.take(), "-c -b -a");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_child_keeps_its_name_until_it_is_deleted() {
    let log = Log::new();
    let s = up(Supervisor::one_for_one().with_child(log.child("a"))).await;
    s.stop_child("a").await.unwrap();
    assert!(matches!(s.add(log.child("a")).await, Err(CommandError::AlreadyExists(_))));
    s.delete_child("a").await.unwrap();
    s.add(log.child("a")).await.unwrap();
    settle().await;
    assert_eq!(log.take(), "+a -a +a");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_in_the_restart_of_a_group_is_tried_again_and_counted() {
    let log = Log::new();
    let bad = Child::new("b", async |ctx: Context| {
        if ctx.attempt() == 2 {
            return Err(std::io::Error::other("no port"));
        }
        ctx.ready();
        ctx.cancelled().await;
        Ok(())
    });
    let s = Supervisor::one_for_all().with_intensity(Intensity::new(2, secs(5))).with_children([
        log.child("a"),
        bad.with_readiness(secs(1)).with_backoff(Backoff::none()),
        log.child("c"),
    ]);
    let s = up(s).await;
    log.tell("a", Order::Fail).await;
    assert_eq!(log.take(), "+a +c -c +a -a +a +c");
    let restarts: Vec<_> = s.snapshot().children.iter().map(|c| c.restarts).collect();
    assert_eq!(restarts, [1, 1, 0]);
    log.tell("c", Order::Fail).await;
    assert!(matches!(s.wait().await.cause, Cause::MeltedDown(MeltDown::Intensity { restarts: 3, .. })));
}

#[tokio::test(start_paused = true)]
async fn the_children_of_a_pool_that_take_too_long_are_killed_all_at_once() {
    let deaf = |name: &str| Child::new(name, async |_: Context| std::future::pending::<()>().await);
    let s = up(Supervisor::pool().with_children([deaf("a"), deaf("b"), deaf("c")])).await;
    let started = tokio::time::Instant::now();
    let report = s.stop().await;
    assert_eq!((report.aborted.len(), report.leaked.len()), (3, 0));
    let took = started.elapsed();
    assert!((secs(5)..secs(5) + Duration::from_millis(5)).contains(&took), "{took:?}");
}
