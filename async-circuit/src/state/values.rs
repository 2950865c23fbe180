//! What goes into the core and comes out of it.

use std::time::Duration;

use async_policy::Reason;

use crate::event::Cause;
use crate::snapshot::State;

/// The stamp of a call that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) epoch: u64,
    pub(crate) state: State,
}

/// No epoch ever: a call that nothing is learnt from.
pub(super) const NO_EPOCH: u64 = u64::MAX;

impl Stamp {
    pub(crate) const fn counts(self) -> bool {
        self.epoch != NO_EPOCH
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal {
    /// While open; `Duration::MAX` stands for ever, which is by hand.
    pub(crate) fn open(left: Duration) -> Self {
        if left == Duration::MAX {
            Self { reason: Reason::ForcedOpen, retry_after: None }
        } else {
            Self { reason: Reason::CircuitOpen, retry_after: Some(left) }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Admitted(Stamp),
    Refused(Refusal),
    /// Let in although it would have been refused.
    Observed(Stamp, Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) epoch: u64,
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) cause: Cause,
    pub(crate) at: Duration,
    pub(crate) open_for: Option<Duration>,
}
