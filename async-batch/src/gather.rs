use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_policy::{ByError, Classify, ConfigError, Policy};

use crate::state::{Chunks, Rule};
use crate::work::{Here, Lane, Replayed, Tasks, There, Threads, Turns, UnderPolicy};
use crate::{Blocking, InTask, IntoSource, Limit, Plain, Progress, Run, Spawned, Stop, Work};

/// Runs many items, at most so many at once, and keeps how each of them ended.
///
/// A `Gather` is a plan: it can be kept, cloned and run any number of times. Where the items run is one word:
///
/// | | runs the items | dropping the call | [fail fast](Self::fail_fast), a passed time-out or deadline, a [`Stop`] |
/// |---|---|---|---|
/// | [`run`](Self::run) | in the caller's task, in turns | drops them | drops them |
/// | [`spawn`](Self::spawn) | in a task each, in parallel | requests their abort | aborts them, and waits until they have stopped |
/// | [`spawn_blocking`](Self::spawn_blocking) | on a blocking thread each | lets those that run end; the others do not start | the same, and waits until they have ended |
///
/// # Default
///
/// | setting | default |
/// |---|---|
/// | limit | none: it is given to [`new`](Self::new) or [`up_to`](Self::up_to) |
/// | failures | every item settles, whatever fails |
/// | time-out per item, deadline | none |
/// | chunks | none: an item starts as soon as one has ended |
/// | policy | none |
/// | progress | not reported |
///
/// # Examples
///
/// ```
/// use async_batch::Gather;
///
/// # async fn fetch(url: String) -> Result<usize, std::io::Error> { Ok(url.len()) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let urls = (0..300).map(|n| format!("http://quotes/{n}"));
/// let outcomes = Gather::up_to::<16>().run(urls, |url| fetch(url)).await;
/// for (index, error) in outcomes.failures() {
///     eprintln!("#{index}: {error}");
/// }
/// assert_eq!(outcomes.values().len(), 300);
/// # }
/// ```
#[must_use = "a gather does nothing until it is given items to run"]
#[derive(Clone, Debug)]
pub struct Gather {
    plan: Plan,
}

/// What a gather was told.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    limit: NonZeroUsize,
    /// Stands above `limit`.
    pub(crate) shared_limit: Option<Limit>,
    pub(crate) stop: Option<Stop>,
    pub(crate) rule: Rule,
    pub(crate) chunks: Option<Chunks>,
    pub(crate) item_timeout: Option<Duration>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) progress: Option<Progress>,
}

impl Plan {
    pub(crate) fn limit(&self) -> NonZeroUsize {
        self.shared_limit.as_ref().map_or(self.limit, Limit::get)
    }
}

#[expect(clippy::type_complexity, reason = "the parameters of a run are read by the compiler, not by people")]
impl Gather {
    /// At most `limit` items at once.
    pub const fn new(limit: NonZeroUsize) -> Self {
        Self {
            plan: Plan {
                limit,
                shared_limit: None,
                stop: None,
                rule: Rule::Settle,
                chunks: None,
                item_timeout: None,
                deadline: None,
                progress: None,
            },
        }
    }

    /// [`new`](Self::new) with a literal limit: zero does not compile.
    ///
    /// ```compile_fail
    /// async_batch::Gather::up_to::<0>();
    /// ```
    pub const fn up_to<const LIMIT: usize>() -> Self {
        Self::new(const { NonZeroUsize::new(LIMIT).expect("the limit must not be zero") })
    }

    /// At most as many items at once as `limit` says from moment to moment.
    pub fn with_limit(mut self, limit: &Limit) -> Self {
        self.plan.shared_limit = Some(limit.clone());
        self
    }

    /// Stops when `stop` says so, as [`fail_fast`](Self::fail_fast) does at a failure, and keeps what has ended by then.
    pub fn with_stop(mut self, stop: &Stop) -> Self {
        self.plan.stop = Some(stop.clone());
        self
    }

    /// Stops at the first failure: no other item starts, and what is under way counts as
    /// [cancelled](crate::ItemError::Cancelled). All of it **has stopped** when the call returns.
    pub const fn fail_fast(self) -> Self {
        self.stop_after(NonZeroUsize::MIN)
    }

    /// As [`fail_fast`](Self::fail_fast), but at the n-th failure.
    ///
    /// Every item that ends by itself without a value counts: by its own error, a time-out, a panic, and a refusal by its
    /// policy too. To a retry or a breaker a refusal says nothing, for the item did not run; but this budget bounds how
    /// many results are missing, and when a breaker has opened there is no point in having all other items refused.
    /// An `Ok` never counts, whatever a [classifier](PolicyGather::classify_with) says of it.
    pub const fn stop_after(mut self, failures: NonZeroUsize) -> Self {
        self.plan.rule = Rule::After(failures);
        self
    }

    /// As [`fail_fast`](Self::fail_fast), but once more than `ratio` of the items that have ended failed, and at least
    /// `of` have ended. What counts is what counts for [`stop_after`](Self::stop_after): an `Ok` never does, whatever a
    /// [classifier](PolicyGather::classify_with) says of it.
    ///
    /// # Errors
    ///
    /// A ratio that is not at least 0 and below 1, above which no share can be.
    pub fn stop_above(mut self, ratio: f64, of: NonZeroUsize) -> Result<Self, ConfigError> {
        if !(0.0..1.0).contains(&ratio) {
            return Err(ConfigError::new(
                "gather.stop_above.ratio",
                ratio,
                "a number of at least 0 and below 1",
            ));
        }
        self.plan.rule = Rule::Above { ratio, of };
        Ok(self)
    }

    /// Runs the items in groups of `size`: the next group starts when the last item of the one before has ended, and
    /// `pause` has passed. Within a group the limit holds.
    ///
    /// No pause follows the last group where the input's `size_hint` says that nothing is left; an input that cannot say so
    /// (a filter, a channel) is asked only after the pause.
    pub const fn in_chunks(mut self, size: NonZeroUsize, pause: Duration) -> Self {
        self.plan.chunks = Some(Chunks { size, pause });
        self
    }

    /// Gives each item at most `limit` from its start, retries included: then it is dropped, or aborted where it runs
    /// elsewhere, and its error is [`TimedOut`](crate::ItemError::TimedOut). It is the deadline in force inside the item.
    ///
    /// On blocking threads nothing can be cut short: an item that takes too long holds its place until it ends, and what it
    /// ends with is its result. So does a spawned item that ends by itself before the abort reaches it.
    ///
    /// In the caller's task an item that is ready at its first poll succeeds whatever the limit, zero included; one that
    /// runs elsewhere has not begun by then.
    ///
    /// Needs tokio's timer, as all that follows the clock here.
    pub const fn with_item_timeout(mut self, limit: Duration) -> Self {
        self.plan.item_timeout = Some(limit);
        self
    }

    /// Gives the whole call at most `limit` from its first poll: then it stops, items under way are
    /// [timed out](crate::ItemError::TimedOut), and what has ended by then is kept. (A time-out round the call would drop
    /// the results.) It is the deadline in force inside each item.
    ///
    /// An item that computes is not interrupted: the clock is looked at before each poll of one. The consumer of
    /// [`for_each`](crate::Run::for_each) is not cut short either.
    pub const fn with_deadline(mut self, limit: Duration) -> Self {
        self.plan.deadline = Some(limit);
        self
    }

    /// Reports to `progress` while it runs.
    pub fn with_progress(mut self, progress: &Progress) -> Self {
        self.plan.progress = Some(progress.clone());
        self
    }

    /// Runs each item under `policy`: retry, limit, breaker, or a tuple of them, shared by all items.
    ///
    /// It comes last: what else the gather is to do is said before. Policies are asynchronous, so there is no
    /// `spawn_blocking` under them: within the item, await `tokio::task::spawn_blocking`.
    ///
    /// Items that need a policy each, as those of several hosts do, call it themselves; what it refused is then in
    /// [`ItemError::Operation`](crate::ItemError::Operation), and an item counts as one attempt:
    ///
    /// ```
    /// use async_batch::Gather;
    /// use async_policy::{Policy, Timeout};
    ///
    /// # async fn fetch(host: &str, path: &str) -> Result<usize, std::io::Error> { Ok(host.len() + path.len()) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// // The breaker or limit of that host, or a tuple of them.
    /// let stack_for = |host| Timeout::from_millis(if host == "archive" { 5_000 } else { 250 });
    /// let pages = [("archive", "/1"), ("quotes", "/1"), ("quotes", "/2")];
    /// let outcomes = Gather::up_to::<16>()
    ///     .run(pages, async |(host, path)| stack_for(host).call(|| fetch(host, path)).await)
    ///     .await;
    /// assert!(outcomes.is_ok());
    /// # }
    /// ```
    pub fn with_policy<P: Policy>(self, policy: P) -> PolicyGather<P> {
        PolicyGather { plan: self.plan, policy: Arc::new(policy), classify: Arc::new(ByError) }
    }

    /// Runs `f` on each item, in the caller's task.
    ///
    /// The items take turns in one task: what they wait for overlaps, what they compute does not. They start in input
    /// order, the next one when one ends. The input is pulled only when there is room; inputs that are not started stay in
    /// the iterator: pass it by `&mut` to have them back.
    ///
    /// Awaited it gives the [`Outcomes`](crate::Outcomes), in input order; [`Run`] has the ways to get them one by one. A
    /// panic of an item is that item's [error](crate::ItemError::Panicked); a panic of the iterator passes through.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call drops every item under way, and with them the results so far.
    pub fn run<I, F, Fut, T, E>(
        &self,
        items: I,
        f: F,
    ) -> Run<I::Source, InTask<F, Fut, E>, T, E, Plain<I::Item>>
    where
        I: IntoSource,
        F: FnMut(I::Item) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        Run::new(self.plan.clone(), items.into_source(), Lane::new(Turns(f)))
    }

    /// Runs `f` on each item, each in a task of its own on the runtime: in parallel on a multi-threaded one.
    ///
    /// `f` is called in the caller's task, and the future it makes is spawned, under the deadline in force for the caller.
    /// As [`run`](Self::run) otherwise. An item is also [cancelled](crate::ItemError::Cancelled) when the runtime shuts down.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call requests the abort of every item under way: each stops at its next await. The results so far
    /// are dropped.
    ///
    /// # Panics
    ///
    /// When polled outside a tokio runtime, each item does.
    pub fn spawn<I, F, Fut, T, E>(
        &self,
        items: I,
        f: F,
    ) -> Run<I::Source, Spawned<F, T, E>, T, E, Plain<I::Item>>
    where
        I: IntoSource,
        F: FnMut(I::Item) -> Fut,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        Run::new(self.plan.clone(), items.into_source(), Lane::new(Tasks(f)))
    }

    /// Runs `f` on each item, each on a blocking thread of the runtime, under the deadline in force for the caller.
    ///
    /// As [`run`](Self::run) otherwise.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call lets the items that run end (nothing can stop them), and starts no other. The results so far
    /// are dropped.
    ///
    /// # Panics
    ///
    /// When polled outside a tokio runtime, each item does.
    pub fn spawn_blocking<I, F, T, E>(
        &self,
        items: I,
        f: F,
    ) -> Run<I::Source, Blocking<F, T, E>, T, E, Plain<I::Item>>
    where
        I: IntoSource,
        I::Item: Send + 'static,
        F: Fn(I::Item) -> Result<T, E> + Send + Sync + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        Run::new(self.plan.clone(), items.into_source(), Lane::new(Threads(Arc::new(f))))
    }
}

/// A [`Gather`] that runs each item under a policy: see [`Gather::with_policy`].
///
/// A policy may start an item several times, so `f` is a plain `Fn` and the items are cloned for each start.
///
/// ```
/// use async_batch::Gather;
/// use async_policy::Timeout;
///
/// # async fn fetch(url: String) -> Result<usize, std::io::Error> { Ok(url.len()) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let gather = Gather::up_to::<16>().with_policy(Timeout::from_millis(250));
/// let urls = ["http://quotes/1", "http://quotes/2"].map(String::from);
/// let outcomes = gather.spawn(urls, fetch).await;
/// assert!(outcomes.is_ok());
/// # }
/// ```
#[must_use = "a gather does nothing until it is given items to run"]
pub struct PolicyGather<P, C = ByError> {
    plan: Plan,
    policy: Arc<P>,
    classify: Arc<C>,
}

#[expect(clippy::type_complexity, reason = "the parameters of a run are read by the compiler, not by people")]
impl<P: Policy, C> PolicyGather<P, C> {
    /// Says what an item's answer means to the policy; by default each error is
    /// [transient](async_policy::Verdict::Transient) and each `Ok` a success.
    ///
    /// To the policy alone: how an item ended is its `Result`, so that an `Ok` which no retry made better is still a
    /// success in the [`Outcomes`](crate::Outcomes), in a failure budget and in a [`Progress`]. Make an answer that is a
    /// failure an `Err` in the item's own closure; the policy sees that too.
    ///
    /// ```
    /// use async_batch::Gather;
    /// use async_policy::{Timeout, Verdict};
    /// use std::num::NonZeroUsize;
    ///
    /// # async fn get(path: u32) -> Result<u16, u16> { Ok(503) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let ten = NonZeroUsize::new(10).unwrap();
    /// let gather = Gather::up_to::<1>().stop_above(0.1, ten).unwrap().with_policy(Timeout::from_millis(250)); // or a retry
    /// let well = async |path| match get(path).await {
    ///     Ok(status) if status >= 400 => Err(status),
    ///     other => other,
    /// };
    /// let gather = gather.classify_with(|answer: Result<&u16, &u16>| match answer {
    ///     Err(404) => Verdict::Permanent, // trying again is in vain; a failure all the same
    ///     Err(_) => Verdict::Transient,
    ///     Ok(_) => Verdict::Success,
    /// });
    /// let outcomes = gather.run(0..100, well).await;
    /// assert_eq!((outcomes.summary().failed, outcomes.summary().started), (10, 10));
    /// # }
    /// ```
    pub fn classify_with<D>(self, classify: D) -> PolicyGather<P, D> {
        PolicyGather { plan: self.plan, policy: self.policy, classify: Arc::new(classify) }
    }

    fn under<F>(&self, f: F) -> Arc<UnderPolicy<P, C, F>> {
        Arc::new(UnderPolicy { policy: Arc::clone(&self.policy), classify: Arc::clone(&self.classify), f })
    }

    /// [`Gather::run`], each item under the policy.
    ///
    /// # Cancel safety
    ///
    /// As [`Gather::run`]; what the policy holds for the items is given back.
    pub fn run<I, F, Fut, T, E>(
        &self,
        items: I,
        f: F,
    ) -> Run<
        I::Source,
        impl Work<I::Item, Value = T, Error = E> + Send + use<P, C, I, F, Fut, T, E>,
        T,
        E,
        Plain<I::Item>,
    >
    where
        I: IntoSource,
        I::Item: Clone + Send + Sync,
        C: Classify<T, E> + Send + Sync,
        F: Fn(I::Item) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
        T: Send,
        E: Send,
    {
        let under = self.under(f);
        let work = move |item, attempts| Here { future: Arc::clone(&under).run(item, attempts) };
        Run::new(self.plan.clone(), items.into_source(), Lane::new(Replayed(work)))
    }

    /// [`Gather::spawn`], each item under the policy, all of it in the item's task.
    ///
    /// # Cancel safety
    ///
    /// As [`Gather::spawn`]; what the policy holds for an item is given back when it stops.
    ///
    /// # Panics
    ///
    /// As [`Gather::spawn`].
    pub fn spawn<I, F, Fut, T, E>(
        &self,
        items: I,
        f: F,
    ) -> Run<
        I::Source,
        impl Work<I::Item, Value = T, Error = E> + Send + use<P, C, I, F, Fut, T, E>,
        T,
        E,
        Plain<I::Item>,
    >
    where
        P: 'static,
        I: IntoSource,
        I::Item: Clone + Send + Sync + 'static,
        C: Classify<T, E> + Send + Sync + 'static,
        F: Fn(I::Item) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let under = self.under(f);
        let work = move |item, attempts| There::spawn(Arc::clone(&under).run(item, attempts));
        Run::new(self.plan.clone(), items.into_source(), Lane::new(Replayed(work)))
    }
}

impl<P, C> Clone for PolicyGather<P, C> {
    fn clone(&self) -> Self {
        Self {
            plan: self.plan.clone(),
            policy: Arc::clone(&self.policy),
            classify: Arc::clone(&self.classify),
        }
    }
}

impl<P, C> fmt::Debug for PolicyGather<P, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyGather").field("plan", &self.plan).finish_non_exhaustive()
    }
}
