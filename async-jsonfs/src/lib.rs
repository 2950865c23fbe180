#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod carry;
mod change;
mod commit;
mod document;
mod error;
mod exclusive;
mod file;
mod functions;
mod held;
mod job;
mod limits;
mod locate;
mod lock;
mod merge;
mod ops;
mod options;
mod parse;
mod replace;
mod state;
mod store;
mod target;
#[cfg(test)]
mod tests;
mod version;

pub use error::{Error, ErrorKind, Location, Outcome};
pub use file::{JsonFile, Saved, UpdateError};
#[cfg(feature = "patch")]
pub use functions::patch;
pub use functions::{load, merge, save, update};
pub use job::DropElsewhere;
pub use options::{DEFAULT_MAX_BYTES, DuplicateKeys, Durability, Format, ReadOnly, Symlinks};
pub use store::Store;
pub use version::Version;
