//! One call, one blocking job.

use std::panic::resume_unwind;

use async_policy::{PolicyKind, Reason, Rejection};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinError, spawn_blocking};

use crate::error::{ErrorKind, Fault};

/// A job that has not begun never does once its caller has gone away. One that runs goes on to its end.
struct Abandon(AbortHandle);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The name of who refuses once a store is closed.
pub(crate) const STORE: &str = "closed store";

/// The refusal of this crate's locks and stores.
pub(crate) fn refusal(reason: Reason) -> Rejection {
    Rejection::new(PolicyKind::File, reason)
}

/// Runs `work` on the blocking pool. What it returns beside its result is dropped there once the caller has been told. A panic in it goes on in the
/// caller.
pub(crate) async fn run<R: Send + 'static, L>(
    work: impl FnOnce() -> (R, L) + Send + 'static,
) -> Result<R, Fault> {
    let (caller, receiver) = oneshot::channel();
    let handle = spawn_blocking(move || {
        let (done, later) = work();
        drop(caller.send(done));
        drop(later);
    });
    let _abandon = Abandon(handle.abort_handle());
    if let Ok(done) = receiver.await {
        return Ok(done);
    }
    match handle.await.map_err(JoinError::try_into_panic) {
        Err(Ok(panic)) => resume_unwind(panic),
        // Never begun: the runtime is shutting down.
        _ => Err(ErrorKind::Rejected(refusal(Reason::ShutDown)).into()),
    }
}

/// Drops its value on the blocking pool instead of on the thread that lets go of it.
///
/// A large value takes milliseconds to drop (a 50 MB document some 20), and a runtime thread does nothing else meanwhile.
/// Loading never drops anything large on the runtime; what you do with the value is yours to say:
///
/// ```
/// use async_jsonfs::{DropElsewhere, load};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("large.json");
/// # std::fs::write(&path, "[1, 2, 3]")?;
/// let numbers = DropElsewhere::new(load::<Vec<u64>>(&path).await?);
/// assert_eq!(numbers.len(), 3);
/// # Ok(()) }
/// ```
///
/// Outside of a tokio runtime it drops the value where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropElsewhere<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> DropElsewhere<T> {
    /// Takes the value in.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// Gives the value back; from here on it drops like any other.
    ///
    /// # Panics
    ///
    /// Never: the value is there until this or the drop takes it.
    #[must_use]
    pub fn into_inner(mut self) -> T {
        self.0.take().expect("taken only here and in drop")
    }
}

impl<T: Send + 'static> std::ops::Deref for DropElsewhere<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("taken only by into_inner and drop")
    }
}

impl<T: Send + 'static> std::ops::DerefMut for DropElsewhere<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("taken only by into_inner and drop")
    }
}

impl<T: Send + 'static> Drop for DropElsewhere<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        if std::mem::needs_drop::<T>()
            && value.is_some()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            drop(runtime.spawn_blocking(move || drop(value)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    struct Waits(Receiver<()>);

    impl Drop for Waits {
        fn drop(&mut self) {
            // Longer than any machine takes.
            self.0.recv_timeout(Duration::from_secs(30)).expect("its caller has not been told");
        }
    }

    #[tokio::test]
    async fn a_caller_is_told_before_what_is_left_is_dropped() {
        let (told, waits) = channel();
        assert_eq!(super::run(|| (1, Waits(waits))).await.unwrap(), 1);
        told.send(()).unwrap();
    }
}
