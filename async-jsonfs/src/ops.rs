//! The file operations, one method each, so that tests can record them, reorder them and make each of them fail.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, Access, AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::{Errno, retry_on_intr};

/// What is asked of a file before it is read or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) len: u64,
    /// Device and inode: two files with one identity are one file.
    pub(crate) id: (u64, u64),
    pub(crate) links: u64,
    /// When content or attributes last changed.
    pub(crate) changed: (i64, i64),
}

impl Meta {
    // The widths of the fields differ between targets.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    fn from_stat(stat: &fs::Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: Mode::from_raw_mode(stat.st_mode).as_raw_mode() as u32,
            owner: (stat.st_uid, stat.st_gid),
            len: stat.st_size as u64,
            id: (stat.st_dev as u64, stat.st_ino as u64),
            links: stat.st_nlink as u64,
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }
}

/// A directory: device, inode, and where that is known the time of birth, because inodes are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DirId {
    pub(crate) id: (u64, u64),
    born: (i64, u32),
}

pub(crate) trait Ops: fmt::Debug + Send + Sync {
    fn open_dir(&self, path: &Path) -> io::Result<OwnedFd>;
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// If it is empty.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    fn read_link(&self, path: &Path) -> io::Result<PathBuf>;
    fn list(&self, dir: &OwnedFd) -> io::Result<Vec<OsString>>;
    fn sync_dir(&self, dir: &OwnedFd) -> io::Result<()>;
    fn identify(&self, dir: &OwnedFd) -> io::Result<DirId>;

    /// Opens to read, without waiting for the other end of a pipe.
    fn open(&self, dir: BorrowedFd<'_>, path: &Path, follow: bool) -> io::Result<File>;
    /// Opens what is there, or makes what is not.
    fn open_lock(&self, dir: &OwnedFd, name: &OsStr, make: bool) -> io::Result<File>;
    /// Whether the lock was free and is now ours, until the file is closed.
    fn try_lock(&self, file: &File) -> io::Result<bool>;
    fn stat_at(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<Meta>;
    fn stat(&self, file: &File) -> io::Result<Meta>;
    fn writable(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<()>;
    fn read(&self, file: &mut dyn io::Read, into: &mut Vec<u8>) -> io::Result<()>;
    /// Fills `into` from the beginning of a file that has been opened or created; false if that is shorter.
    fn read_again(&self, file: &File, into: &mut [u8]) -> io::Result<bool>;

    fn create(&self, dir: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<File>;
    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<usize>;
    fn set_owner(&self, file: &File, owner: (u32, u32)) -> io::Result<()>;
    fn set_mode(&self, file: &File, mode: u32) -> io::Result<()>;
    fn sync(&self, file: &File) -> io::Result<()>;
    fn rename(&self, dir: &OwnedFd, from: &OsStr, to: &OsStr, replace: bool) -> io::Result<()>;
    fn remove(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<()>;
}

/// The operating system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct System;

const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

impl Ops for System {
    fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(retry_on_intr(|| fs::open(path, flags, Mode::empty()))?)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::read_link(path)
    }

    fn list(&self, dir: &OwnedFd) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(dir)? {
            names.push(OsString::from_vec(entry?.file_name().to_bytes().to_vec()));
        }
        Ok(names)
    }

    fn sync_dir(&self, dir: &OwnedFd) -> io::Result<()> {
        Ok(fs::fsync(dir)?)
    }

    fn identify(&self, dir: &OwnedFd) -> io::Result<DirId> {
        #[cfg(target_os = "linux")]
        {
            let wanted = fs::StatxFlags::INO | fs::StatxFlags::BTIME;
            if let Ok(stat) = fs::statx(dir, c"", AtFlags::EMPTY_PATH, wanted) {
                let device = fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
                let born = stat.stx_btime;
                return Ok(DirId { id: (device, stat.stx_ino), born: (born.tv_sec, born.tv_nsec) });
            }
        }
        Ok(DirId { id: Meta::from_stat(&fs::fstat(dir)?).id, born: (0, 0) })
    }

    fn open(&self, dir: BorrowedFd<'_>, path: &Path, follow: bool) -> io::Result<File> {
        let flags = if follow { READ } else { READ | OFlags::NOFOLLOW };
        Ok(retry_on_intr(|| fs::openat(dir, path, flags, Mode::empty()))?.into())
    }

    fn open_lock(&self, dir: &OwnedFd, name: &OsStr, make: bool) -> io::Result<File> {
        let create = if make { OFlags::CREATE | OFlags::EXCL } else { OFlags::empty() };
        let flags = create | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let open =
            |access: OFlags| retry_on_intr(|| fs::openat(dir, name, access | flags, Mode::from(0o666u32)));
        // Network file systems lock only what is open for writing; somebody else's lock file may be read-only to us.
        let fd = match open(OFlags::RDWR) {
            Err(Errno::ACCESS) => open(OFlags::RDONLY),
            opened => opened,
        };
        Ok(fd?.into())
    }

    fn try_lock(&self, file: &File) -> io::Result<bool> {
        match fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn stat_at(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<Meta> {
        Ok(Meta::from_stat(&fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    fn stat(&self, file: &File) -> io::Result<Meta> {
        Ok(Meta::from_stat(&fs::fstat(file)?))
    }

    fn writable(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
        Ok(fs::accessat(dir, name, Access::WRITE_OK, AtFlags::EACCESS)?)
    }

    fn read(&self, file: &mut dyn io::Read, into: &mut Vec<u8>) -> io::Result<()> {
        file.read_to_end(into).map(drop)
    }

    fn read_again(&self, file: &File, into: &mut [u8]) -> io::Result<bool> {
        match file.read_exact_at(into, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| true),
        }
    }

    fn create(&self, dir: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<File> {
        let flags = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC
            | OFlags::NOCTTY;
        Ok(retry_on_intr(|| fs::openat(dir, name, flags, Mode::from(mode)))?.into())
    }

    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<usize> {
        Ok(retry_on_intr(|| rustix::io::write(file, bytes))?)
    }

    fn set_owner(&self, file: &File, (user, group): (u32, u32)) -> io::Result<()> {
        Ok(fs::fchown(file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?)
    }

    fn set_mode(&self, file: &File, mode: u32) -> io::Result<()> {
        Ok(fs::fchmod(file, Mode::from(mode))?)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        Ok(fs::fsync(file)?)
    }

    fn rename(&self, dir: &OwnedFd, from: &OsStr, to: &OsStr, replace: bool) -> io::Result<()> {
        if replace {
            return Ok(fs::renameat(dir, from, dir, to)?);
        }
        match fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
            // A file system without the flag: a link fails where something is, and the temporary name goes after.
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::linkat(dir, from, dir, to, AtFlags::empty())?;
                Ok(fs::unlinkat(dir, from, AtFlags::empty())?)
            }
            renamed => Ok(renamed?),
        }
    }

    fn remove(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
        Ok(fs::unlinkat(dir, name, AtFlags::empty())?)
    }
}
