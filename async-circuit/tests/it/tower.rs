use std::time::Duration;

use async_circuit::{CircuitBreakerLayer, Failure, State, Verdict};
use async_policy::PolicyError;
use tokio::time::advance;
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};

use crate::breaker::quick;

#[tokio::test(start_paused = true)]
async fn services_of_one_layer_share_one_state() {
    let breaker = quick();
    let layer = CircuitBreakerLayer::new(breaker.clone());
    for _ in 0..2 {
        let service = layer.layer(service_fn(async |()| Err::<(), _>(Failure::Operation("down"))));
        assert_eq!(service.oneshot(()).await, Err(Failure::Operation("down")));
    }
    let fresh = layer.layer(service_fn(async |()| -> Result<(), Failure<&str>> { unreachable!() }));
    assert!(fresh.oneshot(()).await.unwrap_err().rejection().is_some());
}

#[tokio::test(start_paused = true)]
async fn refusals_do_not_kill_a_buffer_above_and_do_not_ask_the_inner_service() {
    let breaker = quick();
    let service = ServiceBuilder::new()
        .buffer(4)
        .layer(CircuitBreakerLayer::new(breaker.clone()))
        .concurrency_limit(1)
        .service(service_fn(async |fail: bool| if fail { Err(BoxError::from("down")) } else { Ok(()) }));
    for _ in 0..2 {
        assert!(service.clone().oneshot(true).await.unwrap_err().rejection().is_none());
    }
    assert!(service.clone().oneshot(false).await.unwrap_err().rejection().is_some());
    advance(Duration::from_secs(1)).await;
    service.clone().oneshot(false).await.unwrap();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_classifier_reads_the_response() {
    let breaker = quick();
    let layer =
        CircuitBreakerLayer::new(breaker.clone()).with_classifier(|answer: Result<&u16, &Failure<()>>| {
            if answer.is_ok_and(|status| *status < 500) { Verdict::Success } else { Verdict::Transient }
        });
    for _ in 0..2 {
        let service = layer.layer(service_fn(async |()| Ok::<u16, Failure<()>>(503)));
        assert_eq!(service.oneshot(()).await, Ok(503));
    }
    assert_eq!(breaker.state(), State::Open);
}
