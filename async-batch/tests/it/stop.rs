//! Who stops a gather besides a deadline: a request from outside, and what counts as a failure.

use std::sync::Arc;
use std::time::Duration;

use async_batch::{Gather, Stop, Stopped};
use async_policy::testing::drop_at_every_await;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::plan::Closed;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Items of 10 ms each under a stop that is requested after 45 ms.
fn requested_later() -> Stop {
    let stop = Stop::new();
    let later = stop.clone();
    tokio::spawn(async move {
        sleep(ms(45)).await;
        later.request();
    });
    stop
}

#[tokio::test(start_paused = true)]
async fn a_requested_stop_keeps_what_has_ended_and_cancels_what_is_under_way() {
    let permits = Arc::new(Semaphore::new(3));
    let shared = Arc::clone(&permits);
    let item = move |n: u64| {
        let permits = Arc::clone(&shared);
        async move {
            let _permit = permits.acquire_owned().await;
            sleep(ms(if n.is_multiple_of(3) { 1000 } else { 10 })).await;
            Ok::<_, String>(n)
        }
    };
    for spawned in [false, true] {
        let gather = Gather::up_to::<3>().with_stop(&requested_later());
        let mut inputs = [3, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12].into_iter();
        let outcomes = if spawned {
            gather.spawn(&mut inputs, &item).await
        } else {
            gather.run(&mut inputs, &item).await
        };
        assert_eq!(outcomes.stopped(), Some(Stopped::Requested));
        assert_eq!(outcomes.values(), [1, 2, 4, 5, 7, 8]);
        assert_eq!(permits.available_permits(), 3, "what was under way has stopped");
        let summary = outcomes.summary();
        assert_eq!((summary.started, summary.failed, summary.cancelled), (9, 0, 3));
        assert_eq!(outcomes.failures().len(), 3, "failures are all without a value");
        assert_eq!(inputs.as_slice(), [10, 11, 12]);
        assert_eq!(outcomes.to_string(), "0 of 9 items failed, stopped on request, 3 cancelled");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_seen_by_ready_items_by_a_source_that_waits_and_by_later_gathers() {
    let stop = Stop::new();
    let gather = Gather::up_to::<4>().with_stop(&stop);
    let request = async |n: u32| {
        if n == 20 {
            stop.request();
        }
        Ok::<_, ()>(n)
    };
    let outcomes = tokio::task::unconstrained(gather.run(0.., request)).await;
    assert_eq!((outcomes.len(), outcomes.stopped()), (21, Some(Stopped::Requested)));
    let none = gather.run(0..5, request).await;
    assert_eq!((none.len(), none.stopped()), (0, Some(Stopped::Requested)));

    let stop = requested_later();
    let idle = async_batch::streamed(futures_util::stream::pending::<u32>());
    let idle = Gather::up_to::<4>().with_stop(&stop).run(idle, async |n| Ok::<_, ()>(n));
    assert_eq!(idle.await.stopped(), Some(Stopped::Requested));
    assert!(stop.is_requested());
}

#[tokio::test(start_paused = true)]
async fn under_a_stop_dropped_at_every_await_the_items_are_dropped() {
    let permits = Semaphore::new(3);
    let points = drop_at_every_await(
        || {
            let gather = Gather::up_to::<3>().with_stop(&requested_later());
            let permits = &permits;
            gather.run(0.., move |n: u64| async move {
                let _permit = permits.acquire().await;
                sleep(ms(10 + n)).await;
                Ok::<_, ()>(n)
            })
        },
        async |_| assert_eq!(permits.available_permits(), 3),
    )
    .await;
    assert!(points > 3, "{points}");
}

#[tokio::test(start_paused = true)]
async fn an_item_that_its_policy_refuses_counts_as_failed() {
    let three = 3.try_into().unwrap();
    let gather = Gather::up_to::<2>().stop_after(three).with_policy(Closed);
    let outcomes = gather.run(0..10, async |n| Ok::<_, ()>(n)).await;
    assert_eq!((outcomes.summary().failed, outcomes.stopped()), (3, Some(Stopped::Failures)));
}

#[tokio::test(start_paused = true)]
async fn with_an_item_time_out_of_zero_a_ready_item_succeeds_in_the_caller_s_task_only() {
    let gather = Gather::up_to::<2>().with_item_timeout(Duration::ZERO);
    let ready = async |n: u32| Ok::<_, ()>(n);
    assert!(gather.run(0..3, ready).await.is_ok());
    assert_eq!(gather.spawn(0..3, ready).await.failures().len(), 3);
}
