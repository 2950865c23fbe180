//! One caller's change on its way through a commit.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::error::Error;
use crate::panics::{contained, let_go};

/// What a caller is told.
pub(crate) enum Answer<R, E> {
    /// Committed.
    Done(R),
    /// The closure said no.
    No(E),
    /// The closure panicked.
    Panicked(Box<dyn Any + Send>),
    /// The change cannot be written, or the commit failed.
    Failed(Error),
}

/// No panic of a user's leaves these methods.
pub(crate) trait Change<T>: Send {
    /// Applies it to a copy of `state`; the copy, if it is to be kept.
    fn apply(&mut self, state: &T) -> Option<T>;

    /// The copy could not be written, and is not kept.
    fn refuse(&mut self, error: Error);

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
        // What a panic leaves half changed is the copy. It is outside of what unwinds: its drop may panic too.
        let mut copy = None;
        let changed = catch_unwind(AssertUnwindSafe(|| closure(copy.insert(state.clone()))));
        let answer = match changed {
            Ok(Ok(value)) => Answer::Done(value),
            Ok(Err(no)) => Answer::No(no),
            Err(panic) => Answer::Panicked(panic),
        };
        if !matches!(answer, Answer::Done(_)) {
            let_go(copy.take());
        }
        self.answer = Some(answer);
        copy
    }

    fn refuse(&mut self, error: Error) {
        let_go(self.answer.replace(Answer::Failed(error)));
    }

    fn finish(self: Box<Self>, commit: Result<(), &Error>) {
        let Self { closure, answer, caller } = *self;
        let answer = match (answer, commit) {
            // One that was withdrawn has nobody to tell; one whose commit never began has not been applied.
            (answer @ (None | Some(Answer::Done(_))), Err(error)) => {
                let_go(answer);
                Some(Answer::Failed(error.clone()))
            }
            (answer, _) => answer,
        };
        // Where nobody waits for it, the answer is dropped here.
        contained(|| drop(answer.map(|answer| caller.send(answer))));
        let_go(closure);
    }
}

/// A caller that waits until everything before it is on disk.
pub(crate) struct Flush(pub(crate) oneshot::Sender<Result<(), Error>>);

impl<T> Change<T> for Flush {
    fn apply(&mut self, _: &T) -> Option<T> {
        None
    }

    fn refuse(&mut self, _: Error) {}

    fn durable(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>, commit: Result<(), &Error>) {
        contained(|| drop(self.0.send(commit.map_err(Clone::clone))));
    }
}
