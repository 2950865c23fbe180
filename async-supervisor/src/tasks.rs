use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_policy::{Deadline, PolicyKind, Reason, Rejection};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::runner::Guard;
use crate::shared::Nest;
#[cfg(feature = "tracing")]
use crate::telemetry::TARGET;
#[cfg(feature = "tracing")]
use crate::worker::shielded;
use crate::worker::{CatchUnwind, IntoExit, Launch, spawn};
use crate::{Child, Context, Exit};

/// A tracked task that failed, panicked, or was aborted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskFailure {
    /// The task's name.
    pub task: Arc<str>,
    /// How it ended.
    pub exit: Exit,
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task `{}` {}", self.task, self.exit)
    }
}

/// How the tasks ended when they were [shut down](Tasks::shutdown).
#[must_use = "a report says what failed and what would not stop"]
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TasksReport {
    /// The failures that nobody had taken yet, those of aborted tasks among them.
    pub failures: Vec<TaskFailure>,
    /// The tasks that did not end even when aborted, because they block their thread.
    pub leaked: Vec<Arc<str>>,
}

/// Fire-and-forget tasks that are kept track of: at most so many at a time, no failure lost, and drained when all is shut down.
///
/// A task that failed or panicked keeps its place until its failure is taken ([`next_failure`](Self::next_failure), or the report of
/// [`shutdown`](Self::shutdown)): so failures are bounded like the tasks are, and cannot be overlooked for ever. As a
/// [child of a supervisor](Self::child) the tasks' failures become events, and they are drained in the order of the stop.
///
/// Clones are handles to the same tasks. When the last is dropped, all tasks are aborted at their next await point.
///
/// ```
/// use async_supervisor::Tasks;
/// use std::num::NonZeroUsize;
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), async_policy::Rejection> {
/// let tasks = Tasks::new("mails", NonZeroUsize::new(64).unwrap());
/// tasks.spawn("welcome", async { Ok::<_, std::io::Error>(()) }).await?;
/// tasks.spawn("invoice", async { Err(std::io::Error::other("no paper")) }).await?;
///
/// let report = tasks.shutdown(Duration::from_secs(5)).await;
/// assert_eq!(report.failures[0].to_string(), "task `invoice` failed: no paper");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Tasks {
    owner: Arc<Owner>,
}

#[derive(Debug)]
pub(crate) struct Owner(Arc<Inner>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.state().abort.cancel();
    }
}

struct Inner {
    name: Arc<str>,
    slots: Arc<Semaphore>,
    tracker: TaskTracker,
    state: Mutex<State>,
    failed: Notify,
}

struct State {
    live: HashMap<u64, Arc<str>>,
    spawned: u64,
    failures: VecDeque<(TaskFailure, OwnedSemaphorePermit)>,
    abort: CancellationToken,
    /// Tells those that wait for a place that no more tasks are taken.
    closed: CancellationToken,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("name", &self.name)
            .field("len", &self.tracker.len())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task in the books. However it ends, it is struck off, and its failure is kept.
struct Entry {
    inner: Arc<Inner>,
    id: u64,
    task: Arc<str>,
    exit: Option<Exit>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let exit = self.exit.take().unwrap_or(Exit::Aborted);
        let mut state = self.inner.state();
        state.live.remove(&self.id);
        if let (false, Some(permit)) = (exit.is_normal(), self.permit.take()) {
            state.failures.push_back((TaskFailure { task: Arc::clone(&self.task), exit }, permit));
            drop(state);
            self.inner.failed.notify_one();
        }
    }
}

impl Tasks {
    const ABORT_GRACE: Duration = Duration::from_millis(100);

    /// Room for `limit` tasks at a time.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, limit: NonZeroUsize) -> Self {
        let state = State {
            live: HashMap::new(),
            spawned: 0,
            failures: VecDeque::new(),
            abort: CancellationToken::new(),
            closed: CancellationToken::new(),
        };
        let inner = Inner {
            name: name.into(),
            slots: Arc::new(Semaphore::new(limit.get().min(Semaphore::MAX_PERMITS))),
            tracker: TaskTracker::new(),
            state: Mutex::new(state),
            failed: Notify::new(),
        };
        Self { owner: Arc::new(Owner(Arc::new(inner))) }
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.owner.0
    }

    fn refuse(&self, reason: Reason) -> Rejection {
        Rejection::new(PolicyKind::ConcurrencyLimit, reason).with_name(Arc::clone(&self.inner().name))
    }

    fn start<F>(&self, task: Arc<str>, future: F, permit: OwnedSemaphorePermit) -> Result<(), Rejection>
    where
        F: Future<Output: IntoExit> + Send + 'static,
    {
        let inner = self.inner();
        let tracked = inner.tracker.token();
        let (id, abort) = {
            let mut state = inner.state();
            // Under the lock: what is let in is aborted by an abort that comes after the close.
            if inner.tracker.is_closed() {
                drop(state);
                return Err(self.refuse(Reason::ShutDown));
            }
            state.spawned += 1;
            let id = state.spawned;
            state.live.insert(id, Arc::clone(&task));
            (id, state.abort.clone())
        };
        let entry = Entry { inner: Arc::clone(inner), id, task, exit: None, permit: Some(permit) };
        tokio::spawn(async move {
            // Dropped in this order: what is the task's, its entry in the books, its place in the tracker.
            let _tracked = tracked;
            let mut entry = entry;
            let mut run = pin!(CatchUnwind::new(async { future.await.into_exit() }));
            let ended = match abort.run_until_cancelled_owned(run.as_mut()).await {
                Some(ended) => ended,
                None => run.discard().map(|()| Exit::Aborted),
            };
            entry.exit = Some(ended.unwrap_or_else(Exit::Panicked));
        });
        Ok(())
    }

    /// Starts a task as soon as there is room for it, in the order of the calls. Its failure, by an error or by a panic, is kept until
    /// it is taken.
    ///
    /// # Errors
    ///
    /// A refusal, and the task is not started: the tasks have been shut down, or the deadline that flows in from outside has passed.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the task has not been started, and its place in the queue is lost.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn spawn<F>(&self, task: impl Into<Arc<str>>, future: F) -> Result<(), Rejection>
    where
        F: Future<Output: IntoExit> + Send + 'static,
    {
        if !Deadline::fits(Duration::ZERO) {
            return Err(self.refuse(Reason::DeadlineTooClose));
        }
        let closed = || self.refuse(Reason::ShutDown);
        let close = self.inner().state().closed.clone();
        if self.inner().tracker.is_closed() {
            return Err(closed());
        }
        let slots = Arc::clone(&self.inner().slots);
        let permit = close.run_until_cancelled(slots.acquire_owned()).await;
        let permit = permit.and_then(Result::ok).ok_or_else(closed)?;
        self.start(task.into(), future, permit)
    }

    /// Starts a task now.
    ///
    /// # Errors
    ///
    /// A refusal, and the task is not started: there is no room, or the tasks have been shut down.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn try_spawn<F>(&self, task: impl Into<Arc<str>>, future: F) -> Result<(), Rejection>
    where
        F: Future<Output: IntoExit> + Send + 'static,
    {
        match Arc::clone(&self.inner().slots).try_acquire_owned() {
            Ok(permit) => self.start(task.into(), future, permit),
            Err(TryAcquireError::NoPermits) => Err(self.refuse(Reason::LimitReached)),
            Err(TryAcquireError::Closed) => Err(self.refuse(Reason::ShutDown)),
        }
    }

    /// How many tasks are running.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner().state().live.len()
    }

    /// Whether no task is running.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names of the running tasks, the oldest first.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        let mut live: Vec<_> =
            self.inner().state().live.iter().map(|(id, task)| (*id, Arc::clone(task))).collect();
        live.sort_by_key(|(id, _)| *id);
        live.into_iter().map(|(_, task)| task).collect()
    }

    fn pop(&self) -> Option<TaskFailure> {
        let (failure, permit) = self.inner().state().failures.pop_front()?;
        // Outside the lock: it may wake somebody.
        drop(permit);
        Some(failure)
    }

    /// Takes the oldest failure that has not been taken, and waits for one if there is none; with it the place of its task is free again.
    /// `None` when the tasks are shut down and there is none left.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses no failure.
    pub async fn next_failure(&self) -> Option<TaskFailure> {
        loop {
            let news = self.inner().failed.notified();
            if let Some(failure) = self.pop() {
                return Some(failure);
            }
            tokio::select! {
                () = news => {}
                () = self.inner().tracker.wait() => {
                    let last = self.pop();
                    // Another waiter may sleep on what this one has found.
                    self.inner().failed.notify_one();
                    return last;
                }
            }
        }
    }

    /// Takes no more tasks, those that wait for a place among them. Those that run go on.
    pub fn close(&self) {
        self.inner().tracker.close();
        let closed = self.inner().state().closed.clone();
        closed.cancel();
    }

    fn reopen(&self) {
        let before = std::mem::take(&mut self.inner().state().closed);
        self.inner().tracker.reopen();
        before.cancel();
    }

    /// Aborts all tasks at their next await point; more can be started.
    pub fn abort_all(&self) {
        let mut state = self.inner().state();
        let abort = std::mem::take(&mut state.abort);
        drop(state);
        abort.cancel();
    }

    /// Takes no more tasks, waits up to `within` for those that run, and aborts the rest. Tells what failed, and what would not stop.
    ///
    /// # Cancel safety
    ///
    /// Dropped, no more tasks are taken and those that run go on.
    pub async fn shutdown(&self, within: Duration) -> TasksReport {
        self.close();
        let tracker = &self.inner().tracker;
        if timeout(within, tracker.wait()).await.is_err() {
            self.abort_all();
            let _ = timeout(Self::ABORT_GRACE, tracker.wait()).await;
        }
        let mut report = TasksReport { failures: Vec::new(), leaked: self.names() };
        report.failures.extend(std::iter::from_fn(|| self.pop()));
        report
    }

    /// The tasks, if somebody still holds them.
    pub(crate) fn upgrade(owner: &Weak<Owner>) -> Option<Self> {
        owner.upgrade().map(|owner| Self { owner })
    }

    /// Makes a child that looks after these tasks: each failure becomes an [`EventKind::TaskFailed`](crate::EventKind::TaskFailed), and snapshots
    /// show as the child's last error how many there were, the first and the last. Who needs each of them listens to the events, or has the
    /// feature `tracing`. When it is stopped it takes no more tasks and waits for those that run;
    /// what fails then is in the [report](crate::Report::failed). If it is aborted because they take too long, so are they, and the report
    /// [names](crate::Report::aborted) them: `mails/invoice`. It has ended when all of them have; one that blocks its thread is
    /// [leaked](crate::Report::leaked), by its name too. Started again, it takes tasks again.
    /// It has no heartbeat: one is refused when the supervisor is started.
    pub fn child(&self) -> Child {
        let name = Arc::clone(&self.inner().name);
        let mut child = Child::launching(name, Arc::new(Drain(self.clone())));
        child.rules().mute = true;
        child
    }

    /// Reports what fails until it is told to stop, and then until no task is left.
    async fn look_after(&self, ctx: &Context) -> Exit {
        let _abort = AbortOnDrop(self);
        ctx.ready();
        let mut failed = 0;
        let mut first: Option<Arc<str>> = None;
        let mut report = |failure: TaskFailure| {
            failed += 1;
            let text = match &first {
                None => Arc::clone(first.insert(failure.to_string().into())),
                Some(first) => format!("{failed} tasks failed: first {first}; last {failure}").into(),
            };
            ctx.run.shared.task_failed(&ctx.run, text, failure);
        };
        while let Some(failure) = ctx.token().run_until_cancelled(self.next_failure()).await {
            // Closed by somebody else: nothing comes until it is stopped.
            let Some(failure) = failure else {
                ctx.cancelled().await;
                break;
            };
            report(failure);
        }
        self.close();
        let mut exit = Exit::Completed;
        while let Some(failure) = self.next_failure().await {
            if let Exit::Aborted = failure.exit {
                exit = Exit::Aborted;
            }
            report(failure);
        }
        exit
    }
}

/// Runs as a child that looks after tasks.
struct Drain(Tasks);

impl Launch for Drain {
    fn launch(self: Arc<Self>, ctx: Context, guard: Guard) -> Option<AbortHandle> {
        // Before anything can be told to this run.
        self.0.reopen();
        ctx.run.shared.nest(ctx.run.key, Nest::Tasks(Arc::downgrade(&self.0.owner)));
        Some(spawn(async move { self.0.look_after(&ctx).await }, guard))
    }
}

/// With the runtime of the supervisor the tasks end too.
struct AbortOnDrop<'t>(&'t Tasks);

impl Drop for AbortOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abort_all();
    }
}

#[cfg(feature = "tracing")]
impl Drop for Inner {
    fn drop(&mut self) {
        let failures = std::mem::take(&mut self.state().failures);
        for (failure, _) in failures {
            shielded(
                || tracing::error!(target: TARGET, tasks = &*self.name, %failure, "nobody took this failure"),
            );
        }
    }
}
