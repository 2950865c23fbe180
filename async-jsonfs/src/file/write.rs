//! Changing: one call of this process at a time, and one process at a time.

use std::convert::Infallible;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{JsonFile, Saved};
use crate::error::{Error, ErrorKind, UpdateError};
use crate::held::Held;
use crate::options::{Format, Options};
use crate::parse::{parse, print};
#[cfg(feature = "patch")]
use crate::patch::patch as apply_patch;
use crate::replace::current;
use crate::version::Version;
use crate::{carry, limits};

impl JsonFile {
    /// Replaces the file, or makes it. Readers see the old content or the new, never a mixture.
    ///
    /// The value is turned into JSON, and dropped, on the blocking pool; an `Arc` (serde's `rc` feature) shares it. What was there need be
    /// neither JSON nor readable.
    ///
    /// # Errors
    ///
    /// [`Error::outcome`] says how far it got. A refusal if the lock was not to be had before the [deadline](async_policy::Deadline).
    /// [`ErrorKind::Serialize`](crate::ErrorKind::Serialize) for a value that is no JSON: a map whose keys are not strings, NaN, an infinity.
    ///
    /// # Cancel safety
    ///
    /// Dropped while it waits, it does nothing. Dropped later, it is done all the same: what is [told](Self#told-and-dropped) is lost, nothing else.
    pub async fn save<T: Serialize + Send + 'static>(&self, value: T) -> Result<Saved, Error> {
        let format = self.options.format;
        self.exclusive(move |held| {
            let bytes = print(&value, format)?;
            drop(value);
            limits::no_deeper(&bytes, b"")?;
            let old = current(held.ops, held.target, held.options)?;
            held.put(&bytes, old, None).map(|(saved, _)| saved)
        })
        .await
    }

    /// Reads the file, lets the closure change it, and writes it back, while no other call and no other process writes.
    ///
    /// Nothing else in the file changes: keys that `T` does not know, the order of keys, how numbers and white space are written. What
    /// is compared is `T` as JSON before and after the closure, objects key by key; a changed array is replaced whole, so keys
    /// that `T` does not know go from all of its elements. (With
    /// [`with_rewrite`](Self::with_rewrite) the file becomes `T` and nothing else.)
    ///
    /// What would be written is read as a `T` first, and what has changed must be there. A closure that waits for another change of the
    /// same file waits for ever.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load) and [`save`](Self::save). [`ErrorKind::Unmergeable`](crate::ErrorKind::Unmergeable) if it would read otherwise: a key
    /// that the file has under an alias, an unknown key that makes it another variant, a field that is written and not read.
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
        let changed = self.try_update(move |value| Ok::<_, Infallible>(change(value))).await;
        changed.map_err(UpdateError::of_the_file)
    }

    /// [`update`](Self::update); of a file that is not there, from the default, and makes it. A file that is there and empty is an error.
    ///
    /// ```
    /// use async_jsonfs::JsonFile;
    /// use std::collections::BTreeMap;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let file = JsonFile::new(dir.path().join("starts.json"));
    /// for start in 1..=2 {
    ///     let count = |counts: &mut BTreeMap<String, u32>| {
    ///         let count = counts.entry("starts".to_owned()).or_default();
    ///         *count += 1;
    ///         *count
    ///     };
    ///     assert_eq!(file.update_or_default(count).await?, start);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update), but for the missing file.
    ///
    /// # Cancel safety
    ///
    /// As [`save`](Self::save).
    ///
    /// # Panics
    ///
    /// As [`update`](Self::update).
    pub async fn update_or_default<T, R>(
        &self,
        change: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Result<R, Error>
    where
        T: DeserializeOwned + Serialize + Default + 'static,
        R: Send + 'static,
    {
        let change = move |value: &mut T| Ok::<_, Infallible>(change(value));
        self.change(Some(T::default), change).await.map_err(UpdateError::of_the_file)
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
        self.change(None, change).await
    }

    async fn change<T, R, E>(
        &self,
        default: Option<fn() -> T>,
        change: impl FnOnce(&mut T) -> Result<R, E> + Send + 'static,
    ) -> Result<R, UpdateError<E>>
    where
        T: DeserializeOwned + Serialize + 'static,
        R: Send + 'static,
        E: Send + 'static,
    {
        let changed = self.exclusive(move |held| {
            let Held { options, .. } = *held;
            let (there, mut value) = match (held.read(), default) {
                (Err(fault), Some(default)) if fault.is_not_found() => (None, default()),
                (read, _) => {
                    let (raw, meta) = read?;
                    let value = parse::<T>(&raw, options)?;
                    (Some((raw, meta)), value)
                }
            };
            let before = print(&value, options.format)?;
            let yes = match change(&mut value) {
                Err(no) => return Ok(Err(no)),
                Ok(yes) => yes,
            };
            let after = print(&value, options.format)?;
            drop(value);
            let (bytes, meta, raw) = match &there {
                None => {
                    let whole = Options { rewrite: true, ..*options };
                    (carry::carry_over::<T>(b"", b"", &after, &whole)?, None, None)
                }
                Some((raw, meta)) => {
                    (carry::carry_over::<T>(raw, &before, &after, options)?, Some(*meta), Some(&**raw))
                }
            };
            held.put(bytes.as_deref().unwrap_or(&after), meta, raw).map(|_| Ok(yes))
        });
        changed.await.map_err(UpdateError::File)?.map_err(UpdateError::Closure)
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
            limits::no_deeper(&bytes, b"")?;
            let there = match held.read() {
                Err(fault) if fault.is_not_found() => None,
                read => Some(read?),
            };
            match there {
                Some((raw, meta)) if Version::of(&raw) == version => {
                    held.put(&bytes, Some(meta), Some(&raw))?;
                }
                None if version == Version::ABSENT => held.create(&bytes)?,
                _ => return Err(ErrorKind::Conflict.into()),
            }
            Ok(Version::of(&bytes))
        })
        .await
    }

    /// Merges a patch into the file ([RFC 7396](https://www.rfc-editor.org/rfc/rfc7396)): objects member by member, `null` removes
    /// a member, anything else takes the place of what was there. What the patch does not name stays as it was, byte by byte.
    ///
    /// A `None` is `null` and removes; where it is to mean "leave alone", it must not be serialised (`skip_serializing_if`). Only what the
    /// patch is about has to be of a kind that types can hold.
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
        self.merge_into(false, patch).await
    }

    /// [`merge`](Self::merge); of a file that is not there, into an empty object, and makes it. (A patch that is no object, an array say,
    /// takes the place of what there is, as in any merge: it becomes the file.)
    ///
    /// # Errors
    ///
    /// As [`merge`](Self::merge), but for the missing file.
    ///
    /// # Cancel safety
    ///
    /// As [`save`](Self::save).
    pub async fn merge_or_default<P: Serialize + Send + 'static>(&self, patch: P) -> Result<Saved, Error> {
        self.merge_into(true, patch).await
    }

    async fn merge_into<P: Serialize + Send + 'static>(
        &self,
        or_default: bool,
        patch: P,
    ) -> Result<Saved, Error> {
        self.exclusive(move |held| {
            let patch = print(&patch, Format::Compact)?;
            let put = match held.read() {
                Err(fault) if or_default && fault.is_not_found() => {
                    held.put(&carry::merge_alone(&patch, held.options)?, None, None)
                }
                read => {
                    let (raw, meta) = read?;
                    held.put(&carry::merge(&raw, &patch, held.options)?, Some(meta), Some(&raw))
                }
            };
            put.map(|(saved, _)| saved)
        })
        .await
    }

    /// Applies a patch to the file ([RFC 6902](https://www.rfc-editor.org/rfc/rfc6902)): all of its operations or none. What it
    /// does not touch stays as it was, as with [`update`](Self::update); numbers keep their text also where they are moved, copied, or stand in an
    /// array of which another element changes.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("prices.json");
    /// # std::fs::write(&path, "{\"prices\": [1.50, 2.00]}")?;
    /// // {"prices": [1.50, 2.00]}
    /// let patch: async_jsonfs::Patch = serde_json::from_value(serde_json::json!([
    ///     {"op": "test", "path": "/prices/0", "value": 1.5},
    ///     {"op": "add", "path": "/prices/-", "value": 3},
    /// ]))?;
    /// async_jsonfs::patch(&path, patch).await?;
    /// assert_eq!(std::fs::read_to_string(&path)?, "{\"prices\": [1.50, 2.00, 3]}");
    /// # Ok(()) }
    /// ```
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
            let bytes = apply_patch(&raw, &patch, held.options)?;
            held.put(&bytes, Some(meta), Some(&raw)).map(|(saved, _)| saved)
        })
        .await
    }
}
