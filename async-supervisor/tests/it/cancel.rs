//! Every public async method dropped at every await point.

use std::num::NonZeroUsize;

use async_policy::testing::{DropPoint, drop_at_every_await};
use async_supervisor::{Child, Context, Supervisor, SupervisorState, Tasks};
use tokio::time::sleep;

use crate::common::{Log, secs, settle, up};

fn slow(name: &str) -> Child {
    Child::new(name, async |ctx: Context| {
        sleep(secs(1)).await;
        ctx.ready();
        ctx.cancelled().await;
        sleep(secs(1)).await;
    })
    .with_readiness(secs(5))
}

#[tokio::test(start_paused = true)]
async fn a_dropped_start_stops_what_has_been_started() {
    let log = Log::new();
    let make = || async {
        let s = Supervisor::one_for_one().with_children([log.child("a"), slow("b"), log.child("c")]);
        drop(s.start().await.unwrap());
    };
    let points = drop_at_every_await(make, async |_| {
        sleep(secs(10)).await;
        let lines = log.take();
        assert_eq!(lines.matches('+').count(), lines.matches('-').count(), "{lines}");
    })
    .await;
    assert_eq!(points, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stop_or_wait_changes_nothing_and_commands_are_carried_out() {
    let running = std::sync::Mutex::new(None);
    let make = || async {
        let s = up(Supervisor::one_for_one().with_child(slow("a"))).await;
        let handle = s.handle();
        // Kept: a drop of the handle would stop it.
        *running.lock().unwrap() = Some(s);
        handle.add(slow("b")).await.unwrap();
        handle.stop_child("a").await.unwrap();
        handle.start_child("a").await.unwrap();
        handle.restart_child("a").await.unwrap();
        handle.remove_child("a").await.unwrap();
        handle.stop_child("b").await.unwrap();
        handle.delete_child("b").await.unwrap();
        handle.ready().await.unwrap();
        let stop = handle.stop().await;
        assert!(stop.is_clean());
    };
    let points = drop_at_every_await(make, async |_| {
        sleep(secs(10)).await;
        let s = running.lock().unwrap().take();
        if let Some(s) = s {
            // It still answers, and what is not being changed is at rest.
            let state = s.snapshot().state;
            assert!(matches!(state, SupervisorState::Running | SupervisorState::Stopped), "{state}");
            let report = s.stop().await;
            assert!(report.is_clean(), "{report}");
            assert!(s.wait().await.is_clean());
        }
        settle().await;
    })
    .await;
    assert!(points > 10, "{points}");
}

#[tokio::test(start_paused = true)]
async fn dropped_receivers_and_waits_of_a_context_lose_nothing() {
    let log = Log::new();
    let s = up(Supervisor::one_for_one().with_child(log.child("a"))).await;
    let handle = s.handle();
    let points = drop_at_every_await(
        || async {
            let mut events = handle.events();
            handle.restart_child("a").await.unwrap();
            events.recv().await.unwrap();
        },
        async |_| settle().await,
    )
    .await;
    assert!(points >= 1);
    assert!(s.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_shutdown_of_tasks_lets_them_go_on_and_loses_no_failure() {
    let tasks = std::sync::Mutex::new(None);
    let make = || {
        let mine = Tasks::new("jobs", NonZeroUsize::MIN);
        *tasks.lock().unwrap() = Some(mine.clone());
        async move {
            let work = async {
                sleep(secs(2)).await;
                Err::<(), _>("no")
            };
            mine.spawn("a", work).await.unwrap();
            assert_eq!(mine.shutdown(secs(5)).await.failures.len(), 1);
        }
    };
    let points = drop_at_every_await(make, async |point| {
        let tasks = tasks.lock().unwrap().take().unwrap();
        sleep(secs(3)).await;
        let rest = tasks.shutdown(secs(5)).await.failures.len();
        let begun = !matches!(point, None | Some(DropPoint::Unpolled));
        assert_eq!(rest, usize::from(begun), "{point:?}");
    })
    .await;
    assert!(points >= 1);
}

#[tokio::test]
async fn a_dropped_run_until_signal_stops_the_supervisor() {
    let handle = std::sync::Mutex::new(None);
    let make = || async {
        let s = Supervisor::one_for_one()
            .with_child(Child::new("a", async |ctx: Context| ctx.cancelled().await))
            .with_child(Child::new("ends", async |ctx: Context| {
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                ctx.supervisor().request_stop();
            }))
            .start()
            .await
            .unwrap();
        *handle.lock().unwrap() = Some(s.handle());
        assert!(s.run_until_signal().await.unwrap().is_clean());
    };
    let points = drop_at_every_await(make, async |_| {
        let handle = handle.lock().unwrap().take();
        if let Some(handle) = handle {
            assert!(handle.wait().await.is_clean());
        }
    })
    .await;
    assert!(points >= 2, "{points}");
}
