use std::time::Duration;

use async_supervisor::{
    AutoShutdown, Backoff, Cause, Child, ChildState, Context, Restart, Shutdown, Supervisor, SupervisorState,
};
use tokio::time::{Instant, sleep};

use crate::common::{Log, Order, ms, settle, tolerant, up};

#[tokio::test(start_paused = true)]
async fn two_children_that_need_300_ms_stop_one_after_the_other() {
    let log = Log::new();
    let s = up(Supervisor::one_for_one().with_children(["a", "b"].map(|name| log.child_with(name, ms(300)))))
        .await;
    let started = Instant::now();
    let report = s.stop().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(log.take(), "+a +b -b -a");
    let took = started.elapsed();
    assert!((ms(600)..ms(605)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn in_a_pool_all_at_once() {
    let log = Log::new();
    let s = up(Supervisor::pool().with_children(["a", "b"].map(|name| log.child_with(name, ms(300))))).await;
    let started = Instant::now();
    assert!(s.stop().await.is_clean());
    let took = started.elapsed();
    assert!((ms(300)..ms(305)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_ignores_its_token_is_aborted_after_its_time() {
    let log = Log::new();
    let deaf = Child::new("deaf", async |_: Context| sleep(Duration::from_secs(3600)).await)
        .with_shutdown(Shutdown::Timeout(ms(200)));
    let s = up(Supervisor::one_for_one().with_children([log.child("a"), deaf, log.child("c")])).await;
    let started = Instant::now();
    let report = s.stop().await;
    assert_eq!(log.take(), "+a +c -c -a");
    assert_eq!(report.aborted, ["deaf".into()]);
    assert!(report.leaked.is_empty() && !report.is_clean());
    let took = started.elapsed();
    assert!((ms(200)..ms(205)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn stop_twice_and_by_dropping_the_handle() {
    let log = Log::new();
    let s = up(Supervisor::one_for_one().with_child(log.child_with("a", ms(300)))).await;
    let (one, two) = tokio::join!(s.stop(), s.stop());
    assert!(one.is_clean() && two.is_clean());
    assert!(matches!(s.stop().await.cause, Cause::Stopped));

    let s = up(Supervisor::one_for_one().with_child(log.child_with("a", ms(300)))).await;
    let handle = s.handle();
    drop(s);
    assert!(handle.wait().await.is_clean());
    assert_eq!(log.take(), "+a -a +a -a");
}

#[tokio::test(start_paused = true)]
async fn stop_during_start_up_starts_no_further_child() {
    let log = Log::new();
    let slow = log.child("b").with_readiness(Duration::from_secs(60));
    let s = Supervisor::one_for_one().with_children([log.child("a"), slow, log.child("c")]).spawn().unwrap();
    settle().await;
    assert_eq!(s.snapshot().child("c").unwrap().state, ChildState::Waiting);
    assert!(s.stop().await.is_clean());
    assert_eq!(log.take(), "+a +b -b -a");
    assert!(s.ready().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn stop_during_backoff_does_not_wait_for_it() {
    let log = Log::new();
    let s = tolerant(Supervisor::one_for_one())
        .with_child(log.child("a").with_backoff(Backoff::constant(Duration::from_secs(60))));
    let s = up(s).await;
    log.tell("a", Order::Fail).await;
    let child = s.snapshot().children.remove(0);
    assert_eq!((child.state, child.next_restart), (ChildState::Restarting, Some(Duration::from_secs(60))));
    let started = Instant::now();
    assert!(s.stop().await.is_clean());
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_is_served_while_it_stops() {
    let log = Log::new();
    let s = up(Supervisor::one_for_one().with_children(["a", "b"].map(|name| log.child_with(name, ms(300)))))
        .await;
    s.request_stop();
    settle().await;
    let snapshot = s.snapshot();
    assert_eq!(snapshot.child("a").unwrap().state, ChildState::Running);
    assert_eq!(snapshot.child("b").unwrap().state, ChildState::Stopping);
    assert!(s.wait().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_forced_stop_asks_all_and_aborts_a_moment_later_those_that_do_not_end_the_last_first() {
    struct Left(Log, String);
    impl Drop for Left {
        fn drop(&mut self) {
            self.0.line(&self.1);
        }
    }
    let log = Log::new();
    let deaf = |name: &str| {
        let worker = async |ctx: Context, log: Log| {
            let _left = Left(log, ctx.name().to_owned());
            std::future::pending::<()>().await;
        };
        Child::with(name, log.clone(), worker).with_shutdown(Shutdown::Wait)
    };
    let store = log.child_with("store", ms(50));
    let s = up(Supervisor::one_for_one().with_children([store, deaf("b"), deaf("c")])).await;
    log.take();
    s.request_stop();
    sleep(Duration::from_secs(3600)).await;
    let started = Instant::now();
    s.force_stop();
    let report = s.wait().await;
    // The store waited for its turn, and closes.
    assert_eq!(log.take(), "-store c b");
    assert_eq!(report.aborted, ["c".into(), "b".into()]);
    let took = started.elapsed();
    assert!((ms(100)..ms(105)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_forced_stop_does_not_take_a_long_abort_grace() {
    let deaf = deaf("deaf");
    let s = up(Supervisor::one_for_one().with_abort_grace(Duration::MAX).with_child(deaf)).await;
    let started = Instant::now();
    s.force_stop();
    assert_eq!(s.wait().await.aborted, ["deaf".into()]);
    let took = started.elapsed();
    assert!((ms(1000)..ms(1005)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_budget_holds_for_the_whole_stop() {
    let log = Log::new();
    let s = Supervisor::one_for_one()
        .with_stop_budget(ms(450))
        .with_children(["a", "b", "c"].map(|name| log.child_with(name, ms(300))));
    let s = up(s).await;
    let started = Instant::now();
    let report = s.stop().await;
    let took = started.elapsed();
    assert!((ms(450)..ms(455)).contains(&took), "{took:?}");
    assert_eq!(report.aborted, ["b".into(), "a".into()]);
}

#[tokio::test(start_paused = true)]
async fn stop_during_a_group_restart() {
    let log = Log::new();
    let s = tolerant(Supervisor::one_for_all()).with_children([
        log.child("a"),
        log.child_with("b", ms(300)),
        log.child_with("c", ms(300)),
    ]);
    let s = up(s).await;
    log.take();
    log.tell("a", Order::Fail).await;
    assert_eq!(log.take(), "-c");
    let started = Instant::now();
    assert!(s.stop().await.is_clean());
    assert_eq!(log.take(), "-b");
    let took = started.elapsed();
    assert!((ms(600)..ms(605)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_the_child_that_is_being_stopped_by_name() {
    let log = Log::new();
    let s = up(Supervisor::one_for_one().with_children(["a", "b"].map(|name| log.child_with(name, ms(300)))))
        .await;
    let handle = s.handle();
    let by_name = tokio::spawn(async move { handle.stop_child("a").await });
    settle().await;
    let started = Instant::now();
    assert!(s.stop().await.is_clean());
    let took = started.elapsed();
    assert!((ms(600)..ms(605)).contains(&took), "{took:?}");
    assert_eq!(log.take(), "+a +b -a -b");
    assert_eq!(by_name.await.unwrap(), Err(async_supervisor::CommandError::ShutDown));
}

#[tokio::test(start_paused = true)]
async fn a_failure_while_it_is_being_stopped_is_in_the_report() {
    let child = Child::new("a", async |ctx: Context| {
        ctx.cancelled().await;
        Err::<(), _>("could not flush")
    });
    let report = up(Supervisor::one_for_one().with_child(child)).await.stop().await;
    assert_eq!(report.failed.len(), 1);
    let text = report.to_string();
    assert!(text.ends_with("; `a` failed: could not flush"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_can_stop_its_own_supervisor() {
    let child = Child::new("a", async |ctx: Context| {
        ctx.supervisor().request_stop();
        ctx.cancelled().await;
    });
    assert!(Supervisor::one_for_one().with_child(child).spawn().unwrap().wait().await.is_clean());
}

#[test]
fn a_runtime_that_is_shut_down_ends_all_and_is_told_so() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log = Log::new();
    let s = runtime.block_on(up(Supervisor::one_for_one().with_child(log.child("a"))));
    let handle = s.handle();
    drop(runtime);
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(matches!(other.block_on(handle.wait()).cause, Cause::Lost));
    let snapshot = handle.snapshot();
    assert_eq!(snapshot.state, SupervisorState::Stopped);
    assert_eq!(snapshot.child("a").unwrap().state, ChildState::Stopped);
    assert!(matches!(other.block_on(handle.stop_child("a")), Err(async_supervisor::CommandError::ShutDown)));
}

#[tokio::test(start_paused = true)]
async fn abort_at_once_is_no_fault_in_the_report() {
    let child =
        Child::new("a", async |_: Context| std::future::pending::<()>().await).with_shutdown(Shutdown::Abort);
    let started = Instant::now();
    let report = up(Supervisor::one_for_one().with_child(child)).await.stop().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_tree_whose_work_is_done_at_once_was_ready_and_its_report_is_there() {
    let job = Child::new("job", async |_: Context| {});
    let s = Supervisor::one_for_one()
        .with_auto_shutdown(AutoShutdown::AnySignificant)
        .with_child(job.with_restart(Restart::Transient).with_significant())
        .start()
        .await
        .unwrap();
    let report = s.wait().await;
    assert!(matches!(&report.cause, Cause::AutoShutdown { child } if &**child == "job"), "{report}");
    s.ready().await.unwrap();
}

/// Ignores its token, whatever its time.
fn deaf(name: &str) -> Child {
    Child::new(name, async |_: Context| std::future::pending::<()>().await).with_shutdown(Shutdown::Wait)
}

#[tokio::test(start_paused = true)]
async fn the_budget_of_the_root_holds_below_too() {
    let sub = Supervisor::one_for_one().with_name("sub").with_children([deaf("a"), deaf("b")]);
    let s = Supervisor::one_for_one().with_stop_budget(ms(450)).with_child(sub.into_child());
    let s = up(s).await;
    let started = Instant::now();
    let report = s.stop().await;
    let took = started.elapsed();
    assert!((ms(450)..ms(455)).contains(&took), "{took:?}");
    assert!(report.leaked.is_empty() && report.aborted.contains(&"sub/a".into()), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_below_is_forced_when_its_time_is_up() {
    for (shutdown, within) in [(Shutdown::Timeout(ms(200)), ms(200)), (Shutdown::Abort, ms(0))] {
        let sub = Supervisor::one_for_one().with_name("sub").with_children([deaf("a"), deaf("b")]);
        let s = up(Supervisor::one_for_one().with_child(sub.into_child().with_shutdown(shutdown))).await;
        let started = Instant::now();
        s.stop_child("sub").await.unwrap();
        let took = started.elapsed();
        assert!((within..within + ms(5)).contains(&took), "{took:?}");
        assert!(s.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_aborted_unasked_when_the_budget_ends() {
    let log = Log::new();
    let sub = Supervisor::one_for_one().with_name("sub").with_children([log.child("below"), deaf("deep")]);
    let s = Supervisor::one_for_one().with_stop_budget(ms(450)).with_children([
        log.child("a"),
        log.child_with("b", ms(50)),
        sub.into_child(),
        deaf("deaf"),
    ]);
    let s = up(s).await;
    log.take();
    let started = Instant::now();
    let report = s.stop().await;
    let took = started.elapsed();
    assert!((ms(450)..ms(455)).contains(&took), "{took:?}");
    // Out of turn, a grace before the end: all at once, so in no order that counts.
    let asked = log.take();
    let mut asked: Vec<_> = asked.split(' ').collect();
    asked.sort_unstable();
    assert_eq!(asked, ["-a", "-b", "-below"]);
    let mut aborted = report.aborted.clone();
    aborted.sort();
    assert!(aborted.contains(&"deaf".into()) && aborted.contains(&"sub/deep".into()), "{report}");
    assert!(!aborted.iter().any(|name| matches!(&**name, "a" | "b" | "sub/below")), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_budget_shorter_than_the_grace_leaves_half_of_it_to_those_whose_turn_has_not_come() {
    let log = Log::new();
    let s = Supervisor::one_for_one().with_stop_budget(ms(60)).with_children([
        log.child_with("a", ms(20)),
        log.child_with("b", ms(40)),
        deaf("deaf"),
    ]);
    let report = up(s).await.stop().await;
    assert_eq!(report.aborted, ["deaf".into(), "b".into()], "{report}");
}
