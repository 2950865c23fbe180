//! How long a child that fell waits for its restart.

use std::time::Duration;

use async_supervisor::{Backoff, Child, ChildState, Context, Jitter, Supervisor};
use proptest::prelude::{Just, Strategy as _, any, prop_assert, prop_oneof, proptest};
use tokio::time::sleep;

use crate::common::{Log, Order, delays, error, secs, tolerant, up};

#[tokio::test(start_paused = true)]
async fn backoff_grows_is_held_to_its_cap_and_starts_over_after_health_under_each_strategy() {
    for strategy in
        [Supervisor::one_for_one(), Supervisor::one_for_all(), Supervisor::rest_for_one(), Supervisor::pool()]
    {
        let log = Log::new();
        let backoff =
            Backoff::exponential(secs(1), secs(3)).with_jitter(Jitter::None).with_reset_after(secs(60));
        let s = up(tolerant(strategy).with_child(log.child("a").with_backoff(backoff))).await;
        for delay in [1, 2, 3, 3] {
            log.tell("a", Order::Fail).await;
            assert_eq!(s.snapshot().child("a").unwrap().next_restart, Some(secs(delay)));
            sleep(secs(delay) + Duration::from_millis(2)).await;
            assert_eq!(s.snapshot().child("a").unwrap().state, ChildState::Running);
        }
        sleep(secs(60)).await;
        log.tell("a", Order::Fail).await;
        assert_eq!(s.snapshot().child("a").unwrap().next_restart, Some(secs(1)));
    }
}

fn doubling() -> Backoff {
    Backoff::exponential(secs(1), secs(100)).with_jitter(Jitter::None).with_reset_after(secs(60))
}

#[tokio::test(start_paused = true)]
async fn health_counts_that_ended_in_a_missed_heartbeat() {
    let child = Child::new("w", async |ctx: Context| {
        if ctx.attempt() <= 3 {
            return Err(error("no"));
        }
        // Healthy for 1000 s, then silent.
        for _ in 0..1000 {
            sleep(secs(1)).await;
            ctx.heartbeat();
        }
        ctx.cancelled().await;
        Ok(())
    });
    let s = tolerant(Supervisor::one_for_one())
        .with_child(child.with_heartbeat(secs(5)).with_backoff(doubling()))
        .spawn()
        .unwrap();
    let delays = delays(s.events(), "w");
    sleep(secs(1100)).await;
    assert_eq!(*delays.lock().unwrap(), [1, 2, 4, 1].map(secs));
}

#[tokio::test(start_paused = true)]
async fn health_counts_that_ended_with_the_restart_of_a_group_or_by_a_command() {
    let w = || {
        let child = Child::new("w", async |ctx: Context| {
            match ctx.attempt() {
                1..=3 => return Err(error("no")),
                5 => {
                    sleep(secs(1)).await;
                    return Err(error("no"));
                }
                _ => ctx.cancelled().await,
            }
            Ok(())
        });
        child.with_backoff(doubling())
    };
    // The fourth run is ended from outside after 1000 s.
    let sibling = Child::new("sibling", async |ctx: Context| {
        match ctx.token().run_until_cancelled(sleep(secs(1000))).await {
            Some(()) => Err(error("no")),
            None => Ok(()),
        }
    });
    let s = tolerant(Supervisor::one_for_all()).with_children([w(), sibling]).spawn().unwrap();
    let noted = delays(s.events(), "w");
    sleep(secs(1100)).await;
    assert_eq!(*noted.lock().unwrap(), [1, 2, 4, 1].map(secs));

    let s = tolerant(Supervisor::one_for_one()).with_child(w()).spawn().unwrap();
    let noted = delays(s.events(), "w");
    sleep(secs(1000)).await;
    s.restart_child("w").await.unwrap();
    sleep(secs(2)).await;
    assert_eq!(*noted.lock().unwrap(), [1, 2, 4, 1].map(secs));
}

#[tokio::test(start_paused = true)]
async fn each_child_has_its_own() {
    let log = Log::new();
    let s = tolerant(Supervisor::one_for_one())
        .with_children(["a", "b"].map(|name| log.child(name).with_backoff(doubling())));
    let s = up(s).await;
    let next = |name: &str| s.snapshot().child(name).unwrap().next_restart;
    log.tell("a", Order::Fail).await;
    sleep(secs(2)).await;
    log.tell("a", Order::Fail).await;
    log.tell("b", Order::Fail).await;
    assert_eq!((next("a"), next("b")), (Some(secs(2)), Some(secs(1))));
}

#[tokio::test(start_paused = true)]
async fn a_seed_makes_the_delays_the_same_in_each_run() {
    let run = async |seed| {
        let child = Child::new("w", async |_: Context| Err::<(), _>(error("no")));
        let s = tolerant(Supervisor::one_for_one()).with_seed(seed).with_child(child).spawn().unwrap();
        let noted = delays(s.events(), "w");
        sleep(secs(60)).await;
        noted.lock().unwrap().clone()
    };
    let (one, same, other) = (run(1).await, run(1).await, run(2).await);
    assert!(one == same && one != other, "{one:?} {same:?} {other:?}");
}

proptest! {
    /// Jitter only shortens a delay, by half of it at most where it is equal jitter; the plain delay grows up to the cap.
    #[test]
    fn a_delay_is_within_its_bounds(
        base in (0..10_000_u64).prop_map(Duration::from_millis),
        more in (0..10_000_u64).prop_map(Duration::from_millis),
        factor in 1.0..10.0_f64,
        failures in any::<u32>(),
        random in 0.0..1.0_f64,
        jitter in prop_oneof![Just(Jitter::None), Just(Jitter::Equal), Just(Jitter::Full)],
    ) {
        let cap = base + more;
        let plain = Backoff::exponential(base, cap).with_factor(factor).with_jitter(Jitter::None);
        let delay = plain.delay(failures, random);
        prop_assert!(delay <= cap && delay >= base.min(cap));
        prop_assert!(plain.delay(failures.saturating_add(1), random) >= delay);
        let jittered = plain.with_jitter(jitter).delay(failures, random);
        prop_assert!(jittered <= delay);
        if jitter != Jitter::Full {
            prop_assert!(jittered >= delay / 2);
        }
    }
}

#[test]
fn whatever_number_says_where_in_the_jitter_a_delay_falls_it_is_within_its_bounds() {
    for random in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1.0, 2.0] {
        for base in [Duration::from_nanos(1), Duration::from_secs(u64::MAX / 3), Duration::MAX] {
            for jitter in [Jitter::Equal, Jitter::Full] {
                let delay = Backoff::exponential(base, base).with_jitter(jitter).delay(0, random);
                assert!(delay <= base, "{random} {base:?} {jitter:?}");
            }
        }
    }
}
