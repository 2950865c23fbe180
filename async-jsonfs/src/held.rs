//! What a change does with the file once it has it to itself.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::FileType;

use crate::error::{ErrorKind, Fault, Step};
use crate::file::Saved;
use crate::limits;
use crate::ops::{Meta, Ops};
use crate::options::{Durability, Options, Symlinks};
use crate::replace::{Replace, current};
use crate::target::{self, Target};

/// The file while nobody else changes it.
pub(crate) struct Held<'a> {
    pub(crate) ops: &'a dyn Ops,
    pub(crate) target: &'a Target,
    pub(crate) options: &'a Options,
    /// The file that was there. Once it has been replaced, to close it is to free it, and that may take the file system longer than the
    /// rename: it is closed when the caller has been told.
    pub(crate) replaced: &'a Cell<Option<File>>,
}

/// A larger file is freed first: its room may be what the next write needs.
const FREED_LATER: u64 = 16 << 10;

impl Held<'_> {
    /// The content to be changed.
    pub(crate) fn read(&self) -> Result<(Vec<u8>, Meta), Fault> {
        current(self.ops, self.target, self.options)?;
        let file = self.open()?;
        let read = target::read(self.ops, &file, self.options)?;
        self.close_later(file, &read.1);
        Ok(read)
    }

    /// Keeps the file that is replaced open until the caller has been told.
    pub(crate) fn close_later(&self, file: File, meta: &Meta) {
        self.replaced.set((meta.len <= FREED_LATER).then_some(file));
    }

    /// Opens the file to read. A link that is still there is one that will be replaced: reads follow it.
    pub(crate) fn open(&self) -> Result<File, Fault> {
        let follow = self.options.symlinks == Symlinks::Replace;
        self.ops.open(self.target.dir.as_fd(), self.target.name.as_ref(), follow).step("open")
    }

    /// Writes, unless the file holds `bytes` already. `raw` is its content where that is known. The file comes back open.
    pub(crate) fn put(
        &self,
        bytes: &[u8],
        old: Option<Meta>,
        raw: Option<&[u8]>,
    ) -> Result<(Saved, File), Fault> {
        let Self { ops, target, options, .. } = *self;
        limits::check_written(bytes, options)?;
        if let Some(old) = old
            && raw.is_none_or(|raw| raw == bytes)
            // What cannot be opened or read can be replaced all the same.
            && let Ok(file) = self.open()
        {
            let same = raw.is_some() || self.holds(&file, &old, bytes);
            // It may have been made visible only. Where a sync fails, the bytes are written anew.
            let durable = || ops.sync(&file).is_ok() && ops.sync_dir(&target.dir).is_ok();
            if same && (options.durability == Durability::Visible || durable()) {
                return Ok((Saved::Unchanged, file));
            }
            self.close_later(file, &old);
        }
        self.replace(bytes, old.as_ref()).map(|file| (Saved::Written, file))
    }

    /// Whether the file has these bytes.
    fn holds(&self, file: &File, meta: &Meta, bytes: &[u8]) -> bool {
        let read = || {
            let mut content = vec![0; bytes.len()];
            self.ops.read_again(file, &mut content).is_ok_and(|read| read && content == bytes)
        };
        meta.len == bytes.len() as u64 && read()
    }

    /// Writes in any case what has been [checked](limits::check_written).
    pub(crate) fn replace(&self, bytes: &[u8], old: Option<&Meta>) -> Result<File, Fault> {
        let Self { ops, target, options, .. } = *self;
        Replace { ops, target, options, create_new: false }.run(bytes, old)
    }

    /// Writes where nothing is.
    pub(crate) fn create(&self, bytes: &[u8]) -> Result<(), Fault> {
        let Self { ops, target, options, .. } = *self;
        limits::check_written(bytes, options)?;
        // Where reads find nothing there may yet be a link that is to be replaced.
        if options.symlinks == Symlinks::Replace
            && ops.stat_at(&target.dir, &target.name).is_ok_and(|there| there.kind == FileType::Symlink)
        {
            return self.replace(bytes, None).map(drop);
        }
        match (Replace { ops, target, options, create_new: true }).run(bytes, None) {
            Err(Fault { kind: ErrorKind::Io { source, .. }, .. })
                if source.kind() == io::ErrorKind::AlreadyExists =>
            {
                Err(ErrorKind::Conflict.into())
            }
            done => done.map(drop),
        }
    }
}
