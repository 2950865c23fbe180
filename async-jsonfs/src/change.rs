//! One caller's change on its way through a commit.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::error::Error;

/// What a caller is told.
pub(crate) enum Answer<R, E> {
    /// Committed.
    Done(R),
    /// The closure said no.
    No(E),
    /// The closure panicked.
    Panicked(Box<dyn Any + Send>),
    /// The commit failed.
    Failed(Error),
}

pub(crate) trait Change<T>: Send {
    /// Applies it to a copy of `state`; the copy, if it is to be kept. A panic is caught.
    fn apply(&mut self, state: &T) -> Option<T>;

    /// Whether the commit must be durable whatever the store's choice.
    fn durable(&self) -> bool {
        false
    }

    /// Tells the caller how the commit went.
    fn finish(self: Box<Self>, commit: Result<(), &Error>);
}

/// The closure, until the commit or a caller that gives up takes it: who takes it decides.
pub(crate) struct Ticket<F>(Arc<Mutex<Option<F>>>);

impl<F> Ticket<F> {
    fn take(&self) -> Option<F> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Withdraws the change; false if it is (or was) being applied.
    pub(crate) fn withdraw(&self) -> bool {
        self.take().is_some()
    }
}

/// A caller that goes away withdraws its change.
impl<F> Drop for Ticket<F> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

pub(crate) struct Queued<F, R, E> {
    closure: Arc<Mutex<Option<F>>>,
    answer: Option<Answer<R, E>>,
    caller: oneshot::Sender<Answer<R, E>>,
}

pub(crate) type Caller<R, E> = oneshot::Receiver<Answer<R, E>>;

impl<F, R, E> Queued<F, R, E> {
    pub(crate) fn new(closure: F) -> (Self, Ticket<F>, Caller<R, E>) {
        let (caller, receiver) = oneshot::channel();
        let closure = Arc::new(Mutex::new(Some(closure)));
        (Self { closure: Arc::clone(&closure), answer: None, caller }, Ticket(closure), receiver)
    }
}

impl<T, F, R, E> Change<T> for Queued<F, R, E>
where
    T: Clone,
    F: FnOnce(&mut T) -> Result<R, E> + Send,
    R: Send,
    E: Send,
{
    fn apply(&mut self, state: &T) -> Option<T> {
        let closure = self.closure.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        // What a panic leaves half changed is the copy, and that is dropped.
        let applied = catch_unwind(AssertUnwindSafe(|| {
            let mut copy = state.clone();
            let changed = closure(&mut copy);
            (copy, changed)
        }));
        let (answer, kept) = match applied {
            Ok((copy, Ok(value))) => (Answer::Done(value), Some(copy)),
            Ok((_, Err(no))) => (Answer::No(no), None),
            Err(panic) => (Answer::Panicked(panic), None),
        };
        self.answer = Some(answer);
        kept
    }

    fn finish(self: Box<Self>, commit: Result<(), &Error>) {
        let answer = match (self.answer, commit) {
            // One that was withdrawn has nobody to tell; one whose commit never began has not been applied.
            (None | Some(Answer::Done(_)), Err(error)) => Answer::Failed(error.clone()),
            (Some(answer), _) => answer,
            (None, Ok(())) => return,
        };
        let _ = self.caller.send(answer);
    }
}

/// A caller that waits until everything before it is on disk.
pub(crate) struct Flush(pub(crate) oneshot::Sender<Result<(), Error>>);

impl<T> Change<T> for Flush {
    fn apply(&mut self, _: &T) -> Option<T> {
        None
    }

    fn durable(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>, commit: Result<(), &Error>) {
        let _ = self.0.send(commit.map_err(Clone::clone));
    }
}
