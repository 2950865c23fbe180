use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_supervisor::{BoxError, GroupError, GroupFailure, TaskGroup};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::common::{Bomb, secs, settle};

/// Counts those that are there.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

struct Held(Count);

impl Count {
    fn hold(&self) -> Held {
        self.0.fetch_add(1, SeqCst);
        Held(self.clone())
    }

    fn get(&self) -> usize {
        self.0.load(SeqCst)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn the_values_come_in_the_order_of_the_starts() {
    let mut group = TaskGroup::new();
    for n in 0..5_u64 {
        group.spawn(async move {
            sleep(secs(5 - n)).await;
            Ok::<_, ()>(n)
        });
    }
    assert_eq!(group.len(), 5);
    assert_eq!(group.join().await.unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!(TaskGroup::<(), ()>::new().join().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_cancels_the_others_at_once_and_waits_for_them() {
    let count = Count::default();
    let mut group = TaskGroup::new();
    group.spawn(async { Ok::<_, &str>(1) });
    for _ in 0..3 {
        let held = count.hold();
        group.spawn(async move {
            let _held = held;
            sleep(secs(3600)).await;
            Ok(2)
        });
    }
    group.spawn(async {
        sleep(secs(1)).await;
        Err("no")
    });
    // Without anybody waiting for it.
    sleep(secs(1) + Duration::from_millis(2)).await;
    settle().await;
    assert_eq!(count.get(), 0);
    let failure = group.join().await.unwrap_err();
    assert_eq!(failure.first, GroupError::Failed("no"));
    assert!(failure.index.is_some());
    assert_eq!((failure.done, failure.cancelled, failure.others.len()), (vec![(0, 1)], 3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_and_a_grace_lets_the_others_end_in_order() {
    let mut group = TaskGroup::new().with_grace(secs(5));
    let token = group.token().clone();
    group.spawn(async move {
        token.cancelled().await;
        sleep(secs(1)).await;
        Err::<(), _>("cleanup failed")
    });
    group.spawn(async {
        sleep(secs(3600)).await;
        Ok(())
    });
    group.spawn(async { if true { panic!("boom {}", 1) } else { Ok(()) } });
    let started = Instant::now();
    let failure = group.join().await.unwrap_err();
    assert_eq!(failure.first, GroupError::Panicked("boom 1".into()));
    assert_eq!(failure.others, [GroupError::Failed("cleanup failed")]);
    assert_eq!(
        (failure.to_string().as_str(), failure.cancelled),
        ("task 2: panicked: boom 1 (and 1 more)", 1)
    );
    assert!(started.elapsed() < secs(5) + Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn it_is_cancelled_with_the_token_it_stands_under() {
    let token = CancellationToken::new();
    let mut group = TaskGroup::<(), ()>::under(&token);
    group.spawn(std::future::pending());
    token.cancel();
    let failure = group.join().await.unwrap_err();
    assert_eq!((failure.index, failure.first, failure.cancelled), (None, GroupError::Cancelled, 1));
    assert!(!CancellationToken::new().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_no_task_is_left() {
    let count = Count::default();
    let make = || {
        let count = count.clone();
        async move {
            let mut group = TaskGroup::new();
            for n in 0..3 {
                let held = count.hold();
                group.spawn(async move {
                    let _held = held;
                    sleep(secs(n)).await;
                    Ok::<_, ()>(())
                });
            }
            sleep(secs(1)).await;
            group.join().await.unwrap();
        }
    };
    let points = drop_at_every_await(make, async |_| {
        settle().await;
        assert_eq!(count.get(), 0);
    })
    .await;
    assert!(points >= 2, "{points}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_task_that_is_being_cancelled_is_a_failure() {
    let bomb = async || {
        let _bomb = Bomb;
        std::future::pending().await
    };
    let mut group = TaskGroup::<(), &str>::new();
    group.spawn(bomb());
    group.spawn(async {
        sleep(secs(1)).await;
        Err("no")
    });
    let failure = group.join().await.unwrap_err();
    assert_eq!(failure.first, GroupError::Failed("no"));
    assert_eq!((failure.others, failure.cancelled), (vec![GroupError::Panicked("in drop".into())], 0));

    let token = CancellationToken::new();
    let mut group = TaskGroup::<(), &str>::under(&token);
    group.spawn(bomb());
    settle().await;
    token.cancel();
    assert_eq!(group.join().await.unwrap_err().first, GroupError::Panicked("in drop".into()));
}

#[tokio::test(start_paused = true)]
async fn a_failure_can_go_on_as_an_error_of_any_kind() {
    let failure = async |first: Result<(), BoxError>| {
        let mut group = TaskGroup::new();
        group.spawn(async move { first });
        group.spawn(std::future::pending());
        group.join().await.map_err(GroupFailure::into_error).unwrap_err()
    };
    let error = failure(Err(Box::new(std::io::Error::other("disk full")))).await;
    assert!(error.downcast_ref::<std::io::Error>().is_some(), "{error}");
    let mut group = TaskGroup::<(), BoxError>::new();
    group.spawn(async { if true { std::panic::resume_unwind(Box::new("boom")) } else { Ok(()) } });
    assert_eq!(group.join().await.unwrap_err().into_error().to_string(), "panicked: boom");
    let token = CancellationToken::new();
    let mut group = TaskGroup::<(), BoxError>::under(&token);
    group.spawn(std::future::pending());
    token.cancel();
    assert_eq!(group.join().await.unwrap_err().into_error().to_string(), "cancelled");
}

#[tokio::test(start_paused = true)]
async fn a_failure_says_which_task_it_was() {
    let mut group = TaskGroup::new();
    for n in 0..4_u64 {
        group.spawn(async move {
            tokio::time::sleep(std::time::Duration::from_secs(10 - n)).await;
            Err::<(), _>(format!("no {n}"))
        });
    }
    let failure = group.join().await.unwrap_err();
    assert_eq!((failure.index, failure.to_string().as_str()), (Some(3), "task 3: no 3"));
}
