use std::future::{pending, ready};
use std::num::NonZeroUsize;
use std::time::Duration;

use async_batch::{ItemError, Stopped, first_success, first_to_finish, quorum};
use async_policy::testing::drop_at_every_await;
use proptest::prelude::*;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::model::paused;

type Answer = Result<u64, &'static str>;

const fn k(k: usize) -> NonZeroUsize {
    NonZeroUsize::new(k).unwrap()
}

async fn after(millis: u64, answer: Answer) -> Answer {
    sleep(Duration::from_millis(millis)).await;
    answer
}

#[tokio::test(start_paused = true)]
async fn the_first_success_wins_and_an_error_does_not() {
    let started = Instant::now();
    let futures = [after(10, Err("early")), after(30, Ok(30)), after(50, Ok(50))];
    assert_eq!(first_success(futures).await.unwrap(), (1, 30));
    assert!(started.elapsed() < Duration::from_millis(35));
    let futures = [after(20, Err("late")), after(10, Err("early"))];
    let failed = first_success(futures).await.unwrap_err();
    assert_eq!(failed.to_string(), "2 of 2 items failed: #0: late; #1: early");
    let none = first_success(std::iter::empty::<std::future::Ready<Answer>>()).await.unwrap_err();
    assert!(none.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_first_to_finish_wins_well_or_not() {
    let futures = [after(30, Ok(30)), after(10, Err("early"))];
    assert_eq!(first_to_finish(futures).await, Some((1, Err(ItemError::Operation("early")))));
    assert_eq!(first_to_finish(std::iter::empty::<std::future::Ready<Answer>>()).await, None);
    let futures = [ready(Ok::<_, ()>(1)), ready(Ok(2))];
    assert_eq!(first_to_finish(futures).await, Some((0, Ok(1))));
}

#[tokio::test(start_paused = true)]
async fn a_quorum_is_reached_or_given_up_at_once() {
    let reached =
        quorum(k(2), [after(30, Ok(0)), after(10, Ok(1)), after(20, Err("no")), after(99, Ok(3))]).await;
    assert_eq!(reached.unwrap(), [(1, 1), (0, 0)]);

    let started = Instant::now();
    let lost = [after(10, Ok(0)), after(20, Err("x")), after(30, Err("y")), after(9999, Ok(3))];
    let lost = quorum(k(3), lost).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(35));
    assert_eq!(lost.values(), [0]);
    let errors = [(1, ItemError::Operation("x")), (2, ItemError::Operation("y")), (3, ItemError::Cancelled)];
    assert_eq!(lost.failures(), errors);

    let too_few = quorum(k(3), [after(10, Ok(0)), after(10, Ok(0))]).await.unwrap_err();
    assert!(too_few.is_empty());
    assert_eq!(quorum(k(2), [after(1, Ok(0)), after(2, Ok(1))]).await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_among_the_others() {
    let racers = (0..3).map(|n| async move {
        sleep(Duration::from_millis(n)).await;
        assert!(n != 0, "boom");
        Ok::<_, ()>(n)
    });
    assert_eq!(first_success(racers).await.ok(), Some((1, 1)));
}

#[tokio::test(start_paused = true)]
async fn the_losers_are_dropped_and_so_are_all_with_the_call() {
    let under_way = Semaphore::new(3);
    let racer = async |n: u64| {
        let _permit = under_way.acquire().await;
        if n == 2 {
            pending::<()>().await;
        }
        after(n, if n == 0 { Err("zero") } else { Ok(n) }).await
    };
    assert_eq!(first_success((0..3).map(racer)).await.ok(), Some((1, 1)));
    assert_eq!(under_way.available_permits(), 3);
    let points = drop_at_every_await(
        || quorum(k(2), [0, 1, 3].map(racer)),
        async |_| assert_eq!(under_way.available_permits(), 3),
    )
    .await;
    assert!(points > 1, "{points}");
}

proptest! {
    #[test]
    fn races_are_decided_as_on_paper(ends in prop::collection::vec(prop::bool::weighted(0.6), 0..8), seed in any::<u64>(), k in 1..5_usize) {
        paused(async {
            // Distinct times, in an order of their own.
            let mut order: Vec<usize> = (0..ends.len()).collect();
            order.sort_by_key(|index| (seed.rotate_left(*index as u32 * 7) ^ *index as u64).wrapping_mul(0x9E37_79B9));
            let racers = || {
                (0..ends.len()).map(|index| {
                    let at = order.iter().position(|other| *other == index).unwrap() as u64;
                    let ok = ends[index];
                    async move {
                        sleep(Duration::from_millis(2 + at * 3)).await;
                        if ok { Ok(index) } else { Err(index) }
                    }
                })
            };
            let successes: Vec<_> = order.iter().copied().filter(|index| ends[*index]).collect();
            match first_success(racers()).await {
                Ok((index, value)) => assert_eq!((Some(&index), index), (successes.first(), value)),
                Err(outcomes) => {
                    assert!(successes.is_empty());
                    let stopped = ends.is_empty().then_some(Stopped::TooFew { asked: 1, futures: 0 });
                    assert_eq!((outcomes.len(), outcomes.stopped()), (ends.len(), stopped));
                }
            }
            let first = first_to_finish(racers()).await.map(|(index, _)| index);
            assert_eq!(first, order.first().copied());
            match quorum(NonZeroUsize::new(k).unwrap(), racers()).await {
                Ok(reached) => {
                    let reached: Vec<_> = reached.into_iter().map(|(index, _)| index).collect();
                    assert_eq!(reached, successes[..k]);
                }
                Err(outcomes) => {
                    assert!(successes.len() < k);
                    let lost = outcomes.failures().iter().filter(|(_, error)| !error.is_cancelled()).count();
                    assert_eq!(lost, if ends.len() < k { 0 } else { ends.len() - k + 1 });
                }
            }
        });
    }
}
