//! Code of users' own runs in the midst of ours: their serializers, their drops. A panic of theirs is theirs alone.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{ErrorKind, Fault};

/// Runs code of the type's own.
pub(crate) fn caught<R>(run: impl FnOnce() -> Result<R, Fault>) -> Result<R, Fault> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        let_go(payload);
        Err(ErrorKind::Panicked.into())
    })
}

/// Runs `f`. A panic in it, or in the drop of that panic's payload, goes no further.
pub(crate) fn contained(f: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(f))
        && let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload)))
    {
        mem::forget(another);
    }
}

/// Drops a value where a panic of its drop must harm nobody.
pub(crate) fn let_go<T>(value: T) {
    if mem::needs_drop::<T>() {
        contained(|| drop(value));
    }
}
