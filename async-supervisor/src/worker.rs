use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use pin_project_lite::pin_project;
use tokio::task::AbortHandle;

use crate::poll;
use crate::runner::Guard;
use crate::{BoxError, ConfigError, Context, Exit, WorkerError};

/// A worker as a trait object, for those that are chosen at run time or carry much state.
///
/// ```
/// use async_supervisor::{BoxError, Child, Context, Worker};
/// use std::sync::Arc;
///
/// struct Importer { url: String }
///
/// #[async_supervisor::async_trait]
/// impl Worker for Importer {
///     async fn run(&self, ctx: Context) -> Result<(), BoxError> {
///         println!("attempt {} at {}", ctx.attempt(), self.url);
///         ctx.cancelled().await;
///         Ok(())
///     }
/// }
///
/// let child = Child::worker("importer", Arc::new(Importer { url: "http://feed".into() }));
/// # assert_eq!(child.name(), "importer");
/// ```
#[async_trait::async_trait]
pub trait Worker: Send + Sync + 'static {
    /// Called for each start.
    ///
    /// # Errors
    ///
    /// Whatever should count as a failure.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped at an await point when the worker has not ended in time after being asked to.
    async fn run(&self, ctx: Context) -> Result<(), BoxError>;
}

/// What a worker may return: `()`, a `Result` with any error, or nothing at all (`!`) where it is a loop without an end.
pub trait IntoExit {
    /// As an exit.
    fn into_exit(self) -> Exit;
}

impl IntoExit for () {
    fn into_exit(self) -> Exit {
        Exit::Completed
    }
}

impl<E: Into<BoxError>> IntoExit for Result<(), E> {
    fn into_exit(self) -> Exit {
        match self {
            Ok(()) => Exit::Completed,
            Err(error) => Exit::Failed(WorkerError::new(error.into())),
        }
    }
}

impl IntoExit for Exit {
    fn into_exit(self) -> Exit {
        self
    }
}

/// What a function returns: the way to name `!` until that is stable.
#[doc(hidden)]
pub trait Returns {
    #[doc(hidden)]
    type Output;
}

impl<R> Returns for fn() -> R {
    type Output = R;
}

/// A worker that is a loop without an end.
impl IntoExit for <fn() -> ! as Returns>::Output {
    fn into_exit(self) -> Exit {
        self
    }
}

/// Starts a run of a child.
pub(crate) trait Launch: Send + Sync + 'static {
    /// `guard` reports the end of the run, however it ends.
    fn launch(self: Arc<Self>, ctx: Context, guard: Guard) -> Option<AbortHandle>;

    /// Whether it can be made like this, where that is not known to be so.
    fn check(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// A closure whose future runs as a task.
pub(crate) struct Task<F>(pub(crate) F);

impl<F, Fut> Launch for Task<F>
where
    F: Fn(Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: IntoExit> + Send + 'static,
{
    fn launch(self: Arc<Self>, ctx: Context, guard: Guard) -> Option<AbortHandle> {
        // The closure is called inside the task, so that it cannot block or panic anywhere else.
        Some(spawn(async move { (self.0)(ctx).await.into_exit() }, guard))
    }
}

/// Spawns a run of a worker.
pub(crate) fn spawn(future: impl Future<Output = Exit> + Send + 'static, guard: Guard) -> AbortHandle {
    tokio::spawn(Run { future: CatchUnwind::new(future), guard }).abort_handle()
}

pin_project! {
    /// One run of a worker, which is told apart from the task it runs in so that the end is reported after all that
    /// is the worker's has been dropped: a restart never overlaps with what it replaces.
    struct Run<F> {
        #[pin]
        future: CatchUnwind<F>,
        guard: Guard,
    }

    impl<F> PinnedDrop for Run<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if this.guard.run().is_some() {
                // Aborted: its drop may panic all the same.
                this.guard.ended(this.future.discard().map_or_else(Exit::Panicked, |()| Exit::Aborted));
            }
        }
    }
}

impl<F: Future<Output = Exit>> Future for Run<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
        let this = self.project();
        let entered = poll::enter(this.guard.run());
        let ended = ready!(this.future.poll(cx));
        // What it said during this poll is heard before its end is.
        drop(entered);
        this.guard.ended(ended.unwrap_or_else(Exit::Panicked));
        Poll::Ready(())
    }
}

pin_project! {
    /// A future whose panics are values, those of its drop among them.
    pub(crate) struct CatchUnwind<F> {
        #[pin]
        future: Option<F>,
    }
}

impl<F> CatchUnwind<F> {
    pub(crate) const fn new(future: F) -> Self {
        Self { future: Some(future) }
    }

    /// Drops the future before its end: what it said if it panicked over that.
    pub(crate) fn discard(self: Pin<&mut Self>) -> Result<(), Arc<str>> {
        let mut future = self.project().future;
        catch_unwind(AssertUnwindSafe(|| future.set(None))).map_err(said)
    }
}

impl<F: Future> Future for CatchUnwind<F> {
    type Output = Result<F::Output, Arc<str>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        let mut future = self.as_mut().project().future;
        let polled = catch_unwind(AssertUnwindSafe(|| match future.as_mut().as_pin_mut() {
            Some(future) => future.poll(cx),
            None => Poll::Pending,
        }));
        let output = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panic) => Err(said(panic)),
        };
        Poll::Ready(self.discard().and(output))
    }
}

/// What a panic said.
pub(crate) fn said(panic: Box<dyn Any + Send>) -> Arc<str> {
    let said: Arc<str> = if let Some(said) = panic.downcast_ref::<&str>() {
        Arc::from(*said)
    } else if let Some(said) = panic.downcast_ref::<String>() {
        Arc::from(said.as_str())
    } else {
        Arc::from("(no message)")
    };
    bury(panic);
    said
}

/// Drops what is a user's: if that panics, it must not take the supervisor along.
pub(crate) fn bury<T>(value: T) {
    shielded(|| drop(value));
}

/// Does what may run code of a user's, a waker or a subscriber, say: if that panics, it must not take the supervisor along.
pub(crate) fn shielded(call: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
        // What a panic carries may panic in its turn; it is better leaked.
        std::mem::forget(panic);
    }
}
