use std::error::Error;
use std::io;
use std::time::Duration;

use async_policy::{
    ByError, Classify, Failure, Name, Outcome, PolicyError, PolicyKind, Reason, Rejection, TimedOut, Verdict,
};

fn refusal() -> Rejection {
    Rejection::new(PolicyKind::RateLimit, Reason::WaitTooLong)
        .with_name("api")
        .with_retry_after(Duration::from_millis(40))
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text += ": ";
        text += &source.to_string();
        next = source.source();
    }
    text
}

#[test]
fn a_failure_prints_each_part_of_its_chain_once() {
    let io = || io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused");
    assert_eq!(chain(&Failure::Operation(io())), "connection refused");
    assert_eq!(
        chain(&Failure::<io::Error>::Rejected(refusal())),
        "operation not started: rate limit `api` refused: wait longer than allowed (retry after 40ms)"
    );
    assert_eq!(
        chain(&Failure::<io::Error>::TimedOut(TimedOut::new(Duration::from_secs(2)))),
        "operation timed out: timeout expired: no answer within 2s"
    );
}

#[test]
fn the_alternate_form_says_who_and_why_on_one_line() {
    let failure = Failure::<io::Error>::Rejected(refusal());
    assert_eq!(
        format!("{failure:#}"),
        "operation not started: rate limit `api` refused: wait longer than allowed (retry after 40ms)"
    );
    let failure = Failure::<io::Error>::TimedOut(TimedOut::new(Duration::from_secs(2)));
    assert_eq!(format!("{failure:#}"), "operation timed out: timeout expired: no answer within 2s");
}

#[test]
fn what_is_put_into_an_error_comes_back_out() {
    fn check<E: PolicyError>() {
        let rejected = E::from_rejection(refusal());
        assert_eq!(rejected.rejection(), Some(&refusal()));
        assert_eq!(rejected.timed_out(), None);
        let timed_out = E::from_timed_out(TimedOut::new(Duration::from_secs(2)));
        assert_eq!(timed_out.timed_out(), Some(&TimedOut::new(Duration::from_secs(2))));
        assert_eq!(timed_out.rejection(), None);
    }
    check::<Failure<io::Error>>();
    check::<Failure<()>>();
    check::<Box<dyn Error + Send + Sync>>();
    #[cfg(feature = "anyhow")]
    check::<anyhow::Error>();
}

#[test]
fn a_boxed_error_is_searched_to_its_root() {
    let nested: Box<dyn Error + Send + Sync> = Box::new(Failure::<io::Error>::Rejected(refusal()));
    assert_eq!(nested.rejection(), Some(&refusal()));
    let deeper: Box<dyn Error + Send + Sync> =
        Box::new(Failure::Operation(Failure::<io::Error>::TimedOut(TimedOut::new(Duration::from_secs(1)))));
    assert_eq!(deeper.timed_out(), Some(&TimedOut::new(Duration::from_secs(1))));
    let foreign: Box<dyn Error + Send + Sync> = "boom".into();
    assert_eq!((foreign.rejection(), foreign.timed_out()), (None, None));
}

#[cfg(feature = "anyhow")]
#[test]
fn anyhow_is_searched_through_its_context() {
    let error = anyhow::Error::new(refusal()).context("while fetching").context("in the morning");
    assert_eq!(error.rejection(), Some(&refusal()));
    let nested = anyhow::Error::new(Failure::<io::Error>::Rejected(refusal())).context("while fetching");
    assert_eq!(nested.rejection(), Some(&refusal()));
}

#[test]
fn the_table_of_outcomes() {
    enum Own {
        Bad,
        Refused(Rejection),
        TimedOut(TimedOut),
    }
    impl PolicyError for Own {
        fn from_rejection(rejection: Rejection) -> Self {
            Self::Refused(rejection)
        }
        fn from_timed_out(timed_out: TimedOut) -> Self {
            Self::TimedOut(timed_out)
        }
        fn rejection(&self) -> Option<&Rejection> {
            if let Self::Refused(rejection) = self { Some(rejection) } else { None }
        }
        fn timed_out(&self) -> Option<&TimedOut> {
            if let Self::TimedOut(timed_out) = self { Some(timed_out) } else { None }
        }
        fn verdict(&self) -> Verdict {
            Verdict::Permanent
        }
    }
    let throttled = Verdict::Throttled { retry_after: Some(Duration::from_secs(3)) };
    let table: [(Result<(), Own>, Option<Verdict>, Verdict); 7] = [
        (Ok(()), None, Verdict::Success),
        (Ok(()), Some(throttled), throttled),
        (Err(Own::Bad), None, Verdict::Permanent),
        (Err(Own::Bad), Some(Verdict::Transient), Verdict::Transient),
        (Err(Own::Bad), Some(Verdict::Ignored), Verdict::Ignored),
        // The word of an inner policy stands above the classifier.
        (Err(Own::from_rejection(refusal())), Some(Verdict::Permanent), Verdict::Ignored),
        (
            Err(Own::from_timed_out(TimedOut::new(Duration::ZERO))),
            Some(Verdict::Permanent),
            Verdict::Transient,
        ),
    ];
    for (n, (result, classified, verdict)) in table.iter().enumerate() {
        assert_eq!(Outcome::of(result, |_| *classified).verdict(), *verdict, "row {n}");
    }
}

#[test]
fn what_errors_carry_stays_small() {
    // Results travel through every layer of a stack, on the success path too.
    assert!(size_of::<Rejection>() <= 24 && size_of::<TimedOut>() <= 16);
    assert!(size_of::<Result<u64, Failure<()>>>() <= 24);
}

#[test]
fn times_keep_their_value_up_to_years() {
    for wait in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(86_400 * 365)] {
        assert_eq!(
            Rejection::new(PolicyKind::Custom, Reason::Custom).with_retry_after(wait).retry_after(),
            Some(wait)
        );
        assert_eq!(TimedOut::new(wait).limit(), wait);
    }
    assert_eq!(Rejection::new(PolicyKind::Custom, Reason::Custom).retry_after(), None);
    let longest =
        Rejection::new(PolicyKind::Custom, Reason::Custom).with_retry_after(Duration::MAX).retry_after();
    assert!(longest.unwrap() > Duration::from_secs(86_400 * 365 * 2));
    assert!(TimedOut::new(Duration::MAX).limit() > Duration::from_secs(86_400 * 365 * 500));
}

#[test]
fn a_name_is_its_text() {
    let name = Name::from("quotes");
    assert_eq!(
        (&*name, name.to_string(), format!("{name:?}")),
        ("quotes", "quotes".into(), "\"quotes\"".into())
    );
    assert_eq!(name, Name::from(String::from("quotes")));
    assert_eq!(name, Name::from(std::sync::Arc::<str>::from("quotes")));
    let rejection = refusal().with_name(name.clone());
    assert_eq!(rejection.name(), Some("quotes"));
}

#[test]
fn a_reason_says_whether_coming_back_makes_sense() {
    for reason in [
        Reason::CircuitOpen,
        Reason::ProbesTaken,
        Reason::LimitReached,
        Reason::QueueFull,
        Reason::WaitTooLong,
    ] {
        assert!(reason.may_pass(), "{reason}");
    }
    for reason in [Reason::DeadlineTooClose, Reason::ExceedsCapacity, Reason::BudgetSpent, Reason::ShutDown] {
        assert!(!reason.may_pass(), "{reason}");
    }
    let every = [
        Reason::CircuitOpen,
        Reason::ProbesTaken,
        Reason::RampingUp,
        Reason::LimitReached,
        Reason::QueueFull,
        Reason::WaitTooLong,
        Reason::DeadlineTooClose,
        Reason::ExceedsCapacity,
        Reason::BudgetSpent,
        Reason::ShutDown,
        Reason::Custom,
    ];
    for reason in every {
        let rejection = Rejection::new(PolicyKind::Custom, reason);
        assert_eq!(rejection.reason(), reason);
        assert_eq!(rejection.with_retry_after(Duration::from_secs(3)).reason(), reason);
    }
}

#[test]
fn a_classifier_is_a_function_or_the_errors_own_word() {
    let answer: Result<&u16, &()> = Ok(&503);
    let by_status = |answer: Result<&u16, &()>| match answer {
        Ok(503) => Verdict::Transient,
        _ => Verdict::Success,
    };
    assert_eq!(by_status.classify(answer), Some(Verdict::Transient));
    assert_eq!(ByError.classify(answer), None);
}

#[test]
fn kinds_and_reasons_have_a_word_each() {
    let kinds =
        [PolicyKind::CircuitBreaker, PolicyKind::ConcurrencyLimit, PolicyKind::RateLimit, PolicyKind::File];
    assert_eq!(kinds.map(PolicyKind::as_str), ["circuit_breaker", "concurrency_limit", "rate_limit", "file"]);
    let reasons = [Reason::CircuitOpen, Reason::DeadlineTooClose, Reason::BudgetSpent, Reason::ShutDown];
    assert_eq!(
        reasons.map(Reason::as_str),
        ["circuit_open", "deadline_too_close", "budget_spent", "shut_down"]
    );
}
