use std::error::Error;
use std::fmt;

use crate::{Rejection, TimedOut, Verdict};

/// An error that policies can speak through: they put a refusal or a time-out in, and read it back out.
///
/// Implemented for [`Failure<E>`], for `Box<dyn Error + Send + Sync>` (a refusal is found anywhere in its chain of
/// sources), and for `anyhow::Error` behind the `anyhow` feature. An error enum of your own needs a few lines:
///
/// ```
/// use async_policy::{PolicyError, Rejection, TimedOut, Verdict};
///
/// enum QuoteError {
///     UnknownSymbol,
///     Http(std::io::Error),
///     Refused(Rejection),
///     TimedOut(TimedOut),
/// }
///
/// impl PolicyError for QuoteError {
///     fn from_rejection(rejection: Rejection) -> Self { Self::Refused(rejection) }
///     fn from_timed_out(timed_out: TimedOut) -> Self { Self::TimedOut(timed_out) }
///     fn rejection(&self) -> Option<&Rejection> {
///         if let Self::Refused(r) = self { Some(r) } else { None }
///     }
///     fn timed_out(&self) -> Option<&TimedOut> {
///         if let Self::TimedOut(t) = self { Some(t) } else { None }
///     }
///     fn verdict(&self) -> Verdict {
///         if let Self::UnknownSymbol = self { Verdict::Permanent } else { Verdict::Transient }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot carry a refusal or a time-out",
    label = "this error type has no room for a policy's own answer",
    note = "lift a foreign error: `.map_err(Failure::Operation)`, or use `Policy::call`, which does it for you",
    note = "or implement `PolicyError` for your own error type"
)]
pub trait PolicyError: Send + Sized {
    /// Puts a refusal in.
    fn from_rejection(rejection: Rejection) -> Self;

    /// Puts a time-out in.
    fn from_timed_out(timed_out: TimedOut) -> Self;

    /// Reads a refusal back out.
    fn rejection(&self) -> Option<&Rejection>;

    /// Reads a time-out back out.
    fn timed_out(&self) -> Option<&TimedOut>;

    /// What an error of the operation's own means, where its caller did not say otherwise with
    /// [`classify_with`](crate::Operation::classify_with). Not asked for a refusal or a time-out.
    ///
    /// # Default
    ///
    /// [`Verdict::Transient`].
    fn verdict(&self) -> Verdict {
        Verdict::Transient
    }
}

/// How a call through policies ends when it does not end well: [`Policy::call`](crate::Policy::call) lifts any
/// error `E` into it once, and it stays flat however deep the stack.
///
/// `Display` and `source` of an operation's error are its own. A refusal or a time-out is the `source`, and `{failure:#}`
/// prints it on the same line: "operation not started: circuit breaker `quotes` refused: circuit open (retry after 3.2s)".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure<E> {
    /// The operation ran and failed; the error is its own.
    Operation(E),
    /// A policy refused: the operation was not started (or not once more).
    Rejected(Rejection),
    /// The operation was started, got no answer in time and was dropped: it may have run.
    TimedOut(TimedOut),
}

impl<E> Failure<E> {
    /// The operation's own error.
    pub const fn operation(&self) -> Option<&E> {
        if let Self::Operation(error) = self { Some(error) } else { None }
    }

    /// The operation's own error, by value.
    pub fn into_operation(self) -> Option<E> {
        if let Self::Operation(error) = self { Some(error) } else { None }
    }

    /// Changes the operation's own error.
    pub fn map<F>(self, f: impl FnOnce(E) -> F) -> Failure<F> {
        match self {
            Self::Operation(error) => Failure::Operation(f(error)),
            Self::Rejected(rejection) => Failure::Rejected(rejection),
            Self::TimedOut(timed_out) => Failure::TimedOut(timed_out),
        }
    }
}

impl<E: Send> PolicyError for Failure<E> {
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

impl<E: fmt::Display> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation(error) => error.fmt(f),
            Self::Rejected(rejection) if f.alternate() => write!(f, "operation not started: {rejection}"),
            Self::Rejected(_) => f.write_str("operation not started"),
            Self::TimedOut(timed_out) if f.alternate() => write!(f, "operation timed out: {timed_out}"),
            Self::TimedOut(_) => f.write_str("operation timed out"),
        }
    }
}

impl<E: Error> Error for Failure<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Operation(error) => error.source(),
            Self::Rejected(rejection) => Some(rejection),
            Self::TimedOut(timed_out) => Some(timed_out),
        }
    }
}

impl<E> From<Rejection> for Failure<E> {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl<E> From<TimedOut> for Failure<E> {
    fn from(timed_out: TimedOut) -> Self {
        Self::TimedOut(timed_out)
    }
}

fn find<'e, T: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

impl PolicyError for Box<dyn Error + Send + Sync> {
    fn from_rejection(rejection: Rejection) -> Self {
        rejection.into()
    }

    fn from_timed_out(timed_out: TimedOut) -> Self {
        timed_out.into()
    }

    fn rejection(&self) -> Option<&Rejection> {
        find(&**self)
    }

    fn timed_out(&self) -> Option<&TimedOut> {
        find(&**self)
    }
}

#[cfg(feature = "anyhow")]
impl PolicyError for anyhow::Error {
    fn from_rejection(rejection: Rejection) -> Self {
        rejection.into()
    }

    fn from_timed_out(timed_out: TimedOut) -> Self {
        timed_out.into()
    }

    // `downcast_ref` on the whole first: it also sees through `context`, which the chain does not.
    fn rejection(&self) -> Option<&Rejection> {
        self.downcast_ref().or_else(|| find(self.as_ref()))
    }

    fn timed_out(&self) -> Option<&TimedOut> {
        self.downcast_ref().or_else(|| find(self.as_ref()))
    }
}
