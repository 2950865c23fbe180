#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(unix))]
compile_error!("async-jsonfs is built on Unix file descriptors");

mod carry;
mod change;
mod commit;
mod compare;
mod document;
mod drive;
mod error;
mod exclusive;
mod file;
mod finite;
mod functions;
mod held;
mod job;
mod limits;
mod locate;
mod lock;
mod merge;
mod ops;
mod options;
mod panics;
mod parse;
#[cfg(feature = "patch")]
mod patch;
mod replace;
mod state;
mod store;
mod target;
mod tell;
#[cfg(test)]
mod tests;
mod version;

pub use async_policy::{Deadline, PolicyKind, Reason, Rejection, TimedOut, Timeout};
pub use error::{Error, ErrorKind, Location, Outcome, UpdateError};
pub use file::{JsonFile, Saved};
#[cfg(feature = "patch")]
pub use functions::patch;
pub use functions::{load, merge, save, update, update_or_default};
pub use job::DropElsewhere;
#[cfg(feature = "patch")]
#[cfg_attr(docsrs, doc(cfg(feature = "patch")))]
pub use json_patch::Patch;
pub use options::{DEFAULT_MAX_BYTES, DuplicateKeys, Durability, Format, ReadOnly, Symlinks};
pub use store::Store;
pub use version::Version;
