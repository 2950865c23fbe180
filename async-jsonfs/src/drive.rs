//! Who makes a store's commits.
//!
//! Each commit is a blocking job, on the pool of the runtime whose caller found nobody at it, and starts the next job if more has come
//! meanwhile. No task is needed, so it does not matter whether that runtime is polled. Where somebody else is on the file, a
//! thread waits for it; and one takes over when the runtime shuts down, as callers of another may be waiting.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::error::{ErrorKind, Fault};
use crate::file::JsonFile;
use crate::held::Held;
use crate::panics::contained;

/// A store, of whatever type.
pub(crate) trait Drive: Send + Sync + 'static {
    /// Changes that are over, and whose callers have not been told.
    type Over;

    fn file(&self) -> &JsonFile;
    /// Commits what waits.
    fn commit(&self, held: &Held<'_>) -> Self::Over;
    /// Nothing that waits can be.
    fn fail(&self, fault: Fault) -> Self::Over;
    /// Tells the callers. Whether more waits: if not, there is no driver from here on.
    fn tell(&self, over: Self::Over) -> bool;
}

/// Whoever makes the commits, until no more waits. Dropped before that, it has a thread take over.
pub(crate) struct Driver<S: Drive>(Option<Arc<S>>);

impl<S: Drive> Driver<S> {
    pub(crate) fn new(store: Arc<S>) -> Self {
        Self(Some(store))
    }

    /// Starts a job for the next commit.
    pub(crate) fn start(self, runtime: &Handle) {
        // If the runtime is shutting down, this drops the job.
        drop(runtime.spawn_blocking(move || self.job()));
    }

    fn job(mut self) {
        let Some(store) = &self.0 else { return };
        // Closed when nobody waits for it.
        let replaced = Cell::new(None);
        let over = match store.file().try_exclusive(&replaced, |held| store.commit(held)) {
            // Somebody else is on the file: a thread waits.
            Ok(None) => return,
            Ok(Some(over)) => over,
            Err(fault) => store.fail(fault),
        };
        if !store.tell(over) {
            self.0 = None;
        } else if let Ok(runtime) = Handle::try_current() {
            // Not in this job: a runtime that shuts down waits for it to end.
            self.start(&runtime);
        }
    }
}

impl<S: Drive> Drop for Driver<S> {
    fn drop(&mut self) {
        let Some(store) = self.0.take() else { return };
        let taken = Arc::clone(&store);
        let thread = std::thread::Builder::new().name("jsonfs-store".to_owned());
        if let Err(error) = thread.spawn(move || drive(&*taken)) {
            loop {
                let source = io::Error::from(error.kind());
                let kind = ErrorKind::Io { step: "start a thread to wait for the file", source };
                if !store.tell(store.fail(kind.into())) {
                    return;
                }
            }
        }
    }
}

/// Makes all commits that there are, in a thread that may wait.
fn drive(store: &impl Drive) {
    loop {
        let mut more = None;
        contained(|| {
            let replaced = Cell::new(None);
            let done = store.file().blocking_exclusive(&replaced, |held| store.commit(held));
            more = Some(store.tell(done.unwrap_or_else(|fault| store.fail(fault))));
        });
        if !more.unwrap_or_else(|| store.tell(store.fail(ErrorKind::Panicked.into()))) {
            return;
        }
    }
}
