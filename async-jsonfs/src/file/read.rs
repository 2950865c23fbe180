//! Reading: without a turn, without a lock.

use std::cell::Cell;

use rustix::fs::CWD;
use serde::de::DeserializeOwned;

use super::JsonFile;
use crate::error::{Error, Fault, Step};
use crate::held::Held;
use crate::options::{Options, Symlinks};
use crate::parse::parse;
use crate::target::Target;
use crate::version::Version;
use crate::{job, target};

impl JsonFile {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// The file is not there, cannot be read, is too large, is not UTF-8 JSON or not a `T`; then the error says where and what was
    /// expected.
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing; a job that runs goes on to its end. (It waits for the disk only, and for no deadline.)
    pub async fn load<T: DeserializeOwned + Send + 'static>(&self) -> Result<T, Error> {
        self.read(parse).await
    }

    /// [`load`](Self::load); of a file that is not there, the default. A file that is there and empty is an error.
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

    async fn read<R: Send + 'static>(
        &self,
        make: fn(&[u8], &Options) -> Result<R, Fault>,
    ) -> Result<R, Error> {
        let Self { path, options, ops } = self.clone();
        let read = move || {
            let file = match ops.open(CWD, &path, options.symlinks != Symlinks::Refuse) {
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
        let made = match job::run(move || (read(), ())).await {
            Ok(Ok(Read::Made(made))) => Ok(made),
            Ok(Ok(Read::Small(bytes))) => make(&bytes, &self.options),
            Ok(Err(fault)) | Err(fault) => Err(fault),
        };
        made.map_err(|fault| self.error(fault))
    }

    /// What a change would find, for one that comes later; or why there is no way to it.
    pub(crate) async fn look<R: Send + 'static>(
        &self,
        work: impl FnOnce(Result<&Held<'_>, Fault>) -> Result<R, Fault> + Send + 'static,
    ) -> Result<R, Error> {
        let Self { path, options, ops } = self.clone();
        let looked = job::run(move || {
            let options = Options { create_parents: false, ..options };
            let target = target::absolute(&path).and_then(|path| Target::resolve(&*ops, &path, &options));
            let replaced = Cell::new(None);
            let looked = match target {
                Ok(target) => {
                    let (ops, options, replaced) = (&*ops, &options, &replaced);
                    work(Ok(&Held { ops, target: &target, options, replaced }))
                }
                Err(fault) => work(Err(fault)),
            };
            (looked, ())
        });
        looked.await.and_then(|looked| looked).map_err(|fault| self.error(fault))
    }
}

/// Up to this many bytes a loaded file is parsed by the caller, in some 50 us: what another thread has parsed costs more to drop
/// than that (its memory goes back to an allocator's arena that is not this thread's).
const SMALL: usize = 8 << 10;

enum Read<R> {
    Made(R),
    Small(Vec<u8>),
}
