use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::task::Waker;

/// Wakes one after the other, without a lock. A waker is the caller's code: where one panics, the others are woken all the same, and
/// the first panic goes on after that.
pub(crate) fn wake_all(wakers: impl Iterator<Item = Waker>) {
    let mut first = None;
    for waker in wakers {
        let woken = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        first = first.or(woken.err());
    }
    if let Some(panic) = first
        // A second panic while unwinding would end the process.
        && !std::thread::panicking()
    {
        resume_unwind(panic);
    }
}
