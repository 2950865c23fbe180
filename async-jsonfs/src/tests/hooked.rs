//! The operating system with a recorder in front of it that can make any operation fail.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use crate::ops::{DirId, Meta, Ops, System};

/// Which operations fail, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// This one is not done.
    Once(usize, Errno),
    /// The n-th of this name is not done.
    Named(&'static str, usize, Errno),
    /// This one and all after it are not done: the disk has died.
    From(usize, Errno),
    /// This one is done, and an error reported.
    Done(usize),
    /// Somebody who sweeps comes to the next new temporary file before its writer has locked it, and has got this far.
    Swept(Sweeper),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweeper {
    HasLocked,
    HasRemoved,
}

/// What changes the file system, as far as a crash is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Create {
        name: OsString,
        inode: u64,
    },
    Write {
        inode: u64,
        bytes: Vec<u8>,
    },
    Sync {
        inode: u64,
    },
    Rename {
        from: OsString,
        to: OsString,
    },
    Remove {
        name: OsString,
    },
    SyncDir,
    /// Not the file system's: a caller was told that the change to this content is done.
    Told {
        content: Vec<u8>,
    },
}

#[derive(Debug)]
pub(super) struct Hooked {
    inner: System,
    state: Mutex<State>,
    /// Every write writes half at most, to begin with.
    short: bool,
    /// Every change bears one time: a clock that ticks as slowly as can be.
    frozen: bool,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    calls: Vec<&'static str>,
    log: Vec<Event>,
    inodes: HashMap<u64, u64>,
    /// The file of a sweeper that is at it.
    swept: Option<File>,
}

impl Hooked {
    pub(super) fn new(fault: Fault) -> Arc<Self> {
        Self::with(fault, false)
    }

    pub(super) fn with(fault: Fault, short: bool) -> Arc<Self> {
        let state = State { fault, calls: Vec::new(), log: Vec::new(), inodes: HashMap::new(), swept: None };
        Arc::new(Self { inner: System, state: Mutex::new(state), short, frozen: false })
    }

    pub(super) fn frozen() -> Arc<Self> {
        let ops = Self::new(Fault::None);
        Arc::new(Self { frozen: true, ..Arc::into_inner(ops).unwrap() })
    }

    fn meta(&self, meta: Meta) -> Meta {
        if self.frozen { Meta { changed: (i64::MAX / 4, 0), ..meta } } else { meta }
    }

    /// From here on this fault, counted from now.
    pub(super) fn set(&self, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        state.calls.clear();
        state.fault = fault;
    }

    pub(super) fn calls(&self) -> Vec<&'static str> {
        self.state.lock().unwrap().calls.clone()
    }

    /// The sweeper goes on, and is done.
    pub(super) fn sweeper_ends(&self) {
        drop(self.state.lock().unwrap().swept.take());
    }

    fn sweep(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if let Fault::Swept(sweeper) = state.fault {
            state.fault = Fault::None;
            let theirs = self.inner.open(dir.as_fd(), name.as_ref(), false)?;
            assert!(self.inner.try_lock(&theirs)?);
            state.swept = Some(theirs);
            if sweeper == Sweeper::HasRemoved {
                self.inner.remove(dir, name)?;
                state.swept = None;
            }
        }
        Ok(())
    }

    pub(super) fn log(&self) -> Vec<Event> {
        self.state.lock().unwrap().log.clone()
    }

    pub(super) fn told(&self, content: Vec<u8>) {
        self.state.lock().unwrap().log.push(Event::Told { content });
    }

    fn hook<R>(&self, call: &'static str, run: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        let fault = {
            let mut state = self.state.lock().unwrap();
            let n = state.calls.len();
            let of_its_name = state.calls.iter().filter(|made| **made == call).count();
            state.calls.push(call);
            match state.fault {
                Fault::Once(at, errno) if at == n => Some((errno, false)),
                Fault::Named(name, at, errno) if name == call && at == of_its_name => Some((errno, false)),
                Fault::From(at, errno) if at <= n => Some((errno, false)),
                Fault::Done(at) if at == n => Some((Errno::IO, true)),
                _ => None,
            }
        };
        match fault {
            Some((errno, false)) => Err(errno.into()),
            Some((errno, true)) => run().and(Err(errno.into())),
            None => run(),
        }
    }

    fn record(&self, event: Event) {
        self.state.lock().unwrap().log.push(event);
    }

    fn inode(&self, file: &File) -> u64 {
        self.inner.stat(file).unwrap().id.1
    }
}

impl Ops for Hooked {
    fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        self.hook("open_dir", || self.inner.open_dir(path))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.hook("make_dir", || self.inner.make_dir(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.hook("remove_dir", || self.inner.remove_dir(path))
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        self.hook("read_link", || self.inner.read_link(path))
    }

    fn list(&self, dir: &OwnedFd) -> io::Result<Vec<OsString>> {
        self.hook("list", || self.inner.list(dir))
    }

    fn sync_dir(&self, dir: &OwnedFd) -> io::Result<()> {
        self.hook("sync_dir", || {
            self.record(Event::SyncDir);
            self.inner.sync_dir(dir)
        })
    }

    fn identify(&self, dir: &OwnedFd) -> io::Result<DirId> {
        self.hook("identify", || self.inner.identify(dir))
    }

    fn open(&self, dir: BorrowedFd<'_>, path: &Path, follow: bool) -> io::Result<File> {
        self.hook("open", || self.inner.open(dir, path, follow))
    }

    fn open_lock(&self, dir: &OwnedFd, name: &OsStr, make: bool) -> io::Result<File> {
        self.hook("open_lock", || self.inner.open_lock(dir, name, make))
    }

    fn try_lock(&self, file: &File) -> io::Result<bool> {
        self.hook("try_lock", || self.inner.try_lock(file))
    }

    fn stat_at(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<Meta> {
        self.hook("stat_at", || self.inner.stat_at(dir, name)).map(|meta| self.meta(meta))
    }

    fn stat(&self, file: &File) -> io::Result<Meta> {
        self.hook("stat", || self.inner.stat(file)).map(|meta| self.meta(meta))
    }

    fn writable(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
        self.hook("writable", || self.inner.writable(dir, name))
    }

    fn read(&self, file: &mut dyn io::Read, into: &mut Vec<u8>) -> io::Result<()> {
        self.hook("read", || self.inner.read(file, into))
    }

    fn read_again(&self, file: &File, into: &mut [u8]) -> io::Result<bool> {
        self.hook("read_again", || self.inner.read_again(file, into))
    }

    fn create(&self, dir: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<File> {
        self.hook("create", || {
            let file = self.inner.create(dir, name, mode)?;
            // Inodes are used again, so each file has a number of its own here.
            let inode = {
                let mut state = self.state.lock().unwrap();
                let next =
                    1 + state.log.iter().filter(|event| matches!(event, Event::Create { .. })).count() as u64;
                state.inodes.insert(self.inode(&file), next);
                next
            };
            self.record(Event::Create { name: name.to_owned(), inode });
            self.sweep(dir, name)?;
            Ok(file)
        })
    }

    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<usize> {
        let bytes = if self.short { &bytes[..bytes.len().div_ceil(2)] } else { bytes };
        self.hook("write", || {
            let n = self.inner.write(file, bytes)?;
            let inode = self.state.lock().unwrap().inodes[&self.inode(file)];
            self.record(Event::Write { inode, bytes: bytes[..n].to_vec() });
            Ok(n)
        })
    }

    fn set_owner(&self, file: &File, owner: (u32, u32)) -> io::Result<()> {
        self.hook("set_owner", || self.inner.set_owner(file, owner))
    }

    fn set_mode(&self, file: &File, mode: u32) -> io::Result<()> {
        self.hook("set_mode", || self.inner.set_mode(file, mode))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.hook("sync", || {
            let inode = self.state.lock().unwrap().inodes.get(&self.inode(file)).copied();
            if let Some(inode) = inode {
                self.record(Event::Sync { inode });
            }
            self.inner.sync(file)
        })
    }

    fn rename(&self, dir: &OwnedFd, from: &OsStr, to: &OsStr, replace: bool) -> io::Result<()> {
        self.hook("rename", || {
            self.inner.rename(dir, from, to, replace)?;
            self.record(Event::Rename { from: from.to_owned(), to: to.to_owned() });
            Ok(())
        })
    }

    fn remove(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
        self.hook("remove", || {
            self.inner.remove(dir, name)?;
            self.record(Event::Remove { name: name.to_owned() });
            Ok(())
        })
    }
}
