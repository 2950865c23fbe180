//! Workers that block their thread: on the real clock, which no test sleeps on or judges. Where a time-out of a millisecond makes a worker stuck,
//! no test says that another, which obeys, is not: the machine may be busy.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};

use async_supervisor::{
    Backoff, Child, ChildState, CommandError, Context, Health, Intensity, Shutdown, Supervisor,
};
use tokio::sync::Notify;

use crate::common::{Gate, Roll, deaf, error, idle, ms, secs, seen, tolerant};

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
    let (gate, roll) = (Gate::closed(), Roll::default());
    let s = Supervisor::one_for_one()
        .with_abort_grace(ms(1))
        .with_children([deaf("deaf", &gate, &roll), idle("ok")])
        .start()
        .await
        .unwrap();
    let error = s.restart_child("deaf").await.unwrap_err();
    assert_eq!(error.to_string(), "child `deaf` would not stop");
    assert_eq!(s.snapshot().child("deaf").unwrap().state, ChildState::Stuck);
    assert_eq!(s.snapshot().child("ok").unwrap().state, ChildState::Running);
    assert_eq!(roll.len(), 1);
    // When it ends at last, the command is completed.
    let mut events = s.events();
    gate.open();
    seen(&mut events, "started", "deaf").await;
    seen(&mut events, "ready", "deaf").await;
    drop(s.stop().await);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_thread_that_will_not_end_and_names_it() {
    let (gate, roll) = (Gate::closed(), Roll::default());
    let sub = Supervisor::one_for_one().with_name("sub").with_abort_grace(ms(1));
    let s = Supervisor::one_for_one()
        .with_abort_grace(ms(1))
        .with_child(deaf("one", &gate, &roll))
        .with_child(sub.with_child(deaf("two", &gate, &roll)).into_child())
        .start()
        .await
        .unwrap();
    let mut report = s.stop().await;
    report.leaked.sort();
    assert_eq!(report.leaked, ["one".into(), "sub/two".into()], "{report}");
    assert!(!report.is_clean());
}

/// A supervisor with a thread that is deaf, below one that restarts it.
fn below(gate: &Gate, roll: &Roll) -> Supervisor {
    Supervisor::one_for_one()
        .with_name("sub")
        .with_abort_grace(ms(1))
        .with_intensity(Intensity::new(0, secs(1)))
        .with_child(deaf("deaf", gate, roll))
}

/// A worker that fails when it is told to.
fn fails_at(name: &str, told: &Arc<Notify>) -> Child {
    Child::with(name, Arc::clone(told), async |ctx: Context, told: Arc<Notify>| {
        match ctx.token().run_until_cancelled(told.notified()).await {
            Some(()) => Err(error("told to fail")),
            None => Ok(()),
        }
    })
    .with_backoff(Backoff::none())
}

#[tokio::test]
async fn what_blocks_below_a_restarted_supervisor_is_not_started_again_before_it_ends() {
    let (gate, roll) = (Gate::closed(), Roll::default());
    let s = Supervisor::one_for_one().with_child(below(&gate, &roll).into_child()).start().await.unwrap();
    let sub = || Arc::from("sub");
    assert_eq!(s.restart_child("sub").await, Err(CommandError::WouldNotStop(sub())));
    for _ in 0..5 {
        assert_eq!(s.restart_child("sub").await, Err(CommandError::WouldNotStop(sub())));
        assert_eq!((roll.len(), s.snapshot().child("sub").unwrap().state), (1, ChildState::Stuck));
    }
    let mut events = s.events();
    gate.open();
    seen(&mut events, "ready", "sub").await;
    drop(s.stop().await);
}

#[tokio::test]
async fn a_supervisor_that_melts_down_over_a_thread_is_restarted_when_the_thread_has_ended() {
    let (gate, roll, told) = (Gate::closed(), Roll::default(), Arc::new(Notify::new()));
    let sub = below(&gate, &roll).with_child(fails_at("bad", &told));
    let s = tolerant(Supervisor::one_for_one())
        .with_child(sub.into_child().with_backoff(Backoff::none()))
        .start()
        .await
        .unwrap();
    let mut events = s.events();
    told.notify_one();
    seen(&mut events, "stuck", "sub").await;
    let snapshot = s.snapshot();
    let sub = snapshot.child("sub").unwrap();
    assert_eq!((sub.state, sub.attempts, roll.len()), (ChildState::Stuck, 1, 1));
    assert!(sub.last_error.as_ref().unwrap().contains("melted down"), "{sub:?}");
    gate.open();
    seen(&mut events, "restarting", "sub").await;
    seen(&mut events, "ready", "sub").await;
    drop(s.stop().await);
}

#[tokio::test]
async fn what_a_melted_down_supervisor_has_leaked_is_in_its_parents_report() {
    let (gate, roll, told) = (Gate::closed(), Roll::default(), Arc::new(Notify::new()));
    let sub = below(&gate, &roll).with_child(fails_at("bad", &told)).into_child();
    let s = Supervisor::one_for_one().with_child(sub).start().await.unwrap();
    let mut events = s.events();
    told.notify_one();
    seen(&mut events, "stuck", "sub").await;
    let report = s.stop().await;
    assert_eq!((report.leaked.as_slice(), roll.len()), (&["sub/deaf".into()][..], 1), "{report}");
}

#[tokio::test]
async fn below_a_supervisor_its_own_abort_grace_holds() {
    let (gate, roll) = (Gate::closed(), Roll::default());
    let sub = Supervisor::one_for_one().with_name("sub").with_abort_grace(secs(3600));
    let s = Supervisor::one_for_one()
        .with_abort_grace(ms(1))
        .with_child(sub.with_child(deaf("slow", &gate, &roll)).into_child())
        .with_child(deaf("deaf", &gate, &roll))
        .start()
        .await
        .unwrap();
    let mut events = s.events();
    s.force_stop();
    // The grace of the root is over, that of `sub` is not.
    seen(&mut events, "stuck", "deaf").await;
    gate.open();
    let report = s.wait().await;
    assert!(!report.leaked.contains(&"sub/slow".into()), "{report}");
}

/// Runs it in a place where a worker of a runtime may block.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_from_within_block_in_place_is_answered() {
    let (tx, rx) = tokio::sync::oneshot::channel();
    let tx = Arc::new(std::sync::Mutex::new(Some(tx)));
    let asks = Child::with("asks", tx, async |ctx: Context, tx: Arc<std::sync::Mutex<Option<_>>>| {
        let answer = block_on(ctx.supervisor().restart_child("other"));
        let tx: Option<tokio::sync::oneshot::Sender<_>> = tx.lock().unwrap().take();
        let _ = tx.map(|tx| tx.send(answer));
        ctx.cancelled().await;
    });
    let s = Supervisor::one_for_one().with_children([idle("other"), asks]).start().await.unwrap();
    assert_eq!(rx.await.unwrap(), Ok(()));
    assert!(s.stop().await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_heard_from_a_worker_that_blocks_right_after() {
    let gate = Gate::closed();
    let child = Child::with("w", gate.bar(), async |ctx: Context, bar: Arc<crate::common::Bar>| {
        ctx.ready();
        tokio::task::block_in_place(|| bar.wait());
        ctx.cancelled().await;
    });
    let s = Supervisor::one_for_one().with_child(child.with_readiness(secs(3600))).start().await.unwrap();
    gate.open();
    assert!(s.stop().await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_that_a_worker_asks_for_reaches_it_while_it_blocks() {
    let child = Child::new("w", async |ctx: Context| {
        ctx.supervisor().request_stop();
        block_on(ctx.cancelled());
    });
    assert!(Supervisor::one_for_one().with_child(child).spawn().unwrap().wait().await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_much_a_worker_says_timers_fire_and_commands_are_served() {
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    let talks = Child::blocking("talks", move |ctx: Context| {
        let words: [Arc<str>; 2] = ["a".into(), "b".into()];
        for word in words.iter().cycle() {
            if ended.load(SeqCst) || ctx.is_cancelled() {
                break;
            }
            ctx.report_health(Health::Degraded(Arc::clone(word)));
        }
        tokio::runtime::Handle::current().block_on(ctx.cancelled());
    });
    let starts = Arc::new(AtomicUsize::new(0));
    let fails = Child::with("fails", Arc::clone(&starts), async |_: Context, starts: Arc<AtomicUsize>| {
        starts.fetch_add(1, SeqCst);
        Err::<(), _>(error("again"))
    });
    let s = tolerant(Supervisor::one_for_one())
        .with_children([talks, fails.with_backoff(Backoff::constant(ms(1)))])
        .start()
        .await
        .unwrap();
    let mut events = s.events();
    while starts.load(SeqCst) < 20 {
        // Or that some were missed: the stream is full of what the other says.
        events.recv().await.unwrap();
    }
    s.add(idle("new")).await.unwrap();
    s.remove_child("new").await.unwrap();
    over.store(true, SeqCst);
    let report = s.stop().await;
    assert!(report.aborted.is_empty() && report.leaked.is_empty(), "{report}");
}

#[tokio::test]
async fn while_a_group_waits_for_a_stuck_member_commands_are_refused_with_its_name() {
    let (gate, roll, told) = (Gate::closed(), Roll::default(), Arc::new(Notify::new()));
    let s = tolerant(Supervisor::one_for_all())
        .with_abort_grace(ms(1))
        .with_children([idle("a"), deaf("deaf", &gate, &roll), fails_at("bad", &told)])
        .start()
        .await
        .unwrap();
    let mut events = s.events();
    told.notify_one();
    seen(&mut events, "stuck", "deaf").await;
    assert_eq!(s.add(idle("new")).await, Err(CommandError::Blocked("deaf".into())));
    assert_eq!(s.stop_child("a").await, Err(CommandError::Blocked("deaf".into())));
    assert_eq!(s.stop_child("deaf").await, Err(CommandError::WouldNotStop("deaf".into())));
    gate.open();
    // The group goes on as a whole.
    seen(&mut events, "started", "bad").await;
    s.add(idle("new")).await.unwrap();
    drop(s.stop().await);
}

#[tokio::test]
async fn a_stuck_child_that_was_removed_is_not_started_with_its_group() {
    let (gate, roll, told) = (Gate::closed(), Roll::default(), Arc::new(Notify::new()));
    let s = tolerant(Supervisor::one_for_all())
        .with_abort_grace(ms(1))
        .with_children([deaf("deaf", &gate, &roll), fails_at("bad", &told)])
        .start()
        .await
        .unwrap();
    assert_eq!(s.remove_child("deaf").await, Err(CommandError::WouldNotStop("deaf".into())));
    let mut events = s.events();
    told.notify_one();
    seen(&mut events, "started", "bad").await;
    gate.open();
    seen(&mut events, "removed", "deaf").await;
    assert!(s.snapshot().child("deaf").is_none());
    assert!(s.stop().await.is_clean());
}

#[tokio::test]
async fn a_blocking_worker_that_obeys_is_given_its_time() {
    let child = Child::blocking("w", |ctx: Context| {
        tokio::runtime::Handle::current().block_on(ctx.cancelled());
    });
    let s = Supervisor::one_for_one().with_child(child.with_shutdown(Shutdown::Wait)).start().await.unwrap();
    assert!(s.stop().await.is_clean());
}
