use std::sync::PoisonError;

use crate::sync::{AtomicU32, Ordering, RwLock};

/// Somebody waits: newcomers go to the queue.
const WAITING: u32 = 1;
/// The engine was replaced: the one in force is behind the lock.
const REPLACED: u32 = 2;

/// Keeps the engine in force, and newcomers from passing the queue. Until the engine is first replaced, it is reached without
/// a lock.
#[derive(Debug)]
pub(super) struct Gate<E> {
    word: AtomicU32,
    first: E,
    replaced: RwLock<Option<E>>,
}

impl<E> Gate<E> {
    pub(super) fn new(first: E) -> Self {
        Self { word: AtomicU32::new(0), first, replaced: RwLock::new(None) }
    }

    /// Whether nobody waits and `take` takes what it wants.
    #[inline]
    pub(super) fn take(&self, take: impl Fn(&E) -> bool) -> bool {
        if self.word.load(Ordering::Acquire) == 0 && take(&self.first) {
            return true;
        }
        // Look again: the first may have been retired meanwhile, and then it refuses everything.
        let word = self.word.load(Ordering::Acquire);
        word & WAITING == 0 && word & REPLACED != 0 && self.with(take)
    }

    /// The engine in force.
    pub(super) fn with<R>(&self, f: impl FnOnce(&E) -> R) -> R {
        if self.word.load(Ordering::Acquire) & REPLACED == 0 {
            return f(&self.first);
        }
        let replaced = self.replaced.read().unwrap_or_else(PoisonError::into_inner);
        f(replaced.as_ref().unwrap_or(&self.first))
    }

    /// Looks at the engine in force without the lock of the queue, which keeps it in force.
    pub(super) fn look<R>(&self, f: impl Fn(&E) -> R) -> R {
        let seen = self.with(&f);
        // The first may have been retired meanwhile, and then what was seen is of no use. (Seen after it was replaced once, it was
        // seen under a lock.)
        if self.word.load(Ordering::Acquire) & REPLACED == 0 { seen } else { self.with(f) }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.word.load(Ordering::Acquire) & WAITING != 0
    }

    /// Says whether anybody waits. Called under the lock of the queue.
    pub(super) fn set_waiting(&self, waiting: bool) {
        match (self.is_waiting(), waiting) {
            (false, true) => self.word.fetch_or(WAITING, Ordering::Release),
            (true, false) => self.word.fetch_and(!WAITING, Ordering::Release),
            _ => return,
        };
    }

    /// Puts another engine in force. `make` retires the old one, which from then on refuses everything, and makes the new one of
    /// what it had.
    pub(super) fn replace(&self, make: impl FnOnce(&E) -> E) {
        let mut replaced = self.replaced.write().unwrap_or_else(PoisonError::into_inner);
        // First the word, then the retirement: whoever is refused by the retired one finds the word changed, and waits for the lock.
        self.word.fetch_or(REPLACED, Ordering::Release);
        let new = make(replaced.as_ref().unwrap_or(&self.first));
        *replaced = Some(new);
    }
}
