use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_policy::{ConfigError, Name, Operation, Policy, PolicyError};

use crate::call::Starts;
use crate::event::Watch;
use crate::latency::Latencies;
use crate::race::Race;
use crate::retry::Began;
use crate::{Budget, Event};

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
/// Until the delay has passed it allocates nothing. What the attempts may add to the load is bounded by the
/// [budget](Self::with_budget): an extra attempt that fails, panics or loses is spent, one that wins gives its token back.
///
/// As configuration (feature `serde`): the fields are in [the table](crate#configuration).
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
/// # Panics
///
/// An attempt that panics has failed: the next one starts, and any other may still win. Only when all have failed and the last of them
/// panicked does that panic pass on. A loser that panics while it is dropped costs nothing. A panic of the classifier or the listener
/// passes on to the caller.
///
/// # Default
///
/// One extra attempt, no budget, no listener, no name.
#[derive(Clone, Debug)]
pub struct Hedge {
    pub(crate) config: Arc<Config>,
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) delay: Delay,
    max_extra: NonZeroU32,
    budget: Option<Budget>,
    pub(crate) watch: Watch,
}

#[derive(Clone, Debug)]
pub(crate) enum Delay {
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
    /// A percentile that is not above 0 and below 1.
    pub fn at_percentile(percentile: f64, initial: Duration) -> Result<Self, ConfigError> {
        if !(percentile > 0.0 && percentile < 1.0) {
            return Err(ConfigError::new("hedge.percentile", percentile, "a number above 0 and below 1"));
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

/// What a call asks.
impl Hedge {
    pub(crate) fn begin(&self) -> Began {
        Began::new(matches!(self.config.delay, Delay::Tracked(_)), self.budget())
    }

    pub(crate) fn succeeded(&self, began: &Began) {
        if let (Delay::Tracked(latencies), Some(at)) = (&self.config.delay, began.at) {
            latencies.record(at.elapsed());
        }
    }

    pub(crate) fn max_extra(&self) -> u32 {
        self.config.max_extra.get()
    }

    pub(crate) fn budget(&self) -> Option<&Budget> {
        self.config.budget.as_ref()
    }

    pub(crate) fn tell(&self, event: Event) {
        let watch = &self.config.watch;
        if Watch::ALWAYS || watch.listener.is_some() {
            watch.emit(event);
        }
    }
}

impl Policy for Hedge {
    fn execute<Op>(&self, op: Op) -> impl Future<Output = Result<Op::Value, Op::Error>> + Send
    where
        Op: Operation,
        Op::Error: PolicyError,
    {
        Race::new(self, Starts(op))
    }
}
