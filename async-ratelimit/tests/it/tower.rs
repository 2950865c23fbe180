use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::task::Poll;

use async_policy::testing::drop_at_every_await;
use async_policy::{Failure, PolicyError, Timeout, TimeoutLayer};
use async_ratelimit::{ConcurrencyLimit, ConcurrencyLimitLayer, Quota, RateLimit, RateLimitLayer, Reason};
use tokio::time::{Instant, sleep};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use crate::ms;

async fn slow(millis: u64) -> Result<u64, Infallible> {
    sleep(ms(millis)).await;
    Ok(millis)
}

#[tokio::test(start_paused = true)]
async fn the_concurrency_layer_reserves_in_poll_ready_and_gives_back_on_drop() {
    let limit = ConcurrencyLimit::builder(1).with_queue(10, None).build().unwrap();
    let make = || {
        ServiceBuilder::new()
            .layer(ConcurrencyLimitLayer::new(limit.clone()))
            .map_err(Failure::Operation)
            .service(service_fn(slow))
    };
    let mut one = make();
    let mut two = make();
    one.ready().await.unwrap();
    assert_eq!(limit.in_flight(), 1);
    let pending = poll_fn(|cx| Poll::Ready(two.poll_ready(cx).is_pending())).await;
    assert!(pending);
    assert_eq!(limit.waiting(), 1);
    // A clone has reserved nothing.
    drop(one.clone());
    assert_eq!(limit.in_flight(), 1);
    drop(one);
    two.ready().await.unwrap();
    let response = two.call(10);
    assert_eq!(limit.in_flight(), 1);
    drop(response);
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
    assert_eq!(two.ready().await.unwrap().call(10).await, Ok(10));
    assert_eq!(limit.in_flight(), 0);
    let mut three = make();
    two.ready().await.unwrap();
    assert!(poll_fn(|cx| Poll::Ready(three.poll_ready(cx).is_pending())).await);
    drop(three);
    assert_eq!(limit.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn it_never_refuses_from_poll_ready_so_a_buffer_above_stays_alive() {
    let limit = ConcurrencyLimit::builder(1).build().unwrap();
    let held = limit.try_acquire_owned().unwrap();
    let boxed = |error: Infallible| -> Box<dyn Error + Send + Sync> { error.into() };
    let mut service = ServiceBuilder::new()
        .buffer(1)
        .layer(ConcurrencyLimitLayer::new(limit.clone()))
        .map_err(boxed)
        .service(service_fn(slow));
    let refused = service.ready().await.unwrap().call(1).await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().reason(), Reason::LimitReached);
    drop(held);
    assert_eq!(service.ready().await.unwrap().call(1).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_longest_wait_ends_in_poll_ready_and_is_told_by_the_call() {
    let limit = ConcurrencyLimit::builder(1).with_queue(1, ms(50)).build().unwrap();
    let held = limit.try_acquire().unwrap();
    let mut service = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(limit.clone()))
        .map_err(Failure::Operation)
        .service(service_fn(slow));
    let started = Instant::now();
    let refused = service.ready().await.unwrap().call(1).await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().reason(), Reason::WaitTooLong);
    assert!((50..=51).contains(&started.elapsed().as_millis()));
    drop(held);
    assert_eq!(service.ready().await.unwrap().call(1).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn the_wait_in_poll_ready_ends_with_the_deadline_of_a_timeout_outside() {
    let limit = ConcurrencyLimit::builder(1).with_queue(1, None).build().unwrap();
    let _held = limit.try_acquire().unwrap();
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Timeout::from_millis(50)))
        .layer(ConcurrencyLimitLayer::new(limit.clone()))
        .map_err(Failure::Operation)
        .service(service_fn(slow));
    let started = Instant::now();
    let refused = service.oneshot(1).await.unwrap_err();
    assert!((50..=51).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert!(refused.rejection().is_some(), "{refused}");
    assert_eq!(limit.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_rate_layer_takes_its_cell_in_the_response_future() {
    let quota = Quota::per_second(10).with_burst(1);
    let limit = RateLimit::builder(quota).with_queue(10, None).build().unwrap();
    let mut service = ServiceBuilder::new()
        .layer(RateLimitLayer::new(limit.clone()))
        .concurrency_limit(1)
        .map_err(Failure::Operation)
        .service(service_fn(slow));
    let first = service.ready().await.unwrap().call(1);
    assert_eq!(limit.snapshot().available, 1);
    assert_eq!(first.await, Ok(1));
    assert_eq!(limit.snapshot().available, 0);
    let started = Instant::now();
    assert_eq!(service.ready().await.unwrap().call(1).await, Ok(1));
    assert_eq!(started.elapsed(), ms(100));
    // A response dropped while it waits gives everything back, the readiness of the inner service too.
    let mut waiting = Box::pin(service.ready().await.unwrap().call(1));
    assert!(poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await);
    drop(waiting);
    assert_eq!(limit.snapshot().waiting, 0);
    service.ready().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn both_mix_with_a_timeout_and_towers_own_layers() {
    let quota = Quota::per_second(10).with_burst(2);
    let rate = RateLimit::builder(quota).with_queue(10, None).build().unwrap();
    let limit = ConcurrencyLimit::builder(5).build().unwrap();
    let boxed = |error: Infallible| -> Box<dyn Error + Send + Sync> { error.into() };
    let mut service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Timeout::from_millis(150)))
        .layer(RateLimitLayer::new(rate))
        .layer(ConcurrencyLimitLayer::new(limit.clone()))
        .timeout(ms(500))
        .map_err(boxed)
        .service(service_fn(slow));
    let mut calls = Vec::new();
    for _ in 0..4 {
        calls.push(tokio::spawn(service.ready().await.unwrap().call(10)));
    }
    let mut reasons = Vec::new();
    for call in calls {
        reasons.push(call.await.unwrap().map_err(|error| error.rejection().map(|r| r.reason())).err());
    }
    assert_eq!(reasons, [None, None, None, Some(Some(Reason::DeadlineTooClose))]);
    drop(service);
    assert_eq!(limit.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn readiness_asked_for_again_looks_again() {
    let limit = ConcurrencyLimit::builder(1).build().unwrap();
    let mut service = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(limit.clone()))
        .map_err(Failure::Operation)
        .service(service_fn(slow));
    let busy = limit.try_acquire().unwrap();
    service.ready().await.unwrap();
    drop(busy);
    assert_eq!(service.ready().await.unwrap().call(1).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_a_response_takes_nothing_with_it() {
    let quota = Quota::per_second(10).with_burst(1);
    let rate = RateLimit::builder(quota).with_queue(10, None).build().unwrap();
    let permits = ConcurrencyLimit::builder(1).with_queue(10, None).build().unwrap();
    let points = drop_at_every_await(
        || {
            rate.try_acquire().unwrap();
            ServiceBuilder::new()
                .layer(RateLimitLayer::new(rate.clone()))
                .layer(ConcurrencyLimitLayer::new(permits.clone()))
                .map_err(Failure::Operation)
                .service(service_fn(slow))
                .oneshot(10)
        },
        async |_| {
            assert_eq!((rate.snapshot().waiting, permits.in_flight()), (0, 0));
            sleep(ms(300)).await;
        },
    )
    .await;
    // In the queue, and in the service.
    assert_eq!(points, 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_queue_the_rate_layer_refuses_and_starts_nothing() {
    let rate = RateLimit::builder(Quota::per_second(10).with_burst(1)).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(RateLimitLayer::new(rate))
        .map_err(Failure::Operation)
        .service(service_fn(slow));
    assert_eq!(service.clone().oneshot(1).await, Ok(1));
    let refused = service.oneshot(1).await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().retry_after(), Some(ms(99)));
}

#[tokio::test(start_paused = true)]
async fn a_refused_response_that_is_kept_keeps_nothing_reserved() {
    let permits = ConcurrencyLimit::builder(1).build().unwrap();
    let quota = Quota::per_hour(1);
    for queued in [false, true] {
        let rate = RateLimit::builder(quota).with_queue(usize::from(queued), ms(10)).build().unwrap();
        rate.try_acquire().unwrap();
        let mut service = ServiceBuilder::new()
            .layer(RateLimitLayer::new(rate))
            .layer(ConcurrencyLimitLayer::new(permits.clone()))
            .map_err(Failure::Operation)
            .service(service_fn(slow));
        let mut response = Box::pin(service.ready().await.unwrap().call(1));
        assert_eq!(permits.in_flight(), 1);
        assert!(response.as_mut().await.is_err());
        assert_eq!(permits.in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn limits_in_turn_on_one_thread_take_each_from_their_own() {
    let limits =
        [3, 5].map(|burst| RateLimit::builder(Quota::per_hour(1).with_burst(burst)).build().unwrap());
    let mut services = limits.clone().map(|limit| {
        ServiceBuilder::new()
            .layer(RateLimitLayer::new(limit))
            .map_err(Failure::Operation)
            .service(service_fn(async |_: ()| Ok::<_, Infallible>(())))
    });
    for _ in 0..3 {
        for service in &mut services {
            service.ready().await.unwrap().call(()).await.unwrap();
        }
    }
    assert_eq!(limits.map(|limit| limit.snapshot().available), [0, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_loop_whose_calls_never_wait_lets_others_have_their_turn() {
    let rate = RateLimit::builder(Quota::per_second(1_000_000_000)).build().unwrap();
    let permits = ConcurrencyLimit::builder(1).build().unwrap();
    let at_once = || service_fn(async |_: ()| Ok::<_, Failure<Infallible>>(()));
    let rate = ServiceBuilder::new().layer(RateLimitLayer::new(rate)).service(at_once());
    let permits = ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(permits)).service(at_once());
    yields(rate).await;
    yields(permits).await;
}

async fn yields<S: Service<(), Error = Failure<Infallible>>>(mut service: S) {
    let calls = std::cell::Cell::new(0);
    let calling = async {
        while calls.get() < 1_000 {
            service.ready().await.unwrap().call(()).await.unwrap();
            calls.set(calls.get() + 1);
        }
    };
    tokio::select! {
        biased;
        () = calling => panic!("it keeps the thread for itself"),
        () = std::future::ready(()) => assert!(calls.get() > 1),
    }
}
