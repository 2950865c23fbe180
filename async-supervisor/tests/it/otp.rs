//! OTP's behaviour, row by row.

use std::time::Duration;

use async_supervisor::{Cause, ChildState, Context, Intensity, MeltDown, Restart, Supervisor};
use tokio::time::sleep;

use crate::common::{Log, Order, settle, tolerant, up};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

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
    let bad = async_supervisor::Child::new("c", move |_: Context| {
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
    let async_supervisor::StartError::Child(down) = error else { panic!("{error}") };
    assert_eq!(down.to_string(), "supervisor `supervisor` did not start: `c`: no port");
}
