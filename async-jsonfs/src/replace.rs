//! The durable replace sequence.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::error::{ErrorKind, Fault, Outcome, Step};
use crate::ops::{DirId, Meta, Ops};
use crate::options::{Durability, Options, ReadOnly, Symlinks};
use crate::target::{Target, check_kind, is_temporary};
use crate::tell::{Event, tell};
use rustix::fs::FileType;

/// What to write, and over what.
#[derive(Debug)]
pub(crate) struct Replace<'a> {
    pub(crate) ops: &'a dyn Ops,
    pub(crate) target: &'a Target,
    pub(crate) options: &'a Options,
    /// Whether the name must be free.
    pub(crate) create_new: bool,
}

/// The file that will be replaced, if there is one and it may be.
pub(crate) fn current(ops: &dyn Ops, target: &Target, options: &Options) -> Result<Option<Meta>, Fault> {
    let meta = match ops.stat_at(&target.dir, &target.name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        meta => meta.step("look at the file")?,
    };
    if meta.kind == FileType::Symlink && options.symlinks == Symlinks::Replace {
        return Ok(None);
    }
    check_kind(&meta)?;
    if options.read_only == ReadOnly::Refuse {
        if meta.mode & 0o222 == 0 {
            return Err(ErrorKind::ReadOnly.into());
        }
        // The owner's own permission is in the mode; of anybody else's only the system knows.
        let owned = meta.mode & 0o200 != 0 && rustix::process::geteuid().as_raw() == meta.owner.0;
        match if owned { Ok(()) } else { ops.writable(&target.dir, &target.name) } {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(ErrorKind::ReadOnly.into());
            }
            checked => checked.step("check the permission to write")?,
        }
    }
    Ok(Some(meta))
}

impl Replace<'_> {
    /// Puts `bytes` in the place of `old`. Returns the new file, still open.
    ///
    /// 1. a temporary file beside it, new, locked, all bytes written, owner and mode of the old one
    /// 2. sync it
    /// 3. rename it over the old one
    /// 4. sync the directory
    ///
    /// A sync that failed is never tried again on the same descriptor: the kernel has marked the pages clean ("Can
    /// Applications Recover from fsync Failures?", USENIX ATC 2020). The temporary file is thrown away instead.
    pub(crate) fn run(&self, bytes: &[u8], old: Option<&Meta>) -> Result<File, Fault> {
        let replaced = self.replace(bytes, old);
        let durable = self.options.durability == Durability::Durable;
        let event = match &replaced {
            Ok(_) => Event::Written { bytes: bytes.len(), durable },
            Err(fault) => Event::Failed(fault),
        };
        tell(&self.target.path, &event);
        replaced
    }

    fn replace(&self, bytes: &[u8], old: Option<&Meta>) -> Result<File, Fault> {
        let Self { ops, target, options, .. } = *self;
        sweep(ops, target);
        let (file, name, made) = self.create(old)?;
        let guard = Temporary { ops, target, name: &name };
        self.fill(&file, bytes, &made, old)?;
        if let Err(error) = ops.rename(&target.dir, &name, &target.name, !self.create_new) {
            // A network file system may say no to what it has done.
            let done = ops.stat_at(&target.dir, &target.name).ok().zip(ops.stat(&file).ok());
            if done.is_none_or(|(there, ours)| there.id != ours.id) {
                let step = match error.kind() {
                    io::ErrorKind::ResourceBusy => "replace a file that something is mounted on",
                    _ => "rename the temporary file over it",
                };
                return Err(error).step(step);
            }
        }
        std::mem::forget(guard);
        if options.durability == Durability::Durable {
            ops.sync_dir(&target.dir)
                .step("sync the directory")
                .map_err(|fault| Fault { outcome: Outcome::Visible, ..fault })?;
        }
        Ok(file)
    }

    fn create(&self, old: Option<&Meta>) -> Result<(File, OsString, Meta), Fault> {
        let Self { ops, target, options, .. } = *self;
        // Nobody else may look into it until it has the old one's mode; a new file has what the umask leaves.
        let mode = if old.is_some() || options.mode.is_some() { 0o600 } else { 0o666 };
        loop {
            let name = target.temporary();
            // From here on: a network file system may create it and report an error.
            let guard = Temporary { ops, target, name: &name };
            let file = match ops.create(&target.dir, &name, mode) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    std::mem::forget(guard);
                    continue;
                }
                created => created.step("create a temporary file")?,
            };
            // The lock says that its writer lives. Whoever sweeps may have been faster: then it is theirs.
            let locked = ops.try_lock(&file).step("lock the temporary file")?;
            let made = ops.stat(&file).step("look at the temporary file")?;
            if locked && made.links > 0 {
                std::mem::forget(guard);
                return Ok((file, name, made));
            }
        }
    }

    fn fill(&self, file: &File, bytes: &[u8], made: &Meta, old: Option<&Meta>) -> Result<(), Fault> {
        let Self { ops, options, .. } = *self;
        let mut rest = bytes;
        while !rest.is_empty() {
            match ops.write(file, rest).step("write the temporary file")? {
                0 => return Err(io::Error::from(io::ErrorKind::WriteZero)).step("write the temporary file"),
                n => rest = &rest[n..],
            }
        }
        if let Some(old) = old {
            if made.owner != old.owner {
                ops.set_owner(file, old.owner)
                    .step("keep the file's owner, which only root or the owner may")?;
            }
            // After the owner: a change of owner clears the set-user-id bit.
            if made.mode != old.mode || made.owner != old.owner {
                ops.set_mode(file, old.mode & 0o7777).step("keep the file's mode")?;
            }
        } else if let Some(mode) = options.mode {
            ops.set_mode(file, mode).step("set the file's mode")?;
        }
        if options.durability == Durability::Durable {
            ops.sync(file).step("sync the temporary file")?;
        }
        Ok(())
    }
}

/// Removes the temporary file, unless it has become the file.
struct Temporary<'a> {
    ops: &'a dyn Ops,
    target: &'a Target,
    name: &'a OsStr,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let removed = self.ops.remove(&self.target.dir, self.name);
        if removed.is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            // Then the next write has to sweep.
            lock_swept().remove(&self.target.dir_id);
        }
    }
}

/// How many directories are remembered as swept before all are forgotten.
const MOST_SWEPT: usize = 4096;

static SWEPT: LazyLock<Mutex<HashSet<DirId>>> = LazyLock::new(Mutex::default);

fn lock_swept() -> MutexGuard<'static, HashSet<DirId>> {
    SWEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what crashed writers left in the directory, at this process's first write into it. A temporary file whose
/// writer lives is locked by it.
fn sweep(ops: &dyn Ops, target: &Target) {
    {
        let mut swept = lock_swept();
        if swept.len() >= MOST_SWEPT {
            swept.clear();
        }
        if !swept.insert(target.dir_id) {
            return;
        }
    }
    for name in ops.list(&target.dir).unwrap_or_default() {
        if !is_temporary(&name) {
            continue;
        }
        if let Ok(file) = ops.open(target.dir.as_fd(), name.as_ref(), false)
            && ops.try_lock(&file).unwrap_or(false)
        {
            // Should its writer have renamed it in between, the name is gone, and names are never used twice.
            let _ = ops.remove(&target.dir, &name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::{Ops, Replace, Temporary};
    use crate::error::ErrorKind;
    use crate::held::Held;
    use crate::ops::System;
    use crate::options::Options;
    use crate::target::Target;

    #[test]
    fn a_temporary_file_is_locked_while_its_writer_has_it() {
        let dir = tempfile::TempDir::new().unwrap();
        let (ops, options) = (&System, &Options::default());
        let target = &Target::resolve(ops, &dir.path().join("a.json"), options).unwrap();
        let (file, name, _) = Replace { ops, target, options, create_new: false }.create(None).unwrap();
        let _guard = Temporary { ops, target, name: &name };
        let other = fs::File::open(dir.path().join(&name)).unwrap();
        assert!(!ops.try_lock(&other).unwrap());
        drop(file);
        assert!(ops.try_lock(&other).unwrap());
    }

    #[test]
    fn what_came_meanwhile_is_not_replaced_by_what_is_to_be_new() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("a.json");
        let (ops, options, replaced) = (&System, &Options::default(), &Cell::new(None));
        let target = &Target::resolve(ops, &path, options).unwrap();
        fs::write(&path, "1").unwrap();
        let fault = Held { ops, target, options, replaced }.create(b"2").unwrap_err();
        assert!(matches!(fault.kind, ErrorKind::Conflict), "{fault:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }
}
