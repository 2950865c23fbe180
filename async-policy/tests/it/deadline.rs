use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use async_policy::{Deadline, Failure, Guard, Policy, Timeout};
use tokio::time::{Instant, sleep};

fn left() -> Option<u128> {
    Deadline::current().map(|deadline| deadline.remaining().as_millis())
}

#[tokio::test(start_paused = true)]
async fn without_a_timeout_there_is_none_and_everything_fits() {
    assert_eq!(Deadline::current(), None);
    assert!(Deadline::fits(Duration::MAX));
}

#[tokio::test(start_paused = true)]
async fn it_is_the_tightest_of_those_outside_before_and_after_the_first_pending() {
    let stack = (Timeout::from_millis(500), Timeout::from_millis(300), Timeout::from_millis(900));
    stack
        .call(async || {
            assert_eq!(left(), Some(300));
            sleep(Duration::from_millis(100)).await;
            assert_eq!(left(), Some(200));
            // One that begins later is tighter only if it ends earlier.
            let later = Timeout::from_millis(250).call(async || Ok::<_, ()>(left())).await;
            assert_eq!(later, Ok(Some(200)));
            let sooner = Timeout::from_millis(50).call(async || Ok::<_, ()>(left())).await;
            assert_eq!(sooner, Ok(Some(50)));
            assert_eq!(left(), Some(200));
            Ok::<_, ()>(())
        })
        .await
        .unwrap();
    assert_eq!(left(), None);
}

#[tokio::test(start_paused = true)]
async fn fits_is_strict_because_an_answer_at_the_deadline_is_too_late() {
    Timeout::from_millis(300)
        .call(async || {
            for _ in 0..2 {
                assert!(Deadline::fits(Duration::from_millis(199)));
                assert!(!Deadline::fits(Duration::from_millis(300)));
                assert!(!Deadline::fits(Duration::MAX));
                sleep(Duration::from_millis(100)).await;
            }
            Ok::<_, ()>(())
        })
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_does_not_leak_to_siblings_or_past_the_poll() {
    let timeout = Timeout::from_millis(300);
    let timed = timeout.call(async || {
        sleep(Duration::from_millis(10)).await;
        Ok::<_, ()>(left())
    });
    let free = async {
        sleep(Duration::from_millis(5)).await;
        let first = left();
        sleep(Duration::from_millis(50)).await;
        (first, left())
    };
    let (timed, free) = tokio::join!(timed, free);
    assert!(timed.unwrap().is_some());
    assert_eq!(free, (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_panic_inside_puts_the_outer_one_back() {
    let guard = Timeout::from_millis(300);
    guard
        .run(async {
            let inner = Timeout::from_millis(10);
            let boom = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let call = inner.call(|| async { if true { panic!("boom") } else { Ok::<(), ()>(()) } });
                let mut call = Box::pin(call);
                let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                let _ = call.as_mut().poll(&mut cx);
            }));
            assert!(boom.is_err());
            assert_eq!(left(), Some(300));
            Ok::<_, Failure<()>>(())
        })
        .await
        .unwrap();
    assert_eq!(left(), None);
}

#[tokio::test(start_paused = true)]
async fn it_stops_at_a_spawn_and_scope_carries_it_across() {
    Timeout::from_millis(300)
        .call(async || {
            assert_eq!(tokio::spawn(async { left() }).await.unwrap(), None);
            let deadline = Deadline::current().unwrap();
            sleep(Duration::from_millis(100)).await;
            let carried = tokio::spawn(deadline.scope(async {
                sleep(Duration::from_millis(50)).await;
                left()
            }));
            assert_eq!(carried.await.unwrap(), Some(150));
            Ok::<_, ()>(())
        })
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn scope_sets_it_but_does_not_end_the_future() {
    let deadline = Deadline::after(Duration::from_millis(10)).unwrap();
    let after = deadline
        .scope(async {
            sleep(Duration::from_millis(30)).await;
            left()
        })
        .await;
    assert_eq!(after, Some(0));
    assert!(!Deadline::at(Instant::now()).scope(async { Deadline::fits(Duration::ZERO) }).await);
    assert_eq!(Deadline::after(Duration::MAX), None);
}

#[tokio::test(start_paused = true)]
async fn an_outer_one_ends_an_inner_wait_at_once() {
    // How a policy of the family waits: it asks first.
    async fn polite_wait(wait: Duration) -> Result<(), Failure<()>> {
        if !Deadline::fits(wait) {
            return Err(Failure::Operation(()));
        }
        sleep(wait).await;
        pending().await
    }
    let started = Instant::now();
    let ended = Timeout::from_millis(300).run(polite_wait(Duration::from_secs(5))).await;
    assert_eq!(ended, Err(Failure::Operation(())));
    assert_eq!(started.elapsed(), Duration::ZERO);
}
