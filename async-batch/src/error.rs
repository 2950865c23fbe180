use std::any::Any;
use std::error::Error;
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use async_policy::{Failure, PolicyError, Rejection, TimedOut};

/// How an item ends when it does not end well.
///
/// It is a [`PolicyError`], so the policies that run an item speak through it and it stays flat: `Display` and `source`
/// of an item's own error are its own. It is an [`Error`] where `E` is one, whose `source` it hands on; a `String` is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemError<E> {
    /// It ran and failed; the error is its own.
    Operation(E),
    /// A policy refused: it was not started (or not once more).
    Rejected(Rejection),
    /// It was started, got no answer in time and was dropped: it may have run.
    TimedOut(TimedOut),
    /// It panicked.
    Panicked(Panicked),
    /// It was under way when the gather stopped: it may have run.
    Cancelled,
}

impl<E> ItemError<E> {
    /// The item's own error.
    pub const fn operation(&self) -> Option<&E> {
        if let Self::Operation(error) = self { Some(error) } else { None }
    }

    /// The item's own error, by value.
    pub fn into_operation(self) -> Option<E> {
        if let Self::Operation(error) = self { Some(error) } else { None }
    }

    /// Whether the gather stopped the item, which then says nothing about the item itself.
    pub const fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }
}

impl<E> From<Failure<E>> for ItemError<E> {
    fn from(failure: Failure<E>) -> Self {
        match failure {
            Failure::Operation(error) => Self::Operation(error),
            Failure::Rejected(rejection) => Self::Rejected(rejection),
            Failure::TimedOut(timed_out) => Self::TimedOut(timed_out),
        }
    }
}

impl<E: Send> PolicyError for ItemError<E> {
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
impl<E: fmt::Display> fmt::Display for ItemError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation(error) => error.fmt(f),
            Self::Rejected(rejection) if f.alternate() => write!(f, "item not started: {rejection}"),
            Self::Rejected(_) => f.write_str("item not started"),
            Self::TimedOut(timed_out) if f.alternate() => write!(f, "item timed out: {timed_out}"),
            Self::TimedOut(_) => f.write_str("item timed out"),
            Self::Panicked(panicked) => panicked.fmt(f),
            Self::Cancelled => f.write_str("cancelled: the gather stopped"),
        }
    }
}

impl<E: Error> Error for ItemError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Operation(error) => error.source(),
            Self::Rejected(rejection) => Some(rejection),
            Self::TimedOut(timed_out) => Some(timed_out),
            Self::Panicked(_) | Self::Cancelled => None,
        }
    }
}

/// A panic that was caught, with its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panicked {
    message: Box<str>,
}

/// Runs `f`. A panic in it, or in the drop of that panic's payload, goes no further.
pub(crate) fn contained(f: impl FnOnce()) {
    let Err(payload) = catch_unwind(AssertUnwindSafe(f)) else { return };
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(another);
    }
}

impl Panicked {
    pub(crate) fn from_payload(payload: Box<dyn Any + Send>) -> Self {
        let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
            (Some(message), _) => message,
            (_, Some(message)) => message.as_str(),
            _ => "(not a text)",
        };
        let message = message.into();
        contained(|| drop(payload));
        Self { message }
    }

    /// What the panic said.
    #[must_use]
    pub const fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.message)
    }
}

impl Error for Panicked {}
