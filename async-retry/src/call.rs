//! One call: the future that the closure form and the tower form share.

use std::borrow::Borrow;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_policy::{Deadline, Operation, Outcome, PolicyError, Verdict};
use pin_project_lite::pin_project;
use tokio::task::coop::{poll_proceed, unconstrained};
use tokio::time::Sleep;

use crate::report::Record;
use crate::retry::{Began, Past, Pause};
use crate::{AttemptOutcome, Retry};

/// How the attempts of a call are started and judged.
pub(crate) trait Attempts {
    type Value;
    type Error: PolicyError;
    type Future: Future<Output = Result<Self::Value, Self::Error>>;

    /// Starts the next attempt, once what it runs on is ready. After the `last` one there will be no other.
    fn poll_start(&mut self, cx: &mut Context<'_>, last: bool) -> Poll<Result<Self::Future, Self::Error>>;

    /// What an answer means.
    fn classify(&self, answer: Result<&Self::Value, &Self::Error>) -> Option<Verdict>;

    /// Whether another attempt can be started at all.
    fn is_repeatable(&self) -> bool;
}

/// The attempts of an operation.
pub(crate) struct Starts<Op>(pub(crate) Op);

impl<Op> Attempts for Starts<Op>
where
    Op: Operation,
    Op::Error: PolicyError,
{
    type Value = Op::Value;
    type Error = Op::Error;
    type Future = Op::Future;

    #[inline]
    fn poll_start(&mut self, _: &mut Context<'_>, _: bool) -> Poll<Result<Op::Future, Op::Error>> {
        Poll::Ready(Ok(self.0.start()))
    }

    #[inline]
    fn classify(&self, answer: Result<&Op::Value, &Op::Error>) -> Option<Verdict> {
        self.0.classify(answer)
    }

    #[inline]
    fn is_repeatable(&self) -> bool {
        true
    }
}

pin_project! {
    pub(crate) struct Call<P, A, R>
    where
        A: Attempts,
        R: Record<A::Value, A::Error>,
    {
        #[pin]
        state: State<A::Future, R::Output>,
        attempts: A,
        retry: P,
        story: Story<R>,
    }
}

/// What a call knows of itself. What a future is made with is copied when it is moved: at first that is next to nothing.
enum Story<R> {
    New,
    Began(Began),
    /// Boxed, and made when an attempt has failed.
    Past(Box<Past<R>>),
}

impl<R: Default> Story<R> {
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::New)
    }

    fn into_past(self) -> Past<R> {
        match self {
            Self::New => Past::default(),
            Self::Began(began) => Past { began, ..Past::default() },
            Self::Past(past) => *past,
        }
    }

    /// Makes it, where there is none.
    fn past(&mut self) -> &mut Past<R> {
        let past = match self.take() {
            Self::Past(past) => past,
            story => Box::new(story.into_past()),
        };
        *self = Self::Past(past);
        let Self::Past(past) = self else { unreachable!("just put there") };
        past
    }

    /// How many attempts have ended.
    fn attempts(&self) -> u32 {
        match self {
            Self::New | Self::Began(_) => 0,
            Self::Past(past) => past.progress.attempts,
        }
    }

    /// Runs a piece of an attempt.
    fn run<T>(&mut self, attempt: impl FnOnce() -> T) -> T {
        match self {
            Self::Past(past) => past.progress.guard(attempt),
            // The first one holds no token.
            _ => attempt(),
        }
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, O> {
        Starting,
        Running { #[pin] attempt: F },
        // Boxed as the past is.
        Timed { attempt: Pin<Box<Timed<F>>> },
        Pausing { timer: Pin<Box<Sleep>> },
        Yielding,
        // Left here by what is out of line: an output that came back by its address could not stay in registers where it is made at once.
        Over { output: Option<O> },
    }
}

impl<F, O> State<F, O> {
    #[inline]
    fn running(attempt: F, retry: &Retry) -> Self {
        match retry.attempt_timeout() {
            None => Self::Running { attempt },
            Some(limit) => Self::Timed { attempt: Timed::boxed((attempt, limit)) },
        }
    }

    fn after(pause: Pause) -> Self {
        match pause {
            Pause::None => Self::Starting,
            Pause::Yield => Self::Yielding,
            Pause::Sleep(delay) => Self::Pausing { timer: Box::pin(tokio::time::sleep(delay)) },
        }
    }

    const fn over(output: O) -> Self {
        Self::Over { output: Some(output) }
    }
}

impl<P, A, R> Call<P, A, R>
where
    P: Borrow<Retry>,
    A: Attempts,
    R: Record<A::Value, A::Error>,
{
    /// A call whose first attempt is started when it is first polled.
    #[inline]
    pub(crate) fn new(retry: P, attempts: A) -> Self {
        Self { state: State::Starting, attempts, retry, story: Story::New }
    }

    /// A call whose first attempt has been started.
    #[inline]
    #[cfg(feature = "tower")]
    pub(crate) fn started(retry: &Retry, attempts: A, attempt: A::Future) -> Call<Retry, A, R> {
        let state = State::running(attempt, retry);
        Call { state, attempts, retry: retry.clone(), story: Story::New }
    }

    /// A call that goes on.
    #[inline]
    pub(crate) fn resumed(retry: P, attempts: A, (past, pause): Resumed<R>) -> Self {
        Self { state: State::after(pause), attempts, retry, story: Story::Past(past) }
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

    // Always: copying a result from one frame to the next costs more than all the rest of a plain success.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R::Output> {
        let this = self.as_mut().project();
        if !R::ALL
            && (*this.retry).borrow().is_plain()
            && let StateProjection::Running { attempt } = this.state.project()
        {
            let attempts = &*this.attempts;
            match judge(ready!(attempt.poll(cx)), |answer| attempts.classify(answer)) {
                Ok(value) => return Poll::Ready(R::finish(None, Ok(value))),
                Err((verdict, result)) => self.as_mut().end(verdict, result),
            }
        }
        ready!(self.as_mut().go_on(cx));
        let StateProjection::Over { output } = self.project().state.project() else {
            unreachable!("it went on until it was over")
        };
        Poll::Ready(output.take().expect("polled again after its end"))
    }
}

// Out of line: what a plain success does not need.
impl<P, A, R> Call<P, A, R>
where
    P: Borrow<Retry>,
    A: Attempts,
    R: Record<A::Value, A::Error> + Default,
{
    #[inline(never)]
    fn go_on(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.as_mut().project();
        let retry: &Retry = (*this.retry).borrow();
        if !matches!(*this.state, State::Over { .. }) {
            if matches!(this.story, Story::New) && !retry.is_plain() {
                *this.story = Story::Began(retry.begin());
            }
            if R::ALL {
                // A report begins with the call, also where its first attempt has been started.
                this.story.past();
            }
        }
        loop {
            let mut this = self.as_mut().project();
            let retry: &Retry = (*this.retry).borrow();
            let result = match this.state.as_mut().project() {
                StateProjection::Running { attempt } => ready!(this.story.run(|| attempt.poll(cx))),
                StateProjection::Timed { attempt } => {
                    let result = ready!(this.story.run(|| attempt.as_mut().poll(cx)));
                    result.unwrap_or_else(|limit| Err(A::Error::from_timed_out(retry.timed_out(limit))))
                }
                StateProjection::Starting => {
                    let last = retry.is_last(this.story.attempts());
                    match ready!(this.story.run(|| this.attempts.poll_start(cx, last))) {
                        Ok(attempt) => {
                            this.state.set(State::running(attempt, retry));
                            if R::ALL {
                                this.story.past().record.start();
                            }
                        }
                        Err(error) => {
                            let past = this.story.take().into_past();
                            this.state.set(State::over(retry.not_ready(past, error)));
                        }
                    }
                    continue;
                }
                StateProjection::Pausing { timer } => {
                    ready!(timer.as_mut().poll(cx));
                    this.state.set(State::Starting);
                    continue;
                }
                StateProjection::Yielding => {
                    ready!(poll_proceed(cx)).made_progress();
                    this.state.set(State::Starting);
                    continue;
                }
                StateProjection::Over { .. } => return Poll::Ready(()),
            };
            let verdict = this.story.run(|| verdict_of(&result, |answer| this.attempts.classify(answer)));
            self.as_mut().end(verdict, result);
        }
    }

    /// An attempt ended, and it is not a success that nobody watches.
    #[inline(never)]
    fn end(self: Pin<&mut Self>, verdict: Option<Verdict>, result: Result<A::Value, A::Error>) {
        let mut this = self.project();
        let retry: &Retry = (*this.retry).borrow();
        let repeatable = this.attempts.is_repeatable();
        if !R::ALL
            && repeatable
            && verdict == Some(Verdict::Transient)
            && retry.goes_on_at_once(this.story.attempts())
        {
            let past = this.story.past();
            past.progress.attempts += 1;
            past.record.keep(result, AttemptOutcome::Transient);
            this.state.set(State::Starting);
            return;
        }
        // Taken out: where the call ends it is over, however long its future is kept.
        let mut past = this.story.take().into_past();
        let next = match retry.settle(&mut past, repeatable, verdict, result) {
            ControlFlow::Break(result) => State::over(R::finish(Some(past.record), result)),
            ControlFlow::Continue(pause) => {
                *this.story = Story::Past(Box::new(past));
                State::after(pause)
            }
        };
        // The ended attempt is dropped here: what it held is free before the next one asks for it.
        this.state.set(next);
    }
}

/// What an answer of the operation's own means; `None` for the word of an inner policy. The classifier is asked here, once for each
/// attempt.
#[inline]
pub(crate) fn verdict_of<T, E: PolicyError>(
    result: &Result<T, E>,
    classify: impl FnOnce(Result<&T, &E>) -> Option<Verdict>,
) -> Option<Verdict> {
    match Outcome::of(result, classify) {
        Outcome::Answered(verdict) => Some(verdict),
        _ => None,
    }
}

/// The value of a success, or the result with its verdict. Taken apart at once, because only the part that is there is then copied.
#[inline(always)]
#[allow(clippy::inline_always, clippy::type_complexity)]
pub(crate) fn judge<T, E: PolicyError>(
    result: Result<T, E>,
    classify: impl Fn(Result<&T, &E>) -> Option<Verdict>,
) -> Result<T, (Option<Verdict>, Result<T, E>)> {
    match result {
        Ok(value) => match classify(Ok(&value)).unwrap_or(Verdict::Success) {
            Verdict::Success => Ok(value),
            verdict => Err((Some(verdict), Ok(value))),
        },
        Err(error) => {
            let result = Err(error);
            Err((verdict_of(&result, classify), result))
        }
    }
}

pin_project! {
    /// An attempt under its time-out, cut to what is left of the deadline outside: so a call whose deadline passes ends by itself, with what
    /// it knows. `Err` with what the attempt was given, when that has expired. The clock runs from the first poll, the timer is armed when the
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
    /// Out of line, and by a pair: an attempt whose own address is given away cannot stay in registers where it has no time-out.
    #[cold]
    #[inline(never)]
    fn boxed((attempt, limit): (F, Duration)) -> Pin<Box<Self>> {
        Box::pin(Self::new(attempt, limit))
    }

    pub(crate) fn new(attempt: F, limit: Duration) -> Self {
        Self { attempt, timer: None, limit }
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = Result<F::Output, Duration>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let deadline = match this.timer.as_ref().as_pin_ref() {
            Some(timer) => Some(Deadline::at(timer.deadline())),
            None => {
                let own = Deadline::after(*this.limit);
                match Deadline::current() {
                    Some(outer) if own.is_none_or(|own| outer < own) => {
                        *this.limit = outer.remaining();
                        Some(outer)
                    }
                    _ => own,
                }
            }
        };
        // A limit later than the clock can tell never ends.
        let Some(deadline) = deadline else { return this.attempt.poll(cx).map(Ok) };
        if let Poll::Ready(output) = pin!(deadline.scope(this.attempt)).poll(cx) {
            return Poll::Ready(Ok(output));
        }
        if this.limit.is_zero() {
            return Poll::Ready(Err(*this.limit));
        }
        if this.timer.is_none() {
            this.timer.set(Some(tokio::time::sleep_until(deadline.instant())));
        }
        // An attempt that used up the task's budget must not keep the timer from being looked at.
        match this.timer.as_pin_mut() {
            Some(timer) => Pin::new(&mut unconstrained(timer)).poll(cx).map(|()| Err(*this.limit)),
            None => Poll::Pending,
        }
    }
}
