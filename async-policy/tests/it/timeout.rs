use std::future::{pending, ready};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_policy::{Failure, Guard, Policy, TimedOut, Timeout};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

type Never = Result<(), Failure<()>>;

#[tokio::test(start_paused = true)]
async fn it_fires_on_time_and_says_who_and_how_long() {
    let timeout = Timeout::from_millis(250).with_name("quotes");
    let started = Instant::now();
    let failure = timeout.call(pending::<Result<(), ()>>).await.unwrap_err();
    assert_eq!(failure, Failure::TimedOut(TimedOut::new(Duration::from_millis(250)).with_name("quotes")));
    // Sleeps round up to the timer's next millisecond.
    let took = started.elapsed();
    assert!((250..=251).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_time_goes_through() {
    let timeout = Timeout::from_millis(250);
    let slow = async || {
        sleep(Duration::from_millis(249)).await;
        Ok::<_, ()>(7)
    };
    assert_eq!(timeout.call(slow).await, Ok(7));
    assert_eq!(
        timeout.run(ready(Err::<(), _>(Failure::Operation("own")))).await,
        Err(Failure::Operation("own"))
    );
}

#[tokio::test(start_paused = true)]
async fn zero_means_ready_at_the_first_poll_or_not_at_all() {
    let timeout = Timeout::new(Duration::ZERO);
    assert_eq!(timeout.call(async || Ok::<_, ()>(7)).await, Ok(7));
    let started = Instant::now();
    assert!(matches!(timeout.run(pending::<Never>()).await, Err(Failure::TimedOut(_))));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_longest_limit_never_ends() {
    let timeout = Timeout::new(Duration::MAX);
    let inner = async {
        sleep(Duration::from_secs(86_400 * 365)).await;
        Ok::<_, Failure<()>>(7)
    };
    assert_eq!(timeout.run(inner).await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn the_tighter_of_two_fires() {
    let outer = Timeout::from_millis(100).with_name("outer");
    let inner = Timeout::from_millis(300).with_name("inner");
    let name = |failure: Failure<()>| match failure {
        Failure::TimedOut(timed_out) => timed_out.name().unwrap().to_owned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(name((&outer, &inner).call(pending::<Result<(), ()>>).await.unwrap_err()), "outer");
    assert_eq!(name((&inner, &outer).call(pending::<Result<(), ()>>).await.unwrap_err()), "outer");
}

#[tokio::test(start_paused = true)]
async fn it_fires_over_an_operation_that_always_uses_up_the_budget() {
    let greedy = async {
        loop {
            tokio::task::coop::consume_budget().await;
            // Virtual time stands still while nothing waits for it.
            tokio::time::advance(Duration::from_micros(10)).await;
        }
        #[allow(unreachable_code)]
        Never::Ok(())
    };
    assert!(matches!(Timeout::from_millis(5).run(greedy).await, Err(Failure::TimedOut(_))));
}

#[tokio::test(start_paused = true)]
async fn an_operation_is_started_in_the_first_poll_and_not_before() {
    let started = AtomicUsize::new(0);
    let timeout = Timeout::from_millis(5);
    let call = timeout.call(|| {
        started.fetch_add(1, Relaxed);
        ready(Ok::<_, ()>(()))
    });
    assert_eq!(started.load(Relaxed), 0);
    call.await.unwrap();
    assert_eq!(started.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_the_operation_is_dropped() {
    let semaphore = Semaphore::new(1);
    let timeout = Timeout::from_millis(50);
    let points = drop_at_every_await(
        || {
            timeout.run(async {
                let _permit = semaphore.acquire().await;
                tokio::task::yield_now().await;
                sleep(Duration::from_millis(10)).await;
                Never::Ok(())
            })
        },
        async |_| assert_eq!(semaphore.available_permits(), 1),
    )
    .await;
    assert_eq!(points, 2);
}

#[tokio::test(start_paused = true)]
async fn when_it_fires_the_operation_is_dropped_before_the_error_is_seen() {
    let semaphore = Semaphore::new(1);
    let timeout = Timeout::from_millis(50);
    let failure = timeout
        .call(async || {
            let _permit = semaphore.acquire().await;
            pending::<Result<(), ()>>().await
        })
        .await;
    assert!(failure.is_err());
    assert_eq!(semaphore.available_permits(), 1);
}
