use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// What is kept of each item besides its result: see [`Run::detailed`](crate::Run::detailed).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Detail<I> {
    /// A clone of the input.
    pub input: I,
    /// How often the item was started: once, or as often as its policies did.
    pub attempts: u32,
    /// From its start until it ended.
    #[cfg_attr(feature = "serde", serde(with = "humantime_serde"))]
    pub elapsed: Duration,
}

/// What a gather keeps of each item besides its result.
#[doc(hidden)]
pub trait Keep {
    type Item;
    type Note;
    type Detail;
    const COUNTS: bool;

    fn note(item: &Self::Item) -> Self::Note;
    fn detail(note: Self::Note, attempts: &Attempts) -> Self::Detail;
}

/// Keeps nothing besides the result.
#[derive(Clone, Copy, Debug)]
pub struct Plain<I>(PhantomData<fn(I)>);

impl<I> Keep for Plain<I> {
    type Item = I;
    type Note = ();
    type Detail = ();
    const COUNTS: bool = false;

    fn note(_: &I) {}
    fn detail((): (), _: &Attempts) {}
}

/// Keeps a [`Detail`].
#[derive(Clone, Copy, Debug)]
pub struct Detailed<I>(PhantomData<fn(I)>);

impl<I: Clone> Keep for Detailed<I> {
    type Item = I;
    type Note = (I, Instant);
    type Detail = Detail<I>;
    const COUNTS: bool = true;

    fn note(item: &I) -> Self::Note {
        (item.clone(), Instant::now())
    }

    fn detail((input, began): Self::Note, attempts: &Attempts) -> Detail<I> {
        Detail { input, attempts: attempts.get(), elapsed: began.elapsed() }
    }
}

/// How often an item was started, where somebody asks.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct Attempts(Option<Arc<AtomicU32>>);

impl Attempts {
    pub(crate) fn counted() -> Self {
        Self(Some(Arc::default()))
    }

    pub(crate) fn add(&self) {
        if let Some(count) = &self.0 {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn get(&self) -> u32 {
        self.0.as_ref().map_or(1, |count| count.load(Ordering::Relaxed))
    }
}
