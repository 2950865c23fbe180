//! Who may change a file: one call of this process at a time, and one process at a time.
//!
//! Within the process callers queue in an async mutex, first by the path as they spell it (so that calls are served in the
//! order they were made), then by the file it really is. Processes exclude each other with `flock` on a file beside the
//! data; the data file itself will not do, because a rename puts another file in its place.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use rustix::fs::{FileType, FlockOperation, flock};
use rustix::io::retry_on_intr;
use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::error::{ErrorKind, Fault, Step};
use crate::ops::Ops;
use crate::options::Options;
use crate::target::{Key, Target};

/// One file (or one spelling of a path) that calls of this process take turns on.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// While a thread of ours waits for the other processes: whom it gets the lock for.
    waiter: Mutex<Option<oneshot::Sender<Locked>>>,
}

/// The turn within this process; over when it is dropped. It keeps the entry in the registry.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn {
    _guard: OwnedMutexGuard<()>,
    _entry: Arc<Entry>,
}

/// The lock against the other processes; let go of when it is dropped.
#[derive(Debug)]
pub(crate) struct Locked {
    file: File,
    /// Whether there was no lock file before.
    made: bool,
}

impl Entry {
    pub(crate) async fn turn(self: Arc<Self>) -> Turn {
        Turn { _guard: Arc::clone(&self.turn).lock_owned().await, _entry: self }
    }

    /// For a thread that nobody waits for.
    pub(crate) fn blocking_turn(self: Arc<Self>) -> Turn {
        Turn { _guard: Arc::clone(&self.turn).blocking_lock_owned(), _entry: self }
    }

    pub(crate) fn try_turn(self: &Arc<Self>) -> Option<Turn> {
        let guard = Arc::clone(&self.turn).try_lock_owned().ok()?;
        Some(Turn { _guard: guard, _entry: Arc::clone(self) })
    }

    /// Has a thread wait for `file`'s lock, which another process holds.
    ///
    /// A thread of our own and not a blocking job: nobody knows how long it takes, and a runtime waits for its blocking
    /// jobs before it shuts down. The kernel wakes it when the lock is free, so there is no polling. There is at most one per file:
    /// the thread of a caller that has given up serves the next.
    pub(crate) fn wait(self: &Arc<Self>, file: File) -> Result<oneshot::Receiver<Locked>, Fault> {
        let (sender, receiver) = oneshot::channel();
        let mut waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
        if waiter.is_none() {
            let entry = Arc::clone(self);
            let spawned = std::thread::Builder::new().name("jsonfs-lock".to_owned()).spawn(move || {
                // An error (no lock on this file system, no memory) is told by dropping the sender.
                let locked = retry_on_intr(|| flock(&file, FlockOperation::LockExclusive));
                let waiter = entry.waiter.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let (Ok(()), Some(waiter)) = (locked, waiter) {
                    // If nobody wants it any more it comes back here, and closing the file frees it.
                    let _ = waiter.send(Locked { file, made: false });
                }
            });
            spawned.map(drop).step("start a thread to wait for the lock")?;
        }
        *waiter = Some(sender);
        Ok(receiver)
    }
}

/// How often a lock file may go between being opened and being locked.
const MOST_LOCKS: usize = 100;

/// The lock if it is free, otherwise the file to wait on.
pub(crate) fn try_lock(
    ops: &dyn Ops,
    target: &Target,
    options: &Options,
) -> Result<Result<Locked, File>, Fault> {
    let name = target.lock();
    for _ in 0..MOST_LOCKS {
        let (file, made) = match ops.open_lock(&target.dir, &name, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = match ops.open_lock(&target.dir, &name, true) {
                    // Somebody else was faster: theirs, then.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    made => made.step("make the lock file beside it")?,
                };
                admit(ops, target, options, &file);
                (file, true)
            }
            opened => (opened.step("open the lock file")?, false),
        };
        if !ops.try_lock(&file).step("lock the lock file")? {
            return Ok(Err(file));
        }
        let locked = Locked { file, made };
        if locked.counts(ops, target)? {
            return Ok(Ok(locked));
        }
    }
    Err(io::Error::other("it is replaced again and again")).step("lock the lock file")
}

/// Whoever may write the data may lock it: the lock file belongs to whom the data does, and has its permissions at least. What the system
/// does not allow is left undone.
fn admit(ops: &dyn Ops, target: &Target, options: &Options, lock: &File) {
    let Ok(made) = ops.stat(lock) else { return };
    let (owner, mode) = match ops.stat_at(&target.dir, &target.name) {
        Ok(data) if data.kind == FileType::RegularFile => (data.owner, data.mode),
        _ => (made.owner, options.mode.unwrap_or(0)),
    };
    if owner != made.owner {
        let _ = ops.set_owner(lock, owner);
    }
    let wanted = (made.mode | mode) & 0o666;
    if wanted != made.mode & 0o7777 {
        let _ = ops.set_mode(lock, wanted);
    }
}

impl Locked {
    /// Whether what is locked is the lock file still: whoever removed it in between has another.
    pub(crate) fn counts(&self, ops: &dyn Ops, target: &Target) -> Result<bool, Fault> {
        let ours = ops.stat(&self.file).step("look at the lock file")?;
        match ops.stat_at(&target.dir, &target.lock()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            there => Ok(there.step("look at the lock file")?.id == ours.id),
        }
    }

    /// A call that fails leaves no lock file that it has made. While it is locked it may be removed: see [`counts`](Self::counts).
    pub(crate) fn forget(self, ops: &dyn Ops, target: &Target) {
        if self.made {
            let _ = ops.remove(&target.dir, &target.lock());
        }
    }
}

pub(crate) fn lost() -> Fault {
    let source = io::Error::other("the lock could not be taken");
    ErrorKind::Io { step: "wait for the lock", source }.into()
}

/// The entries that are in use.
#[derive(Debug)]
pub(crate) struct Registry<K> {
    state: LazyLock<Mutex<Entries<K>>>,
}

#[derive(Debug)]
struct Entries<K> {
    map: HashMap<K, Weak<Entry>>,
    /// At this size those out of use are removed.
    clean_at: usize,
}

/// By the path as it is spelled, made absolute.
pub(crate) static SPELLED: Registry<PathBuf> = Registry::new();
/// By directory and name.
pub(crate) static REAL: Registry<Key> = Registry::new();

const FEWEST: usize = 64;

impl<K: Hash + Eq> Registry<K> {
    const fn new() -> Self {
        Self { state: LazyLock::new(|| Mutex::new(Entries { map: HashMap::new(), clean_at: FEWEST })) }
    }

    pub(crate) fn entry(&self, key: K) -> Arc<Entry> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = state.map.get(&key).and_then(Weak::upgrade) {
            return entry;
        }
        if state.map.len() >= state.clean_at {
            state.map.retain(|_, entry| entry.strong_count() > 0);
            state.clean_at = FEWEST.max(2 * state.map.len());
        }
        let entry = Arc::default();
        state.map.insert(key, Arc::downgrade(&entry));
        entry
    }
}
