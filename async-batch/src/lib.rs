#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod engine;
mod error;
mod gather;
mod order;
mod outcomes;
mod progress;
mod run;
mod source;
mod state;
mod wake;
mod work;

pub use error::{ItemError, Panicked};
pub use gather::Gather;
pub use outcomes::{IntoIter, Iter, Outcomes, Settled, Stopped};
pub use progress::{Progress, Snapshot};
pub use run::Run;
pub use source::{Items, Source};
pub use work::{InTask, InTaskFuture, Item, Work};
