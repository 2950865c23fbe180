use std::convert::Infallible;
use std::error::Error;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_policy::{
    Deadline, Failure, PolicyError, PolicyKind, Reason, Timeout, TimeoutLayer, TimeoutService,
};
use tokio::task::coop::poll_proceed;
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

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

type Limited<S> = TimeoutService<ConcurrencyLimit<S>>;

/// A time-out of 100 ms over tower's limit of one call at a time.
fn limited() -> Limited<impl Service<u64, Response = u64, Error = Failure<Infallible>, Future: Send> + Clone>
{
    let service = service_fn(async |millis| slow(millis).await.map_err(Failure::Operation));
    TimeoutLayer::new(Timeout::from_millis(100).with_name("all")).layer(ConcurrencyLimit::new(service, 1))
}

/// Takes the one permit for so long, from now on.
async fn busy_for(
    millis: u64,
    service: &(impl Service<u64, Error = Failure<Infallible>> + Clone + Send + 'static),
) -> tokio::task::JoinHandle<()> {
    let mut service = service.clone();
    assert!(service.ready().await.is_ok());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        drop(service);
    })
}

fn since(start: tokio::time::Instant) -> u128 {
    start.elapsed().as_millis()
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_readiness_is_timed_too() {
    let service = limited();
    let busy = busy_for(10_000, &service).await;
    let start = tokio::time::Instant::now();
    let failure = service.oneshot(1).await.unwrap_err();
    let rejection = failure.rejection().unwrap();
    assert_eq!((rejection.policy(), rejection.reason()), (PolicyKind::Timeout, Reason::WaitTooLong));
    assert_eq!((rejection.name(), since(start)), (Some("all"), 100));
    busy.abort();
}

#[tokio::test(start_paused = true)]
async fn a_call_gets_what_the_wait_has_left() {
    let service = limited();
    for (takes, answer) in [(30, Some(90)), (70, None)] {
        busy_for(60, &service).await;
        let start = tokio::time::Instant::now();
        let answered = service.clone().oneshot(takes).await;
        assert_eq!((answered.ok().is_some(), since(start)), (answer.is_some(), answer.unwrap_or(100)));
    }
}

#[tokio::test(start_paused = true)]
async fn time_between_readiness_and_call_is_nobodys_wait() {
    let mut service = limited();
    busy_for(60, &service).await;
    service.ready().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let start = tokio::time::Instant::now();
    let failure = service.call(1000).await.unwrap_err();
    assert_eq!((failure.timed_out().unwrap().limit(), since(start)), (Duration::from_millis(100), 40));
}

#[tokio::test(start_paused = true)]
async fn a_request_after_a_wait_that_was_given_up_has_its_time() {
    let mut service = limited();
    busy_for(90, &service).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), service.ready()).await.is_err());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(service.ready().await.unwrap().call(90).await, Ok(90));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_refused_is_asked_again() {
    let mut service = limited();
    busy_for(150, &service).await;
    // The answer is a refusal, whether it is asked for once or twice.
    service.ready().await.unwrap();
    assert!(service.ready().await.unwrap().call(1).await.unwrap_err().rejection().is_some());
    assert_eq!(service.ready().await.unwrap().call(10).await, Ok(10));

    busy_for(150, &service).await;
    service.ready().await.unwrap();
    // By now it is ready: nobody waits any more.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(service.ready().await.unwrap().call(90).await, Ok(90));
}

#[tokio::test(start_paused = true)]
async fn a_zero_limit_waits_for_no_readiness() {
    let service = limited();
    busy_for(10, &service).await;
    let start = tokio::time::Instant::now();
    let none = TimeoutLayer::new(Timeout::from_millis(0)).layer(service);
    let failure = none.oneshot(1).await.unwrap_err();
    assert_eq!((failure.rejection().unwrap().reason(), since(start)), (Reason::WaitTooLong, 0));
}

#[tokio::test(start_paused = true)]
async fn its_deadline_is_in_force_where_the_service_inside_gets_ready() {
    struct Asks(Option<Duration>);
    impl Service<()> for Asks {
        type Response = Duration;
        type Error = Failure<Infallible>;
        type Future = std::future::Ready<Result<Duration, Self::Error>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            self.0 = Deadline::current().map(Deadline::remaining);
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, (): ()) -> Self::Future {
            std::future::ready(Ok(self.0.unwrap()))
        }
    }
    let asks = TimeoutLayer::new(Timeout::from_millis(100)).layer(Asks(None));
    assert_eq!(asks.oneshot(()).await, Ok(Duration::from_millis(100)));
}

/// Ready for a budget of the task, and never if `stuck`.
struct Spends {
    stuck: bool,
}

impl Service<()> for Spends {
    type Response = ();
    type Error = Failure<Infallible>;
    type Future = std::future::Ready<Result<(), Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        loop {
            ready!(poll_proceed(cx)).made_progress();
            if !self.stuck {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn call(&mut self, (): ()) -> Self::Future {
        std::future::ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_for_others_in_the_task_is_no_wait() {
    let timeout = TimeoutLayer::new(Timeout::from_millis(0));
    let mut service = TimeoutLayer::new(Timeout::from_millis(100)).layer(Spends { stuck: false });
    for _ in 0..1000 {
        service.ready().await.unwrap().call(()).await.unwrap();
    }
    // With no time at all as well.
    let mut service = timeout.layer(Spends { stuck: false });
    for _ in 0..1000 {
        service.ready().await.unwrap().call(()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_spends_every_budget_is_not_waited_for_for_ever() {
    let service = TimeoutLayer::new(Timeout::from_millis(100)).layer(Spends { stuck: true });
    // The clock stands still while somebody is busy: it is moved by hand.
    let mut call = tokio::spawn(service.oneshot(()));
    tokio::select! {
        biased;
        answer = &mut call => assert!(answer.unwrap().unwrap_err().rejection().is_some()),
        () = async {
            for _ in 0..300 {
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        } => panic!("it still waits"),
    }
}
