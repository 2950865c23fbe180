//! One call: the future that the closure form and the tower form share.

use std::borrow::Borrow;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_policy::{Deadline, Outcome, PolicyError, Verdict};
use pin_project_lite::pin_project;
use tokio::task::coop::{poll_proceed, unconstrained};
use tokio::time::Sleep;

use crate::Retry;
use crate::report::Record;
use crate::retry::{Began, Past, Pause};

/// How the attempts of a call are started and judged.
pub(crate) trait Attempts {
    type Value;
    type Error: PolicyError;
    type Future: Future<Output = Result<Self::Value, Self::Error>>;

    /// Starts the next attempt, once what it runs on is ready.
    fn poll_start(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::Future, Self::Error>>;

    /// What an answer means.
    fn classify(&self, answer: Result<&Self::Value, &Self::Error>) -> Option<Verdict>;

    /// Whether another attempt can be started at all.
    fn is_repeatable(&self) -> bool;
}

pin_project! {
    pub(crate) struct Call<P, A, R>
    where
        A: Attempts,
    {
        #[pin]
        state: State<A::Future>,
        attempts: A,
        retry: P,
        // Written in the first poll: what a future is made with is copied when it is moved.
        began: Option<Began>,
        // Boxed, and made when an attempt has failed: inline it would cost every success.
        past: Option<Box<Past<R>>>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        Starting,
        Running { #[pin] attempt: F },
        // Boxed as the past is.
        Timed { attempt: Pin<Box<Timed<F>>> },
        Pausing { timer: Pin<Box<Sleep>> },
        Yielding,
    }
}

impl<F> State<F> {
    #[inline]
    fn running(attempt: F, retry: &Retry) -> Self {
        match retry.attempt_timeout() {
            None => Self::Running { attempt },
            Some(limit) => Self::timed(attempt, limit),
        }
    }

    #[cold]
    #[inline(never)]
    fn timed(attempt: F, limit: Duration) -> Self {
        Self::Timed { attempt: Box::pin(Timed::new(attempt, limit)) }
    }

    fn after(pause: Pause) -> Self {
        match pause {
            Pause::None => Self::Starting,
            Pause::Yield => Self::Yielding,
            Pause::Sleep(delay) => Self::Pausing { timer: Box::pin(tokio::time::sleep(delay)) },
        }
    }
}

impl<P, A, R> Call<P, A, R>
where
    P: Borrow<Retry>,
    A: Attempts,
{
    /// A call whose first attempt is started when it is first polled.
    #[inline]
    pub(crate) fn new(retry: P, attempts: A) -> Self {
        Self { state: State::Starting, attempts, retry, began: None, past: None }
    }

    /// A call whose first attempt has been started.
    #[inline]
    #[cfg(feature = "tower")]
    pub(crate) fn started(retry: P, attempts: A, attempt: A::Future) -> Self {
        let state = State::running(attempt, retry.borrow());
        Self { state, attempts, retry, began: None, past: None }
    }

    /// A call that may have a past.
    #[inline]
    pub(crate) fn resumed(retry: P, attempts: A, past: Option<Resumed<R>>) -> Self {
        let mut call = Self::new(retry, attempts);
        if let Some((past, pause)) = past {
            call.past = Some(past);
            call.state = State::after(pause);
        }
        call
    }
}

/// What a call goes on from.
pub(crate) type Resumed<R> = (Box<Past<R>>, Pause);

impl<P, A, R> Future for Call<P, A, R>
where
    P: Borrow<Retry>,
    A: Attempts,
    R: Record<A::Value, A::Error> + Default,
{
    type Output = R::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R::Output> {
        let mut this = self.project();
        let retry: &Retry = (*this.retry).borrow();
        if !retry.is_plain() && this.began.is_none() {
            *this.began = Some(retry.begin());
        }
        loop {
            match this.state.as_mut().project() {
                StateProjection::Running { attempt } => {
                    let result = ready!(attempt.poll(cx));
                    let attempts = &*this.attempts;
                    if !R::ALL && retry.is_plain() && is_success(&result, |answer| attempts.classify(answer))
                    {
                        return Poll::Ready(R::finish(None, result));
                    }
                    match resume(retry, attempts, this.began.as_ref(), this.past, result) {
                        ControlFlow::Break(output) => {
                            // Over, however long the future is kept.
                            end(this.began);
                            return Poll::Ready(output);
                        }
                        // The failed attempt is dropped here: what it held is free before the next one asks for it.
                        ControlFlow::Continue(pause) => this.state.set(State::after(pause)),
                    }
                }
                StateProjection::Starting => {
                    let attempt = match ready!(this.attempts.poll_start(cx)) {
                        Ok(attempt) => attempt,
                        Err(error) => {
                            end(this.began);
                            let past = this.past.take();
                            retry.not_ready(past.as_ref().map_or(0, |past| past.progress.attempts));
                            let past = past.map(|past| past.record);
                            return Poll::Ready(R::finish(past, Err(error)));
                        }
                    };
                    if R::ALL {
                        this.past.get_or_insert_default().record.start();
                    }
                    this.state.set(State::running(attempt, retry));
                }
                StateProjection::Timed { attempt } => {
                    let result = match ready!(attempt.as_mut().poll(cx)) {
                        Some(result) => result,
                        None => Err(A::Error::from_timed_out(retry.timed_out())),
                    };
                    match resume(retry, this.attempts, this.began.as_ref(), this.past, result) {
                        ControlFlow::Break(output) => {
                            // Over, however long the future is kept.
                            end(this.began);
                            return Poll::Ready(output);
                        }
                        ControlFlow::Continue(pause) => this.state.set(State::after(pause)),
                    }
                }
                StateProjection::Pausing { timer } => {
                    ready!(timer.as_mut().poll(cx));
                    this.state.set(State::Starting);
                }
                StateProjection::Yielding => {
                    ready!(poll_proceed(cx)).made_progress();
                    this.state.set(State::Starting);
                }
            }
        }
    }
}

/// The call is over, however long its future is kept. Out of line, as all that a plain success does not need.
#[inline(never)]
fn end(began: &mut Option<Began>) {
    *began = None;
}

/// An attempt ended, and it is not a success that nobody watches.
#[inline(never)]
fn resume<A, R>(
    retry: &Retry,
    attempts: &A,
    began: Option<&Began>,
    past: &mut Option<Box<Past<R>>>,
    result: Result<A::Value, A::Error>,
) -> ControlFlow<R::Output, Pause>
where
    A: Attempts,
    R: Record<A::Value, A::Error> + Default,
{
    let classify = |answer: Result<&_, &_>| attempts.classify(answer);
    let again = attempts.is_repeatable();
    if let Some(boxed) = past {
        match retry.settle(began, boxed, again, classify, result) {
            ControlFlow::Continue(pause) => return ControlFlow::Continue(pause),
            ControlFlow::Break(result) => {
                let record = past.take().map(|past| past.record);
                return ControlFlow::Break(R::finish(record, result));
            }
        }
    }
    let mut fresh = Past::<R>::default();
    match retry.settle(began, &mut fresh, again, classify, result) {
        ControlFlow::Continue(pause) => {
            *past = Some(Box::new(fresh));
            ControlFlow::Continue(pause)
        }
        ControlFlow::Break(result) => ControlFlow::Break(R::finish(Some(fresh.record), result)),
    }
}

#[inline]
pub(crate) fn is_success<T, E: PolicyError>(
    result: &Result<T, E>,
    classify: impl FnOnce(Result<&T, &E>) -> Option<Verdict>,
) -> bool {
    matches!(Outcome::of(result, classify), Outcome::Answered(Verdict::Success))
}

pin_project! {
    /// An attempt under its time-out; `None` when that has expired. The clock runs from the first poll, the timer is armed when the
    /// attempt is first pending. (The kernel's time-out asks for a future that is `Send`.)
    pub(crate) struct Timed<F> {
        #[pin]
        attempt: F,
        #[pin]
        timer: Option<Sleep>,
        limit: Duration,
    }
}

impl<F> Timed<F> {
    pub(crate) fn new(attempt: F, limit: Duration) -> Self {
        Self { attempt, timer: None, limit }
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let deadline = match this.timer.as_ref().as_pin_ref() {
            Some(timer) => Some(Deadline::at(timer.deadline())),
            None => Deadline::after(*this.limit),
        };
        // A limit later than the clock can tell never ends.
        let Some(deadline) = deadline else { return this.attempt.poll(cx).map(Some) };
        if let Poll::Ready(output) = pin!(deadline.scope(this.attempt)).poll(cx) {
            return Poll::Ready(Some(output));
        }
        if this.limit.is_zero() {
            return Poll::Ready(None);
        }
        if this.timer.is_none() {
            this.timer.set(Some(tokio::time::sleep_until(deadline.instant())));
        }
        // An attempt that used up the task's budget must not keep the timer from being looked at.
        match this.timer.as_pin_mut() {
            Some(timer) => Pin::new(&mut unconstrained(timer)).poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    }
}
