use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_policy::{Deadline, Policy, PolicyKind, Reason, TimedOut, Timeout};
use async_retry::{
    AttemptOutcome, Backoff, Event, Failure, Operation, Rejection, Retry, StopReason, Verdict,
};
use tokio::time::{Instant, sleep};

use crate::attempts;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn refused(reason: Reason) -> Failure<&'static str> {
    Failure::Rejected(Rejection::new(PolicyKind::CircuitBreaker, reason))
}

/// Yields these in turn, 10 ms each, and then succeeds.
async fn report_of(
    retry: Retry,
    answers: Vec<Failure<&'static str>>,
) -> (Result<u32, Failure<&'static str>>, async_retry::Report<u32, Failure<&'static str>>) {
    let count = AtomicU32::new(0);
    retry
        .execute_with_report(async || {
            let n = count.fetch_add(1, Relaxed);
            sleep(ms(10)).await;
            answers.get(n as usize).map_or(Ok(n), |failure| Err(failure.clone()))
        })
        .await
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_in_it() {
    let retry = Retry::new(Backoff::linear(ms(100), ms(50)).with_jitter(async_retry::Jitter::None)).unwrap();
    let (result, report) =
        report_of(retry, vec![Failure::Operation("down"), refused(Reason::LimitReached)]).await;
    assert_eq!(result, Ok(2));
    assert_eq!((report.stopped(), report.elapsed()), (None, ms(280)));
    let attempts: Vec<_> = report
        .attempts()
        .iter()
        .map(|a| (a.started().as_millis(), a.took().as_millis(), a.outcome(), a.delay(), a.result().cloned()))
        .collect();
    let down = Some(Err(Failure::Operation("down")));
    assert_eq!(
        attempts,
        [
            (0, 10, AttemptOutcome::Transient, Some(ms(100)), down),
            (110, 10, AttemptOutcome::Refused, Some(ms(150)), Some(Err(refused(Reason::LimitReached)))),
            (270, 10, AttemptOutcome::Success, None, None),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn it_can_be_looked_at_whatever_the_results_are() {
    struct Opaque; // not even Debug
    let retry = Retry::new(Backoff::constant(ms(100))).unwrap();
    let count = AtomicU32::new(0);
    let op = async || {
        sleep(ms(10)).await;
        match count.fetch_add(1, Relaxed) {
            0 | 2 => Err(Failure::Operation(Opaque)),
            1 => Err(Failure::from(Rejection::new(PolicyKind::RateLimit, Reason::LimitReached))),
            _ => Ok(Opaque),
        }
    };
    let (_, report) = retry.execute_with_report(op).await;
    let lines = [
        "attempt 1: at 0ns, transient after 10ms, then a delay of 100ms",
        "attempt 2: at 110ms, refused after 10ms, then a delay of 100ms",
        "attempt 3: at 220ms, transient after 10ms",
        "stopped: attempts",
    ];
    assert_eq!(report.to_string(), lines.join("\n"));
    let (_, report) = retry.execute_with_report(op).await;
    assert_eq!(report.to_string(), "attempt 1: at 0ns, success after 10ms\nsucceeded");
}

#[tokio::test(start_paused = true)]
async fn it_says_why_it_stopped_and_the_answer_is_the_one_worth_most() {
    let timed_out = || Failure::TimedOut(TimedOut::new(ms(7)));
    let retry = || Retry::new(Backoff::constant(ms(1))).unwrap().with_max_attempts(attempts(4));
    let (result, report) = report_of(
        retry(),
        vec![Failure::Operation("a"), Failure::Operation("b"), timed_out(), refused(Reason::ShutDown)],
    )
    .await;
    assert_eq!(result, Err(Failure::Operation("b")));
    assert_eq!(report.stopped(), Some(StopReason::Refused));
    let results: Vec<_> = report.into_attempts().iter().map(|a| a.result().cloned()).collect();
    let (a, last) = (Some(Err(Failure::Operation("a"))), Some(Err(refused(Reason::ShutDown))));
    assert_eq!(results, [a, None, Some(Err(timed_out())), last]);
    // It may have run: that is never said to be "not started".
    let (result, _) = report_of(retry(), vec![timed_out(), refused(Reason::ShutDown)]).await;
    assert_eq!(result, Err(timed_out()));
    let (result, _) = report_of(retry(), vec![refused(Reason::QueueFull), refused(Reason::ShutDown)]).await;
    assert_eq!(result, Err(refused(Reason::ShutDown)));
    // Without a report as with one.
    let answers = [timed_out(), refused(Reason::ShutDown)];
    let count = AtomicU32::new(0);
    let op = async || Err::<(), _>(answers[count.fetch_add(1, Relaxed) as usize].clone());
    assert_eq!(async_retry::Policy::execute(&retry(), op).await, Err(timed_out()));
}

#[tokio::test(start_paused = true)]
async fn each_reason_to_stop_is_told() {
    type Change = fn(Retry) -> Retry;
    let table: [(Change, StopReason); 4] = [
        (|retry| retry, StopReason::Attempts),
        (|retry| retry.with_max_elapsed(ms(1500)), StopReason::Elapsed),
        (
            |retry| retry.with_budget(async_retry::Budget::token_bucket(4, attempts(5), attempts(5))),
            StopReason::Budget,
        ),
        (|retry| retry.with_max_attempts(attempts(1)), StopReason::Attempts),
    ];
    for (change, reason) in table {
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        let retry = change(Retry::new(Backoff::constant(ms(1000))).unwrap())
            .with_listener(move |event| sink.lock().unwrap().push(*event));
        let (_, report) = report_of(retry, vec![Failure::Operation("down"); 9]).await;
        assert_eq!(report.stopped(), Some(reason));
        let events = events.lock().unwrap();
        let made = u32::try_from(report.attempts().len()).unwrap();
        assert_eq!(events.last(), Some(&Event::GaveUp { attempts: made, reason }));
        let scheduled = events.iter().filter(|event| matches!(event, Event::Scheduled { .. })).count();
        assert_eq!(scheduled + 1, report.attempts().len());
    }
    let (_, report) = async {
        let deadline = async_policy::Deadline::after(ms(500)).unwrap();
        let retry = Retry::new(Backoff::constant(ms(1000))).unwrap();
        deadline.scope(report_of(retry, vec![Failure::Operation("down")])).await
    }
    .await;
    assert_eq!(report.stopped(), Some(StopReason::Deadline));
    let permanent = (async || Err::<(), _>("no such thing")).classify_with(|_| Verdict::Permanent);
    let (_, report) = Retry::default().call_with_report(permanent).await;
    assert_eq!(report.stopped(), Some(StopReason::Permanent));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_gets_what_is_left_of_the_deadline_and_the_report_comes_back() {
    let retry = Retry::new(Backoff::constant(ms(50))).unwrap();
    let count = AtomicU32::new(0);
    let op = async || match count.fetch_add(1, Relaxed) % 2 {
        0 => Err("down"),
        _ => std::future::pending::<Result<(), _>>().await,
    };
    // The second attempt would have 200 ms and gets the 40 that are left; the last answer stands.
    for limit in [ms(200), Duration::MAX] {
        let retry = retry.clone().with_attempt_timeout(limit);
        let deadline = Deadline::after(ms(90)).unwrap();
        let (result, report) = deadline.scope(retry.call_with_report(op)).await;
        assert_eq!(result, Err(Failure::Operation("down")));
        assert_eq!((report.stopped(), report.elapsed()), (Some(StopReason::Deadline), ms(90)));
        assert_eq!(report.attempts()[1].outcome(), AttemptOutcome::TimedOut);
        let Some(Err(Failure::TimedOut(timed_out))) = report.attempts()[1].result() else { panic!("cut") };
        assert_eq!(timed_out.limit(), ms(40));

        let started = Instant::now();
        assert_eq!((Timeout::from_millis(90), &retry).call(op).await, Err(Failure::Operation("down")));
        let mut lent = 0;
        let call = retry.call_mut(|| {
            lent += 1;
            let first = lent == 1;
            async move { if first { Err("down") } else { std::future::pending::<Result<(), _>>().await } }
        });
        assert_eq!(Deadline::after(ms(90)).unwrap().scope(call).await, Err(Failure::Operation("down")));
        assert_eq!(started.elapsed(), ms(180));
    }
}
