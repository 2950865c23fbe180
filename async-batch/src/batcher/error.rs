use std::error::Error;
use std::fmt;

use async_policy::{PolicyError, Rejection, TimedOut};

use crate::Panicked;

/// Why a caller of a [`Batcher`](crate::Batcher) got no value.
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
                write!(f, "the loader returned {results} results for {keys} keys")
            }
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
            Self::Panicked(_) | Self::WrongCount { .. } | Self::Aborted => None,
        }
    }
}

/// What a loader gives back for a batch of keys: `Vec<Result<V, E>>`, one for each key in the keys' order, or
/// `Result<Vec<V>, E>`, whose error is everybody's.
pub trait Loaded {
    /// Of one key.
    type Value;
    /// Of one key, or of all.
    type Error;

    #[doc(hidden)]
    #[expect(clippy::type_complexity, reason = "one result for each, or one for all")]
    fn each(self) -> Result<Vec<Result<Self::Value, Self::Error>>, Self::Error>;
}

impl<V, E> Loaded for Vec<Result<V, E>> {
    type Value = V;
    type Error = E;

    fn each(self) -> Result<Vec<Result<V, E>>, E> {
        Ok(self)
    }
}

impl<V, E> Loaded for Result<Vec<V>, E> {
    type Value = V;
    type Error = E;

    fn each(self) -> Result<Vec<Result<V, E>>, E> {
        self.map(|values| values.into_iter().map(Ok).collect())
    }
}
