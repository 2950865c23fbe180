//! One hedged call: the future that the closure form and the tower form share.

use std::any::Any;
use std::borrow::Borrow;
use std::future::Future;
use std::ops::ControlFlow::{self, Break, Continue};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_policy::{Deadline, Outcome};
use pin_project_lite::pin_project;
use tokio::task::coop::poll_proceed;
use tokio::time::Sleep;

use crate::call::Attempts;
use crate::retry::Began;
use crate::{After, AttemptOutcome, Budget, BudgetToken, Event, Hedge, StopReason};

pin_project! {
    pub(crate) struct Race<H, A>
    where
        A: Attempts,
    {
        #[pin]
        first: Option<A::Future>,
        #[pin]
        timer: Option<Sleep>,
        state: State<H, A>,
    }
}

struct State<H, A: Attempts> {
    hedge: H,
    /// `None` once the call is over: what it runs on may hold a place in a queue.
    attempts: Option<A>,
    began: Option<Began>,
    started: u32,
    /// The token of an extra attempt that waits until what it runs on is ready.
    opening: Option<Option<BudgetToken>>,
    /// Those in flight besides the first, in the order of their start. Nothing is allocated before one is needed.
    extra: Vec<Extra<A::Future>>,
    /// Why no other one is started any more.
    closed: Option<StopReason>,
    /// What the call ends with if nobody wins, and what that is worth.
    best: Option<(Ending<A>, u8)>,
}

struct Extra<F> {
    attempt: u32,
    future: Pin<Box<F>>,
    token: Option<BudgetToken>,
}

type ResultOf<A> = Result<<A as Attempts>::Value, <A as Attempts>::Error>;

/// How an attempt ended; `Err` with the payload of its panic.
type Ending<A> = Result<ResultOf<A>, Box<dyn Any + Send>>;

/// What an ended attempt means for the race: it is over, or goes on, perhaps with another attempt after this one.
type Ended<A> = ControlFlow<ResultOf<A>, Option<After>>;

impl<H, A: Attempts> Race<H, A> {
    /// A call whose first attempt is started when it is first polled.
    #[inline]
    pub(crate) const fn new(hedge: H, attempts: A) -> Self {
        let state = State {
            hedge,
            attempts: Some(attempts),
            began: None,
            started: 0,
            opening: Some(None),
            extra: Vec::new(),
            closed: None,
            best: None,
        };
        Self { first: None, timer: None, state }
    }

    /// A call whose first attempt has been started.
    #[cfg(feature = "tower")]
    pub(crate) fn started(hedge: H, attempts: A, first: A::Future) -> Self {
        let mut race = Self::new(hedge, attempts);
        race.first = Some(first);
        race.state.started = 1;
        race.state.opening = None;
        race
    }
}

impl<H, A> Future for Race<H, A>
where
    H: Borrow<Hedge>,
    A: Attempts,
{
    type Output = ResultOf<A>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            let state = &mut *this.state;
            if state.began.is_none() {
                state.began = Some(state.hedge.borrow().begin());
            }
            let mut failed = None;
            if let Some(attempt) = this.first.as_mut().as_pin_mut()
                && let Poll::Ready(ending) = caught(|| attempt.poll(cx))
            {
                contained(|| this.first.set(None));
                match state.end(1, None, ending) {
                    Break(result) => return Poll::Ready(self.finish(Ok(result))),
                    Continue(after) => failed = after.or(failed),
                }
            }
            let mut n = 0;
            while n < state.extra.len() {
                let future = &mut state.extra[n].future;
                let Poll::Ready(ending) = caught(|| future.as_mut().poll(cx)) else {
                    n += 1;
                    continue;
                };
                let Extra { attempt, future, token } = state.extra.remove(n);
                contained(|| drop(future));
                match state.end(attempt, token, ending) {
                    Break(result) => return Poll::Ready(self.finish(Ok(result))),
                    Continue(after) => failed = after.or(failed),
                }
            }
            if let Some(attempts) = &mut state.attempts
                && state.opening.is_some()
                && let last = state.started >= state.hedge.borrow().max_extra()
                && let Poll::Ready(opened) = caught(|| attempts.poll_start(cx, last))
            {
                let token = state.opening.take().flatten();
                state.started += 1;
                match opened {
                    Ok(Ok(attempt)) if state.started == 1 => {
                        this.first.set(Some(attempt));
                        continue;
                    }
                    Ok(Ok(attempt)) => {
                        let extra = Extra { attempt: state.started, future: Box::pin(attempt), token };
                        state.tell(Event::Hedged { attempt: extra.attempt });
                        state.extra.push(extra);
                        // Attempts that fail at once must not keep an outer time-out from firing.
                        ready!(poll_proceed(cx)).made_progress();
                        continue;
                    }
                    Ok(Err(error)) => {
                        state.started -= 1;
                        state.closed = Some(StopReason::NotReady);
                        state.keep(Ok(Err(error)), AttemptOutcome::Refused);
                    }
                    Err(panic) => {
                        if let Continue(after) = state.end(state.started, token, Err(panic)) {
                            failed = after.or(failed);
                        }
                    }
                }
            }
            if let Some(after) = failed
                && state.open(after)
            {
                this.timer.set(None);
                continue;
            }
            if state.opening.is_none() {
                if this.first.is_none() && state.extra.is_empty() {
                    return Poll::Ready(self.give_up());
                }
                if ready!(state.poll_delay(this.timer, cx)) && state.open(After::Failed) {
                    continue;
                }
            }
            return Poll::Pending;
        }
    }
}

impl<H, A> State<H, A>
where
    H: Borrow<Hedge>,
    A: Attempts,
{
    /// Waits until it is time for another attempt, where there may be one at all.
    fn poll_delay(&self, mut timer: Pin<&mut Option<Sleep>>, cx: &mut Context<'_>) -> Poll<bool> {
        let hedge = self.hedge.borrow();
        if self.closed.is_some() || self.started > hedge.max_extra() {
            return Poll::Pending;
        }
        if timer.is_none() {
            let delay = hedge.delay();
            if delay.is_zero() {
                return Poll::Ready(true);
            }
            if !Deadline::fits(delay) {
                // It would only fire when nobody waits any more. A failure may still start another attempt.
                return Poll::Pending;
            }
            timer.set(Some(tokio::time::sleep(delay)));
        }
        if let Some(timer) = timer.as_mut().as_pin_mut() {
            ready!(timer.poll(cx));
        }
        timer.set(None);
        Poll::Ready(true)
    }

    /// Lets another attempt start, if that is still wanted and the budget allows it.
    fn open(&mut self, after: After) -> bool {
        let hedge = self.hedge.borrow();
        if self.opening.is_some() || self.closed.is_some() || self.started > hedge.max_extra() {
            return false;
        }
        if !self.attempts.as_ref().is_some_and(Attempts::is_repeatable) {
            self.closed = Some(StopReason::NotRepeatable);
            return false;
        }
        let token = match hedge.budget() {
            None => None,
            Some(budget) => match budget.try_acquire(after) {
                Some(token) => Some(token),
                None => {
                    self.closed = Some(StopReason::Budget);
                    hedge.tell(Event::HedgeWithheld { attempt: self.started + 1 });
                    return false;
                }
            },
        };
        self.opening = Some(token);
        true
    }

    /// An attempt ended.
    fn end(&mut self, attempt: u32, token: Option<BudgetToken>, ending: Ending<A>) -> Ended<A> {
        let hedge = self.hedge.borrow();
        let budget = hedge.budget();
        let attempts = self.attempts.as_ref();
        let outcome = ending.as_ref().ok().map(|result| {
            Outcome::of(result, |answer| attempts.and_then(|attempts| attempts.classify(answer)))
        });
        let seen = outcome.as_ref().map_or(AttemptOutcome::Panicked, AttemptOutcome::from);
        hedge.tell(Event::Attempted { attempt, outcome: seen });
        match (seen, ending) {
            (AttemptOutcome::Success, Ok(result)) => {
                match (token, budget) {
                    (Some(token), _) => token.succeed(),
                    (None, Some(budget)) if self.started == 1 || budget.earns_always() => {
                        budget.record_success();
                    }
                    (None, _) => {}
                }
                Break(result)
            }
            (AttemptOutcome::Permanent, Ok(result)) => {
                token.into_iter().for_each(BudgetToken::spend);
                hedge.tell(Event::GaveUp { attempts: self.started, reason: StopReason::Permanent });
                Break(result)
            }
            (AttemptOutcome::Ignored, Ok(result)) => {
                hedge.tell(Event::GaveUp { attempts: self.started, reason: StopReason::Ignored });
                Break(result)
            }
            // Not started: its token comes back.
            (AttemptOutcome::Refused, ending) => {
                self.close(StopReason::Refused);
                self.keep(ending, seen);
                Continue(None)
            }
            (_, ending) => {
                token.into_iter().for_each(BudgetToken::spend);
                budget.into_iter().for_each(Budget::record_failure);
                self.keep(ending, seen);
                Continue(match seen {
                    AttemptOutcome::Throttled => {
                        self.close(StopReason::Throttled);
                        None
                    }
                    AttemptOutcome::TimedOut => Some(After::TimedOut),
                    _ => Some(After::Failed),
                })
            }
        }
    }

    /// No further attempt is wanted, nor the one that waits until what it runs on is ready.
    fn close(&mut self, reason: StopReason) {
        self.closed = Some(reason);
        self.opening = None;
    }

    /// The later one of those worth most is what the call ends with.
    fn keep(&mut self, ending: Ending<A>, outcome: AttemptOutcome) {
        let rank = outcome.rank();
        if self.best.as_ref().is_none_or(|(_, kept)| *kept <= rank) {
            let before = self.best.replace((ending, rank));
            contained(|| drop(before));
        }
    }

    /// Drops those in flight. They were made, so their tokens are spent. Told when all are gone: a listener that panics must meet no other panic
    /// on its way.
    #[cold]
    fn abort(&mut self, mut first: Pin<&mut Option<A::Future>>) {
        let mut aborted: Vec<u32> = first.is_some().then_some(1).into_iter().collect();
        contained(|| first.set(None));
        for Extra { attempt, future, token } in std::mem::take(&mut self.extra) {
            token.into_iter().for_each(BudgetToken::spend);
            contained(|| drop(future));
            aborted.push(attempt);
        }
        aborted.into_iter().for_each(|attempt| self.tell(Event::Aborted { attempt }));
    }

    fn tell(&self, event: Event) {
        self.hedge.borrow().tell(event);
    }
}

impl<H, A> Race<H, A>
where
    H: Borrow<Hedge>,
    A: Attempts,
{
    /// All have failed.
    #[cold]
    fn give_up(mut self: Pin<&mut Self>) -> ResultOf<A> {
        let state = self.as_mut().project().state;
        let (best, _) = state.best.take().expect("an attempt has failed");
        let reason = state.closed.unwrap_or(StopReason::Attempts);
        state.tell(Event::GaveUp { attempts: state.started, reason });
        self.finish(best)
    }

    /// The call is over, however long its future is kept.
    fn finish(self: Pin<&mut Self>, ending: Ending<A>) -> ResultOf<A> {
        let mut this = self.project();
        let state = this.state;
        state.opening = None;
        if let (Ok(Ok(_)), Some(began)) = (&ending, &state.began) {
            state.hedge.borrow().succeeded(began);
        }
        state.began = None;
        this.timer.set(None);
        contained(|| state.best = None);
        contained(|| state.attempts = None);
        if this.first.is_some() || !state.extra.is_empty() {
            state.abort(this.first);
        }
        ending.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// Polls what may panic.
fn caught<T>(poll: impl FnOnce() -> Poll<T>) -> Poll<Result<T, Box<dyn Any + Send>>> {
    match catch_unwind(AssertUnwindSafe(poll)) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    }
}

/// Drops what others wrote. A panic of it, or of the drop of that panic's payload, goes no further.
fn contained(theirs: impl FnOnce()) {
    let Err(payload) = catch_unwind(AssertUnwindSafe(theirs)) else { return };
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(another);
    }
}
