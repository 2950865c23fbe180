use std::cell::Cell;
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Fault};
use crate::exclusive;
use crate::held::Held;
use crate::ops::{Ops, System};
use crate::options::{DuplicateKeys, Durability, Format, Options, ReadOnly, Symlinks};

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Saved {
    /// The file has the new content.
    Written,
    /// The file held these very bytes already and was not written; it is as durable as asked for.
    Unchanged,
}

/// A JSON file and how to treat it.
///
/// It opens nothing; each call reads or replaces the file named by the path. A call's work runs in one job on the blocking pool (two or three
/// where it has to wait for others), but for the parsing of loaded files of up to 8 KiB.
///
/// Changes of one file by this process are made one after another, in the order of the calls' first polls, whatever path
/// leads to it. A call that waits for its turn must be polled or dropped; one that is neither holds those behind it up. Other processes are
/// kept out by an advisory lock on `.NAME.lock` beside it, which stays there, empty; a call that fails leaves none that was not there.
/// Reads wait for nobody: they see the content before or after a change.
///
/// A replaced file is another file: it has the old one's mode and owner, not its hard links, access control lists, extended attributes and
/// security labels.
///
/// # Told, and dropped
///
/// A call returns when its change is in place and as durable as was asked for; by then its turn is over and the lock free. A replaced file of more than
/// 16 KiB has been freed by then (its room may be what the next write needs), a smaller one is just after: that can take the file system as long as
/// the rename, and no later call waits for it. Only a runtime that shuts down does, as for every job.
///
/// A call that is dropped while it waits, or before its job begins, does nothing. A job that runs goes on to its end, and has the
/// file to itself until then: the change is made like any other, and nobody is told. Calls that come later find it made.
///
/// # Default
///
/// Durable writes, pretty-printed, symbolic links followed, read-only files refused, at most 256 MiB and 127
/// levels (a merge, which reads no type, takes any depth that is there), any number of entries, duplicate keys by type, directories not made, processes
/// excluded, mode of a new file by the umask.
///
/// # Panics
///
/// Its async methods panic outside of a tokio runtime.
#[derive(Clone, Debug)]
#[must_use = "it does nothing until one of its methods is awaited"]
pub struct JsonFile {
    path: PathBuf,
    options: Options,
    ops: Arc<dyn Ops>,
}

impl JsonFile {
    /// The file of this path, with the defaults. A relative path is taken from the working directory of each call.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), options: Options::default(), ops: Arc::new(System) }
    }

    #[cfg(test)]
    pub(crate) fn with_ops(mut self, ops: Arc<dyn Ops>) -> Self {
        self.ops = ops;
        self
    }

    /// What a successful write promises.
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.options.durability = durability;
        self
    }

    /// What to do where the path is a symbolic link.
    pub fn with_symlinks(mut self, symlinks: Symlinks) -> Self {
        self.options.symlinks = symlinks;
        self
    }

    /// What to do where the file is read-only.
    pub fn with_read_only(mut self, read_only: ReadOnly) -> Self {
        self.options.read_only = read_only;
        self
    }

    /// How a whole document is laid out.
    pub fn with_format(mut self, format: Format) -> Self {
        self.options.format = format;
        self
    }

    /// Refuses larger files, in bytes: to read them and to write them, as with all limits.
    pub fn with_max_bytes(mut self, limit: u64) -> Self {
        self.options.max_bytes = limit;
        self
    }

    /// Refuses files that are nested deeper; `[[]]` has depth 2. What is parsed into a type is refused from depth 128 on in any
    /// case: that is serde_json's own limit, so nothing deeper is written either.
    pub fn with_max_depth(mut self, limit: NonZeroUsize) -> Self {
        self.options.max_depth = Some(limit);
        self
    }

    /// Refuses files with more members of objects and elements of arrays, all levels together.
    pub fn with_max_entries(mut self, limit: NonZeroUsize) -> Self {
        self.options.max_entries = Some(limit);
        self
    }

    /// What to do about an object that has one key twice.
    pub fn with_duplicate_keys(mut self, policy: DuplicateKeys) -> Self {
        self.options.duplicate_keys = policy;
        self
    }

    /// Makes the directories that are missing when it writes, each of them durable in its parent. (One that another program has just made, or
    /// this one before it was killed, is taken as it is.)
    pub fn with_create_parents(mut self) -> Self {
        self.options.create_parents = true;
        self
    }

    /// The permission bits of a file that did not exist, whatever the umask.
    pub fn with_mode(mut self, mode: u32) -> Self {
        self.options.mode = Some(mode & 0o7777);
        self
    }

    /// Leaves the other processes alone: no lock file. For files that only this process writes.
    pub fn without_process_lock(mut self) -> Self {
        self.options.processes = false;
        self
    }

    /// Has updates write the whole value as it is, and forget what else was in the file.
    pub fn with_rewrite(mut self) -> Self {
        self.options.rewrite = true;
        self
    }

    /// The path it was made with.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) async fn exclusive<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Held<'_>) -> Result<R, Fault> + Send + 'static,
    ) -> Result<R, Error> {
        exclusive::run(Arc::clone(&self.ops), &self.path, self.options, work)
            .await
            .map_err(|fault| self.error(fault))
    }

    /// [`exclusive`](Self::exclusive) without a wait: `None` if somebody else is on the file.
    pub(crate) fn try_exclusive<R>(
        &self,
        replaced: &Cell<Option<File>>,
        work: impl FnOnce(&Held<'_>) -> R,
    ) -> Result<Option<R>, Fault> {
        exclusive::try_run(&*self.ops, &self.path, &self.options, replaced, |held| Ok(work(held)))
    }

    /// [`exclusive`](Self::exclusive) in a thread that may wait.
    pub(crate) fn blocking_exclusive<R>(
        &self,
        replaced: &Cell<Option<File>>,
        work: impl FnOnce(&Held<'_>) -> R,
    ) -> Result<R, Fault> {
        exclusive::run_blocking(&*self.ops, &self.path, &self.options, replaced, |held| Ok(work(held)))
    }

    pub(crate) fn format(&self) -> Format {
        self.options.format
    }

    pub(crate) fn error(&self, fault: Fault) -> Error {
        Error::new(&self.path, fault)
    }
}

mod read;
mod write;

impl<P: Into<PathBuf>> From<P> for JsonFile {
    fn from(path: P) -> Self {
        Self::new(path)
    }
}
