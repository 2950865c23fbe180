//! Every public future, dropped at each of its await points in each state.

use std::num::NonZeroU32;
use std::time::Duration;

use async_circuit::{CircuitBreaker, Failure, Guard, Mode, Policy, State, Trip};
use async_policy::testing::drop_at_every_await;
use tokio::task::yield_now;
use tokio::time::advance;

use crate::breaker::quick;

async fn answer() -> Result<(), ()> {
    yield_now().await;
    yield_now().await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_in_every_state_nothing_counts_and_probes_come_back() {
    let breaker = quick();
    let call = || breaker.run(async { answer().await.map_err(Failure::Operation) });
    let points = drop_at_every_await(call, async |point| {
        assert_eq!((breaker.state(), breaker.snapshot().calls), (State::Closed, u64::from(point.is_none())));
    })
    .await;
    assert_eq!(points, 2);

    breaker.try_acquire().unwrap().failure();
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(drop_at_every_await(call, async |_| assert_eq!(breaker.state(), State::Open)).await, 0);

    advance(Duration::from_secs(1)).await;
    drop_at_every_await(call, async |point| match point {
        Some(_) => {
            assert_ne!(breaker.state(), State::Closed);
            assert_eq!(breaker.snapshot().probes_in_flight, 0);
        }
        None => assert_eq!(breaker.state(), State::Closed),
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn so_are_calls_and_fallbacks() {
    let breaker = quick();
    let calls = breaker.snapshot().calls;
    let check = async |point: Option<_>| {
        assert_eq!(breaker.snapshot().calls - calls, u64::from(point.is_none()));
    };
    assert_eq!(drop_at_every_await(|| breaker.call(answer), check).await, 2);
    breaker.reset();
    assert_eq!(drop_at_every_await(|| breaker.call_or(answer, ()), check).await, 2);
    breaker.set_mode(Mode::ForcedOpen);
    let fallback = || breaker.call_or_else(answer, async |_| answer().await.map_err(Failure::Operation));
    assert_eq!(drop_at_every_await(fallback, async |_| assert_eq!(breaker.snapshot().calls, 1)).await, 2);
    let answered = || async { answer().await.map_err(Failure::Operation) };
    let fallback = || breaker.execute_or_else(answered, async |_| answered().await);
    assert_eq!(drop_at_every_await(fallback, async |_| assert_eq!(breaker.snapshot().calls, 1)).await, 2);
}

#[tokio::test(start_paused = true)]
async fn on_the_ramp_and_while_only_observing_too() {
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(NonZeroU32::MIN))
        .with_open_for(Duration::from_secs(1))
        .with_ramp(Duration::from_secs(60))
        .build()
        .unwrap();
    breaker.try_acquire().unwrap().failure();
    breaker.set_mode(Mode::ObserveOnly);
    let observed = drop_at_every_await(
        || breaker.call(answer),
        async |_| {
            assert_eq!((breaker.state(), breaker.snapshot().totals.failures), (State::Open, 1));
        },
    );
    assert_eq!(observed.await, 2);
    breaker.set_mode(Mode::Automatic);
    advance(Duration::from_secs(1)).await;
    breaker.try_acquire().unwrap().success();
    let epoch = breaker.snapshot().epoch;
    drop_at_every_await(
        || breaker.call(answer),
        async |_| {
            assert_eq!((breaker.state(), breaker.snapshot().epoch), (State::Closed, epoch));
        },
    )
    .await;
}

#[cfg(feature = "tower")]
#[tokio::test(start_paused = true)]
async fn and_the_futures_of_the_services() {
    use async_circuit::{CircuitBreakerLayer, KeyedCircuitBreakerLayer};
    use std::{num::NonZeroUsize, sync::Arc};
    use tower::{Layer, ServiceExt, service_fn};

    let inner = || service_fn(async |()| answer().await.map_err(Failure::Operation));
    let breaker = quick();
    let service = CircuitBreakerLayer::new(breaker.clone()).layer(inner());
    let points = drop_at_every_await(
        || service.clone().oneshot(()),
        async |point| {
            assert_eq!(breaker.snapshot().calls, u64::from(point.is_none()));
        },
    );
    assert_eq!(points.await, 2);
    let one = NonZeroUsize::MIN;
    let keyed = Arc::new(CircuitBreaker::builder().build_keyed::<u8>(one).unwrap());
    let service = KeyedCircuitBreakerLayer::new(Arc::clone(&keyed), |(): &()| 7).layer(inner());
    let points = drop_at_every_await(
        || service.clone().oneshot(()),
        async |point| {
            let calls = keyed.find(&7).map_or(0, |breaker| breaker.snapshot().calls);
            assert_eq!(calls, u64::from(point.is_none()));
        },
    );
    assert_eq!(points.await, 2);
}
