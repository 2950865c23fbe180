use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_batch::{Gather, ItemError, Progress, Stopped};
use async_policy::testing::drop_at_every_await;
use async_policy::{Deadline, Failure, Guard, Timeout};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test(start_paused = true)]
async fn spawned_items_give_the_same_outcomes() {
    let outcomes = Gather::up_to::<3>()
        .spawn([50, 10, 30, 5, 20_u64], async |n| {
            sleep(ms(n)).await;
            if n == 10 { Err("ten") } else { Ok(n) }
        })
        .await;
    assert_eq!(outcomes.values(), [50, 30, 5, 20]);
    assert_eq!(outcomes.failures(), [(1, ItemError::Operation("ten"))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spawned_items_run_in_parallel_and_blocking_ones_too() {
    // Each waits for the other without giving its thread back.
    let barrier = Arc::new(std::sync::Barrier::new(2));
    let shared = Arc::clone(&barrier);
    let outcomes = Gather::up_to::<2>()
        .spawn_blocking(0..2, move |n| {
            shared.wait();
            Ok::<_, ()>(n)
        })
        .await;
    assert_eq!(outcomes.into_values(), [0, 1]);
    // The gather is on the test's own thread, so both workers are free.
    let outcomes = Gather::up_to::<2>()
        .spawn(0..2, move |n| {
            let barrier = Arc::clone(&barrier);
            async move {
                barrier.wait();
                Ok::<_, ()>(n)
            }
        })
        .await;
    assert_eq!(outcomes.into_values(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn fail_fast_waits_until_spawned_items_have_stopped() {
    let running = Arc::new(Semaphore::new(3));
    let outcomes = Gather::up_to::<3>()
        .fail_fast()
        .spawn(0..10, {
            let running = Arc::clone(&running);
            move |n| {
                let running = Arc::clone(&running);
                async move {
                    let _permit = running.acquire_owned().await;
                    sleep(ms(10 + n)).await;
                    if n == 0 { Err("zero") } else { Ok(n) }
                }
            }
        })
        .await;
    assert_eq!(running.available_permits(), 3, "all have stopped");
    assert_eq!(outcomes.stopped(), Some(Stopped::Failures));
    assert_eq!(outcomes.len(), 3);
    assert_eq!(outcomes.failures()[0], (0, ItemError::Operation("zero")));
    assert!(outcomes.failures()[1..].iter().all(|(_, error)| error.is_cancelled()));
}

#[tokio::test(start_paused = true)]
async fn a_blocking_item_that_takes_too_long_ends_with_its_own_result() {
    let gather = Gather::up_to::<1>;
    for gather in [gather().with_item_timeout(ms(10)), gather().with_deadline(ms(10))] {
        let (running, has_begun) = oneshot::channel();
        let (release, released) = std::sync::mpsc::channel();
        let both = std::sync::Mutex::new(Some((running, released)));
        let run = gather.spawn_blocking(0..1, move |n| {
            let (running, released) = both.lock().unwrap().take().unwrap();
            running.send(()).unwrap();
            released.recv().unwrap();
            if n == 0 { Err("its own") } else { Ok(n) }
        });
        let pass = async {
            has_begun.await.unwrap();
            tokio::time::advance(ms(20)).await;
            for _ in 0..5 {
                tokio::task::yield_now().await; // the gather sees that, and asks it to end
            }
            release.send(()).unwrap();
        };
        let (outcomes, ()) = tokio::join!(run, pass);
        assert_eq!(outcomes.failures(), [(0, ItemError::Operation("its own"))]);
    }
}

#[tokio::test]
async fn fail_fast_waits_for_blocking_items_that_run_and_starts_no_other() {
    let (ended, started) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let progress = Progress::new();
    let outcomes = Gather::up_to::<2>()
        .fail_fast()
        .with_progress(&progress)
        .spawn_blocking(0..10, {
            let (ended, started, progress) = (Arc::clone(&ended), Arc::clone(&started), progress.clone());
            let both = std::sync::Barrier::new(2);
            move |n| {
                started.fetch_add(1, SeqCst);
                both.wait();
                if n == 1 {
                    return Err("second");
                }
                // Ends only once the gather has seen the other one fail.
                while progress.snapshot().failed == 0 {
                    std::thread::yield_now();
                }
                ended.fetch_add(1, SeqCst);
                Ok(n)
            }
        })
        .await;
    assert_eq!((started.load(SeqCst), ended.load(SeqCst)), (2, 1));
    // It ran to its end, so its result is its own.
    assert_eq!(outcomes.values(), [0]);
    assert_eq!(outcomes.failures(), [(1, ItemError::Operation("second"))]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_spawned_or_blocking_item_is_its_error() {
    let outcomes = Gather::up_to::<2>()
        .spawn(0..3, async |n| {
            tokio::task::yield_now().await;
            assert!(n != 1, "no {n}");
            Ok::<_, ()>(n)
        })
        .await;
    assert_eq!(outcomes.values(), [0, 2]);
    assert!(matches!(&outcomes.failures()[0], (1, ItemError::Panicked(panic)) if panic.message() == "no 1"));
    let outcomes = Gather::up_to::<2>()
        .spawn_blocking(0..3, |n| {
            assert!(n != 1, "no {n}");
            Ok::<_, ()>(n)
        })
        .await;
    assert!(matches!(&outcomes.failures()[0], (1, ItemError::Panicked(panic)) if panic.message() == "no 1"));
}

#[tokio::test(start_paused = true)]
async fn dropped_the_spawned_items_are_aborted() {
    let running = Arc::new(Semaphore::new(5));
    let points = drop_at_every_await(
        || {
            let running = Arc::clone(&running);
            Gather::up_to::<3>().spawn(0..7, move |n| {
                let running = Arc::clone(&running);
                async move {
                    let _permit = running.acquire_owned().await;
                    tokio::task::yield_now().await;
                    sleep(ms(n)).await;
                    Ok::<_, ()>(n)
                }
            })
        },
        async |_| {
            // What was asked to stop does so at its next await.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            assert_eq!(running.available_permits(), 5);
        },
    )
    .await;
    assert!(points > 3, "{points}");
}

#[tokio::test]
async fn dropped_the_running_blocking_items_end_and_no_other_starts() {
    let ran = Arc::new(AtomicUsize::new(0));
    let (started, is_started) = oneshot::channel();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (ended, has_ended) = oneshot::channel();
    let once = std::sync::Mutex::new(Some((started, held, ended)));
    let shared = Arc::clone(&ran);
    let mut run = Gather::up_to::<1>().spawn_blocking(0..10, move |n| {
        shared.fetch_add(1, SeqCst);
        if let Some((started, held, ended)) = once.lock().unwrap().take() {
            let _ = started.send(());
            let _ = held.recv();
            let _ = ended.send(());
        }
        Ok::<_, ()>(n)
    });
    tokio::select! {
        biased;
        _ = &mut run => unreachable!(),
        started = is_started => started.unwrap(),
    }
    drop(run);
    release.send(()).unwrap();
    has_ended.await.unwrap();
    assert_eq!(ran.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_carried_into_tasks_and_onto_threads() {
    let left = || Ok::<_, Failure<()>>(Deadline::current().map(|deadline| deadline.remaining().as_millis()));
    let all = async {
        let spawned = Gather::up_to::<1>().spawn(0..1, move |_| async move { left() }).await;
        let blocking = Gather::up_to::<1>().spawn_blocking(0..1, move |_| left()).await;
        Ok::<_, Failure<()>>((spawned.into_values()[0], blocking.into_values()[0]))
    };
    let (spawned, blocking) = Timeout::from_millis(300).run(all).await.unwrap();
    assert_eq!(spawned, Some(300));
    assert!(blocking.is_some_and(|left| left <= 300));
}

#[tokio::test(start_paused = true)]
async fn an_item_time_out_ends_the_slow_items_only() {
    let started = Instant::now();
    let permits = Arc::new(Semaphore::new(4));
    let shared = Arc::clone(&permits);
    let item = move |n: u64| {
        let permits = Arc::clone(&shared);
        async move {
            let _permit = permits.acquire_owned().await;
            sleep(ms(n * 40)).await;
            Ok::<_, ()>(n)
        }
    };
    let gather = Gather::up_to::<4>().with_item_timeout(ms(100));
    let outcomes = gather.run(0..6, &item).await;
    assert_eq!(outcomes.values(), [0, 1, 2]);
    assert!(
        outcomes
            .failures()
            .iter()
            .all(|(_, error)| matches!(error, ItemError::TimedOut(t) if t.limit() == ms(100)))
    );
    // 4 starts at 0 and 5 at 40.
    assert!((140..=143).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert_eq!(permits.available_permits(), 4);

    let spawned = gather.spawn(0..6, item).await;
    assert_eq!(spawned.values(), [0, 1, 2]);
    assert_eq!(spawned.failures(), outcomes.failures());
    assert_eq!(permits.available_permits(), 4, "each has stopped");
}

#[tokio::test(start_paused = true)]
async fn an_item_time_out_fires_over_an_item_that_is_always_busy() {
    let outcomes = Gather::up_to::<2>()
        .with_item_timeout(ms(5))
        .run(0..2, async |n| {
            if n == 0 {
                loop {
                    tokio::time::advance(Duration::from_micros(10)).await;
                    tokio::task::consume_budget().await;
                }
            }
            Ok::<_, ()>(n)
        })
        .await;
    assert_eq!(outcomes.values(), [1]);
    assert!(matches!(outcomes.failures(), [(0, ItemError::TimedOut(_))]));
}

#[tokio::test(start_paused = true)]
async fn the_item_time_out_and_the_deadline_are_in_force_inside() {
    let left = async |_: u64| {
        let first = Deadline::current().unwrap().remaining();
        sleep(ms(50)).await;
        Ok::<_, ()>((first.as_millis(), Deadline::current().unwrap().remaining().as_millis()))
    };
    let gather = Gather::up_to::<1>().with_item_timeout(ms(100));
    assert_eq!(gather.run(0..2, left).await.into_values(), [(100, 50), (100, 50)]);
    assert_eq!(gather.spawn(0..1, left).await.into_values(), [(100, 50)]);
    let both = gather.with_deadline(ms(130));
    assert_eq!(both.run(0..2, left).await.into_values(), [(100, 50), (80, 30)]);
    assert_eq!(Deadline::current(), None);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_keeps_what_has_ended() {
    let progress = Progress::new();
    let mut inputs = 0..100;
    let gather = Gather::up_to::<2>().with_deadline(ms(95)).with_progress(&progress);
    let item = async |n: u64| {
        sleep(ms(30)).await;
        Ok::<_, String>(n)
    };
    let outcomes = gather.run(&mut inputs, item).await;
    assert_eq!(outcomes.stopped(), Some(Stopped::Deadline));
    assert_eq!(outcomes.values(), [0, 1, 2, 3, 4, 5]);
    assert!(
        matches!(outcomes.failures(), [(6, ItemError::TimedOut(_)), (7, ItemError::TimedOut(t))] if t.limit() == ms(95))
    );
    assert_eq!(inputs, 8..100);
    let shown = progress.snapshot();
    assert_eq!((shown.done, shown.failed, shown.in_flight), (8, 2, 0));
    assert_eq!(
        outcomes.into_result().unwrap_err().to_string(),
        "2 of 8 items failed, stopped by its deadline: \
         #6: item timed out: timeout expired: no answer within 95ms; \
         #7: item timed out: timeout expired: no answer within 95ms"
    );

    let spawned = gather.spawn(0..100, item).await;
    assert_eq!((spawned.len(), spawned.values().len()), (8, 6));
}
