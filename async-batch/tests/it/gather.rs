use std::cell::Cell;
use std::future::{Future as _, pending, poll_fn};
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_batch::{Gather, ItemError, Stopped};
use async_policy::testing::drop_at_every_await;
use async_policy::{Failure, Guard, Timeout};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test(start_paused = true)]
async fn three_hundred_fetches_sixteen_at_once() {
    let (now, most) = (Cell::new(0), Cell::new(0));
    let started = Instant::now();
    let outcomes = Gather::up_to::<16>()
        .run(0..300_u64, async |n| {
            now.set(now.get() + 1);
            most.set(most.get().max(now.get()));
            sleep(ms(100)).await;
            now.set(now.get() - 1);
            if n % 100 == 7 { Err(format!("no page {n}")) } else { Ok(n) }
        })
        .await;
    assert_eq!(most.get(), 16);
    // 300 / 16 rounds up to 19 rounds; a sleep rounds up to the timer's next millisecond.
    assert!((1900..=1919).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert_eq!(outcomes.len(), 300);
    assert_eq!(outcomes.stopped(), None);
    let failed: Vec<_> = outcomes.failures().iter().map(|(index, _)| *index).collect();
    assert_eq!(failed, [7, 107, 207]);
    assert_eq!(
        outcomes.to_string(),
        "3 of 300 items failed: #7: no page 7; #107: no page 107; #207: no page 207"
    );
    let (successes, _) = outcomes.split();
    assert_eq!(successes.len(), 297);
    assert!(successes.iter().all(|(index, n)| *index as u64 == *n));
}

#[tokio::test(start_paused = true)]
async fn results_come_in_input_order_whatever_order_they_complete_in() {
    let outcomes = Gather::up_to::<3>()
        .run([50, 10, 30, 5, 20_u64], async |n| {
            sleep(ms(n)).await;
            if n == 10 { Err(n) } else { Ok(n) }
        })
        .await;
    let listed: Vec<_> = outcomes.iter().map(|(index, result, ())| (index, result.copied().ok())).collect();
    assert_eq!(listed, [(0, Some(50)), (1, None), (2, Some(30)), (3, Some(5)), (4, Some(20))]);
    let by_value: Vec<_> = outcomes.clone().into_iter().map(|s| (s.index, s.result.ok())).collect();
    assert_eq!(listed, by_value);
    let error = outcomes.into_result().unwrap_err();
    assert_eq!(error.values(), [50, 30, 5, 20]);
    assert_eq!(error.failures(), [(1, ItemError::Operation(10))]);
}

#[tokio::test]
async fn nothing_in_nothing_out() {
    let outcomes = Gather::up_to::<3>().run([(); 0], async |()| Ok::<(), ()>(())).await;
    assert!(outcomes.is_empty() && outcomes.is_ok());
    assert_eq!(outcomes.into_result(), Ok(vec![]));
}

#[tokio::test(start_paused = true)]
async fn the_largest_limit_makes_no_more_slots_than_it_needs() {
    let outcomes = Gather::new(NonZeroUsize::MAX)
        .run(0..1000, async |n| {
            sleep(ms(1)).await;
            Ok::<_, ()>(n)
        })
        .await;
    assert_eq!(outcomes.into_result().unwrap(), Vec::from_iter(0..1000));
}

#[tokio::test(start_paused = true)]
async fn fail_fast_drops_the_rest_before_it_returns_and_leaves_what_did_not_start() {
    let under_way = Semaphore::new(4);
    let mut inputs = 0..100;
    let outcomes = Gather::up_to::<4>()
        .fail_fast()
        .run(&mut inputs, async |n| {
            let _permit = under_way.acquire().await;
            match n {
                0 | 1 => sleep(ms(10)).await,
                5 => return Err("five"),
                _ => pending().await,
            }
            Ok(n)
        })
        .await;
    assert_eq!(under_way.available_permits(), 4);
    assert_eq!(outcomes.stopped(), Some(Stopped::Failures));
    // 0 and 1 end and make room for 4 and 5.
    assert_eq!((outcomes.len(), outcomes.values()), (6, &[0, 1][..]));
    assert_eq!(inputs, 6..100);
}

#[tokio::test(start_paused = true)]
async fn fail_fast_is_an_error_with_the_partial_results_in_it() {
    let mut inputs = 0..100;
    let outcomes = Gather::up_to::<4>()
        .fail_fast()
        .run(&mut inputs, async |n| match n {
            1 | 3 => pending().await,
            4 => Err("four"),
            _ => Ok(n),
        })
        .await;
    assert_eq!(outcomes.to_string(), "1 of 5 items failed, stopped by its failures, 2 cancelled: #4: four");
    assert_eq!(outcomes.values(), [0, 2]);
    assert_eq!(outcomes.failures()[0], (1, ItemError::Cancelled));
    assert_eq!(outcomes.failures()[1], (3, ItemError::Cancelled));
    assert_eq!(inputs, 5..100);
}

#[tokio::test(start_paused = true)]
async fn a_budget_bears_the_failures_before_the_last() {
    let outcomes = Gather::up_to::<1>()
        .stop_after(NonZeroUsize::new(3).unwrap())
        .run(0.., async |n| if n % 2 == 0 { Err(n) } else { Ok(n) })
        .await;
    assert_eq!(outcomes.len(), 5);
    assert_eq!(outcomes.values(), [1, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_that_items_error_with_its_message() {
    let outcomes = Gather::up_to::<2>()
        .run(0..5, |n| {
            assert!(n != 1, "cannot start {n}");
            async move {
                sleep(ms(1)).await;
                assert!(n != 3, "three is too many");
                Ok::<_, String>(n)
            }
        })
        .await;
    assert_eq!(outcomes.values(), [0, 2, 4]);
    assert_eq!(
        outcomes.to_string(),
        "2 of 5 items failed: #1: panicked: cannot start 1; #3: panicked: three is too many"
    );
}

#[tokio::test(start_paused = true)]
async fn ready_items_give_way_to_an_outer_time_out() {
    let ran = Cell::new(0_u64);
    let endless = Gather::up_to::<64>().run(0.., async |_: u64| {
        ran.set(ran.get() + 1);
        // Virtual time stands still while nothing waits for it.
        if ran.get().is_multiple_of(1000) {
            tokio::time::advance(ms(1)).await;
        }
        if ran.get() > 1_000_000 { Err(()) } else { Ok(()) }
    });
    let endless = std::pin::pin!(endless);
    let timed = tokio::time::timeout(ms(50), endless).await;
    assert!(timed.is_err());
    assert!(ran.get() < 200_000, "{}", ran.get());
}

#[tokio::test(start_paused = true)]
async fn ready_items_give_way_to_an_outer_time_out_of_the_family() {
    let inner = async {
        let _ = Gather::up_to::<64>().run(0_u64.., async |_| Ok::<_, ()>(())).await;
        Ok::<_, Failure<()>>(())
    };
    assert!(matches!(Timeout::new(Duration::ZERO).run(inner).await, Err(Failure::TimedOut(_))));
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_the_items_are_dropped() {
    let under_way = Semaphore::new(4);
    let points = drop_at_every_await(
        || {
            Gather::up_to::<3>().run(0..7, async |n| {
                let _permit = under_way.acquire().await;
                tokio::task::yield_now().await;
                sleep(ms(n)).await;
                Ok::<_, ()>(n)
            })
        },
        async |_| assert_eq!(under_way.available_permits(), 4),
    )
    .await;
    assert!(points > 5, "{points}");
}

#[tokio::test]
async fn a_gather_goes_into_a_spawned_task() {
    let task = tokio::spawn(async {
        let base = String::from("http://quotes/");
        let gather = Gather::up_to::<3>();
        let outcomes = gather
            .run(0..3, |n| {
                let base = &base;
                async move {
                    tokio::task::yield_now().await;
                    Ok::<_, ()>(format!("{base}{n}"))
                }
            })
            .await;
        outcomes.into_values()
    });
    assert_eq!(task.await.unwrap(), ["http://quotes/0", "http://quotes/1", "http://quotes/2"]);
}

#[tokio::test(start_paused = true)]
async fn items_that_wait_are_not_polled_in_vain_when_the_budget_is_used_up() {
    let polls = Cell::new(0);
    let item = |n: u32| {
        let mut sleep = Box::pin(sleep(Duration::from_millis(5)));
        let polls = &polls;
        poll_fn(move |cx| {
            polls.set(polls.get() + 1);
            sleep.as_mut().poll(cx).map(|()| Ok::<_, ()>(n))
        })
    };
    let outcomes = Gather::up_to::<1000>().run(0..1000, item).await;
    assert_eq!(outcomes.values().len(), 1000);
    assert_eq!(polls.get(), 2 * 1000);
}

#[tokio::test(start_paused = true)]
async fn items_are_not_begun_in_vain_when_those_before_used_up_the_budget() {
    let polls = Cell::new(0);
    let item = |n: u32| {
        let mut work = Box::pin(async move {
            tokio::task::consume_budget().await;
            sleep(ms(5)).await;
            Ok::<_, ()>(n)
        });
        let polls = &polls;
        poll_fn(move |cx| {
            polls.set(polls.get() + 1);
            work.as_mut().poll(cx)
        })
    };
    let outcomes = Gather::up_to::<1000>().run(0..1000, item).await;
    assert_eq!(outcomes.values().len(), 1000);
    // At most once a turn of some 120 items: the one whose first step takes the last of the budget.
    assert!(polls.get() < 2 * 1000 + 10, "{}", polls.get());
}

#[tokio::test(start_paused = true)]
async fn begun_in_one_task_it_goes_on_in_another() {
    let mut run = Gather::up_to::<40>().run(0..100_u64, async |n| {
        tokio::time::sleep(ms(1 + n % 7)).await;
        Ok::<_, ()>(n)
    });
    let nobody = &mut Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut run).poll(nobody).is_pending());
    let outcomes = tokio::spawn(run).await.expect("no panic");
    assert!(outcomes.values().iter().copied().eq(0..100));
}

#[tokio::test(start_paused = true)]
async fn a_late_wake_up_costs_the_next_item_a_poll_and_outlives_the_gather() {
    let early = &OnceLock::new();
    let polls = &Cell::new(0);
    let late = &Cell::new(false);
    let mut run = Gather::up_to::<1>().run(0..2, move |n| {
        poll_fn(move |cx| {
            if n == 0 {
                // Pending once, so that it takes a slot.
                if early.set(cx.waker().clone()).is_ok() {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                return Poll::Ready(Ok::<_, ()>(n));
            }
            polls.set(polls.get() + 1);
            if late.get() { Poll::Ready(Ok(n)) } else { Poll::Pending }
        })
    });
    let waker = || early.get().expect("the first item has left it");
    assert!(poll_once(&mut run).await.is_none());
    assert_eq!(polls.get(), 1);
    waker().wake_by_ref();
    assert!(poll_once(&mut run).await.is_none());
    assert_eq!(polls.get(), 2);
    late.set(true);
    waker().wake_by_ref();
    let outcomes = poll_once(&mut run).await.expect("it was woken");
    assert_eq!(outcomes.values(), [0, 1]);
    drop(run);
    waker().wake_by_ref();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_from_another_thread_is_lost() {
    for limit in [1, 31, 32, 33, 100] {
        let limit = NonZeroUsize::new(limit).unwrap();
        let run = Gather::new(limit).run(0..1_000_u32, async |n| {
            let (answer, answered) = tokio::sync::oneshot::channel();
            tokio::spawn(async move { answer.send(n) });
            answered.await
        });
        assert!(run.await.values().iter().copied().eq(0..1_000));
    }
}

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
