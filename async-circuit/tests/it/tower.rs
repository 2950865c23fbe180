use std::future::Ready;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_circuit::{
    CircuitBreaker, CircuitBreakerLayer, CircuitBreakers, Failure, KeyedCircuitBreakerLayer, Mode,
    PolicyKind, Reason, Rejection, State, Trip, Verdict,
};
use async_policy::PolicyError;
use tokio::sync::Semaphore;
use tokio::time::advance;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

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
async fn while_only_observing_a_service_refuses_nothing() {
    let breaker = quick();
    breaker.set_mode(Mode::ObserveOnly);
    let layer = CircuitBreakerLayer::new(breaker.clone());
    for _ in 0..5 {
        let service = layer.layer(service_fn(async |()| Err::<(), _>(Failure::Operation("down"))));
        assert_eq!(service.oneshot(()).await, Err(Failure::Operation("down")));
    }
    assert_eq!((breaker.state(), breaker.snapshot().totals.would_refuse), (State::Open, 3));
    advance(Duration::from_secs(1)).await;
    let _probe = breaker.try_acquire().unwrap();
    let service = layer.layer(service_fn(async |()| Ok::<_, Failure<()>>(7)));
    assert_eq!(service.oneshot(()).await, Ok(7));
}

/// A service that never gets ready: what a connector says that is refused.
#[derive(Clone)]
struct Unconnected(Failure<&'static str>);

impl Service<()> for Unconnected {
    type Response = ();
    type Error = Failure<&'static str>;
    type Future = Ready<Result<(), Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Err(self.0.clone()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        unreachable!("it is never ready")
    }
}

#[tokio::test(start_paused = true)]
async fn what_never_gets_ready_opens_the_circuit_and_as_a_probe_keeps_it_open() {
    let breaker = quick();
    let layer = CircuitBreakerLayer::new(breaker.clone());
    let unconnected = || layer.layer(Unconnected(Failure::Operation("connection refused")));
    for _ in 0..2 {
        assert_eq!(unconnected().oneshot(()).await, Err(Failure::Operation("connection refused")));
    }
    assert!(unconnected().oneshot(()).await.unwrap_err().rejection().is_some());
    advance(Duration::from_secs(1)).await;
    assert_eq!(unconnected().oneshot(()).await, Err(Failure::Operation("connection refused")));
    assert!(unconnected().oneshot(()).await.unwrap_err().rejection().is_some());
    assert_eq!((breaker.state(), breaker.snapshot().reopenings), (State::Open, 1));

    // A refusal from inside says nothing about the backend.
    breaker.reset();
    let refusal = Rejection::new(PolicyKind::ConcurrencyLimit, Reason::LimitReached);
    for _ in 0..5 {
        layer.layer(Unconnected(Failure::Rejected(refusal.clone()))).oneshot(()).await.unwrap_err();
    }
    assert_eq!((breaker.state(), breaker.snapshot().totals.ignored), (State::Closed, 5));
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

#[tokio::test(start_paused = true)]
async fn a_keyed_layer_refuses_by_key_and_leaves_the_inner_service_usable() {
    let max = NonZeroUsize::new(10).unwrap();
    let hosts = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(NonZeroU32::MIN))
        .with_open_for(Duration::from_secs(1))
        .build_keyed::<String>(max)
        .unwrap();
    let hosts = Arc::new(hosts);
    let service = ServiceBuilder::new()
        .buffer(4)
        .layer(KeyedCircuitBreakerLayer::new(Arc::clone(&hosts), |host: &&str| host.to_string()))
        .concurrency_limit(1)
        .service(service_fn(
            async |host: &str| if host == "dead" { Err(BoxError::from("down")) } else { Ok(()) },
        ));
    assert!(service.clone().oneshot("dead").await.unwrap_err().rejection().is_none());
    for _ in 0..3 {
        assert!(service.clone().oneshot("dead").await.unwrap_err().rejection().is_some());
        service.clone().oneshot("well").await.unwrap();
    }
    assert_eq!((hosts.find("dead").unwrap().state(), hosts.len()), (State::Open, 2));
}

/// A limit of one, shared by all services.
fn one_at_a_time() -> (Arc<Semaphore>, GlobalConcurrencyLimitLayer) {
    let limit = Arc::new(Semaphore::new(1));
    (Arc::clone(&limit), GlobalConcurrencyLimitLayer::with_semaphore(limit))
}

#[tokio::test(start_paused = true)]
async fn a_refusal_in_call_or_after_a_look_leaves_nothing_reserved() {
    let breaker = quick();
    let (limit, layer) = one_at_a_time();
    let mut service = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::new(breaker.clone()))
        .layer(layer)
        .service(service_fn(async |()| Ok::<_, Failure<()>>(())));
    for asked_again in [false, true] {
        service.ready().await.unwrap();
        assert_eq!(limit.available_permits(), 0);
        breaker.set_mode(Mode::ForcedOpen);
        if asked_again {
            service.ready().await.unwrap();
        } else {
            service.call(()).await.unwrap_err();
        }
        assert_eq!(limit.available_permits(), 1, "nothing is in flight");
        breaker.set_mode(Mode::Automatic);
    }
    service.ready().await.unwrap().call(()).await.unwrap();
    assert_eq!(limit.available_permits(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_key_leaves_nothing_reserved() {
    let hosts = CircuitBreaker::builder().with_mode(Mode::ForcedOpen).build_keyed(NonZeroUsize::MIN).unwrap();
    let hosts: Arc<CircuitBreakers<String>> = Arc::new(hosts);
    let (limit, layer) = one_at_a_time();
    let mut service = ServiceBuilder::new()
        .layer(KeyedCircuitBreakerLayer::new(hosts, |host: &&str| host.to_string()))
        .layer(layer)
        .service(service_fn(async |_: &str| Ok::<_, Failure<()>>(())));
    service.ready().await.unwrap().call("dead").await.unwrap_err();
    assert_eq!(limit.available_permits(), 1, "nothing is in flight");
}

#[tokio::test(start_paused = true)]
async fn a_keyed_classifier_reads_the_response() {
    let hosts = Arc::new(
        CircuitBreaker::builder()
            .with_trip(Trip::consecutive_failures(NonZeroU32::MIN))
            .build_keyed::<u16>(NonZeroUsize::MIN)
            .unwrap(),
    );
    let layer = KeyedCircuitBreakerLayer::new(Arc::clone(&hosts), |status: &u16| *status).with_classifier(
        |answer: Result<&u16, &Failure<()>>| match answer {
            Ok(500..) => Verdict::Transient,
            _ => Verdict::Success,
        },
    );
    let service = layer.clone().layer(service_fn(async |status| Ok::<u16, Failure<()>>(status)));
    assert_eq!(service.clone().oneshot(503).await, Ok(503));
    assert_eq!(hosts.find(&503).unwrap().state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_inner_call_is_a_failure_and_gives_the_permit_back() {
    let breaker = quick();
    for _ in 0..2 {
        let layer = CircuitBreakerLayer::new(breaker.clone());
        let mut service =
            layer.layer(service_fn(|()| -> Ready<Result<(), Failure<()>>> { panic!("in call") }));
        let task = tokio::spawn(async move { service.ready().await?.call(()).await });
        assert!(task.await.unwrap_err().is_panic());
    }
    assert_eq!((breaker.state(), breaker.snapshot().totals.panics), (State::Open, 2));
}

#[tokio::test(start_paused = true)]
async fn it_sees_the_circuit_close_again_while_the_inner_service_is_not_asked() {
    let breaker = quick();
    let layer = CircuitBreakerLayer::new(breaker.clone());
    let mut service = layer.layer(service_fn(async |()| Ok::<_, Failure<()>>(())));
    breaker.set_mode(Mode::ForcedOpen);
    service.ready().await.unwrap();
    breaker.set_mode(Mode::Automatic);
    // Ready was said without asking the inner service, so this call cannot go to it.
    assert!(service.call(()).await.unwrap_err().rejection().is_some());
    service.ready().await.unwrap().call(()).await.unwrap();
}
