use std::fmt;
use std::future::Future;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::blocking::Thread;
use crate::error::check_name;
use crate::spec::Rules;
use crate::worker::{IntoExit, Launch, Task};
use crate::{AutoShutdown, Backoff, ConfigError, Context, Every, Restart, Shutdown, Worker};

static DEFAULT: LazyLock<Arc<Rules>> = LazyLock::new(Arc::default);

/// What to run under a supervisor, and how: a child specification.
///
/// # Default
///
/// | | |
/// |---|---|
/// | [`restart`](Self::with_restart) | [`Restart::Permanent`] |
/// | [`shutdown`](Self::with_shutdown) | asked, then aborted after 5 s; for a supervisor, waited for |
/// | [`backoff`](Self::with_backoff) | 100 ms, doubling, at most 30 s, equal jitter, reset after 60 s of health |
/// | [`readiness`](Self::with_readiness) | none: ready as soon as it is started |
/// | [`heartbeat`](Self::with_heartbeat) | none |
/// | [`significant`](Self::with_significant) | no |
#[must_use = "a child does nothing until a supervisor has it"]
#[derive(Clone)]
pub struct Child {
    pub(crate) name: Arc<str>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) launch: Arc<dyn Launch>,
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("name", &self.name).field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Child {
    /// A worker from a closure that is called for each start: `async |ctx| { … }`, or, where it captures,
    /// `move |ctx| { let db = db.clone(); async move { … } }`. A name is not empty and has no `/`, which divides paths, and no control
    /// characters: others are refused when the supervisor is started.
    ///
    /// It returns `()`, `Result<(), E>` with any error, or never (a bare `loop`, which is aborted at its next await point when its time to
    /// stop is over). It should end soon after
    /// [`ctx.cancelled()`](Context::cancelled). Where `?` meets errors of several types, the closure has to say which it returns:
    ///
    /// ```
    /// use async_supervisor::{BoxError, Child, Context};
    ///
    /// let child = Child::new("import", async |ctx: Context| {
    ///     let limit: u64 = std::fs::read_to_string("limit")?.trim().parse()?;
    ///     while ctx.attempt() < limit && !ctx.is_cancelled() {
    ///         tokio::task::yield_now().await;
    ///     }
    ///     Ok::<_, BoxError>(())
    /// });
    /// # assert_eq!(child.name(), "import");
    /// ```
    pub fn new<F, Fut>(name: impl Into<Arc<str>>, worker: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: IntoExit> + Send + 'static,
    {
        Self::launching(name.into(), Arc::new(Task(worker)))
    }

    /// A worker from a closure and a state that is cloned for each start: `async |ctx, db| { … }`.
    pub fn with<S, F, Fut>(name: impl Into<Arc<str>>, state: S, worker: F) -> Self
    where
        S: Clone + Send + Sync + 'static,
        F: Fn(Context, S) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: IntoExit> + Send + 'static,
    {
        Self::new(name, move |ctx| worker(ctx, state.clone()))
    }

    /// A worker that runs at intervals: each run is a call of `work`, and one never overlaps with the next. While it waits for the next
    /// tick it stops at once. A failure ends it, as that of any worker: it is restarted after its [backoff](Self::with_backoff), and then runs at
    /// once, or after a period with [`wait_first`](Every::wait_first). Each failed run counts towards the supervisor's
    /// [`Intensity`](crate::Intensity), and two within 5 s end a supervisor with the default one. A job that may fail now and then should
    /// handle its errors itself and return `()`, or stand under a supervisor of its own with an intensity that bears as many failures as
    /// it is to have, and with a backoff of the order of its period.
    pub fn periodic<F, Fut>(name: impl Into<Arc<str>>, every: Every, work: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: IntoExit> + Send + 'static,
    {
        let work = Arc::new(work);
        let mut child = Self::new(name, move |ctx| {
            let work = Arc::clone(&work);
            async move { every.run(ctx, &*work).await }
        });
        child.rules().every = Some(every);
        child
    }

    /// A worker that blocks, on a thread of its own that has its name. It should look at [`ctx.is_cancelled()`](Context::is_cancelled), or
    /// wait with `tokio::runtime::Handle::current().block_on(ctx.cancelled())`.
    ///
    /// With tokio's clock paused (in tests), time does not wait for it: tokio knows nothing of the thread, so time-outs and sleeps pass at once
    /// while it works. Tests with blocking workers are better run on the real clock.
    ///
    /// A thread cannot be aborted: one that does not end in time is reported as leaked, and is not started twice.
    pub fn blocking<F, R>(name: impl Into<Arc<str>>, work: F) -> Self
    where
        F: Fn(Context) -> R + Send + Sync + 'static,
        R: IntoExit + 'static,
    {
        Self::launching(name.into(), Arc::new(Thread(work)))
    }

    /// A [`Worker`].
    pub fn worker(name: impl Into<Arc<str>>, worker: Arc<dyn Worker>) -> Self {
        Self::new(name, move |ctx| {
            let worker = Arc::clone(&worker);
            async move { worker.run(ctx).await }
        })
    }

    pub(crate) fn launching(name: Arc<str>, launch: Arc<dyn Launch>) -> Self {
        Self { name, rules: Arc::clone(&DEFAULT), launch }
    }

    pub(crate) fn rules(&mut self) -> &mut Rules {
        Arc::make_mut(&mut self.rules)
    }

    /// When it is restarted.
    pub fn with_restart(mut self, restart: Restart) -> Self {
        self.rules().restart = restart;
        self
    }

    /// How it is stopped.
    pub fn with_shutdown(mut self, shutdown: Shutdown) -> Self {
        self.rules().shutdown = shutdown;
        self
    }

    /// How long it waits for a restart.
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.rules().backoff = backoff;
        self
    }

    /// It is up when it calls [`ctx.ready()`](Context::ready): the next child is started only then. One that has not done so
    /// after `limit` is stopped, and its start has failed. Zero is refused when the supervisor is started.
    ///
    /// Starts are sequential, restarts too: while one child gets ready, or is being stopped, no sibling is started or restarted. What is slow
    /// to get ready, and nobody waits for, is better without readiness or in a [pool](crate::Supervisor::pool). Or put it under a supervisor of its own:
    /// the others then wait for its first start only (a supervisor is up when its children are), and no longer for its restarts.
    ///
    /// With readiness, a start can fail: the child ends, or its time is up, before it is ready. A *first* start that fails, of the supervisor or
    /// by [`add`](crate::Handle::add), is not tried again: the whole start, or the `add`, fails ([`StartError`](crate::StartError),
    /// [`StartFailed`](crate::CommandError::StartFailed)), as in OTP. Restarts are tried again, with the backoff. Where a peer may be away at
    /// the start, let the worker wait for it before it is ready, or leave readiness out: then whatever fails is a fall, and has the backoff.
    pub fn with_readiness(mut self, limit: Duration) -> Self {
        self.rules().readiness = Some(limit);
        self
    }

    /// It calls [`ctx.heartbeat()`](Context::heartbeat) at least this often once it is up. When a heartbeat is overdue, it is
    /// stopped, and that counts as a failure however it ends ([`Exit::MissedHeartbeat`](crate::Exit::MissedHeartbeat)).
    /// Zero is refused when the supervisor is started, and so is any for a supervisor or [tracked tasks](crate::Tasks::child), which never
    /// call it, and one that is not longer than the period of a [periodic](Self::periodic) worker, whose ticks are its heartbeats.
    pub fn with_heartbeat(mut self, within: Duration) -> Self {
        self.rules().heartbeat = Some(within);
        self
    }

    /// Its end for good can stop the supervisor: see [`AutoShutdown`](crate::AutoShutdown).
    pub fn with_significant(mut self) -> Self {
        self.rules().significant = true;
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn check(&self, auto_shutdown: AutoShutdown) -> Result<(), ConfigError> {
        check_name("child.name", &self.name)?;
        self.rules.check(auto_shutdown).map_err(|(field, value, expected)| {
            ConfigError::new(field, value, format_args!("{expected}, for child `{}`", self.name))
        })?;
        self.launch.check()
    }
}
