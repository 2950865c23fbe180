use std::time::Duration;

use async_circuit::{Failure, Guard, State};
use async_policy::testing::drop_at_every_await;
use tokio::time::advance;

use crate::breaker::quick;

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_in_every_state_nothing_counts_and_probes_come_back() {
    let breaker = quick();
    let call = || {
        breaker.run(async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            Ok::<_, Failure<()>>(())
        })
    };
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
        Some(_) => assert_ne!(breaker.state(), State::Closed),
        None => assert_eq!(breaker.state(), State::Closed),
    })
    .await;
}
