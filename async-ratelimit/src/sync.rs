//! The locks and atomics of the cores; tests/loom.rs puts loom's in their place.

pub(crate) use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};
