use std::future::{Future, poll_fn};
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_policy::{ConfigError, Deadline, Name, Operation, Outcome, Policy, PolicyError, Verdict};
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, Sleep};

use crate::event::Watch;
use crate::latency::Latencies;
use crate::report::{Best, Record};
use crate::{After, AttemptOutcome, Budget, BudgetToken, Event, StopReason};

/// How many extra attempts a hedge makes at most unless configured.
pub const DEFAULT_MAX_EXTRA: NonZeroU32 = NonZeroU32::MIN;

/// Starts an operation once more when it is slow, and takes the first success ("The Tail at Scale", Dean and Barroso, 2013).
///
/// The next attempt starts when the delay has passed since the last start, or at once when an attempt has failed in a way that
/// another try may help. The first success wins; a permanent failure is an answer too and ends it. The attempts that are still
/// in flight then are dropped, and [counted as aborted](Event::Aborted). When all have failed, the call ends with the last answer;
/// with a time-out or a refusal only if no attempt was answered. After a refusal by an inner policy, or an answer that asks for
/// less, no further attempt is started.
///
/// The operation runs more than once at the same time: it must be safe to repeat.
///
/// # Panics
///
/// A panic of any attempt, the classifier or the listener passes on to the caller; the other attempts are dropped, and their tokens
/// come back.
///
/// Until the delay has passed it allocates nothing. What the attempts may add to the load is bounded by the
/// [budget](Self::with_budget): an extra attempt that fails or loses is spent, one that wins gives its token back.
///
/// ```
/// use async_retry::{Hedge, Policy};
/// use std::time::Duration;
///
/// # async fn fetch(url: &str) -> Result<String, std::io::Error> { Ok(url.to_owned()) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let hedge = Hedge::after(Duration::from_millis(50));
/// let quote = hedge.call(|| fetch("http://quotes/ACME")).await.unwrap();
/// # }
/// ```
///
/// # Default
///
/// One extra attempt, no budget, no listener, no name.
#[derive(Clone, Debug)]
pub struct Hedge {
    config: Arc<Config>,
}

#[derive(Clone, Debug)]
struct Config {
    delay: Delay,
    max_extra: NonZeroU32,
    budget: Option<Budget>,
    watch: Watch,
}

#[derive(Clone, Debug)]
enum Delay {
    Fixed(Duration),
    Tracked(Arc<Latencies>),
}

impl Hedge {
    fn new(delay: Delay) -> Self {
        let config = Config { delay, max_extra: DEFAULT_MAX_EXTRA, budget: None, watch: Watch::default() };
        Self { config: Arc::new(config) }
    }

    /// An extra attempt after `delay`. Zero starts all attempts at once.
    #[must_use]
    pub fn after(delay: Duration) -> Self {
        Self::new(Delay::Fixed(delay))
    }

    /// An extra attempt after a percentile of the latest 512 latencies: 0.95 hedges about one call in twenty. `initial` is the delay
    /// until 32 calls have succeeded. Clones share what they have seen.
    ///
    /// What counts is the time a call took to succeed. Where the extra attempt won, that is less than the first would have
    /// taken, but never less than the delay, so the percentile does not drift.
    ///
    /// # Errors
    ///
    /// A percentile that is not a number between 0 and 1.
    pub fn at_percentile(percentile: f64, initial: Duration) -> Result<Self, ConfigError> {
        if !(percentile > 0.0 && percentile < 1.0) {
            return Err(ConfigError::new("hedge.percentile", percentile, "a number between 0 and 1"));
        }
        Ok(Self::new(Delay::Tracked(Arc::new(Latencies::new(percentile, initial)))))
    }

    fn change(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self
    }

    /// How many attempts are made besides the first.
    #[must_use]
    pub fn with_max_extra(self, extra: NonZeroU32) -> Self {
        self.change(|config| config.max_extra = extra)
    }

    /// What all retries and hedges that share this budget may add to the load.
    #[must_use]
    pub fn with_budget(self, budget: Budget) -> Self {
        self.change(|config| config.budget = Some(budget))
    }

    /// Names this hedge in events.
    #[must_use]
    pub fn with_name(self, name: impl Into<Name>) -> Self {
        self.change(|config| config.watch.name = Some(name.into()))
    }

    /// Is told of each [`Event`], in the task that makes the call; keep it short. One at a time: the last one set.
    #[must_use]
    pub fn with_listener(self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.change(|config| config.watch.listener = Some(Arc::new(listener)))
    }

    /// How long it waits before an extra attempt just now.
    #[must_use]
    pub fn delay(&self) -> Duration {
        match &self.config.delay {
            Delay::Fixed(delay) => *delay,
            Delay::Tracked(latencies) => latencies.threshold(),
        }
    }
}

impl Policy for Hedge {
    async fn execute<Op>(&self, op: Op) -> Result<Op::Value, Op::Error>
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        let config = &*self.config;
        let began = if let Delay::Tracked(_) = config.delay { Some(Instant::now()) } else { None };
        let _in_flight = config.budget.as_ref().and_then(Budget::enter);
        let mut race =
            Race { hedge: self, op: &op, extra: Vec::new(), started: 1, closed: None, best: Best::default() };
        let mut first = pin!(Some(op.start()));
        let mut timer = pin!(None);
        let result = poll_fn(|cx| race.poll(first.as_mut(), timer.as_mut(), cx)).await;
        if let (Delay::Tracked(latencies), Some(began), true) = (&config.delay, began, result.is_ok()) {
            latencies.record(began.elapsed());
        }
        result
    }
}

/// The attempts of one call.
struct Race<'h, Op: Operation> {
    hedge: &'h Hedge,
    op: &'h Op,
    /// Those in flight besides the first, in the order of their start. Nothing is allocated before one is needed.
    extra: Vec<Extra<Op::Future>>,
    started: u32,
    /// Why no other one is started any more.
    closed: Option<StopReason>,
    best: Best<Op::Value, Op::Error>,
}

struct Extra<F> {
    attempt: u32,
    future: Pin<Box<F>>,
    token: Option<BudgetToken>,
}

type ResultOf<Op> = Result<<Op as Operation>::Value, <Op as Operation>::Error>;

/// What an ended attempt means for the race.
enum Ended<T, E> {
    /// It is over.
    Won(Result<T, E>),
    /// Another try may help; what it follows.
    Failed(After),
    /// No other try is wanted: why.
    Closed(StopReason),
}

impl<Op> Race<'_, Op>
where
    Op: Operation,
    Op::Error: PolicyError,
{
    fn poll(
        &mut self,
        mut first: Pin<&mut Option<Op::Future>>,
        mut timer: Pin<&mut Option<Sleep>>,
        cx: &mut Context<'_>,
    ) -> Poll<ResultOf<Op>> {
        loop {
            let mut failed = None;
            if let Some(attempt) = first.as_mut().as_pin_mut()
                && let Poll::Ready(result) = attempt.poll(cx)
            {
                first.set(None);
                match self.end(1, None, result) {
                    Ended::Won(result) => return Poll::Ready(self.finish(result, false)),
                    Ended::Failed(after) => failed = Some(after),
                    Ended::Closed(reason) => self.closed = Some(reason),
                }
            }
            let mut n = 0;
            while n < self.extra.len() {
                let Poll::Ready(result) = self.extra[n].future.as_mut().poll(cx) else {
                    n += 1;
                    continue;
                };
                let extra = self.extra.remove(n);
                match self.end(extra.attempt, extra.token, result) {
                    Ended::Won(result) => return Poll::Ready(self.finish(result, first.is_some())),
                    Ended::Failed(after) => failed = Some(after),
                    Ended::Closed(reason) => self.closed = Some(reason),
                }
            }
            if let Some(after) = failed
                && self.start(after)
            {
                timer.set(None);
                // Attempts that fail at once must not keep an outer time-out from firing.
                ready!(poll_proceed(cx)).made_progress();
                continue;
            }
            if first.is_none() && self.extra.is_empty() {
                return Poll::Ready(self.give_up());
            }
            if self.closed.is_some() || self.started > self.hedge.config.max_extra.get() {
                return Poll::Pending;
            }
            if timer.is_none() {
                let delay = self.hedge.delay();
                if !delay.is_zero() {
                    if !Deadline::fits(delay) {
                        // It would only fire when nobody waits any more. A failure may still start another attempt.
                        return Poll::Pending;
                    }
                    timer.set(Some(tokio::time::sleep(delay)));
                }
            }
            if let Some(timer) = timer.as_mut().as_pin_mut()
                && timer.poll(cx).is_pending()
            {
                return Poll::Pending;
            }
            timer.set(None);
            if !self.start(After::Failed) {
                return Poll::Pending;
            }
            ready!(poll_proceed(cx)).made_progress();
        }
    }

    /// Starts another attempt, if that is still wanted and the budget allows it.
    fn start(&mut self, after: After) -> bool {
        let config = &*self.hedge.config;
        if self.closed.is_some() || self.started > config.max_extra.get() {
            return false;
        }
        let attempt = self.started + 1;
        let token = match &config.budget {
            None => None,
            Some(budget) => match budget.try_acquire(after) {
                Some(token) => Some(token),
                None => {
                    self.closed = Some(StopReason::Budget);
                    self.tell(Event::HedgeWithheld { attempt });
                    return false;
                }
            },
        };
        self.tell(Event::Hedged { attempt });
        self.started = attempt;
        self.extra.push(Extra { attempt, future: Box::pin(self.op.start()), token });
        true
    }

    fn end(
        &mut self,
        attempt: u32,
        token: Option<BudgetToken>,
        result: ResultOf<Op>,
    ) -> Ended<Op::Value, Op::Error> {
        let budget = self.hedge.config.budget.as_ref();
        let outcome = self.op.outcome(&result);
        let seen = AttemptOutcome::from(&outcome);
        self.tell(Event::Attempted { attempt, outcome: seen });
        match outcome {
            Outcome::Answered(Verdict::Success) => {
                match (token, budget) {
                    (Some(token), _) => token.succeed(),
                    (None, Some(budget)) if self.started == 1 || budget.earns_always() => {
                        budget.record_success();
                    }
                    (None, _) => {}
                }
                return Ended::Won(result);
            }
            Outcome::Answered(Verdict::Permanent | Verdict::Ignored) => {
                if let (Some(token), AttemptOutcome::Permanent) = (token, seen) {
                    token.spend();
                }
                let reason = if seen == AttemptOutcome::Permanent {
                    StopReason::Permanent
                } else {
                    StopReason::Ignored
                };
                self.tell(Event::GaveUp { attempts: self.started, reason });
                return Ended::Won(result);
            }
            // Not started: its token comes back.
            Outcome::Refused(_) => {
                self.best.keep(result, seen);
                return Ended::Closed(StopReason::Refused);
            }
            _ => {}
        }
        if let Some(token) = token {
            token.spend();
        }
        if let Some(budget) = budget {
            budget.record_failure();
        }
        self.best.keep(result, seen);
        match seen {
            AttemptOutcome::Throttled => Ended::Closed(StopReason::Throttled),
            AttemptOutcome::TimedOut => Ended::Failed(After::TimedOut),
            _ => Ended::Failed(After::Failed),
        }
    }

    /// One has brought the answer: the others are dropped. They were made, so their tokens are spent.
    fn finish(&mut self, result: ResultOf<Op>, first_in_flight: bool) -> ResultOf<Op> {
        if first_in_flight {
            self.tell(Event::Aborted { attempt: 1 });
        }
        for Extra { attempt, future, token } in std::mem::take(&mut self.extra) {
            drop(future);
            if let Some(token) = token {
                token.spend();
            }
            self.tell(Event::Aborted { attempt });
        }
        result
    }

    /// All have failed.
    fn give_up(&mut self) -> ResultOf<Op> {
        let result = self.best.take().expect("an attempt has failed");
        let reason = self.closed.unwrap_or(StopReason::Attempts);
        self.tell(Event::GaveUp { attempts: self.started, reason });
        result
    }

    fn tell(&self, event: Event) {
        let watch = &self.hedge.config.watch;
        if Watch::ALWAYS || watch.listener.is_some() {
            watch.emit(event);
        }
    }
}
