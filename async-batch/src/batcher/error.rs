use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::hash::{BuildHasher, Hash};

use async_policy::{PolicyError, Rejection, TimedOut, Verdict};

use super::Results;
use crate::Panicked;

/// Why a caller of a [`Batcher`](crate::Batcher) got no value.
///
/// It is an [`Error`] where `E` is one, whose `source` it hands on; a `String` is none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadError<E> {
    /// The loader's error for this key, or for the whole batch.
    Operation(E),
    /// The batcher refused: the key was not loaded.
    Rejected(Rejection),
    /// The bulk call took too long and was dropped: it may have run.
    TimedOut(TimedOut),
    /// The loader panicked.
    Panicked(Panicked),
    /// The loader returned a [map](Loaded), and this key has no value in it.
    Missing,
    /// The loader returned another number of results than it was given keys, so that none can be told apart.
    WrongCount {
        /// How many keys it was given.
        keys: usize,
        /// How many results it returned.
        results: usize,
    },
    /// The runtime shut down before the bulk call had ended: it may have run.
    Aborted,
}

impl<E: Send> PolicyError for LoadError<E> {
    fn from_rejection(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }

    fn from_timed_out(timed_out: TimedOut) -> Self {
        Self::TimedOut(timed_out)
    }

    fn rejection(&self) -> Option<&Rejection> {
        if let Self::Rejected(rejection) = self { Some(rejection) } else { None }
    }

    fn timed_out(&self) -> Option<&TimedOut> {
        if let Self::TimedOut(timed_out) = self { Some(timed_out) } else { None }
    }

    /// [`Missing`](Self::Missing) would be so again, and the loader is well; what else it is, another try may work.
    fn verdict(&self) -> Verdict {
        if let Self::Missing = self { Verdict::Permanent } else { Verdict::Transient }
    }
}

/// The alternate form (`{:#}`) adds the reason of a refusal or a time-out, which is otherwise in `source`.
impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation(error) => error.fmt(f),
            Self::Rejected(rejection) if f.alternate() => write!(f, "not loaded: {rejection}"),
            Self::Rejected(_) => f.write_str("not loaded"),
            Self::TimedOut(timed_out) if f.alternate() => write!(f, "loading timed out: {timed_out}"),
            Self::TimedOut(_) => f.write_str("loading timed out"),
            Self::Panicked(panicked) => write!(f, "the loader {panicked}"),
            Self::WrongCount { keys, results } => {
                let s = |n: usize| if n == 1 { "" } else { "s" };
                write!(f, "the loader returned {results} result{} for {keys} key{}", s(*results), s(*keys))
            }
            Self::Missing => f.write_str("the loader has no value for this key"),
            Self::Aborted => f.write_str("the runtime shut down while loading"),
        }
    }
}

impl<E: Error> Error for LoadError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Operation(error) => error.source(),
            Self::Rejected(rejection) => Some(rejection),
            Self::TimedOut(timed_out) => Some(timed_out),
            Self::Panicked(_) | Self::Missing | Self::WrongCount { .. } | Self::Aborted => None,
        }
    }
}

/// What a loader gives back for a batch of keys.
///
/// | | an error | a key without a result |
/// |---|---|---|
/// | `Vec<Result<V, E>>`, one for each key, in the keys' order | is its key's | [`LoadError::WrongCount`], for all |
/// | `Result<Vec<V>, E>`, the same | is everybody's | [`LoadError::WrongCount`], for all |
/// | `Result<HashMap<K, V>, E>`, in any order, where `K: Clone` | is everybody's | [`LoadError::Missing`], for that key |
pub trait Loaded<K> {
    /// Of one key.
    type Value;
    /// Of one key, or of all.
    type Error;
    /// What is needed of the keys to tell the results apart.
    #[doc(hidden)]
    type Order: Send;

    #[doc(hidden)]
    fn order(keys: &[K]) -> Self::Order;

    #[doc(hidden)]
    fn each(self, order: Self::Order) -> Results<Self::Value, Self::Error>;
}

impl<K, V, E> Loaded<K> for Vec<Result<V, E>> {
    type Value = V;
    type Error = E;
    type Order = ();

    fn order(_: &[K]) {}

    fn each(self, (): ()) -> Results<V, E> {
        Ok(self.into_iter().map(|result| result.map_err(LoadError::Operation)).collect())
    }
}

impl<K, V, E> Loaded<K> for Result<Vec<V>, E> {
    type Value = V;
    type Error = E;
    type Order = ();

    fn order(_: &[K]) {}

    fn each(self, (): ()) -> Results<V, E> {
        self.map(|values| values.into_iter().map(Ok).collect()).map_err(LoadError::Operation)
    }
}

impl<K, V, E, S> Loaded<K> for Result<HashMap<K, V, S>, E>
where
    K: Eq + Hash + Clone + Send,
    S: BuildHasher,
{
    type Value = V;
    type Error = E;
    type Order = Vec<K>;

    fn order(keys: &[K]) -> Vec<K> {
        keys.to_vec()
    }

    fn each(self, order: Vec<K>) -> Results<V, E> {
        let mut values = self.map_err(LoadError::Operation)?;
        Ok(order.iter().map(|key| values.remove(key).ok_or(LoadError::Missing)).collect())
    }
}
