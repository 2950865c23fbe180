use std::error::Error;
use std::fmt;
use std::iter::FusedIterator;
use std::{slice, vec};

use crate::{ItemError, Summary};

/// One item that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled<T, E, D = ()> {
    /// Its place in the input, counted from 0.
    pub index: usize,
    /// How it ended.
    pub result: Result<T, ItemError<E>>,
    /// What else was asked for.
    pub detail: D,
}

/// Why a gather ended before its input did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Stopped {
    /// More items failed than it was told to bear.
    Failures,
    /// Its [deadline](crate::Gather::with_deadline) passed, or a pause could not end before it.
    Deadline,
    /// A stop was [requested](crate::Stop).
    Requested,
    /// A [`quorum`](crate::quorum) was asked of fewer futures than it takes.
    TooFew {
        /// How many were to succeed.
        asked: usize,
        /// How many futures there were.
        futures: usize,
    },
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failures => f.write_str("stopped by its failures"),
            Self::Deadline => f.write_str("stopped by its deadline"),
            Self::Requested => f.write_str("stopped on request"),
            Self::TooFew { asked, futures } => {
                let s = if *futures == 1 { "" } else { "s" };
                write!(f, "a quorum of {asked} was asked of {futures} future{s}; none was started")
            }
        }
    }
}

/// How each item of a gather ended, in input order.
///
/// Every item that was started is in it exactly once, so the indexes run from 0 to [`len`](Self::len); those that were
/// not started because the gather [`stopped`](Self::stopped) are not.
///
/// It splits into successes and failures, and it is an error itself: [`into_result`](Self::into_result) gives the plain
/// values if all went well, and otherwise an error that lists what failed and still has the partial results in it.
///
/// ```
/// use async_batch::Gather;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let half = async |n: u32| if n % 2 == 0 { Ok(n / 2) } else { Err(format!("{n} is odd")) };
/// let outcomes = Gather::up_to::<8>().run([2, 3, 4], half).await;
/// assert_eq!(outcomes.to_string(), "1 of 3 items failed: #1: 3 is odd");
/// let (successes, failures) = outcomes.split();
/// assert_eq!(successes, [(0, 1), (2, 2)]);
/// assert_eq!(failures[0].0, 1);
/// # }
/// ```
#[must_use = "items may have failed"]
#[derive(Clone, PartialEq, Eq)]
pub struct Outcomes<T, E, D = ()> {
    /// Of the successes, in order: which they are follows from the failures.
    values: Vec<T>,
    /// In order of their index.
    failures: Vec<(usize, ItemError<E>)>,
    /// Of all items, in order.
    details: Vec<D>,
    stopped: Option<Stopped>,
}

impl<T, E, D> Outcomes<T, E, D> {
    pub(crate) fn with_capacity(items: usize) -> Self {
        // A hint may be wrong: beyond this the vectors grow as they fill. What is not filled costs no memory, only
        // addresses.
        const MOST_BYTES: usize = 16 << 20;
        let room = |size: usize| items.min(MOST_BYTES / size.max(1));
        Self {
            values: Vec::with_capacity(room(size_of::<T>())),
            failures: Vec::new(),
            details: Vec::with_capacity(room(size_of::<D>())),
            stopped: None,
        }
    }

    /// Adds the next one in order.
    #[inline(always)]
    pub(crate) fn push(&mut self, settled: Settled<T, E, D>) {
        match settled.result {
            Ok(value) => self.values.push(value),
            Err(error) => self.failures.push((self.details.len(), error)),
        }
        self.details.push(settled.detail);
    }

    pub(crate) const fn stop(&mut self, stopped: Option<Stopped>) {
        self.stopped = stopped;
    }

    /// How many items were started; each is a success or a failure.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.details.len()
    }

    /// Whether no item was started.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.details.is_empty()
    }

    /// Whether every item of the input succeeded.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        self.failures.is_empty() && self.stopped.is_none()
    }

    /// Why the gather ended before its input did; `None` if it came to its end.
    #[must_use]
    pub const fn stopped(&self) -> Option<Stopped> {
        self.stopped
    }

    /// The values of the items that succeeded, in input order.
    #[must_use]
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// How many items were started, and how they ended.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let cancelled = self.failures.iter().filter(|(_, error)| error.is_cancelled()).count();
        Summary {
            started: self.len(),
            succeeded: self.values.len(),
            failed: self.failures.len() - cancelled,
            cancelled,
            stopped: self.stopped,
        }
    }

    /// The items without a value, with their index, in input order.
    ///
    /// These are the ones that failed and, where the gather stopped, the ones it
    /// [cancelled](ItemError::is_cancelled): with [`values`](Self::values) they make up all that started. The
    /// [`summary`](Self::summary) counts the two apart. What was kept of an item besides its result is its
    /// [`detail`](Self::detail).
    #[must_use]
    pub fn failures(&self) -> &[(usize, ItemError<E>)] {
        &self.failures
    }

    /// What was kept of an item besides its result, if it was started: see [`detailed`](crate::Run::detailed).
    ///
    /// ```
    /// use async_batch::Gather;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let outcomes = Gather::up_to::<8>().run(["a", "b"], async |_| Err::<(), _>("down")).detailed().await;
    /// let again: Vec<&str> =
    ///     outcomes.failures().iter().filter_map(|(index, _)| Some(outcomes.detail(*index)?.input)).collect();
    /// assert_eq!(again, ["a", "b"]);
    /// # }
    /// ```
    #[must_use]
    pub fn detail(&self, index: usize) -> Option<&D> {
        self.details.get(index)
    }

    /// The values of the items that succeeded, in input order, without the failures.
    #[must_use]
    pub fn into_values(self) -> Vec<T> {
        self.values
    }

    /// Successes and [failures](Self::failures), each with its index, each in input order.
    #[must_use]
    #[expect(clippy::type_complexity, reason = "two lists of pairs need no name")]
    pub fn split(self) -> (Vec<(usize, T)>, Vec<(usize, ItemError<E>)>) {
        let indexes = success_indexes(&self.failures, self.details.len());
        (indexes.zip(self.values).collect(), self.failures)
    }

    /// All values in input order if every item succeeded.
    ///
    /// # Errors
    ///
    /// These outcomes themselves if an item failed or the gather stopped: they list what failed, and the partial
    /// results are still in them.
    pub fn into_result(self) -> Result<Vec<T>, Self> {
        if self.is_ok() { Ok(self.values) } else { Err(self) }
    }

    /// How each item ended, in input order: its index, its result and its detail.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, T, E, D> {
        Iter {
            values: self.values.iter(),
            failures: self.failures.iter(),
            details: self.details.iter(),
            index: 0,
        }
    }
}

/// The indexes below `len` that are not among the failures.
fn success_indexes<E>(failures: &[(usize, E)], len: usize) -> impl Iterator<Item = usize> {
    let ends = failures.iter().map(|(index, _)| *index).chain([len]);
    let mut begin = 0;
    ends.flat_map(move |end| {
        let run = begin..end;
        begin = end + 1;
        run
    })
}

/// Without the values: an error should not print a million results.
impl<T, E: fmt::Debug, D> fmt::Debug for Outcomes<T, E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcomes")
            .field("len", &self.len())
            .field("failures", &self.failures)
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

/// Lists the first five failures, each in its alternate form (`{:#}`): with the reason of a refusal.
impl<T, E: fmt::Display, D> fmt::Display for Outcomes<T, E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LISTED: usize = 5;
        if let Some(too_few @ Stopped::TooFew { .. }) = self.stopped {
            return too_few.fmt(f);
        }
        let Summary { started, failed, cancelled, .. } = self.summary();
        write!(f, "{failed} of {started} items failed")?;
        if let Some(stopped) = self.stopped {
            write!(f, ", {stopped}")?;
        }
        if cancelled > 0 {
            write!(f, ", {cancelled} cancelled")?;
        }
        let mut own = self.failures.iter().filter(|(_, error)| !error.is_cancelled());
        let mut before = ": ";
        for (index, error) in own.by_ref().take(LISTED) {
            write!(f, "{before}#{index}: {error:#}")?;
            before = "; ";
        }
        match own.count() {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl<T, E: fmt::Debug + fmt::Display, D> Error for Outcomes<T, E, D> {}

/// Borrowed outcomes, in input order.
#[derive(Clone, Debug)]
pub struct Iter<'o, T, E, D> {
    values: slice::Iter<'o, T>,
    failures: slice::Iter<'o, (usize, ItemError<E>)>,
    details: slice::Iter<'o, D>,
    index: usize,
}

impl<'o, T, E, D> Iterator for Iter<'o, T, E, D> {
    type Item = (usize, Result<&'o T, &'o ItemError<E>>, &'o D);

    fn next(&mut self) -> Option<Self::Item> {
        let detail = self.details.next()?;
        let index = self.index;
        self.index += 1;
        if self.failures.as_slice().first().is_some_and(|(failed, _)| *failed == index) {
            let (_, error) = self.failures.next()?;
            return Some((index, Err(error), detail));
        }
        Some((index, Ok(self.values.next()?), detail))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.details.size_hint()
    }
}

impl<T, E, D> ExactSizeIterator for Iter<'_, T, E, D> {}
impl<T, E, D> FusedIterator for Iter<'_, T, E, D> {}

impl<'o, T, E, D> IntoIterator for &'o Outcomes<T, E, D> {
    type Item = (usize, Result<&'o T, &'o ItemError<E>>, &'o D);
    type IntoIter = Iter<'o, T, E, D>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Outcomes by value, in input order.
#[derive(Debug)]
pub struct IntoIter<T, E, D> {
    values: vec::IntoIter<T>,
    failures: vec::IntoIter<(usize, ItemError<E>)>,
    details: vec::IntoIter<D>,
    index: usize,
}

impl<T, E, D> Iterator for IntoIter<T, E, D> {
    type Item = Settled<T, E, D>;

    fn next(&mut self) -> Option<Self::Item> {
        let detail = self.details.next()?;
        let index = self.index;
        self.index += 1;
        let failed = self.failures.as_slice().first().is_some_and(|(failed, _)| *failed == index);
        let result = if failed { Err(self.failures.next()?.1) } else { Ok(self.values.next()?) };
        Some(Settled { index, result, detail })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.details.size_hint()
    }
}

impl<T, E, D> ExactSizeIterator for IntoIter<T, E, D> {}
impl<T, E, D> FusedIterator for IntoIter<T, E, D> {}

impl<T, E, D> IntoIterator for Outcomes<T, E, D> {
    type Item = Settled<T, E, D>;
    type IntoIter = IntoIter<T, E, D>;

    fn into_iter(self) -> Self::IntoIter {
        IntoIter {
            values: self.values.into_iter(),
            failures: self.failures.into_iter(),
            details: self.details.into_iter(),
            index: 0,
        }
    }
}
