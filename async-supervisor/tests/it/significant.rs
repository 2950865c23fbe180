//! OTP's significant children and automatic shutdown.

use async_supervisor::{AutoShutdown, Backoff, Cause, Child, Context, Restart, Supervisor, SupervisorState};

use crate::common::{Log, Order, idle, secs, slow, tolerant, up};

fn significant(log: &Log, name: &str, restart: Restart) -> Child {
    log.child(name).with_restart(restart).with_significant()
}

#[tokio::test(start_paused = true)]
async fn any_significant_child_that_ends_stops_the_supervisor() {
    let log = Log::new();
    let s =
        tolerant(Supervisor::one_for_one()).with_auto_shutdown(AutoShutdown::AnySignificant).with_children([
            log.child("a"),
            significant(&log, "b", Restart::Transient),
            significant(&log, "c", Restart::Temporary),
        ]);
    let s = up(s).await;
    // An abnormal end of a transient one is no end for good.
    log.tell("b", Order::Fail).await;
    assert_eq!(log.take(), "+a +b +c +b");
    log.tell("b", Order::End).await;
    assert_eq!(log.take(), "-c -a");
    let report = s.wait().await;
    assert!(report.is_clean());
    assert!(matches!(report.cause, Cause::AutoShutdown { child } if &*child == "b"));
}

#[tokio::test(start_paused = true)]
async fn a_temporary_significant_child_may_end_as_it_likes() {
    for order in [Order::End, Order::Fail] {
        let log = Log::new();
        let s = tolerant(Supervisor::one_for_one())
            .with_auto_shutdown(AutoShutdown::AnySignificant)
            .with_children([log.child("a"), significant(&log, "b", Restart::Temporary)]);
        let s = up(s).await;
        log.tell("b", order).await;
        assert!(matches!(s.wait().await.cause, Cause::AutoShutdown { .. }));
    }
}

#[tokio::test(start_paused = true)]
async fn all_significant_children_must_have_ended() {
    let log = Log::new();
    let s =
        tolerant(Supervisor::one_for_one()).with_auto_shutdown(AutoShutdown::AllSignificant).with_children([
            log.child("a"),
            significant(&log, "b", Restart::Transient),
            significant(&log, "c", Restart::Temporary),
        ]);
    let s = up(s).await;
    log.tell("c", Order::End).await;
    assert_eq!(log.take(), "+a +b +c");
    log.tell("b", Order::End).await;
    assert_eq!(log.take(), "-a");
    assert!(matches!(s.wait().await.cause, Cause::AutoShutdown { child } if &*child == "b"));
}

#[tokio::test(start_paused = true)]
async fn a_significant_child_that_waits_for_its_restart_has_not_ended() {
    let log = Log::new();
    let s =
        tolerant(Supervisor::one_for_one()).with_auto_shutdown(AutoShutdown::AllSignificant).with_children([
            significant(&log, "b", Restart::Transient).with_backoff(Backoff::constant(secs(1))),
            significant(&log, "c", Restart::Transient),
        ]);
    let s = up(s).await;
    log.tell("b", Order::Fail).await;
    log.tell("c", Order::End).await;
    assert_eq!(s.snapshot().state, SupervisorState::Running);
    tokio::time::sleep(secs(2)).await;
    assert_eq!(log.take(), "+b +c +b");
    log.tell("b", Order::End).await;
    assert!(matches!(s.wait().await.cause, Cause::AutoShutdown { child } if &*child == "b"));
}

#[tokio::test(start_paused = true)]
async fn a_significant_child_stopped_by_hand_or_with_its_group_stops_nothing() {
    let log = Log::new();
    let s =
        tolerant(Supervisor::one_for_all()).with_auto_shutdown(AutoShutdown::AnySignificant).with_children([
            log.child("a"),
            significant(&log, "b", Restart::Temporary),
            significant(&log, "c", Restart::Transient),
        ]);
    let s = up(s).await;
    log.take();
    s.stop_child("c").await.unwrap();
    log.tell("a", Order::Fail).await;
    assert_eq!(log.take(), "-c -b +a +c");
    assert_eq!(s.snapshot().state, SupervisorState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_significant_child_that_failed_is_in_the_report_which_is_not_clean() {
    let job = Child::new("job", async |_: Context| Err::<(), _>("no paper"));
    let s = Supervisor::one_for_one()
        .with_auto_shutdown(AutoShutdown::AnySignificant)
        .with_children([idle("web"), job.with_restart(Restart::Temporary).with_significant()]);
    let report = up(s).await.wait().await;
    assert!(matches!(&report.cause, Cause::AutoShutdown { child } if &**child == "job"));
    assert!(!report.is_clean());
    let text = report.to_string();
    assert_eq!(text, "supervisor `supervisor` stopped because `job` ended (in 0ns); `job` failed: no paper");
}

#[tokio::test(start_paused = true)]
async fn one_that_failed_while_another_started_is_in_the_report_too() {
    let job = Child::new("job", async |_: Context| Err::<(), _>("no paper"));
    let s = Supervisor::one_for_one()
        .with_auto_shutdown(AutoShutdown::AnySignificant)
        .with_children([job.with_restart(Restart::Temporary).with_significant(), slow("web")]);
    let report = up(s).await.wait().await;
    assert_eq!((report.failed.len(), &*report.failed[0].0), (1, "job"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn of_all_significant_children_those_that_failed_are_in_the_report() {
    let log = Log::new();
    let names = ["a", "b", "c"];
    let s = tolerant(Supervisor::one_for_one())
        .with_auto_shutdown(AutoShutdown::AllSignificant)
        .with_children(names.map(|name| significant(&log, name, Restart::Temporary)));
    let s = up(s).await;
    for (name, order) in names.into_iter().zip([Order::Fail, Order::Panic, Order::End]) {
        log.tell(name, order).await;
    }
    let report = s.wait().await;
    let failed: Vec<_> = report.failed.iter().map(|(name, exit)| format!("{name} {exit}")).collect();
    assert_eq!(failed, ["a failed: told to fail", "b panicked: told to panic"]);
    assert!(!report.is_clean());
}
