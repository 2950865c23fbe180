use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_circuit::{
    Cause, CircuitBreaker, Ending, Event, Failure, Guard, Mode, OpenTime, Policy, State, Trip,
};
use async_policy::testing::drop_at_every_await;
use tokio::time::{Instant, advance};

use crate::breaker::quick;

fn listening() -> (CircuitBreaker, Arc<Mutex<Vec<Event>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(NonZeroU32::new(2).unwrap()))
        .with_open_for(Duration::from_secs(1))
        .with_listener({
            let events = Arc::clone(&events);
            move |breaker: &CircuitBreaker, event: &Event| {
                // No lock is held: the breaker may be asked, and so may be whoever listens.
                let _ = breaker.snapshot();
                events.lock().unwrap().push(event.clone());
            }
        })
        .build()
        .unwrap();
    (breaker, events)
}

#[tokio::test(start_paused = true)]
async fn each_event_is_told_once_and_a_healthy_call_is_none() {
    let (breaker, events) = listening();
    let told = move || std::mem::take(&mut *events.lock().unwrap());
    breaker.try_acquire().unwrap().success();
    assert_eq!(told(), []);
    let ended = |ending| Event::Ended { ending, slow: false };
    breaker.try_acquire().unwrap().ignore();
    drop(breaker.try_acquire().unwrap());
    breaker.try_acquire().unwrap().failure();
    assert_eq!(told(), [ended(Ending::Ignored), ended(Ending::Aborted), ended(Ending::Failure)]);
    breaker.try_acquire().unwrap().failure();
    let refusal = breaker.try_acquire().unwrap_err();
    let events = told();
    let Event::Transitioned(opened) = events[0] else { panic!("{events:?}") };
    assert_eq!(
        (opened.from, opened.to, opened.cause, opened.epoch, opened.at, opened.open_for),
        (
            State::Closed,
            State::Open,
            Cause::ConsecutiveFailures,
            1,
            Instant::now(),
            Some(Duration::from_secs(1))
        )
    );
    assert_eq!(events[1..], [ended(Ending::Failure), Event::Rejected(refusal)]);
    breaker.set_mode(Mode::ObserveOnly);
    breaker.try_acquire().unwrap().success();
    assert!(matches!(told()[..], [Event::WouldReject(_)]));
}

#[tokio::test(start_paused = true)]
async fn a_listener_may_change_the_breaker_and_hears_of_it_afterwards() {
    let causes = Arc::new(Mutex::new(Vec::new()));
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(NonZeroU32::MIN))
        .with_listener({
            let causes = Arc::clone(&causes);
            move |breaker: &CircuitBreaker, event: &Event| {
                if let Event::Transitioned(transition) = event {
                    if transition.to == State::Open {
                        breaker.reset();
                    }
                    causes.lock().unwrap().push(transition.cause);
                }
            }
        })
        .build()
        .unwrap();
    breaker.try_acquire().unwrap().failure();
    assert_eq!(*causes.lock().unwrap(), [Cause::ConsecutiveFailures, Cause::Manual]);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_wedges_nothing() {
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(NonZeroU32::MIN))
        .with_open_for(Duration::from_secs(1))
        .with_listener(|_: &CircuitBreaker, event: &Event| {
            assert!(
                !matches!(event, Event::Transitioned(transition) if transition.to == State::Open),
                "a bad listener"
            );
        })
        .build()
        .unwrap();
    let mut transitions = breaker.transitions();
    let task = tokio::spawn({
        let breaker = breaker.clone();
        async move { breaker.call(|| async { Err::<(), _>(()) }).await }
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(breaker.state(), State::Open);
    advance(Duration::from_secs(1)).await;
    breaker.try_acquire().unwrap().success();
    let states: Vec<_> =
        std::iter::from_fn(|| transitions.try_next()).map(|transition| transition.to).collect();
    assert_eq!(states, [State::Open, State::HalfOpen, State::Closed]);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_loses_no_probe() {
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(NonZeroU32::MIN))
        .with_open_for(Duration::from_secs(1))
        .with_listener(|_: &CircuitBreaker, event: &Event| {
            assert!(
                !matches!(event, Event::Transitioned(transition) if transition.to == State::HalfOpen),
                "a bad listener"
            );
        })
        .build()
        .unwrap();
    breaker.try_acquire().unwrap().failure();
    advance(Duration::from_secs(1)).await;
    let probe = catch_unwind(AssertUnwindSafe(|| breaker.try_acquire().map(drop)));
    assert!(probe.is_err());
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.probes_in_flight), (State::HalfOpen, 0));
    assert_eq!(snapshot.totals.aborted, 1);
    let probe = breaker.try_acquire().unwrap();
    assert!(probe.is_probe());
    probe.success();
    assert_eq!(breaker.state(), State::Closed);
}

/// Were it not for the breaker, each of these would end the process.
#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_of_a_panic_ends_no_process() {
    let heard = Arc::new(AtomicU32::new(0));
    let breaker = CircuitBreaker::builder()
        .with_trip(Trip::consecutive_failures(NonZeroU32::new(2).unwrap()))
        .with_open_for(OpenTime::by(|_| panic!("a bad choice")))
        .with_listener({
            let heard = Arc::clone(&heard);
            move |_: &CircuitBreaker, _: &Event| {
                heard.fetch_add(1, SeqCst);
                panic!("a bad listener")
            }
        })
        .build()
        .unwrap();
    let panics = || -> Result<(), Failure<()>> { panic!("an operation") };
    for _ in 0..2 {
        let breaker = breaker.clone();
        let task = tokio::spawn(async move { breaker.run(async { panics() }).await });
        assert_eq!(*task.await.unwrap_err().into_panic().downcast::<&str>().unwrap(), "an operation");
    }
    let dropped = catch_unwind(AssertUnwindSafe(|| {
        breaker.set_mode(Mode::Disabled);
    }));
    assert!(dropped.is_err(), "nothing else unwinds: it comes out");
    let dropped = catch_unwind(AssertUnwindSafe(|| {
        let _permit = breaker.try_acquire().unwrap();
        panics()
    }));
    assert!(dropped.is_err());
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.panics, totals.aborted), (2, 1));
    assert_eq!(heard.load(SeqCst), 4, "two panics, the mode, one dropped");
}

#[tokio::test(start_paused = true)]
async fn the_stream_has_every_transition_and_ends_with_the_breaker() {
    let breaker = quick();
    let mut transitions = breaker.transitions();
    drop(breaker.transitions());
    let reader = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(transition) = transitions.next().await {
            seen.push((transition.epoch, transition.to));
        }
        seen
    });
    for _ in 0..2 {
        breaker.call(async || Err::<(), _>(())).await.unwrap_err();
    }
    advance(Duration::from_secs(1)).await;
    breaker.call(async || Ok::<_, ()>(())).await.unwrap();
    drop(breaker);
    assert_eq!(reader.await.unwrap(), [(1, State::Open), (2, State::HalfOpen), (3, State::Closed)]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_holds_so_many_and_shows_the_gap() {
    let breaker = quick();
    let mut transitions = breaker.transitions();
    for _ in 0..100 {
        breaker.reset();
    }
    let seen: Vec<_> =
        std::iter::from_fn(|| transitions.try_next()).map(|transition| transition.epoch).collect();
    assert_eq!(seen, (1..=64).collect::<Vec<_>>());
    breaker.reset();
    assert_eq!(transitions.next().await.unwrap().epoch, 101);
}

#[tokio::test(start_paused = true)]
async fn next_dropped_before_it_is_ready_takes_nothing() {
    let breaker = quick();
    let transitions = tokio::sync::Mutex::new(breaker.transitions());
    let points = drop_at_every_await(
        || async {
            let mut transitions = transitions.lock().await;
            let feed = async {
                tokio::task::yield_now().await;
                breaker.reset();
            };
            let (next, ()) = tokio::join!(transitions.next(), feed);
            next.unwrap()
        },
        async |_| {
            let mut transitions = transitions.lock().await;
            let epoch = breaker.snapshot().epoch;
            let waiting =
                std::iter::from_fn(|| transitions.try_next()).map(|transition| transition.epoch).last();
            assert!(waiting.is_none_or(|last| last == epoch), "{waiting:?} {epoch}");
        },
    )
    .await;
    assert_eq!(points, 1);
}
