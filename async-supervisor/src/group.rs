use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::BoxError;
use crate::worker::CatchUnwind;

/// How a task of a group failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupError<E> {
    /// It returned an error.
    Failed(E),
    /// It panicked; what it said.
    Panicked(Arc<str>),
    /// It was cancelled, without a failure in the group: its token, or the runtime, ended it from outside.
    Cancelled,
}

impl<E: fmt::Display> fmt::Display for GroupError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::Panicked(said) => write!(f, "panicked: {said}"),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

/// A group failed: a task of it did, and the others were cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupFailure<T, E> {
    /// Which task failed first, by the order of the starts, from 0; `None` where the group was [cancelled](GroupError::Cancelled) from outside.
    pub index: Option<usize>,
    /// The failure that cancelled the others.
    pub first: GroupError<E>,
    /// Further failures: of tasks that failed at the same time, or while they were being cancelled (by a panic of a drop, say).
    pub others: Vec<GroupError<E>>,
    /// The values of those that were done, by the order of their start.
    pub done: Vec<(usize, T)>,
    /// How many were cancelled.
    pub cancelled: usize,
}

impl<T, E: Into<BoxError>> GroupFailure<T, E> {
    /// The first failure as an error of any kind, for `?`: where `E` is a [`BoxError`] or the like, which is no [`Error`](std::error::Error)
    /// itself, neither is this.
    #[must_use]
    pub fn into_error(self) -> BoxError {
        match self.first {
            GroupError::Failed(error) => error.into(),
            GroupError::Panicked(said) => format!("panicked: {said}").into(),
            GroupError::Cancelled => "cancelled".into(),
        }
    }
}

impl<T, E: fmt::Display> fmt::Display for GroupFailure<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.index {
            write!(f, "task {index}: ")?;
        }
        self.first.fmt(f)?;
        if !self.others.is_empty() {
            write!(f, " (and {} more)", self.others.len())?;
        }
        Ok(())
    }
}

impl<T: fmt::Debug, E: std::error::Error + 'static> std::error::Error for GroupFailure<T, E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.first {
            GroupError::Failed(error) => error.source(),
            GroupError::Panicked(_) | GroupError::Cancelled => None,
        }
    }
}

/// Tasks that belong together: structured concurrency.
///
/// The first that fails or panics cancels the others at once, and [`join`](Self::join) waits until they have really ended. So no task
/// outlives a group that is joined. Dropping the group (or the future of `join`) requests the abort of all of them; it
/// cannot wait for it.
///
/// ```
/// use async_supervisor::TaskGroup;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let mut group = TaskGroup::new();
/// for n in 1..=3 {
///     group.spawn(async move { Ok::<_, std::io::Error>(n * n) });
/// }
/// assert_eq!(group.join().await.unwrap(), [1, 4, 9]);
/// # }
/// ```
#[derive(Debug)]
pub struct TaskGroup<T, E> {
    tasks: JoinSet<(usize, Ended<T, E>)>,
    token: CancellationToken,
    _stop: DropGuard,
    failures: Arc<AtomicUsize>,
    spawned: usize,
    grace: Duration,
}

#[derive(Debug)]
enum Ended<T, E> {
    Done(T),
    /// With its place among the failures.
    Failed(usize, GroupError<E>),
    Cancelled,
}

impl<T: Send + 'static, E: Send + 'static> Default for TaskGroup<T, E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Send + 'static, E: Send + 'static> TaskGroup<T, E> {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::under(&CancellationToken::new())
    }

    /// An empty group that is also cancelled with `token`: that of a worker's [`Context`](crate::Context), say.
    #[must_use]
    pub fn under(token: &CancellationToken) -> Self {
        let token = token.child_token();
        Self {
            tasks: JoinSet::new(),
            _stop: token.clone().drop_guard(),
            token,
            failures: Arc::default(),
            spawned: 0,
            grace: Duration::ZERO,
        }
    }

    /// How long a cancelled task may go on, to end in order by itself. By default it is dropped at its next await point.
    #[must_use]
    pub const fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The token that is cancelled when a task fails or the group is dropped.
    #[must_use]
    pub const fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// How many tasks have been started and not been joined.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Starts a task. In a group that is cancelled already it is dropped at its first await point.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn spawn<F>(&mut self, task: F)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let index = self.spawned;
        self.spawned += 1;
        let (token, grace, failures) = (self.token.clone(), self.grace, Arc::clone(&self.failures));
        self.tasks.spawn(async move {
            let over = async {
                token.cancelled().await;
                if !grace.is_zero() {
                    sleep(grace).await;
                }
            };
            let mut task = pin!(CatchUnwind::new(task));
            let error = tokio::select! {
                biased;
                ended = task.as_mut() => match ended {
                    Ok(Ok(value)) => return (index, Ended::Done(value)),
                    Ok(Err(error)) => GroupError::Failed(error),
                    Err(said) => GroupError::Panicked(said),
                },
                () = over => match task.discard() {
                    Ok(()) => return (index, Ended::Cancelled),
                    Err(said) => GroupError::Panicked(said),
                },
            };
            let nth = failures.fetch_add(1, Ordering::Relaxed);
            token.cancel();
            (index, Ended::Failed(nth, error))
        });
    }

    /// Waits until all have ended, and returns their values in the order of their start.
    ///
    /// # Errors
    ///
    /// When one failed or panicked, or was cancelled from outside; after all have ended.
    ///
    /// # Cancel safety
    ///
    /// Dropped, all tasks are aborted at their next await point, and what was done is lost.
    pub async fn join(mut self) -> Result<Vec<T>, GroupFailure<T, E>> {
        let mut done = Vec::with_capacity(self.spawned);
        let mut failed = Vec::new();
        let mut cancelled = 0;
        while let Some(joined) = self.tasks.join_next().await {
            match joined {
                Ok((index, Ended::Done(value))) => done.push((index, value)),
                Ok((index, Ended::Failed(nth, error))) => failed.push((nth, index, error)),
                // An error is an abort by the runtime's own end: panics are caught.
                Ok((_, Ended::Cancelled)) | Err(_) => cancelled += 1,
            }
        }
        done.sort_by_key(|(index, _)| *index);
        failed.sort_by_key(|(nth, ..)| *nth);
        let mut failed = failed.into_iter();
        match failed.next() {
            Some((_, index, first)) => {
                let others = failed.map(|(.., error)| error).collect();
                Err(GroupFailure { index: Some(index), first, others, done, cancelled })
            }
            None if cancelled > 0 => Err(GroupFailure {
                index: None,
                first: GroupError::Cancelled,
                others: Vec::new(),
                done,
                cancelled,
            }),
            None => Ok(done.into_iter().map(|(_, value)| value).collect()),
        }
    }
}
