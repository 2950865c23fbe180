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
    fn file(&self) -> &JsonFile;
    /// Commits what waits; all of it has been told when this returns.
    fn commit(&self, held: &Held<'_>);
    /// Tells all that wait that it cannot be.
    fn fail(&self, fault: Fault);
    /// Whether more waits. If not, there is no driver from here on.
    fn more(&self) -> bool;
}

/// Whoever makes the commits, until no more waits. Dropped before that, it has a thread take over.
pub(crate) struct Driver(Option<Arc<dyn Drive>>);

impl Driver {
    pub(crate) fn new(store: Arc<dyn Drive>) -> Self {
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
        match store.file().try_exclusive(&replaced, |held| store.commit(held)) {
            // Somebody else is on the file: a thread waits.
            Ok(None) => return,
            Ok(Some(())) => {}
            Err(fault) => store.fail(fault),
        }
        if !store.more() {
            self.0 = None;
        } else if let Ok(runtime) = Handle::try_current() {
            // Not in this job: a runtime that shuts down waits for it to end.
            self.start(&runtime);
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let Some(store) = self.0.take() else { return };
        let taken = Arc::clone(&store);
        let thread = std::thread::Builder::new().name("jsonfs-store".to_owned());
        if let Err(error) = thread.spawn(move || drive(&*taken)) {
            loop {
                let source = io::Error::from(error.kind());
                store.fail(ErrorKind::Io { step: "start a thread to wait for the file", source }.into());
                if !store.more() {
                    return;
                }
            }
        }
    }
}

/// Makes all commits that there are, in a thread that may wait.
fn drive(store: &dyn Drive) {
    loop {
        contained(|| {
            if let Err(fault) = store.file().blocking_exclusive(|held| store.commit(held)) {
                store.fail(fault);
            }
        });
        if !store.more() {
            return;
        }
    }
}
