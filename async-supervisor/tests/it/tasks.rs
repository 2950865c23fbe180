use std::num::NonZeroUsize;
use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_policy::{Deadline, Reason};
use async_supervisor::{EventKind, Exit, Shutdown, Supervisor, Tasks};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::common::{Bomb, Gate, ms, secs, settle, up};

fn tasks(limit: usize) -> Tasks {
    Tasks::new("jobs", NonZeroUsize::new(limit).unwrap())
}

#[tokio::test(start_paused = true)]
async fn no_error_and_no_panic_is_lost() {
    let tasks = tasks(8);
    tasks.spawn("good", async {}).await.unwrap();
    tasks.spawn("bad", async { Err::<(), _>("no paper") }).await.unwrap();
    tasks
        .spawn("worse", async {
            if true {
                panic!("boom")
            }
        })
        .await
        .unwrap();
    assert_eq!(tasks.next_failure().await.unwrap().to_string(), "task `bad` failed: no paper");
    let report = tasks.shutdown(secs(1)).await;
    assert_eq!(
        report.failures.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["task `worse` panicked: boom"]
    );
    assert!(report.leaked.is_empty());
    assert!(tasks.next_failure().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn there_is_room_for_so_many_and_a_failure_keeps_its_place_until_it_is_taken() {
    let tasks = tasks(2);
    let (go, wait) = oneshot::channel::<()>();
    tasks.try_spawn("one", async { drop(wait.await) }).unwrap();
    tasks.try_spawn("two", async { Err::<(), _>("no") }).unwrap();
    settle().await;
    assert_eq!(tasks.names(), ["one".into()]);
    let refused = tasks.try_spawn("three", async {}).unwrap_err();
    assert_eq!((refused.reason(), refused.name()), (Reason::LimitReached, Some("jobs")));
    assert!(tasks.next_failure().await.is_some());
    tasks.try_spawn("three", async {}).unwrap();
    settle().await;
    // Those that wait get their turn in order.
    tasks.try_spawn("four", std::future::pending::<()>()).unwrap();
    let mut five = Box::pin(tasks.spawn("five", async {}));
    tokio::select! { biased; _ = &mut five => panic!(), () = settle() => {} }
    go.send(()).unwrap();
    five.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_has_passed_and_a_shutdown_refuse() {
    let tasks = tasks(2);
    let late = Deadline::at(Instant::now()).scope(tasks.spawn("late", async {}));
    assert_eq!(late.await.unwrap_err().reason(), Reason::DeadlineTooClose);
    tasks.close();
    assert_eq!(tasks.spawn("late", async {}).await.unwrap_err().reason(), Reason::ShutDown);
    assert_eq!(tasks.try_spawn("late", async {}).unwrap_err().reason(), Reason::ShutDown);
    assert!(tasks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_drains_then_aborts() {
    let tasks = tasks(8);
    for seconds in [1, 3, 3600] {
        tasks.spawn(format!("{seconds}"), sleep(secs(seconds))).await.unwrap();
    }
    let started = Instant::now();
    let report = tasks.shutdown(secs(5)).await;
    assert!(started.elapsed() < secs(5) + Duration::from_millis(5));
    assert_eq!(report.failures.len(), 1);
    assert_eq!(&*report.failures[0].task, "3600");
    assert!(matches!(report.failures[0].exit, Exit::Aborted));
}

#[tokio::test(start_paused = true)]
async fn when_the_last_handle_is_dropped_all_tasks_end() {
    let tasks = tasks(8);
    let (tx, rx) = oneshot::channel::<()>();
    let task = async move {
        let _tx = tx;
        std::future::pending::<()>().await;
    };
    tasks.spawn("a", task).await.unwrap();
    let clone = tasks.clone();
    drop(tasks);
    settle().await;
    assert_eq!(clone.len(), 1);
    drop(clone);
    assert!(rx.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn as_a_child_failures_are_events_and_a_stop_drains_in_order() {
    let tasks = tasks(8);
    let s = up(Supervisor::one_for_one().with_name("root").with_child(tasks.child())).await;
    let mut events = s.events();
    tasks.spawn("bad", async { Err::<(), _>("no paper") }).await.unwrap();
    settle().await;
    assert_eq!(events.recv().await.unwrap().to_string(), "root/jobs: task `bad` failed: no paper");
    tasks
        .spawn("slow", async {
            sleep(secs(3)).await;
            Err::<(), _>("late")
        })
        .await
        .unwrap();
    let started = Instant::now();
    let report = s.stop().await;
    assert_eq!((report.failed.len(), &*report.failed[0].0), (1, "jobs/slow"), "{report}");
    assert!(started.elapsed() >= secs(3));
    assert_eq!(tasks.try_spawn("late", async {}).unwrap_err().reason(), Reason::ShutDown);
    let mut failed = Vec::new();
    while let Some(event) = events.recv().await {
        if let EventKind::TaskFailed { task, .. } = event.kind {
            failed.push(task);
        }
    }
    assert_eq!(failed, ["slow".into()]);
}

#[tokio::test(start_paused = true)]
async fn as_a_child_that_takes_too_long_it_is_aborted_with_its_tasks_and_started_again_it_takes_more() {
    let tasks = tasks(8);
    let child = tasks.child().with_shutdown(Shutdown::Timeout(secs(1)));
    let s = up(Supervisor::one_for_one().with_child(child)).await;
    tasks.spawn("endless", std::future::pending::<()>()).await.unwrap();
    s.stop_child("jobs").await.unwrap();
    settle().await;
    assert!(tasks.is_empty());
    s.start_child("jobs").await.unwrap();
    settle().await;
    tasks.spawn("again", async {}).await.unwrap();
    assert!(s.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_neither_a_place_nor_a_failure_is_lost() {
    let tasks = tasks(1);
    let make = || async {
        tasks
            .spawn("a", async {
                sleep(secs(1)).await;
                Err::<(), _>("no")
            })
            .await
            .unwrap();
        tasks.next_failure().await.unwrap();
        tasks.spawn("b", sleep(secs(1))).await.unwrap();
        tasks.spawn("c", sleep(secs(1))).await.unwrap();
    };
    let points = drop_at_every_await(make, async |_| {
        // Whatever went on, the one place comes free again, and each failure can be taken.
        sleep(secs(3)).await;
        while let Ok(Some(_)) = tokio::time::timeout(secs(1), tasks.next_failure()).await {}
        assert!(tasks.is_empty());
        tasks.try_spawn("free", async {}).unwrap();
        settle().await;
    })
    .await;
    assert!(points >= 2, "{points}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_task_that_is_being_aborted_is_not_lost() {
    let tasks = tasks(1);
    tasks
        .spawn("bomb", async {
            let _bomb = Bomb;
            std::future::pending::<()>().await;
        })
        .await
        .unwrap();
    settle().await;
    let report = tasks.shutdown(secs(1)).await;
    assert!(matches!(&report.failures[0].exit, Exit::Panicked(said) if &**said == "in drop"), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn as_a_child_failures_leave_a_trace_without_a_listener_too() {
    let tasks = tasks(8);
    let s = up(Supervisor::one_for_one().with_child(tasks.child())).await;
    tasks.spawn("invoice", async { Err::<(), _>("no paper") }).await.unwrap();
    settle().await;
    let last = || s.snapshot().child("jobs").unwrap().last_error.clone().unwrap();
    assert_eq!(&*last(), "task `invoice` failed: no paper");
    tasks
        .spawn("welcome", async {
            if true {
                panic!("boom")
            }
        })
        .await
        .unwrap();
    settle().await;
    assert_eq!(
        &*last(),
        "2 tasks failed: first task `invoice` failed: no paper; last task `welcome` panicked: boom"
    );
    assert!(s.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_is_refused_when_the_tasks_are_closed() {
    let tasks = tasks(1);
    tasks.spawn("long", std::future::pending::<()>()).await.unwrap();
    let mut next = Box::pin(tasks.spawn("next", async {}));
    tokio::select! { biased; _ = &mut next => panic!(), () = settle() => {} }
    tasks.close();
    assert_eq!(next.await.unwrap_err().reason(), Reason::ShutDown);
}

/// A task that never ends.
async fn hang(tasks: &Tasks, name: &str) {
    tasks.spawn(name, std::future::pending::<()>()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn tasks_that_had_to_be_aborted_are_in_the_report_by_name_and_so_is_what_fails_meanwhile() {
    let tasks = tasks(8);
    let child = tasks.child().with_shutdown(Shutdown::Timeout(secs(1)));
    let s = up(Supervisor::one_for_one().with_name("root").with_child(child)).await;
    let mut events = s.events();
    hang(&tasks, "hang-1").await;
    hang(&tasks, "hang-2").await;
    let bomb = async {
        let _bomb = Bomb;
        std::future::pending::<()>().await;
    };
    tasks.spawn("bomb", bomb).await.unwrap();
    settle().await;
    let report = s.stop().await;
    let mut aborted = report.aborted.clone();
    aborted[1..].sort();
    assert_eq!(aborted, ["jobs".into(), "jobs/hang-1".into(), "jobs/hang-2".into()]);
    assert!(report.leaked.is_empty() && !report.is_clean(), "{report}");
    let failed: Vec<_> = report.failed.iter().map(|(name, exit)| format!("{name} {exit}")).collect();
    assert_eq!(failed, ["jobs/bomb panicked: in drop"]);
    let mut told = Vec::new();
    while let Some(event) = events.recv().await {
        if event.kind.child().is_some() {
            told.push(event.to_string());
        }
    }
    // What is done to the child reads otherwise than what it ends with.
    assert_eq!(told.first().unwrap(), "root/jobs: being aborted");
    assert_eq!(told.last().unwrap(), "root/jobs: aborted");
    told[1..4].sort();
    assert_eq!(
        told[1..4],
        [
            "root/jobs: task `bomb` panicked: in drop",
            "root/jobs: task `hang-1` aborted",
            "root/jobs: task `hang-2` aborted"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn tasks_that_are_to_be_aborted_at_once_are_no_fault_in_the_report() {
    let tasks = tasks(8);
    let child = tasks.child().with_shutdown(Shutdown::Abort);
    let s = up(Supervisor::one_for_one().with_child(child)).await;
    hang(&tasks, "hang").await;
    let started = Instant::now();
    let report = s.stop().await;
    assert!(report.is_clean() && tasks.is_empty(), "{report}");
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(tasks.try_spawn("late", async {}).unwrap_err().reason(), Reason::ShutDown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_task_that_blocks_its_thread_is_named_as_leaked_and_nothing_is_started_beside_it() {
    let (gate, tasks) = (Gate::closed(), tasks(8));
    let sub = Supervisor::one_for_one()
        .with_name("sub")
        .with_abort_grace(ms(1))
        .with_child(tasks.child().with_shutdown(Shutdown::Timeout(ms(1))));
    let s = Supervisor::one_for_one().with_child(sub.into_child()).start().await.unwrap();
    let (bar, (begun, has_begun)) = (gate.bar(), oneshot::channel());
    let block = async move {
        begun.send(()).unwrap();
        bar.wait();
    };
    tasks.spawn("block", block).await.unwrap();
    has_begun.await.unwrap();
    let sub = s.supervisor("sub").unwrap();
    let refused = sub.restart_child("jobs").await;
    assert_eq!(refused, Err(async_supervisor::CommandError::WouldNotStop("jobs".into())));
    let report = s.stop().await;
    assert_eq!(report.leaked, ["sub/jobs/block".into()], "{report}");
    gate.open();
}
