use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use async_policy::{Deadline, Failure, PolicyError, Timeout, TimeoutLayer};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

async fn slow(millis: u64) -> Result<u64, Infallible> {
    tokio::time::sleep(Duration::from_millis(millis)).await;
    Ok(millis)
}

#[tokio::test(start_paused = true)]
async fn a_foreign_service_is_lifted_at_the_bottom() {
    let mut service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Timeout::from_millis(100).with_name("all")))
        .layer(TimeoutLayer::new(Timeout::from_millis(50).with_name("one")))
        .map_err(Failure::Operation)
        .service(service_fn(slow));
    assert_eq!(service.ready().await.unwrap().call(10).await, Ok(10));
    let failure = service.ready().await.unwrap().call(60).await.unwrap_err();
    assert_eq!(failure.timed_out().unwrap().name(), Some("one"));
}

#[tokio::test(start_paused = true)]
async fn it_mixes_with_towers_own_layers_in_either_order() {
    let layer = || TimeoutLayer::new(Timeout::from_millis(50));
    let boxed = |error: Infallible| -> Box<dyn Error + Send + Sync> { error.into() };

    let mut over = ServiceBuilder::new()
        .layer(layer())
        .timeout(Duration::from_millis(80))
        .concurrency_limit(1)
        .map_err(boxed)
        .service(service_fn(slow));
    assert_eq!(over.ready().await.unwrap().call(10).await.unwrap(), 10);
    assert!(over.ready().await.unwrap().call(60).await.unwrap_err().timed_out().is_some());

    let mut under = ServiceBuilder::new()
        .buffer(1)
        .timeout(Duration::from_millis(80))
        .layer(layer())
        .concurrency_limit(1)
        .map_err(boxed)
        .service(service_fn(slow));
    assert_eq!(under.ready().await.unwrap().call(10).await.unwrap(), 10);
    assert!(under.ready().await.unwrap().call(60).await.unwrap_err().timed_out().is_some());
}

#[tokio::test(start_paused = true)]
async fn its_deadline_reaches_the_services_inside() {
    let mut service = ServiceBuilder::new().layer(TimeoutLayer::new(Timeout::from_millis(100))).service(
        service_fn(async |()| {
            Ok::<_, Failure<Infallible>>(Deadline::current().map(|deadline| deadline.remaining().as_millis()))
        }),
    );
    assert_eq!(service.ready().await.unwrap().call(()).await, Ok(Some(100)));
}
