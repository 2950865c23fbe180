//! What a review has found once: each of these failed.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_supervisor::*;
use tokio::time::{sleep, timeout};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
fn idle(name: &str) -> Child {
    Child::new(name, async |ctx: Context| ctx.cancelled().await)
}
fn fail() -> std::io::Error {
    std::io::Error::other("boom")
}

/// Runs until released, deaf to cancellation; counts how many run at once.
fn deaf(name: &str, running: &Arc<AtomicUsize>, most: &Arc<AtomicUsize>, release: &Arc<AtomicBool>) -> Child {
    let (running, most, release) = (running.clone(), most.clone(), release.clone());
    Child::blocking(name, move |_: Context| {
        most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
        while !release.load(SeqCst) {
            std::thread::sleep(ms(1));
        }
        running.fetch_sub(1, SeqCst);
    })
    .with_shutdown(Shutdown::Timeout(ms(10)))
}

struct Bomb;
impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped")
        }
    }
}

#[derive(Debug)]
struct Evil;
impl std::fmt::Display for Evil {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("evil")
    }
}
impl std::error::Error for Evil {}
impl Drop for Evil {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped")
        }
    }
}

fn delays(mut events: Events, child: &'static str) -> Arc<Mutex<Vec<u64>>> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let to = all.clone();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let EventKind::Restarting { child: c, delay } = event.kind
                && &*c == child
            {
                to.lock().unwrap().push(delay.as_secs());
            }
        }
    });
    all
}
fn doubling() -> Backoff {
    Backoff::exponential(secs(1), secs(100)).with_jitter(Jitter::None).with_reset_after(secs(60))
}

#[tokio::test]
async fn blocked_grandchild_runs_twice_when_its_supervisor_is_restarted() {
    let (running, most, release) =
        (Arc::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let sub = Supervisor::one_for_one()
        .with_name("sub")
        .with_abort_grace(ms(10))
        .with_child(deaf("deaf", &running, &most, &release));
    let root = Supervisor::one_for_one().with_child(sub.into_child()).start().await.unwrap();
    sleep(ms(50)).await;
    for _ in 0..5 {
        let _ = timeout(secs(1), root.restart_child("sub")).await;
        sleep(ms(20)).await;
    }
    let seen = most.load(SeqCst);
    release.store(true, SeqCst);
    let report = root.stop().await;
    assert_eq!(seen, 1, "ran this many times at once; report: {report}");
}

#[tokio::test]
async fn blocked_grandchild_runs_twice_after_a_meltdown() {
    let (running, most, release) =
        (Arc::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let sub = Supervisor::one_for_one()
        .with_name("sub")
        .with_abort_grace(ms(10))
        .with_intensity(Intensity::new(0, secs(1)))
        .with_child(deaf("deaf", &running, &most, &release))
        .with_child(Child::new("bad", async |_: Context| {
            sleep(ms(20)).await;
            Err::<(), _>(fail())
        }));
    let root = Supervisor::one_for_one()
        .with_intensity(Intensity::unlimited())
        .with_child(sub.into_child().with_backoff(Backoff::constant(ms(10))))
        .start()
        .await
        .unwrap();
    sleep(ms(600)).await;
    let seen = most.load(SeqCst);
    release.store(true, SeqCst);
    let report = root.stop().await;
    assert_eq!(seen, 1, "threads at once; report: {report}");
}

#[tokio::test]
async fn what_a_melted_sub_supervisor_leaked_is_in_no_report() {
    let (running, most, release) = (Arc::default(), Arc::default(), Arc::new(AtomicBool::new(false)));
    let sub = Supervisor::one_for_one()
        .with_name("sub")
        .with_abort_grace(ms(10))
        .with_intensity(Intensity::new(0, secs(1)))
        .with_child(deaf("deaf", &running, &most, &release))
        .with_child(Child::new("bad", async |_: Context| {
            sleep(ms(20)).await;
            Err::<(), _>(fail())
        }));
    let root = Supervisor::one_for_one()
        .with_child(sub.into_child().with_backoff(Backoff::constant(secs(100))))
        .start()
        .await
        .unwrap();
    sleep(ms(200)).await;
    let (tree, report) = (root.snapshot().to_string(), root.stop().await);
    let runs = running.load(SeqCst);
    release.store(true, SeqCst);
    assert!(runs == 0 || !report.is_clean(), "{runs} thread still runs, yet clean: {report}\n{tree}");
}

#[tokio::test]
async fn the_abort_grace_of_a_sub_supervisor_is_cut_by_its_parent() {
    let done = Arc::new(AtomicBool::new(false));
    let d = done.clone();
    let slow = Child::blocking("slow", move |ctx: Context| {
        while !ctx.is_cancelled() {
            std::thread::sleep(ms(1));
        }
        std::thread::sleep(ms(600));
        d.store(true, SeqCst);
    });
    let sub = Supervisor::one_for_one().with_name("sub").with_abort_grace(secs(5)).with_child(slow);
    let root = Supervisor::one_for_one().with_child(sub.into_child()).start().await.unwrap();
    sleep(ms(20)).await;
    root.force_stop();
    let report = root.wait().await;
    assert!(
        done.load(SeqCst) && report.leaked.is_empty(),
        "over while `slow` was ending within its grace: {report}"
    );
}

#[test]
fn command_under_block_in_place_never_arrives() {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ok = Arc::new(AtomicBool::new(false));
    let seen = ok.clone();
    rt.block_on(async {
        let _sup = Supervisor::one_for_one()
            .with_child(idle("other"))
            .with_child(Child::new("w", move |ctx: Context| {
                let ok = ok.clone();
                async move {
                    tokio::task::block_in_place(|| {
                        tokio::runtime::Handle::current().block_on(async {
                            if timeout(secs(2), ctx.supervisor().restart_child("other")).await.is_ok() {
                                ok.store(true, SeqCst);
                            }
                        });
                    });
                    ctx.cancelled().await;
                }
            }))
            .start()
            .await
            .unwrap();
        sleep(ms(2500)).await;
    });
    rt.shutdown_timeout(secs(1));
    assert!(seen.load(SeqCst), "no answer in 2 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_then_block_in_place() {
    let sup = Supervisor::one_for_one().with_child(
        Child::new("w", async |ctx: Context| {
            ctx.ready();
            tokio::task::block_in_place(|| {
                for _ in 0..1000 {
                    if ctx.is_cancelled() {
                        break;
                    }
                    std::thread::sleep(ms(1));
                }
            });
            ctx.cancelled().await;
        })
        .with_readiness(ms(300)),
    );
    let started = timeout(secs(5), sup.start()).await.unwrap();
    assert!(started.is_ok(), "{}", started.err().unwrap());
}

#[test]
fn stop_asked_for_by_a_worker_under_block_in_place_is_held_back() {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let took = rt.block_on(async {
        let sup = Supervisor::one_for_one()
            .with_child(Child::new("w", async |ctx: Context| {
                ctx.supervisor().request_stop();
                // As a blocking call that is to end when the worker is told to.
                tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(async {
                        let _ = timeout(secs(2), ctx.cancelled()).await;
                    });
                });
            }))
            .spawn()
            .unwrap();
        let at = std::time::Instant::now();
        let _ = sup.wait().await;
        at.elapsed()
    });
    assert!(took < secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn talkative_worker_starves_the_timers() {
    let starts = Arc::new(AtomicU32::new(0));
    let n = starts.clone();
    let flood = Child::blocking("flood", |ctx: Context| {
        let words: [Arc<str>; 2] = ["a".into(), "b".into()];
        let end = std::time::Instant::now() + secs(3);
        let mut i = 0;
        while std::time::Instant::now() < end && !ctx.is_cancelled() {
            i += 1;
            ctx.report_health(Health::Degraded(words[i % 2].clone()));
        }
        while !ctx.is_cancelled() {
            std::thread::sleep(ms(1));
        }
    });
    let sup = Supervisor::one_for_one()
        .with_intensity(Intensity::unlimited())
        .with_child(flood)
        .with_child(
            Child::new("w", move |_: Context| {
                n.fetch_add(1, SeqCst);
                async {
                    sleep(ms(10)).await;
                    Err::<(), _>(fail())
                }
            })
            .with_backoff(Backoff::constant(ms(10))),
        )
        .spawn()
        .unwrap();
    sleep(ms(2500)).await;
    let n = starts.load(SeqCst);
    drop(sup);
    assert!(n > 20, "{n} starts in 2.5 s, with 20 ms from one to the next");
}

#[tokio::test(start_paused = true)]
async fn refused_child_whose_drop_panics_kills_the_supervisor() {
    let sup = Supervisor::one_for_one().with_child(idle("a")).start().await.unwrap();
    let bomb = Bomb;
    let child = Child::new("a", move |ctx: Context| {
        let _ = &bomb;
        async move { ctx.cancelled().await }
    });
    let refused = sup.add(child).await;
    assert!(matches!(refused, Err(CommandError::AlreadyExists(_))), "{refused:?}");
    let report = sup.stop().await;
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn error_whose_drop_panics_in_the_event_ring_kills_the_supervisor() {
    let sup = Supervisor::one_for_one()
        .with_intensity(Intensity::unlimited())
        .with_child(idle("good"))
        .with_child(
            Child::new("bad", async |_: Context| Err::<(), _>(Evil)).with_backoff(Backoff::constant(ms(10))),
        )
        .spawn()
        .unwrap();
    let _never_read = sup.events();
    sleep(secs(60)).await;
    assert_eq!(sup.snapshot().state, SupervisorState::Running);
    assert_eq!(sup.snapshot().child("good").unwrap().restarts, 0);
    let over = timeout(ms(1), sup.wait()).await;
    assert!(over.is_err(), "supervisor is gone: {}", over.unwrap());
}

#[tokio::test(start_paused = true)]
async fn failure_of_a_tracked_task_leaves_no_trace_without_a_listener() {
    let tasks = Tasks::new("mails", NonZeroUsize::new(4).unwrap());
    let sup = Supervisor::one_for_one().with_child(tasks.child()).start().await.unwrap();
    tasks.spawn("invoice", async { Err::<(), _>(fail()) }).await.unwrap();
    tasks
        .spawn("welcome", async {
            assert!(std::hint::black_box(false), "lost");
        })
        .await
        .unwrap();
    sleep(ms(10)).await;
    let snapshot = sup.snapshot().to_string();
    let report = sup.stop().await;
    let left = tasks.shutdown(ms(1)).await;
    assert!(
        snapshot.contains("2 tasks failed, at last task `welcome` panicked: lost"),
        "snapshot: {snapshot}report: {report}; left {left:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn backoff_is_not_reset_by_health_that_ends_in_a_missed_heartbeat() {
    let sup = Supervisor::one_for_one()
        .with_intensity(Intensity::unlimited())
        .with_child(
            Child::new("w", async |ctx: Context| {
                match ctx.attempt() {
                    1..=3 => return Err(fail()),
                    _ => {
                        for _ in 0..1000 {
                            sleep(secs(1)).await;
                            ctx.heartbeat();
                        }
                    }
                }
                ctx.cancelled().await; // healthy for 1000 s, then silent
                Ok(())
            })
            .with_heartbeat(secs(5))
            .with_backoff(doubling()),
        )
        .spawn()
        .unwrap();
    let all = delays(sup.events(), "w");
    sleep(secs(1100)).await;
    assert_eq!(*all.lock().unwrap(), [1, 2, 4, 1]);
}

#[tokio::test(start_paused = true)]
async fn backoff_is_not_reset_by_health_that_ends_in_a_group_restart() {
    let sup = Supervisor::one_for_all()
        .with_intensity(Intensity::unlimited())
        .with_child(
            Child::new("w", async |ctx: Context| {
                match ctx.attempt() {
                    1..=3 => return Err(fail()),
                    4 => ctx.cancelled().await,
                    5 => {
                        sleep(secs(1)).await;
                        return Err(fail());
                    }
                    _ => ctx.cancelled().await,
                }
                Ok(())
            })
            .with_backoff(doubling()),
        )
        .with_child(Child::new("sibling", async |ctx: Context| {
            if ctx.token().run_until_cancelled(sleep(secs(1000))).await.is_some() {
                return Err(fail());
            }
            Ok(())
        }))
        .spawn()
        .unwrap();
    let all = delays(sup.events(), "w");
    sleep(secs(1100)).await;
    assert_eq!(*all.lock().unwrap(), [1, 2, 4, 1]);
}

/// A supervisor that is busy for a second: it starts `slow`.
async fn busy() -> (Running, tokio::task::JoinHandle<Result<(), CommandError>>) {
    let sup = Supervisor::one_for_one().with_child(idle("a")).start().await.unwrap();
    let handle = sup.handle();
    let slow = Child::new("slow", async |ctx: Context| {
        sleep(secs(1)).await;
        ctx.ready();
        ctx.cancelled().await;
    })
    .with_readiness(secs(5));
    let adding = tokio::spawn(async move { handle.add(slow).await });
    sleep(ms(10)).await;
    (sup, adding)
}

#[tokio::test(start_paused = true)]
async fn stop_issued_before_add_stops_the_child_that_is_added_after_it() {
    let (sup, _adding) = busy().await;
    let h = sup.handle();
    let stop = tokio::spawn(async move { h.stop_child("new").await });
    sleep(ms(10)).await;
    let h = sup.handle();
    let add = tokio::spawn(async move { h.add(idle("new")).await });
    let (stop, add) = (stop.await.unwrap(), add.await.unwrap());
    let state = sup.snapshot().child("new").map(|c| c.state);
    assert!(
        matches!(stop, Err(CommandError::NotFound(_))) && add.is_ok() && state == Some(ChildState::Running),
        "stop {stop:?}, add {add:?}, state {state:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn add_is_answered_for_another_child() {
    let sup = Supervisor::one_for_one()
        .with_child(idle("a"))
        .with_child(Child::new("w", async |ctx: Context| {
            ctx.cancelled().await;
            sleep(secs(1)).await;
        }))
        .start()
        .await
        .unwrap();
    let h = sup.handle();
    let slow = Child::new("slow", async |ctx: Context| {
        sleep(secs(1)).await;
        ctx.ready();
        ctx.cancelled().await;
    })
    .with_readiness(secs(5));
    tokio::spawn({
        let h = h.clone();
        async move { h.add(slow).await }
    });
    sleep(ms(10)).await;
    tokio::spawn({
        let h = h.clone();
        async move { h.remove_child("y").await }
    });
    sleep(ms(10)).await;
    tokio::spawn({
        let h = h.clone();
        async move { h.remove_child("w").await }
    });
    sleep(ms(10)).await;
    let y = tokio::spawn({
        let h = h.clone();
        async move { h.add(idle("y")).await }
    });
    sleep(ms(1200)).await; // `slow` is up, `y` is gone, `w` is stopping
    let z = tokio::spawn({
        let h = h.clone();
        async move { h.add(idle("z")).await }
    });
    let (y, z) = (y.await.unwrap(), z.await.unwrap());
    let there = sup.snapshot().child("y").is_some();
    assert_eq!(y.is_ok(), there, "add(y) answered {y:?}, add(z) {z:?}, yet y there: {there}");
}

#[tokio::test(start_paused = true)]
async fn add_says_ok_of_a_child_that_did_not_start() {
    // A newcomer that a group restart takes along, and that never gets ready.
    let sup = Supervisor::rest_for_one()
        .with_intensity(Intensity::unlimited())
        .with_child(
            Child::new("bad", async |ctx: Context| {
                if ctx.attempt() == 1 {
                    sleep(secs(1)).await;
                    return Err(fail());
                }
                ctx.cancelled().await;
                Ok(())
            })
            .with_backoff(Backoff::none()),
        )
        .with_child(Child::new("slow to stop", async |ctx: Context| {
            ctx.cancelled().await;
            sleep(secs(1)).await;
        }))
        .start()
        .await
        .unwrap();
    sleep(ms(1500)).await; // the group is being stopped
    let added =
        sup.add(Child::new("new", async |_: Context| Err::<(), _>(fail())).with_readiness(secs(5))).await;
    assert!(matches!(added, Err(CommandError::StartFailed { .. })), "{added:?}\n{}", sup.snapshot());
}

#[tokio::test]
async fn stuck_member_of_a_group_hangs_every_command() {
    let (running, most, release) = (Arc::default(), Arc::default(), Arc::new(AtomicBool::new(false)));
    let sup = Supervisor::one_for_all()
        .with_abort_grace(ms(10))
        .with_intensity(Intensity::unlimited())
        .with_child(idle("a"))
        .with_child(deaf("deaf", &running, &most, &release))
        .with_child(
            Child::new("bad", async |ctx: Context| {
                if ctx.attempt() == 1 {
                    sleep(ms(50)).await;
                    return Err(fail());
                }
                ctx.cancelled().await;
                Ok(())
            })
            .with_backoff(Backoff::none()),
        )
        .start()
        .await
        .unwrap();
    sleep(ms(200)).await;
    let add = timeout(secs(1), sup.add(idle("new"))).await;
    let stop = timeout(secs(1), sup.stop_child("deaf")).await;
    let tree = sup.snapshot().to_string();
    release.store(true, SeqCst);
    assert!(add.is_ok() && stop.is_ok(), "add {add:?}, stop {stop:?}\n{tree}");
}

#[tokio::test]
async fn removal_of_a_stuck_child_is_forgotten_by_a_group_restart() {
    let (running, most, release) = (Arc::default(), Arc::default(), Arc::new(AtomicBool::new(false)));
    let bad = Arc::new(tokio::sync::Notify::new());
    let b = bad.clone();
    let sup = Supervisor::one_for_all()
        .with_abort_grace(ms(10))
        .with_intensity(Intensity::unlimited())
        .with_child(deaf("deaf", &running, &most, &release))
        .with_child(
            Child::with("bad", b, async |ctx: Context, b: Arc<tokio::sync::Notify>| {
                if ctx.token().run_until_cancelled(b.notified()).await.is_some() {
                    return Err(fail());
                }
                Ok(())
            })
            .with_backoff(Backoff::none()),
        )
        .start()
        .await
        .unwrap();
    let removed = sup.remove_child("deaf").await;
    assert!(matches!(removed, Err(CommandError::WouldNotStop(_))), "{removed:?}");
    bad.notify_one();
    sleep(ms(50)).await;
    release.store(true, SeqCst);
    sleep(ms(100)).await;
    assert!(sup.snapshot().child("deaf").is_none(), "removed, yet started again:\n{}", sup.snapshot());
}

#[tokio::test(start_paused = true)]
async fn spawn_that_queues_is_not_refused_by_close() {
    let tasks = Tasks::new("t", NonZeroUsize::new(1).unwrap());
    tasks.spawn("long", std::future::pending::<()>()).await.unwrap();
    let queued = tokio::spawn({
        let tasks = tasks.clone();
        async move { tasks.spawn("next", async {}).await }
    });
    sleep(ms(1)).await;
    tasks.close();
    let answer = timeout(secs(3600), queued).await;
    assert!(answer.is_ok(), "still queued an hour after close");
    assert!(answer.unwrap().unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn nested_mistakes_are_found_only_at_run_time() {
    let sub = Supervisor::one_for_one().with_name("sub").with_child(idle("x")).with_child(idle("x"));
    let started = Arc::new(AtomicBool::new(false));
    let s = started.clone();
    let sup = Supervisor::one_for_one()
        .with_child(Child::new("first", move |ctx: Context| {
            s.store(true, SeqCst);
            async move { ctx.cancelled().await }
        }))
        .with_child(sub.into_child())
        .start()
        .await;
    let error = sup.err().unwrap();
    assert!(
        matches!(error, StartError::Config(_)) && !started.load(SeqCst),
        "{error} (others were started: {})",
        started.load(SeqCst)
    );
}

#[tokio::test(start_paused = true)]
async fn a_healthy_supervisor_or_tasks_child_with_a_heartbeat_is_killed() {
    let tasks = Tasks::new("mails", NonZeroUsize::new(4).unwrap());
    let sub = Supervisor::one_for_one().with_name("sub").with_child(idle("x"));
    // Refused, or beating by themselves: either would do.
    let Ok(sup) = Supervisor::one_for_one()
        .with_intensity(Intensity::unlimited())
        .with_child(tasks.child().with_heartbeat(secs(5)))
        .with_child(sub.into_child().with_heartbeat(secs(5)))
        .start()
        .await
    else {
        return;
    };
    sleep(secs(60)).await;
    assert!(sup.snapshot().children.iter().all(|c| c.restarts == 0), "\n{}", sup.snapshot());
}
