use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use tokio::runtime::Handle as Runtime;
use tokio::task::AbortHandle;

use crate::runner::Guard;
use crate::worker::{IntoExit, Launch, bury, said};
use crate::{Context, Exit, WorkerError};

/// A closure that runs on a thread of its own.
pub(crate) struct Thread<F>(pub(crate) F);

impl<F, R> Launch for Thread<F>
where
    F: Fn(Context) -> R + Send + Sync + 'static,
    R: IntoExit + 'static,
{
    fn launch(self: Arc<Self>, ctx: Context, guard: Guard) -> Option<AbortHandle> {
        let runtime = Runtime::current();
        let name = ctx.name().to_owned();
        let slot = Arc::new(std::sync::Mutex::new(Some((ctx, guard))));
        let given = Arc::clone(&slot);
        let run = move || {
            let Some((ctx, mut guard)) = given.lock().ok().and_then(|mut slot| slot.take()) else { return };
            // So that `Handle::current().block_on(…)` and the runtime's clock are at hand.
            let _entered = runtime.enter();
            let ran = catch_unwind(AssertUnwindSafe(|| (self.0)(ctx).into_exit()));
            let exit = ran.unwrap_or_else(|panic| Exit::Panicked(said(panic)));
            bury(self);
            guard.ended(exit);
        };
        // A name with a zero byte in it would panic.
        let builder = thread::Builder::new().name(name.replace('\0', "?"));
        if let Err(error) = builder.spawn(run)
            && let Some((_, mut guard)) = slot.lock().ok().and_then(|mut slot| slot.take())
        {
            guard.ended(Exit::Failed(WorkerError::new(error.into())));
        }
        None
    }
}
