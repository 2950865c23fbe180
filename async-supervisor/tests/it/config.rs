//! Bad input: refused with the field and the value, and nothing is started.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_supervisor::{
    AutoShutdown, Backoff, Child, Context, Every, Intensity, Restart, StartError, Supervisor, Tasks,
};

use crate::common::{idle as child, settle};

#[tokio::test(start_paused = true)]
async fn it_is_refused_by_field_and_value() {
    let one = Supervisor::one_for_one;
    let second = Duration::from_secs(1);
    let tasks = Tasks::new("jobs", std::num::NonZeroUsize::MIN);
    let cases = [
        (
            one().with_children([child("a"), child("a")]),
            "invalid `child.name`: a; expected a name of its own; it is there twice in `supervisor`",
        ),
        (
            one().with_child(child("")),
            "invalid `child.name`: \"\"; expected a name, without `/` and control characters",
        ),
        (
            one().with_child(child("a/b")),
            "invalid `child.name`: \"a/b\"; expected a name, without `/` and control characters",
        ),
        (
            one().with_child(child("a\nb")),
            "invalid `child.name`: \"a\\nb\"; expected a name, without `/` and control characters",
        ),
        (
            one().with_intensity(Intensity::new(3, Duration::ZERO)),
            "invalid `intensity.period`: 0ns; expected longer than zero",
        ),
        (one().with_watchdog(Duration::ZERO), "invalid `watchdog`: 0ns; expected longer than zero"),
        (one().with_stop_budget(Duration::ZERO), "invalid `stop_budget`: 0ns; expected longer than zero"),
        (one().with_abort_grace(Duration::ZERO), "invalid `abort_grace`: 0ns; expected longer than zero"),
        (
            one().with_child(tasks.child().with_heartbeat(second)),
            "invalid `child.heartbeat`: 1s; expected none, since supervisors and tracked tasks never beat, for child `jobs`",
        ),
        (
            one().with_child(one().with_name("sub").into_child().with_heartbeat(second)),
            "invalid `child.heartbeat`: 1s; expected none, since supervisors and tracked tasks never beat, for child `sub`",
        ),
        (
            one().with_max_children(1).with_children([child("a"), child("b")]),
            "invalid `max_children`: 1; expected at least the 2 there are",
        ),
        (
            one().with_auto_shutdown(AutoShutdown::AnySignificant).with_child(child("a").with_significant()),
            "invalid `child.significant`: true; expected a restart other than permanent, which never ends for good, for child `a`",
        ),
        (
            one().with_child(child("a").with_restart(Restart::Transient).with_significant()),
            "invalid `child.significant`: true; expected an auto_shutdown of the supervisor, for child `a`",
        ),
        (
            one().with_child(child("a").with_heartbeat(Duration::ZERO)),
            "invalid `child.heartbeat`: 0ns; expected longer than zero, for child `a`",
        ),
        (
            one().with_child(child("a").with_readiness(Duration::ZERO)),
            "invalid `child.readiness`: 0ns; expected longer than zero, for child `a`",
        ),
        (
            one().with_child(
                Child::periodic("a", Every::new(second).with_jitter(0.5), async |_: Context| {})
                    .with_heartbeat(second),
            ),
            "invalid `child.heartbeat`: 1s; expected longer than its period and jitter, since its ticks are its heartbeats, for child `a`",
        ),
        (
            one().with_child(child("a").with_backoff(Backoff::exponential(second, second / 2))),
            "invalid `backoff.cap`: 500ms; expected at least the base, for child `a`",
        ),
        (
            one().with_child(child("a").with_backoff(Backoff::default().with_factor(f64::NAN))),
            "invalid `backoff.factor`: NaN; expected a finite number of at least 1, for child `a`",
        ),
        (
            one().with_child(Child::periodic("a", Every::new(Duration::ZERO), async |_: Context| {})),
            "invalid `every.period`: 0ns; expected longer than zero, for child `a`",
        ),
        (
            one().with_child(Child::periodic(
                "a",
                Every::new(second).with_jitter(1.5),
                async |_: Context| {},
            )),
            "invalid `every.jitter`: 1.5; expected a fraction from 0 to 1, for child `a`",
        ),
    ];
    for (supervisor, text) in cases {
        let started = Arc::new(AtomicBool::new(false));
        let first =
            Child::with("first", Arc::clone(&started), async |_: Context, started: Arc<AtomicBool>| {
                started.store(true, Relaxed);
            });
        let below = supervisor.clone().with_name("below").into_child();
        let nested = Supervisor::one_for_one().with_children([first, below]);
        let error = supervisor.start().await.unwrap_err();
        assert!(matches!(error, StartError::Config(_)));
        assert_eq!(error.to_string(), text);
        // Below, it is refused just so, before anything is started.
        let error = nested.start().await.unwrap_err();
        assert!(matches!(error, StartError::Config(_)));
        assert_eq!(error.to_string(), text.replace("in `supervisor`", "in `below`"));
        settle().await;
        assert!(!started.load(Relaxed));
    }
}

#[tokio::test(start_paused = true)]
async fn extreme_durations_are_what_they_say() {
    let forever = Duration::MAX;
    let supervisor = Supervisor::one_for_all()
        .with_stop_budget(forever)
        .with_abort_grace(forever)
        .with_child(child("a").with_readiness(forever).with_heartbeat(forever))
        .with_child(child("b").with_backoff(Backoff::constant(forever)));
    let running = supervisor.spawn().unwrap();
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_has_a_name_that_fits_into_a_path() {
    for name in ["", "a/b"] {
        let error = Supervisor::pool().with_name(name).start().await.unwrap_err().to_string();
        let expected = "expected a name, without `/` and control characters";
        assert_eq!(error, format!("invalid `supervisor.name`: {name:?}; {expected}"));
    }
}
