//! Policies, chunks, budgets, limits that change, details.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, pending};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_batch::{Gather, ItemError, Limit, Stop, Stopped};
use async_policy::{
    Failure, Guard, Operation, Policy, PolicyError, PolicyKind, Reason, Rejection, Timeout, Verdict,
};
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn n(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

/// Starts an operation up to three times, as long as its verdict is transient.
#[derive(Debug)]
pub(crate) struct Thrice;

impl Policy for Thrice {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        let mut runs = 1;
        loop {
            let result = op.start().await;
            if runs == 3 || !op.outcome(&result).verdict().is_retryable() {
                return result;
            }
            runs += 1;
        }
    }
}

/// Refuses everything.
#[derive(Debug)]
pub(crate) struct Closed;

impl Policy for Closed {
    async fn execute<Op>(&self, _: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        Err(Op::Error::from_rejection(Rejection::new(PolicyKind::CircuitBreaker, Reason::CircuitOpen)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_runs_each_item_and_the_details_tell_how_often() {
    let tries = Arc::new(Mutex::new(HashMap::new()));
    let shared = Arc::clone(&tries);
    let item = move |id: u32| {
        let tries = Arc::clone(&shared);
        async move {
            sleep(ms(10)).await;
            let mut tries = tries.lock().unwrap();
            let tries = tries.entry(id).or_insert(0);
            *tries += 1;
            if *tries > id { Ok(id) } else { Err("again") }
        }
    };
    let gather = Gather::up_to::<2>().with_policy((Timeout::from_millis(1000), Thrice));
    let outcomes = gather.run(0..4, item.clone()).detailed().await;
    assert_eq!(outcomes.values(), [0, 1, 2]);
    assert_eq!(outcomes.failures(), [(3, ItemError::Operation("again"))]);
    let details: Vec<_> = outcomes.iter().map(|(_, _, detail)| (detail.input, detail.attempts)).collect();
    assert_eq!(details, [(0, 1), (1, 2), (2, 3), (3, 3)]);
    let last = outcomes.iter().last().unwrap().2.elapsed;
    assert!((30..=33).contains(&last.as_millis()), "{last:?}");

    tries.lock().unwrap().clear();
    let spawned = gather.spawn(0..4, item).detailed().await;
    let details: Vec<_> = spawned.iter().map(|(_, _, detail)| (detail.input, detail.attempts)).collect();
    assert_eq!(details, [(0, 1), (1, 2), (2, 3), (3, 3)]);
}

#[tokio::test(start_paused = true)]
async fn what_an_answer_means_can_be_said() {
    let runs = Mutex::new(0);
    let gather =
        Gather::up_to::<1>().with_policy(Thrice).classify_with(|answer: Result<&u16, &&str>| match answer {
            Ok(503) => Verdict::Transient,
            Err(&"gone") => Verdict::Permanent,
            _ => Verdict::Success,
        });
    let count = |answer: Result<u16, &'static str>| {
        *runs.lock().unwrap() += 1;
        async move { answer }
    };
    let outcomes = gather.run([Ok(503), Err("gone"), Ok(200)], count).await;
    assert_eq!(outcomes.values(), [503, 200]);
    assert_eq!(*runs.lock().unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn refusals_and_time_outs_stay_flat() {
    let outcomes =
        Gather::up_to::<1>().with_policy(Closed).run(0..1, async |n| Ok::<_, ()>(n)).detailed().await;
    assert_eq!(outcomes.failures()[0].1.rejection().unwrap().policy(), PolicyKind::CircuitBreaker);
    assert_eq!(outcomes.iter().next().unwrap().2.attempts, 0);
    let slow = Gather::up_to::<1>().with_policy(Timeout::from_millis(5));
    let outcomes = slow
        .run([10, 1], async |n| {
            sleep(ms(n)).await;
            Ok::<_, ()>(n)
        })
        .await;
    assert!(outcomes.failures()[0].1.timed_out().is_some());
    assert_eq!(outcomes.values().len(), 1);
}

#[tokio::test]
async fn under_a_policy_it_goes_into_a_spawned_task() {
    let task = tokio::spawn(async {
        let base = String::from("http://quotes/");
        let base = &base;
        let gather = Gather::up_to::<3>().with_policy((Timeout::from_millis(1000), Thrice));
        let fetch = |id: u32| async move { Ok::<_, std::io::Error>(format!("{base}{id}")) };
        let mut stream = gather.run(0..3, fetch).ordered(3);
        let mut pages = Vec::new();
        while let Some(settled) = stream.next().await {
            pages.push(settled.result.unwrap());
        }
        pages
    });
    assert_eq!(task.await.unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn details_of_plain_items() {
    let outcomes = Gather::up_to::<2>()
        .run([30_u64, 20], |millis| {
            assert!(millis != 20, "not this one");
            async move {
                sleep(ms(millis)).await;
                Err::<(), _>("down")
            }
        })
        .detailed()
        .await;
    let seen: Vec<_> = outcomes.iter().map(|(_, r, d)| (r.is_ok(), d.input, d.attempts)).collect();
    assert_eq!(seen, [(false, 30, 1), (false, 20, 1)]);
    assert!(matches!(outcomes.failures()[1].1, ItemError::Panicked(_)));
    assert!((30..32).contains(&outcomes.iter().next().unwrap().2.elapsed.as_millis()));
}

#[tokio::test(start_paused = true)]
async fn chunks_wait_for_the_last_of_them_and_pause_between() {
    let epoch = Instant::now();
    let starts = RefCell::new(Vec::new());
    let gather = Gather::up_to::<2>().in_chunks(n(3), ms(100));
    let item = async |id: u64| {
        starts.borrow_mut().push((id, epoch.elapsed().as_millis()));
        sleep(ms(10)).await;
        Ok::<_, ()>(id)
    };
    let outcomes = gather.run(0..7, item).await;
    assert_eq!(outcomes.into_values(), Vec::from_iter(0..7));
    let starts = starts.into_inner();
    // Each sleep rounds up by at most one millisecond.
    let expected = [0, 0, 10, 120, 120, 130, 240];
    for ((id, at), expected) in starts.iter().zip(expected) {
        assert!((expected..=expected + 6).contains(at), "{id}: {at} {expected}");
    }
    assert!(epoch.elapsed() < ms(260), "no pause after the last one");
}

#[tokio::test(start_paused = true)]
async fn a_full_last_chunk_is_followed_by_no_pause_and_a_pause_of_zero_is_none() {
    let epoch = Instant::now();
    let long = Duration::from_secs(60);
    assert!(Gather::up_to::<2>().in_chunks(n(3), long).run(0..3, async |n| Ok::<_, ()>(n)).await.is_ok());
    let gather = Gather::up_to::<8>().in_chunks(n(2), Duration::ZERO);
    let most = Cell::new(0);
    let now = Cell::new(0);
    let outcomes = gather
        .run(0..9, async |n| {
            now.set(now.get() + 1);
            most.set(most.get().max(now.get()));
            tokio::task::yield_now().await;
            now.set(now.get() - 1);
            Ok::<_, ()>(n)
        })
        .await;
    assert_eq!((outcomes.len(), most.get(), epoch.elapsed()), (9, 2, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_cannot_end_in_time_is_not_begun() {
    let epoch = Instant::now();
    let gather = Gather::up_to::<2>().in_chunks(n(3), ms(100));
    let inner = async {
        let outcomes = gather.run(0..7, async |n| Ok::<_, ()>(n)).await;
        Ok::<_, Failure<()>>((outcomes.len(), outcomes.stopped()))
    };
    // One outside, and one of its own.
    assert_eq!(Timeout::from_millis(50).run(inner).await, Ok((3, Some(Stopped::Deadline))));
    let own = gather.clone().with_deadline(ms(50)).run(0..7, async |n| Ok::<_, ()>(n)).await;
    assert_eq!((own.len(), own.stopped()), (3, Some(Stopped::Deadline)));
    assert_eq!(epoch.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_ratio_bears_a_share_of_failures_once_there_are_enough() {
    let gather = Gather::up_to::<1>().stop_above(0.5, n(4)).unwrap();
    let run = async |answers: &[bool]| {
        let outcomes =
            gather.run(answers.iter().copied(), async |ok| if ok { Ok(()) } else { Err(()) }).await;
        (outcomes.len(), outcomes.stopped().is_some())
    };
    let (t, f) = (true, false);
    assert_eq!(run(&[f, f, f, t, t, t]).await, (4, true));
    assert_eq!(run(&[f, f, t, t, t, f, f, f, f]).await, (7, true));
    assert_eq!(run(&[f, t, f, t, f, t]).await, (5, true));
    assert_eq!(run(&[t, f, t, f, t, f]).await, (6, false));
    for (ratio, text) in [(-0.1, "-0.1"), (1.0, "1"), (1.5, "1.5"), (f64::NAN, "NaN")] {
        let error = Gather::up_to::<1>().stop_above(ratio, n(1)).unwrap_err();
        assert_eq!((error.field(), error.value()), ("gather.stop_above.ratio", text));
    }
}

#[tokio::test(start_paused = true)]
async fn the_limit_can_change_while_it_runs() {
    let limit = Limit::new(n(1));
    let epoch = Instant::now();
    let starts = RefCell::new(Vec::new());
    let gather = Gather::new(n(1)).with_limit(&limit);
    let run = gather.run(0..9, async |_| {
        starts.borrow_mut().push(epoch.elapsed().as_millis());
        sleep(ms(100)).await;
        Ok::<_, ()>(())
    });
    let change = async {
        sleep(ms(150)).await;
        // One is under way: three more start at once.
        limit.set(n(4));
        sleep(ms(60)).await;
        limit.set(n(2));
    };
    let (outcomes, ()) = tokio::join!(run, change);
    assert!(outcomes.is_ok());
    // At 250 three end and one stays, at 300 that one ends.
    let expected = [0, 100, 150, 150, 150, 200, 250, 300, 350];
    let starts = starts.into_inner();
    assert_eq!(starts.len(), 9);
    for (at, expected) in starts.iter().zip(expected) {
        assert!((expected..=expected + 5).contains(at), "{starts:?}");
    }
    assert_eq!(limit.get(), n(2));
}

#[tokio::test(start_paused = true)]
async fn an_item_that_was_woken_may_raise_the_limit_or_request_the_stop_and_wait_for_it() {
    let (limit, stop, second) = (Limit::new(n(1)), Stop::new(), Semaphore::new(0));
    let began = Instant::now();
    let run = Gather::new(n(1)).with_limit(&limit).with_stop(&stop).run(0..2, async |item| {
        if item == 1 {
            second.add_permits(1);
            return Ok(());
        }
        yield_now().await;
        limit.set(n(2));
        let _ = second.acquire().await;
        yield_now().await;
        stop.request();
        pending::<Result<(), ()>>().await
    });
    let outcomes = timeout(ms(100), run).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "no time-out has to wake it");
    assert_eq!(outcomes.failures(), [(0, ItemError::Cancelled)]);
    assert_eq!(outcomes.stopped(), Some(Stopped::Requested));
}

#[tokio::test(start_paused = true)]
async fn a_limit_lowered_by_a_ready_item_holds_for_the_next_one() {
    let limit = Limit::new(n(2));
    let starts = RefCell::new(Vec::new());
    let epoch = Instant::now();
    let run = Gather::new(n(1)).with_limit(&limit).run(0..4, async |item| {
        starts.borrow_mut().push((item, epoch.elapsed().as_millis() / 50));
        match item {
            0 => sleep(ms(100)).await,
            1 => limit.set(n(1)),
            _ => {}
        }
        Ok::<_, ()>(())
    });
    assert!(run.await.is_ok());
    assert_eq!(starts.into_inner(), [(0, 0), (1, 0), (2, 2), (3, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_given_back_by_a_panic_a_time_out_and_a_stop() {
    /// A bulkhead.
    struct Permits(Semaphore);
    impl Policy for Permits {
        async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
        where
            Op: Operation,
            Op::Error: PolicyError,
        {
            let _permit = self.0.acquire().await;
            op.start().await
        }
    }
    impl Guard for Permits {
        async fn run<T, E>(&self, operation: impl Future<Output = Result<T, E>> + Send) -> Result<T, E>
        where
            T: Send,
            E: PolicyError,
        {
            let _permit = self.0.acquire().await;
            operation.await
        }
    }
    let permits = Permits(Semaphore::new(2));
    let gather = Gather::up_to::<4>().with_item_timeout(ms(50)).stop_after(n(3)).with_policy(&permits);
    let outcomes = gather
        .run(0..10, async |id| match id {
            0 => panic!("boom"),
            1 => {
                sleep(ms(1000)).await;
                Ok(())
            }
            _ => Err("no"),
        })
        .await;
    assert!(outcomes.stopped().is_some());
    assert_eq!(permits.0.available_permits(), 2);
}

#[tokio::test(start_paused = true)]
async fn under_a_policy_dropped_at_every_await_everything_is_given_back() {
    let permits = Semaphore::new(5);
    let gather = Gather::up_to::<3>()
        .in_chunks(n(4), ms(5))
        .with_item_timeout(ms(50))
        .with_deadline(ms(500))
        .with_policy((Timeout::from_millis(20), Thrice));
    let points = async_policy::testing::drop_at_every_await(
        || {
            let permits = &permits;
            let item = move |id: u64| async move {
                let _permit = permits.acquire().await;
                tokio::task::yield_now().await;
                sleep(ms(id % 3)).await;
                if id.is_multiple_of(4) { Err("again") } else { Ok(id) }
            };
            gather.run(0..10, item).detailed()
        },
        async |_| assert_eq!(permits.available_permits(), 5),
    )
    .await;
    assert!(points > 10, "{points}");
}
