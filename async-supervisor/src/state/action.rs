//! What the core decides.

use std::time::Duration;

use super::{Answer, CommandId, Key};

/// What the shell has to do, in this order.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Start {
        key: Key,
        epoch: u64,
        attempt: u64,
    },
    Cancel {
        key: Key,
    },
    /// The time of the stop is nearly over: a supervisor asks all that is below it to end.
    Hurry {
        key: Key,
    },
    Abort {
        key: Key,
    },
    /// The child is significant and has ended for good: how, is part of the report if the supervisor stops because of it.
    Blame {
        key: Key,
    },
    /// The child is gone from the books: its specification can be dropped.
    Forget {
        key: Key,
    },
    /// It is the turn of a command that was queued.
    Begin {
        id: CommandId,
    },
    Answer {
        id: CommandId,
        answer: Answer,
    },
    /// The child that came with the command is in the books.
    Adopt {
        key: Key,
        id: CommandId,
    },
    /// The child's heartbeat may be overdue: [`Core::beat`] wants to know its last.
    Listen {
        key: Key,
        epoch: u64,
    },
    /// The first start of all is through.
    Up,
    /// All is being stopped from now on.
    Stopping,
    /// Nothing is left to do.
    Ended,
    Note {
        key: Key,
        note: Note,
    },
}

/// What there is to tell of a child, where somebody listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Ready,
    Restarting { delay: Duration },
    Aborted,
    Stuck,
}
