use std::rc::Rc;
use std::time::Duration;

use async_policy::{Deadline, Timeout};
use async_retry::{Backoff, Failure, Operation, Retry, RetryExt, Verdict};
use tokio::time::{Instant, sleep};

use crate::{attempts, time_passes};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn every(millis: u64) -> Retry {
    Retry::new(Backoff::constant(ms(millis))).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_closure_may_have_state_of_its_own_and_lend_it() {
    let mut log = Vec::new();
    let started = Instant::now();
    let result = every(100)
        .call_lending(async || {
            log.push(started.elapsed().as_millis());
            sleep(ms(10)).await;
            if log.len() < 3 { Err("again") } else { Ok(log.len()) }
        })
        .await;
    assert_eq!(result, Ok(3));
    assert_eq!(log, [0, 110, 220]);
}

#[tokio::test(start_paused = true)]
async fn a_plain_fn_mut_inside_spawn() {
    let task = tokio::spawn(async {
        let mut left = 2;
        every(1)
            .call_mut(move || {
                left -= 1;
                std::future::ready(if left > 0 { Err(left) } else { Ok("done") })
            })
            .await
    });
    assert_eq!(task.await.unwrap(), Ok("done"));
}

#[tokio::test(start_paused = true)]
async fn its_futures_need_not_be_send() {
    let local = Rc::new(7);
    let result = every(1).call_mut(async || Ok::<_, ()>(*Rc::clone(&local))).await;
    assert_eq!(result, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn it_is_classified_and_timed_as_any_other() {
    let mut count = 0;
    let op = || {
        count += 1;
        std::future::ready(Err::<(), _>("no such thing"))
    };
    let result = every(1).call_mut_with(op, |_| Verdict::Permanent).await;
    assert_eq!(result, Err(Failure::Operation("no such thing")));
    assert_eq!(count, 1);

    let retry = every(100).with_attempt_timeout(ms(50)).with_name("quotes");
    let started = Instant::now();
    let failure = retry
        .call_mut(async || {
            assert_eq!(Deadline::current().unwrap().remaining(), ms(50));
            sleep(ms(70)).await;
            Ok::<_, ()>(())
        })
        .await
        .unwrap_err();
    let Failure::TimedOut(timed_out) = failure else { panic!("{failure:?}") };
    assert_eq!(timed_out.to_string(), "timeout `quotes` expired: no answer within 50ms");
    assert_eq!(started.elapsed(), ms(350));
}

#[tokio::test(start_paused = true)]
async fn a_method_on_closures_for_any_policy() {
    let url = String::from("http://quotes");
    let fetch = || async { Err::<(), _>(url.len()) };
    assert_eq!(fetch.retry(every(1)).await, Err(Failure::Operation(13)));
    let retry = every(1).with_max_attempts(attempts(9));
    let op = fetch.classify_with(|_| Verdict::Permanent);
    assert_eq!(op.retry((Timeout::from_millis(50), &retry)).await, Err(Failure::Operation(13)));
}

#[tokio::test(start_paused = true)]
async fn an_outer_timeout_fires_on_time_over_a_closure_that_never_yields() {
    let retry = Retry::new(Backoff::none()).unwrap().with_max_attempts(attempts(u32::MAX));
    let call = retry.call_mut(|| {
        time_passes(Duration::from_micros(1));
        std::future::ready(Err::<(), _>(()))
    });
    assert!(tokio::time::timeout(ms(20), call).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn every_shape_is_send_inside_spawn_with_borrowed_captures() {
    let task = tokio::spawn(async {
        let url = String::from("http://quotes");
        let fetch = || async {
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>(url.len())
        };
        let retry = every(1);
        let hedge = async_retry::Hedge::after(ms(50));
        let stack = (Timeout::from_millis(500), &retry, hedge.clone());
        let mut sum = async_retry::Policy::call(&stack, &fetch).await.unwrap();
        sum += (&fetch).retry(&retry).await.unwrap();
        sum += retry.call_with_report(&fetch).await.0.unwrap();
        sum += async_retry::Policy::call(&hedge, &fetch).await.unwrap();
        let mut calls = 0;
        let counted = retry.call_mut(|| {
            calls += 1;
            fetch()
        });
        sum += counted.await.unwrap();
        sum
    });
    assert_eq!(task.await.unwrap(), 65);
}
