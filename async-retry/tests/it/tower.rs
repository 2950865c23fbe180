use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_policy::testing::drop_at_every_await;
use async_policy::{PolicyKind, Reason};
use async_retry::{Backoff, Event, Failure, Rejection, Retry, RetryLayer, StopReason, Verdict};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::{attempts, time_passes};

fn retry() -> Retry {
    Retry::new(Backoff::constant(Duration::from_millis(100))).unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_attempt_waits_for_readiness_over_a_limit_and_a_buffer() {
    let count = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&count);
    let flaky = service_fn(move |request: u32| {
        let n = seen.fetch_add(1, Relaxed);
        async move {
            tokio::task::yield_now().await;
            if n % 3 < 2 { Err(BoxError::from("down")) } else { Ok(request) }
        }
    });
    let limited =
        ServiceBuilder::new().layer(RetryLayer::new(retry())).concurrency_limit(1).service(flaky.clone());
    let buffered =
        ServiceBuilder::new().layer(RetryLayer::new(retry())).buffer(1).concurrency_limit(1).service(flaky);
    for request in 0..3 {
        assert_eq!(limited.clone().oneshot(request).await.unwrap(), request);
        assert_eq!(buffered.clone().oneshot(request).await.unwrap(), request);
    }
    assert_eq!(count.load(Relaxed), 18);
}

#[tokio::test(start_paused = true)]
async fn a_classifier_reads_the_response() {
    let count = AtomicU32::new(0);
    let layer = RetryLayer::new(retry()).with_classifier(|answer: Result<&u32, &Failure<()>>| match answer {
        Ok(status) if *status >= 500 => Verdict::Transient,
        _ => Verdict::Success,
    });
    let mut service = layer.layer_fn(|_: ()| {
        let n = count.fetch_add(1, Relaxed);
        async move { Ok::<_, Failure<()>>(if n == 0 { 503 } else { 200 }) }
    });
    assert_eq!(service.ready().await.unwrap().call(()).await, Ok(200));
}

trait LayerFn<C> {
    fn layer_fn<F>(&self, f: F) -> async_retry::RetryService<tower::util::ServiceFn<F>, C>;
}

impl<C: Clone> LayerFn<C> for RetryLayer<C> {
    fn layer_fn<F>(&self, f: F) -> async_retry::RetryService<tower::util::ServiceFn<F>, C> {
        self.layer(service_fn(f))
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_the_inner_permits_come_back() {
    let semaphore = Arc::new(tokio::sync::Semaphore::new(1));
    let held = Arc::clone(&semaphore);
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(retry().with_max_attempts(attempts(2))))
        .layer(tower::limit::GlobalConcurrencyLimitLayer::with_semaphore(held))
        .service(service_fn(async |()| {
            tokio::task::yield_now().await;
            Err::<(), Failure<()>>(Failure::Operation(()))
        }));
    let points = drop_at_every_await(
        || service.clone().oneshot(()),
        async |_| assert_eq!(semaphore.available_permits(), 1),
    )
    .await;
    assert_eq!(points, 3);
    let points = drop_at_every_await(
        || async { service.clone().ready().await.unwrap().call_with_report(()).await },
        async |_| assert_eq!(semaphore.available_permits(), 1),
    )
    .await;
    assert_eq!(points, 3);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_clone_is_repeated_while_it_can_be() {
    // The body can be taken twice.
    struct Request(u32);
    let seen = AtomicU32::new(0);
    let reasons = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&reasons);
    let retry = retry().with_max_attempts(attempts(9)).with_listener(move |event| {
        if let async_retry::Event::GaveUp { reason, .. } = event {
            sink.lock().unwrap().push(*reason);
        }
    });
    let layer =
        RetryLayer::new(retry).with_try_clone(|request: &Request| Some(Request(request.0.checked_sub(1)?)));
    let service = layer.layer(service_fn(|_: Request| {
        let n = seen.fetch_add(1, Relaxed);
        async move { Err::<(), _>(Failure::Operation(n)) }
    }));
    assert_eq!(service.oneshot(Request(2)).await, Err(Failure::Operation(2)));
    assert_eq!(*reasons.lock().unwrap(), [StopReason::NotRepeatable]);
}

#[tokio::test(start_paused = true)]
async fn each_attempt_has_its_time_out_and_the_deadline_reaches_the_service() {
    let retry = retry().with_attempt_timeout(Duration::from_millis(50)).with_name("quotes");
    let service = ServiceBuilder::new().layer(RetryLayer::new(retry)).service(service_fn(async |()| {
        let deadline = async_policy::Deadline::current().unwrap();
        assert_eq!(deadline.remaining(), Duration::from_millis(50));
        std::future::pending::<Result<(), Failure<()>>>().await
    }));
    let started = tokio::time::Instant::now();
    let Err(Failure::TimedOut(timed_out)) = service.oneshot(()).await else { panic!("it timed out") };
    assert_eq!((timed_out.name(), started.elapsed().as_millis()), (Some("quotes"), 350));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_readiness_ends_the_call_and_a_refusal_stands_behind_the_last_answer() {
    #[derive(Clone)]
    struct Broken(Failure<&'static str>, u32);
    impl Service<()> for Broken {
        type Response = ();
        type Error = Failure<&'static str>;
        type Future = std::future::Ready<Result<(), Self::Error>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
            self.1 += 1;
            if self.1 > 1 { Err(self.0.clone()).into() } else { Ok(()).into() }
        }

        fn call(&mut self, (): ()) -> Self::Future {
            std::future::ready(Err(Failure::Operation("down")))
        }
    }
    let gone = Failure::Operation("gone");
    let closed = Failure::Rejected(Rejection::new(PolicyKind::RateLimit, Reason::ShutDown));
    let told = Arc::new(AtomicU32::new(0));
    let sink = Arc::clone(&told);
    let layer = RetryLayer::new(retry().with_listener(move |event| {
        let gone = Event::GaveUp { attempts: 1, reason: StopReason::NotReady };
        sink.fetch_add(u32::from(*event == gone), Relaxed);
    }));
    for (error, ends_with) in [(gone.clone(), gone), (closed, Failure::Operation("down"))] {
        let broken = || layer.layer(Broken(error.clone(), 0));
        assert_eq!(broken().oneshot(()).await, Err(ends_with.clone()));
        let (result, report) = broken().ready().await.unwrap().call_with_report(()).await;
        assert_eq!(result, Err(ends_with));
        assert_eq!((report.attempts().len(), report.stopped()), (1, Some(StopReason::NotReady)));
    }
    assert_eq!(told.load(Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_not_repeated_for_nothing() {
    for max in 1..4 {
        let asked = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&asked);
        let layer =
            RetryLayer::new(retry().with_max_attempts(attempts(max))).with_try_clone(move |request: &u32| {
                seen.fetch_add(1, Relaxed);
                Some(*request)
            });
        let service = layer.layer(service_fn(async |n: u32| Err::<(), _>(Failure::Operation(n))));
        assert_eq!(service.oneshot(7).await, Err(Failure::Operation(7)));
        assert_eq!(asked.load(Relaxed), max - 1, "a clone for each further attempt");
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_given_back_wherever_it_is_dropped() {
    let budget = async_retry::Budget::in_flight(0.2, 1).unwrap();
    let service = ServiceBuilder::new().layer(RetryLayer::new(retry().with_budget(budget.clone()))).service(
        service_fn(async |()| {
            tokio::task::yield_now().await;
            Err::<(), Failure<()>>(Failure::Operation(()))
        }),
    );
    drop_at_every_await(|| service.clone().oneshot(()), async |_| assert_eq!(budget.available(), 1.0)).await;
}

#[tokio::test(start_paused = true)]
async fn an_outer_timeout_fires_on_time_over_a_retry_that_never_yields() {
    let retry = Retry::new(Backoff::none()).unwrap().with_max_attempts(attempts(u32::MAX));
    let service = ServiceBuilder::new().layer(RetryLayer::new(retry)).service(service_fn(|()| {
        // Each attempt takes virtual time without being pending.
        time_passes(Duration::from_micros(1));
        std::future::ready(Err::<(), Failure<()>>(Failure::Operation(())))
    }));
    // One that sets no deadline the retry could ask.
    assert!(tokio::time::timeout(Duration::from_millis(20), service.oneshot(())).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_finished_call_is_no_longer_in_flight() {
    let budget = async_retry::Budget::in_flight(1.0, 0).unwrap();
    let mut service = ServiceBuilder::new()
        .layer(RetryLayer::new(retry().with_budget(budget.clone())))
        .service(service_fn(async |()| Ok::<_, Failure<()>>(())));
    let mut call = Box::pin(service.ready().await.unwrap().call(()));
    call.as_mut().await.unwrap();
    assert_eq!(budget.available(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_report_has_every_attempt_of_a_request() {
    let count = AtomicU32::new(0);
    let inner = service_fn(|()| {
        let n = count.fetch_add(1, Relaxed);
        async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if n < 2 { Err(Failure::Operation(n)) } else { Ok(n) }
        }
    });
    let mut service = RetryLayer::new(retry()).layer(inner);
    let (result, report) = service.ready().await.unwrap().call_with_report(()).await;
    assert_eq!((result, report.stopped()), (Ok(2), None));
    let seen: Vec<_> = report
        .attempts()
        .iter()
        .map(|a| (a.started().as_millis(), a.took().as_millis(), a.result().cloned()))
        .collect();
    let failed = |n| Some(Err(Failure::Operation(n)));
    assert_eq!(seen, [(0, 10, failed(0)), (110, 10, failed(1)), (220, 10, None)]);
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_panics_is_spent() {
    let budget = async_retry::Budget::aws_standard();
    let count = AtomicU32::new(0);
    let service = ServiceBuilder::new().layer(RetryLayer::new(retry().with_budget(budget.clone()))).service(
        service_fn(|()| {
            assert!(count.fetch_add(1, Relaxed) < 1, "the second attempt panics");
            std::future::ready(Err::<(), Failure<()>>(Failure::Operation(())))
        }),
    );
    assert!(crate::caught(service.oneshot(())).await.is_err());
    assert_eq!(budget.available(), 495.0);
}

#[tokio::test(start_paused = true)]
async fn without_a_delay_the_answer_worth_most_is_kept_too_and_the_limits_hold() {
    let count = AtomicU32::new(0);
    let retry = Retry::new(Backoff::none()).unwrap().with_max_attempts(attempts(40));
    let service = |refused: u32| {
        let count = &count;
        let inner = service_fn(move |()| {
            let n = count.fetch_add(1, Relaxed) + 1;
            let refusal = Rejection::new(PolicyKind::RateLimit, Reason::ShutDown);
            std::future::ready(Err::<(), _>(if n == refused {
                refusal.into()
            } else {
                Failure::Operation(n)
            }))
        });
        RetryLayer::new(retry.clone()).layer(inner)
    };
    assert_eq!(service(0).oneshot(()).await, Err(Failure::Operation(40)));
    assert_eq!(count.swap(0, Relaxed), 40);
    for max in 1..20 {
        let few = RetryLayer::new(retry.clone().with_max_attempts(attempts(max)));
        let fails = service_fn(|()| {
            std::future::ready(Err::<(), _>(Failure::Operation(count.fetch_add(1, Relaxed))))
        });
        assert_eq!(few.layer(fails).oneshot(()).await, Err(Failure::Operation(max - 1)));
        assert_eq!(count.swap(0, Relaxed), max);
    }
    assert_eq!(service(5).oneshot(()).await, Err(Failure::Operation(4)));
    assert_eq!(count.swap(0, Relaxed), 5);
    assert_eq!(service(25).oneshot(()).await, Err(Failure::Operation(24)));
}
