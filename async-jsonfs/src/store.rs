use std::convert::Infallible;
use std::fmt;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_policy::{Deadline, Reason, TimedOut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::change::{Answer, Change, Flush, Queued};
use crate::commit::{Committed, Disk};
use crate::drive::{Drive, Driver};
use crate::error::{Error, ErrorKind, Fault, Outcome, UpdateError};
use crate::exclusive::within;
use crate::file::JsonFile;
use crate::held::Held;
use crate::job::{STORE, refusal};
use crate::panics::let_go;
use crate::state::{Next, Queue};
use crate::tell::{Event, tell};

type Changes<T> = Vec<Box<dyn Change<T>>>;

/// One JSON file held open as typed state.
///
/// [`snapshot`](Self::snapshot) is the last *committed* state, at the cost of a reference count. [`update`](Self::update)s are
/// group-committed: those that come while a commit is being written are the next one, applied in the order of their first polls, each to
/// a copy that is kept only if its closure succeeds and it can be written (closures run once, so each is looked at before the next builds on
/// it: it is printed, and read back); then one file is written for all, synced once, and each caller is told. So many callers share one
/// sync of the disk, and a single one does not wait for others. (In a file of more than 64 KiB a change is printed by itself, but all of a
/// commit are read back at once, and refused at once.)
///
/// | a commit | readers see | its callers are told | the store |
/// |---|---|---|---|
/// | is written | the new state | their closure's value | goes on |
/// | fails before the file is replaced | the old state | the error, [`Outcome::NotWritten`] | goes on |
/// | has a change in it that cannot be written | the new state without it | the others their value, this one the error | goes on |
/// | is in place, but not known to be durable | the new state | the error, [`Outcome::Visible`] | writes it anew with the next commit or flush |
///
/// 1. Readers never wait for the disk, and never see what the file does not hold.
/// 2. A closure that fails or panics changes nothing, and no other caller notices; nor of a change that cannot be written, or of a value that panics
///    when it is dropped.
/// 3. A caller is told "done" only when its change is as durable as the [`JsonFile`] says.
/// 4. Other processes may change the file: it is read again before the next commit, and the closures are applied to what it holds then.
///    What the type does not know is kept, as by [`JsonFile::update`]. Fields that are not in the file (`#[serde(skip)]`) are the default after
///    that; a change of nothing else is committed without a write. Where somebody has removed the file, the next change makes it again.
///
/// Commits are made by jobs on the blocking pool of a caller's runtime. Callers may be of several runtimes: it does not matter which of them are
/// polled, and when one shuts down, the callers of the others are served all the same.
///
/// A caller that is dropped before its closure's turn withdraws it; later its change is committed with the others', and nobody is told. Whoever is
/// told finds the lock free; when the replaced file is freed, before that or after, is as [`JsonFile`] has it.
///
/// Clones are handles of the same store. The last one dropped does not cut off what is queued; [`close`](Self::close)
/// waits for it.
///
/// ```
/// use async_jsonfs::Store;
/// use std::collections::BTreeMap;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let store = Store::<BTreeMap<String, u64>>::open_or_default(dir.path().join("visits.json")).await?;
/// let visits = store
///     .update(|visits| {
///         let count = visits.entry("ada".to_owned()).or_default();
///         *count += 1;
///         *count
///     })
///     .await?;
/// assert_eq!((visits, store.snapshot()["ada"]), (1, 1));
/// store.close().await?;
/// # Ok(()) }
/// ```
pub struct Store<T>(Arc<Inner<T>>);

struct Inner<T> {
    file: JsonFile,
    committed: Mutex<Arc<T>>,
    queue: Mutex<Queue<Box<dyn Change<T>>>>,
    /// Taken out for the length of a commit.
    disk: Mutex<Disk>,
}

/// No code of a user's runs while one of these is locked, so they cannot be poisoned by it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Clone for Store<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Store<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("file", &self.0.file).finish_non_exhaustive()
    }
}

impl<T> Store<T>
where
    T: Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Opens a file: of a path, or of a [`JsonFile`] with options. To open is to read: it takes no lock, makes nothing and waits for nobody.
    ///
    /// # Errors
    ///
    /// As [`JsonFile::load`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it opens nothing and changes nothing.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime; that goes for all of its async methods.
    pub async fn open(file: impl Into<JsonFile>) -> Result<Self, Error> {
        Self::open_with(file.into(), None).await
    }

    /// [`open`](Self::open); where there is no file (or no directory), from the default, which is written with the first change.
    /// A file that is there and empty is an error.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    ///
    /// # Cancel safety
    ///
    /// As [`open`](Self::open).
    pub async fn open_or_default(file: impl Into<JsonFile>) -> Result<Self, Error>
    where
        T: Default,
    {
        Self::open_with(file.into(), Some(T::default)).await
    }

    async fn open_with(file: JsonFile, default: Option<fn() -> T>) -> Result<Self, Error> {
        let format = file.format();
        let opened = file.look(move |held| match (held.and_then(Disk::open), default) {
            // The file, or its directory.
            (Err(fault), Some(default)) if fault.is_not_found() => {
                let state = default();
                Ok((Disk::absent(&state, format)?, state))
            }
            (opened, _) => opened,
        });
        let (disk, state) = opened.await?;
        Ok(Self(Arc::new(Inner {
            file,
            committed: Mutex::new(Arc::new(state)),
            queue: Mutex::default(),
            disk: Mutex::new(disk),
        })))
    }

    /// The last committed state. It does not change while you hold it; whoever drops the last handle of an old state drops the state.
    #[must_use]
    pub fn snapshot(&self) -> Arc<T> {
        Arc::clone(&lock(&self.0.committed))
    }

    /// Changes the state, and returns once that is committed. A closure that waits for another update of the same store waits for ever.
    ///
    /// # Errors
    ///
    /// Why the change cannot be written (as [`JsonFile::update`]; the others of its commit are not concerned) or the commit failed
    /// ([`Error::outcome`] says how far it got); a refusal after [`close`](Self::close), and if the deadline in force
    /// comes before the closure's turn. If it comes later, a time-out: the change may be committed.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its turn, the closure is not run. Dropped later, its change is committed like the others'.
    ///
    /// # Panics
    ///
    /// When the closure does, with its panic; the state is unchanged.
    pub async fn update<R>(&self, change: impl FnOnce(&mut T) -> R + Send + 'static) -> Result<R, Error>
    where
        R: Send + 'static,
    {
        let changed = self.try_update(move |state| Ok::<_, Infallible>(change(state))).await;
        changed.map_err(UpdateError::of_the_file)
    }

    /// [`update`](Self::update) with a closure that may say no, and then changes nothing.
    ///
    /// # Errors
    ///
    /// The closure's, or as [`update`](Self::update).
    ///
    /// # Cancel safety
    ///
    /// As [`update`](Self::update).
    ///
    /// # Panics
    ///
    /// As [`update`](Self::update).
    pub async fn try_update<R, E>(
        &self,
        change: impl FnOnce(&mut T) -> Result<R, E> + Send + 'static,
    ) -> Result<R, UpdateError<E>>
    where
        R: Send + 'static,
        E: Send + 'static,
    {
        let error = |fault| UpdateError::File(self.0.file.error(fault));
        let (queued, ticket, mut caller) = Queued::new(change);
        // Panics outside of a runtime before anything is queued.
        let runtime = Handle::current();
        let pushed = lock(&self.0.queue).push(Box::new(queued) as Box<dyn Change<T>>);
        match pushed {
            Ok(next) => self.drive(&runtime, next),
            Err(_back) => return Err(error(closed())),
        }
        let answer = match Deadline::current() {
            None => caller.await,
            Some(deadline) => {
                let limit = deadline.remaining();
                match timeout_at(deadline.instant(), &mut caller).await {
                    Ok(answer) => answer,
                    Err(_) if ticket.withdraw() => {
                        return Err(error(ErrorKind::Rejected(refusal(Reason::DeadlineTooClose)).into()));
                    }
                    Err(_) => {
                        let kind = ErrorKind::TimedOut(TimedOut::new(limit));
                        return Err(error(Fault { kind, outcome: Outcome::Unknown }));
                    }
                }
            }
        };
        match answer {
            Ok(Answer::Done(value)) => Ok(value),
            Ok(Answer::No(no)) => Err(UpdateError::Closure(no)),
            Ok(Answer::Panicked(panic)) => resume_unwind(panic),
            Ok(Answer::Failed(error)) => Err(UpdateError::File(error)),
            Err(_) => Err(error(untold())),
        }
    }

    /// Waits until every change made before is committed and *durable*, also where the store's choice is
    /// [`Durability::Visible`](crate::Durability::Visible).
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update). (That an earlier commit failed is its callers' to know, not the flush's.)
    ///
    /// # Cancel safety
    ///
    /// Dropping it stops the waiting, not the commit; once polled, there is one.
    pub async fn flush(&self) -> Result<(), Error> {
        let (caller, receiver) = oneshot::channel();
        let runtime = Handle::current();
        let pushed = lock(&self.0.queue).push(Box::new(Flush(caller)) as Box<dyn Change<T>>);
        match pushed {
            Ok(next) => self.drive(&runtime, next),
            Err(_back) => {
                return Err(self.0.file.error(closed()));
            }
        }
        self.flushed(receiver).await
    }

    /// Takes no more changes, and waits until those made before are durable. Snapshots can still be taken.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush). It can be called again.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the store is closed; dropping it stops the waiting, not the commit.
    pub async fn close(&self) -> Result<(), Error> {
        let (caller, receiver) = oneshot::channel();
        let runtime = Handle::current();
        let next = lock(&self.0.queue).close(Box::new(Flush(caller)) as Box<dyn Change<T>>);
        self.drive(&runtime, next);
        self.flushed(receiver).await
    }

    async fn flushed(&self, receiver: oneshot::Receiver<Result<(), Error>>) -> Result<(), Error> {
        within(receiver)
            .await
            .map_err(|fault| self.0.file.error(fault))?
            .unwrap_or_else(|_| Err(self.0.file.error(untold())))
    }

    fn drive(&self, runtime: &Handle, next: Next) {
        if next == Next::Drive {
            Driver::new(Arc::clone(&self.0)).start(runtime);
        }
    }
}

fn closed() -> Fault {
    ErrorKind::Rejected(refusal(Reason::ShutDown).with_name(STORE)).into()
}

/// Unreachable while every change is finished: said rather than assumed.
fn untold() -> Fault {
    Fault { kind: ErrorKind::Panicked, outcome: Outcome::Unknown }
}

impl<T> Drive for Inner<T>
where
    T: Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    type Over = Over<T>;

    fn file(&self) -> &JsonFile {
        &self.file
    }

    fn commit(&self, held: &Held<'_>) -> Over<T> {
        let mut batch = lock(&self.queue).take();
        let mut disk = std::mem::take(&mut *lock(&self.disk));
        let state = Arc::clone(&lock(&self.committed));
        let Committed { state: now, failed } =
            disk.commit(held, &state, &mut batch, |fault| self.file.error(fault));
        *lock(&self.disk) = disk;
        let old = now.map(|now| std::mem::replace(&mut *lock(&self.committed), now));
        tell(&held.target.path, &Event::Committed { changes: batch.len() });
        Over { batch, failed, states: (old, Some(state)) }
    }

    fn fail(&self, fault: Fault) -> Over<T> {
        Over { batch: lock(&self.queue).take(), failed: Some(fault), states: (None, None) }
    }

    fn tell(&self, over: Over<T>) -> bool {
        let Over { batch, failed, states } = over;
        // A caller that is alone starts the next commit itself, rather than to have this thread do it, which it would have to wake for. Of many, those
        // told first must not begin one before the others are there.
        let ended = batch.len() == 1 && !lock(&self.queue).more();
        let error = failed.map(|fault| self.file.error(fault));
        for change in batch {
            change.finish(error.as_ref().map_or(Ok(()), Err));
        }
        // Here, where it holds nobody up, not under the lock, and after all have been told.
        let_go(states);
        !ended && lock(&self.queue).more()
    }
}

/// A commit, when the file has been let go of.
struct Over<T> {
    batch: Changes<T>,
    failed: Option<Fault>,
    /// What was committed before.
    states: (Option<Arc<T>>, Option<Arc<T>>),
}
