//! The cases of "buffered" streams that go wrong, and which mode is immune.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future as _, pending};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use async_batch::{Gather, ItemError, Settled, Stopped, streamed};
use async_policy::testing::drop_at_every_await;
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

async fn nap(n: u64) -> Result<u64, ()> {
    sleep(ms(n)).await;
    Ok(n)
}

#[tokio::test(start_paused = true)]
async fn as_they_complete_and_in_input_order() {
    let gather = Gather::up_to::<3>();
    let mut completed = gather.run([50, 10, 30, 5, 20], nap).stream();
    let mut seen = Vec::new();
    while let Some(Settled { index, result, .. }) = completed.next().await {
        seen.push((index, result.unwrap()));
    }
    // 3 starts at 10 and ends at 15; 4 starts at 15 and ends at 35.
    assert_eq!(seen, [(1, 10), (3, 5), (2, 30), (4, 20), (0, 50)]);
    assert_eq!((completed.summary().succeeded, completed.summary().stopped), (5, None));

    let ordered = gather.spawn([50, 10, 30, 5, 20], nap).ordered(3);
    let seen: Vec<_> = ordered.map(|settled| (settled.index, settled.result.unwrap())).collect().await;
    assert_eq!(seen, [(0, 50), (1, 10), (2, 30), (3, 5), (4, 20)]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_does_not_hold_up_the_rest_beyond_what_may_be_ahead() {
    let started = Cell::new(0);
    let item = async |n: u64| {
        started.set(started.get() + 1);
        if n == 0 {
            sleep(ms(1000)).await;
        } else {
            sleep(ms(1)).await;
        }
        Ok::<_, ()>(n)
    };
    // `futures::buffered(10)` starts ten items here.
    let mut none_ahead = Gather::up_to::<10>().run(0.., item).ordered(0);
    assert!(timeout(ms(900), none_ahead.next()).await.is_err());
    assert_eq!(started.replace(0), 10);
    let mut ahead = Gather::up_to::<10>().run(0.., item).ordered(100);
    assert!(timeout(ms(900), ahead.next()).await.is_err());
    assert_eq!(started.replace(0), 110);
    assert_eq!(ahead.next().await.unwrap().index, 0);
    // The memory is bounded, the await is not: results of a call are all kept anyway.
    let outcomes = Gather::up_to::<10>().run(0..1000, item).await;
    assert_eq!(outcomes.values().len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_slow_consumer_starves_a_stream_in_its_task_but_not_for_each_nor_spawned_items() {
    let gather = Gather::up_to::<4>();
    // An item with a time-out of its own, which is kept only if it is polled.
    let item = |_: u64| async {
        let before = Instant::now();
        sleep(ms(10)).await;
        sleep(ms(10)).await;
        if before.elapsed() > ms(30) { Err("starved") } else { Ok(()) }
    };
    let slow = async |settled: Settled<(), &'static str>| {
        sleep(ms(100)).await;
        usize::from(settled.result.is_err())
    };

    let mut starved = 0;
    let mut in_task = gather.run(0..12, item).stream();
    while let Some(settled) = in_task.next().await {
        starved += slow(settled).await;
    }
    assert!(starved > 0, "documented: who needs it otherwise takes one of the next");

    let starved = Cell::new(0);
    let summary = gather
        .run(0..12, item)
        .for_each(async |settled| starved.set(starved.get() + slow(settled).await))
        .await;
    assert_eq!((starved.get(), summary.succeeded), (0, 12));

    let mut starved = 0;
    let mut spawned = gather.spawn(0..12, item).stream();
    while let Some(settled) = spawned.next().await {
        starved += slow(settled).await;
    }
    assert_eq!(starved, 0);
}

#[tokio::test(start_paused = true)]
async fn an_item_and_a_consumer_that_share_a_semaphore_do_not_deadlock_in_for_each_nor_spawned() {
    let semaphore = Arc::new(Semaphore::new(1));
    let gather = Gather::up_to::<4>();
    let shared = Arc::clone(&semaphore);
    let item = move |n: u64| {
        let semaphore = Arc::clone(&shared);
        async move {
            let _permit = semaphore.acquire().await;
            sleep(ms(1)).await;
            Ok::<_, ()>(n)
        }
    };
    let consume = async |_: Settled<u64, ()>| {
        let _permit = semaphore.acquire().await;
        sleep(ms(1)).await;
    };

    let in_task = async {
        let mut stream = gather.run(0..12, &item).stream();
        while let Some(settled) = stream.next().await {
            consume(settled).await;
        }
    };
    assert!(
        timeout(ms(10_000), in_task).await.is_err(),
        "documented: the next item has its turn and is not polled"
    );
    assert_eq!(semaphore.available_permits(), 1);

    let summary = timeout(ms(10_000), gather.run(0..12, &item).for_each(&consume)).await.unwrap();
    assert_eq!(summary.succeeded, 12);
    let spawned = async {
        let mut stream = gather.spawn(0..12, &item).stream();
        while let Some(settled) = stream.next().await {
            consume(settled).await;
        }
    };
    timeout(ms(10_000), spawned).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_limit_are_under_way_or_wait_for_the_consumer() {
    let (alive, most) = (Cell::new(0_i32), Cell::new(0));
    let summary = Gather::up_to::<5>()
        .run(0..100, async |n: u64| {
            alive.set(alive.get() + 1);
            most.set(most.get().max(alive.get()));
            sleep(ms(n % 7)).await;
            Ok::<_, ()>(())
        })
        .for_each(async |_| {
            sleep(ms(3)).await;
            alive.set(alive.get() - 1);
        })
        .await;
    assert_eq!((summary.started, most.get()), (100, 5));
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_pulled_only_when_there_is_room() {
    let (send, receive) = mpsc::channel(1);
    let source = stream::unfold(receive, |mut receive| async { receive.recv().await.map(|n| (n, receive)) });
    let sent = Cell::new(0);
    let producer = async {
        for n in 0..20_u64 {
            send.send(n).await.unwrap();
            sent.set(sent.get() + 1);
        }
        drop(send);
    };
    let pulled_early = Cell::new(0);
    let gather = async {
        Gather::up_to::<3>()
            .run(streamed(pin!(source)), async |n: u64| {
                sleep(ms(10)).await;
                if n == 0 {
                    pulled_early.set(sent.get());
                }
                Ok::<_, ()>(n)
            })
            .await
    };
    let ((), outcomes) = tokio::join!(producer, gather);
    assert_eq!(outcomes.into_values(), Vec::from_iter(0..20));
    assert!(pulled_early.get() <= 5, "three under way, one in the channel: {}", pulled_early.get());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_pending_does_not_stop_the_items() {
    let ticks = stream::unfold(0, |n| async move {
        if n == 5 {
            return None;
        }
        sleep(ms(100)).await;
        Some((n, n + 1))
    });
    let started = Instant::now();
    let outcomes =
        Gather::up_to::<3>().run(streamed(Box::pin(ticks)), async |n: u64| nap(n * 10).await).await;
    assert_eq!(outcomes.into_values(), [0, 10, 20, 30, 40]);
    assert!(started.elapsed() < ms(560));
}

#[tokio::test(start_paused = true)]
async fn a_stopped_stream_hands_out_what_it_cancelled_and_ends() {
    let gather = Gather::up_to::<3>().fail_fast();
    let item = async |n: u64| match n {
        3 => Err("three"),
        0 | 2 => pending().await,
        _ => Ok(n),
    };
    let mut stream = gather.run(0..10, item).stream();
    let mut seen = HashMap::new();
    while let Some(settled) = stream.next().await {
        assert!(seen.insert(settled.index, settled.result).is_none());
    }
    let expected = [
        (0, Err(ItemError::Cancelled)),
        (1, Ok(1)),
        (2, Err(ItemError::Cancelled)),
        (3, Err(ItemError::Operation("three"))),
    ];
    assert_eq!(seen, HashMap::from(expected.clone()));
    assert!(stream.next().await.is_none());
    assert_eq!(stream.summary().stopped, Some(Stopped::Failures));

    let ordered: Vec<_> = gather.spawn(0..10, item).ordered(8).map(|s| (s.index, s.result)).collect().await;
    assert_eq!(ordered, expected);

    let consumed = RefCell::new(Vec::new());
    let summary = gather.run(0..10, item).for_each(async |s| consumed.borrow_mut().push(s.index)).await;
    assert_eq!((summary.started, summary.succeeded, summary.failed, summary.cancelled), (4, 1, 1, 2));
    assert_eq!(consumed.borrow().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_next_one_can_be_dropped_and_loses_nothing() {
    let semaphore = Semaphore::new(3);
    let seen = RefCell::new(Vec::new());
    let points = drop_at_every_await(
        || async {
            seen.borrow_mut().clear();
            let mut stream = Gather::up_to::<3>()
                .run(0..6, async |n: u64| {
                    let _permit = semaphore.acquire().await;
                    nap(n).await
                })
                .stream();
            loop {
                // Dropped again and again while it waits.
                match timeout(Duration::ZERO, stream.next()).await {
                    Ok(Some(settled)) => seen.borrow_mut().push(settled.index),
                    Ok(None) => break,
                    Err(_) => sleep(ms(1)).await,
                }
            }
        },
        async |point| {
            assert_eq!(semaphore.available_permits(), 3);
            if point.is_none() {
                let mut seen = seen.take();
                seen.sort_unstable();
                assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
            }
        },
    )
    .await;
    assert!(points > 3, "{points}");
}

#[tokio::test(start_paused = true)]
async fn an_ordered_stream_dropped_at_every_await_loses_nothing_before_and_drops_the_items() {
    let semaphore = Semaphore::new(3);
    let seen = RefCell::new(Vec::new());
    let points = drop_at_every_await(
        || async {
            seen.borrow_mut().clear();
            let item = async |n: u64| {
                let _permit = semaphore.acquire().await;
                nap(9 - n).await
            };
            let mut stream = Gather::up_to::<3>().run(0..6, item).ordered(2);
            while let Some(settled) = stream.next().await {
                seen.borrow_mut().push(settled.index);
            }
        },
        async |point| {
            assert_eq!(semaphore.available_permits(), 3);
            let seen = seen.take();
            assert!(seen.iter().copied().eq(0..seen.len()), "{seen:?}");
            assert!(point.is_some() || seen.len() == 6);
        },
    )
    .await;
    assert!(points > 3, "{points}");
}

#[tokio::test(start_paused = true)]
async fn for_each_dropped_at_every_await_drops_items_and_consumer() {
    let semaphore = Semaphore::new(8);
    let gather = Gather::new(NonZeroUsize::new(3).unwrap());
    let points = drop_at_every_await(
        || {
            let items = gather.run(0..6, async |n: u64| {
                let _permit = semaphore.acquire().await;
                nap(n).await
            });
            items.for_each(async |_| {
                let _permit = semaphore.acquire().await;
                sleep(ms(2)).await;
            })
        },
        async |_| assert_eq!(semaphore.available_permits(), 8),
    )
    .await;
    assert!(points > 3, "{points}");
}

#[tokio::test(start_paused = true)]
async fn an_endless_stream_gives_way_to_an_outer_time_out() {
    let endless = async {
        let mut stream = Gather::up_to::<8>().run(0_u64.., async |n| Ok::<_, ()>(n)).ordered(4);
        while stream.next().await.is_some() {}
    };
    assert!(timeout(Duration::ZERO, endless).await.is_err());
    let endless = Gather::up_to::<8>().run(0_u64.., async |n| Ok::<_, ()>(n)).for_each(async |_| {});
    assert!(timeout(Duration::ZERO, endless).await.is_err());
}

/// Whose results so far would be lost.
#[tokio::test]
async fn a_gather_that_has_begun_is_not_turned_into_another_form() {
    let begun = || {
        let mut run = Gather::up_to::<1>().run(0..2, async |n| {
            tokio::task::yield_now().await;
            Ok::<u32, ()>(n)
        });
        assert!(Pin::new(&mut run).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        run
    };
    let refused = |form: &mut dyn FnMut()| {
        let payload = catch_unwind(AssertUnwindSafe(form)).expect_err("it has begun");
        assert_eq!(
            *payload.downcast::<&str>().unwrap(),
            "a gather that has begun can only be awaited to its end"
        );
    };
    refused(&mut || drop(begun().stream()));
    refused(&mut || drop(begun().ordered(3)));
    refused(&mut || drop(begun().detailed()));
    refused(&mut || {
        let _ = begun().for_each(async |_| {}).now_or_never();
    });
}
