//! From a path to the directory and the name that are read and replaced.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::error::{ErrorKind, Fault, Step};
use crate::ops::{DirId, Meta, Ops};
use crate::options::{Options, Symlinks};

/// As many links as Linux follows (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;
/// The longest name that Linux's file systems take (`NAME_MAX`).
const LONGEST_NAME: usize = 255;
/// What our temporary files end with; nothing else is ever swept.
const TEMPORARY: &str = ".jsonfs-tmp";

/// Where a file really is, and who it is among all paths that lead to it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) dir: OwnedFd,
    pub(crate) name: OsString,
    pub(crate) dir_id: DirId,
    /// To be shown.
    pub(crate) path: PathBuf,
}

pub(crate) type Key = (DirId, OsString);

impl Target {
    pub(crate) fn resolve(ops: &dyn Ops, path: &Path, options: &Options) -> Result<Self, Fault> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            let (parent, name) = split(&path)?;
            match ops.read_link(&path) {
                Ok(_) if options.symlinks == Symlinks::Refuse => return Err(ErrorKind::Symlink.into()),
                Ok(to) if options.symlinks == Symlinks::Follow => path = parent.join(to),
                _ => {
                    let dir = match ops.open_dir(parent) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound && options.create_parents => {
                            make_parents(ops, parent)?
                        }
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {
                            return Err(missing(parent)).step("open the directory");
                        }
                        opened => opened.step("open the directory")?,
                    };
                    let dir_id = ops.identify(&dir).step("look at the directory")?;
                    return Ok(Self { name: name.to_owned(), dir, dir_id, path });
                }
            }
        }
        Err(io::Error::from(rustix::io::Errno::LOOP)).step("follow the symbolic link")
    }

    pub(crate) fn key(&self) -> Key {
        (self.dir_id, self.name.clone())
    }

    /// A name for a new temporary file beside it.
    pub(crate) fn temporary(&self) -> OsString {
        beside(&self.name, &format!(".{:016x}{TEMPORARY}", fastrand::u64(..)))
    }

    /// The name of its lock file.
    pub(crate) fn lock(&self) -> OsString {
        beside(&self.name, ".lock")
    }
}

/// Whether a name is that of one of our temporary files.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.first() == Some(&b'.')
        && name.strip_suffix(TEMPORARY.as_bytes()).is_some_and(|rest| {
            rest.len() > 17
                && rest[rest.len() - 17] == b'.'
                && rest[rest.len() - 16..].iter().all(u8::is_ascii_hexdigit)
        })
}

/// `.name` + `ending`; of a name that leaves no room for it, the beginning and a hash.
fn beside(name: &OsStr, ending: &str) -> OsString {
    let mut bytes = vec![b'.'];
    if 1 + name.len() + ending.len() <= LONGEST_NAME {
        bytes.extend(name.as_bytes());
    } else {
        let kept = &name.as_bytes()[..LONGEST_NAME - 1 - 17 - ending.len()];
        // Cut between characters: some file systems insist on UTF-8.
        let whole = std::str::from_utf8(kept).map_or_else(|error| error.valid_up_to(), str::len);
        bytes.extend(&kept[..whole]);
        bytes.extend(format!("-{:016x}", fnv(name.as_bytes())).bytes());
    }
    bytes.extend(ending.bytes());
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

/// FNV-1a: the same in every process and version, as the name of a lock has to be.
fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The path from the root, whatever the working directory will be.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Fault> {
    if path.as_os_str().is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is empty")).step("use the path");
    }
    std::path::absolute(path).step("make the path absolute")
}

/// Says which directory is missing, and what to do.
#[cold]
fn missing(parent: &Path) -> io::Error {
    let missing = parent.ancestors().take_while(|path| !path.exists()).last().unwrap_or(parent);
    let what = format!("{} does not exist (see `JsonFile::with_create_parents`)", missing.display());
    io::Error::new(io::ErrorKind::NotFound, what)
}

fn split(path: &Path) -> Result<(&Path, &OsStr), Fault> {
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(ErrorKind::NotAFile("a path with a zero byte").into());
    }
    // `file_name` looks past a slash at the end, which only a directory can have.
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !path.as_os_str().as_bytes().ends_with(b"/") => {
            Ok((if parent.as_os_str().is_empty() { Path::new(".") } else { parent }, name))
        }
        _ => Err(ErrorKind::NotAFile("the path of a directory").into()),
    }
}

/// Makes the directories that are missing, each of them durable in its own parent.
fn make_parents(ops: &dyn Ops, path: &Path) -> Result<OwnedFd, Fault> {
    let mut missing: Vec<PathBuf> = Vec::new();
    let mut next = path;
    let mut above = loop {
        match ops.open_dir(next) {
            Ok(dir) => break dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                missing.push(next.to_owned());
                next = match next.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    _ => Path::new("."),
                };
            }
            Err(error) => return Err(error).step("open the directory"),
        }
    };
    for path in missing.iter().rev() {
        let made = match ops.make_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).step("make the directory");
            }
            made => made.is_ok(),
        };
        let synced = ops.sync_dir(&above).step("sync the new directory's parent");
        if synced.is_err() && made {
            // The next call would take it for durable.
            let _ = ops.remove_dir(path);
        }
        synced?;
        above = ops.open_dir(path).step("open the new directory")?;
    }
    Ok(above)
}

/// Tells a link that is refused from a chain of links that never ends.
pub(crate) fn refuse_symlink(ops: &dyn Ops, path: &Path) -> Result<(), Fault> {
    if ops.read_link(path).is_ok() { Err(ErrorKind::Symlink.into()) } else { Ok(()) }
}

/// Refuses what is not a regular file.
pub(crate) fn check_kind(meta: &Meta) -> Result<(), Fault> {
    Err(ErrorKind::NotAFile(match meta.kind {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => "a directory",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Symlink => return Err(ErrorKind::Symlink.into()),
        _ => "something else",
    })
    .into())
}

/// Reads a file that has been opened, within the limit.
pub(crate) fn read(ops: &dyn Ops, file: &std::fs::File, options: &Options) -> Result<(Vec<u8>, Meta), Fault> {
    let meta = ops.stat(file).step("look at the file")?;
    check_kind(&meta)?;
    let limit = options.max_bytes;
    if meta.len > limit {
        return Err(ErrorKind::TooLarge { limit, found: meta.len }.into());
    }
    let mut bytes = Vec::new();
    // One byte more than there should be, so that the end is seen without another allocation.
    let room = usize::try_from(meta.len).unwrap_or(usize::MAX).saturating_add(1);
    bytes
        .try_reserve_exact(room)
        .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))
        .step("read the file")?;
    ops.read(&mut file.take(limit.saturating_add(1)), &mut bytes).step("read the file")?;
    if bytes.len() as u64 > limit {
        return Err(ErrorKind::TooLarge { limit, found: bytes.len() as u64 }.into());
    }
    Ok((bytes, meta))
}
