use std::pin::Pin;
use std::time::Duration;

use async_supervisor::{
    Backoff, Child, ChildState, CommandError, Context, Exit, Intensity, Restart, Shutdown, Supervisor,
    SupervisorState,
};
use tokio::time::{Instant, sleep};

use crate::common::{Log, Order, error, idle, secs, settle, slow, tolerant, up};

#[tokio::test(start_paused = true)]
async fn typed_errors_for_what_cannot_be_done() {
    let log = Log::new();
    let s = up(tolerant(Supervisor::one_for_one()).with_max_children(2).with_child(log.child("a"))).await;
    let a = || "a".into();
    assert_eq!(s.add(log.child("a")).await, Err(CommandError::AlreadyExists(a())));
    assert_eq!(s.start_child("a").await, Err(CommandError::Running(a())));
    assert_eq!(s.delete_child("a").await, Err(CommandError::Running(a())));
    for error in [
        s.stop_child("x").await,
        s.start_child("x").await,
        s.restart_child("x").await,
        s.delete_child("x").await,
        s.remove_child("x").await,
    ] {
        assert_eq!(error, Err(CommandError::NotFound("x".into())));
    }
    s.add(log.child("b")).await.unwrap();
    assert_eq!(s.add(log.child("c")).await, Err(CommandError::LimitReached(2)));
    let bad = log.child("c").with_significant();
    assert!(matches!(s.add(bad).await, Err(CommandError::Config(_))));
    assert_eq!(log.take(), "+a +b");
    // Nothing of that has changed anything.
    s.remove_child("b").await.unwrap();
    s.add(log.child("c")).await.unwrap();
    settle().await;
    assert_eq!(log.take(), "-b +c");
    let _ = s.stop().await;
    assert_eq!(s.add(log.child("d")).await, Err(CommandError::ShutDown));
    assert_eq!(s.stop_child("a").await, Err(CommandError::ShutDown));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_waits_for_its_restart() {
    let log = Log::new();
    let slow = || log.child("a").with_backoff(Backoff::constant(secs(60)));
    let s = up(tolerant(Supervisor::one_for_one()).with_child(slow())).await;
    log.tell("a", Order::Fail).await;
    assert_eq!(s.start_child("a").await, Err(CommandError::Restarting("a".into())));
    assert_eq!(s.delete_child("a").await, Err(CommandError::Restarting("a".into())));
    // Restarted by hand, it does not wait.
    let started = Instant::now();
    s.restart_child("a").await.unwrap();
    settle().await;
    assert_eq!((log.take().as_str(), started.elapsed()), ("+a +a", Duration::ZERO));
    // Stopped, it does not come back.
    log.tell("a", Order::Fail).await;
    s.stop_child("a").await.unwrap();
    sleep(secs(120)).await;
    assert_eq!(s.snapshot().child("a").unwrap().state, ChildState::Stopped);
    s.delete_child("a").await.unwrap();
    assert_eq!(s.snapshot().children, []);
    s.add(slow()).await.unwrap();
    log.tell("a", Order::Fail).await;
    s.remove_child("a").await.unwrap();
    sleep(secs(120)).await;
    assert_eq!(log.take(), "+a");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_temporary_child_is_forgotten() {
    let log = Log::new();
    let s = up(Supervisor::one_for_one().with_child(log.child("a").with_restart(Restart::Temporary))).await;
    s.stop_child("a").await.unwrap();
    assert_eq!(s.start_child("a").await, Err(CommandError::NotFound("a".into())));
}

#[tokio::test(start_paused = true)]
async fn an_added_child_that_does_not_start_is_forgotten_and_not_counted() {
    let s = up(Supervisor::one_for_one().with_intensity(Intensity::new(0, secs(5)))).await;
    let bad = || {
        Child::new("a", async |_: Context| Err::<(), _>(std::io::Error::other("no port")))
            .with_readiness(secs(5))
    };
    for _ in 0..3 {
        let refused = s.add(bad()).await.unwrap_err();
        assert_eq!(refused.to_string(), "child `a` did not start: no port");
    }
    let late = Child::new("a", async |ctx: Context| ctx.cancelled().await).with_readiness(secs(5));
    let refused = s.add(late).await.unwrap_err();
    assert_eq!(refused.to_string(), "child `a` did not start: not ready within 5s");
    let snapshot = s.snapshot();
    assert_eq!((snapshot.children.len(), snapshot.state), (0, SupervisorState::Running));
}

#[tokio::test(start_paused = true)]
async fn commands_wait_for_the_sequence_and_for_each_other_in_order() {
    let log = Log::new();
    let s = tolerant(Supervisor::one_for_one())
        .with_child(log.child("a").with_readiness(secs(60)))
        .spawn()
        .unwrap();
    let commands = async {
        tokio::join!(
            s.add(log.child("b")),
            s.add(log.child("c")),
            s.stop_child("b"),
            s.remove_child("c"),
            s.add(log.child("b"))
        )
    };
    let ready = async {
        settle().await;
        assert_eq!(log.take(), "+a");
        log.tell("a", Order::Ready).await;
    };
    let ((b, c, stop, remove, again), ()) = tokio::join!(commands, ready);
    assert_eq!((b, c, stop, remove), (Ok(()), Ok(()), Ok(()), Ok(())));
    assert_eq!(again, Err(CommandError::AlreadyExists("b".into())));
    // In the order in which they came, each as a whole: by the time `b` runs, it is told to stop.
    let lines = log.take();
    assert!(lines.starts_with("+b") || lines.starts_with("-b") || lines.is_empty(), "{lines}");
    assert_eq!(s.snapshot().child("b").unwrap().state, ChildState::Stopped);
}

#[tokio::test(start_paused = true)]
async fn two_commands_on_one_child_in_a_pool() {
    let log = Log::new();
    let s = up(tolerant(Supervisor::pool()).with_child(log.child_with("a", secs(1)))).await;
    let (one, two) = tokio::join!(s.stop_child("a"), s.remove_child("a"));
    assert_eq!((one, two), (Ok(()), Err(CommandError::Stopping("a".into()))));
    assert_eq!(s.snapshot().child("a").unwrap().state, ChildState::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_command_is_carried_out_all_the_same() {
    let log = Log::new();
    let s = up(Supervisor::one_for_one()).await;
    let mut add = Box::pin(s.add(log.child("a")));
    assert!(futures_poll_once(&mut add).await);
    drop(add);
    settle().await;
    assert_eq!(log.take(), "+a");
    drop(s.add(log.child("b")));
    settle().await;
    assert_eq!(log.take(), "");
}

async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending()))
        .await
}

#[tokio::test(start_paused = true)]
async fn stopping_a_child_by_name_takes_no_longer_than_its_time() {
    let deaf = Child::new("deaf", async |_: Context| std::future::pending::<()>().await)
        .with_shutdown(Shutdown::Timeout(secs(1)));
    let s = up(tolerant(Supervisor::one_for_one()).with_child(deaf)).await;
    let mut events = s.events();
    let started = Instant::now();
    s.stop_child("deaf").await.unwrap();
    assert!(started.elapsed() < secs(1) + Duration::from_millis(5));
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.push(events.recv().await.unwrap());
    }
    assert_eq!(seen[0].kind.name(), "aborted");
    assert!(matches!(&seen[1].kind, async_supervisor::EventKind::Exited { exit: Exit::Aborted, .. }));
}

/// Polls a command once, so that it takes its place in the queue.
async fn queued<'c, T>(
    command: impl Future<Output = T> + Send + 'c,
) -> Pin<Box<dyn Future<Output = T> + Send + 'c>> {
    let mut command = Box::pin(command);
    assert!(futures_poll_once(&mut command).await);
    command
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_came_before_an_add_finds_no_child() {
    let s = up(Supervisor::one_for_one()).await;
    let busy = queued(s.add(slow("slow"))).await;
    let stop = queued(s.stop_child("new")).await;
    let remove = queued(s.remove_child("new")).await;
    let add = queued(s.add(idle("new"))).await;
    busy.await.unwrap();
    assert_eq!(stop.await, Err(CommandError::NotFound("new".into())));
    assert_eq!(remove.await, Err(CommandError::NotFound("new".into())));
    add.await.unwrap();
    assert_eq!(s.snapshot().child("new").unwrap().state, ChildState::Running);
}

#[tokio::test(start_paused = true)]
async fn each_answer_is_for_its_own_command_while_places_and_names_are_used_again() {
    let log = Log::new();
    let s = up(Supervisor::one_for_one().with_max_children(3).with_child(log.child_with("w", secs(1)))).await;
    let busy = queued(s.add(slow("slow"))).await;
    let gone = queued(s.remove_child("y")).await;
    let remove = queued(s.remove_child("w")).await;
    let y = queued(s.add(idle("y"))).await;
    busy.await.unwrap();
    // `w` is being removed.
    let z = queued(s.add(idle("z"))).await;
    let full = queued(s.add(idle("full"))).await;
    let again = queued(s.add(idle("y"))).await;
    assert_eq!(gone.await, Err(CommandError::NotFound("y".into())));
    assert_eq!((remove.await, y.await, z.await), (Ok(()), Ok(()), Ok(())));
    assert_eq!(full.await, Err(CommandError::LimitReached(3)));
    assert_eq!(again.await, Err(CommandError::AlreadyExists("y".into())));
    let names: Vec<_> = s.snapshot().children.into_iter().map(|child| child.name).collect();
    assert_eq!(names, ["slow".into(), "y".into(), "z".into()]);
}

#[tokio::test(start_paused = true)]
async fn an_add_during_the_restart_of_a_group_is_told_when_the_child_does_not_start() {
    let log = Log::new();
    let s =
        tolerant(Supervisor::rest_for_one()).with_children([log.child("a"), log.child_with("b", secs(1))]);
    let s = up(s).await;
    log.tell("a", Order::Fail).await;
    assert_eq!(s.snapshot().child("b").unwrap().state, ChildState::Stopping);
    let bad = Child::new("new", async |_: Context| Err::<(), _>(error("no port"))).with_readiness(secs(5));
    let added = s.add(bad).await.unwrap_err();
    assert_eq!(added.to_string(), "child `new` did not start: no port");
    assert!(s.snapshot().child("new").is_none());
    assert_eq!(log.take(), "+a +b -b +a +b");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_child_that_does_not_start_again_stays_stopped_and_is_not_counted() {
    let child = Child::new("a", async |ctx: Context| {
        if ctx.attempt() == 2 {
            return Err(error("no port"));
        }
        ctx.ready();
        ctx.cancelled().await;
        Ok(())
    });
    let s = Supervisor::one_for_one().with_intensity(Intensity::new(0, secs(5)));
    let s = up(s.with_child(child.with_readiness(secs(5)))).await;
    s.stop_child("a").await.unwrap();
    let refused = s.start_child("a").await.unwrap_err();
    assert_eq!(refused.to_string(), "child `a` did not start: no port");
    let child = s.snapshot().children.remove(0);
    assert_eq!((child.state, child.restarts, child.attempts), (ChildState::Stopped, 0, 2));
    s.start_child("a").await.unwrap();
    assert_eq!(s.snapshot().child("a").unwrap().state, ChildState::Running);
}

#[tokio::test(start_paused = true)]
async fn so_many_commands_are_queued_and_the_next_waits_for_a_place_in_order() {
    let s = up(Supervisor::one_for_one()).await;
    let busy = queued(s.add(slow("slow"))).await;
    settle().await;
    // Nobody waits for these: the first are carried out all the same, the others never got into the queue.
    for n in 0..3000 {
        drop(queued(s.add(idle(&format!("c{n}")))).await);
    }
    let waits = queued(s.add(idle("waits"))).await;
    assert_eq!(s.snapshot().children.len(), 1);
    busy.await.unwrap();
    waits.await.unwrap();
    let children = s.snapshot().children;
    assert_eq!((children.len(), &*children[1024].name, &*children[1025].name), (1026, "c1023", "waits"));
    assert!(s.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_in_the_queue_is_told_when_all_is_shut_down() {
    let s = up(Supervisor::one_for_one()).await;
    let busy = queued(s.add(slow("slow"))).await;
    settle().await;
    for n in 0..1024 {
        drop(queued(s.add(idle(&format!("c{n}")))).await);
    }
    let waits = queued(s.add(idle("waits"))).await;
    assert!(s.stop().await.is_clean());
    assert_eq!((busy.await, waits.await), (Err(CommandError::ShutDown), Err(CommandError::ShutDown)));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_being_carried_out_keeps_no_place_in_the_queue() {
    let s = up(Supervisor::pool()).await;
    let started = Instant::now();
    let mut adds = tokio::task::JoinSet::new();
    for n in 0..3000 {
        let handle = s.handle();
        adds.spawn(async move { handle.add(slow(&format!("c{n}"))).await });
    }
    while let Some(added) = adds.join_next().await {
        added.unwrap().unwrap();
    }
    // Side by side, however many.
    assert!(started.elapsed() < secs(1) + Duration::from_millis(5));
}
