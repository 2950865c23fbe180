use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_retry::{
    AttemptOutcome, Budget, Event, Failure, Hedge, HedgeLayer, Retry, RetryLayer, StopReason, Verdict,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::{attempts, time_passes};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

type Answer = Result<u32, Failure<&'static str>>;

/// Takes the n-th of these times, and then yields n.
fn slow(
    millis: &'static [u64],
) -> impl Service<(), Response = u32, Error = Failure<&'static str>, Future: Send> + Clone {
    let count = Arc::new(AtomicU32::new(0));
    service_fn(move |()| {
        let n = count.fetch_add(1, Relaxed);
        async move {
            sleep(ms(millis[n as usize])).await;
            Answer::Ok(n)
        }
    })
}

#[tokio::test(start_paused = true)]
async fn the_first_success_wins() {
    let service = HedgeLayer::new(Hedge::after(ms(50))).layer(slow(&[200, 30]));
    let started = Instant::now();
    assert_eq!(service.oneshot(()).await, Ok(1));
    assert_eq!(started.elapsed(), ms(80));
}

#[tokio::test(start_paused = true)]
async fn an_extra_attempt_waits_for_readiness_and_the_first_goes_on_meanwhile() {
    // One place: the extra attempt never gets it.
    let limited = ServiceBuilder::new()
        .layer(HedgeLayer::new(Hedge::after(ms(50))))
        .concurrency_limit(1)
        .service(slow(&[200, 30]));
    let started = Instant::now();
    assert_eq!(limited.clone().oneshot(()).await, Ok(0));
    assert_eq!(started.elapsed(), ms(200));
    let semaphore = Arc::new(Semaphore::new(1));
    let mut service = ServiceBuilder::new()
        .layer(HedgeLayer::new(Hedge::after(ms(50))))
        .layer(GlobalConcurrencyLimitLayer::with_semaphore(Arc::clone(&semaphore)))
        .service(slow(&[200, 30]));
    let mut call = Box::pin(service.ready().await.unwrap().call(()));
    assert_eq!(call.as_mut().await, Ok(0));
    // Though the future is kept, its place in the queue is not.
    assert_eq!(semaphore.available_permits(), 1);
    // A place that becomes free is taken.
    let semaphore = Arc::new(Semaphore::new(2));
    let held = Arc::clone(&semaphore).acquire_owned().await.unwrap();
    let service = ServiceBuilder::new()
        .layer(HedgeLayer::new(Hedge::after(ms(50))))
        .layer(GlobalConcurrencyLimitLayer::with_semaphore(semaphore))
        .service(slow(&[200, 30]));
    let started = Instant::now();
    let call = service.oneshot(());
    let (result, ()) = tokio::join!(call, async {
        sleep(ms(70)).await;
        drop(held);
    });
    assert_eq!((result, started.elapsed()), (Ok(1), ms(100)));
}

#[tokio::test(start_paused = true)]
async fn over_a_buffer_and_under_a_retry_with_one_budget() {
    let budget = Budget::token_bucket(10, attempts(5), attempts(10));
    let hedge = Hedge::after(ms(50)).with_budget(budget.clone());
    let retry = Retry::default().with_budget(budget.clone());
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(retry))
        .layer(HedgeLayer::new(hedge))
        .buffer(4)
        .concurrency_limit(4)
        .map_err(|failure| BoxError::from(format!("{failure:?}")))
        .service(slow(&[200, 200]));
    assert_eq!(service.oneshot(()).await.unwrap(), 0);
    assert_eq!(budget.available(), 6.0, "the loser is spent; the retry had a success at its first try");
}

#[tokio::test(start_paused = true)]
async fn a_classifier_says_what_a_failure_is_and_a_request_is_repeated_while_it_can_be() {
    // No `Clone`; its body can be taken once more.
    struct Request(u32);
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    let hedge = Hedge::after(ms(50))
        .with_max_extra(attempts(9))
        .with_listener(move |event| sink.lock().unwrap().push(*event));
    let layer = HedgeLayer::new(hedge)
        .with_classifier(|answer: Result<&u16, &Failure<()>>| match answer {
            Ok(status) if *status < 500 => Verdict::Success,
            _ => Verdict::Transient,
        })
        .with_try_clone(|request: &Request| Some(Request(request.0.checked_sub(1)?)));
    let service = layer.layer(service_fn(async |_: Request| Ok::<_, Failure<()>>(503)));
    assert_eq!(service.oneshot(Request(1)).await, Ok(503));
    let transient = |attempt| Event::Attempted { attempt, outcome: AttemptOutcome::Transient };
    let gave_up = Event::GaveUp { attempts: 2, reason: StopReason::NotRepeatable };
    assert_eq!(*events.lock().unwrap(), [transient(1), Event::Hedged { attempt: 2 }, transient(2), gave_up]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_asks_for_less_calls_off_the_attempt_that_waits_for_readiness() {
    // One place: the extra attempt gets it when the first has ended.
    let count = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&count);
    let budget = Budget::aws_standard();
    let layer = HedgeLayer::new(Hedge::after(ms(50)).with_budget(budget.clone()))
        .with_classifier(|_: Result<&(), &Failure<_>>| Verdict::Throttled { retry_after: None });
    let service = ServiceBuilder::new().layer(layer).concurrency_limit(1).service(service_fn(move |()| {
        seen.fetch_add(1, Relaxed);
        async {
            sleep(ms(100)).await;
            Err(Failure::Operation("busy"))
        }
    }));
    assert_eq!(service.oneshot(()).await, Err(Failure::Operation("busy")));
    assert_eq!((count.load(Relaxed), budget.available()), (1, 500.0));
}

#[tokio::test(start_paused = true)]
async fn a_request_is_not_repeated_for_nothing() {
    let asked = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&asked);
    let layer = HedgeLayer::new(Hedge::after(ms(50)).with_max_extra(attempts(2))).with_try_clone(
        move |request: &u32| {
            seen.fetch_add(1, Relaxed);
            Some(*request)
        },
    );
    let service = layer.layer(service_fn(async |n: u32| Err::<(), _>(Failure::Operation(n))));
    assert_eq!(service.oneshot(7).await, Err(Failure::Operation(7)));
    assert_eq!(asked.load(Relaxed), 2, "a clone for each extra attempt");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_gone_ends_the_hedging_and_not_the_call() {
    #[derive(Clone)]
    struct Once {
        polls: u32,
        answer: Answer,
    }
    impl Service<()> for Once {
        type Response = u32;
        type Error = Failure<&'static str>;
        type Future = std::pin::Pin<Box<dyn Future<Output = Answer> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            self.polls += 1;
            if self.polls > 1 { Err(Failure::Operation("gone")).into() } else { Ok(()).into() }
        }

        fn call(&mut self, (): ()) -> Self::Future {
            let answer = self.answer.clone();
            Box::pin(async move {
                sleep(ms(200)).await;
                answer
            })
        }
    }
    let down = AttemptOutcome::Transient;
    let gone = Event::GaveUp { attempts: 1, reason: StopReason::NotReady };
    for (answer, told) in [
        (Ok(7), vec![Event::Attempted { attempt: 1, outcome: AttemptOutcome::Success }]),
        (Err(Failure::Operation("down")), vec![Event::Attempted { attempt: 1, outcome: down }, gone]),
    ] {
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        let hedge = Hedge::after(ms(50))
            .with_max_extra(attempts(3))
            .with_listener(move |event| sink.lock().unwrap().push(*event));
        let service = HedgeLayer::new(hedge).layer(Once { polls: 0, answer: answer.clone() });
        assert_eq!(service.oneshot(()).await, answer);
        assert_eq!(*events.lock().unwrap(), told);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_permits_and_tokens_come_back() {
    for budget in [Budget::aws_standard(), Budget::in_flight(0.5, 3).unwrap()] {
        let full = budget.available();
        let semaphore = Arc::new(Semaphore::new(2));
        let points = drop_at_every_await(
            || {
                let hedge = Hedge::after(ms(10)).with_max_extra(attempts(2)).with_budget(budget.clone());
                ServiceBuilder::new()
                    .layer(HedgeLayer::new(hedge))
                    .layer(GlobalConcurrencyLimitLayer::with_semaphore(Arc::clone(&semaphore)))
                    .service(slow(&[35, 35, 35]))
                    .oneshot(())
            },
            async |point| {
                assert_eq!(semaphore.available_permits(), 2);
                if point.is_some() {
                    assert_eq!(budget.available(), full, "{point:?}");
                }
            },
        )
        .await;
        assert!(points >= 3, "{points}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outer_timeout_fires_over_attempts_that_fail_at_once() {
    let hedge = Hedge::after(ms(50)).with_max_extra(attempts(u32::MAX));
    let service = HedgeLayer::new(hedge).layer(service_fn(|()| {
        time_passes(Duration::from_micros(100));
        std::future::ready(Err::<(), Failure<()>>(Failure::Operation(())))
    }));
    assert!(tokio::time::timeout(ms(20), service.oneshot(())).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_over_is_no_longer_in_flight() {
    let budget = Budget::in_flight(1.0, 0).unwrap();
    let mut service = HedgeLayer::new(Hedge::after(ms(50)).with_budget(budget.clone())).layer(slow(&[10]));
    let mut call = Box::pin(service.ready().await.unwrap().call(()));
    assert_eq!(call.as_mut().await, Ok(0));
    assert_eq!(budget.available(), 0.0);
}
