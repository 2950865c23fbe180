use std::cell::Cell;

use async_policy::{PolicyKind, Reason, TimedOut};
use proptest::prelude::*;

use super::*;
use crate::{Backoff, Jitter};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn attempts(n: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(n)
}

/// A world in which only what is set happens.
struct Still {
    elapsed: Duration,
    room: Duration,
    unit: Cell<u64>,
}

impl Default for Still {
    fn default() -> Self {
        Self { elapsed: Duration::ZERO, room: Duration::MAX, unit: Cell::new(0) }
    }
}

impl World for Still {
    fn elapsed(&self) -> Duration {
        self.elapsed
    }

    fn fits(&self, wait: Duration) -> bool {
        wait < self.room
    }

    fn unit(&self) -> f64 {
        // 0, 0.618, 0.236, …
        let n = self.unit.get();
        self.unit.set(n + 1);
        (n as f64 * 0.618_034).fract()
    }
}

#[derive(Clone)]
struct Case {
    limits: Limits,
    more: More,
}

impl Case {
    fn set(&mut self, backoff: Backoff) {
        self.limits.backoff = backoff.shape;
        self.more.custom = backoff.custom;
    }

    fn next(&self, progress: &mut Progress, outcome: &Outcome<'_>, world: &impl World) -> Next {
        self.limits.next(&self.more, progress, outcome, world)
    }
}

/// The AWS SDKs' standard mode with a jitter of 1: base 1 s, cap 20 s, 3 attempts.
fn aws(capacity: u32) -> (Case, Budget) {
    let budget = Budget::token_bucket(capacity, crate::AWS_COST, crate::AWS_TIMEOUT_COST);
    let limits = Limits {
        backoff: Backoff::exponential(secs(1)).with_jitter(Jitter::None).shape,
        max_attempts: attempts(3),
        wait_for_refusals: true,
    };
    (Case { limits, more: More { budget: Some(budget.clone()), ..More::default() } }, budget)
}

const OK: Outcome<'_> = Outcome::Answered(Verdict::Success);
const BAD: Outcome<'_> = Outcome::Answered(Verdict::Transient);

fn after(seconds: u64) -> Next {
    Next::After(secs(seconds))
}

/// What one call sees in turn, what it does about it, and the tokens that are left then.
#[track_caller]
fn check(case: &Case, steps: &[(Outcome<'_>, Next, f64)]) {
    let mut progress = Progress::default();
    for (n, (outcome, next, tokens)) in steps.iter().enumerate() {
        assert_eq!(case.next(&mut progress, outcome, &Still::default()), *next, "step {n}");
        assert_eq!(case.more.budget.as_ref().unwrap().available(), *tokens, "step {n}");
    }
}

/// From the test cases of the AWS SDKs' "standard" retry mode.
#[test]
fn the_aws_standard_sequences() {
    let stop = Next::Stop;
    // 500, 500, 200
    check(&aws(500).0, &[(BAD, after(1), 495.0), (BAD, after(2), 490.0), (OK, Next::Done, 495.0)]);
    // 502 three times
    let used_up = stop(StopReason::Attempts);
    check(&aws(500).0, &[(BAD, after(1), 495.0), (BAD, after(2), 490.0), (BAD, used_up, 490.0)]);
    // A capacity of 5, and of 0
    check(&aws(5).0, &[(BAD, after(1), 0.0), (BAD, stop(StopReason::Budget), 0.0)]);
    check(&aws(0).0, &[(BAD, stop(StopReason::Budget), 0.0)]);
    // Five attempts
    let mut five = aws(500).0;
    five.limits.max_attempts = attempts(5);
    let steps = [(BAD, after(1), 495.0), (BAD, after(2), 490.0), (BAD, after(4), 485.0)];
    check(&five, &[&steps[..], &[(BAD, after(8), 480.0), (BAD, used_up, 480.0)]].concat());
    // A cap of 3 s
    let mut capped = aws(500).0;
    capped.set(Backoff::exponential(secs(1)).with_jitter(Jitter::None).with_cap(secs(3)));
    capped.limits.max_attempts = attempts(5);
    let steps = [(BAD, after(1), 495.0), (BAD, after(2), 490.0), (BAD, after(3), 485.0)];
    check(&capped, &[&steps[..], &[(BAD, after(3), 480.0), (BAD, used_up, 480.0)]].concat());
}

#[test]
fn a_success_returns_what_its_last_retry_cost_or_one() {
    let (case, budget) = aws(500);
    let timed_out = TimedOut::new(secs(1));
    let timeout = Outcome::TimedOut(&timed_out);
    check(&case, &[(timeout, after(1), 490.0), (BAD, after(2), 485.0), (OK, Next::Done, 490.0)]);
    check(&case, &[(OK, Next::Done, 491.0)]);
    // Aborted in its backoff.
    let mut progress = Progress::default();
    case.next(&mut progress, &BAD, &Still::default());
    assert_eq!(budget.available(), 486.0);
    drop(progress);
    assert_eq!(budget.available(), 491.0);
    // What ends in a permanent error is not given back.
    let permanent = Outcome::Answered(Verdict::Permanent);
    check(&case, &[(BAD, after(1), 486.0), (permanent, Next::Stop(StopReason::Permanent), 486.0)]);
    // What says nothing of the backend costs nothing.
    let ignored = Outcome::Answered(Verdict::Ignored);
    check(&case, &[(BAD, after(1), 481.0), (ignored, Next::Stop(StopReason::Ignored), 481.0)]);
    assert_eq!(budget.available(), 486.0);
}

/// gRFC A6: four tokens, ratio 0.5.
#[test]
fn the_grpc_throttle() {
    let (mut case, _) = aws(0);
    case.more.budget = Some(Budget::grpc_throttle(4, 0.5).unwrap());
    let spent = Next::Stop(StopReason::Budget);
    check(&case, &[(BAD, after(1), 3.0), (BAD, spent, 2.0)]);
    check(&case, &[(OK, Next::Done, 2.5)]);
    check(&case, &[(BAD, spent, 1.5)]);
    for left in [2.0, 2.5, 3.0, 3.5] {
        check(&case, &[(OK, Next::Done, left)]);
    }
    check(&case, &[(BAD, after(1), 2.5), (OK, Next::Done, 3.0)]);
    // A push-back is honoured exactly.
    let throttled = Outcome::Answered(Verdict::Throttled { retry_after: Some(secs(7)) });
    case.more.budget = Some(Budget::grpc_throttle(4, 0.5).unwrap());
    check(&case, &[(throttled, after(7), 3.0)]);
}

#[test]
fn in_flight_retries_are_a_share_of_the_calls() {
    let (mut case, _) = aws(0);
    let budget = Budget::in_flight(0.2, 1).unwrap();
    case.more.budget = Some(budget.clone());
    let (mut first, mut second) = (Progress::default(), Progress::default());
    let next = |progress: &mut Progress, outcome| case.next(progress, outcome, &Still::default());
    assert_eq!(next(&mut first, &BAD), after(1));
    assert_eq!(next(&mut second, &BAD), Next::Stop(StopReason::Budget));
    assert_eq!(next(&mut first, &BAD), after(2), "its own place was free again");
    assert_eq!(next(&mut first, &OK), Next::Done);
    assert_eq!(budget.available(), 1.0);
}

#[test]
fn a_refused_attempt_keeps_its_token_for_the_next() {
    let (mut case, _) = aws(5);
    case.limits.max_attempts = attempts(9);
    let refused = Rejection::new(PolicyKind::RateLimit, Reason::LimitReached).with_retry_after(secs(3));
    let for_ever = Rejection::new(PolicyKind::RateLimit, Reason::ShutDown);
    check(
        &case,
        &[
            (Outcome::Refused(&refused), after(3), 5.0),
            (BAD, after(2), 0.0),
            (Outcome::Refused(&refused), after(3), 0.0),
            (Outcome::Refused(&for_ever), Next::Stop(StopReason::Refused), 0.0),
        ],
    );
    assert_eq!(case.more.budget.as_ref().unwrap().available(), 5.0, "the retry was never started");
}

#[test]
fn those_who_were_told_one_moment_are_spread_behind_it() {
    let (mut case, _) = aws(5);
    case.set(Backoff::exponential(secs(1)));
    let refused = Rejection::new(PolicyKind::CircuitBreaker, Reason::CircuitOpen).with_retry_after(secs(3));
    let world = Still { unit: Cell::new(1), ..Still::default() };
    let next = case.next(&mut Progress::default(), &Outcome::Refused(&refused), &world);
    assert_eq!(next, Next::After(Duration::from_secs_f64(3.618_034)));
    // At the cap too: nobody comes too early, and not all at once.
    let refused = refused.with_retry_after(secs(20));
    let next = case.next(&mut Progress::default(), &Outcome::Refused(&refused), &world);
    assert_eq!(next, Next::After(Duration::from_secs_f64(20.236_068)));
    let refused = refused.with_retry_after(secs(21));
    let next = case.next(&mut Progress::default(), &Outcome::Refused(&refused), &world);
    assert_eq!(next, Next::Stop(StopReason::Refused));
}

#[test]
fn each_limit_stops_it_for_its_own_reason() {
    let stop = |change: fn(&mut Case), world: &Still, outcome: &Outcome<'_>| {
        let (mut case, _) = aws(500);
        change(&mut case);
        case.next(&mut Progress::default(), outcome, world)
    };
    let still = Still::default();
    let ignored = Outcome::Answered(Verdict::Ignored);
    assert_eq!(stop(|_| (), &still, &ignored), Next::Stop(StopReason::Ignored));
    assert_eq!(stop(|c| c.limits.max_attempts = attempts(1), &still, &BAD), Next::Stop(StopReason::Attempts));
    let late = Still { elapsed: secs(9), ..Still::default() };
    assert_eq!(stop(|c| c.more.max_elapsed = Some(secs(10)), &late, &BAD), after(1));
    let limit = Some(Duration::from_millis(9999));
    let next = stop(|c| c.more.max_elapsed = Some(Duration::from_millis(9999)), &late, &BAD);
    assert_eq!((next, limit), (Next::Stop(StopReason::Elapsed), limit));
    let tight = Still { room: secs(1), ..Still::default() };
    assert_eq!(stop(|_| (), &tight, &BAD), Next::Stop(StopReason::Deadline));
    let none = stop(|c| c.set(Backoff::from_delays([])), &still, &BAD);
    assert_eq!(none, Next::Stop(StopReason::Backoff));
    // A deadline takes no token.
    let (case, budget) = aws(500);
    case.next(&mut Progress::default(), &BAD, &tight);
    assert_eq!(budget.available(), 500.0);
}

#[test]
fn a_clock_that_stands_still_does_not_keep_it_going() {
    let (mut case, _) = aws(0);
    case.more.budget = None;
    case.set(Backoff::constant(secs(1)));
    case.limits.max_attempts = None;
    case.more.max_elapsed = Some(secs(10));
    let mut progress = Progress::default();
    let world = Still::default();
    while case.next(&mut progress, &BAD, &world) == after(1) {}
    assert_eq!(progress.attempts, 11);
    // And without a delay it does not spin.
    case.set(Backoff::none());
    assert_eq!(case.next(&mut Progress::default(), &BAD, &world), Next::After(MIN_UNLIMITED_DELAY));
}

fn any_outcome() -> impl Strategy<Value = Result<Verdict, bool>> {
    prop_oneof![
        6 => Just(Ok(Verdict::Transient)),
        2 => (0_u64..40_000).prop_map(|ms| Ok(Verdict::Throttled { retry_after: Some(Duration::from_millis(ms)) })),
        1 => Just(Ok(Verdict::Permanent)),
        1 => Just(Ok(Verdict::Success)),
        1 => Just(Err(true)),
        1 => Just(Err(false)),
    ]
}

fn any_backoff() -> impl Strategy<Value = Backoff> {
    let jitter =
        prop_oneof![Just(Jitter::None), Just(Jitter::Full), Just(Jitter::Equal), Just(Jitter::Decorrelated)];
    let ms = Duration::from_millis;
    (0_usize..4, 0_u64..2_000, 0_u64..20_000, 1.0_f64..9.0, jitter).prop_map(
        move |(curve, base, more, factor, jitter)| {
            let backoff = match curve {
                0 => Backoff::constant(ms(base)),
                1 => Backoff::linear(ms(base), ms(more)),
                2 => Backoff::exponential(ms(base)).with_factor(factor),
                _ => Backoff::fibonacci(ms(base)),
            };
            backoff.with_cap(ms(base + more)).with_jitter(jitter)
        },
    )
}

proptest! {
    /// Whatever the backend does: delays stay within [0, cap], attempts and time within their limits, tokens within the bucket and
    /// all back where they belong.
    #[test]
    fn no_limit_is_ever_exceeded(
        backoff in any_backoff(),
        max in 1_u32..12,
        elapsed in 1_u64..60_000,
        capacity in 0_u32..40,
        outcomes in prop::collection::vec(any_outcome(), 1..40),
        seed in 0_u64..1000,
    ) {
        prop_assert!(backoff.check().is_ok());
        let cap = backoff.cap();
        let max_elapsed = Duration::from_millis(elapsed);
        let (mut case, budget) = aws(capacity);
        case.set(backoff);
        case.limits.max_attempts = attempts(max);
        case.more.max_elapsed = Some(max_elapsed);
        let timed_out = TimedOut::new(secs(1));
        let refusal = Rejection::new(PolicyKind::RateLimit, Reason::LimitReached).with_retry_after(secs(2));
        let mut progress = Progress::default();
        let mut world = Still { unit: Cell::new(seed), ..Still::default() };
        let (mut made, mut held, mut model) = (0, 0, capacity);
        for outcome in &outcomes {
            let outcome = match outcome {
                Ok(verdict) => Outcome::Answered(*verdict),
                Err(true) => Outcome::TimedOut(&timed_out),
                Err(false) => Outcome::Refused(&refusal),
            };
            made += 1;
            prop_assert!(world.elapsed <= max_elapsed, "an attempt at {:?}", world.elapsed);
            let next = case.next(&mut progress, &outcome, &world);
            // The model of the bucket.
            match (&outcome, next) {
                (Outcome::Refused(_), _) => {}
                (Outcome::Answered(Verdict::Success), _) => {
                    model = (model + if held > 0 { held } else { 1 }).min(capacity);
                    held = 0;
                }
                (_, Next::After(_)) => {
                    held = if let Outcome::TimedOut(_) = outcome { 10 } else { 5 };
                    prop_assert!(model >= held, "a retry that the bucket did not allow");
                    model -= held;
                }
                (Outcome::Answered(Verdict::Ignored), _) => {}
                _ => held = 0,
            }
            prop_assert_eq!(budget.available(), f64::from(model));
            match next {
                Next::After(delay) => {
                    // Behind a refusal's moment, itself within the cap, there is the spread of one delay.
                    let most = if let Outcome::Refused(_) = outcome { cap * 2 } else { cap };
                    prop_assert!(delay <= most, "{delay:?} of {cap:?}");
                    world.elapsed += delay;
                    prop_assert!(made < max);
                }
                _ => break,
            }
        }
        prop_assert!(made <= max);
        drop(progress);
        prop_assert_eq!(budget.available(), f64::from((model + held).min(capacity)));
    }
}
