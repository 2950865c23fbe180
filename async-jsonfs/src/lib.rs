#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
mod exclusive;
mod file;
mod job;
mod locate;
mod lock;
mod ops;
mod options;
mod parse;
mod replace;
mod target;

pub use error::{Error, ErrorKind, Location, Outcome};
pub use file::{JsonFile, Saved, UpdateError, load, save, update};
pub use job::DropElsewhere;
pub use options::{DEFAULT_MAX_BYTES, Durability, Format, ReadOnly, Symlinks};
