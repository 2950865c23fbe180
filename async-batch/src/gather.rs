use std::future::Future;
use std::num::NonZeroUsize;

use crate::engine::Engine;
use crate::state::{Core, Rule};
use crate::{InTask, Items, Progress, Run};

/// Runs many items, at most so many at once, and keeps how each of them ended.
///
/// A `Gather` is a plan: it can be kept, cloned and run any number of times.
///
/// # Default
///
/// | setting | default |
/// |---|---|
/// | limit | none: it is given to [`new`](Self::new) or [`up_to`](Self::up_to) |
/// | failures | every item settles, whatever fails |
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
    limit: NonZeroUsize,
    rule: Rule,
    progress: Option<Progress>,
}

impl Gather {
    /// At most `limit` items at once.
    pub const fn new(limit: NonZeroUsize) -> Self {
        Self { limit, rule: Rule::Settle, progress: None }
    }

    /// [`new`](Self::new) with a literal limit: zero does not compile.
    pub const fn up_to<const LIMIT: usize>() -> Self {
        Self::new(const { NonZeroUsize::new(LIMIT).expect("the limit must not be zero") })
    }

    /// Stops at the first failure: no other item starts, and what is under way is dropped and counts as
    /// [cancelled](crate::ItemError::Cancelled). All of it has stopped when the call returns.
    pub const fn fail_fast(self) -> Self {
        self.stop_after(NonZeroUsize::MIN)
    }

    /// As [`fail_fast`](Self::fail_fast), but bears all failures up to the n-th.
    pub const fn stop_after(mut self, failures: NonZeroUsize) -> Self {
        self.rule = Rule::After(failures);
        self
    }

    /// Reports to `progress` while it runs.
    pub fn with_progress(mut self, progress: &Progress) -> Self {
        self.progress = Some(progress.clone());
        self
    }

    /// Runs `f` on each item, in the caller's task.
    ///
    /// The items take turns in one task: what they wait for overlaps, what they compute does not. Items start in input
    /// order, and the next one starts when one ends. The input is pulled only when there is room; inputs that are not
    /// started stay in the iterator: pass it by `&mut` to have them back.
    ///
    /// Awaited it gives the [`Outcomes`](crate::Outcomes), in input order. A panic of an item is that item's
    /// [error](crate::ItemError::Panicked); a panic of the iterator passes through.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call drops every item under way, and with them the results so far.
    pub fn run<I, F, Fut, T, E>(&self, items: I, f: F) -> Run<Items<I::IntoIter>, InTask<F>>
    where
        I: IntoIterator,
        F: FnMut(I::Item) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        Run::new(self.clone(), Items::new(items), InTask(f))
    }

    pub(crate) fn engine<S, W>(self, source: S, work: W) -> Engine<S, W>
    where
        S: crate::Source,
        W: crate::Work<S::Item>,
    {
        let reporter = self.progress.as_ref().map(|progress| progress.begin(source.size_hint()));
        Engine::new(source, work, self.limit, Core::new(self.rule), reporter)
    }
}
