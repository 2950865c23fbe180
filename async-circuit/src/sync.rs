//! The lock and the atomics; tests/loom.rs puts loom's in their place.

#[cfg(family_loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(family_loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(family_loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(family_loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};

/// How many stripes a striped counter has: a power of two, about one for each processor.
#[cfg(not(family_loom))]
pub(crate) fn stripes() -> usize {
    use std::sync::OnceLock;
    // More stripes than this cost memory and give little.
    const MOST: usize = 32;
    static STRIPES: OnceLock<usize> = OnceLock::new();
    *STRIPES.get_or_init(|| {
        std::thread::available_parallelism().map_or(1, |n| n.get().next_power_of_two().min(MOST))
    })
}

/// The number of this thread's stripe, to be taken modulo their count.
#[cfg(not(family_loom))]
pub(crate) fn stripe() -> usize {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.try_with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Relaxed) & (usize::MAX >> 1));
        }
        mine.get()
    })
    .unwrap_or(0)
}

// In the model all threads meet in one stripe: the worst case.
#[cfg(family_loom)]
pub(crate) fn stripes() -> usize {
    1
}

#[cfg(family_loom)]
pub(crate) fn stripe() -> usize {
    0
}
