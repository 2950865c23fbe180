use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::carry;
use crate::error::{Error, ErrorKind, Fault, Step};
use crate::exclusive;
use crate::held::Held;
use crate::ops::{Ops, System};
use crate::options::{DuplicateKeys, Durability, Format, Options, ReadOnly, Symlinks};
use crate::parse::{parse, print};
use crate::replace::{Replace, current};
use crate::version::Version;
use crate::{job, target};

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Saved {
    /// The file has the new content.
    Written,
    /// The file held these very bytes already and was not written; it is as durable as asked for.
    Unchanged,
}

/// What [`JsonFile::try_update`] fails with.
#[derive(Clone, Debug)]
pub enum UpdateError<E> {
    /// The closure said no; the file is untouched.
    Closure(E),
    /// Reading or writing failed.
    File(Error),
}

impl<E: fmt::Display> fmt::Display for UpdateError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closure(error) => error.fmt(f),
            Self::File(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error> std::error::Error for UpdateError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Closure(error) => error.source(),
            Self::File(error) => error.source(),
        }
    }
}

/// A JSON file and how to treat it.
///
/// It opens nothing; each call reads or replaces the file named by the path. All of a call's work runs in one job on the blocking pool,
/// but for the parsing of loaded files of up to 8 KiB.
///
/// Changes of one file by this process are made one after another, in the order of the calls' first polls, whatever path
/// leads to it. Other processes are kept out by an advisory lock on `.NAME.lock` beside it, which stays there, empty (to remove it while
/// somebody writes is to remove the protection). Reads wait for
/// nobody: they see the content before or after a change.
///
/// # Default
///
/// Durable writes, pretty-printed, symbolic links followed, read-only files refused, at most 256 MiB and 127
/// levels, any number of entries, duplicate keys by type, directories not made, processes
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

    /// Refuses larger files, in bytes.
    pub fn with_max_bytes(mut self, limit: u64) -> Self {
        self.options.max_bytes = limit;
        self
    }

    /// Refuses files that are nested deeper; `[[]]` has depth 2. What is parsed into a type is refused from depth 128 on in any
    /// case: that is serde_json's own limit.
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

    /// Makes the directories that are missing when it writes.
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

    /// Reads the file.
    ///
    /// # Errors
    ///
    /// The file is not there, cannot be read, is too large, is not UTF-8 JSON or not a `T`; then the error says where and what was
    /// expected.
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing; a read that has begun ends in the background.
    pub async fn load<T: DeserializeOwned + Send + 'static>(&self) -> Result<T, Error> {
        self.read(parse).await
    }

    /// [`load`](Self::load); of a file that is not there, the default.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load), but for the missing file.
    ///
    /// # Cancel safety
    ///
    /// As [`load`](Self::load).
    pub async fn load_or_default<T: DeserializeOwned + Default + Send + 'static>(&self) -> Result<T, Error> {
        match self.load().await {
            Err(error) if error.is_not_found() => Ok(T::default()),
            loaded => loaded,
        }
    }

    /// Replaces the file, or makes it. Readers see the old content or the new, never a mixture.
    ///
    /// The value is turned into JSON, and dropped, on the blocking pool; an `Arc` (serde's `rc` feature) shares it.
    ///
    /// # Errors
    ///
    /// [`Error::outcome`] says how far it got. A refusal if the lock was not to be had before the [deadline](async_policy::Deadline).
    ///
    /// # Cancel safety
    ///
    /// Dropped while it waits, it does nothing. Dropped later, it leaves the old content or the new, nothing else.
    pub async fn save<T: Serialize + Send + 'static>(&self, value: T) -> Result<Saved, Error> {
        let format = self.options.format;
        self.exclusive(move |held| {
            let bytes = print(&value, format)?;
            drop(value);
            let old = current(held.ops, held.target, held.options)?;
            held.put(&bytes, old, None).map(|(saved, _)| saved)
        })
        .await
    }

    /// Reads the file, lets the closure change it, and writes it back, while no other call and no other process writes.
    ///
    /// Nothing else in the file changes: keys that `T` does not know, the order of keys, how numbers and white space are written. What
    /// is compared is `T` as JSON before and after the closure, objects key by key; a changed array is replaced whole. (With
    /// [`with_rewrite`](Self::with_rewrite) the file becomes `T` and nothing else.)
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load) and [`save`](Self::save).
    ///
    /// # Cancel safety
    ///
    /// As [`save`](Self::save).
    ///
    /// # Panics
    ///
    /// When the closure does, with its panic; the file is untouched.
    pub async fn update<T, R>(&self, change: impl FnOnce(&mut T) -> R + Send + 'static) -> Result<R, Error>
    where
        T: DeserializeOwned + Serialize + 'static,
        R: Send + 'static,
    {
        self.try_update(move |value| Ok::<_, std::convert::Infallible>(change(value))).await.map_err(
            |error| match error {
                UpdateError::Closure(never) => match never {},
                UpdateError::File(error) => error,
            },
        )
    }

    /// [`update`](Self::update) with a closure that may say no, and then nothing is written.
    ///
    /// # Errors
    ///
    /// The closure's, or as [`update`](Self::update).
    ///
    /// # Cancel safety
    ///
    /// As [`save`](Self::save).
    ///
    /// # Panics
    ///
    /// As [`update`](Self::update).
    pub async fn try_update<T, R, E>(
        &self,
        change: impl FnOnce(&mut T) -> Result<R, E> + Send + 'static,
    ) -> Result<R, UpdateError<E>>
    where
        T: DeserializeOwned + Serialize + 'static,
        R: Send + 'static,
        E: Send + 'static,
    {
        let changed = self.exclusive(move |held| {
            let (raw, meta) = held.read()?;
            let mut value: T = parse(&raw, held.options)?;
            let before = print(&value, held.options.format)?;
            match change(&mut value) {
                Err(no) => Ok(Err(no)),
                Ok(yes) => {
                    let after = print(&value, held.options.format)?;
                    drop(value);
                    let bytes = carry::carry_over::<T>(&raw, &before, after, held.options)?;
                    held.put(&bytes, Some(meta), Some(&raw)).map(|_| Ok(yes))
                }
            }
        });
        changed.await.map_err(UpdateError::File)?.map_err(UpdateError::Closure)
    }

    /// Reads the file, and which version of it this is, for [`save_if`](Self::save_if).
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    ///
    /// # Cancel safety
    ///
    /// As [`load`](Self::load).
    pub async fn load_versioned<T: DeserializeOwned + Send + 'static>(&self) -> Result<(T, Version), Error> {
        self.read(|bytes, options| Ok((parse(bytes, options)?, Version::of(bytes)))).await
    }

    /// Replaces the file if it still is this version (compare and swap), and returns the new one: for changes that take too long
    /// to hold a lock meanwhile. [`Version::ABSENT`] creates the file if it does not exist.
    ///
    /// ```
    /// use async_jsonfs::{ErrorKind, JsonFile, Version};
    /// # async fn ask_somebody(votes: u32) -> u32 { votes + 1 }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let file = JsonFile::new(dir.path().join("votes.json"));
    /// file.save_if(Version::ABSENT, 0).await?;
    /// loop {
    ///     let (votes, version) = file.load_versioned::<u32>().await?;
    ///     match file.save_if(version, ask_somebody(votes).await).await {
    ///         Err(error) if matches!(error.kind(), ErrorKind::Conflict) => continue,
    ///         saved => {
    ///             saved?;
    ///             break;
    ///         }
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// The lock is held only for the comparison and the write, so writers that do not use this crate can come in between those two.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if it is another version; else as [`save`](Self::save).
    ///
    /// # Cancel safety
    ///
    /// As [`save`](Self::save).
    pub async fn save_if<T: Serialize + Send + 'static>(
        &self,
        version: Version,
        value: T,
    ) -> Result<Version, Error> {
        let format = self.options.format;
        self.exclusive(move |held| {
            let bytes = print(&value, format)?;
            drop(value);
            let Held { ops, target, options, cancelled } = *held;
            match current(ops, target, options)? {
                None if version == Version::ABSENT => {
                    let replace = Replace { ops, target, options, create_new: true, cancelled };
                    match replace.run(&bytes, None) {
                        Err(Fault { kind: ErrorKind::Io { source, .. }, .. })
                            if source.kind() == io::ErrorKind::AlreadyExists =>
                        {
                            return Err(ErrorKind::Conflict.into());
                        }
                        done => drop(done?),
                    }
                }
                None => return Err(ErrorKind::Conflict.into()),
                Some(_) => {
                    let (raw, meta) = held.read()?;
                    if Version::of(&raw) != version {
                        return Err(ErrorKind::Conflict.into());
                    }
                    held.put(&bytes, Some(meta), Some(&raw))?;
                }
            }
            Ok(Version::of(&bytes))
        })
        .await
    }

    /// Merges a patch into the file ([RFC 7396](https://www.rfc-editor.org/rfc/rfc7396)): objects member by member, `null` removes
    /// a member, anything else takes the place of what was there. What the patch does not name stays as it was, byte by byte.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("config.json");
    /// # std::fs::write(&path, "{ \"port\": 80, \"ratio\": 1.50, \"host\": \"a\" }")?;
    /// async_jsonfs::merge(&path, serde_json::json!({"port": 8080, "host": null})).await?;
    /// assert_eq!(std::fs::read_to_string(&path)?, "{ \"port\": 8080, \"ratio\": 1.50 }");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load) and [`save`](Self::save).
    ///
    /// # Cancel safety
    ///
    /// As [`save`](Self::save).
    pub async fn merge<P: Serialize + Send + 'static>(&self, patch: P) -> Result<Saved, Error> {
        self.exclusive(move |held| {
            let patch = print(&patch, Format::Compact)?;
            let (raw, meta) = held.read()?;
            let bytes = carry::merge(&raw, &patch, held.options)?;
            held.put(&bytes, Some(meta), Some(&raw)).map(|(saved, _)| saved)
        })
        .await
    }

    /// Applies a patch to the file ([RFC 6902](https://www.rfc-editor.org/rfc/rfc6902)): all of its operations or none. What it
    /// does not touch stays as it was, as with [`update`](Self::update).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Patch`](crate::ErrorKind::Patch) where an operation does not fit or a `test` fails; else as [`load`](Self::load)
    /// and [`save`](Self::save).
    ///
    /// # Cancel safety
    ///
    /// As [`save`](Self::save).
    #[cfg(feature = "patch")]
    #[cfg_attr(docsrs, doc(cfg(feature = "patch")))]
    pub async fn patch(&self, patch: json_patch::Patch) -> Result<Saved, Error> {
        self.exclusive(move |held| {
            let (raw, meta) = held.read()?;
            let bytes = carry::patch(&raw, &patch, held.options)?;
            held.put(&bytes, Some(meta), Some(&raw)).map(|(saved, _)| saved)
        })
        .await
    }

    async fn read<R: Send + 'static>(
        &self,
        make: fn(&[u8], &Options) -> Result<R, Fault>,
    ) -> Result<R, Error> {
        let Self { path, options, ops } = self.clone();
        let read = move |_: &_| {
            let file = match ops.open(&path, options.symlinks != Symlinks::Refuse) {
                Err(error)
                    if options.symlinks == Symlinks::Refuse
                        && error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) =>
                {
                    target::refuse_symlink(&*ops, &path)?;
                    Err(error)
                }
                opened => opened,
            };
            let (bytes, _) = target::read(&*ops, &file.step("open")?, &options)?;
            if bytes.len() > SMALL { make(&bytes, &options).map(Read::Made) } else { Ok(Read::Small(bytes)) }
        };
        let made = match job::run(read).await {
            Ok(Ok(Read::Made(made))) => Ok(made),
            Ok(Ok(Read::Small(bytes))) => make(&bytes, &self.options),
            Ok(Err(fault)) | Err(fault) => Err(fault),
        };
        made.map_err(|fault| self.error(fault))
    }

    pub(crate) async fn exclusive<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Held<'_>) -> Result<R, Fault> + Send + 'static,
    ) -> Result<R, Error> {
        exclusive::run(Arc::clone(&self.ops), &self.path, self.options, work)
            .await
            .map_err(|fault| self.error(fault))
    }

    pub(crate) fn error(&self, fault: Fault) -> Error {
        Error::new(&self.path, fault)
    }
}

/// Up to this many bytes a loaded file is parsed by the caller, in some 50 us: what another thread has parsed costs more to drop
/// than that (its memory goes back to an allocator's arena that is not this thread's).
const SMALL: usize = 8 << 10;

enum Read<R> {
    Made(R),
    Small(Vec<u8>),
}

impl<P: Into<PathBuf>> From<P> for JsonFile {
    fn from(path: P) -> Self {
        Self::new(path)
    }
}
