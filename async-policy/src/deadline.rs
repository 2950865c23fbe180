use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Instant;

/// What is in force while a future is being polled. A limit stays relative until its operation has once been pending,
/// so that an operation which is ready at once reads no clock.
#[derive(Clone, Copy)]
struct Slot {
    at: Option<Instant>,
    within: Option<Duration>,
}

thread_local! {
    static CURRENT: Cell<Slot> = const { Cell::new(Slot { at: None, within: None }) };
}

/// Puts the outer limits back when a poll ends, by return or by panic.
pub(crate) struct Entered {
    outer: Slot,
}

fn tighter<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn enter(slot: Slot) -> Entered {
    let outer = CURRENT.get();
    CURRENT.set(Slot { at: tighter(outer.at, slot.at), within: tighter(outer.within, slot.within) });
    Entered { outer }
}

/// For this poll the operation may take `limit` from now.
pub(crate) fn enter_within(limit: Duration) -> Entered {
    enter(Slot { at: None, within: Some(limit) })
}

/// For this poll the operation may take until `at`.
pub(crate) fn enter_at(at: Instant) -> Entered {
    enter(Slot { at: Some(at), within: None })
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.outer);
    }
}

/// The instant by which the caller must have an answer.
///
/// A [`Timeout`](crate::Timeout) sets it for everything inside; retries, limits and hedges ask
/// [`current`](Self::current) and refuse at once a wait that cannot fit.
///
/// It travels in a thread-local that is set for the length of each poll. So it reaches every future that is polled
/// inside, and **not** a spawned task, the worker of a tower `Buffer`, or another thread: carry it there by hand.
///
/// ```
/// use async_policy::{Deadline, Failure, Guard, Timeout};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let work = async {
///     let deadline = Deadline::current().expect("set by the time-out outside");
///     let task = tokio::spawn(deadline.scope(async {
///         Deadline::current().unwrap().remaining() <= Duration::from_millis(250)
///     }));
///     Ok::<_, Failure<()>>(task.await.unwrap())
/// };
/// assert!(Timeout::from_millis(250).run(work).await.unwrap());
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline at an instant.
    #[must_use]
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The deadline `limit` from now; `None` if that is later than the clock can tell.
    #[must_use]
    pub fn after(limit: Duration) -> Option<Self> {
        Instant::now().checked_add(limit).map(Self)
    }

    /// The tightest deadline in force round the code that asks, if any. It reads the clock only where a time-out
    /// outside has not been pending yet.
    #[must_use]
    pub fn current() -> Option<Self> {
        let slot = CURRENT.get();
        let within = slot.within.and_then(Self::after);
        tighter(slot.at.map(Self), within)
    }

    /// The instant itself.
    #[must_use]
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// How long there is left; zero once it has passed.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether a wait of `wait` from now would end before the deadline in force. Without one, every wait fits; reads
    /// no clock then.
    #[must_use]
    pub fn fits(wait: Duration) -> bool {
        let slot = CURRENT.get();
        slot.within.is_none_or(|within| wait < within)
            && slot.at.is_none_or(|at| Instant::now().checked_add(wait).is_some_and(|end| end < at))
    }

    /// Puts this deadline in force inside `future`, on top of those it is polled under. It does not end the future:
    /// that is what a [`Timeout`](crate::Timeout) is for.
    pub const fn scope<F: Future>(self, future: F) -> DeadlineScope<F> {
        DeadlineScope { future, deadline: self }
    }
}

pin_project! {
    /// A future with a deadline in force inside: see [`Deadline::scope`].
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct DeadlineScope<F> {
        #[pin]
        future: F,
        deadline: Deadline,
    }
}

impl<F: Future> Future for DeadlineScope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = enter_at(this.deadline.0);
        this.future.poll(cx)
    }
}
